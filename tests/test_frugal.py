"""Cheaper ways of computing the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_files import checkpoint_of, load, train_files
from parity.measure import MODES, training_case
from torch import nn

from gr00t.model.action_head import EmbodimentLinear, EmbodimentRows
from gr00t.model.backbone import BackboneOutput
from gr00t.model.dit import VlmTokens, pick
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

pytestmark = pytest.mark.usefixtures("kernels")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def test_picked_tokens_are_the_chosen_ones_in_order() -> None:
    values, chosen = random(2, 5, 3), torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]]).bool()
    (tokens,) = pick(values, chosen)
    assert torch.equal(tokens.values[0], values[0, [1, 3, 4]])
    assert torch.equal(tokens.values[1, :2], values[1, [0, 4]])
    assert tokens.mask is not None and tokens.mask.tolist() == [[True] * 3, [True, True, False]]


def test_rows_with_equally_many_tokens_need_no_mask() -> None:
    assert pick(random(2, 4, 3), torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]]).bool())[0].mask is None


def test_padding_is_neither_text_nor_image() -> None:
    attention, image = torch.tensor([[False, True, True]]), torch.tensor([[True, True, False]])
    values = random(1, 3, 2)
    found = VlmTokens.of(BackboneOutput(values, attention, image))
    text, images = pick(found.tokens.values, found.text, found.image)
    assert torch.equal(images.values, values[:, [1]]) and torch.equal(text.values, values[:, [2]])


def test_rows_of_several_robots_come_back_in_the_batchs_order() -> None:
    layer, x, ids = EmbodimentLinear(4, 3, 5), random(5, 2, 3), torch.tensor([2, 0, 2, 3, 0])
    found = layer(x, EmbodimentRows(ids))
    wanted = torch.bmm(x, layer.W[ids]) + layer.b[ids].unsqueeze(1)
    assert torch.allclose(found, wanted, atol=1e-6)


def kept_and_whole(path: Path) -> tuple[Gr00tN1d7, Gr00tN1d7]:
    models = [Gr00tN1d7.from_pretrained(checkpoint_of(path)) for _ in range(2)]
    models[0].keep_embodiments([10])
    return models[0], models[1]


def test_kept_embodiments_act_and_learn_as_among_all() -> None:
    path = train_files()[0]
    kept, whole = kept_and_whole(path)
    data = {n.removeprefix("in::"): torch.from_numpy(a) for n, a in load(path).items() if n.startswith("in::")}
    own = (data["embodiment_id"] == 10).nonzero().flatten()
    per_sample = (data["input_ids"] == 439).sum(1) // 64  # images of 256x256, 64 tokens each
    chosen = torch.isin(torch.repeat_interleave(torch.arange(len(per_sample)), per_sample), own)
    images = torch.from_numpy(load(path)["img"])[chosen]
    batch = {n: t[own] for n, t in data.items() if n != "image_grid_thw"}
    batch |= {"images": images, "image_grid_thw": data["image_grid_thw"][: len(images)]}
    losses = []
    for model in (kept, whole):
        torch.manual_seed(3)
        output = model.train()(batch)
        output.loss.backward()
        losses.append(output.loss.item())
    assert losses[0] == losses[1]
    slices = kept.action_head.action_decoder.layer2.W.grad
    assert torch.equal(slices[0], whole.action_head.action_decoder.layer2.W.grad[10])


def test_saving_merges_kept_embodiments_with_the_others(tmp_path: Path) -> None:
    kept, whole = kept_and_whole(train_files()[0])
    layer = kept.action_head.state_encoder.layer1
    assert layer.W.shape[0] == 1
    with torch.no_grad():
        layer.W += 1
    kept.save_pretrained(tmp_path / "saved")
    again = Gr00tN1d7.from_pretrained(tmp_path / "saved").action_head.state_encoder.layer1.W
    before = whole.action_head.state_encoder.layer1.W
    assert torch.equal(again[10], before[10] + 1)
    assert torch.equal(again[torch.arange(32) != 10], before[torch.arange(32) != 10])


@pytest.mark.parametrize("mode", sorted(MODES))
def test_activations_computed_again_give_the_same_gradients_from_less_memory(mode: str) -> None:
    found = []
    for recompute in (False, True):
        model, inputs, _, _ = training_case(train_files()[0], mode)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
        if recompute:
            model.recompute_activations()
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model.train()(inputs)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        output.loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((output.loss, gradients, sum(size for place, size in kept.items() if place not in weights)))
    (loss, gradients, size), (loss_again, gradients_again, size_again) = found
    assert torch.equal(loss, loss_again) and gradients.keys() == gradients_again.keys()
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    assert size_again < size / 2


def test_samples_with_other_numbers_of_images_are_not_cut_apart(tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    token = model.backbone.image_token_id
    one, three = [*[token] * 4, *[20] * 11], [*[token] * 4, 20] * 3
    ids = torch.tensor([one, three])
    images = torch.randint(0, 255, (4, 64, 64, 3), dtype=torch.uint8)
    grid = torch.tensor([[1, 4, 4]] * 4)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "images": images, "image_grid_thw": grid}
    with torch.no_grad():
        whole = model.features(batch)
        model.backbone.at_once = 1
        assert torch.equal(model.features(batch).features, whole.features)
