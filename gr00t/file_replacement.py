"""Files and folders that are whole or not there: JSON, locks, folders that appear in one rename, and files that one
process makes once from something else and keeps with a checksum beside each."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import read_text, refuse_special

log = logging.getLogger(__name__)

READERS = 8  # files that are hashed side by side; hashing leaves Python's lock free
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_locks: set[int] = set()  # descriptors of the locks that this process holds
_locks_change = threading.Lock()  # held by a thread that opens or closes one, and by one that forks


class LockHeld(ToolkitError):
    """Another process holds the lock; `holder` is what it wrote there."""

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


def write_json(path: Path, data: Any, *, sort_keys: bool = False) -> None:
    """Write JSON that is complete or absent, also after a crash."""
    write_text(path, json.dumps(data, indent=2, sort_keys=sort_keys) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text that is complete or absent, also after a crash."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a new hidden path beside `path`, which takes path's place when the block ends without an exception."""
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        with _named(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let the system's refusals name the file: those of write() and fsync() do not."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its permissions and times, making the folders above.

    Nobody whom the source keeps out may read the copy, not even while it is made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = source.stat().st_mode & 0o777
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode | 0o200))
    shutil.copy2(source, target)


def open_to_others(path: Path) -> None:
    """Give a file the usual permissions: safetensors lets only the owner read it, and colleagues read it too."""
    umask = os.umask(0)  # the only way to read it
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces; a named pipe or a folder raises ToolkitError."""
    return _digest(path).hexdigest()


def _digest(path: Path, begun: Any = "sha256") -> Any:
    refuse_special(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, begun)


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove what killed writers of `folder/<names>` (a glob) left; only where no other writer can be alive."""
    for leftover in folder.glob(f".{names}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def whole_folder(
    target: Path,
    *,
    replace: bool = True,
    lock: bool = True,
    allowed: Callable[[], None] = lambda: None,
    replaceable: Callable[[Path], None] = lambda folder: None,
) -> Iterator[Path]:
    """Yield a new hidden folder beside `target`, which takes target's place when the block ends without an exception.

    An existing `target` stays until then, or is refused without `replace`; where it is a link, what it leads to is
    replaced. What a killed writer left is removed first, and a target that it had just moved away is put back. With
    `lock`, a second writer is refused; without (file systems of clusters may have no locks), the caller sees to it that
    there is one only. `allowed` is asked before anything is removed or renamed, and `replaceable` about a folder that
    is in the way; they raise where that must not happen.
    """
    allowed()
    target = real_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(target) if lock else nullcontext():
        recover(target, replaceable)
        if target.exists() and not replace:
            raise ToolkitError(f"{target} exists already. Remove it, choose another folder, or say overwrite=true.")
        aside = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
        aside.mkdir()
        try:
            with _named(target):
                yield aside
                publish(aside, target, allowed, replaceable)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def real_path(target: Path) -> Path:
    """Where a folder lies, or will lie, behind all links."""
    return Path(os.path.realpath(target))


def publish(
    folder: Path,
    target: Path,
    allowed: Callable[[], None] = lambda: None,
    replaceable: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Put a finished folder on the same disk in target's place, whole or not at all; the caller holds target's lock.

    `allowed` and `replaceable` as for `whole_folder`.
    """
    for current, _, files in os.walk(folder):
        for name in files:
            _sync(Path(current) / name)
        _sync(Path(current))
    allowed()
    replaced = _replaced(target)
    with ExitStack() as after_failure:
        if target.exists():
            replaceable(target)
            target.rename(replaced)
            after_failure.callback(replaced.rename, target)
            replaceable(replaced)  # again, now that nothing can come into it by target's name
        folder.rename(target)  # where another folder has appeared there meanwhile, this fails unless that is empty
        after_failure.pop_all()
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(target: Path, replaceable: Callable[[Path], None] = lambda folder: None) -> None:
    """Remove what a killed writer of `target` left; call it only while holding the lock."""
    replaced = _replaced(target)
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    if replaced.exists():
        replaceable(replaced)
    for leftover in [replaced, *target.parent.glob(f".{target.name}.partial-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _replaced(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file_lock(target: Path, *, required: bool = True, shared: bool = False, holder: str = "") -> Iterator[None]:
    """Hold the lock file beside `target`; the kernel frees it when the process dies, however it dies.

    A second holder is refused with LockHeld, which carries what the first one wrote there as `holder`; those that hold
    it `shared` are refused only where one does not, and the other way round. On a file system without locks it is
    refused when `required`, and continues unlocked otherwise.
    """
    real = real_path(target)
    path = real.parent / f".{real.name}.lock"
    while (descriptor := _opened(path, target, required, shared)) is None:
        pass
    holding = os.getpid()
    try:
        with _named(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, holder.encode())
        yield
    finally:
        if os.getpid() == holding:  # a process forked meanwhile has closed its copy
            with suppress(LockHeld):  # others share it still
                if shared:
                    _take(descriptor, target, required=False)
                path.unlink(missing_ok=True)
            with _locks_change:
                _locks.remove(descriptor)
                os.close(descriptor)


def _opened(path: Path, target: Path, required: bool, shared: bool) -> int | None:
    """The locked file's descriptor; None where the holder before us removed the file between our open and our lock."""
    with _locks_change, ExitStack() as failed:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        failed.callback(os.close, descriptor)
        _take(descriptor, target, required, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        if not os.fstat(descriptor).st_nlink:
            return None
        failed.pop_all()
        _locks.add(descriptor)
        return descriptor


def _leave_locks_to_parent() -> None:
    """A lock lasts as long as any process has it open: a forked loader worker would outlive a killed holder."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()
    _locks_change.release()


# While a thread locks a file another may fork: the child must neither inherit a lock unseen nor close a reused number.
os.register_at_fork(
    before=_locks_change.acquire, after_in_parent=_locks_change.release, after_in_child=_leave_locks_to_parent
)


def _take(descriptor: int, target: Path, required: bool, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockHeld(
            f"{target}: another process is writing it at this moment. Wait for it to end, or stop it first.",
            os.pread(descriptor, 4096, 0).decode(errors="replace"),
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if required:
            raise ToolkitError(
                f"{target.parent}: this file system has no file locks, which keep two commands from writing "
                f"{target.name} at once. Write to a local folder and copy the result."
            ) from error


@contextmanager
def lock_in_turn(
    target: Path, seconds: float = math.inf, *, holder: str = "", waiting: Callable[[str], None] = lambda holder: None
) -> Iterator[None]:
    """As file_lock, unlocked where there are no locks; a second holder waits, and is refused after `seconds` only.

    `waiting` is called once, with what the first holder wrote there.
    """
    end, waits = time.monotonic() + seconds, False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(file_lock(target, required=False, holder=holder))
                break
            except LockHeld as error:
                if time.monotonic() > end:
                    raise
                if not waits:
                    waiting(error.holder)
                waits = True
                time.sleep(0.2)
        yield


def write_checksum(path: Path, owner: str) -> None:
    """Write the checksum of a finished file beside it; `owner` names the cache that it belongs to.

    Name and owner are hashed too, so a whole file in the place of another is found as well.
    """
    write_text(checksum_path(path), checksum(path, owner) + "\n")


def is_sound(path: Path, owner: str) -> bool:
    """Whether a file is there and as it was when its checksum was written."""
    try:
        return read_text(checksum_path(path)) == f"{checksum(path, owner)}\n"
    except (OSError, ToolkitError):
        return False


def unsound(paths: Iterable[Path], owner: str) -> set[Path]:
    """Those of the files that are missing, damaged or without a checksum."""
    paths = list(paths)
    with ThreadPoolExecutor(READERS) as pool:
        sound = pool.map(lambda path: is_sound(path, owner), paths)
        return {path for path, fine in zip(paths, sound, strict=True) if not fine}


def checksum_path(path: Path) -> Path:
    """Where the checksum of a file lies."""
    return path.with_name(f".{path.name}.sha256")


def checksum(path: Path, owner: str) -> str:
    """Hex SHA-256 of owner, name and content."""
    owned = hashlib.sha256(f"{owner}/{path.name}\0".encode())
    return _digest(path, owned.copy).hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """Hash of the content of these files, in their order; one that cannot be read raises ToolkitError."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(_digest(path).digest())
        except OSError as error:
            raise ToolkitError(
                f"{path} cannot be read ({error.strerror}). Copy or prepare the dataset again."
            ) from None
    return digest.hexdigest()


def this_process() -> str:
    """How this process names itself in locks that others wait for."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def make_once(target: Path, what: str, whole: Callable[[], bool], make: Callable[[], None]) -> None:
    """Make `target` unless it is `whole`; a second process logs whom it waits for, then uses what the first made.

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
    """The log line of a process that waits."""
    return f"waiting for {who or 'another process'}, which makes {what}"


def damaged(target: Path, what: str) -> str:
    """The log line of a process that found damage."""
    return f"{target} is damaged or of an earlier version: {what} will be made again"
