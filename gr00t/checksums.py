"""Files that are made once from something else and kept: a checksum beside each, and one process that makes them."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, lock_in_turn, write_text

log = logging.getLogger(__name__)
READERS = 8  # files that are hashed side by side; hashing leaves Python's lock free


def write_checksum(path: Path, owner: str) -> None:
    """Write the checksum of a finished file beside it; `owner` names the cache that it belongs to.

    Name and owner are hashed too, so a whole file in the place of another is found as well.
    """
    write_text(checksum_path(path), checksum(path, owner) + "\n")


def is_sound(path: Path, owner: str) -> bool:
    """Whether a file is there and as it was when its checksum was written."""
    try:
        return checksum_path(path).read_bytes() == f"{checksum(path, owner)}\n".encode()
    except OSError:
        return False


def unsound(paths: Iterable[Path], owner: str) -> set[Path]:
    """Those of the files that are missing, damaged or without a checksum."""
    paths = list(paths)
    with ThreadPoolExecutor(READERS) as pool:
        return {
            path for path, fine in zip(paths, pool.map(lambda p: is_sound(p, owner), paths), strict=True) if not fine
        }


def checksum_path(path: Path) -> Path:
    """Where the checksum of a file lies."""
    return path.with_name(f".{path.name}.sha256")


def checksum(path: Path, owner: str) -> str:
    """Hex SHA-256 of owner, name and content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.sha256(f"{owner}/{path.name}\0".encode())).hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """Hash of the content of these files, in their order; one that cannot be read raises ToolkitError."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise ToolkitError(
                f"{path} cannot be read ({error.strerror}). Copy or prepare the dataset again."
            ) from None
    return digest.hexdigest()


def this_process() -> str:
    """How this process names itself in locks that others wait for."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def make_once(target: Path, what: str, whole: Callable[[], bool], make: Callable[[], None]) -> None:
    """Make `target` unless it is `whole`; a second process says for whom it waits, then uses what the first made.

    Raises ToolkitError where the disk is full.
    """
    if whole():
        return
    with disk_errors(target, "Make room there, then start the same command again."):
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock_in_turn(target, holder=this_process(), waiting=lambda who: log.warning(waiting_for(who, what))):
            if whole():
                return
            if target.exists():
                log.warning(damaged(target, what))
            make()


def waiting_for(who: str, what: str) -> str:
    """The line of a process that waits."""
    return f"waiting for {who or 'another process'}, which makes {what}"


def damaged(target: Path, what: str) -> str:
    """The line of a process that found damage."""
    return f"{target} is damaged or of an earlier version: {what} will be made again"
