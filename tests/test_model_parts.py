"""Parts of the model by hand-computed values: chunking, norms, dropout, embodiment rows, images, what is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_variants import BATCH, DIM, HORIZON, backbone, head, normal
from torch import Tensor, nn
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention

from gr00t.data.images import pixel_values
from gr00t.errors import ToolkitError
from gr00t.model.action_head import ActionHead, EmbodimentLinear, EmbodimentRows, RealTimeChunking
from gr00t.model.backbone import BackboneOutput, ImageAttention, ImageLengths, _truncated
from gr00t.model.config import TransformerConfig
from gr00t.model.cpu_kernels import Dropout
from gr00t.model.dit import TransformerBlock, VlmTokens
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

# real-time chunking


def chunking(horizon: int, overlap: int, frozen: int, rate: float = 1.0) -> RealTimeChunking:
    previous = torch.arange(6.0)[None, :, None].expand(1, 6, 2)
    return RealTimeChunking(previous, horizon, overlap, frozen, rate)


@pytest.mark.parametrize("sizes", [(4, 2, -1), (4, 2, 3), (4, 5, 1), (7, 2, 1)])
def test_chunking_sizes_that_do_not_fit_in_each_other_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ToolkitError, match="0 <= frozen_steps <= overlap_steps <= horizon <= previous chunk"):
        chunking(*sizes)
    chunking(6, 6, 6)
    chunking(0, 0, 0)


def test_a_chunk_starts_with_the_tail_of_what_the_previous_one_really_holds() -> None:
    noise = torch.full((1, 5, 2), -1.0)
    assert chunking(4, 3, 1).start(noise)[0, :, 0].tolist() == [1, 2, 3, -1, -1]
    assert torch.equal(chunking(4, 0, 0).start(noise), noise)
    assert torch.equal(noise, torch.full((1, 5, 2), -1.0))


def test_the_velocity_is_nothing_where_frozen_and_ramps_up_to_the_overlaps_end() -> None:
    found = chunking(4, 3, 1, rate=2.0).strength(torch.zeros(1, 5, 2))
    ramp = [(1 - math.exp(-2 * x)) / (1 - math.exp(-2)) for x in (1 / 3, 2 / 3)]
    assert found.shape == (1, 5, 1) and found[0, :, 0].tolist() == pytest.approx([0, *ramp, 1, 1], rel=1e-6)
    assert chunking(4, 3, 1, rate=0.0).strength(torch.zeros(1, 5, 2))[0, :, 0].tolist() == [0, 0, 0, 1, 1]


def test_frozen_steps_of_a_chunk_keep_the_previous_actions() -> None:
    acting, previous = head(), normal(BATCH, HORIZON, DIM, seed=9)
    rtc = RealTimeChunking(previous, 4, 3, 2, 1.0)
    state, ids, noise = normal(BATCH, 1, DIM, seed=2), torch.tensor([0, 2]), normal(BATCH, HORIZON, DIM, seed=3)
    found = acting.sample(backbone(), state, ids, noise, 2, rtc)
    assert torch.equal(found[:, :2], previous[:, 1:3])
    assert not torch.equal(found[:, 2], previous[:, 3])


# denoising


def test_denoising_reads_the_bucket_of_each_steps_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    acting, seen = head(), []

    def velocity(_: ActionHead, actions: Tensor, buckets: Tensor, *rest: Any) -> Tensor:
        seen.append(buckets.tolist())
        return torch.ones_like(actions)

    monkeypatch.setattr(ActionHead, "velocity", velocity)
    noise = normal(BATCH, HORIZON, DIM, seed=3)
    found = acting.sample(backbone(), normal(BATCH, 1, DIM, seed=2), torch.tensor([0, 2]), noise, 3)
    assert seen == [[0] * 2, [333] * 2, [666] * 2]
    torch.testing.assert_close(found, noise + 1)


# blocks


def block(adaptive: bool, **changes: Any) -> TransformerBlock:
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "positional_embeddings": None}
    torch.manual_seed(0)
    return TransformerBlock(TransformerConfig.parse({**sizes, **changes}, "cfg"), None, adaptive)


def test_each_norm_has_its_own_epsilon() -> None:
    small = normal(1, 3, 16, seed=1) * 1e-3  # of a variance near the epsilons
    made = block(adaptive=True, norm_eps=1e-2)

    def normed(x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()

    with torch.no_grad():
        made.norm1.linear.weight.zero_()
        made.norm1.linear.bias.zero_()
        torch.testing.assert_close(made.norm1(small, torch.zeros(1, 16)), normed(small, 1e-5))
        torch.testing.assert_close(made.norm3(small), normed(small, 1e-2))
        torch.testing.assert_close(block(adaptive=False, norm_eps=1e-2).norm1(small), normed(small, 1e-2))
        torch.testing.assert_close(head().model.norm_out(small), normed(small, 1e-6))


@pytest.mark.parametrize("final, places", [(True, 4), (False, 2)])
@pytest.mark.usefixtures("kernels")
def test_a_block_in_training_drops_after_every_product_that_the_original_does(
    final: bool, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention's output, inside the feed-forward, and with final_dropout after each of the two."""
    dropped: list[float] = []
    original = Dropout.forward
    monkeypatch.setattr(Dropout, "forward", lambda self, x: (dropped.append(self.p), original(self, x))[1])
    made = block(adaptive=False, dropout=0.3, final_dropout=final).train()
    x = normal(2, 3, 16, seed=1)
    made(x)
    assert dropped == [0.3] * places
    dropped.clear()
    assert torch.equal(made.eval()(x), made(x))


# embodiments


def test_kept_embodiments_may_stand_in_any_order_and_stay_frozen() -> None:
    torch.manual_seed(0)
    layer = EmbodimentLinear(5, 3, 4)
    layer.b.data.normal_()
    layer.b.requires_grad_(False)
    x, rows = torch.randn(3, 2, 3), EmbodimentRows(torch.tensor([1, 3, 1]))
    wanted, before = layer(x, rows).detach(), {n: t.clone() for n, t in layer.state_dict().items()}
    layer.keep([3, 1])
    assert layer.W.shape == (2, 3, 4) and layer.W.requires_grad and not layer.b.requires_grad
    torch.testing.assert_close(layer(x, rows).detach(), wanted)
    first = layer.state_dict()
    assert all(torch.equal(first[name], before[name]) for name in before)
    with torch.no_grad():
        layer.W[0] += 1
    second = layer.state_dict()
    assert torch.equal(first["W"], before["W"])  # a dictionary of before does not change
    assert torch.equal(second["W"][3], before["W"][3] + 1) and torch.equal(second["W"][:3], before["W"][:3])


def test_new_embodiment_weights_have_the_variance_of_one_over_their_inputs() -> None:
    torch.manual_seed(0)
    layer = EmbodimentLinear(4, 100, 25)
    assert layer.W.std().item() == pytest.approx(0.1, rel=0.05) and not layer.b.any()


# tokens


def test_padding_anywhere_is_taken_out_and_text_and_images_move_along() -> None:
    attention = torch.tensor([[False, True, True, True], [True, True, False, True]])
    image = torch.tensor([[True, True, False, True], [False, True, True, False]])
    values = normal(2, 4, 3, seed=1)
    found = VlmTokens.of(BackboneOutput(values, attention, image))
    assert found.tokens.mask is None  # three tokens in both
    assert torch.equal(found.tokens.values, torch.stack([values[0, [1, 2, 3]], values[1, [0, 1, 3]]]))
    assert found.image.tolist() == [[True, False, True], [False, True, False]]
    assert found.text.tolist() == [[False, True, False], [True, False, True]]


# images


def test_images_of_several_sizes_attend_within_themselves_as_transformers_has_it() -> None:
    torch.manual_seed(0)
    config = Qwen3VLVisionConfig(hidden_size=16, num_heads=2)
    config._attn_implementation = "sdpa"
    original = Qwen3VLVisionAttention(config).eval()
    ours = ImageAttention(original, ImageLengths())
    for lengths in ([4, 8, 4], [8, 8], [2, 2, 12]):  # one after the other: each has lengths of its own
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        x, angles = torch.randn(16, 16), torch.randn(16, 4).repeat(1, 2)
        given = (x, ends)
        with torch.no_grad():
            wanted = original(*given, position_embeddings=(angles.cos(), angles.sin()))
            found = ours(*given, (angles.cos(), angles.sin()))
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def image_batch(model: Gr00tN1d7, count: int) -> dict[str, Tensor]:
    ids = torch.tensor([[20, *[model.backbone.image_token_id] * 4, 30, 31]] * count)
    images = torch.randint(0, 255, (count, 64, 64, 3), dtype=torch.uint8)
    grid = torch.tensor([[1, 4, 4]] * count)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "images": images, "image_grid_thw": grid}


@pytest.mark.parametrize("form", ["images", "pixel_values"])
def test_a_backbone_without_gradients_works_in_pieces_and_with_them_at_once(
    form: str, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    batch = image_batch(model, 5) | {"state": torch.zeros(5, 1, 2)}
    with torch.no_grad():
        wanted = model.features(batch).features
    if form == "pixel_values":
        batch["pixel_values"] = pixel_values(batch.pop("images"))
    sizes: list[int] = []
    original = type(model.backbone)._piece
    monkeypatch.setattr(
        type(model.backbone),
        "_piece",
        lambda self, part: (sizes.append(len(part["input_ids"])), original(self, part))[1],
    )
    for at_once, expected in ((2, [2, 2, 1]), (4, [4, 1]), (5, [5])):
        model.backbone.at_once = at_once
        with torch.no_grad():
            torch.testing.assert_close(model.features(batch).features, wanted, rtol=1e-5, atol=1e-5)
        assert sizes == expected
        sizes.clear()
    model.backbone.requires_grad_(True)
    model.backbone.at_once = 2
    assert model.features(batch).features.requires_grad and sizes == [5]


def test_features_keep_a_graph_only_where_a_part_of_the_backbone_is_trained(tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    batch = image_batch(model, 1)
    for tuned, graph in (({}, False), ({"visual": True}, True), ({"llm": True}, True), ({"top_llm_layers": 1}, True)):
        model.set_trainable(projector=True, diffusion_model=True, vlln=True, **tuned)
        assert model.features(batch).features.requires_grad is graph, tuned
        with torch.no_grad():
            assert not model.features(batch).features.requires_grad


def test_rotary_frequencies_that_were_rounded_are_refused(tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    for module in (model.backbone.vlm.visual.rotary_pos_emb, model.backbone.vlm.language_model.rotary_emb):
        module.inv_freq = module.inv_freq.to(torch.bfloat16).float()
        with pytest.raises(ToolkitError, match="inv_freq is corrupt after loading"):
            model.backbone.check_rotary()
        model.backbone.refresh_rotary()
        model.backbone.check_rotary()


def test_a_language_model_is_cut_to_as_many_layers_as_it_has_at_most(tiny_base: Path) -> None:
    config = Gr00tN1d7.from_pretrained(tiny_base).backbone_config
    layers = config.text_config.num_hidden_layers
    assert [_truncated(config, n).text_config.num_hidden_layers for n in (1, layers)] == [1, layers]
    assert config.text_config.num_hidden_layers == layers
    for wrong in (0, layers + 1):
        with pytest.raises(ToolkitError, match=f"select_layer {wrong} does not fit"):
            _truncated(config, wrong)


# what is trained

GROUPS = {
    "projector": ("state_encoder.", "action_encoder.", "action_decoder.", "position_embedding."),
    "diffusion_model": ("model.",),
    "vlln": ("vlln.", "vl_self_attention."),
}


@pytest.mark.parametrize("group", [*GROUPS, "llm", "visual", "top_llm_layers"])
def test_a_group_alone_trains_all_of_its_own_weights_and_no_other(group: str, tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    chosen: dict[str, Any] = dict.fromkeys(("projector", "diffusion_model", "vlln"), False)
    model.set_trainable(**chosen | {group: 2 if group == "top_llm_layers" else True})
    llm = "backbone.model.model.language_model."
    prefixes = {name: tuple(f"action_head.{p}" for p in parts) for name, parts in GROUPS.items()} | {
        "llm": (llm,),
        "visual": ("backbone.model.model.visual.",),
        "top_llm_layers": (f"{llm}layers.1.", f"{llm}layers.2."),  # of three
    }
    wanted = {n for n, _ in model.named_parameters() if n.startswith(prefixes[group])} - {f"{llm}norm.weight"}
    assert wanted and {name for name, _ in model.trained_parameters()} == wanted
    assert getattr(model.config, f"tune_{group}") == (2 if group == "top_llm_layers" else True)
    others = ("projector", "diffusion_model", "vlln", "llm", "visual", "top_llm_layers")
    assert not any(getattr(model.config, f"tune_{other}") for other in others if other != group)
    model.train()
    training = {name for name, modules in model.groups().items() if all(m.training for m in modules)}
    assert training == {group} - {"top_llm_layers"}


def test_dropout_repeats_with_torchs_seed_and_differs_without() -> None:
    layer, x = Dropout(0.5), torch.ones(50, 7)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return layer(x)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    torch.manual_seed(1)
    assert not torch.equal(layer(x), layer(x))
    assert isinstance(layer, nn.Dropout) and torch.isfinite(Dropout(1.0)(x)).all()
