"""The report of a closed-loop evaluation: files that are whole, a page that needs nothing else, a wandb run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_calls import compose
from outcomes import HELD, LOST, NONE, WRONG, evaluation, outcome, played
from wandb_records import records

from gr00t.data.video import write_video
from gr00t.errors import ToolkitError
from simulation.closed_loop import Evaluation
from simulation.report import summarize
from simulation.report.closed_loop_page import (
    EMBEDDED_BYTES,
    _histogram,
    _place,
    _zones,
    command,
    video_file,
    videos,
)
from simulation.report.closed_loop_report import (
    as_json,
    log_report,
    markdown,
    numbers,
    print_report,
    read_evaluation,
    tables,
    write_report,
)
from simulation.report.conclusions import Reading
from simulation.scenes.plate_suite import OBJECT_X, OBJECT_Y
from simulation.scenes.suites import PLATE
from toolkit.shared_keys import TrackingConfig

EVIL = '<script src="https://example.com/x.js">alert(1)</script>|`\n\n<b>[bold]'


def whole() -> Evaluation:
    """Both parts as they are, and two ablations."""
    parts = [
        played({HELD: 21, LOST: 4, NONE: 5}, part="train"),
        played({HELD: 13, LOST: 3, WRONG: 9, NONE: 5}),
        played({HELD: 1, NONE: 19}, condition="blank_image"),
        played({HELD: 2, WRONG: 16, NONE: 2}, condition="other_instruction"),
    ]
    return evaluation([e for part in parts for e in part], checkpoint="checkpoints/color_object")


def filmed(folder: Path) -> Evaluation:
    """The same with two videos in `folder`."""
    made = whole()
    episodes = list(made.episodes)
    (folder / "videos").mkdir(parents=True)
    for place in (0, 27):  # a success and a failure of train
        frames = np.full((6, 32, 64, 3), 40 * (place % 5), np.uint8)
        write_video(folder / "videos" / f"{place}.mp4", frames, 20)
        episodes[place] = dataclasses.replace(episodes[place], video=f"videos/{place}.mp4")
    return Evaluation(made.info, tuple(episodes))


class Page(HTMLParser):
    """Tags, what they load, links, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links += [] if (value or "").startswith("#") else [value or ""]
            elif name in ("src", "href", "srcset", "data", "poster", "action"):
                self.loaded.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_files_hold_the_same_numbers(tmp_path: Path) -> None:
    write_report(whole(), tmp_path / "new" / "report")
    folder = tmp_path / "new" / "report"
    assert sorted(p.name for p in folder.iterdir()) == ["closed_loop.html", "closed_loop.json", "closed_loop.md"]
    text, shown = (folder / "closed_loop.md").read_text(), Page(folder / "closed_loop.html").text
    told = json.loads((folder / "closed_loop.json").read_text())["summary"]
    assert told["cue_preference"] | {"share": None} == told["cue_preference"] | {"count": 16, "n": 25, "share": None}
    assert told["counted"]["none"]["train"]["success"]["count"] == 21
    for number in ("70 % (21/30, 52 to 83 %)", "64 % (16/25, 45 to 80 %)", "No preference shown"):
        assert number in text and number.replace("(", "").split()[0] in shown
    for number in ("21 of 30, 52 to 83 %", "16 of 25, 45 to 80 %", "no preference shown", "pick up the color-matching"):
        assert number in shown


def test_a_report_is_read_back_and_made_again_alike(tmp_path: Path) -> None:
    made = filmed(tmp_path)
    write_report(made, tmp_path)
    again = read_evaluation(tmp_path / "closed_loop.json")
    assert again == made and summarize(again) == summarize(made)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("closed_loop.*")}
    write_report(again, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("closed_loop.*")} == before


def test_the_page_loads_nothing_from_elsewhere_and_holds_its_videos(tmp_path: Path) -> None:
    write_report(filmed(tmp_path), tmp_path)
    page = Page(tmp_path / "closed_loop.html")
    assert len(page.loaded) == 2 and all(source.startswith("data:video/mp4;base64,") for source in page.loaded)
    assert page.links == [] and not {"script", "link", "iframe", "object"} & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", (tmp_path / "closed_loop.html").read_text(), re.DOTALL)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]
    assert "train, seed 1000000; target: " in page.text and "picked: nothing; 100 steps" in page.text


def test_names_of_people_stay_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = evaluation(played({HELD: 12, WRONG: 3}), policy=EVIL, checkpoint=EVIL, instruction=EVIL)
    write_report(made, tmp_path)
    print_report(made, tmp_path)
    page = Page(tmp_path / "closed_loop.html")
    assert "script" not in page.tags and page.loaded == [] and EVIL in page.text
    lines = (tmp_path / "closed_loop.md").read_text().splitlines()
    assert not [text for text in lines if "<script" in text and not text.startswith("    ")]  # indented: code
    assert "[bold]" in capsys.readouterr().out


def test_the_terminal_shows_success_and_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(whole(), tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    assert "16/25, 45 to 80 %" in shown and "No preference shown." in shown and "closed_loop.html" in shown


@pytest.mark.parametrize(
    "episodes",
    [
        played({NONE: 1}),
        played({HELD: 1}, part="train"),
        played({NONE: 3}, condition="blank_image"),
        [*played({HELD: 3}), *played({NONE: 3}, part="train", condition="other_image")],
    ],
    ids=["one failure", "train only", "an ablation only", "ablation of the other part"],
)
def test_little_is_reported_as_well(episodes, tmp_path: Path) -> None:
    write_report(evaluation(episodes), tmp_path)
    print_report(evaluation(episodes), tmp_path)
    assert Page(tmp_path / "closed_loop.html").text and read_evaluation(tmp_path / "closed_loop.json").episodes


def test_the_text_keeps_parts_quartiles_and_changes_apart() -> None:
    train = [outcome("train", n, HELD, steps=s) for n, s in enumerate((20, 30, 40, 50))]
    conflict = played({HELD: 6, WRONG: 4})
    blank = played({HELD: 2, LOST: 1, WRONG: 5, NONE: 2}, condition="blank_image")
    made = evaluation([*train, *conflict, *blank])
    text = markdown(made, summarize(made))
    assert "## Steps to success, train\n\nMedian 35, half of them 28 to 42, of 4 successes." in text
    assert "## Steps to success, conflict\n\nMedian 32, half of them 31 to 34, of 6 successes." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| blank images | conflict | -")]
    assert row.index("-40 points") < row.index("-30 points") and "50 % (5/10)" in row
    (train_row,) = [line for line in text.splitlines() if line.startswith("| train | as it is")]
    assert train_row.split(" | ")[4] == "-" and "| - |" not in next(
        line for line in text.splitlines() if line.startswith("| conflict | as it is")
    )
    by_target = text.split("## By the target's factors, train")[1].split("##")[0]
    assert sum(line.startswith("| color ") for line in by_target.splitlines()) == 3


def test_a_bar_holds_the_successes_of_its_steps() -> None:
    """101 steps in bars of six: 5 is in the first, 6 and 11 in the second, 102 and 103 in the last."""
    episodes = [outcome("train", n, HELD, steps=s) for n, s in enumerate((5, 6, 11, 102, 103))]
    episodes += [*played({NONE: 3}, part="train"), outcome("conflict", 0, HELD, steps=7)]
    bars = _histogram(episodes, "train", 101)
    assert {(b["first"], b["last"]): b["count"] for b in bars if b["count"]} == {(0, 5): 1, (6, 11): 2, (102, 107): 2}
    assert [b["height"] for b in bars if b["count"]] == [0.5, 1.0, 1.0]
    assert [b["count"] for b in _histogram([outcome("train", 0, HELD, steps=100)], "train", 100)][-1] == 1


def test_a_map_shows_y_to_the_right_and_x_downwards() -> None:
    shown = outcome("conflict", 3, HELD)
    target = shown.episode["objects"][shown.episode["target"]]
    assert (_place(shown)["x"], _place(shown)["y"]) == (round(1000 * target["y"], 1), round(1000 * target["x"], 1))
    left, right = _zones(PLATE)
    assert left["x"] == -1000 * OBJECT_Y[1] and left["x"] + left["width"] == pytest.approx(-1000 * OBJECT_Y[0])
    assert right["x"] == 1000 * OBJECT_Y[0] and left["y"] == right["y"] == 1000 * OBJECT_X[0]


def test_ablations_stay_out_of_the_maps_and_of_the_other_instructions(tmp_path: Path) -> None:
    other = [
        dataclasses.replace(e, instruction="take the other") for e in played({WRONG: 2}, condition="other_instruction")
    ]
    write_report(evaluation([*played({HELD: 3}), *other]), tmp_path)
    text = (tmp_path / "closed_loop.html").read_text()
    assert text.count("<title>seed ") == 3 and "take the other" in text


def test_answers_have_the_colour_of_what_they_mean() -> None:
    tones = {answer: Reading("Does it look?", answer, "", "").tone for answer in ("a", "b", "yes", "no", "unknown")}
    assert tones == {"a": "ok", "b": "warning", "yes": "ok", "no": "error", "unknown": "soft"}
    assert Reading("Does it need the state?", "no", "", "").tone == ""


def test_numbers_to_log_are_the_shares_with_their_ends() -> None:
    train, conflict = played({HELD: 3, LOST: 1}, part="train"), played({HELD: 2, LOST: 1, WRONG: 1, NONE: 4})
    blank = played({HELD: 1, WRONG: 2, NONE: 5}, condition="blank_image")
    made = evaluation([*train, *conflict, *blank])
    summary = summarize(made)
    found, shown = numbers(summary), tables(made, summary)
    preference = summary.preference
    assert found["closed_loop/cue_preference"] == 0.75 and found["closed_loop/cue_preference_of"] == 4
    assert found["closed_loop/cue_preference_low"] == preference.low < found["closed_loop/cue_preference_high"]
    assert found["closed_loop/blank_image/cue_preference"] == pytest.approx(1 / 3)
    assert "closed_loop/cue_preference" not in numbers(summarize(evaluation(train)))
    rows = {tuple(row[:3]): row[3:] for row in shown["picks"][1]}
    success = summary.of("conflict").success
    assert rows["conflict", "none", "success"] == [2, 8, 0.25, success.low, success.high]
    changed = next(row for row in shown["changes"][1] if row[:2] == ["blank_image", "conflict"])
    assert changed[2:4] == [8, -0.125]
    held = [row for row in shown["by_factor"][1] if row[:3] == ["conflict", "target", "size"]]
    assert (sum(row[4] for row in held), sum(row[-1] for row in held)) == (8, 3)


# -- videos ------------------------------------------------------------------------------------------------------------


def test_large_videos_stay_beside_the_page(tmp_path: Path) -> None:
    made = filmed(tmp_path)
    with (tmp_path / "videos" / "0.mp4").open("ab") as file:
        file.truncate(EMBEDDED_BYTES + 1)
    write_report(made, tmp_path)
    page = Page(tmp_path / "closed_loop.html")
    assert page.loaded == [] and page.links == ["videos/0.mp4", "videos/27.mp4"]
    assert "are too large for this page" in page.text and all((tmp_path / link).is_file() for link in page.links)


def test_successes_and_failures_are_shown_apart_up_to_the_largest_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filmed(tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / "videos").iterdir())
    for most, embedded in ((size, True), (size - 1, False)):
        monkeypatch.setattr("simulation.report.closed_loop_page.EMBEDDED_BYTES", most)
        shown, notes = videos(made.episodes, tmp_path)
        assert [name for name, _ in shown] == ["Successes", "Failures"] and len(notes) == (not embedded)
        assert all([v["embedded"] for v in group] == [embedded] for _, group in shown)
    assert "seed 1000000;" in shown[0][1][0]["caption"] and "seed 1000027;" in shown[1][1][0]["caption"]


def test_a_missing_video_is_said_to_be_missing(tmp_path: Path) -> None:
    made = filmed(tmp_path)
    (tmp_path / "videos" / "27.mp4").unlink()
    write_report(made, tmp_path)
    text = Page(tmp_path / "closed_loop.html").text
    assert "1 of the videos are not there any more" in text and "(video missing)" in text


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/hostname", "videos/../../secret.mp4", "link.mp4"])
def test_a_video_outside_the_folder_is_not_read(path: str, tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    folder = tmp_path / "report"
    (folder / "videos").mkdir(parents=True)
    (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (first, *others) = played({HELD: 12})
    made = evaluation([dataclasses.replace(first, video=path), *others])
    assert video_file(made.episodes[0], folder) is None
    write_report(made, folder)
    assert Page(folder / "closed_loop.html").loaded == []


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_page_never_lies_beside_numbers_that_are_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(whole(), tmp_path)
    newer = evaluation(played({HELD: 12}))
    with monkeypatch.context() as patch:
        patch.setattr("simulation.report.closed_loop_report.page", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_report(newer, tmp_path)
    assert read_evaluation(tmp_path / "closed_loop.json") == newer
    assert not (tmp_path / "closed_loop.html").exists()
    assert not list(tmp_path.glob(".closed_loop*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolkitError, match=r"file/report"):
        write_report(whole(), tmp_path / "file" / "report")


def damaged(change: str) -> Any:
    data = json.loads(json.dumps(as_json(whole(), summarize(whole()))))
    scope = {"data": data, "first": data["episodes"][0], "scene": data["episodes"][0]["episode"]}
    exec(change, scope)
    return data


@pytest.mark.parametrize(
    "change, named",
    [
        ("data['format'] = 7", "format 1"),
        ("del data['info']['policy']", "info lacks policy"),
        ("data['info']['split'] = 'colour_object'", 'Did you mean "color_object"'),
        ("data['episodes'] = []", "holds no episodes"),
        ("data['episodes'] = 5", "is damaged"),
        ("del first['picked']", "picked"),
        ("first['picked'] = 'targt'", "episodes[0]: picked is 'targt'"),
        ("first['picked'] = 'lure'", "in train, where there is none"),
        ("first['condition'] = 'dark'", "condition is 'dark'"),
        ("first['part'] = ['train']", "part is"),
        ("first['success'] = 'yes'", "success is 'yes'"),
        ("first['steps'] = -1", "steps is -1"),
        ("first['steps'] = True", "steps is True"),
        ("first['chunks'] = -1", "chunks is -1"),
        ("del first['video']", "video"),
        ("data['episodes'][30]['episode']['lure'] = None", "target"),
        ("scene['plate']['color'] = 'mauve'", "factors are unknown"),
        ("first['video'] = 3", "video is no text"),
        ("first['episode'] = None", "scene is incomplete"),
        ("del scene['plate']", "scene is incomplete"),
        ("scene['target'] = 3", "target 3"),
        ("scene['objects'][0]['color'] = 'mauve'", "factors are unknown"),
        ("scene['objects'][0]['x'] = float('nan')", "object at nan"),
        ("scene['objects'][0]['y'] = '0.1'", "scene is incomplete"),
        ("data['episodes'].append(first)", "is there twice"),
    ],
)
def test_damaged_results_are_refused_by_name_and_place(change: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "closed_loop.json"
    path.write_text(json.dumps(damaged(change)))
    with pytest.raises(ToolkitError) as error:
        read_evaluation(path)
    assert str(path) in str(error.value) and named in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"format": 1, "info"', b"\xff\xfe"])
def test_a_file_that_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "closed_loop.json").write_bytes(content)
    with pytest.raises(ToolkitError, match=r"closed_loop\.json"):
        read_evaluation(tmp_path / "closed_loop.json")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_on_the_page_repeats_the_configuration(tmp_path: Path) -> None:
    config = dataclasses.asdict(compose("evaluate", "split=color_object", "seed=7", "checkpoint=my checkpoint"))
    told = command({"split": "color_object", "instruction": "pick up the color-matching object", "config": config})
    assert told == "python evaluate_conflict.py split=color_object mode=closed_loop 'checkpoint=my checkpoint' seed=7"
    info = {"split": "color_object", "instruction": "pick up the color-matching object"}
    assert command({**info, "config": {**config, "report_dir": "mine", "tracking": {"name": "wandb"}}}) == told
    arguments = [a for a in shlex.split(told)[2:] if not a.startswith("mode=")]
    again = compose("evaluate", *arguments)
    assert (again.seed, again.checkpoint, again.split.name) == (7, "my checkpoint", "color_object")
    other = command({"split": "color_object", "instruction": "grab it", "config": config})
    assert "'split.instruction=grab it'" in other


# -- wandb -------------------------------------------------------------------------------------------------------------


def test_an_offline_run_holds_numbers_tables_page_and_videos(tmp_path: Path) -> None:
    made = filmed(tmp_path)
    write_report(made, tmp_path)
    tracking = TrackingConfig(name="wandb", mode="offline", project="p", group="a group", run_name="a name", tags=["t"])
    log_report(made, tmp_path, tracking)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    held = records(folder)
    (run,) = [r.run for r in held if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.display_name, run.job_type) == ("p", "a group", "a name", "evaluate")
    held_config = {i.key: json.loads(i.value_json) for i in run.config.update}
    assert held_config["split"] == {"name": "color_object"}  # as of trainings: the workspace of all splits groups by it
    assert list(run.tags) == ["color_object", "t"]  # a split's dashboard shows the runs that are tagged with it
    summary = {i.key or "/".join(i.nested_key): i.value_json for r in held for i in r.summary.update}
    for name, value in numbers(summarize(made)).items():
        assert json.loads(summary[name]) == value
    assert json.loads(summary["closed_loop/cue_preference"]) == pytest.approx(16 / 25)
    assert json.loads(summary["closed_loop/blank_image/conflict/success"]) == pytest.approx(1 / 20)
    assert json.loads(summary["closed_loop/verdict"]) == "no preference shown"
    media = sorted(p.name.split("_0_")[0] for p in folder.glob("files/media/**/*") if p.is_file())
    assert media == ["by_factor", "changes", "episodes", "failures", "page", "picks", "successes"]
    (table,) = folder.glob("files/media/table/**/episodes_*")
    assert len(json.loads(table.read_text())["data"]) == len(made.episodes)


def test_tensorboard_holds_numbers_and_tables_of_the_last_evaluation(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = filmed(tmp_path)
    write_report(made, tmp_path)
    for _ in range(2):
        log_report(made, tmp_path, TrackingConfig(name="tensorboard"))
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    wanted = numbers(summarize(made))
    found = {name: [e.value for e in shown.Scalars(name)] for name in shown.Tags()["scalars"]}
    assert found == {name: [pytest.approx(value)] for name, value in wanted.items() if not isinstance(value, str)}
    text = {name: shown.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in shown.Tags()["tensors"]}
    assert text["closed_loop/verdict/text_summary"] == "no preference shown"
    assert text["closed_loop/episodes/text_summary"].count("\n") == len(made.episodes) + 1


def test_without_wandb_nothing_is_logged(tmp_path: Path) -> None:
    log_report(whole(), tmp_path, TrackingConfig(name="none"))
    assert list(tmp_path.iterdir()) == []


def test_a_key_stays_out_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    write_report(whole(), tmp_path)
    log_report(whole(), tmp_path, TrackingConfig(name="wandb", mode="offline"))
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert records(folder)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
