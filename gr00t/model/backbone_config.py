"""Where the architecture of the Qwen3-VL backbone comes from, without a network.

A GR00T checkpoint holds every weight of its backbone but not its architecture: config.json only names it. It is
resolved from, in this order: the copy saved beside the tokenizer (processor/vlm/config.json), a local folder of that
name (beside the checkpoint, or the name itself as a path), the local Hugging Face cache, a built-in table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen3VLConfig

from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import read_json
from gr00t.model.released import QWEN3_VL_2B

BUILT_IN = {
    "nvidia/Cosmos-Reason2-2B": QWEN3_VL_2B,
    "Qwen/Qwen3-VL-2B-Instruct": QWEN3_VL_2B,
    "Qwen/Qwen3-VL-2B-Thinking": QWEN3_VL_2B,
}

SAVED_CONFIG = Path("processor") / "vlm" / "config.json"


def resolve_backbone(model_name: str, checkpoint: Path | None) -> Qwen3VLConfig:
    """The architecture of the backbone called `model_name` in the checkpoint folder (None: no folder yet)."""
    path = backbone_file(model_name, checkpoint)
    if path is not None:
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
    if data.get("model_type", "qwen3_vl") != "qwen3_vl" or "text_config" not in data or "vision_config" not in data:
        raise ToolkitError(
            f'{where} is no Qwen3-VL configuration (model_type "{data.get("model_type")}"). '
            "GR00T N1.7 stands on Qwen3-VL (Cosmos-Reason2); N1.5 and N1.6 stand on Eagle and are not read here."
        )
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
    files: list[Path] = []
    if checkpoint is not None:
        files += [checkpoint / SAVED_CONFIG, checkpoint / model_name / "config.json"]
        files.append(checkpoint.resolve().parent / model_name / "config.json")
    files.append(Path(model_name) / "config.json")
    cached = _cached_config(model_name)
    return files if cached is None else [*files, cached]


def _cached_config(model_name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model_name, "config.json")
    except HFValidationError:  # a path, not a hub id
        return None
    return Path(found) if isinstance(found, str) else None
