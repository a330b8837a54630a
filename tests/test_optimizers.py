"""Optimizers that save memory: they learn as AdamW does, hold what they promise, and resume bit for bit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import config, losses, trained

from finetune.recipe.recipe_identity import completed
from finetune.recipe.train_config import TrainConfig
from finetune.training.checkpointing import Checkpoint, check_same_run
from finetune.training.optimizer import (
    build_optimizer,
    learning_rate,
    optimizer_state,
    parameter_groups,
    restore_optimizer,
    set_learning_rate,
)
from finetune.training.train import finetune
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

STEPS = 8
KINDS = ("adamw", "adamw_8bit", "adamw_offload")
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def runs(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same eight steps with each optimizer."""
    out = tmp_path_factory.mktemp("optimizers")
    for kind in KINDS:
        more = (f"train.optimizer={kind}", f"train.max_steps={STEPS}", "train.save_steps=4")
        finetune(config(out / kind, small_data, tiny_base, *more))
    return {kind: out / kind for kind in KINDS}


def test_the_offloaded_update_is_that_of_adamw(runs: dict[str, Path]) -> None:
    assert losses(runs["adamw_offload"]) == losses(runs["adamw"])
    there, here = trained(runs["adamw"], STEPS), trained(runs["adamw_offload"], STEPS)
    assert all(torch.equal(there[name], here[name]) for name in there | here)


def test_eight_bits_learn_as_well_as_thirty_two(runs: dict[str, Path]) -> None:
    plain, small = losses(runs["adamw"]), losses(runs["adamw_8bit"])
    assert small == pytest.approx(plain, rel=1e-2) and small != plain
    assert small[STEPS] < small[1]


@pytest.mark.parametrize("kind", ["adamw_8bit", "adamw_offload"])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    kind: str, runs: dict[str, Path], small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs[kind] / "run" / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    more = (f"train.optimizer={kind}", f"train.max_steps={STEPS}", "train.save_steps=4")
    finetune(config(tmp_path, small_data, tiny_base, *more))
    assert losses(tmp_path) == {step: loss for step, loss in losses(runs[kind]).items() if step > 4}
    for name in ("trained.safetensors", "optimizer.safetensors"):
        there, here = (load_file(out / "run" / f"checkpoint-{STEPS}" / name) for out in (runs[kind], tmp_path))
        assert all(torch.equal(there[key], here[key]) for key in there | here)


def test_another_optimizer_does_not_continue_a_run(
    runs: dict[str, Path], small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs["adamw"] / "run" / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    with pytest.raises(ToolkitError, match=r"train\.optimizer: 'adamw' there, 'adamw_8bit' now"):
        finetune(config(tmp_path, small_data, tiny_base, f"train.max_steps={STEPS}", "train.optimizer=adamw_8bit"))


def test_a_run_of_before_a_key_existed_continues_with_its_default() -> None:
    old = {"train.learning_rate": 1e-4, "dataset": "x"}
    now = {**completed(old), "train.learning_rate": 1e-4}
    assert now["train.noise_draws"] == 1 and now["train.backbone_learning_rate"] is None
    check_same_run(Checkpoint(Path("c"), 1, {"identity": old}), now)
    with pytest.raises(ToolkitError, match=r"train\.noise_draws: 1 there, 4 now"):
        check_same_run(Checkpoint(Path("c"), 1, {"identity": old}), {**now, "train.noise_draws": 4})


@pytest.mark.parametrize("rate", [None, 2e-5])
def test_the_backbone_learns_at_its_own_rate(rate: float | None, tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    model.set_trainable(projector=True, diffusion_model=True, vlln=True, visual=True)
    train = TrainConfig(learning_rate=1e-4, backbone_learning_rate=rate)
    optimizer = build_optimizer(model, train)
    set_learning_rate(optimizer, learning_rate(train.max_steps // 4, train))
    peak = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert set(peak) == {name for name, _ in model.trained_parameters()} and len(set(peak.values())) == 1 + bool(rate)
    for group in parameter_groups(model, train.weight_decay):
        assert {decay[name] for name in group["names"]} == {group["weight_decay"]}
    now = learning_rate(train.max_steps // 4, train)
    for name, value in peak.items():
        share = 0.2 if rate and name.startswith("backbone.") else 1.0
        assert value == pytest.approx(share * now, rel=1e-9)


def stepped(kind: str, device: str, steps: int = 3) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(512, 512).to(device)
    optimizer = build_optimizer(model, TrainConfig(optimizer=kind))
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, 512, device=model.weight.device)).square().sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # after backward, as the loop does
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("kind, bytes_each", [("adamw", 8), ("adamw_8bit", 2 + 8 / 256), ("adamw_offload", 8)])
def test_state_takes_the_promised_bytes_on_the_promised_device(kind: str, bytes_each: float, device: str) -> None:
    model, optimizer = stepped(kind, device)
    state = [t for t in optimizer.state[model.weight].values() if isinstance(t, torch.Tensor) and t.numel() > 256]
    assert sum(t.numel() * t.element_size() for t in state) == bytes_each * model.weight.numel()
    assert {t.device.type for t in state} == {"cpu" if kind == "adamw_offload" else device}


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_optimizer_continues_bit_for_bit(kind: str, device: str) -> None:
    model, optimizer = stepped(kind, device)
    other, fresh = stepped(kind, device, steps=0)
    other.load_state_dict(model.state_dict())
    restore_optimizer(fresh, [(n, {k: t.clone().cpu() for k, t in s.items()}) for n, s in optimizer_state(optimizer)])
    for chosen in ((model, optimizer), (other, fresh)):
        step(*chosen)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_offloaded_update_of_a_gpu_is_that_of_the_cpu() -> None:
    there, here = stepped("adamw_offload", "cuda")[0], stepped("adamw_offload", "cpu")[0]
    assert torch.allclose(there.weight.cpu(), here.weight, atol=1e-6)


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ToolkitError, match=r"needs bitsandbytes\. .*pip install '\.\[optimizers\]'"):
        config(tmp_path, small_data, tiny_base, "train.optimizer=adamw_8bit")
