"""What is computed once beside a job: size announced, space checked, progress shown, the other processes waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.config.schema import FinetuneConfig
from finetune.engine import Engine
from finetune.preemption import TIME_LIMIT, Preemption
from finetune.stop_signals import received
from gr00t.data.dataset import StepReader
from gr00t.data.frames import META, FrameStore, frame_shapes, frame_store_folder, write_frame_store
from gr00t.errors import ToolkitError
from gr00t.files import free_space, in_bytes

RESERVE = 1.02  # of the bytes that are written
GRACE_SECONDS = 120.0  # network file systems show new files late


class _Interrupted(Exception):
    """A signal came while the main process decoded."""


def use_frame_store(config: FinetuneConfig, reader: StepReader, engine: Engine, stop: Preemption) -> None:
    """Let `reader` take its frames from a store in cache_dir; the main process makes it where it is missing.

    A signal meanwhile raises Stopped, and leaves no half store.
    """
    layout, cameras = reader.layout, reader.configs["video"].modality_keys
    folder = frame_store_folder(Path(config.cache_dir), layout, cameras)
    if engine.is_main and not (folder / META).is_file():
        shapes = frame_shapes(layout, cameras)
        size = sum(frames * height * width * 3 for frames, height, width, _ in shapes.values())
        announce(f"decoding every frame of {layout.root} once", size, folder)
        with suppress(_Interrupted), progress("frames", sum(shape[0] for shape in shapes.values())) as advance:
            on_frames = _unless_interrupted(advance)
            write_frame_store(folder, layout, shapes, threads=len(os.sched_getaffinity(0)), on_frames=on_frames)

    def ready() -> bool:
        return (folder / META).is_file() or received() is not None

    wait_until(ready, folder, busy=folder.with_name(f".{folder.name}.lock").exists)
    stop.check(TIME_LIMIT)
    reader.frame_store = FrameStore(folder, layout, cameras)
    if engine.is_main:
        reader.frame_store.check()


def _unless_interrupted(advance: Callable[[int], None]) -> Callable[[int], None]:
    def on_frames(count: int) -> None:
        advance(count)
        if received() is not None:
            raise _Interrupted

    return on_frames


def announce(what: str, size: int, folder: Path) -> None:
    """Say what is about to be written and where; refuse it where the space is missing."""
    free = free_space(folder)
    if size * RESERVE > free:
        raise ToolkitError(
            f"{folder}: {what} takes {in_bytes(size)}, but only {in_bytes(free)} are free there. Free some space, "
            "or choose another cache_dir=FOLDER."
        )
    say(f"{what}: {in_bytes(size)} in {folder} ({in_bytes(free)} free)")


def say(message: str) -> None:
    """A line on stderr."""
    Console(stderr=True).print(message, highlight=False, soft_wrap=True)


@contextmanager
def progress(what: str, total: int, *, active: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar of `total`, advanced by the function that is yielded; in a log file a line for every tenth."""
    console = Console(stderr=True)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = 0
    with Progress(*columns, console=console, disable=not (active and console.is_terminal)) as bar:
        task = bar.add_task(what, total=total)

        def advance(count: int) -> None:
            nonlocal done
            bar.advance(task, count)
            tenths, done = done * 10 // total, done + count
            if active and not console.is_terminal and done * 10 // total > tenths:
                say(f"{what} {done}/{total}")

        yield advance


def wait_until(
    ready: Callable[[], bool], folder: Path, *, busy: Callable[[], bool] = lambda: False, grace: float = GRACE_SECONDS
) -> None:
    """Wait for what another process makes in `folder`, as long as it is `busy`; a process group's time limit would be
    too short. What does not appear is refused."""
    deadline = time.monotonic() + grace
    while not ready():
        if busy():
            deadline = time.monotonic() + grace
        if time.monotonic() > deadline:
            raise ToolkitError(
                f"{folder} is not complete as this process sees it. cache_dir must lie on a file system that all nodes "
                "share: choose another, cache_dir=FOLDER."
            )
        time.sleep(0.2)
