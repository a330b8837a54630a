"""What an attempt finds out before it trains: its processes, time and caches; and whether the processes meet."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_keys import WANDB
from slurm_cluster import ROOT, arguments

from finetune.slurm import attempt
from finetune.slurm import attempt_record as record
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from toolkit.configuration import load

Overrides = list[str]


@pytest.fixture
def overrides(small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Overrides:
    """Of a small run; this process believes to be the batch shell of job 7, on one node with two GPUs."""
    job = {"GROOT_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "node1"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "1")  # `begin` sets it for its own process
    return ["local=none", *arguments(tmp_path, small_data, tiny_base)]


def limit(seconds: float) -> str:
    """The end of a job that may run so long from now on, as run.sh found it."""
    return f"{time.time() + seconds:.0f}"


def test_an_attempt_knows_its_processes_and_its_end(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOT_END_TIME", limit(3600))
    answer = attempt.begin("finetune", *overrides)
    assert answer["GROOT_PROCESSES"] == "2"
    assert float(answer["GROOT_DEADLINE"]) == pytest.approx(time.time() + 3600, abs=30)
    assert answer["GROOT_ATTEMPT_ID"] == read_json(tmp_path / "run" / "attempt.json")["id"]
    assert "GROOT_CACHE_DIR" not in answer
    answer = attempt.begin("finetune", *overrides, "cluster.processes_per_node=4")
    assert (answer["GROOT_PROCESSES"], answer["GROOT_ATTEMPT"]) == ("4", "1")
    lost = record.attempts(tmp_path / "run")[0]
    assert lost.ended is not None and lost.ended["what"] == "lost"


def test_a_job_script_is_kept_for_its_owner_and_one_with_keys_is_not(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "run" / "job" / "script.sbatch"
    monkeypatch.setenv("GROOT_SCRIPT", "#!/bin/bash\nmodule load cuda\nexec finetune_jobs/run.sh finetune")
    attempt.begin("finetune", *overrides)
    assert kept.read_text().endswith("run.sh finetune\n") and kept.stat().st_mode & 0o777 == 0o600
    kept.chmod(0o644)  # the launcher's, which has been checked, stays as it is
    attempt.begin("finetune", *overrides)
    assert kept.stat().st_mode & 0o777 == 0o644
    monkeypatch.setenv("GROOT_SCRIPT", f"#!/bin/bash\nexport WANDB_API_KEY={WANDB}\nexec finetune_jobs/run.sh finetune")
    capfd.readouterr()
    attempt.begin("finetune", *overrides)
    said = capfd.readouterr().err
    assert "line 2: a key or password" in said and str(kept) in said and WANDB not in said
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and WANDB in path.read_text()]


def test_a_disk_that_is_full_at_the_start_leaves_what_was_recorded_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, write = load("finetune", ["local=none"], check_here=False), Path.write_text
    (tmp_path / "job").mkdir()
    record.describe_job(tmp_path / "job", None, [], config)

    def full(path: Path, text: str, **more: str) -> int:
        if not path.name.endswith("config.yaml"):
            return write(path, text, **more)
        path.write_bytes(b"")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        record.describe_job(tmp_path / "job", None, [], config)
    assert not record.must_resume(tmp_path, "1") and record.resolved(tmp_path)["split"]["name"] == "color_object"
    (tmp_path / "job/config.yaml").write_bytes(b"")
    with pytest.raises(ToolkitError, match=r"config\.yaml makes no sense"):
        record.must_resume(tmp_path, "1")


def test_two_jobs_that_start_at_once_do_not_clear_each_others_copy_of_the_code(
    overrides: Overrides, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "finetune.slurm.attempt", "snapshot", "finetune", *overrides]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    assert said == [(f"GROOT_CODE={tmp_path}/run/code\n", "")] * 2
    assert (tmp_path / "run" / "code" / "finetune_jobs" / "run.sh").is_file()


def test_a_job_without_a_limit_has_no_end(overrides: Overrides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROOT_END_TIME", "")
    assert "GROOT_DEADLINE" not in attempt.begin("finetune", *overrides)


def test_an_attempt_without_time_to_train_is_refused(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOT_END_TIME", limit(200))
    with pytest.raises(ToolkitError, match=r"cluster\.grace_seconds=300 are for the last checkpoint"):
        attempt.begin("finetune", *overrides)
    assert not (tmp_path / "run").exists()


def test_lost_attempts_are_bounded_too(overrides: Overrides) -> None:
    attempt.begin("finetune", *overrides, "cluster.max_requeues=1")
    attempt.begin("finetune", *overrides, "cluster.max_requeues=1")
    with pytest.raises(ToolkitError, match="has had 2 attempts"):
        attempt.begin("finetune", *overrides, "cluster.max_requeues=1")


def test_the_caches_move_to_the_disk_of_the_node(overrides: Overrides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", "/tmp/of the job")
    scratch = "cluster.scratch=$SLURM_TMPDIR/groot"
    answer = attempt.begin("finetune", *overrides, scratch)
    assert answer["GROOT_CACHE_DIR"] == "/tmp/of the job/groot/color_object"
    assert "GROOT_CACHE_DIR" not in attempt.begin("finetune", *overrides, scratch, "cache_dir=cache/mine")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(ToolkitError, match="all 2 nodes must see the cache"):
        attempt.begin("finetune", *overrides, scratch, "dataset.frames=store")


@pytest.mark.multiprocess
def test_processes_that_do_not_meet_say_what_to_set() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "finetune.training.process_selftest"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "ib7", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "the 2 processes do not meet" in done.stderr and "ib7" in done.stderr
    assert "lo 127.0.0.1" in done.stderr and "cluster.environment=[NCCL_SOCKET_IFNAME=ib0" in done.stderr
