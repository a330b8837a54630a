"""Layers with one set of weights per embodiment (original: CategorySpecificLinear, MultiEmbodimentActionEncoder).

Weights are stored [embodiment, in, out]; row `embodiment_id` is used for a sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EmbodimentLinear(nn.Module):
    """x @ W[id] + b[id]. Shapes: x (B, T, in), ids (B,) int64, result (B, T, out)."""

    def __init__(self, num_embodiments: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(num_embodiments, in_dim, out_dim))
        self.b = nn.Parameter(torch.empty(num_embodiments, out_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.W, std=self.W.shape[1] ** -0.5)
        nn.init.zeros_(self.b)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return torch.bmm(x, self.W[ids]) + self.b[ids].unsqueeze(1)


class EmbodimentMLP(nn.Module):
    """Two embodiment layers with ReLU between: the state encoder and the action decoder."""

    def __init__(self, num_embodiments: int, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.layer1 = EmbodimentLinear(num_embodiments, in_dim, hidden_dim)
        self.layer2 = EmbodimentLinear(num_embodiments, hidden_dim, out_dim)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.layer2(F.relu(self.layer1(x, ids)), ids)


class ActionEncoder(nn.Module):
    """Noised actions (B, H, D) and timestep buckets (B,) to tokens (B, H, width)."""

    def __init__(self, num_embodiments: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.W1 = EmbodimentLinear(num_embodiments, action_dim, width)
        self.W2 = EmbodimentLinear(num_embodiments, 2 * width, width)
        self.W3 = EmbodimentLinear(num_embodiments, width, width)

    def forward(self, actions: Tensor, buckets: Tensor, ids: Tensor) -> Tensor:
        tokens = self.W1(actions, ids)
        time = _sinusoid(buckets, self.width).to(tokens.dtype)  # (B, width)
        time = time.unsqueeze(1).expand(-1, actions.shape[1], -1)
        return self.W3(F.silu(self.W2(torch.cat([tokens, time], dim=-1), ids)), ids)


def _sinusoid(positions: Tensor, width: int) -> Tensor:
    """[sin | cos] with frequency exp(-i ln(10000) / half): (B,) to (B, width), float32."""
    half = width // 2
    exponent = -torch.arange(half, dtype=torch.float32, device=positions.device) * (math.log(10000.0) / half)
    angles = positions.float().unsqueeze(-1) * exponent.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
