"""How worker processes start and end: none outlives the process it works for, and one that is silent is named."""

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

WORKER_SECONDS = 900.0  # that a worker process may take for one piece of work

_T = TypeVar("_T")


def silent(what: str, pids: Iterable[int]) -> ToolkitError:
    """The error for worker processes that have given nothing for WORKER_SECONDS."""
    numbers = ", ".join(map(str, sorted(pids))) or "gone"
    return ToolkitError(
        f"{what}: no answer from the worker processes (process ids {numbers}) for {WORKER_SECONDS / 60:.0f} minutes. "
        "They may wait for a file system that does not answer, or for memory: look at them with ps and dmesg, then "
        "start again."
    )


def first_done(
    pool: ProcessPoolExecutor, waiting: set[Future[_T]], what: str
) -> tuple[set[Future[_T]], set[Future[_T]]]:
    """Those of `waiting` that are done, at least one, and the others.

    Workers of which none answers for WORKER_SECONDS are killed, and named in a ToolkitError that says `what` they
    worked on.
    """
    ready, others = wait(waiting, WORKER_SECONDS, FIRST_COMPLETED)
    if not ready:
        processes = dict(pool._processes or {})
        for process in processes.values():
            process.kill()
        raise silent(what, processes)
    return ready, others


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of that many processes, which end with the block; work that they have not begun is dropped."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """In a worker process: leave Ctrl-C to the parent, and end when the parent does, however it ends."""

    def wait_for_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=wait_for_parent, daemon=True).start()


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
