"""Bring a base checkpoint and its tokenizer to a folder for nodes without internet, and prove that it is whole.

    python -m finetune.prefetch base=nvidia/GR00T-N1.7-3B out=checkpoints/base/GR00T-N1.7-3B

A broken-off download goes on when the command is started again; `out` appears only when everything is there, and
says of which repository and revision it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config import PrefetchConfig
from finetune.script import run_main

if TYPE_CHECKING:
    from finetune.prefetched import Origin
    from finetune.sources import Source
    from gr00t.model.verify import CheckpointSummary

WEIGHTS = "*.safetensors"
SMALL = ("*.json", "*.jinja", "*.txt")
TERMS = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*")  # a release of what is tuned from it tells them
ORIGIN = "origin.json"  # the repository it came from, for the same
VLM = Path("processor") / "vlm"
TOKENIZER = ("tokenizer.json", "vocab.json")
MARGIN = 1.02  # of disk space


def prefetch(config: PrefetchConfig) -> tuple[Path, CheckpointSummary]:
    """Fetch (or copy) `config.base` and its tokenizer to `config.out`, verified.

    An `out` that is there is verified; one that holds another repository or revision is refused.
    """
    from finetune.prefetched import asked_for
    from gr00t.files import disk_errors

    out = Path(config.out or default_out(config.base))
    asked = asked_for(config.base, config.revision)
    if out.exists() and not config.overwrite:
        return out, _verified(out, config, asked)
    with disk_errors(out, "What has come is kept: make room and start the same command again."):
        return out, _fetched(out, config, asked)


def _verified(out: Path, config: PrefetchConfig, asked: Origin) -> CheckpointSummary:
    from finetune.prefetched import refuse_other
    from gr00t.errors import ToolkitError
    from gr00t.files import read_json
    from gr00t.model.manifest import MANIFEST, verify_manifest
    from gr00t.model.verify import verify_checkpoint

    try:
        summary = verify_checkpoint(out)
        if (out / MANIFEST).is_file():  # earlier versions wrote none
            verify_manifest(out)
    except ToolkitError as error:
        raise ToolkitError(f"{error}\n{out} is there already: say overwrite=true to replace it.") from None
    if os.path.realpath(config.base) != os.path.realpath(out):
        earlier = read_json(out / ORIGIN).get("base_model") if (out / ORIGIN).is_file() else None
        refuse_other(out, asked, earlier)
    return summary


def _fetched(out: Path, config: PrefetchConfig, asked: Origin) -> CheckpointSummary:
    """Fetch to a hidden folder beside `out`, where a broken-off start may have left some, and put it in place."""
    from finetune.prefetched import record
    from finetune.sources import source_of
    from gr00t.files import real_path, whole_folder, write_json
    from gr00t.model.manifest import write_manifest
    from gr00t.model.verify import verify_checkpoint

    place = real_path(out)
    staging = place.parent / f".{place.name}.prefetch"
    source = source_of(config.base, config.revision)
    folder = fetch_base(source, staging, asked)
    fetch_tokenizer(folder, config.tokenizer)
    if not Path(config.base).is_dir():
        write_json(folder / ORIGIN, {"base_model": "/".join(config.base.split("/")[:2])})
        asked = replace(asked, commit=source.commit(staging))
    record(folder, asked)
    summary = verify_checkpoint(folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    write_manifest(folder)
    with whole_folder(out) as aside:
        aside.rmdir()
        folder.rename(aside)
    shutil.rmtree(staging, ignore_errors=True)
    return summary


def default_out(base: str) -> str:
    """checkpoints/base/<last part of the name>."""
    return str(Path("checkpoints") / "base" / Path(os.path.abspath(base)).name)


def fetch_base(source: Source, staging: Path, asked: Origin) -> Path:
    """The checkpoint's own files, without optimizer states or further checkpoints below it; the folder they lie in.

    What a broken-off start left in `staging` is kept where it was for the same repository and revision.
    """
    from finetune.prefetched import record, recorded
    from gr00t.errors import ToolkitError

    names = source.sizes()
    if "config.json" not in names:
        raise ToolkitError(f"{source.name} holds no config.json: it is no checkpoint.{_suites(source.name, names)}")
    wanted = [name for name in names if _belongs(name)]
    if not any(fnmatch(name, WEIGHTS) for name in wanted):
        raise ToolkitError(
            f"{source.name} holds no safetensors weights. Pickled ones (.bin, .pt) are never read: convert them where "
            "you trust them, with save_pretrained(folder, safe_serialization=True)."
        )
    folder, note = source.place(staging), staging / ".cache"
    if staging.exists() and recorded(note) != asked:
        shutil.rmtree(staging)
    check_space(folder, {name: names[name] for name in wanted})
    note.mkdir(parents=True, exist_ok=True)
    record(note, asked)
    source.fetch(wanted, staging)
    _refuse_lerobot(source.name, folder)
    return folder


def _suites(name: str, files: Iterable[str]) -> str:
    inside = sorted(file.split("/")[0] for file in files if file.count("/") == 1 and file.endswith("/config.json"))
    listed = ", ".join(f"{name}/{suite}" for suite in inside)
    return f" It holds several checkpoints; take one of: {listed}." if inside else ""


def _belongs(name: str) -> bool:
    top = "/" not in name
    return (top and any(fnmatch(name, pattern) for pattern in (WEIGHTS, *TERMS))) or (
        any(fnmatch(name, pattern) for pattern in SMALL) and (top or name.startswith(("processor/", "experiment_cfg/")))
    )


def _refuse_lerobot(name: str, folder: Path) -> None:
    from gr00t.errors import ToolkitError
    from gr00t.files import read_json
    from gr00t.model.lerobot import is_lerobot

    data = read_json(folder / "config.json")
    if is_lerobot(data):
        shutil.rmtree(folder)
        raise ToolkitError(
            f"{name} is a LeRobot checkpoint and no base of its own: prefetch its base, "
            f"{data.get('base_model_path')}, and write that folder as base_model_path into its config.json."
        )


def fetch_tokenizer(staging: Path, tokenizer: str | None) -> None:
    """Tokenizer, chat template and architecture of the backbone into processor/vlm, unless they are there."""
    from finetune.sources import source_of
    from gr00t.errors import ToolkitError
    from gr00t.model.checkpoint_kind import read_config_json

    target = staging / VLM
    if tokenizer is None and (target / "config.json").is_file() and _has_tokenizer(target):
        return
    source = source_of(tokenizer or str(read_config_json(staging).get("model_name")), None)
    try:
        names = [n for n in source.sizes() if "/" not in n and any(fnmatch(n, p) for p in SMALL)]
    except ToolkitError as error:
        raise ToolkitError(
            f"The weights are there, the backbone's tokenizer is not: {error}\nThen start the same command again, it "
            "goes on; or give a folder that has the tokenizer, tokenizer=FOLDER."
        ) from None
    wanted = [name for name in names if not name.endswith(".index.json")]  # its weights are in the checkpoint already
    if not set(wanted) & set(TOKENIZER):
        raise ToolkitError(f"{source.name} holds no tokenizer.json. Give another folder or hub id, tokenizer=FOLDER.")
    source.fetch(wanted, target)
    shutil.rmtree(target / ".cache", ignore_errors=True)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER)


def check_space(folder: Path, sizes: dict[str, int]) -> None:
    """Refuse before the first byte when the disk cannot hold what is still missing."""
    from finetune.sources import same_size
    from gr00t.errors import ToolkitError
    from gr00t.files import free_space, in_bytes

    missing = sum(size for name, size in sizes.items() if not same_size(folder / name, size))
    free = free_space(folder)
    if missing * MARGIN > free:
        raise ToolkitError(
            f"{folder.parent} has {in_bytes(free)} free, but {in_bytes(missing)} are to come. Free some space, "
            "or give a folder on another disk, out=FOLDER."
        )


def main(config: PrefetchConfig) -> None:
    out, found = prefetch(config)
    tags = ", ".join(found.tags) or "none yet"
    print(
        f"{out} is whole: {found.parameters:,} parameters, {found.weight_bytes / 1e9:.2f} GB in {found.shards} files."
    )
    print(f"Robots with statistics: {tags}. Use it with model.base={out}; it needs no internet.")


if __name__ == "__main__":
    run_main(main, "prefetch")
