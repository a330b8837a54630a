"""Which evaluations are of trainings of one setting, and how these settings compare.

A checkpoint's evaluation holds the recipe that it was trained by; trainings of one setting have the same recipe but for
the seed, and were evaluated alike. Of others, and in older reports, folders `seed-0`, `seed-1`, ... say so.
Weights that are evaluated twice are one training, and so are two runs with one seed."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.recipe.recipe_identity import completed
from simulation.report import Result
from simulation.report.shares import CONFIDENCE, Difference, Share
from simulation.report.training_seeds import Measure, letters, measure, setting_difference

PLAYED = (  # alike in the evaluations of one setting
    *("split", "n_action_steps", "max_steps", "instruction", "strategy", "no_distractor_prob"),
    *("denoising_steps", "embodiment_tag", "image_size", "render"),
)
SEED_FOLDER = re.compile(r"seed-(\d+)")
Seeded = tuple[Result, int | None]  # an evaluation, and the seed of the training


@dataclass(frozen=True)
class Setting:
    """The trainings of one setting: (evaluation, seed) each; a single one's seed may be unknown. not_counted: why
    further evaluations are no further trainings."""

    name: str
    split: str
    trainings: tuple[tuple[str, int | None], ...]
    not_counted: tuple[str, ...]


@dataclass(frozen=True)
class SettingDifference:
    """`second` minus `first`. means: at the family's confidence; new: of one more training of each, at 95 %."""

    first: str
    second: str
    means: Difference
    new: Difference


@dataclass(frozen=True)
class Family:
    """One measure (success in a part, or cue preference) of a split's settings, the best first, by their names.

    differences: of all pairs of settings with several trainings, each at `confidence`, jointly 95 %; groups: their
    letters.
    """

    split: str
    measure: str
    settings: dict[str, Measure]
    differences: tuple[SettingDifference, ...]
    confidence: float
    groups: dict[str, str]


def compare_settings(results: Sequence[Result]) -> tuple[list[Setting], list[Family]]:
    """The settings of every split in which one has several trainings, and their comparison in each measure."""
    members: dict[str, list[Seeded]] = {}
    for result in results:
        setting, seed = _setting_of(result)
        members.setdefault(setting, []).append((result, seed))
    counted = [_counted(found) for found in members.values()]
    names = _names([[result.name for result, _ in kept] for kept, _ in counted])
    settings, shares = [], dict[tuple[str, str], dict[str, list[Share]]]()
    for name, (kept, notes) in zip(names, counted, strict=True):
        split = kept[0][0].info["split"]
        settings.append(Setting(name, split, tuple((result.name, seed) for result, seed in kept), tuple(notes)))
        for measured, share in (each for result, _ in kept for each in _shares(result)):
            shares.setdefault((split, measured), {}).setdefault(name, []).append(share)
    several = {setting.split for setting in settings if len(setting.trainings) > 1}
    families = [_family(*key, found) for key, found in shares.items() if key[0] in several]
    return [setting for setting in settings if setting.split in several], families


def _family(split: str, measured: str, shares: dict[str, list[Share]]) -> Family:
    found = sorted(((name, measure(own)) for name, own in shares.items()), key=lambda each: -each[1].rate)
    several = {name: own.shares for name, own in found if own.mean}
    pairs = list(itertools.combinations(several, 2))
    confidence = 1 - (1 - CONFIDENCE) / max(len(pairs), 1)
    differences = [SettingDifference(*p, *setting_difference(several[p[0]], several[p[1]], confidence)) for p in pairs]
    apart = [(pair.first, pair.second) for pair in differences if pair.means.shown]
    return Family(split, measured, dict(found), tuple(differences), confidence, letters(list(several), apart))


def _shares(result: Result) -> Iterator[tuple[str, Share]]:
    """Every measure of an evaluation, as it is; those of no episode are left out."""
    found = [(f"success, {part}", result.summary.of(part).success) for part in result.summary.chance]
    return ((name, share) for name, share in [*found, ("cue preference", result.summary.preference)] if share.n)


def _setting_of(result: Result) -> tuple[str, int | None]:
    """(a text that the trainings of one setting have in common, the seed); one of its own where nothing is known."""
    info, place = result.info, Path(result.name)
    said, alone = SEED_FOLDER.fullmatch(place.name), json.dumps([result.name])
    played = [info.get(name) for name in PLAYED]
    if info.get("config", {}).get("stop") == "decided":  # the number of episodes follows from their outcomes
        return alone, None
    if "recipe" in info:
        recipe = completed(info["recipe"])
        step = info.get("training_step") if recipe.get("train.export") == "last" else None
        return json.dumps([played, recipe, step], sort_keys=True), info.get("training_seed")
    if said and ("checkpoint" in info or str(info["policy"]).startswith("server ")):
        return json.dumps([played, place.parent.as_posix()]), int(said[1])
    return alone, None


def _counted(found: Sequence[Seeded]) -> tuple[list[Seeded], list[str]]:
    """(those that are trainings of their own, by seed; why others are not); the one with most episodes is counted."""
    kept, notes = list[Seeded](), list[str]()
    for result, seed in sorted(found, key=lambda each: -len(each[0].evaluation.episodes)):
        if same := next((other.name for other, _ in kept if _weights(other) == _weights(result) is not None), None):
            notes.append(f"{result.name} has the weights of {same}: one training, evaluated twice")
        elif same := next((other.name for other, theirs in kept if theirs == seed), None):
            notes.append(f"{result.name} has the seed {seed} of {same}: no further training")
        else:
            kept.append((result, seed))
    return sorted(kept, key=lambda each: each[1] or 0), notes


def _weights(result: Result) -> str | None:
    return result.info.get("checkpoint_fingerprint") or result.info.get("checkpoint")


def _names(groups: Sequence[Sequence[str]]) -> Iterator[str]:
    """What the names of each group begin with, then *; all of them where two groups would have one name."""
    begin = os.path.commonprefix  # of letters, as in lr_seed0, lr_seed1
    short = [begin(names).rstrip("0123456789") + "*" if names[1:] else names[0] for names in groups]
    count = Counter(short)
    return (name if count[name] == 1 else ", ".join(names) for name, names in zip(short, groups, strict=True))
