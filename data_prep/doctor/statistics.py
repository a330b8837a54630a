"""Do the recorded statistics belong to this data and to this action horizon, and is normalisation undone exactly?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_prep.doctor.findings import Finding, episodes, error, remark, warning
from data_prep.doctor.subject import Subject, evenly, matrix
from gr00t.data.own_statistics import carried
from gr00t.data.schema import ModalityConfigs
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

MEND = (
    "Write the statistics again from the data as it is now, for the action horizon of the modality configuration: "
    "prepare_conflict_data.py with overwrite=true does."
)
# Of the dimension's range. Other writers estimate percentiles from samples or histograms.
TOLERANCE = {"mean": 0.01, "std": 0.01, "min": 1e-3, "max": 1e-3, "q01": 0.05, "q99": 0.05}
ROUND_TRIP = 1e-4  # of the range; float32 gives 1e-7
SAMPLED_EPISODES = 50
SAMPLED_FRAMES = 8
TAG = "new_embodiment"
COMPUTED = "none in GR00T's form: training computes them from the training episodes"


def check_statistics(subject: Subject) -> Iterator[Finding]:
    """meta/stats.json against the training episodes' values."""
    if _computed_by_training(subject, "stats.json"):
        yield remark("meta/stats.json", COMPUTED)
        return
    if reason := _not_comparable(subject):
        yield remark("meta/stats.json", reason)
        return
    try:
        recorded = subject.layout.statistics()
    except ToolkitError as refusal:
        yield error("meta/stats.json", str(refusal), MEND)
        return
    for column in sorted({entry[0] for m, g in subject.groups() if (entry := subject.group_entry(m, g))}):
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
    if [i for i in training if i not in subject.motion_tables]:
        return "not compared: some training episodes cannot be read, or hold no finite numbers"
    if set(subject.listed_val) != subject.held_out:
        return "not compared: which episodes are held out cannot be said"
    return "" if training else "not compared: no episode is trained on"


def _column(subject: Subject, column: str, recorded: Any) -> Iterator[Finding]:
    where = f"meta/stats.json, {column}"
    if not isinstance(recorded, dict):
        yield error(where, "Has no statistics, which normalisation needs.", MEND)
        return
    values = {i: matrix(v) for i, v in subject.column(column).items() if v.dtype.kind == "f" and len(v)}
    values = {i: v.astype(np.float64) for i, v in values.items() if np.isfinite(v).all()}
    training = [v for i, v in values.items() if i not in subject.held_out]
    if not training or len({v.shape[1] for v in values.values()}) > 1:
        return
    joined = np.concatenate(training)
    absent = [name for name in STATISTIC_NAMES if name not in recorded]
    if absent:
        yield error(where, f"{', '.join(absent)} is missing.", MEND)
    if not (wrong := _differences(recorded, joined)):
        return
    everything = np.concatenate(list(values.values()))
    if subject.held_out and not _differences(recorded, everything):
        found = "Counts the held-out episodes too: what they hold is known to the policy's normalisation."
        yield warning(where, found, MEND)
        return
    names = subject.feature(column).get("names")
    name, d, said, counted = wrong[0]
    dim = names[d] if isinstance(names, list) and d < len(names) else f"dimension {d}"
    found = f"{name} of {dim} says {said}, the training episodes give {counted:.6g} ({len(wrong)} such values)."
    yield error(where, found, MEND)


def _differences(recorded: dict[str, Any], values: np.ndarray) -> list[tuple[str, int, str, float]]:
    """(statistic, dimension, what is recorded, what it is) wherever the two differ, the widest difference first."""
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
        found += [(float(size[d]), name, d, f"{said[d]:.6g}", fresh[name][d]) for d in np.flatnonzero(size > 1)]
    return [(name, int(d), said, counted) for _, name, d, said, counted in sorted(found, key=lambda f: -f[0])]


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
        yield error(where, str(refusal).removeprefix(f"{where}: ").split(" Write the dataset's")[0], MEND)
        return
    if reason := _not_comparable(subject):
        yield remark(where, reason)
        return
    for group in groups:
        by_tail = _apart_by_tail(subject, recorded, group)
        if not by_tail:
            continue
        best = min(by_tail, key=lambda tail: by_tail[tail][0])
        distance, name, step = by_tail[best]
        if distance > 1:
            found = f'"{group}": {name} of step {step} differs from what the training episodes give: it is stale.'
            yield error(where, found, MEND)
        elif _tail(by_tail) == "drop":
            yield remark(where, f'"{group}" counts only starts with a whole horizon (tail=drop), as the original does.')


def _apart_by_tail(subject: Subject, recorded: dict[str, Statistics], group: str) -> dict[Tail, tuple[float, str, int]]:
    """How far the recorded ones of a group are from those of either rule for start frames, until one fits."""
    tails: tuple[Tail, ...] = ("mask", "drop")
    found: dict[Tail, tuple[float, str, int]] = {}
    for tail in tails:
        fresh = subject.fresh_relative(tail)
        if fresh and group in fresh:
            found[tail] = _relative_apart(recorded[group], fresh[group])
            if found[tail][0] <= 1:
                break
    return found


def _tail(by_tail: dict[Tail, tuple[float, str, int]]) -> Tail:
    """The rule for start frames that statistics were made with; mask where that cannot be told."""
    if "drop" in by_tail and by_tail["drop"][0] <= 1 and ("mask" not in by_tail or by_tail["mask"][0] > 1):
        return "drop"
    return "mask"


def _relative_apart(recorded: Statistics, fresh: Statistics) -> tuple[float, str, int]:
    """The widest difference, in tolerances, with its statistic and step."""
    span = np.ptp([fresh["min"], fresh["max"]], axis=0)  # (H, D)
    worst = (0.0, "", 0)
    for name in STATISTIC_NAMES:
        apart = np.abs(np.asarray(recorded[name], dtype=np.float64) - fresh[name])
        size = apart / (2 * TOLERANCE[name] * span + 1e-5 * np.abs(fresh["max"]) + 1e-6)
        size = np.where(np.isfinite(size), size, np.inf)
        if size.max() > worst[0]:
            worst = (float(size.max()), name, int(np.unravel_index(size.argmax(), size.shape)[0]))
    return worst


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
    training = [i for i in subject.readable if _whole(subject, i) and i not in subject.held_out]
    lost = {i: _worst_loss(subject, processor, i, tail) for i in evenly(training, SAMPLED_EPISODES)}
    clipped = {i: loss for i, loss in lost.items() if loss[0] > ROUND_TRIP}
    if clipped:
        first = max(clipped, key=lambda i: clipped[i][0])
        share, group, frame = clipped[first]
        found = (
            f'action "{group}" comes back {share:.2%} of its range off, worst at frame {frame} of episode {first}: the '
            "statistics do not cover it, so it is clipped."
        )
        yield error(f"{episodes(list(clipped))}", found, MEND)


def _whole(subject: Subject, episode: int) -> bool:
    """Whether every group of an episode is there, finite and of one length."""
    found = [subject.series(m, g).get(episode) for m in ("state", "action") for g in subject.configs[m].modality_keys]
    return (
        all(v is not None and np.isfinite(v).all() for v in found)
        and len({len(v) for v in found if v is not None}) == 1
    )


def _worst_loss(subject: Subject, processor: StateActionProcessor, episode: int, tail: Tail) -> tuple[float, str, int]:
    """(share of the range, group, frame) of the worst action value of some starts of an episode."""
    states = {g: subject.series("state", g)[episode] for g in subject.configs["state"].modality_keys}
    actions = {g: subject.series("action", g)[episode] for g in subject.configs["action"].modality_keys}
    ranges = {g.name: _range(g.scale) for g in processor.groups(TAG, "action")}
    last = len(next(iter(actions.values()))) - 1
    worst = (0.0, "", 0)
    deltas = subject.configs["action"].delta_indices
    for frame in evenly(start_frames(last + 1, deltas, tail), SAMPLED_FRAMES):
        ahead = frame + np.asarray(deltas)
        valid = (ahead >= 0) & (ahead <= last)
        now = {
            g: v[np.clip(frame + np.asarray(subject.configs["state"].delta_indices), 0, last)]
            for g, v in states.items()
        }
        then = {g: v[np.clip(ahead, 0, last)] for g, v in actions.items()}
        back = processor.decode_action(processor.encode_action(then, now, TAG), now, TAG)
        for group, values in then.items():
            off = np.abs(back[group] - values)[valid] / ranges[group]
            if off.size and off.max() > worst[0]:
                worst = (float(off.max()), group, frame)
    return worst


def _range(scale: np.ndarray) -> np.ndarray:
    """(D,): the widest range of each dimension over the steps; 1 where nothing moves."""
    widest = np.atleast_2d(scale).max(axis=0)
    return np.where(widest > 1e-6, widest, 1.0)


def horizon(configs: ModalityConfigs) -> int:
    """Steps that an episode must have to hold one whole chunk."""
    deltas: Sequence[int] = configs["action"].delta_indices
    return max(deltas) - min(0, *deltas) + 1
