"""Are states and actions numbers, in range, in the right units, and do they move? Do the recorded statistics belong to
this data and to this action horizon, and is normalisation undone exactly?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.doctor import Finding, Level, error, remark, warning
from data_prep.doctor.examined_dataset import Group, Series, Subject, evenly, matrix
from gr00t.data.dataset import carried, carried_relative
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
PANDA_LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
PANDA_HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
LIMIT_MARGIN = 0.1
GRIPPER_OPEN = 0.08  # metres
LEROBOT_MOTOR = ".pos"  # ends the names of motors that LeRobot's own robots report, in units of their calibration

# Of the dimension's range. Other writers estimate percentiles from samples or histograms.
TOLERANCE = {"mean": 0.01, "std": 0.01, "min": 1e-3, "max": 1e-3, "q01": 0.05, "q99": 0.05}
ROUND_TRIP = 1e-4  # of the range; float32 gives 1e-7
SAMPLED_EPISODES = 50
SAMPLED_FRAMES = 8
TAG = "new_embodiment"
COMPUTED = "none in GR00T's form of these episodes: training computes them from the training episodes"

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
    """Is every value finite?"""
    for name in sorted({*subject.group_columns, "timestamp", "next.reward"}):
        finite = {i: np.isfinite(v) for i, v in subject.column(name).items() if v.dtype.kind == "f"}
        wrong = [i for i, fine in finite.items() if not fine.all()]
        if wrong:
            frame = np.argwhere(~finite[wrong[0]])[0, 0]
            found = f"NaN or infinite values, the first at frame {frame} of episode {wrong[0]}."
            yield from subject.about(error, f"data/, column {name}", dict.fromkeys(wrong, found), MEND_RECORD)


def check_units(subject: Subject) -> Iterator[Finding]:
    """Radians, metres, commands?"""
    for group in subject.groups:
        values = _finite_rows(group.series)
        if values is None:
            continue
        if group.is_gripper:
            if subject.is_maniskill_panda and values.shape[1] == 1:
                yield from _panda_gripper(group, values)
        elif np.abs(values).max() > TWO_PI:
            yield from _degrees(subject, group, values)
        elif subject.is_maniskill_panda and values.shape[1] == 7:
            yield from _limits(subject, group)


def _finite_rows(series: Series) -> np.ndarray | None:
    """(N, D): all rows of a group without NaN or infinite values; None where there are none."""
    if not series:
        return None
    values = np.concatenate(list(series.values()))
    values = values[np.isfinite(values).all(axis=1)]
    return values if len(values) else None


def _degrees(subject: Subject, group: Group, values: np.ndarray) -> Iterator[Finding]:
    large = (np.abs(values) > TWO_PI).mean(axis=0)
    d = int(large.argmax())
    name, share = group.dims[d], large[d]
    if share < 0.05:  # a few values: an outlier, which check_outliers names
        return
    if name.endswith(LEROBOT_MOTOR):
        yield remark(group.where, f"{name} and others are in LeRobot's motor units, degrees or percent")
        return
    # Other robots may count turns, or steps of a motor, on purpose.
    level = error if subject.is_maniskill_panda else warning
    reach = f"{name} reaches {np.abs(values[:, d]).max():.4g}, {share:.0%} of it beyond 2 pi"
    yield level(group.where, f"{reach}: degrees, where radians are expected?", MEND_DEGREES)


def _limits(subject: Subject, group: Group) -> Iterator[Finding]:
    low, high = PANDA_LOW - LIMIT_MARGIN, PANDA_HIGH + LIMIT_MARGIN
    wrong = {}
    for i, values in group.series.items():
        finite = values[np.isfinite(values).all(axis=1)]
        outside = ((finite < low) | (finite > high)).sum(axis=0)
        if (outside > 0.05 * len(finite)).any():
            d = int(outside.argmax())
            least, most = finite[:, d].min(), finite[:, d].max()
            may = f"the Panda's joint {d + 1} can only go from {PANDA_LOW[d]:.3g} to {PANDA_HIGH[d]:.3g}"
            wrong[i] = f"{group.dims[d]} goes from {least:.3g} to {most:.3g} rad; {may}."
    yield from subject.about(error, group.where, wrong, MEND_LIMITS)


def _panda_gripper(group: Group, values: np.ndarray) -> Iterator[Finding]:
    low, high = float(values.min()), float(values.max())
    problem = ""
    if group.modality == "state":
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
        yield error(group.where, f"goes from {low:.4g} to {high:.4g}: {problem}", MEND_GRIPPER)


def check_gripper_direction(subject: Subject) -> Iterator[Finding]:
    """Does it close when commanded to?"""
    group = subject.all_groups.get(("action", "gripper"))
    if not subject.is_maniskill_panda or group not in subject.groups:
        return
    states, wrong, stays = subject.series("state", "gripper"), {}, {}
    for i, action in group.series.items():
        state = states.get(i, action[:0])
        # Where the gripper is a few frames later: it takes that long to get anywhere.
        now, then = action[:-3, 0], state[3:, 0]
        if len(now) == len(then) > 3 and np.ptp(now) > 0 and np.ptp(then) > 0 and np.corrcoef(then, now)[0, 1] < -0.3:
            wrong[i] = "The gripper opens when it is commanded to close: the command's sign is reversed."
        if (action > 0).all():
            stays[i] = "The gripper is never commanded to close, though it is in other episodes."
    remedy = "Turn the sign of the gripper's action (1 opens, -1 closes), then write the statistics again."
    yield from subject.about(error, group.where, wrong, remedy)
    if len(stays) < len(group.series):
        remedy = "Leave them out unless they are meant so: nothing is picked up there."
        yield from subject.about(warning, group.where, stays, remedy)


def check_constant(subject: Subject) -> Iterator[Finding]:
    """Does every dimension move?"""
    for group in subject.groups:
        series = {i: v for i, v in group.series.items() if np.isfinite(v).all() and len(v) > 1}
        if not series:
            continue
        still = {i: (v == v[0]).all(axis=0) for i, v in series.items()}  # (D,) each
        values = np.concatenate(list(series.values()))
        constant = (values == values[0]).all(axis=0)
        for d in np.flatnonzero(constant):
            yield _never_moves(subject, group, int(d), values[0, d])
        # A dimension that rests in most episodes may well rest in one more.
        lively = ~constant & (np.mean(list(still.values()), axis=0) < 0.5)
        stuck = {i: ", ".join(np.array(group.dims)[lively & at_rest]) for i, at_rest in still.items()}
        level, more = (warning, " The gripper neither opens nor closes there.") if group.is_gripper else (error, "")
        found = {
            i: f"{names} never changes in episode {i}, though it does in others.{more}"
            for i, names in stuck.items()
            if names
        }
        yield from subject.about(level, group.where, found, MEND_STUCK)


def _never_moves(subject: Subject, group: Group, d: int, value: float) -> Finding:
    found = f"{group.dims[d]} is {value:.4g} in every frame of the dataset."
    other = {"state": "action", "action": "state"}[group.modality]
    moves = _finite_rows(subject.series(other, group.name))
    if moves is not None and d < moves.shape[1] and np.ptp(moves[:, d]) > 0:
        return error(group.where, f"{found[:-1]}, though the {other} moves.", MEND_STUCK)
    if subject.is_maniskill_panda or group.is_gripper:
        return warning(group.where, f"{found} The policy learns that it never moves.", MEND_STUCK)
    return remark(group.where, f"{found} It carries nothing and becomes 0 when normalised.")


# -- statistics --------------------------------------------------------------------------------------------------------


def check_statistics(subject: Subject) -> Iterator[Finding]:
    """Is stats.json made from this data?"""
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
        for level, found in _column(subject, column, recorded.get(column)):
            yield level(f"meta/stats.json, {column}", found, MEND_STATISTICS)


def _computed_by_training(subject: Subject, name: str) -> bool:
    """Whether the dataset carries no such statistics in GR00T's form; a damaged file does."""
    layout = subject.layout
    try:
        if name == "relative_stats.json":
            return carried_relative(layout, subject.configs) is None
        return carried(layout, name) is None
    except ToolkitError:
        return False


def _not_comparable(subject: Subject) -> str:
    """Why the data as it is now says nothing about its statistics; empty where it does. Other checks say more."""
    training = set(subject.lengths) - subject.held_out
    if subject.layout.trains_fewer:
        return "not compared: they count episodes that are left out"
    if not training <= set(subject.motion_tables):
        return "not compared: some training episodes cannot be read, or hold no finite numbers"
    if subject.listed_val != subject.held_out:
        return "not compared: which episodes are held out cannot be said"
    return "" if training else "not compared: no episode is trained on"


def _column(subject: Subject, column: str, recorded: Any) -> Iterator[tuple[Level, str]]:
    if not isinstance(recorded, dict):
        yield error, "Has no statistics, which normalisation needs."
        return
    values = {i: matrix(v).astype(np.float64) for i, v in subject.column(column).items() if v.dtype.kind == "f"}
    values = {i: v for i, v in values.items() if len(v) and np.isfinite(v).all()}
    training = [v for i, v in values.items() if i not in subject.held_out]
    widths = {v.shape[1] for v in values.values()}
    if not training or len(widths) > 1:
        return
    (width,) = widths
    if absent := [name for name in STATISTIC_NAMES if name not in recorded]:
        yield error, f"{', '.join(absent)} is missing."
    said = {name: _numbers(recorded[name]) for name in STATISTIC_NAMES if name in recorded}
    for name, numbers in said.items():
        if len(numbers) != width:
            yield error, f"{name} holds {len(numbers)} numbers for {width} dimensions."
            return
    fresh = feature_statistics(np.concatenate(training))
    wrong = [difference for difference in _apart(said, fresh) if difference[0] > 1]
    if not wrong:
        return
    _, name, (d,) = wrong[0]
    names = subject.features.get(column, {}).get("names")
    dim = names[d] if isinstance(names, list) and d < len(names) else f"dimension {d}"
    if subject.held_out and _apart(said, feature_statistics(np.concatenate(list(values.values()))))[0][0] <= 1:
        yield warning, "Counts the held-out episodes too: what they hold is known to the policy's normalisation."
    else:
        counted = f"the training episodes give {fresh[name][d]:.6g} ({len(wrong)} such values)"
        yield error, f"{name} of {dim} says {said[name][d]:.6g}, {counted}."


def _numbers(value: Any) -> np.ndarray:
    """(D,); empty for what is not numeric."""
    try:
        return np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return np.empty(0)


def _apart(
    recorded: dict[str, Any], fresh: Statistics, times: float = 1, least: float = 1e-9
) -> list[tuple[float, str, tuple[int, ...]]]:
    """(distance in `times` the tolerance, statistic, place in it) of each recorded number, the most different first."""
    low, high = np.asarray(fresh["min"]), np.asarray(fresh["max"])
    found = []
    for name in (name for name in STATISTIC_NAMES if name in recorded):
        limit = times * TOLERANCE[name] * (high - low) + 1e-5 * np.maximum(np.abs(low), np.abs(high)) + least
        size = np.abs(np.asarray(recorded[name], dtype=np.float64) - fresh[name]) / limit
        size = np.where(np.isfinite(size), size, np.inf)
        found += [(float(size[place]), name, place) for place in np.ndindex(size.shape)]
    return sorted(found, key=lambda difference: -difference[0])


def check_relative(subject: Subject) -> Iterator[Finding]:
    """Made from this data, for this horizon?"""
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
        apart, name, step, tail = _fit(subject, recorded, group)
        if apart > 1:
            found = f'"{group}": {name} of step {step} differs from what the training episodes give: it is stale.'
            yield error(where, found, MEND_STATISTICS)
        elif tail == "drop":
            yield remark(where, f'"{group}" counts only starts with a whole horizon (tail=drop), as the original does.')


def _fit(subject: Subject, recorded: dict[str, Statistics], group: str) -> tuple[float, str, int, Tail]:
    """(distance in tolerances, statistic, step) of what differs most between the recorded statistics of a group and the
    data's, where there are any, and the rule for start frames by which this is least."""
    tails: tuple[Tail, ...] = ("mask", "drop")
    found: list[tuple[float, str, int, Tail]] = []
    for tail in tails:
        if found and found[0][0] <= 1:
            break
        fresh = subject.fresh_relative(tail).get(group)
        if fresh is not None:
            apart, name, (step, _) = _apart(recorded[group], fresh, times=2, least=1e-6)[0]
            found.append((apart, name, step, tail))
    return min(found, key=lambda fit: fit[0], default=(0.0, "", 0, "mask"))


def check_round_trip(subject: Subject) -> Iterator[Finding]:
    """Is it undone exactly?"""
    try:
        relative = subject.layout.relative_statistics()
        entry = to_processor_statistics(subject.layout.statistics(), relative, subject.layout.modality, subject.configs)
        processor = StateActionProcessor({TAG: subject.configs}, {TAG: entry}, use_relative_action=True)
    except ToolkitError:
        return  # check_statistics and check_relative say why
    if _not_comparable(subject):
        return
    fits = [_fit(subject, relative, group) for group, _ in relative_groups(subject.configs["action"])[:1]]
    tail: Tail = "drop" if any(apart <= 1 and rule == "drop" for apart, _, _, rule in fits) else "mask"
    training = [i for i in subject.motion_tables if i not in subject.held_out]
    lost = {i: _worst_loss(subject, processor, i, tail) for i in evenly(training, SAMPLED_EPISODES)}
    clipped = {i: loss for i, loss in lost.items() if loss[0] > ROUND_TRIP}
    if clipped:
        first = max(clipped, key=lambda i: clipped[i][0])
        share, group, frame = clipped[first]
        found = (
            f'action "{group}" comes back {share:.2%} of its range off, worst at frame {frame} of episode {first}: the '
            "statistics do not cover it, so it is clipped."
        )
        yield error(subject.which(clipped), found, MEND_STATISTICS)


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
