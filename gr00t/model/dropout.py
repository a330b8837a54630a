"""Dropout that costs little on a CPU, where PyTorch draws 64 bits for each value and keeps its mask as floats."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 2**16  # four draws of 16 bits out of each 64; the chance is rounded to 1/65536


class Dropout(nn.Dropout):
    """nn.Dropout; training on a CPU it draws 16 bits a value and keeps one byte of mask for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        return drop(x, kept(x.shape, self.p), self.p)


def kept(shape: torch.Size, p: float) -> Tensor:
    """Which values stay, a bool tensor of that shape on the CPU, from PyTorch's own generator."""
    count = shape.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[:count].view(shape) >= round(p * LEVELS) - LEVELS // 2


def drop(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """x where it is kept, scaled so that the expectation stays, else 0."""
    return (x * keep).mul_(LEVELS / (LEVELS - round(p * LEVELS)))
