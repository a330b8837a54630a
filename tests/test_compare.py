"""The page over all closed-loop evaluations: the twelve splits, damaged files, differences between checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from config_calls import compose
from outcomes import HELD, NONE, WRONG, evaluation, outcome, played
from test_closed_loop_report import EVIL, Page

from gr00t.errors import ToolkitError
from simulation.compare import compare, main, tint
from simulation.report.closed_loop_report import find_evaluations, write_report
from simulation.report.proportions import Share, difference, paired_difference
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED
from toolkit.command_line import run_main


def write(folder: Path, conflict: dict, train: dict | None = None, first: int = 0, **info) -> None:
    split = info.get("split", "color_object")
    episodes = []
    for part, endings in (("train", train or {HELD: 20}), ("conflict", conflict)):
        rows = [ending for ending, count in endings.items() for _ in range(count)]
        episodes += [outcome(part, first + n, ending, split=split) for n, ending in enumerate(rows)]
    write_report(evaluation(episodes, **info), folder)


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    folder = tmp_path / "reports"
    write(folder / "color_object" / "closed_loop", {HELD: 27, WRONG: 3})
    write(folder / "color_object" / "drop", {HELD: 5, WRONG: 23, NONE: 2}, {HELD: 4, NONE: 16})
    write(folder / "size_color" / "closed_loop", {HELD: 16, WRONG: 14}, split="size_color")
    return folder


def run(reports: Path, *more: str) -> None:
    main(compose("compare", f"reports_dir={reports}", f"out={reports}/compare.html", *more))


def test_every_evaluation_is_in_the_matrix_the_table_and_the_numbers(reports: Path, capsys) -> None:
    run(reports)
    page, told = Page(reports / "compare.html"), json.loads((reports / "compare.json").read_text())
    found = {e["name"]: e["cue_preference"]["in_words"] for e in told["evaluations"]}
    assert found == {
        "color_object/closed_loop": "follows color",
        "color_object/drop": "follows object",
        "size_color/closed_loop": "no preference shown",
    }
    for name, headline in found.items():
        assert page.text.count(name) >= 3 and headline in page.text
    assert page.text.count("not evaluated") == 10
    assert "90 % color" in page.text and "27/30" in page.text
    assert "follows object" in capsys.readouterr().out


def test_links_lead_to_the_pages_and_nothing_is_loaded(reports: Path) -> None:
    run(reports)
    page = Page(reports / "compare.html")
    assert page.loaded == [] and "script" not in page.tags
    assert len(set(page.links)) == 3 and all((reports / link).is_file() for link in page.links)


def test_the_colour_is_of_the_preference_that_is_shown(reports: Path) -> None:
    first, second, third = compare(reports).entries
    assert tint(first)[0] == "target" and tint(second)[0] == "lure" and tint(third)[1] == 0
    assert tint(first)[1] == 48


def test_checkpoints_of_one_split_are_compared_on_the_same_episodes(reports: Path) -> None:
    found = {c.what: c for c in compare(reports).contrasts}
    assert set(found) == {"success, train", "success, conflict", "cue preference"}
    train = found["success, train"]
    assert (train.split, train.first, train.second) == ("color_object", "color_object/closed_loop", "color_object/drop")
    assert train.same_episodes and train.difference.value == pytest.approx(-0.8) and train.difference.shown
    assert found["cue preference"].difference.value == pytest.approx(5 / 28 - 27 / 30)


def test_the_same_episodes_are_compared_pair_by_pair(tmp_path: Path) -> None:
    """The interval is that of pairs, which is shorter than that of two groups of episodes."""
    write(tmp_path / "color_object/a", {HELD: 30, WRONG: 10})
    write(tmp_path / "color_object/b", {HELD: 20, WRONG: 20})
    found = {c.what: c.difference for c in compare(tmp_path).contrasts}["success, conflict"]
    assert found == paired_difference([(False, True)] * 10 + [(True, True)] * 20 + [(False, False)] * 10)
    assert found != difference(Share(20, 40), Share(30, 40))


def test_other_episodes_and_settings_are_told_apart(reports: Path) -> None:
    write(reports / "color_object" / "later", {HELD: 20}, first=FIRST_EVALUATION_SEED, max_steps=80)
    later = [c for c in compare(reports).contrasts if "later" in c.second]
    assert later and not any(c.same_episodes for c in later)
    assert all(c.note == "max_steps: 100 / 80" for c in later)


def test_damaged_and_hidden_files_are_left_out_by_name(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {"cut": '{"format": 1,', "old": '{"format": 0}', ".hidden": "x"}.items():
        (reports / name).mkdir()
        (reports / name / "closed_loop.json").write_text(text)
    run(reports)
    shown, page = capsys.readouterr().out, Page(reports / "compare.html").text
    for text in (shown, page):
        assert "cut/closed_loop.json: not valid JSON" in text and "old/closed_loop.json: is no closed-loop" in text
        assert ".hidden" not in text


def test_names_of_people_stay_names(tmp_path: Path) -> None:
    write(tmp_path / "<script>alert(2)<" / "x", {HELD: 12}, policy=EVIL)
    run(tmp_path)
    page = Page(tmp_path / "compare.html")
    assert "script" not in page.tags and EVIL in page.text and "<script>alert(2)<" in page.text
    assert [(tmp_path / "<script>alert(2)<" / "x" / "closed_loop.html").name] == [Path(x).name for x in set(page.links)]


def test_pages_are_made_again_from_the_numbers(reports: Path) -> None:
    page = reports / "color_object" / "drop" / "closed_loop.html"
    before = page.read_bytes()
    page.unlink()
    run(reports)
    assert not page.exists()
    run(reports, "pages=true")
    assert page.read_bytes() == before and Page(reports / "compare.html").links


def test_comparing_again_replaces_the_comparison(reports: Path) -> None:
    run(reports)
    write(reports / "size_object" / "closed_loop", {HELD: 12}, split="size_object")
    run(reports)
    assert len(json.loads((reports / "compare.json").read_text())["evaluations"]) == 4


@pytest.mark.parametrize(
    "out, named",
    [
        ("color_object/drop/closed_loop.html", "is no comparison"),
        ("compare.htm", "Write out="),
        ("compare", "Write out="),
        ("color_object", "Write out="),
        ("color_object/drop/closed_loop.md/compare.html", "closed_loop.md"),
    ],
)
def test_an_out_that_would_harm_is_refused(out: str, named: str, reports: Path) -> None:
    before = {p: p.read_bytes() for p in reports.rglob("*") if p.is_file()}
    with pytest.raises(ToolkitError, match=named):
        main(compose("compare", f"reports_dir={reports}", f"out={reports}/{out}"))
    assert {p: p.read_bytes() for p in reports.rglob("*") if p.is_file()} == before


def test_nothing_to_compare_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ToolkitError, match="does not exist"):
        run(tmp_path / "nowhere")
    (tmp_path / "closed_loop.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        run_main(main, "compare", ["local=none", f"reports_dir={tmp_path}", f"out={tmp_path}/compare.html"])
    assert stop.value.code == 2
    assert (
        "holds no closed_loop.json that can be read" in (said := capsys.readouterr().err) and "not valid JSON" in said
    )
    assert [p.name for p in tmp_path.iterdir()] == ["closed_loop.json"]


def test_an_evaluation_of_train_alone_has_no_preference(tmp_path: Path) -> None:
    write_report(evaluation(played({HELD: 12}, part="train")), tmp_path / "a")
    run(tmp_path)
    assert "no pick of target or lure" in Page(tmp_path / "compare.html").text


def test_the_same_episodes_are_compared_in_pairs_and_others_apart(reports: Path) -> None:
    train = {c.what: c for c in compare(reports).contrasts}["success, train"]
    assert train.difference == paired_difference([(number < 4, True) for number in range(20)])
    write(reports / "color_object" / "later", {HELD: 20}, first=FIRST_EVALUATION_SEED)
    found = {(c.first, c.second, c.what): c for c in compare(reports).contrasts}
    apart = found["color_object/closed_loop", "color_object/later", "success, conflict"]
    assert not apart.same_episodes and apart.difference.value == pytest.approx(0.1)
    assert not any(c.same_episodes for (_, _, what), c in found.items() if what == "cue preference")


def test_a_seed_whose_scene_was_another_makes_no_pair(tmp_path: Path) -> None:
    before = played({HELD: 12})
    moved = [{**e.episode, "plate": {**e.episode["plate"], "x": e.episode["plate"]["x"] + 0.001}} for e in before]
    after = [dataclasses.replace(e, episode=scene) for e, scene in zip(before, moved, strict=True)]
    for name, episodes in (("a", before), ("b", after)):
        write_report(evaluation(episodes), tmp_path / name)
    assert [c.same_episodes for c in compare(tmp_path).contrasts] == [False, False]


def test_a_strategys_number_of_demonstrations_makes_no_scene_another(tmp_path: Path) -> None:
    for name, strategy in (("a", "Lrandom_f50_n100"), ("b", "Lrandom_f50"), ("c", "Lrandom_f60")):
        scene = {"episode": {**outcome("conflict", 0, HELD).episode, "strategy": strategy}}
        write_report(evaluation([outcome("conflict", 0, HELD, **scene)], strategy=strategy), tmp_path / name)
    found = {(c.first, c.second): c for c in compare(tmp_path).contrasts if c.what.startswith("success")}
    assert [c.same_episodes for c in found.values()] == [True, False, False]
    assert found["a", "b"].note == "" and found["b", "c"].note == "strategy: Lrandom_f50 / Lrandom_f60"


def test_ablations_take_no_part_in_a_contrast(tmp_path: Path) -> None:
    blank = played({NONE: 12}, condition="blank_image")
    write_report(evaluation(played({HELD: 12})), tmp_path / "a")
    write_report(evaluation([*played({HELD: 12}), *blank]), tmp_path / "b")
    found = {c.what: c.difference.value for c in compare(tmp_path).contrasts}
    assert found == {"success, conflict": 0.0, "cue preference": 0.0}
    run(tmp_path)
    _, second = json.loads((tmp_path / "compare.json").read_text())["evaluations"]
    assert set(second["success_under"]) == {"blank_image"} and not {"config", "versions"} & set(second["info"])


def test_entries_are_in_the_order_of_their_splits(tmp_path: Path) -> None:
    write(tmp_path / "a", {HELD: 12}, split="size_color")
    write(tmp_path / "b", {HELD: 12})
    assert [entry.name for entry in compare(tmp_path).entries] == ["b", "a"]


@pytest.mark.parametrize("name, value", [("n_action_steps", 4), ("max_steps", 80), ("instruction", "grab it")])
def test_every_setting_that_makes_the_task_another_is_noted(name: str, value: object, tmp_path: Path) -> None:
    write(tmp_path / "a", {HELD: 12})
    write(tmp_path / "b", {HELD: 12}, **{name: value})
    assert all(c.note.startswith(f"{name}: ") and c.note.endswith(f" / {value}") for c in compare(tmp_path).contrasts)


def test_evaluations_of_different_parts_have_no_contrast(tmp_path: Path) -> None:
    write_report(evaluation(played({HELD: 12}, part="train")), tmp_path / "a")
    write_report(evaluation(played({HELD: 12})), tmp_path / "b")
    assert compare(tmp_path).contrasts == ()


def test_hidden_folders_are_left_out_at_any_depth_but_not_above(tmp_path: Path) -> None:
    reports = tmp_path / ".cache" / "reports"
    for place in ("a", ".trash/b", "c/.partial/d"):
        (reports / place).mkdir(parents=True)
        (reports / place / "closed_loop.json").write_text("{}")
    assert find_evaluations(reports) == [reports / "a" / "closed_loop.json"]
