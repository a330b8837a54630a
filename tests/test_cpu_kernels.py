"""What only a CPU computes gives the numbers of what a GPU runs, and one switch turns all of it off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import train_files
from parity.measure import training_case
from test_training import config, losses
from torch.nn import functional as F

from finetune.training.train import finetune
from gr00t.model import cpu_kernels
from gr00t.model.cpu_kernels import Dropout, attend
from gr00t.model.dit import FeedForward
from gr00t.model.gr00t_n1d7 import Gr00tN1d7


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_equal_the_fused_attention(masked: bool) -> None:
    q, k, v = (random(2, 3, n, 8).requires_grad_() for n in (4, 6, 6))
    allowed = (torch.arange(6) < 5)[None, None, None, :].expand(2, 1, 1, 6) if masked else None
    plain, fused = attend(q, k, v, allowed), F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    assert torch.allclose(plain, fused, atol=1e-6)
    weights = random(*plain.shape)
    for a, b in zip(
        torch.autograd.grad((plain * weights).sum(), (q, k, v)),
        torch.autograd.grad((fused * weights).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_dropout_hides_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    values = Dropout(0.2)(torch.ones(1000, 1003, requires_grad=True))
    shown = values[values != 0]
    assert values.eq(0).float().mean().item() == pytest.approx(0.2, abs=2e-3)
    assert shown.min() == shown.max() and shown[0].item() == pytest.approx(1.25, rel=1e-4)
    columns = values.ne(0).float().mean(dim=0)  # no position is favoured
    assert columns.min() > 0.7 and columns.max() < 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_lets_the_gradient_through_where_it_shows_the_value(dtype: torch.dtype) -> None:
    x = random(7, 9).to(dtype).T.requires_grad_()  # not contiguous
    out = Dropout(0.5)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.where(out != 0, 2.0, 0.0).to(dtype))
    assert torch.equal(out, x * gradient)


def test_dropout_hides_nothing_outside_training() -> None:
    x = random(4, 5)
    assert torch.equal(Dropout(0.2).eval()(x), x)


def test_what_the_backward_pass_computes_again_gives_the_same_gradients() -> None:
    layer, x = FeedForward(16, dropout=0.3, final_dropout=True), random(2, 5, 16).requires_grad_()
    torch.manual_seed(1)
    out = layer(x)
    weights = random(*out.shape)
    found = torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])
    torch.manual_seed(1)
    plain = layer.net(x)  # draws the same masks, keeps everything
    wanted = torch.autograd.grad((plain * weights).sum(), [x, *layer.parameters()])
    assert torch.equal(out, plain) and all(map(torch.equal, found, wanted))


def test_a_backbone_in_pieces_gives_the_features_of_the_whole_batch(tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    token = model.backbone.image_token_id
    ids = torch.tensor([[20, *[token] * 4, 30, 31]] * 5)
    images = torch.randint(0, 255, (5, 64, 64, 3), dtype=torch.uint8)
    grid = torch.tensor([[1, 4, 4]] * 5)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "images": images, "image_grid_thw": grid}
    with torch.no_grad():
        whole = model.features(batch)
        model.backbone.at_once = 2
        pieces = model.features(batch)
    assert torch.allclose(pieces.features, whole.features, rtol=1e-5, atol=1e-5)
    assert torch.equal(pieces.image_mask, whole.image_mask) and pieces.features.shape[0] == 5


# the switch


@pytest.mark.parametrize("on", [True, False])
def test_the_switch_turns_all_of_it_off(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()

    def noted(name: str) -> Any:
        original = getattr(cpu_kernels, name)
        return lambda *given: (used.add(name), original(*given))[1]

    kernels = ("attention", "feed_forward", "_draws")
    for name in kernels:
        monkeypatch.setattr(cpu_kernels, name, noted(name))
    model, inputs, _, _ = training_case(train_files()[0], "top1")
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = 0.2
    with cpu_kernels.switched(on):
        model.train()(inputs).loss.backward()
        assert cpu_kernels.samples_at_once(torch.device("cpu")) == (4 if on else None)
        assert cpu_kernels.trained_attention(torch.device("cpu")) == ("eager" if on else "sdpa")
    assert used == (set(kernels) if on else set())
    assert not cpu_kernels.used(torch.device("cuda"))


def test_the_switch_goes_back_after_an_error() -> None:
    with pytest.raises(ValueError), cpu_kernels.switched(False):
        raise ValueError
    assert cpu_kernels.used(torch.device("cpu"))


@pytest.mark.parametrize("train", ["train.precision=fp32", "train.tune.top_llm_layers=1"])
def test_a_run_has_the_same_losses_with_and_without(
    train: str, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    found = []
    for on in (True, False):
        with cpu_kernels.switched(on):
            finetune(config(tmp_path / str(on), small_data, tiny_base, train, "train.max_steps=3"))
        found.append(losses(tmp_path / str(on)))
    first, *later = zip(found[0].values(), found[1].values(), strict=True)
    assert first[0] == pytest.approx(first[1], rel=1e-6)
    assert all(one == pytest.approx(other, rel=1e-4) for one, other in later)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5])
def test_with_dropout_the_share_and_the_scale_are_the_same(p: float) -> None:
    shares, scales = [], []
    for on in (True, False):
        torch.manual_seed(0)
        with cpu_kernels.switched(on):
            shown = Dropout(p)(torch.ones(1000, 1000))
        shares.append(shown.ne(0).double().mean().item())
        scales.append(shown.max().item())
    assert shares == pytest.approx([1 - p] * 2, abs=2e-3)
    assert scales == pytest.approx([1 / (1 - p)] * 2, rel=1e-4)
