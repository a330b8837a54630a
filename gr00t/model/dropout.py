"""Dropout that costs little on a CPU, where PyTorch draws 64 bits for each value and multiplies by a mask of floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 2**16  # four draws of 16 bits out of each 64; the chance is rounded to 1/65536
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


class Dropout(nn.Dropout):
    """nn.Dropout; training on a CPU it draws 16 bits a value and keeps 16 bits of mask for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = min(round(self.p * LEVELS), LEVELS - 1)
        kept = _draws(x).ge_(dropped - LEVELS // 2).neg_()  # every bit of a kept value is 1
        return _Masked.apply(x, kept, LEVELS / (LEVELS - dropped))


class _Masked(torch.autograd.Function):
    """x where `kept` has its bits, else 0; times `scale`. A bit-wise product is faster than one of floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _masked(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _masked(gradients[0], kept, ctx.scale), None, None


def _masked(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    bits = _BITS[x.dtype]
    return (x.contiguous().view(bits) & kept.to(bits)).view(x.dtype).mul_(scale)


def _draws(x: Tensor) -> Tensor:
    """Uniform int16 in the shape of x, by a generator much faster than PyTorch's, which gives its seed."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw((x.numel() + 3) // 4)
    return torch.from_numpy(words.view(np.int16)[: x.numel()]).view(x.shape)
