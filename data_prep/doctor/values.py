"""Are states and actions numbers, in range, in the right units, and do they move?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.doctor.findings import Finding, episodes, error, remark, warning
from data_prep.doctor.subject import Series, Subject

MEND_RECORD = "Remove these episodes, or record them again: nothing in a dataset can replace a value that is lost."
MEND_SPIKE = "Replace the value by its neighbours' mean or leave the episode out, then write the statistics again."
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

LEROBOT_MOTOR = ".pos"  # ends the names of motors that LeRobot's own robots report, in units of their calibration
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
SPIKE = 20.0  # times what 95 % of the frames stay below
FEW_VALUES = 5  # a dimension of no more different values is a switch, whose jumps are meant


def check_finite(subject: Subject) -> Iterator[Finding]:
    """No NaN, no infinity."""
    for name in sorted(_used_columns(subject)):
        wrong = {
            i: int(np.argwhere(~np.isfinite(v))[0, 0])
            for i, v in subject.column(name).items()
            if v.dtype.kind == "f" and not np.isfinite(v).all()
        }
        if wrong:
            first = next(iter(wrong))
            found = f"NaN or infinite values, the first at frame {wrong[first]} of episode {first}."
            yield error(f"data/, column {name}, {episodes(list(wrong), len(subject.episodes))}", found, MEND_RECORD)


def _used_columns(subject: Subject) -> set[str]:
    entries = [subject.group_entry(m, g) for m, g in subject.groups()]
    return {entry[0] for entry in entries if entry} | {"timestamp", "next.reward"}


def check_units(subject: Subject) -> Iterator[Finding]:
    """Radians, not degrees; the Panda's joints within their limits; its gripper in metres and commands."""
    for modality, group in subject.groups():
        values = _joined(subject.series(modality, group))
        if values is None:
            continue
        where = f'{modality} "{group}"'
        if _is_gripper(group):
            if subject.is_maniskill_panda and values.shape[1] == 1:
                yield from _panda_gripper(where, modality, values[:, 0])
        elif np.abs(values).max() > TWO_PI:
            yield from _degrees(subject, modality, group, values)
        elif subject.is_maniskill_panda and values.shape[1] == 7:
            yield from _limits(subject, modality, group)


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
        name = subject.dim_names(modality, group)[d]
        seen = series[often[0]][:, d]
        yield error(
            f'{modality} "{group}", {episodes(often, len(subject.episodes))}',
            f"{name} goes from {seen.min():.3g} to {seen.max():.3g} rad; the Panda's joint {d + 1} can only go from "
            f"{PANDA_LIMITS[0, d]:.3g} to {PANDA_LIMITS[1, d]:.3g}.",
            MEND_LIMITS,
        )


def _panda_gripper(where: str, modality: str, values: np.ndarray) -> Iterator[Finding]:
    low, high = float(values.min()), float(values.max())
    seen = f"goes from {low:.4g} to {high:.4g}"
    if modality == "state" and (low < -0.01 or high > GRIPPER_OPEN + 0.01):
        likely = "a command" if low < -0.01 else "millimetres" if high > 2 else "a share of the opening, or a command"
        yield error(where, f"{seen}: {likely}, where the opening in metres (0 to 0.08) is expected?", MEND_GRIPPER)
    elif modality == "action" and max(abs(low), abs(high)) <= GRIPPER_OPEN + 0.01:
        yield error(where, f"{seen}: metres, where a command from -1 to 1 is expected?", MEND_GRIPPER)
    elif modality == "action" and (low < -1.01 or high > 1.01):
        yield error(where, f"{seen}: outside of the command's range, -1 to 1.", MEND_GRIPPER)
    elif modality == "action" and low >= -0.01 and high > 0.5 and low < high:
        yield error(where, f"{seen}: 0 to 1, where a command from -1 (closed) to 1 (open) is expected?", MEND_GRIPPER)


def _is_gripper(group: str) -> bool:
    return "gripper" in group.lower()


def _joined(series: Series) -> np.ndarray | None:
    """All finite rows (N, D) of a group."""
    if not series:
        return None
    values = np.concatenate(list(series.values()))
    values = values[np.isfinite(values).all(axis=1)]
    return values if len(values) else None


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
        stuck = {i: [names[d] for d in lively if s[d]] for i, s in still.items()}
        stuck = {i: dims for i, dims in stuck.items() if dims}
        if stuck:
            yield _stands_still(subject, modality, group, stuck)


def _never_moves(subject: Subject, modality: str, group: str, d: int, value: float) -> Finding:
    where, name = f'{modality} "{group}"', subject.dim_names(modality, group)[d]
    found = f"{name} is {value:.4g} in every frame of the dataset."
    other = {"state": "action", "action": "state"}[modality]
    moves = _joined(subject.series(other, group))
    if moves is not None and d < moves.shape[1] and np.ptp(moves[:, d]) > 0:
        return error(where, f"{found[:-1]}, though the {other} moves.", MEND_STUCK)
    if subject.is_maniskill_panda or _is_gripper(group):
        return warning(where, f"{found} The policy learns that it never moves.", MEND_STUCK)
    return remark(where, f"{found} It carries nothing and becomes 0 when normalised.")


def _stands_still(subject: Subject, modality: str, group: str, stuck: dict[int, list[str]]) -> Finding:
    first = next(iter(stuck))
    where = f'{modality} "{group}", {episodes(list(stuck), len(subject.episodes))}'
    found = f"{', '.join(stuck[first])} never changes in episode {first}, though it does in others."
    if _is_gripper(group):
        return warning(where, f"{found} The gripper neither opens nor closes there.", MEND_STUCK)
    return error(where, found, MEND_STUCK)


def check_outliers(subject: Subject) -> Iterator[Finding]:
    """Single frames that lie far off their neighbours, and values far outside of what is usual."""
    for modality, group in subject.groups():
        series = {i: v for i, v in subject.series(modality, group).items() if len(v) >= 5}
        series = {i: v for i, v in series.items() if np.isfinite(v).all()}
        if not series:
            continue
        values = np.concatenate(list(series.values()))
        for d, name in enumerate(subject.dim_names(modality, group)):
            if len(np.unique(values[:, d])) <= FEW_VALUES:
                continue
            yield from _spikes(subject, f'{modality} "{group}"', name, {i: v[:, d] for i, v in series.items()})
            if not _is_gripper(group):  # it snaps
                yield from _jumps(subject, f'{modality} "{group}"', name, {i: v[:, d] for i, v in series.items()})


def _spikes(subject: Subject, where: str, name: str, series: dict[int, np.ndarray]) -> Iterator[Finding]:
    heights = {i: _spike_heights(v) for i, v in series.items()}
    everything = np.concatenate(list(series.values()))
    usual = np.percentile(np.abs(np.concatenate([np.diff(v) for v in series.values()])), 95)
    low, high = np.percentile(everything, [2, 98])
    limit = max(SPIKE * np.percentile(np.concatenate(list(heights.values())), 95), 4 * usual, 0.2 * (high - low))
    found = {i: int(h.argmax()) for i, h in heights.items() if h.max() > limit > 0}
    if not found:
        return
    first = next(iter(found))
    value = series[first][found[first]]
    rest = np.concatenate([np.delete(v, found[i]) if i in found else v for i, v in series.items()])
    stretched = value < rest.min() - 0.25 * np.ptp(rest) or value > rest.max() + 0.25 * np.ptp(rest)
    text = f"{name} is {value:.4g} for one frame ({found[first]} of episode {first}), off both of its neighbours."
    if stretched:
        text += f" Everything else lies between {rest.min():.4g} and {rest.max():.4g}: the range is spoilt."
    level = error if stretched else warning
    yield level(f"{where}, {episodes(list(found), len(subject.episodes))}", text, MEND_SPIKE)


def _spike_heights(values: np.ndarray) -> np.ndarray:
    """(T,): how far each value lies outside of what its neighbours span; the ends off a straight line on."""
    before, after = values[:-2], values[2:]
    inner = np.maximum(
        0, np.maximum(values[1:-1] - np.maximum(before, after), np.minimum(before, after) - values[1:-1])
    )
    first = abs(values[0] - (2 * values[1] - values[2])) if len(values) > 2 else 0.0
    last = abs(values[-1] - (2 * values[-2] - values[-3])) if len(values) > 2 else 0.0
    # An end moves on with its own acceleration: twice as far off before it counts.
    return np.concatenate([[first / 2], inner, [last / 2]])


def _jumps(subject: Subject, where: str, name: str, series: dict[int, np.ndarray]) -> Iterator[Finding]:
    """Steps of a size that occurs nowhere else: two episodes in one, or lost frames."""
    steps = {i: np.abs(np.diff(v)) for i, v in series.items()}
    everything = np.concatenate(list(steps.values()))
    low, high = np.percentile(np.concatenate(list(series.values())), [2, 98])
    limit = max(8 * np.percentile(everything, 95), 0.4 * (high - low))
    found = {}
    for i, step in steps.items():
        t = int(step.argmax())
        stays = np.abs(np.median(series[i][t + 1 : t + 4]) - np.median(series[i][max(0, t - 2) : t + 1])) > limit / 2
        if step[t] > limit > 0 and stays:
            found[i] = t
    if found and len(found) <= max(1, len(series) / 3):  # what most episodes do is no accident
        first = next(iter(found))
        text = f"{name} jumps by {steps[first][found[first]]:.3g} after frame {found[first]} of episode {first}."
        remedy = "Two episodes in one, or lost frames: cut the episode there, or leave it out."
        yield warning(f"{where}, {episodes(list(found), len(subject.episodes))}", text, remedy)
