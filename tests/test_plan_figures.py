"""The plan's figures: those carried ones are not moved by accident, and shares are those worked out by hand.

`python tests/test_plan_figures.py` writes tests/golden/plans.json again, after a change that is meant to move them.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from config_calls import compose

from finetune.plan import Plan, device_verdict, host_verdict, make_plan
from finetune.plan.__main__ import as_json
from finetune.plan.activations import FP32, VISION_HEAD, Batch, Kernels, _vision_passing
from finetune.plan.disk_and_time import find_gpu
from finetune.plan.memory import ZERO_BUCKETS, device_memory
from finetune.plan.model_shapes import Shape
from finetune.recipe import FinetuneConfig

CARRIED = Path(__file__).parent / "golden/plans.json"
GB = 1_000_000_000
# name: (settings of a fine-tune, GPUs, of a node, on a CPU)
SETTINGS: dict[str, tuple[list[str], int, int, bool]] = {
    "recipe": ([], 4, 4, False),
    "one GPU": ([], 1, 1, False),
    "two nodes, accumulated": (["train.global_batch_size=64", "train.micro_batch_size=4"], 8, 4, False),
    "zero2": (["engine=zero2"], 4, 4, False),
    "fsdp2": (["engine=fsdp2", "train.micro_batch_size=2"], 4, 2, False),
    "cached": (["train.features=cached", "augment.views=4", "train.noise_draws=4"], 2, 2, False),
    "recomputed": (["train.activation_checkpointing=true", "train.backbone_batch_size=2"], 1, 1, False),
    "8 bit": (["train.optimizer=adamw_8bit", "train.tune.all_embodiments=true"], 1, 1, False),
    "offloaded": (["train.optimizer=adamw_offload", "train.num_workers=3"], 2, 2, False),
    "language model": (["train.tune.llm=true", "train.tune.visual=true"], 4, 4, False),
    "top layers": (["train.tune.top_llm_layers=2", "train.tune.diffusion_model=false"], 1, 1, False),
    "adapters": (["train.lora.rank=8", "train.lora.targets=[q_proj,down_proj]"], 1, 1, False),
    "checkpoints": (["train.eval_steps=50", "train.keep_every=3000", "train.save_steps=2000"], 1, 1, False),
    "tiny on a CPU": (["model=tiny", "train.precision=fp32"], 2, 2, True),
    "small on a CPU": (["model=small", "train.precision=bf16", "train.features=cached", "augment.views=1"], 1, 1, True),
}  # fmt: skip


def planned(settings: list[str], gpus: int, per_node: int, cpu: bool) -> Plan:
    config: FinetuneConfig = compose("finetune", "model.base=absent", "dataset.data_dir=absent", *settings)
    return make_plan(config, gpus, per_node=per_node, cuda=not cpu, gpu=None if cpu else find_gpu("a100"))


def figures(settings: list[str], gpus: int, per_node: int, cpu: bool) -> dict[str, Any]:
    """All that the plan says, with what it would take to fit into little."""
    plan = planned(settings, gpus, per_node, cpu)
    return json.loads(json.dumps(as_json(plan, [device_verdict(plan, 16 * GB), host_verdict(plan, None)])))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_plan_says_what_it_said(name: str) -> None:
    found, carried = figures(*SETTINGS[name]), json.loads(CARRIED.read_text())[name]
    assert found == carried


def moments(*settings: str, gpus: int = 1) -> dict[str, int]:
    """What each phase of a step holds besides what lies there all the time."""
    run = planned(["train.micro_batch_size=4", *settings], gpus, gpus, False).run
    found = device_memory(run)
    steady = ("frozen weights", "trained weights", "optimizer moments", "batch", "own share of the weights",
              "ZeRO-2's buckets", "gathered weights")  # fmt: skip
    lying = sum(part.size for part in found.parts if part.name in steady)
    return {name: size - lying for name, size in found.moments.items()}


def test_the_optimizer_steps_over_the_gradients_that_a_process_holds() -> None:
    trained = planned([], 1, 1, False).run.trained
    whole = FP32 * trained
    assert moments("engine=single", "train.global_batch_size=4")["optimizer step"] == whole
    assert moments("engine=ddp", gpus=4)["optimizer step"] == whole
    assert moments("engine=fsdp2", gpus=4)["optimizer step"] == whole // 4
    assert moments("engine=zero2", gpus=4)["optimizer step"] == 2 * (whole // 4)


def test_gradients_are_held_in_the_forward_once_there_are_some() -> None:
    """From the second micro-batch of a step on, or in DDP's buckets; of engines that divide them, the own share."""
    whole = FP32 * planned([], 1, 1, False).run.trained
    phases = ("forward of the backbone", "forward of the head")
    alone = moments("engine=single", "train.global_batch_size=4")
    for more, gpus, held in (
        (["engine=single", "train.global_batch_size=8"], 1, whole),
        (["engine=ddp", "train.global_batch_size=8"], 2, whole),
        (["engine=ddp", "train.global_batch_size=16"], 2, whole),
        (["engine=fsdp2", "train.global_batch_size=8"], 2, whole // 2),
        (["engine=zero2", "train.global_batch_size=16"], 4, whole // 4),
    ):
        found = moments(*more, gpus=gpus)
        for phase in phases:
            assert found[phase] - alone[phase] == held, (more, phase)


def test_weights_moments_and_buckets_are_divided_as_the_engine_does() -> None:
    def parts(*settings: str, gpus: int) -> dict[str, int]:
        return {part.name: part.size for part in planned(list(settings), gpus, gpus, False).device.parts}

    trained = planned([], 1, 1, False).run.trained
    one, ddp = parts("engine=single", gpus=1), parts("engine=ddp", gpus=4)
    for found in (one, ddp):
        assert (found["trained weights"], found["optimizer moments"]) == (FP32 * trained, 2 * FP32 * trained)
    zero2 = parts("engine=zero2", gpus=4)
    assert (zero2["trained weights"], zero2["optimizer moments"]) == (FP32 * trained, 2 * FP32 * trained // 4)
    assert (zero2["own share of the weights"], zero2["ZeRO-2's buckets"]) == (FP32 * trained // 4, ZERO_BUCKETS)
    fsdp2 = parts("engine=fsdp2", gpus=4)
    assert (fsdp2["trained weights"], fsdp2["optimizer moments"]) == (FP32 * trained // 4, 2 * FP32 * trained // 4)
    assert 0 < fsdp2["gathered weights"] < FP32 * trained


def test_a_step_takes_as_long_as_its_operations_at_the_efficiency_that_is_assumed() -> None:
    plan = planned([], 4, 4, False)
    assert plan.duration is not None
    twice = planned(["train.global_batch_size=64"], 4, 4, False)
    assert twice.duration is not None
    assert twice.duration.products == pytest.approx(2 * plan.duration.products)
    assert twice.duration.optimizer == plan.duration.optimizer


def test_fp32_takes_twice_as_long_as_bf16_and_names_the_rate_it_counts_with() -> None:
    plan, single = planned([], 4, 4, False), planned(["train.precision=fp32"], 4, 4, False)
    assert plan.duration is not None and single.duration is not None
    assert single.duration.products == pytest.approx(2 * plan.duration.products)
    assert "of the 312 TFLOP/s" in plan.duration.basis and "of the 156 TFLOP/s" in single.duration.basis


def test_the_frozen_vision_towers_attention_on_a_cpu_is_that_worked_out_by_hand() -> None:
    """bf16: seven numbers of its width, and two of every pair of patches of an image for each head."""
    shape = planned([], 1, 1, True).run.shape
    batch, width = SimpleNamespace(side=4096), shape.vision_width
    heads = width // VISION_HEAD
    found = _vision_passing(shape, cast(Batch, batch), Kernels(bf16=True, cuda=False))
    assert found == 7 * width * 2 + 2 * heads * 256**2 * 2


@pytest.mark.parametrize(("bf16", "bytes_of_a_number"), [(True, 6 * 2 + 5 * 4), (False, 6 * 4 + 4 * 4)])
def test_rotated_queries_and_keys_of_the_vision_tower_are_in_fp32(bf16: bool, bytes_of_a_number: int) -> None:
    shape = cast(Shape, SimpleNamespace(vision_width=64, vision_inner=1))
    found = _vision_passing(shape, cast(Batch, SimpleNamespace(side=16)), Kernels(bf16=bf16, cuda=True))
    assert found == 64 * bytes_of_a_number


@pytest.mark.parametrize(
    ("name", "memory", "tflops", "bandwidth"),
    [
        ("h200", 141, 989, 4800),
        ("h100", 80, 989, 3350),
        ("a100", 40, 312, 1555),
        ("a100-80gb", 80, 312, 2039),
        ("gh200", 96, 989, 4000),
        ("b200", 180, 2250, 8000),
        ("l40s", 48, 362, 864),
        ("a6000", 48, 155, 768),
        ("a40", 48, 150, 696),
        ("a10", 24, 125, 600),
        ("l4", 24, 121, 300),
        ("5090", 32, 210, 1792),
        ("4090", 24, 165, 1008),
        ("3090", 24, 71, 936),
    ],
)
def test_gpus_are_what_their_data_sheets_say(name: str, memory: int, tflops: int, bandwidth: int) -> None:
    """GB, dense bf16 TFLOP/s and GB/s, written down a second time from the makers' sheets."""
    gpu = find_gpu(name)
    assert (gpu.memory, gpu.tflops, gpu.bandwidth) == (memory, tflops, bandwidth)


if __name__ == "__main__":
    CARRIED.write_text(json.dumps({name: figures(*chosen) for name, chosen in SETTINGS.items()}, indent=1) + "\n")
