"""Trainings of one setting: which count as that, intervals for one more, and settings that cannot be told apart."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_calls import compose
from outcomes import HELD, NONE, WRONG, evaluation, outcome, played
from test_closed_loop_report import Page

from benchmarks.intervals import RATES, evaluated, row
from gr00t.errors import ToolkitError
from gr00t.file_replacement import write_json
from simulation.closed_loop import EpisodeOutcome
from simulation.compare import Comparison, compare, main
from simulation.report import summarize
from simulation.report.closed_loop_report import JSON_FILE, as_json, read_evaluation, write_report
from simulation.report.proportions import Share
from simulation.report.training_seeds import HOLDS_FOR, letters, measure, setting_difference

RECIPE: dict[str, Any] = {"train.learning_rate": 1e-4, "train.max_steps": 1000, "augment": {"crop_fraction": 0.95}}
RECIPE |= {"dataset": "d0", "train.export": "last"}


def trained(seed: int, recipe: dict[str, Any] | None = None, **info: Any) -> dict[str, Any]:
    """What an evaluation holds of a checkpoint of this toolkit."""
    made = {"recipe": RECIPE | (recipe or {}), "training_seed": seed, "training_step": 1000}
    return {**made, "checkpoint": f"checkpoints/{seed}", "checkpoint_fingerprint": f"{recipe}{seed}", **info}


@functools.cache
def episodes(held: int, of: int) -> tuple[EpisodeOutcome, ...]:
    """Success in `held` of the train episodes and one more of the conflict ones."""
    ends = {"train": [HELD] * held + [NONE] * (of - held), "conflict": [HELD] * (held + 1) + [WRONG] * (of - held - 1)}
    return tuple(outcome(part, number, ending) for part, own in ends.items() for number, ending in enumerate(own))


def report(folder: Path, held: int, of: int = 50, **info: Any) -> None:
    """The numbers alone, as write_report leaves them."""
    made = evaluation(episodes(held, of), **info)
    folder.mkdir(parents=True)
    write_json(folder / JSON_FILE, as_json(made, summarize(made)))


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Three trainings of one setting and three of a better one, and an older report."""
    for seed, held in enumerate((20, 24, 18)):
        report(tmp_path / f"color_object/slow_{seed}", held, **trained(seed))
    for seed, held in enumerate((43, 46, 45)):
        report(tmp_path / f"color_object/fast_{seed}", held, **trained(seed, {"train.learning_rate": 1e-3}))
    report(tmp_path / "color_object/older", 30)
    return tmp_path


def settings(comparison: Comparison) -> dict[str, list[int | None]]:
    return {setting.name: [seed for _, seed in setting.trainings] for setting in comparison.settings}


def run(folder: Path, *more: str) -> tuple[dict[str, Any], Page]:
    main(compose("compare", f"reports_dir={folder}", f"out={folder}/compare.html", *more))
    return json.loads((folder / "compare.json").read_text())["trainings"], Page(folder / "compare.html")


# -- which evaluations are trainings of one setting --------------------------------------------------------------------


def test_trainings_that_differ_in_their_seed_alone_are_one_setting_and_others_stay_alone(reports: Path) -> None:
    found = settings(compare(reports))
    assert found == {"color_object/slow_*": [0, 1, 2], "color_object/fast_*": [0, 1, 2], "color_object/older": [None]}


@pytest.mark.parametrize(
    "other",
    [
        trained(9, {"augment": {"crop_fraction": 0.9}}),
        trained(9, {"dataset": "d1"}),
        trained(9, {"dataset_files": {"data": "x"}}),
        trained(9, training_step=900),
        trained(9, n_action_steps=4),
        trained(9, max_steps=80),
        trained(9, denoising_steps=8),
        trained(9, instruction="grab it"),
        trained(9, image_size=64),
        trained(9, render="gpu"),
        trained(9, embodiment_tag="gr1"),
        trained(9, no_distractor_prob=0.5),
        trained(9, strategy="random_f12"),
        trained(9, guidance=2.0),
        trained(9, guidance=0.0),
        trained(9, config={"stop": "decided"}),
    ],
)
def test_a_training_or_evaluation_that_differs_in_one_key_is_no_member(other: dict[str, Any], reports: Path) -> None:
    report(reports / "color_object/other", 20, **other)
    assert "color_object/other" in settings(compare(reports))


def test_the_step_of_the_best_evaluation_may_differ_and_keys_of_before_are_filled_in(tmp_path: Path) -> None:
    later = {"train.noise_draws": 1, "train.optimizer": "adamw"}  # what runs were that do not have these keys
    for seed, more in enumerate(({}, {}, later)):
        best = {"train.export": "best", **more}
        report(tmp_path / f"color_object/{seed}", 20, **trained(seed, best, training_step=500 + seed))
    assert settings(compare(tmp_path)) == {"color_object/*": [0, 1, 2]}


def test_a_strategys_number_of_demonstrations_makes_no_setting_another(tmp_path: Path) -> None:
    for seed, strategy in enumerate(("random_f12", "random_f12_n200", "random_f12_n200")):
        report(tmp_path / f"color_object/{seed}", 20, **trained(seed, strategy=strategy))
    assert settings(compare(tmp_path)) == {"color_object/*": [0, 1, 2]}


def test_weights_that_are_evaluated_twice_are_one_training_and_so_is_a_seed(reports: Path) -> None:
    report(reports / "color_object/again", 20, 40, **trained(1, max_steps=100))
    report(reports / "color_object/twin", 20, 40, **trained(2, checkpoint_fingerprint="another"))
    told, page = run(reports)
    found = {setting["name"]: setting for setting in told["settings"]}
    assert found["color_object/slow_*"]["trainings"] == [[f"color_object/slow_{seed}", seed] for seed in range(3)]
    reasons = found["color_object/slow_*"]["not_counted"]
    assert reasons == [
        "color_object/again has the weights of color_object/slow_1: one training, evaluated twice",
        "color_object/twin has the seed 2 of color_object/slow_2: no further training",
    ]
    assert all(reason in page.text for reason in reasons)


def test_parts_that_were_evaluated_later_are_of_the_same_trainings(tmp_path: Path) -> None:
    for seed, held in enumerate((20, 24, 18)):
        for part in ("train", "conflict"):
            made = evaluation([e for e in episodes(held, 50) if e.part == part], **trained(seed))
            folder = tmp_path / f"color_object/{seed}" / part
            folder.mkdir(parents=True)
            write_json(folder / JSON_FILE, as_json(made, summarize(made)))
    comparison = compare(tmp_path)
    (setting,) = comparison.settings
    assert [seed for _, seed in setting.trainings] == [0, 1, 2] and len(setting.not_counted) == 3
    found = {family.measure: next(iter(family.settings.values())).shares for family in comparison.families}
    assert {name: [share.n for share in shares] for name, shares in found.items()} == {
        "success, train": [50] * 3,
        "success, conflict": [50] * 3,
        "cue preference": [50] * 3,
    }


def test_folders_of_seeds_say_it_for_other_policies_but_not_of_the_same_weights(tmp_path: Path) -> None:
    for seed in range(2):
        report(tmp_path / f"color_object/pi0/seed-{seed}", 20, policy="server localhost:8000")
        report(tmp_path / f"color_object/act/seed-{seed}", 20, policy="act x", checkpoint="x")
        report(tmp_path / f"color_object/expert/seed-{seed}", 20, policy="expert")
    found = settings(compare(tmp_path))
    assert found == {
        "color_object/pi0/seed-*": [0, 1],
        "color_object/act/seed-0": [0],
        "color_object/expert/seed-0": [None],
        "color_object/expert/seed-1": [None],
    }


def test_settings_with_one_beginning_have_all_their_names(tmp_path: Path) -> None:
    for name, seed, rate in (("a", 0, 1e-4), ("b", 1, 1e-4), ("c", 0, 1e-3), ("d", 1, 1e-3)):
        report(tmp_path / "color_object" / name, 20, **trained(seed, {"train.learning_rate": rate}))
    assert list(settings(compare(tmp_path))) == ["color_object/a, color_object/b", "color_object/c, color_object/d"]


def test_a_recipe_that_is_no_mapping_is_damage(tmp_path: Path) -> None:
    write_report(evaluation(played({HELD: 2}), recipe=["x"]), tmp_path)
    with pytest.raises(ToolkitError, match=r"is damaged: info\.recipe is no mapping"):
        read_evaluation(tmp_path / "closed_loop.json")


# -- the page, the numbers and the paper -------------------------------------------------------------------------------


def test_the_page_and_the_numbers_say_what_each_interval_holds_for(reports: Path) -> None:
    told, page = run(reports)
    families = {family["measure"]: family for family in told["families"]}
    assert list(families) == ["success, train", "success, conflict", "cue preference"]
    family = families["success, train"]
    assert family["groups"] == {"color_object/fast_*": "a", "color_object/slow_*": "b"}
    slow = family["settings"]["color_object/slow_*"]
    assert slow["mean"]["value"] == pytest.approx(62 / 150) and slow["mean"]["n"] == 3
    assert slow["new"]["low"] < slow["mean"]["low"] < slow["mean"]["high"] < slow["new"]["high"]
    assert slow["between"] > 0 and slow["within"] == pytest.approx(0.069, abs=0.001)
    (pair,) = family["differences"]
    assert family["confidence"] == 0.95 and pair["means"]["shown"] and pair["means"]["low"] < pair["new"]["high"]
    assert told["in_words"] == HOLDS_FOR
    for words in ("one", "new", "mean", "spread", "group", "difference_of_means", "difference_of_new"):
        assert HOLDS_FOR[words] in page.text
    assert "hold for the weights that were evaluated, but for those" in page.text and "seeds 0, 1, 2" in page.text


def test_every_pair_of_settings_counts_in_the_joint_level(reports: Path) -> None:
    for seed in range(2):
        report(reports / f"color_object/third/seed-{seed}", 22, policy="server localhost:8000")
    told, page = run(reports)
    assert all(f["confidence"] == pytest.approx(1 - 0.05 / 3) and len(f["differences"]) == 3 for f in told["families"])
    assert "3 compared: 98.33 % each" in page.text
    train = {setting: of["shares"] for setting, of in told["families"][0]["settings"].items()}
    pair = told["families"][0]["differences"][0]
    sides = [[Share(share["count"], share["n"]) for share in train[pair[side]]] for side in ("first", "second")]
    assert pair["means"]["low"] == pytest.approx(setting_difference(*sides, 1 - 0.05 / 3)[0].low)


def test_with_one_training_of_each_setting_the_page_says_that_nothing_holds_for_another(tmp_path: Path) -> None:
    report(tmp_path / "color_object/a", 20, **trained(0))
    told, page = run(tmp_path)
    assert told["settings"] == told["families"] == []
    assert "no setting has several trainings (seeds), so nothing here holds for a new training" in page.text
    assert "Trainings of one setting" not in page.text


def test_comparisons_between_single_evaluations_stay_and_recipes_are_not_in_the_numbers(reports: Path) -> None:
    run(reports)
    told = json.loads((reports / "compare.json").read_text())
    assert len(told["evaluations"]) == 7 and len(told["differences"]) == 21 * 3
    infos = [each["info"] for each in told["evaluations"]]
    assert not any("recipe" in info for info in infos) and sum("training_seed" in info for info in infos) == 6


def test_a_guided_policy_is_another_in_a_papers_tables(reports: Path) -> None:
    report(reports / "color_object/guided", 20, **trained(9, guidance=2.0))
    run(reports, "paper=true")
    rows = list(csv.DictReader((reports / "compare_paper/success.csv").open()))
    parts = {row["part"] for row in rows}
    assert [row["policy"] for row in rows].count("a policy, guidance 2") == len(parts)


def test_a_papers_table_has_the_interval_for_one_more_training(reports: Path) -> None:
    told, _ = run(reports, "paper=true")
    rows = list(csv.DictReader((reports / "compare_paper/trainings.csv").open()))
    assert [(r["setting"], r["group"]) for r in rows][:2] == [
        ("color_object/fast_*", "a"),
        ("color_object/slow_*", "b"),
    ]
    new = told["families"][0]["settings"]["color_object/fast_*"]["new"]
    assert float(rows[0]["one more training high"]) == new["high"] and rows[0]["trainings"] == "3"
    assert HOLDS_FOR["new"] in (reports / "compare_paper/methods.md").read_text()
    assert (reports / "compare_paper/trainings.tex").is_file()


def test_an_evaluations_own_page_names_the_seed_and_not_the_recipe(tmp_path: Path) -> None:
    write_report(evaluation(played({HELD: 2}), **trained(7)), tmp_path)
    page = Page(tmp_path / "closed_loop.html")
    assert "training_seed" in page.text and "learning_rate" not in page.text
    assert read_evaluation(tmp_path / "closed_loop.json").info["recipe"] == RECIPE


# -- the intervals -----------------------------------------------------------------------------------------------------


def test_one_training_says_nothing_of_a_new_one() -> None:
    alone = measure([Share(40, 50)])
    assert alone.mean is alone.new is alone.between is alone.within is None and alone.rate == 0.8


def test_more_trainings_and_trainings_more_alike_make_a_shorter_interval() -> None:
    def width(*counts: int) -> float:
        new = measure([Share(count, 200) for count in counts]).new
        return new.high - new.low

    assert width(120, 130, 140) > width(120, 130, 140, 130, 130) > width(130, 130, 130, 130, 130) > 0.1
    assert width(60, 190) > width(120, 130)


def test_what_was_observed_is_never_left_out() -> None:
    for counts in ((50, 50, 50), (0, 0)):
        found = measure([Share(count, 50) for count in counts])
        assert found.new.low <= found.rate <= found.new.high and found.mean.low <= found.rate <= found.mean.high


def test_differences_change_their_sign_with_the_order_and_widen_with_confidence() -> None:
    a, b = ([Share(count, 100) for count in counts] for counts in ((40, 50, 45), (80, 70, 75)))
    (forth, new), (back, _) = setting_difference(a, b), setting_difference(b, a)
    assert (
        forth.shown
        and forth.value == pytest.approx(0.3)
        and (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    )
    wide = setting_difference(a, b, 0.999)[0]
    assert wide.low < forth.low and new.low < forth.low < forth.high < new.high
    extreme = setting_difference([Share(0, 1000), Share(1000, 1000)] * 5, [Share(500, 1000)] * 20)[0]
    assert extreme.low < 0 < extreme.high


@pytest.mark.parametrize("name", ["uniform, 50 to 90 %", "logit-normal, 95 %, 1", "all 70 %"])
@pytest.mark.parametrize("trainings", [2, 5])
def test_intervals_hold_where_rates_are_drawn_otherwise_than_the_model_draws_them(name: str, trainings: int) -> None:
    """A reduced form of benchmarks/intervals.py; of 40 comparisons 3 sigma are 10 points, of families 4."""
    found = row(RATES[name], trainings, 50, runs=40, settings=3)
    assert found["covered"] > 0.92 and found["difference"] > 0.92
    assert found["false"] <= 0.15 and found["family"] <= 0.25


def test_simulated_trainings_have_the_rates_that_were_drawn_and_may_share_scenes() -> None:
    rates = np.full((4000, 2), 0.7)
    for shared in (0.0, 0.5):
        counts = np.array([evaluated(np.random.default_rng(i), pair, 20, shared) for i, pair in enumerate(rates)])
        assert counts.mean() == pytest.approx(14, abs=0.1)
        assert np.corrcoef(counts.T)[0, 1] == pytest.approx(0.31 if shared else 0.0, abs=0.05)


# -- letters -----------------------------------------------------------------------------------------------------------


def test_two_settings_share_a_letter_exactly_unless_they_are_told_apart() -> None:
    drawn, names = random.Random(0), "abcdefg"
    for _ in range(100):
        apart = [pair for pair in itertools.combinations(names, 2) if drawn.random() < 0.4]
        found = letters(names, apart)
        for pair in itertools.combinations(names, 2):
            assert bool(set(found[pair[0]]) & set(found[pair[1]])) == (pair not in apart)


def test_letters_are_as_few_as_possible_and_begin_with_the_best() -> None:
    assert letters("xyz", []) == {"x": "a", "y": "a", "z": "a"}
    assert letters("xyz", [("x", "z")]) == {"x": "a", "y": "ab", "z": "b"}
    assert letters("xyz", list(itertools.combinations("xyz", 2))) == {"x": "a", "y": "b", "z": "c"}
    many = [f"s{number}" for number in range(28)]
    assert letters(many, list(itertools.combinations(many, 2)))["s27"] == "b1"
