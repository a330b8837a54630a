"""GR00T N1.7: a Qwen3-VL backbone and a flow-matching action head, as a transformers PreTrainedModel.

Config keys and tensor names are the original's, so the original, LeRobot and this project read each other's
checkpoints. Nothing here needs a network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedModel, Qwen3VLConfig

from gr00t.file_reading import parsing
from gr00t.model.action_head import ActionHead, ActionLoss, EmbodimentLinear, RealTimeChunking
from gr00t.model.architecture import resolve_backbone
from gr00t.model.backbone import Backbone, BackboneOutput
from gr00t.model.checkpoint_folder import CONFIG_NAME, architecture_folder, resolve_folder
from gr00t.model.config import Gr00tN1d7Config
from gr00t.model.dit import TransformerBlock
from gr00t.model.weight_files import (
    MAX_SHARD_BYTES,
    parse_dtype,
    read_config,
    read_weights,
    write_config,
    write_weights,
)

log = logging.getLogger(__name__)


class Gr00tN1d7(PreTrainedModel):
    """Images, an instruction and a state to an action chunk.

    Build it with `Gr00tN1d7.from_pretrained(folder)`, or with random weights from a config whose `model_name` names a
    known backbone (or with `backbone_config`).
    """

    config: Gr00tN1d7Config
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
        self.set_trainable(**config.tune)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: the backbone initialises itself, the head's layers keep PyTorch's or their own defaults."""

    # running

    def forward(self, inputs: dict[str, Tensor]) -> ActionLoss:
        """Training loss of a collated batch: what the backbone and the action head read (see their forward)."""
        return self.action_head(self.features(inputs), inputs)

    def features(self, inputs: dict[str, Tensor]) -> BackboneOutput:
        """The backbone's output; no graph is kept where no part of it is trained.

        Features computed earlier are taken as they are: `features` (B, S, dim), `attention_mask` and `image_mask`
        (B, S).
        """
        if "features" in inputs:
            return BackboneOutput(inputs["features"], inputs["attention_mask"].bool(), inputs["image_mask"].bool())
        trained = any(p.requires_grad for p in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            return self.backbone(inputs)

    @torch.no_grad()
    def get_action(
        self,
        inputs: dict[str, Tensor],
        *,
        denoising_steps: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        rtc: RealTimeChunking | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Normalised actions (B, horizon of the checkpoint, max_action_dim) for a collated batch without actions.

        Noise is drawn on the CPU (from `generator` or PyTorch's own) in the features' dtype, so that a seed means the
        same on every device. With a `guidance` other than 1 the inputs hold 2 B samples (see ActionHead.sample).
        """
        backbone = self.features(inputs)
        state, ids = inputs["state"].to(backbone.features.dtype), inputs["embodiment_id"]
        if noise is None:
            samples = len(ids) if guidance == 1 else len(ids) // 2
            shape = (samples, self.config.action_horizon, self.config.max_action_dim)
            noise = torch.randn(shape, generator=generator, dtype=backbone.features.dtype)
        noise = noise.to(backbone.features)
        steps = denoising_steps or self.config.num_inference_timesteps
        return self.action_head.sample(backbone, state, ids, noise, steps, rtc, guidance)

    # what is trained

    def groups(self) -> dict[str, list[nn.Module]]:
        """The modules of each group that can be tuned or frozen (original: tune_* keys)."""
        head, vlm = self.action_head, self.backbone.vlm
        groups: dict[str, list[nn.Module | None]] = {
            "projector": [head.state_encoder, head.action_encoder, head.action_decoder, head.position_embedding],
            "diffusion_model": [head.model],
            "vlln": [head.vlln, head.vl_self_attention],
            "llm": [vlm.language_model],
            "visual": [vlm.visual],
        }
        return {group: [part for part in parts if part is not None] for group, parts in groups.items()}

    def set_trainable(self, *, top_llm_layers: int = 0, **tuned: bool) -> None:
        """Choose the `groups` that are trained; those left out are frozen and stay in eval mode."""
        groups = self.groups()
        for group, trained in (dict.fromkeys(groups, False) | tuned).items():
            setattr(self.config, f"tune_{group}", trained)
            for module in groups[group]:
                module.requires_grad_(trained)
        if top_llm_layers:
            for layer in self.backbone.vlm.language_model.layers[-top_llm_layers:]:
                layer.requires_grad_(True)
        # no result depends on it, and DDP refuses trained parameters without a gradient
        self.backbone.vlm.language_model.norm.requires_grad_(False)
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
        """Training mode for what is trained and for `trained_in_frozen`; all else stays in eval mode."""
        super().train(mode)
        if mode:
            for group, modules in self.groups().items():
                for module in modules:
                    module.train(getattr(self.config, f"tune_{group}"))
            for module in self.trained_in_frozen:
                module.train()
        return self

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that an optimizer should see."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

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
        tune: dict[str, Any] | None = None,
        **auto: Any,
    ) -> Gr00tN1d7:
        """Load a checkpoint folder or hub id, strictly: no tensor missing, left over or of another shape.

        dtype: of all weights (None: as stored). tune: what will be trained, the arguments of `set_trainable` (None: as
        config.json says); trained_dtype: of those weights. `revision`, `cache_dir` and `local_files_only` are as of
        the hub; further keywords, which AutoModel passes on, have no effect. The model comes in eval mode.
        """
        hub = {name: auto[name] for name in ("revision", "cache_dir", "local_files_only") if name in auto}
        folder = resolve_folder(pretrained_model_name_or_path, **hub)
        wanted_dtype = parse_dtype(dtype if dtype is not None else torch_dtype)
        config = config or read_config(folder)
        model = cls.without_weights(folder, config)
        tune = config.tune if tune is None else tune
        model.set_trainable(**tune)
        trained = {name for name, _ in model.trained_parameters()} if trained_dtype else set()
        dtypes = {name: trained_dtype if name in trained else wanted_dtype for name in model.state_dict()}
        weights = read_weights(folder, model.state_dict(), dtypes)
        model.load_state_dict(weights, strict=True, assign=True)
        model.set_trainable(**tune)  # assigned tensors do not carry the flag over
        model.backbone.refresh_rotary()
        model.backbone.check_rotary()
        return model.eval()

    @classmethod
    def without_weights(cls, folder: Path, config: Gr00tN1d7Config) -> Gr00tN1d7:
        """The model that a checkpoint's configuration describes, on the meta device."""
        backbone = resolve_backbone(config.model_name, architecture_folder(folder))
        with parsing(folder / CONFIG_NAME), torch.device("meta"):
            return cls(config, backbone)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        max_shard_size: int = MAX_SHARD_BYTES,
        safe_serialization: bool = True,
    ) -> None:
        """Write config.json (every key), the weights in shards (always safetensors), and the backbone's architecture.

        dtype: None keeps each tensor's own. Raises ToolkitError, before anything is written, for weights that are not
        finite in `dtype`.
        """
        folder, stored = Path(save_directory), parse_dtype(dtype)
        write_weights(self.state_dict(), folder, dtype=stored, max_shard_bytes=max_shard_size)
        write_config(self.config, self.backbone_config, folder, stored or next(self.parameters()).dtype)


AutoConfig.register("Gr00tN1d7", Gr00tN1d7Config, exist_ok=True)
AutoModel.register(Gr00tN1d7Config, Gr00tN1d7, exist_ok=True)
