"""Jobs on a real SLURM cluster: the scripts are accepted, and train to their end on one node and on two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from slurm_cluster import ROOT, Cluster, arguments, metrics

from finetune.slurm import render

JOB = "finetune_jobs/color_object.sbatch"


@pytest.mark.parametrize("split", render.splits())
def test_the_job_scripts_are_those_of_the_template(split: str) -> None:
    assert (ROOT / "finetune_jobs" / f"{split}.sbatch").read_text() == render.script(split, ["local=none"])


def test_there_is_a_script_for_each_of_the_twelve_splits(cluster: Cluster) -> None:
    scripts = sorted((ROOT / "finetune_jobs").glob("*.sbatch"))
    assert [path.stem for path in scripts] == render.splits() and len(scripts) == 12
    for path in scripts:
        cluster.run("sbatch", "--test-only", f"finetune_jobs/{path.name}")


def test_a_job_trains_to_its_end_with_one_process_for_each_gpu(
    cluster: Cluster, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    overrides = arguments(tmp_path, small_data, tiny_base)
    job = cluster.submit("--cpus-per-task=4", f"--output={tmp_path}/log", JOB, *overrides)
    assert cluster.wait_for_state(job, timeout=180) == "COMPLETED", cluster.log(job)
    assert (tmp_path / "done" / "config.json").is_file()
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    attempt = tmp_path / "run" / "attempts" / "0"
    assert json.loads((attempt / "attempt.json").read_text())["processes"] == 4
    assert len(list(attempt.glob("rank-*.log"))) == 4


def test_a_job_of_two_nodes_is_one_run(cluster: Cluster, small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    overrides = arguments(tmp_path, small_data, tiny_base, "train.max_steps=2", "cluster.processes_per_node=1")
    job = cluster.submit("--nodes=2", "--cpus-per-task=4", f"--output={tmp_path}/log", JOB, *overrides)
    assert cluster.wait_for_state(job, timeout=180) == "COMPLETED", cluster.log(job)
    attempt = tmp_path / "run" / "attempts" / "0"
    assert {path.name for path in attempt.glob("*.log")} == {
        *("node-node1.log", "node-node2.log"),
        *("rank-0.log", "rank-1.log"),
    }
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
