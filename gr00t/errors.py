"""The one exception that users are meant to read, and the sentences that its messages are made of: the nearest valid
name or folder, what the disk refused, sizes. This file imports the standard library only, so it can be read by its
path alone where another package named gr00t comes first."""

from __future__ import annotations

import difflib
import errno
import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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
_FEW_INODES = 64  # what failed has been cleared away by the time they are counted


class ToolkitError(ValueError):
    """Something the user can mend. The message says what is wrong, where, and how to mend it.

    Entry scripts print the message without a traceback; everything else propagates as a bug.
    """


def require_extra(extra: str, need: str, *, otherwise: str = "", **packages: str) -> None:
    """Raise ToolkitError with the command that installs an extra of pyproject.toml, unless its packages are there.

    `need` begins the sentence ("The launcher needs"), `packages` names each module's package (zmq="pyzmq"), and
    `otherwise` says what works without.
    """
    for module, package in packages.items():
        if importlib.util.find_spec(module) is None:
            raise ToolkitError(f"{need} {package}. Install it: pip install '.[{extra}]' -c constraints.txt{otherwise}")


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A hint for an unknown name: ' Did you mean "x"?' or, with nothing near, ' Known: a, b, c.'.

    Starts with a space so that it can be appended to a sentence; empty when there are no options.
    """
    known = sorted(set(options))
    if not known:
        return ""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f' Did you mean "{near[0]}"?'
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f" Known: {shown}."


def first_of(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are: a, b and 3 more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def near_folder(path: Path) -> str:
    """A hint for a missing folder: ' Did you mean "checkpoints/color_object"?', whatever part of the path is mistyped.

    Starts with a space so that it can be appended to a sentence; empty when it exists, or when no path is similar.
    """
    found = Path()
    for part in path.parts:
        if not (found / part).is_dir():
            try:
                folders = sorted(inside.name for inside in found.iterdir() if inside.is_dir())
            except OSError:  # it may not be listed
                return ""
            near = difflib.get_close_matches(part, folders, n=1)
            if not near:
                return ""
            part = near[0]
        found /= part
    return f' Did you mean "{found}"?' if found != path else ""


@contextmanager
def disk_errors(target: Path, remedy: str) -> Iterator[None]:
    """Turn a full disk or a folder that may not be written into a ToolkitError that ends with `remedy`."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, OSError) or type(error).__name__ == "SafetensorError"
        if not known and not is_disk_error(error):
            raise
        full = _error_number(error) in _DISK_FULL
        free = f" ({in_bytes(free_space(target))} free there.)" if full else ""
        raise ToolkitError(f"{target}: {disk_problem(error, target)} {remedy}{free}") from error


def disk_refusal(error: BaseException | None) -> str | None:
    """One line for a refusal of the disk that nobody has put into words: `error`, or what caused it; else None."""
    while error is not None:
        if is_disk_error(error):
            full, named = _error_number(error) in _DISK_FULL, getattr(error, "filename", None)
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
    if number in _DISK_FULL:
        disk = os.statvfs(_nearest_folder(target))
        # So few that they, and not the bytes, are what the write lacked; some file systems do not count them.
        few = not disk.f_favail or (disk.f_favail < _FEW_INODES and disk.f_bavail * disk.f_frsize > 1e6)
        if disk.f_files and few:
            free = f"{disk.f_favail} of {disk.f_files}"
            return f"the disk has no inodes left for further files ({free} free); nothing half-written is left."
    if number in _REFUSALS:
        named = Path(str(getattr(error, "filename", None) or target))
        aside = named.is_relative_to(target.parent) and str(named.relative_to(target.parent)).startswith(".")
        elsewhere = number not in _DISK_FULL and not aside and named != target
        return _REFUSALS[number] + (f" ({named})." if elsewhere else ".")
    return f"cannot be written ({error}). Check the folder's permissions."


def _error_number(error: BaseException) -> int | None:
    """The system's error number, which some libraries only write into their message."""
    if isinstance(error, OSError):
        if error.errno:
            return error.errno
        if "Not enough disk space" in str(error):  # of Hugging Face datasets
            return errno.ENOSPC
    found = (_NUMBER_IN_TEXT if isinstance(error, OSError) else _NUMBER_IN_RUST).search(str(error))
    return int(found[1]) if found else None


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
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in [path.absolute(), *path.absolute().parents] if path.is_dir())
