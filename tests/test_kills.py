"""Runs that are killed again and again, at moments drawn by lot, and end with what an undisturbed one ends with."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_training import ROOT, metrics, overrides

pytestmark = [pytest.mark.long, pytest.mark.multiprocess]
KILLS = int(os.environ.get("GROOT_KILLS", "4"))  # of each run; more of them for a longer search
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RUNS = {
    "live": ("train.num_workers=1",),
    "cached": ("augment.views=2", "train.features=cached"),
    "frame store": ("dataset.frames=store", "train.num_workers=2"),
    "best exported": ("train.eval_steps=4", "train.eval_episodes=1", "train.export=best"),
    "two processes": ("engine=fsdp2", "train.micro_batch_size=1"),
}
SAYS_WHEN = {f"experiment_cfg/{name}" for name in ("conditions.json", "config.yaml", "manifest.json")}


def start(name: str, arguments: list[str]) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if name == "two processes" else []
    command = [sys.executable, *torchrun, "launch_finetune_local.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(out: Path) -> dict[str, bytes]:
    """The finished checkpoint, file by file, but for what says when and where it was computed."""
    done = out / "done"
    files = {str(path.relative_to(done)): path.read_bytes() for path in done.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name not in SAYS_WHEN}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_again_and_again_ends_as_the_undisturbed_one(
    name: str, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    def arguments(out: Path) -> list[str]:
        more = ("train.max_steps=24", "train.save_steps=3", f"cache_dir={out}/cache", *RUNS[name])
        return overrides(out, small_data, tiny_base, *more)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    begin = time.monotonic()
    child = start(name, arguments(whole))
    _, said = child.communicate(timeout=600)
    assert child.returncode == 0, said[-3000:]
    seconds = time.monotonic() - begin
    lot = random.Random(name)
    for kill in range(KILLS):
        moment, number = lot.uniform(0.2, 1.0) * seconds, lot.choice(SIGNALS)
        child = start(name, arguments(cut))
        try:
            _, said = child.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, number)
            _, said = child.communicate(timeout=120)
        assert "Traceback" not in said or name == "two processes", (kill, said[-3000:])  # torchrun has its own
    child = start(name, arguments(cut))
    _, said = child.communicate(timeout=600)
    assert child.returncode == 0, said[-3000:]
    assert metrics(cut) == metrics(whole)
    assert finished(cut) == finished(whole)
    left = {path.name for path in (cut / "run").iterdir() if path.name.startswith(".")}
    assert not left, left
