"""Engines: the same losses whichever divides the work, and checkpoints that move from one to the other."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import ROOT, STEPS, assert_same_gradients, config, losses, metrics, overrides, run_processes, trained

from finetune.training.train import finetune

deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install '.[deepspeed]'"
)


@pytest.fixture(scope="module")
def single(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, from its first step to its last."""
    out = tmp_path_factory.mktemp("single")
    finetune(config(out, small_data, tiny_base))
    return out


@pytest.fixture(
    scope="module", params=[pytest.param("fsdp2", marks=pytest.mark.long), pytest.param("zero2", marks=deepspeed)]
)
def engine(request: pytest.FixtureRequest) -> str:
    """An engine that divides memory among its processes."""
    return str(request.param)


@pytest.fixture(scope="module")
def divided(engine: str, small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in two processes, two micro-batches each."""
    out = tmp_path_factory.mktemp(engine)
    run_processes(2, overrides(out, small_data, tiny_base, f"engine={engine}", "train.micro_batch_size=1"))
    return out


def stopped_at_3(run: Path, out: Path) -> Path:
    """A run folder as it was when `run` had done three steps."""
    shutil.copytree(run / "run" / "checkpoint-3", out / "run" / "checkpoint-3")
    return out


def test_activation_checkpointing_continues_a_run_begun_without_it_bit_for_bit(
    single: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    again = "train.activation_checkpointing=true"
    finetune(config(stopped_at_3(single, tmp_path), small_data, tiny_base, again))
    assert metrics(single, after=3) == metrics(tmp_path)
    there, here = trained(single), trained(tmp_path)
    assert all(torch.equal(there[name], here[name]) for name in there | here)


@pytest.mark.multiprocess
def test_divided_memory_gives_the_losses_of_one_process(single: Path, divided: Path) -> None:
    assert losses(divided)[1] == pytest.approx(losses(single)[1], rel=1e-6)
    assert losses(divided) == pytest.approx(losses(single), rel=1e-3)


@pytest.mark.multiprocess
def test_divided_memory_measures_the_gradients_of_one_process(single: Path, divided: Path) -> None:
    assert_same_gradients(divided, single)


@pytest.mark.multiprocess
def test_its_checkpoints_hold_whole_tensors(single: Path, divided: Path) -> None:
    for name in ("trained.safetensors", "optimizer.safetensors"):
        there, here = (load_file(run / "run" / f"checkpoint-{STEPS}" / name) for run in (single, divided))
        assert {n: (t.shape, t.dtype) for n, t in there.items()} == {n: (t.shape, t.dtype) for n, t in here.items()}


@pytest.mark.multiprocess
def test_its_finished_checkpoint_holds_the_last_weights(divided: Path) -> None:
    released = load_file(divided / "done" / "model-00001-of-00001.safetensors")
    for name, weight in trained(divided).items():
        found = released[name]
        part = found if found.shape == weight.shape else found[10:11]  # of all robots' weights, the trained one's
        assert torch.equal(part, weight.to(part.dtype)), name


@pytest.mark.multiprocess
def test_stopped_there_a_run_continues_in_one_process(
    single: Path, divided: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    finetune(config(stopped_at_3(divided, tmp_path), small_data, tiny_base))
    assert losses(tmp_path) == pytest.approx({s: v for s, v in losses(single).items() if s > 3}, rel=1e-3)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "name, processes", [pytest.param("zero2", 2, marks=[deepspeed, pytest.mark.long]), ("fsdp2", 1)]
)
def test_stopped_in_one_process_a_run_continues_there(
    name: str, processes: int, single: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run_processes(processes, overrides(stopped_at_3(single, tmp_path), small_data, tiny_base, f"engine={name}"))
    assert losses(tmp_path) == pytest.approx({s: v for s, v in losses(single).items() if s > 3}, rel=1e-3)


@pytest.mark.multiprocess
def test_resumed_there_a_run_repeats_the_uninterrupted_one_bit_for_bit(
    engine: str, divided: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    more = (f"engine={engine}", "train.micro_batch_size=1", "train.activation_checkpointing=true")
    run_processes(2, overrides(stopped_at_3(divided, tmp_path), small_data, tiny_base, *more))
    assert metrics(divided, after=3) == metrics(tmp_path)
    there, here = trained(divided), trained(tmp_path)
    assert all(torch.equal(there[name], here[name]) for name in there | here)


UNDER_A_GPUS_AUTOCAST = """
import torch
from finetune.recipe.train_config import TrainConfig
from toolkit.configuration import load
from finetune.training.optimizer import build_optimizer
from finetune.training import engine as engine_module
from finetune.training.engine import Zero2Engine
engine = Zero2Engine(load("finetune", ["local=none", "device=cpu", "engine=zero2_bf16"], check_here=False))
module = torch.nn.Linear(4, 4)
engine.prepare(module, build_optimizer(module, TrainConfig()))
torch.set_autocast_enabled("cuda", True)  # what DeepSpeed looks at
with engine.autocast():
    output = engine.module(torch.ones(1, 4))
engine.backward(output.sum())
print(output.dtype, module.weight.dtype, float(engine.step()) > 0)
group = torch.distributed.group.WORLD
engine.close()
print("the group outlives the model:", group in engine_module._left and not torch.distributed.is_initialized())
"""


@deepspeed
def test_deepspeed_leaves_the_autocast_of_a_gpu_on_and_the_group_in_memory() -> None:
    command = [sys.executable, "-c", UNDER_A_GPUS_AUTOCAST]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = ["torch.bfloat16 torch.float32 True", "the group outlives the model: True"]
    assert done.stdout.splitlines()[-2:] == said, done.stderr[-3000:]
