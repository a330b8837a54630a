"""Policies of LeRobot's with random weights, made by LeRobot itself where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZE = 64  # pixels


def make_policy(folder: Path, kind: str = "act", **changes: Any) -> Path:
    """folder, as LeRobot's training leaves it: weights, configuration, both pipelines; of a Panda with two cameras."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    image = PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE))
    views = {f"observation.images.{view}": image for view in ("image", "wrist_image")}
    inputs = {**views, "observation.state": PolicyFeature(FeatureType.STATE, (8,))}
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (8,))}
    small: dict[str, dict[str, Any]] = {
        "act": dict(dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1, chunk_size=16, n_action_steps=16),
        "diffusion": dict(n_obs_steps=1, down_dims=(16, 32), num_inference_steps=2, crop_shape=None, n_groups=4),
    }
    options = {**small[kind], **changes}
    config = make_policy_config(
        kind, input_features=inputs, output_features=outputs, device="cpu", pretrained_backbone_weights=None, **options
    )
    torch.manual_seed(0)
    dims = {"observation.state": 8, "action": 8}
    stats = {name: {"mean": torch.arange(dim) / 4, "std": torch.ones(dim) / 2} for name, dim in dims.items()}
    stats |= {name: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)} for name in views}
    for of in stats.values():
        of |= {"min": of["mean"] - 1, "max": of["mean"] + 1}
    get_policy_class(kind)(config).save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(folder)
    return folder
