"""The flow-matching action head: backbone features, state and noised actions to a velocity (original: N1.7).

Flow matching: Lipman et al., 2022 (arXiv:2210.02747). x_t = (1 - t) noise + t action; the velocity is action - noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional as F

from gr00t.errors import ToolkitError
from gr00t.model.backbone import BackboneOutput
from gr00t.model.config import Gr00tN1d7Config
from gr00t.model.context import Context, VlmTokens
from gr00t.model.dit import DiT, KeysValues, SelfAttentionTransformer
from gr00t.model.embodiment import ActionEncoder, EmbodimentMLP, EmbodimentRows


@dataclass
class ActionLoss:
    """loss (scalar: masked mean); action_loss (B, H, D): squared error x mask; action_mask (B, H, D)."""

    loss: Tensor
    action_loss: Tensor
    action_mask: Tensor


@dataclass
class Draws:
    """The random numbers of one training forward.

    noise (B, H, D); time (B,) in [0, noise_s]; drop_state (B,) bool: samples whose state features are zeroed. Several
    draws for each sample come as noise (B, K, H, D) and time (B, K).
    """

    noise: Tensor
    time: Tensor
    drop_state: Tensor | None

    @property
    def each(self) -> int:
        """Draws for each sample."""
        return self.noise.shape[1] if self.noise.ndim == 4 else 1

    def flat(self) -> Draws:
        """The draws of all samples one after another: noise (B * K, H, D), time (B * K,)."""
        return self if self.noise.ndim == 3 else Draws(self.noise.flatten(0, 1), self.time.flatten(), self.drop_state)


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
        start = noise.clone()
        tail = self.previous[:, self.horizon - self.overlap_steps : self.horizon]
        start[:, : self.overlap_steps] = tail.to(noise)
        return start

    def strength(self, like: Tensor) -> Tensor:
        """Factor of the velocity, (1, H, 1): 0 where frozen, ramping to 1 at the overlap's end."""
        strength = torch.ones(like.shape[1], dtype=like.dtype, device=like.device)
        strength[: self.frozen_steps] = 0
        between = self.overlap_steps - self.frozen_steps
        ramp = 1 - torch.exp(-self.ramp_rate * torch.linspace(0.0, 1.0, between + 2))
        strength[self.frozen_steps : self.overlap_steps] = (ramp / ramp[-1].clamp_min(1e-8))[1:-1].to(like)
        return strength[None, :, None]


class ActionHead(nn.Module):
    """vlln, vl_self_attention, embodiment encoders, DiT, decoder.

    Neither padding nor other samples of a batch change what a sample gives. `padding_leaks` is for comparing numbers
    with the original, whose vl_self_attention and plain DiT attend to padding.
    """

    def __init__(self, config: Gr00tN1d7Config) -> None:
        super().__init__()
        self.config = config
        self.padding_leaks = False
        dim, embodiments, width = config.backbone_embedding_dim, config.max_num_embodiments, config.input_embedding_dim
        self.model = DiT(config.dit, dim, config.attend_text_every_n_blocks if config.use_alternate_vl_dit else None)
        self.state_encoder = EmbodimentMLP(
            embodiments, config.max_state_dim * config.state_history_length, config.hidden_size, width
        )
        self.action_encoder = ActionEncoder(embodiments, config.max_action_dim, width)
        self.action_decoder = EmbodimentMLP(embodiments, config.hidden_size, config.hidden_size, config.max_action_dim)
        self.vlln = nn.LayerNorm(dim) if config.use_vlln else nn.Identity()
        vl = config.vl_self_attention
        self.vl_self_attention = SelfAttentionTransformer(vl) if vl else None
        self.position_embedding = nn.Embedding(config.max_seq_len, width) if config.add_pos_embed else None
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding.weight, std=0.02)

    def vl_tokens(self, backbone: BackboneOutput) -> VlmTokens:
        """The VLM tokens the DiT attends to: features after vlln and vl_self_attention."""
        seen = VlmTokens.of(backbone, padding_leaks=self.padding_leaks)
        values = self.vlln(seen.tokens.values)
        if self.vl_self_attention is not None:
            values = self.vl_self_attention(values, seen.tokens.mask)
        return seen.with_values(values)

    def encode_context(self, backbone: BackboneOutput) -> list[KeysValues | None]:
        """Keys and values of the DiT's cross-attention blocks."""
        return self.model.encode_context(Context.of(self.vl_tokens(backbone)))

    def encode_state(self, state: Tensor, rows: EmbodimentRows) -> Tensor:
        """State (B, history, max_state_dim) to one token (B, 1, width)."""
        history = self.config.state_history_length
        if state.shape[1] != history:
            raise ToolkitError(
                f"The state has {state.shape[1]} frames; this checkpoint reads {history} (state_history_length)."
            )
        return self.state_encoder(state.flatten(1).unsqueeze(1), rows)

    def velocity(
        self,
        actions: Tensor,
        buckets: Tensor,
        state_token: Tensor,
        rows: EmbodimentRows,
        context: list[KeysValues | None],
    ) -> Tensor:
        """Predicted velocity (B, H, D) of noised actions (B, H, D) at timestep buckets (B,)."""
        tokens = self.action_encoder(actions, buckets, rows)
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding.weight[: tokens.shape[1]]
        sequence = torch.cat([state_token.to(tokens.dtype), tokens], dim=1)
        hidden = self.model(sequence, buckets, context)
        return self.action_decoder(hidden, rows)[:, -actions.shape[1] :]

    def draw(self, actions: Tensor) -> Draws:
        """Random numbers in the original's order; time always comes from the CPU generator."""
        batch, device, p = actions.shape[0], actions.device, self.config.state_dropout_prob
        drop = torch.rand(batch, device=device) < p if self.training and p > 0 else None
        noise = torch.randn(actions.shape, device=device, dtype=actions.dtype)
        beta = Beta(self.config.noise_beta_alpha, self.config.noise_beta_beta).sample([batch])
        time = (1 - beta.to(device, dtype=actions.dtype)) * self.config.noise_s
        return Draws(noise, time, drop)

    def forward(self, backbone: BackboneOutput, inputs: dict[str, Tensor]) -> ActionLoss:
        """Training loss. inputs: state, action, action_mask, embodiment_id, and optionally the draws `noise`, `time`,
        `drop_state_features` (all three from the caller, or drawn here). Errors are means over a sample's draws."""
        actions, mask, ids = inputs["action"], inputs["action_mask"], inputs["embodiment_id"]
        if "noise" in inputs:
            draws = Draws(inputs["noise"], inputs["time"], inputs.get("drop_state_features"))
        else:
            draws = self.draw(actions)
        state_token = self.encode_state(inputs["state"], EmbodimentRows(ids))
        if draws.drop_state is not None:
            state_token = state_token.masked_fill(draws.drop_state[:, None, None], 0)
        context = self.encode_context(backbone)
        each, draws = draws.each, draws.flat()
        if each > 1:
            actions, state_token, ids = (x.repeat_interleave(each, 0) for x in (actions, state_token, ids))
            context = [seen and seen.repeated(each) for seen in context]
        t = draws.time[:, None, None]
        noised = (1 - t) * draws.noise + t * actions
        buckets = (draws.time * self.config.num_timestep_buckets).long()
        predicted = self.velocity(noised, buckets, state_token, EmbodimentRows(ids), context)
        error = F.mse_loss(predicted.float(), (actions - draws.noise).float(), reduction="none")
        if each > 1:
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
    ) -> Tensor:
        """Integrate the velocity from `noise` (B, H, D) in `steps` Euler steps; normalised actions (B, H, D)."""
        context = self.encode_context(backbone)
        rows = EmbodimentRows(ids)
        state_token = self.encode_state(state, rows)
        actions = noise if rtc is None else rtc.start(noise)
        strength = None if rtc is None else rtc.strength(noise)
        for step in range(steps):
            bucket = int(step / steps * self.config.num_timestep_buckets)
            buckets = torch.full((len(actions),), bucket, device=actions.device)
            velocity = self.velocity(actions, buckets, state_token, rows, context)
            actions = actions + velocity / steps if strength is None else actions + velocity * strength / steps
        return actions
