"""Checkpoint files of the model: read and write config.json and the safetensors shards.

Layout (the release's): config.json, model-0000x-of-0000y.safetensors, model.safetensors.index.json. Read besides: one
model.safetensors; with or without the tied copy of lm_head; LeRobot's checkpoints of N1.7. Finding and telling apart
is in checkpoint_folder and checkpoint_kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gr00t.errors import ToolkitError
from gr00t.files import open_to_others
from gr00t.model.backbone_config import SAVED_CONFIG, backbone_json, resolve_backbone
from gr00t.model.checkpoint_folder import CONFIG_NAME, INDEX_NAME, weight_files
from gr00t.model.checkpoint_folder import resolve_folder as resolve_folder
from gr00t.model.checkpoint_kind import architecture_folder, read_config_json
from gr00t.model.config import MODEL_TYPE, Gr00tN1d7Config
from gr00t.model.lerobot import original_name

if TYPE_CHECKING:
    from gr00t.model.gr00t_n1d7 import Gr00tN1d7

MAX_SHARD_BYTES = 5_000_000_000
LM_HEAD = "backbone.model.lm_head.weight"
EMBEDDINGS = "backbone.model.model.language_model.embed_tokens.weight"
ROTARY_BUFFER = "inv_freq"


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
    config = Gr00tN1d7Config.from_dict(read_config_json(folder))
    config._name_or_path = str(architecture_folder(folder))
    return config


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint under the original's name, file by file.

    The tied lm_head comes out as what it is, the token embeddings, and only where those are not stored themselves:
    LeRobot keeps either of the two.
    """
    files = weight_files(folder)
    stored = {original_name(name) for path in files for name in tensor_names(path)}
    for path in files:
        with _open(path) as shard:
            for stored_name in shard.keys():  # noqa: SIM118 - a handle, not a dict
                name = original_name(stored_name)
                if name != LM_HEAD:
                    yield name, _get(shard, stored_name, path)
                elif EMBEDDINGS not in stored:
                    yield EMBEDDINGS, _get(shard, stored_name, path)


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in one file, as stored."""
    with _open(path) as shard:
        return list(shard.keys())


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    with handle as shard:
        yield shard


def _get(shard: Any, name: str, path: Path) -> Tensor:
    try:
        tensor: Tensor = shard.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    return tensor


def _damaged(path: Path, error: Exception) -> ToolkitError:
    return ToolkitError(f"{path} is damaged or cut short ({error}). Download it anew.")


def fingerprint(folder: Path) -> str:
    """A hash that tells two checkpoints apart without reading all of their weights: config.json, and of every weight
    file its name, size, header and 64 KiB from each of 32 places."""
    digest = hashlib.sha256((folder / CONFIG_NAME).read_bytes())
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
    backbone = resolve_backbone(config.model_name, architecture_folder(folder))
    with torch.device("meta"):
        model = cls(config, backbone)
    if tune is None:
        tune = {key: getattr(config, f"tune_{key}") for key in _TUNE_KEYS}
    model.set_trainable(**tune)
    wanted = model.state_dict()
    trained = {name for name, _ in model.trained_parameters()} if trained_dtype else set()
    found: dict[str, Tensor] = {}
    for name, tensor in read_tensors(folder):
        check_tensor(name, tensor.shape, wanted, folder)
        if name in found:
            raise ToolkitError(
                f'{folder}: the tensor "{name}" is stored twice. Files of two checkpoints are mixed there.'
            )
        target = trained_dtype if name in trained else dtype
        # a copy: the file may be replaced while the model lives
        found[name] = tensor.to(dtype=target or tensor.dtype, copy=True)
    refuse_missing(set(wanted) - set(found), folder)
    model.load_state_dict(found, strict=True, assign=True)
    model.set_trainable(**tune)  # assigned tensors do not carry the flag over
    model.backbone.refresh_rotary()
    model.backbone.check_rotary()
    return model.eval()


_TUNE_KEYS = ("projector", "diffusion_model", "vlln", "llm", "visual", "top_llm_layers")


def check_tensor(name: str, shape: Sequence[int], wanted: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a tensor that the model does not have, or has in another shape."""
    if name not in wanted:
        raise ToolkitError(
            f'{folder}: the tensor "{name}" belongs to no part of the model that config.json describes. '
            "The weights and config.json are from different checkpoints."
        )
    if tuple(shape) != tuple(wanted[name].shape):
        raise ToolkitError(
            f'{folder}: "{name}" has shape {list(shape)}, but config.json describes '
            f"{list(wanted[name].shape)}. The weights and config.json are from different checkpoints."
        )


def stored_twice(folder: Path, name: str) -> ToolkitError:
    """For a tensor that lies in two files."""
    return ToolkitError(
        f'{folder}: "{name}" is stored twice, so files of two checkpoints are mixed there. Download or copy it anew.'
    )


def refuse_missing(missing: set[str], folder: Path) -> None:
    """Refuse a checkpoint without these tensors: nothing is ever initialised in their place."""
    if missing:
        names = sorted(missing)
        shown = "\n  ".join(names[:8]) + ("\n  ..." if len(names) > 8 else "")
        raise ToolkitError(
            f"{folder} lacks {len(names)} tensors of the model:\n  {shown}\nDownload or copy the checkpoint anew."
        )


def write_model(model: Gr00tN1d7, folder: Path, *, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    """Write config, shards, index and the backbone's architecture into `folder` (made when missing).

    Raises ToolkitError, before anything is written, for weights that are not finite in `dtype`."""
    tensors = release_tensors(model, dtype)
    broken = not_finite(tensors.items(), dtype)
    if broken:
        raise ToolkitError(
            f"{len(broken)} tensors of the model hold NaN or infinite values{f' in {dtype}' if dtype else ''}, first "
            f"{broken[0]}: {folder} is not written. Take an earlier checkpoint, or a base whose weights are whole."
        )
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards({name: t.numel() * _width(t, dtype) for name, t in tensors.items()}, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = {n: tensors[n].detach().to("cpu", dtype or tensors[n].dtype).contiguous() for n in names}
        if LM_HEAD in part and EMBEDDINGS in part:  # safetensors refuses tensors that share memory
            part[LM_HEAD] = part[LM_HEAD].clone()
        save_file(part, folder / file_name, metadata={"format": "pt"})
        open_to_others(folder / file_name)
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
    _write_json(folder / CONFIG_NAME, data)
    saved = folder / SAVED_CONFIG
    saved.parent.mkdir(parents=True, exist_ok=True)
    _write_json(saved, backbone_json(model.backbone_config))


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
    path.write_text(json.dumps(data, indent=2, sort_keys=path.name == CONFIG_NAME) + "\n")
