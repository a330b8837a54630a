"""The shape of the released model, as plain data, and where the architecture of its Qwen3-VL backbone comes from.

A GR00T checkpoint holds every weight of its backbone but not its architecture: config.json only names it. It is
resolved without a network from, in this order: the copy saved beside the tokenizer (processor/vlm/config.json), a local
folder of that name (beside the checkpoint, or the name itself as a path), the local Hugging Face cache, a built-in
table. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import parsing, read_json, refuse_absurd

if TYPE_CHECKING:
    from transformers import Qwen3VLConfig

SAVED_CONFIG = Path("processor") / "vlm" / "config.json"

DEFAULT_DIFFUSION_MODEL: dict[str, Any] = {
    "positional_embeddings": None,
    "num_layers": 16,
    "num_attention_heads": 32,
    "attention_head_dim": 48,
    "norm_type": "ada_norm",
    "dropout": 0.2,
    "final_dropout": True,
    "output_dim": 1024,
    "interleave_self_attention": True,
}
RELEASED_DIFFUSION_MODEL: dict[str, Any] = {**DEFAULT_DIFFUSION_MODEL, "num_layers": 32}
RELEASED_VL_SELF_ATTENTION: dict[str, Any] = {
    "positional_embeddings": None,
    "num_layers": 4,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "dropout": 0.2,
    "final_dropout": True,
}

QWEN3_VL_2B: dict[str, Any] = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": True,
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "tie_word_embeddings": True,
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
BUILT_IN = dict.fromkeys(
    ("nvidia/Cosmos-Reason2-2B", "Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-2B-Thinking"), QWEN3_VL_2B
)


def resolve_backbone(model_name: str, checkpoint: Path | None) -> Qwen3VLConfig:
    """The architecture of the backbone called `model_name` in the checkpoint folder (None: no folder yet)."""
    path = backbone_file(model_name, checkpoint)
    if path is not None:
        with parsing(path):
            return parse_backbone(read_json(path), str(path))
    if model_name in BUILT_IN:
        return parse_backbone(BUILT_IN[model_name], model_name)
    places = "\n  ".join(str(p) for p in _candidate_files(model_name, checkpoint))
    raise ToolkitError(
        f'The backbone "{model_name}" is not known, and its config.json is in none of\n  {places}\n'
        f"Put a copy of the backbone's config.json at one of these.{did_you_mean(model_name, BUILT_IN)}"
    )


def backbone_file(model_name: str, checkpoint: Path | None) -> Path | None:
    """The file that the backbone's architecture is read from; None where the built-in table holds it."""
    return next((path for path in _candidate_files(model_name, checkpoint) if path.is_file()), None)


def parse_backbone(data: dict[str, Any], where: str) -> Qwen3VLConfig:
    """A Qwen3VLConfig from its JSON form, of transformers 4.57 or 5."""
    from transformers import Qwen3VLConfig

    if data.get("model_type", "qwen3_vl") != "qwen3_vl" or "text_config" not in data or "vision_config" not in data:
        raise ToolkitError(
            f'{where} is no Qwen3-VL configuration (model_type "{data.get("model_type")}"). '
            "GR00T N1.7 stands on Qwen3-VL (Cosmos-Reason2); N1.5 and N1.6 stand on Eagle and are not read here."
        )
    refuse_absurd(data)
    sub: dict[str, Any] = {
        key: {k: v for k, v in data[key].items() if k not in ("model_type", "dtype", "torch_dtype")}
        for key in ("text_config", "vision_config")
    }
    own = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings")
    sub.update({k: data[k] for k in own if k in data})
    return Qwen3VLConfig(**sub)


def backbone_json(backbone: Qwen3VLConfig) -> dict[str, Any]:
    """The JSON form of a backbone's architecture, which transformers 4.57 and 5 read alike."""
    data: dict[str, Any] = backbone.to_dict()
    text = data["text_config"]
    # The original runs on 4.57, which reads these two and passes over rope_parameters: it could not build the model.
    rope = dict(text["rope_parameters"])
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    return data


def _candidate_files(model_name: str, checkpoint: Path | None) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    files = []
    if checkpoint is not None:
        files = [checkpoint / SAVED_CONFIG, checkpoint / model_name / "config.json"]
        files.append(checkpoint.resolve().parent / model_name / "config.json")
    files.append(Path(model_name) / "config.json")
    try:
        cached = try_to_load_from_cache(model_name, "config.json")
    except HFValidationError:  # a path, not a hub id
        cached = None
    return [*files, Path(cached)] if isinstance(cached, str) else files
