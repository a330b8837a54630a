"""What an evaluation has played so far, in files, so that one that was stopped continues and several can share one.

A folder holds settings.json and a file for each segment of the episodes (simulation.closed_loop.rollout), of one line
for each answer of the policy and each outcome, in the order in which they came. A segment that was stopped is played
again from its beginning with the answers that are there: motions follow from them bit for bit, so the policy is asked,
and images are rendered, only from where it stopped."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import read_json
from gr00t.file_replacement import file_lock, lock_in_turn, write_json
from simulation.closed_loop import EpisodeOutcome
from simulation.closed_loop.policies import Observation

SETTINGS = "settings.json"


class SegmentRecord:
    """The file of one segment, or none. answers: those of an earlier process that were not asked for again yet, each
    with the (seed, chunk) of its rows; outcomes: of the episodes that had ended, by seed."""

    def __init__(self, path: Path | None) -> None:
        self.path: Path | None = path
        self.file: TextIO | None = None
        self.answers = deque[tuple[list[list[int]], np.ndarray]]()
        self.outcomes: dict[int, EpisodeOutcome] = {}
        for line in _whole_lines(path):
            if "outcome" in line:
                outcome = EpisodeOutcome.from_json(line["outcome"])
                self.outcomes[outcome.seed] = outcome
            else:
                chunks = np.frombuffer(base64.b64decode(line["chunks"]), np.float32)
                self.answers.append((line["of"], chunks.reshape(line["shape"])))

    def asked(self, seeds: Sequence[int]) -> int:
        """How many answers are left for these episodes."""
        return sum(seed in seeds for rows, _ in self.answers for seed, _ in rows)

    def answer(self, requests: Sequence[Observation]) -> list[np.ndarray] | None:
        """What an earlier process answered to these requests; None where it was stopped before."""
        if not self.answers:
            return None
        rows, chunks = self.answers.popleft()
        if rows != [[request.seed, request.chunk] for request in requests]:
            raise self._differs()
        return list(chunks)

    def add_answer(self, requests: Sequence[Observation], chunks: Sequence[np.ndarray]) -> None:
        """Keep what the policy just answered."""
        if self.path is not None:
            values = np.stack(chunks)
            coded = base64.b64encode(values.tobytes()).decode()
            self._add({"of": [[r.seed, r.chunk] for r in requests], "shape": values.shape, "chunks": coded})

    def add_outcome(self, outcome: EpisodeOutcome) -> None:
        """Keep how an episode ended, or see that it ended as before."""
        if before := self.outcomes.get(outcome.seed):
            if before.stages is None:  # written by an older version
                outcome = replace(outcome, stages=None, smoothness=None)
            if json.dumps(asdict(outcome)) != json.dumps(asdict(before)):
                raise self._differs()
        elif self.path is not None:
            self._add({"outcome": asdict(outcome)})

    def close(self) -> None:
        """End writing."""
        if self.file is not None:
            self.file.close()

    def _add(self, line: Mapping[str, Any]) -> None:
        assert self.path is not None
        with disk_errors(self.path, "Make room, then start the same command again."):
            if self.file is None:
                if self.path.is_file():  # a last line that is not whole goes
                    os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
                self.file = self.path.open("a", encoding="utf-8")
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def _differs(self) -> ToolkitError:
        return ToolkitError(
            f"{self.path}: does not continue as it began: the simulation moves otherwise on this machine, or its code "
            "was changed. Finish the evaluation where it began, or remove that file: then it is played again."
        )


class KeptEpisodes:
    """The folder of an evaluation that is being played; `folder` None keeps nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    @contextmanager
    def record(self, name: str) -> Iterator[SegmentRecord]:
        """The file of a segment, which no other process may play meanwhile."""
        if self.folder is None:
            yield SegmentRecord(None)
            return
        path = self.folder / f"{name}.jsonl"
        with file_lock(path, required=False), closing(SegmentRecord(path)) as record:
            yield record


@contextmanager
def kept_in(folder: Path, settings: Mapping[str, Any], *, shared: bool) -> Iterator[KeptEpisodes]:
    """What was played under these settings, in `folder`, which is made. What was played under others there is put
    aside, and is back when its settings are given again.

    Several processes may have it `shared`; these move nothing. One that does not share it is alone, and removes it
    when the block ends without an exception.
    """
    wanted: dict[str, Any] = json.loads(json.dumps(settings))
    with disk_errors(folder, "Make room, or choose another report_dir=FOLDER."):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder, required=False, shared=shared):
            with lock_in_turn(folder.with_name(f"{folder.name}.opening")):  # shares begin together
                _open(folder, wanted, shared)
            yield KeptEpisodes(folder)
            if not shared:
                shutil.rmtree(folder)


def _open(folder: Path, settings: dict[str, Any], shared: bool) -> None:
    begun, ours = settings_of(folder), _aside(folder, settings)
    changed = [name for name in {**begun, **settings} if begun.get(name) != settings.get(name)] if begun else []
    if changed:
        said = ", ".join(f"{name}={begun.get(name)} (now {settings.get(name)})" for name in changed)
        if shared:
            raise ToolkitError(
                f"{folder}: holds an evaluation with {said}, which a share does not move, for others may be at it. "
                "Remove it, or choose another report_dir=FOLDER."
            )
        aside = _aside(folder, begun)
        print(f"note: {folder} held an unfinished evaluation with {said}: it is {aside} now.", file=sys.stderr)
        folder.rename(aside)
    if not folder.exists() and ours.is_dir():
        ours.rename(folder)
    if any(folder.glob("*.jsonl")) and not shared:
        print(f"note: continues with the episodes in {folder}; without that folder it begins again.", file=sys.stderr)
    folder.mkdir(exist_ok=True)
    write_json(folder / SETTINGS, settings)


def settings_of(folder: Path) -> dict[str, Any]:
    """Those of the evaluation that is kept in a folder; {} where there is none."""
    return read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}


def _aside(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Where an evaluation waits that is not finished while one with other settings has its folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return folder.with_name(f"{folder.name}-{digest[:8]}")


def _whole_lines(path: Path | None) -> Iterator[dict[str, Any]]:
    """The lines of a segment's file; the last one may have been cut off when its process was killed."""
    if path is None or not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ToolkitError(
                    f"{path}, line {number}: is damaged ({error}). Remove the file: these episodes are played again."
                ) from None
