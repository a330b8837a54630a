"""What closed-loop episodes add up to: intervals, counts, cue preference, and what the numbers can and cannot say."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from outcomes import HELD, LOST, NONE, WRONG, by_scene, evaluation, outcome, played

from simulation.closed_loop import EpisodeOutcome
from simulation.report import count, summarize
from simulation.report.conclusions import _small, cue_preference, in_short, least_shown, readings
from simulation.report.dominance import LEAST_PICKS, verdict
from simulation.report.proportions import Difference, Share, difference, paired_difference
from simulation.scenes.plate_suite import FACTORS
from toolkit.installation import CHECKOUT

# -- shares ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counted, n, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(counted: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, p. 857, table I, method 3."""
    share = Share(counted, n)
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 30, 200])
def test_an_interval_holds_its_share_and_turns_round_with_it(n: int) -> None:
    for counted in range(n + 1):
        share, rest = Share(counted, n), Share(n - counted, n)
        assert 0 <= share.low <= (share.value or 0) <= share.high <= 1
        assert (share.low, share.high) == pytest.approx((1 - rest.high, 1 - rest.low))
    assert Share(0, n).low == 0 and Share(n, n).high == 1


def test_of_no_episodes_nothing_is_known() -> None:
    share = Share(0, 0)
    assert (share.value, share.low, share.high) == (None, 0, 1)
    changed = difference(share, Share(3, 4))
    assert (changed.value, changed.low, changed.high, changed.shown) == (None, -1, 1, False)
    assert paired_difference([]).value is None


def test_more_of_a_total_than_the_total_is_refused() -> None:
    with pytest.raises(ValueError, match="5 of 4"):
        Share(5, 4)


@pytest.mark.parametrize(
    "first, second, low, high",
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_newcombes_interval_is_the_published_one(first, second, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, p. 873, table II, method 10."""
    found = difference(Share(*first), Share(*second))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    back = difference(Share(*second), Share(*first))
    assert (back.value, back.low, back.high) == pytest.approx((-(found.value or 0), -high, -low), abs=5e-5)


def test_the_paired_interval_is_the_published_one() -> None:
    """Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables, chapter 8 (Cavo et al. 2012)."""
    pairs = [(True, True)] * 59 + [(True, False)] * 6 + [(False, True)] * 16 + [(False, False)] * 80
    found = paired_difference(pairs)
    assert (found.value, found.low, found.high) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)


def test_playing_the_same_episodes_tells_more_than_playing_others() -> None:
    pairs = [(True, True)] * 40 + [(True, False)] * 8 + [(False, False)] * 40
    paired, apart = paired_difference(pairs), difference(Share(48, 88), Share(40, 88))
    assert paired.shown and not apart.shown and paired.value == apart.value


# -- counting ----------------------------------------------------------------------------------------------------------


def test_cue_preference_is_the_targets_share_of_target_and_lure() -> None:
    counted = count(played({HELD: 6, LOST: 3, WRONG: 4, NONE: 7}))
    assert (counted.preference, counted.success, counted.missed) == (Share(9, 13), Share(6, 20), Share(3, 9))
    assert [share.count for share in counted.picks.values()] == [9, 4, 0, 7]


def test_a_wrong_first_pick_stays_one_when_the_target_is_held_later() -> None:
    counted = count(played({("lure", True): 2, HELD: 1}))
    assert (counted.success.count, counted.picks["lure"].count, counted.preference) == (3, 2, Share(1, 3))


def test_train_episodes_say_nothing_about_preference() -> None:
    summary = summarize(evaluation(played({HELD: 30}, part="train")))
    assert summary.preference.n == 0
    both = [*played({HELD: 5, WRONG: 4}, part="train"), *played({HELD: 2, WRONG: 1})]
    assert count(both[:9]).preference == Share(0, 0) and count(both).preference == Share(2, 3)
    assert [r.question for r in readings(summary)] == []


def test_steps_are_those_of_successes() -> None:
    episodes = [outcome("train", 0, HELD, steps=s) for s in (20, 30, 40, 50)] + played({NONE: 9}, part="train")
    steps = count(episodes).steps
    assert steps is not None
    assert (steps.n, steps.first_quartile, steps.median, steps.third_quartile) == (4, 27.5, 35, 42.5)
    assert count(played({NONE: 3})).steps is None


def test_factor_tables_hold_every_episode_once() -> None:
    episodes = [*played({HELD: 25, WRONG: 20, NONE: 10}), *played({HELD: 25, LOST: 15}, part="train")]
    summary = summarize(evaluation(episodes))
    assert {(t.whose, t.factor) for t in summary.factors if t.part == "conflict"} == {
        (whose, factor) for whose in ("target", "lure", "plate") for factor in FACTORS
    }
    assert {t.whose for t in summary.factors if t.part == "train"} == {"target", "plate"}
    for table in summary.factors:
        whole = summary.of(table.part)
        assert sum(c.success.n for c in table.rows.values()) == whole.success.n
        assert sum(c.success.count for c in table.rows.values()) == whole.success.count
        assert sum(c.picks["lure"].count for c in table.rows.values()) == whole.picks["lure"].count


def test_a_shape_that_is_never_held_is_a_weak_spot_and_the_only_one() -> None:
    episodes = by_scene("train", 108, lambda target: LOST if target["object"] == "sphere" else HELD)
    (spot,) = summarize(evaluation(episodes)).weak_spots
    assert (spot.part, spot.whose, spot.factor, spot.value) == ("train", "target", "object", "sphere")
    assert spot.success.count == 0 and spot.others.count == spot.others.n


def test_chance_marks_hardly_any_weak_spot() -> None:
    rng = random.Random(0)
    spots = [
        len(summarize(evaluation(by_scene("conflict", 72, lambda _: HELD if rng.random() < 0.5 else NONE))).weak_spots)
        for _ in range(20)
    ]
    assert sum(spot > 0 for spot in spots) <= 3


def test_chance_is_one_object_of_those_on_the_table() -> None:
    assert summarize(evaluation(played({HELD: 2}))).chance == {"conflict": pytest.approx(1 / 3)}
    two = [outcome("conflict", 0, HELD, split="color_size")]
    assert summarize(evaluation(two, split="color_size")).chance == {"conflict": 0.5}


# -- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endings, answer, headline",
    [
        ({HELD: 30, WRONG: 10}, "a", "follows color"),
        ({LOST: 30, WRONG: 10}, "a", "follows color"),
        ({HELD: 10, WRONG: 30}, "b", "follows object"),
        ({HELD: 22, WRONG: 18}, "neither", "no preference shown"),
        ({HELD: 4}, "unknown", "cannot be said with 4 picks"),
        ({WRONG: 1, NONE: 99}, "unknown", "cannot be said with 1 pick"),
        ({NONE: 50}, "unknown", "cannot be said with 0 picks"),
    ],
)
def test_the_verdict_goes_by_the_interval(endings, answer: str, headline: str) -> None:
    reading = cue_preference(summarize(evaluation(played(endings))))
    assert (reading.answer, reading.headline) == (answer, headline)


def test_the_verdict_turns_round_with_the_picks() -> None:
    other = {"a": "b", "b": "a"}
    for n in range(60):
        for counted in range(n + 1):
            answer, _ = verdict(Share(counted, n), ("color", "object"))
            turned, _ = verdict(Share(n - counted, n), ("color", "object"))
            assert turned == other.get(answer, answer)


def test_the_fewest_picks_that_show_a_preference_do_and_one_less_does_not() -> None:
    for n in range(LEAST_PICKS, 120):
        least = least_shown(n)
        assert verdict(Share(least, n), ("a", "b"))[0] == "a" and verdict(Share(least - 1, n), ("a", "b"))[0] != "a"


def read(question: str, *episodes) -> tuple[str, str]:
    summary = summarize(evaluation([e for part in episodes for e in part]))
    return next((r.answer, r.headline) for r in readings(summary) if question in r.question)


AS_IT_IS = {HELD: 30, WRONG: 10}


@pytest.mark.parametrize(
    "condition, endings, answer",
    [
        ("blank_image", {HELD: 2, NONE: 38}, ("yes", "it needs images")),
        ("other_image", {HELD: 2, NONE: 38}, ("yes", "it looks at the images")),
        ("other_image", AS_IT_IS, ("no", "no sign that it looks at the images")),
        ("other_image", {HELD: 26, WRONG: 14}, ("unknown", "cannot be said with 40 episodes")),
        ("other_image", {HELD: 40}, ("unknown", "cannot be said: success rises")),
    ],
)
def test_whether_it_looks(condition: str, endings, answer: tuple[str, str]) -> None:
    assert read("look", played(AS_IT_IS), played(endings, condition=condition)) == answer


def test_a_shock_by_blank_images_is_no_looking_when_anothers_images_do_as_well() -> None:
    blank, other = played({NONE: 40}, condition="blank_image"), played(AS_IT_IS, condition="other_image")
    assert read("look", played(AS_IT_IS), blank, other)[0] == "no"


def test_a_policy_that_never_succeeds_has_nothing_to_lose() -> None:
    blank = played({NONE: 40}, condition="blank_image")
    answer, headline = read("look", played({HELD: 1, NONE: 39}), blank)
    assert (answer, headline) == ("unknown", "cannot be said: it succeeds in 1 of 40 episodes anyway")


@pytest.mark.parametrize(
    "before, after, answer",
    [
        (AS_IT_IS, {HELD: 5, WRONG: 35}, "yes"),
        (AS_IT_IS, AS_IT_IS, "no"),
        ({WRONG: 40}, {WRONG: 40}, "no"),
        ({NONE: 40}, {NONE: 40}, "unknown"),
        (AS_IT_IS, {HELD: 27, WRONG: 13}, "unknown"),
    ],
)
def test_whether_it_listens_goes_by_the_picks(before, after, answer: str) -> None:
    assert read("listen", played(before), played(after, condition="other_instruction"))[0] == answer


def test_listening_needs_conflict_episodes() -> None:
    train = played(AS_IT_IS | {WRONG: 0}, part="train")
    changed = played({HELD: 2, NONE: 28}, part="train", condition="other_instruction")
    assert read("listen", train, changed)[0] == "unknown"


def test_whether_it_needs_the_state() -> None:
    assert read("state", played(AS_IT_IS), played({NONE: 40}, condition="zero_state"))[0] == "yes"
    assert read("state", played(AS_IT_IS), played(AS_IT_IS, condition="zero_state"))[0] == "no"


def test_changes_compare_the_same_episodes_only() -> None:
    plain = played({HELD: 20, NONE: 20})
    changed = summarize(evaluation([*plain, *played({HELD: 10}, condition="blank_image")])).change("blank_image")
    assert changed is not None
    assert (changed.before.success, changed.after.success) == (Share(10, 10), Share(10, 10))
    strangers = [outcome("conflict", 500, NONE, "blank_image")]
    assert read("look", plain, strangers) == ("unknown", "cannot be said: no episode was played both ways")


def test_in_short_names_numbers_counts_and_intervals() -> None:
    lines = "\n".join(in_short(summarize(evaluation(played(AS_IT_IS)))))
    assert "75 % (30/40, 60 to 86 %)" in lines and "above the 33 % of picking any object" in lines
    assert "Follows color." in lines


def test_parts_come_in_the_usual_order_and_questions_in_theirs() -> None:
    names = ("other_image", "other_instruction", "zero_state")
    changed = [e for name in names for e in played(AS_IT_IS, condition=name)]
    summary = summarize(evaluation([*changed, *played(AS_IT_IS), *played({HELD: 3}, part="train")]))
    assert list(summary.counted["none"]) == list(summary.chance) == ["train", "conflict"]
    assert [r.question.split()[1] for r in readings(summary)] == ["cue", "it", "it", "it"]
    assert [r.question.split()[2].rstrip("?") for r in readings(summary)[1:]] == ["look", "listen", "need"]


def test_the_plates_other_factors_can_be_weak_spots_and_shares_keep_their_usual_confidence() -> None:
    drawn = [outcome("train", number, HELD) for number in range(108)]
    small = [e.episode["plate"]["size"] == "small" for e in drawn]
    episodes = [outcome("train", n, LOST if lost else HELD) for n, lost in enumerate(small)]
    (spot,) = summarize(evaluation(episodes)).weak_spots
    assert (spot.whose, spot.factor, spot.value) == ("plate", "size", "small")
    assert (spot.success, spot.others) == (Share(0, sum(small)), Share(108 - sum(small), 108 - sum(small)))


def test_a_change_is_after_minus_before_part_by_part() -> None:
    """Of ten conflict episodes success, picks of the target and the cue preference differ by different amounts."""
    before = [*played({HELD: 6, WRONG: 4}), *played({HELD: 4}, part="train")]
    after = [*played({HELD: 2, LOST: 1, WRONG: 5, NONE: 2}, condition="blank_image")]
    after += played({HELD: 3, NONE: 1}, part="train", condition="blank_image")
    summary = summarize(evaluation([*before, *after]))
    found = summary.change("blank_image", "conflict")
    assert found is not None and found.success.value == pytest.approx(-0.4)
    assert found.target_picks.value == pytest.approx(-0.3)
    assert found.preference.value == pytest.approx(3 / 8 - 6 / 10)
    assert found.other_pick == Share(5, 10)
    train, both = summary.change("blank_image", "train"), summary.change("blank_image")
    assert train is not None and (train.before.success, train.after.success) == (Share(4, 4), Share(3, 4))
    assert both is not None and (both.before.success.n, both.after.success) == (14, Share(5, 14))
    assert {c.condition for c in summary.changes} == {"blank_image"}


def test_an_ablation_is_not_paired_with_the_other_part_and_stays_out_of_the_factors() -> None:
    train, blank = played({HELD: 5}, part="train"), played({NONE: 5}, condition="blank_image")
    summary = summarize(evaluation([*train, *blank]))
    found = summary.change("blank_image")
    assert found is not None and found.before.success.n == found.after.success.n == 0
    assert {table.part for table in summary.factors} == {"train"}


def test_listening_is_judged_from_ten_picks_on_as_it_is() -> None:
    def listens(before: int, after: int) -> str:
        changed = played({HELD: after, NONE: 100 - after}, condition="other_instruction")
        return read("listen", played({HELD: before, NONE: 100 - before}), changed)[0]

    assert (listens(10, 10), listens(10, 9), listens(9, 10), listens(9, 9)) == ("no", "no", "unknown", "unknown")
    rise = played({HELD: 40}, condition="other_instruction")
    assert read("listen", played({WRONG: 40}), rise)[0] == "yes"


def test_blank_images_answer_where_anothers_images_do_not() -> None:
    other = played({HELD: 26, WRONG: 14}, condition="other_image")
    found = read("look", played(AS_IT_IS), other, played({NONE: 40}, condition="blank_image"))
    assert found == ("yes", "it needs images")


@pytest.mark.parametrize(
    "question, condition", [("look", "other_image"), ("look", "blank_image"), ("state", "zero_state")]
)
def test_looking_and_needing_the_state_are_judged_by_both_parts(question: str, condition: str) -> None:
    train = played({HELD: 40}, part="train")
    assert read(question, train, played({NONE: 40}, part="train", condition=condition))[0] == "yes"


def test_a_change_is_small_where_both_ends_of_its_interval_are() -> None:
    ends = {(-0.15, 0.15): True, (-0.16, 0.05): False, (-0.05, 0.16): False, (-0.12, 0.12): True}
    for (low, high), small in ends.items():
        assert _small(Difference(0.0, low, high, 40)) is small
    assert not _small(Difference(None, -0.1, 0.1, 0))


def test_success_is_told_from_chance_by_its_interval() -> None:
    def line(*episodes: EpisodeOutcome) -> str:
        return in_short(summarize(evaluation(episodes)))[0]

    assert "not distinct from the 33 % of picking any object" in line(*played({HELD: 2, NONE: 2}))
    assert "not distinct from" in line(*played({HELD: 1, NONE: 4}))
    assert "below the 33 %" in line(*played({HELD: 1, NONE: 99}))
    blank = in_short(summarize(evaluation([*played(AS_IT_IS), *played({HELD: 2, NONE: 38}, condition="blank_image")])))
    assert any("success goes from 75 % (30/40) to 5 % (2/40)" in text for text in blank)


def test_the_numbers_need_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys, simulation.compare, simulation.report.closed_loop_report\n"
        "print([m for m in ('torch', 'mani_skill', 'sapien', 'wandb', 'matplotlib', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
