"""GR00T N1.7: a Qwen3-VL backbone and a flow-matching action head, as a transformers PreTrainedModel.

Config keys and tensor names are the original's, so the original, LeRobot and this project read each other's
checkpoints. Nothing here needs a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedModel, Qwen3VLConfig

from gr00t.model import checkpoint as files
from gr00t.model.action_head import ActionHead, ActionLoss, RealTimeChunking
from gr00t.model.backbone import Backbone, BackboneOutput
from gr00t.model.backbone_config import resolve_backbone
from gr00t.model.config import Gr00tN1d7Config
from gr00t.model.dit import TransformerBlock
from gr00t.model.embodiment import EmbodimentLinear

TRAINABLE_GROUPS = ("projector", "diffusion_model", "vlln", "llm", "visual")


class Gr00tN1d7(PreTrainedModel):
    """Images, an instruction and a state to an action chunk.

    Build it with `Gr00tN1d7.from_pretrained(folder)`, or with random weights from a config whose `model_name` names a
    known backbone (or with `backbone_config`).
    """

    config_class = Gr00tN1d7Config
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: Gr00tN1d7Config, backbone_config: Qwen3VLConfig | None = None) -> None:
        super().__init__(config)
        config.check()
        if backbone_config is None:
            folder = getattr(config, "_name_or_path", "")
            backbone_config = resolve_backbone(config.model_name, Path(folder) if folder else None)
        self.backbone_config = backbone_config
        self.backbone = Backbone(backbone_config, config.select_layer)
        self.action_head = ActionHead(config)
        self.trained_in_frozen: list[nn.Module] = []  # in training mode although their group is frozen
        self.post_init()
        self.set_trainable(
            projector=config.tune_projector,
            diffusion_model=config.tune_diffusion_model,
            vlln=config.tune_vlln,
            llm=config.tune_llm,
            visual=config.tune_visual,
            top_llm_layers=config.tune_top_llm_layers,
        )

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: the backbone initialises itself, the head's layers keep PyTorch's or their own defaults."""

    @property
    def n1d7_config(self) -> Gr00tN1d7Config:
        """`config`, typed."""
        assert isinstance(self.config, Gr00tN1d7Config)
        return self.config

    # what is trained

    def groups(self) -> dict[str, list[nn.Module]]:
        """The modules of each group that can be tuned or frozen (original: tune_* keys)."""
        head, vlm = self.action_head, self.backbone.vlm
        projector: list[nn.Module] = [head.state_encoder, head.action_encoder, head.action_decoder]
        if head.position_embedding is not None:
            projector.append(head.position_embedding)
        attention = [] if head.vl_self_attention is None else [head.vl_self_attention]
        return {
            "projector": projector,
            "diffusion_model": [head.model],
            "vlln": [head.vlln, *attention],
            "llm": [vlm.language_model],
            "visual": [vlm.visual],
        }

    def set_trainable(
        self,
        *,
        projector: bool,
        diffusion_model: bool,
        vlln: bool,
        llm: bool = False,
        visual: bool = False,
        top_llm_layers: int = 0,
    ) -> None:
        """Choose the groups that are trained; all others are frozen and stay in eval mode."""
        self._tuned = {
            "projector": projector,
            "diffusion_model": diffusion_model,
            "vlln": vlln,
            "llm": llm,
            "visual": visual,
        }
        for group, modules in self.groups().items():
            for module in modules:
                module.requires_grad_(self._tuned[group])
        if top_llm_layers:
            for layer in self.backbone.vlm.language_model.layers[-top_llm_layers:]:
                layer.requires_grad_(True)
        # no result depends on it, and DDP refuses trained parameters without a gradient
        self.backbone.vlm.language_model.norm.requires_grad_(False)
        for key, value in self._tuned.items():
            setattr(self.config, f"tune_{key}", value)
        self.config.tune_top_llm_layers = top_llm_layers
        self.train(self.training)

    def keep_embodiments(self, embodiments: list[int]) -> None:
        """Hold the weights of these embodiments only, for training them; saving merges them with all others.

        In the released model one embodiment of 32 has 10 M of the 326 M embodiment weights. Call it before an
        optimizer or a device sees the model; the model can then act for these embodiments only.
        """
        for module in self.modules():
            if isinstance(module, EmbodimentLinear):
                module.keep(embodiments)

    def recompute_activations(self) -> None:
        """Keep what enters a block only, and compute the rest again in the backward pass: less memory, more time, the
        same numbers. Blocks of the DiT, of vl_self_attention, and those that are trained in the backbone."""
        for module in self.action_head.modules():
            if isinstance(module, TransformerBlock):
                module.recompute = True
        vlm = self.backbone.vlm
        for layer in [*vlm.language_model.layers, *vlm.visual.blocks]:
            if any(p.requires_grad for p in layer.parameters()):
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
                self.trained_in_frozen.append(layer)  # transformers recomputes in train mode only

    def train(self, mode: bool = True) -> Gr00tN1d7:
        super().train(mode)
        if mode and hasattr(self, "_tuned"):
            for group, modules in self.groups().items():
                if not self._tuned[group]:
                    for module in modules:
                        module.eval()
            for module in self.trained_in_frozen:
                module.train()
        return self

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that an optimizer should see."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    # running

    def features(self, inputs: dict[str, Tensor]) -> BackboneOutput:
        """The backbone's output; no graph is kept where no part of it is trained.

        Features computed earlier are taken as they are: `features` (B, S, dim), `attention_mask` and `image_mask`.
        """
        if "features" in inputs:
            return BackboneOutput(inputs["features"], inputs["attention_mask"].bool(), inputs["image_mask"].bool())
        trained = any(p.requires_grad for p in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            return self.backbone(inputs)

    def forward(self, inputs: dict[str, Tensor]) -> ActionLoss:
        """Training loss of a collated batch: what the backbone and the action head read (see their forward)."""
        return self.action_head(self.features(inputs), inputs)

    @torch.no_grad()
    def get_action(
        self,
        inputs: dict[str, Tensor],
        *,
        denoising_steps: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        rtc: RealTimeChunking | None = None,
    ) -> Tensor:
        """Normalised actions (B, horizon of the checkpoint, max_action_dim) for a collated batch without actions.

        Noise is drawn on the CPU (from `generator` or PyTorch's own) in the features' dtype, so that a seed means the
        same on every device.
        """
        backbone = self.features(inputs)
        state, ids = inputs["state"].to(backbone.features.dtype), inputs["embodiment_id"]
        if noise is None:
            shape = (len(ids), self.config.action_horizon, self.config.max_action_dim)
            noise = torch.randn(shape, generator=generator, dtype=backbone.features.dtype)
        noise = noise.to(backbone.features)
        steps = denoising_steps or self.config.num_inference_timesteps
        return self.action_head.sample(backbone, state, ids, noise, steps, rtc)

    # files

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        config: Gr00tN1d7Config | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        trained_dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        tune: dict[str, Any] | None = None,
        **_auto: Any,
    ) -> Gr00tN1d7:
        """Load a checkpoint folder or hub id, strictly: no tensor missing, left over or of another shape.

        dtype: of all weights (None: as stored). tune: what will be trained, the arguments of `set_trainable` (None: as
        config.json says); trained_dtype: of those weights. Further keywords, which AutoModel passes on, have no
        effect. The model comes in eval mode.
        """
        return files.load_model(
            cls,
            files.resolve_folder(pretrained_model_name_or_path, revision, cache_dir, local_files_only),
            config=config,
            dtype=files.parse_dtype(dtype if dtype is not None else torch_dtype),
            trained_dtype=trained_dtype,
            tune=tune,
        )

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], *, dtype: Any = None, **kwargs: Any
    ) -> None:
        """Write config.json (every key), the weights in shards of at most 5 GB, and the backbone's architecture.

        dtype: None keeps each tensor's own."""
        max_shard_size = kwargs.pop("max_shard_size", files.MAX_SHARD_BYTES)
        kwargs.pop("safe_serialization", None)
        if kwargs:
            raise TypeError(f"save_pretrained() got unexpected arguments {sorted(kwargs)}")
        files.write_model(self, Path(save_directory), dtype=files.parse_dtype(dtype), max_shard_bytes=max_shard_size)


AutoConfig.register("Gr00tN1d7", Gr00tN1d7Config, exist_ok=True)
AutoModel.register(Gr00tN1d7Config, Gr00tN1d7, exist_ok=True)
