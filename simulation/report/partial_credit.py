"""How far episodes came with their target: the stages that they reached, when, and where those that failed ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulation.closed_loop import NOWHERE, STAGES, EpisodeOutcome
from simulation.report.shares import Quartiles, Share, many, quartiles

# Failures by the last stage that they reached.
ENDINGS = {
    NOWHERE: "did not move toward the target",
    "toward": "moved toward it, did not touch it",
    "touched": "touched it, neither grasped nor moved it",
    "moved": "grasped or moved it, did not do what was asked for",
    "done": "did what was asked for, the arm never still meanwhile",
}
WAY_HEAD = ["stage", "reached", "step: median (quartiles)", "the expert", "the expert's step"]


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


def way_rows(way: Way, expert: Way | None) -> list[list[str]]:
    """A row of WAY_HEAD for each stage."""
    return [
        [
            STAGES[stage],
            str(share),
            in_words(way.steps[stage]),
            expert.reached[stage].counts if expert else "-",
            in_words(expert.steps[stage]) if expert else "-",
        ]
        for stage, share in way.reached.items()
    ]


def in_words(found: Quartiles | None, digits: int = 0) -> str:
    """21 (19 to 24)."""
    if found is None:
        return "-"
    low, middle, high = (f"{q:.{digits}f}" for q in (found.first_quartile, found.median, found.third_quartile))
    return f"{middle} ({low} to {high})"


def way_sentence(part: str, way: Way, experts: Mapping[str, Way]) -> str:
    """Partial credit, where failures end, and smoothness, each beside the expert's."""
    expert, smoothness = experts.get(part), way.smoothness
    failures = sum(share.count for share in way.ended.values())
    ends = "; ".join(f"{share.count} {ENDINGS[stage]}" for stage, share in way.ended.items())
    said = f"{part}, on the way: partial credit {way.credit:.2f}"
    said += f" (the expert {expert.credit:.2f})." if expert else "."
    said += f" Of {many(failures, 'failure')}: {ends}." if failures else ""
    if smoothness:
        said += f" Smoothness (SPARC) {smoothness.median:.2f}"
        said += f" (the expert {expert.smoothness.median:.2f})." if expert and expert.smoothness else "."
    return said


def way_problems(outcome: EpisodeOutcome) -> Iterator[str]:
    """What is wrong with the stages and smoothness of an outcome that was read from a file."""
    stages, smoothness = outcome.stages, outcome.smoothness
    if smoothness is not None and not (isinstance(smoothness, float) and -math.inf < smoothness < 0):
        yield f"smoothness is {smoothness!r}, no number below 0"
    if stages is None:
        return
    if not isinstance(stages, dict) or list(stages) != list(STAGES)[: len(stages)]:
        yield f"stages are {stages!r}, not the first ones of {', '.join(STAGES)}"
        return
    steps = list(stages.values())
    if any(type(step) is not int for step in steps) or sorted(steps) != steps or min(steps, default=1) < 1:
        yield f"stages are {stages}, whose steps are no counts that grow"
    elif max(steps, default=0) > outcome.steps or ("held" in stages) != outcome.success:
        yield f"stages are {stages}, of {outcome.steps} steps and success {outcome.success}"
