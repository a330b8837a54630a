"""Files that are whole or not there: JSON, hashes, and folders that appear in one rename."""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gr00t.errors import ToolkitError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class LockHeld(ToolkitError):
    """Another process holds the lock; `holder` is what it wrote there."""

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


def near_folder(path: Path) -> str:
    """A hint for a missing folder: ' Did you mean "checkpoints/color_object"?', whatever part of the path is mistyped.

    Starts with a space so that it can be appended to a sentence; empty where it is there, or no path is similar.
    """
    found = Path()
    for part in path.parts:
        if not (found / part).is_dir():
            near = difflib.get_close_matches(part, _folders_in(found), n=1)
            if not near:
                return ""
            part = near[0]
        found /= part
    return f' Did you mean "{found}"?' if found != path else ""


def _folders_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError:  # it may not be listed
        return []


def parse_json(text: str, where: str | Path) -> Any:
    """JSON text, or a ToolkitError that names the place."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ToolkitError(
            f"{where}: not valid JSON ({error}). The file is damaged or was edited by hand: make or copy it anew."
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; a missing or damaged one is named."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ToolkitError(f"{path} cannot be read ({reason}). Make or copy it anew.") from None
    data = parse_json(text, path)
    if not isinstance(data, dict):
        raise ToolkitError(f"{path}: expected a JSON object, not {type(data).__name__}. Make or copy it anew.")
    return data


def write_json(path: Path, data: Any, *, sort_keys: bool = False) -> None:
    """JSON that is complete or absent, also after a crash."""
    write_text(path, json.dumps(data, indent=2, sort_keys=sort_keys) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text that is complete or absent, also after a crash."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a new hidden path beside `path`, which takes path's place when the block ends without an exception."""
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its permissions and times, making the folders above; nobody whom the source keeps out may read
    the copy, not while it is made either."""
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = source.stat().st_mode & 0o777
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode | 0o200))
    shutil.copy2(source, target)


def open_to_others(path: Path) -> None:
    """safetensors writes files that only their owner may read; colleagues read checkpoints too."""
    path.chmod(0o666 & ~umask())


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def disk_errors(target: Path, remedy: str) -> Iterator[None]:
    """A full disk or a folder that may not be written becomes a ToolkitError that ends with `remedy`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number in _DISK_FULL or any(f"os error {n}" in str(error) for n in _DISK_FULL):
            what = "the disk or quota is full; nothing half-written is left."
        else:
            what = f"cannot be written ({error}). Check the folder's permissions."
        raise ToolkitError(f"{target}: {what} {remedy}") from error


def free_space(folder: Path) -> int:
    """Free bytes on the disk where `folder` is, or is going to be."""
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.is_dir())
    return shutil.disk_usage(there).free


def remove_leftovers(folder: Path, names: str) -> None:
    """Clear what killed writers of `folder/<names>` (a glob) left; only where no other writer can be alive."""
    for leftover in folder.glob(f".{names}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def whole_folder(
    target: Path, *, replace: bool = True, lock: bool = True, allowed: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Yield a new hidden folder beside `target`, which takes target's place when the block ends without an exception.

    An existing `target` stays until then, or is refused without `replace`. What a killed writer left is removed first,
    and a target that it had just moved away is put back. With `lock`, a second writer is refused; without (file
    systems of clusters may have no locks), the caller sees to it that there is one only. `allowed` is asked before
    anything is removed or renamed; it raises where that must not happen.
    """
    allowed()
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(target) if lock else nullcontext():
        recover(target)
        if target.exists() and not replace:
            raise ToolkitError(f"{target} exists already. Remove it, choose another folder, or say overwrite=true.")
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        aside.chmod(0o777 & ~umask())
        try:
            yield aside
            publish(aside, target, allowed)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def publish(folder: Path, target: Path, allowed: Callable[[], None] = lambda: None) -> None:
    """Put a finished folder on the same disk in target's place, whole or not at all; the caller holds target's lock."""
    _sync_tree(folder)
    allowed()
    _swap(folder, target)


def recover(target: Path) -> None:
    """Clear what a killed writer of `target` left; call it only while holding the lock."""
    replaced = _replaced(target)
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for leftover in [replaced, *target.parent.glob(f".{target.name}.partial-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _swap(aside: Path, target: Path) -> None:
    replaced = _replaced(target)
    had_old = target.exists()
    if had_old:
        target.rename(replaced)
    try:
        aside.rename(target)
    except BaseException:
        if had_old:
            replaced.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"


@contextmanager
def file_lock(target: Path, *, required: bool = True, holder: str = "") -> Iterator[None]:
    """Hold the lock file beside `target`; the kernel frees it when the process dies, however it dies.

    A second holder is refused with LockHeld, which tells what the first one wrote there as `holder`. On a file system
    without locks it is refused when `required`, else goes on unlocked.
    """
    path = target.parent / f".{target.name}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, target, required)
        except BaseException:
            os.close(descriptor)
            raise
        # The holder before us may have removed the file between our open and our lock: then lock the new one.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def lock_in_turn(target: Path, seconds: float) -> Iterator[None]:
    """As file_lock, unlocked where there are no locks; a second holder waits, and is refused after `seconds` only."""
    end = time.monotonic() + seconds
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(file_lock(target, required=False))
                break
            except LockHeld:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield


def _take(descriptor: int, target: Path, required: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockHeld(
            f"{target}: another process is writing it at this moment. Wait for it to end, or stop it first.",
            os.pread(descriptor, 200, 0).decode(errors="replace"),
        ) from error
    except OSError as error:
        if error.errno in _NO_LOCKS and not required:
            return
        if error.errno in _NO_LOCKS:
            raise ToolkitError(
                f"{target.parent}: this file system has no file locks, which keep two conversions apart. Write to a "
                "local folder (data_dir=...) and copy the result."
            ) from error
        raise


def _sync_tree(folder: Path) -> None:
    for current, _, files in os.walk(folder):
        for name in files:
            _sync(Path(current) / name)
        _sync(Path(current))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """The process's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
