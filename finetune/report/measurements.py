"""A run's metrics.jsonl as curves, thinned so that what a plot shows of them keeps every peak."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from finetune.training import logged, measurement

_BLOCK = 1 << 21  # bytes that Arrow parses at once


class Curve(NamedTuple):
    """A measurement: `steps` (N,) int64 and `values` (N,) float64, which are all that were `logged` or some of them."""

    steps: np.ndarray
    values: np.ndarray
    logged: int


Series = dict[str, Curve]  # by the measurement's name


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
