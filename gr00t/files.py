"""Files that are whole or not there: JSON, hashes, and folders that appear in one rename."""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
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
_REFUSALS = {
    **dict.fromkeys(_DISK_FULL, "the disk or quota is full; nothing half-written is left"),
    errno.EROFS: "lies on a read-only file system",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EFBIG: "is larger than a file may be here (ulimit -f, or the file system's limit)",
    errno.EIO: "the disk does not answer (input/output error)",
    errno.ESTALE: "the network file system has lost it (stale file handle)",
    errno.EMFILE: "too many files are open (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENAMETOOLONG: "the name is longer than the file system takes",
    errno.ENOTDIR: "a file stands where a folder should be",
}
_NUMBER_IN_TEXT = re.compile(r"\b[Ee]rrno ?=? ?(\d+)")  # pyarrow, h5py
_NUMBER_IN_RUST = re.compile(r"\(?os error (\d+)\)?")  # safetensors, and tokenizers with a plain Exception
FEW_INODES = 64  # what failed has been cleared away by the time they are counted
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_locks: set[int] = set()  # descriptors of the locks that this process holds


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
        with _named(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let the system's refusals tell the file: those of write() and fsync() do not."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


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
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and not is_disk_error(error):
            raise
        raise ToolkitError(f"{target}: {disk_problem(error, target)} {remedy}{_free_there(error, target)}") from error


def disk_refusal(error: BaseException | None, place: Path | None = None) -> str | None:
    """One line for a refusal of the disk that nobody has put into words: `error`, or what caused it; else None.

    `place` is where it was, for errors that do not say.
    """
    while error is not None:
        if is_disk_error(error):
            full, named = _error_number(error) in _DISK_FULL, getattr(error, "filename", None) or place
            remedy = "Free some space there." if full else "Mend that, or choose another folder."
            return f"{named or 'A file'}: {disk_problem(error, Path(str(named or '.')))} {remedy}"
        if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
            return f"{error.strerror}. Set TMPDIR to a folder that can be written."
        error = error.__cause__
    return None


def is_disk_error(error: BaseException) -> bool:
    """Whether the disk, the file system or its permissions refused; a missing file may be a bug and is not meant."""
    return _error_number(error) in _REFUSALS


def disk_problem(error: BaseException, target: Path) -> str:
    """What is wrong with the disk below `target`, as the sentence that follows its name and a colon."""
    number = _error_number(error)
    if number in _DISK_FULL and (inodes := _inodes(target)):
        return f"the disk has no inodes left for further files ({inodes} free); nothing half-written is left."
    if number in _REFUSALS:
        named = Path(str(getattr(error, "filename", None) or target))
        aside = named.is_relative_to(target.parent) and str(named.relative_to(target.parent)).startswith(".")
        elsewhere = number not in _DISK_FULL and not aside and named != target
        return _REFUSALS[number] + (f" ({named})." if elsewhere else ".")
    return f"cannot be written ({error}). Check the folder's permissions."


def _error_number(error: BaseException) -> int | None:
    """The system's error number, which some libraries only write into their message."""
    number = error.errno if isinstance(error, OSError) else None
    if number:
        return number
    if isinstance(error, OSError) and "Not enough disk space" in str(error):  # of Hugging Face datasets
        return errno.ENOSPC
    found = (_NUMBER_IN_TEXT if isinstance(error, OSError) else _NUMBER_IN_RUST).search(str(error))
    return int(found[1]) if found else None


def _inodes(target: Path) -> str:
    """Free inodes of all, where they are so few that they, and not the bytes, are what a write lacked."""
    found = os.statvfs(_nearest_folder(target))
    few = not found.f_favail or (found.f_favail < FEW_INODES and found.f_bavail * found.f_frsize > 1e6)
    return f"{found.f_favail} of {found.f_files}" if found.f_files and few else ""


def _free_there(error: BaseException, target: Path) -> str:
    return f" ({in_bytes(free_space(target))} free there.)" if _error_number(error) in _DISK_FULL else ""


def in_bytes(size: float) -> str:
    """A size as users read it: 1.2 GB, 30.5 MB, 4.1 kB, 12 bytes."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:.0f} bytes"


def free_space(folder: Path) -> int:
    """Free bytes on the disk where `folder` is, or is going to be."""
    return shutil.disk_usage(_nearest_folder(folder)).free


def _nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(path for path in [path.absolute(), *path.absolute().parents] if path.is_dir())


def remove_leftovers(folder: Path, names: str) -> None:
    """Clear what killed writers of `folder/<names>` (a glob) left; only where no other writer can be alive."""
    for leftover in folder.glob(f".{names}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _nothing_to_say(_: Path) -> None:
    """For `replaceable`: whatever lies there may be replaced."""


@contextmanager
def whole_folder(
    target: Path,
    *,
    replace: bool = True,
    lock: bool = True,
    allowed: Callable[[], None] = lambda: None,
    replaceable: Callable[[Path], None] = _nothing_to_say,
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
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        aside.chmod(0o777 & ~umask())
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
    replaceable: Callable[[Path], None] = _nothing_to_say,
) -> None:
    """Put a finished folder on the same disk in target's place, whole or not at all; the caller holds target's lock.

    `allowed` and `replaceable` as for `whole_folder`."""
    _sync_tree(folder)
    allowed()
    _swap(folder, target, replaceable)


def recover(target: Path, replaceable: Callable[[Path], None] = _nothing_to_say) -> None:
    """Clear what a killed writer of `target` left; call it only while holding the lock."""
    replaced = _replaced(target)
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    if replaced.exists():
        replaceable(replaced)
    for leftover in [replaced, *target.parent.glob(f".{target.name}.partial-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _swap(aside: Path, target: Path, replaceable: Callable[[Path], None]) -> None:
    replaced = _replaced(target)
    had_old = target.exists()
    if had_old:
        replaceable(target)
        target.rename(replaced)
    try:
        if had_old:
            replaceable(replaced)  # again, now that nothing can come into it by target's name
        aside.rename(target)  # where another folder has appeared there meanwhile, this fails unless that is empty
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
    real = real_path(target)
    path = real.parent / f".{real.name}.lock"
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
    _locks.add(descriptor)
    try:
        with _named(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, holder.encode())
        yield
    finally:
        if descriptor in _locks:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            _locks.remove(descriptor)


@contextmanager
def lock_in_turn(
    target: Path, seconds: float = math.inf, *, holder: str = "", waiting: Callable[[str], None] = lambda holder: None
) -> Iterator[None]:
    """As file_lock, unlocked where there are no locks; a second holder waits, and is refused after `seconds` only.

    `waiting` hears once what the first holder wrote there.
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


def _leave_locks_to_parent() -> None:
    """A lock lasts as long as any process has it open: a forked loader worker would outlive a killed holder."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def _take(descriptor: int, target: Path, required: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockHeld(
            f"{target}: another process is writing it at this moment. Wait for it to end, or stop it first.",
            os.pread(descriptor, 4096, 0).decode(errors="replace"),
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
