"""What a job runs: a copy of the checkout's code in the run folder, and what git says of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from gr00t.data.schema import ModalityConfigs, python_source
from gr00t.errors import ToolkitError
from gr00t.files import whole_folder, write_json

ROBOT_FILE = "modality_config_of_job.py"
REVISION_FILE = "REVISION"  # in the copy, which is no git checkout any more
_SKIPPED = (".git", ".venv", ".cache", "__pycache__")
# What lies below a folder with one of these is no code of ours.
_OF_A_RUN = (REVISION_FILE, "attempt.json", "run_config.json", "release.json")
_NOT_RUN = ("tests", "samples", "docs")  # nine tenths of the checkout, and no job needs them
_LARGEST_BYTES = 50 * 2**20


def snapshot_code(checkout: Path, run_dir: Path, robot: ModalityConfigs | None = None) -> Path:
    """Copy `checkout` to run_dir/code and describe it in run_dir/job/git.json and git.diff; returns the copy.

    A robot of the user's own goes into it as modality_config_of_job.py, which finetune_jobs/run.sh gives to the stage.

    Copied are tracked, changed and new files, without tests, samples and docs, and none that git ignores except those
    of configs/local. A copy of an earlier job gives way when the new one is whole.
    """
    files = _sources(checkout)
    code, job = run_dir / "code", run_dir / "job"
    revision = describe_git(checkout)
    with whole_folder(code, lock=False) as aside:
        for name, source in files.items():
            target = aside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        changes = "+changes" if revision["changed"] else ""
        if robot is not None:
            (aside / ROBOT_FILE).write_text(python_source(robot), encoding="utf-8")
        (aside / REVISION_FILE).write_text(f"{revision['revision']}{changes}\n" if revision["revision"] else "")
    job.mkdir(exist_ok=True)
    write_json(job / "git.json", revision)
    (job / "git.diff").write_bytes(_git(checkout, "diff", "HEAD", "--binary") or b"")
    return code


def _sources(checkout: Path) -> dict[str, Path]:
    """Name in the copy: file. A published tree has gr00t/ beside its scripts; the copy is a plain checkout again."""
    sources = {name: checkout / name for name in code_files(checkout)}
    gr00t = checkout.parent / "gr00t"
    if not (checkout / "gr00t").is_dir() and gr00t.is_dir():
        sources |= {f"gr00t/{name}": gr00t / name for name in code_files(gr00t)}
    return sources


def code_files(checkout: Path) -> list[str]:
    """The files of a snapshot, relative to `checkout`; without git, all but what the first level of .gitignore names.

    Run folders are left out, wherever in the checkout they lie.
    """
    listed = _git(checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is None:
        ignored = (checkout / ".gitignore").read_text().split() if (checkout / ".gitignore").is_file() else []
        names = [
            str(path.relative_to(checkout)) for path in _walk(checkout, {checkout / n.strip("/") for n in ignored})
        ]
    else:
        names = listed.decode().split("\0")
        names += [str(path.relative_to(checkout)) for path in (checkout / "configs" / "local").glob("*.yaml")]
    code = {name for name in names if name and Path(name).parts[0] not in _NOT_RUN and (checkout / name).is_file()}
    found = sorted(name for name in code if not _of_a_run(checkout, name))
    large = [name for name in found if (checkout / name).stat().st_size > _LARGEST_BYTES]
    if large:
        raise ToolkitError(
            f"{checkout / large[0]} has more than {_LARGEST_BYTES >> 20} MiB and would be copied with the code of "
            "every run. Move it out of the checkout, or name it in .gitignore."
        )
    return found


def describe_git(checkout: Path) -> dict[str, Any]:
    """Revision of the checkout, the files that differ from it, and the new ones; nulls where git knows nothing."""
    revision = _git(checkout, "rev-parse", "HEAD")
    changed = _git(checkout, "diff", "HEAD", "--name-only", "-z") or b""
    new = _git(checkout, "ls-files", "-z", "--others", "--exclude-standard") or b""
    return {
        "revision": revision.decode().strip() if revision else None,
        "changed": [name for name in changed.decode().split("\0") if name],
        "new": [name for name in new.decode().split("\0") if name],
    }


def _of_a_run(checkout: Path, name: str) -> bool:
    parents = Path(name).parents[:-1]  # without the checkout itself
    return any((checkout / parent / mark).is_file() for parent in parents for mark in _OF_A_RUN)


def _walk(folder: Path, ignored: set[Path]) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.name in _SKIPPED or path in ignored or path.is_symlink():
            continue
        found += _walk(path, ignored) if path.is_dir() else [path]
    return found


def _git(checkout: Path, *arguments: str) -> bytes | None:
    """Git's answer about `checkout`; None where it is no checkout of its own, or there is no git."""
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
