"""The vision-language backbone: Qwen3-VL, its LLM cut to `select_layer` layers, features before the final norm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from gr00t.data.pixels import pixel_values as to_pixel_values
from gr00t.errors import ToolkitError
from gr00t.model import cpu_kernels
from gr00t.model.vision_attention import ImageAttention, ImageLengths, PatchEmbedding

READ = ("input_ids", "attention_mask", "image_grid_thw", "images", "pixel_values")


@dataclass
class BackboneOutput:
    """All that the action head knows of what the robot sees and hears.

    features (B, S, dim); attention_mask (B, S) bool, False on padding; image_mask (B, S) bool, True on image tokens
    (vision_start and vision_end count as text).
    """

    features: Tensor
    attention_mask: Tensor
    image_mask: Tensor


class UnusedRMSNorm(nn.Module):
    """The LLM's final norm: stored in every checkpoint, never applied, since N1.7 reads the features before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Backbone(nn.Module):
    """`model.model` is transformers' Qwen3VLModel; the lm_head, whose result N1.7 never uses, is not built.

    The features equal the original's `hidden_states[-1]` of transformers 4.57: after the last kept layer (with its
    deepstack features), before the norm.

    `at_once`: samples of a forward without gradients; more are computed in pieces. None is all of them, and on a CPU
    what `cpu_kernels` says.
    """

    def __init__(self, config: Qwen3VLConfig, select_layer: int) -> None:
        super().__init__()
        kept = _truncated(config, select_layer)
        kept._attn_implementation = "sdpa"
        self.image_token_id: int = config.image_token_id
        vlm = Qwen3VLModel(kept)
        vlm.language_model.norm = UnusedRMSNorm(vlm.language_model.config.hidden_size)
        vlm.visual.patch_embed = PatchEmbedding(vlm.visual.patch_embed)
        lengths = ImageLengths()
        for block in vlm.visual.blocks:
            block.attn = ImageAttention(block.attn, lengths)
        self.model = nn.ModuleDict({"model": vlm})
        self.at_once: int | None = None

    @property
    def vlm(self) -> Any:
        """The Qwen3VLModel: `visual` and `language_model`."""
        return self.model["model"]

    def forward(self, inputs: dict[str, Tensor]) -> BackboneOutput:
        """inputs: input_ids, attention_mask (B, S); image_grid_thw (N, 3); and the N images of the batch in order,
        as `pixel_values` (patches, 1536) float or as `images` (N, H, W, 3) uint8."""
        parts = [self._piece(part) for part in self._pieces(inputs)]
        if len(parts) == 1:
            return parts[0]
        return BackboneOutput(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(BackboneOutput)))

    def _pieces(self, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The inputs of every forward; all in one where samples differ in their images."""
        count = len(inputs["input_ids"])
        size = self.at_once or cpu_kernels.samples_at_once(self._weight_device()) or count
        if count <= size or torch.is_grad_enabled() or not self._alike(inputs):
            yield inputs
            return
        each = {name: tensor.unflatten(0, (count, -1)) for name, tensor in inputs.items() if name in READ}
        for start in range(0, count, size):
            yield {name: samples[start : start + size].flatten(0, 1) for name, samples in each.items()}

    def _alike(self, inputs: dict[str, Tensor]) -> bool:
        """Whether every sample has as many images as the others, all of one size."""
        ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
        tokens = (ids == self.image_token_id).sum(1)
        return len(grid) % len(ids) == 0 and bool((grid == grid[0]).all() and (tokens == tokens[0]).all())

    def _piece(self, inputs: dict[str, Tensor]) -> BackboneOutput:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        image_mask = ids == self.image_token_id
        pixels = inputs.get("pixel_values")
        if pixels is None:
            pixels = to_pixel_values(inputs["images"], dtype=self.vlm.visual.dtype)
        output = self.vlm(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels,
            image_grid_thw=inputs["image_grid_thw"],
            mm_token_type_ids=image_mask.int(),
            use_cache=False,
        )
        return BackboneOutput(output.last_hidden_state, mask.bool(), image_mask)

    def use_attention(self, implementation: str) -> None:
        """Attention of the language model by transformers' name of it ("sdpa", "flash_attention_2", ...). The vision
        tower keeps PyTorch's fused attention, which is flash attention on a GPU in bf16."""
        self.vlm.language_model.set_attn_implementation(implementation)

    def refresh_rotary(self) -> None:
        """Recompute the rotary frequencies in fp32: they are in no checkpoint, meta devices lose them, and casting
        a model to bf16 would round them."""
        for module in self._rotary_modules():
            device = module.inv_freq.device
            device = self._weight_device() if device.type == "meta" else device
            exact = _exact_inv_freq(module).to(device)
            module.inv_freq = exact
            module.original_inv_freq = exact.clone()

    def check_rotary(self) -> None:
        """Refuse a model whose rotary frequencies are not what its configuration says."""
        for module in self._rotary_modules():
            if not torch.equal(module.inv_freq.cpu(), _exact_inv_freq(module)):
                raise ToolkitError(
                    f"{type(module).__name__}.inv_freq is corrupt after loading: positions would be garbage. "
                    "Load with Gr00tN1d7.from_pretrained."
                )

    def _rotary_modules(self) -> list[Any]:
        return [self.vlm.visual.rotary_pos_emb, self.vlm.language_model.rotary_emb]

    def _weight_device(self) -> torch.device:
        return self.vlm.language_model.embed_tokens.weight.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Backbone:
        super()._apply(fn, recurse)
        self.refresh_rotary()
        return self


def _exact_inv_freq(module: Any) -> Tensor:
    with torch.device("cpu"):
        fresh = type(module)(module.config)
    return fresh.inv_freq.to(torch.float32)


def _truncated(config: Qwen3VLConfig, select_layer: int) -> Qwen3VLConfig:
    kept = copy.deepcopy(config)
    text: Any = kept.text_config
    layers = text.num_hidden_layers
    if not 1 <= select_layer <= layers:
        raise ToolkitError(f"select_layer {select_layer} does not fit a backbone of {layers} layers.")
    text.num_hidden_layers = select_layer
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:select_layer]
    return kept
