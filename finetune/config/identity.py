"""What of a configuration makes a run the same run: all that decides the loss of a later step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from finetune.config.schema_train import TrainConfig

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


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored identity with the training keys that its version did not know yet, which acted as their defaults do."""
    if not any(key.startswith("train.") for key in stored):
        return dict(stored)
    fields = [field for field in dataclasses.fields(TrainConfig) if field.name not in _WITHOUT_EFFECT]
    defaults = {f"train.{f.name}": f.default for f in fields if f.default is not dataclasses.MISSING}
    return {**defaults, **stored}
