"""Is the benchmark sound? How well each split's targets are found without the instruction, or without looking.

python -m simulation.audit
python -m simulation.audit splits=[color_object,instruction/verb_color] reports_dir=reports out=audit.html
python -m simulation.audit --help"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_replacement import write_json, write_text
from simulation.closed_loop import TARGET
from simulation.report import summarize
from simulation.report.closed_loop_report import find_evaluations, read_evaluation
from simulation.report.proportions import Share, plain
from simulation.scenes import single_factor
from simulation.scenes.instruction_suite import Body, InstructedEpisode
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED, Episode, Thing
from simulation.scenes.suites import INSTRUCTION, PLATE, SPLITS, suite_of
from toolkit.command_line import run_main
from toolkit.declaration import key
from toolkit.html_page import numbers_beside, percent, render_page
from toolkit.progress import progress_bar
from toolkit.shared_keys import LARGEST_SEED, check_writable

if TYPE_CHECKING:
    from data_prep.input_probes import Question

UNSOUND = 1  # exit status
FORMAT, KIND = 1, "benchmark audit"
LEVEL = 0.05  # of all tests of a run together
BLIND, DEAF, PLACE, VALUE, CELL, EVERYTHING = PROBES = {
    "blind": "the instruction and each object's place",
    "deaf": "every object with all it is, no instruction and no plate",
    "place": "where all objects lie",
    "usual value": "none: the object whose values were most often the target's in training",
    "usual place": "none: the object in the place that was most often the target's in training",
    "everything": "objects, instruction and plate: what there is to learn",
}
SOUND, DOCUMENTED, LEAK = "sound", "documented", "leak"
STYLES = {SOUND: "green", DOCUMENTED: "yellow", LEAK: "bold red"}
Scene = Episode | InstructedEpisode


@dataclass(frozen=True)
class Known:
    """Why these probes leave chance in a split: a documented property of the suite, and between which shares of the
    targets they then find."""

    probes: tuple[str, ...]
    holds: Callable[[str, str], bool]
    between: tuple[float, float]
    reason: str


def _names(factor: str) -> Callable[[str, str], bool]:
    return lambda split, part: suite_of(split) is INSTRUCTION and factor in INSTRUCTION.cues(split)


def _apart(split: str, part: str) -> bool:
    return suite_of(split) is INSTRUCTION and part in ("conflict", *single_factor.PARTS)


# The first that holds is the reason. All of them follow from how episodes are drawn, which may not change: recordings
# and reports name episodes by their seeds.
_RECORDED = (
    "the target's values, or its place, were recorded more often, or less, than the other objects': read what a policy "
    "follows beside these rates, not beside chance"
)
_LAYOUT = "objects lie where the verb can be done, so their places tell verbs apart, and each verb has its size"
_MEDIUM = "of three objects the medium one is never named: without the sentence the target is one of two"
KNOWN = (
    Known((BLIND,), _names("spatial"), (0.0, 1.0), "the sentence names the place, or a verb recorded with the place"),
    Known((DEAF, PLACE), _apart, (0.3, 0.75), _RECORDED),
    Known((VALUE, CELL), _apart, (0.3, 0.9), _RECORDED),
    Known((DEAF,), lambda split, part: split in ("instruction/verb_size", "instruction/all"), (0.33, 0.65), _LAYOUT),
    Known((DEAF, PLACE, VALUE, CELL), _names("size"), (0.33, 0.5), _MEDIUM),
)


@dataclass(kw_only=True)
class AuditConfig:
    """Is the benchmark sound? Probes that do not look, or do not listen, against chance in every split.

    Ends with status 0 where all that leaves chance is documented (docs/concepts/conflict-splits.md), else with 1.
    """

    splits: list[str] = key("splits to audit; [] for all of both suites", [], choices=SPLITS)
    scenes: int = key(
        "scenes of each part that the probes are scored on; they learn from twice as many", 1000, at_least=50
    )
    seed: int = key("seed of the probes", 0, at_least=0, at_most=LARGEST_SEED)
    reports_dir: str | None = key(
        "folder below which each closed_loop.json gives a policy's rate beside the probes'; null for none",
        None,
        folder=True,
    )
    out: str = key("the page, an .html file; a .json of that name beside it holds the numbers", "reports/audit.html")

    def check_here(self) -> None:
        """Refuse a page that could not be written, and reports that are not there, before a minute is spent on it."""
        check_writable("out", Path(self.out).expanduser().parent)
        if self.reports_dir is not None and not Path(self.reports_dir).is_dir():
            raise ToolkitError(
                f"reports_dir={self.reports_dir} does not exist. Say where the reports are: reports_dir=FOLDER."
            )


@dataclass(frozen=True)
class Result:
    """How a probe did in one part of a split; p: as adjusted for all tests of the run, None of a control."""

    probe: str
    share: Share
    p: float | None = None
    verdict: str = SOUND
    reason: str = ""


@dataclass(frozen=True)
class Part:
    """One part of a split: what picking an object at random finds, what probes find, and policies' first picks."""

    split: str
    part: str
    chance: float
    results: dict[str, Result]
    policies: dict[str, Share] = field(default_factory=dict)


def main(config: AuditConfig) -> None:
    """Audit, print the table, write page and numbers; exit with UNSOUND where a leak is not documented."""
    out = Path(config.out).expanduser()
    numbers = numbers_beside(out, KIND)
    started, policies = time.monotonic(), _policies(config.reports_dir)
    found = audit(config)
    parts = [replace(part, policies=policies.get((part.split, part.part), {})) for part in found]
    named = [(p, r) for p in parts for r in p.results.values() if r.verdict != SOUND]
    leaks, seconds = sum(result.verdict == LEAK for _, result in named), time.monotonic() - started
    values = {"parts": parts, "named": named, "probes": PROBES, "seconds": seconds, "config": config, "level": LEVEL}
    with disk_errors(out, "Choose another out=FILE.html."):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(numbers, {"format": FORMAT, "kind": KIND, **plain({"settings": config, "parts": parts})})
        write_text(out, render_page("audit.html", {"title": "Audit of the conflict splits", **values}))
    _show(parts, named)
    print(
        f"{len(parts)} parts of {len({p.split for p in parts})} splits, {leaks} undocumented leaks, {seconds:.0f} s",
        out,
        sep="\n",
    )
    if leaks:
        sys.exit(UNSOUND)


def audit(config: AuditConfig) -> list[Part]:
    """Every part of the splits, every probe tested against chance."""
    splits, scored = config.splits or list(SPLITS), list[Scored]()
    with progress_bar(unit="splits", transient=True) as bar:
        task = bar.add_task("audit", total=len(splits))
        for split in splits:
            bar.update(task, description=split)
            scored += score(split, config)
            bar.advance(task)
    return judged(scored)


@dataclass(frozen=True)
class Scored:
    """The scenes of one part in which there is a choice, and the target of which of them each probe found (N,) bool."""

    split: str
    part: str
    scenes: Sequence[Scene]
    hits: dict[str, np.ndarray]

    @property
    def chances(self) -> list[float]:
        """How often picking one of a scene's objects at random finds its target."""
        return [1 / len(scene.objects) for scene in self.scenes]


def score(split: str, config: AuditConfig) -> list[Scored]:
    """Every probe of one split, fitted to scenes that may be recorded, in each part that is played in closed loop."""
    suite = suite_of(split)

    def scenes(part: str, first: int, count: int) -> list[Scene]:
        return [suite.sample(split, part, first + number, None) for number in range(count)]

    parts = {part: scenes(part, FIRST_EVALUATION_SEED, config.scenes) for part in suite.playable(split, None)}
    return score_scenes(scenes("train", 0, 2 * config.scenes), parts, config.seed)


def score_scenes(train: Sequence[Scene], parts: Mapping[str, Sequence[Scene]], seed: int) -> list[Scored]:
    """Every probe, fitted to the scenes of `train`, in each part; scenes with one object are left out."""
    train, found = _with_choice(train), list[Scored]()
    finds = {p: (_usual if p in (VALUE, CELL) else _learned)(train, p, seed) for p in PROBES}
    for part, drawn in parts.items():
        scenes = _with_choice(drawn)
        targets = [scene.target for scene in scenes]
        hits = {probe: find(scenes) == targets for probe, find in finds.items()}
        found.append(Scored(train[0].split, part, scenes, hits))
    return found


def _with_choice(scenes: Sequence[Scene]) -> list[Scene]:
    return [scene for scene in scenes if len(scene.objects) > 1]


def _learned(train: Sequence[Scene], probe: str, seed: int) -> Callable[[Sequence[Scene]], np.ndarray]:
    """The picks of a probe that was fitted to these scenes."""
    from data_prep.input_probes import ChoiceProbe  # which imports torch

    learned = ChoiceProbe([_question(scene, probe) for scene in train], seed)
    return lambda scenes: learned.picks([_question(scene, probe) for scene in scenes])


def _question(scene: Scene, probe: str) -> Question:
    """What the probe sees of a scene."""
    from data_prep.input_probes import Question

    bodies: Sequence[Thing | Body] = scene.objects
    things = []
    for index, body in enumerate(bodies):
        thing = {"x": 10 * body.x, "y": 10 * body.y, _place(body): 1.0}
        if probe != BLIND:
            thing[f"number {index}"] = 1.0
        if probe in (DEAF, EVERYTHING):
            thing |= dict.fromkeys((f"color {body.color}", f"object {body.object}", f"size {body.size}"), 1.0)
        things.append(thing)
    said: Mapping[str, str] = {} if isinstance(scene, Episode) else scene.named
    if isinstance(scene, Episode) and probe == EVERYTHING:
        said = {factor: scene.plate[factor] for factor in PLATE.factors}
    heard = probe in (BLIND, EVERYTHING)
    return Question(things, {f"{factor} {said[factor]}": 1.0 for factor in said if heard}, scene.target)


def _place(body: Thing | Body) -> str:
    return body.position if isinstance(body, Thing) else body.spatial


def _usual(train: Sequence[Scene], probe: str, seed: int) -> Callable[[Sequence[Scene]], np.ndarray]:
    """The object that is most like the training targets, by its values in the split's cues or by its place; of several
    that are, one at random."""
    cues = [factor for factor in suite_of(train[0].split).cues(train[0].split) if factor != "verb"]

    def kind(body: Thing | Body) -> Any:
        return _place(body) if probe == CELL else tuple(getattr(body, factor) for factor in cues)

    often, rng = Counter(kind(scene.objects[scene.target]) for scene in train), random.Random(seed)

    def picks(scenes: Sequence[Scene]) -> np.ndarray:
        each = ([often[kind(body)] for body in scene.objects] for scene in scenes)
        return np.array([rng.choice([i for i, n in enumerate(counts) if n == max(counts)]) for counts in each])

    return picks


def judged(scored: Sequence[Scored]) -> list[Part]:
    """Each probe's share with its verdict: Holm's adjustment is over all tests of the run."""
    from data_prep.input_probes import adjusted, tails

    tests = [(s, probe) for s in scored for probe in PROBES if probe != EVERYTHING]
    both = [2 * min(tails(int(s.hits[probe].sum()), s.chances)) for s, probe in tests]
    p_values = {(id(s), probe): p for (s, probe), p in zip(tests, adjusted(both), strict=True)}
    found = []
    for s in scored:
        results = {}
        for probe, hits in s.hits.items():
            share, p = Share(int(hits.sum()), len(hits)), p_values.get((id(s), probe))
            verdict, reason = _verdict(s, probe, p, len(tests))
            results[probe] = Result(probe, share, p, verdict, reason)
        found.append(Part(s.split, s.part, sum(s.chances) / len(s.chances), results))
    return found


def _verdict(scored: Scored, probe: str, p: float | None, tests: int) -> tuple[str, str]:
    """Sound, documented or leak, with the reason that is documented; outside the documented shares it is a leak too."""
    from data_prep.input_probes import tails

    if p is None or p >= LEVEL:
        return SOUND, ""
    known = next((k for k in KNOWN if probe in k.probes and k.holds(scored.split, scored.part)), None)
    if known is None:
        return LEAK, "not documented"
    count, n = int(scored.hits[probe].sum()), len(scored.scenes)
    below, above = (tails(count, [share] * n)[side] for side, share in enumerate(known.between))
    if min(below, above) * tests < LEVEL:
        return (
            LEAK,
            f"beyond {percent(known.between[0])} to {percent(known.between[1])}, as documented ({known.reason})",
        )
    return DOCUMENTED, known.reason


def _policies(folder: str | None) -> dict[tuple[str, str], dict[str, Share]]:
    """By split and part: how often the first pick of each evaluated policy was the target, by its report's folder."""
    found: dict[tuple[str, str], dict[str, Share]] = {}
    for path in find_evaluations(Path(folder)) if folder else ():
        evaluation = read_evaluation(path)
        summary = summarize(evaluation)
        for part in summary.chance:
            name = path.parent.relative_to(str(folder)).as_posix()
            found.setdefault((str(evaluation.info["split"]), part), {})[name] = summary.of(part).picks[TARGET]
    return found


def _show(parts: Sequence[Part], named: Sequence[tuple[Part, Result]]) -> None:
    """The table, then each probe that leaves chance with its reason."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 150
    table = Table("split", "part", "chance", *PROBES, "policies: target first", box=None)
    for part in parts:
        cells = (f"[{STYLES[r.verdict]}]{percent(r.share.value or 0)}[/]" for r in part.results.values())
        policies = ", ".join(f"{name} {share.counts}" for name, share in part.policies.items())
        table.add_row(part.split, part.part, percent(part.chance), *cells, policies)
    console.print(table)
    for reason in dict.fromkeys(result.reason for _, result in named):
        found = [(part, result) for part, result in named if result.reason == reason]
        verdict = found[0][1].verdict
        console.print(f"\n[{STYLES[verdict]}]{verdict}[/]: {reason}", soft_wrap=True)
        for split in dict.fromkeys(part.split for part, _ in found):
            shares = (f"{p.part} {r.probe} {percent(r.share.value or 0)}" for p, r in found if p.split == split)
            console.print(f"  {split}: {', '.join(shares)}", soft_wrap=True)


if __name__ == "__main__":
    run_main(main, "audit")
