"""The policy: observations of a robot in, action chunks in the robot's units out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gr00t.data.processor import NO_INSTRUCTION, Gr00tN1d7Processor, Step, read_observation
from gr00t.data.schema import (
    MODALITIES,
    ActionConfig,
    EmbodimentTag,
    ModalityConfig,
    ModalityConfigs,
    check_modality_configs,
)
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import parsing
from gr00t.model.checkpoint_folder import resolve_folder
from gr00t.model.device import compile_for_acting
from gr00t.model.finished_checkpoint import check_fit, verify_manifest
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import read_config


class GR00TPolicy(nn.Module):
    """One embodiment of a GR00T N1.7 checkpoint, ready to act. A module, so that .eval(), .cuda() and .to() chain.

    Attributes: model; processor; tag (str); modality_configs (this embodiment's four); denoising_steps; guidance.
    """

    def __init__(
        self,
        model: Gr00tN1d7,
        processor: Gr00tN1d7Processor,
        embodiment_tag: EmbodimentTag | str = EmbodimentTag.NEW_EMBODIMENT,
        modality_config: ModalityConfigs | None = None,
        denoising_steps: int | None = None,
        guidance: float = 1.0,
    ) -> None:
        """Raises ToolkitError where the checkpoint has no such embodiment or another modality config of it.

        modality_config: what the robot's side believes, compared with the checkpoint's; None takes the checkpoint's.
        denoising_steps: Euler steps of an action chunk; None takes the checkpoint's. guidance: how far the actions
        follow the instruction: 1 as trained, 0 as without an instruction, more than 1 beyond what was trained, for
        checkpoints trained with augment.instruction_dropout (see ActionHead.sample).
        """
        super().__init__()
        self.model, self.processor = model, processor
        self.tag = find_tag(processor, embodiment_tag)
        self.modality_configs = processor.modality_config(self.tag)
        if modality_config is not None:
            check_same_modalities(modality_config, self.modality_configs, self.tag)
        own_steps = model.config.num_inference_timesteps
        self.denoising_steps = _check_steps(own_steps if denoising_steps is None else denoising_steps)
        self.guidance = check_guidance(guidance)
        self._state_dims = {group.name: group.dim for group in processor.state_action.groups(self.tag, "state")}
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        modality_config: ModalityConfigs | None = None,
        embodiment_tag: EmbodimentTag | str = EmbodimentTag.NEW_EMBODIMENT,
        denoising_steps: int | None = None,
        torch_dtype: torch.dtype | str | None = None,
        verify: bool = False,
        guidance: float = 1.0,
    ) -> GR00TPolicy:
        """Load a checkpoint folder (or hub id) onto the CPU; `.cuda()` moves it.

        torch_dtype: of all weights, torch.bfloat16 or torch.float32; None keeps the stored one. verify: compare every
        file with the checkpoint's manifest first, which reads them all. Everything else is as in the constructor, and
        is checked before the weights are read.
        """
        folder = resolve_folder(path)
        if verify:
            verify_manifest(folder)
        check_guidance(guidance)
        _check_steps(1 if denoising_steps is None else denoising_steps)
        read_config(folder)  # refuses another generation's checkpoint by name
        processor = Gr00tN1d7Processor.from_pretrained(folder)
        tag = find_tag(processor, embodiment_tag)
        if modality_config is not None:
            check_same_modalities(modality_config, processor.modality_config(tag), tag)
        with parsing(folder / "statistics.json"):
            for modality in ("state", "action"):
                processor.state_action.groups(tag, modality)
        model = Gr00tN1d7.from_pretrained(folder, dtype=torch_dtype)
        check_fit(processor, model, folder, tag)
        dtypes = sorted({str(p.dtype) for p in model.parameters()})
        if len(dtypes) > 1:
            found = ", ".join(dtypes)
            raise ToolkitError(f"{folder} stores weights of several types ({found}): give torch_dtype=torch.bfloat16.")
        return cls(model, processor, tag, modality_config, denoising_steps, guidance)

    def compile_head(self, mode: str | None = None) -> GR00TPolicy:
        """Compile the action head (torch.compile; `mode` is its own), for shorter waits on the same actions up to
        rounding. Call it on the final device; the first action then takes a minute or more.

        Raises ToolkitError where a compiler is missing.
        """
        compile_for_acting(self.model.action_head, mode)
        return self

    def train(self, mode: bool = True) -> GR00TPolicy:
        """Stays in eval mode whatever is asked: dropout would only make the robot shake."""
        super().train(False)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(horizon of the checkpoint, max_action_dim): the noise of one sample."""
        return self.model.config.action_horizon, self.model.config.max_action_dim

    def get_action(
        self,
        observation: Mapping[str, Any],
        *,
        denoising_steps: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        drop_state: bool = False,
    ) -> dict[str, np.ndarray]:
        """Action chunks for a batch of observations: {"action.<group>": (B, horizon, D) float32} in robot units.

        The observation is flat or nested (read_observation), each value with its batch size. The noise is
        `noise` (B, *noise_shape), or drawn from `seed`, from `generator` (on the CPU), or else from PyTorch's own
        state; a seed gives the same noise on every device, and a list of seeds gives each sample the noise it would get
        alone. `drop_state` hides the state from the model, as state dropout in training does; relative actions still
        start from it. Each sample gets the actions it would get alone. Raises ToolkitError for anything but what is
        expected.
        """
        steps = read_observation(observation, self.modality_configs, self._state_dims)
        actions = self.predict(
            steps,
            denoising_steps=denoising_steps,
            seed=seed,
            generator=generator,
            noise=noise,
            drop_state=drop_state,
        )
        return {f"action.{group}": values.astype(np.float32) for group, values in actions.items()}

    forward = get_action

    @torch.inference_mode()
    def predict(
        self,
        steps: Sequence[Step],
        *,
        denoising_steps: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        drop_state: bool = False,
    ) -> dict[str, np.ndarray]:
        """Action chunks {group: (B, horizon, D)} for steps as a dataset gives them; options as in `get_action`."""
        if not isinstance(drop_state, bool | np.bool_):
            raise ToolkitError(f"drop_state is True or False, not {drop_state!r}.")
        if sum(given is not None for given in (seed, generator, noise)) > 1:
            raise ToolkitError("Give one of seed, generator and noise: each decides the noise alone.")
        if noise is not None and not isinstance(noise, Tensor):
            raise ToolkitError(f"noise must be a torch tensor, not {type(noise).__name__}.")
        if noise is not None and tuple(noise.shape) != (len(steps), *self.noise_shape):
            expected = (len(steps), *self.noise_shape)
            raise ToolkitError(f"noise: expected the shape {expected}, found {tuple(noise.shape)}.")
        if isinstance(seed, Sequence):
            if len(seed) != len(steps):
                raise ToolkitError(
                    f"seed: {len(seed)} seeds for {len(steps)} samples. Give one a sample, or one for all."
                )
            dtype = self.model.dtype
            noise = torch.stack([torch.randn(self.noise_shape, generator=_seeded(own), dtype=dtype) for own in seed])
        elif seed is not None:
            generator = _seeded(seed)
        asked = list(steps) if self.guidance == 1 else [*steps, *without_instructions(steps)]
        samples = [self.processor.encode(step, self.tag, drop_state=drop_state) for step in asked]
        predicted = self.model.get_action(
            {name: value.to(self.device) for name, value in self.processor.collate(samples).items()},
            denoising_steps=_check_steps(self.denoising_steps if denoising_steps is None else denoising_steps),
            generator=generator,
            noise=noise,
            guidance=self.guidance,
        )
        return in_robot_units(predicted, self.processor, self.tag, steps)


def in_robot_units(
    predicted: Tensor, processor: Gr00tN1d7Processor, tag: str, steps: Sequence[Step]
) -> dict[str, np.ndarray]:
    """Chunks {group: (B, horizon, D)} of what was predicted for these steps; NaN and infinite values are refused."""
    states = {group: np.stack([step.states[group] for step in steps]) for group in steps[0].states}
    actions = processor.decode_action(predicted, tag, states)
    for group, values in actions.items():
        if not np.isfinite(values).all():
            raise ToolkitError(
                f'The model\'s "{group}" actions are not finite (computed in {predicted.dtype}): do not run them. '
                "Try torch_dtype=torch.float32; if they stay so, the checkpoint's weights are broken."
            )
    return actions


def _seeded(seed: int) -> torch.Generator:
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ToolkitError(f"seed must be a whole number, not {seed!r}.")
    if not -(2**63) <= seed < 2**64:
        raise ToolkitError(f"seed={seed} has more than 64 bits, which PyTorch's generators do not take.")
    return torch.Generator().manual_seed(int(seed))


def _check_steps(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ToolkitError(f"denoising_steps must be a whole number of at least 1, not {steps!r}.")
    return int(steps)


def without_instructions(steps: Sequence[Step]) -> list[Step]:
    """Copies of the steps without an instruction: the second, unconditional half of a guided batch."""
    return [replace(step, text=NO_INSTRUCTION) for step in steps]


def check_guidance(guidance: float) -> float:
    """Refuse what is no number, NaN, infinite or negative."""
    number = isinstance(guidance, Real) and not isinstance(guidance, bool)
    if not number or not 0 <= guidance < math.inf:
        raise ToolkitError(
            f"guidance={guidance!r}: expected a number of at least 0: 1 acts as trained, more follows the instruction "
            "further."
        )
    return float(guidance)


def find_tag(processor: Gr00tN1d7Processor, tag: EmbodimentTag | str) -> str:
    """The tag's name in the checkpoint, which must have both its modality config and its statistics."""
    ready = [name for name in processor.config.modality_configs if name in processor.files.statistics]
    name = str(tag)
    if name not in ready:
        name = EmbodimentTag.parse(tag).value
    if name not in ready:
        lacks = "statistics" if name in processor.config.modality_configs else "modality config"
        hint = did_you_mean(name, ready).replace("Known:", "It has:")
        raise ToolkitError(
            f'{processor.place} has no {lacks} of the embodiment "{name}", so it cannot act as one.{hint} '
            "Fine-tune on that robot's data first, or give another embodiment_tag."
        )
    lacking = [modality for modality in MODALITIES if modality not in processor.modality_config(name)]
    lacking += [] if name in processor.embodiment_ids else ["index in embodiment_id.json"]
    if lacking:
        raise ToolkitError(
            f'{processor.place} has no {lacking[0]} for the embodiment "{name}", so it cannot act as one. Copy '
            "the JSON files of its processor again."
        )
    return name


def check_same_modalities(given: ModalityConfigs, found: ModalityConfigs, tag: str) -> None:
    """Refuse a modality config that differs from the checkpoint's, naming every difference."""
    check_modality_configs(given)
    differences = []
    for modality, config in found.items():
        ours, theirs = _comparable(given[modality]), _comparable(config)
        differences += [
            f"{modality}.{name}: the checkpoint has {theirs[name]}, MODALITY_CONFIG has {ours[name]}"
            for name in theirs
            if ours[name] != theirs[name]
        ]
    if differences:
        listed = "\n  ".join(differences)
        raise ToolkitError(
            f'MODALITY_CONFIG is not what this checkpoint was trained with for "{tag}":\n  {listed}\n'
            "Give the one it was trained with, or modality_config=None to take the checkpoint's own."
        )


def _comparable(config: ModalityConfig) -> dict[str, Any]:
    """What robot and policy must agree on, with defaults filled in, so that two spellings of one meaning are equal.

    Normalisation (sin/cos, mean/std) is left out: it is the checkpoint's own, and a robot never sees it.
    """
    return {
        "modality_keys": config.modality_keys,
        "delta_indices": _short(config.delta_indices),
        "action_configs": [_representation(key, action) for key, action in config.actions],
    }


def _representation(key: str, config: ActionConfig) -> str:
    relative_to = f" to {config.state_key or key}" if config.rep.name == "RELATIVE" else ""
    form = f", {config.type.name}, {config.format.name}" if config.type.name == "EEF" else ""
    return f"{key} {config.rep.name}{relative_to}{form}"


def _short(indices: list[int]) -> str:
    """Delta indices as text: 0..15 (16 steps) for a run, else the list."""
    if len(indices) > 3 and indices == list(range(indices[0], indices[-1] + 1)):
        return f"{indices[0]}..{indices[-1]} ({len(indices)} steps)"
    return str(indices)
