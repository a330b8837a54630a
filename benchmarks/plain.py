"""The plain way of training N1.7, the baseline of the benchmarks: what a straightforward implementation does.

fp32 frozen weights, embodiment weights gathered for every sample and trained for all 32, cross-attention over all
tokens under a mask, vision attention image by image, patches embedded by a convolution, all samples through the
backbone at once, PyTorch's own dropout with everything kept for the backward pass.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention, Qwen3VLVisionPatchEmbed

from gr00t.model.context import Context, Tokens
from gr00t.model.cpu_kernels import Dropout
from gr00t.model.dit import Attention, FeedForward
from gr00t.model.embodiment import EmbodimentLinear, EmbodimentRows
from gr00t.model.gr00t_n1d7 import Gr00tN1d7


class PlainEmbodimentLinear(nn.Module):
    """Weights gathered for every sample of the batch."""

    def __init__(self, layer: EmbodimentLinear) -> None:
        super().__init__()
        self.W, self.b = layer.W, layer.b

    def forward(self, x: Tensor, rows: EmbodimentRows) -> Tensor:
        ids = torch.empty(len(x), dtype=torch.int64)
        for members, embodiment in zip(rows.rows, rows.embodiments, strict=True):
            ids[members] = embodiment
        return torch.bmm(x, self.W[ids]) + self.b[ids].unsqueeze(1)


def make_plain(model: Gr00tN1d7) -> Gr00tN1d7:
    """Replace the parts of a model (fp32, all embodiments) that are computed more cheaply."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, EmbodimentLinear):
                setattr(module, name, PlainEmbodimentLinear(child))
            elif isinstance(child, Attention):
                child.forward = _fused.__get__(child)  # type: ignore[method-assign]
            elif isinstance(child, Dropout):
                child.forward = nn.Dropout.forward.__get__(child)  # type: ignore[method-assign]
            elif isinstance(child, FeedForward):
                child.forward = child.net.forward  # type: ignore[method-assign]
    model.action_head.encode_context = _masked.__get__(model.action_head)  # type: ignore[method-assign]
    visual = model.backbone.vlm.visual
    embedding = Qwen3VLVisionPatchEmbed(visual.config)
    embedding.proj = visual.patch_embed.proj
    visual.patch_embed = embedding
    model.backbone.at_once = sys.maxsize
    for block in visual.blocks:
        plain = Qwen3VLVisionAttention(visual.config)
        plain.qkv, plain.proj = block.attn.qkv, block.attn.proj
        block.attn = plain
    return model


def _fused(self, x, context):  # type: ignore[no-untyped-def]
    allowed = None if context.mask is None else context.mask[:, None, None, :]
    out = F.scaled_dot_product_attention(self._split(self.to_q(x)), context.keys, context.values, attn_mask=allowed)
    return self.to_out[1](self.to_out[0](out.transpose(1, 2).flatten(2)))


def _masked(self, backbone):  # type: ignore[no-untyped-def]
    seen = self.vl_tokens(backbone)
    text, image = (Tokens(seen.tokens.values, mask) for mask in (seen.text, seen.image))
    return self.model.encode_context(Context(seen.tokens, text, image))
