"""A conflict split's recordings, checked as a whole, to two datasets that appear together or not at all.

Each episode is written on its own, from its own recording, so neither the number of workers nor an interruption changes
the datasets.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    track,
)
from rich.text import Text

from data_prep.disk_space import DiskSpace
from data_prep.duplicates import check_apart, check_no_duplicates
from data_prep.lerobot import (
    DatasetPlan,
    EpisodeJob,
    EpisodeRecord,
    choose_val_episodes,
    episode_jobs,
    finish_dataset,
    make_folders,
    stamp,
    write_episode,
)
from data_prep.maniskill import Episode, LeftOut, Recordings, read_recordings
from data_prep.unfinished import Unfinished
from gr00t.data.schema import ModalityConfigs
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, file_lock, publish, real_path, recover
from gr00t.processes import first_done, worker_pool

PARTS = ("train", "conflict")
EPISODES_WORTH_A_PROCESS = 16  # starting one takes as long as about so many small episodes


@dataclass(frozen=True)
class PartReport:
    """One written dataset. `video_error`: mean absolute difference of sampled frames to the recording, of 255."""

    part: str
    episodes: int
    frames: int
    val_episodes: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    video_error: float
    size_bytes: int
    fingerprint: str


@dataclass
class ConversionReport:
    """Outcome of convert_split: the folder, what each part holds, warnings to show loudly, seconds taken.

    `converted` and `taken_up` are the frames and episodes written now and by an interrupted start before.
    """

    folder: Path
    parts: list[PartReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    converted: int = 0
    taken_up: int = 0
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """The report as text, warnings first."""
        text = [f"WARNING: {warning}" for warning in self.warnings] + self.notes
        for part in self.parts:
            text.append(
                f"{self.folder / part.part}: {part.episodes} episodes, {part.frames} frames, "
                f"{part.size_bytes / 1e6:.1f} MB, {len(part.val_episodes)} held out for validation"
            )
            for reason, count in Counter(e.reason for e in part.left_out).items():
                text.append(f"  left out, {reason}: {count}")
        rate = self.converted / max(self.seconds, 1e-3)
        before = f", after {self.taken_up} episodes of an interrupted start" if self.taken_up else ""
        text.append(f"{self.converted} frames converted in {self.seconds:.1f} s ({rate:.0f} frames/s){before}")
        return text


def convert_split(
    raw_dir: str | Path,
    data_dir: str | Path,
    split_name: str,
    instruction: str,
    modality_configs: ModalityConfigs,
    *,
    val_fraction: float = 0.1,
    seed: int = 42,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> ConversionReport:
    """Convert raw_dir/<split_name>/{train,conflict} to data_dir/<split_name>/{train,conflict}.

    Everything but pixels is checked before anything is written; the result appears whole or not at all. Started again
    after an interruption, it goes on with the episodes that are written and whose recordings are unchanged. The
    conflict part may be missing (a warning says so). Per-step statistics are made for the action horizon of
    `modality_configs`. `workers` is the number of processes, None for one per core where there is enough to do. Raises
    ToolkitError for anything the user can mend.
    """
    started = time.monotonic()
    target = Path(data_dir) / split_name
    _check_arguments(split_name, instruction, workers)
    _check_target(target, overwrite)
    report = ConversionReport(target)
    recordings = _read(Path(raw_dir) / split_name, progress, report)
    plans = _plan(recordings, instruction, val_fraction, seed, modality_configs)
    jobs = [job for plan in plans for job in episode_jobs(plan)]
    remedy = "Make room and start again: it goes on with what is converted. Or choose another data_dir=...."
    with disk_errors(target, remedy):
        place = real_path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target):
            recover(place)
            # Again, now that nobody else can write it: a killed run's old dataset may just have been put back.
            _check_target(target, overwrite)
            unfinished = Unfinished(place)
            unfinished.take_up(jobs, begin_anew=overwrite)
            with unfinished.kept(len(jobs)):
                _convert(unfinished, plans, jobs, workers, progress, report)
                publish(unfinished.dataset, place)
            unfinished.remove()
    report.seconds = time.monotonic() - started
    return report


# -- before anything is written ----------------------------------------------------------------------------------------


def _check_arguments(split_name: str, instruction: str, workers: int | None) -> None:
    if not split_name or split_name.startswith(".") or Path(split_name).name != split_name:
        raise ToolkitError(f'split name "{split_name}": give a plain folder name such as color_object.')
    if not instruction.strip() or "\n" in instruction:
        raise ToolkitError(
            f'The split "{split_name}" has no one-line instruction; recordings hold no language, so say it: '
            'split.instruction="pick up the color-matching object".'
        )
    if workers is not None and workers < 1:
        raise ToolkitError(f"workers is {workers}; give the number of processes, 1 or more.")


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise ToolkitError(f"{target}: exists already and is left as it is. To write it anew: overwrite=true.")
    if target.is_symlink() or not target.is_dir():
        raise ToolkitError(f"{target}: is a link or a file, which is not replaced. Remove it, or set data_dir=....")
    for entry in sorted(target.iterdir()):
        if entry.name not in PARTS or not (entry / "meta" / "info.json").is_file():
            raise ToolkitError(
                f"{target}: holds {entry.name}, which this converter did not write, so the folder is not replaced. "
                "Move it away, or set data_dir=...."
            )


def _read(raw: Path, progress: bool, report: ConversionReport) -> dict[str, Recordings]:
    """Read and check the recordings of each part; remarks go to `report`."""
    if not raw.is_dir():
        raise ToolkitError(f"{raw}: no such folder. raw_dir must hold {raw.name}/train and {raw.name}/conflict.")
    parts = [part for part in PARTS if part == "train" or (raw / part).is_dir()]
    recordings = {part: read_recordings(raw / part, _shown(f"{part}: checking", progress)) for part in parts}
    for found in recordings.values():
        check_no_duplicates(found)
        report.notes += found.notes
    if "conflict" in recordings:
        check_apart(recordings["train"], recordings["conflict"])
    else:
        report.warnings.append(
            f"{raw}/conflict is missing: the policy can be trained, but which cue it follows cannot be measured "
            "on recordings."
        )
    _check_one_frame_size([e for part in recordings.values() for e in part.episodes])
    return recordings


def _plan(
    recordings: dict[str, Recordings],
    instruction: str,
    val_fraction: float,
    seed: int,
    modality_configs: ModalityConfigs,
) -> list[DatasetPlan]:
    val = choose_val_episodes(len(recordings["train"].episodes), val_fraction, seed)
    held_out: dict[str, tuple[int, ...]] = {"train": val, "conflict": ()}
    plans = [
        DatasetPlan(part, found, instruction, held_out[part], val_fraction, seed, modality_configs)
        for part, found in recordings.items()
    ]
    for plan in plans:
        _check_horizon(plan)
    return plans


def _check_horizon(plan: DatasetPlan) -> None:
    """Every step of the action horizon needs at least one example for its statistics."""
    needed = max(plan.modality_configs["action"].delta_indices) + 1
    used = [e for i, e in enumerate(plan.recordings.episodes) if i not in plan.val_episodes]
    longest = max(used, key=lambda e: e.length)
    if longest.length < needed:
        raise ToolkitError(
            f"{plan.recordings.folder}: the longest episode outside validation ({longest.name}) has {longest.length} "
            f"steps, the action horizon has {needed}. Record longer episodes, or shorten the action "
            "horizon in the modality configuration (conflict_panda_config.py, or modality_config=FILE)."
        )


def _check_one_frame_size(episodes: list[Episode]) -> None:
    first = episodes[0]
    for episode in episodes:
        for camera, size in episode.frame_sizes.items():
            if size != first.frame_sizes[camera]:
                raise ToolkitError(
                    f"{episode.name}: the {camera} frames are {_by(size)}, those of {first.name} are "
                    f"{_by(first.frame_sizes[camera])}. Record the whole split with one size."
                )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# -- writing -----------------------------------------------------------------------------------------------------------


def _convert(
    unfinished: Unfinished,
    plans: list[DatasetPlan],
    jobs: list[EpisodeJob],
    workers: int | None,
    progress: bool,
    report: ConversionReport,
) -> None:
    """Write the episodes that are not there yet, then what the datasets say of themselves."""
    missing = [job for job in jobs if (job.part, job.index) not in unfinished.records]
    report.taken_up = len(unfinished.records)
    report.converted = sum(job.episode.length for job in missing)
    if unfinished.dropped:
        report.notes.append(f"{unfinished.dropped} episodes of an interrupted start no longer fit and were made anew.")
    space = DiskSpace(unfinished.dataset, missing, unfinished.records.values())
    space.check()
    make_folders(unfinished.dataset, jobs)
    with _progress_bar(progress) as bar:
        there = {plan.part: sum(record.frames for record in unfinished.of(plan.part)) for plan in plans}
        tasks = {plan.part: bar.add_task(plan.part, total=plan.frames, completed=there[plan.part]) for plan in plans}
        # Closed, so that the processes are gone when an error ends the loop.
        with closing(_written(unfinished.dataset, missing, _processes(workers, len(missing)))) as records:
            for record in records:
                unfinished.add(record)
                bar.advance(tasks[record.part], record.frames)
                space.written(record)
        _check_unchanged(jobs)
        for plan in plans:
            bar.update(tasks[plan.part], description=f"{plan.part}: statistics")
            report.parts.append(_finish(unfinished, plan))


def _processes(workers: int | None, episodes: int) -> int:
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), 1 + episodes // EPISODES_WORTH_A_PROCESS)
    return max(1, min(workers, episodes))


def _written(root: Path, jobs: Sequence[EpisodeJob], processes: int) -> Generator[EpisodeRecord]:
    """The records of the episodes, each as soon as its files are there."""
    if processes == 1:
        yield from (write_episode(root, job) for job in jobs)
        return
    try:
        with worker_pool(processes) as pool:
            waiting = {pool.submit(write_episode, root, job) for job in jobs}
            while waiting:
                ready, waiting = first_done(pool, waiting, "converting")
                yield from (done.result() for done in ready)
    except BrokenProcessPool as error:
        raise ToolkitError(
            "A worker process died, perhaps for lack of memory: each holds one camera's frames of one episode. Start "
            "again with a smaller workers=...."
        ) from error


def _check_unchanged(jobs: list[EpisodeJob]) -> None:
    for file, before in {job.episode.file: job.stamp for job in jobs}.items():
        if not file.is_file() or stamp(file) != before:
            raise ToolkitError(
                f"{file}: was changed while it was converted. Wait until the recording is complete, then start again."
            )


def _finish(unfinished: Unfinished, plan: DatasetPlan) -> PartReport:
    root = unfinished.dataset / plan.part
    written = finish_dataset(root, plan, unfinished.of(plan.part))
    return PartReport(
        part=plan.part,
        episodes=len(plan.recordings.episodes),
        frames=plan.frames,
        val_episodes=plan.val_episodes,
        left_out=tuple(plan.recordings.left_out),
        video_error=written.video_error,
        size_bytes=sum(p.stat().st_size for p in root.rglob("*") if p.is_file()),
        fingerprint=written.fingerprint,
    )


# -- progress ----------------------------------------------------------------------------------------------------------


def _shown(what: str, enabled: bool) -> Callable[[list[Path]], Iterable[Path]]:
    """Goes through files with a bar that tells how far it has got, and that vanishes."""
    settings: dict[str, Any] = {"console": Console(stderr=True), "transient": True, "disable": not enabled}
    return lambda files: track(files, what, **settings)


class _FrameRate(ProgressColumn):
    """Frames/s of the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "")


def _progress_bar(enabled: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), _FrameRate())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not enabled)
