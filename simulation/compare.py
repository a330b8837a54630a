"""One page over all closed-loop evaluations: the splits of both suites, every checkpoint, what differs between them.

python -m simulation.compare reports_dir=reports out=reports/compare.html
python -m simulation.compare pages=true paper=true
python -m simulation.compare --help"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_replacement import write_json, write_text
from simulation.closed_loop import CONDITIONS, EVALUATED
from simulation.report import AS_IT_IS, Result, by_variant, compared, same_scene, summarize
from simulation.report.closed_loop_report import JSON_FILE, PAGE_FILE, find_evaluations, read_evaluation, write_report
from simulation.report.dominance import HEIGHT, WIDTH, A, B, Graph, graph
from simulation.report.paper import write_paper
from simulation.report.proportions import Difference, difference, many, paired_difference, plain
from simulation.report.training_seeds import DIFFICULTY, HOLDS_FOR, Family, Setting, compare_settings
from simulation.scenes.suites import SUITES, Suite
from toolkit.command_line import run_main
from toolkit.declaration import key
from toolkit.html_page import numbers_beside, render_page

FORMAT = 1
KIND = "closed-loop comparison"


@dataclass(kw_only=True)
class CompareConfig:
    """One page over all closed-loop evaluations below a folder: splits, checkpoints, and what differs between them."""

    reports_dir: str = key("folder below which each closed_loop.json is taken", "reports", folder=True)
    out: str = key("the page, an .html file; a .json of that name beside it holds the numbers", "reports/compare.html")
    pages: bool = key("make each evaluation's own page and tables again, from its closed_loop.json", False)
    paper: bool = key("write tables, figures and methods for a paper to the folder <out without .html>_paper", False)


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
    """The entries by split and name, the contrasts between those of one split, and why files were left out.

    settings, families: of the splits in which a setting has several trainings.
    """

    entries: tuple[Result, ...]
    contrasts: tuple[Contrast, ...]
    skipped: tuple[str, ...]
    settings: tuple[Setting, ...] = ()
    families: tuple[Family, ...] = ()


def main(config: CompareConfig) -> None:
    """Write the page and its numbers, and with `pages` those of every evaluation; print a line for each."""
    out = Path(config.out).expanduser()
    numbers = numbers_beside(out, KIND)
    reports_dir = Path(config.reports_dir)
    comparison = compare(reports_dir)
    if config.pages:
        for entry in comparison.entries:
            write_report(entry.evaluation, reports_dir / entry.name)
    with disk_errors(out, "Choose another out=FILE.html."):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(numbers, _as_json(comparison))
        write_text(out, _page(comparison, reports_dir, out.parent))
    if config.paper:
        place = out.with_name(f"{out.stem}_paper")
        with disk_errors(place, "Choose another out=FILE.html."):
            write_paper(place, comparison.entries, comparison.families)
        print(place)
    for entry in comparison.entries:
        success = ", ".join(f"{part} {entry.summary.of(part).success}" for part in entry.summary.chance)
        preference = f"; {entry.verdict[1]}" if "conflict" in entry.summary.chance else ""
        print(f"{entry.split}  {entry.name}: success {success}{preference}")
    for reason in comparison.skipped:
        print(f"note: left out {reason}")
    print(out)


def compare(reports_dir: Path) -> Comparison:
    """Every evaluation below a folder; a damaged one is skipped, with the reason. None at all raises ToolkitError."""
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
            entries.append(Result(name, evaluation, summarize(evaluation)))
    if not entries:
        raise ToolkitError(
            f"reports_dir={reports_dir} holds no {JSON_FILE} that can be read. Evaluate first: python "
            f"evaluate_conflict.py mode=closed_loop ...{''.join(f' ({line})' for line in skipped)}"
        )
    entries.sort(key=lambda entry: (entry.split, entry.name))
    pairs = [(a, b) for a, b in itertools.combinations(entries, 2) if a.split == b.split]
    found = (contrast for first, second in pairs for contrast in _contrasts(first, second))
    settings, families = compare_settings(entries)
    return Comparison(tuple(entries), tuple(found), tuple(skipped), tuple(settings), tuple(families))


def _contrasts(first: Result, second: Result) -> Iterator[Contrast]:
    """Success in both parts, over the episodes that both played where there are any, and cue preference."""
    names = first.split, first.name, second.name
    a, b = first.info, second.info
    other = [name for name in DIFFICULTY if compared(a, name) != compared(b, name)]
    note = "; ".join(f"{name}: {a.get(name)} / {b.get(name)}" for name in other)
    for part in EVALUATED:
        played = [
            {e.seed: e for e in entry.evaluation.episodes if (e.condition, e.part) == (AS_IT_IS, part)}
            for entry in (first, second)
        ]
        # The scene must be the same, not its seed alone.
        same = [s for s, e in played[0].items() if s in played[1] and same_scene(played[1][s].episode, e.episode)]
        if same:
            found = paired_difference([(played[1][seed].success, played[0][seed].success) for seed in same])
        else:
            found = difference(second.summary.of(part).success, first.summary.of(part).success)
        if found.value is not None:
            yield Contrast(*names, f"success, {part}", found, bool(same), note)
    found = difference(second.summary.preference, first.summary.preference)
    if found.value is not None:
        yield Contrast(*names, "cue preference", found, False, note)


def _as_json(comparison: Comparison) -> dict[str, Any]:
    """The page's numbers as plain JSON."""
    evaluations = []
    for entry in comparison.entries:
        summary, (answer, headline) = entry.summary, entry.verdict
        played = {part: summary.of(part) for part in summary.chance}
        evaluations.append(
            {
                "name": entry.name,
                "info": {k: v for k, v in entry.info.items() if k not in ("config", "versions", "recipe")},
                "success": {part: counted.success for part, counted in played.items()},
                "partial_credit": {part: way.credit for part, way in summary.way.items()},
                "picks": {part: counted.picks for part, counted in played.items()},
                "cue_preference": {**plain(summary.preference), "verdict": answer, "in_words": headline},
                **{name: found for name in ("dominance", "doing", "runs") if (found := getattr(summary, name))},
                "success_under": {
                    condition: {part: counted.success for part, counted in parts.items()}
                    for condition, parts in summary.counted.items()
                    if condition != AS_IT_IS
                },
            }
        )
    trainings = {"in_words": HOLDS_FOR, "settings": comparison.settings, "families": comparison.families}
    found = {"evaluations": evaluations, "differences": comparison.contrasts, "trainings": trainings}
    found["skipped"] = comparison.skipped
    return {"format": FORMAT, "kind": KIND, **plain(found)}


def matrix(suite: Suite, entries: Sequence[Result]) -> dict[str, dict[str, list[Result] | None]]:
    """The evaluations by the factors a and b of their split; None where the suite has no split of both."""
    prefix = suite.splits[0][: suite.splits[0].rfind("/") + 1]
    named = {a: {b: f"{prefix}{a}_{b}" for b in suite.factors} for a in suite.factors}
    return {
        a: {b: [e for e in entries if e.split == name] if name in suite.splits else None for b, name in row.items()}
        for a, row in named.items()
    }


def graphs(suite: Suite, entries: Sequence[Result]) -> list[Graph]:
    """One of each variant; evaluations of one split in a variant are taken together."""
    found = by_variant(entry for entry in entries if entry.suite is suite)
    return [graph(variant, list(suite.factors), shares) for variant, shares in found.items()]


def _page(comparison: Comparison, reports_dir: Path, folder: Path) -> str:
    """The HTML, with links to each evaluation's own page as seen from `folder`."""
    entries = comparison.entries
    pages = {entry.name: reports_dir / entry.name / PAGE_FILE for entry in entries}
    played = {condition for entry in entries for condition in entry.summary.counted}
    splits = len({entry.split for entry in entries})
    suites = [suite for suite in SUITES if any(entry.suite is suite for entry in entries)]
    values = {
        "title": f"Closed loop: {many(len(entries), 'evaluation')} of {many(splits, 'split')}",
        "comparison": comparison,
        "matrices": [(suite, matrix(suite, entries)) for suite in suites],
        "graphs": [(suite, graph) for suite in suites for graph in graphs(suite, entries)],
        "size": (WIDTH, HEIGHT),
        "parts": [part for part in EVALUATED if any(part in entry.summary.chance for entry in entries)],
        "links": {n: quote(os.path.relpath(path, folder)) for n, path in pages.items() if path.is_file()},
        "tint": tint,
        "ablations": [c for c in CONDITIONS if c in played and c != AS_IT_IS],
        "conditions": CONDITIONS,
        "holds_for": HOLDS_FOR,
    }
    return render_page("compare.html", values)


def tint(entry: Result) -> tuple[str, int]:
    """The color of a preference that is shown, target's or lure's, and its strength in %: 60 at all or none."""
    answer, value = entry.verdict[0], entry.summary.preference.value or 0.0
    return "lure" if answer == B else "target", round(120 * abs(value - 0.5)) if answer in (A, B) else 0


if __name__ == "__main__":
    run_main(main, "compare")
