"""Keys of the split and of the model's shape."""

# ruff: noqa: RUF009 - `key` returns dataclasses.field, a new one for every field

from __future__ import annotations

from dataclasses import dataclass

from finetune.config.schema_key import key


@dataclass(kw_only=True)
class SplitConfig:
    """The conflict split: a folder of recordings and the instruction that names the cue to follow."""

    name: str = key("name of the split, which is also the name of its folders")
    instruction: str = key("what the robot is told in every episode")
    paraphrases: list[str] = key("other ways to say it, for recordings with paraphrases=true", [])


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
    image_size: int = key("side of the views that the vision tower reads, pixels; a multiple of 32", 256, at_least=32)
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


@dataclass(kw_only=True)
class ModelConfig:
    """The base checkpoint that is fine-tuned, and its shape."""

    name: str = key("name of the model")
    base: str = key("the base checkpoint: a local folder or a Hugging Face id (owner/name)", folder=True)
    architecture: ArchitectureConfig = key("shape of a base made with random weights")
