"""End-effector poses relative to a reference pose, in float64.

A pose is a position with a rotation: `XYZ_ROT6D` (9 numbers: position, then the first two rows of the rotation
matrix, Zhou et al. 2019, arXiv:1812.07035) or `XYZ_ROTVEC` (6 numbers: position, then axis times angle in radians).
"""

from __future__ import annotations

import numpy as np

from gr00t.data.schema import ActionFormat
from gr00t.errors import ToolkitError

POSE_DIMS = {ActionFormat.XYZ_ROT6D: 9, ActionFormat.XYZ_ROTVEC: 6}


def relative_pose(action: np.ndarray, reference: np.ndarray, format: ActionFormat) -> np.ndarray:
    """inverse(T_reference) T_action for each step: the pose as seen from the reference.

    action (..., H, D), reference (..., D), both in metres and radians, D = 9 or 6; returns float64 (..., H, D).
    """
    position, rotation = _split(action, format)
    position0, rotation0 = _split(reference, format, over_steps=True)
    back = np.swapaxes(rotation0, -1, -2)
    return _join(_turn(back, position - position0), back @ rotation, format)


def absolute_pose(action: np.ndarray, reference: np.ndarray, format: ActionFormat) -> np.ndarray:
    """T_reference T_action for each step, undoing `relative_pose`; same shapes, float64."""
    position, rotation = _split(action, format)
    position0, rotation0 = _split(reference, format, over_steps=True)
    return _join(position0 + _turn(rotation0, position), rotation0 @ rotation, format)


def _split(pose: np.ndarray, format: ActionFormat, over_steps: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(..., D) to positions (..., 3) and rotation matrices (..., 3, 3); `over_steps` puts in an axis for H."""
    if format not in POSE_DIMS:
        known = ", ".join(f.name for f in POSE_DIMS)
        raise ToolkitError(f"An EEF action group needs one of the formats {known}, not {format.name}.")
    pose = np.asarray(pose, dtype=np.float64)
    if pose.shape[-1] != POSE_DIMS[format]:
        raise ToolkitError(f"A pose in {format.name} has {POSE_DIMS[format]} numbers, not {pose.shape[-1]}.")
    if over_steps:
        pose = pose[..., None, :]
    rotation = pose[..., 3:]
    return pose[..., :3], _from_rot6d(rotation) if format is ActionFormat.XYZ_ROT6D else _from_rotvec(rotation)


def _join(position: np.ndarray, rotation: np.ndarray, format: ActionFormat) -> np.ndarray:
    if format is ActionFormat.XYZ_ROT6D:
        numbers = rotation[..., :2, :].reshape(*rotation.shape[:-2], 6)
    else:
        numbers = _to_rotvec(rotation)
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
