"""How far episodes came, as the report says it: partial credit, where failures ended, the expert beside them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from outcomes import HELD, LOST, NONE, WRONG, evaluation, outcome
from test_closed_loop_report import Page

from gr00t.data.video import write_video
from gr00t.errors import ToolkitError
from simulation.closed_loop import STAGES, EpisodeOutcome, Evaluation
from simulation.closed_loop.kept_episodes import SegmentRecord
from simulation.closed_loop.rollout import _to_film
from simulation.report import ENDINGS, summarize, way_of
from simulation.report.closed_loop_report import markdown, numbers, print_report, read_evaluation, tables, write_report
from simulation.report.conclusions import in_short

ORDER = list(STAGES)


def came(part: str, number: int, count: int, at: int = 10) -> EpisodeOutcome:
    """An episode that reached so many stages, the first at step `at`, each three steps after the one before."""
    stages = {stage: at + 3 * place for place, stage in enumerate(ORDER[:count])}
    ending = HELD if count == 5 else LOST if count > 2 else NONE
    return outcome(part, number, ending, stages=stages, smoothness=-1.5 - 0.1 * number, steps=30 + number)


def mixed() -> Evaluation:
    """In train 2 of 8 succeed; in conflict all 3; the expert reaches everything a step earlier."""
    train = [came("train", number, count) for number, count in enumerate((0, 1, 1, 2, 3, 4, 5, 5))]
    conflict = [came("conflict", number, 5) for number in range(3)]
    expert = [came(part, number, 5, at=9) for part in ("train", "conflict") for number in range(4)]
    return dataclasses.replace(evaluation([*train, *conflict]), expert=tuple(expert))


def test_partial_credit_is_the_mean_share_of_stages_and_failures_add_up() -> None:
    way = summarize(mixed()).way["train"]
    assert way.n == 8 and way.credit == pytest.approx((0 + 1 + 1 + 2 + 3 + 4 + 5 + 5) / 40)
    assert [share.count for share in way.reached.values()] == [7, 5, 4, 3, 2]
    assert {stage: share.count for stage, share in way.ended.items()} == dict(
        zip(ENDINGS, (1, 2, 1, 1, 1), strict=True)
    )
    assert sum(share.count for share in way.ended.values()) == 6 == next(iter(way.ended.values())).n
    assert way.steps["touched"] is not None and way.steps["touched"].median == 13
    assert way.smoothness is not None and way.smoothness.median == pytest.approx(-1.85)


@pytest.mark.parametrize(("count", "credit"), [(0, 0.0), (5, 1.0)])
def test_partial_credit_lies_between_none_and_all(count: int, credit: float) -> None:
    way = way_of([came("train", number, count) for number in range(3)])
    assert way is not None and way.credit == credit and (way.ended == {}) == (count == 5)
    assert all((steps is None) == (count == 0) for steps in way.steps.values())


def test_the_report_says_where_failures_end_beside_the_expert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = mixed()
    write_report(made, tmp_path)
    print_report(made, tmp_path)
    sentence = next(line for line in in_short(summarize(made)) if "train, on the way" in line)
    assert "partial credit 0.53 (the expert 1.00). Of 6 failures: 1 did not move toward the target; 2 moved" in sentence
    assert "Smoothness (SPARC) -1.85 (the expert -1.65)." in sentence
    assert sentence in " ".join(capsys.readouterr().out.split())
    text = markdown(made, summarize(made))
    assert sentence in text and "## On the way, train" in text
    (row,) = [
        line for line in text.split("## On the way, train")[1].split("##")[0].splitlines() if "touched it |" in line
    ]
    assert row == "| touched it | 62 % (5/8, 31 to 86 %) | 13 (13 to 13) | 100 % (4/4) | 12 (12 to 12) |"
    shown = Page(tmp_path / "closed_loop.html").text
    assert "What happened on the way" in shown and all(words in shown for words in ENDINGS.values())
    logged = numbers(summarize(made))
    assert logged["closed_loop/train/partial_credit"] == pytest.approx(0.525)
    assert logged["closed_loop/conflict/smoothness"] == pytest.approx(-1.6)
    columns, rows = tables(made, summarize(made))["episodes"]
    assert [row[columns.index("stage")] for row in rows][:4] == ["nowhere", "toward", "toward", "touched"]


def test_a_report_with_stages_and_an_expert_is_read_back(tmp_path: Path) -> None:
    write_report(mixed(), tmp_path)
    again = read_evaluation(tmp_path / "closed_loop.json")
    assert again == mixed() and summarize(again) == summarize(mixed())
    assert again.episodes[5].stage == "done" and list(again.episodes[6].stages or {}) == ORDER


def test_a_report_of_before_has_no_stages_and_its_page_is_drawn(tmp_path: Path) -> None:
    older = evaluation([outcome("train", 0, HELD), outcome("train", 1, NONE)])
    write_report(older, tmp_path)
    written = json.loads((tmp_path / "closed_loop.json").read_text())
    assert not {"stages", "smoothness"} & set(written["episodes"][0]) and "expert" not in written
    assert "way" not in written["summary"] and read_evaluation(tmp_path / "closed_loop.json") == older
    assert "What happened on the way" not in Page(tmp_path / "closed_loop.html").text
    both = evaluation([*older.episodes, came("train", 2, 1)])
    assert summarize(both).way["train"].n == 1 and summarize(both).of("train").success.n == 3


def test_the_films_of_each_group_of_failures_are_linked(tmp_path: Path) -> None:
    made = mixed()
    (tmp_path / "videos").mkdir()
    episodes = list(made.episodes)
    for place in (1, 2, 4, 6):
        write_video(tmp_path / "videos" / f"{place}.mp4", np.zeros((4, 32, 64, 3), np.uint8), 20)
        episodes[place] = dataclasses.replace(episodes[place], video=f"videos/{place}.mp4")
    write_report(dataclasses.replace(made, episodes=tuple(episodes)), tmp_path)
    html = (tmp_path / "closed_loop.html").read_text()
    row = html.split(f'<th scope="row">{ENDINGS["toward"]}</th>')[1].split("</tr>")[0]
    assert row.count("<a ") == 2 and '<td class="number">2</td>' in row
    assert html.split(f'<th scope="row">{ENDINGS["done"]}</th>')[1].split("</tr>")[0].count("<a ") == 0
    for place in (1, 2, 4):
        assert html.count(f'href="#film-train-{episodes[place].seed}"') == 1
        assert html.count(f'id="film-train-{episodes[place].seed}"') == 1
    assert f'href="#film-train-{episodes[6].seed}"' not in html  # a success


def test_failures_are_filmed_by_the_stage_at_which_they_ended() -> None:
    counts = (1, 1, 1, 3, 5, 5, 3, 5)
    filmed = list(_to_film([came("train", number, count) for number, count in enumerate(counts)], 2))
    assert [o.seed - 1_000_000 for o in filmed] == [0, 1, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("first['stages'] = {'touched': 3}", "not the first ones of toward, touched"),
        ("first['stages'] = [1]", "not the first ones"),
        ("first['stages'] = {'toward': 9, 'touched': 8}", "no counts that grow"),
        ("first['stages'] = {'toward': 0}", "no counts that grow"),
        ("first['stages'] = {'toward': 'soon'}", "no counts that grow"),
        ("first['stages'] = {'toward': 99}", "of 30 steps and success False"),
        ("first['success'] = True; first['picked'] = 'target'", "success True"),
        ("first['smoothness'] = 0.5", "smoothness is 0.5"),
        ("first['smoothness'] = float('-inf')", "smoothness is -inf"),
        ("data['expert'][2]['steps'] = -1", "expert[2]: steps is -1"),
    ],
)
def test_damaged_stages_are_refused_by_name_and_place(change: str, named: str, tmp_path: Path) -> None:
    write_report(mixed(), tmp_path)
    path = tmp_path / "closed_loop.json"
    data = json.loads(path.read_text())
    exec(change, {"data": data, "first": data["episodes"][0]})
    path.write_text(json.dumps(data))
    with pytest.raises(ToolkitError) as error:
        read_evaluation(path)
    assert str(path) in str(error.value) and named in str(error.value)


def test_episodes_kept_by_an_older_version_continue(tmp_path: Path) -> None:
    """They lack stages; what else they hold must still be what is played."""
    now = came("train", 0, 4)
    values = dataclasses.asdict(now)
    older = {name: value for name, value in values.items() if name not in ("stages", "smoothness")}
    (tmp_path / "a.jsonl").write_text(json.dumps({"outcome": older}) + "\n")
    record = SegmentRecord(tmp_path / "a.jsonl")
    assert record.outcomes[now.seed].stages is None
    record.add_outcome(now)
    with pytest.raises(ToolkitError, match="does not continue as it began"):
        record.add_outcome(dataclasses.replace(now, steps=now.steps + 1))
    (tmp_path / "b.jsonl").write_text(json.dumps({"outcome": values}) + "\n")
    with pytest.raises(ToolkitError, match="does not continue as it began"):
        SegmentRecord(tmp_path / "b.jsonl").add_outcome(dataclasses.replace(now, smoothness=-9.0))


def test_the_picks_of_an_episode_say_nothing_of_its_stages() -> None:
    """The lure was picked first and the target touched on the way: a failure that ended at the target all the same."""
    grazed = outcome("conflict", 0, WRONG, stages={"toward": 5, "touched": 5}, smoothness=-2.0)
    assert grazed.stage == "touched" and summarize(evaluation([grazed])).way["conflict"].credit == pytest.approx(0.4)
