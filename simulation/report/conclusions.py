"""What the numbers of a closed-loop evaluation say, in words, and what they cannot say with so few episodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulation.report import Change, Difference, Share, Summary, many, paired_difference
from toolkit.html_page import percent

A, B, NEITHER = "a", "b", "neither"
YES, NO, UNKNOWN = "yes", "no", "unknown"
LEAST_PICKS = 10  # with fewer, Wilson's interval is too short: 4 of 4 leave out one half, but one time in 8 by chance
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
        lines.append(
            f"{part}: the target is held in {success} of the episodes; {beside} the {percent(chance)} of picking any "
            "object."
        )
    lines += [f"{reading.question} {reading.sentence} {reading.text}" for reading in readings(summary)]
    return lines + [str(spot) for spot in summary.weak_spots]


def readings(summary: Summary) -> list[Reading]:
    """Cue preference first, then what the ablations show; a question whose ablation was not played is left out."""
    blind = "no sign that it looks at the images"
    # Another episode's images are real ones, so a fall with them is no mere shock: they count before blank ones.
    looks = {"other_image": ("it looks at the images", blind), "blank_image": ("it needs images", blind)}
    state = {"zero_state": ("it needs the state", "it does without the state")}
    found = [cue_preference(summary)] if "conflict" in summary.chance else []
    found += _needs(summary, "Does it look?", looks)
    if summary.change("other_instruction") is not None:
        found.append(Reading("Does it listen?", *_listens(summary.change("other_instruction", "conflict"))))
    return [*found, *_needs(summary, "Does it need the state?", state)]


def cue_preference(summary: Summary) -> Reading:
    """Which cue wins where they disagree: a where the interval lies above one half, b where it lies below."""
    share, (a, b) = summary.preference, summary.cues
    answer, headline = verdict(share, summary.cues)
    text = (
        f"Target or lure was picked first in {share.n} of {summary.of('conflict').success.n} conflict episodes"
        f"{f'; the target, which matches in {a}, in {share} of these' if share.n else ''}."
    )
    if answer == B:
        text += f" The instruction names {a}; the lure matches in {b}."
    elif answer == NEITHER:
        text += (
            f" The interval includes one half; {least_shown(share.n)} of {share.n} picks for either cue would have "
            "shown a preference."
        )
    return Reading("Which cue does it follow?", answer, headline, text)


def verdict(share: Share, cues: tuple[str, str]) -> tuple[str, str]:
    """(answer, the same in few words) of a cue preference."""
    if share.n < LEAST_PICKS:
        return UNKNOWN, f"cannot be said with {many(share.n, 'pick')}"
    if share.low > 0.5:
        return A, f"follows {cues[0]}"
    if share.high < 0.5:
        return B, f"follows {cues[1]}"
    return NEITHER, "no preference shown"


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


def _listens(changed: Change | None) -> tuple[str, str, str]:
    """(answer, headline, text) by the picks of conflict episodes: in train, both instructions mean the same object."""
    if changed is None:
        return UNKNOWN, "cannot be said", "That takes conflict episodes under another instruction."
    moved, n, picks = changed.target_picks, changed.before.success.n, changed.before.preference.n
    if n == 0:
        return UNKNOWN, "cannot be said: no episode was played both ways", ""
    text = (
        f"With another instruction the target's share of the first picks changes by {moved}; something else is "
        f"picked first in {changed.other_pick.count} of the {n} conflict episodes that were played both ways."
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
