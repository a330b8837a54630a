"""Layers with one set of weights per embodiment (original: CategorySpecificLinear, MultiEmbodimentActionEncoder).

Weights are stored [embodiment, in, out]; row `embodiment_id` is used for a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EmbodimentRows:
    """Which samples of a batch belong to which embodiment: worked out once a batch, used by every layer.

    A batch of one robot then costs one matrix product a layer, instead of weights gathered for every sample.
    """

    def __init__(self, ids: Tensor) -> None:
        """ids (B,) int64; reading them waits for the device once."""
        values = ids.tolist()
        self.embodiments = sorted(set(values))
        members = [[row for row, value in enumerate(values) if value == e] for e in self.embodiments]
        self.rows = [torch.tensor(m, device=ids.device) for m in members]
        order = [row for group in members for row in group]
        self.back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=ids.device)

    def apply(self, layer: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
        """layer(samples of one embodiment, embodiment) for every embodiment of x (B, ...), in the batch's order."""
        if len(self.embodiments) == 1:
            return layer(x, self.embodiments[0])
        parts = [layer(x.index_select(0, r), e) for r, e in zip(self.rows, self.embodiments, strict=True)]
        return torch.cat(parts).index_select(0, self.back)


class EmbodimentLinear(nn.Module):
    """x @ W[id] + b[id]. Shapes: x (B, T, in), result (B, T, out).

    `keep` leaves the weights of some embodiments only in `W` and `b`, so that a GPU and an optimizer hold nothing of
    the others; `state_dict` always gives the weights of all.
    """

    def __init__(self, num_embodiments: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(num_embodiments, in_dim, out_dim))
        self.b = nn.Parameter(torch.empty(num_embodiments, out_dim))
        self._slot = {e: e for e in range(num_embodiments)}
        self._set_aside: dict[str, Tensor] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.W, std=self.W.shape[1] ** -0.5)
        nn.init.zeros_(self.b)

    def keep(self, embodiments: list[int]) -> None:
        """Keep these embodiments' weights as parameters; all weights, as they are now, are set aside on the CPU."""
        for name in ("W", "b"):
            full = getattr(self, name)
            self._set_aside[name] = full.detach().cpu()
            part = full.detach()[embodiments].clone()
            setattr(self, name, nn.Parameter(part, requires_grad=full.requires_grad))
        self._slot = {e: slot for slot, e in enumerate(embodiments)}

    def forward(self, x: Tensor, rows: EmbodimentRows) -> Tensor:
        return rows.apply(self._one, x)

    def _one(self, x: Tensor, embodiment: int) -> Tensor:
        slot = self._slot[embodiment]
        return x @ self.W[slot] + self.b[slot]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, full in self._set_aside.items():
            merged = full.clone()
            merged[list(self._slot)] = getattr(self, name).detach().to(merged)
            destination[prefix + name] = merged


class EmbodimentMLP(nn.Module):
    """Two embodiment layers with ReLU between: the state encoder and the action decoder."""

    def __init__(self, num_embodiments: int, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.layer1 = EmbodimentLinear(num_embodiments, in_dim, hidden_dim)
        self.layer2 = EmbodimentLinear(num_embodiments, hidden_dim, out_dim)

    def forward(self, x: Tensor, rows: EmbodimentRows) -> Tensor:
        return self.layer2(F.relu(self.layer1(x, rows)), rows)


class ActionEncoder(nn.Module):
    """Noised actions (B, H, D) and timestep buckets (B,) to tokens (B, H, width)."""

    def __init__(self, num_embodiments: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.W1 = EmbodimentLinear(num_embodiments, action_dim, width)
        self.W2 = EmbodimentLinear(num_embodiments, 2 * width, width)
        self.W3 = EmbodimentLinear(num_embodiments, width, width)

    def forward(self, actions: Tensor, buckets: Tensor, rows: EmbodimentRows) -> Tensor:
        tokens = self.W1(actions, rows)
        time = _sinusoid(buckets, self.width).to(tokens.dtype)  # (B, width)
        time = time.unsqueeze(1).expand(-1, actions.shape[1], -1)
        return self.W3(F.silu(self.W2(torch.cat([tokens, time], dim=-1), rows)), rows)


def _sinusoid(positions: Tensor, width: int) -> Tensor:
    """[sin | cos] with frequency exp(-i ln(10000) / half): (B,) to (B, width), float32."""
    half = width // 2
    exponent = -torch.arange(half, dtype=torch.float32, device=positions.device) * (math.log(10000.0) / half)
    angles = positions.float().unsqueeze(-1) * exponent.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
