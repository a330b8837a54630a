"""Reports of runs: one self-contained page, whose curves can be zoomed in a real browser."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, opened
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.report import write_runs
from finetune.report import PAGE_POINTS, History, _lines, _table, read_histories, read_series, thinned
from finetune.report.__main__ import main, read
from finetune.report.run_page import DASHES, _panels_of_many, _panels_of_one, differences
from finetune.training import logged, measurement
from gr00t.errors import ToolkitError
from gr00t.model.checkpoint_folder import fingerprint
from toolkit.html_page import COLORS, GREY

NOT_A_NAME = 'a<b>\'s & "x" <script>'
STEPS_SHOWN = "(() => {const r = Bokeh.documents[0].get_model_by_name('steps'); return [r.start, r.end]})()"
FIRST_PLOT = """(() => {
    const view = Object.values(Bokeh.index.roots ?? Bokeh.index)[0];
    const [element, frame] = [view.el.getBoundingClientRect(), view.frame.bbox];
    return [element.left + frame.left, element.top + frame.top, frame.width, frame.height];
})()"""


def write_run(folder: Path, rate: float = 1e-4, steps: int = 300, **more: object) -> Path:
    """A run folder as training leaves it: curves of `steps` steps, evaluations at every hundredth."""
    folder.mkdir(parents=True)
    settings = {
        "split": {"name": "color_object"},
        "model": {"base": "base"},
        "engine": {"name": "ddp"},
        "dataset": {"data_dir": "data", "tail": "mask", "embodiment_tag": "new_embodiment"},
        "augment": {"views": None},
        "train": {"max_steps": steps, "learning_rate": rate, "global_batch_size": 32},
        "output_dir": str(folder.parent / "done"),
    }
    (folder / "run_config.json").write_text(json.dumps(settings))
    lines = []
    for step in range(10, steps + 1, 10):
        loss = 1 / step
        lines.append({"step": step, "loss": loss, "loss_arm": loss / 2, "grad_norm": 1.0, "learning_rate": rate})
        lines[-1] |= {"samples_per_second": 40.0, "data_wait_seconds": 0.1, "peak_memory_gib": 3.0}
        if step % 100 == 0:
            lines.append({"step": step, "val/arm_mae": 2 * loss, "val/arm_mae_hold_still": 0.06})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = {"status": "finished", "reason": "", "step": steps, **more}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def write_attempt(run: Path, number: int, from_step: int, ended: str) -> None:
    folder = run / "attempts" / str(number)
    folder.mkdir(parents=True)
    (folder / "attempt.json").write_text(json.dumps({"from_step": from_step, "nodes": "n1"}))
    (folder / "ended.json").write_text(json.dumps({"what": "requeue", "reason": ended}))


def read_history(run: Path, reports: Path) -> History:
    return read_histories([run], reports)[0]


def report(*arguments: object) -> None:
    main(read(["local=none", *map(str, arguments)]))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
def test_a_page_of_runs_can_be_zoomed_in_a_browser(tmp_path: Path) -> None:
    for name, rate in (("one", 1e-4), (NOT_A_NAME, 2e-4)):
        write_attempt(write_run(tmp_path / "runs" / name, rate), 0, 0, "signal SIGUSR1")
    report(tmp_path / "runs", f"reports_dir={tmp_path}")
    with opened(tmp_path / "runs" / "report.html", tmp_path / "profile") as page:
        page.wait_for("window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
        whole, seen = page.value(STEPS_SHOWN), page.image()
        left, top, width, height = page.value(FIRST_PLOT)
        page.drag((left + width / 4, top + height / 4), (left + width / 2, top + height * 0.8))
        page.wait_for(f"{STEPS_SHOWN}[1] < {whole[1]}")
        low, high = page.value(STEPS_SHOWN)
        at = [whole[0] + part * (whole[1] - whole[0]) for part in (0.25, 0.5)]
        assert [low, high] == pytest.approx(at, abs=2)
        zoomed = page.image()
        page.double_click(left + width / 2, top + height / 2)
        page.wait_for(f"{STEPS_SHOWN}[1] === {whole[1]}")
        assert page.value("document.querySelectorAll('main script').length") == 0  # the name stayed a name
        assert page.complaints == []
    assert len(np.unique(pixels(seen).reshape(-1, 3), axis=0)) > 100
    assert (pixels(seen) != pixels(zoomed)).any(axis=-1).mean() > 0.005


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_page_needs_no_network_and_stays_small(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "one", steps=10_000)
    report(run, f"reports_dir={tmp_path}")
    text = (run / "report.html").read_text()
    assert len(text) < 3e6
    outside = [part for part in ('src="http', 'href="http', "@import") if part in text.split("</style>")[1][:5000]]
    assert outside == [] and "cdn.bokeh.org" not in text.rpartition("</main>")[0]


def test_only_settings_that_differ_are_shown_for_several_runs(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one", 1e-4), write_run(tmp_path / "two", 2e-4)
    report(one, two, f"reports_dir={tmp_path}", f"out={tmp_path}/page.html")
    text = (tmp_path / "page.html").read_text()
    assert "train.learning_rate" in text and "train.global_batch_size" not in text


@pytest.mark.parametrize("shown", [("runs",), ("runs/one", "runs/two")])
def test_the_page_is_named_as_it_would_be_typed(
    shown: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    report(*shown)
    assert capsys.readouterr().out == "2 runs: runs/report.html\n"
    assert (tmp_path / "runs" / "report.html").is_file()


def test_attempts_and_evaluations_of_the_checkpoint_are_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "one")
    write_attempt(run, 0, 0, "signal SIGUSR1")
    write_attempt(run, 1, 150, "training is finished")
    found = tmp_path / "reports" / "color_object" / "val" / "open_loop.json"
    found.parent.mkdir(parents=True)
    errors = {"arm": {"policy": {"mae": 0.0123}, "hold_still": {"mae": 0.06}}}
    sections = {section: {"errors": errors} for section in ("all", "last")}
    checkpoint = {"checkpoint": str(tmp_path / "runs" / "done"), "part": "val", "overall": sections}
    found.write_text(json.dumps(checkpoint))
    history = read_history(run, tmp_path / "reports")
    assert [(start.step, start.reason) for start in history.starts] == [(0, ""), (150, "signal SIGUSR1")]
    assert [(result.kind, result.part) for result in history.evaluations] == [("open loop", "val")]
    assert "arm error 0.0123" in history.evaluations[0].said
    found.write_text(json.dumps({**checkpoint, "checkpoint": "elsewhere"}))
    assert read_history(run, tmp_path / "reports").evaluations == []
    found.write_text("{")
    assert read_history(run, tmp_path / "reports").evaluations[0].kind == "damaged"


def test_evaluations_are_of_the_weights_that_are_there_wherever_the_launcher_puts_them(tmp_path: Path) -> None:
    run, done = write_run(tmp_path / "runs" / "one"), tmp_path / "runs" / "done"
    errors = {"arm": {"policy": {"mae": 0.0123}, "hold_still": {"mae": 0.06}}}
    found = {"part": "val", "overall": {section: {"errors": errors} for section in ("all", "last")}}

    def write(name: str, weights: str, checkpoint: Path = done) -> None:
        path = tmp_path / "reports" / name / "open_loop.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**found, "checkpoint": str(checkpoint), "checkpoint_fingerprint": weights}))

    def said() -> list[str]:
        return [result.said for result in read_history(run, tmp_path / "reports").evaluations]

    write("color_object/val", "before train.resume=never")
    assert len(said()) == 1 and said()[0].endswith("(weights that are no longer there)")
    done.mkdir()
    (done / "config.json").write_text("{}")
    save_file({"w": np.zeros(3, np.float32)}, done / "model.safetensors")
    assert said() == []
    write("one/val", fingerprint(done))  # of a sweep
    assert len(said()) == 1 and said()[0].endswith("(holding still 0.0600)")
    write("one/moved", fingerprint(done), tmp_path / "elsewhere")
    assert len(said()) == 2


DAMAGED = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n[]\n{"loss": 1}\n{"step": 3, "lo'
ODD = [
    ("", {}),
    ('{"step": 1}\n', {}),
    ('{"loss": 1.5}\n', {}),
    ('{"step": 1, "a": 2}\n{"step": 2, "a": 2.5, "val/b": 3}\n', {"a": ([1, 2], [2, 2.5]), "val/b": ([2], [3])}),
    ('{"step": 1, "a": NaN}\n{"step": 2, "a": Infinity}\n{"a": 5}\n{"step": 3, "a": 4}', {"a": ([3], [4])}),
    ('{"step": 1, "a": "text", "b": true, "c": null, "d": [1], "e": 1}\n', {"b": ([1], [1]), "e": ([1], [1])}),
    ('{"step": "7", "loss": 1}\n{"step": null, "loss": 2}\n', {}),
    ('{"step": 1, "loss": "no"}\n{"step": 2, "loss": 3}\n', {"loss": ([2], [3])}),
    (DAMAGED, {"loss": ([1], [2.0])}),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", ODD)
def test_what_is_no_measurement_is_passed_over(text: str, expected: dict, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    found = {name: (x.steps.tolist(), x.values.tolist()) for name, x in read_series(path, 100).items()}
    assert found == expected


def test_a_sound_file_is_read_by_arrow_as_it_is_read_line_by_line(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / "metrics.jsonl"
    fast, slow = _table(path), _lines(path)
    assert fast is not None and list(fast) == list(slow)
    for name, (steps, values) in fast.items():
        there = np.isfinite(values)
        assert np.array_equal(steps[there], slow[name][0]) and np.array_equal(values[there], slow[name][1])


@pytest.mark.parametrize("count, most", [(3, 4), (101, 100), (1000, 100), (1001, 100), (10_000, 138), (5, 4)])
def test_a_thinned_curve_keeps_its_ends_and_every_peak(count: int, most: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    peaks = [count // 3, 2 * count // 3]
    values[peaks] = 50, -50
    drawn = thinned(values, most)
    assert len(drawn) <= most and (np.diff(drawn) > 0).all()
    assert {0, count - 1, *peaks} <= set(drawn.tolist())


def test_every_section_of_a_thinned_curve_shows_its_lowest_and_highest() -> None:
    values = np.tile([0.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0], 50)  # a peak and a dip in each ten
    drawn = values[thinned(values, 102)]
    assert (drawn == 1).sum() == (drawn == -1).sum() == 50


def test_a_page_of_many_runs_stays_small_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    for number in range(40):
        write_run(tmp_path / f"{number}", 1e-5 * (1 + number), steps=10_000)
    report(tmp_path, f"reports_dir={tmp_path}")
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 5e6
    shown, logged = map(int, re.findall(r"highest of each section are drawn: (\d+) of (\d+) of the longest", text)[0])
    assert logged == 1000 and shown <= PAGE_POINTS // 40 < logged


@pytest.mark.long
def test_two_hundred_runs_of_ten_thousand_lines_are_a_page_of_five_megabytes_in_seconds(tmp_path: Path) -> None:
    """In processor time, which other work on the machine leaves alone; two cores need half of it."""
    write_runs(tmp_path, 200, 10_000)
    before = time.process_time()
    report(tmp_path, f"reports_dir={tmp_path}")
    assert time.process_time() - before < 20
    assert (tmp_path / "report.html").stat().st_size < 5e6


def test_a_run_that_has_not_ended_says_when_it_last_logged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", status="running")
    history = read_history(run, tmp_path)
    assert history.status == "running" and "last logged 0 minutes" in history.reason


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_without_runs_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ToolkitError, match=r"is no run folder and holds none.*Give the run_dir of a fine-tune"):
        report(tmp_path / name)
    assert not list(tmp_path.rglob("*.html"))


def test_curves_of_a_run_share_panels_and_mark_later_attempts_and_the_best(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_attempt(run, 0, 0, "signal SIGUSR1")
    write_attempt(run, 1, 150, "training is finished")
    (run / "best.json").write_text(json.dumps({"step": 200, "metric": 0.1, "name": "val/arm_mae"}))
    panels = _panels_of_one(read_history(run, tmp_path))
    assert [[line.name for line in panel.lines] for panel in panels[:2]] == [
        ["loss", "loss arm"],
        ["arm mae", "arm mae hold still"],
    ]
    assert [(line.color, line.dash) for line in panels[1].lines] == [(COLORS[0], "solid"), (GREY, DASHES[2])]
    assert all([(mark.step, mark.text) for mark in p.marks] == [(150, "attempt 1"), (200, "best")] for p in panels)


def test_many_runs_differ_by_color_and_then_by_dashes(tmp_path: Path) -> None:
    runs = [read_history(write_run(tmp_path / f"{n}", rate=1e-4 * (1 + n % 2)), tmp_path) for n in range(13)]
    lines = _panels_of_many(runs)[0].lines
    assert (lines[0].color, lines[0].dash) == (COLORS[0], "solid") and len({(x.color, x.dash) for x in lines}) == 13
    assert (lines[11].color, lines[11].dash) == (COLORS[0], DASHES[1])
    told = dict(differences(runs[:2]))
    assert told["train.learning_rate"] == ["0.0001", "0.0002"] and "train.max_steps" not in told


def test_lines_without_end_are_no_measurements_and_are_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + bytes(10**6) + b'\n{"step": 2, "loss": 1.0}')
    assert max(map(len, logged(path))) < 2 * 10**5
    assert list(filter(None, map(measurement, logged(path)))) == [(1, {"loss": 2.0}), (2, {"loss": 1.0})]
