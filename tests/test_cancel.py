"""A job that is cancelled ends, in whatever it was doing; what SLURM or a node ends continues. With SLURM's own
KillWait of 30 s, which leaves a job that is cancelled the time to requeue itself."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import ROOT, Cluster, NoCluster, arguments, last_step, running_cluster

from finetune.jobs.run_views import views
from gr00t.file_reading import read_json

JOB = ROOT / "finetune_jobs" / "color_object.sbatch"
Submit = Callable[..., tuple[str, Path]]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that kills 30 s after it has asked a job to end, as sites do."""
    try:
        with running_cluster(tmp_path_factory.mktemp("patient") / "cluster", KILL_WAIT="30") as cluster:
            yield cluster
    except NoCluster as why:
        pytest.skip(str(why))


@pytest.fixture
def submit(patient: Cluster, small_data: Path, tiny_base: Path, tmp_path: Path) -> Submit:
    def submit(name: str, *more: str, options: tuple[str, ...] = ()) -> tuple[str, Path]:
        out = tmp_path / name
        out.mkdir()
        overrides = arguments(out, small_data, tiny_base, "train.max_steps=3000", "train.save_steps=1000", *more)
        asked = ("--cpus-per-task=2", "--gres=gpu:a100:1", f"--output={out}/log", *options)
        return patient.submit(*asked, str(JOB), *overrides), out / "run"

    return submit


def ended(run: Path, attempt: int = 0) -> dict[str, object]:
    return read_json(run / "attempts" / str(attempt) / "ended.json")


def test_a_cancelled_job_saves_and_is_not_requeued_and_what_waits_for_it_is_dropped(
    patient: Cluster, submit: Submit
) -> None:
    job, run = submit("training")
    after = patient.submit(f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes", "--output=/dev/null", str(JOB))
    patient.wait_for_step(job, run, 3)
    patient.run("scancel", job)
    patient.wait_for_state(job, "CANCELLED", timeout=60)
    assert patient.show(job)["Restarts"] == "0"
    assert ended(run)["what"] == "cancelled" and "a checkpoint of step" in str(ended(run)["reason"])
    assert list(run.glob("checkpoint-*"))
    assert patient.wait_for_state(after, "CANCELLED", timeout=60)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["pending", "starting", "loading", "saving", "requeued", "ending"])
def test_cancelled_in_every_phase(patient: Cluster, submit: Submit, moment: str) -> None:
    options = ("--begin=now+1hour",) if moment == "pending" else ()
    steps = ("train.max_steps=5",) if moment == "ending" else ()
    job, run = submit(moment, *steps, *(("train.save_steps=1",) if moment == "saving" else ()), options=options)
    if moment == "loading":
        patient.wait(lambda: (run / "attempts/0/rank-0.log").is_file(), 60, "log", job)
    elif moment == "saving":
        patient.wait(lambda: bool([*run.glob(".checkpoint-*"), *run.glob("checkpoint-*")]), 90, "checkpoint", job)
    elif moment == "starting":
        patient.wait_for_state(job, "RUNNING")
    elif moment == "requeued":
        patient.wait_for_step(job, run, 2)
        patient.run("scancel", "--batch", "--signal=USR1", job)  # which is no cancellation
        patient.wait(lambda: patient.show(job)["Restarts"] == "1", 60, "restart", job)
    elif moment == "ending":
        patient.wait(lambda: last_step(run) == 5, 90, "end", job)
    patient.run("scancel", job)
    state = patient.wait_for_state(job, "CANCELLED", "COMPLETED", timeout=90)
    time.sleep(10)  # a requeued job would be back by now
    assert patient.state(job) == state
    if moment == "ending":
        assert ended(run)["what"] == ("done" if (run.parent / "done" / "config.json").is_file() else "cancelled")
    elif moment in ("loading", "saving"):
        assert ended(run)["what"] == "cancelled"
    assert int(patient.show(job)["Restarts"]) == (moment == "requeued")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["REQUEUE", "CANCEL"])
def test_a_preempted_job_continues_also_where_the_site_cancels(patient: Cluster, submit: Submit, mode: str) -> None:
    name = f"low_{mode.lower()}"
    nodes = ("Nodes=node1", "MaxTime=INFINITE", "DefaultTime=60", "State=UP", f"PreemptMode={mode}")
    patient.run(
        "scontrol", "create", f"partition={name}", *nodes, "PriorityTier=1", f"PreemptMode={mode}", "GraceTime=0"
    )
    job, run = submit(mode, options=(f"--partition={name}",))
    patient.wait_for_step(job, run, 3)
    patient.submit("--partition=high", "--nodelist=node1", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
    patient.wait(lambda: (run / "attempts/1/attempt.json").is_file(), 120, "second attempt", job)
    assert ended(run)["what"] == "requeue"
    patient.run("scancel", job)


@pytest.mark.long
def test_a_run_whose_node_died_is_not_finished(patient: Cluster, submit: Submit) -> None:
    job, run = submit("dead", options=("--no-requeue", "--nodelist=node2"))
    patient.wait_for_step(job, run, 3)
    slurmd = patient.folder / "run" / "slurmd-node2.pid"
    subprocess.run(["kill", "-9", slurmd.read_text().strip()], check=True)
    patient.wait(lambda: patient.state(job) in ("NODE_FAIL", "FAILED", "COMPLETED"), 120, "end", job)
    patient.wait(lambda: (run / "attempts/0/ended.json").is_file(), 60, "record", job)
    assert ended(run)["what"] == "stop" and "the failure of a node" in str(ended(run)["reason"])
    (shown,) = views(run.parent)
    assert shown.state == "stopped" and not shown.alive and shown.gpu_hours
