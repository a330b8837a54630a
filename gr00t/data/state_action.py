"""States and actions between a robot's units and the model's, group by group, with the relative end-effector poses.

A pose is a position with a rotation, in float64: `XYZ_ROT6D` (9 numbers: position, then the first two rows of the
rotation matrix, Zhou et al. 2019, arXiv:1812.07035) or `XYZ_ROTVEC` (6 numbers: position, then axis times angle in
radians)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gr00t.data.schema import (
    ActionConfig,
    ActionFormat,
    ActionRepresentation,
    ActionType,
    ModalityConfig,
    ModalityConfigs,
    look_up,
)
from gr00t.errors import ToolkitError

POSE_DIMS = {ActionFormat.XYZ_ROT6D: 9, ActionFormat.XYZ_ROTVEC: 6}
SIN_COS, MEAN_STD, MIN_MAX = "sin_cos", "mean_std", "min_max"

Arrays = Mapping[str, np.ndarray]
EmbodimentStatistics = dict[str, Any]
"""statistics.json: tag -> "state" | "action" | "relative_action" -> group -> min, max, mean, std, q01, q99 (lists)."""


def relative_pose(action: np.ndarray, reference: np.ndarray, format: ActionFormat) -> np.ndarray:
    """inverse(T_reference) T_action for each step: the pose as seen from the reference.

    action (..., H, D), reference (..., D), both in metres and radians, D = 9 or 6; returns float64 (..., H, D).
    """
    position, rotation = _split(action, format)
    position0, rotation0 = _split(reference[..., None, :], format)
    back = np.swapaxes(rotation0, -1, -2)
    return _join(_turn(back, position - position0), back @ rotation, format)


def absolute_pose(action: np.ndarray, reference: np.ndarray, format: ActionFormat) -> np.ndarray:
    """T_reference T_action for each step, undoing `relative_pose`; same shapes, float64."""
    position, rotation = _split(action, format)
    position0, rotation0 = _split(reference[..., None, :], format)
    return _join(position0 + _turn(rotation0, position), rotation0 @ rotation, format)


def to_relative(action: np.ndarray, reference: np.ndarray, config: ActionConfig) -> np.ndarray:
    """Actions (..., H, D) as seen from the state (..., D) they start from: subtracted, or for poses turned back."""
    if config.type is ActionType.EEF:
        return relative_pose(action, reference, config.format)
    return action - reference[..., None, :]


def to_absolute(action: np.ndarray, reference: np.ndarray, config: ActionConfig) -> np.ndarray:
    """Undo `to_relative`."""
    if config.type is ActionType.EEF:
        return absolute_pose(action, reference, config.format)
    return action + reference[..., None, :]


def _split(pose: np.ndarray, format: ActionFormat) -> tuple[np.ndarray, np.ndarray]:
    """(..., D) to positions (..., 3) and rotation matrices (..., 3, 3), float64."""
    if format not in POSE_DIMS:
        known = ", ".join(f.name for f in POSE_DIMS)
        raise ToolkitError(f"An EEF action group needs one of the formats {known}, not {format.name}.")
    pose = np.asarray(pose, dtype=np.float64)
    if pose.shape[-1] != POSE_DIMS[format]:
        raise ToolkitError(f"A pose in {format.name} has {POSE_DIMS[format]} numbers, not {pose.shape[-1]}.")
    rotation = pose[..., 3:]
    return pose[..., :3], _from_rot6d(rotation) if format is ActionFormat.XYZ_ROT6D else _from_rotvec(rotation)


def _join(position: np.ndarray, rotation: np.ndarray, format: ActionFormat) -> np.ndarray:
    is_6d = format is ActionFormat.XYZ_ROT6D
    numbers = rotation[..., :2, :].reshape(*rotation.shape[:-2], 6) if is_6d else _to_rotvec(rotation)
    return np.concatenate([position, numbers], axis=-1)


def _turn(rotation: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return (rotation @ vector[..., None])[..., 0]


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    if not np.all(length > 1e-12):
        raise ToolkitError("A 6-D rotation is degenerate: its two rows must be non-zero and not parallel.")
    return vector / length


def _from_rot6d(numbers: np.ndarray) -> np.ndarray:
    first, second = numbers[..., :3], numbers[..., 3:]
    x = _unit(first)
    y = _unit(second - np.sum(x * second, axis=-1, keepdims=True) * x)
    return np.stack([x, y, np.cross(x, y)], axis=-2)


def _from_rotvec(vector: np.ndarray) -> np.ndarray:
    """Rodrigues' formula, with sinc so that small angles stay exact."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    half = np.sinc(angle / (2 * np.pi))  # sin(a/2) / (a/2)
    return np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * half**2 * (cross @ cross)


def _to_rotvec(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) to vectors (..., 3) of length 0 to pi, by way of the unit quaternion.

    Each row of the symmetric matrix below is the quaternion (w, x, y, z) times four of its own entries; the row with
    the largest diagonal is the one that divides by no small number (Shepperd 1978).
    """
    r = rotation
    trace = np.trace(r, axis1=-2, axis2=-1)
    q = np.empty((*r.shape[:-2], 4, 4))
    q[..., 0, 0] = 1.0 + trace
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        q[..., i + 1, i + 1] = 1.0 + 2.0 * r[..., i, i] - trace
        q[..., 0, i + 1] = q[..., i + 1, 0] = r[..., k, j] - r[..., j, k]
        q[..., i + 1, j + 1] = q[..., j + 1, i + 1] = r[..., i, j] + r[..., j, i]
    best = np.argmax(np.diagonal(q, axis1=-2, axis2=-1), axis=-1)
    quaternion = np.take_along_axis(q, best[..., None, None], axis=-2)[..., 0, :]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    quaternion = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    sine = np.linalg.norm(vector, axis=-1, keepdims=True)
    scale = np.where(sine > 1e-12, 2.0 * np.arctan2(sine, w) / np.maximum(sine, 1e-12), 2.0)
    return scale * vector


@dataclass(frozen=True)
class Group:
    """How one group of one robot is normalised.

    `offset` and `scale` are mean and std, or the minimum and the range, each (D,), of a relative action group (H, D);
    `constant` marks the dimensions that do not vary. `relative` says that the action is expressed relative to the
    state group `state_key`.
    """

    name: str
    method: str
    offset: np.ndarray
    scale: np.ndarray
    constant: np.ndarray
    relative: ActionConfig | None = None

    @property
    def dim(self) -> int:
        """Numbers of the group in robot units."""
        return self.offset.shape[-1]

    @property
    def encoded_dim(self) -> int:
        """Columns it takes in the model's vector: twice its own for [sin | cos]."""
        return 2 * self.dim if self.method == SIN_COS else self.dim

    @property
    def state_key(self) -> str:
        """The state group that a relative action starts from."""
        return (self.relative.state_key if self.relative else None) or self.name

    def normalise(self, values: np.ndarray, clip: bool) -> np.ndarray:
        """(T, D) in robot units to (T, encoded_dim); the result keeps the precision of min/max `values`."""
        if self.method == SIN_COS:
            return np.concatenate([np.sin(values), np.cos(values)], axis=-1)
        share = (values - self.offset) / np.where(self.constant, 1.0, self.scale)
        if self.method == MEAN_STD:
            return np.where(self.constant, values, share)
        # The original stores the share at the values' own precision before stretching it to [-1, 1].
        scaled = 2 * share.astype(values.dtype) - 1
        scaled = np.where(self.constant, values.dtype.type(0), scaled)
        return np.clip(scaled, -1.0, 1.0) if clip else scaled

    def denormalise(self, values: np.ndarray) -> np.ndarray:
        """Undo `normalise` in float64; min/max values are clipped to [-1, 1] first. Not for sin/cos (states only)."""
        if self.method == MEAN_STD:
            return np.where(self.constant, values, values * self.scale + self.offset)
        return (np.clip(values, -1.0, 1.0) + 1) / 2 * self.scale + self.offset


@dataclass(frozen=True, eq=False)
class StateActionProcessor:
    """Normalises states and actions of every embodiment it has a configuration and statistics for.

    A group listed in sin_cos_embedding_keys becomes [sin | cos] (states, with `apply_sincos_state_encoding`); else
    one in mean_std_embedding_keys is standardised; else min and max (with `use_percentiles` q01 and q99) go to -1
    and 1. Relative action groups are first expressed relative to the last state row and always use the min and max
    of each step. `clip_outliers` clips min/max states and all actions to [-1, 1]; `use_relative_action` False takes
    every group as absolute. (original: state_action_processor)
    """

    modality_configs: Mapping[str, ModalityConfigs]
    statistics: EmbodimentStatistics
    use_percentiles: bool = False
    clip_outliers: bool = True
    apply_sincos_state_encoding: bool = False
    use_relative_action: bool = False
    _groups: dict[tuple[str, str], list[Group]] = field(init=False, default_factory=dict)

    def groups(self, tag: str, modality: str) -> list[Group]:
        """The groups of "state" or "action" in the model's order; unknown tags and missing statistics raise."""
        if (tag, modality) not in self._groups:
            config = self._config(tag, modality)
            actions = dict(config.actions)
            self._groups[tag, modality] = [
                self._build_group(tag, modality, name, actions.get(name)) for name in config.modality_keys
            ]
        return self._groups[tag, modality]

    def horizon(self, tag: str) -> int:
        """Number of action steps of that embodiment."""
        return len(self._config(tag, "action").delta_indices)

    def dim(self, tag: str, modality: str) -> int:
        """Columns of that modality in the model's vector, before padding."""
        return sum(group.encoded_dim for group in self.groups(tag, modality))

    def encode_state(self, states: Arrays, tag: str) -> np.ndarray:
        """{group: (T, D)} in robot units to float32 (T, d)."""
        groups = self.groups(tag, "state")
        parts = [g.normalise(_take(states, g, f"{tag} state"), self.clip_outliers) for g in groups]
        return _concatenate(parts, f"{tag} state")

    def encode_action(self, actions: Arrays, states: Arrays, tag: str) -> np.ndarray:
        """{group: (H, D)} with the states of the same moment to float32 (H, d), clipped with `clip_outliers`."""
        parts = []
        for group in self.groups(tag, "action"):
            values = _take(actions, group, f"{tag} action")
            if values.shape[-2] != self.horizon(tag):
                raise ToolkitError(
                    f'{tag} action "{group.name}": {values.shape[-2]} steps given, but the modality config has a '
                    f"horizon of {self.horizon(tag)}. Hold the last value past the end and mark it in action_valid."
                )
            if group.relative:
                values = to_relative(values, self._reference(states, group, tag), group.relative)
            normalised = group.normalise(values, self.clip_outliers)
            parts.append(np.clip(normalised, -1.0, 1.0) if self.clip_outliers else normalised)
        return _concatenate(parts, f"{tag} action")

    def decode_action(self, normalised: np.ndarray, states: Arrays | None, tag: str) -> dict[str, np.ndarray]:
        """The model's actions (B, H, D) or (H, D), padded or not, to {group: (B, horizon, dim)} in robot units.

        `states` holds (B, T, dim) or (T, dim) and is needed by relative groups only. Computed in float64 and
        returned so, except standardised (mean/std) absolute groups: float32, as in the original.
        """
        normalised = np.asarray(normalised)
        horizon, dim = self.horizon(tag), self.dim(tag, "action")
        if normalised.ndim not in (2, 3) or normalised.shape[-2] < horizon or normalised.shape[-1] < dim:
            raise ToolkitError(
                f"{tag}: predicted actions must be (B, H, D) or (H, D) with H >= {horizon} and D >= {dim}, "
                f"not {normalised.shape}."
            )
        actions, start = {}, 0
        for group in self.groups(tag, "action"):
            columns = normalised[..., :horizon, start : start + group.dim].astype(np.float32)
            start += group.dim
            values = group.denormalise(columns)
            if group.relative:
                values = to_absolute(values, self._reference(states or {}, group, tag), group.relative)
            elif group.method == MEAN_STD:
                values = values.astype(np.float32)
            actions[group.name] = values
        return actions

    def _reference(self, states: Arrays, group: Group, tag: str) -> np.ndarray:
        """(..., dim): the last state row of the group that a relative action group starts from."""
        problem = f'{tag} action "{group.name}" is relative to the state group "{group.state_key}", which is not given.'
        remedy = " Add it to the state, or set state_key in action_configs."
        values = np.asarray(look_up(states, group.state_key, problem, remedy), dtype=np.float64)
        if values.ndim < 2 or values.shape[-1] != group.dim:
            raise ToolkitError(
                f'{tag} action "{group.name}" has {group.dim} dimensions, but the state group "{group.state_key}" '
                f"it is relative to has the shape {values.shape}; the last size must be the same."
            )
        _check_finite(values, f'{tag} state "{group.state_key}"')
        return values[..., -1, :]

    def _config(self, tag: str, modality: str) -> ModalityConfig:
        problem = f'This checkpoint has no modality config for the embodiment "{tag}".'
        remedy = " Give one (modality_config=...) to use a new robot."
        return look_up(self.modality_configs, tag, problem, remedy)[modality]

    def _refuse_lost_representation(self, tag: str, name: str) -> None:
        """Refuse an absolute group that has relative statistics: with a config that lost action_configs, the
        differences that the model predicts would be sent to the robot as positions."""
        if name in self.statistics.get(tag, {}).get("relative_action", {}):
            raise ToolkitError(
                f'The actions "{name}" of "{tag}" were learned relative to the state (statistics.json has '
                "relative_action for them), but the modality config does not call them RELATIVE. Take its "
                "action_configs from the checkpoint's processor_config.json as it was written, or compute the "
                "statistics of the dataset again with this modality config."
            )

    def _build_group(self, tag: str, modality: str, name: str, action_config: ActionConfig | None) -> Group:
        config = self._config(tag, modality)
        is_relative = action_config and action_config.rep is ActionRepresentation.RELATIVE
        relative = action_config if self.use_relative_action and is_relative else None
        if modality == "action" and self.use_relative_action and not relative:
            self._refuse_lost_representation(tag, name)
        section = "relative_action" if relative else modality
        if modality == "state" and self.apply_sincos_state_encoding and name in (config.sin_cos_embedding_keys or []):
            method = SIN_COS
        else:
            method = MEAN_STD if name in (config.mean_std_embedding_keys or []) else MIN_MAX
        if method == MEAN_STD:
            mean, std = _group_statistics(self.statistics, tag, section, name, ("mean", "std"))
            group = Group(name, method, mean, std, std == 0, relative)
        else:
            ends = ("q01", "q99") if self.use_percentiles and not relative else ("min", "max")
            low, high = _group_statistics(self.statistics, tag, section, name, ends)
            group = Group(name, method, low, high - low, np.isclose(high, low), relative)
        place = f'statistics of "{tag}.{section}.{name}"'
        if ((group.scale < 0) & ~group.constant).any():
            what = "a standard deviation below 0" if method == MEAN_STD else "a minimum above its maximum"
            raise ToolkitError(f"{place}: {what}. The file is damaged: copy it again.")
        if relative:
            _check_relative(group, tag, len(config.delta_indices))
        elif group.offset.ndim != 1:
            raise ToolkitError(f"{place}: expected one value a dimension, not the shape {group.offset.shape}.")
        return group


def _group_statistics(
    statistics: EmbodimentStatistics, tag: str, section: str, name: str, keys: tuple[str, str]
) -> list[np.ndarray]:
    """The two named arrays of one group, float64; what is missing, ragged or not finite raises."""
    first = " Fine-tune on that robot's data first, or take one of the embodiments that have statistics."
    again = " Compute the statistics of the dataset again with this modality config."
    found = look_up(statistics, tag, f'statistics.json has no entry for the embodiment "{tag}".', first)
    group = look_up(found.get(section, {}), name, f'statistics of "{tag}.{section}": no group "{name}".', again)
    where, arrays = f'statistics of "{tag}.{section}.{name}"', []
    for key in keys:
        arrays.append(np.asarray(look_up(group, key, f'{where}: no "{key}".', again), dtype=np.float64))
        _check_finite(arrays[-1], f'{where} "{key}"')
    if arrays[0].shape != arrays[1].shape or arrays[0].ndim not in (1, 2):
        raise ToolkitError(f"{where}: {keys} differ in shape.{again}")
    return arrays


def _check_relative(group: Group, tag: str, horizon: int) -> None:
    if group.offset.ndim != 2 or group.offset.shape[0] != horizon:
        raise ToolkitError(
            f'{tag} action "{group.name}": its relative statistics are {group.offset.shape}, but the modality '
            f"config has a horizon of {horizon}. They belong to another horizon: prepare the dataset's statistics "
            f"again (delete its meta/relative_stats.json), or give the action {len(group.offset)} delta_indices."
        )
    assert group.relative
    if group.relative.type is ActionType.EEF and POSE_DIMS.get(group.relative.format) != group.dim:
        raise ToolkitError(
            f'{tag} action "{group.name}": a relative EEF group needs the format XYZ_ROT6D (9 numbers) or XYZ_ROTVEC '
            f"(6), but it says {group.relative.format.name} and has {group.dim}. Correct its ActionConfig."
        )


def _take(values: Arrays, group: Group, where: str) -> np.ndarray:
    array = np.asarray(look_up(values, group.name, f'{where}: the group "{group.name}" is missing.'), dtype=np.float32)
    if array.ndim != 2 or array.shape[-1] != group.dim:
        raise ToolkitError(
            f'{where} "{group.name}": expected (steps, {group.dim}) as in the statistics, not {array.shape}.'
        )
    _check_finite(array, f'{where} "{group.name}"')
    return array


def _check_finite(array: np.ndarray, where: str) -> None:
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ToolkitError(f"{where}: value {array[place]} at index {place} is not finite; mend it at its source.")


def _concatenate(parts: list[np.ndarray], where: str) -> np.ndarray:
    if len({part.shape[:-1] for part in parts}) > 1:
        raise ToolkitError(f"{where}: the groups have different numbers of steps: {[len(part) for part in parts]}.")
    return np.concatenate(parts, axis=-1).astype(np.float32)
