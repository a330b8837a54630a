"""What training measures between two log lines: means over what is not masked, and nothing of what was read before."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from finetune.recipe import FinetuneConfig
from finetune.training import metrics
from finetune.training.engine import Engine
from finetune.training.metrics import Meter, trained_parts
from finetune.training.optimizer import build_optimizer
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.configuration import load

GROUPS = {"arm": slice(0, 2), "gripper": slice(2, 3)}
PARTS = ("diffusion_model", "projector")


@pytest.fixture(scope="module")
def config() -> FinetuneConfig:
    return load(
        "finetune",
        ["local=none", "device=cpu", "engine=single", "model=tiny", "train.global_batch_size=8"],
        check_here=False,
    )


@pytest.fixture(scope="module")
def engine(config: FinetuneConfig) -> Engine:
    return Engine(config)


@pytest.fixture
def meter(engine: Engine) -> Meter:
    return Meter(GROUPS, PARTS, engine)


def add(meter: Meter, errors: Tensor, mask: Tensor, norm: float = 1.0) -> None:
    """A step of one micro-batch; the parts' gradients have norm and 2 x norm."""
    meter.add(errors * mask, mask)
    meter.engine.part_norms = {part: torch.tensor(norm * (n + 1)) for n, part in enumerate(PARTS)}
    meter.end_step(torch.tensor(norm))


def test_losses_are_means_over_the_unmasked_values_of_all_steps(meter: Meter, config: FinetuneConfig) -> None:
    draws = torch.Generator().manual_seed(1)
    errors = [torch.rand(2, 4, 5, generator=draws) for _ in range(3)]
    masks = [(torch.rand(2, 4, 5, generator=draws) < 0.7).float() for _ in range(3)]
    for number, (error, mask) in enumerate(zip(errors, masks, strict=True)):
        mask[..., 3:] = 0  # the padding of narrower robots
        add(meter, error, mask, norm=float(number))
    found = meter.read(config, learning_rate=0.25)
    error, mask = torch.cat(errors), torch.cat(masks)
    assert found["loss"] == pytest.approx(float((error * mask).sum() / mask.sum()), rel=1e-6)
    for name, part in GROUPS.items():
        own = (error * mask)[..., part].sum() / mask[..., part].sum()
        assert found[f"loss_{name}"] == pytest.approx(float(own), rel=1e-6)
    assert (found["grad_norm"], found["learning_rate"]) == (1.0, 0.25)  # the mean of 0, 1 and 2
    assert (found["grad_norm_diffusion_model"], found["grad_norm_projector"]) == (1.0, 2.0)
    assert meter.last_loss == found["loss"]


def test_a_reading_begins_again_with_nothing(meter: Meter, config: FinetuneConfig) -> None:
    add(meter, torch.full((1, 4, 3), 9.0), torch.ones(1, 4, 3), norm=9.0)
    meter.waited = 3.0
    assert meter.read(config, 0.0)["data_wait_seconds"] == 3.0
    add(meter, torch.full((1, 4, 3), 2.0), torch.ones(1, 4, 3), norm=0.5)
    found = meter.read(config, 0.0)
    assert found["loss"] == pytest.approx(2.0) and found["grad_norm"] == 0.5 and found["data_wait_seconds"] == 0.0
    assert found["grad_norm_projector"] == 1.0


def test_time_spent_on_an_evaluation_is_no_time_of_training(
    engine: Engine, config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("finetune.training.metrics.time", SimpleNamespace(perf_counter=lambda: now[0]))
    meter = Meter(GROUPS, PARTS, engine)
    add(meter, torch.ones(1, 4, 3), torch.ones(1, 4, 3))
    now[0] += 5.0  # three of them evaluating
    meter.leave_out(3.0)
    assert meter.read(config, 0.0)["samples_per_second"] == 8 / 2
    add(meter, torch.ones(1, 4, 3), torch.ones(1, 4, 3))
    now[0] += 4.0
    add(meter, torch.ones(1, 4, 3), torch.ones(1, 4, 3))
    assert meter.read(config, 0.0)["samples_per_second"] == 2 * 8 / 4


def test_what_an_interrupted_run_had_summed_is_taken_over(engine: Engine, config: FinetuneConfig) -> None:
    whole, first, second = (Meter(GROUPS, PARTS, engine) for _ in range(3))
    draws = torch.Generator().manual_seed(2)
    for number in range(4):
        error, mask = torch.rand(1, 4, 5, generator=draws), (torch.rand(1, 4, 5, generator=draws) < 0.6).float()
        add(whole, error, mask, norm=float(number))
        if number == 2:
            second.restore(first.state())
        add(first if number < 2 else second, error, mask, norm=float(number))
    there, here = whole.read(config, 0.0), second.read(config, 0.0)
    measured = [key for key in there if key.startswith(("loss", "grad"))]
    assert len(measured) == 6 and {k: there[k] for k in measured} == {k: here[k] for k in measured}


def test_a_process_more_or_less_takes_the_sums_over_once(engine: Engine, config: FinetuneConfig) -> None:
    meter = Meter(GROUPS, PARTS, engine)
    rows = [[2.0, 3.0, 4.0, 6.0, 5.0, 2.0, 7.0, 1.0], [1.0, 0.0, 1.0, 0.0, 5.0, 2.0, 7.0, 1.0]]  # of two processes
    meter.restore(rows)
    found = meter.read(config, 0.0)
    assert found["loss_arm"] == pytest.approx(3 / 5) and found["loss_gripper"] == pytest.approx(3 / 6)
    assert (found["grad_norm"], found["grad_norm_diffusion_model"], found["grad_norm_projector"]) == (2.5, 3.5, 0.5)
    other = SimpleNamespace(world_size=1, rank=0, is_main=False, device=engine.device, sum=engine.sum, part_norms={})
    beside = Meter(GROUPS, PARTS, other)  # type: ignore[arg-type]
    beside.restore(rows)
    assert not any(beside.state()[0][:4])


def test_the_speed_after_a_resume_is_of_the_steps_since(
    meter: Meter, engine: Engine, config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps that an earlier attempt took since its last line have no time here."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    ones = torch.ones(1, 4, 3)
    for _ in range(3):
        add(meter, ones, ones)
    resumed = Meter(GROUPS, PARTS, engine)
    resumed.restore(meter.state())
    now[0] += 2.0
    add(resumed, ones, ones)
    assert resumed.read(config, 0.0)["samples_per_second"] == 8 * 1 / 2.0
    now[0] += 2.0
    add(resumed, ones, ones)
    assert resumed.read(config, 0.0)["samples_per_second"] == 8 * 1 / 2.0


def test_of_a_checkpoint_without_norms_by_part_the_norms_are_not_known(meter: Meter, config: FinetuneConfig) -> None:
    meter.restore([[2.0, 3.0, 4.0, 6.0, 5.0, 2.0]])
    assert not [key for key in meter.read(config, 0.0) if key.startswith("grad_norm_")]
    add(meter, torch.ones(1, 4, 3), torch.ones(1, 4, 3))
    assert meter.read(config, 0.0)["grad_norm_projector"] == 2.0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_remembered(broken: float, meter: Meter, config: FinetuneConfig) -> None:
    add(meter, torch.ones(1, 4, 3), torch.ones(1, 4, 3))
    assert meter.finite
    add(meter, torch.ones(1, 4, 3), torch.ones(1, 4, 3), norm=broken)
    add(meter, torch.ones(1, 4, 3), torch.ones(1, 4, 3))
    assert not meter.finite
    meter.read(config, 0.0)
    assert not meter.finite


def test_the_parts_are_those_that_are_trained(tiny_base, config: FinetuneConfig) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    model.set_trainable(diffusion_model=True, projector=True, vlln=False)
    assert trained_parts(build_optimizer(model, config.train)) == ["diffusion_model", "projector"]
