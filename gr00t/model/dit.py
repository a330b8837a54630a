"""The transformers of the action head, and the tokens of the VLM as they read them.

Source: the original's AlternateVLDiT, DiT and SelfAttentionTransformer; DiT: Peebles & Xie, 2023 (arXiv:2212.09748).
Tensor names are the original's, hence `to_out.0` and `ff.net.0.proj`.

Letters in shapes: B samples, T tokens of the sequence, S tokens of the VLM, dim their width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gr00t.errors import ToolkitError
from gr00t.model import cpu_kernels
from gr00t.model.backbone import BackboneOutput
from gr00t.model.config import TransformerConfig
from gr00t.model.cpu_kernels import Dropout, attend


@dataclass
class Tokens:
    """Context tokens (B, S, dim); mask (B, S) bool, True where a token may be attended to; None where all may."""

    values: Tensor
    mask: Tensor | None = None


@dataclass
class VlmTokens:
    """All tokens of the VLM, and which of them (B, S) are text and which are images; padding is neither."""

    tokens: Tokens
    text: Tensor
    image: Tensor

    @classmethod
    def of(cls, seen: BackboneOutput, *, padding_leaks: bool = False) -> VlmTokens:
        """The backbone's tokens with the padding taken out: those of each row in order from the left, rows with fewer
        filled up and masked. So neither padding nor a longer prompt beside it reaches a sample.

        `padding_leaks` leaves all where it is and masks nothing, as the original does.
        """
        real = seen.attention_mask
        text, image = real & ~seen.image_mask, real & seen.image_mask
        ((order, mask),) = _places(real)
        if padding_leaks or (mask is None and order.shape == real.shape):
            return cls(Tokens(seen.features), text, image)
        return cls(Tokens(_rows(seen.features, order), mask), text.gather(1, order), image.gather(1, order))


def pick(values: Tensor, *choices: Tensor) -> list[Tokens]:
    """For each choice (B, S) bool the chosen tokens of each row of values (B, S, dim), in order; rows with fewer are
    filled up and masked.

    Attending to these equals attending to all under the mask, at the cost of the chosen ones only.
    """
    return [Tokens(_rows(values, order), mask) for order, mask in _places(*choices)]


def _places(*choices: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """For each choice (B, S) the places (B, most) of the chosen tokens of each row in order, then of others, and which
    of these are chosen (None: all). The numbers of chosen tokens are read from the device once."""
    counts = torch.stack([chosen.sum(dim=1) for chosen in choices])  # (choices, B)
    found = []
    for chosen, (fewest, most) in zip(choices, torch.stack(counts.aminmax(dim=1), dim=1).tolist(), strict=True):
        order = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        found.append((order, None if fewest == most else chosen.gather(1, order)))
    return found


def _rows(values: Tensor, order: Tensor) -> Tensor:
    """The tokens (B, most, dim) of values (B, S, dim) at the places (B, most)."""
    return values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


@dataclass
class KeysValues:
    """Projected keys and values (B, heads, S, head_dim), and which of them may be attended to (B, S), None for all."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None

    def repeated(self, times: int) -> KeysValues:
        """Every sample's keys and values so many times, one after another: (B * times, heads, S, head_dim)."""
        mask = None if self.mask is None else self.mask.repeat_interleave(times, 0)
        return KeysValues(self.keys.repeat_interleave(times, 0), self.values.repeat_interleave(times, 0), mask)


class TimestepEncoder(nn.Module):
    """Timestep bucket (B,) to conditioning (B, width): a 256-wide sinusoid (cos first), linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = nn.ModuleDict({"linear_1": nn.Linear(256, width), "linear_2": nn.Linear(width, width)})

    def forward(self, buckets: Tensor) -> Tensor:
        half = 128
        exponent = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=buckets.device) / (half - 1)
        angles = buckets.float().unsqueeze(-1) * exponent.exp()
        first, second = self.timestep_embedder["linear_1"], self.timestep_embedder["linear_2"]
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, 256)
        return second(F.silu(first(sinusoid.to(next(first.parameters()).dtype))))


class AdaLayerNorm(nn.Module):
    """LayerNorm without weights, scaled and shifted by the timestep: scale first, shift second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, eps=1e-5, elementwise_affine=False)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x (B, T, width) under the conditioning temb (B, width)."""
        scale, shift = self.linear(F.silu(temb)).unsqueeze(1).chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be projected once and used many times."""

    def __init__(self, width: int, heads: int, context_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(context_dim, width)
        self.to_v = nn.Linear(context_dim, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width), Dropout(dropout)])

    def keys_values(self, context: Tokens) -> KeysValues:
        """Project context tokens (B, S, context_dim)."""
        keys, values = self.to_k(context.values), self.to_v(context.values)
        return KeysValues(self._split(keys), self._split(values), context.mask)

    def forward(self, x: Tensor, context: KeysValues) -> Tensor:
        """x (B, T, width) attends to the context; result (B, T, width)."""
        allowed = None if context.mask is None else context.mask[:, None, None, :]  # (B, 1, 1, S)
        out = attend(self._split(self.to_q(x)), context.keys, context.values, allowed)
        out = out.transpose(1, 2).flatten(2)
        return self.to_out[1](self.to_out[0](out))

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, width) to (B, heads, T, head_dim)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GeluProjection(nn.Module):
    """Linear and tanh-GELU: (B, T, width) to (B, T, inner)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear, four times as wide inside: (B, T, width) to (B, T, width)."""

    def __init__(self, width: int, dropout: float, final_dropout: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [GeluProjection(width, 4 * width), Dropout(dropout), nn.Linear(4 * width, width)]
        if final_dropout:
            layers.append(Dropout(dropout))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        graph = self.training and torch.is_grad_enabled()
        if not graph or not cpu_kernels.used(x.device) or torch.compiler.is_compiling():
            return self.net(x)
        project, dropout, contract, *last = self.net
        assert isinstance(project, GeluProjection) and isinstance(contract, nn.Linear)
        out = cpu_kernels.feed_forward(project.proj, dropout, contract, x)
        return last[0](out) if last else out


class SinusoidalPositions(nn.Module):
    """Adds fixed sinusoids to a sequence (B, T, width); `pe` is stored with the weights, as in the original."""

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__()
        position = torch.arange(max_length, dtype=torch.float32).unsqueeze(1)
        frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
        table = torch.zeros(1, max_length, width)
        table[0, :, 0::2] = torch.sin(position * frequency)
        table[0, :, 1::2] = torch.cos(position * frequency)
        self.register_buffer("pe", table)
        self.pe: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.pe.shape[1]:
            raise ToolkitError(f"{x.shape[1]} tokens exceed max_num_positional_embeddings {self.pe.shape[1]}.")
        return x + self.pe[:, : x.shape[1]].to(x.dtype)


class TransformerBlock(nn.Module):
    """Norm, attention, residual, norm, feed-forward, residual; the first norm is adaptive in the DiT."""

    def __init__(self, config: TransformerConfig, context_dim: int | None, adaptive: bool) -> None:
        super().__init__()
        width = config.width
        self.adaptive = adaptive
        self.recompute = False
        self.norm1 = AdaLayerNorm(width) if adaptive else nn.LayerNorm(width, eps=config.norm_eps)
        self.attn1 = Attention(width, config.num_attention_heads, context_dim or width, config.dropout)
        self.norm3 = nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=not adaptive)
        self.ff = FeedForward(width, config.dropout, config.final_dropout)
        self.final_dropout = Dropout(config.dropout) if config.final_dropout else nn.Identity()
        positions = config.positional_embeddings == "sinusoidal"
        self.pos_embed = SinusoidalPositions(width, config.max_num_positional_embeddings) if positions else None

    def forward(
        self,
        x: Tensor,
        temb: Tensor | None = None,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, width), attending to itself unless a context is given; the adaptive norm reads temb (B, width).

        mask (B, T) bool: which tokens self-attention may attend to; None for all. With `recompute` what lies inside is
        not kept for the backward pass but computed again, dropout included.
        """
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, x, temb, context, mask, use_reentrant=False)
        return self._run(x, temb, context, mask)

    def _run(self, x: Tensor, temb: Tensor | None, context: KeysValues | None, mask: Tensor | None) -> Tensor:
        normed = self.norm1(x, temb) if self.adaptive else self.norm1(x)
        if self.pos_embed is not None:
            normed = self.pos_embed(normed)
        if context is None:
            context = self.attn1.keys_values(Tokens(normed, mask))
        x = x + self.final_dropout(self.attn1(normed, context))
        return x + self.ff(self.norm3(x))


class DiT(nn.Module):
    """The diffusion transformer: [state, actions] tokens conditioned on the timestep and the VLM's tokens.

    Even blocks cross-attend to the VLM, odd ones self-attend (when interleaved). With `text_every` = n, every n-th
    cross-attention block sees the text tokens and the others the image tokens; with None all see all tokens.
    """

    def __init__(self, config: TransformerConfig, context_dim: int, text_every: int | None) -> None:
        super().__init__()
        width = config.width
        self.text_every = text_every
        self.cross = [not (config.interleave_self_attention and i % 2 == 1) for i in range(config.num_layers)]
        self.timestep_encoder = TimestepEncoder(width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(config, context_dim if cross else None, adaptive=True) for cross in self.cross
        )
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, config.output_dim)

    def encode_context(self, everything: Tokens, text: Tokens, image: Tokens) -> list[KeysValues | None]:
        """Keys and values of every cross-attention block, None for the others; the same for all denoising steps."""
        encoded: list[KeysValues | None] = []
        for index, cross in enumerate(self.cross):
            seen = everything
            if self.text_every is not None:
                seen = text if index % (2 * self.text_every) == 0 else image
            block: Any = self.transformer_blocks[index]
            encoded.append(block.attn1.keys_values(seen) if cross else None)
        return encoded

    def forward(self, tokens: Tensor, buckets: Tensor, context: list[KeysValues | None]) -> Tensor:
        """tokens (B, T, width), buckets (B,), context of `encode_context`; result (B, T, output_dim)."""
        temb = self.timestep_encoder(buckets)  # (B, width)
        for block, seen in zip(self.transformer_blocks, context, strict=True):
            tokens = block(tokens, temb, seen)
        shift, scale = self.proj_out_1(F.silu(temb)).unsqueeze(1).chunk(2, dim=-1)
        return self.proj_out_2(self.norm_out(tokens) * (1 + scale) + shift)


class SelfAttentionTransformer(nn.Module):
    """Plain blocks over the VLM's tokens (B, S, width)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(config, None, adaptive=False) for _ in range(config.num_layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, S, width); mask (B, S) bool: which tokens may be attended to; None for all."""
        for block in self.transformer_blocks:
            x = block(x, mask=mask)
        return x
