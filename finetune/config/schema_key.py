"""`key`: how a schema declares a key, with its default, bounds and meaning."""

from __future__ import annotations

from dataclasses import field
from typing import Any

_REQUIRED: Any = object()


def key(meaning: str, default: Any = _REQUIRED, **bounds: Any) -> Any:
    """A documented field. Without a default its value comes from a configuration file or the command line.

    `bounds`: choices (a tuple of texts); at_least, more_than, at_most, less_than (numbers); folder=True for a
    path, in which a leading ~ is the home folder (with file=True, of a file).
    Of train.* and augment.*, which make a run the same run: identity=False for what changes no later step's loss;
    before=VALUE for a key that came later, with what the runs written before it acted as.
    """
    metadata = {"meaning": meaning, **bounds}
    if default is _REQUIRED:
        return field(metadata=metadata)
    if isinstance(default, type):  # a section
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def modality_config_key() -> Any:
    """The key of the robot's file; beside it stands `modalities`, a field of `modalities_field`."""
    return key(
        "Python file with the robot's MODALITY_CONFIG; null for conflict_panda_config.py of the checkout",
        None,
        folder=True,
        file=True,
    )


def modalities_field() -> Any:
    """What the file of `modality_config` says (finetune.config.modality), a plain value that no user sets."""
    return field(default_factory=dict, metadata={"derived": True})


PRECISIONS = ("auto", "bf16", "fp32")
LARGEST_SEED = 2**64 - 1  # what PyTorch's generators take
DEVICES = ("auto", "cpu", "cuda")
