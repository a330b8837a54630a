"""What of a configuration makes a run the same run: all that decides the loss of a later step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WITHOUT_EFFECT = (
    "save_steps",
    "keep_last",
    "keep_every",
    "log_steps",
    "eval_steps",
    "eval_episodes",
    "patience",
    "export",
    "num_workers",
    "resume",
    "micro_batch_size",
    "activation_checkpointing",
    "backbone_batch_size",
    "features",
)


def recipe(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a resolved fine-tune that must not change when it is continued, with their values."""
    return {
        **{f"train.{key}": value for key, value in resolved["train"].items() if key not in _WITHOUT_EFFECT},
        "augment": resolved["augment"],
        "dataset.tail": resolved["dataset"]["tail"],
        "dataset.embodiment_tag": resolved["dataset"]["embodiment_tag"],
    }
