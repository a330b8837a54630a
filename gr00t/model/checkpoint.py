"""Checkpoint files of the model: find, check, read and write config.json and the safetensors shards.

Layout (the release's): config.json, model-0000x-of-0000y.safetensors, model.safetensors.index.json. Read besides:
one model.safetensors; with or without the tied copy of lm_head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gr00t.errors import ToolkitError
from gr00t.files import read_json
from gr00t.model.backbone_config import SAVED_CONFIG, resolve_backbone
from gr00t.model.config import MODEL_TYPE, Gr00tN1d7Config

if TYPE_CHECKING:
    from gr00t.model.gr00t_n1d7 import Gr00tN1d7

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000
LM_HEAD = "backbone.model.lm_head.weight"
EMBEDDINGS = "backbone.model.model.language_model.embed_tokens.weight"
ROTARY_BUFFER = "inv_freq"


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype from itself or its name; None and "auto" mean: as stored."""
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype if isinstance(dtype, torch.dtype) else None
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype):
        raise ToolkitError(f'"{dtype}" is no dtype; use "bfloat16" or "float32".')
    return found


def resolve_folder(
    name: str | PathLike[str],
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """A local checkpoint folder for a path or hub id; a hub id is downloaded (or found in the cache)."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") != 1:
        raise ToolkitError(f"No checkpoint folder {folder}. Give a folder that holds config.json, or a hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"],
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ToolkitError(
            f'"{name}" is neither a local folder nor a hub repository that can be reached from here '
            f"({type(error).__name__}). On a machine without internet, download it elsewhere "
            f"(hf download {name} --local-dir DIR) and give DIR."
        ) from None


def read_config(folder: Path) -> Gr00tN1d7Config:
    """config.json of an N1.7 checkpoint; anything else is refused, saying what it is."""
    path = folder / "config.json"
    if not path.is_file():
        raise ToolkitError(f"{folder} holds no config.json: it is no checkpoint folder.")
    data = read_json(path)
    kind = data.get("model_type") or data.get("type")
    if kind != MODEL_TYPE:
        raise ToolkitError(_what_is(folder, data, kind))
    config = Gr00tN1d7Config.from_dict(data)
    config._name_or_path = str(folder)
    return config


def _what_is(folder: Path, data: dict[str, Any], kind: Any) -> str:
    older = {"gr00t_n1": "N1", "gr00t_n1_5": "N1.5", "Gr00tN1d6": "N1.6"}
    if kind in older:
        return (
            f"{folder} is a GR00T {older[kind]} checkpoint; this toolkit reads N1.7 only. "
            "Start from nvidia/GR00T-N1.7-3B."
        )
    if str(kind).startswith("qwen3_vl"):
        return (
            f"{folder} is a plain Qwen3-VL, the backbone alone, without an action head. "
            "Start from nvidia/GR00T-N1.7-3B, or make a base with `python -m finetune.create_base`."
        )
    return (
        f'{folder} is no GR00T N1.7 checkpoint: its config.json says model_type "{kind}", not "{MODEL_TYPE}". '
        "Give the folder of an N1.7 checkpoint."
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order; a missing shard is named."""
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (KeyError, AttributeError):
            raise ToolkitError(f"{index} is damaged. Copy or download it anew.") from None
        shards = [folder / Path(name).name for name in names]
        missing = [p.name for p in shards if not p.is_file()]
        if missing:
            raise ToolkitError(f"{folder} lacks the shards {missing} that {INDEX_NAME} lists. Download it anew.")
        return shards
    if (folder / SINGLE_NAME).is_file():
        return [folder / SINGLE_NAME]
    raise ToolkitError(f"{folder} holds neither {INDEX_NAME} nor {SINGLE_NAME}: there are no weights in it.")


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, file by file; the tied copy of lm_head is left out."""
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - a handle, not a dict
                    if name != LM_HEAD:
                        yield name, shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ToolkitError(f"{path} is damaged or cut short ({error}). Download it anew.") from None


def fingerprint(folder: Path) -> str:
    """A hash that tells two checkpoints apart without reading all of their weights: config.json, and of every weight
    file its name, size, header and 64 KiB from each of 32 places."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in range(32):
                file.seek(size * place // 32)
                digest.update(file.read(65536))
    return digest.hexdigest()


def load_model(
    cls: type[Gr00tN1d7],
    folder: Path,
    *,
    config: Gr00tN1d7Config | None,
    dtype: torch.dtype | None,
    trained_dtype: torch.dtype | None,
    tune: dict[str, Any] | None,
) -> Gr00tN1d7:
    """Build the model on the meta device and give it the checkpoint's tensors, copied out of the files."""
    config = config or read_config(folder)
    backbone = resolve_backbone(config.model_name, folder)
    with torch.device("meta"):
        model = cls(config, backbone)
    if tune is None:
        tune = {key: getattr(config, f"tune_{key}") for key in _TUNE_KEYS}
    model.set_trainable(**tune)
    wanted = model.state_dict()
    trained = {name for name, _ in model.trained_parameters()} if trained_dtype else set()
    found: dict[str, Tensor] = {}
    for name, tensor in read_tensors(folder):
        _check_tensor(name, tensor, wanted, folder)
        target = trained_dtype if name in trained else dtype
        # a copy: the file may be replaced while the model lives
        found[name] = tensor.to(dtype=target or tensor.dtype, copy=True)
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise ToolkitError(_names(f"{folder} lacks {len(missing)} tensors of the model", missing))
    model.load_state_dict(found, strict=True, assign=True)
    model.set_trainable(**tune)  # assigned tensors do not carry the flag over
    model.backbone.refresh_rotary()
    model.backbone.check_rotary()
    return model.eval()


_TUNE_KEYS = ("projector", "diffusion_model", "vlln", "llm", "visual", "top_llm_layers")


def _check_tensor(name: str, tensor: Tensor, wanted: dict[str, Tensor], folder: Path) -> None:
    if name not in wanted:
        raise ToolkitError(
            f'{folder}: the tensor "{name}" belongs to no part of the model that config.json describes. '
            "The weights and config.json are from different checkpoints."
        )
    if tensor.shape != wanted[name].shape:
        raise ToolkitError(
            f'{folder}: "{name}" has shape {list(tensor.shape)}, but config.json describes '
            f"{list(wanted[name].shape)}. The weights and config.json are from different checkpoints."
        )


def _names(what: str, names: list[str]) -> str:
    shown = "\n  ".join(names[:8]) + ("\n  ..." if len(names) > 8 else "")
    return f"{what}:\n  {shown}\nDownload or copy the checkpoint anew."


def write_model(model: Gr00tN1d7, folder: Path, *, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    """Write config, shards, index and the backbone's architecture into `folder` (made when missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = release_tensors(model, dtype)
    shards = plan_shards({name: t.numel() * _width(t, dtype) for name, t in tensors.items()}, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = {n: tensors[n].detach().to("cpu", dtype or tensors[n].dtype).contiguous() for n in names}
        if LM_HEAD in part and EMBEDDINGS in part:  # safetensors refuses tensors that share memory
            part[LM_HEAD] = part[LM_HEAD].clone()
        save_file(part, folder / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file_name))
    total = sum(t.numel() * _width(t, dtype) for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX_NAME, index)
    write_config(model, folder, dtype)


def write_config(model: Gr00tN1d7, folder: Path, dtype: torch.dtype | None) -> None:
    """config.json with every key, and the backbone's architecture where `resolve_backbone` looks first."""
    data = model.config.to_dict()
    data["architectures"] = [MODEL_TYPE]
    data["dtype"] = str(dtype or next(model.parameters()).dtype).removeprefix("torch.")
    _write_json(folder / "config.json", data)
    saved = folder / SAVED_CONFIG
    saved.parent.mkdir(parents=True, exist_ok=True)
    _write_json(saved, model.backbone_config.to_dict())


def release_tensors(model: Gr00tN1d7, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors in the release's order, with the tied copy of lm_head behind the language model."""
    tensors: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        (tensors if name.startswith("backbone.") else head)[name] = tensor
    tensors[LM_HEAD] = tensors[EMBEDDINGS]
    return {**tensors, **head}


def plan_shards(sizes: dict[str, int], max_bytes: int) -> list[list[str]]:
    """Names in order, cut into runs of at most `max_bytes` (a larger tensor gets a shard of its own)."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _width(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return (dtype or tensor.dtype).itemsize


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=path.name == "config.json") + "\n")
