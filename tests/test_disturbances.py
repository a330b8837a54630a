"""Launches that are disturbed at moments drawn by lot, with all that may disturb them on a cluster: asked for again,
each ends with the dataset and the losses of an undisturbed one."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from recordings import INSTRUCTION, write_split
from slurm_cluster import ROOT, Cluster, NoCluster, metrics, running_cluster
from test_divided_stages import contents

from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from finetune.slurm.launch_request import read
from finetune.slurm.submit import launch

pytestmark = pytest.mark.long
DISTURBANCES = int(os.environ.get("GROOT_DISTURBANCES", "30"))  # more of them for a longer search
SEEDS, STEPS = (1, 2, 3), 80


def signal(cluster: Cluster, job: str, node: str) -> None:
    cluster.run("scancel", "--batch", "--signal=USR1", job, check=False)


def cancel(cluster: Cluster, job: str, node: str) -> None:
    cluster.run("scancel", job, check=False)


def requeue(cluster: Cluster, job: str, node: str) -> None:
    cluster.run("scontrol", "requeue", job, check=False)


def preempt(cluster: Cluster, job: str, node: str) -> None:
    cluster.submit("--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


def lose_node(cluster: Cluster, job: str, node: str) -> None:
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    time.sleep(2)
    cluster.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)  # it may have come back itself


def restart_controller(cluster: Cluster, job: str, node: str) -> None:
    pid = (cluster.folder / "run" / "slurmctld.pid").read_text().strip()
    subprocess.run(["kill", pid], check=True)
    while Path("/proc", pid).exists():
        time.sleep(0.2)
    cluster.run("slurmctld")
    while "UP" not in cluster.run("scontrol", "ping", check=False):
        time.sleep(0.2)


def tend(cluster: Cluster) -> None:
    """What an administrator does where a controller that came back found a job's start to have failed."""
    cluster.run("scontrol", "update", "nodename=node[1-2]", "state=resume", check=False)
    held = cluster.run("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r")
    for line in filter(lambda line: "requeued held" in line, held.splitlines()):
        cluster.run("scontrol", "release", line.split()[0], check=False)


KINDS = (signal, cancel, requeue, preempt, lose_node, restart_controller)


def alive(cluster: Cluster) -> list[tuple[str, str, str]]:
    """Jobs of the launcher that run or wait: id, state and node."""
    shown = cluster.run("squeue", "--noheader", "--array", "--format=%i %T %N", "--states=all", "--partition=low")
    words = [(line.split() + [""])[:3] for line in shown.splitlines()]
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
    return [(job, state, node) for job, state, node in words if state not in over]


def asked(out: Path, raw: Path, base: Path) -> list[str]:
    """Convert in two shares, then three runs of one process each that read from copies on the node."""
    return [
        *("local=none", "stages=prepare,finetune", "split=color_object", f"raw_dir={raw}", "model=tiny", "device=cpu"),
        *(f"model.base={base}", f"dataset.data_dir={out}/data", f"runs_dir={out}/runs", "prepare.workers=1"),
        *(f"run_dir={out}/runs/${{train.seed}}", f"output_dir={out}/done/${{train.seed}}", f"cache_dir={out}/cache"),
        *(f"train.seed={','.join(map(str, SEEDS))}", f"train.max_steps={STEPS}", "train.save_steps=40"),
        *("train.global_batch_size=2", "train.log_steps=1", "train.num_workers=0", "tracking=none", "max_parallel=2"),
        *("cluster.stages.prepare.shares=2", "cluster.partition=low", "cluster.gpus_per_node=1"),
        *("cluster.cpus_per_task=2", "cluster.time=1:00:00", "cluster.max_crashes=20"),
        *("cluster.stage_data=true", f"cluster.scratch={out}/$SLURMD_NODENAME"),
    ]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics(run_dir) if "loss" in line]


@pytest.fixture(scope="module")
def undisturbed(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes], dict[int, list[tuple[int, float]]]]:
    """Recordings; the dataset that one process makes of them, and the losses of each seed without SLURM."""
    out = tmp_path_factory.mktemp("undisturbed")
    raw = write_split(out / "raw", train=[*range(20, 34)], conflict=[20, 21, 22])
    convert_split(raw, out / "data", "color_object", INSTRUCTION, MODALITY_CONFIG, progress=False)
    left_out = ("stages", "raw_dir", "runs_dir", "prepare.workers", "train.seed", "max_parallel")
    given = [text for text in asked(out, raw, tiny_base) if text.partition("=")[0] not in left_out]
    given = [text for text in given if not text.startswith("cluster.")]
    for seed in SEEDS:
        command = [sys.executable, "launch_finetune_local.py", *given, f"train.seed={seed}"]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600)
    return raw, contents(out / "data"), {seed: losses(out / "runs" / str(seed)) for seed in SEEDS}


def test_disturbed_launches_end_as_the_undisturbed_one(
    undisturbed: tuple[Path, dict[str, bytes], dict[int, list[tuple[int, float]]]],
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw, dataset, curves = undisturbed
    lot, done = random.Random("disturbances"), Counter[str]()
    kinds = itertools.cycle(lot.sample(KINDS, len(KINDS)))
    try:
        with running_cluster(tmp_path / "cluster", GRACE_TIME="10") as cluster:
            monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
            for number in itertools.count():
                if done.total() >= DISTURBANCES:
                    break
                out = tmp_path / str(number)
                launches = 0
                while launch(read(asked(out, raw, tiny_base))):  # again, until nothing is missing
                    launches += 1
                    disturb(cluster, lot, kinds, done)
                assert contents(out / "data") == dataset
                for seed in SEEDS:
                    assert losses(out / "runs" / str(seed)) == curves[seed], (number, seed)
                    assert not any(any(node.iterdir()) for node in out.glob("node*"))  # copies are gone
                print(f"round {number}: launched {launches} times; disturbed so far: {dict(done)}")
    except NoCluster as why:
        pytest.skip(str(why))


def disturb(
    cluster: Cluster,
    lot: random.Random,
    kinds: itertools.cycle[Callable[[Cluster, str, str], None]],
    done: Counter[str],
) -> None:
    """Until no job is left, disturb one that runs, or waits where none does, every few seconds."""
    until = time.monotonic() + 1200
    while jobs := alive(cluster):
        assert time.monotonic() < until, jobs
        time.sleep(lot.uniform(0.5, 6))
        tend(cluster)
        jobs = [one for one in alive(cluster) if one[1] == "RUNNING"]
        if jobs and done.total() < DISTURBANCES:
            kind, (job, state, node) = next(kinds), lot.choice(jobs)
            kind(cluster, job, node)
            done[kind.__name__] += 1
            print(f"{kind.__name__} of {job} ({state.lower()} on {node})")
