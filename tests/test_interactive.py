"""The same run typed inside an allocation: on its nodes, stopped with a checkpoint, continued by the same command, and
never at the cost of the allocation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from recordings import write_split
from slurm_cluster import ROOT, Cluster, arguments, last_step, metrics

JOB = str(ROOT / "finetune_jobs" / "color_object.sbatch")
pytestmark = pytest.mark.long


def started(cluster: Cluster, out: Path, *command: str) -> subprocess.Popen[str]:
    """A command of a user's terminal."""
    log = (out / "log").open("a")
    env = {**cluster.env, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, text=True, start_new_session=True)


def wait_for(ready, out: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, (out / "log").read_text()[-5000:]
        time.sleep(0.2)


def ended(out: Path, attempt: int) -> dict[str, object]:
    return json.loads((out / "run" / "attempts" / str(attempt) / "ended.json").read_text())


def test_in_the_shell_of_salloc_on_all_its_nodes(
    cluster: Cluster, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    given = arguments(tmp_path, small_data, tiny_base, "train.max_steps=40", "train.save_steps=1000")
    asked = ("--nodes=2", "--gres=gpu:a100:1", "--ntasks-per-node=2", "--mem=2000")
    script = tmp_path / "shell.sh"  # what the user types: the run, and the same once more when it has stopped
    script.write_text(
        'bash -c \'echo $$ > "$OUT/pid"; exec finetune_jobs/run.sh finetune split=color_object "$@"\' _ "$@"\n'
        'echo "status $?"; squeue --noheader --jobs=$SLURM_JOB_ID --format=%T\n'
        'bash finetune_jobs/color_object.sbatch "$@"\n'
    )
    cluster.env["OUT"] = str(tmp_path)
    shell = started(cluster, tmp_path, "salloc", *asked, "bash", str(script), *given)
    wait_for(lambda: last_step(tmp_path / "run") >= 3, tmp_path)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGINT)
    assert shell.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-5000:]
    log = (tmp_path / "log").read_text()
    assert "status 3\nRUNNING\n" in log and "type the same again to continue" in log
    assert ended(tmp_path, 0)["what"] == "stop" and ended(tmp_path, 1)["what"] == "done"
    begun = json.loads((tmp_path / "run" / "attempts" / "1" / "attempt.json").read_text())
    assert begun["processes"] == 2 and begun["by_hand"] and 3 <= begun["from_step"] < 40 and begun["deadline"]
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 41))
    assert {path.name for path in (tmp_path / "run/attempts/1").glob("node-*")} == {"node-node1.log", "node-node2.log"}


def test_in_a_step_that_holds_the_whole_job_and_ends_before_its_limit(
    cluster: Cluster, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """As in `srun --pty bash`, or a terminal of a Jupyter server that srun has started."""
    given = arguments(tmp_path, small_data, tiny_base, "train.max_steps=100000", "cluster.grace_seconds=90")
    asked = ("--nodes=1", "--ntasks=1", "--cpus-per-task=4", "--gres=gpu:a100:2", "--time=3", "--mem=2000")
    line = 'bash "$0" "$@"; echo "status $?"; squeue --noheader --jobs=$SLURM_JOB_ID --format=%T'
    terminal = started(cluster, tmp_path, "srun", *asked, "bash", "-c", line, JOB, *given)
    assert terminal.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-5000:]
    assert "status 3\nRUNNING\n" in (tmp_path / "log").read_text()
    outcome = json.loads((tmp_path / "run" / "attempts" / "0" / "outcome.json").read_text())
    assert outcome["reason"] == "time limit" and (tmp_path / "run" / outcome["checkpoint"]).is_dir()
    assert json.loads((tmp_path / "run" / "attempts" / "0" / "attempt.json").read_text())["processes"] == 2


def test_another_stage_in_the_shell_of_salloc(cluster: Cluster, tmp_path: Path) -> None:
    raw = write_split(tmp_path / "raw", train=[20, 24, 18], conflict=[20])
    typed = ("finetune_jobs/run.sh", "prepare", "local=none", "split=color_object", f"raw_dir={raw}")
    shell = started(cluster, tmp_path, "salloc", "--nodes=1", "--mem=2000", *typed, f"data_dir={tmp_path}/data")
    assert shell.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-5000:]
    assert (tmp_path / "data/color_object/train/meta/info.json").is_file()
