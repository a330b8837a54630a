"""What a run folder tells of its run: measurements, status, attempts, evaluations, pictures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.best import read_best
from finetune.config.identity import flat, recipe
from finetune.run_files import EVALUATIONS, FIRST_BATCH, METRICS, STATUS
from finetune.slurm import record
from finetune.slurm.runs import resolved
from gr00t.errors import ToolkitError
from gr00t.files import read_json

Series = dict[str, tuple[list[int], list[float]]]
"""Steps and values by the measurement's name."""


@dataclass(frozen=True)
class Start:
    """A step from which a run was gone on with, and what had ended it there."""

    step: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class History:
    """One run. `series` holds training's measurements and the evaluations' ("val/...")."""

    name: str
    folder: Path
    split: str
    settings: dict[str, Any]
    series: Series
    status: str
    reason: str
    starts: list[Start]
    best: dict[str, Any] | None
    pictures: dict[str, Path]
    evaluations: list[Result]

    @property
    def step(self) -> int:
        """The last logged one."""
        return max((steps[-1] for steps, _ in self.series.values()), default=0)

    def last(self, name: str) -> float | None:
        """The last value of a measurement."""
        return self.series[name][1][-1] if name in self.series else None


@dataclass(frozen=True)
class Result:
    """An evaluation of the finished checkpoint: open loop or closed loop, of a part, in one line."""

    kind: str
    part: str
    said: str
    folder: Path


def read_history(run_dir: Path, reports_dir: Path) -> History:
    """The run in a folder. Raises ToolkitError where there is none, or nothing was measured yet."""
    path = run_dir / METRICS
    if not path.is_file():
        raise ToolkitError(
            f"{run_dir} holds no {METRICS}, so no run was logged there. Give a run folder (run_dir of a fine-tune), or "
            "a folder that holds some."
        )
    settings = resolved(run_dir)
    status, reason = _status(run_dir)
    return History(
        name=run_dir.name,
        folder=run_dir,
        split=str(settings.get("split", {}).get("name", "")),
        settings=flat_settings(settings),
        series=read_series(path),
        status=status,
        reason=reason,
        starts=_starts(run_dir),
        best=read_best(run_dir),
        pictures=_pictures(run_dir),
        evaluations=list(_results(settings, reports_dir)),
    )


def read_series(path: Path) -> Series:
    """Every measurement in a metrics.jsonl; a line that is being written, or damaged, is passed over."""
    series: Series = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                steps, found = series.setdefault(name, ([], []))
                steps.append(step)
                found.append(float(value))
    return series


def flat_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What makes runs differ: the recipe, base, engine and dataset, by dotted name."""
    if not settings:
        return {}
    found = recipe(settings)
    for section, name in (("model", "base"), ("engine", "name"), ("dataset", "data_dir")):
        found[f"{section}.{name}"] = settings.get(section, {}).get(name)
    return flat(found)


def _status(run_dir: Path) -> tuple[str, str]:
    """A word and a reason; of one that says it runs, when it last logged, since it may have been killed."""
    path = run_dir / STATUS
    if not path.is_file():
        return "unknown", "it was logged by an older version"
    found = read_json(path)
    status, reason = str(found.get("status", "unknown")), str(found.get("reason", ""))
    if status == "running":
        minutes = (time.time() - (run_dir / METRICS).stat().st_mtime) / 60
        reason = f"last logged {minutes:.0f} minutes before this page was made"
    return status, reason


def _starts(run_dir: Path) -> list[Start]:
    attempts = record.attempts(run_dir)
    ends = ["", *(_end(attempt) for attempt in attempts)]
    return [
        Start(int(attempt.begun.get("from_step", 0)), attempt.number, before)
        for attempt, before in zip(attempts, ends, strict=False)
    ]


def _end(attempt: record.Attempt) -> str:
    told = attempt.ended or attempt.outcome or {}
    return str(told.get("reason") or told.get("status") or "lost")


def _pictures(run_dir: Path) -> dict[str, Path]:
    """The first batch, and the newest evaluation's."""
    found = {"The first batch as the policy sees it": run_dir / FIRST_BATCH}
    steps = sorted({int(p.name.split("-")[1]) for p in (run_dir / EVALUATIONS).glob("step-*-errors.png")})
    for step in steps[-1:]:
        found[f"Held-out episodes after {step} steps"] = run_dir / EVALUATIONS / f"step-{step}-errors.png"
        found[f"A held-out episode after {step} steps"] = run_dir / EVALUATIONS / f"step-{step}-episode.png"
    return {title: path for title, path in found.items() if path.is_file()}


def _results(settings: dict[str, Any], reports_dir: Path) -> Iterator[Result]:
    """Evaluations of the run's checkpoint in reports_dir/<split>; damaged ones are named, not hidden."""
    split, checkpoint = settings.get("split", {}).get("name"), settings.get("output_dir")
    if not split or not checkpoint:
        return
    for path in sorted((reports_dir / split).rglob("*_loop.json")):
        try:
            found = read_json(path)
            info = found.get("info", found)
            if Path(str(info.get("checkpoint"))).absolute() != Path(checkpoint).absolute():
                continue
            yield from _open_loop(found, path) if path.name == "open_loop.json" else _closed_loop(found, path)
        except (ToolkitError, KeyError, TypeError, AttributeError) as error:
            yield Result("damaged", "", f"{path}: {error}", path.parent)


def _open_loop(found: dict[str, Any], path: Path) -> Iterator[Result]:
    errors = {section: found["overall"][section]["errors"] for section in ("all", "last")}
    said = "; ".join(
        f"{group} error {errors['all'][group]['policy']['mae']:.4f}, last frames "
        f"{errors['last'][group]['policy']['mae']:.4f} (holding still {errors['all'][group]['hold_still']['mae']:.4f})"
        for group in errors["all"]
    )
    yield Result("open loop", str(found["part"]), said, path.parent)


def _closed_loop(found: dict[str, Any], path: Path) -> Iterator[Result]:
    for part in ("train", "conflict"):
        episodes = [e for e in found["episodes"] if e["part"] == part and e["condition"] == "none"]
        if episodes:
            successes, lures = sum(e["success"] for e in episodes), sum(e["picked"] == "lure" for e in episodes)
            said = f"success in {successes} of {len(episodes)} episodes"
            yield Result("closed loop", part, f"{said}; the lure picked in {lures}", path.parent)
