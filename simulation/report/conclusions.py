"""What the numbers of a closed-loop evaluation say, in words, and what they cannot say with so few episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from simulation.closed_loop import NOTHING
from simulation.report import ENDINGS, OTHER_SENTENCE, Change, Summary, Way
from simulation.report.dominance import LEAST_PICKS, NEITHER, UNKNOWN, A, B, Dominance, verdict
from simulation.report.proportions import Difference, Share, many, paired_difference
from toolkit.html_page import percent

YES, NO = "yes", "no"
SMALL = 0.15  # a change that lies within this on either side is called none


@dataclass(frozen=True)
class Reading:
    """An answer for machines (a, b, neither; yes, no; unknown), one in few words, and the numbers behind it."""

    question: str
    answer: str
    headline: str
    text: str

    @property
    def sentence(self) -> str:
        """The headline as a sentence."""
        return f"{self.headline[:1].upper()}{self.headline[1:]}."

    @property
    def tone(self) -> str:
        """The class of the answer's color; whether a policy needs its state is neither good nor bad."""
        if "state" in self.question:
            return ""
        return {A: "ok", YES: "ok", NO: "error", UNKNOWN: "soft"}.get(self.answer, "warning")


def in_short(summary: Summary) -> list[str]:
    """What a reader should know at once, a sentence each."""
    lines = []
    for part, chance in summary.chance.items():
        success = summary.of(part).success
        beside = "above" if success.low > chance else "below" if success.high < chance else "not distinct from"
        done = "what was asked for is done" if part in summary.doing else "the target is held"
        if summary.dominance and part == "conflict":  # where no object is the right one
            done = f"it is done to {summary.dominance.a}'s object"
        lines.append(
            f"{part}: {done} in {success} of the episodes; {beside} the {percent(chance)} of picking any object."
        )
    lines += [f"{part}, each repetition: {'; '.join(map(str, runs))}." for part, runs in summary.runs.items()]
    lines += [_way_sentence(part, way, summary.expert) for part, way in summary.way.items()]
    lines += [f"{reading.question} {reading.sentence} {reading.text}" for reading in readings(summary)]
    return lines + [str(spot) for spot in summary.weak_spots]


def _way_sentence(part: str, way: Way, experts: Mapping[str, Way]) -> str:
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


def readings(summary: Summary) -> list[Reading]:
    """Cue preference first, then what the ablations show; a question whose ablation was not played is left out."""
    blind = "no sign that it looks at the images"
    # Another episode's images are real ones, so a fall with them is no mere shock: they count before blank ones.
    looks = {"other_image": ("it looks at the images", blind), "blank_image": ("it needs images", blind)}
    state = {"zero_state": ("it needs the state", "it does without the state")}
    found = [cue_preference(summary)] if "conflict" in summary.chance and summary.cues else []
    if summary.dominance and summary.dominance.alone:
        found.append(_alone(summary.dominance, summary.chance))
    found += _answers(summary)
    found += _needs(summary, "Does it look?", looks)
    if OTHER_SENTENCE in summary.counted:
        part = "seen" if summary.doing else "conflict"
        found.append(Reading("Does it listen?", *_listens(summary.change(OTHER_SENTENCE, part), part)))
    return [*found, *_needs(summary, "Does it need the state?", state)]


def cue_preference(summary: Summary) -> Reading:
    """Which cue wins where they disagree: a where the interval lies above one half, b where it lies below."""
    share, (a, b) = summary.preference, summary.cues or ("", "")
    answer, headline = verdict(share, (a, b))
    text = (
        f"Target or lure was picked first in {share.n} of {summary.of('conflict').success.n} conflict episodes"
        f"{f'; the target, which matches in {a}, in {share} of these' if share.n else ''}."
    )
    if summary.dominance:
        found = summary.dominance
        text += f" Of all: {a}'s object {found.a_of_all}, {b}'s {found.b_of_all}, neither {found.neither}."
    elif answer == B:
        text += f" The instruction names {a}; the lure matches in {b}."
    if answer == NEITHER:
        text += (
            f" The interval includes one half; {least_shown(share.n)} of {share.n} picks for either cue would have "
            "shown a preference."
        )
    return Reading("Which cue does it follow?", answer, headline, text)


def _alone(found: Dominance, chance: Mapping[str, float]) -> Reading:
    """Which factors are followed where they alone tell the objects apart, as a preference between two may hide."""
    question, parts = "Is each factor followed alone?", {found.a: "single_a", found.b: "single_b"}
    told = [
        f"{f}: the target in {each.among} of the picks, in {each.over_all} of all" for f, each in found.alone.items()
    ]
    text = f"{'; '.join(told)}."
    if max(each.among.n for each in found.alone.values()) < LEAST_PICKS:
        return Reading(question, UNKNOWN, "cannot be said with so few picks", text)
    followed = [factor for factor, each in found.alone.items() if each.among.low > chance[parts[factor]]]
    others = [factor for factor in found.alone if factor not in followed]
    if not others:
        return Reading(question, YES, f"yes: {' and '.join(followed)}", text)
    headline = f"{followed[0]}, not shown of {others[0]}" if followed else f"not shown of {' or '.join(others)}"
    return Reading(question, NEITHER if followed else NO, headline, text)


def _answers(summary: Summary) -> Iterator[Reading]:
    """What the evaluation was asked, for each part."""
    for part, told in summary.asked.get("parts", {}).items():
        n, low, high = told["looks"][-1]
        answer = {True: YES, False: NO, None: UNKNOWN}[told["answer"]]
        counted, rests_on = many(n, "episode"), told.get("rests_on", n)  # reports from before December 2026 have none
        if rests_on != n:
            counted = f"{many(rests_on, summary.asked['unit'])} of {counted}"
        if summary.asked["text"].strip() == "prefers" and summary.cues and answer != UNKNOWN:
            headline = f"{summary.cues[answer == NO]}, after {counted}"
        else:
            headline = f"not decided by {counted}" if answer == UNKNOWN else f"{answer}, after {counted}"
        text = (
            f"{100 * low:.0f} to {percent(high)}: the interval that holds at all looks together. The answer is wrong "
            "in at most 5 % of such evaluations, also where they end as soon as it is there."
        )
        yield Reading(f"{summary.asked['text']} ({part})?", answer, headline, text)


def least_shown(n: int) -> int:
    """The fewest of n picks (LEAST_PICKS or more) for one cue that show a preference."""
    return next(count for count in range(n // 2, n + 1) if Share(count, n).low > 0.5)


def _needs(summary: Summary, question: str, headlines: dict[str, tuple[str, str]]) -> Iterator[Reading]:
    """By whether success falls; headlines: (yes, no) of each condition, of which the first that shows it answers."""
    changes = [changed for name in headlines if (changed := summary.change(name)) is not None]
    if changes:
        answers = [_fall(changed, *headlines[changed.condition]) for changed in changes]
        answer = next((answer for answer in answers if answer[0] != UNKNOWN), answers[-1])
        yield Reading(question, *answer, " ".join(map(str, changes)))


def _listens(changed: Change | None, part: str) -> tuple[str, str, str]:
    """(answer, headline, text) by the picks of the part in which the other instruction means another object."""
    if changed is None:
        return UNKNOWN, "cannot be said", f"That takes {part} episodes under another instruction."
    moved, n, picks = changed.target_picks, changed.before.success.n, changed.before.preference.n
    if part == "seen":
        picks = n - changed.before.picks[NOTHING].count
    if n == 0:
        return UNKNOWN, "cannot be said: no episode was played both ways", ""
    text = (
        f"With another instruction the target's share of the first picks changes by {moved}; something else is "
        f"picked first in {changed.other_pick.count} of the {n} {part} episodes that were played both ways."
    )
    if moved.shown:
        return YES, "its picks change with the instruction", text
    if picks < LEAST_PICKS:
        return UNKNOWN, f"cannot be said with {many(picks, 'pick')} of target or lure", text
    if _small(moved):
        return NO, "no sign that it listens", text
    return UNKNOWN, f"cannot be said with {n} episodes", text


def _fall(changed: Change, yes: str, no: str) -> tuple[str, str]:
    """(answer, headline) to whether success falls."""
    before = changed.before.success
    if before.n == 0:
        return UNKNOWN, "cannot be said: no episode was played both ways"
    if changed.success.high < 0:
        return YES, yes
    if changed.success.low > 0:
        return UNKNOWN, "cannot be said: success rises"
    to_none = [(False, True)] * before.count + [(False, False)] * (before.n - before.count)
    if paired_difference(to_none).high >= 0:  # not even a fall to no success at all would be shown
        return UNKNOWN, f"cannot be said: it succeeds in {before.count} of {before.n} episodes anyway"
    if _small(changed.success):
        return NO, no
    return UNKNOWN, f"cannot be said with {before.n} episodes"


def _small(changed: Difference) -> bool:
    return changed.value is not None and changed.low >= -SMALL and changed.high <= SMALL
