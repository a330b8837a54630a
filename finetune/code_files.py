"""Which files are the code of a checkout: those that git tracks, and those that the user names. No links, no copies of
anything else: what lies about in a checkout may be private."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from gr00t.errors import ToolkitError

REVISION_FILE = "REVISION"  # in a job's copy, which is no git checkout any more
_ROOMS = ("gr00t", "finetune", "data_prep", "simulation", "configs", "finetune_jobs")
_SOURCES = (".py", ".yaml", ".sh")
_SKIPPED = (".git", ".venv", ".cache", "__pycache__")
# What lies below a folder with one of these is no code of ours.
_OF_A_RUN = (REVISION_FILE, "attempt.json", "run_config.json", "release.json")
_NOT_RUN = ("tests", "samples", "docs", "benchmarks")  # nine tenths of the checkout, and no job needs them
_LARGEST_BYTES = 50 * 2**20
_SHOWN = 5
_REDIRECTIONS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set in hooks, and meant for another checkout


def code_files(checkout: Path, named: Sequence[str] = (), key: str = "") -> list[str]:
    """Tracked files as they are now, without tests, samples, docs and benchmarks, and the `named` ones (values of
    `key`), relative to `checkout`. Without git all files but what the first level of .gitignore names.

    Run folders are left out, wherever in the checkout they lie. Raises ToolkitError for links, for what is too large,
    and for named files that are not there.
    """
    tracked = _listed(checkout, "--cached")
    names = _walk(checkout, checkout, _ignored(checkout)) if tracked is None else tracked
    code = {name for name in names if Path(name).parts[0] not in _NOT_RUN and not _of_a_run(checkout, name)}
    new = [name for name in new_files(checkout) if (checkout / name).is_symlink() and _in_room(name)]
    _refuse_links(checkout, [*code, *new])
    code |= set(_named_files(checkout, named, key))
    found = sorted(name for name in code if (checkout / name).is_file())
    _refuse_large(checkout, found)
    return found


def tracked_among(checkout: Path, names: Iterable[str]) -> list[str]:
    """Those of the names that git tracks (without git those that are there); a link is refused."""
    tracked = _listed(checkout, "--cached")
    found = [name for name in names if tracked is None or name in tracked]
    _refuse_links(checkout, found)
    return [name for name in found if (checkout / name).is_file()]


def new_files(checkout: Path) -> list[str]:
    """What git neither tracks nor ignores; nothing without git."""
    return _listed(checkout, "--others", "--exclude-standard") or []


def refuse_new_sources(checkout: Path, named: Sequence[str], key: str) -> list[str]:
    """Raise ToolkitError where a source file in the code's folders would be left out, which a job finds out only when
    it runs; the names of those elsewhere."""
    copied = set(_named_files(checkout, named, key))
    sources = [name for name in new_files(checkout) if name.endswith(_SOURCES) and name not in copied]
    missing = [name for name in sources if _in_room(name)]
    if missing:
        raise ToolkitError(
            f"git does not track {in_words(missing)}, and only what it tracks is copied for the job. Add them "
            f"(git add {missing[0]}; no commit is needed), or name them: {key}=[{','.join(missing[:_SHOWN])}]. What no "
            "job needs may stand in .gitignore."
        )
    return [name for name in sources if "/" not in name]


def in_words(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def git(checkout: Path, *arguments: str) -> bytes | None:
    """Git's answer about `checkout`; None where it is no checkout of its own, or git cannot answer."""
    if not (checkout / ".git").exists():
        return None
    own = {name: value for name, value in os.environ.items() if name not in _REDIRECTIONS}
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], check=True, capture_output=True, env=own)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def _listed(checkout: Path, *which: str) -> list[str] | None:
    """Files of the checkout by what git says of them; None where it is no git checkout."""
    answer = git(checkout, "ls-files", "-z", *which)
    if answer is None and (checkout / ".git").exists():
        raise ToolkitError(
            f"git cannot say which files of {checkout} it tracks, and only those are copied. See what `git status` "
            "says there: git may be missing (install it, in a container too), or not trust the folder's owner."
        )
    return None if answer is None else [name for name in os.fsdecode(answer).split("\0") if name]


def _named_files(checkout: Path, named: Sequence[str], key: str) -> list[str]:
    found: list[str] = []
    for entry in named:
        name = os.path.relpath(checkout / entry, checkout)
        if name.startswith("..") or not os.path.lexists(checkout / name):
            where = "lies outside of" if name.startswith("..") else "is not in"
            raise ToolkitError(f"{key}: {entry} {where} the checkout, {checkout}. Name files or folders of it.")
        inside = _files_of(checkout, name) if (checkout / name).is_dir() else [name]
        if not inside:
            raise ToolkitError(f"{key}: git tracks or ignores all files in {entry}. Name a file.")
        found += inside
    _refuse_links(checkout, found)
    return found


def _files_of(checkout: Path, folder: str) -> list[str]:
    _refuse_links(checkout, [folder])
    listed = _listed(checkout, "--others", "--exclude-standard", "--", folder)
    return _walk(checkout, checkout / folder, set()) if listed is None else listed


def _in_room(name: str) -> bool:
    return Path(name).parts[0] in _ROOMS


def _refuse_links(checkout: Path, names: Iterable[str]) -> None:
    """Neither the files nor a folder above one in the checkout may be a link."""
    paths = {path for name in names for path in [Path(name), *Path(name).parents[:-1]]}
    links = sorted(str(path) for path in paths if (checkout / path).is_symlink())
    if links:
        raise ToolkitError(
            f"{in_words(links)} in {checkout}: a link is not copied, since what it leads to may be private. Put the "
            "file or folder itself there, or take the link away."
        )


def _refuse_large(checkout: Path, names: Sequence[str]) -> None:
    large = [name for name in names if (checkout / name).stat().st_size > _LARGEST_BYTES]
    if large:
        raise ToolkitError(
            f"{checkout / large[0]} has more than {_LARGEST_BYTES >> 20} MiB and would be copied with the code of "
            "every run. Move it out of the checkout, or name it in .gitignore."
        )


def _of_a_run(checkout: Path, name: str) -> bool:
    parents = Path(name).parents[:-1]  # without the checkout itself
    return any((checkout / parent / mark).is_file() for parent in parents for mark in _OF_A_RUN)


def _ignored(checkout: Path) -> set[Path]:
    file = checkout / ".gitignore"
    return {checkout / name.strip("/") for name in file.read_text().split()} if file.is_file() else set()


def _walk(checkout: Path, folder: Path, ignored: set[Path]) -> list[str]:
    """Files below `folder`, and links, which are not followed."""
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name in _SKIPPED or path in ignored:
            continue
        inside = path.is_dir() and not path.is_symlink()
        found += _walk(checkout, path, ignored) if inside else [str(path.relative_to(checkout))]
    return found
