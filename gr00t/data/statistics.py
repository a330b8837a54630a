"""Statistics of a dataset: stats.json, relative_stats.json, and the form the processor reads.

Everything is computed in float64. A constant column has standard deviation exactly 0, which normalisation relies on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gr00t.data.schema import ActionConfig, ActionRepresentation, ActionType, ModalityConfig, ModalityConfigs, look_up
from gr00t.data.state_action import to_relative
from gr00t.errors import ToolkitError

Tail = Literal["mask", "drop"]
Statistics = dict[str, list[Any]]
"""Of one column or group: {name of STATISTIC_NAMES: (D,) or (H, D) nested lists}."""

STATISTIC_NAMES = ("mean", "std", "min", "max", "q01", "q99")
COLUMNS = {"state": "observation.state", "action": "action"}
_MEND = (
    "Write the dataset's statistics again: "
    "python prepare_conflict_data.py split=<split> raw_dir=<recordings> data_dir=<datasets> overwrite=true (or, for a "
    "dataset of another source, remove that file: it is then computed)"
)


def feature_statistics(values: np.ndarray) -> Statistics:
    """Statistics over the first axis of `values` (N, D): mean, std (population), min, max, q01, q99, each (D,)."""
    if values.ndim != 2 or len(values) == 0:
        raise ToolkitError(f"Statistics need values (N, D) with N > 0, got the shape {values.shape}.")
    values = values.astype(np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    constant = low == high
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    mean = np.where(constant, low, values.mean(axis=0))
    std = np.where(constant, 0.0, values.std(axis=0))
    found = zip(STATISTIC_NAMES, (mean, std, low, high, q01, q99), strict=True)
    return {name: value.tolist() for name, value in found}


def merge_statistics(
    statistics: Sequence[dict[str, dict[str, Statistics]]], weights: Sequence[float]
) -> dict[str, dict[str, Statistics]]:
    """One embodiment's entry of statistics.json for several datasets of it, from the entry of each.

    weights: how often each dataset is sampled, of any sum. Mean and variance are those of the mixture; the extremes
    and, as in the original, the percentiles are the outermost. Raises ToolkitError where the datasets differ in groups
    or sizes. (original: merge_statistics of the dataset mixture)
    """
    if not statistics or len(statistics) != len(weights):
        raise ToolkitError(f"{len(statistics)} statistics and {len(weights)} weights: give one weight each.")
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ToolkitError(f"The weights of datasets must be at least 0 and not all 0, not {list(weights)}.")
    share = np.asarray(weights, dtype=np.float64) / sum(weights)
    merged: dict[str, dict[str, Statistics]] = {}
    for modality in statistics[0]:
        groups = [entry.get(modality, {}) for entry in statistics]
        for number, found in enumerate(groups):
            if set(found) != set(groups[0]):
                raise ToolkitError(
                    f"Dataset {number} has the {modality} groups {sorted(found)}, dataset 0 has {sorted(groups[0])}: "
                    "only datasets of the same robot and modality config can be merged."
                )
        merged[modality] = {
            group: _merge_group([found[group] for found in groups], share, f"{modality}.{group}") for group in groups[0]
        }
    return merged


def _merge_group(parts: Sequence[Statistics], share: np.ndarray, where: str) -> Statistics:
    """One group's statistics of several datasets, (D,) or (H, D) each, weighted with `share` (N,), which sums to 1."""
    names = [name for name in STATISTIC_NAMES if name in parts[0]]
    missing = [name for name in names if any(name not in part for part in parts)]
    if missing or len({np.shape(part[name]) for part in parts for name in names}) > 1:
        raise ToolkitError(
            f"{where}: the datasets' statistics differ in size or in what they hold ({', '.join(missing or names)}): "
            "make them again with the same modality config (same action horizon)."
        )
    values = {name: np.asarray([part[name] for part in parts], dtype=np.float64) for name in names}
    merged = {name: values[name].min(axis=0) for name in names if name in ("min", "q01")}
    merged |= {name: values[name].max(axis=0) for name in names if name in ("max", "q99")}
    constant = merged["min"] == merged["max"]
    mean = np.tensordot(share, values["mean"], axes=1)
    # about the common mean: the mean of squares less the squared mean cancels, and may go below zero
    variance = np.tensordot(share, values["std"] ** 2 + (values["mean"] - mean) ** 2, axes=1)
    merged["mean"] = np.where(constant, merged["min"], mean)
    merged["std"] = np.where(constant, 0.0, np.sqrt(variance))
    return {name: merged[name].tolist() for name in names}


def start_frames(length: int, delta_indices: Sequence[int], tail: Tail) -> Sequence[int]:
    """The frames of an episode that may start a sample.

    "mask": every frame with a step of its chunk inside the episode, which is each where a chunk begins with its own
    frame; what lies outside is masked. "drop" (the original's rule): only frames whose whole chunk lies inside the
    episode, length - span + 1 of them.
    """
    some: Sequence[int] = range(length)
    if 0 not in delta_indices:
        some = [frame for frame in some if any(0 <= frame + delta < length for delta in delta_indices)]
    whole = range(max(0, -min(delta_indices)), max(0, length - max(0, max(delta_indices))))
    return look_up({"mask": some, "drop": whole}, tail, f'Unknown tail rule "{tail}".')


def relative_statistics(
    states: Sequence[np.ndarray],
    actions: Sequence[np.ndarray],
    modality_json: dict[str, Any],
    modality_configs: ModalityConfigs,
    tail: Tail = "mask",
) -> dict[str, Statistics]:
    """Per-step statistics of every relative action group: {group: {stat: (H, dim) lists}}, {} when none is relative.

    states[i] (T_i, S) and actions[i] (T_i, A) are the columns observation.state and action of episode i. For step h
    every pair (start, start + delta_h) inside the episode counts; `tail` says which starts do (see start_frames).
    """
    deltas = modality_configs["action"].delta_indices
    # The reference is the last state row that the model sees, which a history may place before the start frame.
    last_state = modality_configs["state"].delta_indices[-1]
    result = {}
    for group, config in relative_groups(modality_configs["action"]):
        of_action = group_slice(modality_json, "action", group)
        of_state = group_slice(modality_json, "state", config.state_key or group)
        state = np.concatenate([s[:, of_state] for s in states])
        action = np.concatenate([a[:, of_action] for a in actions])
        start, first, last = _starts([len(a) for a in actions], deltas, tail)
        seen = np.clip(start + last_state, first, last)
        per_step = []
        for delta in deltas:
            inside = (start + delta >= first) & (start + delta <= last)
            found = relative_action(action[start[inside] + delta], state[seen[inside]], config)
            if len(found) == 0:
                raise ToolkitError(
                    f'No episode is long enough for step {delta} of the action group "{group}" (tail={tail}): record '
                    "longer episodes or shorten the action horizon (delta_indices)."
                )
            per_step.append(feature_statistics(found))
        result[group] = {name: [step[name] for step in per_step] for name in STATISTIC_NAMES}
    return result


def _starts(lengths: Sequence[int], deltas: Sequence[int], tail: Tail) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the start frames in episodes of these lengths one after another, and each one's first and last row."""
    frames = [np.array(start_frames(length, deltas, tail), dtype=np.int64) for length in lengths]
    ends, counts = np.cumsum(lengths), [len(of_episode) for of_episode in frames]
    first = np.repeat(ends - lengths, counts)
    return first + np.concatenate(frames), first, np.repeat(ends - 1, counts)


def relative_action(action: np.ndarray, reference: np.ndarray, config: ActionConfig) -> np.ndarray:
    """`action` (N, D) relative to `reference` (N, D), row by row, in float64 (see to_relative)."""
    if config.type is not ActionType.EEF and action.shape != reference.shape:
        raise ToolkitError(
            f"A relative action of {action.shape[-1]} dims refers to a state group of {reference.shape[-1]} dims: "
            "set ActionConfig.state_key to the group it is relative to, or make it ABSOLUTE."
        )
    return to_relative(action.astype(np.float64)[:, None], reference.astype(np.float64), config)[:, 0]


def relative_groups(action_config: ModalityConfig) -> list[tuple[str, ActionConfig]]:
    """The action groups that are stored relative to a state, with their configuration."""
    return [(key, config) for key, config in action_config.actions if config.rep is ActionRepresentation.RELATIVE]


def group_slice(modality_json: dict[str, Any], modality: str, group: str) -> slice:
    """The columns of one state or action group, from meta/modality.json."""
    problem = f'meta/modality.json: {modality} has no group "{group}".'
    entry = look_up(modality_json.get(modality, {}), group, problem)
    return slice(int(entry["start"]), int(entry["end"]))


def to_processor_statistics(
    stats: dict[str, Statistics],
    relative_stats: dict[str, Statistics],
    modality_json: dict[str, Any],
    modality_configs: ModalityConfigs,
    where: str | Path = "relative_stats.json",
) -> dict[str, dict[str, Statistics]]:
    """One embodiment's entry of a checkpoint's statistics.json.

    {"state" and "action": {group: {stat: (D,)}}, "relative_action": {group: {stat: (H, D)}}} for the groups that
    `modality_configs` names. Raises ToolkitError for an unknown group and for relative statistics of another shape.
    """
    check_relative_statistics(relative_stats, modality_json, modality_configs, where)
    result: dict[str, dict[str, Statistics]] = {
        modality: {
            group: _group_statistics(stats, modality_json, modality, group)
            for group in modality_configs[modality].modality_keys
        }
        for modality in ("state", "action")
    }
    relative = [group for group, _ in relative_groups(modality_configs["action"])]
    result["relative_action"] = {
        group: {name: relative_stats[group][name] for name in STATISTIC_NAMES} for group in relative
    }
    return result


def _group_statistics(
    stats: dict[str, Statistics], modality_json: dict[str, Any], modality: str, group: str
) -> Statistics:
    """One group's part of the statistics of its column."""
    columns = group_slice(modality_json, modality, group)
    column = modality_json[modality][group].get("original_key") or COLUMNS[modality]
    recorded = look_up(stats, column, f'stats.json has no column "{column}".', f" {_MEND}")
    width, groups = columns.stop - columns.start, {}
    for name in STATISTIC_NAMES:
        values = recorded.get(name) if isinstance(recorded, dict) else None
        groups[name] = values[columns] if isinstance(values, list) else []
        if _finite_shape(groups[name]) != (width,):
            raise ToolkitError(
                f'stats.json: "{name}" of the column "{column}" must be {width} numbers for {modality} '
                f'"{group}", not {str(groups[name])[:200]}. {_MEND}'
            )
    return groups


def _finite_shape(values: Any) -> tuple[int, ...] | None:
    """The shape of nested lists of finite numbers; None for anything else."""
    try:
        found = np.asarray(values)
    except ValueError:  # rows of several widths
        return None
    return found.shape if found.dtype.kind in "iuf" and np.isfinite(found).all() else None


def relative_settings(modality_configs: ModalityConfigs) -> dict[str, Any]:
    """What decides relative statistics beside the data, as meta/split.json notes it: the number of action steps, and
    their offsets and the state's where they are not the usual ones (0, 1, ... from the state of now)."""
    deltas, state = modality_configs["action"].delta_indices, modality_configs["state"].delta_indices[-1]
    return {
        "steps": len(deltas),
        **({"delta_indices": [*deltas]} if [*deltas] != [*range(len(deltas))] else {}),
        **({"state_delta_index": state} if state else {}),
    }


def check_relative_statistics(
    relative_stats: dict[str, Statistics],
    modality_json: dict[str, Any],
    modality_configs: ModalityConfigs,
    where: str | Path = "relative_stats.json",
) -> None:
    """Raise ToolkitError when relative statistics are missing or were made for another horizon or group size."""
    horizon = len(modality_configs["action"].delta_indices)
    for group, _ in relative_groups(modality_configs["action"]):
        columns = group_slice(modality_json, "action", group)
        expected = (horizon, columns.stop - columns.start)
        entry = relative_stats.get(group)
        if not isinstance(entry, dict):
            raise ToolkitError(f'{where}: no statistics of the relative action group "{group}". {_MEND}')
        for name in STATISTIC_NAMES:
            shape = _finite_shape(entry.get(name))
            problem = (
                f"has the shape {shape}, but the modality config needs {expected} (steps, dims): they were made for "
                "another action horizon or robot"
            )
            if shape is None:
                problem = "is no table of finite numbers" if name in entry else "is missing"
            if shape != expected:
                raise ToolkitError(f'{where}: "{group}" {name} {problem}. {_MEND}')
