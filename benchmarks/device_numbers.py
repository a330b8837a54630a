"""What must hold of the numbers on a device; benchmarks.gpu runs each check in a process of its own:
`python -m benchmarks.device_numbers '{"check": "parity", "device": "cuda"}'`.

A check gives what was found, the bound it must keep, and in words what was compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measuring import ROOT
from gr00t.model import cpu_kernels
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

sys.path.insert(0, str(ROOT / "tests"))
from golden_files import CARRIED, checkpoint_of, infer_files, load, train_files
from parity.measure import inputs_of


@dataclass(frozen=True)
class Found:
    """The largest difference of what was compared, and the most it may be."""

    difference: float
    bound: float
    compared: str

    @property
    def holds(self) -> bool:
        return self.difference <= self.bound


def parity(device: str) -> Found:
    """Normalised actions of the original's recordings."""
    worst = 0.0
    for path in infer_files():
        data = load(path)
        model = Gr00tN1d7.from_pretrained(checkpoint_of(path), dtype=torch.float32).to(device)
        model.action_head.padding_leaks = True
        torch.manual_seed(int(data["seed"]))
        actions = model.get_action(_on(device, inputs_of(data)), noise=torch.randn(data["action_pred"].shape))
        worst = max(worst, float((actions.cpu() - torch.from_numpy(data["action_pred"])).abs().max()))
    bound = 5e-6 if device == "cpu" else 1e-4
    return Found(worst, bound, f"actions of {len(infer_files())} recordings of the original, fp32")


def padding(device: str) -> Found:
    """Actions in bf16 with padding before the prompt: both are as far from fp32 as bf16 takes them."""
    inputs = inputs_of(load(CARRIED / "infer_tiny_h50__new_embodiment.npz"))
    one = {name: values[: len(values) // 2] for name, values in inputs.items()}
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = Gr00tN1d7.from_pretrained(CARRIED / "tiny_h50", dtype=dtype).to(device)
        noise = torch.randn((1, 50, 128), generator=torch.Generator().manual_seed(0))
        for count in (0, 16, 200):
            padded = {n: F.pad(v, (count, 0)) if n in ("input_ids", "attention_mask") else v for n, v in one.items()}
            found[dtype, count] = model.get_action(_on(device, padded), noise=noise).float()
    plain = found[torch.bfloat16, 0]
    rounding = float((plain - found[torch.float32, 0]).abs().max())
    moved = max(float((found[torch.bfloat16, count] - plain).abs().max()) for count in (16, 200))
    return Found(
        moved, 2 * rounding, "actions in bf16 with 16 and 200 tokens of padding; bound: twice the error of bf16"
    )


def switch(device: str) -> Found:
    """Loss and gradients of a training step: on the device, on the CPU, and there with the CPU's own kernels off."""
    path = train_files()[0]
    results = [_loss_and_gradients(path, "cpu", on) for on in (True, False)]
    if device != "cpu":
        results.append(_loss_and_gradients(path, device, True))
    worst = max(float((other - results[0]).abs().max()) for other in results[1:])
    return Found(worst, 1e-5 if device == "cpu" else 1e-3, "loss and gradients, relative: CPU kernels on, off, device")


def _loss_and_gradients(path: Path, device: str, on: bool) -> Tensor:
    """The loss, and every gradient's norm as a share of all, (1 + parameters,)."""
    data = load(path)
    model = Gr00tN1d7.from_pretrained(checkpoint_of(path), dtype=torch.float32).to(device).train()
    inputs = _on(device, inputs_of(data) | {n: torch.from_numpy(data[f"eval::{n}"]) for n in ("noise", "time")})
    with cpu_kernels.switched(on):
        loss = model(inputs).loss
        loss.backward()
    norms = torch.stack([p.grad.norm() for _, p in model.trained_parameters() if p.grad is not None])
    return torch.cat([loss.detach()[None], norms / norms.norm()]).double().cpu()


def fsdp2(device: str) -> Found:
    """The first loss of a run whose memory is divided."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), device)
        eager = ("train.max_steps=1", "train.compile=false")
        losses = [runs.train(name, f"engine={name}", *eager)[1] for name in ("single", "fsdp2")]
    bound = 1e-6 if device == "cpu" else 1e-3
    return Found(abs(losses[1] / losses[0] - 1), bound, "loss of a step of engine=fsdp2 beside engine=single")


def resume(device: str) -> Found:
    """Losses and weights of a run that stopped half way, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), device)
        more = ("train.max_steps=4", "train.save_steps=2")
        whole = runs.train("whole", *more)
        shutil.copytree(runs.folder / "whole", runs.folder / "cut")
        for lost in ("run/checkpoint-4", "done"):
            shutil.rmtree(runs.folder / "cut" / lost)
        again = runs.train("cut", *more)
        there, here = (
            load_file(runs.folder / name / "run/checkpoint-4/trained.safetensors") for name in ("whole", "cut")
        )
    apart = max(float((there[name].double() - here[name].double()).abs().max()) for name in there)
    return Found(max(apart, abs(whole[4] - again[4])), 0.0, "weights and loss of a resumed run beside the whole one")


class Runs:
    """Short fine-tunes of the tiny model on the sample recordings, below one folder."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self._command("prepare_conflict_data.py", "split=color_object", "raw_dir=samples", f"data_dir={folder}/data")
        self._command("-m", "finetune.create_base", "model=tiny", f"out={folder}/base")

    def train(self, name: str, *more: str) -> dict[int, float]:
        """The loss of every step."""
        out = self.folder / name
        self._command(
            "launch_finetune_local.py",
            *("experiment=demo", "split=color_object", f"model.base={self.folder}/base", f"device={self.device}"),
            *(f"dataset.data_dir={self.folder}/data", f"run_dir={out}/run", f"output_dir={out}/done", "tracking=none"),
            *("train.global_batch_size=4", "train.num_workers=0", "train.log_steps=1", *more),
        )
        lines = map(json.loads, (out / "run" / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    def _command(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments, "local=none"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments[:2])}: {done.stderr.strip().splitlines()[-1]}")


def _on(device: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in inputs.items()}


CHECKS: dict[str, Callable[[str], Found]] = {
    "parity": parity,
    "padding": padding,
    "switch": switch,
    "fsdp2": fsdp2,
    "resume": resume,
}


def main() -> None:
    case = json.loads(sys.argv[1])
    found = CHECKS[case["check"]](case["device"])
    print(json.dumps({**asdict(found), "holds": found.holds}))


if __name__ == "__main__":
    main()
