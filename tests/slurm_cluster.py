"""The test cluster as tests see it: submit, wait, look into a run folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.slurm.cluster_queries import available

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).parent / "cluster"
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")


class NoCluster(Exception):
    """Why there is no test cluster here."""


@dataclass
class Cluster:
    """A running test cluster; its commands need `env`, or the `cluster` fixture, which sets os.environ too."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, check: bool = True, cwd: Path = ROOT, **env: str) -> str:
        """A command of SLURM's; its stdout."""
        done = subprocess.run(command, env={**self.env, **env}, cwd=cwd, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, cwd: Path = ROOT, **env: str) -> str:
        """sbatch with these arguments; the job id."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, **env).strip().split(";")[0]

    def jobs(self) -> set[str]:
        """Jobs in the queue, those too that an earlier test cancelled and that are leaving it: compare as subsets."""
        return set(self.run("squeue", "--noheader", "--format=%i").split())

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, as NAME: value."""
        text = self.run("scontrol", "show", "job", "--oneliner", job)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def wait_for_state(self, job: str, *states: str, timeout: float = 120) -> str:
        """Wait until the job is in one of `states`; OVER when none are named."""
        wanted = states or OVER
        self.wait(lambda: self.state(job) in wanted, timeout, f"job {job} {' or '.join(wanted)}", job)
        return self.state(job)

    def wait_for_step(self, job: str, run_dir: Path, step: int, timeout: float = 120) -> None:
        """Wait until the run has logged `step`; an ended job fails the test at once."""
        self.wait(lambda: last_step(run_dir) >= step or self.state(job) in OVER, timeout, f"step {step}", job)
        assert last_step(run_dir) >= step, self.log(job)

    def wait(self, condition: Callable[[], bool], timeout: float, what: str, job: str) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"no {what} after {timeout:.0f} s: {self.state(job)}\n{self.log(job)}"
            time.sleep(0.2)

    def log(self, job: str) -> str:
        """The end of the job's own log."""
        path = Path(self.show(job)["StdOut"])
        return path.read_text(errors="replace")[-5000:] if path.is_file() else f"(no log {path})"


@contextmanager
def running_cluster(folder: Path, **settings: str) -> Iterator[Cluster]:
    """A cluster of two nodes with four a100 each in `folder`, ended afterwards; NoCluster says why there is none."""
    if not available():
        raise NoCluster("SLURM is not installed: apt-get install slurmctld slurmd slurm-client munge")
    command = [str(SCRIPTS / "up"), str(folder)]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise NoCluster(f"the test cluster does not come up: {done.stderr.strip()}")
    # jobs that look for python on PATH find the one that runs the tests, whose environment need not be activated
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "SLURM_CONF": str(folder.resolve() / "etc" / "slurm.conf"), "PATH": path}
    try:
        yield Cluster(folder, env)
    finally:
        subprocess.run([str(SCRIPTS / "down"), str(folder)], timeout=120, check=False)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def last_step(run_dir: Path) -> int:
    return max((line["step"] for line in metrics(run_dir)), default=0)


def arguments(out: Path, data: Path, base: Path, *more: str) -> Sequence[str]:
    """Overrides of a small run on the CPU below `out`: run/, done/."""
    chosen = dict(
        text.split("=", 1)
        for text in (
            "model=tiny",
            f"model.base={base}",
            f"dataset.data_dir={data}",
            f"run_dir={out}/run",
            f"output_dir={out}/done",
            "train.max_steps=6",
            "train.global_batch_size=4",
            "train.log_steps=1",
            "train.save_steps=3",
            "train.num_workers=0",
            "train.learning_rate=1e-3",
            "tracking=none",
            "device=cpu",
            *more,
        )
    )
    return [f"{key}={value}" for key, value in chosen.items()]
