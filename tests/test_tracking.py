"""What a run logs to wandb and TensorBoard, read back here with their own tools; wandb is kept offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slurm_cluster import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import config

from finetune.recipe import FinetuneConfig
from finetune.training.stopping import Stopped, ThisAttempt
from finetune.training.tracking import Artifacts, StallWatch, Tracker, run_tags
from finetune.training.train import finetune
from gr00t.errors import ToolkitError
from toolkit.command_line import SIGNALS
from toolkit.configuration import load
from toolkit.shared_keys import TrackingConfig
from toolkit.trackers import as_typed, chosen_mode, has_key

WANDB = Path(sys.executable).with_name("wandb")
OFFLINE = ("tracking=wandb", "tracking.mode=offline", "train.log_steps=2")
FACTS = {"dataset": {"fingerprint": "f"}, "base": "b", "versions": {}}
MEASURED = {"loss": 0.5, "samples_per_second": 1.0, "data_wait_seconds": 0.0}


def records(out: Path) -> list[dict[str, Any]]:
    """Every record of a run's newest wandb file, as `wandb leet inspect` prints them."""
    path = max((out / "run" / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns)
    done = subprocess.run([WANDB, "leet", "inspect", "--json", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry["item"] for entry in of_type(found, "history")]


@pytest.fixture(scope="module")
def out(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    out = tmp_path_factory.mktemp("tracked")
    more = ("train.max_steps=4", "train.eval_steps=2", "train.eval_episodes=1", "tracking.tags=[mine]")
    finetune(config(out, small_data, tiny_base, *OFFLINE, *more))
    return out


@pytest.fixture(scope="module")
def found(out: Path) -> list[dict[str, Any]]:
    return records(out)


def test_a_run_says_what_it_is(found: list[dict[str, Any]]) -> None:
    run = of_type(found, "run")[0]
    assert (run["project"], run["display_name"]) == ("groot-conflict", "color_object")
    assert run["run_group"] == "conflict"
    assert run["tags"] == ["color_object", "local", "ddp", "mine"]
    logged = run["config"]["update"]
    assert logged["train"]["max_steps"] == 4 and logged["split"]["name"] == "color_object"
    assert len(logged["run"]["dataset"]["fingerprint"]) == 64 and logged["run"]["processes"] == 1
    assert logged["run"]["versions"]["torch"] and "git_revision" in logged["run"]["versions"]


def test_losses_gradients_speed_and_errors_are_logged(out: Path, found: list[dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    logged = {entry["_step"]: entry for entry in history(found)}
    assert [line["step"] for line in trained] == [2, 4]
    for line in trained:
        assert logged[line["step"]]["train/loss"] == pytest.approx(line["loss"])
        parts = [line[f"grad_norm_{part}"] for part in ("projector", "diffusion_model", "vlln")]
        # the mean over two steps of a norm is at most the norm of the means
        assert line["grad_norm"] == pytest.approx(sum(p * p for p in parts) ** 0.5, rel=0.02)
        assert {"loss_arm", "loss_gripper", "learning_rate", "samples_per_second", "peak_memory_gib"} <= set(line)
    assert logged[4]["val/arm_mae"] > 0 and logged[4]["val/arm_mae_last"] > 0


def test_the_first_batch_and_the_evaluations_are_images(out: Path, found: list[dict[str, Any]]) -> None:
    first = history(found)[0]
    assert "pick up the color-matching object" in first["first_batch.caption"]
    assert "arm" in first["first_batch.caption"] and (out / "run" / "first_batch.png").is_file()
    images = [entry for entry in history(found) if "val/errors.path" in entry]
    assert [entry["_step"] for entry in images] == [2, 4]
    files = next((out / "run" / "wandb").glob("offline-run-*")) / "files"
    assert all((files / entry[f"val/{name}.path"]).is_file() for entry in images for name in ("errors", "episode"))


def test_lineage_leads_from_dataset_and_base_to_the_policy(out: Path, found: list[dict[str, Any]]) -> None:
    artifacts = {(a["name"], tuple(a["aliases"])): a for a in of_type(found, "artifact")}
    names = {name: artifact for (name, _), artifact in artifacts.items()}
    read = {name for name, artifact in names.items() if artifact.get("use_after_commit")}
    assert read == {"color_object-dataset", "tiny-base"}
    assert {"color_object-policy", "color_object-training-state"} == set(names) - read
    assert any("best" in aliases for _, aliases in artifacts)
    for artifact in names.values():
        entries = artifact["manifest"]["contents"]
        assert [entry["path"] for entry in entries] == ["reference.json"]  # hashes only
        assert Path(entries[0]["local_path"]).is_relative_to(out / "run")  # nothing lies in the user's home
    policy = json.loads(Path(names["color_object-policy"]["manifest"]["contents"][0]["local_path"]).read_text())
    assert policy["step"] == 4 and "model-00001-of-00001.safetensors" in policy["files"]


def test_the_end_is_reported_once(found: list[dict[str, Any]]) -> None:
    assert [(a["title"], a["level"]) for a in of_type(found, "alert")] == [("color_object finished", "INFO")]
    assert of_type(found, "exit")[0].get("exit_code", 0) == 0


def test_uploaded_artifacts_hold_the_files(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    more = ("train.max_steps=1", "tracking.artifacts=upload")
    finetune(config(tmp_path, small_data, tiny_base, *OFFLINE, *more))
    names = {a["name"]: {e["path"] for e in a["manifest"]["contents"]} for a in of_type(records(tmp_path), "artifact")}
    assert "model-00001-of-00001.safetensors" in names["color_object-policy"]
    assert "meta/info.json" in names["color_object-dataset"]
    assert names["color_object-training-state"] == names["tiny-base"] == {"reference.json"}


def test_a_dataset_of_links_is_uploaded_with_what_they_lead_to(tmp_path: Path) -> None:
    for name in ("data/chunk-000/episode_000000.parquet", "videos/chunk-000/x/episode_000000.mp4", ".cache/tables"):
        path = tmp_path / "foreign" / name
        path.parent.mkdir(parents=True)
        path.write_text(name)
    own = tmp_path / "data/color_object/train"  # as data_prep.adopt split=NAME makes one
    (own / "meta").mkdir(parents=True)
    (own / "meta/info.json").write_text("{}")
    for part in ("data", "videos"):
        (own / part).symlink_to(tmp_path / "foreign" / part)
    places = [f"dataset.data_dir={tmp_path}/data", f"run_dir={tmp_path}/run"]
    uploads = ["tracking=wandb", "tracking.artifacts=upload"]
    (tmp_path / "run").mkdir()
    made = Artifacts(load("finetune", ["local=none", *places, *uploads], check_here=False))
    assert sorted(made.dataset({"fingerprint": "f"}).manifest.entries) == [
        "data/chunk-000/episode_000000.parquet",
        "meta/info.json",
        "reference.json",
        "videos/chunk-000/x/episode_000000.mp4",
    ]


def test_a_loss_that_is_no_number_is_reported(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="NaN or infinite"):
        finetune(config(tmp_path, small_data, tiny_base, *OFFLINE, "train.learning_rate=1e18", "train.save_steps=1"))
    found = records(tmp_path)
    alert = of_type(found, "alert")[-1]
    assert (alert["title"], alert["level"]) == ("color_object failed", "ERROR")
    assert "NaN or infinite" in alert["text"] and of_type(found, "exit")[0]["exit_code"] == 1
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


def attempt(settings: FinetuneConfig, step: int = 0) -> ThisAttempt:
    """As much of the main process's attempt as a tracker needs."""
    found = {"config": settings, "engine": SimpleNamespace(is_main=True), "step": step, "writes": True}
    return SimpleNamespace(**found)  # type: ignore[return-value]


@contextmanager
def tracked(settings: FinetuneConfig) -> Iterator[Tracker]:
    Path(settings.run_dir).mkdir(parents=True, exist_ok=True)
    with Tracker(attempt(settings), FACTS) as tracker:
        yield tracker


def test_a_stopped_run_continues_as_the_same_one(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, small_data, tiny_base, *OFFLINE, "tracking.artifacts=none")
    with pytest.raises(Stopped), tracked(settings):
        raise Stopped(f"signal {SIGNALS[0].name}")
    before = records(tmp_path)
    assert of_type(before, "preempting") and not of_type(before, "alert")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("stopped", "signal SIGTERM")
    with tracked(settings):
        pass
    after = records(tmp_path)
    assert of_type(after, "run")[0]["run_id"] == of_type(before, "run")[0]["run_id"]
    assert of_type(after, "alert")[0]["title"] == "color_object finished"


# -- TensorBoard -------------------------------------------------------------------------------------------------------

BOARD = ("tracking=tensorboard", "train.log_steps=1", "train.max_steps=4", "train.eval_steps=2", "train.save_steps=2")


def shown(out: Path) -> EventAccumulator:
    """What TensorBoard shows of a run."""
    found = EventAccumulator(str(out / "run" / "tensorboard"))
    found.Reload()
    return found


@pytest.fixture(scope="module")
def on_board(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that was resumed from its second, after it had logged all of them."""
    out = tmp_path_factory.mktemp("board")
    settings = config(out, small_data, tiny_base, *BOARD, "train.eval_episodes=1")
    finetune(settings)
    shutil.rmtree(out / "run" / "checkpoint-4")
    shutil.rmtree(out / "done")
    finetune(settings)
    return out


def test_tensorboard_shows_every_step_once_as_metrics_have_it(on_board: Path) -> None:
    found = shown(on_board)
    lines = [json.loads(line) for line in (on_board / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(list((on_board / "run" / "tensorboard").iterdir())) == 2  # an attempt each
    for name in ("loss", "learning_rate", "samples_per_second"):
        measured = [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert [(e.step, e.value) for e in found.Scalars(f"train/{name}")] == measured
    evaluated = [line for line in lines if "val/arm_mae" in line]
    assert [e.step for e in found.Scalars("val/arm_mae")] == [line["step"] for line in evaluated] == [2, 4]
    assert {name for line in lines for name in line} - {"step"} == {
        name.removeprefix("train/") for name in found.Tags()["scalars"]
    }


def test_tensorboard_shows_images_and_the_configuration_once(on_board: Path) -> None:
    found = shown(on_board)
    assert {name: [e.step for e in found.Images(name)] for name in found.Tags()["images"]} == {
        "first_batch": [0],
        "val/errors": [2, 4],
        "val/episode": [2, 4],
    }
    (caption,) = found.Tensors("first_batch/caption/text_summary")
    assert b"pick up the color-matching object" in caption.tensor_proto.string_val[0]
    (typed,) = found.Tensors("config/text_summary")
    assert b'"max_steps": 4' in typed.tensor_proto.string_val[0]
    plugin = found.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert plugin.plugin_name == "hparams" and b"train.max_steps" in plugin.content


def test_what_tensorboard_is_given_is_on_the_disk_before_the_run_ends(
    small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    with tracked(config(tmp_path, small_data, tiny_base, "tracking=tensorboard")) as tracker:
        tracker.log(1, MEASURED)
        assert [(e.step, e.value) for e in shown(tmp_path).Scalars("train/loss")] == [(1, 0.5)]


@pytest.mark.parametrize("file", ["metrics.jsonl", "status.json"])
def test_event_files_are_closed_however_a_run_ends(
    small_data: Path, tiny_base: Path, tmp_path: Path, file: str
) -> None:
    before = threading.active_count()
    settings = config(tmp_path, small_data, tiny_base, "tracking=tensorboard")
    with pytest.raises(RuntimeError), tracked(settings):
        raise RuntimeError
    with pytest.raises(ToolkitError, match="status"), tracked(settings):
        (tmp_path / "run" / "status.json").unlink()
        (tmp_path / "run" / "status.json").mkdir()
    assert threading.active_count() == before
    (tmp_path / "run" / "status.json").rmdir()
    (tmp_path / "run" / file).unlink(missing_ok=True)
    (tmp_path / "run" / file).mkdir()
    with pytest.raises((ToolkitError, OSError)), tracked(settings):
        pass
    assert threading.active_count() == before


def test_only_the_main_process_that_may_write_logs(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, small_data, tiny_base, "tracking=tensorboard")
    other = SimpleNamespace(config=settings, engine=SimpleNamespace(is_main=False), step=0, writes=False)
    with Tracker(other, FACTS) as tracker:  # type: ignore[arg-type]
        tracker.log(1, MEASURED)
        tracker.show(0, "first_batch", tmp_path / "none.png", "")
    assert not (tmp_path / "run").exists()


def test_a_run_that_begins_again_leaves_no_step_of_before(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, small_data, tiny_base, "tracking=tensorboard")
    for step in (3, 1):  # killed before its first checkpoint
        with tracked(settings) as tracker:
            tracker.log(step, MEASURED)
    assert [e.step for e in shown(tmp_path).Scalars("train/loss")] == [1]


# -- the run folder ----------------------------------------------------------------------------------------------------


def test_a_damaged_line_of_metrics_does_not_stop_a_resume(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'{"step": 1}\n7\n{"step": "\xff"}\n{"step": 2}\n{"step": 9}\n')
    with Tracker(attempt(config(tmp_path, small_data, tiny_base), 2), FACTS):
        pass
    assert path.read_text().splitlines() == ['{"step": 1}', '{"step": 2}']


def test_metrics_are_cut_back_to_the_step_a_run_resumes_from(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, small_data, tiny_base)
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2, 3, 3, 4, 5)]
    for first_step, kept in ((5, lines), (3, lines[:4]), (0, [])):
        path.write_text("\n".join(lines) + '\n{"step": 6, "lo')  # the last line was being written
        with Tracker(attempt(settings, first_step), FACTS) as tracker:
            pass
        assert path.read_text().splitlines() == kept
    with Tracker(attempt(settings), FACTS) as tracker:
        tracker.log(1, MEASURED)
    assert path.read_text() == json.dumps({"step": 1, **MEASURED}) + "\n"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_stall_is_reported_while_it_lasts(
    small_data: Path, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = ("tracking.stall_minutes=0.001", "tracking.artifacts=none")
    with tracked(config(tmp_path, small_data, tiny_base, *OFFLINE, *more)):
        wait_for(lambda: "no step and no part of an evaluation" in caplog.text)
    found = [alert for alert in of_type(records(tmp_path), "alert") if "stalls" in alert["title"]]
    assert len(found) == 1 and found[0]["level"] == "WARN" and "0 of 6 steps are done" in found[0]["text"]


def test_a_stall_is_reported_once_and_again_after_a_step() -> None:
    silences: list[float] = []
    watch = StallWatch(0.05, silences.append)
    wait_for(lambda: len(silences) == 1)
    time.sleep(0.3)
    assert len(silences) == 1 and silences[0] > 0.05
    watch.beat()
    wait_for(lambda: len(silences) == 2)
    watch.close()
    assert len(silences) == 2


def test_no_secret_and_no_home_is_logged(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "5ec7e7" * 6 + "0000")
    monkeypatch.setenv("HOME", str(small_data.parent))
    settings = config(tmp_path, small_data, tiny_base, *OFFLINE, "tracking.artifacts=none")
    with tracked(settings):
        pass
    logged = of_type(records(tmp_path), "run")[0]["config"]["update"]
    assert logged["dataset"]["data_dir"] == "~/data"
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"5ec7e7" not in path.read_bytes(), path


def test_only_the_home_itself_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert as_typed({"a": ["/home/me/x", "/home/meg/x", "/home/me", 3]}) == {"a": ["~/x", "/home/meg/x", "~", 3]}


def test_runs_of_a_cluster_are_tagged_with_it(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "leonardo")
    settings = config(tmp_path, small_data, tiny_base, "tracking.tags=[ddp,x]")
    assert run_tags(settings) == ["color_object", "leonardo", "ddp", "x"]


def test_the_first_batch_shows_actions_that_are_not_what_was_recorded(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training import first_batch

    seen: list[list[first_batch.Seen]] = []
    original = first_batch.draw
    monkeypatch.setattr(first_batch, "draw", lambda *arguments: (seen.append(arguments[0]), original(*arguments)))
    finetune(config(tmp_path, small_data, tiny_base, "train.max_steps=1"))
    samples = seen[0]
    assert all(sample.text == "pick up the color-matching object" for sample in samples)
    assert all(sample.images.dtype == "uint8" and len(sample.images) == 2 for sample in samples)
    assert max(first_batch.differences(samples).values()) < 1e-6
    samples[0].recorded["arm"][3] += 0.5  # as an action convention that does not match would
    assert first_batch.differences(samples)["arm"] == pytest.approx(0.5, abs=1e-6)


KEY = "0" * 40
NO_NETWORK = """
import logging, sys
from pathlib import Path
from toolkit import trackers
from toolkit.shared_keys import TrackingConfig
logging.basicConfig(format="%(message)s")
trackers.INIT_SECONDS = 3
tracking = TrackingConfig(name="wandb", project="p", mode="auto")
run = trackers.start_run(tracking, Path(sys.argv[1]), id="abcdef123456", resume="allow")
run.log({"loss": 1.0}, step=1)
run.finish()
"""


def test_a_key_without_a_network_keeps_the_run_offline_under_its_id(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"WANDB_API_KEY": KEY, "HTTPS_PROXY": "http://127.0.0.1:9", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NO_NETWORK, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "cannot go online" in line]
    assert len(said) == 1 and "kept offline, wandb sync sends it" in said[0]
    (kept,) = (tmp_path / "wandb").glob("offline-run-*-abcdef123456")
    assert list(kept.glob("*.wandb"))


@pytest.mark.parametrize(
    ("netrc", "server", "found"),
    [
        ("machine api.wandb.ai", None, True),
        ("machine api.forge.coreweave.com", None, True),
        ("machine wandb.company.example", "https://wandb.company.example", True),
        ("machine api.wandb.ai", "https://wandb.company.example", False),
        ("machine wandb.company.example", None, False),
        ("", None, False),
    ],
)
def test_the_key_is_found_where_wandb_finds_it(
    netrc: str, server: str | None, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".netrc").write_text(f"{netrc} login user password {KEY}\n" if netrc else "")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    if server:  # as `wandb login --host` writes it
        (tmp_path / "settings").write_text(f"[default]\nbase_url = {server}\n")
    mode, why = chosen_mode(TrackingConfig(name="wandb", project="p", mode="auto"))
    assert (mode, bool(why)) == (("online", False) if found else ("offline", True))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_key()


def test_a_wrong_wandb_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ToolkitError, match=r'WANDB_MODE=ofline is no mode of wandb\. Did you mean "offline"'):
        chosen_mode(TrackingConfig(name="wandb", project="p", mode="auto"))
