"""Copies of what every step reads on the node's own disk: datasets and caches, made when a job starts, one for all
processes of a node, and removed when it ends, however it ends."""

from __future__ import annotations

import concurrent.futures
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from finetune.training.caches import RESERVE, TURN_SECONDS, say
from finetune.training.dataloader import open_datasets
from finetune.training.stopping import TIME_LIMIT, ThisAttempt
from gr00t.data.dataset import Mixture
from gr00t.data.frame_tables import CACHE_FOLDER
from gr00t.data.layout import DatasetLayout
from gr00t.errors import ToolkitError, disk_errors, free_space, in_bytes
from gr00t.file_replacement import copy_file, file_lock
from toolkit.shared_keys import expanded

PREFIX = "groot-data-"
COPIERS = 8  # files that are copied side by side
YOUNG_SECONDS = 60.0  # a folder that another job has just made may not be locked yet
WITHOUT = "Give another cluster.scratch=FOLDER, or leave the data where it is: cluster.stage_data=false."
# It outlives this process, whose end closes its standard input, and removes the folder that it is given.
REMOVER = 'while read -r _; do :; done; exec rm -rf -- "$0"'


class NodeCopies:
    """The node's copies of one attempt, as a context; without cluster.stage_data everything stays where it is.

    `seconds` is how long copying has taken so far. All processes call the same methods; one on each node copies.
    """

    def __init__(self, attempt: ThisAttempt) -> None:
        self.attempt, self.seconds = attempt, 0.0
        self._copies = os.environ.get("LOCAL_RANK", "0") == "0"
        self._place: Path | None = None
        self._ends = threading.Event()
        self._held = ExitStack()

    def __enter__(self) -> NodeCopies:
        if self.attempt.config.cluster.stage_data:
            name = f"{PREFIX}{os.getuid()}-{self.attempt.engine.tell(secrets.token_hex(4))}"
            self._place = place = own_disk(self.attempt.config.cluster.scratch) / name
            self._together(lambda: self._make(place))
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def datasets(self, mixture: Mixture) -> Mixture:
        """The same datasets, read from their copies."""
        if self._place is None:
            return mixture
        roots = [self._place / f"dataset-{number}" for number, _ in enumerate(mixture.readers, start=1)]
        pairs = zip(mixture.readers, roots, strict=True)
        self._copy({target: file for reader, root in pairs for target, file in _files(reader.layout, root).items()})
        return open_datasets(self.attempt.config, roots)

    def folder(self, folder: Path) -> Path:
        """The copy of a cache's folder."""
        if self._place is None:
            return folder
        copy = self._place / folder.name
        self._copy({copy / file.name: file for file in folder.iterdir() if file.is_file()})
        return copy

    def _copy(self, files: Mapping[Path, Path]) -> None:
        """Copy {target: source}, and count the seconds."""
        begin = time.monotonic()
        self._together(lambda: self._copy_all(files))
        self.seconds += time.monotonic() - begin

    def _copy_all(self, files: Mapping[Path, Path]) -> None:
        place = Path(os.path.commonpath(files))
        size, free = sum(file.stat().st_size for file in files.values()), free_space(place)
        if size * RESERVE > free:
            raise ToolkitError(
                f"{place}: a copy of the data takes {in_bytes(size)}, but only {in_bytes(free)} are free on this "
                f"node. {WITHOUT}"
            )

        def copy(target: Path, file: Path) -> None:
            if not self._ends.is_set():
                copy_file(file, target)

        begin = time.monotonic()
        with disk_errors(place, WITHOUT), ThreadPoolExecutor(COPIERS) as pool:
            for _ in pool.map(copy, files.keys(), files.values()):
                pass
        say(f"copied {in_bytes(size)} to {place} in {time.monotonic() - begin:.1f} s ({in_bytes(free)} were free)")

    def _together(self, work: Callable[[], None]) -> None:
        """Do `work` in one process of each node while the others wait; a signal meanwhile raises Stopped in all."""
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(work) if self._copies else None
            try:
                while self._is_busy(job):
                    self.attempt.check(TIME_LIMIT)
            except BaseException:
                self._ends.set()
                raise
        if job is not None:
            job.result()

    def _is_busy(self, job: concurrent.futures.Future[None] | None) -> bool:
        """Whether a process still works; ToolkitError where that of another node has failed."""
        if job is not None:
            concurrent.futures.wait([job], timeout=TURN_SECONDS)
        done = job is None or job.done()
        failed = job is not None and job.done() and job.exception() is not None
        busy, failures = self.attempt.engine.sum(torch.tensor([float(not done), float(failed)])).tolist()
        if failures and not failed:
            raise ToolkitError(f"The data could not be copied to the disk of another node; its log says why. {WITHOUT}")
        return busy > 0 and not failures

    def _make(self, place: Path) -> None:
        """The folder of the copies, and what removes it at the end, also where this process is killed."""
        with disk_errors(place, WITHOUT):
            place.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(place.parent)
            place.mkdir(mode=0o700)
        command = ["sh", "-c", REMOVER, str(place)]
        remover = self._held.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
        self._held.callback(remover.kill)
        self._held.callback(shutil.rmtree, place, ignore_errors=True)
        self._held.enter_context(file_lock(place / "data", required=False))


def own_disk(scratch: str | None) -> Path:
    """The folder on the node's own disk: cluster.scratch, else $SLURM_TMPDIR."""
    try:
        return Path(expanded("cluster.scratch", scratch or "$SLURM_TMPDIR")).absolute()
    except ToolkitError as error:
        raise ToolkitError(f"cluster.stage_data=true needs the node's own disk. {error} {WITHOUT}") from None


def _files(layout: DatasetLayout, root: Path) -> dict[Path, Path]:
    """{copy below `root`: file} of a dataset, its Arrow tables included."""
    split = layout.root / "meta" / "split.json"
    tables = (layout.root / CACHE_FOLDER).glob("[!.]*/*")
    found = [*layout.files(), split, *tables]
    return {root / file.relative_to(layout.root): file for file in found if file.is_file()}


def _remove_abandoned(place: Path) -> None:
    """Remove the copies of this user's jobs that were killed with all their processes."""
    for old in place.glob(f"{PREFIX}{os.getuid()}-*"):
        with suppress(ToolkitError, OSError):
            if time.time() - old.stat().st_mtime > YOUNG_SECONDS:
                with file_lock(old / "data"):
                    shutil.rmtree(old)
