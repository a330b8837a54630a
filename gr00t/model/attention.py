"""Attention of the action head and the vision tower, by the means that are fastest where it runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from gr00t.model import cpu_kernels


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention, (B, heads, T, dim) over (B, heads, S, dim); `allowed` (B, 1, 1, S) bool."""
    if cpu_kernels.pays_off(q, k):
        return cpu_kernels.attention(q, k, v, allowed)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def flash_attention(device: torch.device, dtype: torch.dtype) -> str | None:
    """transformers' name of the flash-attn package that can compute there; None where there is none."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    if hopper and is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None
