"""The policy server: what an action takes over the network, beside the same action in one's own process.

    python -m benchmarks.serve model=small

Random weights; the server is `python -m gr00t.serve` in a process of its own on this machine. Local and served actions
take turns; figures are the fastest of all rounds, those that other work on the machine hit least. "Transport" is the
same request with one key too many, which the server reads whole and refuses before it computes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import ROOT, describe, in_own_process
from finetune.create_base import create_base
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.server.client import PolicyClient, ServerRefusal
from toolkit.configuration import load

CASES = ((1, 224, 224), (8, 224, 224), (1, 480, 640))  # robots, height, width
STATISTICS = ROOT / "tests" / "golden" / "tiny_h40"  # of a robot with an arm and a gripper


def make_checkpoint(model: str, folder: Path) -> Path:
    """A checkpoint with random weights that can act."""
    base = create_base(load("create_base", [f"model={model}", f"out={folder}", "dtype=fp32", "local=none"]))
    ours, other = (Gr00tN1d7Processor.from_pretrained(path) for path in (base, STATISTICS))
    config = replace(ours.files.config, modality_configs=other.files.config.modality_configs)
    files = replace(ours.files, config=config, statistics=other.files.statistics)
    Gr00tN1d7Processor(files, ours.vlm).save_pretrained(base)
    return base


@contextmanager
def serving(checkpoint: Path) -> Iterator[PolicyClient]:
    """A client of a server of that checkpoint in its own process."""
    command = [
        sys.executable,
        "-m",
        "gr00t.serve",
        f"checkpoint={checkpoint}",
        "port=0",
        "quiet=true",
        "precision=fp32",
    ]
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


def compare(policy: GR00TPolicy, client: PolicyClient, given: dict[str, Any], rounds: int) -> dict[str, float]:
    """Least milliseconds of local and served actions and of the transport; the largest difference of the actions."""
    times: dict[str, list[float]] = {"local": [], "served": [], "transport": []}
    found: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {
        "local": lambda: policy.get_action(given, seed=0),
        "served": lambda: client.get_action(given, seed=0),
        "transport": lambda: _refused(client, given),
    }
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            found[name] = call()
            times[name].append(1e3 * (time.perf_counter() - begin))
    local, served = found["local"], found["served"]
    difference = max(float(np.abs(served[key] - local[key]).max()) for key in local)
    return {**{name: min(values[1:]) for name, values in times.items()}, "difference": difference}


def _refused(client: PolicyClient, given: dict[str, Any]) -> None:
    with suppress(ServerRefusal):
        client.get_action({**given, "video.none": 0})


def child(case: dict[str, Any]) -> None:
    """Every request with one model, in a process that waits as the server does (see in_own_process)."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(case["model"], Path(folder) / "checkpoint")
        policy = GR00TPolicy.from_pretrained(checkpoint)
        with serving(checkpoint) as client:
            rows = {
                f"{batch} x two views of {height} x {width}": compare(
                    policy, client, observation(batch, height, width), case["rounds"]
                )
                for batch, height, width in CASES
            }
    print(json.dumps(rows))


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        child(json.loads(sys.argv[1]))
        return
    options = {"model": "small", "rounds": "20", **dict(a.split("=") for a in sys.argv[1:])}
    print(f"model={options['model']}, fp32\n{describe()}\n")
    rows = in_own_process("benchmarks.serving", {"model": options["model"], "rounds": int(options["rounds"])})
    if "error" in rows:
        sys.exit(f"failed: {rows['error']}")
    print("| request | local, ms | served, ms | more, ms | ratio | transport, ms | difference |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        print(f"| {name} | {_cells(row)} |")


def _cells(row: dict[str, float]) -> str:
    local, served = row["local"], row["served"]
    more = f"{served - local:.1f} | {served / local:.3f} | {row['transport']:.2f} | {row['difference']:g}"
    return f"{local:.1f} | {served:.1f} | {more}"


if __name__ == "__main__":
    main()
