"""The policy server: what an action takes over the network, beside the same action in one's own process.

    python -m benchmarks.policy_server model=small rounds=20

Random weights; the server is `python -m gr00t.serve` in a process of its own on this machine. Local and served actions
take turns; figures are the fastest of all rounds, those that other work on the machine hit least. "Transport" is the
same request with one key too many, which the server reads whole and refuses before it computes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.measuring import ROOT, Columns, Found
from finetune.create_base import create_base
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.server.client import PolicyClient, ServerRefusal
from toolkit.configuration import load

CASES = ((1, 224, 224), (8, 224, 224), (1, 480, 640))  # robots, height, width
COLUMNS: Columns = {
    "request": "{name}",
    "local, ms": "{local:.1f}",
    "served, ms": "{served:.1f}",
    "more, ms": "{more:.1f}",
    "ratio": "{ratio:.3f}",
    "transport, ms": "{transport:.2f}",
    "difference": "{difference:g}",
}


def make_checkpoint(model: str, folder: Path) -> Path:
    """A checkpoint with random weights that can act."""
    base = create_base(load("create_base", [f"model={model}", f"out={folder}", "dtype=fp32", "local=none"]))
    places = (base, ROOT / "tests/golden/tiny_h40")  # the other knows a robot with an arm and a gripper
    ours, other = (Gr00tN1d7Processor.from_pretrained(place) for place in places)
    tag = "new_embodiment"
    ours.with_embodiment(tag, other.modality_config(tag), other.files.statistics[tag]).save_pretrained(base)
    return base


@contextmanager
def serving(checkpoint: Path) -> Iterator[PolicyClient]:
    """A client of a server of that checkpoint in its own process."""
    settings = (f"checkpoint={checkpoint}", "port=0", "quiet=true", "precision=fp32")
    command = [sys.executable, "-m", "gr00t.serve", *settings]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("listens at"))
        with PolicyClient("127.0.0.1", int(line.split(",")[0].rpartition(":")[2])) as client:
            yield client
            client.kill()
        process.communicate()


def observation(batch: int, height: int, width: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, batch, 1, height, width, 3), dtype=np.uint8)
    return {
        "video.image": images[0],
        "video.wrist_image": images[1],
        "state.arm": rng.uniform(-1, 1, (batch, 1, 7)).astype(np.float32),
        "state.gripper": rng.uniform(0, 0.08, (batch, 1, 1)).astype(np.float32),
        "annotation.human.task_description": ["pick up the color-matching object"] * batch,
    }


def compare(policy: GR00TPolicy, client: PolicyClient, given: dict[str, Any], rounds: int) -> Found:
    """Least milliseconds of local and served actions and of the transport; the largest difference of the actions."""

    def refused() -> None:
        with suppress(ServerRefusal):
            client.get_action({**given, "video.none": 0})

    local, served = (partial(side.get_action, given, seed=0) for side in (policy, client))
    calls: dict[str, Callable[[], Any]] = {"local": local, "served": served, "transport": refused}
    here, there = local(), served()  # and warm
    times = measuring.in_turns(rounds, {name: partial(measuring.seconds, call) for name, call in calls.items()})
    found = {name: 1e3 * min(values) for name, values in times.items()}
    more, ratio = found["served"] - found["local"], found["served"] / found["local"]
    difference = max(float(np.abs(there[key] - here[key]).max()) for key in here)
    return {**found, "more": more, "ratio": ratio, "difference": difference}


def measure(case: dict[str, Any]) -> Found:
    """Every request with one model, in a process that waits as the server does (see in_own_process)."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(case["model"], Path(folder) / "checkpoint")
        policy = GR00TPolicy.from_pretrained(checkpoint)
        with serving(checkpoint) as client:
            return {
                "{} x two views of {} x {}".format(*size): compare(policy, client, observation(*size), case["rounds"])
                for size in CASES
            }


def main() -> None:
    chosen = measuring.options(model="small", rounds=20)
    print(f"model={chosen.model}, fp32\n{measuring.describe()}\n")
    rows = measuring.in_own_process("benchmarks.policy_server", {"model": chosen.model, "rounds": chosen.rounds})
    if "error" in rows:
        sys.exit(f"failed: {rows['error']}")
    measuring.show(COLUMNS, ({"name": name, **row} for name, row in rows.items()))


if __name__ == "__main__":
    measuring.run(measure, main)
