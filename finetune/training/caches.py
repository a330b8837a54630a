"""What is computed once beside a job: size announced, space checked, progress shown, the other processes waiting."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from rich.console import Console

from finetune.recipe import FinetuneConfig
from finetune.training.engine import Engine
from finetune.training.stopping import TIME_LIMIT, Preemption
from gr00t.data.layout import DatasetLayout
from gr00t.data.step_reader import StepReader
from gr00t.data.stored_arrays import (
    META,
    FrameStore,
    frame_shapes,
    frame_store_folder,
    frame_store_is_whole,
    write_frame_store,
)
from gr00t.errors import ToolkitError, disk_errors, free_space, in_bytes
from gr00t.file_replacement import LockHeld, damaged, file_lock, this_process, waiting_for
from toolkit.command_line import received
from toolkit.progress import progress_bar

RESERVE = 1.02  # of the bytes that are written
GRACE_SECONDS = 120.0  # network file systems show new files late
TURN_SECONDS = 1.0  # between two looks whether another run is done
BEAT_SECONDS = 10.0  # a process group gives up on a process that is silent for half an hour
MAKE_ROOM = "Make room there, or choose another cache_dir=FOLDER."


class _Interrupted(Exception):
    """A signal came while the main process decoded."""


def use_frame_store(config: FinetuneConfig, reader: StepReader, engine: Engine, stop: Preemption) -> None:
    """Let `reader` take its frames from a store in cache_dir; the main process makes one that is missing or damaged.

    A signal meanwhile raises Stopped, and leaves no half store.
    """
    layout, cameras = reader.layout, reader.configs["video"].modality_keys
    place = Path(config.cache_dir)
    folder = place / engine.tell(frame_store_folder(place, layout, cameras).name if engine.is_main else "")

    def whole() -> bool:
        return frame_store_is_whole(folder, cameras)

    if not agreed(engine, whole):
        with turn(folder, f"the frames of {layout.root}", config, engine, stop):
            if not agreed(engine, whole):
                if engine.is_main:
                    _decode(folder, layout, cameras, engine)
                while not agreed(engine, lambda: True):  # the main process's answer ends it
                    pass
    stop.check(TIME_LIMIT)
    wait_until((folder / META).is_file, folder)
    reader.frame_store = FrameStore(folder, layout, cameras)


def _decode(folder: Path, layout: DatasetLayout, cameras: list[str], engine: Engine) -> None:
    """Write the frame store in the main process; answers False to the others now and then, who wait for `agreed`."""
    if folder.exists():
        say(damaged(folder, f"the frames of {layout.root}"))
        with disk_errors(folder, "Delete it by hand."):
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    shapes = frame_shapes(layout, cameras)
    size = sum(frames * height * width * 3 for frames, height, width, _ in shapes.values())
    announce(f"decoding every frame of {layout.root} once", size, folder)
    beat = time.monotonic()
    with suppress(_Interrupted), progress("frames", sum(shape[0] for shape in shapes.values())) as advance:

        def on_frames(count: int) -> None:
            nonlocal beat
            advance(count)
            if time.monotonic() - beat > BEAT_SECONDS:
                agreed(engine, lambda: False)
                beat = time.monotonic()
            if received() is not None:
                raise _Interrupted

        write_frame_store(folder, layout, shapes, threads=len(os.sched_getaffinity(0)), on_frames=on_frames)


def agreed(engine: Engine, answer: Callable[[], bool]) -> bool:
    """The main process's answer, in every process."""
    return bool(engine.sum(torch.tensor(float(engine.is_main and answer()))))


@contextmanager
def turn(target: Path, what: str, config: FinetuneConfig, engine: Engine, stop: Preemption) -> Iterator[None]:
    """Wait until no other run makes `target`, then hold its lock in the main process.

    The wait is said in one line that names the other run; a signal meanwhile raises Stopped.
    """
    holder, waits = f"{this_process()}, run {config.run_dir}", False

    def is_ours() -> bool:
        nonlocal waits
        try:
            with disk_errors(target, MAKE_ROOM):
                target.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(file_lock(target, required=False, holder=holder))
        except LockHeld as error:
            if not waits:
                say(waiting_for(error.holder, what))
            waits = True
            return False
        return True

    try:
        with ExitStack() as held:
            while not agreed(engine, is_ours):
                stop.check()
                time.sleep(TURN_SECONDS)
            yield
    finally:
        with suppress(OSError):
            target.parent.rmdir()  # where it is empty


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
    done = 0
    with progress_bar(show=None if active else False) as bar:
        task = bar.add_task(what, total=total)

        def advance(count: int) -> None:
            nonlocal done
            bar.advance(task, count)
            tenths, done = done * 10 // total, done + count
            if active and not bar.console.is_terminal and done * 10 // total > tenths:
                say(f"{what} {done}/{total}")

        yield advance


def wait_until(ready: Callable[[], bool], folder: Path, *, grace: float = GRACE_SECONDS) -> None:
    """Wait until this process sees what another has made in `folder`; what does not appear is refused."""
    deadline = time.monotonic() + grace
    while not ready():
        if time.monotonic() > deadline:
            raise ToolkitError(
                f"{folder} is not complete as this process sees it. cache_dir must lie on a file system that all nodes "
                "share: choose another, cache_dir=FOLDER."
            )
        time.sleep(0.2)
