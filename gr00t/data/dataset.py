"""Training samples of one dataset or of a mixture of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gr00t.data.features import FeatureStore
from gr00t.data.images import Augmentation
from gr00t.data.mixture import Mixture
from gr00t.data.processor import Gr00tN1d7Processor, Step
from gr00t.data.randomness import Stream, generator
from gr00t.data.sampler import SampleKey
from gr00t.data.statistics import Tail, start_frames
from gr00t.data.steps import StepReader
from gr00t.errors import ToolkitError

__all__ = ["SampleSettings", "StepReader", "TrainingDataset"]


@dataclass(frozen=True)
class SampleSettings:
    """What is random in a training sample, and how much.

    state_dropout is applied twice, as the original does: to the normalised state and to the state's features.
    views limits a frame to that many augmented views; tail "drop" starts only where the whole horizon is recorded.
    noise_draws is how many times noise and time are drawn for one sample.
    """

    seed: int
    augment: bool = True
    views: int | None = None
    state_dropout: float = 0.0
    tail: Tail = "mask"
    noise_beta: tuple[float, float] = (1.5, 1.0)
    noise_s: float = 0.999
    noise_draws: int = 1


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
        self.processor, self.tag, self.settings = processor, tag, settings
        train = [r.layout.train_episodes for r in self.mixture.readers]
        self.episodes = train if episodes is None else [episodes]
        starts = [list(self._starts_of(source)) for source in range(len(self.mixture.readers))]
        self.lengths = [len(of_source) for of_source in starts]
        self._starts = [start for of_source in starts for start in of_source]
        self.feature_store: FeatureStore | None = None

    @property
    def reader(self) -> StepReader:
        """The reader of the dataset; of a mixture's first."""
        return self.mixture.readers[0]

    def __len__(self) -> int:
        return len(self._starts)

    def start(self, index: int) -> tuple[int, int]:
        """(episode, frame) of a start."""
        return self._starts[index][1:]

    def first_starts(self, frames: int) -> list[list[int]]:
        """For each dataset of the mixture, the starts on the first `frames` frames of episodes, numbered within it."""
        ends = np.cumsum([0, *self.lengths])
        frame_of = [start[2] for start in self._starts]
        return [
            [index for index, frame in enumerate(frame_of[begin:end]) if frame < frames]
            for begin, end in itertools.pairwise(ends)
        ]

    def source(self, index: int) -> int:
        """Which dataset of the mixture a start is of."""
        return self._starts[index][0]

    def _starts_of(self, source: int) -> Iterator[tuple[int, int, int]]:
        """(dataset, episode, frame) of every start of a dataset; one without any is refused."""
        reader, settings = self.mixture.readers[source], self.settings
        deltas, episodes = reader.configs["action"].delta_indices, self.episodes[source]
        lengths = {e: reader.layout.episode(e).length for e in episodes}
        if not any(len(start_frames(length, deltas, settings.tail)) for length in lengths.values()):
            raise ToolkitError(
                f"{reader.layout.root}: no episode of {len(episodes)} has a start frame with tail={settings.tail}."
                " Record longer episodes or use dataset.tail=mask."
            )
        for episode, length in lengths.items():
            for frame in start_frames(length, deltas, settings.tail):
                yield source, episode, frame

    def step(self, index: int, *, images: bool = True) -> Step:
        """A start as the reader of its dataset gives it."""
        source, episode, frame = self._starts[index]
        return self.mixture.readers[source].step(episode, frame, images=images)

    @cached_property
    def prompts(self) -> np.ndarray:
        """input_ids (P, L) of the dataset's P instructions, their images' tokens included, padded to the longest."""
        images = self.vlm_inputs(0, 0)["images"]
        texts = self.mixture.instructions(self.episodes)
        chats = [{"images": images, "text": self.processor.encode_text(text, len(images))} for text in texts]
        return self.processor.tokenize(chats)[0]

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        settings = self.settings
        drop = generator(settings.seed, Stream.STATE_DROPOUT, key.step, key.position).random(2) < settings.state_dropout
        step = self.step(key.index, images=self.feature_store is None)
        sample = self.processor.encode_robot(step, self.tag, drop_state=bool(drop[0]))
        if self.feature_store is None:
            sample |= self.processor.encode_vlm(step, self.tag, augmentation=self._augmentation(key))
        else:
            sample |= self.feature_store.sample(key.index, self._view(key)[0])
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
        step = self.step(key.index)
        return self.processor.encode_vlm(step, self.tag, augmentation=self._augmentation(key))["images"]

    def vlm_inputs(self, index: int, view: int) -> dict[str, Any]:
        """What the backbone reads of one view of a start frame, as `Gr00tN1d7Processor.encode_vlm` gives it."""
        step = self.step(index)
        return self.processor.encode_vlm(step, self.tag, augmentation=self._look(index, view))

    def _view(self, key: SampleKey) -> tuple[int, np.random.Generator]:
        """The view of this draw (0 where views are not limited), and the generator it came from."""
        rng = generator(self.settings.seed, Stream.AUGMENTATION, key.step, key.position)
        return (0 if self.settings.views is None else int(rng.integers(self.settings.views))), rng

    def _look(self, index: int, view: int) -> Augmentation | None:
        if not self.settings.augment:
            return None
        return self.processor.images.draw(generator(self.settings.seed, Stream.VIEW, index, view))

    def _augmentation(self, key: SampleKey) -> Augmentation | None:
        view, rng = self._view(key)
        if self.settings.views is None and self.settings.augment:
            return self.processor.images.draw(rng)
        return self._look(key.index, view)  # the view is drawn anew each time, its look only once

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The processor's batch, with the draws: noise (B, H, D), time (B,), drop_state_features (B,) bool; with
        several noise draws (B, K, H, D) and (B, K)."""
        if self.feature_store is None:
            batch = self.processor.collate(samples, length=self.prompts.shape[1])
        else:
            batch = self.processor.collate_robot(samples) | self.feature_store.collate(samples)
        batch["noise"] = torch.from_numpy(np.stack([s["noise"] for s in samples]))
        batch["time"] = torch.from_numpy(np.stack([s["time"] for s in samples]))
        batch["drop_state_features"] = torch.tensor([s["drop_state_features"] for s in samples])
        return batch
