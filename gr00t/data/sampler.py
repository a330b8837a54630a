"""Which sample stands where: order as a pure function of (seed, step, position in the global batch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gr00t.data.randomness import Stream, generator
from gr00t.errors import ToolkitError


@dataclass(frozen=True)
class SampleKey:
    """One sample of training: `index` into the dataset's start frames, and its place (step, position)."""

    index: int
    step: int
    position: int


class TrainingOrder:
    """The endless stream of samples: one shuffled pass over all start frames after another."""

    def __init__(self, length: int, global_batch_size: int, seed: int) -> None:
        if length < 1:
            raise ToolkitError("The dataset has no start frame to train on.")
        self.length, self.global_batch_size, self.seed = length, global_batch_size, seed
        self._pass = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def key(self, step: int, position: int) -> SampleKey:
        """The sample at `position` of the global batch of `step` (both from 0)."""
        number = step * self.global_batch_size + position
        return SampleKey(self._index(number // self.length, number % self.length), step, position)

    def _index(self, passes: int, offset: int) -> int:
        if passes != self._pass:
            self._permutation = generator(self.seed, Stream.ORDER, passes).permutation(self.length)
            self._pass = passes
        return int(self._permutation[offset])


class MicroBatchSampler:
    """The micro-batches of one process, in order; hand it to a DataLoader as `batch_sampler`.

    The global batch of a step is cut into `accumulation` x `world_size` micro-batches; process `rank` takes every
    world_size-th. So the union over processes is the same global batch for every layout.
    """

    def __init__(
        self,
        order: TrainingOrder,
        micro_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
        last_step: int,
    ) -> None:
        parts, rest = divmod(order.global_batch_size, micro_batch_size * world_size)
        if rest or not parts:
            raise ToolkitError(
                f"A global batch of {order.global_batch_size} cannot be cut into micro-batches of {micro_batch_size} "
                f"for {world_size} processes: global_batch_size must be a multiple of "
                f"{micro_batch_size * world_size}."
            )
        self.order, self.size, self.accumulation = order, micro_batch_size, parts
        self.rank, self.world_size = rank, world_size
        self.first_step, self.last_step = first_step, last_step

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.first_step, self.last_step):
            for part in range(self.accumulation):
                start = (part * self.world_size + self.rank) * self.size
                yield [self.order.key(step, start + i) for i in range(self.size)]
