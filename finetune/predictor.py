"""The predictor of open-loop evaluations, during training and of a finished checkpoint: a chunk from every frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.open_loop import Chunks
from gr00t.data.features import FeatureStore
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.randomness import Stream, generator
from gr00t.data.steps import StepReader
from gr00t.model.gr00t_n1 import check_finite
from gr00t.model.gr00t_n1d7 import Gr00tN1d7


@dataclass(frozen=True)
class Predictor:
    """A model, and the recorded episodes that it predicts actions for.

    A prediction depends on the weights, the frame and `seed` only, not on its batch. features: the backbone's output
    for every frame of these episodes in order, in place of images and instruction. denoising_steps: None for the
    checkpoint's own.
    """

    model: Gr00tN1d7
    processor: Gr00tN1d7Processor
    tag: str
    reader: StepReader
    episodes: Sequence[int]
    seed: int
    batch_size: int
    denoising_steps: int | None = None
    features: FeatureStore | None = None

    @property
    def starts(self) -> list[tuple[int, int]]:
        """(episode, frame) of every prediction."""
        return [(e, frame) for e in self.episodes for frame in range(self.reader.layout.episode(e).length)]

    def chunks(self, proceed: Callable[[int], bool] = lambda _: True) -> dict[int, Chunks] | None:
        """{episode: {group: (T, H, D)}} in robot units.

        `proceed` is given the number of predictions so far, before each batch and after the last; None is returned
        where it says not to go on. Raises ToolkitError for actions that are not finite.
        """
        found = {episode: self._empty(self.reader.layout.episode(episode).length) for episode in self.episodes}
        starts = self.starts
        for first in range(0, len(starts), self.batch_size):
            if not proceed(first):
                return None
            rows = range(first, min(first + self.batch_size, len(starts)))
            batch = [starts[row] for row in rows]
            for (episode, frame), chunk in zip(batch, self._predict(batch, rows), strict=True):
                for group, values in chunk.items():
                    found[episode][group][frame] = values
        proceed(len(starts))
        return found

    def _empty(self, length: int) -> Chunks:
        horizon = len(self.reader.configs["action"].delta_indices)
        groups = self.processor.state_action.groups(self.tag, "action")
        return {group.name: np.full((length, horizon, group.dim), np.nan) for group in groups}

    @torch.no_grad()
    def _predict(self, starts: Sequence[tuple[int, int]], rows: Sequence[int]) -> Iterator[Chunks]:
        """One chunk {group: (H, D)} for each start; `rows` are their places among all starts."""
        config = self.model.n1d7_config
        shape = (config.action_horizon, config.max_action_dim)
        noise = [generator(self.seed, Stream.NOISE, *start).standard_normal(shape, np.float32) for start in starts]
        steps = [self.reader.step(*start, images=self.features is None) for start in starts]
        if self.features is None:
            batch = self.processor.collate([self.processor.encode(step, self.tag) for step in steps])
        else:
            batch = self.processor.collate_robot([self.processor.encode_robot(step, self.tag) for step in steps])
            batch |= self.features.collate([self.features.sample(row, 0) for row in rows])
        predicted = self.model.get_action(
            self._on_device(batch), denoising_steps=self.denoising_steps, noise=torch.from_numpy(np.stack(noise))
        )
        states = {group: np.stack([step.states[group] for step in steps]) for group in steps[0].states}
        actions = self.processor.decode_action(predicted, self.tag, states)
        check_finite(actions, predicted.dtype)
        for place in range(len(starts)):
            yield {group: values[place] for group, values in actions.items()}

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = next(self.model.action_head.parameters()).device
        return {name: tensor.to(device) for name, tensor in batch.items()}
