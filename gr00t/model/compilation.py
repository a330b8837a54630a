"""torch.compile for the action head: what is compiled for training and for acting, and what a machine needs for it.

Modules are compiled in place, so that names of weights stay as they are.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from typing import Any

import torch

from gr00t.errors import ToolkitError
from gr00t.model.action_head import ActionHead

log = logging.getLogger(__name__)
LENGTHS = 64  # of prompts, and kinds of blocks, that are compiled; further ones run eagerly


def missing_for_compilation(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine to compile for `device`; None where nothing is missing."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton, which comes with PyTorch for CUDA"
    candidates = ("c++", "g++", "clang++") if device.type == "cpu" else ("cc", "gcc", "clang")
    own = os.environ.get("CXX" if device.type == "cpu" else "CC")
    if not any(shutil.which(name) for name in (*candidates, *([own] if own else []))):
        return f"a compiler ({', '.join(candidates)})"
    return None


def compiles(choice: bool | None, device: torch.device) -> bool:
    """Whether to compile for `device`: as chosen, or (None) where it is CUDA and nothing is missing."""
    missing = missing_for_compilation(device) if choice is not False else None
    if choice and missing:
        raise ToolkitError(
            f"train.compile=true, but this machine lacks {missing}. Leave it out: losses are the same, in more time."
        )
    if choice is None and missing and device.type == "cuda":
        log.warning("the action head is not compiled: this machine lacks %s. Training takes longer.", missing)
    return missing is None and (device.type == "cuda" if choice is None else choice)


def compile_for_training(head: ActionHead) -> None:
    """Compile every block of the two transformers on its own: blocks alike share their code, so that it takes a minute
    however many there are, and a block may still be computed again in the backward pass (activation checkpointing).

    Every length (of another prompt) is compiled on its own, and no kernel is chosen by timing it: what a step computes
    then does not depend on the steps before it, or on the machine's load, so that a resumed run repeats it.
    """
    for transformer in _transformers(head):
        for block in transformer.transformer_blocks:
            block.compile(dynamic=False, recompile_limit=LENGTHS, options={"deterministic": True})


def compile_for_acting(head: ActionHead, mode: str | None = None) -> None:
    """Compile each of the two transformers whole: fewer and larger pieces, for the least time to the next action.

    mode: as of torch.compile. Raises ToolkitError where this machine cannot compile.
    """
    device = next(head.parameters()).device
    missing = missing_for_compilation(device)
    if missing is not None:
        raise ToolkitError(
            f"The action head cannot be compiled for {device.type}: this machine lacks {missing}. Leave compile_head() "
            "out; actions are the same, and come some milliseconds later."
        )
    for transformer in _transformers(head):
        transformer.compile(mode=mode)


def _transformers(head: ActionHead) -> list[Any]:
    return [head.model] if head.vl_self_attention is None else [head.model, head.vl_self_attention]
