"""The episodes of the twelve splits: unambiguous, solvable, balanced, the same for the same seed. No simulator."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from collections import Counter

import pytest

from gr00t.errors import ToolkitError
from simulation.scenes.plate_suite import (
    FACTORS,
    OBJECT_X,
    OBJECT_Y,
    SPACING,
    SPLITS,
    Episode,
    object_count,
    sample_episode,
    split_factors,
)
from simulation.scenes.suites import INSTRUCTION
from toolkit.installation import CHECKOUT, CONFIG_DIR
from toolkit.shared_keys import PARTS

EPISODES = 504  # 14 blocks of 36 seeds
EACH = list(itertools.product(SPLITS, PARTS))


@pytest.fixture(scope="module")
def sampled() -> dict[tuple[str, str], list[Episode]]:
    return {(split, part): [sample_episode(split, part, seed) for seed in range(EPISODES)] for split, part in EACH}


def matches(episode: Episode, factor: str) -> list[int]:
    return [i for i, thing in enumerate(episode.objects) if thing[factor] == episode.plate[factor]]


def episode_problem(episode: Episode) -> str | None:
    """Why the episode is ambiguous or cannot be solved; None where it is sound."""
    objects, a, b = episode.objects, *split_factors(episode.split)
    matching = {factor: matches(episode, factor) for factor in (a, b)}
    if matching[a] != [episode.target]:
        return f"objects {matching[a]} match the plate in {a}; the target {episode.target} alone should"
    other = episode.target if episode.part == "train" else episode.lure
    if matching[b] != [other]:
        return f"objects {matching[b]} match the plate in {b}; {other} alone should"
    if (episode.lure is None) != (episode.part == "train") or episode.lure == episode.target:
        return f"lure {episode.lure} does not fit the part {episode.part} with target {episode.target}"
    for name, thing in [("plate", episode.plate), *((f"object {i}", thing) for i, thing in enumerate(objects))]:
        if (thing.y > 0) != (thing.position == "right"):
            return f"{name} at y={thing.y:.3f} is not on the {thing.position}"
    for i, thing in enumerate(objects):
        if not (OBJECT_X[0] <= thing.x <= OBJECT_X[1] and OBJECT_Y[0] <= abs(thing.y) <= OBJECT_Y[1]):
            return f"object {i} at ({thing.x:.3f}, {thing.y:.3f}) is out of the workspace"
    for (i, p), (k, q) in itertools.combinations(enumerate(objects), 2):
        if math.dist((p.x, p.y), (q.x, q.y)) < SPACING:
            return f"objects {i} and {k} are too near each other for the hand"
    return None


def test_the_simulated_splits_are_those_of_the_configuration() -> None:
    folder = CONFIG_DIR / "split"
    known = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    assert known == {*SPLITS, *INSTRUCTION.splits, "custom"}


@pytest.mark.parametrize("split, part", EACH)
def test_every_episode_is_sound(split: str, part: str, sampled) -> None:
    assert [episode_problem(episode) for episode in sampled[split, part]] == [None] * EPISODES


@pytest.mark.parametrize("split", SPLITS)
def test_in_train_one_object_matches_in_both_cues_and_the_others_in_neither(split: str, sampled) -> None:
    a, b = split_factors(split)
    for episode in sampled[split, "train"]:
        assert matches(episode, a) == matches(episode, b) == [episode.target] and episode.lure is None


@pytest.mark.parametrize("split", SPLITS)
def test_in_conflict_the_cues_point_at_two_objects(split: str, sampled) -> None:
    a, b = split_factors(split)
    for episode in sampled[split, "conflict"]:
        assert (matches(episode, a), matches(episode, b)) == ([episode.target], [episode.lure])
        assert episode.target != episode.lure


@pytest.mark.parametrize("split, part", EACH)
def test_target_and_plate_have_every_value_equally_often(split: str, part: str, sampled) -> None:
    episodes = sampled[split, part]
    for factor, values in FACTORS.items():
        even = {value: EPISODES // len(values) for value in values}
        assert Counter(e.plate[factor] for e in episodes) == even
        assert Counter(e.objects[e.target][factor] for e in episodes) == even
        if part == "conflict":
            assert Counter(e.objects[e.lure][factor] for e in episodes) == even


@pytest.mark.parametrize("split, part", EACH)
def test_factors_that_are_no_cue_say_nothing_about_the_target(split: str, part: str, sampled) -> None:
    """The target matches the plate in them as often as chance has it, and lies anywhere."""
    episodes = sampled[split, part]
    for factor in set(FACTORS) - set(split_factors(split)):
        share = sum(e.target in matches(e, factor) for e in episodes) / EPISODES
        assert abs(share - 1 / len(FACTORS[factor])) < 0.11  # five standard deviations
    order = Counter(e.target for e in episodes)
    assert min(order.values()) > 0.8 * EPISODES / object_count(split)


@pytest.mark.parametrize("split, part", EACH)
def test_targets_lie_where_all_objects_lie(split: str, part: str, sampled) -> None:
    targets = [e.objects[e.target] for e in sampled[split, part]]
    everything = [thing for e in sampled[split, part] for thing in e.objects]
    for place in (lambda t: t.x, lambda t: abs(t.y)):
        mean = sum(map(place, targets)) / len(targets)
        assert abs(mean - sum(map(place, everything)) / len(everything)) < 0.012


def test_with_a_cue_of_two_values_there_is_no_odd_one_out() -> None:
    assert [split for split in SPLITS if object_count(split) == 3] == ["color_object", "object_color"]


def test_no_two_seeds_or_parts_give_the_same_episode(sampled) -> None:
    places = [(e.split, e.part, e.objects[0].x) for episodes in sampled.values() for e in episodes]
    assert len(set(places)) == len(places)


def test_an_episode_depends_on_nothing_but_split_part_and_seed() -> None:
    code = "from simulation.scenes.plate_suite import *; print(sample_episode('size_color', 'conflict', 77))"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(sample_episode("size_color", "conflict", 77))


def changed(episode: Episode, index: int, **values: object) -> Episode:
    objects = list(episode.objects)
    objects[index] = dataclasses.replace(objects[index], **values)  # type: ignore[arg-type]
    return dataclasses.replace(episode, objects=tuple(objects))


def test_unsound_episodes_are_recognised() -> None:
    train = sample_episode("color_object", "train", 5)
    other = (train.target + 1) % 3
    assert "match the plate in color" in str(episode_problem(changed(train, other, color=train.plate.color)))
    assert "match the plate in object" in str(episode_problem(changed(train, other, object=train.plate.object)))
    target = train.objects[train.target]
    near = {"x": 0.0, "y": target.y, "position": target.position}
    close = changed(changed(train, train.target, x=0.03), other, **near)
    assert "near each other" in str(episode_problem(close))
    assert "is not on the" in str(episode_problem(changed(train, other, y=-train.objects[other].y)))
    assert "out of the workspace" in str(episode_problem(changed(train, other, x=0.5)))
    conflict = sample_episode("color_object", "conflict", 5)
    assert episode_problem(dataclasses.replace(conflict, lure=None))
    assert episode_problem(dataclasses.replace(conflict, part="train"))


@pytest.mark.parametrize("split", ["colour_object", "color_color", "color", "my_split"])
def test_a_split_without_a_task_is_refused_by_name(split: str) -> None:
    with pytest.raises(ToolkitError, match=f"split={split}"):
        sample_episode(split, "train", 0)
