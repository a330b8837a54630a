"""How far the model is from the recorded numbers of the original, part by part. Tests bound it, table.py prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_files import Arrays, batch_images, below, checkpoint_of, load

from finetune.recipe.train_config import TrainConfig
from finetune.training.optimizer import build_optimizer
from gr00t.model.action_head import EmbodimentRows, RealTimeChunking
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

UNUSED_NORM = "backbone.model.model.language_model.norm.weight"
ZERO_GRADIENT = "attn1.to_k.bias"  # analytically zero: what is recorded is rounding noise
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "full": {"llm": True, "visual": True},
    "top1": {"top_llm_layers": 1},
}


def inputs_of(data: Arrays) -> dict[str, torch.Tensor]:
    """The recorded collated inputs; images as uint8 unless pixel values were recorded."""
    inputs = {name: torch.from_numpy(array) for name, array in below(data, "in::").items()}
    if "pixel_values" not in inputs:
        inputs["images"] = torch.from_numpy(batch_images(data))
    return inputs


def original_like(path: Path) -> Gr00tN1d7:
    """The checkpoint of a golden file, letting padding leak into results as the original does."""
    model = Gr00tN1d7.from_pretrained(checkpoint_of(path))
    model.action_head.padding_leaks = True
    return model


def recorded_modes(path: Path) -> list[str]:
    """The tuning modes whose gradients were recorded for a training batch."""
    return [mode for mode in MODES if mode in json.loads(path.with_suffix(".json").read_text())]


def relative(found: torch.Tensor | np.ndarray, recorded: np.ndarray) -> float:
    """The largest difference, as a share of the largest recorded value."""
    return absolute(found, recorded) / float(np.abs(recorded).max())


def absolute(found: torch.Tensor | np.ndarray, recorded: np.ndarray) -> float:
    """The largest difference; other shapes are an error."""
    values = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else found
    recorded = recorded.astype(np.float64)
    assert values.shape == recorded.shape, f"{values.shape} found, {recorded.shape} recorded"
    return float(np.abs(values - recorded).max())


def infer_differences(path: Path) -> dict[str, float]:
    """Of a recorded inference: intermediates relative to their maximum, actions absolute; masks and noise 0 or 1.

    A part that the file does not hold is left out.
    """
    data = load(path)
    model, inputs = original_like(path), inputs_of(data)
    head, rows = model.action_head, EmbodimentRows(inputs["embodiment_id"])
    torch.manual_seed(int(data["seed"]))
    noise = torch.randn(data["action_pred"].shape)
    buckets = torch.zeros(len(noise), dtype=torch.int64)  # denoising starts at time 0
    with torch.no_grad():
        backbone = model.features(inputs)
        tokens, state = head.vl_tokens(backbone), head.encode_state(inputs["state"], rows)
        velocity = head.velocity(noise, buckets, state, rows, head.encode_context(backbone))
        actions = model.get_action(inputs, noise=noise)
    parts = {
        "image_mask": (absolute, backbone.image_mask.float(), "mid::image_mask"),
        "attention_mask": (absolute, backbone.attention_mask.float(), "mid::backbone_attention_mask"),
        "noise": (absolute, noise, "mid::noise"),
        "features": (relative, backbone.features, "mid::backbone_features"),
        "vl_embeds": (relative, tokens.tokens.values, "mid::vl_embeds"),
        "state": (relative, state, "mid::state_features"),
        "velocity": (relative, velocity, "mid::pred_velocity_step0"),
        "action_pred": (absolute, actions, "action_pred"),
    }
    return {part: measure(found, data[key]) for part, (measure, found, key) in parts.items() if key in data}


def seeded_action_difference(path: Path) -> float:
    """Of action_pred when the checkpoint alone decides: its denoising steps, and noise from the seed."""
    data = load(path)
    torch.manual_seed(int(data["seed"]))
    return absolute(original_like(path).get_action(inputs_of(data)), data["action_pred"])


def chunking_difference(path: Path) -> float | None:
    """Of the actions under real-time chunking; None where the file has none."""
    data = load(path)
    if "rtc::action_pred" not in data:
        return None
    options = json.loads(str(data["rtc::options"]))
    rtc = RealTimeChunking(
        torch.from_numpy(data["rtc::prev_action"]),
        options["action_horizon"],
        options["rtc_overlap_steps"],
        options["rtc_frozen_steps"],
        options["rtc_ramp_rate"],
    )
    torch.manual_seed(int(data["seed"]))
    actions = original_like(path).get_action(inputs_of(data), rtc=rtc)
    return absolute(actions, data["rtc::action_pred"])


def training_case(path: Path, mode: str = "default") -> tuple[Gr00tN1d7, dict[str, torch.Tensor], Arrays, dict]:
    """The model ready to train in one of MODES, its inputs, and what was recorded (arrays, json)."""
    data = load(path)
    model = original_like(path).train()
    model.set_trainable(projector=True, diffusion_model=True, vlln=True, **MODES[mode])
    return model, inputs_of(data), data, json.loads(path.with_suffix(".json").read_text())


def draw_differences(path: Path) -> dict[str, float]:
    """Of the random draws of a training forward and of the velocity they lead to (see eval:: in the golden files)."""
    model, inputs, data, _ = training_case(path)
    head, rows, action = model.action_head, EmbodimentRows(inputs["embodiment_id"]), inputs["action"]
    torch.manual_seed(int(data["seed"]))
    noise, time, _ = head.draw(action)
    buckets = (time * model.config.num_timestep_buckets).long()
    t = time[:, None, None]
    with torch.no_grad():
        backbone = model.features(inputs)
        context = head.encode_context(backbone)
        state = head.encode_state(inputs["state"], rows)
        noised = (1 - t) * noise + t * action
        velocity = head.velocity(noised, buckets, state, rows, context)
    parts = {
        "noise": (absolute, noise),
        "time": (absolute, time),
        "t_disc": (absolute, buckets),
        "pred_velocity": (relative, velocity),
    }
    return {p: measure(found, data[f"eval::{p}"]) for p, (measure, found) in parts.items() if f"eval::{p}" in data}


def gradient_differences(path: Path, mode: str) -> dict[str, float]:
    """Of loss (relative), unreduced loss (relative to its maximum) and the gradients in one tuning mode.

    gradients: the worst |d| / (norm + total / 100), so that 1e-5 means |d| <= 1e-5 norm + 1e-7 total.
    """
    model, inputs, data, recorded = training_case(path, mode)
    torch.manual_seed(int(data["seed"]))
    output = model(inputs)
    output.loss.backward()
    found = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    wanted = {n: g for n, g in recorded[mode]["grad_norms"].items() if g is not None}
    assert set(found) == set(wanted), sorted(set(found) ^ set(wanted))
    total = recorded[mode]["total_grad_norm"]
    whole = sum(norm**2 for norm in found.values()) ** 0.5
    return {
        "loss": abs(output.loss.item() / recorded[mode]["loss"] - 1),
        "action_loss": relative(output.action_loss, data["eval::action_loss"]),
        "gradients": max(abs(found[n] - norm) / (norm + total / 100) for n, norm in wanted.items()),
        "total_gradient": abs(whole / total - 1),
    }


def step_differences(path: Path) -> dict[str, float]:
    """Of loss, gradient norm and parameters over the recorded optimizer steps, all relative.

    parameters: norms; sums: sums of a parameter as a share of the most that its norm allows.
    """
    model, inputs, _, recorded = training_case(path)
    steps = recorded["steps"]
    optimizer = build_optimizer(model, TrainConfig(learning_rate=steps["lr"], weight_decay=steps["weight_decay"]))
    losses, norms = [], []
    for seed, loss, norm in zip(steps["seeds"], steps["losses"], steps["grad_norms"], strict=True):
        torch.manual_seed(seed)
        output = model(inputs)
        optimizer.zero_grad()
        output.loss.backward()
        found = torch.nn.utils.clip_grad_norm_([p for _, p in model.trained_parameters()], steps["clip"])
        optimizer.step()
        losses.append(abs(output.loss.item() / loss - 1))
        norms.append(abs(found.item() / norm - 1))
    parameters, sums = [], []
    trained = dict(model.named_parameters())
    for name, (total, norm) in recorded["param_after"].items():
        if ZERO_GRADIENT not in name:
            values = trained[name].detach().double()
            parameters.append(abs(values.norm().item() / norm - 1))
            sums.append(abs(values.sum().item() - total) / (norm * values.numel() ** 0.5))
    return {"loss": max(losses), "gradient": max(norms), "parameters": max(parameters), "sums": max(sums)}
