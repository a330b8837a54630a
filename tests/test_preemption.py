"""A run that is asked to stop saves and ends well, and continues as if nothing had been; a superseded one lets go."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_training import ROOT, config, losses, metrics, overrides, trained

from conflict_panda_config import MODALITY_CONFIG
from finetune.training.dataloader import build_dataset, build_loader, build_processor
from finetune.training.engine import Engine
from finetune.training.stopping import (
    ATTEMPT,
    ATTEMPT_ID,
    DEADLINE,
    TOKEN,
    AttemptToken,
    Stopped,
    ThisAttempt,
    stop_time,
)
from finetune.training.train import finetune
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.file_replacement import file_lock, write_json
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.command_line import SIGNALS, held_back, received, stop_signals

STEPS = 40
# Logged every four steps, so that a stop falls between two log lines.
LONG = (f"train.max_steps={STEPS}", "train.save_steps=7", "train.log_steps=4", "train.num_workers=1")


def start(processes: int, arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    alone = [sys.executable] if processes == 1 else command
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [*alone, "launch_finetune_local.py", *arguments], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    )


def ended(child: subprocess.Popen[str]) -> int:
    _, text = child.communicate(timeout=240)
    print(text[-4000:])
    return child.returncode


def logged_step(out: Path) -> int:
    return max(losses(out), default=0) if (out / "run" / "metrics.jsonl").is_file() else 0


def wait_for(condition: Callable[[], object], child: subprocess.Popen[str]) -> None:
    while not condition():
        assert child.poll() is None, child.communicate()[1][-3000:]
        time.sleep(0.02)


def take_token(out: Path, attempt: int, identity: str) -> dict[str, str]:
    """What `attempt begin` does: the token, and the variables that the processes find."""
    (out / "run").mkdir(parents=True, exist_ok=True)
    write_json(out / "run" / TOKEN, {"attempt": attempt, "id": identity, "job_id": "1"})
    return {ATTEMPT: str(attempt), ATTEMPT_ID: identity}


def outcome(out: Path, attempt: int) -> dict[str, object]:
    return json.loads((out / "run" / "attempts" / str(attempt) / "outcome.json").read_text())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "outcome.json"}


@pytest.mark.long
@pytest.mark.multiprocess
def test_a_terminated_run_continues_as_the_undisturbed_one(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    wandb = ("tracking=wandb", "tracking.mode=offline")
    assert ended(start(2, overrides(tmp_path / "whole", small_data, tiny_base, *LONG))) == 0
    arguments = overrides(tmp_path / "cut", small_data, tiny_base, *LONG, *wandb)
    child = start(2, arguments, **take_token(tmp_path / "cut", 0, "a"))
    moment = random.Random(0).randint(5, 25)
    wait_for(lambda: logged_step(tmp_path / "cut") >= moment, child)
    child.terminate()
    assert ended(child) != 0  # torchrun's own status after SIGTERM
    first = outcome(tmp_path / "cut", 0)
    assert first["status"] == "stopped" and first["reason"] == "signal SIGTERM"
    assert moment <= int(str(first["step"])) < STEPS and first["checkpoint"] == f"checkpoint-{first['step']}"

    assert ended(start(2, arguments, **take_token(tmp_path / "cut", 1, "b"))) == 0
    assert outcome(tmp_path / "cut", 1)["status"] == "finished"
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    there, here = trained(tmp_path / "whole", STEPS), trained(tmp_path / "cut", STEPS)
    assert all(torch.equal(there[name], here[name]) for name in there | here)
    runs = sorted((tmp_path / "cut" / "run" / "wandb").glob("offline-run-*"))
    assert len(runs) == 2 and len({run.name.rpartition("-")[2] for run in runs}) == 1


@pytest.mark.multiprocess
def test_a_superseded_attempt_stops_and_writes_nothing(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    arguments = overrides(tmp_path, small_data, tiny_base, *LONG, "train.save_steps=1", "train.log_steps=1")
    child = start(1, arguments, **take_token(tmp_path, 0, "a"))
    wait_for(lambda: logged_step(tmp_path) >= 3, child)
    child.send_signal(signal.SIGSTOP)  # its node is cut off
    take_token(tmp_path, 1, "b")
    before = contents(tmp_path)
    child.send_signal(signal.SIGCONT)
    assert ended(child) == 0
    after = contents(tmp_path)
    assert {path for path in after if ".partial-" not in str(path)} <= set(before)
    assert all(before[path] == data for path, data in after.items())
    assert outcome(tmp_path, 0)["status"] == "superseded"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_while_training_is_prepared_ends_it_at_its_first_step(
    number: signal.Signals, small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in take_token(tmp_path, 0, "a").items():
        monkeypatch.setenv(name, value)
    with stop_signals():
        signal.raise_signal(number)
        result = finetune(config(tmp_path, small_data, tiny_base))
    assert (result.stopped, result.steps) == (f"signal {number.name}", 0)
    assert "the same command resumes" in str(result)
    reason = {"reason": f"signal {number.name}", "checkpoint": None}
    assert outcome(tmp_path, 0) == {"status": "stopped", "step": 0, **reason}
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "done").exists()


def test_a_run_stops_by_itself_before_the_jobs_time_is_over(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("train.max_steps=5", "train.log_steps=5")
    finetune(config(tmp_path / "whole", small_data, tiny_base, *short))
    monkeypatch.setenv(DEADLINE, str(time.time() - 1))
    for attempt in range(4):  # each gets one step further
        result = finetune(config(tmp_path / "cut", small_data, tiny_base, *short))
        assert (result.stopped, result.steps) == ("time limit", attempt + 1)
    assert finetune(config(tmp_path / "cut", small_data, tiny_base, *short)).stopped is None
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert (tmp_path / "cut" / "done" / "config.json").is_file()


def test_the_time_to_stop_leaves_the_grace_time_or_else_half_of_all() -> None:
    assert stop_time(1000, None, 300) == float("inf")
    assert stop_time(1000, "4600", 300) == 4300
    assert stop_time(1000, "1400", 300) == 1200


def test_what_only_the_user_can_mend_is_recorded_as_failed(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in take_token(tmp_path, 3, "a").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ToolkitError, match="NaN or infinite"):
        finetune(config(tmp_path, small_data, tiny_base, "train.learning_rate=1e18", "train.save_steps=1"))
    assert outcome(tmp_path, 3)["status"] == "failed"
    assert "lower train.learning_rate" in str(outcome(tmp_path, 3)["reason"])


def test_an_attempt_continues_although_the_one_it_superseded_holds_the_lock(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.training.run_folder.LET_GO_SECONDS", 0.1)
    for name, value in take_token(tmp_path, 1, "b").items():
        monkeypatch.setenv(name, value)
    with file_lock(tmp_path / "run"), pytest.raises(ToolkitError, match="another process is writing"):
        finetune(config(tmp_path, small_data, tiny_base))  # a local run holds it
    with file_lock(tmp_path / "run", holder="a"):
        assert finetune(config(tmp_path, small_data, tiny_base)).stopped is None


def test_features_that_were_made_before_a_signal_are_kept(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    cached = ["augment.views=4", "train.features=cached", f"cache_dir={tmp_path}/cache", "dataset.frames=store"]
    chosen = config(tmp_path, small_data, tiny_base, *cached)

    def rows() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("rows-*")}

    def interrupt() -> None:
        while not rows():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    with stop_signals():
        threading.Thread(target=interrupt).start()
        result = finetune(chosen)
    made = rows()
    assert (result.stopped, result.steps) == ("signal SIGUSR1", 0) and made
    assert finetune(chosen).stopped is None
    assert len(rows()) > len(made) and made.items() <= rows().items()


def test_a_frame_store_is_whole_or_absent_after_a_signal(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    chosen = config(tmp_path, small_data, tiny_base, f"cache_dir={tmp_path}/cache", "dataset.frames=store")
    with stop_signals():
        signal.raise_signal(signal.SIGTERM)
        assert finetune(chosen).stopped == "signal SIGTERM"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert finetune(chosen).stopped is None


@pytest.mark.multiprocess
def test_loader_processes_outlive_the_signals_that_ask_the_run_to_stop(
    small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """SLURM sends them to every process of a job: a run that saves first still needs its batches."""
    settings = config(tmp_path, small_data, tiny_base, "train.num_workers=1", "train.max_steps=30")
    engine = Engine(settings)
    reader = StepReader(small_data / "color_object/train", MODALITY_CONFIG)
    model, base = Gr00tN1d7.from_pretrained(tiny_base), Gr00tN1d7Processor.from_pretrained(tiny_base)
    dataset = build_dataset(reader, build_processor(base, reader, settings), model.config, settings)
    loader, _ = build_loader(dataset, settings, engine, 0)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in SIGNALS:
        os.kill(worker.pid or 0, number)
    assert sum(1 for _ in batches) == 29 and worker.exitcode in (None, 0)


def test_signals_mean_what_they_did_before_and_after_training() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals():
        with stop_signals():
            signal.raise_signal(signal.SIGTERM)
        assert received() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    with stop_signals():
        assert received() is None


def test_the_first_of_several_signals_is_the_reason() -> None:
    with stop_signals():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert received() == signal.SIGUSR1


def test_signals_that_are_held_back_come_afterwards() -> None:
    with stop_signals():
        with held_back():
            signal.raise_signal(signal.SIGUSR2)
            assert received() is None
        assert received() == signal.SIGUSR2


@pytest.fixture
def no_signal() -> Iterator[None]:
    with stop_signals():
        yield


class OtherProcesses:
    """An engine whose other processes say `known` of the reasons to stop."""

    device = torch.device("cpu")

    def __init__(self, known: list[float], is_main: bool) -> None:
        self.known, self.is_main = known, is_main

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        others = len(value) - len(self.known)  # of the values before the flags nothing
        return value + torch.tensor([0.0] * others + self.known)


def stop_of(run: Path, is_main: bool = True, known: tuple[int, ...] = (), grace: float = 0.0) -> ThisAttempt:
    """`known`: which reasons the other processes have."""
    config = SimpleNamespace(cluster=SimpleNamespace(grace_seconds=grace))
    others = OtherProcesses([float(number in known) for number in range(5)], is_main)
    return ThisAttempt(config, others, AttemptToken(run))  # type: ignore[arg-type]


def test_processes_agree_on_the_weightiest_reason_that_any_has(no_signal: None, tmp_path: Path) -> None:
    for known, reason in (((), None), ((4,), "time limit"), ((2, 4), "signal SIGUSR1"), ((0, 1), "superseded")):
        stop = stop_of(tmp_path, known=known)
        summed = stop.engine.sum(torch.cat([torch.tensor([2.5]), stop.flags()]))
        stop.receive(summed[1:])
        assert float(summed[0]) == 2.5
        assert stop.agreed(7) == reason and stop.step == 7
    with pytest.raises(Stopped, match="signal SIGTERM"):
        stop_of(tmp_path, known=(1,)).check("time limit")
    stop_of(tmp_path, known=(4,)).check("time limit")
    stop_of(tmp_path, known=(1, 4)).barrier()
    with pytest.raises(Stopped, match="superseded"):
        stop_of(tmp_path, known=(0,)).barrier()


def test_the_main_process_watches_the_clock_for_all(
    no_signal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEADLINE, str(time.time() + 1000))
    for is_main, save_seconds, reason in ((True, 0, None), (True, 1000, "time limit"), (False, 1000, None)):
        stop = stop_of(tmp_path, is_main, grace=100)
        stop.save_seconds = save_seconds
        stop.exchange()
        assert stop.agreed(1) == reason
    stop = stop_of(tmp_path, grace=100)
    stop._step_seconds = 500.0  # two more of these do not fit
    stop.exchange()
    assert stop.agreed(1) == "time limit"
