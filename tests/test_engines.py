"""Engines: the same losses whichever divides the work, and checkpoints that move from one to the other."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import STEPS, config, losses, overrides, run_processes, trained

from finetune.train import finetune

deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason='DeepSpeed is not installed: pip install ".[deepspeed]"'
)


@pytest.fixture(scope="module")
def single(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, from its first step to its last."""
    out = tmp_path_factory.mktemp("single")
    finetune(config(out, small_data, tiny_base))
    return out


@pytest.fixture(scope="module")
def zero2(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in two processes of ZeRO-2, two micro-batches each."""
    out = tmp_path_factory.mktemp("zero2")
    run_processes(2, overrides(out, small_data, tiny_base, "engine=zero2", "train.micro_batch_size=1"))
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
    assert {s: v for s, v in losses(single).items() if s > 3} == losses(tmp_path)
    there, here = trained(single), trained(tmp_path)
    assert all(torch.equal(there[name], here[name]) for name in there | here)


@deepspeed
@pytest.mark.multiprocess
def test_zero2_gives_the_losses_of_one_process(single: Path, zero2: Path) -> None:
    assert losses(zero2)[1] == pytest.approx(losses(single)[1], rel=1e-6)
    assert losses(zero2) == pytest.approx(losses(single), rel=1e-3)
    assert (zero2 / "done" / "config.json").is_file()


@deepspeed
@pytest.mark.multiprocess
def test_a_checkpoint_of_zero2_holds_whole_tensors(single: Path, zero2: Path) -> None:
    for name in ("trained.safetensors", "optimizer.safetensors"):
        there, here = (load_file(run / "run" / f"checkpoint-{STEPS}" / name) for run in (single, zero2))
        assert {n: (t.shape, t.dtype) for n, t in there.items()} == {n: (t.shape, t.dtype) for n, t in here.items()}


@deepspeed
@pytest.mark.multiprocess
def test_stopped_under_zero2_a_run_goes_on_in_one_process(
    single: Path, zero2: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    finetune(config(stopped_at_3(zero2, tmp_path), small_data, tiny_base))
    assert losses(tmp_path) == pytest.approx({s: v for s, v in losses(single).items() if s > 3}, rel=1e-3)


@deepspeed
@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", [1, 2])
def test_stopped_in_one_process_a_run_goes_on_under_zero2(
    processes: int, single: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run_processes(processes, overrides(stopped_at_3(single, tmp_path), small_data, tiny_base, "engine=zero2"))
    assert losses(tmp_path) == pytest.approx({s: v for s, v in losses(single).items() if s > 3}, rel=1e-3)


@deepspeed
@pytest.mark.multiprocess
def test_resumed_under_zero2_a_run_repeats_the_uninterrupted_one_bit_for_bit(
    zero2: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    more = ("engine=zero2", "train.micro_batch_size=1")
    run_processes(2, overrides(stopped_at_3(zero2, tmp_path), small_data, tiny_base, *more))
    assert {s: v for s, v in losses(zero2).items() if s > 3} == losses(tmp_path)
    there, here = trained(zero2), trained(tmp_path)
    assert all(torch.equal(there[name], here[name]) for name in there | here)
