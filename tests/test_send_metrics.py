"""Measurements of a run that are sent to a tracker later: once each, under the names that training logs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import ROOT
from wandb_records import records

from finetune.send_metrics import main, read, read_steps
from gr00t.errors import ToolkitError
from toolkit.trackers import WandbRun, steps_in_tensorboard

LINES = [
    {"step": 2, "loss": 0.5, "grad_norm": 1.0},
    {"step": 4, "loss": 0.4, "grad_norm": 2.0},
    {"step": 4, "val/arm_mae": 0.3},
]
OFFLINE = ("tracking=wandb", "tracking.mode=offline", "local=none")
TENSORBOARD = ("tracking=tensorboard", "local=none")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my_run"
    folder.mkdir()
    append(folder, *LINES)
    settings = {"split": {"name": "color_object"}, "tracking": {"run_name": "first", "group": "conflict-tiny"}}
    (folder / "run_config.json").write_text(json.dumps(settings))
    return folder


def append(run_dir: Path, *lines: dict[str, Any]) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(read(arguments))
    return capsys.readouterr().out


def sent(run_dir: Path) -> list[tuple[str, int, dict[str, float]]]:
    """Run id, step and numbers of every row that lies in the wandb records, folder by folder."""
    rows = []
    for folder in sorted((run_dir / "wandb").glob("offline-run-*")):
        held = records(folder)
        (run_id,) = [r.run.run_id for r in held if r.WhichOneof("record_type") == "run"]
        for row in (r.history.item for r in held if r.WhichOneof("record_type") == "history"):
            values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in row}
            step = values["_step"]
            rows.append((run_id, step, {n: v for n, v in values.items() if not n.startswith("_")}))
    return rows


# -- what is read ------------------------------------------------------------------------------------------------------


def test_training_and_evaluation_of_a_step_are_one_row_under_the_names_that_training_logs(run_dir: Path) -> None:
    assert read_steps(run_dir) == {
        2: {"train/loss": 0.5, "train/grad_norm": 1.0},
        4: {"train/loss": 0.4, "train/grad_norm": 2.0, "val/arm_mae": 0.3},
    }


def test_of_steps_that_were_done_again_the_last_counts(run_dir: Path) -> None:
    append(run_dir, {"step": 5, "loss": 9.0}, {"step": 6, "loss": 8.0})
    append(run_dir, {"step": 4, "loss": 0.45, "grad_norm": 3.0}, {"step": 6, "loss": 0.3})
    steps = read_steps(run_dir)
    assert list(steps) == [2, 4, 6]
    assert steps[4] == {"train/loss": 0.45, "train/grad_norm": 3.0, "val/arm_mae": 0.3}
    assert steps[6] == {"train/loss": 0.3}


@pytest.mark.parametrize("torn", [b'{"step": 6, "lo', b'{"step": 6, "loss": 0.3\xff', b"\0\0\0\0"])
def test_the_line_that_is_being_written_is_left_for_later(run_dir: Path, torn: bytes) -> None:
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert list(read_steps(run_dir)) == [2, 4]


@pytest.mark.parametrize("line", [b'{"step": 3, "lo', b'{"step": 3, "loss": "\xff"}', b"7", b'{"loss": 1}', b"\0\0"])
def test_a_damaged_line_is_named_and_nothing_is_sent(run_dir: Path, line: bytes) -> None:
    path = run_dir / "metrics.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(ToolkitError, match=r"metrics\.jsonl, line 1 is damaged\. Remove that line"):
        main(read([str(run_dir), *TENSORBOARD]))
    assert sorted(path.name for path in run_dir.iterdir()) == ["metrics.jsonl", "run_config.json"]


def test_what_is_no_run_or_has_measured_nothing_is_refused_in_one_line(run_dir: Path) -> None:
    command = [sys.executable, "-m", "finetune.send_metrics", str(run_dir.with_name("my_ran")), *TENSORBOARD]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "is no run folder" in done.stderr and f'Did you mean "{run_dir}"?' in done.stderr
    for content in ("", "\n", '{"step": 1}\n', '{"st'):
        (run_dir / "metrics.jsonl").write_text(content)
        with pytest.raises(ToolkitError, match="holds no measurement yet"):
            read_steps(run_dir)
    with pytest.raises(ToolkitError, match="tracking=none sends nothing"):
        read([str(run_dir), "tracking=none", "local=none"])
    with pytest.raises(ToolkitError, match="Name a run folder"):
        read([*OFFLINE])


# -- wandb -------------------------------------------------------------------------------------------------------------


def test_a_run_is_sent_once_and_later_only_what_came_since(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "2 logged steps sent as the wandb run" in said(capsys, str(run_dir), *OFFLINE)
    assert "nothing is missing: all 2 logged steps were sent" in said(capsys, str(run_dir), *OFFLINE)
    append(run_dir, {"step": 6, "loss": 0.2})
    assert "1 logged steps sent as the wandb run" in (last := said(capsys, str(run_dir), *OFFLINE))
    assert f"kept offline: wandb sync {run_dir}/wandb" in last
    rows = sent(run_dir)
    assert [(step, values) for _, step, values in rows] == [
        (2, {"train/loss": 0.5, "train/grad_norm": 1.0}),
        (4, {"train/loss": 0.4, "train/grad_norm": 2.0, "val/arm_mae": 0.3}),
        (6, {"train/loss": 0.2}),
    ]
    assert {run_id for run_id, *_ in rows} == {json.loads((run_dir / "sent.json").read_text())["wandb_id"]}
    first, _ = sorted((run_dir / "wandb").glob("offline-run-*"))
    (run,) = [r.run for r in records(first) if r.WhichOneof("record_type") == "run"]
    assert (run.display_name, run.run_group, list(run.tags)) == ("first", "conflict-tiny", ["color_object"])


def test_a_step_that_is_being_evaluated_is_sent_with_its_evaluation(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((run_dir / "run_config.json").read_text())
    (run_dir / "run_config.json").write_text(json.dumps({**settings, "train": {"eval_steps": 4}}))
    (run_dir / "status.json").write_text('{"status": "running"}')
    whole = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text('{"step": 4, "loss": 0.4}\n')
    assert "nothing is sent yet; step 4 waits" in said(capsys, str(run_dir), *OFFLINE)
    (run_dir / "metrics.jsonl").write_text(whole)
    append(run_dir, {"step": 6, "loss": 0.2}, {"step": 8, "loss": 0.1})
    assert "3 logged steps sent" in (told := said(capsys, str(run_dir), *OFFLINE)) and "step 8 waits" in told
    assert "all 3 logged steps were sent" in said(capsys, str(run_dir), *OFFLINE)
    append(run_dir, {"step": 8, "val/arm_mae": 0.05})
    assert "1 logged steps sent" in said(capsys, str(run_dir), *OFFLINE)
    assert [row[1:] for row in sent(run_dir)][-1] == (8, {"train/loss": 0.1, "val/arm_mae": 0.05})
    append(run_dir, {"step": 12, "loss": 0.1})
    (run_dir / "status.json").write_text('{"status": "stopped"}')  # which no evaluation follows
    assert "1 logged steps sent" in said(capsys, str(run_dir), *OFFLINE)


def test_what_an_interrupted_call_did_not_send_goes_to_the_same_run(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Exception):
        pass

    def interrupted(*_: object) -> None:
        raise Interrupted

    log, end = WandbRun.log, WandbRun.end
    with monkeypatch.context() as patch:
        patch.setattr(WandbRun, "log", lambda run, step, values: log(run, step, values) if step < 4 else interrupted())
        with pytest.raises(Interrupted):
            main(read([str(run_dir), *OFFLINE]))
    assert "1 logged steps sent" in said(capsys, str(run_dir), *OFFLINE)  # the one that was not logged
    append(run_dir, {"step": 6, "loss": 0.2})
    with monkeypatch.context() as patch:
        patch.setattr(WandbRun, "end", lambda run, *_: (end(run, *_), interrupted()))
        with pytest.raises(Interrupted):
            main(read([str(run_dir), *OFFLINE]))
    assert "1 logged steps sent" in said(capsys, str(run_dir), *OFFLINE)
    assert [step for _, step, _ in sent(run_dir)] == [2, 4, 6, 6]
    assert len({run_id for run_id, *_ in sent(run_dir)}) == 1


def test_a_first_call_that_is_killed_leaves_the_name_of_its_run(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(WandbRun, "end", lambda run, *_: run._run.finish() or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(read([str(run_dir), *OFFLINE]))
    assert "2 logged steps sent" in said(capsys, str(run_dir), *OFFLINE)
    assert len({run_id for run_id, *_ in sent(run_dir)}) == 1


def test_what_training_logs_to_wandb_is_not_sent_twice(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "run.json").write_text(json.dumps({"wandb_id": "abc", "project": "groot-conflict"}))
    for mode in ("offline", "online"):
        with pytest.raises(ToolkitError, match=rf"as the run abc\. .*wandb sync {run_dir}/wandb\. .*new_run=true"):
            main(read([str(run_dir), "local=none", f"tracking.mode={mode}"]))
    assert sorted(path.name for path in run_dir.iterdir()) == ["metrics.jsonl", "run.json", "run_config.json"]
    assert "2 logged steps sent" in said(capsys, str(run_dir), *OFFLINE, "new_run=true")
    assert "nothing is missing" in said(capsys, str(run_dir), *OFFLINE)
    assert "abc" not in {run_id for run_id, *_ in sent(run_dir)}


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def test_event_files_get_what_they_lack(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "2 logged steps sent: tensorboard --logdir" in said(capsys, str(run_dir), *TENSORBOARD)
    assert "nothing is missing: all 2 logged steps" in said(capsys, str(run_dir), *TENSORBOARD)
    assert len(list((run_dir / "tensorboard").iterdir())) == 1
    append(run_dir, {"step": 6, "loss": 0.2}, {"step": 6, "val/arm_mae": 0.1})
    assert "1 logged steps sent" in said(capsys, str(run_dir), *TENSORBOARD)
    assert steps_in_tensorboard(run_dir) == {
        "train/loss": {2, 4, 6},
        "train/grad_norm": {2, 4},
        "val/arm_mae": {4, 6},
    }


def test_a_number_that_is_missing_in_the_middle_is_filled_in_and_no_step_is_shown_twice(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    full = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text("".join(line for line in full.splitlines(True) if "val/" not in line))
    append(run_dir, {"step": 6, "loss": 0.2})
    said(capsys, str(run_dir), *TENSORBOARD)
    (run_dir / "metrics.jsonl").write_text(full)
    append(run_dir, {"step": 6, "loss": 0.2})
    assert "2 logged steps sent" in said(capsys, str(run_dir), *TENSORBOARD)
    shown = EventAccumulator(str(run_dir / "tensorboard"))
    shown.Reload()
    assert [(e.step, e.value) for e in shown.Scalars("train/loss")] == [
        (step, pytest.approx(value)) for step, value in ((2, 0.5), (4, 0.4), (6, 0.2))
    ]
    assert [e.step for e in shown.Scalars("val/arm_mae")] == [4]
