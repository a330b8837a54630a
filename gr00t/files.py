"""Files that are whole or not there: JSON, hashes, and folders that appear in one rename."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError


def read_json(path: Path) -> Any:
    """Parsed JSON; a missing or damaged file is named."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolkitError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ToolkitError(f"{path} is damaged: {error}. Make or copy it anew.") from None


def write_json(path: Path, data: Any, *, sort_keys: bool = False) -> None:
    """JSON that is complete or absent, also after a crash."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(data, indent=2, sort_keys=sort_keys) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A hidden folder beside `target` to write into; it takes the place of `target` when the block ends well.

    After an error it is removed and `target` is as before. With `replace`, an existing folder gives way; without,
    it is refused.
    """
    if target.exists() and not replace:
        raise ToolkitError(f"{target} exists already. Remove it or choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.writing-{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        yield aside
        _sync(aside)
        if target.exists():
            old = target.parent / f".{target.name}.old-{uuid.uuid4().hex[:8]}"
            target.rename(old)
            aside.rename(target)
            shutil.rmtree(old)
        else:
            aside.rename(target)
        _sync_entry(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def remove_leftovers(parent: Path, name: str) -> None:
    """Remove what a killed writer of `parent/name` left behind (call it only where no other writer can be alive)."""
    for leftover in parent.glob(f".{name}.writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync_entry(path)


def _sync_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
