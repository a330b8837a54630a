"""Attention of the action head, by the means that are fastest where it runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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


def _trains(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
