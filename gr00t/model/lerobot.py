"""LeRobot's checkpoints of GR00T N1.7 (policy "groot"): how they name things, and what they leave to their base.

Such a folder (pretrained_model/) holds config.json with a `type` key, one model.safetensors whose names have a prefix,
and two pipelines with the settings of pre- and postprocessing. The architecture and the tokenizer stay with the base
that config.json names in `base_model_path`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from gr00t.files import read_json

POLICY = "groot"
TENSOR_PREFIX = "_groot_model."
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
PACK, ENCODE, DECODE = "groot_n1_7_pack_inputs_v1", "groot_n1_7_vlm_encode_v1", "groot_n1_7_action_decode_v1"

OVERRIDES = ("num_inference_timesteps", "rtc_ramp_rate")  # null keeps the base's value


def is_lerobot(config: dict[str, Any]) -> bool:
    """Whether this config.json is one of LeRobot's: it names a policy type, not a model type."""
    return isinstance(config.get("type"), str) and "model_type" not in config


def refuse_other_policy(folder: Path, config: dict[str, Any]) -> None:
    """Refuse LeRobot's other policies, and groot from before N1.7."""
    kind = config["type"]
    if kind != POLICY:
        older = " (GR00T N1.6)" if "n1d6" in kind else ""
        raise ToolkitError(
            f'{folder} is a LeRobot checkpoint of the policy "{kind}"{older}; this toolkit reads N1.7 only, '
            f'LeRobot\'s "{POLICY}". Start from nvidia/GR00T-N1.7-3B.'
        )
    base = str(config.get("base_model_path") or "").lower()
    if config.get("tokenizer_assets_repo") or "n1.5" in base or "n1_5" in base:
        raise ToolkitError(
            f"{folder} is a LeRobot checkpoint of GR00T N1.5 (base {config.get('base_model_path')}); this toolkit "
            "reads N1.7 only. Start from nvidia/GR00T-N1.7-3B."
        )


def base_name(folder: Path, config: dict[str, Any]) -> str:
    """The base whose architecture, processor and tokenizer the checkpoint relies on: a path or a hub id."""
    base = config.get("base_model_path")
    if not isinstance(base, str) or not base:
        raise ToolkitError(
            f"{folder / 'config.json'} is a LeRobot checkpoint that names no base_model_path. Write the folder or hub "
            "id of the GR00T N1.7 it was trained from there."
        )
    return base


def unreadable_base(folder: Path, base: str, reason: ToolkitError) -> ToolkitError:
    """What to do when the base is not at hand."""
    return ToolkitError(
        f'{folder} is a LeRobot checkpoint, which leaves its architecture to its base "{base}": {reason}\n'
        f"Where there is internet, run `python -m finetune.prefetch base={base} out=DIR`, then write DIR as "
        f"base_model_path into {folder / 'config.json'}."
    )


def merged_config(base: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any]:
    """config.json of the N1.7 inside: the base's keys, LeRobot's defaults for those it lacks, the policy's choices."""
    from gr00t.model.released import RELEASED_DIFFUSION_MODEL, RELEASED_VL_SELF_ATTENTION

    defaults = {
        "select_layer": 16,
        "state_dropout_prob": 0.2,
        "diffusion_model_cfg": RELEASED_DIFFUSION_MODEL,
        "vl_self_attention_cfg": RELEASED_VL_SELF_ATTENTION,
    }
    chosen = {key: value for key, value in policy.items() if key.startswith("tune_")}
    chosen |= {key: policy[key] for key in OVERRIDES if policy.get(key) is not None}
    return {**defaults, **base, **chosen}


def original_name(tensor: str) -> str:
    """The original's name of one of LeRobot's tensors."""
    return tensor.removeprefix(TENSOR_PREFIX)


def steps(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings of every step of the two pipelines, by the step's registered name."""
    found: dict[str, dict[str, Any]] = {}
    for name in (PREPROCESSOR, POSTPROCESSOR):
        if (folder / name).is_file():
            for step in read_json(folder / name).get("steps", []):
                found[str(step.get("registry_name"))] = step.get("config") or {}
    return found


def processor_kwargs(folder: Path, base: dict[str, Any]) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    """The base's processor_kwargs with the checkpoint's own settings, the trained tag, and that tag's statistics.

    Statistics are None where LeRobot normalised with a data set's flat vectors: they name no groups of joints, so the
    tag is taken out and can only be trained anew. LeRobot's change of sign for LIBERO's gripper belongs to the
    simulator and is not applied here.
    """
    found = steps(folder)
    pack, encode, decode = (found.get(name, {}) for name in (PACK, ENCODE, DECODE))
    tag = str(pack.get("embodiment_tag") or read_json(folder / "config.json").get("embodiment_tag", ""))
    kwargs = {**base, "modality_configs": dict(base.get("modality_configs", {}))}
    shared = ("formalize_language", "clip_outliers", "state_dropout_prob")
    kwargs |= {key: pack[key] for key in shared if key in pack}
    image = ("image_crop_size", "image_target_size", "shortest_image_edge", "crop_fraction")
    kwargs |= {key: encode[key] for key in (*image, "use_albumentations", "letter_box_transform") if key in encode}
    statistics, modality = pack.get("raw_stats"), pack.get("modality_config")
    if not statistics or not _is_complete(modality):
        kwargs["modality_configs"].pop(tag, None)
        return kwargs, tag, None
    kwargs["modality_configs"][tag] = modality
    kwargs |= {key: decode[key] for key in ("use_percentiles", "use_relative_action") if key in decode}
    return kwargs, tag, statistics


def _is_complete(modality: Any) -> bool:
    """Whether it is a modality config of the original; data-set fine-tunes leave parts out."""
    return isinstance(modality, dict) and all(
        {"modality_keys", "delta_indices"} <= set(modality.get(name) or {})
        for name in ("video", "state", "action", "language")
    )
