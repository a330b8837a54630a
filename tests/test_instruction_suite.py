"""Scenes of the instruction suite: which object a sentence fits, and which combinations are recorded."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import math

import pytest

from gr00t.errors import ToolkitError
from simulation.scenes.combinations import STRATEGIES, Strategy
from simulation.scenes.instruction_suite import (
    ALL,
    CELLS,
    EXPERIMENTS,
    FACTORS,
    HALF_SIZE,
    JITTER,
    OF_VERBS,
    PARTS,
    PREFIX,
    SPLITS,
    Body,
    InstructedEpisode,
    combinations,
    factors_of,
    sample_episode,
    values_of,
)
from simulation.scenes.single_factor import other_sentence
from simulation.scenes.suites import suite_of
from simulation.scenes.verbs import VERBS, suits

EPISODES = 500
SIZES = {word: "small" if word.startswith("small") else "large" for word in FACTORS["size"]}
PAIRS = [PREFIX + name for name in EXPERIMENTS]
WITH_VERBS = [PREFIX + name for name in OF_VERBS]
USUAL, FEW_VALUES = "random_f12", "random_f6_v3"
EACH = [
    (split, part, strategy)  # with more pairs of three values, a verb is recorded with what lies beside its object too
    for split, part in itertools.product(PAIRS, PARTS)
    for strategy in (USUAL, "diagonal_v3" if split in WITH_VERBS else FEW_VALUES)
]
VALUES = [list("abcdef"), list("123456")]
EVERY = list(itertools.product(*VALUES))


def physical(value: str) -> str:
    """A value as the object has it."""
    return SIZES.get(value, value)


def recorded_with(split: str, verb: str, strategy: str = USUAL) -> set[str]:
    """What the objects are that a verb is recorded with, in verb_<b>."""
    return {physical(value) for other, value in combinations(split, strategy)[0] if other == verb}


def fits(episode: InstructedEpisode, body: Body, factor: str) -> bool:
    """Whether the sentence's value of a factor says this object, by what lies on the table alone; a verb, whether it
    was recorded with the object's value of the other factor."""
    if factor == "verb":
        return getattr(body, [*episode.named][1]) in recorded_with(episode.split, episode.verb, episode.strategy)
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


@pytest.mark.parametrize(("split", "part", "strategy"), EACH)
def test_a_sentence_means_one_object_or_in_conflict_one_by_each_factor(split: str, part: str, strategy: str) -> None:
    pair = factors_of(split)
    for seed in range(EPISODES):
        episode = sample_episode(split, part, seed, strategy)
        found = {
            factor: [i for i, body in enumerate(episode.objects) if fits(episode, body, factor)] for factor in pair
        }
        assert tuple(episode.named) == pair
        if pair[0] == "verb" and part == "unseen":
            assert found["verb"] in ([], [episode.target])
        else:
            assert found[pair[0]] == [episode.target]
        assert found[pair[1]] == [episode.target if "conflict" not in part else episode.lure]
        assert (episode.lure is None) == ("conflict" not in part) and episode.lure != episode.target


@pytest.mark.parametrize("part", ["train", "seen", "unseen"])
def test_all_five_words_mean_one_object_and_some_fit_another(part: str) -> None:
    alone, shared = 0, collections.Counter[str]()
    compared = {"smaller", "larger", "smallest", "largest"}
    for seed in range(EPISODES):
        episode = sample_episode(ALL, part, seed)
        attributes = [factor for factor in factors_of(ALL) if factor != "verb"]
        found = [{f for f in attributes if fits(episode, body, f)} for body in episode.objects]
        assert [i for i, fit in enumerate(found) if len(fit) == 4] == [episode.target] and episode.lure is None
        assert len(episode.objects) > 1 or episode.named["size"] not in compared
        alone += len(episode.objects) == 1
        shared.update(factor for i, fit in enumerate(found) for factor in fit if i != episode.target)
    absolute = sum(sample_episode(ALL, part, seed).named["size"] not in compared for seed in range(EPISODES))
    assert abs(alone - 0.7 * absolute) < 4 * math.sqrt(0.7 * 0.3 * absolute)
    assert {*shared} == {"size", "color", "object"}


@pytest.mark.parametrize("split", SPLITS)
def test_the_sentence_says_what_is_named_and_only_that(split: str) -> None:
    names = {**{value: value for values in FACTORS.values() for value in values}, "behind": "back"}
    for seed in range(100):
        episode = sample_episode(split, "train", seed)
        words = episode.instruction.lower().removesuffix(".").split()
        assert words[0] == episode.verb == episode.named.get("verb", "lift")
        assert all(names[value] in words for value in episode.named.values())
        others = {
            names[v] for factor in FACTORS for v in FACTORS[factor] if factor not in (*episode.named, "object", "verb")
        }
        assert not others.intersection(words)
    assert sample_episode("instruction/color_object", "train", 0).instruction == "Lift the red cup."
    assert sample_episode(ALL, "train", 0).instruction == "Lift the large blue pyramid on the left."


@pytest.mark.parametrize(("split", "part", "strategy"), EACH)
def test_only_the_pair_varies_and_objects_lie_apart(split: str, part: str, strategy: str) -> None:
    pair = factors_of(split)
    for seed in range(EPISODES):
        objects = sample_episode(split, part, seed, strategy).objects
        for factor in {"color", "object"} - {*pair}:
            assert len({getattr(body, factor) for body in objects}) == 1
        assert len({body.spatial for body in objects}) == len(objects)
        for one, other in itertools.combinations(objects, 2):
            assert math.dist((one.x, one.y), (other.x, other.y)) > 0.085
        for body in objects:
            x, y = CELLS[body.spatial]
            assert max(abs(body.x - x), abs(body.y - y)) <= JITTER


@pytest.mark.parametrize(("split", "part"), [*itertools.product(WITH_VERBS, PARTS), (ALL, "train"), (ALL, "unseen")])
def test_the_verb_can_be_done_to_each_object_and_touches_no_other(split: str, part: str) -> None:
    """By its shape, and by where the others lie: 6 cm on its way and an open hand's width beside it."""
    for seed in range(EPISODES):
        episode = sample_episode(split, part, seed)
        for one, other in itertools.permutations(episode.objects, 2):
            away, aside = abs(other.x - one.x), abs(other.y - one.y)
            if episode.verb in ("push", "pull"):
                assert aside > 0.12 or away > 0.2
        for one in episode.objects:
            assert suits(episode.verb, one.object)
            beside = {
                math.copysign(1, o.y - one.y) for o in episode.objects if o is not one and abs(o.x - one.x) < 0.08
            }
            assert episode.verb != "slide" or len(beside) < 2


@pytest.mark.parametrize("split", WITH_VERBS)
def test_conflicts_of_verbs_join_what_was_never_recorded_together(split: str) -> None:
    factor, counts = factors_of(split)[1], [collections.Counter[str]() for _ in range(4)]
    for seed in range(EPISODES):
        episode = sample_episode(split, "conflict", seed)
        target, lure = episode.objects[episode.target], episode.objects[episode.lure or 0]
        assert getattr(lure, factor) == physical(episode.named[factor])
        assert getattr(lure, factor) not in recorded_with(split, episode.verb)
        assert getattr(target, factor) in recorded_with(split, episode.verb)
        for count, value in zip(
            counts, (episode.verb, getattr(lure, factor), target.spatial, lure.spatial), strict=True
        ):
            count[value] += 1
    verbs, values, of_targets, of_lures = counts
    assert {*verbs} == {*VERBS} and max(verbs.values()) - min(verbs.values()) < 4 * math.sqrt(2 * EPISODES / 6)
    assert {*values} == {physical(value) for value in FACTORS[factor]}
    assert all(abs(of_targets[cell] - of_lures[cell]) < 4 * math.sqrt(200) for cell in CELLS) or factor == "spatial"


def test_a_verb_that_is_recorded_with_everything_leaves_no_conflict() -> None:
    for split in WITH_VERBS:
        with pytest.raises(ToolkitError, match=r"strategy=complete leaves .* no conflict"):
            sample_episode(split, "conflict", 0, "complete")
        some = combinations(split, "random_f24")[0]
        for seed in range(100):  # the sizes that words mean count, not words
            episode = sample_episode(split, "conflict", seed, "random_f24")
            value = physical(episode.named[factors_of(split)[1]])
            assert not [each for each in some if (each[0], physical(each[1])) == (episode.verb, value)]
        assert sample_episode(split, "train", 0, "complete").lure is None


def test_all_has_its_own_strategy_no_conflict_and_a_share_without_distractors() -> None:
    recorded, others = combinations(ALL)
    assert len(recorded) == 50 and len(recorded) + len(others) == 5 * (6 * 6 - 1) * 6 * 6
    for place, factor in enumerate(factors_of(ALL)):
        assert {each[place] for each in recorded} == {*FACTORS[factor]}
    for part in ("conflict", "train_conflict"):
        with pytest.raises(ToolkitError, match=f"part={part}: instruction/all .* has no conflict"):
            sample_episode(ALL, part, 0)
    suite = suite_of(ALL)
    assert suite.recorded_of(ALL) == ("train", "unseen") and suite.evaluated_of(ALL) == ("seen", "unseen")
    assert suite.recorded_of(PAIRS[0]) == suite.recorded
    assert {len(sample_episode(ALL, "train", seed, None, 0.0).objects) for seed in range(50)} == {2, 3}
    with pytest.raises(ToolkitError, match=r"no_distractor_prob=0\.5"):
        sample_episode(PAIRS[0], "train", 0, None, 0.5)


@pytest.mark.parametrize("split", PAIRS)
def test_parts_have_the_combinations_of_their_name(split: str) -> None:
    recorded, others = combinations(split)
    assert len(recorded) == 12 and not {*recorded} & {*others}
    pairs = {"train": recorded, "unseen": others, "conflict": recorded}
    if split in WITH_VERBS:
        pairs["conflict"] = [
            (verb, value) for verb, value in others if physical(value) not in recorded_with(split, verb)
        ]
    if split == "instruction/verb_size":  # the other size beside it was recorded with the verb: that is a conflict
        pairs["unseen"] = [each for each in others if each not in pairs["conflict"]]
    for part, allowed in pairs.items():
        named = {tuple(sample_episode(split, part, seed).named.values()) for seed in range(EPISODES)}
        assert named <= {*allowed} and len(named) >= 0.9 * len(allowed)


@pytest.mark.parametrize("split", PAIRS)
def test_an_image_does_not_tell_which_object_is_named(split: str) -> None:
    """Each two objects are as often target and distractor as the other way round; places are drawn apart."""
    pair = [factor for factor in factors_of(split) if factor != "verb"]
    recorded = {tuple(physical(value) for value in each[-len(pair) :]) for each in combinations(split)[0]}
    roles, places, other_places = collections.Counter(), collections.Counter[str](), collections.Counter[str]()
    for seed in range(4000):
        episode = sample_episode(split, "train", seed)
        target = episode.objects[episode.target]
        other = next(b for b in episode.objects if b is not target and b.size != "medium")
        one, two = (tuple(getattr(body, factor) for factor in pair) for body in (target, other))
        roles[one, two] += 1
        places[target.spatial] += 1
        other_places[other.spatial] += 1
    without_partner = sum(count for (_, two), count in roles.items() if two not in recorded)
    assert without_partner < 0.1 * 4000
    for one, two in (pair for pair in roles if {*pair} <= recorded):
        count = roles[one, two]
        assert abs(count - roles[two, one]) <= 4 * math.sqrt(count + roles[two, one])
    if "spatial" not in pair:
        assert all(abs(places[cell] - other_places[cell]) < 4 * math.sqrt(2 * 800) for cell in CELLS)
        if split not in WITH_VERBS:  # in the middle some verbs have less room
            assert max(places.values()) - min(places.values()) < 4 * math.sqrt(2 * 800)
        assert min(places.values()) > 0.75 * 800


@pytest.mark.parametrize("split", PAIRS)
def test_recorded_combinations_are_named_about_equally_often(split: str) -> None:
    named = collections.Counter(tuple(sample_episode(split, "train", s).named.values()) for s in range(2400))
    assert max(named.values()) < 4 * min(named.values())


def test_a_strategy_of_three_values_shows_and_names_no_others_in_any_part() -> None:
    for split, strategy in itertools.product(SPLITS, (FEW_VALUES, "diagonal_v3", "L_v5", "none_v2")):
        values, suite = values_of(split, strategy), suite_of(split)
        assert {len(each) for each in values.values()} == {int(strategy[-1])}
        assert {each for of in combinations(split, strategy) for each in of} <= {*itertools.product(*values.values())}
        others = {"back" if v == "behind" else v for f in values for v in FACTORS[f] if v not in values[f]}
        for part in ("train", *suite.playable(split, strategy)):
            for seed in range(40):
                episode = suite.sample(split, part, seed, strategy)
                assert isinstance(episode, InstructedEpisode)
                said = f"{episode.instruction} {other_sentence(episode)}".lower().replace(".", " ").split()
                assert not others.intersection(said)
                shown = {getattr(body, factor) for body in episode.objects for factor in {*values} - {"verb", "size"}}
                assert not others.intersection(shown)


def test_three_colors_and_shapes_of_which_six_pairs_are_recorded_leave_three_unseen() -> None:
    recorded, unseen = combinations("instruction/color_object", FEW_VALUES)
    assert (len(recorded), len(unseen)) == (6, 3)
    assert {each[0] for each in recorded} == {"red", "yellow", "blue"}
    assert {each[1] for each in recorded} == {"cube", "sphere", "cup"}
    named = {
        tuple(sample_episode("instruction/color_object", "unseen", s, FEW_VALUES).named.values()) for s in range(99)
    }
    assert named == {*unseen}
    with pytest.raises(ToolkitError, match=r"has 6 values at most, so up to _v6"):
        combinations("instruction/color_object", "random_f6_v7")


def test_scenes_of_all_values_are_those_that_were_always_drawn() -> None:
    """Recordings made before strategies could name values hold these episodes."""
    digest = hashlib.sha256()
    for split, strategy, part in itertools.product(SPLITS, (None, "diagonal", "L", "random_f24"), PARTS):
        for seed in range(5 if (split, part) not in {(ALL, "conflict"), (ALL, "train_conflict")} else 0):
            digest.update(json.dumps(sample_episode(split, part, seed, strategy).describe()).encode())
    assert digest.hexdigest() == "c3ada70dce87d36cfbdecaf1686e02acf7de24837c415a8b20a7c5e127ae29a4"


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


def test_patterns_cover_every_value_beside_what_is_impossible() -> None:
    possible = [each for each in EVERY if each not in {("a", "1"), ("b", "2"), ("c", "3")}]
    for seed, name in itertools.product(range(20), ("diagonal", "L", "stair", "Lrandom")):
        chosen = Strategy(name).choose(VALUES, possible, str(seed))
        assert {*chosen} <= {*possible}
        assert all({each[place] for each in chosen} == {*VALUES[place]} for place in (0, 1)), name


def test_published_names_of_strategies_are_understood() -> None:
    assert Strategy.read("random_f12") == Strategy("random", 12)
    assert Strategy.read("Lrandom_f50_n100") == Strategy("Lrandom", 50, 100)
    assert Strategy.read("diagonal") == Strategy("diagonal")
    assert Strategy.read("random_f6_v3_n100") == Strategy("random", 6, 100, values=3)
    assert Strategy.read("random_f6_v3_n100").text == FEW_VALUES and Strategy.read("diagonal_v3").text == "diagonal_v3"
    assert Strategy.read("random_f6_v3_d16_n100") == Strategy("random", 6, 100, values=3, draw=16)
    assert Strategy.read("random_f6_v3_d16_n100").text == "random_f6_v3_d16"
    with pytest.raises(ToolkitError, match=r'Did you mean "diagonal"'):
        Strategy.read("diagnal_f6")
    for wrong in ("random_f0", "random_d0", "random_d1_v3", "random_x3", "", "random_v1", "random_v0", "random_v3_f6"):
        with pytest.raises(ToolkitError, match="strategy="):
            Strategy.read(wrong)


def test_other_draws_of_a_strategy_record_other_combinations() -> None:
    split = "instruction/color_object"
    for name in ("random_f6_v3", "L_v3", "stair_v3", "diagonal_v3"):
        drawn = [frozenset(combinations(split, name + more)[0]) for more in ("", "_d1", "_d2", "_d3")]
        assert len({*drawn}) > 1 and len({len(each) for each in drawn}) == 1
    held_out = [("red", "cube"), ("yellow", "sphere"), ("blue", "cup")]  # each value is recorded with two others
    assert sorted(combinations(split, "random_f6_v3_d16")[1]) == sorted(held_out)


def test_every_experiment_has_both_kinds_of_scenes() -> None:
    for name, strategy in itertools.product(EXPERIMENTS, ("none", "single", "diagonal", "L", "stair", "complete")):
        for part in ("train", "conflict") if strategy != "complete" or name not in OF_VERBS else ("train",):
            episode = sample_episode(f"instruction/{name}", part, 3, strategy)
            assert len(episode.objects) in (2, 3)
