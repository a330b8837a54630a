"""The model's numbers are the original's, part by part, on every recorded file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import below, checkpoint_of, golden_dir, infer_files, load, train_files

from finetune.optim import build_optimizer, parameter_groups
from gr00t.model import Gr00tN1d7
from gr00t.model.action_head import RealTimeChunking
from gr00t.model.config import Gr00tN1d7Config, released_config
from gr00t.model.embodiment import EmbodimentRows

UNUSED_NORM = "backbone.model.model.language_model.norm.weight"
ZERO_GRADIENT = "attn1.to_k.bias"  # analytically zero: what is recorded is rounding noise


def named(path: Path) -> str:
    return path.stem


def inputs_of(data: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The recorded collated inputs; images as uint8 unless pixel values were recorded."""
    inputs = {name: torch.from_numpy(array) for name, array in below(data, "in::").items()}
    if "pixel_values" not in inputs:
        images = [data[k] for k in sorted(k for k in data if k.startswith("img"))]
        inputs["images"] = torch.from_numpy(np.concatenate(images))
    return inputs


def relative_error(found: torch.Tensor, recorded: np.ndarray) -> float:
    return float(np.abs(found.detach().numpy() - recorded).max() / np.abs(recorded).max())


@pytest.mark.parametrize("path", infer_files(), ids=named)
def test_actions_and_intermediates_are_the_originals(path: Path) -> None:
    data = load(path)
    model, inputs = Gr00tN1d7.from_pretrained(checkpoint_of(path)), inputs_of(data)
    backbone = model.features(inputs)
    assert relative_error(backbone.features, data["mid::backbone_features"]) < 1e-5
    assert np.array_equal(backbone.image_mask.numpy(), data["mid::image_mask"])
    assert np.array_equal(backbone.attention_mask.numpy(), data["mid::backbone_attention_mask"])
    head, rows = model.action_head, EmbodimentRows(inputs["embodiment_id"])
    assert relative_error(head.context(backbone), data["mid::vl_embeds"]) < 1e-5
    state = head.encode_state(inputs["state"], rows)
    assert relative_error(state, data["mid::state_features"]) < 1e-5
    torch.manual_seed(int(data["seed"]))
    noise = torch.randn(data["mid::noise"].shape)
    assert np.array_equal(noise.numpy(), data["mid::noise"])
    context = head.model.encode_context(head.context(backbone))
    first = head.velocity(noise, torch.from_numpy(data["mid::t_disc"][0]), state, rows, context, backbone)
    assert relative_error(first, data["mid::pred_velocity_step0"]) < 1e-5
    torch.manual_seed(int(data["seed"]))
    actions = model.get_action(inputs)
    assert np.abs(actions.numpy() - data["action_pred"]).max() < 5e-6


@pytest.mark.parametrize("path", [p for p in infer_files() if "rtc::action_pred" in load(p)], ids=named)
def test_real_time_chunking_is_the_originals(path: Path) -> None:
    data = load(path)
    options = json.loads(str(data["rtc::options"]))
    rtc = RealTimeChunking(
        torch.from_numpy(data["rtc::prev_action"]),
        options["action_horizon"],
        options["rtc_overlap_steps"],
        options["rtc_frozen_steps"],
        options["rtc_ramp_rate"],
    )
    model = Gr00tN1d7.from_pretrained(checkpoint_of(path))
    torch.manual_seed(int(data["seed"]))
    actions = model.get_action(inputs_of(data), rtc=rtc)
    assert np.abs(actions.numpy() - data["rtc::action_pred"]).max() < 5e-6


def training_case(path: Path) -> tuple[Gr00tN1d7, dict[str, torch.Tensor], dict[str, np.ndarray], dict]:
    data = load(path)
    model = Gr00tN1d7.from_pretrained(checkpoint_of(path)).train()
    return model, inputs_of(data), data, json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("path", train_files(), ids=named)
@pytest.mark.parametrize("mode", ["default", "full", "top1"])
def test_loss_and_gradients_are_the_originals(path: Path, mode: str) -> None:
    model, inputs, data, recorded = training_case(path)
    extra = {"default": {}, "full": {"llm": True, "visual": True}, "top1": {"top_llm_layers": 1}}[mode]
    model.set_trainable(projector=True, diffusion_model=True, vlln=True, **extra)
    torch.manual_seed(int(data["seed"]))
    output = model(inputs)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(recorded[mode]["loss"], rel=1e-5)
    assert np.abs(output.action_loss.detach().numpy() - data["eval::action_loss"]).max() < 1e-4
    found = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    wanted = {n: g for n, g in recorded[mode]["grad_norms"].items() if n != UNUSED_NORM}
    assert set(found) == set(wanted)
    total = recorded[mode]["total_grad_norm"]
    for name, norm in wanted.items():
        assert abs(found[name] - norm) <= 1e-5 * norm + 1e-7 * total, name


@pytest.mark.parametrize("path", train_files(), ids=named)
def test_three_optimizer_steps_are_the_originals(path: Path) -> None:
    from finetune.config import TrainConfig

    model, inputs, _, recorded = training_case(path)
    model.set_trainable(projector=True, diffusion_model=True, vlln=True)
    steps = recorded["steps"]
    optimizer = build_optimizer(model, TrainConfig(learning_rate=steps["lr"], weight_decay=steps["weight_decay"]))
    for seed, loss, norm in zip(steps["seeds"], steps["losses"], steps["grad_norms"], strict=True):
        torch.manual_seed(seed)
        output = model(inputs)
        optimizer.zero_grad()
        output.loss.backward()
        found = torch.nn.utils.clip_grad_norm_([p for _, p in model.trained_parameters()], steps["clip"])
        optimizer.step()
        assert output.loss.item() == pytest.approx(loss, rel=1e-4)
        assert found.item() == pytest.approx(norm, rel=1e-3)
    parameters = dict(model.named_parameters())
    for name, (_, norm) in recorded["param_after"].items():
        if ZERO_GRADIENT not in name:
            assert parameters[name].detach().norm().item() == pytest.approx(norm, rel=1e-4), name


@pytest.mark.parametrize("path", train_files(), ids=named)
def test_decay_groups_are_the_originals(path: Path) -> None:
    model, _, _, recorded = training_case(path)
    model.set_trainable(projector=True, diffusion_model=True, vlln=True)
    found = parameter_groups(model, 1e-2)
    for group, wanted in zip(found, recorded["optimizer"]["groups"], strict=True):
        assert set(group["names"]) == set(wanted["names"])
        assert group["weight_decay"] == wanted["weight_decay"]


def test_class_defaults_have_the_recorded_shapes_on_the_meta_device() -> None:
    wanted = json.loads((golden_dir() / "full_size_state_dict_shapes.json").read_text())
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
