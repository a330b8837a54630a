"""What a run folder says of its run, for its HTML page: measurements, status, attempts, evaluations, images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from finetune.recipe.recipe_identity import recipe
from finetune.report.measurements import Series, read_series
from finetune.slurm.attempt_record import attempts, resolved, run_name
from finetune.training import EVALUATIONS, FIRST_BATCH, METRICS, STATUS, read_best
from gr00t.errors import ToolkitError
from gr00t.file_reading import parsing, read_json
from toolkit.declaration import flat, key

PLAYED = ("train", "seen", "unseen", "conflict")  # parts in closed loop, of either suite
POINTS = 1500  # of a curve; more than a screen has pixels
PAGE_POINTS, LEAST_POINTS = 25_000, 50  # of all runs' curves of one measurement, of a curve however many there are


@dataclass(kw_only=True)
class ReportConfig:
    """One HTML page of a run's curves, or of several runs', that needs neither account nor network.

    RUN is a run folder, or a folder that holds some; without one all below runs_dir are shown. One run's page goes into
    its folder, several runs' page into the folder that was named, as report.html.
    """

    runs_dir: str = key("folder with the run folders", "runs", folder=True)
    out: str | None = key("file of the page; null for report.html in the folder that is shown", None, folder=True)
    reports_dir: str = key(
        "folder of evaluations (<split>/<part>/open_loop.json, closed_loop.json), shown where they are of the run's "
        "checkpoint",
        "reports",
        folder=True,
    )


class Start(NamedTuple):
    """A step from which a run was resumed, and what had ended it there."""

    step: int
    attempt: int
    reason: str


class Result(NamedTuple):
    """An evaluation of the finished checkpoint: open loop or closed loop, of a part, in one line."""

    kind: str
    part: str
    said: str


@dataclass(frozen=True)
class History:
    """One run. `series` holds training's measurements and the evaluations' ("val/...").

    settings: what makes runs differ (recipe, base, engine and dataset), by dotted name; images: files by title.
    """

    name: str
    folder: Path
    split: str
    settings: dict[str, Any]
    series: Series
    status: str
    reason: str
    starts: list[Start]
    best: dict[str, Any] | None
    images: dict[str, Path]
    evaluations: list[Result]

    @property
    def step(self) -> int:
        """The last logged one."""
        return max((int(curve.steps[-1]) for curve in self.series.values()), default=0)

    def last(self, name: str) -> float | None:
        """The last value of a measurement."""
        return float(self.series[name].values[-1]) if name in self.series else None


def read_histories(folders: Sequence[Path], reports_dir: Path) -> list[History]:
    """The runs in folders that hold METRICS; the more there are, the fewer points of each curve are kept."""
    points = max(LEAST_POINTS, min(POINTS, PAGE_POINTS // max(1, len(folders))))
    results = cache(lambda split: list(_results(reports_dir / split)))  # read once, whoever asks for them

    def read(folder: Path) -> History:
        with parsing(folder):
            return _read_history(folder, results, points)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, folders))


def _read_history(run_dir: Path, results: Callable[[str], list[tuple[Path | None, Result]]], points: int) -> History:
    settings, history = resolved(run_dir), attempts(run_dir)
    ends = [attempt.ended or attempt.outcome or {} for attempt in history]
    reasons = ["", *(str(end.get("reason") or end.get("status") or "lost") for end in ends)]
    status, reason = _status(run_dir)
    split, checkpoint = str(settings.get("split", {}).get("name", "")), settings.get("output_dir")
    evaluated = results(split) if split and checkpoint else []
    return History(
        name=run_name(run_dir),
        folder=run_dir,
        split=split,
        settings=_flat_settings(settings),
        series=read_series(run_dir / METRICS, points),
        status=status,
        reason=reason,
        starts=[
            Start(int(attempt.begun.get("from_step", 0)), attempt.number, before)
            for attempt, before in zip(history, reasons, strict=False)
        ],
        best=read_best(run_dir),
        images=_images(run_dir),
        evaluations=[result for of, result in evaluated if of is None or of == Path(str(checkpoint)).absolute()],
    )


def _flat_settings(settings: dict[str, Any]) -> dict[str, Any]:
    others = (("model", "base"), ("engine", "name"), ("dataset", "data_dir"))
    found = {f"{section}.{name}": settings.get(section, {}).get(name) for section, name in others}
    return flat(recipe(settings) | found) if settings else {}


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


def _images(run_dir: Path) -> dict[str, Path]:
    """The first batch, and the newest evaluation's."""
    found = {"The first batch as the policy sees it": run_dir / FIRST_BATCH}
    steps = [int(path.name.split("-")[1]) for path in (run_dir / EVALUATIONS).glob("step-*-errors.png")]
    for what, kind in (("Held-out episodes", "errors"), ("A held-out episode", "episode")) if steps else ():
        found[f"{what} after {max(steps)} steps"] = run_dir / EVALUATIONS / f"step-{max(steps)}-{kind}.png"
    return {title: path for title, path in found.items() if path.is_file()}


def _results(folder: Path) -> Iterator[tuple[Path | None, Result]]:
    """Each evaluation below a split's folder, and the checkpoint that it is of; damaged ones are named, not hidden."""
    for path in sorted(folder.rglob("*_loop.json")):
        checkpoint = None
        try:
            found = read_json(path)
            checkpoint = Path(str(found.get("info", found).get("checkpoint"))).absolute()
            said = [_open_loop(found)] if path.name == "open_loop.json" else list(_closed_loop(found))
        except (ToolkitError, KeyError, TypeError, AttributeError) as error:
            said = [Result("damaged", "", f"{path}: {error}")]
        yield from ((checkpoint, result) for result in said)


def _open_loop(found: dict[str, Any]) -> Result:
    every, last = (found["overall"][section]["errors"] for section in ("all", "last"))
    said = "; ".join(
        f"{group} error {errors['policy']['mae']:.4f}, last frames {last[group]['policy']['mae']:.4f} "
        f"(holding still {errors['hold_still']['mae']:.4f})"
        for group, errors in every.items()
    )
    return Result("open loop", str(found["part"]), said)


def _closed_loop(found: dict[str, Any]) -> Iterator[Result]:
    for part in PLAYED:
        episodes = [e for e in found["episodes"] if e["part"] == part and e["condition"] == "none"]
        if episodes:
            successes, lures = sum(e["success"] for e in episodes), sum(e["picked"] == "lure" for e in episodes)
            said = f"success in {successes} of {len(episodes)} episodes; the lure picked in {lures}"
            yield Result("closed loop", part, said)
