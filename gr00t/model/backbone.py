"""The vision-language backbone: Qwen3-VL, its LLM cut to `select_layer` layers, features before the final norm.

Two parts of transformers' vision tower are replaced. It computes attention image by image, in a Python loop of every
block, unless flash-attention is installed; but images of one size, which is what the processor makes, are a batch. And
it embeds patches by a 3-D convolution whose kernel covers a whole patch: the same as a matrix product, and slower.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from gr00t.data.images import pixel_values as to_pixel_values
from gr00t.errors import ToolkitError
from gr00t.model import cpu_kernels
from gr00t.model.cpu_kernels import attend

# The inputs that the backbone reads: cut up where it works in pieces.
READ = ("input_ids", "attention_mask", "image_grid_thw", "images", "pixel_values")


@dataclass
class BackboneOutput:
    """The backbone's output: all that the action head is given of images and instruction.

    features (B, S, dim); attention_mask (B, S) bool, False on padding; image_mask (B, S) bool, True on image tokens
    (vision_start and vision_end count as text).
    """

    features: Tensor
    attention_mask: Tensor
    image_mask: Tensor


class PatchEmbedding(nn.Module):
    """In place of Qwen3VLVisionPatchEmbed, with its weights (`proj`)."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.proj: nn.Conv3d = original.proj

    def forward(self, patches: Tensor) -> Tensor:
        """patches (N, 1536) to (N, width)."""
        weight = self.proj.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)


class ImageLengths:
    """Patches of each image in the packed sequence; read from the device once a forward, not once a block."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._lengths: list[int] = []

    def __call__(self, cu_seqlens: Tensor) -> list[int]:
        """cu_seqlens (images + 1,): where in the sequence each image ends."""
        if cu_seqlens is not self._seen:
            self._seen = cu_seqlens
            self._lengths = cu_seqlens.diff().tolist()
        return self._lengths


class ImageAttention(nn.Module):
    """In place of a block's Qwen3VLVisionAttention, with its weights (`qkv`, `proj`): within each image."""

    def __init__(self, original: Any, lengths: ImageLengths) -> None:
        super().__init__()
        self.heads: int = original.num_heads
        self.qkv: nn.Linear = original.qkv
        self.proj: nn.Linear = original.proj
        self._lengths = lengths

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        """hidden_states (patches of all images, width), packed image after image, to the same shape.

        position_embeddings: cos and sin (patches, head dim), as transformers gives them.
        """
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
        # The final norm is stored in every checkpoint and never applied: N1.7 reads the features before it.
        vlm.language_model.norm = nn.Identity()
        vlm.language_model.norm.weight = nn.Parameter(torch.ones(vlm.language_model.config.hidden_size))
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
        """The inputs of every forward; all in one where samples differ in the number or the size of their images."""
        ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
        count = len(ids)
        size = self.at_once or cpu_kernels.samples_at_once(self._weight_device()) or count
        if count > size and not torch.is_grad_enabled():
            tokens = (ids == self.image_token_id).sum(1)  # (B,)
            if len(grid) % count == 0 and bool((grid == grid[0]).all() and (tokens == tokens[0]).all()):
                each = {name: tensor.unflatten(0, (count, -1)) for name, tensor in inputs.items() if name in READ}
                for start in range(0, count, size):
                    yield {name: samples[start : start + size].flatten(0, 1) for name, samples in each.items()}
                return
        yield inputs

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
            module.inv_freq = _exact_inv_freq(module).to(device)
            module.original_inv_freq = module.inv_freq.clone()

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
        """Every move and cast of the module passes here (PyTorch's hook of `.to`, `.cuda`, `.half`, ...)."""
        super()._apply(fn, recurse)
        self.refresh_rotary()
        return self


def _exact_inv_freq(module: Any) -> Tensor:
    """The rotary frequencies (head dim / 2,) of a module's configuration, in float32 on the CPU."""
    with torch.device("cpu"):
        fresh = type(module)(module.config)
    return fresh.inv_freq.to(torch.float32)


def _truncated(config: Qwen3VLConfig, select_layer: int) -> Qwen3VLConfig:
    """A copy with the first `select_layer` layers of the language model."""
    kept = copy.deepcopy(config)
    text: Any = kept.text_config
    layers = text.num_hidden_layers
    if not 1 <= select_layer <= layers:
        raise ToolkitError(f"select_layer {select_layer} does not fit a backbone of {layers} layers.")
    text.num_hidden_layers = select_layer
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:select_layer]
    return kept
