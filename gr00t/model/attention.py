"""Attention of the action head, by the means that are fastest where it runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention, (B, heads, T, dim) over (B, heads, S, dim); `allowed` (B, 1, 1, S) bool.

    PyTorch's fused attention, except on a CPU: in training, where its backward takes longer than plain products, and in
    bf16, where its forward does too.
    """
    if q.device.type == "cpu" and (q.dtype == torch.bfloat16 or _trains(q, k)):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        return scores.softmax(dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def flash_attention(device: torch.device, dtype: torch.dtype) -> str | None:
    """transformers' name of the flash-attn package that can compute there; None where there is none."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    if hopper and is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


def _trains(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
