"""The register of checks, and running them: over one dataset folder, or over the parts of a split and between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.doctor import (
    PREPARE_AGAIN,
    CheckResult,
    DatasetReport,
    Finding,
    Report,
    alignment_checks,
    duplicate_checks,
    episode_checks,
    error,
    file_checks,
    in_short,
    language_checks,
    split_message,
    value_checks,
    video_checks,
)
from data_prep.doctor.examined_dataset import Progress, Subject
from gr00t.data.meta_files import in_ranges
from gr00t.data.schema import ModalityConfigs
from gr00t.errors import ToolkitError, did_you_mean, near_folder
from toolkit.shared_keys import PARTS, SUITE, SUITE_PARTS, TRAIN_CONFLICT


@dataclass(frozen=True)
class Check:
    """One check of a dataset, or in PAIR_CHECKS of (train, conflict): a function whose docstring says what it asks.

    `full` keeps it out of the fast part, which runs before training: it needs every frame. `asked` keeps it
    out unless it is asked for.
    """

    name: str
    examine: Callable[..., Iterable[Finding]]
    full: bool = False
    asked: bool = False

    @property
    def question(self) -> str:
        """What it asks, as the tables show it."""
        asked = self.examine.__doc__ or ""
        return asked[:1].lower() + asked[1:]


CHECKS = (
    Check("counts", file_checks.check_counts),
    Check("tables", file_checks.check_tables),
    Check("features", file_checks.check_features),
    Check("video files", file_checks.check_videos_present),
    Check("modality names", file_checks.check_names),
    Check("modality ranges", file_checks.check_ranges),
    Check("modality groups", file_checks.check_groups),
    Check("frame rate", episode_checks.check_rate),
    Check("timestamps", episode_checks.check_timestamps),
    Check("video rate", episode_checks.check_video_rate),
    Check("numbers", value_checks.check_finite),
    Check("units", value_checks.check_units),
    Check("constants", value_checks.check_constant),
    Check("outliers", episode_checks.check_outliers),
    Check("action convention", alignment_checks.check_convention),
    Check("action lead", alignment_checks.check_lead),
    Check("gripper", value_checks.check_gripper_direction),
    Check("statistics", value_checks.check_statistics),
    Check("relative statistics", value_checks.check_relative),
    Check("normalisation", value_checks.check_round_trip),
    Check("instructions", language_checks.check_tasks),
    Check("told", language_checks.check_told),
    Check("targets", language_checks.check_targets),
    Check("one answer", language_checks.check_conflicting),
    Check("lengths", episode_checks.check_lengths),
    Check("endings", episode_checks.check_endings),
    Check("idle", episode_checks.check_idle),
    Check("duplicates", duplicate_checks.check_duplicates),
    Check("held out", episode_checks.check_split),
    Check("video copies", video_checks.check_copies),
    Check("video decoding", video_checks.check_decoding),
    Check("video size", video_checks.check_sizes),
    Check("first frames", video_checks.check_first_frames),
    Check("colours", video_checks.check_colours),
    Check("frozen frames", video_checks.check_frozen, full=True),
    Check("blank frames", video_checks.check_blank, full=True),
    Check("frame order", video_checks.check_order, full=True),
    Check("likeness", video_checks.check_alike, full=True),
    Check("cameras", video_checks.check_cameras, full=True),
    Check("video and state", alignment_checks.check_alignment, full=True),
    Check("fingerprint", file_checks.check_unchanged),
    Check("probe", language_checks.check_taught, asked=True),
)

PAIR_CHECKS = (
    Check("train and conflict apart", duplicate_checks.check_apart),
    Check("same form", episode_checks.check_same_form),
    Check("same instruction", episode_checks.check_same_words),
)

TRAIN, CONFLICT = PARTS
TESTED = (CONFLICT, "unseen", "val", "validation", "test")  # folders beside train, which nothing of it may be in
BETWEEN = {part: f"train and {part}" for part in TESTED}
TAUGHT = f"{TRAIN_CONFLICT} and {CONFLICT}"
READABLE = ("layout", "can the dataset be read at all?")


def examine(
    path: str | Path,
    configs: ModalityConfigs,
    *,
    fast: bool = False,
    progress: Progress = lambda what, done, total: None,
    exclude: Iterable[int | str] = (),
    probe: bool = False,
) -> tuple[Report, list[Subject]]:
    """Every check of the dataset at `path`, or of train/, conflict/ and a suite's other parts below it; with what was
    examined.

    A dataset called train is compared with a conflict/, val/, validation/ or test/ beside it, and train_conflict with
    conflict/: neither may hold what the policy is tested on.

    fast: only what needs no decoding of whole videos. `progress` is called with (what, done, of how many). `exclude`:
    episodes that are left out (see DatasetLayout), of a split those of its train part; they are not examined.
    probe: also what the dataset, or the split's train part, teaches, which takes minutes. Raises ToolkitError where
    there is no dataset.
    """
    started, path = time.monotonic(), Path(path)
    subjects = [
        Subject(root, configs, fast=fast, progress=progress, exclude=exclude if root in (path, path / TRAIN) else ())
        for root in _dataset_folders(path)
    ]
    subjects[0].probe = probe
    reports = [examine_one(subject) for subject in subjects]
    first, beside = subjects[0], {subject.name: subject for subject in subjects[1:]}
    taught = first if first.name == TRAIN_CONFLICT else beside.pop(TRAIN_CONFLICT, None)
    folders = [first.root.parent / part for part in _tested_beside(first) if part not in beside]
    beside |= {f.name: Subject(f, configs, fast=fast, progress=progress) for f in folders if (f / "meta").is_dir()}
    if first.name == TRAIN:
        reports += [_compared(path, BETWEEN[n], first, tested, tested in subjects) for n, tested in beside.items()]
    if taught and CONFLICT in beside:
        # of its own folder, since its episodes are none of train's
        reports.append(_compared(taught.root, TAUGHT, taught, beside[CONFLICT]))
    return Report(path, tuple(reports), fast, time.monotonic() - started), subjects


def _tested_beside(first: Subject) -> tuple[str, ...]:
    """The folders beside what was given first that nothing of it may be in."""
    return {TRAIN: TESTED, TRAIN_CONFLICT: (CONFLICT,)}.get(first.name, ())


def _compared(folder: Path, name: str, train: Subject, tested: Subject, whole: bool = False) -> DatasetReport:
    """The checks between what is trained and what is tested on; of a `whole` split's train and conflict more than that
    they are apart. folder: of the report."""
    every = whole and name == BETWEEN[CONFLICT]
    checks = PAIR_CHECKS if every else (replace(PAIR_CHECKS[0], name=f"{name} apart"),)
    if train.refusal or tested.refusal:
        refused = train.name if train.refusal else tested.name
        skipped = (CheckResult(c.name, c.question, skipped=f"{refused} cannot be read") for c in checks)
        return DatasetReport(name, folder, tuple(skipped), {})
    return DatasetReport(name, folder, tuple(_result(check, train, tested) for check in checks), {})


def _dataset_folders(path: Path) -> list[Path]:
    """The folder itself, or its train/ and conflict/."""
    if not path.is_dir():
        near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        hint = near_folder(path) or did_you_mean(path.name, near).replace("Known:", "There are:")
        raise ToolkitError(f"{path}: no such folder.{hint} Give a dataset, or a split's folder with train/ in it.")
    if any((path / part).is_dir() for part in ("meta", "data", "videos")):
        return [path]
    parts = [path / part for part in SUITE_PARTS if (path / part).is_dir()]
    if parts:
        return parts
    nested = [*path.iterdir(), *path.glob(f"{SUITE}/*")]
    below = sorted(p.relative_to(path).as_posix() for p in nested if (p / "train").is_dir() or (p / "meta").is_dir())
    hint = f" Below it are: {', '.join(below[:8])}; give one, {path / below[0]}." if below else " Give one of them."
    raise ToolkitError(f"{path}: is neither a dataset (with meta/, data/, videos/) nor a split (with train/).{hint}")


def examine_one(subject: Subject) -> DatasetReport:
    """Every check of one dataset that can be made."""
    name, root = subject.name, subject.root
    if subject.refusal:
        refused = CheckResult(*READABLE, findings=(error(str(root), *split_message(subject.refusal)),))
        skipped = [CheckResult(c.name, c.question, skipped="the dataset cannot be read") for c in CHECKS if not c.asked]
        return DatasetReport(name, root, (refused, *skipped), {})
    results = [CheckResult(*READABLE)]
    checks = [check for check in CHECKS if subject.probe or not check.asked]
    for number, check in enumerate(checks):
        if check.full and subject.fast:
            results.append(CheckResult(check.name, check.question, skipped="not part of the fast examination"))
        else:
            subject.progress(f"{name}: {check.name}", number, len(checks))
            results.append(_result(check, subject))
    facts: dict[str, Any] = {}
    with suppress(Exception):  # of damaged meta data; the checks have said so
        facts = {
            "episodes": len(subject.lengths),
            "frames": sum(subject.lengths.values()),
            "excluded": in_ranges(subject.layout.excluded),
            "held_out": sorted(subject.held_out),
            "fps": subject.layout.fps,
            "robot_type": subject.layout.info.get("robot_type"),
            "codebase_version": subject.layout.info.get("codebase_version"),
            "cameras": subject.cameras,
            "instructions": len(subject.layout.tasks),
            **({"probe": subject.probed} if subject.probed else {}),
        }
    return DatasetReport(name, root, tuple(results), facts)


def _result(check: Check, *subjects: Subject) -> CheckResult:
    """A check's result; one that stumbles over data of an unforeseen form is an error, and the others are made."""
    findings: list[Finding] = []
    started = time.monotonic()
    try:
        findings += check.examine(*subjects)
    except ToolkitError as refusal:
        findings.append(error(check.name, *split_message(str(refusal))))
    except Exception as problem:
        # Training would stumble over it as well, or worse, not notice.
        found = f"This check could not be made ({in_short(problem)})."
        findings.append(error(check.name, found, f"Mend the other findings first, and examine again. {PREPARE_AGAIN}"))
    # the key of training says nothing of conflict episodes
    by = '"exclude": {} in meta/split.json' if subjects[0].name in SUITE_PARTS[1:] else "dataset.exclude={}"
    findings = [finding.advised(len(subjects[0].lengths), by) for finding in findings]
    return CheckResult(check.name, check.question, tuple(findings), seconds=round(time.monotonic() - started, 3))
