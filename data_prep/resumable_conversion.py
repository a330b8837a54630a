"""The episodes of a conversion that is not finished: kept in a hidden folder, and taken up again.

.<split>.converting/dataset/    the two datasets as far as they are written
.<split>.converting/episodes.jsonl    a line for every episode whose files are whole, with what they were made of
.<split>.converting/episodes-<random>.jsonl    the same, of a process that converts a share"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.lerobot import EpisodeJob, EpisodeRecord
from data_prep.recording_checks import is_passed_over
from gr00t.errors import ToolkitError
from gr00t.file_reading import files_below, parse_json, read_json
from gr00t.file_replacement import file_sha256, whole_file

Place = tuple[str, int]  # part, episode index


def converted_parts(target: Path, raw: Path, parts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """The parts that `target` holds, each made of just these recordings, byte for byte, with just these settings (of
    meta/split.json); none where it holds anything else. So does a job that is requeued after it published, or a command
    that is given twice."""
    there = [] if target.is_symlink() or not target.is_dir() else sorted(path.name for path in target.iterdir())
    recorded = {part for part in parts if (raw / part).is_dir()}
    split_files = {part: target / part / "meta" / "split.json" for part in there}
    fit = {*there} <= recorded and all(_is_made_of(file, raw / p, settings) for p, file in split_files.items())
    return there if fit else []


def _is_made_of(split_file: Path, folder: Path, settings: Mapping[str, Any]) -> bool:
    try:
        told = read_json(split_file)
        sources = {folder / of["file"]: (of["size"], of["sha256"]) for of in told["sources"]}
        recorded = {p for p in files_below(folder) if p.suffix == ".h5" and (p in sources or not is_passed_over(p))}
    except (ToolkitError, KeyError, TypeError):
        return False
    files = recorded | {p.with_suffix(".json") for p in recorded}
    if any(told.get(name) != value for name, value in settings.items()) or files != set(sources):
        return False
    same_size = all(p.is_file() and p.stat().st_size == size for p, (size, _) in sources.items())
    return same_size and all(file_sha256(p) == digest for p, (_, digest) in sources.items())


class Unfinished:
    """The episodes that are written on the way to `target`; hold target's lock, shared where not `alone`.

    Where others may be writing theirs too, nothing is cleared away. Attributes: dataset (the folder that is to become
    `target`); records (of the episodes that are there); dropped (how many an earlier start had written that no longer
    fit the recordings).
    """

    def __init__(self, target: Path, *, alone: bool = True) -> None:
        self.alone = alone
        self.folder = target.with_name(f".{target.name}.converting")
        self.dataset = self.folder / "dataset"
        self.records: dict[Place, EpisodeRecord] = {}
        self.dropped = 0
        self._journal = self.folder / ("episodes.jsonl" if alone else f"episodes-{secrets.token_hex(4)}.jsonl")

    def take_up(self, jobs: Sequence[EpisodeJob], start_over: bool) -> None:
        """Keep what an earlier start has written of these episodes, and clear away everything else.

        Where nothing fits, it was another conversion: raises ToolkitError unless `start_over`.
        """
        found: dict[Place, list[EpisodeRecord]] = {}
        # Without the folder it was published: killed then, the journal is all that is left of it.
        journals = sorted(self.folder.glob("episodes*.jsonl")) if self.dataset.is_dir() else []
        own = {(job.part, job.index): job for job in jobs}
        for journal in journals:
            for line in journal.read_text(encoding="utf-8", errors="replace").split("\n"):
                with suppress(ValueError, TypeError):  # of a line that a full disk or a power failure cut off
                    record = EpisodeRecord(**parse_json(line, journal))
                    place = (record.part, record.index)
                    if self.alone or place in own:
                        found.setdefault(place, []).append(record)
        self.dataset.mkdir(parents=True, exist_ok=True)
        for place, job in own.items():
            for record in found.get(place, [])[::-1]:
                if place not in self.records and self._fits(record, job):
                    self.records[place] = record
        self.dropped = len(found) - len(self.records)
        if found and not self.records and not start_over:
            raise ToolkitError(
                f"{self.folder}: holds {len(found)} episodes of a conversion that was interrupted, and none of them "
                "fits: these are other recordings, or were changed since, or the converter was of another version. "
                "Give the same recordings; or drop what is there and begin again: overwrite=true."
            )
        if self.alone:
            self._clear(journals)

    def _clear(self, journals: Sequence[Path]) -> None:
        """Clear away what belongs to no record, and make the journals one."""
        claimed = {self.dataset / name for record in self.records.values() for name in record.files}
        for path in sorted(self.dataset.rglob("*"), reverse=True):  # what a folder holds before the folder
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in claimed:
                path.unlink()
        # Written again, so that no line of another conversion, or cut off in the middle, stays in it.
        with whole_file(self._journal) as temporary:
            temporary.write_text("".join(_line(record) for record in self.records.values()), encoding="utf-8")
        for journal in journals:
            if journal != self._journal:
                journal.unlink()

    def add(self, record: EpisodeRecord) -> None:
        """Note an episode whose files are all in place."""
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(_line(record))
        self.records[record.part, record.index] = record

    def of(self, part: str) -> list[EpisodeRecord]:
        """The records of one part, in order."""
        return [record for place, record in sorted(self.records.items()) if place[0] == part]

    def take_over(self, parts: Sequence[Path]) -> None:
        """Bring parts of an earlier conversion into the dataset as they are, by links where the disk has them."""
        for part in parts:
            shutil.copytree(part, self.dataset / part.name, symlinks=True, copy_function=_link)

    @contextmanager
    def kept(self, total: int) -> Iterator[None]:
        """Around the work on `total` episodes: what is written stays when it fails, and the error says so."""
        try:
            yield
        except BaseException as error:
            if not self.records:
                if self.alone:
                    self.remove()
                raise
            done = f"{len(self.records)} of {total} episodes are converted"
            there = f"{done} and wait in {self.folder}: the same command resumes with them."
            if isinstance(error, ToolkitError):
                raise ToolkitError(f"{error}\n{there}") from error
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(there) from error
            raise

    def remove(self) -> None:
        """Clear everything away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _fits(self, record: EpisodeRecord, job: EpisodeJob) -> bool:
        """Whether the same recording, and every file is there as it was written."""
        if record.made_of != job.made_of() or list(record.files) != job.files():
            return False
        paths = [(self.dataset / name, digest) for name, digest in record.files.items()]
        return all(path.is_file() and file_sha256(path) == digest for path, digest in paths)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # of a disk that has no links
        shutil.copy2(source, target)


def _line(record: EpisodeRecord) -> str:
    return json.dumps(asdict(record)) + "\n"
