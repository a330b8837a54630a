"""`key`: how a schema declares a key, with its default, bounds and meaning."""

from __future__ import annotations

from dataclasses import field
from typing import Any

_REQUIRED: Any = object()


def key(meaning: str, default: Any = _REQUIRED, **bounds: Any) -> Any:
    """A documented field. Without a default its value comes from a configuration file or the command line.

    `bounds`: choices (a tuple of texts); at_least, more_than, at_most, less_than (numbers); folder=True for a
    path, in which a leading ~ is the home folder.
    """
    metadata = {"meaning": meaning, **bounds}
    if default is _REQUIRED:
        return field(metadata=metadata)
    if isinstance(default, type):  # a section
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


PRECISIONS = ("auto", "bf16", "fp32")
LARGEST_SEED = 2**64 - 1  # what PyTorch's generators take
DEVICES = ("auto", "cpu", "cuda")
