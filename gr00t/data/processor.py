"""One processor for training and inference: observations of a robot, checked, to model inputs, and model outputs to
robot actions."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor

from gr00t.data.images import FACTOR, Augmentation, ImageTransform, grid_thw, vlm_resize
from gr00t.data.processor_files import (
    FILES,
    ProcessorFiles,
    VlmTokenizer,
    default_projector_index,
    find_vlm_folder,
    formalize,
    read_processor_files,
    write_processor_files,
)
from gr00t.data.schema import (
    EmbodimentTag,
    ModalityConfig,
    ModalityConfigs,
    as_numpy,
    check_modality_configs,
    flattened,
    instructions,
    look_up,
)
from gr00t.data.state_action import Arrays, StateActionProcessor
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import parsing
from gr00t.model.config import Gr00tN1d7Config

log = logging.getLogger(__name__)

Tag = EmbodimentTag | str
Samples = Sequence[Mapping[str, Any]]
NO_INSTRUCTION = ""  # what a policy is asked to do where its instruction is left out


@dataclass
class Step:
    """One moment of one robot, in robot units.

    images {view: (T, H, W, 3) uint8 RGB}, states {group: (T, D) float32}, the instruction, and for training
    actions {group: (H, D) float32} with `action_valid` (H,) bool: False where the episode has ended.
    """

    images: Arrays
    states: Arrays
    text: str
    actions: Arrays | None = None
    action_valid: np.ndarray | None = None


class Gr00tN1d7Processor:
    """Images, language, state and action of every embodiment of a checkpoint. (original: Gr00tN1d7Processor)"""

    def __init__(self, files: ProcessorFiles, vlm: VlmTokenizer) -> None:
        """`files`: what the checkpoint's processor files hold; `vlm`: its tokenizer and chat template."""
        self.files, self.vlm, self.place = files, vlm, "This checkpoint"
        self.config, self.embodiment_ids = files.config, files.embodiment_ids
        config = self.config
        image_settings = [field.name for field in dataclasses.fields(ImageTransform) if field.init]
        self.images = ImageTransform(**{name: getattr(config, name) for name in image_settings})
        self.state_action = StateActionProcessor(
            config.modality_configs,
            files.statistics,
            config.use_percentiles,
            config.clip_outliers,
            config.apply_sincos_state_encoding,
            config.use_relative_action,
        )
        if not config.use_albumentations:
            log.warning(
                "use_albumentations is off in processor_config.json: the original then resizes with torchvision; "
                "here OpenCV is used all the same, which changes pixels slightly."
            )

    @classmethod
    def from_pretrained(cls, path: str | Path, vlm_path: str | Path | None = None, **_auto: Any) -> Gr00tN1d7Processor:
        """Load from a local checkpoint folder; the network is never used.

        The tokenizer comes from `vlm_path`, else from where `find_vlm_folder` looks. Further keywords, which
        transformers' AutoProcessor passes, have no effect. Raises ToolkitError when something is missing.
        """
        files = read_processor_files(path)
        folder = Path(vlm_path) if vlm_path is not None else find_vlm_folder(path, files.config.model_name)
        vlm = VlmTokenizer(folder)
        with parsing(Path(path) / FILES[0]):
            processor = cls(files, vlm)
        processor.place = str(path)
        return processor

    def save_pretrained(self, path: str | Path, **_auto: Any) -> None:
        """Write the three JSONs at the root and in processor/, the tokenizer's files in processor/vlm/."""
        write_processor_files(path, self.files)
        self.vlm.save(Path(path) / "processor" / "vlm")

    def with_embodiment(
        self, tag: Tag, modality_configs: ModalityConfigs, statistics: Mapping[str, Any]
    ) -> Gr00tN1d7Processor:
        """A copy in which `tag` has this modality config and these statistics; the other embodiments stay.

        statistics: {"state", "action", "relative_action"}. Raises ToolkitError when the robot does not fit the model.
        """
        name = EmbodimentTag.parse(tag).value
        check_modality_configs(modality_configs)
        configs = {**self.config.modality_configs, name: modality_configs}
        config = dataclasses.replace(self.config, modality_configs=configs)
        ids = {name: default_projector_index(name)} | self.embodiment_ids
        files = ProcessorFiles(config, {**self.files.statistics, name: dict(statistics)}, ids)
        processor = Gr00tN1d7Processor(files, self.vlm)
        horizon = processor.state_action.horizon(name)
        if horizon > config.max_action_horizon:
            raise ToolkitError(
                f"{name}: the action horizon {horizon} is longer than the checkpoint's {config.max_action_horizon}. "
                "Shorten the action's delta_indices."
            )
        for modality, limit in (("state", config.max_state_dim), ("action", config.max_action_dim)):
            dim = processor.state_action.dim(name, modality)
            if dim > limit:
                raise ToolkitError(
                    f"{name}: the {modality} has {dim} dimensions (sin/cos groups count twice), the checkpoint takes "
                    f"{limit}. Leave groups out of the modality config."
                )
        return processor

    def with_config(self, **changes: Any) -> Gr00tN1d7Processor:
        """A copy with some fields of `ProcessorConfig` replaced, for example crop_fraction or color_jitter_params."""
        files = dataclasses.replace(self.files, config=dataclasses.replace(self.config, **changes))
        return Gr00tN1d7Processor(files, self.vlm)

    def modality_config(self, tag: Tag) -> ModalityConfigs:
        """The modality config of a tag; one the checkpoint does not have raises with the nearest name."""
        remedy = (
            " A new robot needs its modality config and statistics: fine-tune it under "
            f'"{EmbodimentTag.NEW_EMBODIMENT.value}".'
        )
        problem = f'The checkpoint does not know the embodiment "{tag}".'
        return look_up(self.config.modality_configs, tag, problem, remedy)

    def encode(
        self,
        step: Step,
        tag: Tag,
        *,
        augmentation: Augmentation | None = None,
        drop_state: bool = False,
    ) -> dict[str, Any]:
        """One step to one sample of numpy arrays, ready for `collate`.

        images uint8 (T*V, S, S, 3) in the order t0v0, t0v1, ..., t1v0; text, the chat form; state float32
        (T, max_state_dim); embodiment_id int; with actions also action float32 (max_action_horizon, max_action_dim)
        and action_mask of the same shape, 1 on real steps x real dimensions. Steps that `action_valid` marks False
        are masked out of the loss and their action is 0, like the steps past the horizon.
        `augmentation` None gives the eval transform; `drop_state` zeroes the normalised state, as exclude_state does.
        """
        seen = self.encode_vlm(step, tag, augmentation=augmentation)
        return seen | self.encode_robot(step, tag, drop_state=drop_state)

    def encode_vlm(self, step: Step, tag: Tag, *, augmentation: Augmentation | None = None) -> dict[str, Any]:
        """The part of `encode` that the backbone reads: images and text."""
        images = self._encode_images(step.images, tag, augmentation)
        return {"images": images, "text": self.encode_text(step.text, len(images))}

    def encode_text(self, text: str, images: int) -> str:
        """An instruction in the chat form, with room for that many images."""
        if not isinstance(text, str):
            raise ToolkitError(f"The instruction must be one string, not {type(text).__name__}.")
        return self.vlm.chat_text(formalize(text) if self.config.formalize_language else text, images)

    def encode_robot(self, step: Step, tag: Tag, *, drop_state: bool = False) -> dict[str, Any]:
        """The part of `encode` that the head reads: state, embodiment_id, and the actions where there are some."""
        state = self.state_action.encode_state(step.states, tag)
        if drop_state or self.config.exclude_state:
            state = np.zeros_like(state)
        sample = {
            "state": _pad(state, len(state), self.config.max_state_dim, f"{tag} state"),
            "embodiment_id": self.embodiment_ids[tag],
        }
        if step.actions is not None:
            sample["action"], sample["action_mask"] = self._encode_action(step, tag)
        return sample

    def collate(self, samples: Samples, *, length: int | None = None) -> dict[str, torch.Tensor]:
        """Samples of `encode` to one batch of CPU tensors: those of `collate_vlm` and `collate_robot`."""
        return self.collate_vlm(samples, length=length) | self.collate_robot(samples)

    def collate_vlm(self, samples: Samples, *, length: int | None = None) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask int64 (B, L), padded on the left to the longest or to `length`; image_grid_thw
        int64 (N, 3); images uint8 (N, S, S, 3), all samples' in order, of which the model makes pixel_values."""
        input_ids, attention_mask = map(torch.from_numpy, self.tokenize(samples, length=length))
        images = torch.from_numpy(np.concatenate([s["images"] for s in samples]))
        seen = {"images": images, "image_grid_thw": grid_thw(images)}
        return {"input_ids": input_ids, "attention_mask": attention_mask, **seen}

    def tokenize(self, samples: Samples, *, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask as in `collate_vlm`."""
        tokens = [[i.shape[0] // FACTOR * (i.shape[1] // FACTOR) for i in s["images"]] for s in samples]
        return self.vlm.encode([s["text"] for s in samples], tokens, length)

    def collate_robot(self, samples: Samples) -> dict[str, torch.Tensor]:
        """state float32 (B, T, Ds); embodiment_id int64 (B,); with actions also action and mask, float32 (B, H, Da)."""
        given = [key for key in ("state", "action", "action_mask") if key in samples[0]]
        batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in given}
        return batch | {"embodiment_id": torch.tensor([s["embodiment_id"] for s in samples], dtype=torch.int64)}

    def decode_action(
        self, action_pred: torch.Tensor | np.ndarray, tag: Tag, states: Arrays | None = None
    ) -> dict[str, np.ndarray]:
        """The model's actions (B, H, D) to {group: (B, horizon of the embodiment, dim)} in robot units.

        `states` (B, T, dim) are those the actions start from; both may be without B. The result is float64, of
        standardised groups float32.
        """
        return self.state_action.decode_action(np.asarray(as_numpy(action_pred)), states, tag)

    def _encode_images(self, images: Arrays, tag: Tag, augmentation: Augmentation | None) -> np.ndarray:
        config = self.modality_config(tag)["video"]
        frames = len(config.delta_indices)
        for view in config.modality_keys:
            shape = np.shape(look_up(images, view, f'{tag} video: the view "{view}" is missing.'))
            if len(shape) != 4 or shape[0] != frames:
                raise ToolkitError(
                    f'{tag} video "{view}": expected {frames} frame(s) as (T, H, W, 3), one per delta index '
                    f"{config.delta_indices}, not {shape}."
                )
        limits, found = self.vlm.limits, []
        for frame in (images[view][t] for t in range(frames) for view in config.modality_keys):
            square = self.images.train(frame, augmentation) if augmentation else self.images.eval(frame)
            found.append(vlm_resize(square, limits.min_pixels, limits.max_pixels, FACTOR))
        return np.stack(found)

    def _encode_action(self, step: Step, tag: str) -> tuple[np.ndarray, np.ndarray]:
        horizon, dim = self.state_action.horizon(tag), self.state_action.dim(tag, "action")
        assert step.actions is not None
        valid = np.ones(horizon, dtype=bool) if step.action_valid is None else np.asarray(step.action_valid, bool)
        if valid.shape != (horizon,) or not valid.any():
            raise ToolkitError(
                f"{tag} action_valid: expected {horizon} booleans with at least one True, not {valid.tolist()}."
            )
        # What stands past the end may be anything, even NaN: a real step takes its place until it is zeroed.
        rows = np.where(valid, np.arange(horizon), np.argmax(valid))
        actions = {k: a[rows] if len(a) == horizon else a for k, a in step.actions.items()}
        action = self.state_action.encode_action(actions, step.states, tag) * valid[:, None]
        mask = np.broadcast_to(valid[:, None], (horizon, dim)).astype(np.float32)
        height, width = self.config.max_action_horizon, self.config.max_action_dim
        return _pad(action, height, width, f"{tag} action"), _pad(mask, height, width, f"{tag} action")


def _pad(array: np.ndarray, rows: int, columns: int, where: str) -> np.ndarray:
    """Zeros of (rows, columns) with the array in the top left corner, float32."""
    if array.shape[0] > rows or array.shape[1] > columns:
        raise ToolkitError(f"{where}: {array.shape} does not fit into the checkpoint's ({rows}, {columns}).")
    padded = np.zeros((rows, columns), dtype=np.float32)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def read_observation(
    observation: Mapping[str, Any], configs: ModalityConfigs, state_dims: Mapping[str, int]
) -> list[Step]:
    """The B samples of an observation of one embodiment, whose state groups have the dimensions `state_dims`.

    Flat: {"video.<view>": ..., "state.<group>": ..., "<language key>": ...}; nested, as NVIDIA's client sends it:
    {"video": {view: ...}, "state": {group: ...}, "language": {key: ...}}. numpy or torch: video (B, T, H, W, 3) uint8
    RGB; state (B, T, D) of any float type; language B instructions as a list or array of str, each possibly in a list
    of its own, or one plain str where B = 1. The leading batch size is written out for B = 1 too, since (T, H, W, 3)
    and (B, H, W, 3) look alike. Raises ToolkitError with what was expected and what was found, for values as well (NaN,
    float images, empty instructions).
    """
    video, state, language = configs["video"], configs["state"], configs["language"].modality_keys[0]
    names = [f"video.{k}" for k in video.modality_keys] + [f"state.{k}" for k in state.modality_keys] + [language]
    values = flattened(observation)
    _check_names(values, names)
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


def _check_names(flat: Mapping[str, Any], wanted: list[str]) -> None:
    unknown = [name for name in flat if name not in wanted]
    for name in wanted:
        if name not in flat:
            given = f" Given: {', '.join(flat)}." if flat else ""
            raise ToolkitError(f'The observation lacks "{name}".{did_you_mean(name, unknown) or given}')
    if unknown:
        raise ToolkitError(
            f'The observation has "{unknown[0]}", which this policy does not read; it reads {", ".join(wanted)}. '
            "Take it out."
        )


def _array(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(as_numpy(value))
    except ValueError as error:
        raise ToolkitError(f"{name}: no regular array ({error}).") from None
    if array.dtype.kind not in "buif":
        raise ToolkitError(f"{name}: expected an array of numbers, found {type(value).__name__} of {array.dtype}.")
    return array


def _video(value: Any, name: str, config: ModalityConfig) -> np.ndarray:
    """(B, T, H, W, 3) uint8."""
    array, frames = _array(value, name), len(config.delta_indices)
    channels = "Move the channels last." if array.shape[2:3] == (3,) else "Give RGB without an alpha channel."
    values = "Give the camera's own values, 0 to 255, as uint8."
    if array.dtype.kind == "f":
        values = "Images in [0, 1] become so by (image * 255).round().astype(np.uint8)."
    _refuse(
        f"{name}: expected (B, {frames}, H, W, 3) uint8, found {array.shape} {array.dtype}.",
        (array.ndim != 5, "Add the leading sizes: image[None, None] for one frame of one robot."),
        (array.shape[4:] != (3,), channels),
        (array.dtype != np.uint8, values),
        *_wrong_sizes(array, config),
    )
    return array


def _state(value: Any, name: str, config: ModalityConfig, dim: int) -> np.ndarray:
    """(B, T, D) float32, all finite."""
    array, frames = _array(value, name), len(config.delta_indices)
    _refuse(
        f"{name}: expected (B, {frames}, {dim}) float32, found {array.shape} {array.dtype}.",
        (array.ndim != 3, "Add the leading sizes: state[None, None] for one robot."),
        (array.dtype.kind != "f", "States are in the robot's units (rad, m), never whole numbers."),
        (array.shape[2:] != (dim,), f"The checkpoint's statistics of this group have {dim} dimensions."),
        *_wrong_sizes(array, config),
    )
    with np.errstate(over="ignore"):  # what overflows is named below
        converted = array.astype(np.float32)
    if not np.isfinite(converted).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(converted))[0])
        raise ToolkitError(f"{name}: the value {array[place]} at {place} is no finite float32. Mend it at its source.")
    return converted


def _wrong_sizes(array: np.ndarray, config: ModalityConfig) -> list[tuple[bool, str]]:
    hint = f"One frame for each of the delta indices {config.delta_indices}."
    return [(array.shape[1:2] != (len(config.delta_indices),), hint), (array.size == 0, "It is empty.")]


def _refuse(expected: str, *problems: tuple[bool, str]) -> None:
    """Raise what was expected with the hint of the first problem there is."""
    for found, hint in problems:
        if found:
            raise ToolkitError(f"{expected} {hint}")


def _instructions(value: Any, name: str) -> list[str]:
    """B instructions, each with at least one letter or digit."""
    texts = instructions(value, name)
    for text in texts:
        if not any(letter.isalnum() for letter in text):
            raise ToolkitError(f'{name}: the instruction "{text}" is empty. Say what the robot is to do.')
    return texts


AutoProcessor.register(Gr00tN1d7Config, Gr00tN1d7Processor, exist_ok=True)
