"""Training samples of one dataset, or of a mixture of datasets of one robot that are drawn by their weights, and the
statistics that training normalises with: those a dataset carries, and what it lacks computed and kept.

GR00T-flavoured datasets (v2.x) carry meta/stats.json and meta/relative_stats.json. LeRobot's own carry others: of all
episodes, without or with approximate percentiles, nothing relative. Theirs are left aside."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gr00t.data.frame_tables import cache_folder
from gr00t.data.images import Augmentation
from gr00t.data.layout import V3, DatasetLayout
from gr00t.data.processor import NO_INSTRUCTION, Gr00tN1d7Processor, Step
from gr00t.data.sampler import SampleKey, Stream, generator
from gr00t.data.schema import ModalityConfigs, to_json
from gr00t.data.statistics import (
    Statistics,
    Tail,
    merge_statistics,
    relative_settings,
    start_frames,
    to_processor_statistics,
)
from gr00t.data.step_reader import StepReader
from gr00t.data.stored_arrays import FeatureStore
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.file_replacement import file_sha256, is_sound, make_once, write_checksum, write_json

FORMAT = 1  # raised when the same data would give other statistics


def training_statistics(reader: StepReader, tail: Tail) -> dict[str, dict[str, Statistics]]:
    """One embodiment's entry of a checkpoint's statistics.json for a dataset: state, action, relative_action.

    What a dataset carries holds for tail=mask. What is computed is over the training episodes, and kept beside the
    Arrow copy of the frame tables. Raises ToolkitError for carried statistics of another horizon or size.
    """
    layout = reader.layout
    recorded = carried(layout, "stats.json")
    relative = None if tail == "drop" else carried_relative(layout, reader.configs)
    if recorded is None or relative is None:
        computed = _computed(reader, tail)
        recorded = computed["columns"] if recorded is None else recorded
        relative = computed["relative"] if relative is None else relative
    where = layout.root / "meta" / "relative_stats.json"
    return to_processor_statistics(recorded, relative, layout.modality, reader.configs, where)


def carried(layout: DatasetLayout, name: str) -> dict[str, Any] | None:
    """A statistics file of the dataset in GR00T's form; None where there is none, or where it counts episodes that are
    left out, so that training computes its own."""
    if layout.version == V3 or layout.trains_fewer or not layout.meta.has(name):
        return None
    found = layout.meta.json(name)
    if name == "stats.json" and not any("q01" in of for of in found.values() if isinstance(of, dict)):
        return None  # LeRobot v2.0 wrote a file of that name, without percentiles
    return found


def carried_relative(layout: DatasetLayout, configs: ModalityConfigs) -> dict[str, Any] | None:
    """The dataset's relative statistics; None as of `carried`, and where meta/split.json says that they are of as many
    action steps at other offsets, which nothing else tells. Another number of steps is refused by its shape."""
    told, wanted = layout.split.get("relative_statistics"), relative_settings(configs)
    if isinstance(told, dict) and told.get("steps") == wanted["steps"]:
        told = {name: value for name, value in told.items() if name in ("steps", "delta_indices", "state_delta_index")}
        if told != wanted:
            return None
    return carried(layout, "relative_stats.json")


def _computed(reader: StepReader, tail: Tail) -> dict[str, Any]:
    """{"columns": as in stats.json, "relative": as in relative_stats.json}, kept in a file named by what decides it."""
    layout = reader.layout
    if not layout.train_episodes:
        raise ToolkitError(f"{layout.root}: every episode is held out of training or left out (meta/split.json).")
    decides = {
        "format": FORMAT,
        "tables": reader.table_digest,
        "episodes": layout.train_episodes,
        "modality": layout.modality,
        "configs": to_json(reader.configs),
        "tail": tail,
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    path = cache_folder(layout.root) / f"statistics-{digest[:16]}.json"

    def make() -> None:
        columns = reader.column_statistics(layout.train_episodes)
        write_json(path, {"columns": columns, "relative": reader.relative_statistics(layout.train_episodes, tail)})
        write_checksum(path, path.stem)

    make_once(path, f"the statistics of {layout.root}", lambda: is_sound(path, path.stem), make)
    return read_json(path)


class Mixture:
    """Datasets behind their readers, and `shares`: the part of the samples that comes from each, of sum 1.

    One dataset is a mixture too, and is trained on exactly as if it stood alone. Raises ToolkitError for datasets that
    are not of one robot: other sizes of a group, another frame rate; and for what is there for evaluation, which is
    never trained on. teaches_conflict: whether the last one holds conflict scenes made for training.
    """

    def __init__(
        self, readers: Sequence[StepReader], weights: Sequence[float] | None = None, *, teaches_conflict: bool = False
    ) -> None:
        self.readers = list(readers)
        chosen = [1.0] * len(self.readers) if weights is None else list(weights)
        if not self.readers or len(chosen) != len(self.readers) or not all(0 < w < float("inf") for w in chosen):
            raise ToolkitError(f"A mixture needs a weight above 0 for each of {len(self.readers)} datasets: {chosen}.")
        self.shares = [weight / sum(chosen) for weight in chosen]
        for number, reader in enumerate(self.readers, start=1):
            _check_part(reader, "train_conflict" if teaches_conflict and number == len(self.readers) else "train")
            _check_like(reader, self.readers[0])

    @property
    def fingerprint(self) -> str:
        """Hash of the datasets' content, in their order; of one dataset its own."""
        return _joined([reader.layout.fingerprint for reader in self.readers])

    @property
    def content(self) -> str:
        """As the fingerprint, of the files as they are now, whatever was recorded (see DatasetLayout)."""
        return _joined([reader.layout.content for reader in self.readers])

    def training_digest(self, digest_of: Callable[[Path], str] = file_sha256) -> str:
        """Hash of what training reads, as it is now, and how often; of one dataset its own (see DatasetLayout)."""
        digests = [reader.layout.training_digest(digest_of) for reader in self.readers]
        return digests[0] if len(digests) == 1 else _joined([*digests, *map(repr, self.shares)])

    def statistics(self, tail: Tail) -> dict[str, dict[str, Statistics]]:
        """One embodiment's entry of a checkpoint's statistics.json, merged by share as the original does."""
        found = [training_statistics(reader, tail) for reader in self.readers]
        return found[0] if len(found) == 1 else merge_statistics(found, self.shares)

    def instructions(self, episodes: Sequence[list[int]]) -> list[str]:
        """Every instruction that occurs in these episodes, a list for each dataset, sorted."""
        return sorted({t for r, chosen in zip(self.readers, episodes, strict=True) for t in r.instructions(chosen)})


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_part(reader: StepReader, wanted: str) -> None:
    part = reader.layout.split.get("part") or wanted
    if part == wanted:
        return
    if part == "train_conflict":
        raise ToolkitError(
            f"{reader.layout.root} holds conflict scenes, which enter training by dataset.conflict_share=0.1 alone. "
            "Take its train part."
        )
    raise ToolkitError(
        f"{reader.layout.root} holds {part} episodes, which are for evaluation and never trained on. Take its {wanted} "
        "part."
    )


def _check_like(reader: StepReader, first: StepReader) -> None:
    here, there = reader.layout, first.layout
    if here.fps != there.fps:
        raise ToolkitError(
            f"{here.root} has {here.fps:g} frames a second, {there.root} {there.fps:g}: an action chunk would mean "
            "two lengths of time. Mix datasets of one rate."
        )
    widths = first.widths()
    for modality, groups in reader.widths().items():
        for group, width in groups.items():
            if width != widths[modality][group]:
                raise ToolkitError(
                    f'{here.root}: {modality} "{group}" has {width} dimensions, {there.root} has '
                    f"{widths[modality][group]}. A mixture is of one robot; train others apart."
                )


@dataclass(frozen=True)
class SampleSettings:
    """What is random in a training sample, and how much.

    state_dropout is applied twice, as the original does: to the normalised state and to the state's features.
    instruction_dropout is the share of samples that have NO_INSTRUCTION.
    views limits a frame to that many augmented views; tail "drop" starts only where the whole horizon is recorded.
    noise_draws is how many times noise and time are drawn for one sample.
    """

    seed: int
    augment: bool = True
    views: int | None = None
    state_dropout: float = 0.0
    instruction_dropout: float = 0.0
    tail: Tail = "mask"
    noise_beta: tuple[float, float] = (1.5, 1.0)
    noise_s: float = 0.999
    noise_draws: int = 1


def _starts(reader: StepReader, episodes: list[int], tail: Tail) -> list[tuple[int, int]]:
    """(episode, frame) of every sample of a dataset."""
    layout, deltas = reader.layout, reader.configs["action"].delta_indices
    found = [(e, frame) for e in episodes for frame in start_frames(layout.episode(e).length, deltas, tail)]
    if not found:
        raise ToolkitError(
            f"{layout.root}: no episode of {len(episodes)} has a start frame with tail={tail}. Record longer episodes "
            "or use dataset.tail=mask."
        )
    return found


class TrainingDataset(Dataset[dict[str, Any]]):
    """Training samples by SampleKey: everything random in one depends only on (seed, step, position).

    A sample is what `Gr00tN1d7Processor.encode` returns, with the draws the model is handed: noise (H, D), time and
    drop_state_features. With a `feature_store`, the backbone's output for the same view takes the place of images and
    text. Prompts are padded to the longest of all datasets, so that every batch has the same shapes.
    """

    def __init__(
        self,
        reader: StepReader | Mixture,
        processor: Gr00tN1d7Processor,
        tag: str,
        settings: SampleSettings,
        episodes: list[int] | None = None,
    ) -> None:
        self.mixture = Mixture([reader]) if isinstance(reader, StepReader) else reader
        self.reader = self.mixture.readers[0]
        self.processor, self.tag, self.settings = processor, tag, settings
        train = [r.layout.train_episodes for r in self.mixture.readers]
        self.episodes = train if episodes is None else [episodes]
        by_source = [
            _starts(*source, settings.tail) for source in zip(self.mixture.readers, self.episodes, strict=True)
        ]
        self.lengths = [len(starts) for starts in by_source]
        self.starts = [(source, *start) for source, starts in enumerate(by_source) for start in starts]
        self.feature_store: FeatureStore | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def start(self, index: int) -> tuple[int, int]:
        """(episode, frame) of a start."""
        return self.starts[index][1:]

    def first_starts(self, frames: int) -> list[list[int]]:
        """For each dataset of the mixture, the starts on the first `frames` frames of episodes, numbered within it."""
        ends = itertools.pairwise(np.cumsum([0, *self.lengths]))
        return [
            [index for index, (*_, frame) in enumerate(self.starts[begin:end]) if frame < frames] for begin, end in ends
        ]

    def step(self, index: int, *, images: bool = True) -> Step:
        """A start as the reader of its dataset gives it."""
        source, episode, frame = self.starts[index]
        return self.mixture.readers[source].step(episode, frame, images=images)

    @cached_property
    def prompts(self) -> np.ndarray:
        """input_ids (P, L) of the dataset's P instructions, their images' tokens included, padded to the longest."""
        images = self.vlm_inputs(0, 0)["images"]
        texts = [*self.mixture.instructions(self.episodes), *([NO_INSTRUCTION] if self._drops_instructions else [])]
        chats = [{"images": images, "text": self.processor.encode_text(text, len(images))} for text in texts]
        return self.processor.tokenize(chats)[0]

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        settings = self.settings
        drop = generator(settings.seed, Stream.STATE_DROPOUT, key.step, key.position).random(2) < settings.state_dropout
        step, silent = self.step(key.index, images=self.feature_store is None), self.is_silent(key)
        sample = self.processor.encode_robot(step, self.tag, drop_state=bool(drop[0]))
        if self.feature_store is None:
            heard = replace(step, text=NO_INSTRUCTION) if silent else step
            sample |= self.processor.encode_vlm(heard, self.tag, augmentation=self._augmentation(key)[1])
        else:
            view = self._augmentation(key)[0] + (self._views if silent else 0)
            sample |= self.feature_store.sample(key.index, view)
        rng = generator(settings.seed, Stream.NOISE, key.step, key.position)
        draws = () if settings.noise_draws == 1 else (settings.noise_draws,)
        time = (1.0 - rng.beta(*settings.noise_beta, size=draws or None)) * settings.noise_s
        return {
            **sample,
            "noise": rng.standard_normal((*draws, *sample["action"].shape), dtype=np.float32),
            "time": np.asarray(time, dtype=np.float32),
            "drop_state_features": bool(drop[1]),
        }

    def images(self, key: SampleKey) -> np.ndarray:
        """(T*V, S, S, 3) uint8: the augmented images of a sample, also where a feature store stands in for them."""
        return self.processor.encode_vlm(self.step(key.index), self.tag, augmentation=self._augmentation(key)[1])[
            "images"
        ]

    @property
    def inputs_of_a_start(self) -> int:
        """How many inputs of the backbone a start frame has: each view, and where instructions are left out each once
        more without."""
        return self._views * (2 if self._drops_instructions else 1)

    def vlm_inputs(self, index: int, number: int) -> dict[str, Any]:
        """One of the inputs of a start frame, views first, as `Gr00tN1d7Processor.encode_vlm` gives it."""
        silent, view = divmod(number, self._views)
        step = replace(self.step(index), text=NO_INSTRUCTION) if silent else self.step(index)
        return self.processor.encode_vlm(step, self.tag, augmentation=self._look(index, view))

    @property
    def _views(self) -> int:
        return self.settings.views or 1

    @property
    def _drops_instructions(self) -> bool:
        return self.settings.instruction_dropout > 0

    def is_silent(self, key: SampleKey) -> bool:
        """Whether this sample's instruction is left out."""
        if not self._drops_instructions:
            return False
        rng = generator(self.settings.seed, Stream.INSTRUCTION_DROPOUT, key.step, key.position)
        return bool(rng.random() < self.settings.instruction_dropout)

    def _look(self, index: int, view: int) -> Augmentation | None:
        """The augmentation of one of a frame's views, the same whenever it is drawn."""
        if not self.settings.augment:
            return None
        return self.processor.images.draw(generator(self.settings.seed, Stream.VIEW, index, view))

    def _augmentation(self, key: SampleKey) -> tuple[int, Augmentation | None]:
        """The view of this draw (0 where views are not limited), and how it looks."""
        rng = generator(self.settings.seed, Stream.AUGMENTATION, key.step, key.position)
        if self.settings.views is None:
            return 0, self.processor.images.draw(rng) if self.settings.augment else None
        view = int(rng.integers(self.settings.views))
        return view, self._look(key.index, view)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The processor's batch, with the draws: noise (B, H, D), time (B,), drop_state_features (B,) bool; with
        several noise draws (B, K, H, D) and (B, K)."""
        if self.feature_store is None:
            batch = self.processor.collate(samples, length=self.prompts.shape[1])
        else:
            batch = self.processor.collate_robot(samples) | self.feature_store.collate(samples)
        for name in ("noise", "time"):
            batch[name] = torch.from_numpy(np.stack([sample[name] for sample in samples]))
        batch["drop_state_features"] = torch.tensor([s["drop_state_features"] for s in samples])
        return batch
