"""What a job runs: a copy of the checkout's code in the run folder, and what git says of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune.code_files import REVISION_FILE, code_files, git, in_words, new_files, refuse_new_sources
from finetune.contents import strings_of, text_of
from finetune.credentials import secrets_in
from gr00t.data.schema import ModalityConfigs, python_source
from gr00t.errors import ToolkitError
from gr00t.files import copy_file, whole_folder, write_json

ROBOT_FILE = "modality_config_of_job.py"
KEY = "cluster.files"  # names files that git does not track
_LOCAL = Path("configs") / "local"
_SHOWN = 5


def snapshot_code(
    checkout: Path, run_dir: Path, robot: ModalityConfigs | None = None, named: Sequence[str] = ()
) -> Path:
    """Copy `checkout` to run_dir/code and describe it in run_dir/job/git.json and git.diff; returns the copy.

    A robot of the user's own goes into it as modality_config_of_job.py, which finetune_jobs/run.sh gives to the stage.

    Copied are tracked files as they are now, without tests, samples, docs and benchmarks, the `named` ones, and
    configs/local; with their permissions, and those of their folders. A copy of an earlier job gives way when the new
    one is whole.
    """
    files = _sources(checkout, named)
    code, job = run_dir / "code", run_dir / "job"
    revision = describe_git(checkout)
    with whole_folder(code, lock=False) as aside:
        for name, source in files.items():
            copy_file(source, aside / name)
        changes = "+changes" if revision["changed"] else ""
        if robot is not None:
            (aside / ROBOT_FILE).write_text(python_source(robot), encoding="utf-8")
        (aside / REVISION_FILE).write_text(f"{revision['revision']}{changes}\n" if revision["revision"] else "")
        _close_folders(checkout, aside)
    job.mkdir(exist_ok=True)
    write_json(job / "git.json", revision)
    difference = git(checkout, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv") or b""
    (job / "git.diff").unlink(missing_ok=True)
    with open(job / "git.diff", "xb", opener=_for_the_owner) as file:  # it holds what was taken out, too
        file.write(difference)
    return code


def check_code(checkout: Path, named: Sequence[str], say: Callable[[str], None]) -> None:
    """Refuse code that no job can or should run from a copy: sources that git does not track, links, and keys, which
    whoever reads the run folder would read."""
    left_out = refuse_new_sources(checkout, named, KEY)
    if left_out:
        say(f"note: git does not track {in_words(left_out)}; the job's copy is without ({KEY}=[FILE,...] adds files)")
    found = []
    for name, path in _sources(checkout, named).items():
        text = text_of(path) or strings_of(path.read_bytes())
        found += [f"{path}:{line}: {kind}" for line, kind in secrets_in(text, name)]
    if found:
        listed = "\n  ".join(found[:_SHOWN]) + f"\n  and {len(found) - _SHOWN} more" * (len(found) > _SHOWN)
        raise ToolkitError(
            f"The code is copied to the run folder, which others may read, and holds keys:\n  {listed}\nTake them out "
            "(wandb login and hf auth login keep them in your home folder), or mark a line that holds an example: "
            "# pragma: allowlist secret"
        )


def _sources(checkout: Path, named: Sequence[str]) -> dict[str, Path]:
    """Name in the copy: file. A published tree has gr00t/ beside its scripts; the copy is a plain checkout again."""
    local = [str(_LOCAL / path.name) for path in sorted((checkout / _LOCAL).glob("*.yaml"))]
    sources = {name: checkout / name for name in code_files(checkout, [*named, *local], KEY)}
    gr00t = checkout.parent / "gr00t"
    if not (checkout / "gr00t").is_dir() and gr00t.is_dir():
        sources |= {f"gr00t/{name}": gr00t / name for name in code_files(gr00t)}
    return sources


def _close_folders(checkout: Path, copy: Path) -> None:
    """Whom a folder of the checkout keeps out, its copy keeps out."""
    for folder in [path for path in copy.rglob("*") if path.is_dir()] + [copy]:
        original = checkout / folder.relative_to(copy)
        if original.is_dir():
            folder.chmod(folder.stat().st_mode & (original.stat().st_mode | 0o700))


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def describe_git(checkout: Path) -> dict[str, Any]:
    """Revision of the checkout, the files that differ from it, and the new ones; nulls where git knows nothing."""
    revision = git(checkout, "rev-parse", "HEAD")
    changed = git(checkout, "diff", "HEAD", "--name-only", "-z") or b""
    return {
        "revision": revision.decode().strip() if revision else None,
        "changed": [name for name in changed.decode().split("\0") if name],
        "new": new_files(checkout),
    }
