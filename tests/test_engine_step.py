"""One optimizer step of an engine: which gradients it clips, how they are measured, and what it forgets after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.training.engine import Engine
from toolkit.configuration import load


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x).square().sum() + 3 * self.b(x).square().sum()


def prepared(*more: str, rate: float = 1.0) -> tuple[Engine, Two]:
    """An engine of one process with plain SGD, which moves weights by their gradients and hides nothing of them."""
    torch.manual_seed(0)
    engine = Engine(
        load("finetune", ["local=none", "device=cpu", "engine=single", "model=tiny", *more], check_here=False)
    )
    model = Two()
    groups = [
        {"params": list(part.parameters()), "names": [f"{n}.weight", f"{n}.bias"], "parts": [n, n], "rate": 1.0}
        for n, part in (("a", model.a), ("b", model.b))
    ]
    engine.prepare(model, torch.optim.SGD(groups, lr=rate))
    return engine, model


X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]])


def gradients(model: Two, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(model(x), model.parameters()), strict=True))


def test_weights_move_by_the_sum_of_the_micro_batches_gradients() -> None:
    engine, model = prepared("train.max_grad_norm=1e9")
    wanted, before = gradients(model, X), {n: p.detach().clone() for n, p in model.named_parameters()}
    for index, row in enumerate(X.split(1)):
        with engine.accumulate(index == 1):
            engine.backward(engine.module(row))
    norm = engine.step()
    assert norm.item() == pytest.approx(torch.cat([g.flatten() for g in wanted.values()]).norm().item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(before[name] - parameter, wanted[name])
        assert parameter.grad is None


def test_the_norm_of_each_part_is_that_of_its_own_gradients() -> None:
    engine, model = prepared()
    wanted = gradients(model, X)
    engine.backward(engine.module(X))
    whole = engine.step()
    assert list(engine.part_norms) == ["a", "b"]
    for part, norm in engine.part_norms.items():
        own = torch.cat([g.flatten() for n, g in wanted.items() if n.startswith(part)])
        assert norm.item() == pytest.approx(own.norm().item(), rel=1e-6)
    assert whole.item() == pytest.approx(torch.stack(list(engine.part_norms.values())).norm().item(), rel=1e-6)


def test_gradients_are_clipped_to_the_norm_that_is_asked_and_no_further() -> None:
    engine, model = prepared("train.max_grad_norm=0.5")
    wanted, before = gradients(model, X), {n: p.detach().clone() for n, p in model.named_parameters()}
    engine.backward(engine.module(X))
    norm = engine.step()
    assert norm > 0.5  # the norm before clipping is what is reported
    moved = {n: before[n] - p.detach() for n, p in model.named_parameters()}
    assert torch.cat([m.flatten() for m in moved.values()]).norm().item() == pytest.approx(0.5, rel=1e-4)
    for name, gradient in wanted.items():
        torch.testing.assert_close(moved[name], gradient * (0.5 / norm), rtol=1e-4, atol=1e-7)
    engine, model = prepared("train.max_grad_norm=1e4")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    wanted = gradients(model, X)
    engine.backward(engine.module(X))
    engine.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(before[name] - parameter.detach(), wanted[name])


def test_a_part_without_gradients_is_left_where_it_is() -> None:
    engine, model = prepared()
    before = model.b.weight.detach().clone()
    engine.backward(model.a(X).square().sum())
    engine.step()
    assert list(engine.part_norms) == ["a"] and torch.equal(model.b.weight, before)


def test_sums_and_texts_of_one_process_are_its_own() -> None:
    engine, _ = prepared()
    value = torch.tensor([1.5, -2.0])
    summed = engine.sum(value)
    assert torch.equal(summed, value) and summed.data_ptr() != value.data_ptr()
    assert engine.tell("größer 3 µm") == "größer 3 µm" and engine.tell("") == ""
    assert (engine.rank, engine.world_size, engine.is_main) == (0, 1, True)
