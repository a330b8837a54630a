"""Where a checkpoint is (a local folder, a hub id, one sub-folder of a suite), what kind it is, and its weight files.

A LeRobot checkpoint of GR00T N1.7 (policy "groot", pretrained_model/) holds config.json with a `type` key, one
model.safetensors whose names have a prefix, and two pipelines with the settings of pre- and postprocessing. Its
architecture and tokenizer stay with the base that config.json names in `base_model_path`.

Nothing here reads a tensor or imports torch: what is wrong with a folder is said before anything heavy starts.
"""

from __future__ import annotations

import hashlib
import re
from os import PathLike
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError, did_you_mean, near_folder
from gr00t.file_reading import read_json
from gr00t.model.architecture import RELEASED_DIFFUSION_MODEL, RELEASED_VL_SELF_ATTENTION

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MODEL_TYPE = "Gr00tN1d7"
START = "Start from nvidia/GR00T-N1.7-3B."
_MERGE = "Merge it into its base where it was trained (merge_and_unload, then save_pretrained), and give that folder."

SMALL_FILES = ["*.json", "*.jinja", "*.txt"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LFS_POINTER = b"version https://git-lfs"

# gr00t_n1, gr00t_n1_5, GR00T_N1_5 (architectures), Gr00tN1d6
_GENERATION = re.compile(r"gr00tn1(?:d?(\d))?")
_PLAIN_VLM = re.compile(r"qwen\d*_?\d*_vl|eagle|cosmos|siglip")

# LeRobot's names of things
POLICY = "groot"
TENSOR_PREFIX = "_groot_model."
PIPELINES = ("policy_preprocessor.json", "policy_postprocessor.json")
PACK, ENCODE, DECODE = "groot_n1_7_pack_inputs_v1", "groot_n1_7_vlm_encode_v1", "groot_n1_7_action_decode_v1"
OVERRIDES = ("num_inference_timesteps", "rtc_ramp_rate")  # null keeps the base's value


def resolve_folder(name: str | PathLike[str], revision: str | None = None, *, weights: bool = True, **hub: Any) -> Path:
    """The local folder of a checkpoint, given as a path or as a hub id: owner/name, or owner/name/sub-folder.

    A hub id is downloaded, or found in the local cache; without `weights`, its small files only. A repository that
    holds several checkpoints is refused before their weights are downloaded, listing them. `hub`: options of
    `huggingface_hub.snapshot_download`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    repository, subfolder = hub_parts(str(name), folder)
    options = {"revision": revision, **hub}
    root = _snapshot(repository, SMALL_FILES, None, options)
    inside = root / subfolder
    if not inside.is_dir():
        raise ToolkitError(f'{repository} has no folder "{subfolder}".{did_you_mean(subfolder, suites(root))}')
    require_config(inside, str(name))
    if weights:
        below = f"{subfolder}/" if subfolder else ""
        _snapshot(repository, [f"{below}*.safetensors"], [f"{below}*/*.safetensors"], options)
    return inside


def hub_parts(name: str, folder: Path) -> tuple[str, str]:
    """ "owner/name/a/b" to ("owner/name", "a/b"); what cannot be a hub id is a folder that is missing."""
    parts = name.rstrip("/").split("/")
    here = Path(parts[0]).is_dir()
    if len(parts) < 2 or here or name.startswith((".", "~", "/")) or any(part in ("", ".", "..") for part in parts):
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = near_folder(folder) or did_you_mean(folder.name, siblings)
        raise ToolkitError(
            f"No checkpoint folder {folder}. Give a folder that holds {CONFIG_NAME}, or a hub id (owner/name).{hint}"
        )
    return "/".join(parts[:2]), "/".join(parts[2:])


def _snapshot(repository: str, allow: list[str], ignore: list[str] | None, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=allow, ignore_patterns=ignore, **options))
    except Exception as error:
        if not is_hub_error(error):
            raise
        raise ToolkitError(hub_failure(repository, error)) from None


def is_hub_error(error: Exception) -> bool:
    """Whether the hub's client or its connection failed; the kinds have no class in common over its versions."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("huggingface_hub", "httpx", "httpx2")


def hub_failure(repository: str, error: Exception) -> str:
    """Why a repository cannot be had, and what to do: a gate, a wrong name, no network. Never shows a token."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return (
            f"{repository} is gated: accept its terms at https://huggingface.co/{repository} with your account, then "
            "make a read token of that account known here (`hf auth login`, or the environment variable HF_TOKEN)."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no such revision. Leave the revision out, or take one that its page lists."
    hint = near_folder(Path(repository))
    if isinstance(error, RepositoryNotFoundError):
        return (
            f'There is no folder "{repository}" here, and no repository of that name on the hub (or it is private: '
            f"then `hf auth login` first). Give a folder, or owner/name as its page spells it.{hint}"
        )
    return (
        f'"{repository}" is neither a local folder nor a hub repository that can be reached from here '
        f"({type(error).__name__}), nor is it whole in the local cache. Where there is internet, run "
        f"`python -m finetune.prefetch base={repository} out=DIR`, copy DIR here and give DIR.{hint}"
    )


def suites(folder: Path) -> list[str]:
    """Names of the sub-folders that are checkpoints themselves, as in GR00T-N1.7-LIBERO."""
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))


def require_config(folder: Path, name: str | None = None) -> None:
    """Refuse a folder without config.json, saying what it holds instead."""
    if (folder / CONFIG_NAME).is_file():
        return
    name = name or str(folder)
    inside = suites(folder)
    if inside:
        listed = "\n  ".join(f"{name.rstrip('/')}/{suite}" for suite in inside)
        raise ToolkitError(f"{name} holds several checkpoints, one a folder. Give one of them:\n  {listed}")
    if (folder / "adapter_config.json").is_file():
        raise ToolkitError(f"{name} is an adapter (PEFT) without the model it was trained on. {_MERGE}")
    raise ToolkitError(f"{name} holds no {CONFIG_NAME}: it is no checkpoint folder.{_half_downloaded(folder)}")


def fingerprint(folder: Path) -> str:
    """A hash by which two checkpoints differ, without reading all of their weights: of config.json, and of every weight
    file's name, size, header and 64 KiB at each of 32 places."""
    digest = hashlib.sha256((folder / CONFIG_NAME).read_bytes())
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in range(32):
                file.seek(size * place // 32)
                digest.update(file.read(65536))
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order. Refuses what is missing, unsafe or not really there."""
    if (folder / INDEX_NAME).is_file():
        names = sorted(set(weight_map(folder).values()))
    elif (folder / SINGLE_NAME).is_file():
        names = [SINGLE_NAME]
    else:
        raise ToolkitError(_no_weights(folder))
    files = [folder / name for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ToolkitError(
            f"{folder} lacks the shards {missing} that {INDEX_NAME} lists.{_half_downloaded(folder)} "
            "Download or copy them."
        )
    for path in files:
        refuse_lfs_pointer(path)
    return files


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to file name, out of the index; a name that leaves the folder is refused."""
    index = folder / INDEX_NAME
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise ToolkitError(f"{index} is damaged: it has no weight_map of file names. Copy or download it again.")
    for name in sorted(set(found.values())):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ToolkitError(
                f'{index} names the file "{name}": only safetensors files of the folder itself are read. The index is '
                "damaged or was tampered with; download the checkpoint again from a source you trust."
            )
    return found


def refuse_lfs_pointer(path: Path) -> None:
    """A clone without git-lfs leaves a note of 130 bytes in place of every large file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ToolkitError(
                f"{path} is a git-lfs pointer, not the file itself: the repository was cloned without git-lfs. Run "
                f"`git lfs pull` in {path.parent}, or download it with `hf download`."
            )


def _no_weights(folder: Path) -> str:
    """What a folder without weights holds instead."""
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    if shards:
        return (
            f"{folder} holds {shards[0]} but no {INDEX_NAME}, which says which shards there are."
            f"{_half_downloaded(folder)} Download or copy the index too."
        )
    if (folder / "adapter_model.safetensors").is_file():
        return f"{folder} holds an adapter (PEFT) only. {_MERGE}"
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} holds pickled weights only ({pickles[0]}). Pickles can run code when they are opened and are "
            "never read here. Convert them where you trust them: load the model in the project that wrote it and save "
            "it with save_pretrained(folder, safe_serialization=True)."
        )
    return (
        f"{folder} holds neither {INDEX_NAME} nor {SINGLE_NAME}: there are no weights in it.{_half_downloaded(folder)}"
    )


def _half_downloaded(folder: Path) -> str:
    """A sentence about unfinished downloads in the folder or the hub cache it belongs to; empty if there are none."""
    places = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    if not any(True for place in places for _ in place.rglob("*.incomplete")):
        return ""
    return " A download was interrupted here (*.incomplete files): start the same download again, it continues."


def read_config_json(folder: Path) -> dict[str, Any]:
    """config.json of an N1.7 checkpoint, with its base's where it is LeRobot's; anything else is refused by name."""
    require_config(folder)
    data = read_json(folder / CONFIG_NAME)
    if is_lerobot(data):
        base = architecture_folder(folder)
        of_base = read_json(base / CONFIG_NAME) if (base / CONFIG_NAME).is_file() else {}
        if of_base.get("model_type") != MODEL_TYPE:
            raise _unreadable_base(folder, str(base), f"{base} is no GR00T N1.7 in the release layout.")
        return merged_config(of_base, data)
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
    if not is_lerobot(data):
        return folder
    _refuse_other_policy(folder, data)
    base = data.get("base_model_path")
    if not isinstance(base, str) or not base:
        raise ToolkitError(
            f"{folder / 'config.json'} is a LeRobot checkpoint that names no base_model_path. Write the folder or hub "
            "id of the GR00T N1.7 it was trained from there."
        )
    try:
        return resolve_folder(base, weights=False)
    except ToolkitError as error:
        raise _unreadable_base(folder, base, str(error)) from None


def _unreadable_base(folder: Path, base: str, reason: str) -> ToolkitError:
    return ToolkitError(
        f'{folder} is a LeRobot checkpoint, which leaves its architecture to its base "{base}": {reason}\n'
        f"Where there is internet, run `python -m finetune.prefetch base={base} out=DIR`, then write DIR as "
        f"base_model_path into {folder / 'config.json'}."
    )


def _what_is(folder: Path, data: dict[str, Any]) -> str:
    """What a checkpoint is that is no N1.7, by its config.json."""
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


def is_lerobot(config: dict[str, Any]) -> bool:
    """Whether this config.json is one of LeRobot's: it names a policy type, not a model type."""
    return isinstance(config.get("type"), str) and "model_type" not in config


def _refuse_other_policy(folder: Path, config: dict[str, Any]) -> None:
    """Refuse LeRobot's other policies, and groot from before N1.7."""
    kind = config["type"]
    if kind != POLICY:
        older = " (GR00T N1.6)" if "n1d6" in kind else ""
        raise ToolkitError(
            f'{folder} is a LeRobot checkpoint of the policy "{kind}"{older}; this toolkit reads N1.7 only, '
            f'LeRobot\'s "{POLICY}". {START}'
        )
    base = str(config.get("base_model_path") or "").lower()
    if config.get("tokenizer_assets_repo") or "n1.5" in base or "n1_5" in base:
        raise ToolkitError(
            f"{folder} is a LeRobot checkpoint of GR00T N1.5 (base {config.get('base_model_path')}); this toolkit "
            f"reads N1.7 only. {START}"
        )


def merged_config(base: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any]:
    """config.json of the N1.7 inside: the base's keys, LeRobot's defaults for those it lacks, the policy's choices."""
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


def processor_kwargs(folder: Path, base: dict[str, Any]) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    """The base's processor_kwargs with the checkpoint's own settings, the trained tag, and that tag's statistics.

    Statistics are None where LeRobot normalised with a data set's flat vectors: they name no groups of joints, so the
    tag is taken out and can only be trained again. LeRobot's change of sign for LIBERO's gripper belongs to the
    simulator and is not applied here.
    """
    files = [folder / name for name in PIPELINES if (folder / name).is_file()]
    steps = [step for file in files for step in read_json(file).get("steps", [])]
    settings = {str(step.get("registry_name")): step.get("config") or {} for step in steps}
    pack, encode, decode = (settings.get(name, {}) for name in (PACK, ENCODE, DECODE))
    tag = str(pack.get("embodiment_tag") or read_json(folder / "config.json").get("embodiment_tag", ""))
    kwargs = {**base, "modality_configs": dict(base.get("modality_configs", {}))}
    shared = ("formalize_language", "clip_outliers", "state_dropout_prob")
    kwargs |= {key: pack[key] for key in shared if key in pack}
    image = ("image_crop_size", "image_target_size", "shortest_image_edge", "crop_fraction")
    kwargs |= {key: encode[key] for key in (*image, "use_albumentations", "letter_box_transform") if key in encode}
    statistics, modality = pack.get("raw_stats"), pack.get("modality_config")
    complete = isinstance(modality, dict) and all(  # data-set fine-tunes leave parts of it out
        {"modality_keys", "delta_indices"} <= set(modality.get(name) or {})
        for name in ("video", "state", "action", "language")
    )
    if not statistics or not complete:
        kwargs["modality_configs"].pop(tag, None)
        return kwargs, tag, None
    kwargs["modality_configs"][tag] = modality
    kwargs |= {key: decode[key] for key in ("use_percentiles", "use_relative_action") if key in decode}
    return kwargs, tag, statistics
