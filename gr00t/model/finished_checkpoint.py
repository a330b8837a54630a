"""What a finished checkpoint says of itself, and proof that it is whole.

The manifest lists size and hash of every file, so that a copy can prove itself. `verify_checkpoint` needs none: it
reads JSON files and the headers of shards, no weight, and builds the model on the meta device only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.errors import ToolkitError, near_folder
from gr00t.file_reading import files_below, parse_json, read_json, read_text
from gr00t.file_replacement import file_sha256, write_json
from gr00t.model.checkpoint_folder import (
    INDEX_NAME,
    original_name,
    refuse_lfs_pointer,
    weight_files,
    weight_map,
)
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import LM_HEAD, StoredTensor, check_tensors, read_config, read_headers

MANIFEST = Path("experiment_cfg") / "manifest.json"
# What checkpoints hold that were written before there was a manifest.
_ALWAYS = ("config.json", "processor_config.json", "statistics.json", "embodiment_id.json")
_WEIGHTS = ".safetensors"
_TERMS = ("LICENSE*", "LICENCE*", "NOTICE*")
_BESIDE = ("*.safetensors", "*.json", "*.jinja", "*.txt", "README.md", ".gitattributes", *_TERMS)
_SHOWN = 6  # differences from a manifest in one message


def read_processor(checkpoint: Path) -> Gr00tN1d7Processor:
    """Its processor; a folder that is no complete checkpoint raises ToolkitError."""
    if not checkpoint.is_dir():
        raise ToolkitError(
            f"checkpoint={checkpoint} does not exist. Fine-tune first (launch_finetune_local.py), or give the folder "
            f"of a finished checkpoint, checkpoint=FOLDER.{near_folder(checkpoint)}"
        )
    read_config(checkpoint)
    weight_files(checkpoint)
    return Gr00tN1d7Processor.from_pretrained(checkpoint)


def read_trained_on(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint of this toolkit says about its dataset; {} for others."""
    path = checkpoint / "experiment_cfg" / "dataset.json"
    return read_json(path) if path.is_file() else {}


def write_manifest(folder: Path) -> None:
    """Write experiment_cfg/manifest.json over all other files; the last step of making a checkpoint."""
    described = {
        name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for name, path in _files(folder).items()
    }
    (folder / MANIFEST).parent.mkdir(exist_ok=True)
    write_json(folder / MANIFEST, {"files": described})


def verify_manifest(folder: Path, *, added: bool = False) -> None:
    """Compare every file with the manifest, which reads them all; a missing, changed or added one raises ToolkitError.

    So does a checkpoint without a manifest: nothing can be said of it. `added` allows further files.
    """
    if not (folder / MANIFEST).is_file():
        raise ToolkitError(
            f"{folder} has no {MANIFEST}, so its files cannot be verified: it was written by an earlier version or by "
            "another project. Leave verify out, or fetch it with `python -m finetune.prefetch`, which writes one."
        )
    listed, found = _listed(folder), _files(folder)
    wrong = [f"{name} is missing" for name in sorted(listed.keys() - found.keys())]
    wrong += [] if added else [f"{name} is not listed" for name in foreign_files(folder) if not _of_macos(name)]
    for name in sorted(listed.keys() & found.keys()):
        path, described = found[name], listed[name]
        if path.stat().st_size != described.get("bytes") or file_sha256(path) != described.get("sha256"):
            wrong.append(f"{name} has changed")
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        lines = "\n  ".join([*wrong[:_SHOWN], *more])
        raise ToolkitError(
            f"{folder} is not what {MANIFEST} says:\n  {lines}\nCopy or fetch it again from where it is whole."
        )


def foreign_files(folder: Path) -> list[str]:
    """Files of a checkpoint's folder that its manifest does not list, or, without one, that no checkpoint has."""
    found = _files(folder)
    if (folder / MANIFEST).is_file():
        listed = _listed(folder)
        return [name for name in found if name not in listed]
    return [name for name in found if not _is_usual(name)]


def refuse_foreign(folder: Path) -> None:
    """Raise ToolkitError for a folder that holds anything but a checkpoint, whole or damaged: what would replace it
    would delete what nobody meant."""
    found = _files(folder) if folder.is_dir() else {}
    listed: set[str] = set()
    with suppress(ToolkitError):  # a damaged manifest is one of the reasons to replace it
        listed = set(_listed(folder)) if (folder / MANIFEST).is_file() else set()
    known = [name for name in found if name in listed or _is_usual(name) or _is_beside(name) or _of_macos(name)]
    others = sorted(set(found) - set(known))
    if not others and found and not any(name == "config.json" or name.endswith(_WEIGHTS) for name in known):
        others = sorted(found)
    if others or (folder.exists() and not folder.is_dir()):
        what = f"holds {others[0]}{f' and {len(others) - 1} more' * (len(others) > 1)}" if others else "is a file"
        raise ToolkitError(
            f"{folder} {what}, which is no part of a checkpoint, and is never replaced. Give another folder, "
            "out=FOLDER."
        )


def _is_beside(name: str) -> bool:
    """Whether a base is published with it, or finetune.prefetch writes it, at the top of its folder."""
    is_cache = name.startswith(".cache/huggingface/")
    return is_cache or ("/" not in name and any(fnmatch(name, pattern) for pattern in _BESIDE))


def _of_macos(name: str) -> bool:
    """Whether macOS wrote it beside a copy on a foreign disk."""
    return PurePosixPath(name).name.startswith("._") or PurePosixPath(name).name == ".DS_Store"


def _is_usual(name: str) -> bool:
    weights = name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))
    return name in _ALWAYS or ("/" not in name and weights) or name.startswith(("processor/", "experiment_cfg/"))


def _listed(folder: Path) -> dict[str, Any]:
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict) or not all(isinstance(described, dict) for described in files.values()):
        raise ToolkitError(f"{folder / MANIFEST} is damaged: it lists no files. Copy it again.")
    return files


def _files(folder: Path) -> dict[str, Path]:
    """Everything below the folder but folders and the manifest, sorted; links count as what they are called."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {path.relative_to(folder).as_posix(): path for path in sorted(found) if path != folder / MANIFEST}


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
    for path in sorted(files_below(folder)):
        if path.suffix in (".json", ".jinja", ".txt") and path.is_file():
            refuse_lfs_pointer(path)
            if path.suffix == ".json":
                parse_json(read_text(path), path)
    stored = read_headers(folder)
    if (folder / INDEX_NAME).is_file():
        _check_index(folder, stored)
    model = Gr00tN1d7.without_weights(folder, config)
    wanted = model.state_dict()
    check_tensors(stored, wanted, folder)
    processor = Gr00tN1d7Processor.from_pretrained(folder)
    check_fit(processor, model, folder)
    return CheckpointSummary(
        parameters=sum(tensor.numel() for tensor in wanted.values()),
        weight_bytes=sum(path.stat().st_size for path in files),
        shards=len(files),
        tags=sorted(processor.files.statistics),
    )


def check_fit(processor: Gr00tN1d7Processor, model: Gr00tN1d7, folder: Path, tag: str | None = None) -> None:
    """Refuse a tokenizer, processor_config.json or embodiment_id.json of another model; and a robot, `tag`, whose
    states have another number of frames than the model reads."""
    backbone, vlm = model.backbone_config, processor.vlm
    own, expected = vlm.image_token_id, backbone.image_token_id
    known: int = getattr(backbone.text_config, "vocab_size")  # noqa: B009 - typed as if it may be a dict
    if own != expected or vlm.largest_id >= known:
        raise ToolkitError(
            f"{vlm.folder}: the image token has the id {own}, but the backbone of {folder} expects {expected}, of "
            f"{known} tokens. Take the tokenizer of {model.config.model_name}."
        )
    for name in ("max_state_dim", "max_action_dim"):
        ours, models = getattr(processor.config, name), getattr(model.config, name)
        if ours != models:
            raise ToolkitError(
                f"{folder / 'processor_config.json'}: {name} is {ours}, but config.json says {models}: the files are "
                "from different checkpoints. Copy them again."
            )
    frames = 0 if tag is None else len(processor.modality_config(tag)["state"].delta_indices)
    if tag is not None and frames != model.config.state_history_length:
        raise ToolkitError(
            f"{tag}: the states of the modality configuration have {frames} frames (delta_indices), and {folder} reads "
            f"{model.config.state_history_length} (state_history_length). Give as many delta_indices, such as [0]."
        )
    most = model.config.max_num_embodiments
    ids = processor.embodiment_ids
    wrong = [tag for tag in processor.config.modality_configs if not 0 <= ids.get(tag, 0) < most]
    if wrong:
        raise ToolkitError(
            f"{folder / 'embodiment_id.json'}: {wrong[0]} has the index {ids[wrong[0]]}, and the "
            f"model has {most} embodiments. Copy the checkpoint's own file."
        )


def _check_index(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """The index names exactly the stored tensors, each in its file, and their size."""
    listed = {original_name(name): file for name, file in weight_map(folder).items()}
    actual = {name: tensor.file.name for name, tensor in stored.items()}
    wrong = sorted(name for name in listed.keys() | actual.keys() if listed.get(name) != actual.get(name))
    if wrong:
        raise ToolkitError(
            f'{folder / INDEX_NAME} puts "{wrong[0]}" into {listed.get(wrong[0])}, but it lies in '
            f"{actual.get(wrong[0])}: index and shards are from different checkpoints. Download it again."
        )
    total = (read_json(folder / INDEX_NAME).get("metadata") or {}).get("total_size")
    size = sum(tensor.size for tensor in stored.values())
    tied = stored[LM_HEAD].size if LM_HEAD in stored else 0  # some writers count a tied tensor once
    if total is not None and total not in (size, size - tied):
        raise ToolkitError(
            f"{folder / INDEX_NAME} speaks of {total:,} bytes, but the shards hold {size:,}: index and shards are from "
            "different checkpoints. Download it again."
        )
