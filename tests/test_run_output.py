"""The finished checkpoint: nothing that a run did not make gives way to it, and it can prove that it is whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_training import ROOT, STEPS, config, metrics, overrides

from finetune.open_loop.evaluation import evaluate_open_loop
from finetune.slurm.done_and_busy import is_finished
from finetune.training import stopping
from finetune.training import train as loop
from finetune.training.stopping import AttemptToken, Superseded
from finetune.training.train import finetune
from gr00t.errors import ToolkitError
from gr00t.file_replacement import LockHeld, file_lock, whole_folder, write_json
from gr00t.model.finished_checkpoint import MANIFEST, verify_checkpoint, verify_manifest, write_manifest
from gr00t.model.gr00t_n1 import GR00TPolicy
from toolkit import processes
from toolkit.command_line import stop_signals
from toolkit.configuration import load
from toolkit.processes import first_done, worker_pool

# experiment_cfg: what tells attempts apart by intention
OF_THE_ATTEMPT = {"experiment_cfg/conditions.json", "experiment_cfg/config.yaml", str(MANIFEST)}


@pytest.fixture(scope="module")
def finished(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    finetune(config(out, small_data, tiny_base))
    return out


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """The same run in folders of its own."""
    return Path(shutil.copytree(finished, tmp_path / "own"))


def after_step(step: int, monkeypatch: pytest.MonkeyPatch, act: object) -> None:
    """Call `act` when that step of training is done."""
    original = loop.TrainingLoop._save

    def save(self: loop.TrainingLoop, done: int) -> None:
        original(self, done)
        if done == step:
            act()  # type: ignore[operator]

    monkeypatch.setattr(loop.TrainingLoop, "_save", save)


# -- what is in the way ------------------------------------------------------------------------------------------------


def test_a_folder_that_appears_while_training_runs_stays_and_the_result_is_written_later(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, precious = config(tmp_path, small_data, tiny_base), tmp_path / "done" / "precious.txt"

    def put_there() -> None:
        precious.parent.mkdir()
        precious.write_text("weeks of work")

    with monkeypatch.context() as patch, pytest.raises(ToolkitError) as error:
        after_step(3, patch, put_there)
        finetune(settings)
    assert "not there when this run began" in str(error.value) and f"run/checkpoint-{STEPS}" in str(error.value)
    assert precious.read_text() == "weeks of work" and os.listdir(precious.parent) == ["precious.txt"]
    precious.parent.rename(tmp_path / "elsewhere")
    assert finetune(settings).steps == STEPS
    assert (tmp_path / "done" / "config.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".done")]


def test_another_runs_result_that_appears_meanwhile_stays(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step(3, monkeypatch, lambda: shutil.copytree(finished / "done", tmp_path / "done"))
    with pytest.raises(ToolkitError, match="holds the finished checkpoint of another run that was not there"):
        finetune(config(tmp_path, small_data, tiny_base, "train.seed=1"))
    verify_manifest(tmp_path / "done")
    assert (tmp_path / "done/experiment_cfg/run.json").read_bytes() == (
        finished / "done/experiment_cfg/run.json"
    ).read_bytes()


def test_files_beside_an_old_result_are_not_deleted_with_it(own: Path, small_data: Path, tiny_base: Path) -> None:
    notes = own / "done" / "processor" / "notes.txt"
    notes.write_text("mine")
    again = config(own, small_data, tiny_base, "train.resume=never")
    with pytest.raises(ToolkitError, match=r"files beside a finished checkpoint \(processor/notes.txt\)"):
        finetune(again)
    assert notes.read_text() == "mine"
    assert finetune(config(own, small_data, tiny_base)).already_finished  # nothing is to be replaced
    notes.unlink()
    assert not finetune(again).already_finished


def test_a_run_begun_again_keeps_nothing_of_the_one_before(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    two = ("train.max_steps=2", "train.save_steps=1")
    finetune(config(tmp_path, small_data, tiny_base, *two, "train.eval_steps=1", "train.eval_episodes=1"))
    run = tmp_path / "run"
    assert {"best.json", "evaluations", "metrics.jsonl", "conditions.jsonl"} <= {path.name for path in run.iterdir()}
    for name in ("run.json", "sent.json", "tensorboard/events.x", "artifacts/index.json"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")
    kept = {path: path.read_text() for path in (run / "status.json", run / "inputs.json")}
    again = config(tmp_path, small_data, tiny_base, *two[:1], "train.save_steps=2", "train.resume=never")
    finetune(again)
    left = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert not left & {"run.json", "sent.json", "tensorboard", "artifacts", "best.json", "evaluations", "checkpoint-1"}
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2] and not any("val/" in k for k in metrics(tmp_path)[0])
    conditions = [json.loads(line) for line in (run / "conditions.jsonl").read_text().splitlines()]
    assert [line["from_step"] for line in conditions] == [0]
    assert (run / "status.json").read_text() != kept[run / "status.json"]
    assert (run / "inputs.json").read_text() == kept[run / "inputs.json"]  # the same dataset and base


@pytest.mark.parametrize("recipe", ["train.seed=42", "train.seed=5"], ids=["the same recipe", "another recipe"])
def test_a_run_begun_again_and_interrupted_replaces_the_old_result_when_it_resumes(
    recipe: str, own: Path, small_data: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = config(own, small_data, tiny_base, recipe, "train.resume=never")
    before = (own / "done" / MANIFEST).stat().st_ino
    with monkeypatch.context() as patch, stop_signals():
        after_step(3, patch, lambda: signal.raise_signal(signal.SIGTERM))
        stopped = finetune(again)
    assert 3 <= stopped.steps < STEPS and "the same command with train.resume=auto resumes" in str(stopped)
    assert (own / "done" / MANIFEST).stat().st_ino == before  # it stays until there is a new one
    settings = config(own, small_data, tiny_base, recipe)
    assert not is_finished(settings)  # as the launcher asks
    result = finetune(settings)
    assert not result.already_finished and result.steps == STEPS
    assert (own / "done" / MANIFEST).stat().st_ino != before and not (own / "run" / "replaces.json").exists()
    assert finetune(settings).already_finished and is_finished(settings)


def test_only_the_result_that_was_there_gives_way_to_a_run_begun_again(
    own: Path, small_data: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, stop_signals():
        after_step(3, patch, lambda: signal.raise_signal(signal.SIGTERM))
        finetune(config(own, small_data, tiny_base, "train.seed=5", "train.resume=never"))
    settings, mark = config(own, small_data, tiny_base, "train.seed=5"), own / "done/experiment_cfg/run.json"
    old = mark.read_text()
    write_json(mark, {**json.loads(old), "step": 2})
    with pytest.raises(ToolkitError, match="holds the checkpoint of another run"):
        finetune(settings)
    mark.write_text(old)
    (own / "done" / "notes.txt").write_text("mine")
    with pytest.raises(ToolkitError, match=r"files beside a finished checkpoint \(notes.txt\)"):
        finetune(settings)


def test_a_run_begun_again_that_stops_while_it_is_prepared_has_deleted_nothing(
    own: Path, small_data: Path, tiny_base: Path
) -> None:
    before = sorted((own / "run").rglob("*"))
    with stop_signals():
        signal.raise_signal(signal.SIGTERM)
        result = finetune(config(own, small_data, tiny_base, "train.resume=never"))
    assert (result.steps, str(result).count("train.resume=auto")) == (0, 0)
    assert sorted((own / "run").rglob("*")) == before


def test_an_empty_folder_and_a_link_are_written_to(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "done").symlink_to("elsewhere")
    finetune(config(tmp_path, small_data, tiny_base, "train.max_steps=1"))
    assert (tmp_path / "done").is_symlink() and (tmp_path / "elsewhere" / "config.json").is_file()
    finetune(config(tmp_path, small_data, tiny_base, "train.max_steps=1", "train.seed=2", "train.resume=never"))
    assert (tmp_path / "done").is_symlink()
    verify_manifest(tmp_path / "elsewhere")


def test_two_runs_never_share_an_output(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = config(tmp_path, small_data, tiny_base, f"run_dir={tmp_path}/other", "train.seed=1")
    with file_lock(tmp_path / "done", holder="/runs/first"):
        with pytest.raises(ToolkitError, match="is the output of a run that is running, /runs/first"):
            finetune(other)
    assert not (tmp_path / "done").exists()


def test_what_comes_into_a_folder_while_it_is_moved_aside_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()

    def refuse(folder: Path) -> None:
        if folder != target:
            raise ToolkitError("no")

    with pytest.raises(ToolkitError, match="no"), whole_folder(target, replaceable=refuse) as aside:
        (aside / "new").touch()
        (target / "late.txt").touch()
    assert os.listdir(tmp_path) == ["target"] and os.listdir(target) == ["late.txt"]


# -- a run folder that is none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize(
    "theirs",
    [("checkpoint-1000/model.safetensors", "checkpoint-1000/trainer_state.json"), ("tensorboard/a", "run.json")],
)
def test_a_run_folder_of_another_project_is_refused_and_left_as_it_is(
    theirs: tuple[str, ...], resume: str, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for name in (
        *theirs,
        "artifacts/a",
        "job/config.yaml",
        "attempt.json",
        "attempts/0/attempt.json",
    ):  # SLURM's come first
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text('{"id": "mine"}')
    before = sorted(run.rglob("*"))
    listed = theirs[0].partition("/")[0]
    with pytest.raises(ToolkitError, match=rf"run holds .*{listed}.*, but no run_config.json.*run_dir=") as error:
        finetune(config(tmp_path, small_data, tiny_base, f"train.resume={resume}"))
    assert "artifacts" in str(error.value) and sorted(run.rglob("*")) == before


def test_what_a_job_or_an_earlier_version_left_in_a_run_folder_is_no_obstacle(
    own: Path, small_data: Path, tiny_base: Path
) -> None:
    shutil.rmtree(own / "done")
    (own / "run" / "run_config.json").unlink()  # its checkpoints say whose it is
    assert finetune(config(own, small_data, tiny_base)).steps == STEPS
    for path in (own / "run").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(own / "done")
    for name in ("job/submitted.json", "attempts/0/rank-0.log", "wandb/run-1/logs", "slurm-1.out", "code/x.py"):
        (own / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (own / "run" / name).touch()
    assert finetune(config(own, small_data, tiny_base, "train.max_steps=1")).steps == 1
    assert (own / "run" / "wandb/run-1/logs").exists()


# -- the same result, however it came ----------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in OF_THE_ATTEMPT}


def test_the_result_is_the_same_bytes_however_often_it_was_stopped_and_with_any_workers(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    wanted = content(finished / "done")
    for name, kept, workers in (("half", [3], 1), ("end", [3, STEPS], 0)):
        for step in kept:
            shutil.copytree(finished / "run" / f"checkpoint-{step}", tmp_path / name / "run" / f"checkpoint-{step}")
        finetune(config(tmp_path / name, small_data, tiny_base, f"train.num_workers={workers}"))
        found = content(tmp_path / name / "done")
        assert sorted(found) == sorted(wanted)
        assert [file for file in wanted if found[file] != wanted[file]] == []


# -- manifests ---------------------------------------------------------------------------------------------------------


def test_every_file_of_a_finished_and_a_base_checkpoint_is_in_its_manifest(finished: Path, tiny_base: Path) -> None:
    for folder in (finished / "done", tiny_base):
        listed = json.loads((folder / MANIFEST).read_text())["files"]
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert set(listed) == files - {str(MANIFEST)}
        verify_manifest(folder)


@pytest.mark.parametrize("damage", ["flipped", "cut", "lost", "added"])
def test_a_copy_that_is_not_whole_is_refused_by_whoever_verifies(
    damage: str, own: Path, small_data: Path, tmp_path: Path
) -> None:
    checkpoint = own / "done"
    path = checkpoint / ("added.json" if damage == "added" else "model-00001-of-00001.safetensors")
    if damage == "flipped":
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 4]))
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink() if damage == "lost" else path.write_text("{}")
    said = {"lost": "is missing", "added": "is not listed"}.get(damage, "has changed")
    arguments = [f"checkpoint={checkpoint}", f"data_dir={small_data}", f"report_dir={tmp_path}/report", "verify=true"]
    with pytest.raises(ToolkitError, match=f"{path.name} {said}"):
        GR00TPolicy.from_pretrained(checkpoint, verify=True)
    with pytest.raises(ToolkitError, match=f"{path.name} {said}"):
        evaluate_open_loop(load("evaluate", ["local=none", "device=cpu", *arguments]))
    if damage != "lost":  # which is refused without, too
        assert GR00TPolicy.from_pretrained(checkpoint) if damage != "cut" else True


def test_a_checkpoint_without_a_manifest_is_not_called_whole(own: Path) -> None:
    (own / "done" / MANIFEST).unlink()
    with pytest.raises(ToolkitError, match=r"has no experiment_cfg/manifest.json.*finetune.prefetch"):
        GR00TPolicy.from_pretrained(own / "done", verify=True)
    (own / "done" / MANIFEST).write_text("{}")
    with pytest.raises(ToolkitError, match="lists no files"):
        verify_manifest(own / "done")
    write_manifest(own / "done")
    for name in ("._config.json", "processor/._statistics.json", ".DS_Store"):  # macOS, on a foreign disk
        (own / "done" / name).write_bytes(b"\x00\x05\x16\x07")
    verify_manifest(own / "done")
    verify_checkpoint(own / "done")


# -- locks and waiting -------------------------------------------------------------------------------------------------


def test_a_lock_ends_with_its_holder_although_processes_forked_from_it_live_on(tmp_path: Path) -> None:
    script = (
        "import os, sys, time, pathlib; from gr00t.file_replacement import file_lock\n"
        "with file_lock(pathlib.Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    print(child if child else '', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    said = [holder.stdout.readline().strip() for _ in range(2)]  # of both: the child has left the lock by then
    child = int("".join(said))
    with pytest.raises(LockHeld), file_lock(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    try:
        os.kill(child, 0)  # still there
        with file_lock(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.long
def test_a_killed_run_with_workers_leaves_no_lock(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    arguments = overrides(tmp_path, small_data, tiny_base, "train.num_workers=2", "train.max_steps=500")
    command = [sys.executable, "launch_finetune_local.py", *arguments]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / "run" / "checkpoint-3").is_dir() and child.poll() is None:
        time.sleep(0.05)
    child.kill()
    child.wait()
    with file_lock(tmp_path / "run"), file_lock(tmp_path / "done"):
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stopping, "READ_SECONDS", 1.0)
    yield


def test_a_token_that_is_gone_for_a_moment_is_asked_for_again(tmp_path: Path, quick: None) -> None:
    token = AttemptToken(tmp_path, "1", "mine")
    restore = multiprocessing.get_context("fork").Process(
        target=lambda: (time.sleep(0.4), write_json(tmp_path / "attempt.json", {"id": "mine"}))
    )
    restore.start()
    token.require()
    restore.join()
    write_json(tmp_path / "attempt.json", {"id": "another"})
    with pytest.raises(Superseded):
        token.require()


def test_a_token_that_stays_away_is_believed_to_be_lost(tmp_path: Path, quick: None) -> None:
    with pytest.raises(Superseded):
        AttemptToken(tmp_path, "1", "mine").require()


def test_worker_processes_that_do_not_answer_are_named_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORKER_SECONDS", 4.0)
    begin = time.monotonic()
    with pytest.raises(ToolkitError, match=r"converting: no answer from the worker processes \(process ids \d+\)"):
        with worker_pool(1) as pool:
            first_done(pool, {pool.submit(time.sleep, 300)}, "converting")
    assert time.monotonic() - begin < 60


def test_a_loader_process_that_hangs_or_is_killed_ends_the_run_with_its_name(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training import dataloader as data
    from gr00t.data.dataset import TrainingDataset

    settings = config(tmp_path, small_data, tiny_base, "train.num_workers=1")
    monkeypatch.setattr(data, "WORKER_SECONDS", 3)
    monkeypatch.setattr(TrainingDataset, "__getitem__", lambda self, key: time.sleep(60))
    with pytest.raises(ToolkitError, match=r"loading data: no answer from the worker processes \(process ids \d+\)"):
        finetune(settings)
    monkeypatch.setattr(TrainingDataset, "__getitem__", lambda self, key: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ToolkitError, match=r"DataLoader worker .*memory has run out: lower train.num_workers"):
        finetune(settings)
