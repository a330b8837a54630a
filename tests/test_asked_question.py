"""Questions that a closed-loop evaluation answers, and evaluations that end when they have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from config_calls import compose
from outcomes import HELD, LOST, NONE, WRONG, acted, any_object, evaluation, played
from simulator import needs_simulator

from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from simulation.closed_loop import parse_question
from simulation.closed_loop_evaluation import evaluate_closed_loop
from simulation.report import summarize
from simulation.report.closed_loop_report import JSON_FILE, read_evaluation, write_report
from simulation.report.conclusions import readings
from simulation.report.sequential_test import read_question
from simulation.scenes.suites import suite_of


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("success > 60", ("above", 0.6, "")),
        (" success>62.5 ", ("above", 0.625, "")),
        ("prefers", ("prefers", 0.0, "")),
        ("better than reports/other", ("better", 0.0, "reports/other")),
        ("within 5 of reports/an other", ("within", 0.05, "reports/an other")),
    ],
)
def test_a_question_is_read_as_it_is_written(text: str, meaning: tuple[str, float, str]) -> None:
    assert parse_question(text) == meaning


@pytest.mark.parametrize(
    "text", ["", "success", "success > 0", "success > 160", "better than ", "within 0 of x", "why"]
)
def test_what_is_no_question_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ToolkitError, match='ask "success > 60"'):
        parse_question(text)


def test_each_question_is_asked_of_the_episodes_it_is_about(tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_report(evaluation(played({LOST: 30, HELD: 10, NONE: 20})), other)
    found = played({HELD: 40, WRONG: 8, LOST: 2, NONE: 10})
    parts = ["conflict"]
    counts = {
        "success > 60": {1.0: 40, 0.0: 20},
        "prefers": {1.0: 42, 0.0: 8},  # lost ones were picked first, those in which nothing was picked are silent
        f"better than {other}": {1.0: 30, 0.0: 30, -1.0: 0},
        f"within 5 of {other}": {1.0: 30, 0.0: 30, -1.0: 0},
    }
    answers = {text: read_question(text, parts).question.answer for text in counts}
    for text, counted in counts.items():
        outcomes = read_question(text, parts).outcomes(found)
        assert {value: n for value, n in outcomes.counts.items()} == counted, text
        assert answers[text](outcomes) is {"success > 60": None, f"within 5 of {other}": False}.get(text, True), text
    assert not read_question(f"better than {other}", parts).outcomes(played({HELD: 70})).n > 60  # ten have no partner


def test_a_question_that_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    write_report(evaluation(played({HELD: 3})), tmp_path)
    for text, parts, why in (
        ("prefers", ["train", "conflict"], r"parts=\[conflict\]"),
        ("better than nowhere", ["conflict"], "there is no nowhere/closed_loop.json"),
        (f"within 5 of {tmp_path}", ["train"], "holds no episodes of train"),
    ):
        with pytest.raises(ToolkitError, match=why):
            read_question(text, parts)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["stop=decided"], "needs a question"),
        (["stop=decided", "question=prefers", "share=1/2"], "does not go with share=1/2"),
        (["stop=decided", "question=prefers", "ablations=[zero_state]"], "does not go with ablations"),
        (["question=perhaps"], 'question=perhaps: ask "success > 60"'),
        (["policy=replay", "runs=2"], "runs=2 repeats with other episodes .* recordings have neither; policy=replay"),
        (["policy=replay", "no_distractor_prob=0"], "no_distractor_prob=0.* draws other scenes .* policy=replay"),
    ],
)
def test_keys_that_do_not_fit_are_refused(given: list[str], why: str) -> None:
    with pytest.raises(ToolkitError, match=why):
        compose("evaluate", "split=color_object", "mode=closed_loop", *given)


def test_the_report_says_the_answer_and_shows_every_look(tmp_path: Path) -> None:
    found = played({HELD: 38, WRONG: 2})
    told = read_question("success > 60", ["conflict"]).told(found, ["conflict"], 10)
    looks = told["parts"]["conflict"]["looks"]
    assert [n for n, _, _ in looks] == [0, 10, 20, 30, 40] and looks[0] == (0, 0.0, 1.0)
    write_report(evaluation(found, question=told), tmp_path)
    reading = next(r for r in readings(summarize(read_evaluation(tmp_path / JSON_FILE))) if "success" in r.question)
    assert (reading.answer, reading.headline) == ("yes", "yes, after 40 episodes")
    page = (tmp_path / "closed_loop.html").read_text()
    assert "Question: success &gt; 60" in page and page.count('<polygon class="band"') == 1
    preferred = read_question("prefers", ["conflict"]).told(found, ["conflict"], 10)
    said = readings(summarize(evaluation(found, question=preferred)))
    assert next(r for r in said if "prefers" in r.question).headline == "color, after 40 episodes"


SUITE_SPLIT = "instruction/color_object"


def test_an_answer_says_on_how_many_pairs_or_picks_it_rests(tmp_path: Path) -> None:
    write_report(evaluation(played({LOST: 20})), tmp_path / "other")
    found = played({HELD: 22, WRONG: 3, NONE: 35})
    for text, headline in (
        (f"better than {tmp_path}/other", "yes, after 20 pairs of 60 episodes"),
        ("prefers", "color, after 25 picks of 60 episodes"),
        ("success > 36.7", "not decided by 60 episodes"),
    ):
        told = read_question(text, ["conflict"]).told(found, ["conflict"], 10)
        write_report(evaluation(found, question=told), tmp_path / "new")
        said = readings(summarize(read_evaluation(tmp_path / "new" / JSON_FILE)))
        assert next(r for r in said if text in r.question).headline == headline
        for part in told["parts"].values():
            del part["rests_on"]  # as in older reports
        said = readings(summarize(evaluation(found, question=told)))
        assert "after 60 episodes" in next(r for r in said if text in r.question).headline or "not decided" in headline


@pytest.mark.parametrize("strategy", ["random_f12", "diagonal"])
def test_a_report_of_other_scenes_is_refused_before_anything_is_played(
    tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = acted(SUITE_SPLIT, ["seen"], 4, any_object)  # random_f12, the usual one
    write_report(evaluation(other, split=SUITE_SPLIT), tmp_path)
    given = [f"split={SUITE_SPLIT}", "mode=closed_loop", "policy=expert", "render=none", "parts=[seen]"]
    config = compose("evaluate", *given, f"strategy={strategy}", f"question=better than {tmp_path}").chosen
    called = list[str]()

    def played_here(*_: object, **__: object) -> None:
        called.append("played")
        raise ToolkitError("played")

    monkeypatch.setattr("simulation.closed_loop_evaluation.require_simulator", lambda: None)
    monkeypatch.setattr("simulation.closed_loop_evaluation.run_episodes", played_here)
    same = strategy == "random_f12"
    with pytest.raises(ToolkitError, match="played" if same else "no seen episode of that report has the scene"):
        evaluate_closed_loop(config)
    assert called == ["played"] * same


def test_a_strategys_number_of_demonstrations_makes_no_scene_another(tmp_path: Path) -> None:
    split, published, recorded = "instruction/all", "Lrandom_f50_n100", "Lrandom_f50"  # as recordings name it
    other = acted(split, ["unseen"], 30, lambda episode, rng: None)
    assert {e.episode["strategy"] for e in other} == {published}
    write_report(evaluation(other, split=split, strategy=published), tmp_path)
    asked = read_question(f"better than {tmp_path}", ["unseen"])
    scenes = {e.seed: suite_of(split).sample(split, "unseen", e.seed, recorded).describe() for e in other}
    asked.check_scenes(["unseen"], lambda part: scenes.items())
    found = acted(split, ["unseen"], 30, lambda episode, rng: episode.target)
    outcomes = asked.outcomes([dataclasses.replace(e, episode=scenes[e.seed]) for e in found])
    assert outcomes.counts == {1.0: 30, 0.0: 0, -1.0: 0}


@needs_simulator
def test_an_evaluation_ends_when_its_question_is_answered(tmp_path: Path) -> None:
    """Any object, of three: far below 90 %. The same episodes as without the question, but fewer."""
    common = ["split=color_object", "mode=closed_loop", "policy=random", "render=none", "videos=0", "parts=[conflict]"]
    common += ["max_steps=60", "workers=1"]
    for name, more in (("whole", ["episodes=20"]), ("ended", ["episodes=60", "question=success > 90", "stop=decided"])):
        config = compose("evaluate", *common, *more, f"report_dir={tmp_path / name}").chosen
        evaluate_closed_loop(config)
    whole, ended = (read_json(tmp_path / name / JSON_FILE) for name in ("whole", "ended"))
    count = len(ended["episodes"])
    assert count in (10, 20) and ended["info"]["question"]["parts"]["conflict"]["answer"] is False
    assert [e["picked"] for e in ended["episodes"]] == [e["picked"] for e in whole["episodes"]][:count]
