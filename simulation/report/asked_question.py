"""The question that an evaluation is to answer (question=...), and when it has answered it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from simulation.closed_loop import LURE, TARGET, EpisodeOutcome, parse_question
from simulation.report import AS_IT_IS
from simulation.report.anytime import Outcomes, Question
from simulation.report.closed_loop_report import JSON_FILE, read_evaluation


@dataclass(frozen=True)
class AskedQuestion:
    """A question of each part's episodes, as they are.

    question: what is asked of their mean. prefers: whether that is the share of the target among the picks of target or
    lure, instead of success. other: episodes of another evaluation by (part, seed), from whose success that of the same
    episode is taken; None where success itself is asked for.
    """

    text: str
    question: Question
    prefers: bool = False
    other: Mapping[tuple[str, int], EpisodeOutcome] | None = field(default=None, repr=False)

    def outcomes(self, episodes: Sequence[EpisodeOutcome]) -> Outcomes:
        """What the question is asked of. Episodes that the other evaluation did not play are left out."""
        if self.prefers:
            return Outcomes.of(e.picked == TARGET for e in episodes if e.picked in (TARGET, LURE))
        if self.other is None:
            return Outcomes.of(e.success for e in episodes)
        same = ((e, self.other.get((e.part, e.seed))) for e in episodes)
        return Outcomes.of_pairs((e.success, o.success) for e, o in same if o is not None and o.episode == e.episode)

    def answered(self, episodes: Sequence[EpisodeOutcome]) -> bool:
        """Whether these episodes of one part have answered it."""
        return self.question.answer(self.outcomes(episodes)) is not None

    def told(self, episodes: Sequence[EpisodeOutcome], parts: Sequence[str], look: int) -> dict[str, Any]:
        """What the report states as plain JSON: of each part the answer, whether yes, and the interval of the mean
        after every `look` episodes, [episodes, low, high]."""
        found: dict[str, Any] = {}
        for part in parts:
            played = [e for e in episodes if (e.condition, e.part) == (AS_IT_IS, part)]
            looks = [*range(0, len(played), look), len(played)]
            looked = [(n, *self.outcomes(played[:n]).interval(self.question.confidence)) for n in looks]
            found[part] = {"answer": self.question.answer(self.outcomes(played)), "looks": looked}
        threshold, margin = self.question.threshold, self.question.margin
        return {"text": self.text, "threshold": threshold, "margin": margin, "parts": found}


def read_question(text: str, parts: Sequence[str]) -> AskedQuestion:
    """The question that a text asks; ToolkitError where it cannot be asked of these parts."""
    form, number, folder = parse_question(text)
    if form == "prefers":
        if list(parts) != ["conflict"]:
            raise ToolkitError(
                f"question={text}: only conflict episodes show a preference. Write parts=[conflict] beside it."
            )
        return AskedQuestion(text, Question(0.5, two_sided=True), prefers=True)
    if form == "above":
        return AskedQuestion(text, Question(number))
    path = Path(folder) / JSON_FILE
    if not path.is_file():
        raise ToolkitError(f"question={text}: there is no {path}. Give the report folder of a closed-loop evaluation.")
    other = {(e.part, e.seed): e for e in read_evaluation(path).episodes if e.condition == AS_IT_IS}
    for part in parts:
        if part not in {of for of, _ in other}:
            raise ToolkitError(
                f"question={text}: {path} holds no episodes of {part}. Leave that part out: parts=[...]."
            )
    if form == "better":
        return AskedQuestion(text, Question(0.0, two_sided=True), other=other)
    return AskedQuestion(text, Question(0.0, margin=number), other=other)
