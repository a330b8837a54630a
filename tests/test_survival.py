"""Whatever ends an attempt of a SLURM job, the run ends with the loss curve of an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from slurm_cluster import ROOT, Cluster, NoCluster, arguments, metrics, running_cluster
from test_training import losses

from finetune.slurm import render

JOB = ROOT / "finetune_jobs" / "color_object.sbatch"
STEPS = 120
Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def run(small_data: Path, tiny_base: Path) -> Run:
    """Overrides of a run of two processes on one node, checkpoints far apart."""

    def make(out: Path, *more: str) -> list[str]:
        defaults = [f"train.max_steps={STEPS}", "train.save_steps=50", "cluster.processes_per_node=2"]
        return list(arguments(out, small_data, tiny_base, *defaults, *more))

    return make


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the same two processes without SLURM."""
    out = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["launch_finetune_local.py", "split=color_object", *run(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(out)


def submit(cluster: Cluster, out: Path, overrides: list[str], *options: str, script: Path = JOB) -> str:
    return cluster.submit("--cpus-per-task=4", f"--output={out}/log", *options, str(script), *overrides)


def outcome(out: Path, attempt: int) -> dict[str, object]:
    return json.loads((out / "run" / "attempts" / str(attempt) / "outcome.json").read_text())


def assert_undisturbed(cluster: Cluster, job: str, out: Path, undisturbed: dict[int, float]) -> None:
    assert cluster.wait_for_state(job, timeout=300) == "COMPLETED", cluster.log(job)
    assert losses(out) == undisturbed
    assert [line["step"] for line in metrics(out / "run")] == list(undisturbed)
    assert (out / "done" / "config.json").is_file()


@pytest.mark.long
def test_a_preempted_job(cluster: Cluster, run: Run, undisturbed: dict[int, float], tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, run(tmp_path), "--partition=low", "--nodelist=node1")
    cluster.wait_for_step(job, tmp_path / "run", 3)
    urgent = ("--partition=high", "--nodelist=node1", "--gres=gpu:4", f"--output={tmp_path}/urgent", "--wrap=true")
    cluster.submit(*urgent)
    assert_undisturbed(cluster, job, tmp_path, undisturbed)
    stopped = outcome(tmp_path, 0)
    assert stopped["status"] == "stopped" and str(stopped["reason"]).startswith("signal")
    assert outcome(tmp_path, 1)["status"] == "finished"


@pytest.mark.long
def test_a_signal_before_the_limit(cluster: Cluster, run: Run, undisturbed: dict[int, float], tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, run(tmp_path))
    cluster.wait_for_step(job, tmp_path / "run", 3)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert_undisturbed(cluster, job, tmp_path, undisturbed)
    assert outcome(tmp_path, 0)["reason"] == "signal SIGUSR1"
    assert cluster.show(job)["Restarts"] == "1"


@pytest.mark.long
def test_a_signal_to_every_process(cluster: Cluster, run: Run, undisturbed: dict[int, float], tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, run(tmp_path, "train.num_workers=1", "tracking=wandb", "tracking.mode=offline"))
    cluster.wait_for_step(job, tmp_path / "run", 3)
    cluster.run("scancel", "--signal=USR2", job)
    assert_undisturbed(cluster, job, tmp_path, undisturbed)
    assert outcome(tmp_path, 0)["reason"] == "signal SIGUSR2"


@pytest.mark.long
def test_the_end_of_the_jobs_time(cluster: Cluster, run: Run, undisturbed: dict[int, float], tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(render.script("color_object", ["local=none", "cluster.grace_seconds=35"]))
    # A minute is SLURM's shortest time. Its signal comes up to 31 s before the end, while the run stands still: here
    # one that nothing heeds, so that the run has only the clock.
    once = ("--time=1", "--signal=B:URG@1")
    job = submit(cluster, tmp_path, run(tmp_path), *once, script=script)
    cluster.wait_for_step(job, tmp_path / "run", 3)
    with standing_still(tmp_path, 0):
        time.sleep(max(0.0, float(str(begun(tmp_path, 0)["deadline"])) - 20 - time.time()))
    assert_undisturbed(cluster, job, tmp_path, undisturbed)
    assert outcome(tmp_path, 0)["reason"] == "time limit"


@pytest.mark.long
def test_the_death_of_one_process(cluster: Cluster, run: Run, undisturbed: dict[int, float], tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, run(tmp_path))
    cluster.wait_for_step(job, tmp_path / "run", 55)
    os.kill(processes(tmp_path, 0)[1], signal.SIGKILL)
    assert_undisturbed(cluster, job, tmp_path, undisturbed)
    assert begun(tmp_path, 1)["nodes"] != begun(tmp_path, 0)["nodes"]
    assert not (tmp_path / "run" / "attempts" / "0" / "outcome.json").exists()
    assert begun(tmp_path, 1)["from_step"] == 50


@pytest.mark.long
def test_a_job_that_must_not_be_requeued(
    cluster: Cluster, run: Run, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    job = submit(cluster, tmp_path, run(tmp_path), "--no-requeue")
    cluster.wait_for_step(job, tmp_path / "run", 3)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait_for_state(job) == "FAILED"
    assert "submit the same again to continue" in cluster.log(job)
    again = submit(cluster, tmp_path, run(tmp_path), "--no-requeue")
    assert_undisturbed(cluster, again, tmp_path, undisturbed)


@pytest.mark.long
def test_crash_after_crash(cluster: Cluster, run: Run, undisturbed: dict[int, float], tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, run(tmp_path, "cluster.max_crashes=2"))
    for attempt in range(2):
        cluster.wait(lambda n=attempt: len(processes(tmp_path, n)) == 2, 120, f"attempt {attempt}", job)
        os.kill(processes(tmp_path, attempt)[0], signal.SIGKILL)
    assert cluster.wait_for_state(job) == "FAILED"
    assert "2 attempts in a row crashed without a new checkpoint" in cluster.log(job)
    again = submit(cluster, tmp_path, run(tmp_path))
    assert_undisturbed(cluster, again, tmp_path, undisturbed)


@pytest.mark.long
def test_a_full_disk_during_the_save(cluster: Cluster, run: Run, undisturbed: dict[int, float], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a disk to fill is a tmpfs, which only root may mount")
    try:
        job = submit(cluster, disk, run(disk), f"--output={tmp_path}/log")
        cluster.wait_for_step(job, disk / "run", 51)
        cluster.wait(lambda: (disk / "run" / "checkpoint-50").is_dir(), 60, "checkpoint-50", job)
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(free - 2**20))  # log lines still fit, a checkpoint does not
        assert cluster.wait_for_state(job) == "FAILED"
        assert outcome(disk, 0)["status"] == "failed" and "quota is full" in str(outcome(disk, 0)["reason"])
        assert [path.name for path in (disk / "run").glob("*checkpoint*")] == ["checkpoint-50"]
        (disk / "filler").unlink()
        assert_undisturbed(cluster, submit(cluster, disk, run(disk)), disk, undisturbed)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.long
def test_a_node_that_is_cut_off_and_comes_back(
    run: Run, undisturbed: dict[int, float], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its processes stand still while SLURM starts the next attempt elsewhere, then they run on."""
    try:
        with running_cluster(tmp_path_factory.mktemp("slurm"), NODE_TIMEOUT="5") as cluster:
            job = submit(cluster, tmp_path, run(tmp_path))
            cluster.wait_for_step(job, tmp_path / "run", 55)
            node = str(begun(tmp_path, 0)["nodes"])
            with standing_still(tmp_path, 0):
                os.kill(int((cluster.folder / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
                cluster.wait(lambda: bool(processes(tmp_path, 1)), 120, "second attempt", job)
            assert_undisturbed(cluster, job, tmp_path, undisturbed)
            assert begun(tmp_path, 1)["nodes"] != node
            cluster.wait((tmp_path / "run" / "attempts" / "0" / "outcome.json").is_file, 60, "end of the old one", job)
            assert outcome(tmp_path, 0)["status"] == "superseded"
            cluster.run("slurmd", "-N", node)
            cluster.wait(lambda: "idle" in cluster.run("sinfo", "-h", "-n", node, "-o", "%t"), 60, node, job)
    except NoCluster as reason:
        pytest.skip(str(reason))


@contextmanager
def standing_still(out: Path, attempt: int) -> Iterator[None]:
    """The training processes of an attempt are stopped in the block, and continue after it."""
    pids = processes(out, attempt).values()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def processes(out: Path, attempt: int) -> dict[int, int]:
    """The training processes of an attempt: rank and process id."""
    found = {}
    identity = begun(out, attempt).get("id", "none yet")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = dict(v.split("=", 1) for v in (folder / "environ").read_text().split("\0") if "=" in v)
            command = (folder / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):  # it has just ended
            continue
        if environment.get("GROOT_ATTEMPT_ID") == identity and "RANK" in environment and "launch_finetune" in command:
            found[int(environment["RANK"])] = int(folder.name)
    return found


def begun(out: Path, attempt: int) -> dict[str, object]:
    path = out / "run" / "attempts" / str(attempt) / "attempt.json"
    return json.loads(path.read_text()) if path.is_file() else {}
