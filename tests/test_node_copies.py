"""cluster.stage_data: the same losses from copies on the node's own disk, which are gone when the run is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import ROOT, Cluster, arguments, metrics
from test_survival import JOB
from test_training import config, overrides, run_processes

from finetune.training import node_copies
from finetune.training import train as loop
from finetune.training.node_copies import PREFIX, own_disk
from finetune.training.train import finetune
from gr00t.errors import ToolkitError
from gr00t.file_replacement import file_lock

STAGED = "cluster.stage_data=true"


def losses(out: Path) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in metrics(out / "run") if "loss" in line}


def test_a_staged_run_reads_its_copies_and_is_the_same_run(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("dataset.frames=store", f"cache_dir={tmp_path}/cache", "train.max_steps=4", "train.save_steps=2")
    finetune(config(tmp_path / "plain", small_data, tiny_base, *more))
    read: list[Path] = []
    whole = loop.TrainingLoop.run

    def run(self: loop.TrainingLoop, start: loop.Checkpoint | None) -> float | None:
        (reader,) = self.dataset.mixture.readers
        assert reader.frame_store is not None
        read.extend([reader.layout.root, reader.frame_store.folder])
        assert all(Path(place).is_relative_to(tmp_path / "disk") and Path(place).is_dir() for place in read)
        return whole(self, start)

    monkeypatch.setattr(loop.TrainingLoop, "run", run)
    # continues the plain run: where its data lies is no part of a run's identity
    shutil.copytree(tmp_path / "plain" / "run" / "checkpoint-2", tmp_path / "staged" / "run" / "checkpoint-2")
    finetune(config(tmp_path / "staged", small_data, tiny_base, *more, STAGED, f"cluster.scratch={tmp_path}/disk"))
    assert len(read) == 2 and list((tmp_path / "disk").iterdir()) == []
    plain = losses(tmp_path / "plain")
    assert losses(tmp_path / "staged") == {step: plain[step] for step in (3, 4)}
    (first,) = [line for line in metrics(tmp_path / "staged" / "run") if "copy_seconds" in line]
    assert first["step"] == 2 and first["copy_seconds"] > 0


def test_a_disk_without_room_is_refused_and_nothing_is_left_there(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_copies, "free_space", lambda folder: 1000)
    with pytest.raises(ToolkitError, match=r"only 1.0 kB are free on this node.*cluster.stage_data=false"):
        finetune(config(tmp_path, small_data, tiny_base, STAGED, f"cluster.scratch={tmp_path}/disk"))
    assert list((tmp_path / "disk").iterdir()) == []


def test_the_own_disk_is_scratch_or_what_slurm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    with pytest.raises(ToolkitError, match=r"needs the node's own disk.*SLURM_TMPDIR is not set"):
        own_disk(None)
    monkeypatch.setenv("SLURM_TMPDIR", "/local/7")
    assert [own_disk(scratch) for scratch in (None, "$SLURM_TMPDIR/data", "/disk")] == [
        *(Path("/local/7"), Path("/local/7/data"), Path("/disk")),
    ]


def test_what_killed_jobs_left_is_removed_and_what_others_use_is_not(tmp_path: Path) -> None:
    names = {name: tmp_path / f"{PREFIX}{os.getuid()}-{name}" for name in ("left", "used", "young")}
    for folder in names.values():
        folder.mkdir()
    with file_lock(names["used"] / "data"):
        for name in ("left", "used"):
            os.utime(names[name], (1, 1))
        node_copies._remove_abandoned(tmp_path)
        assert {name for name, folder in names.items() if folder.exists()} == {"used", "young"}


@pytest.mark.long
@pytest.mark.multiprocess
def test_the_processes_of_a_node_share_one_copy(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    more = ["augment.views=2", "train.features=cached", "dataset.frames=store", f"cache_dir={tmp_path}/cache"]
    run_processes(2, overrides(tmp_path / "plain", small_data, tiny_base, *more))
    run_processes(
        2, overrides(tmp_path / "staged", small_data, tiny_base, *more, STAGED, f"cluster.scratch={tmp_path}/d")
    )
    assert losses(tmp_path / "staged") == losses(tmp_path / "plain")
    assert list((tmp_path / "d").iterdir()) == []


@pytest.mark.long
@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_however_a_run_ends_its_copies_go(
    number: signal.Signals, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    more = ["train.max_steps=400", "train.num_workers=1", STAGED, f"cluster.scratch={tmp_path}/disk"]
    command = [sys.executable, "launch_finetune_local.py", *overrides(tmp_path, small_data, tiny_base, *more)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while len(losses(tmp_path)) < 2:
            assert child.poll() is None
            time.sleep(0.1)
        (copy,) = (tmp_path / "disk").iterdir()
        assert (copy / "dataset-1" / "meta" / "info.json").is_file() and copy.stat().st_mode & 0o077 == 0
        child.send_signal(number)
    until = time.monotonic() + 20
    while copy.exists():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.long
def test_a_job_on_two_nodes_copies_to_each_and_resumes(
    cluster: Cluster, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    more = (
        "train.max_steps=120",
        "cluster.processes_per_node=2",
        STAGED,
        f"cluster.scratch={tmp_path}/$SLURMD_NODENAME",
    )
    options = ("--nodes=2", "--cpus-per-task=2", f"--output={tmp_path}/log")
    job = cluster.submit(*options, str(JOB), *arguments(tmp_path, small_data, tiny_base, *more))
    cluster.wait_for_step(job, tmp_path / "run", 3)
    assert all(len(list((tmp_path / node).iterdir())) == 1 for node in ("node1", "node2"))
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait_for_state(job, timeout=300) == "COMPLETED", cluster.log(job)
    assert not any(list((tmp_path / node).iterdir()) for node in ("node1", "node2"))
    assert len([line for line in metrics(tmp_path / "run") if "copy_seconds" in line]) == 2  # of each attempt
    assert list(losses(tmp_path)) == list(range(1, 121))
