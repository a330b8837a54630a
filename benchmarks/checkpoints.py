"""Checkpoints: seconds to save and load, and how long training stands still for it, beside the plain way.

    python -m benchmarks.checkpoints model=small batch=8    # files in TMPDIR

The plain way stops training, writes every weight (frozen ones and all embodiments' too, in fp32) and both moments of
all that it trains, and continues; it neither hashes nor syncs. Here a snapshot of the trained tensors is taken, which a
thread writes, syncs and hashes while training continues. Both are safetensors. "Training waits" is the time of the
steps from the save until the file is whole, less what as many steps take without a save.

    python -m finetune.create_base model=released out=FOLDER
    python -m benchmarks.checkpoints base=FOLDER                # the released size on a CPU: shards, reload, an action
    python -m benchmarks.checkpoints base=FOLDER rewrite=true   # also saves it once more and compares

These need 7 GB of disk (14 GB with rewrite) and 12 GB of memory. Everything runs in a process of its own, so that its
peak memory is its own."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks import measuring
from benchmarks.measuring import Columns, Found, in_own_process, seconds
from benchmarks.training_step import Case, acting, build, make_batch
from finetune.recipe.train_config import TrainConfig
from finetune.training import checkpointing, optimizer
from finetune.training.engine import Engine
from finetune.training.stopping import AttemptToken
from gr00t.file_replacement import file_sha256, whole_folder
from gr00t.model.checkpoint_folder import weight_files
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import read_tensors
from toolkit.configuration import load

COLUMNS: Columns = {
    "": "{name}",
    "save, s": "{save:.2f}",
    "training waits, s": "{waits:.2f}",
    "load, s": "{load:.2f}",
    "GB": "{gb:.2f}",
}


class Training:
    """A model as training holds it, and steps of it on one batch."""

    def __init__(self, case: Case) -> None:
        self.model, self.case = build(case), case
        self.batch = make_batch(self.model, case, case.batch)
        config = load("finetune", ["local=none", f"device={case.device}", "tracking=none"], check_here=False)
        self.engine = Engine(config)
        self.engine.prepare(self.model, optimizer.build_optimizer(self.model, TrainConfig()))
        self.step()

    def step(self) -> None:
        with torch.autocast(self.case.device, torch.bfloat16):
            loss = self.model(self.batch).loss
        self.engine.backward(loss)
        self.engine.step()


def plain(case: Case, folder: Path) -> Found:
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
        keys = ("step", "exp_avg", "exp_avg_sq")
        moments = ((n, {k: tensors[f"{k}.{n}"] for k in keys}) for n, _ in training.model.trained_parameters())
        optimizer.restore_optimizer(training.engine.optimizer, moments)

    waits = seconds(save)
    return {"save": waits, "waits": waits, "load": seconds(restore), "gb": _gigabytes(folder)}


def resumable(case: Case, folder: Path) -> Found:
    """`checkpoint-<step>` in the background of training; found, verified and loaded again."""
    training = Training(case)
    writer = checkpointing.CheckpointWriter(folder, 2, None, AttemptToken(folder))
    usual = median(seconds(training.step, case.device) for _ in range(3))
    begin, steps = time.perf_counter(), 0
    engine = training.engine
    writer.submit(checkpointing.take_snapshot(1, engine.trained_weights(), engine.optimizer_state(), {}))
    while not (folder / "checkpoint-1").exists():
        seconds(training.step, case.device)
        steps += 1
    waits = time.perf_counter() - begin - steps * usual
    writer.wait()
    writer.close()

    def restore() -> None:
        found = checkpointing.newest_checkpoint(folder)
        assert found is not None
        checkpointing.load_weights(found, training.model)
        engine.restore_optimizer(checkpointing.read_optimizer(found))

    return {"save": writer.seconds, "waits": max(0.0, waits), "load": seconds(restore), "gb": _gigabytes(folder)}


def release(case: Case, folder: Path) -> Found:
    """The finished checkpoint's weights, in bf16 shards; loaded as a policy would be."""
    model = build(case)
    save = seconds(lambda: model.save_pretrained(folder / "release", dtype=torch.bfloat16))
    load_again = seconds(lambda: Gr00tN1d7.from_pretrained(folder / "release"))
    return {"save": save, "waits": math.nan, "load": load_again, "gb": _gigabytes(folder)}


KINDS: dict[str, tuple[Callable[[Case, Path], Found], dict[str, Any]]] = {
    "plain: all weights and moments, training waits": (plain, {"plain": True, "precision": "bf16"}),
    "checkpoint-<step>, written in the background": (resumable, {}),
    "finished checkpoint (release layout, bf16)": (release, {"acting": True}),
}


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


# -- the released size -------------------------------------------------------------------------------------------------


def shards(base: Path) -> Found:
    """Sizes on disk, against those of the release."""
    sizes = [round(path.stat().st_size / 1e9, 2) for path in weight_files(base)]
    return {"shards, GB": sizes, "as released": sizes == [4.99, 1.92]}


def reload(base: Path) -> Found:
    """Load the model and compare every tensor with what is in the files, bit for bit."""
    begin = time.perf_counter()
    loaded = Gr00tN1d7.from_pretrained(base).state_dict()
    took = time.perf_counter() - begin
    equal = {name: torch.equal(tensor, loaded[name]) for name, tensor in read_tensors(base)}
    parameters = sum(tensor.numel() for tensor in loaded.values())
    same = len(equal) == len(loaded) and all(equal.values())
    return {"load, s": took, "tensors equal": same, "parameters": parameters}


def rewrite(base: Path) -> Found:
    """Save the loaded model beside the folder and compare the files byte for byte."""
    model, again = Gr00tN1d7.from_pretrained(base), base.with_name(f"{base.name}-again")
    with whole_folder(again) as aside:
        save = seconds(lambda: model.save_pretrained(aside))
    pairs = zip(weight_files(base), weight_files(again), strict=True)
    return {"save, s": save, "files equal": all(file_sha256(a) == file_sha256(b) for a, b in pairs)}


def act(base: Path) -> Found:
    """One action chunk for one sample of two 256x256 views in bf16; the second of two is timed."""
    return acting(Gr00tN1d7.from_pretrained(base, dtype=torch.bfloat16), Case(steps=1))


STEPS = {step.__name__: step for step in (shards, reload, rewrite, act)}


def measure(case: dict[str, Any]) -> Found:
    """One step with the released size, or one kind of checkpoint in a folder of its own."""
    if "base" in case:
        found: Found = {}
        took = seconds(lambda: found.update(STEPS[case["step"]](Path(case["base"]))))
        return {**found, "whole step, s": took, "peak memory, GB": measuring.peak_memory("cpu") / 1e9}
    measured, setting = KINDS[case.pop("kind")]
    with tempfile.TemporaryDirectory() as folder:
        return measured(Case(**case, **setting), Path(folder))


def main() -> None:
    chosen = measuring.options(model="small", batch=8, base="", rewrite=False)
    if chosen.base:
        for step in STEPS:
            if step != "rewrite" or chosen.rewrite:
                found = {"step": step, **in_own_process("benchmarks.checkpoints", {"step": step, "base": chosen.base})}
                print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}), flush=True)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = {"model": chosen.model, "batch": chosen.batch, "device": device}
    print(f"model={chosen.model} on {device}, files in {tempfile.gettempdir()}\n{measuring.describe()}\n")
    of_kind = ({"name": kind, **in_own_process("benchmarks.checkpoints", {"kind": kind, **case})} for kind in KINDS)
    measuring.show(COLUMNS, of_kind)


if __name__ == "__main__":
    measuring.run(measure, main)
