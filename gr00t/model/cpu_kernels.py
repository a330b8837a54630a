"""Attention by the means that are fastest where it runs, and all that a CPU computes by other means than a GPU.

Attention and feed-forward layers give the same numbers up to rounding; dropout draws other masks of the same share.
With `switched(False)` a CPU computes what a GPU does, which is how tests see the code that a GPU runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

SAMPLES_AT_ONCE = 4  # of a forward of the frozen backbone: a CPU's caches then hold what a layer works on
LEVELS = 2**16  # of dropout: four draws of 16 bits out of each 64; the chance is rounded to 1/65536
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}

_on = True


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Within the block everything in this module is used on a CPU, or nothing is."""
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def used(device: torch.device) -> bool:
    """Whether tensors on this device are computed by what is in this module."""
    return _on and device.type == "cpu"


def has_bf16() -> bool:
    """Whether this CPU has instructions for bf16, without which products in bf16 take ten times longer than in fp32."""
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    listed = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # before torch 2.12: of x86
    names = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
    return any(supported is not None and supported() for supported in asked) or any(listed.get(name) for name in names)


def samples_at_once(device: torch.device) -> int | None:
    """Samples of a forward without gradients; None for all."""
    return SAMPLES_AT_ONCE if used(device) else None


def trained_attention(device: torch.device) -> str:
    """transformers' name of the attention of a language model that is trained: the backward pass of PyTorch's fused
    attention takes longer on a CPU than plain products."""
    return "eager" if used(device) else "sdpa"


def flash_attention(device: torch.device, dtype: torch.dtype) -> str | None:
    """transformers' name of the flash-attn package that can compute there; None where there is none."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    if hopper and is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention of q (B, heads, T, dim) over k and v (B, heads, S, dim); `allowed` (B, 1, 1, S) bool."""
    if pays_off(q, k):
        return attention(q, k, v, allowed)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def pays_off(q: Tensor, k: Tensor) -> bool:
    """Whether plain products take less time than PyTorch's fused attention: on a CPU in training, for its backward
    pass, and in bf16, for its forward pass."""
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    return used(q.device) and (q.dtype == torch.bfloat16 or trains)


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax attention by plain products; shapes as of `attend`."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


def feed_forward(project: nn.Linear, dropout: nn.Module, contract: nn.Linear, x: Tensor) -> Tensor:
    """`contract(dropout(gelu(project(x))))` of x (B, T, width): the head's widest tensors, and the mask, are not kept
    for the backward pass but computed again in it."""

    def second(inner: Tensor) -> Tensor:
        return contract(dropout(F.gelu(inner, approximate="tanh")))

    out = checkpoint(second, project(x), use_reentrant=False)
    assert isinstance(out, Tensor)
    return out


class Dropout(nn.Dropout):
    """nn.Dropout; training on a CPU it draws 16 bits a value and keeps 16 bits of mask for the backward pass, where
    PyTorch draws 64 bits for each value and multiplies by a mask of floats."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, to the same shape."""
        if not self.training or self.p == 0 or not used(x.device) or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = min(round(self.p * LEVELS), LEVELS - 1)
        kept = _draws(x).ge_(dropped - LEVELS // 2).neg_()  # every bit of a kept value is 1
        return _Masked.apply(x, kept, LEVELS / (LEVELS - dropped))


class _Masked(torch.autograd.Function):
    """x where `kept` (int16, of x's shape) is -1, 0 where it is 0; times `scale`. A bit-wise product is faster than one
    of floats."""

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
