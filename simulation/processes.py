"""How worker processes start and end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from gr00t.processes import end_with_parent


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started in the block compute and render with one thread."""
    # Each worker keeps one core busy: threads of its own would only get in the others' way.
    limits = {name: "1" for name in ("OMP_NUM_THREADS", "LP_NUM_THREADS") if name not in os.environ}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name in limits:
            del os.environ[name]


def settle_in() -> None:
    """In a worker process, before anything else: it ends with its parent, and is quiet."""
    # Only the worker processes load the simulator.
    import torch
    from mani_skill import logger

    end_with_parent()
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
