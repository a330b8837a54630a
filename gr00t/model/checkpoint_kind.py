"""What a checkpoint folder is, by its config.json: GR00T N1.7 of the original or of LeRobot, or something else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from gr00t.files import read_json
from gr00t.model import lerobot
from gr00t.model.checkpoint_folder import CONFIG_NAME, require_config, resolve_folder

MODEL_TYPE = "Gr00tN1d7"
START = "Start from nvidia/GR00T-N1.7-3B."

# gr00t_n1, gr00t_n1_5, GR00T_N1_5 (architectures), Gr00tN1d6
_GENERATION = re.compile(r"gr00tn1(?:d?(\d))?")
_PLAIN_VLM = re.compile(r"qwen\d*_?\d*_vl|eagle|cosmos|siglip")


def read_config_json(folder: Path) -> dict[str, Any]:
    """config.json of an N1.7 checkpoint, with its base's where it is LeRobot's; anything else is refused by name."""
    require_config(folder)
    data = read_json(folder / CONFIG_NAME)
    if lerobot.is_lerobot(data):
        lerobot.refuse_other_policy(folder, data)
        base = architecture_folder(folder)
        return lerobot.merged_config(_config_of_base(folder, base), data)
    if data.get("model_type") != MODEL_TYPE:
        raise ToolkitError(_what_is(folder, data))
    for key in ("strict_action_padding_mask", "use_tactile"):
        if data.get(key):
            raise ToolkitError(
                f"{folder / CONFIG_NAME} has {key} on, which a later GR00T brought and this toolkit does not have: "
                "its actions would come out wrong. Use a checkpoint without it."
            )
    return data


def architecture_folder(folder: Path) -> Path:
    """Where backbone, tokenizer and processor of a checkpoint lie: in itself, or in the base of a LeRobot one."""
    data = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else {}
    if not lerobot.is_lerobot(data):
        return folder
    lerobot.refuse_other_policy(folder, data)
    name = lerobot.base_name(folder, data)
    try:
        return resolve_folder(name, weights=False)
    except ToolkitError as error:
        raise lerobot.unreadable_base(folder, name, error) from None


def _config_of_base(folder: Path, base: Path) -> dict[str, Any]:
    data = read_json(base / CONFIG_NAME) if (base / CONFIG_NAME).is_file() else {}
    if data.get("model_type") != MODEL_TYPE:
        reason = ToolkitError(f"{base} is no GR00T N1.7 in the release layout.")
        raise lerobot.unreadable_base(folder, str(base), reason)
    return data


def _what_is(folder: Path, data: dict[str, Any]) -> str:
    kind = data.get("model_type")
    names = [str(name) for name in (kind, *(data.get("architectures") or [])) if name]
    for name in names:
        generation = _GENERATION.match(re.sub(r"[^a-z0-9]", "", name.lower()))
        if generation and generation[1] != "7":
            version = f"N1.{generation[1]}" if generation[1] else "N1"
            return f"{folder} is a GR00T {version} checkpoint ({name}); this toolkit reads N1.7 only. {START}"
    if "eagle_path" in (data.get("backbone_cfg") or {}):
        return f"{folder} is a GR00T N1 or N1.5 checkpoint (Eagle backbone); this toolkit reads N1.7 only. {START}"
    if str(kind).startswith("qwen3_vl"):
        return (
            f"{folder} is a plain Qwen3-VL, the backbone alone, without an action head. "
            f"{START[:-1]}, or make a base with `python -m finetune.create_base`."
        )
    if any(_PLAIN_VLM.match(name.lower()) for name in names):
        return f'{folder} is a vision-language model ("{kind}") without an action head, no policy. {START}'
    return (
        f'{folder} is no GR00T N1.7 checkpoint: its config.json says model_type "{kind}", not "{MODEL_TYPE}". '
        "Give the folder of an N1.7 checkpoint."
    )
