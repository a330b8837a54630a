"""Checkpoint files of the model: read and write config.json and the safetensors shards.

Layout (the release's): config.json, model-0000x-of-0000y.safetensors, model.safetensors.index.json. Read besides: one
model.safetensors; with or without the tied copy of lm_head; LeRobot's checkpoints of N1.7. Which files there are, and
what kind of checkpoint they make, checkpoint_folder finds out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3VLConfig

from gr00t.errors import ToolkitError
from gr00t.file_reading import check_types, parsing, refuse_absurd
from gr00t.file_replacement import open_to_others, write_json
from gr00t.model.architecture import SAVED_CONFIG, backbone_json
from gr00t.model.checkpoint_folder import (
    CONFIG_NAME,
    INDEX_NAME,
    MODEL_TYPE,
    architecture_folder,
    original_name,
    read_config_json,
    weight_files,
)
from gr00t.model.config import Gr00tN1d7Config

MAX_SHARD_BYTES = 5_000_000_000
LM_HEAD = "backbone.model.lm_head.weight"
EMBEDDINGS = "backbone.model.model.language_model.embed_tokens.weight"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating dtype from itself or its name; None and "auto" mean: as stored."""
    if dtype is None or dtype == "auto":
        return None
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ToolkitError(f'"{dtype}" is no dtype for weights; use "bfloat16" or "float32".')
    return found


def not_finite(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> list[str]:
    """Names of the tensors that hold NaN or infinite values, as they are or in `dtype`."""
    return [name for name, tensor in tensors if not tensor.to(dtype or tensor.dtype).isfinite().all()]


def read_config(folder: Path) -> Gr00tN1d7Config:
    """The configuration of an N1.7 checkpoint, of the original or of LeRobot; anything else is refused by name."""
    data = read_config_json(folder)
    with parsing(folder / CONFIG_NAME):
        check_types(Gr00tN1d7Config, data)
        refuse_absurd({key: value for key, value in data.items() if hasattr(Gr00tN1d7Config, key)})
        config = Gr00tN1d7Config.from_dict(data)
        config.check()
        config.to_dict()  # later, nothing says which file it was
    config._name_or_path = str(architecture_folder(folder))
    return config


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """The handle of a safetensors file; one that is damaged, when it is opened or read from, raises ToolkitError."""
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except ToolkitError:
        raise
    except Exception as error:
        raise ToolkitError(f"{path} is damaged or cut short ({error}). Download it again.") from None


@dataclass(frozen=True)
class StoredTensor:
    """What a shard's header says of a tensor; `name` is the one it has there, size in bytes."""

    file: Path
    name: str
    shape: tuple[int, ...]
    size: int


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every stored tensor of a checkpoint under the original's name, from the headers of its files."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        with open_shard(path) as shard:
            for name in shard.keys():  # noqa: SIM118 - a handle, not a dict
                if original_name(name) in found:
                    raise ToolkitError(
                        f'{folder}: "{original_name(name)}" is stored twice: files of two checkpoints are mixed there. '
                        "Download or copy it again."
                    )
                part = shard.get_slice(name)
                shape = tuple(part.get_shape())
                size = prod(shape) * _BYTES.get(part.get_dtype(), 0)
                found[original_name(name)] = StoredTensor(path, name, shape, size)
    return found


def untied(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors without the tied lm_head, which are the token embeddings where those are not stored themselves:
    LeRobot keeps either of the two."""
    tied = {EMBEDDINGS: stored[LM_HEAD]} if LM_HEAD in stored else {}
    return {name: tensor for name, tensor in (tied | stored).items() if name != LM_HEAD}


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint under the original's name, file by file; without the tied lm_head."""
    stored = untied(read_headers(folder))
    for path in weight_files(folder):
        with open_shard(path) as shard:
            for name, tensor in stored.items():
                if tensor.file == path:
                    yield name, shard.get_tensor(tensor.name)


def read_weights(
    folder: Path, wanted: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype | None]
) -> dict[str, Tensor]:
    """The checkpoint's tensors, copied out of its files, which may be replaced while the model lives.

    dtypes: of each tensor; None keeps the stored one. Raises ToolkitError unless they are those `wanted`.
    """
    check_tensors(read_headers(folder), wanted, folder)
    return {name: tensor.to(dtypes[name] or tensor.dtype, copy=True) for name, tensor in read_tensors(folder)}


def check_tensors(stored: dict[str, StoredTensor], wanted: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a checkpoint that does not hold exactly the tensors `wanted` of a model, in their shapes: nothing is ever
    initialised in the place of one that is missing."""
    found = untied(stored)
    mixed = "The weights and config.json are from different checkpoints."
    for name, tensor in found.items():
        if name not in wanted:
            raise ToolkitError(
                f'{folder}: the tensor "{name}" belongs to no part of the model that config.json describes. {mixed}'
            )
        shape, described = list(tensor.shape), list(wanted[name].shape)
        if shape != described:
            raise ToolkitError(f'{folder}: "{name}" has shape {shape}, but config.json describes {described}. {mixed}')
    missing = sorted(set(wanted) - set(found))
    if missing:
        shown = "\n  ".join(missing[:8]) + ("\n  ..." if len(missing) > 8 else "")
        raise ToolkitError(
            f"{folder} lacks {len(missing)} tensors of the model:\n  {shown}\nDownload or copy the checkpoint again."
        )


def write_weights(
    state: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    """Write a model's state_dict into `folder` (made when missing) as shards and their index.

    dtype: of all tensors; None keeps each one's own. Raises ToolkitError, before anything is written, for weights that
    are not finite in `dtype`.
    """
    tensors = release_tensors(state)
    broken = not_finite(tensors.items(), dtype)
    if broken:
        raise ToolkitError(
            f"{len(broken)} tensors of the model hold NaN or infinite values{f' in {dtype}' if dtype else ''}, first "
            f"{broken[0]}: {folder} is not written. Take an earlier checkpoint, or a base whose weights are whole."
        )
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: t.numel() * (dtype or t.dtype).itemsize for name, t in tensors.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = {n: tensors[n].detach().to("cpu", dtype or tensors[n].dtype).contiguous() for n in names}
        if LM_HEAD in part and EMBEDDINGS in part:  # safetensors refuses tensors that share memory
            part[LM_HEAD] = part[LM_HEAD].clone()
        save_file(part, folder / file_name, metadata={"format": "pt"})
        open_to_others(folder / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX_NAME, index)


def write_config(config: Gr00tN1d7Config, backbone: Qwen3VLConfig, folder: Path, dtype: torch.dtype) -> None:
    """config.json with every key, and the backbone's architecture where `resolve_backbone` looks first."""
    data = config.to_dict()
    data["architectures"] = [MODEL_TYPE]
    data["dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / CONFIG_NAME, data, sort_keys=True)
    (folder / SAVED_CONFIG).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / SAVED_CONFIG, backbone_json(backbone), sort_keys=True)


def release_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state_dict in the release's order, with the tied copy of lm_head behind the language model."""
    backbone = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    head = {name: tensor for name, tensor in state.items() if name not in backbone}
    return {**backbone, LM_HEAD: state[EMBEDDINGS], **head}


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
