"""The order of samples by hand-computed values: interleaved micro-batches, shares, and draws that never overlap."""

from __future__ import annotations

import numpy as np
import pytest

from gr00t.data.sampler import (
    MIXTURE_BLOCK,
    MicroBatchSampler,
    MixtureOrder,
    SampleKey,
    Stream,
    TrainingOrder,
    _block_counts,
    generator,
)


def positions(rank: int, *, steps: range = range(1)) -> list[list[tuple[int, int]]]:
    """(step, position) of rank's micro-batches of 2, for 2 processes and a global batch of 12."""
    settings = {"rank": rank, "world_size": 2, "first_step": steps.start, "last_step": steps.stop}
    sampler = MicroBatchSampler(TrainingOrder(31, 12, seed=1), 2, **settings)
    found = [[(key.step, key.position) for key in batch] for batch in sampler]
    assert len(sampler) == len(found)
    return found


def test_a_process_takes_every_second_micro_batch_of_two_in_order() -> None:
    assert positions(0) == [[(0, 0), (0, 1)], [(0, 4), (0, 5)], [(0, 8), (0, 9)]]
    assert positions(1) == [[(0, 2), (0, 3)], [(0, 6), (0, 7)], [(0, 10), (0, 11)]]
    later = positions(1, steps=range(3, 5))
    assert [batch[0] for batch in later] == [(3, 2), (3, 6), (3, 10), (4, 2), (4, 6), (4, 10)]


def test_a_sample_is_numbered_by_step_and_position() -> None:
    order = TrainingOrder(31, 12, seed=1)
    assert order.key(4, 7) == SampleKey(order.index(4 * 12 + 7), 4, 7)


def test_seeds_and_datasets_of_a_mixture_have_shuffles_of_their_own() -> None:
    shuffles = {
        tuple(TrainingOrder(50, 10, seed, source=source).index(n) for n in range(50))
        for seed in (1, 2)
        for source in (0, 1)
    }
    assert len(shuffles) == 4


def test_two_equal_datasets_of_a_mixture_are_shuffled_apart() -> None:
    order = MixtureOrder([50, 50], [0.5, 0.5], 10, seed=1)
    indices = [order.key(*divmod(n, 10)).index for n in range(400)]
    first = [i for i in indices if i < 50][:50]
    second = [i - 50 for i in indices if i >= 50][:50]
    assert sorted(first) == sorted(second) == list(range(50)) and first != second


def test_which_dataset_stands_where_depends_on_seed_and_block() -> None:
    def from_second(seed: int, block: int) -> tuple[bool, ...]:
        order = MixtureOrder([1, 1], [1.0, 1.0], 1, seed)
        return tuple(order.key(block * MIXTURE_BLOCK + n, 0).index == 1 for n in range(100))

    assert len({from_second(seed, block) for seed in (1, 2) for block in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ([2.0, 1.0], [6667, 3333]),  # rests of .67 and .33
        ([1.0, 2.0], [3333, 6667]),
        ([1.0, 1.0, 1.0], [3334, 3333, 3333]),
        ([9999.0, 1.0], [9999, 1]),
    ],
)
def test_whole_samples_of_a_block_are_nearest_to_the_shares(shares: list[float], counts: list[int]) -> None:
    assert _block_counts(shares).tolist() == counts


def test_blocks_of_random_numbers_never_overlap() -> None:
    places = [(seed, stream, a, b) for seed in (1, 2) for stream in Stream for a in range(3) for b in range(3)]
    found = [generator(*place).bit_generator.random_raw(64) for place in places]
    assert len(np.unique(np.concatenate(found))) == 64 * len(places)


def test_random_numbers_of_a_place_stay_what_they_were() -> None:
    """A run resumed with a later version must draw the same."""
    assert generator(42, Stream.NOISE, 3, 5).integers(0, 1000, 4).tolist() == [216, 266, 103, 433]
    assert generator(42, Stream.NOISE, 5, 3).integers(0, 1000, 4).tolist() != [216, 266, 103, 433]


def test_streams_keep_the_numbers_that_every_run_so_far_was_drawn_with() -> None:
    numbers = {stream.name: int(stream) for stream in Stream}
    assert numbers == {
        "ORDER": 0,
        "AUGMENTATION": 1,
        "STATE_DROPOUT": 2,
        "NOISE": 3,
        "MODEL_DROPOUT": 4,
        "VIEW": 5,
        "ADAPTERS": 6,
        "MIXTURE": 7,
        "ROLLOUT": 8,
        "INSTRUCTION_DROPOUT": 9,
    }


def test_a_block_that_is_not_named_is_the_first() -> None:
    first, named = (generator(3, Stream.VIEW, *block).integers(0, 2**32, 4) for block in ((), (0, 0)))
    assert (first == named).all()
    assert (first != generator(3, Stream.VIEW, 1, 0).integers(0, 2**32, 4)).any()
    assert (first != generator(3, Stream.VIEW, 0, 1).integers(0, 2**32, 4)).any()
