"""What a run folder says of its run, for its HTML page: status, attempts, evaluations, images, and its measurements as
curves, thinned so that what a plot shows of them keeps every peak."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from finetune.recipe.recipe_identity import recipe
from finetune.slurm.attempt_record import attempts, resolved, run_name
from finetune.training import EVALUATIONS, FIRST_BATCH, METRICS, STATUS, logged, measurement, read_best, read_optional
from gr00t.errors import ToolkitError
from gr00t.file_reading import parsing, read_json
from gr00t.model.checkpoint_folder import fingerprint
from toolkit.declaration import flat, key

PLAYED = ("train", "seen", "unseen", "conflict")  # parts in closed loop, of either suite
POINTS = 1500  # of a curve; more than a screen has pixels
PAGE_POINTS, LEAST_POINTS = 25_000, 50  # of all runs' curves of one measurement, of a curve however many there are
_BLOCK = 1 << 21  # bytes that Arrow parses at once


@dataclass(kw_only=True)
class ReportConfig:
    """One HTML page of a run's curves, or of several runs', that needs neither account nor network.

    RUN is a run folder, or a folder that holds some; without one all below runs_dir are shown. One run's page goes into
    its folder, several runs' page into the folder that was named, as report.html.
    """

    runs_dir: str = key("folder with the run folders", "runs", folder=True)
    out: str | None = key("file of the page; null for report.html in the folder that is shown", None, folder=True)
    reports_dir: str = key(
        "folder of evaluations (<split or run>/<part>/open_loop.json, closed_loop.json), shown where they are of the "
        "run's checkpoint",
        "reports",
        folder=True,
    )


class Curve(NamedTuple):
    """A measurement: `steps` (N,) int64 and `values` (N,) float64, which are all that were `logged` or some of them."""

    steps: np.ndarray
    values: np.ndarray
    logged: int


Series = dict[str, Curve]  # by the measurement's name


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


class Measured(NamedTuple):
    """A result, the checkpoint folder that it is of (None: unknown), and the fingerprint of its weights, if noted."""

    checkpoint: Path | None
    weights: str | None
    result: Result


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
        return max((int(curve.steps[-1]) for curve in self.series.values()), default=0)

    def last(self, name: str) -> float | None:
        return float(self.series[name].values[-1]) if name in self.series else None


def read_histories(folders: Sequence[Path], reports_dir: Path) -> list[History]:
    """The runs in folders that hold METRICS; the more there are, the fewer points of each curve are kept."""
    points = max(LEAST_POINTS, min(POINTS, PAGE_POINTS // max(1, len(folders))))
    results = cache(lambda name: list(_results(reports_dir / name)))  # read once, whoever asks for them

    def read(folder: Path) -> History:
        with parsing(folder):
            return _read_history(folder, results, points)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, folders))


def _read_history(run_dir: Path, results: Callable[[str], list[Measured]], points: int) -> History:
    settings, history = resolved(run_dir), attempts(run_dir)
    ends = [attempt.ended or attempt.outcome or {} for attempt in history]
    reasons = ["", *(str(end.get("reason") or end.get("status") or "lost") for end in ends)]
    status, reason = _status(run_dir)
    split, checkpoint = str(settings.get("split", {}).get("name", "")), settings.get("output_dir")
    places = dict.fromkeys([split, run_name(run_dir)]) if split and checkpoint else []  # of a sweep each run's own
    evaluated = [measured for place in places for measured in results(place)]
    named = (("model", "base"), ("engine", "name"), ("dataset", "data_dir"))
    others = {f"{section}.{name}": settings.get(section, {}).get(name) for section, name in named}
    return History(
        name=run_name(run_dir),
        folder=run_dir,
        split=split,
        settings=flat(recipe(settings) | others) if settings else {},
        series=read_series(run_dir / METRICS, points),
        status=status,
        reason=reason,
        starts=[
            Start(int(attempt.begun.get("from_step", 0)), attempt.number, before)
            for attempt, before in zip(history, reasons, strict=False)
        ],
        best=read_best(run_dir),
        images=_images(run_dir),
        evaluations=list(_of_checkpoint(evaluated, Path(str(checkpoint)).absolute())),
    )


def _of_checkpoint(evaluated: Sequence[Measured], checkpoint: Path) -> Iterator[Result]:
    """The results of this folder's weights, known by their fingerprint where the report holds one."""
    try:
        own = fingerprint(checkpoint) if any(of.weights for of in evaluated) else None
    except (OSError, ToolkitError):
        own = None  # not written yet, or removed since
    for of in evaluated:
        if of.checkpoint is None or (of.weights == own if of.weights and own else of.checkpoint == checkpoint):
            gone = " (weights that are no longer there)" if of.weights and not own else ""
            yield of.result._replace(said=of.result.said + gone)


def _status(run_dir: Path) -> tuple[str, str]:
    """A word and a reason; of one that says it runs, when it last logged, since it may have been killed."""
    found = read_optional(run_dir / STATUS)
    if found is None:
        return "unknown", "it was logged by an older version"
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


def _results(folder: Path) -> Iterator[Measured]:
    """Each evaluation below a folder; damaged ones are named, not hidden."""
    for path in sorted(folder.rglob("*_loop.json")):
        checkpoint = weights = None
        try:
            found = read_json(path)
            of = found.get("info", found)
            checkpoint, weights = Path(str(of.get("checkpoint"))).absolute(), of.get("checkpoint_fingerprint")
            said = [_open_loop(found)] if path.name == "open_loop.json" else list(_closed_loop(found))
        except (ToolkitError, KeyError, TypeError, AttributeError) as error:
            said = [Result("damaged", "", f"{path}: {error}")]
        yield from (Measured(checkpoint, weights, result) for result in said)


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


# -- measurements ------------------------------------------------------------------------------------------------------


def read_series(path: Path, most: int) -> Series:
    """Every measurement in a metrics.jsonl, of each `most` values at most (see `thinned`).

    What is not finite is left out, and so is a line that is damaged or being written."""
    series = {}
    for name, (steps, values) in (_table(path) or _lines(path)).items():
        kept = np.isfinite(values) & np.isfinite(steps)
        if kept.any():
            steps, values = steps[kept].astype(np.int64), values[kept]
            drawn = thinned(values, most)
            series[name] = Curve(steps[drawn], values[drawn], len(values))
    return series


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Which of the values (N,) to draw, in order and `most` at most: all, or the first and last and the lowest and
    highest of equal sections, among which are the lowest and highest of all."""
    n = len(values)
    if n <= most:
        return np.arange(n)
    width = -(-n // max(1, most // 2 - 1))
    sections = np.pad(values, (0, -n % width), mode="edge").reshape(-1, width)
    starts = width * np.arange(len(sections))
    ends = np.concatenate([[0], starts + sections.argmin(1), starts + sections.argmax(1), [n - 1]])
    return np.unique(np.minimum(ends, n - 1))


def _table(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Steps and values (NaN where there is none) by Arrow, ten times as fast as `_lines`; None of a file that is not
    all objects whose names and types agree."""
    try:
        with pa.OSFile(str(path)) as file:
            options = arrow_json.ReadOptions(use_threads=False, block_size=_BLOCK)
            table = arrow_json.read_json(file, read_options=options)
    except pa.ArrowException:
        return None
    if "step" not in table.column_names or not pa.types.is_integer(table["step"].type):
        return None
    steps = table["step"].to_numpy()
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    numbers = [f.name for f in table.schema if f.name != "step" and any(kind(f.type) for kind in kinds)]
    return {name: (steps, table[name].cast(pa.float64()).to_numpy()) for name in numbers}


def _lines(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same line by line, whatever some of them hold."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for step, values in filter(None, map(measurement, logged(path))):
        for name, value in values.items():
            steps, numbers = found.setdefault(name, ([], []))
            steps.append(step)
            numbers.append(value)
    return {name: (np.array(steps), np.array(numbers)) for name, (steps, numbers) in found.items()}
