"""A base checkpoint and its tokenizer, fetched for nodes without internet: from the hub or a folder, verified, with a
record of where it came from. As a command: python -m finetune.prefetch base=OWNER/NAME."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from gr00t.errors import ToolkitError, disk_errors, free_space, in_bytes, is_disk_error
from gr00t.file_reading import files_below, read_json
from gr00t.file_replacement import file_lock, real_path, whole_folder, write_json
from gr00t.model import checkpoint_folder
from toolkit.command_line import run_main
from toolkit.declaration import key
from toolkit.shared_keys import check_writable, refuse_inside

if TYPE_CHECKING:
    from gr00t.model.finished_checkpoint import CheckpointSummary

RECORD = "prefetched.json"
MAIN = "main"
WEIGHTS, SMALL = "*.safetensors", ("*.json", "*.jinja", "*.txt")
TERMS = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*")  # a release of what is tuned from it names them
ORIGIN = "origin.json"  # the repository it came from, for the same
VLM = Path("processor") / "vlm"
TOKENIZER = ("tokenizer.json", "vocab.json")


@dataclass(kw_only=True)
class PrefetchConfig:
    """Bring a base checkpoint and its tokenizer to a folder for nodes without internet, verified."""

    base: str = key(
        "the base checkpoint: a Hugging Face id (owner/name, or owner/name/folder) or a local folder",
        "nvidia/GR00T-N1.7-3B",
        folder=True,
    )
    out: str | None = key("folder that receives it; null for checkpoints/base/<name of the base>", None, folder=True)
    revision: str | None = key("branch, tag or commit of the repository; null for its main branch", None)
    tokenizer: str | None = key(
        "where the tokenizer of the backbone comes from: an id or a folder; null for what config.json names",
        None,
        folder=True,
    )
    overwrite: bool = key("replace a folder that is already there", False)

    def check_here(self) -> None:
        """Require a folder to write to, apart from the base that is copied."""
        if self.out is not None:
            out, base = Path(self.out), Path(self.base)
            check_writable("out", out)
            if base.is_dir() and os.path.realpath(base) != os.path.realpath(out):
                refuse_inside("out", out, "base", base)
                refuse_inside("base", base, "out", out)


def prefetch(config: PrefetchConfig) -> tuple[Path, CheckpointSummary]:
    """Fetch (or copy) `config.base` and its tokenizer to `config.out`, verified.

    An `out` that is there is verified; one that holds another repository or revision is refused.
    """
    out = Path(config.out or Path("checkpoints") / "base" / Path(os.path.abspath(config.base)).name)
    folder = Path(config.base).expanduser()
    if folder.is_dir():  # of one that was prefetched itself, where that came from
        asked = recorded(folder) or Origin(os.path.realpath(folder))
    else:
        asked = Origin(config.base.rstrip("/"), config.revision or MAIN)
    if out.exists() and not config.overwrite:
        return out, _verified(out, config, asked)
    with disk_errors(out, "What has come is kept: make room and start the same command again."):
        return out, _fetched(out, config, asked)


def _verified(out: Path, config: PrefetchConfig, asked: Origin) -> CheckpointSummary:
    """What is there, refused where it is damaged or not what is asked for."""
    from gr00t.model.finished_checkpoint import MANIFEST, verify_checkpoint, verify_manifest

    try:
        summary = verify_checkpoint(out)
        if (out / MANIFEST).is_file():  # earlier versions wrote none
            verify_manifest(out)
    except ToolkitError as error:
        raise ToolkitError(f"{error}\n{out} is there already: say overwrite=true to replace it.") from None
    if os.path.realpath(config.base) == os.path.realpath(out):
        return summary
    held = recorded(out)
    # without a record the repository may be named otherwise; of which revision it is, that does not say
    earlier = read_json(out / ORIGIN).get("base_model") if (out / ORIGIN).is_file() else None
    if held.is_what(asked) if held else earlier is not None and asked == Origin(earlier, MAIN):
        return summary
    unrecorded = f"{earlier}, of a revision that was not recorded" if earlier else "something of unrecorded origin"
    raise ToolkitError(
        f"{out} holds {held or unrecorded}; asked for is {asked}. Give another folder, out=FOLDER, or replace what is "
        "there: overwrite=true."
    )


def _fetched(out: Path, config: PrefetchConfig, asked: Origin) -> CheckpointSummary:
    """Fetch to a hidden folder beside `out`, where a broken-off start may have left some, and put it in place."""
    from gr00t.model.finished_checkpoint import refuse_foreign, verify_checkpoint, write_manifest

    refuse_foreign(out)
    place = real_path(out)
    staging = place.parent / f".{place.name}.prefetch"
    source = source_of(config.base, config.revision)
    place.parent.mkdir(parents=True, exist_ok=True)
    # from the first byte on: two that fetch the same would write to one folder, and one take it from the other
    with file_lock(place, required=False):
        folder = _fetch_base(source, staging, asked)
        _fetch_tokenizer(folder, config.tokenizer)
        if not Path(config.base).is_dir():
            write_json(folder / ORIGIN, {"base_model": "/".join(config.base.split("/")[:2])})
            asked = replace(asked, commit=_commit(source, staging))
        write_json(folder / RECORD, asdict(asked))
        summary = verify_checkpoint(folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        write_manifest(folder)
        with whole_folder(out, lock=False, replaceable=refuse_foreign) as aside:
            aside.rmdir()
            folder.rename(aside)
        shutil.rmtree(staging, ignore_errors=True)
    return summary


def _fetch_base(source: Source, staging: Path, asked: Origin) -> Path:
    """The checkpoint's own files, without optimizer states or further checkpoints below it; the folder they lie in.

    What a broken-off start left in `staging` is kept where it was for the same repository and revision.
    """
    sizes = source.sizes()
    if "config.json" not in sizes:
        inside = sorted(name.split("/")[0] for name in sizes if name.count("/") == 1 and name.endswith("/config.json"))
        listed = ", ".join(f"{source.name}/{suite}" for suite in inside)
        suites = f" It holds several checkpoints; take one of: {listed}." if inside else ""
        raise ToolkitError(f"{source.name} holds no config.json: it is no checkpoint.{suites}")
    wanted = {name: size for name, size in sizes.items() if _belongs(name)}
    if not any(fnmatch(name, WEIGHTS) for name in wanted):
        raise ToolkitError(
            f"{source.name} holds no safetensors weights. Pickled ones (.bin, .pt) are never read: convert them where "
            "you trust them, with save_pretrained(folder, safe_serialization=True)."
        )
    folder, note = staging / source.prefix, staging / ".cache"
    if staging.exists() and recorded(note) != asked:
        shutil.rmtree(staging)
    missing = sum(size for name, size in wanted.items() if not _same_size(folder / name, size))
    free = free_space(folder)
    if missing * 1.02 > free:
        raise ToolkitError(
            f"{folder.parent} has {in_bytes(free)} free, but {in_bytes(missing)} are to come. Free some space, "
            "or give a folder on another disk, out=FOLDER."
        )
    note.mkdir(parents=True, exist_ok=True)
    write_json(note / RECORD, asdict(asked))
    source.fetch(list(wanted), staging)
    data = read_json(folder / "config.json")
    if checkpoint_folder.is_lerobot(data):
        shutil.rmtree(folder)
        raise ToolkitError(
            f"{source.name} is a LeRobot checkpoint and no base of its own: prefetch its base, "
            f"{data.get('base_model_path')}, and write that folder as base_model_path into its config.json."
        )
    return folder


def _belongs(name: str) -> bool:
    if "/" in name and not name.startswith(("processor/", "experiment_cfg/")):
        return False
    return any(fnmatch(name, pattern) for pattern in (SMALL if "/" in name else (WEIGHTS, *TERMS, *SMALL)))


def _same_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _fetch_tokenizer(folder: Path, tokenizer: str | None) -> None:
    """Tokenizer, chat template and architecture of the backbone into processor/vlm, unless they are there."""
    target = folder / VLM
    has_tokenizer = any((target / name).is_file() for name in TOKENIZER)
    if tokenizer is None and (target / "config.json").is_file() and has_tokenizer:
        return
    source = source_of(tokenizer or str(checkpoint_folder.read_config_json(folder).get("model_name")), None)
    try:
        names = [n for n in source.sizes() if "/" not in n and any(fnmatch(n, p) for p in SMALL)]
    except ToolkitError as error:
        raise ToolkitError(
            f"The weights are there, the backbone's tokenizer is not: {error}\nThen start the same command again, it "
            "continues; or give a folder that has the tokenizer, tokenizer=FOLDER."
        ) from None
    wanted = [name for name in names if not name.endswith(".index.json")]  # its weights are in the checkpoint already
    if not set(wanted) & set(TOKENIZER):
        raise ToolkitError(f"{source.name} holds no tokenizer.json. Give another folder or hub id, tokenizer=FOLDER.")
    source.fetch(wanted, target)
    shutil.rmtree(target / ".cache", ignore_errors=True)


# -- where it came from ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """A source as a user writes it; of a repository also the revision that was asked for and the commit it was."""

    source: str
    revision: str | None = None
    commit: str | None = None

    def __str__(self) -> str:
        named = f"{self.source}, revision {self.revision}" if self.revision else self.source
        return f"{named} ({self.commit[:12]})" if self.commit and self.commit != self.revision else named

    def is_what(self, asked: Origin) -> bool:
        """Whether this is what is asked for now; a branch that has moved since is still the same."""
        if self.source != asked.source:
            return False
        if self.commit and asked.commit:
            return self.commit == asked.commit
        wanted, commit = asked.revision or "", self.commit or ""
        # a commit may be abbreviated to seven letters, as git does
        return asked.revision == self.revision or (len(wanted) >= 7 and commit.startswith(wanted))


def recorded(folder: Path) -> Origin | None:
    """What the folder says of itself; None where it does not. A damaged record raises ToolkitError."""
    path = folder / RECORD
    try:
        return Origin(**read_json(path)) if path.is_file() else None
    except TypeError:
        raise ToolkitError(f"{path} is damaged. Remove it, or fetch again with overwrite=true.") from None


def _commit(source: Source, staging: Path) -> str | None:
    """The commit that was fetched: the client notes it beside the files, folders of its cache are named after it."""
    text = source.name
    if isinstance(source, HubSource):
        note = staging / ".cache/huggingface/download" / source.prefix / "config.json.metadata"
        text = note.read_text(encoding="utf-8") if note.is_file() else ""
    found = re.search(r"(?:^|/snapshots/)([0-9a-f]{40})(?:[/\n]|$)", text)
    return found[1] if found else None


# -- sources -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderSource:
    """A local folder; `prefix` as a repository of the hub has one."""

    name: str
    prefix = ""

    def sizes(self) -> dict[str, int]:
        """Every file by name below the checkpoint's folder, and its bytes."""
        files = sorted(path for path in files_below(Path(self.name)) if path.is_file())
        return {path.relative_to(self.name).as_posix(): path.stat().st_size for path in files}

    def fetch(self, names: Sequence[str], target: Path) -> None:
        """Bring these files to `target`; what is there already is kept."""
        for name in names:
            old, new = Path(self.name) / name, target / name
            if not _same_size(new, old.stat().st_size) or new.stat().st_mtime < old.stat().st_mtime:
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(old, new)


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub, or a folder in one; `prefix` is that folder's name with a slash, or empty."""

    name: str
    repository: str
    prefix: str
    revision: str | None

    def sizes(self) -> dict[str, int]:
        with self._refusals():
            inside, listed = self.prefix.rstrip("/") or None, huggingface_hub.HfApi().list_repo_tree
            found = listed(self.repository, inside, recursive=True, revision=self.revision)
            return {e.path.removeprefix(self.prefix): int(e.size) for e in found if hasattr(e, "size")}

    def fetch(self, names: Sequence[str], target: Path) -> None:
        """Bring these files to the sub-folder's place in `target`; what is there already is kept."""
        patterns = [self.prefix + name for name in names]
        with self._refusals():
            huggingface_hub.snapshot_download(
                self.repository, revision=self.revision, local_dir=target, allow_patterns=patterns
            )

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Name the repository and the kind of error, never an address or a token; what is a bug stays as it is."""
        try:
            yield
        except Exception as error:
            if not checkpoint_folder.is_hub_error(error) or is_disk_error(error):
                raise
            if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):  # a closed gate is one of the former
                raise ToolkitError(checkpoint_folder.hub_failure(self.repository, error)) from None
            system = error.strerror if isinstance(error, OSError) else None
            reason = f"{type(error).__name__}: {system}" if system else type(error).__name__
            raise ToolkitError(
                f"{self.repository} cannot be fetched from here ({reason}). What came is kept: start the "
                "same command again to continue, or run it where there is internet and copy the folder it makes."
            ) from None


Source = FolderSource | HubSource


def source_of(name: str, revision: str | None) -> Source:
    """A local folder, else a hub id (owner/name, or with a sub-folder); offline, its copy in the local cache."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return FolderSource(str(folder))
    repository, subfolder = checkpoint_folder.hub_parts(name, folder)
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        return HubSource(name.rstrip("/"), repository, f"{subfolder}/" if subfolder else "", revision)
    try:
        return FolderSource(str(checkpoint_folder.resolve_folder(name, revision, local_files_only=True)))
    except ToolkitError as error:
        raise ToolkitError(
            f"HF_HUB_OFFLINE is set, and {name} is neither a folder here nor whole in the local cache. Run this "
            "command where there is internet (without HF_HUB_OFFLINE), and copy the folder it makes."
        ) from error


def main(config: PrefetchConfig) -> None:
    out, found = prefetch(config)
    tags = ", ".join(found.tags) or "none yet"
    size = f"{found.parameters:,} parameters, {found.weight_bytes / 1e9:.2f} GB in {found.shards} files"
    print(f"{out} is whole: {size}.")
    print(f"Robots with statistics: {tags}. Use it with model.base={out}; it needs no internet.")


if __name__ == "__main__":
    run_main(main, "prefetch")
