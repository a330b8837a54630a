"""One processor for training and inference: robot observations to model inputs, model outputs to robot actions."""

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

from gr00t.data.images import Augmentation, ImageTransform, grid_thw, vlm_resize
from gr00t.data.processor_files import (
    ProcessorConfig,
    ProcessorFiles,
    VlmTokenizer,
    default_projector_index,
    find_vlm_folder,
    formalize,
    read_processor_files,
    write_processor_files,
)
from gr00t.data.schema import EmbodimentTag, ModalityConfigs, check_modality_configs
from gr00t.data.state_action import StateActionProcessor
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.model.config import Gr00tN1d7Config

log = logging.getLogger(__name__)


@dataclass
class Step:
    """One moment of one robot, in robot units.

    images {view: (T, H, W, 3) uint8 RGB}, states {group: (T, D) float32}, the instruction, and for training
    actions {group: (H, D) float32} with `action_valid` (H,) bool: False where the episode has ended.
    """

    images: Mapping[str, np.ndarray]
    states: Mapping[str, np.ndarray]
    text: str
    actions: Mapping[str, np.ndarray] | None = None
    action_valid: np.ndarray | None = None


class Gr00tN1d7Processor:
    """Images, language, state and action of every embodiment of a checkpoint. (original: Gr00tN1d7Processor)"""

    def __init__(self, files: ProcessorFiles, vlm: VlmTokenizer) -> None:
        self.files = files
        self.vlm = vlm
        config = files.config
        self.images = ImageTransform(
            shortest_image_edge=config.shortest_image_edge,
            crop_fraction=config.crop_fraction,
            image_crop_size=config.image_crop_size,
            image_target_size=config.image_target_size,
            random_rotation_angle=config.random_rotation_angle,
            color_jitter_params=config.color_jitter_params,
        )
        self.state_action = StateActionProcessor(
            config.modality_configs,
            files.statistics,
            use_percentiles=config.use_percentiles,
            clip_outliers=config.clip_outliers,
            apply_sincos_state_encoding=config.apply_sincos_state_encoding,
            use_relative_action=config.use_relative_action,
        )
        if not config.use_albumentations:
            log.warning(
                "use_albumentations is off in processor_config.json: the original then resizes with torchvision; "
                "here OpenCV is used all the same, which changes pixels slightly."
            )

    @property
    def config(self) -> ProcessorConfig:
        """The processor_kwargs of the checkpoint."""
        return self.files.config

    @property
    def embodiment_ids(self) -> dict[str, int]:
        """Projector index of every tag."""
        return self.files.embodiment_ids

    @classmethod
    def from_pretrained(cls, path: str | Path, vlm_path: str | Path | None = None, **_auto: Any) -> Gr00tN1d7Processor:
        """Load from a local checkpoint folder; the network is never used.

        The tokenizer comes from `vlm_path`, else from where `find_vlm_folder` looks. Further keywords, which
        transformers' AutoProcessor passes, have no effect. Raises ToolkitError when something is missing.
        """
        files = read_processor_files(path)
        folder = Path(vlm_path) if vlm_path is not None else find_vlm_folder(path, files.config.model_name)
        return cls(files, VlmTokenizer(folder))

    def save_pretrained(self, path: str | Path, **_auto: Any) -> None:
        """Write the three JSONs at the root and in processor/, the tokenizer's files in processor/vlm/."""
        write_processor_files(path, self.files)
        self.vlm.save(Path(path) / "processor" / "vlm")

    def with_embodiment(
        self, tag: EmbodimentTag | str, modality_configs: ModalityConfigs, statistics: Mapping[str, Any]
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

    def modality_config(self, tag: EmbodimentTag | str) -> ModalityConfigs:
        """The modality config of a tag; one the checkpoint does not have raises with the nearest name."""
        name = str(tag)
        if name not in self.config.modality_configs:
            raise ToolkitError(
                f'The checkpoint does not know the embodiment "{name}".'
                f"{did_you_mean(name, self.config.modality_configs)} A new robot needs its modality config and "
                f'statistics: fine-tune it under "{EmbodimentTag.NEW_EMBODIMENT.value}".'
            )
        return self.config.modality_configs[name]

    def encode(
        self,
        step: Step,
        tag: EmbodimentTag | str,
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
        return {
            **self.encode_vlm(step, tag, augmentation=augmentation),
            **self.encode_robot(step, tag, drop_state=drop_state),
        }

    def encode_vlm(
        self, step: Step, tag: EmbodimentTag | str, *, augmentation: Augmentation | None = None
    ) -> dict[str, Any]:
        """The part of `encode` that the backbone reads: images and text."""
        images = self._encode_images(step.images, str(tag), augmentation)
        return {"images": images, "text": self.encode_text(step.text, len(images))}

    def encode_text(self, text: str, images: int) -> str:
        """An instruction in the chat form, with room for that many images."""
        if not isinstance(text, str):
            raise ToolkitError(f"The instruction must be one string, not {type(text).__name__}.")
        return self.vlm.chat_text(formalize(text) if self.config.formalize_language else text, images)

    def encode_robot(self, step: Step, tag: EmbodimentTag | str, *, drop_state: bool = False) -> dict[str, Any]:
        """The part of `encode` that the head reads: state, embodiment_id, and the actions where there are some."""
        name = str(tag)
        self.modality_config(name)
        state = self.state_action.encode_state(step.states, name)
        if drop_state or self.config.exclude_state:
            state = np.zeros_like(state)
        sample = {
            "state": _pad(state, len(state), self.config.max_state_dim, f"{name} state"),
            "embodiment_id": self.embodiment_ids[name],
        }
        if step.actions is not None:
            sample["action"], sample["action_mask"] = self._encode_action(step, name)
        return sample

    def collate(self, samples: Sequence[Mapping[str, Any]], *, length: int | None = None) -> dict[str, torch.Tensor]:
        """Samples of `encode` to one batch of CPU tensors: those of `collate_vlm` and `collate_robot`."""
        return {**self.collate_vlm(samples, length=length), **self.collate_robot(samples)}

    def collate_vlm(
        self, samples: Sequence[Mapping[str, Any]], *, length: int | None = None
    ) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask int64 (B, L), padded on the left to the longest or to `length`; image_grid_thw
        int64 (N, 3); images uint8 (N, S, S, 3), all samples' in order, of which the model makes pixel_values."""
        input_ids, attention_mask = self.tokenize(samples, length=length)
        images = torch.from_numpy(np.concatenate([s["images"] for s in samples]))
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "images": images,
            "image_grid_thw": grid_thw(images),
        }

    def tokenize(
        self, samples: Sequence[Mapping[str, Any]], *, length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask as in `collate_vlm`."""
        factor = self.vlm.limits.factor
        tokens = [[i.shape[0] // factor * (i.shape[1] // factor) for i in s["images"]] for s in samples]
        return self.vlm.encode([s["text"] for s in samples], tokens, length)

    def collate_robot(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """state float32 (B, T, Ds); embodiment_id int64 (B,); with actions also action and mask, float32 (B, H, Da)."""
        batch = {
            "state": torch.from_numpy(np.stack([s["state"] for s in samples])),
            "embodiment_id": torch.tensor([s["embodiment_id"] for s in samples], dtype=torch.int64),
        }
        for key in ("action", "action_mask"):
            if key in samples[0]:
                batch[key] = torch.from_numpy(np.stack([s[key] for s in samples]))
        return batch

    def decode_action(
        self,
        action_pred: torch.Tensor | np.ndarray,
        tag: EmbodimentTag | str,
        states: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """The model's actions (B, H, D) to {group: (B, horizon of the embodiment, dim)} in robot units.

        `states` (B, T, dim) are those the actions start from; both may be without B. The result is float64, of
        standardised groups float32.
        """
        self.modality_config(tag)
        if isinstance(action_pred, torch.Tensor):
            action_pred = action_pred.detach().float().cpu().numpy()
        return self.state_action.decode_action(action_pred, states, str(tag))

    def _encode_images(
        self, images: Mapping[str, np.ndarray], tag: str, augmentation: Augmentation | None
    ) -> np.ndarray:
        config = self.modality_config(tag)["video"]
        frames = len(config.delta_indices)
        for view in config.modality_keys:
            if view not in images:
                raise ToolkitError(f'{tag} video: the view "{view}" is missing.{did_you_mean(view, images)}')
            if np.ndim(images[view]) != 4 or len(images[view]) != frames:
                raise ToolkitError(
                    f'{tag} video "{view}": expected {frames} frame(s) as (T, H, W, 3), one per delta index '
                    f"{config.delta_indices}, not {np.shape(images[view])}."
                )
        limits = self.vlm.limits
        out = []
        for t in range(frames):
            for view in config.modality_keys:
                frame = images[view][t]
                square = self.images.train(frame, augmentation) if augmentation else self.images.eval(frame)
                out.append(vlm_resize(square, limits.min_pixels, limits.max_pixels, limits.factor))
        return np.stack(out)

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


AutoProcessor.register(Gr00tN1d7Config, Gr00tN1d7Processor, exist_ok=True)
