"""What closed-loop episodes add up to: success, first picks and cue preference, per condition, part and factor.

Everything is computed from the episodes, without torch or a simulator, so that a report can be made again."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from simulation.closed_loop import (
    CONDITIONS,
    EVALUATED,
    LURE,
    NOTHING,
    NOWHERE,
    PICKS,
    STAGES,
    TARGET,
    EpisodeOutcome,
    Evaluation,
)
from simulation.report.dominance import Doing, Dominance, doing, dominance, verdict
from simulation.report.proportions import (
    CONFIDENCE,
    Difference,
    Quartiles,
    Share,
    difference,
    paired_difference,
    quartiles,
    together,
)
from simulation.scenes.combinations import Strategy
from simulation.scenes.instruction_suite import FACTORS, HALF_SIZE
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED
from simulation.scenes.suites import INSTRUCTION, Suite, suite_of

AS_IT_IS, OTHER_SENTENCE = "none", "other_instruction"  # of CONDITIONS
BOTH_PARTS = "both"
# Failures by the last stage that they reached.
ENDINGS = {
    NOWHERE: "did not move toward the target",
    "toward": "moved toward it, did not touch it",
    "touched": "touched it, neither grasped nor moved it",
    "moved": "grasped or moved it, did not do what was asked for",
    "done": "did what was asked for, the arm never still meanwhile",
}


@dataclass(frozen=True)
class Counted:
    """What a number of episodes ended with.

    preference: of those in which target or lure was picked first, the share that picked the target.
    missed: of those that picked the target first, the share that ended without success (dropped, or not held still).
    steps: control steps until the target was held, of the successes; None without one.
    """

    success: Share
    picks: dict[str, Share]
    preference: Share
    missed: Share
    steps: Quartiles | None


@dataclass(frozen=True)
class FactorTable:
    """One part's episodes, as they are, by one factor of the target, the lure or the plate, or by what is named."""

    part: str
    whose: str
    factor: str
    rows: dict[str, Counted]


@dataclass(frozen=True)
class WeakSpot:
    """A value of a factor with which the policy succeeds less often than with the others."""

    part: str
    whose: str
    factor: str
    value: str
    success: Share
    others: Share

    def __str__(self) -> str:
        return (
            f"{self.part}, {self.whose}'s {self.factor} {self.value}: success in {self.success}, with the other values "
            f"in {self.others}."
        )


@dataclass(frozen=True)
class Change:
    """What a condition changes, on the episodes that were played both ways (the same part and seed).

    part: of EVALUATED, or both. before, after: without and with the condition. success, target_picks: after minus
    before, paired. preference: the same of the cue preference, whose two shares rest on different episodes. other_pick:
    episodes in which something else was picked first. switched: of those in which an object was picked both ways, the
    share in which it was another one.
    """

    condition: str
    part: str
    before: Counted
    after: Counted
    success: Difference
    target_picks: Difference
    preference: Difference
    other_pick: Share
    switched: Share

    def __str__(self) -> str:
        return (
            f"With {CONDITIONS[self.condition]}, success goes from {self.before.success.counts} to "
            f"{self.after.success.counts}: {self.success}."
        )


@dataclass(frozen=True)
class Way:
    """What happened on the way, in the `n` episodes whose stages are known.

    credit: the share of the stages that an episode reached, 0 to 1, on average. reached: by stage; steps: by stage,
    when, of the episodes that reached it. ended: the failures by the last stage, NOWHERE for none; together all.
    smoothness: SPARC of the hand's speed (no unit), of the episodes in which it moved.
    """

    n: int
    credit: float
    reached: dict[str, Share]
    steps: dict[str, Quartiles | None]
    ended: dict[str, Share]
    smoothness: Quartiles | None


@dataclass(frozen=True)
class Summary:
    """The numbers of one evaluation. counted: {condition: {part: Counted}}, only what was played.

    cues: the split's two factors; None where it names all. dominance, doing (by part): of the instruction suite only.
    runs: by part, the success of each repetition. asked: the question that was asked and what answered it, if any, as
    AskedQuestion.told gives it. way, expert: by part, how far the policy and the expert came with their targets.
    """

    cues: tuple[str, str] | None
    counted: dict[str, dict[str, Counted]]
    chance: dict[str, float]
    factors: tuple[FactorTable, ...]
    weak_spots: tuple[WeakSpot, ...]
    changes: tuple[Change, ...]
    dominance: Dominance | None = None
    doing: Mapping[str, Doing] = field(default_factory=dict)
    runs: Mapping[str, tuple[Share, ...]] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    way: Mapping[str, Way] = field(default_factory=dict)
    expert: Mapping[str, Way] = field(default_factory=dict)

    def of(self, part: str, condition: str = AS_IT_IS) -> Counted:
        """One part under one condition; all zeros where it was not played."""
        return self.counted.get(condition, {}).get(part) or count([])

    def change(self, condition: str, part: str = BOTH_PARTS) -> Change | None:
        """What a condition changes in one part, or in both together; None where it was not played."""
        return next((c for c in self.changes if (c.condition, c.part) == (condition, part)), None)

    def each(self) -> Iterator[tuple[str, str, Counted]]:
        """(condition, part, what was counted) of everything that was played."""
        for condition, parts in self.counted.items():
            for part, counted in parts.items():
                yield condition, part, counted

    @property
    def preference(self) -> Share:
        """The cue preference: a over b, in the conflict part, as it is."""
        return self.of("conflict").preference


@dataclass(frozen=True)
class Result:
    """One evaluation. name: of its report's folder."""

    name: str
    evaluation: Evaluation
    summary: Summary

    @property
    def info(self) -> dict[str, Any]:
        """What was evaluated."""
        return self.evaluation.info

    @property
    def split(self) -> str:
        """The name of the conflict split."""
        return str(self.info["split"])

    @property
    def suite(self) -> Suite:
        """Of the split."""
        return suite_of(self.split)

    @property
    def strategy(self) -> str:
        """Which combinations were recorded; empty in the plate suite."""
        return str(self.info.get("strategy") or "")

    @property
    def guidance(self) -> float:
        """How far it followed the instruction; 1 as it was trained."""
        return float(self.info.get("guidance", 1))

    @property
    def verdict(self) -> tuple[str, str]:
        """Which cue it follows: (answer, the same in few words)."""
        return verdict(self.summary.preference, self.summary.cues or ("", ""))


def compared(said: Mapping[str, Any], name: str) -> Any:
    """A setting as evaluations are compared by it: a strategy without the number of demonstrations at its end, which
    decides no scene. Recordings leave that out, and evaluations of other policies may name it."""
    value = said.get(name)
    if name == "strategy" and isinstance(value, str):
        with suppress(ToolkitError):  # of another version
            return Strategy.read(value).text
    return value


def same_scene(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two episodes, as the suites describe them, are one."""
    return one.keys() == other.keys() and all(compared(one, name) == compared(other, name) for name in one)


def preferences(results: Iterable[Result]) -> dict[tuple[str, str], Share]:
    """The cue preference, or FDR, of each pair (a, b) that picks show; evaluations of one pair are taken together."""
    found: dict[tuple[str, str], list[Share]] = {}
    for result in results:
        if result.summary.cues and result.summary.preference.n:
            found.setdefault(result.summary.cues, []).append(result.summary.preference)
    return {cues: together(shares) for cues, shares in found.items()}


def by_variant(results: Iterable[Result]) -> dict[str, dict[tuple[str, str], Share]]:
    """Of the evaluations that are of one kind, the preferences of their pairs; by what tells such kinds apart: the
    name without the split, and the strategy. Those of one split in a kind are taken together."""
    found: dict[str, list[Result]] = {}
    for result in results:
        name = "/".join(part for part in Path(result.name).parts if part not in Path(result.split).parts)
        found.setdefault(", ".join(filter(None, (name, result.strategy))) or "evaluations", []).append(result)
    return {variant: shares for variant, own in found.items() if (shares := preferences(own))}


def summarize(evaluation: Evaluation) -> Summary:
    """The summary of an evaluation; an unknown split raises ToolkitError."""
    groups: dict[str, dict[str, list[EpisodeOutcome]]] = {}
    info, suite = evaluation.info, suite_of(evaluation.info["split"])
    for condition, part in itertools.product(CONDITIONS, EVALUATED):
        found = [e for e in evaluation.episodes if (e.condition, e.part) == (condition, part)]
        if found:
            groups.setdefault(condition, {})[part] = found
    played = groups.get(AS_IT_IS, {})
    named, tables = suite.cues(info["split"]), tuple(_factor_tables(played, suite))
    cues = (named[0], named[1]) if len(named) == 2 else None
    own: dict[str, Any] = {}
    if suite is INSTRUCTION:
        own = {"dominance": dominance(cues, played) if cues else None}
        own["doing"] = {part: doing(found) for part, found in played.items()}
    own["way"] = ways([e for found in played.values() for e in found])
    own["expert"] = ways(evaluation.expert)
    own["asked"] = info.get("question") or {}
    if info.get("runs", 1) > 1:
        own["runs"] = {part: _runs(found, info["runs"], info["episodes"]) for part, found in played.items()}
    return Summary(
        cues=cues,
        counted={c: {part: count(found) for part, found in parts.items()} for c, parts in groups.items()},
        # How often a policy would pick the target that picks an object, no matter which.
        chance={p: sum(1 / len(e.episode["objects"]) for e in found) / len(found) for p, found in played.items()},
        factors=tables,
        weak_spots=tuple(_weak_spots(tables, cues or ())),
        changes=tuple(_changes(groups)),
        **own,
    )


def _runs(episodes: Sequence[EpisodeOutcome], runs: int, each: int) -> tuple[Share, ...]:
    """The success of each repetition: every one has the next `each` seeds."""
    found: list[list[bool]] = [[] for _ in range(runs)]
    for outcome in episodes:
        found[min((outcome.seed - FIRST_EVALUATION_SEED) // each, runs - 1)].append(outcome.success)
    return tuple(map(Share.of, found))


def count(episodes: Sequence[EpisodeOutcome]) -> Counted:
    """Episodes of any kind, counted; of none of them too."""
    # In train there is no lure to prefer: only conflict episodes count.
    by_cue = [e.picked for e in episodes if e.part == "conflict" and e.picked in (TARGET, LURE)]
    return Counted(
        success=Share.of(e.success for e in episodes),
        picks={pick: Share.of(e.picked == pick for e in episodes) for pick in PICKS},
        preference=Share.of(picked == TARGET for picked in by_cue),
        missed=Share.of(not e.success for e in episodes if e.picked == TARGET),
        steps=quartiles([e.steps for e in episodes if e.success]),
    )


def way_of(episodes: Sequence[EpisodeOutcome]) -> Way | None:
    """Of any episodes; None where stages are known of none, as in older reports."""
    known = [e for e in episodes if e.stages is not None]
    if not known:
        return None
    when = {stage: [e.stages[stage] for e in known if e.stages and stage in e.stages] for stage in STAGES}
    ended = Counter(e.stage for e in known if not e.success)
    return Way(
        n=len(known),
        credit=sum(map(len, when.values())) / (len(STAGES) * len(known)),
        reached={stage: Share(len(steps), len(known)) for stage, steps in when.items()},
        steps={stage: quartiles(steps) for stage, steps in when.items()},
        ended={stage: Share(ended[stage], ended.total()) for stage in ENDINGS if ended[stage]},
        smoothness=quartiles([e.smoothness for e in known if e.smoothness is not None]),
    )


def ways(episodes: Sequence[EpisodeOutcome]) -> dict[str, Way]:
    """By part, of those of which stages are known."""
    parts = dict.fromkeys(e.part for e in episodes)
    found = {part: way_of([e for e in episodes if e.part == part]) for part in parts}
    return {part: way for part, way in found.items() if way is not None}


def _factor_tables(played: dict[str, list[EpisodeOutcome]], suite: Suite) -> Iterator[FactorTable]:
    """Every factor of target, lure and plate, or of what is named, target and lure; each table holds every episode of
    its part once. In the instruction suite factors that do not vary are left out."""
    for part, episodes in played.items():
        for whose in (w for w in ("sentence", "target", "lure", "plate") if episodes[0].thing(w) is not None):
            for factor, values in seen_factors(suite, whose).items():
                rows = {v: count([e for e in episodes if (e.thing(whose) or {}).get(factor) == v]) for v in values}
                if suite is not INSTRUCTION or sum(counted.success.n > 0 for counted in rows.values()) > 1:
                    yield FactorTable(part, whose, factor, rows)


def seen_factors(suite: Suite, whose: str) -> dict[str, Sequence[str]]:
    """The factors of a thing, or of the `sentence`, with the values that they may have; sizes of things are not those
    that are said."""
    factors: dict[str, Sequence[str]] = dict(suite.factors)
    if suite is INSTRUCTION and whose != "sentence":
        factors |= {"size": tuple(HALF_SIZE)}
        factors.pop("verb", None)
    return factors


def _weak_spots(tables: Sequence[FactorTable], cues: Sequence[str]) -> Iterator[WeakSpot]:
    """Values with which success is lower than with the rest of their table, at a joint confidence of 95 %.

    Bonferroni over all values compared: among sixty comparisons at 95 % each, three would stand out by chance. In the
    cues the plate has the target's or the lure's values, and the sentence too, so these are not compared again.
    """
    twice = [("plate", cue) for cue in cues] + [("sentence", factor) for factor in FACTORS if factor != "verb"]
    apart = [table for table in tables if (table.whose, table.factor) not in twice]
    rows = [(table, value) for table in apart for value in table.rows]
    confidence = 1 - (1 - CONFIDENCE) / max(len(rows), 1)
    for table, value in rows:
        here = table.rows[value].success
        others = together(counted.success for other, counted in table.rows.items() if other != value)
        strict = difference(Share(here.count, here.n, confidence), Share(others.count, others.n, confidence))
        if strict.high < 0:
            yield WeakSpot(table.part, table.whose, table.factor, value, here, others)


def _changes(groups: dict[str, dict[str, list[EpisodeOutcome]]]) -> Iterator[Change]:
    """What each condition changes in each part, and in both together; a part in which the other instruction is the
    same one throughout, as where the target lies alone, says nothing of it."""
    played = {(e.part, e.seed): e for episodes in groups.get(AS_IT_IS, {}).values() for e in episodes}
    for condition, parts in groups.items():
        if condition == AS_IT_IS:
            continue
        for part, episodes in {**parts, BOTH_PARTS: [e for found in parts.values() for e in found]}.items():
            both = [(e, played[e.part, e.seed]) for e in episodes if (e.part, e.seed) in played]
            pairs = [(a, b) for a, b in both if condition != OTHER_SENTENCE or a.instruction != b.instruction]
            if both and not pairs:
                continue
            after, before = count([a for a, _ in pairs]), count([b for _, b in pairs])
            yield Change(
                condition=condition,
                part=part,
                before=before,
                after=after,
                success=paired_difference([(a.success, b.success) for a, b in pairs]),
                target_picks=paired_difference([(a.picked == TARGET, b.picked == TARGET) for a, b in pairs]),
                preference=difference(after.preference, before.preference),
                other_pick=Share.of(a.picked != b.picked for a, b in pairs),
                switched=Share.of(a.picked != b.picked for a, b in pairs if NOTHING not in (a.picked, b.picked)),
            )
