"""Keys of the split and of the model's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gr00t.errors import ToolkitError
from toolkit.declaration import key


@dataclass(kw_only=True)
class DiffusionModelConfig:
    """The diffusion transformer of the action head."""

    num_layers: int = key("blocks, alternately cross- and self-attention", at_least=1)
    num_attention_heads: int = key("heads; heads x head dim = input_embedding_dim", at_least=1)
    attention_head_dim: int = key("width of a head", at_least=1)
    output_dim: int = key("width of its output; = hidden_size", at_least=1)
    dropout: float = key("dropout in its blocks", at_least=0, less_than=1)


@dataclass(kw_only=True)
class SelfAttentionConfig:
    """Self-attention over the backbone's tokens, before the diffusion transformer."""

    num_layers: int = key("blocks", at_least=1)
    num_attention_heads: int = key("heads; heads x head dim = backbone_embedding_dim", at_least=1)
    attention_head_dim: int = key("width of a head", at_least=1)
    dropout: float = key("dropout in its blocks", at_least=0, less_than=1)


@dataclass(kw_only=True)
class TextConfig:
    """The language model of the backbone (Qwen3-VL)."""

    hidden_size: int = key("width; = backbone_embedding_dim", at_least=1)
    num_hidden_layers: int = key("layers before the cut to select_layer", at_least=1)
    num_attention_heads: int = key("query heads", at_least=1)
    num_key_value_heads: int = key("key and value heads; divides the query heads", at_least=1)
    head_dim: int = key("width of a head", at_least=2)
    intermediate_size: int = key("width of the feed-forward", at_least=1)
    mrope_section: list[int] = key("rotary pairs for time, height, width; 2 x their sum = head_dim")
    rope_theta: float = key("base of the rotary frequencies", more_than=0)


@dataclass(kw_only=True)
class VisionConfig:
    """The vision tower of the backbone (Qwen3-VL)."""

    hidden_size: int = key("width; a multiple of num_heads", at_least=1)
    depth: int = key("blocks", at_least=1)
    num_heads: int = key("heads", at_least=1)
    intermediate_size: int = key("width of the feed-forward", at_least=1)
    out_hidden_size: int = key("width handed to the language model; = its hidden_size", at_least=1)
    num_position_embeddings: int = key("learned positions, a square number", at_least=1)
    deepstack_visual_indexes: list[int] = key("blocks whose features also enter the first LLM layers")
    patch_size: int = key("pixels along the side of a patch", at_least=1)


@dataclass(kw_only=True)
class BackboneConfig:
    """The backbone's architecture (Qwen3-VL); null takes the built-in table of Qwen3-VL-2B."""

    vocab_size: int = key("rows of the token embedding", at_least=1)
    text: TextConfig = key("the language model")
    vision: VisionConfig = key("the vision tower")


@dataclass(kw_only=True)
class ArchitectureConfig:
    """Shape of the model; read when a base with random weights is made. A checkpoint brings its own."""

    model_name: str = key("name of the backbone, as written to config.json")
    image_size: int = key("side of the views that the vision tower reads, pixels", 256, at_least=32, multiple_of=32)
    select_layer: int = key("LLM layers kept, counted from the first", at_least=1)
    action_horizon: int = key("action steps the head predicts", at_least=1)
    max_state_dim: int = key("padded state width", at_least=1)
    max_action_dim: int = key("padded action width", at_least=1)
    hidden_size: int = key("width inside the state encoder and action decoder", at_least=1)
    input_embedding_dim: int = key("width of the diffusion transformer", at_least=1)
    backbone_embedding_dim: int = key("width of the backbone's features", at_least=1)
    max_num_embodiments: int = key("robots with weights of their own", at_least=1)
    num_inference_timesteps: int = key("denoising steps at inference", at_least=1)
    state_dropout_prob: float = key("chance that a sample's state features are hidden", at_least=0, less_than=1)
    attend_text_every_n_blocks: int = key(
        "one in so many cross-attention blocks, from the first, reads the text; the others the images", 2, at_least=1
    )
    sinusoidal_positions: float | None = key(
        "amplitude of the sines and cosines that the vision tower's learned positions begin as, so that a tower "
        "trained from nothing can tell places apart; null for small random numbers",
        None,
        more_than=0,
    )
    diffusion_model: DiffusionModelConfig = key("the diffusion transformer")
    vl_self_attention: SelfAttentionConfig | None = key("self-attention over the backbone's tokens; null for none")
    backbone: BackboneConfig | None = key("the backbone; null for Qwen3-VL-2B")

    def check_values(self) -> None:
        dit, attention = self.diffusion_model, self.vl_self_attention
        dit_width = dit.num_attention_heads * dit.attention_head_dim
        _must_equal("input_embedding_dim", self.input_embedding_dim,
                    "diffusion_model.num_attention_heads x attention_head_dim", dit_width)  # fmt: skip
        _must_equal("diffusion_model.output_dim", dit.output_dim, "hidden_size", self.hidden_size)
        if attention is not None:
            _must_equal("vl_self_attention.num_attention_heads x attention_head_dim",
                        attention.num_attention_heads * attention.attention_head_dim,
                        "backbone_embedding_dim", self.backbone_embedding_dim)  # fmt: skip
        if self.backbone is not None:
            _check_backbone(self, self.backbone)


@dataclass(kw_only=True)
class ModelConfig:
    """The base checkpoint that is fine-tuned, and its shape."""

    name: str = key("name of the model")
    base: str = key("the base checkpoint: a local folder or a Hugging Face id (owner/name)", folder=True)
    architecture: ArchitectureConfig = key("shape of a base made with random weights")


def _check_backbone(shape: ArchitectureConfig, backbone: BackboneConfig) -> None:
    text, vision = backbone.text, backbone.vision
    _must_equal("backbone.text.hidden_size", text.hidden_size, "backbone_embedding_dim", shape.backbone_embedding_dim)
    _must_equal(
        "backbone.vision.out_hidden_size", vision.out_hidden_size, "backbone.text.hidden_size", text.hidden_size
    )
    _must_equal("2 x the sum of backbone.text.mrope_section", 2 * sum(text.mrope_section),
                "backbone.text.head_dim", text.head_dim)  # fmt: skip
    if len(text.mrope_section) != 3 or min(text.mrope_section) < 1:
        _refuse(f"backbone.text.mrope_section={text.mrope_section}: three positive parts (time, height, width).")
    if shape.select_layer > text.num_hidden_layers:
        _refuse(
            f"select_layer={shape.select_layer} is more than backbone.text.num_hidden_layers={text.num_hidden_layers}."
        )
    if text.num_attention_heads % text.num_key_value_heads:
        _refuse("backbone.text.num_attention_heads must be a multiple of backbone.text.num_key_value_heads.")
    if vision.hidden_size % (4 * vision.num_heads):
        _refuse(
            "backbone.vision.hidden_size must be a multiple of 4 x backbone.vision.num_heads (2-D rotary positions)."
        )
    if math.isqrt(vision.num_position_embeddings) ** 2 != vision.num_position_embeddings:
        _refuse(f"backbone.vision.num_position_embeddings={vision.num_position_embeddings} is no square number.")
    indexes = vision.deepstack_visual_indexes
    if indexes != sorted(set(indexes)) or any(not 0 <= index < vision.depth for index in indexes):
        _refuse(f"backbone.vision.deepstack_visual_indexes={indexes}: ascending blocks, 0 to {vision.depth - 1}.")
    if len(indexes) > shape.select_layer:
        _refuse("backbone.vision.deepstack_visual_indexes needs an LLM layer each; select_layer keeps too few.")


def _must_equal(name: str, value: int, other: str, wanted: int) -> None:
    if value != wanted:
        _refuse(f"{name} is {value}, but must equal {other}, which is {wanted}.")


def _refuse(message: str) -> None:
    raise ToolkitError(f"model.architecture.{message}")
