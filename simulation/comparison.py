"""Closed-loop evaluations beside each other: what each shows, and what differs between those of one split."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from finetune.config import CompareConfig
from finetune.page import render_page
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, read_json, write_json, write_text
from simulation.factors import FACTORS, PARTS
from simulation.outcomes import CONDITIONS, EpisodeOutcome, Evaluation
from simulation.page import WORDS
from simulation.readings import A, B, verdict, words
from simulation.report import PAGE_FILE, write_report
from simulation.results import JSON_FILE, find_evaluations, read_evaluation
from simulation.shares import Difference, difference, paired_difference
from simulation.summary import AS_IT_IS, Summary, summarize

FORMAT = 1
KIND = "closed-loop comparison"
SETTINGS = ("n_action_steps", "max_steps", "instruction")  # what makes two evaluations tasks of different difficulty


@dataclass(frozen=True)
class Entry:
    """One evaluation; `name` is its folder below reports_dir."""

    name: str
    path: Path
    evaluation: Evaluation
    summary: Summary

    @property
    def split(self) -> str:
        return str(self.evaluation.info["split"])

    @property
    def verdict(self) -> tuple[str, str]:
        return verdict(self.summary.preference, self.summary.cues)


@dataclass(frozen=True)
class Contrast:
    """`second` minus `first`, two evaluations of one split. same_episodes: whether the difference is paired."""

    split: str
    first: str
    second: str
    what: str
    difference: Difference
    same_episodes: bool
    note: str


@dataclass(frozen=True)
class Comparison:
    """The entries by split and name, the contrasts between those of one split, and why files were left out."""

    entries: tuple[Entry, ...]
    contrasts: tuple[Contrast, ...]
    skipped: tuple[str, ...]


def compare(reports_dir: Path) -> Comparison:
    """Every evaluation below a folder; a damaged one is skipped and told of. None at all raises ToolkitError."""
    if not reports_dir.is_dir():
        raise ToolkitError(f"reports_dir={reports_dir} does not exist. Say where the reports are: reports_dir=FOLDER.")
    entries, skipped = [], []
    for path in find_evaluations(reports_dir):
        try:
            evaluation = read_evaluation(path)
        except ToolkitError as error:
            skipped.append(str(error))
        else:
            name = path.parent.relative_to(reports_dir).as_posix()
            entries.append(Entry(name, path, evaluation, summarize(evaluation)))
    if not entries:
        raise ToolkitError(
            f"reports_dir={reports_dir} holds no {JSON_FILE} that can be read. Evaluate first: python "
            f"evaluate_conflict.py mode=closed_loop ...{''.join(f' ({line})' for line in skipped)}"
        )
    entries.sort(key=lambda entry: (entry.split, entry.name))
    return Comparison(tuple(entries), tuple(_contrasts(entries)), tuple(skipped))


def _contrasts(entries: Sequence[Entry]) -> Iterator[Contrast]:
    for first, second in itertools.combinations(entries, 2):
        if first.split == second.split:
            yield from contrasts(first, second)


def contrasts(first: Entry, second: Entry) -> Iterator[Contrast]:
    """Success in both parts, over the episodes that both played where there are any, and cue preference."""
    told = first.split, first.name, second.name
    note = "; ".join(_unlike(first.evaluation.info, second.evaluation.info))
    for part in PARTS:
        pairs = _same_episodes(first, second, part)
        before, after = first.summary.of(part).success, second.summary.of(part).success
        found = paired_difference([(b.success, a.success) for a, b in pairs]) if pairs else difference(after, before)
        if found.value is not None:
            yield Contrast(*told, f"success, {part}", found, bool(pairs), note)
    found = difference(second.summary.preference, first.summary.preference)
    if found.value is not None:
        yield Contrast(*told, "cue preference", found, False, note)


def _same_episodes(first: Entry, second: Entry, part: str) -> list[tuple[EpisodeOutcome, EpisodeOutcome]]:
    """The episodes that both played as they are, in pairs; the scene must be the same, not its seed alone."""
    mine, other = ({e.seed: e for e in _plain(entry, part)} for entry in (first, second))
    return [(e, other[s]) for s, e in mine.items() if s in other and other[s].episode == e.episode]


def _plain(entry: Entry, part: str) -> list[EpisodeOutcome]:
    return [e for e in entry.evaluation.episodes if (e.condition, e.part) == (AS_IT_IS, part)]


def _unlike(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [f"{name}: {first[name]} / {second[name]}" for name in SETTINGS if first[name] != second[name]]


# -- what is written ---------------------------------------------------------------------------------------------------


def write_comparison(config: CompareConfig) -> list[str]:
    """Write the page and its numbers, and with `pages` those of every evaluation; returns what there is to say.

    Raises ToolkitError for anything the user can mend.
    """
    out = Path(config.out).expanduser()
    numbers = _numbers_of(out)
    comparison = compare(Path(config.reports_dir))
    if config.pages:
        for entry in comparison.entries:
            write_report(entry.evaluation, entry.path.parent)
    with disk_errors(out, "Choose another out=FILE.html."):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(numbers, as_json(comparison))
        write_text(out, page(comparison, out.parent))
    return [*map(_line, comparison.entries), *(f"note: left out {reason}" for reason in comparison.skipped), str(out)]


def _numbers_of(out: Path) -> Path:
    """The JSON file beside the page; refused where something else has that name."""
    numbers = out.with_suffix(".json")
    if out.suffix != ".html":
        raise ToolkitError(f"out={out}: the page is an HTML file. Write out={out.with_suffix('.html')}")
    if out.is_dir() or numbers.is_dir():
        raise ToolkitError(f"out={out}: a folder has this name, or that of {numbers}. Choose another out=FILE.html.")
    if numbers.exists() and read_json(numbers).get("kind") != KIND:
        raise ToolkitError(
            f"out={out}: its numbers would take the place of {numbers}, which is no comparison. Choose another "
            "out=FILE.html."
        )
    return numbers


def _line(entry: Entry) -> str:
    success = ", ".join(f"{part} {words(entry.summary.of(part).success)}" for part in entry.summary.chance)
    preference = f"; {entry.verdict[1]}" if "conflict" in entry.summary.chance else ""
    return f"{entry.split}  {entry.name}: success {success}{preference}"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The page's numbers as plain JSON."""
    return {
        "format": FORMAT,
        "kind": KIND,
        "evaluations": [_entry_json(entry) for entry in comparison.entries],
        "differences": [{**vars(c), "difference": c.difference.to_json()} for c in comparison.contrasts],
        "skipped": list(comparison.skipped),
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    answer, headline = entry.verdict
    info = {name: value for name, value in entry.evaluation.info.items() if name not in ("config", "versions")}
    return {
        "name": entry.name,
        "info": info,
        "success": {part: entry.summary.of(part).success.to_json() for part in entry.summary.chance},
        "picks": {
            part: {pick: share.to_json() for pick, share in entry.summary.of(part).picks.items()}
            for part in entry.summary.chance
        },
        "cue_preference": {**entry.summary.preference.to_json(), "verdict": answer, "in_words": headline},
        "success_under": {
            condition: {part: counted.success.to_json() for part, counted in parts.items()}
            for condition, parts in entry.summary.counted.items()
            if condition != AS_IT_IS
        },
    }


def page(comparison: Comparison, folder: Path) -> str:
    """The HTML, with links to each evaluation's own page as seen from `folder`."""
    splits = {entry.split for entry in comparison.entries}
    played = {condition for entry in comparison.entries for condition in entry.summary.counted}
    values = {
        "title": f"Closed loop: {_many(len(comparison.entries), 'evaluation')} of {_many(len(splits), 'split')}",
        "comparison": comparison,
        "factors": list(FACTORS),
        "cells": {split: [e for e in comparison.entries if e.split == split] for split in sorted(splits)},
        "links": {entry.name: _link(entry, folder) for entry in comparison.entries},
        "tints": {entry.name: tint(entry) for entry in comparison.entries},
        "ablations": [c for c in CONDITIONS if c in played and c != AS_IT_IS],
        "conditions": CONDITIONS,
    }
    return render_page("compare.html", {**values, **WORDS})


def tint(entry: Entry) -> tuple[str, int]:
    """The colour of a preference that is shown, target's or lure's, and its strength in %: 60 at all or none."""
    answer, value = entry.verdict[0], entry.summary.preference.value
    if answer not in (A, B) or value is None:
        return "target", 0
    return "target" if answer == A else "lure", round(120 * abs(value - 0.5))


def _link(entry: Entry, folder: Path) -> str:
    """The way from `folder` to an evaluation's page; empty where there is none."""
    target = entry.path.with_name(PAGE_FILE)
    return quote(Path(os.path.relpath(target, folder)).as_posix()) if target.is_file() else ""


def _many(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"
