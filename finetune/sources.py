"""Where checkpoint files come from: a local folder or a Hugging Face repository, behind the same methods."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gr00t.errors import ToolkitError
from gr00t.files import is_disk_error

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SNAPSHOT = re.compile(rf"/snapshots/({_COMMIT.pattern})/")


class Source(Protocol):
    """Files by name (below the checkpoint's folder) and how to get them."""

    @property
    def name(self) -> str:
        """As a user would write it."""

    def sizes(self) -> dict[str, int]:
        """Every file and its bytes."""

    def place(self, target: Path) -> Path:
        """The folder in `target` to which `fetch` brings the files."""

    def fetch(self, names: Sequence[str], target: Path) -> None:
        """Bring these files to `place(target)`; what is there already is kept."""

    def commit(self, target: Path) -> str | None:
        """The repository's commit that was fetched to `target`, where that can be said."""


def source_of(name: str, revision: str | None) -> Source:
    """A local folder, else a hub id (owner/name, or with a sub-folder); offline, its copy in the local cache."""
    from huggingface_hub import constants

    from gr00t.model.checkpoint_folder import hub_parts, resolve_folder

    folder = Path(name).expanduser()
    if folder.is_dir():
        return FolderSource(folder)
    repository, subfolder = hub_parts(name, folder)
    if constants.HF_HUB_OFFLINE:
        try:
            return FolderSource(resolve_folder(name, revision, local_files_only=True))
        except ToolkitError as error:
            raise ToolkitError(
                f"HF_HUB_OFFLINE is set, and {name} is neither a folder here nor whole in the local cache. Run this "
                "command where there is internet (without HF_HUB_OFFLINE), and copy the folder it makes."
            ) from error
    return HubSource(repository, subfolder, revision)


@dataclass(frozen=True)
class FolderSource:
    """A local folder."""

    folder: Path

    @property
    def name(self) -> str:
        return str(self.folder)

    def sizes(self) -> dict[str, int]:
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}

    def place(self, target: Path) -> Path:
        return target

    def fetch(self, names: Sequence[str], target: Path) -> None:
        for name in names:
            old, new = self.folder / name, target / name
            if same_size(new, old.stat().st_size) and new.stat().st_mtime >= old.stat().st_mtime:
                continue
            new.parent.mkdir(parents=True, exist_ok=True)
            part = new.with_name(f".{new.name}.part")
            shutil.copy2(old, part)
            part.replace(new)

    def commit(self, target: Path) -> str | None:
        """Of a copy in the hub's cache, whose folders are named after commits."""
        found = _SNAPSHOT.search(self.folder.as_posix() + "/")
        return found[1] if found else None


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub, or a folder in one."""

    repository: str
    subfolder: str = ""
    revision: str | None = None

    @property
    def name(self) -> str:
        return f"{self.repository}/{self.subfolder}".rstrip("/")

    @property
    def _prefix(self) -> str:
        return f"{self.subfolder}/" if self.subfolder else ""

    def sizes(self) -> dict[str, int]:
        import huggingface_hub

        try:
            found = huggingface_hub.HfApi().list_repo_tree(
                self.repository, self.subfolder or None, recursive=True, revision=self.revision
            )
            return {e.path.removeprefix(self._prefix): int(e.size) for e in found if hasattr(e, "size")}
        except Exception as error:
            raise self._refusal(error) from None

    def place(self, target: Path) -> Path:
        return target / self.subfolder

    def fetch(self, names: Sequence[str], target: Path) -> None:
        import huggingface_hub

        patterns = [self._prefix + name for name in names]
        try:
            huggingface_hub.snapshot_download(
                self.repository, revision=self.revision, local_dir=target, allow_patterns=patterns
            )
        except Exception as error:
            raise self._refusal(error) from None

    def commit(self, target: Path) -> str | None:
        """As the client notes it beside the files."""
        note = target / ".cache/huggingface/download" / self.subfolder / "config.json.metadata"
        first = note.read_text(encoding="utf-8").split("\n")[0] if note.is_file() else ""
        return first if _COMMIT.fullmatch(first) else None

    def _refusal(self, error: Exception) -> Exception:
        """Names the repository and the kind of error, never an address or a token; what is a bug stays as it is."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        from gr00t.model.checkpoint_folder import hub_failure, is_hub_error

        if not is_hub_error(error) or is_disk_error(error):
            return error
        if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):  # a closed gate is one of the former
            return ToolkitError(hub_failure(self.repository, error))
        return ToolkitError(
            f"{self.repository} cannot be fetched from here ({_reason(error)}). What came is kept: start the "
            "same command again to go on, or run it where there is internet and copy the folder it makes."
        )


def same_size(path: Path, size: int) -> bool:
    """Whether the file is there with so many bytes."""
    return path.is_file() and path.stat().st_size == size


def _reason(error: Exception) -> str:
    system = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__}: {system}" if system else type(error).__name__
