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
        dropped = min(round(self.p * LEVELS), LEVELS - 1)
        count = x.numel()
        draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = draws[:count].view(x.shape) >= dropped - LEVELS // 2
        return (x * kept).mul_(LEVELS / (LEVELS - dropped))
