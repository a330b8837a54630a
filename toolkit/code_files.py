"""Which files are the code of a checkout, the copy of them that a job runs, and versions of code and packages.

Code is what git tracks and what the user names. Links and anything else that lies in a checkout may be private, and are
never copied.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from gr00t.data.schema import ModalityConfigs, python_source
from gr00t.errors import ToolkitError, first_of
from gr00t.file_replacement import copy_file, whole_folder, write_json
from toolkit.credentials import secrets_in, strings_of, text_of
from toolkit.installation import CHECKOUT, DISTRIBUTION, INSTALLED, ROOT

KEY = "cluster.files"  # names files that git does not track
ROBOT_FILE = "modality_config_of_job.py"
PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "datasets", "numpy", "av")
OPTIONAL = ("bitsandbytes", "peft", "deepspeed", "mani_skill", "sapien")
REVISION_FILE = "REVISION"  # in a job's copy, which is no git checkout any more
_ROOMS = ("gr00t", "toolkit", "finetune", "data_prep", "simulation", "configs", "finetune_jobs")
_SOURCES = (".py", ".yaml", ".sh")
_SKIPPED = (".git", ".venv", ".cache", "__pycache__")
# What lies below a folder with one of these is no code of ours.
_OF_A_RUN = (REVISION_FILE, "attempt.json", "run_config.json", "job/submitted.json", "release.json", "published.json")
_LOCAL = Path("configs") / "local"
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
    if INSTALLED and checkout == CHECKOUT:
        raise ToolkitError(
            f"Only a checkout's code can be published, and {checkout} is where pip installed this package. Clone the "
            "project and start the same command from the clone."
        )
    names = _listed(checkout, "--cached")
    if names is None:
        file = checkout / ".gitignore"
        ignored = file.read_text().split() if file.is_file() else []
        names = _walk(checkout, checkout, {checkout / name.strip("/") for name in ignored})
    code = {name for name in names if Path(name).parts[0] not in _NOT_RUN and not _of_a_run(checkout, name)}
    new = [name for name in new_files(checkout) if (checkout / name).is_symlink() and Path(name).parts[0] in _ROOMS]
    _refuse_links(checkout, [*code, *new])
    code |= set(_named_files(checkout, named, key))
    found = sorted(name for name in code if (checkout / name).is_file())
    large = [name for name in found if (checkout / name).stat().st_size > _LARGEST_BYTES]
    if large:
        raise ToolkitError(
            f"{checkout / large[0]} has more than {_LARGEST_BYTES >> 20} MiB and would be copied with the code of "
            "every run. Move it out of the checkout, or name it in .gitignore."
        )
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
        inside = [name]
        if (checkout / name).is_dir():
            _refuse_links(checkout, [name])
            listed = _listed(checkout, "--others", "--exclude-standard", "--", name)
            inside = _walk(checkout, checkout / name, set()) if listed is None else listed
        if not inside:
            raise ToolkitError(f"{key}: git tracks or ignores all files in {entry}. Name a file.")
        found += inside
    _refuse_links(checkout, found)
    return found


def _refuse_links(checkout: Path, names: Iterable[str]) -> None:
    """Neither the files nor a folder above one in the checkout may be a link."""
    paths = {path for name in names for path in [Path(name), *Path(name).parents[:-1]]}
    links = sorted(str(path) for path in paths if (checkout / path).is_symlink())
    if links:
        raise ToolkitError(
            f"{first_of(links)} in {checkout}: a link is not copied, since what it leads to may be private. Put the "
            "file or folder itself there, or take the link away."
        )


def _of_a_run(checkout: Path, name: str) -> bool:
    parents = Path(name).parents[:-1]  # without the checkout itself
    return any((checkout / parent / mark).is_file() for parent in parents for mark in _OF_A_RUN)


def _walk(checkout: Path, folder: Path, ignored: set[Path]) -> list[str]:
    """Files below `folder`, and links, which are not followed."""
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name in _SKIPPED or path in ignored:
            continue
        inside = path.is_dir() and not path.is_symlink()
        found += _walk(checkout, path, ignored) if inside else [str(path.relative_to(checkout))]
    return found


def snapshot_code(
    checkout: Path, run_dir: Path, robot: ModalityConfigs | None = None, named: Sequence[str] = ()
) -> Path:
    """Copy `checkout` to run_dir/code and describe it in run_dir/job/git.json and git.diff; returns the copy.

    A robot of the user's own goes into it as modality_config_of_job.py, which finetune_jobs/run.sh gives to the stage.
    A copy of an earlier job gives way when the new one is whole.
    """
    code, revision = run_dir / "code", describe_git(checkout)
    if code.is_symlink():
        code.unlink()  # to the copy of a launch, which other runs share
    with whole_folder(code, lock=False) as aside:
        copy_code(checkout, aside, revision, named)
        if robot is not None:
            (aside / ROBOT_FILE).write_text(python_source(robot), encoding="utf-8")
    describe_code(checkout, run_dir / "job", revision)
    return code


def copy_code(checkout: Path, target: Path, revision: Mapping[str, Any], named: Sequence[str] = ()) -> None:
    """Copy the code of `checkout` (code_files, and configs/local), of which describe_git says `revision`, into the
    folder `target`, with its permissions, and those of its folders."""
    for name, source in _sources(checkout, named).items():
        copy_file(source, target / name)
    changes = "+changes" if revision["changed"] else ""
    (target / REVISION_FILE).write_text(f"{revision['revision']}{changes}\n" if revision["revision"] else "")
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        original = checkout / folder.relative_to(target)
        if original.is_dir():  # whom it keeps out, its copy keeps out
            folder.chmod(folder.stat().st_mode & (original.stat().st_mode | 0o700))


def describe_code(checkout: Path, job: Path, revision: Mapping[str, Any]) -> None:
    """Write into the folder `job` what git says of a copy: git.json, and git.diff for the owner only."""
    job.mkdir(exist_ok=True)
    write_json(job / "git.json", revision)
    difference = git(checkout, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv") or b""
    (job / "git.diff").unlink(missing_ok=True)
    for_the_owner = partial(os.open, mode=0o600)  # the difference holds what was taken out, too
    with open(job / "git.diff", "xb", opener=for_the_owner) as file:
        file.write(difference)


def check_code(checkout: Path, named: Sequence[str], say: Callable[[str], None]) -> None:
    """Refuse code that no job can or should run from a copy: sources in the code's folders that git does not track,
    whose lack a job finds out only when it runs; links; and keys, which whoever reads the run folder would read."""
    copied = set(_named_files(checkout, named, KEY))
    sources = [name for name in new_files(checkout) if name.endswith(_SOURCES) and name not in copied]
    missing = [name for name in sources if Path(name).parts[0] in _ROOMS]
    if missing:
        raise ToolkitError(
            f"git does not track {first_of(missing)}, and only what it tracks is copied for the job. Add them "
            f"(git add {missing[0]}; no commit is needed), or name them: {KEY}=[{','.join(missing[:_SHOWN])}]. What no "
            "job needs may stand in .gitignore."
        )
    if left_out := [name for name in sources if "/" not in name]:
        say(f"note: git does not track {first_of(left_out)}; the job's copy is without ({KEY}=[FILE,...] adds files)")
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
    """Name in the copy: file. A published tree has gr00t/ beside its scripts, and a wheel configs/ and finetune_jobs/
    inside toolkit/; the copy is a plain checkout again."""
    if INSTALLED:
        installed = [str(path) for path in metadata.files(DISTRIBUTION) or [] if path.suffix != ".pyc"]
        code = [name for name in installed if not name.startswith("..") and ".dist-info/" not in name]
        return {re.sub("^toolkit/(?=configs/|finetune_jobs/)", "", name): checkout / name for name in sorted(code)}
    local = [str(_LOCAL / path.name) for path in sorted((checkout / _LOCAL).glob("*.yaml"))]
    sources = {name: checkout / name for name in code_files(checkout, [*named, *local], KEY)}
    gr00t = checkout.parent / "gr00t"
    if not (checkout / "gr00t").is_dir() and gr00t.is_dir():
        sources |= {f"gr00t/{name}": gr00t / name for name in code_files(gr00t)}
    return sources


def describe_git(checkout: Path) -> dict[str, Any]:
    """Revision of the checkout, the files that differ from it, and the new ones; nulls where git knows nothing."""
    revision = git(checkout, "rev-parse", "HEAD")
    changed = git(checkout, "diff", "HEAD", "--name-only", "-z") or b""
    return {
        "revision": revision.decode().strip() if revision else None,
        "changed": [name for name in changed.decode().split("\0") if name],
        "new": new_files(checkout),
    }


def versions() -> dict[str, Any]:
    """Python, packages (optional ones where installed) and the git revision (null outside a git checkout)."""
    names = [*PACKAGES, *(name for name in OPTIONAL if importlib.util.find_spec(name))]
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found, "git_revision": git_revision()}


def git_revision() -> str | None:
    """The commit of this checkout, with "+changes" where files differ from it. A job's copy has it in a file."""
    if (CHECKOUT / REVISION_FILE).is_file():
        return (CHECKOUT / REVISION_FILE).read_text().strip() or None
    place = ROOT if CHECKOUT.parent == ROOT else CHECKOUT  # a published tree is a repository one folder above
    revision, changed = (git(place, *ask) for ask in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"]))
    if revision is None or changed is None:
        return None
    return revision.decode().strip() + ("+changes" if changed.strip() else "")
