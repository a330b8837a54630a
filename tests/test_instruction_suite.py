"""Scenes of the instruction suite: which object a sentence fits, and which combinations are recorded."""

from __future__ import annotations

import collections
import itertools
import math

import pytest

from gr00t.errors import ToolkitError
from simulation.scenes.combinations import STRATEGIES, Strategy
from simulation.scenes.instruction_suite import (
    CELLS,
    EXPERIMENTS,
    FACTORS,
    HALF_SIZE,
    JITTER,
    PARTS,
    SPLITS,
    Body,
    InstructedEpisode,
    combinations,
    factors_of,
    sample_episode,
)

EPISODES = 500
SIZES = {word: "small" if word.startswith("small") else "large" for word in FACTORS["size"]}
EACH = list(itertools.product(SPLITS, PARTS))
VALUES = [list("abcdef"), list("123456")]
EVERY = list(itertools.product(*VALUES))


def physical(value: str) -> str:
    """A value as the object has it."""
    return SIZES.get(value, value)


def fits(episode: InstructedEpisode, body: Body, factor: str) -> bool:
    """Whether the sentence's value of a factor says this object, by what lies on the table alone."""
    value, sizes = episode.named[factor], [HALF_SIZE[other.size] for other in episode.objects]
    mine = HALF_SIZE[body.size]
    if factor != "size":
        return getattr(body, factor) == value
    return {
        "small": body.size == "small",
        "large": body.size == "large",
        "smaller": mine == min(sizes) < max(sizes),
        "larger": mine == max(sizes) > min(sizes),
        "smallest": sizes.count(mine) == 1 and mine == min(sizes),
        "largest": sizes.count(mine) == 1 and mine == max(sizes),
    }[value]


@pytest.mark.parametrize(("split", "part"), EACH)
def test_a_sentence_means_one_object_or_in_conflict_one_by_each_factor(split: str, part: str) -> None:
    pair = factors_of(split)
    for seed in range(EPISODES):
        episode = sample_episode(split, part, seed)
        found = {
            factor: [i for i, body in enumerate(episode.objects) if fits(episode, body, factor)] for factor in pair
        }
        assert tuple(episode.named) == pair
        assert found[pair[0]] == [episode.target]
        assert found[pair[1]] == [episode.target if "conflict" not in part else episode.lure]
        assert (episode.lure is None) == ("conflict" not in part) and episode.lure != episode.target


@pytest.mark.parametrize("split", SPLITS)
def test_the_sentence_says_what_is_named_and_only_that(split: str) -> None:
    names = {**{value: value for values in FACTORS.values() for value in values}, "behind": "back"}
    for seed in range(100):
        episode = sample_episode(split, "train", seed)
        words = episode.instruction.removesuffix(".").split()
        assert all(names[value] in words for value in episode.named.values())
        others = {names[v] for factor in FACTORS for v in FACTORS[factor] if factor not in (*episode.named, "object")}
        assert not others.intersection(words)
    assert sample_episode("instruction/color_object", "train", 0).instruction == "Lift the red cup."


@pytest.mark.parametrize(("split", "part"), EACH)
def test_only_the_pair_varies_and_objects_lie_apart(split: str, part: str) -> None:
    pair = factors_of(split)
    for seed in range(EPISODES):
        objects = sample_episode(split, part, seed).objects
        for factor in {"color", "object"} - {*pair}:
            assert len({getattr(body, factor) for body in objects}) == 1
        assert len({body.spatial for body in objects}) == len(objects)
        for one, other in itertools.combinations(objects, 2):
            assert math.dist((one.x, one.y), (other.x, other.y)) > 0.085
        for body in objects:
            x, y = CELLS[body.spatial]
            assert max(abs(body.x - x), abs(body.y - y)) <= JITTER


@pytest.mark.parametrize("split", SPLITS)
def test_parts_have_the_combinations_of_their_name(split: str) -> None:
    recorded, others = combinations(split)
    assert len(recorded) == 12 and not {*recorded} & {*others}
    for part, allowed in (("train", recorded), ("unseen", others), ("conflict", recorded)):
        named = {tuple(sample_episode(split, part, seed).named.values()) for seed in range(EPISODES)}
        assert named <= {*allowed} and len(named) >= 0.9 * len(allowed)


@pytest.mark.parametrize("split", SPLITS)
def test_an_image_does_not_tell_which_object_is_named(split: str) -> None:
    """Each two objects are as often target and distractor as the other way round; places are drawn apart."""
    recorded = {tuple(physical(value) for value in each) for each in combinations(split)[0]}
    pair, roles, places = factors_of(split), collections.Counter(), collections.Counter()
    for seed in range(4000):
        episode = sample_episode(split, "train", seed)
        target = episode.objects[episode.target]
        other = next(b for b in episode.objects if b is not target and b.size != "medium")
        one, two = (tuple(getattr(body, factor) for factor in pair) for body in (target, other))
        roles[one, two] += 1
        places[target.spatial] += 1
    without_partner = sum(count for (_, two), count in roles.items() if two not in recorded)
    assert without_partner < 0.1 * 4000
    for one, two in (pair for pair in roles if {*pair} <= recorded):
        count = roles[one, two]
        assert abs(count - roles[two, one]) <= 4 * math.sqrt(count + roles[two, one])
    if "spatial" not in pair:
        assert max(places.values()) - min(places.values()) < 4 * math.sqrt(2 * 800)


@pytest.mark.parametrize("split", SPLITS)
def test_recorded_combinations_are_named_about_equally_often(split: str) -> None:
    named = collections.Counter(tuple(sample_episode(split, "train", s).named.values()) for s in range(2400))
    assert max(named.values()) < 4 * min(named.values())


def test_episodes_follow_from_their_seed() -> None:
    assert sample_episode("instruction/size_object", "conflict", 7) == sample_episode(
        "instruction/size_object", "conflict", 7
    )
    episodes = [sample_episode("instruction/size_object", "train", seed) for seed in range(50)]
    assert len({episode.objects for episode in episodes}) == 50


def test_unknown_experiments_and_parts_are_refused() -> None:
    with pytest.raises(ToolkitError, match=r'Did you mean "instruction/color_object"'):
        factors_of("instruction/colour_object")
    with pytest.raises(ToolkitError, match=r"part=test: expected train, seen, unseen, conflict, train_conflict"):
        sample_episode("instruction/color_object", "test", 0)
    with pytest.raises(ToolkitError, match="none is left for part=unseen"):
        sample_episode("instruction/color_object", "unseen", 0, "complete")


# -- strategies --------------------------------------------------------------------------------------------------------


def changes(chosen: list[tuple[str, ...]]) -> list[int]:
    """How many factors change from each combination to the next."""
    return [sum(a != b for a, b in zip(one, other, strict=True)) for one, other in itertools.pairwise(chosen)]


def test_strategies_record_what_their_names_say() -> None:
    chosen = {name: Strategy(name).choose(VALUES, EVERY, "seed") for name in STRATEGIES}
    assert {name: len(found) for name, found in chosen.items()} == {
        **{"none": 1, "single": 6, "diagonal": 6, "L": 11, "stair": 11},
        **{"random": 36, "Lrandom": 36, "complete": 36},
    }
    assert len({each[1] for each in chosen["single"]}) == 1
    assert all(len({each[place] for each in chosen["diagonal"]}) == 6 for place in (0, 1))
    assert changes(chosen["stair"]) == [1] * 10
    corner = chosen["L"][0]
    assert all(sum(a != b for a, b in zip(corner, each, strict=True)) == 1 for each in chosen["L"][1:])
    assert all(
        sum(a != b for a, b in zip(chosen["Lrandom"][0], each, strict=True)) == 1 for each in chosen["Lrandom"][1:11]
    )
    for name in ("diagonal", "L", "stair", "random"):
        assert all({each[place] for each in chosen[name]} == {*VALUES[place]} for place in (0, 1)), name


def test_random_covers_every_value_as_soon_as_it_can_and_leaves_out_what_is_impossible() -> None:
    possible = [each for each in EVERY if each != ("a", "1")]
    for seed in range(20):
        chosen = Strategy("random", 7).choose(VALUES, possible, str(seed))
        assert all({each[place] for each in chosen} == {*VALUES[place]} for place in (0, 1))
        assert ("a", "1") not in Strategy("random").choose(VALUES, possible, str(seed))


def test_published_names_of_strategies_are_understood() -> None:
    assert Strategy.read("random_f12") == Strategy("random", 12)
    assert Strategy.read("Lrandom_f50_n100") == Strategy("Lrandom", 50, 100)
    assert Strategy.read("diagonal") == Strategy("diagonal")
    with pytest.raises(ToolkitError, match=r'Did you mean "diagonal"'):
        Strategy.read("diagnal_f6")
    for wrong in ("random_f0", "random_x3", ""):
        with pytest.raises(ToolkitError, match="strategy="):
            Strategy.read(wrong)


def test_every_experiment_has_both_kinds_of_scenes() -> None:
    for name, strategy in itertools.product(EXPERIMENTS, ("none", "single", "diagonal", "L", "stair", "complete")):
        for part in ("train", "conflict"):
            episode = sample_episode(f"instruction/{name}", part, 3, strategy)
            assert len(episode.objects) in (2, 3)
