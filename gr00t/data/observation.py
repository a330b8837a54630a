"""What a robot hands to the policy, checked: flat or nested, numpy or torch, to one `Step` a sample.

Two forms are read. Flat: {"video.<view>": ..., "state.<group>": ..., "<language key>": ...}. Nested, as NVIDIA's
client sends it: {"video": {view: ...}, "state": {group: ...}, "language": {key: ...}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gr00t.data.processor import Step
from gr00t.data.schema import ModalityConfig, ModalityConfigs
from gr00t.errors import ToolkitError, did_you_mean


def read_observation(
    observation: Mapping[str, Any], configs: ModalityConfigs, state_dims: Mapping[str, int]
) -> list[Step]:
    """The B samples of an observation of one embodiment, whose state groups have the dimensions `state_dims`.

    video (B, T, H, W, 3) uint8 RGB; state (B, T, D) of any float type; language B instructions as a list or array
    of str, each possibly in a list of its own, or one plain str where B = 1. The leading batch size is written out for
    B = 1 too, since (T, H, W, 3) and (B, H, W, 3) look alike. Raises ToolkitError with what was expected and
    what was found, for values as well (NaN, float images, empty instructions).
    """
    video, state, language = configs["video"], configs["state"], configs["language"].modality_keys[0]
    names = [f"video.{k}" for k in video.modality_keys] + [f"state.{k}" for k in state.modality_keys] + [language]
    values = _flatten(observation, names)
    images = {k: _video(values[f"video.{k}"], f"video.{k}", video) for k in video.modality_keys}
    states = {k: _state(values[f"state.{k}"], f"state.{k}", state, state_dims[k]) for k in state.modality_keys}
    texts = _instructions(values[language], language)
    sizes = [*(len(array) for array in (*images.values(), *states.values())), len(texts)]
    if len(set(sizes)) > 1:
        found = ", ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
        raise ToolkitError(f"The batch sizes of the observation differ: {found}.")
    return [
        Step({k: v[b] for k, v in images.items()}, {k: v[b] for k, v in states.items()}, texts[b])
        for b in range(len(texts))
    ]


def _flatten(observation: Mapping[str, Any], wanted: list[str]) -> dict[str, Any]:
    """The values of an observation under their flat names, which must be those `wanted`."""
    if not isinstance(observation, Mapping):
        raise ToolkitError(f"An observation is a dict of video, state and language, not {type(observation).__name__}.")
    flat: dict[str, Any] = {}
    for key, value in observation.items():
        nested = key in ("video", "state", "language") and isinstance(value, Mapping)
        prefix = f"{key}." if key != "language" else ""
        for name, entry in ({f"{prefix}{k}": v for k, v in value.items()} if nested else {str(key): value}).items():
            if name in flat:
                raise ToolkitError(f'The observation gives "{name}" twice, nested and flat. Give it once.')
            flat[name] = entry
    missing = [name for name in wanted if name not in flat]
    unknown = [name for name in flat if name not in wanted]
    if missing:
        given = f" Given: {', '.join(flat)}." if flat else ""
        raise ToolkitError(f'The observation lacks "{missing[0]}".{did_you_mean(missing[0], unknown) or given}')
    if unknown:
        raise ToolkitError(
            f'The observation has "{unknown[0]}", which this policy does not read; it reads {", ".join(wanted)}. '
            "Take it out."
        )
    return flat


def _array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ToolkitError(f"{name}: no regular array ({error}).") from None
    if array.dtype.kind not in "buif":
        raise ToolkitError(f"{name}: expected an array of numbers, found {type(value).__name__} of {array.dtype}.")
    return array


def _video(value: Any, name: str, config: ModalityConfig) -> np.ndarray:
    """(B, T, H, W, 3) uint8."""
    array, frames = _array(value, name), len(config.delta_indices)
    expected = f"{name}: expected (B, {frames}, H, W, 3) uint8, found {array.shape} {array.dtype}."
    if array.ndim != 5:
        hint = " Add the leading sizes: image[None, None] for one frame of one robot." if array.ndim in (3, 4) else ""
        raise ToolkitError(expected + hint)
    if array.shape[-1] != 3:
        hint = " Move the channels last." if array.shape[2] == 3 else " Give RGB without an alpha channel."
        raise ToolkitError(expected + hint)
    if array.dtype != np.uint8:
        hint = " Give the camera's own values, 0 to 255, as uint8."
        if array.dtype.kind == "f":
            hint = " Images in [0, 1] become so by (image * 255).round().astype(np.uint8)."
        raise ToolkitError(expected + hint)
    _check_sizes(array, frames, expected, config)
    return array


def _state(value: Any, name: str, config: ModalityConfig, dim: int) -> np.ndarray:
    """(B, T, D) float32, all finite."""
    array, frames = _array(value, name), len(config.delta_indices)
    expected = f"{name}: expected (B, {frames}, {dim}) float32, found {array.shape} {array.dtype}."
    if array.ndim != 3:
        hint = " Add the leading sizes: state[None, None] for one robot." if array.ndim in (1, 2) else ""
        raise ToolkitError(expected + hint)
    if array.dtype.kind != "f":
        raise ToolkitError(expected + " States are in the robot's units (rad, m), never whole numbers.")
    if array.shape[-1] != dim:
        raise ToolkitError(expected + f" The checkpoint's statistics of this group have {dim} dimensions.")
    _check_sizes(array, frames, expected, config)
    with np.errstate(over="ignore"):  # what overflows is named below
        converted = array.astype(np.float32)
    if not np.isfinite(converted).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(converted))[0])
        raise ToolkitError(f"{name}: the value {array[place]} at {place} is no finite float32. Mend it at its source.")
    return converted


def _check_sizes(array: np.ndarray, frames: int, expected: str, config: ModalityConfig) -> None:
    if array.shape[1] != frames:
        raise ToolkitError(f"{expected} One frame for each of the delta indices {config.delta_indices}.")
    if array.size == 0:
        raise ToolkitError(f"{expected} It is empty.")


def _instructions(value: Any, name: str) -> list[str]:
    """B instructions, each with at least one letter or digit."""
    rows = value.tolist() if isinstance(value, np.ndarray) else value
    rows = [rows] if isinstance(rows, str) else rows
    if not isinstance(rows, list | tuple) or not rows:
        raise ToolkitError(f"{name}: expected a list of one instruction a sample, found {value!r}.")
    texts = [row[0] if isinstance(row, list | tuple) and len(row) == 1 else row for row in rows]
    for text in texts:
        if not isinstance(text, str):
            raise ToolkitError(f"{name}: expected one instruction (str) a sample, found {text!r}.")
        if not any(letter.isalnum() for letter in text):
            raise ToolkitError(f'{name}: the instruction "{text}" is empty. Say what the robot is to do.')
    return texts
