"""The flow-matching action head: VLM features, state and noised actions to a velocity (original: N1.7).

Flow matching: Lipman et al., 2022 (arXiv:2210.02747). x_t = (1 - t) noise + t action; the velocity is action - noise.

Encoders and decoder have one set of weights per embodiment, stored as [embodiment, in, out]; a sample uses the row
`embodiment_id` (original: CategorySpecificLinear, MultiEmbodimentActionEncoder).

Letters in shapes: B samples, H steps of an action chunk, D action dimensions, T tokens, K draws of noise for a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional as F

from gr00t.errors import ToolkitError
from gr00t.model.backbone import BackboneOutput
from gr00t.model.config import Gr00tN1d7Config
from gr00t.model.dit import DiT, KeysValues, SelfAttentionTransformer, Tokens, VlmTokens, pick


class EmbodimentRows:
    """Which samples of a batch belong to which of its `embodiments`: worked out once a batch, used by every layer.

    `rows` has the samples' places for each of them; `back` puts the samples, sorted so, into the batch's order again.
    A batch of one robot then costs one matrix product a layer, instead of weights gathered for every sample.
    """

    def __init__(self, ids: Tensor) -> None:
        """ids (B,) int64; reading them waits for the device once."""
        known = ids.cpu()
        self.embodiments: list[int] = known.unique().tolist()
        self.rows = [(known == e).nonzero().flatten().to(ids.device) for e in self.embodiments]
        self.back = torch.cat(self.rows).argsort()


class EmbodimentLinear(nn.Module):
    """x @ W[id] + b[id]: (B, T, in) to (B, T, out).

    `keep` leaves the weights of some embodiments only in `W` and `b`, so that a GPU and an optimizer hold nothing of
    the others; `state_dict` always gives the weights of all.
    """

    def __init__(self, num_embodiments: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(num_embodiments, in_dim, out_dim))
        self.b = nn.Parameter(torch.empty(num_embodiments, out_dim))
        nn.init.normal_(self.W, std=in_dim**-0.5)
        nn.init.zeros_(self.b)
        self._slot = {e: e for e in range(num_embodiments)}
        self._set_aside: dict[str, Tensor] = {}

    def keep(self, embodiments: list[int]) -> None:
        """Keep these embodiments' weights as parameters; all weights, as they are now, are set aside on the CPU."""
        for name in ("W", "b"):
            full = getattr(self, name)
            self._set_aside[name] = full.detach().cpu()
            part = full.detach()[embodiments].clone()
            setattr(self, name, nn.Parameter(part, requires_grad=full.requires_grad))
        self._slot = {e: slot for slot, e in enumerate(embodiments)}

    def forward(self, x: Tensor, rows: EmbodimentRows) -> Tensor:
        def of_one(x: Tensor, embodiment: int) -> Tensor:
            slot = self._slot[embodiment]
            return x @ self.W[slot] + self.b[slot]

        if len(rows.embodiments) == 1:
            return of_one(x, rows.embodiments[0])
        parts = [of_one(x.index_select(0, r), e) for r, e in zip(rows.rows, rows.embodiments, strict=True)]
        return torch.cat(parts).index_select(0, rows.back)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, full in self._set_aside.items():
            merged = full.clone()
            merged[list(self._slot)] = getattr(self, name).detach().to(merged)
            destination[prefix + name] = merged


class EmbodimentMLP(nn.Module):
    """Two embodiment layers with ReLU between, (B, T, in) to (B, T, out): the state encoder and the action decoder."""

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
        half = self.width // 2
        exponent = -torch.arange(half, dtype=torch.float32, device=buckets.device) * (math.log(10000.0) / half)
        angles = buckets.float().unsqueeze(-1) * exponent.exp()
        tokens = self.W1(actions, rows)
        time = torch.cat([angles.sin(), angles.cos()], dim=-1).to(tokens.dtype)  # (B, width)
        time = time.unsqueeze(1).expand(-1, actions.shape[1], -1)
        return self.W3(F.silu(self.W2(torch.cat([tokens, time], dim=-1), rows)), rows)


@dataclass
class ActionLoss:
    """loss () is the masked mean; action_loss (B, H, D) the squared error times the mask; action_mask (B, H, D)."""

    loss: Tensor
    action_loss: Tensor
    action_mask: Tensor


@dataclass(frozen=True)
class RealTimeChunking:
    """Continue a previous chunk (real-time chunking; original: get_action with `action` and options).

    The first `overlap_steps` start from the tail of `previous` (B, >= horizon, D), normalised, whose real length is
    `horizon`; the velocity is 0 on the first `frozen_steps` and ramps up exponentially over the rest of the overlap.
    """

    previous: Tensor
    horizon: int
    overlap_steps: int
    frozen_steps: int
    ramp_rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.frozen_steps <= self.overlap_steps <= self.horizon <= self.previous.shape[1]:
            raise ToolkitError(
                "Real-time chunking needs 0 <= frozen_steps <= overlap_steps <= horizon <= previous chunk, not "
                f"{self.frozen_steps}, {self.overlap_steps}, {self.horizon}, {self.previous.shape[1]}."
            )

    def start(self, noise: Tensor) -> Tensor:
        """Noise (B, H, D) with its overlap replaced by the previous chunk's tail."""
        tail = self.previous[:, self.horizon - self.overlap_steps : self.horizon]
        return torch.cat([tail.to(noise), noise[:, self.overlap_steps :]], dim=1)

    def strength(self, like: Tensor) -> Tensor:
        """Factor of the velocity, (1, H, 1): 0 where frozen, ramping to 1 at the overlap's end."""
        between = self.overlap_steps - self.frozen_steps
        ramp = 1 - torch.exp(-self.ramp_rate * torch.linspace(0.0, 1.0, between + 2))
        ramp = (ramp / ramp[-1].clamp_min(1e-8))[1:-1]
        free = torch.ones(like.shape[1] - self.overlap_steps)
        return torch.cat([torch.zeros(self.frozen_steps), ramp, free]).to(like)[None, :, None]


class ActionHead(nn.Module):
    """vlln, vl_self_attention, embodiment encoders, DiT, decoder.

    Neither padding nor other samples of a batch change what a sample gives. `padding_leaks` is for comparing numbers
    with the original, whose vl_self_attention and plain DiT attend to padding.
    """

    def __init__(self, config: Gr00tN1d7Config) -> None:
        super().__init__()
        self.config = config
        self.padding_leaks = False
        dim, width, hidden = config.backbone_embedding_dim, config.input_embedding_dim, config.hidden_size
        embodiments, action_dim = config.max_num_embodiments, config.max_action_dim
        state_dim = config.max_state_dim * config.state_history_length
        self.model = DiT(config.dit, dim, config.attend_text_every_n_blocks if config.use_alternate_vl_dit else None)
        self.state_encoder = EmbodimentMLP(embodiments, state_dim, hidden, width)
        self.action_encoder = ActionEncoder(embodiments, action_dim, width)
        self.action_decoder = EmbodimentMLP(embodiments, hidden, hidden, action_dim)
        self.vlln = nn.LayerNorm(dim) if config.use_vlln else nn.Identity()
        vl = config.vl_self_attention
        self.vl_self_attention = SelfAttentionTransformer(vl) if vl else None
        self.position_embedding = nn.Embedding(config.max_seq_len, width) if config.add_pos_embed else None
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, backbone: BackboneOutput, inputs: dict[str, Tensor]) -> ActionLoss:
        """Training loss; errors are means over a sample's draws.

        inputs: state (B, history, max_state_dim), action and action_mask (B, H, D), embodiment_id (B,), and optionally
        the draws `noise`, `time` and `drop_state_features`, as `draw` gives them; several for each sample come as
        noise (B, K, H, D) and time (B, K).
        """
        actions, mask, ids = inputs["action"], inputs["action_mask"], inputs["embodiment_id"]
        if "noise" in inputs:
            noise, time, dropped = inputs["noise"], inputs["time"], inputs.get("drop_state_features")
        else:
            noise, time, dropped = self.draw(actions)
        state_token = self.encode_state(inputs["state"], EmbodimentRows(ids))
        if dropped is not None:
            state_token = state_token.masked_fill(dropped[:, None, None], 0)
        context = self.encode_context(backbone)

        several = noise.ndim == 4
        if several:  # every draw becomes a sample of its own: B * K of them from here on
            each = noise.shape[1]
            noise, time = noise.flatten(0, 1), time.flatten()
            actions, state_token, ids = (x.repeat_interleave(each, 0) for x in (actions, state_token, ids))
            context = [seen and seen.repeated(each) for seen in context]

        t = time[:, None, None]
        noised = (1 - t) * noise + t * actions
        buckets = (time * self.config.num_timestep_buckets).long()
        predicted = self.velocity(noised, buckets, state_token, EmbodimentRows(ids), context)
        error = F.mse_loss(predicted.float(), (actions - noise).float(), reduction="none")
        if several:
            error = error.unflatten(0, (-1, each)).mean(1)
        error = error * mask
        return ActionLoss(error.sum() / (mask.sum() + 1e-6), error, mask)

    @torch.no_grad()
    def sample(
        self,
        backbone: BackboneOutput,
        state: Tensor,
        ids: Tensor,
        noise: Tensor,
        steps: int,
        rtc: RealTimeChunking | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Integrate the velocity from `noise` (B, H, D) in `steps` Euler steps; normalised actions (B, H, D).

        state (B, history, max_state_dim); ids (B,) are the embodiments. With a `guidance` w other than 1, backbone,
        state and ids hold 2 B samples, those with their instructions first, then the same without; each step follows
        v_without + w (v_with - v_without) (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598, eq. 6,
        with w for its 1 + w).
        """
        rows = EmbodimentRows(ids)
        context = self.encode_context(backbone)
        state_token = self.encode_state(state, rows)
        actions, strength = (noise, 1) if rtc is None else (rtc.start(noise), rtc.strength(noise))
        for step in range(steps):
            bucket = int(step / steps * self.config.num_timestep_buckets)
            noised = actions if guidance == 1 else torch.cat([actions, actions])
            buckets = torch.full((len(noised),), bucket, device=actions.device)
            velocity = self.velocity(noised, buckets, state_token, rows, context)
            if guidance != 1:
                said, unsaid = velocity.chunk(2)
                velocity = unsaid + guidance * (said - unsaid)
            actions = actions + velocity * strength / steps
        return actions

    def velocity(
        self,
        actions: Tensor,
        buckets: Tensor,
        state_token: Tensor,
        rows: EmbodimentRows,
        context: list[KeysValues | None],
    ) -> Tensor:
        """Predicted velocity (B, H, D) of noised actions (B, H, D) at timestep buckets (B,)."""
        tokens = self.action_encoder(actions, buckets, rows)  # (B, H, width)
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding.weight[: tokens.shape[1]]
        sequence = torch.cat([state_token.to(tokens.dtype), tokens], dim=1)  # (B, 1 + H, width)
        hidden = self.model(sequence, buckets, context)  # (B, 1 + H, hidden_size)
        return self.action_decoder(hidden, rows)[:, -actions.shape[1] :]

    def draw(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The random numbers of a training forward for actions (B, H, D), in the original's order.

        noise (B, H, D); time (B,) in [0, noise_s], always from the CPU generator; and (B,) bool, True for samples whose
        state features are zeroed.
        """
        batch, device, p = actions.shape[0], actions.device, self.config.state_dropout_prob
        drop = torch.rand(batch, device=device) < p if self.training and p > 0 else None
        noise = torch.randn(actions.shape, device=device, dtype=actions.dtype)
        beta = Beta(self.config.noise_beta_alpha, self.config.noise_beta_beta).sample([batch])
        time = (1 - beta.to(device, dtype=actions.dtype)) * self.config.noise_s
        return noise, time, drop

    def encode_state(self, state: Tensor, rows: EmbodimentRows) -> Tensor:
        """State (B, history, max_state_dim) to one token (B, 1, width)."""
        history = self.config.state_history_length
        if state.shape[1] != history:
            raise ToolkitError(
                f"The state has {state.shape[1]} frames; this checkpoint reads {history} (state_history_length)."
            )
        return self.state_encoder(state.flatten(1).unsqueeze(1), rows)

    def vl_tokens(self, backbone: BackboneOutput) -> VlmTokens:
        """The VLM tokens (B, S, dim) the DiT attends to: features after vlln and vl_self_attention."""
        seen = VlmTokens.of(backbone, padding_leaks=self.padding_leaks)
        values = self.vlln(seen.tokens.values)
        if self.vl_self_attention is not None:
            values = self.vl_self_attention(values, seen.tokens.mask)
        return VlmTokens(Tokens(values, seen.tokens.mask), seen.text, seen.image)

    def encode_context(self, backbone: BackboneOutput) -> list[KeysValues | None]:
        """Keys and values of the DiT's cross-attention blocks, the same for all denoising steps."""
        seen = self.vl_tokens(backbone)
        return self.model.encode_context(seen.tokens, *pick(seen.tokens.values, seen.text, seen.image))
