"""Training step: samples/s and memory, the settings of this toolkit beside the plain way, in one run.

    python benchmarks/training_step.py model=small batch=32 steps=3

Each setting runs in a process of its own, on random weights and one fixed batch (two 256x256 views, one instruction).
Memory is the highest resident size (GPU: allocated) over that of the process before the model is built. The peak of
the machine's matrix products (bf16 and fp32) is measured in the same run; a step's share of it counts the products of
all layers, forward, and backward of what is trained.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

SETTINGS = {
    "plain, fp32": {"plain": True, "precision": "fp32", "cached": False},
    "live, fp32": {"plain": False, "precision": "fp32", "cached": False},
    "live, bf16": {"plain": False, "precision": "bf16", "cached": False},
    "cached features, fp32": {"plain": False, "precision": "fp32", "cached": True},
    "cached features, bf16": {"plain": False, "precision": "bf16", "cached": True},
}


def resident() -> float:
    """Highest resident size of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def build(model_name: str, setting: dict[str, Any], device: torch.device) -> Any:
    """A model with random weights as training holds it."""
    from plain import make_plain

    from finetune.config import load
    from finetune.create_base import random_model

    tokens = {"<|image_pad|>": 6, "<|video_pad|>": 7, "<|vision_start|>": 3, "<|vision_end|>": 4}
    architecture = load("create_base", [f"model={model_name}", "out=unused"], check_here=False).model.architecture
    frozen = "fp32" if setting["precision"] == "fp32" else "bf16"
    model = random_model(architecture, tokens, seed=0, dtype=frozen)
    model.set_trainable(projector=True, diffusion_model=True, vlln=True)
    if setting["plain"]:
        make_plain(model)
    else:
        model.keep_embodiments([10])
        drop_waiting(model)
    model.train()
    if setting["cached"]:
        del model.backbone
    for _, parameter in model.trained_parameters():
        parameter.data = parameter.data.float()
    return torch.nn.Module.to(model, device)


def drop_waiting(model: Any) -> None:
    """Weights of other embodiments wait on the CPU in a run; they are no part of the device's memory."""
    from gr00t.model.embodiment import EmbodimentLinear

    for module in model.modules():
        if isinstance(module, EmbodimentLinear):
            module._set_aside = {}


def make_batch(config: Any, image_token: int, size: int, device: torch.device, setting: dict[str, Any]) -> dict:
    """Two 256x256 views and 22 text tokens a sample: 150 tokens, as a conflict split's instruction gives."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((size, 150), 20)
    ids[:, 5:69] = ids[:, 71:135] = image_token
    shape = (size, config.action_horizon, config.max_action_dim)
    mask = torch.zeros(shape)
    mask[:, :16, :8] = 1
    batch = {
        "attention_mask": torch.ones_like(ids),
        "state": torch.randn((size, 1, config.max_state_dim), generator=generator),
        "embodiment_id": torch.full((size,), 10),
        "action": torch.randn(shape, generator=generator),
        "action_mask": mask,
        "noise": torch.randn(shape, generator=generator),
        "time": torch.rand((size,), generator=generator),
    }
    if setting["cached"]:
        dtype = torch.float32 if setting["precision"] == "fp32" else torch.bfloat16
        batch["features"] = torch.randn((size, 150, config.backbone_embedding_dim), generator=generator).to(dtype)
        batch["image_mask"] = ids == image_token
    else:
        batch["input_ids"] = ids
        batch["images"] = torch.randint(0, 255, (2 * size, 256, 256, 3), generator=generator, dtype=torch.uint8)
        batch["image_grid_thw"] = torch.tensor([[1, 16, 16]] * 2 * size)
    return {k: v.to(device) for k, v in batch.items()}


def measure(model_name: str, name: str, size: int, steps: int) -> dict[str, float]:
    """Median samples/s over `steps` after one warm-up, memory, trained parameters, of one setting."""
    from finetune.config import TrainConfig
    from finetune.optim import build_optimizer

    setting = SETTINGS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = resident()
    model = build(model_name, setting, device)
    image_token = 6
    batch = make_batch(model.config, image_token, size, device, setting)
    optimizer = build_optimizer(model, TrainConfig())
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=setting["precision"] == "bf16")
    times = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        with autocast:
            loss = model(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in model.trained_parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    on_gpu = device.type == "cuda"
    return {
        "seconds": statistics.median(times[1:]),
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else resident() - before,
        "trained": float(sum(p.numel() for _, p in model.trained_parameters())),
        "loss": float(loss.detach()),
    }


def product_peak(dtype: torch.dtype) -> float:
    """FLOP/s of large matrix products here: the best of eight."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        begin = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best


def main() -> None:
    options = dict(a.split("=", 1) for a in sys.argv[1:])
    if "setting" in options:  # the child process of one setting
        one = measure(options["model"], options["setting"], int(options["batch"]), int(options["steps"]))
        print(json.dumps(one))
        return
    model, size, steps = options.get("model", "small"), options.get("batch", "32"), options.get("steps", "3")
    rows = {}
    for name in SETTINGS:
        command = [sys.executable, __file__, f"setting={name}", f"model={model}", f"batch={size}", f"steps={steps}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        rows[name] = json.loads(done.stdout.splitlines()[-1])
    report(model, int(size), rows)


def report(model: str, size: int, rows: dict[str, dict[str, float]]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    peaks = ", ".join(f"{str(d)[6:]} {product_peak(d) / 1e9:,.0f} GFLOP/s" for d in (torch.float32, torch.bfloat16))
    print(f"model={model}, batch {size}, {device}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"matrix products: {peaks}\n")
    print("| setting | samples/s | x plain | memory, GiB | of plain | trained, M |\n|---|---:|---:|---:|---:|---:|")
    plain = rows["plain, fp32"]
    for name, r in rows.items():
        print(
            f"| {name} | {size / r['seconds']:.2f} | {plain['seconds'] / r['seconds']:.2f} | {r['memory_gib']:.2f} "
            f"| {r['memory_gib'] / plain['memory_gib']:.2f} | {r['trained'] / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
