"""Proof that a checkpoint folder is whole, from file headers alone: no weight is read, nothing is built but on meta."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.errors import ToolkitError
from gr00t.files import parse_json, read_json
from gr00t.model.backbone_config import resolve_backbone
from gr00t.model.checkpoint import EMBEDDINGS, LM_HEAD, check_tensor, read_config, refuse_missing, stored_twice
from gr00t.model.checkpoint_folder import INDEX_NAME, refuse_lfs_pointer, weight_files, weight_map
from gr00t.model.checkpoint_kind import architecture_folder
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.lerobot import original_name

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class StoredTensor:
    """What a shard's header says of a tensor."""

    file: str
    shape: tuple[int, ...]
    size: int  # bytes


@dataclass(frozen=True)
class CheckpointSummary:
    """What a whole checkpoint holds: parameters of the model, bytes of its weight files, tags with statistics."""

    parameters: int
    weight_bytes: int
    shards: int
    tags: list[str]


def verify_checkpoint(folder: Path) -> CheckpointSummary:
    """Raise ToolkitError unless every file is there and fits: config, shards, index, tensors, processor, tokenizer."""
    config = read_config(folder)
    files = weight_files(folder)
    _check_small_files(folder)
    stored = read_headers(folder)
    _check_index(folder, stored)
    model = _check_tensors(folder, stored)
    processor = Gr00tN1d7Processor.from_pretrained(folder)
    own, expected = processor.vlm.image_token_id, model.backbone_config.image_token_id
    if own != expected:
        raise ToolkitError(
            f"{processor.vlm.folder}: the image token has the id {own}, but the backbone of {folder} expects "
            f"{expected}. Take the tokenizer of {config.model_name}."
        )
    return CheckpointSummary(
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        weight_bytes=sum(path.stat().st_size for path in files),
        shards=len(files),
        tags=sorted(processor.files.statistics),
    )


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every stored tensor under the original's name; a file that is cut short is refused."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - a handle, not a dict
                    part = shard.get_slice(name)
                    shape = tuple(part.get_shape())
                    if original_name(name) in found:
                        raise stored_twice(folder, name)
                    size = prod(shape) * WIDTHS.get(part.get_dtype(), 0)
                    found[original_name(name)] = StoredTensor(path.name, shape, size)
        except (SafetensorError, OSError) as error:
            raise ToolkitError(f"{path} is damaged or cut short ({error}). Download it anew.") from None
    return found


def _check_small_files(folder: Path) -> None:
    """JSON files are JSON, and nothing is a stand-in of git-lfs."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".jinja", ".txt") and path.is_file():
            refuse_lfs_pointer(path)
            if path.suffix == ".json":
                parse_json(path.read_text(encoding="utf-8"), path)


def _check_index(folder: Path, stored: dict[str, StoredTensor]) -> None:
    """The index names exactly the stored tensors, each in its file, and their size."""
    if not (folder / INDEX_NAME).is_file():
        return
    listed = {original_name(name): file for name, file in weight_map(folder).items()}
    wrong = sorted(name for name in listed.keys() | stored.keys() if listed.get(name) != _file(stored, name))
    if wrong:
        raise ToolkitError(
            f'{folder / INDEX_NAME} puts "{wrong[0]}" into {listed.get(wrong[0])}, but it lies in '
            f"{_file(stored, wrong[0])}: index and shards are from different checkpoints. Download it anew."
        )
    total = (read_json(folder / INDEX_NAME).get("metadata") or {}).get("total_size")
    size = sum(tensor.size for tensor in stored.values())
    tied = stored[LM_HEAD].size if LM_HEAD in stored else 0  # some writers count a tied tensor once
    if total is not None and total not in (size, size - tied):
        raise ToolkitError(
            f"{folder / INDEX_NAME} speaks of {total:,} bytes, but the shards hold {size:,}: index and shards are from "
            "different checkpoints. Download it anew."
        )


def _file(stored: dict[str, StoredTensor], name: str) -> str | None:
    return stored[name].file if name in stored else None


def _check_tensors(folder: Path, stored: dict[str, StoredTensor]) -> Gr00tN1d7:
    """The model that config.json describes has exactly these tensors."""
    config = read_config(folder)
    with torch.device("meta"):
        model = Gr00tN1d7(config, resolve_backbone(config.model_name, architecture_folder(folder)))
    wanted = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    head = shapes.pop(LM_HEAD, None)
    if head is not None:
        shapes.setdefault(EMBEDDINGS, head)
    for name, shape in shapes.items():
        check_tensor(name, shape, wanted, folder)
    refuse_missing(set(wanted) - set(shapes), folder)
    return model
