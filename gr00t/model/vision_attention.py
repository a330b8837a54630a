"""The vision tower's attention within each image, for all images of a batch in one call, and its patch embedding.

transformers runs Qwen3-VL's vision attention image by image, in a Python loop of every block, unless flash-attention
is installed. Images of one size, which is what the processor makes, need no loop: they are a batch. It embeds patches
by a 3-D convolution whose kernel covers a whole patch: the same as a matrix product, and slower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gr00t.model.attention import attend


class PatchEmbedding(nn.Module):
    """In place of Qwen3VLVisionPatchEmbed, with its weights (`proj`): patches (N, 1536) to (N, width)."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.proj: nn.Conv3d = original.proj

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)


class ImageLengths:
    """Patches of each image in the packed sequence; read from the device once a forward, not once a block."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._lengths: list[int] = []

    def __call__(self, cu_seqlens: Tensor) -> list[int]:
        if cu_seqlens is not self._seen:
            self._seen = cu_seqlens
            self._lengths = cu_seqlens.diff().tolist()
        return self._lengths


class ImageAttention(nn.Module):
    """In place of a block's Qwen3VLVisionAttention, with its weights (`qkv`, `proj`).

    Tokens are (patches of all images, width), packed image after image; rotary positions as transformers gives them.
    """

    def __init__(self, original: Any, lengths: ImageLengths) -> None:
        super().__init__()
        self.heads: int = original.num_heads
        self.qkv: nn.Linear = original.qkv
        self.proj: nn.Linear = original.proj
        self._lengths = lengths

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        lengths = self._lengths(cu_seqlens)
        both, v = self.qkv(hidden_states).unflatten(-1, (3, self.heads, -1)).split([2, 1], dim=1)
        q, k = _rotate(both, *position_embeddings).unbind(1)  # each (patches, heads, dim)
        v = v.squeeze(1)
        if len(set(lengths)) == 1:
            out = _attend(*(part.unflatten(0, (len(lengths), -1)) for part in (q, k, v)))
            return self.proj(out.flatten(0, 1))
        pieces = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        outs = [_attend(*(part.unsqueeze(0) for part in piece)).squeeze(0) for piece in pieces]
        return self.proj(torch.cat(outs))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(images, patches, heads, dim) to (images, patches, heads * dim)."""
    out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of x (patches, 2, heads, dim), computed in float32 as transformers does.

    cos and sin (patches, dim) hold every frequency twice, in the first and in the second half of dim.
    """
    half = x.shape[-1] // 2
    cos, sin = (part[:, None, None, :half].float() for part in (cos, sin))
    first, second = x.float().split(half, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
