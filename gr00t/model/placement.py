"""Where a model runs and in which precision, as chosen by `device=` and `precision=`."""

from __future__ import annotations

import torch

from gr00t.errors import ToolkitError


def pick_device(device: str) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ToolkitError("device=cuda, but PyTorch finds no CUDA device here. Use device=cpu, or look at nvidia-smi.")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """bf16 or fp32; `auto` is bf16 on GPUs that compute in it, and fp32 elsewhere."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ToolkitError("bf16 was chosen, but this GPU has none. Choose fp32: (train.)precision=fp32.")
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
