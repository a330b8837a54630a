"""A conflict split's recordings, checked as a whole, to two datasets that appear together or not at all."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from conflict_panda_config import MODALITY_CONFIG
from data_prep.lerobot import DatasetPlan, choose_val_episodes, write_dataset
from data_prep.maniskill import Episode, LeftOut, Recordings, read_recordings
from gr00t.data.schema import ModalityConfigs
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, whole_folder

PARTS = ("train", "conflict")
# Twice what the noisiest camera measured takes in H.264, so that the check errs on the safe side.
BYTES_PER_PIXEL = 0.3
BYTES_PER_FRAME = 400  # a row of the frame table
BYTES_PER_EPISODE = 40_000  # file headers


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
    """Outcome of convert_split: the folder, what each part holds, warnings to show loudly, seconds taken."""

    folder: Path
    parts: list[PartReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
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
        return text


def convert_split(
    raw_dir: str | Path,
    data_dir: str | Path,
    split_name: str,
    instruction: str,
    *,
    val_fraction: float = 0.1,
    seed: int = 42,
    overwrite: bool = False,
    workers: int = 1,
    progress: bool = True,
    modality_configs: ModalityConfigs = MODALITY_CONFIG,
) -> ConversionReport:
    """Convert raw_dir/<split_name>/{train,conflict} to data_dir/<split_name>/{train,conflict}.

    Everything but pixels is checked before anything is written; the result appears whole or not at all, and an
    interrupted conversion is simply started again. The conflict part may be missing (a warning says so). Per-step
    statistics are made for the action horizon of `modality_configs`. `workers` is the number of encoding threads.
    Raises ToolkitError for anything the user can mend.
    """
    started = time.monotonic()
    target = Path(data_dir) / split_name
    _check_arguments(split_name, instruction, workers)
    _check_target(target, overwrite)
    report = ConversionReport(target)
    plans = _plan(Path(raw_dir) / split_name, instruction, val_fraction, seed, modality_configs, report)
    remedy = "Make room, or choose another data_dir=...."
    with disk_errors(target, remedy), whole_folder(target) as aside:
        # Again, now that nobody else can write it: a killed run's old dataset may just have been put back.
        _check_target(target, overwrite)
        _check_disk_space(target.parent, plans)
        report.parts = _write(aside, plans, workers, progress)
    report.seconds = time.monotonic() - started
    return report


# -- before anything is written ----------------------------------------------------------------------------------------


def _check_arguments(split_name: str, instruction: str, workers: int) -> None:
    if not split_name or split_name.startswith(".") or Path(split_name).name != split_name:
        raise ToolkitError(f'split name "{split_name}": give a plain folder name such as color_object.')
    if not instruction.strip() or "\n" in instruction:
        raise ToolkitError(
            f'The split "{split_name}" has no one-line instruction; recordings hold no language, so say it: '
            'split.instruction="pick up the color-matching object".'
        )
    if workers < 1:
        raise ToolkitError(f"workers is {workers}; give the number of encoding threads, 1 or more.")


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


def _plan(
    raw: Path,
    instruction: str,
    val_fraction: float,
    seed: int,
    modality_configs: ModalityConfigs,
    report: ConversionReport,
) -> list[DatasetPlan]:
    """Read and check both parts; remarks go to `report`."""
    if not raw.is_dir():
        raise ToolkitError(f"{raw}: no such folder. raw_dir must hold {raw.name}/train and {raw.name}/conflict.")
    recordings = {"train": read_recordings(raw / "train")}
    if (raw / "conflict").is_dir():
        recordings["conflict"] = read_recordings(raw / "conflict")
        _check_apart(recordings["train"], recordings["conflict"])
    else:
        report.warnings.append(
            f"{raw}/conflict is missing: the policy can be trained, but which cue it follows cannot be measured "
            "on recordings."
        )
    _check_one_frame_size([e for part in recordings.values() for e in part.episodes])
    report.notes += [note for part in recordings.values() for note in part.notes]
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
            f"steps, the action horizon has {needed}. Record longer episodes, or shorten ACTION_HORIZON in "
            "conflict_panda_config.py."
        )


def _check_apart(train: Recordings, conflict: Recordings) -> None:
    known = {e.content: e for e in train.episodes}
    for episode in conflict.episodes:
        if episode.content in known:
            raise ToolkitError(
                f"{episode.name} is also a train episode ({known[episode.content].name}). Conflict episodes must never "
                "enter training: remove it from one of the two."
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


def _check_disk_space(folder: Path, plans: list[DatasetPlan]) -> None:
    needed = sum(_expected_bytes(e) for plan in plans for e in plan.recordings.episodes)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ToolkitError(
            f"{folder}: about {needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free. Make room, or choose "
            "another data_dir=...."
        )


def _expected_bytes(episode: Episode) -> int:
    pixels = sum(height * width for height, width in episode.frame_sizes.values())
    return int(episode.length * (pixels * BYTES_PER_PIXEL + BYTES_PER_FRAME) + BYTES_PER_EPISODE)


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(aside: Path, plans: list[DatasetPlan], workers: int, progress: bool) -> list[PartReport]:
    with _progress_bar(progress) as bar:
        tasks = [bar.add_task(plan.part, total=plan.frames) for plan in plans]
        return [
            _write_part(aside / plan.part, plan, workers, bar, task) for plan, task in zip(plans, tasks, strict=True)
        ]


def _write_part(root: Path, plan: DatasetPlan, workers: int, bar: Progress, task: TaskID) -> PartReport:
    written = write_dataset(root, plan, lambda frames: bar.advance(task, frames), workers)
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


def _progress_bar(enabled: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not enabled)
