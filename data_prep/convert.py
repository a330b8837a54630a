"""A conflict split's recordings, checked as a whole, to a dataset for each part, which appear together or not at all.

Each episode is written on its own, from its own recording, so neither the number of workers nor an interruption changes
the datasets."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import ProgressColumn, Task, track
from rich.text import Text

from data_prep.lerobot import (
    DatasetPlan,
    EpisodeJob,
    EpisodeRecord,
    choose_val_episodes,
    episode_jobs,
    finish_dataset,
    settings_told,
    stamp,
    write_episode,
)
from data_prep.maniskill import Episode, LeftOut, Recordings
from data_prep.recording_checks import check_apart, check_no_duplicates, check_told, read_recordings
from data_prep.resumable_conversion import Unfinished, converted_parts
from gr00t.data.schema import ModalityConfigs
from gr00t.errors import ToolkitError, disk_errors, free_space, in_bytes
from gr00t.file_reading import read_json
from gr00t.file_replacement import file_lock, publish, real_path, recover
from toolkit.processes import first_done, worker_pool
from toolkit.progress import progress_bar
from toolkit.shared_keys import check_split_name, parts_of, share_of, split_folder

EPISODES_WORTH_A_PROCESS = 16  # starting one takes as long as about so many small episodes

# The disk space that an episode is expected to take.
BYTES_PER_PIXEL = 0.3  # twice what the noisiest camera measured takes in H.264, so that the check errs on the safe side
BYTES_PER_FRAME = 400  # a row of the frame table
BYTES_PER_EPISODE = 40_000  # file headers
TELLING_FRAMES = 2000  # from so many on, what is written predicts the rest better

DISK_REMEDY = "Make room and start again: it continues with what is converted. Or choose another data_dir=...."


@dataclass(frozen=True)
class PartReport:
    """One written dataset, `val_episodes` of its episodes held out, with the recorded ones that are left out."""

    part: str
    episodes: int
    frames: int
    val_episodes: int
    left_out: tuple[LeftOut, ...]
    size_bytes: int
    fingerprint: str


@dataclass
class ConversionReport:
    """Outcome of convert_split: the folder, what each part holds (nothing after a share), what else there is to say,
    seconds taken.

    `converted` and `taken_up` are the frames and episodes written now and by an interrupted start before, `kept` the
    parts that were there and stay.
    """

    folder: Path
    parts: list[PartReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    converted: int = 0
    taken_up: int = 0
    seconds: float = 0.0
    kept: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text."""
        text = list(self.notes)
        for part in self.parts:
            text.append(
                f"{self.folder / part.part}: {part.episodes} episodes, {part.frames} frames, "
                f"{part.size_bytes / 1e6:.1f} MB, {part.val_episodes} held out for validation"
            )
            for reason, count in Counter(e.reason for e in part.left_out).items():
                text.append(f"  left out, {reason}: {count}")
        if not self.parts and not self.converted:
            return text
        rate = self.converted / max(self.seconds, 1e-3)
        before = f", after {self.taken_up} episodes of an interrupted start" if self.taken_up else ""
        text.append(f"{self.converted} frames converted in {self.seconds:.1f} s ({rate:.0f} frames/s){before}")
        return text


def convert_split(
    raw_dir: str | Path,
    data_dir: str | Path,
    split_name: str,
    instruction: str | None,
    modality_configs: ModalityConfigs,
    *,
    val_fraction: float = 0.1,
    seed: int = 42,
    overwrite: bool = False,
    workers: int | None = None,
    share: str | None = None,
    progress: bool = True,
) -> ConversionReport:
    """Convert raw_dir/<split_name>/<part> to data_dir/<split_name>/<part> for each part of the split that is recorded.

    `instruction` is that of the episodes whose recordings hold none; None where all hold one. Everything but pixels is
    checked before anything is written; the result appears whole or not at all. This very conversion, where it is there
    already, is noted and left; where some of its parts are there, the others are added. Started again, it resumes with
    the episodes that are written and whose recordings are unchanged. Parts beside train may be missing (of conflict a
    warning says so). Per-step statistics are made for the action horizon of `modality_configs`. `workers` is the number
    of processes, None for one per core. With `share` ("2/8") only that share of the episodes is written, side by side
    with other shares, for a later call without it to take up. Raises ToolkitError for anything the user can mend.
    """
    started = time.monotonic()
    target = Path(data_dir) / split_name
    _check_arguments(split_name, instruction, workers)
    report = ConversionReport(target)
    settings = settings_told(instruction, seed, val_fraction, modality_configs)
    is_there = partial(_is_there, Path(raw_dir) / split_name, settings, overwrite, report)
    if is_there():
        return report
    parts = _read(Path(raw_dir) / split_name, parts_of(split_name), progress, report)
    check_told(parts, split_name, instruction)
    plans = [_plan(part, found, instruction, val_fraction, seed, modality_configs) for part, found in parts.items()]
    with disk_errors(target, DISK_REMEDY), _locked(target, share) as place:
        # Again, now that nobody else can write it: a killed run's old dataset may just have been put back.
        if is_there():
            return report
        report.notes += _lists_dropped(place, [part for part in parts_of(split_name) if part not in report.kept])
        report.notes += [f"{target / part}: is there already and stays as it is." for part in report.kept]
        missing = [plan for plan in plans if plan.part not in report.kept]
        _convert_to(place, missing, share, overwrite, workers, progress, report)
    report.seconds = time.monotonic() - started
    return report


@contextmanager
def _locked(target: Path, share: str | None) -> Iterator[Path]:
    """Where `target` really lies, which nobody else writes meanwhile, but for other shares where `share` is one."""
    place = real_path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(target, shared=share is not None):
        if share is None:
            recover(place)
        yield place


# -- before anything is written ----------------------------------------------------------------------------------------


def _check_arguments(split_name: str, instruction: str | None, workers: int | None) -> None:
    try:
        check_split_name(split_name)
    except ToolkitError as error:
        raise ToolkitError(f'split name "{split_name}": {error}') from None
    if instruction is not None and (not instruction.strip() or "\n" in instruction):
        raise ToolkitError(
            f'The split "{split_name}" has no one-line instruction; recordings hold no language, so say it: '
            'split.instruction="pick up the color-matching object".'
        )
    if workers is not None and workers < 1:
        raise ToolkitError(f"workers is {workers}; give the number of processes, 1 or more.")


def _is_there(raw: Path, settings: Mapping[str, Any], overwrite: bool, report: ConversionReport) -> bool:
    """Whether the report's folder holds this very conversion, which is noted; what may not be replaced is refused."""
    parts, target = parts_of(split_folder(raw)[1]), report.folder
    report.kept = [] if overwrite else converted_parts(target, raw, parts, settings)
    if report.kept:
        if all(part in report.kept for part in parts if (raw / part).is_dir()):
            report.notes.append(f"{target}: already holds these recordings, converted with these settings.")
            return True
        return False
    if not target.exists() and not target.is_symlink():
        return False
    if not overwrite:
        raise ToolkitError(f"{target}: exists already and is left as it is. To replace it: overwrite=true.")
    if target.is_symlink() or not target.is_dir():
        raise ToolkitError(f"{target}: is a link or a file, which is not replaced. Remove it, or set data_dir=....")
    for entry in sorted(target.iterdir()):
        if entry.name not in parts or not (entry / "meta" / "info.json").is_file():
            raise ToolkitError(
                f"{target}: holds {entry.name}, which this converter did not write, so the folder is not replaced. "
                "Move it away, or set data_dir=...."
            )
    return False


def _lists_dropped(target: Path, parts: Sequence[str]) -> list[str]:
    """A note for each part to be replaced whose list of episodes to leave out goes with it."""
    why = "is not kept, for the numbers may now be other episodes. Write it again where they are the same."
    found = {}
    for path in (target / part / "meta" / "split.json" for part in parts):
        with suppress(ToolkitError):  # missing, or damaged
            found[path] = read_json(path).get("exclude")
    return [f'{path}: "exclude" {json.dumps(excluded)} {why}' for path, excluded in found.items() if excluded]


def _read(raw: Path, names: Sequence[str], progress: bool, report: ConversionReport) -> dict[str, Recordings]:
    """Read and check the recordings of each part; remarks go to `report`."""
    if not raw.is_dir():
        raise ToolkitError(f"{raw}: no such folder. raw_dir must hold {raw.name}/train and {raw.name}/conflict.")
    bar = partial(track, console=Console(stderr=True), transient=True, disable=not progress)
    parts = [part for part in names if part == "train" or (raw / part).is_dir()]
    recordings = {part: read_recordings(raw / part, partial(bar, description=f"{part}: checking")) for part in parts}
    for found in recordings.values():
        check_no_duplicates(found)
    if "conflict" in names and "conflict" not in recordings:
        problem = f"{raw}/conflict is missing: the policy can be trained"
        report.notes.append(f"WARNING: {problem}, but which cue it follows cannot be measured on recordings.")
    check_apart(recordings)
    report.notes += [note for found in recordings.values() for note in found.notes]
    first, *others = [e for found in recordings.values() for e in found.episodes]
    for episode in others:
        for camera, usual in first.frame_sizes.items():
            if episode.frame_sizes[camera] != usual:
                found_size = "{}x{}".format(*episode.frame_sizes[camera])
                raise ToolkitError(
                    f"{episode.name}: the {camera} frames are {found_size}, those of {first.name} are "
                    f"{usual[0]}x{usual[1]}. Record the whole split with one size."
                )
    return recordings


def _plan(
    part: str, found: Recordings, instruction: str | None, val_fraction: float, seed: int, configs: ModalityConfigs
) -> DatasetPlan:
    val = choose_val_episodes(len(found.episodes), val_fraction, seed) if part == "train" else ()
    # Every step of the action horizon needs at least one example for its statistics.
    needed = max(configs["action"].delta_indices) + 1
    longest = max((e for i, e in enumerate(found.episodes) if i not in val), key=lambda e: e.length)
    if longest.length < needed:
        raise ToolkitError(
            f"{found.folder}: the longest episode outside validation ({longest.name}) has {longest.length} steps, the "
            f"action horizon has {needed}. Record longer episodes, or shorten the action horizon in the modality "
            "configuration (conflict_panda_config.py, or modality_config=FILE)."
        )
    return DatasetPlan(part, found, instruction, val, val_fraction, seed, configs)


# -- writing -----------------------------------------------------------------------------------------------------------


class _FrameRate(ProgressColumn):
    """Frames/s of the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "")


def _convert_to(
    place: Path,
    plans: list[DatasetPlan],
    share: str | None,
    overwrite: bool,
    workers: int | None,
    progress: bool,
    report: ConversionReport,
) -> None:
    """Write what is missing of the episodes, or of a share of them, and publish the datasets when all are there."""
    jobs = [job for plan in plans for job in episode_jobs(plan)][share_of(share)]
    unfinished = Unfinished(place, alone=share is None)
    unfinished.take_up(jobs, start_over=overwrite)
    missing = [job for job in jobs if (job.part, job.index) not in unfinished.records]
    report.taken_up, report.converted = len(unfinished.records), sum(job.episode.length for job in missing)
    if unfinished.dropped:
        report.notes.append(f"{unfinished.dropped} episodes of an interrupted start no longer fit and were made again.")
    total: Counter[str] = Counter()
    for job in jobs:
        total[job.part] += job.episode.length
    with unfinished.kept(len(jobs)), progress_bar(_FrameRate(), unit="frames", show=progress) as bar:
        there = {plan.part: sum(record.frames for record in unfinished.of(plan.part)) for plan in plans}
        tasks = {part: bar.add_task(part, total=total[part], completed=done) for part, done in there.items()}
        _write(unfinished, missing, workers, lambda record: bar.advance(tasks[record.part], record.frames))
        for file, before in {job.episode.file: job.stamp for job in jobs}.items():
            if not file.is_file() or stamp(file) != before:
                raise ToolkitError(
                    f"{file}: was changed while it was converted. Wait until the recording is complete, then start "
                    "again."
                )
        if share is None:
            for plan in plans:
                bar.update(tasks[plan.part], description=f"{plan.part}: statistics")
                report.parts.append(_finish(unfinished, plan))
            unfinished.take_over([place / part for part in report.kept])
            publish(unfinished.dataset, place)
    if share is None:
        unfinished.remove()
    else:
        report.notes.append(f"{unfinished.folder}: share {share} is there; the same without share=... finishes.")


def _write(
    unfinished: Unfinished, jobs: list[EpisodeJob], workers: int | None, written: Callable[[EpisodeRecord], object]
) -> None:
    """Write these episodes, while there is room for them."""
    left, there = sum(job.episode.length for job in jobs), unfinished.records.values()
    frames, size = sum(record.frames for record in there), sum(record.size for record in there)
    needed = left * size / frames if frames >= TELLING_FRAMES else sum(_guess(job.episode) for job in jobs)
    _check_space(unfinished.dataset, needed)
    for folder in {(unfinished.dataset / name).parent for job in jobs for name in job.files()}:
        folder.mkdir(parents=True, exist_ok=True)
    # Closed, so that the processes are gone when an error ends the loop.
    with closing(_written(unfinished.dataset, jobs, workers)) as records:
        for record in records:
            unfinished.add(record)
            written(record)
            left, frames, size = left - record.frames, frames + record.frames, size + record.size
            if frames >= TELLING_FRAMES:  # so that it shows well before the disk is full
                _check_space(unfinished.dataset, left * size / frames)


def _check_space(folder: Path, needed: float) -> None:
    free = free_space(folder)
    if free < needed:
        raise ToolkitError(
            f"{folder}: about {in_bytes(needed)} are needed and {in_bytes(free)} are free. Make room, or choose "
            "another data_dir=...."
        )


def _guess(episode: Episode) -> float:
    """Bytes that an episode takes, where too few are written to measure it."""
    pixels = sum(height * width for height, width in episode.frame_sizes.values())
    return episode.length * (pixels * BYTES_PER_PIXEL + BYTES_PER_FRAME) + BYTES_PER_EPISODE


def _written(root: Path, jobs: Sequence[EpisodeJob], workers: int | None) -> Generator[EpisodeRecord]:
    """The records of the episodes, each as soon as its files are there."""
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), 1 + len(jobs) // EPISODES_WORTH_A_PROCESS)
    if min(workers, len(jobs)) <= 1:
        yield from (write_episode(root, job) for job in jobs)
        return
    try:
        with worker_pool(min(workers, len(jobs))) as pool:
            waiting = {pool.submit(write_episode, root, job) for job in jobs}
            while waiting:
                ready, waiting = first_done(pool, waiting, "converting")
                yield from (done.result() for done in ready)
    except BrokenProcessPool as error:
        raise ToolkitError(
            "A worker process died, perhaps for lack of memory: each holds one camera's frames of one episode. Start "
            "again with a smaller workers=...."
        ) from error


def _finish(unfinished: Unfinished, plan: DatasetPlan) -> PartReport:
    root, episodes, held_out = unfinished.dataset / plan.part, len(plan.recordings.episodes), len(plan.val_episodes)
    fingerprint = finish_dataset(root, plan, unfinished.of(plan.part))
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    left_out = tuple(plan.recordings.left_out)
    return PartReport(plan.part, episodes, plan.frames, held_out, left_out, size, fingerprint)
