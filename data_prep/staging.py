"""A folder that appears whole or not at all: written aside, synced, renamed; leftovers of killed runs are cleared."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gr00t.errors import ToolkitError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `target`, which takes target's place when the block ends without an exception.

    An existing `target` stays until then. One writer at a time: a second one raises ToolkitError. What a killed writer
    left is removed first, and a target that it had just moved away is put back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target):
        recover(target)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        aside.chmod(0o777 & ~_umask())
        try:
            yield aside
            _sync_tree(aside)
            _swap(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


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
def _lock(target: Path) -> Iterator[None]:
    """Hold the lock file beside `target`; the kernel frees it when the process dies, however it dies."""
    path = target.parent / f".{target.name}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, target)
        except BaseException:
            os.close(descriptor)
            raise
        # The holder before us may have removed the file between our open and our lock: then lock the new one.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(descriptor: int, target: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ToolkitError(
            f"{target}: another process is writing it at this moment. Wait for it to end, or stop it first."
        ) from error
    except OSError as error:
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
