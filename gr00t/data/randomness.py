"""Random numbers that depend only on (seed, stream, step, position): the root of exact resume.

Philox is counter-based (Salmon et al., 2011): every sample of every step has a counter block of its own, so nothing
depends on how many numbers others drew, on worker processes, or on the number of training processes.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


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


def generator(seed: int, stream: Stream, major: int = 0, minor: int = 0) -> np.random.Generator:
    """The generator of one block, e.g. major = step and minor = position in the global batch."""
    counter = np.array([0, minor, major, stream], dtype=np.uint64)  # the lowest word counts the draws of this block
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def torch_seed(seed: int, stream: Stream, major: int = 0, minor: int = 0) -> int:
    """A seed for torch.manual_seed from the same blocks."""
    return int(generator(seed, stream, major, minor).integers(0, 2**63 - 1))
