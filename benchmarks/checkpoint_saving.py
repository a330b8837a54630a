"""Checkpoints: seconds to save and load, and how long training stands still for it, beside the plain way.

    python -m benchmarks.checkpoint model=small

The plain way stops training, writes every weight (frozen ones and all embodiments' too, in fp32) and both moments of
all that it trains, and continues; it neither hashes nor syncs. Here a snapshot of the trained tensors is taken, which a
thread writes, syncs and hashes while training continues. Both are safetensors. "Training waits" is the time of the
steps from the save until the file is whole, less what as many steps take without a save.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.measuring import describe, in_own_process, say, synchronize
from benchmarks.step import Case, build, make_batch
from finetune.recipe.train_config import TrainConfig
from finetune.training import checkpointing, optimizer
from finetune.training.engine import Engine
from finetune.training.stopping import AttemptToken
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.configuration import load


class Training:
    """A model as training holds it, and steps of it on one batch."""

    def __init__(self, case: Case) -> None:
        self.model, self.case = build(case), case
        self.batch = make_batch(self.model.config, case, case.batch)
        config = load("finetune", ["local=none", f"device={case.device}", "tracking=none"], check_here=False)
        self.engine = Engine(config)
        self.engine.prepare(self.model, optimizer.build_optimizer(self.model, TrainConfig()))
        self.step()

    def step(self) -> float:
        """Seconds of one step."""
        begin = time.perf_counter()
        with torch.autocast(self.case.device, torch.bfloat16):
            loss = self.model(self.batch).loss
        self.engine.backward(loss)
        self.engine.step()
        synchronize(self.case.device)
        return time.perf_counter() - begin

    def usual(self) -> float:
        """Seconds of a step while nothing is saved."""
        return median(self.step() for _ in range(3))


def plain(case: Case, folder: Path) -> dict[str, float]:
    """Save all, in one file, while training waits; load it."""
    training = Training(case)
    path = folder / "everything.safetensors"

    def save() -> None:
        states = {f"{key}.{n}": value for n, own in training.engine.optimizer_state() for key, value in own.items()}
        tensors = {n: t.detach().cpu().contiguous() for n, t in (training.model.state_dict() | states).items()}
        save_file(tensors, path)

    def restore() -> None:
        tensors = load_file(path)
        training.model.load_state_dict({n: tensors[n] for n in training.model.state_dict()})
        _restore_moments(training, tensors)

    waits = _seconds(save)
    return {"save": waits, "waits": waits, "load": _seconds(restore), "gb": path.stat().st_size / 1e9}


def _restore_moments(training: Training, tensors: dict[str, Tensor]) -> None:
    keys = ("step", "exp_avg", "exp_avg_sq")
    names = [name for name, _ in training.model.trained_parameters()]
    optimizer.restore_optimizer(training.engine.optimizer, ((n, {k: tensors[f"{k}.{n}"] for k in keys}) for n in names))


def resumable(case: Case, folder: Path) -> dict[str, float]:
    """`checkpoint-<step>` in the background of training; found, verified and loaded again."""
    training = Training(case)
    writer = checkpointing.CheckpointWriter(folder, 2, None, AttemptToken(folder))
    usual = training.usual()
    begin, steps = time.perf_counter(), 0
    engine = training.engine
    writer.submit(checkpointing.take_snapshot(1, engine.trained_weights(), engine.optimizer_state(), {}))
    while not (folder / "checkpoint-1").exists():
        training.step()
        steps += 1
    waits = time.perf_counter() - begin - steps * usual
    writer.wait()
    writer.close()

    def restore() -> None:
        found = checkpointing.newest_checkpoint(folder)
        assert found is not None
        checkpointing.load_weights(found, training.model)
        engine.restore_optimizer(checkpointing.read_optimizer(found))

    return {"save": writer.seconds, "waits": max(0.0, waits), "load": _seconds(restore), "gb": _gigabytes(folder)}


def release(case: Case, folder: Path) -> dict[str, float]:
    """The finished checkpoint's weights, in bf16 shards; loaded as a policy would be."""
    model = build(case)
    save = _seconds(lambda: model.save_pretrained(folder / "release", dtype=torch.bfloat16))
    load_again = _seconds(lambda: Gr00tN1d7.from_pretrained(folder / "release"))
    return {"save": save, "load": load_again, "gb": _gigabytes(folder)}


KINDS: dict[str, tuple[Callable[[Case, Path], dict[str, float]], dict[str, Any]]] = {
    "plain: all weights and moments, training waits": (plain, {"plain": True, "precision": "bf16"}),
    "checkpoint-<step>, written in the background": (resumable, {}),
    "finished checkpoint (release layout, bf16)": (release, {"acting": True}),
}


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def child(case: dict[str, Any]) -> None:
    """One kind, in a folder of its own."""
    measured, setting = KINDS[case.pop("kind")]
    with tempfile.TemporaryDirectory(dir=case.pop("folder")) as folder:
        print(json.dumps(measured(Case(**case, **setting), Path(folder))))


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        child(json.loads(sys.argv[1]))
        return
    options = {
        "model": "small",
        "batch": "8",
        "folder": tempfile.gettempdir(),
        **dict(a.split("=") for a in sys.argv[1:]),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = {"model": options["model"], "batch": int(options["batch"]), "folder": options["folder"], "device": device}
    print(f"model={options['model']} on {device}, files in {options['folder']}\n{describe()}\n")
    print("| | save, s | training waits, s | load, s | GB |\n|---|---:|---:|---:|---:|")
    for kind in KINDS:
        say(kind)
        row = in_own_process("benchmarks.checkpoint_saving", {"kind": kind, **case})
        if "error" in row:
            print(f"| {kind} | failed: {row['error']} | | | |")
            continue
        waits = f"{row['waits']:.2f}" if "waits" in row else "-"
        print(f"| {kind} | {row['save']:.2f} | {waits} | {row['load']:.2f} | {row['gb']:.2f} |")


if __name__ == "__main__":
    main()
