"""The model's numbers are the original's, part by part, on every recorded file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from golden_files import golden_path, infer_files, load, train_files
from parity.measure import (
    UNUSED_NORM,
    chunking_difference,
    draw_differences,
    gradient_differences,
    infer_differences,
    recorded_modes,
    seeded_action_difference,
    step_differences,
    training_case,
)

from finetune.training.optimizer import parameter_groups
from gr00t.model.config import Gr00tN1d7Config, released_config
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

pytestmark = pytest.mark.usefixtures("kernels")


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", infer_files(), ids=named)
def test_actions_and_intermediates_are_the_originals(path: Path) -> None:
    limits = {"image_mask": 0.0, "attention_mask": 0.0, "noise": 0.0, "action_pred": 5e-6}
    for part, difference in infer_differences(path).items():
        assert difference <= limits.get(part, 1e-5), part


@pytest.mark.parametrize("path", infer_files(), ids=named)
def test_the_seed_alone_gives_the_originals_actions(path: Path) -> None:
    assert seeded_action_difference(path) < 5e-6


@pytest.mark.parametrize("path", [p for p in infer_files() if "rtc::action_pred" in load(p)], ids=named)
def test_real_time_chunking_is_the_originals(path: Path) -> None:
    found = chunking_difference(path)
    assert found is not None and found < 5e-6


@pytest.mark.parametrize("path", train_files(), ids=named)
def test_noise_time_and_velocity_of_a_training_forward_are_the_originals(path: Path) -> None:
    for part, difference in draw_differences(path).items():
        assert difference <= (1e-5 if part == "pred_velocity" else 0), part


@pytest.mark.parametrize(
    "path, mode", [pytest.param(p, m, id=f"{named(p)}-{m}") for p in train_files() for m in recorded_modes(p)]
)
def test_loss_and_gradients_are_the_originals(path: Path, mode: str) -> None:
    found = gradient_differences(path, mode)
    assert found["loss"] < 1e-5 and found["action_loss"] < 1e-5
    assert found["gradients"] < 1e-5 and found["total_gradient"] < 1e-5


@pytest.mark.parametrize("path", train_files(), ids=named)
def test_three_optimizer_steps_are_the_originals(path: Path) -> None:
    found = step_differences(path)
    assert found["loss"] < 1e-4 and found["gradient"] < 1e-3
    assert found["parameters"] < 1e-4 and found["sums"] < 1e-4


@pytest.mark.parametrize("path", train_files(), ids=named)
def test_decay_groups_are_the_originals(path: Path) -> None:
    model, _, _, recorded = training_case(path)
    found = parameter_groups(model, 1e-2)
    for group, wanted in zip(found, recorded["optimizer"]["groups"], strict=True):
        assert set(group["names"]) == set(wanted["names"])
        assert group["weight_decay"] == wanted["weight_decay"]


@pytest.mark.parametrize("path", train_files(), ids=named)
def test_the_unused_final_norm_is_the_one_parameter_that_is_not_trained_here(path: Path) -> None:
    model, _, _, recorded = training_case(path, "full")
    without_gradient = [n for n, norm in recorded["full"]["grad_norms"].items() if not norm]
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == without_gradient == [UNUSED_NORM]


def test_class_defaults_have_the_recorded_shapes_on_the_meta_device() -> None:
    wanted = json.loads(golden_path("full_size_state_dict_shapes.json").read_text())
    with torch.device("meta"):
        model = Gr00tN1d7(Gr00tN1d7Config())
    assert {n: list(t.shape) for n, t in model.state_dict().items()} == wanted


def test_the_released_model_has_the_stated_parameters_part_by_part() -> None:
    with torch.device("meta"):
        model = Gr00tN1d7(released_config())
    head, vlm = model.action_head, model.backbone.vlm
    parts = {
        vlm.visual: 406_957_056,
        vlm.language_model: 1_116_542_976,
        head.model: 1_091_722_240,
        head.vl_self_attention: 201_433_088,
        head.state_encoder: 54_738_944,
        head.action_encoder: 233_127_936,
        head.action_decoder: 37_916_800,
        head.vlln: 4_096,
        head.position_embedding: 1_572_864,
    }
    for module, count in parts.items():
        assert sum(p.numel() for p in module.parameters()) == count
    assert sum(p.numel() for p in model.parameters()) == sum(parts.values())


def test_frozen_groups_stay_in_eval_mode_and_get_no_gradient(tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    model.set_trainable(projector=True, diffusion_model=False, vlln=True)
    model.train()
    assert model.action_head.state_encoder.training and model.action_head.vlln.training
    for frozen in (model.action_head.model, model.backbone.vlm.visual, model.backbone.vlm.language_model):
        assert not frozen.training
        assert not any(p.requires_grad for p in frozen.parameters())


def test_casting_to_bf16_leaves_the_rotary_frequencies_exact(tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base).to(torch.bfloat16)
    model.backbone.check_rotary()
    assert model.backbone.vlm.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_positions_of_a_new_base_may_begin_as_sinusoids_that_tell_neighbours_from_the_rest() -> None:
    from config_calls import compose

    from finetune.create_base import random_model, write_small_tokenizer

    def weights(*change: str) -> dict[str, torch.Tensor]:
        shape = compose("create_base", "model=tiny", *change).model.architecture
        return random_model(shape, tokens, seed=3, dtype="fp32").state_dict()

    with tempfile.TemporaryDirectory() as folder:
        tokens = write_small_tokenizer(Path(folder))
    plain, waves = weights(), weights("model.architecture.sinusoidal_positions=0.5")
    changed = [name for name in plain if not torch.equal(plain[name], waves[name])]
    assert changed == ["backbone.model.model.visual.pos_embed.weight"]
    table = waves[changed[0]]
    assert table.shape == (144, 32) and torch.allclose(table.square().mean(), torch.tensor(0.125))  # 0.5^2 / 2
    rows, columns = torch.arange(144) // 12, torch.arange(144) % 12
    steps = (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()
    apart = (table[:, None] - table).norm(dim=-1)
    assert apart[steps == 1].max() < apart[steps > 4].min()
