"""Worker processes that do not outlive whom they work for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from gr00t.errors import ToolkitError

_T = TypeVar("_T")
WORKER_SECONDS = 900.0  # that a worker process may take for one piece of work


def silent(what: str, pids: Iterable[int]) -> ToolkitError:
    """For worker processes that have given nothing for WORKER_SECONDS."""
    numbers = ", ".join(map(str, sorted(pids))) or "gone"
    return ToolkitError(
        f"{what}: no answer from the worker processes (process ids {numbers}) for {WORKER_SECONDS / 60:.0f} minutes. "
        "They may wait for a file system that does not answer, or for memory: look at them with ps and dmesg, then "
        "start again."
    )


def first_done(
    pool: ProcessPoolExecutor, waiting: set[Future[_T]], what: str
) -> tuple[set[Future[_T]], set[Future[_T]]]:
    """Those of `waiting` that are done, at least one, and the others. Workers of which none answers for WORKER_SECONDS
    are killed, and named in a ToolkitError that says `what` they worked on."""
    ready, others = wait(waiting, WORKER_SECONDS, FIRST_COMPLETED)
    if not ready:
        processes = dict(pool._processes or {})
        for process in processes.values():
            process.kill()
        raise silent(what, processes)
    return ready, others


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """That many processes; gone when the block ends, what they have not begun being dropped."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """In a worker process: leave Ctrl-C to the parent, and end when the parent does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
