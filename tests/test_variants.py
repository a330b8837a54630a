"""What the golden files do not cover, by what must hold: state history, plain DiT, position tables, switched parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import golden_path
from torch import Tensor

from gr00t.data.processor import Gr00tN1d7Processor, Step
from gr00t.data.processor_files import default_projector_index
from gr00t.data.schema import EmbodimentTag, ModalityConfig
from gr00t.errors import ToolkitError
from gr00t.model.action_head import ActionHead, ActionLoss, EmbodimentRows
from gr00t.model.backbone import BackboneOutput
from gr00t.model.config import Gr00tN1d7Config, TransformerConfig
from gr00t.model.dit import SelfAttentionTransformer, SinusoidalPositions
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

pytestmark = pytest.mark.usefixtures("kernels")

BATCH, TOKENS, HORIZON, DIM = 2, 7, 5, 4
DIT = {
    "num_layers": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "output_dim": 12,
    "dropout": 0.0,
    "positional_embeddings": None,
    "interleave_self_attention": True,
}
INDEX = {
    "simpler_env_google": 0,
    "simpler_env_widowx": 1,
    "libero_sim": 2,
    "new_embodiment": 10,
    "robocasa_panda_omron": 10,
    "robocasa_gr1_tabletop": 10,
    "unitree_g1_sonic": 11,
    "oxe_droid_relative_eef_relative_joint": 24,
    "real_g1_relative_eef_relative_joints": 25,
    "unitree_g1_full_body_with_waist_height_nav_cmd": 25,
    "real_r1_pro_sharpa_relative_eef": 26,
    "real_r1_pro_sharpa_relative_eef_human": 26,
    "real_r1_pro_sharpa_relative_eef_maxinsights": 26,
    "real_r1_pro_sharpa_relative_eef_mecka": 26,
    "xdof_relative_eef_relative_joint": 27,
    "xdof_relative_eef_relative_joint_subtask": 27,
}


def head(dit: dict[str, Any] | None = None, **changes: Any) -> ActionHead:
    values: dict[str, Any] = {
        "backbone_embedding_dim": 16,
        "input_embedding_dim": 16,
        "hidden_size": 12,
        "max_num_embodiments": 3,
        "max_state_dim": DIM,
        "max_action_dim": DIM,
        "action_horizon": HORIZON,
        "diffusion_model_cfg": {**DIT, **(dit or {})},
        "state_dropout_prob": 0.0,
    }
    torch.manual_seed(0)
    config = Gr00tN1d7Config(**values | changes)
    config.check()
    return ActionHead(config).eval()


def backbone(seed: int = 1) -> BackboneOutput:
    """Two samples: the first has two padded tokens; tokens 3 and 4 are images."""
    attention = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    attention[0, :2] = False
    image = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    image[:, 3:5] = True
    return BackboneOutput(normal(BATCH, TOKENS, 16, seed=seed), attention, image)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def actions_of(head: ActionHead, seen: BackboneOutput | None = None, noise: Tensor | None = None) -> Tensor:
    history = head.config.state_history_length
    noise = normal(BATCH, HORIZON, DIM, seed=3) if noise is None else noise
    state = normal(BATCH, history, DIM, seed=2)
    return head.sample(seen or backbone(), state, torch.tensor([0, 2]), noise, steps=2)


def with_features(seen: BackboneOutput, mask: Tensor) -> BackboneOutput:
    """The same with other features where the mask is True."""
    other = torch.where(mask[..., None], seen.features.flip(-1), seen.features)
    return dataclasses.replace(seen, features=other)


# state history


def test_a_history_is_read_from_the_oldest_frame_to_the_newest() -> None:
    long, short = head(state_history_length=3), head()
    weights = long.state_encoder.layer1.W
    assert weights.shape == (3, 3 * DIM, 12)
    with torch.no_grad():
        for parameter, same in zip(long.state_encoder.parameters(), short.state_encoder.parameters(), strict=True):
            if parameter is not weights:
                parameter.copy_(same)
        weights.zero_()[:, -DIM:] = short.state_encoder.layer1.W
    state, rows = normal(BATCH, 3, DIM, seed=2), EmbodimentRows(torch.tensor([0, 2]))
    assert torch.allclose(long.encode_state(state, rows), short.encode_state(state[:, -1:], rows), atol=1e-6)
    assert actions_of(long).shape == (BATCH, HORIZON, DIM)


def test_every_frame_of_a_history_counts_and_another_number_is_refused() -> None:
    long, rows = head(state_history_length=3), EmbodimentRows(torch.tensor([0, 2]))
    state = normal(BATCH, 3, DIM, seed=2)
    for frame in range(3):
        other = state.clone()
        other[:, frame] += 1
        assert not torch.allclose(long.encode_state(other, rows), long.encode_state(state, rows))
    with pytest.raises(ToolkitError, match=r"2 frames; this checkpoint reads 3 \(state_history_length\)"):
        long.encode_state(state[:, :2], rows)


def test_a_checkpoint_with_history_goes_from_observation_to_action_and_through_its_files(tmp_path: Path) -> None:
    source = Gr00tN1d7.from_pretrained(golden_path("tiny_h40"))
    config = Gr00tN1d7Config.from_dict(source.config.to_dict() | {"state_history_length": 2})
    model = Gr00tN1d7(config, source.backbone_config).eval()
    processor = Gr00tN1d7Processor.from_pretrained(golden_path("tiny_h40"))
    configs = dict(processor.modality_config("libero_sim"))
    configs["state"] = ModalityConfig([-1, 0], configs["state"].modality_keys)
    processor = processor.with_embodiment("libero_sim", configs, processor.files.statistics["libero_sim"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = {view: np.zeros((1, 32, 32, 3), np.uint8) for view in configs["video"].modality_keys}
    states = {g.name: np.zeros((2, g.dim), np.float32) for g in processor.state_action.groups("libero_sim", "state")}
    again = Gr00tN1d7Processor.from_pretrained(tmp_path)
    batch = again.collate([again.encode(Step(images, states, "open it"), "libero_sim")])
    assert batch["state"].shape == (1, 2, 132)
    noise = normal(1, 40, 132, seed=0)
    assert torch.equal(
        Gr00tN1d7.from_pretrained(tmp_path).get_action(batch, noise=noise), model.get_action(batch, noise=noise)
    )


# which tokens the DiT sees


@pytest.mark.parametrize("leaks", [False, True])
def test_the_plain_dit_sees_all_tokens_and_padding_only_where_it_leaks(leaks: bool) -> None:
    plain, seen = head(use_alternate_vl_dit=False), backbone()
    plain.padding_leaks = leaks
    before = actions_of(plain, seen)
    for mask, counts in (
        (~seen.attention_mask, leaks),
        (seen.image_mask, True),
        (seen.attention_mask & ~seen.image_mask, True),
    ):
        after = actions_of(plain, with_features(seen, mask))
        assert ((after - before).abs().amax(dim=(1, 2)) > 1e-5).tolist() == [counts and row for row in mask.any(dim=1)]


def test_the_plain_dit_knows_no_order_of_the_tokens() -> None:
    plain, seen = head(use_alternate_vl_dit=False), backbone()
    shuffled = dataclasses.replace(seen, features=seen.features[:, torch.randperm(TOKENS)])
    assert torch.allclose(actions_of(plain, shuffled), actions_of(plain, seen), atol=1e-6)


def test_without_interleaving_every_block_of_the_plain_dit_attends_to_the_context() -> None:
    every = head({"interleave_self_attention": False}, use_alternate_vl_dit=False, backbone_embedding_dim=20)
    assert [block.attn1.to_k.in_features for block in every.model.transformer_blocks] == [20] * 4
    alternate = head(backbone_embedding_dim=20)
    assert [block.attn1.to_k.in_features for block in alternate.model.transformer_blocks] == [20, 16, 20, 16]
    with pytest.raises(ToolkitError, match="use_alternate_vl_dit needs"):
        head({"interleave_self_attention": False})


def test_the_alternating_dit_never_sees_padding() -> None:
    seen = backbone()
    assert torch.equal(actions_of(head(), with_features(seen, ~seen.attention_mask)), actions_of(head(), seen))


@pytest.mark.parametrize("every, sees_images", [(1, False), (2, True)])
def test_the_text_blocks_of_the_alternating_dit_see_text_only(every: int, sees_images: bool) -> None:
    alternate, seen = head(attend_text_every_n_blocks=every), backbone()
    before = actions_of(alternate, seen)
    assert not torch.equal(actions_of(alternate, with_features(seen, seen.attention_mask & ~seen.image_mask)), before)
    assert torch.equal(actions_of(alternate, with_features(seen, seen.image_mask)), before) is not sees_images


# parts that a configuration switches


def test_without_position_embedding_the_steps_of_a_chunk_are_exchangeable() -> None:
    noise, order = normal(BATCH, HORIZON, DIM, seed=3), torch.tensor([4, 2, 0, 1, 3])
    bare, full = head(add_pos_embed=False), head()
    assert bare.position_embedding is None and "position_embedding.weight" not in bare.state_dict()
    shuffled = actions_of(bare, noise=noise[:, order])
    assert torch.allclose(shuffled, actions_of(bare, noise=noise)[:, order], atol=1e-6)
    assert not torch.allclose(actions_of(full, noise=noise[:, order]), actions_of(full, noise=noise)[:, order])


def test_without_vlln_the_features_reach_the_dit_as_they_are() -> None:
    bare, seen = head(use_vlln=False), backbone()
    seen = dataclasses.replace(seen, attention_mask=torch.ones_like(seen.attention_mask))
    assert bare.vl_tokens(seen).tokens.values is seen.features
    assert not any(name.startswith("vlln") for name in bare.state_dict())
    normed = torch.nn.functional.layer_norm(seen.features, [16])
    assert torch.allclose(head().vl_tokens(seen).tokens.values, normed)


def test_sinusoidal_positions_are_sines_and_cosines_of_the_position() -> None:
    table = SinusoidalPositions(16, 50)(torch.zeros(1, 50, 16))[0].double()
    angle = torch.arange(50.0)[:, None] * 10000 ** (-torch.arange(0, 16, 2) / 16)
    assert torch.allclose(table[:, 0::2], angle.sin().double(), atol=1e-5)
    assert torch.allclose(table[:, 1::2], angle.cos().double(), atol=1e-5)
    with pytest.raises(ToolkitError, match="51 tokens exceed max_num_positional_embeddings 50"):
        SinusoidalPositions(16, 50)(torch.zeros(1, 51, 16))


def test_self_attention_knows_the_order_of_tokens_only_with_sinusoidal_positions() -> None:
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    x, order = normal(1, TOKENS, 16, seed=5), torch.tensor([6, 0, 5, 1, 4, 2, 3])
    for given, knows in (
        ({}, True),
        ({"positional_embeddings": "sinusoidal"}, True),
        ({"positional_embeddings": None}, False),
    ):
        transformer = SelfAttentionTransformer(
            TransformerConfig.parse({**sizes, **given}, "vl_self_attention_cfg")
        ).eval()
        same = torch.allclose(transformer(x[:, order]), transformer(x)[:, order], atol=1e-5)
        assert same is not knows
        assert any("pos_embed.pe" in name for name in transformer.state_dict()) is knows


def test_sinusoidal_positions_act_in_the_dit_too() -> None:
    with_table = head({"positional_embeddings": "sinusoidal"}, add_pos_embed=False)
    noise, order = normal(BATCH, HORIZON, DIM, seed=3), torch.tensor([4, 2, 0, 1, 3])
    assert not torch.allclose(
        actions_of(with_table, noise=noise[:, order]), actions_of(with_table, noise=noise)[:, order], atol=1e-4
    )


# random draws


def test_state_dropout_is_drawn_first_then_noise_then_time_from_the_cpu() -> None:
    trained = head(state_dropout_prob=0.5).train()
    action = torch.zeros(64, HORIZON, DIM)
    torch.manual_seed(11)
    found_noise, found_time, found_dropped = trained.draw(action)
    torch.manual_seed(11)
    dropped, noise = torch.rand(64) < 0.5, torch.randn(action.shape)
    time = (1 - torch.distributions.Beta(1.5, 1.0).sample([64])) * 0.999
    assert found_dropped is not None and torch.equal(found_dropped, dropped)
    assert torch.equal(found_noise, noise) and torch.equal(found_time, time)
    torch.manual_seed(11)
    found_noise, _, found_dropped = trained.eval().draw(action)
    torch.manual_seed(11)
    assert found_dropped is None and torch.equal(found_noise, torch.randn(action.shape))


def test_several_draws_of_a_sample_count_as_their_mean() -> None:
    trained, seen = head().train(), backbone().features.requires_grad_()
    noise, time = (
        normal(BATCH, 3, HORIZON, DIM, seed=5),
        torch.rand(BATCH, 3, generator=torch.Generator().manual_seed(6)),
    )
    batch = {
        "state": normal(BATCH, 1, DIM, seed=2),
        "action": normal(BATCH, HORIZON, DIM, seed=4),
        "action_mask": (normal(BATCH, HORIZON, DIM, seed=7) > 0).float(),
        "embodiment_id": torch.tensor([0, 2]),
        "drop_state_features": torch.tensor([True, False]),
    }

    def run(**draws: Tensor) -> ActionLoss:
        return trained(dataclasses.replace(backbone(), features=seen), {**batch, **draws})

    singly = [run(noise=noise[:, k], time=time[:, k]) for k in range(3)]
    together = run(noise=noise, time=time)
    expected = torch.stack([one.action_loss for one in singly]).mean(0)
    torch.testing.assert_close(together.action_loss, expected, atol=1e-6, rtol=1e-5)
    assert together.loss.item() == pytest.approx(sum(one.loss.item() for one in singly) / 3, rel=1e-5)
    (all_at_once,) = torch.autograd.grad(together.loss, seen)
    (one_by_one,) = torch.autograd.grad(sum(one.loss for one in singly) / 3, seen)
    torch.testing.assert_close(all_at_once, one_by_one, atol=1e-6, rtol=1e-4)


def test_a_dropped_state_counts_nothing_and_the_others_count() -> None:
    trained, seen = head(), backbone()
    inputs = {
        "action": normal(BATCH, HORIZON, DIM, seed=6),
        "action_mask": torch.ones(BATCH, HORIZON, DIM),
        "embodiment_id": torch.tensor([0, 2]),
        "noise": normal(BATCH, HORIZON, DIM, seed=7),
        "time": torch.tensor([0.2, 0.8]),
        "drop_state_features": torch.tensor([True, False]),
    }
    first = trained(seen, {**inputs, "state": normal(BATCH, 1, DIM, seed=8)}).action_loss
    second = trained(seen, {**inputs, "state": normal(BATCH, 1, DIM, seed=9)}).action_loss
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


def test_inference_draws_its_noise_and_nothing_else_from_the_cpu() -> None:
    model = Gr00tN1d7.from_pretrained(golden_path("tiny_h40"))
    processor = Gr00tN1d7Processor.from_pretrained(golden_path("tiny_h40"))
    groups = processor.state_action.groups("simpler_env_google", "state")
    states = {group.name: np.zeros((1, group.dim), np.float32) for group in groups}
    step = Step({"image": np.zeros((1, 32, 32, 3), np.uint8)}, states, "open it")
    batch = processor.collate([processor.encode(step, "simpler_env_google")])
    used, fresh = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    actions = model.get_action(batch, generator=used)
    noise = torch.randn(1, 40, 132, generator=fresh)
    assert torch.equal(actions, model.get_action(batch, noise=noise))
    assert torch.equal(used.get_state(), fresh.get_state())
    if torch.cuda.is_available():
        moved = model.cuda().get_action({k: v.cuda() for k, v in batch.items()}, noise=noise)
        torch.testing.assert_close(moved.cpu(), actions, atol=1e-3, rtol=1e-3)


# embodiments


@pytest.mark.parametrize("tag", EmbodimentTag)
def test_every_embodiment_has_its_projector_index(tag: EmbodimentTag) -> None:
    assert default_projector_index(tag) == INDEX[tag.value]


def test_an_embodiment_uses_its_own_row_of_weights_and_no_other() -> None:
    own = head()
    before = actions_of(own)
    with torch.no_grad():
        for layers in (own.state_encoder, own.action_encoder, own.action_decoder):
            for parameter in layers.parameters():
                parameter[1] += 1.0  # of no sample's embodiment
        assert torch.equal(actions_of(own), before)
        own.action_decoder.layer2.b[2] += 1.0
    after = actions_of(own)
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])


def test_the_loss_is_the_mean_over_what_is_not_masked() -> None:
    trained = head()
    inputs = {
        "state": normal(BATCH, 1, DIM, seed=2),
        "action": normal(BATCH, HORIZON, DIM, seed=4),
        "action_mask": torch.zeros(BATCH, HORIZON, DIM),
        "embodiment_id": torch.tensor([0, 2]),
        "noise": normal(BATCH, HORIZON, DIM, seed=5),
        "time": torch.tensor([0.3, 0.7]),
    }
    assert trained(backbone(), inputs).loss == 0  # and not 0 / 0
    inputs["action_mask"][0, 0, 0] = 1
    one = trained(backbone(), inputs)
    assert one.action_loss.count_nonzero() == 1
    torch.testing.assert_close(one.loss, one.action_loss.sum() / (1 + 1e-6), rtol=2e-7, atol=0)
    inputs["action_mask"][:] = 1
    every = trained(backbone(), inputs)
    torch.testing.assert_close(every.loss, every.action_loss.mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(every.action_loss[0, 0, 0], one.action_loss[0, 0, 0])
