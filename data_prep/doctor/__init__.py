"""The dataset doctor: what is wrong with a dataset, where, and how to mend it.

Here is what an examination says: findings with a level, a place and a remedy, and the report they make up. examine.py
runs the checks over a Subject; each is a function in a module named after what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gr00t.data.meta_files import as_typed, in_ranges

OK, WARNING, ERROR = LEVELS = ("ok", "warning", "error")
FORMAT = 1  # of the report as JSON
SHOWN_PLACES = 6
SHOWN_RANGES = 12
PREPARE_AGAIN = (
    "Write the dataset again: python prepare_conflict_data.py split=<split> raw_dir=<recordings> data_dir=<datasets> "
    "overwrite=true (or copy it again from where it is sound)."
)


@dataclass(frozen=True)
class Finding:
    """One thing that a check noticed: "ok" is a remark, "warning" may be meant so, "error" spoils training.

    episodes: those that it is about, where leaving them out mends it; empty where it is about all, or about none.
    """

    level: str
    where: str
    found: str
    remedy: str = PREPARE_AGAIN
    episodes: tuple[int, ...] = ()

    def advised(self, count: int, by: str) -> Finding:
        """With leaving its episodes out among the remedies, unless they are all `count` of the dataset; `by`: how, with
        {} for their list."""
        if not self.episodes or len(set(self.episodes)) == count:
            return replace(self, episodes=())
        few = len(in_ranges(self.episodes)) <= SHOWN_RANGES
        how = by.format(as_typed(self.episodes)) if few else "exclude=FILE of this check writes the list"
        return replace(self, remedy=f"{self.remedy} Or leave {'them' if len(self.episodes) > 1 else 'it'} out: {how}.")


Level = Callable[..., Finding]
error: Level = partial(Finding, ERROR)
warning: Level = partial(Finding, WARNING)
remark: Level = partial(Finding, OK, remedy="")


@dataclass(frozen=True)
class CheckResult:
    """One check of one dataset. Without findings it is ok; `skipped` says why it could not be made."""

    check: str
    question: str
    findings: tuple[Finding, ...] = ()
    skipped: str = ""
    seconds: float = 0.0

    @property
    def level(self) -> str:
        """The most serious level of its findings."""
        return worst(finding.level for finding in self.findings)


@dataclass(frozen=True)
class DatasetReport:
    """All checks of one dataset folder; `facts` is what there is to say of it in plain JSON."""

    name: str
    folder: Path
    results: tuple[CheckResult, ...]
    facts: dict[str, Any]

    @property
    def level(self) -> str:
        """The most serious level of its findings."""
        return worst(result.level for result in self.results)


@dataclass(frozen=True)
class Report:
    """The examination of one path: one dataset, or the parts of a split and how they go together."""

    path: Path
    datasets: tuple[DatasetReport, ...]
    fast: bool
    seconds: float

    @property
    def level(self) -> str:
        """The most serious level of its findings."""
        return worst(dataset.level for dataset in self.datasets)

    @property
    def verdict(self) -> str:
        """Its level in words."""
        return {OK: "sound", WARNING: "sound, with warnings", ERROR: "not sound"}[self.level]

    def findings(self, *levels: str) -> list[tuple[DatasetReport, CheckResult, Finding]]:
        """Every finding of these levels, with the check and the dataset it belongs to."""
        return [(d, r, f) for d in self.datasets for r in d.results for f in r.findings if f.level in levels]

    def exclude(self) -> list[int | str]:
        """What dataset.exclude takes to leave out every episode with errors, of a split those of its train part."""
        own = {self.datasets[0].folder, self.path}
        return in_ranges(i for d, _, f in self.findings(ERROR) for i in f.episodes if d.folder in own)

    def to_json(self) -> dict[str, Any]:
        """As json=FILE holds it."""
        return {
            "format": FORMAT,
            "path": str(self.path),
            "level": self.level,
            "fast": self.fast,
            "seconds": round(self.seconds, 3),
            "counts": {level: len(self.findings(level)) for level in (WARNING, ERROR)},
            "datasets": [
                {
                    "name": dataset.name,
                    "folder": str(dataset.folder),
                    "level": dataset.level,
                    "facts": dataset.facts,
                    "checks": [{**asdict(result), "level": result.level} for result in dataset.results],
                }
                for dataset in self.datasets
            ],
        }


def worst(levels: Iterable[str]) -> str:
    """The most serious of the levels; ok where there are none."""
    return max(levels, key=LEVELS.index, default=OK)


def episodes(indices: Sequence[int], total: int | None = None) -> str:
    """ "episode 3", "episodes 1, 4, 7", "all 12 episodes", "40 of 100 episodes (0, 1, 5, ...)"."""
    if total is not None and len(indices) == total and total > 1:
        return f"all {total} episodes"
    shown = ", ".join(str(int(i)) for i in indices[:SHOWN_PLACES])
    if len(indices) <= SHOWN_PLACES:
        return ("episode " if len(indices) == 1 else "episodes ") + shown
    return f"{len(indices)}{'' if total is None else f' of {total}'} episodes ({shown}, ...)"


def in_short(problem: BaseException) -> str:
    """An exception's type and message on one line of bounded length."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:200]


def split_message(message: str) -> tuple[str, str]:
    """A ToolkitError's text as (what is wrong, how to mend it): the remedy is what follows the first sentence."""
    for end in (". ", "; ", "? "):
        found, separator, rest = message.partition(end)
        if separator and rest:
            return found + ("." if end == ". " else end.strip()), rest[0].upper() + rest[1:]
    return message, PREPARE_AGAIN
