"""Random numbers and the order of samples, which depend only on (seed, step, position): the root of exact resume.

Philox is counter-based (Salmon et al., 2011): every sample of every step has a counter block of its own, so nothing
depends on how many numbers others drew, on worker processes, or on the number of training processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from gr00t.errors import ToolkitError

MIXTURE_BLOCK = 10_000  # weights are kept to a ten-thousandth


class Stream(IntEnum):
    """What the numbers are for; streams never overlap."""

    ORDER = 0
    AUGMENTATION = 1
    STATE_DROPOUT = 2
    NOISE = 3
    MODEL_DROPOUT = 4
    VIEW = 5
    ADAPTERS = 6
    MIXTURE = 7
    ROLLOUT = 8
    INSTRUCTION_DROPOUT = 9


def generator(seed: int, stream: Stream, major: int = 0, minor: int = 0) -> np.random.Generator:
    """The generator of one block, e.g. major = step and minor = position in the global batch."""
    counter = np.array([0, minor, major, stream], dtype=np.uint64)  # the lowest word counts the draws of this block
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def torch_seed(seed: int, stream: Stream, major: int = 0, minor: int = 0) -> int:
    """A seed for torch.manual_seed from the same blocks."""
    return int(generator(seed, stream, major, minor).integers(0, 2**63 - 1))


@dataclass(frozen=True)
class SampleKey:
    """One sample of training: `index` into the dataset's start frames, and its place (step, position)."""

    index: int
    step: int
    position: int


class TrainingOrder:
    """The endless stream of samples of one dataset: one shuffled pass over all start frames after another.

    `source` is the number of the dataset in a mixture: each has an order of its own. `repeated` (N,) are start
    frames that are added to each pass, once for every time that they are listed.
    """

    def __init__(
        self, length: int, global_batch_size: int, seed: int, *, source: int = 0, repeated: Sequence[int] = ()
    ) -> None:
        if length < 1:
            raise ToolkitError("The dataset has no start frame to train on.")
        self.global_batch_size, self.seed, self.source = global_batch_size, seed, source
        self._starts = np.concatenate([np.arange(length), np.asarray(repeated, dtype=np.int64)])
        self._pass = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def key(self, step: int, position: int) -> SampleKey:
        """The sample at `position` of the global batch of `step` (both from 0)."""
        return SampleKey(self.index(step * self.global_batch_size + position), step, position)

    def index(self, number: int) -> int:
        """The start frame that is drawn as the `number`-th (from 0)."""
        passes, offset = divmod(number, len(self._starts))
        if passes != self._pass:
            self._permutation = generator(self.seed, Stream.ORDER, passes, self.source).permutation(self._starts)
            self._pass = passes
        return int(self._permutation[offset])


class MixtureOrder:
    """The endless stream of samples of several datasets, numbered one behind the other, drawn by their shares.

    Every MIXTURE_BLOCK samples hold a whole number of each dataset's, in shuffled places; so how many of a dataset came
    before any sample is known without counting, and each dataset's own order continues from there. Of one dataset it is
    that dataset's TrainingOrder. `repeated` holds each dataset's start frames that it is to repeat, numbered within it.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        shares: Sequence[float],
        global_batch_size: int,
        seed: int,
        *,
        repeated: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.global_batch_size, self.seed = global_batch_size, seed
        again = repeated or [()] * len(lengths)
        self._orders = [
            TrainingOrder(length, global_batch_size, seed, source=number, repeated=again[number])
            for number, length in enumerate(lengths)
        ]
        self._firsts = np.cumsum([0, *lengths])
        self._counts = _block_counts(shares)
        self._block = -1
        self._sources = self._earlier = np.empty(0, dtype=np.int64)

    def key(self, step: int, position: int) -> SampleKey:
        """The sample at `position` of the global batch of `step` (both from 0)."""
        block, offset = divmod(step * self.global_batch_size + position, MIXTURE_BLOCK)
        if block != self._block:
            # The dataset of each place of the block, and how many of the same come before it there.
            sources = np.repeat(np.arange(len(self._counts)), self._counts)
            self._sources = generator(self.seed, Stream.MIXTURE, block).permutation(sources)
            self._earlier = np.empty(MIXTURE_BLOCK, dtype=np.int64)
            for source, count in enumerate(self._counts):
                self._earlier[self._sources == source] = np.arange(count)
            self._block = block
        source = int(self._sources[offset])
        number = block * int(self._counts[source]) + int(self._earlier[offset])
        return SampleKey(int(self._firsts[source]) + self._orders[source].index(number), step, position)


def _block_counts(shares: Sequence[float]) -> np.ndarray:
    """Samples of each dataset in a block: whole numbers nearest to the shares, of the right sum."""
    exact = np.asarray(shares, dtype=np.float64) / sum(shares) * MIXTURE_BLOCK
    counts = np.floor(exact).astype(np.int64)
    largest_rests = np.argsort(counts - exact, kind="stable")
    counts[largest_rests[: MIXTURE_BLOCK - counts.sum()]] += 1
    if counts.min() < 1:
        raise ToolkitError(
            f"Dataset {int(counts.argmin())} of the mixture would give less than one of {MIXTURE_BLOCK} samples: raise "
            "its weight, or leave it out."
        )
    return counts


class MicroBatchSampler:
    """The micro-batches of one process, in order; hand it to a DataLoader as `batch_sampler`.

    The global batch of a step is cut into `accumulation` x `world_size` micro-batches; process `rank` takes every
    world_size-th. So the union over processes is the same global batch for every layout.
    """

    def __init__(
        self,
        order: TrainingOrder | MixtureOrder,
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
