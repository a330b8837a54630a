"""On which device and in which precision a model runs, and what torch.compile makes of its action head there."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil

import torch

from gr00t.errors import ToolkitError
from gr00t.model import cpu_kernels
from gr00t.model.action_head import ActionHead
from gr00t.model.dit import TransformerBlock

LENGTHS = 64  # of prompts, and kinds of blocks, that are compiled; further ones run eagerly

log = logging.getLogger(__name__)


def pick_device(device: str) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ToolkitError("device=cuda, but PyTorch finds no CUDA device here. Use device=cpu, or look at nvidia-smi.")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """bf16 or fp32; `auto` is bf16 on GPUs that compute in it, `fastest` on CPUs too, and both are fp32 elsewhere."""
    if precision in ("auto", "fastest"):
        gpu = device.type == "cuda"
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else cpu_kernels.has_bf16()
        return torch.bfloat16 if fast and (gpu or precision == "fastest") else torch.float32
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ToolkitError("bf16 was chosen, but this GPU has none. Choose fp32: (train.)precision=fp32.")
    if precision == "bf16" and device.type == "cpu" and not cpu_kernels.has_bf16():
        log.warning(
            "bf16 was chosen, and this CPU has no instructions for it: it takes ten times longer than in fp32. Choose "
            "(train.)precision=fastest."
        )
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def missing_for_compilation(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine to compile for `device`; None where nothing is missing."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton, which comes with PyTorch for CUDA"
    own, *candidates = ("CXX", "c++", "g++", "clang++") if device.type == "cpu" else ("CC", "cc", "gcc", "clang")
    if any(shutil.which(name) for name in (os.environ.get(own, ""), *candidates)):
        return None
    return f"a compiler ({', '.join(candidates)})"


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
    then does not depend on the steps before it, or on the machine's load, so that a resumed run repeats it. Blocks are
    compiled in place, so that names of weights stay as they are.
    """
    for module in head.modules():
        if isinstance(module, TransformerBlock):
            module.compile(dynamic=False, recompile_limit=LENGTHS, options={"deterministic": True})


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
    head.model.compile(mode=mode)
    if head.vl_self_attention is not None:
        head.vl_self_attention.compile(mode=mode)
