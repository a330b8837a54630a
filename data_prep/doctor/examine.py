"""Running the checks: over one dataset folder, or over the parts of a split and what is between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.doctor.findings import (
    PREPARE_AGAIN,
    CheckResult,
    DatasetReport,
    Finding,
    Report,
    error,
    in_short,
    split_message,
)
from data_prep.doctor.registry import CHECKS, PAIR_CHECKS
from data_prep.doctor.subject import Progress, Subject
from gr00t.data.schema import ModalityConfigs
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import near_folder

PARTS = ("train", "conflict")
BETWEEN = "train and conflict"
READABLE = ("layout", "can the dataset be read at all?")


def examine(
    path: str | Path,
    configs: ModalityConfigs,
    *,
    fast: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Report, list[Subject]]:
    """Every check of the dataset at `path`, or of train/ and conflict/ below it; with what was examined.

    fast: only what needs no decoding of whole videos. `progress` is told (what, done, of how many).
    Raises ToolkitError where there is no dataset.
    """
    started = time.monotonic()
    folders = dataset_folders(Path(path))
    subjects = [Subject(root, configs, fast=fast, progress=progress) for root in folders]
    reports = [examine_one(subject) for subject in subjects]
    if len(subjects) == 2 and not any(subject.refusal for subject in subjects):
        reports.append(_between(Path(path), subjects[0], subjects[1]))
    return Report(Path(path), tuple(reports), fast, time.monotonic() - started), subjects


def dataset_folders(path: Path) -> list[Path]:
    """The folder itself, or its train/ and conflict/."""
    if not path.is_dir():
        near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        hint = near_folder(path) or did_you_mean(path.name, near).replace("Known:", "There are:")
        raise ToolkitError(f"{path}: no such folder.{hint} Give a dataset, or a split's folder with train/ in it.")
    if any((path / part).is_dir() for part in ("meta", "data", "videos")):
        return [path]
    parts = [path / part for part in PARTS if (path / part).is_dir()]
    if parts:
        return parts
    below = sorted(p.name for p in path.iterdir() if (p / "train").is_dir() or (p / "meta").is_dir())
    hint = f" Below it are: {', '.join(below[:8])}; give one, {path / below[0]}." if below else " Give one of them."
    raise ToolkitError(f"{path}: is neither a dataset (with meta/, data/, videos/) nor a split (with train/).{hint}")


def examine_one(subject: Subject) -> DatasetReport:
    """Every check of one dataset that can be made."""
    if subject.refusal:
        found, remedy = split_message(subject.refusal)
        refused = CheckResult(*READABLE, findings=(error(str(subject.root), found, remedy),))
        skipped = [CheckResult(c.name, c.question, skipped="the dataset cannot be read") for c in CHECKS]
        return DatasetReport(subject.name, subject.root, (refused, *skipped), {})
    results = [CheckResult(*READABLE)]
    for number, check in enumerate(CHECKS):
        if check.full and subject.fast:
            results.append(CheckResult(check.name, check.question, skipped="not part of the fast examination"))
            continue
        subject.progress(f"{subject.name}: {check.name}", number, len(CHECKS))
        results.append(_made(check.name, check.question, partial(check.examine, subject)))
    facts: dict[str, Any] = {}
    with suppress(Exception):  # of damaged meta data; the checks have said so
        facts = _facts(subject)
    return DatasetReport(subject.name, subject.root, tuple(results), facts)


def _between(path: Path, train: Subject, conflict: Subject) -> DatasetReport:
    results = [_made(c.name, c.question, partial(c.examine, train, conflict)) for c in PAIR_CHECKS]
    return DatasetReport(BETWEEN, path, tuple(results), {})


def _made(name: str, question: str, make: Callable[[], Iterable[Finding]]) -> CheckResult:
    """A check's result; one that stumbles over data of an unforeseen form is an error, and the others go on."""
    findings: list[Finding] = []
    started = time.monotonic()
    try:
        findings += make()
    except ToolkitError as refusal:
        findings.append(error(name, *split_message(str(refusal))))
    except Exception as problem:
        # Training would stumble over it as well, or worse, not notice.
        found = f"This check could not be made ({in_short(problem)})."
        findings.append(error(name, found, f"Mend the other findings first, and examine again. {PREPARE_AGAIN}"))
    return CheckResult(name, question, tuple(findings), seconds=round(time.monotonic() - started, 3))


def _facts(subject: Subject) -> dict[str, Any]:
    lengths = [e.length for e in subject.episodes]
    return {
        "episodes": len(lengths),
        "frames": sum(lengths),
        "held_out": sorted(subject.held_out),
        "fps": subject.layout.fps,
        "robot_type": subject.layout.info.get("robot_type"),
        "codebase_version": subject.layout.info.get("codebase_version"),
        "cameras": subject.cameras,
        "instructions": len(subject.layout.tasks),
    }
