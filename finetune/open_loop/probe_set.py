"""Cue probes: pairs of first frames that differ in one thing, and which object a policy's action chunk heads for.

A set is made once by `python -m simulation.probes`; reading it and measuring with it need no simulator.

*Heads for*: of the scene's objects, the one toward which the expert's own first motion points most nearly as the
policy's does (both from where the arm stands, all steps of the chunk and joints as one vector). Where the policy comes
less than LEAST of the way with the expert, toward any of them, it is *undecided*.
*Sensitivity* to what was changed: the share of pairs in whose two scenes, under the same noise, the policy heads for
two different objects; an object is what keeps all its other values.
*Target*: the share of first scenes in which the cues agree and it heads for the object that fits.
*Preference*: of the conflict scenes in which it heads for target or lure, the share of the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data_prep.lerobot import GROUPS
from finetune.open_loop.predictions import predicted_actions
from finetune.recipe.train_config import PROBES, PROBES_AGAIN, PROBES_FORMAT, read_probe_facts
from gr00t.data.processor import Gr00tN1d7Processor, Step
from gr00t.data.sampler import Stream, generator
from gr00t.data.schema import ModalityConfigs
from gr00t.data.stored_arrays import KEYS
from gr00t.errors import ToolkitError
from gr00t.file_reading import parsing
from gr00t.file_replacement import open_to_others, unsound, whole_folder, write_checksum, write_json
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

ARRAYS = "probes.safetensors"
ARM = "arm"  # the action group whose targets are compared
LEAST = 0.2
PREFIX = "probes/"  # of what is logged


@dataclass(frozen=True)
class Probe:
    """A scene. change: what differs from the scene of index `first`; None for one that is itself the first. target: the
    index of the object that fits, other: of the one that takes part beside it, in `conflict` the lure. scene: what lies
    there, as the suites describe it."""

    change: str | None
    first: int
    conflict: bool
    instruction: str
    target: int
    other: int
    scene: dict[str, Any]


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """N scenes of a split.

    images: by camera, (N, H, W, 3) uint8 RGB. states (N, 8) float32, as datasets hold them. toward (N, K, T, 7)
    float32: the expert's first joint targets (rad) toward each object, NaN where a scene has fewer than K.
    """

    split: str
    probes: Sequence[Probe]
    images: dict[str, np.ndarray]
    states: np.ndarray
    toward: np.ndarray

    def write(self, folder: Path, facts: dict[str, Any]) -> None:
        """The set and what else is to be said of it, as a folder that appears whole."""
        with whole_folder(folder) as aside:
            arrays = {**self.images, "states": self.states, "toward": self.toward}
            save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, aside / ARRAYS)
            open_to_others(aside / ARRAYS)
            described = [asdict(probe) for probe in self.probes]
            write_json(aside / PROBES, {"format": PROBES_FORMAT, "split": self.split, **facts, "probes": described})
            for name in (ARRAYS, PROBES):
                write_checksum(aside / name, "probes")

    @classmethod
    def read(cls, folder: Path) -> ProbeSet:
        """The set in a folder; one that is missing, damaged or of another format raises ToolkitError."""
        found, files = read_probe_facts(folder), [folder / ARRAYS, folder / PROBES]
        damaged = sorted(path.name for path in unsound(files, "probes"))
        if damaged:
            raise ToolkitError(f"{folder}: {damaged[0]} is damaged or not as it was written. {PROBES_AGAIN}")
        try:
            arrays = load_file(files[0])
        except (SafetensorError, OSError) as error:
            raise ToolkitError(f"{files[0]} cannot be read ({error}). {PROBES_AGAIN}") from None
        with parsing(files[1], PROBES_AGAIN):
            probes = [Probe(**each) for each in found["probes"]]
            states, toward = arrays.pop("states"), arrays.pop("toward")
            if {len(probes)} != {len(values) for values in (states, toward, *arrays.values())}:
                raise ValueError("its scenes are not as many as those of its arrays")
            return cls(str(found["split"]), probes, arrays, states, toward)

    def check_robot(self, configs: ModalityConfigs, height: int | None = None) -> None:
        """Refuse a robot other than the simulated Panda, and images that are not as high (pixels) as the dataset's."""
        for modality, names in (("video", list(self.images)), ("state", list(GROUPS))):
            config = configs[modality]
            if not set(config.modality_keys) <= set(names) or config.delta_indices != [0]:
                raise ToolkitError(
                    f"train.probes: the policy's {modality} is {', '.join(config.modality_keys)} at the frames "
                    f"{config.delta_indices}, but that of probes {', '.join(names)} at [0]. Leave train.probes out."
                )
        if ARM not in configs["action"].modality_keys:
            raise ToolkitError(f'train.probes: the policy has no action "{ARM}" (7 joint targets). Leave it out.')
        high = min(len(images[0]) for images in self.images.values())
        if height not in (None, high):
            raise ToolkitError(
                f"train.probes: its images are {high} pixels high, the dataset's {height}. Make probes of that size: "
                f"python -m simulation.probes split={self.split} image_size={height} out=FOLDER"
            )

    def step(self, index: int, configs: ModalityConfigs) -> Step:
        """What a policy is shown of a scene."""
        here = slice(index, index + 1)
        state = {name: self.states[here, slice(*GROUPS[name].values())] for name in configs["state"].modality_keys}
        images = {name: self.images[name][here] for name in configs["video"].modality_keys}
        return Step(images, state, self.probes[index].instruction)

    def headings(self, chunks: np.ndarray) -> np.ndarray:
        """(N,) int64: the index of the object that each chunk (N, H, 7), joint targets (rad), heads for; -1: none."""
        steps = min(chunks.shape[1], self.toward.shape[2])
        here = self.states[:, None, :7].astype(np.float64)
        moved = (chunks[:, :steps] - here).reshape(len(here), 1, -1)  # (N, 1, steps x 7)
        ways = (self.toward[:, :, :steps] - here[:, None]).reshape(len(here), self.toward.shape[1], -1)
        along = (moved * ways).sum(-1) / np.linalg.norm(ways, axis=-1)  # (N, K): rad, NaN where there is no object
        nearest = np.nanargmax(along, axis=1)
        row = np.arange(len(here))
        decided = along[row, nearest] >= LEAST * np.linalg.norm(ways, axis=-1)[row, nearest]
        return np.where(decided, nearest, -1)

    def measures(self, headings: np.ndarray) -> dict[str, float]:
        """Of the headings (N,), by name: "probes/sensitivity_<change>", and "probes/heads_for_target", "..._none" (the
        policy is undecided) and "..._target_not_lure" (the preference, where there is one)."""
        found = dict[str, float]()
        changes = np.array([probe.change or "" for probe in self.probes])
        conflict, target = (np.array([getattr(p, name) for p in self.probes]) for name in ("conflict", "target"))
        before = headings[[probe.first for probe in self.probes]]
        flipped = (headings != before) & (headings >= 0) & (before >= 0)
        for change in dict.fromkeys(changes[changes != ""].tolist()):
            found[f"{PREFIX}sensitivity_{change}"] = float(flipped[changes == change].mean())
        first = changes == ""
        found[f"{PREFIX}heads_for_target"] = float((headings == target)[first & ~conflict].mean())
        lure = np.array([probe.other for probe in self.probes])
        by_cue = first & conflict & ((headings == target) | (headings == lure))
        if by_cue.any():
            found[f"{PREFIX}heads_for_target_not_lure"] = float((headings == target)[by_cue].mean())
        return found | {f"{PREFIX}heads_for_none": float((headings < 0).mean())}


@dataclass(eq=False)
class ProbePredictor:
    """Asks a model, as it is now, for its chunks in every scene; both scenes of a pair from the same noise."""

    probes: ProbeSet
    processor: Gr00tN1d7Processor
    tag: str
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        configs, every = self.processor.modality_config(self.tag), range(len(self.probes.probes))
        self._batches = [every[first : first + self.batch_size] for first in every[:: self.batch_size]]
        self._steps = [self.probes.step(index, configs) for index in every]
        self._features: list[dict[str, torch.Tensor]] | None = None

    @torch.no_grad()
    def keep_features(self, model: Gr00tN1d7) -> None:
        """Run the frozen backbone over every scene now, for it will be gone: what it gives is kept in memory."""
        device, kept = next(model.backbone.parameters()).device, []
        for batch in self._batches:
            inputs = self.processor.collate_vlm([self.processor.encode_vlm(self._steps[i], self.tag) for i in batch])
            output = model.features({name: tensor.to(device) for name, tensor in inputs.items()})
            kept.append({name: getattr(output, name).cpu() for name in KEYS})
        self._features = kept

    def measure(self, model: Gr00tN1d7, proceed: Callable[[int], bool] = lambda _: True) -> dict[str, float] | None:
        """ProbeSet.measures of the model; None where `proceed`, asked before each batch, says to stop."""
        chunks = []
        for number, batch in enumerate(self._batches):
            if not proceed(batch[0]):
                return None
            chunks.append(self.chunks(model, number))
        return self.probes.measures(self.probes.headings(np.concatenate(chunks)))

    def chunks(self, model: Gr00tN1d7, number: int) -> np.ndarray:
        """The joint targets (B, H, 7), rad, in the scenes of one batch."""
        batch, processor = self._batches[number], self.processor
        steps = [self._steps[index] for index in batch]
        if self._features is None:
            inputs = processor.collate([processor.encode(step, self.tag) for step in steps])
        else:
            inputs = processor.collate_robot([processor.encode_robot(step, self.tag) for step in steps])
            inputs |= self._features[number]
        noise = [generator(self.seed, Stream.NOISE, self.probes.probes[index].first, 0) for index in batch]
        return predicted_actions(model, processor, self.tag, inputs, steps, noise)[ARM]
