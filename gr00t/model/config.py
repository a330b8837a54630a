"""The configuration of a GR00T N1.7 checkpoint: the original's keys, its class defaults, and the released values.

Class defaults and released values are two different things (the original writes only the keys that were set, so a
missing key means the class default). `Gr00tN1d7Config()` gives the former, `released_config()` the latter.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from transformers import PretrainedConfig

from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import check_types
from gr00t.model.architecture import DEFAULT_DIFFUSION_MODEL, RELEASED_DIFFUSION_MODEL, RELEASED_VL_SELF_ATTENTION
from gr00t.model.checkpoint_folder import MODEL_TYPE

# What transformers adds for other kinds of models.
_FOREIGN_KEYS = {"return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward"}
_FOREIGN_KEYS |= {"is_encoder_decoder", "id2label", "label2id", "problem_type", "_name_or_path", "name_or_path"}

_POSITIVE = (
    *("backbone_embedding_dim", "select_layer", "max_state_dim", "max_action_dim", "action_horizon", "hidden_size"),
    *("state_history_length", "input_embedding_dim", "max_num_embodiments", "max_seq_len", "num_inference_timesteps"),
    *("attend_text_every_n_blocks", "num_timestep_buckets", "noise_beta_alpha", "noise_beta_beta"),
)
# What is implemented of three keys of TransformerConfig.
_FIXED = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_type": "ada_norm"}


@dataclass(frozen=True)
class TransformerConfig:
    """One of the two transformers of the action head: the DiT or vl_self_attention.

    Width is `num_attention_heads * attention_head_dim`. A missing `positional_embeddings` means "sinusoidal", as in
    the original; the release sets it to null.
    """

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    output_dim: int = 26
    dropout: float = 0.1
    final_dropout: bool = True
    positional_embeddings: str | None = "sinusoidal"
    max_num_positional_embeddings: int = 512
    interleave_self_attention: bool = False
    norm_type: str = "ada_norm"
    activation_fn: str = "gelu-approximate"
    attention_bias: bool = True
    norm_eps: float = 1e-5

    @property
    def width(self) -> int:
        """Of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def parse(cls, data: dict[str, Any], where: str) -> TransformerConfig:
        """From the dict of config.json, refusing what this implementation would silently ignore."""
        known = {f.name for f in fields(cls)}
        for key in data:
            if key not in known:
                raise ToolkitError(f'{where}: unknown key "{key}".{did_you_mean(key, known)}')
        for key in ("num_layers", "num_attention_heads", "attention_head_dim"):
            if not isinstance(data.get(key), int) or data[key] < 1:
                raise ToolkitError(f"{where}.{key} must be a positive integer, not {data.get(key)!r}.")
        check_types(cls, data, f"{where}.")
        config = cls(**data)
        for key, value in _FIXED.items():
            if getattr(config, key) != value:
                raise ToolkitError(f"{where}.{key}: only {value!r} is implemented, not {getattr(config, key)!r}.")
        if config.positional_embeddings not in (None, "sinusoidal"):
            raise ToolkitError(f'{where}.positional_embeddings must be null or "sinusoidal".')
        return config


class Gr00tN1d7Config(PretrainedConfig):
    """Keys and class defaults of the original's configuration (original: Gr00tN1d7Config).

    Keys that only the processor or the trainer reads are kept so that every key of a checkpoint survives a round
    trip; unknown keys of later versions are kept too.
    """

    model_type = MODEL_TYPE

    # backbone
    model_name: str = "nvidia/Cosmos-Reason2-2B"
    backbone_model_type: str = "qwen"
    model_revision: str | None = None
    backbone_embedding_dim: int = 2048
    select_layer: int = 12
    tune_top_llm_layers: int = 0
    tune_llm: bool = False
    tune_visual: bool = False
    reproject_vision: bool = False
    use_flash_attention: bool = True
    load_bf16: bool = False
    backbone_trainable_params_fp32: bool = True
    model_dtype: str = "bfloat16"

    # processor (copies of what processor_config.json decides)
    image_crop_size: Any = (230, 230)
    image_target_size: Any = (256, 256)
    shortest_image_edge: int | None = None
    crop_fraction: float | None = None
    random_rotation_angle: float | None = None
    color_jitter_params: Any = None
    use_albumentations_transforms: bool = True
    letter_box_transform: bool = False
    extra_augmentation_config: Any = None
    formalize_language: bool = True
    apply_sincos_state_encoding: bool = False
    use_percentiles: bool = True
    use_relative_action: bool = False
    use_mean_std: bool = False
    exclude_state: bool = False

    # action head
    max_state_dim: int = 132
    max_action_dim: int = 132
    action_horizon: int = 40
    state_history_length: int = 1
    hidden_size: int = 1024
    input_embedding_dim: int = 1536
    max_num_embodiments: int = 32
    max_seq_len: int = 1024
    add_pos_embed: bool = True
    attn_dropout: float = 0.2
    use_vlln: bool = True
    use_alternate_vl_dit: bool = True
    attend_text_every_n_blocks: int = 2
    diffusion_model_cfg: Any = None
    vl_self_attention_cfg: Any = None
    state_dropout_prob: float = 0.8

    # flow matching
    num_inference_timesteps: int = 4
    noise_beta_alpha: float = 1.5
    noise_beta_beta: float = 1.0
    noise_s: float = 0.999
    num_timestep_buckets: int = 1000

    # what is trained
    tune_projector: bool = True
    tune_diffusion_model: bool = True
    tune_vlln: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.diffusion_model_cfg is None:
            self.diffusion_model_cfg = dict(DEFAULT_DIFFUSION_MODEL)
        super().__post_init__(**kwargs)

    @property
    def dit(self) -> TransformerConfig:
        """The diffusion transformer."""
        return TransformerConfig.parse(self.diffusion_model_cfg, "diffusion_model_cfg")

    @property
    def vl_self_attention(self) -> TransformerConfig | None:
        """The transformer over the VLM features; None where the checkpoint has none."""
        cfg = self.vl_self_attention_cfg
        if not cfg or cfg.get("num_layers", 0) == 0:
            return None
        return TransformerConfig.parse(cfg, "vl_self_attention_cfg")

    @property
    def tune(self) -> dict[str, Any]:
        """What is trained: the arguments of `Gr00tN1d7.set_trainable`."""
        groups = ("projector", "diffusion_model", "vlln", "llm", "visual", "top_llm_layers")
        return {group: getattr(self, f"tune_{group}") for group in groups}

    def check(self) -> None:
        """Refuse sizes that cannot fit together, before anything is built."""
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ToolkitError(f"config.json: {name} must be above 0, not {getattr(self, name)}.")
        dit, vl = self.dit, self.vl_self_attention
        embedding = self.backbone_embedding_dim
        rules = {
            "DiT width (heads x head dim) must equal input_embedding_dim": (dit.width, self.input_embedding_dim),
            "diffusion_model_cfg.output_dim must equal hidden_size": (dit.output_dim, self.hidden_size),
            "vl_self_attention width must equal backbone_embedding_dim": (vl.width if vl else embedding, embedding),
        }
        for rule, (left, right) in rules.items():
            if left != right:
                raise ToolkitError(f"config.json: {rule}, not {left} and {right}.")
        if self.use_alternate_vl_dit and not dit.interleave_self_attention:
            raise ToolkitError("config.json: use_alternate_vl_dit needs diffusion_model_cfg.interleave_self_attention.")
        if self.add_pos_embed and self.action_horizon > self.max_seq_len:
            raise ToolkitError(
                f"config.json: action_horizon {self.action_horizon} exceeds max_seq_len {self.max_seq_len}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Every key, and nothing that transformers adds for other kinds of models."""
        return {key: value for key, value in super().to_dict().items() if key not in _FOREIGN_KEYS}

    def to_diff_dict(self) -> dict[str, Any]:
        """Every key: readers disagree about what a missing one means (LeRobot adds layers, the original does not)."""
        return self.to_dict()


def released_config(**overrides: Any) -> Gr00tN1d7Config:
    """The architecture of nvidia/GR00T-N1.7-3B: 16 LLM layers, 4 layers of vl_self_attention, a DiT of 32."""
    values: dict[str, Any] = {
        "select_layer": 16,
        "diffusion_model_cfg": dict(RELEASED_DIFFUSION_MODEL),
        "vl_self_attention_cfg": dict(RELEASED_VL_SELF_ATTENTION),
        "shortest_image_edge": 256,
        "crop_fraction": 0.95,
        "image_crop_size": [230, 230],
        "image_target_size": [256, 256],
        "state_dropout_prob": 0.2,
        "use_relative_action": True,
    }
    return Gr00tN1d7Config(**{**values, **overrides})
