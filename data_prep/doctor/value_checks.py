"""Are states and actions numbers, in range, in the right units, and do they move? Do the recorded statistics belong to
this data and to this action horizon, and is normalisation undone exactly?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.doctor.examined_dataset import Series, Subject, evenly, matrix
from data_prep.doctor.findings import Finding, episodes, error, remark, warning
from gr00t.data.dataset import carried
from gr00t.data.state_action import StateActionProcessor
from gr00t.data.statistics import (
    STATISTIC_NAMES,
    Statistics,
    Tail,
    check_relative_statistics,
    feature_statistics,
    relative_groups,
    start_frames,
    to_processor_statistics,
)
from gr00t.errors import ToolkitError

TWO_PI = 2 * np.pi
# Joint limits of the Franka Panda (rad), from its datasheet; a controller's target may lie a little beyond.
PANDA_LIMITS = np.array(
    [
        [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973],
        [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973],
    ]
)
LIMIT_MARGIN = 0.1
GRIPPER_OPEN = 0.08  # metres
LEROBOT_MOTOR = ".pos"  # ends the names of motors that LeRobot's own robots report, in units of their calibration

# Of the dimension's range. Other writers estimate percentiles from samples or histograms.
TOLERANCE = {"mean": 0.01, "std": 0.01, "min": 1e-3, "max": 1e-3, "q01": 0.05, "q99": 0.05}
ROUND_TRIP = 1e-4  # of the range; float32 gives 1e-7
SAMPLED_EPISODES = 50
SAMPLED_FRAMES = 8
TAG = "new_embodiment"
COMPUTED = "none in GR00T's form: training computes them from the training episodes"

MEND_RECORD = "Remove these episodes, or record them again: nothing in a dataset can replace a value that is lost."
MEND_DEGREES = (
    "Convert joint angles to radians in states and actions (times pi / 180), then write the statistics again."
)
MEND_GRIPPER = (
    "State is the gripper's opening in metres (0 to 0.08), action the command from -1 (closed) to 1 (open): convert "
    "it, then write the statistics again."
)
MEND_STUCK = "Check the recorder: the value was not measured or not written. Record again, or leave the episodes out."
MEND_LIMITS = (
    "Check the order, signs and units of the joints, and that the robot is a Panda; then record or convert again."
)
MEND_STATISTICS = (
    "Write the statistics again from the data as it is now, for the action horizon of the modality configuration: "
    "prepare_conflict_data.py with overwrite=true does."
)


# -- values ------------------------------------------------------------------------------------------------------------


def check_finite(subject: Subject) -> Iterator[Finding]:
    """No NaN, no infinity."""
    for name in sorted({*subject.group_columns, "timestamp", "next.reward"}):
        finite = {i: np.isfinite(v) for i, v in subject.column(name).items() if v.dtype.kind == "f"}
        wrong = [i for i, fine in finite.items() if not fine.all()]
        if wrong:
            frame = np.argwhere(~finite[wrong[0]])[0, 0]
            found = f"NaN or infinite values, the first at frame {frame} of episode {wrong[0]}."
            yield error(f"data/, column {name}, {subject.which(wrong)}", found, MEND_RECORD)


def check_units(subject: Subject) -> Iterator[Finding]:
    """Radians, not degrees; the Panda's joints within their limits; its gripper in metres and commands."""
    for modality, group in subject.groups():
        values = _finite_rows(subject.series(modality, group))
        if values is None:
            continue
        if _is_gripper(group):
            if subject.is_maniskill_panda and values.shape[1] == 1:
                yield from _panda_gripper(f'{modality} "{group}"', modality, values[:, 0])
        elif np.abs(values).max() > TWO_PI:
            yield from _degrees(subject, modality, group, values)
        elif subject.is_maniskill_panda and values.shape[1] == 7:
            yield from _limits(subject, modality, group)


def _finite_rows(series: Series) -> np.ndarray | None:
    """(N, D): all rows of a group without NaN or infinite values; None where there are none."""
    if not series:
        return None
    values = np.concatenate(list(series.values()))
    values = values[np.isfinite(values).all(axis=1)]
    return values if len(values) else None


def _is_gripper(group: str) -> bool:
    return "gripper" in group.lower()


def _degrees(subject: Subject, modality: str, group: str, values: np.ndarray) -> Iterator[Finding]:
    large = (np.abs(values) > TWO_PI).mean(axis=0)
    d = int(large.argmax())
    name, share = subject.dim_names(modality, group)[d], large[d]
    if share < 0.05:  # a few values: an outlier, which check_outliers names
        return
    if name.endswith(LEROBOT_MOTOR):
        yield remark(f'{modality} "{group}"', f"{name} and others are in LeRobot's motor units, degrees or percent")
        return
    # Other robots may count turns, or steps of a motor, on purpose.
    level = error if subject.is_maniskill_panda else warning
    yield level(
        f'{modality} "{group}"',
        f"{name} reaches {np.abs(values[:, d]).max():.4g}, {share:.0%} of it beyond 2 pi: degrees, where radians are "
        "expected?",
        MEND_DEGREES,
    )


def _limits(subject: Subject, modality: str, group: str) -> Iterator[Finding]:
    low, high = PANDA_LIMITS[0] - LIMIT_MARGIN, PANDA_LIMITS[1] + LIMIT_MARGIN
    series = {i: v[np.isfinite(v).all(axis=1)] for i, v in subject.series(modality, group).items()}
    outside = {i: ((v < low) | (v > high)).mean(axis=0) for i, v in series.items() if len(v)}
    often = [i for i, share in outside.items() if (share > 0.05).any()]
    if often:
        d = int(outside[often[0]].argmax())
        name, seen = subject.dim_names(modality, group)[d], series[often[0]][:, d]
        yield error(
            f'{modality} "{group}", {subject.which(often)}',
            f"{name} goes from {seen.min():.3g} to {seen.max():.3g} rad; the Panda's joint {d + 1} can only go from "
            f"{PANDA_LIMITS[0, d]:.3g} to {PANDA_LIMITS[1, d]:.3g}.",
            MEND_LIMITS,
        )


def _panda_gripper(where: str, modality: str, values: np.ndarray) -> Iterator[Finding]:
    low, high = float(values.min()), float(values.max())
    problem = ""
    if modality == "state":
        if low < -0.01 or high > GRIPPER_OPEN + 0.01:
            likely = (
                "a command" if low < -0.01 else "millimetres" if high > 2 else "a share of the opening, or a command"
            )
            problem = f"{likely}, where the opening in metres (0 to 0.08) is expected?"
    elif max(abs(low), abs(high)) <= GRIPPER_OPEN + 0.01:
        problem = "metres, where a command from -1 to 1 is expected?"
    elif low < -1.01 or high > 1.01:
        problem = "outside of the command's range, -1 to 1."
    elif low >= -0.01 and high > 0.5 and low < high:
        problem = "0 to 1, where a command from -1 (closed) to 1 (open) is expected?"
    if problem:
        yield error(where, f"goes from {low:.4g} to {high:.4g}: {problem}", MEND_GRIPPER)


def check_constant(subject: Subject) -> Iterator[Finding]:
    """Dimensions that never change, in the whole dataset or in some episodes."""
    for modality, group in subject.groups():
        series = {i: v for i, v in subject.series(modality, group).items() if np.isfinite(v).all() and len(v) > 1}
        if not series:
            continue
        still = {i: (v == v[0]).all(axis=0) for i, v in series.items()}  # (D,) each
        values = np.concatenate(list(series.values()))
        constant = (values == values[0]).all(axis=0)
        for d in np.flatnonzero(constant):
            yield _never_moves(subject, modality, group, int(d), values[0, d])
        names = subject.dim_names(modality, group)
        # A dimension that rests in most episodes may well rest in one more.
        lively = [d for d in np.flatnonzero(~constant) if np.mean([s[d] for s in still.values()]) < 0.5]
        stuck = {i: dims for i, s in still.items() if (dims := [names[d] for d in lively if s[d]])}
        if stuck:
            first = next(iter(stuck))
            where = f'{modality} "{group}", {subject.which(stuck)}'
            found = f"{', '.join(stuck[first])} never changes in episode {first}, though it does in others."
            if _is_gripper(group):
                yield warning(where, f"{found} The gripper neither opens nor closes there.", MEND_STUCK)
            else:
                yield error(where, found, MEND_STUCK)


def _never_moves(subject: Subject, modality: str, group: str, d: int, value: float) -> Finding:
    where, name = f'{modality} "{group}"', subject.dim_names(modality, group)[d]
    found = f"{name} is {value:.4g} in every frame of the dataset."
    other = {"state": "action", "action": "state"}[modality]
    moves = _finite_rows(subject.series(other, group))
    if moves is not None and d < moves.shape[1] and np.ptp(moves[:, d]) > 0:
        return error(where, f"{found[:-1]}, though the {other} moves.", MEND_STUCK)
    if subject.is_maniskill_panda or _is_gripper(group):
        return warning(where, f"{found} The policy learns that it never moves.", MEND_STUCK)
    return remark(where, f"{found} It carries nothing and becomes 0 when normalised.")


# -- statistics --------------------------------------------------------------------------------------------------------


def check_statistics(subject: Subject) -> Iterator[Finding]:
    """meta/stats.json against the training episodes' values."""
    reason = COMPUTED if _computed_by_training(subject, "stats.json") else _not_comparable(subject)
    if reason:
        yield remark("meta/stats.json", reason)
        return
    try:
        recorded = subject.layout.statistics()
    except ToolkitError as refusal:
        yield error("meta/stats.json", str(refusal), MEND_STATISTICS)
        return
    for column in subject.group_columns:
        yield from _column(subject, column, recorded.get(column))


def _computed_by_training(subject: Subject, name: str) -> bool:
    """Whether the dataset carries no such statistics in GR00T's form; a damaged file does."""
    try:
        return carried(subject.layout, name) is None
    except ToolkitError:
        return False


def _not_comparable(subject: Subject) -> str:
    """Why the data as it is now says nothing about its statistics; empty where it does. Other checks say more."""
    training = [e.index for e in subject.episodes if e.index not in subject.held_out]
    if any(i not in subject.motion_tables for i in training):
        return "not compared: some training episodes cannot be read, or hold no finite numbers"
    if set(subject.listed_val) != subject.held_out:
        return "not compared: which episodes are held out cannot be said"
    return "" if training else "not compared: no episode is trained on"


def _column(subject: Subject, column: str, recorded: Any) -> Iterator[Finding]:
    where = f"meta/stats.json, {column}"
    if not isinstance(recorded, dict):
        yield error(where, "Has no statistics, which normalisation needs.", MEND_STATISTICS)
        return
    values = {i: matrix(v) for i, v in subject.column(column).items() if v.dtype.kind == "f" and len(v)}
    values = {i: v.astype(np.float64) for i, v in values.items() if np.isfinite(v).all()}
    training = [v for i, v in values.items() if i not in subject.held_out]
    if not training or len({v.shape[1] for v in values.values()}) > 1:
        return
    absent = [name for name in STATISTIC_NAMES if name not in recorded]
    if absent:
        yield error(where, f"{', '.join(absent)} is missing.", MEND_STATISTICS)
    wrong = _differences(recorded, np.concatenate(training))
    if not wrong:
        return
    if subject.held_out and not _differences(recorded, np.concatenate(list(values.values()))):
        found = "Counts the held-out episodes too: what they hold is known to the policy's normalisation."
        yield warning(where, found, MEND_STATISTICS)
        return
    names = subject.features.get(column, {}).get("names")
    name, d, said, counted = wrong[0]
    dim = names[d] if isinstance(names, list) and d < len(names) else f"dimension {d}"
    found = f"{name} of {dim} says {said}, the training episodes give {counted:.6g} ({len(wrong)} such values)."
    yield error(where, found, MEND_STATISTICS)


def _differences(recorded: dict[str, Any], values: np.ndarray) -> list[tuple[str, int, str, float]]:
    """(statistic, dimension, what is recorded, what it is) wherever the two differ, the widest difference first.

    values: (N, D).
    """
    fresh = feature_statistics(values)
    span = np.ptp(values, axis=0)
    found = []
    for name in (n for n in STATISTIC_NAMES if n in recorded):
        try:
            said = np.asarray(recorded[name], dtype=np.float64).reshape(-1)
        except (TypeError, ValueError):
            said = np.empty(0)
        if len(said) != values.shape[1]:
            return [(name, 0, f"{len(said)} numbers for {values.shape[1]} dimensions", fresh[name][0])]
        apart = np.abs(said - fresh[name])
        limit = TOLERANCE[name] * span + 1e-5 * np.abs(values).max(axis=0) + 1e-9
        size = np.where(np.isfinite(said), apart / limit, np.inf)
        found += [(float(size[d]), name, int(d), f"{said[d]:.6g}", fresh[name][d]) for d in np.flatnonzero(size > 1)]
    return [difference[1:] for difference in sorted(found, key=lambda difference: -difference[0])]


def check_relative(subject: Subject) -> Iterator[Finding]:
    """meta/relative_stats.json: for this horizon, of these groups, and made from this data."""
    groups = [g for g, _ in relative_groups(subject.configs["action"])]
    if not groups:
        return
    where = "meta/relative_stats.json"
    if _computed_by_training(subject, "relative_stats.json"):
        yield remark(where, COMPUTED)
        return
    try:
        recorded = subject.layout.relative_statistics()
        check_relative_statistics(recorded, subject.layout.modality, subject.configs, where)
    except ToolkitError as refusal:
        found = str(refusal).removeprefix(f"{where}: ").split(" Write the dataset's")[0]
        yield error(where, found, MEND_STATISTICS)
        return
    if reason := _not_comparable(subject):
        yield remark(where, reason)
        return
    for group in groups:
        by_tail = _apart_by_tail(subject, recorded, group)
        if not by_tail:
            continue
        distance, name, step = min(by_tail.values(), key=lambda apart: apart[0])
        if distance > 1:
            found = f'"{group}": {name} of step {step} differs from what the training episodes give: it is stale.'
            yield error(where, found, MEND_STATISTICS)
        elif _tail(by_tail) == "drop":
            yield remark(where, f'"{group}" counts only starts with a whole horizon (tail=drop), as the original does.')


def _apart_by_tail(subject: Subject, recorded: dict[str, Statistics], group: str) -> dict[Tail, tuple[float, str, int]]:
    """{rule for start frames: (distance in tolerances, statistic, step) of what differs most between the recorded
    statistics of a group and the data's}, until one rule fits."""
    tails: tuple[Tail, ...] = ("mask", "drop")
    found: dict[Tail, tuple[float, str, int]] = {}
    for tail in tails:
        fresh = (subject.fresh_relative(tail) or {}).get(group)
        if fresh is None:
            continue
        span = np.ptp([fresh["min"], fresh["max"]], axis=0)  # (H, D)
        found[tail] = (0.0, "", 0)
        for name in STATISTIC_NAMES:
            apart = np.abs(np.asarray(recorded[group][name], dtype=np.float64) - fresh[name])
            size = apart / (2 * TOLERANCE[name] * span + 1e-5 * np.abs(fresh["max"]) + 1e-6)
            size = np.where(np.isfinite(size), size, np.inf)
            if size.max() > found[tail][0]:
                found[tail] = (float(size.max()), name, int(np.unravel_index(size.argmax(), size.shape)[0]))
        if found[tail][0] <= 1:
            break
    return found


def _tail(by_tail: dict[Tail, tuple[float, str, int]]) -> Tail:
    """The rule for start frames that statistics were made with; mask where that cannot be said."""
    fits = {tail: apart[0] <= 1 for tail, apart in by_tail.items()}
    return "drop" if fits.get("drop") and not fits.get("mask") else "mask"


def check_round_trip(subject: Subject) -> Iterator[Finding]:
    """Encode and decode actions as training and inference do: what is lost is lost to the policy."""
    try:
        relative = subject.layout.relative_statistics()
        entry = to_processor_statistics(subject.layout.statistics(), relative, subject.layout.modality, subject.configs)
        processor = StateActionProcessor({TAG: subject.configs}, {TAG: entry}, use_relative_action=True)
    except ToolkitError:
        return  # check_statistics and check_relative say why
    if _not_comparable(subject):
        return
    groups = [g for g, _ in relative_groups(subject.configs["action"])]
    tail: Tail = _tail(_apart_by_tail(subject, relative, groups[0])) if groups else "mask"
    training = []
    keys = [(m, g) for m in ("state", "action") for g in subject.configs[m].modality_keys]
    for i in subject.readable:
        values = [v for m, g in keys if (v := subject.series(m, g).get(i)) is not None and np.isfinite(v).all()]
        if i not in subject.held_out and len(values) == len(keys) and len({len(v) for v in values}) == 1:
            training.append(i)
    lost = {i: _worst_loss(subject, processor, i, tail) for i in evenly(training, SAMPLED_EPISODES)}
    clipped = {i: loss for i, loss in lost.items() if loss[0] > ROUND_TRIP}
    if clipped:
        first = max(clipped, key=lambda i: clipped[i][0])
        share, group, frame = clipped[first]
        found = (
            f'action "{group}" comes back {share:.2%} of its range off, worst at frame {frame} of episode {first}: the '
            "statistics do not cover it, so it is clipped."
        )
        yield error(episodes(list(clipped)), found, MEND_STATISTICS)


def _worst_loss(subject: Subject, processor: StateActionProcessor, episode: int, tail: Tail) -> tuple[float, str, int]:
    """(share of the range, group, frame) of the worst action value of some starts of an episode."""
    states = {g: subject.series("state", g)[episode] for g in subject.configs["state"].modality_keys}
    actions = {g: subject.series("action", g)[episode] for g in subject.configs["action"].modality_keys}
    ranges = {}  # (D,): the widest range of each dimension over the steps; 1 where nothing moves
    for g in processor.groups(TAG, "action"):
        widest = np.atleast_2d(g.scale).max(axis=0)
        ranges[g.name] = np.where(widest > 1e-6, widest, 1.0)
    last = len(next(iter(actions.values()))) - 1
    worst = (0.0, "", 0)
    before = np.asarray(subject.configs["state"].delta_indices)
    deltas = subject.configs["action"].delta_indices
    for frame in evenly(start_frames(last + 1, deltas, tail), SAMPLED_FRAMES):
        ahead = frame + np.asarray(deltas)
        valid = (ahead >= 0) & (ahead <= last)
        now = {g: v[np.clip(frame + before, 0, last)] for g, v in states.items()}
        then = {g: v[np.clip(ahead, 0, last)] for g, v in actions.items()}
        back = processor.decode_action(processor.encode_action(then, now, TAG), now, TAG)
        for group, values in then.items():
            off = np.abs(back[group] - values)[valid] / ranges[group]
            if off.size and off.max() > worst[0]:
                worst = (float(off.max()), group, frame)
    return worst
