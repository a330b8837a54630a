"""Which files make a published tree, and where each of them goes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from finetune.checkout import CHECKOUT, ROOT
from finetune.code_files import code_files, new_files, tracked_among
from finetune.release_mark import RELEASE_MARK
from gr00t.data.processor_files import FILES as PROCESSOR_FILES
from gr00t.errors import ToolkitError
from gr00t.files import free_space, in_bytes
from gr00t.model.checkpoint_folder import CONFIG_NAME, INDEX_NAME, weight_files
from gr00t.model.manifest import MANIFEST

KEY = "files"  # names files that git does not track
MARK = "release.json"
CARD = "README.md"
EXPERIMENT = RELEASE_MARK.parent
RUN_FILES = ("config.yaml", "dataset.json", "versions.json", RELEASE_MARK.name)
OPTIONAL_RUN_FILES = ("hardware.json", "conditions.json")
_ROOMS = ("finetune", "data_prep", "simulation", "configs", "finetune_jobs")
ROBOT = "conflict_panda_config.py"
_ENTRY = (ROBOT, "launch_finetune_local.py", "prepare_conflict_data.py")
_TOP = ("finetune.md", "LICENSE", "pyproject.toml", "constraints.txt")
_SUFFIXES = (".json", ".jinja", ".txt")
_IN_GUIDE = re.compile(r"\bdocs/[\w./-]+\.(?:png|md)\b")
_MARGIN = 1.02  # of disk space
_PACKAGE = '"""The scripts of a published tree; `from scripts.conflict_panda_config import MODALITY_CONFIG`."""\n'


def code_sources(named: Sequence[str] = ()) -> dict[str, Path]:
    """{place in the tree: file}: gr00t/, scripts/, the guide with what it shows, licence and requirements.

    Only what git tracks, and the files and folders of the checkout that are `named`; site defaults (configs/local),
    tests and samples stay out. Raises ToolkitError for a checkout that lacks a part, and for links.
    """
    tracked = code_files(CHECKOUT)
    added = {*code_files(CHECKOUT, named, KEY)} - {*tracked}
    sources = (
        {f"gr00t/{name}": ROOT / "gr00t" / name for name in code_files(ROOT / "gr00t")} if ROOT != CHECKOUT else {}
    )
    for name in [*filter(_is_published, tracked), *added]:
        sources[name if name.startswith("gr00t/") else f"scripts/{name}"] = CHECKOUT / name
    guide = (ROOT / "finetune.md").read_text(encoding="utf-8")
    sources |= {name: ROOT / name for name in tracked_among(ROOT, [*_TOP, *_IN_GUIDE.findall(guide)])}
    _refuse_missing(sources)
    return sources


def new_code(named: Sequence[str]) -> list[str]:
    """Files beside those that are published which git does not track, and which are not `named`."""
    copied = {*code_files(CHECKOUT, named, KEY)}
    return [name for name in new_files(CHECKOUT) if _is_published(name) and name not in copied]


def _is_published(name: str) -> bool:
    room, *inside = Path(name).parts
    if not inside:
        return (name.endswith(".py") and name != "__init__.py") or name == ".gitignore"
    return room == "gr00t" or (room in _ROOMS and not _is_local(name))


def _is_local(name: str) -> bool:
    return name.startswith("configs/local/") and name != "configs/local/README.md"


def _refuse_missing(sources: dict[str, Path]) -> None:
    needed = [*_TOP, "gr00t/__init__.py", *(f"scripts/{name}" for name in _ENTRY)]
    needed += [f"scripts/{room}/{name}" for room, name in (("finetune", "__init__.py"), ("finetune_jobs", "run.sh"))]
    missing = [name for name in needed if name not in sources or not sources[name].is_file()]
    if missing:
        raise ToolkitError(f"{ROOT} is no complete checkout: it lacks {', '.join(missing)}. Clone or download it anew.")


def package_files() -> dict[str, str]:
    """{place: text} of what only a published tree has: scripts/ is a package, whatever else Python calls `scripts`."""
    return {"scripts/__init__.py": _PACKAGE}


def small_files(checkpoint: Path) -> dict[str, Path]:
    """{place in the checkpoint: file} of all that a release holds of a finished checkpoint, but its weights.

    Raises ToolkitError for a folder that lacks one of them: an unfinished checkpoint, or one of another project.
    """
    names = [CONFIG_NAME, *PROCESSOR_FILES, *(f"processor/{name}" for name in PROCESSOR_FILES)]
    names += [str(EXPERIMENT / name) for name in RUN_FILES]
    if (checkpoint / INDEX_NAME).is_file():
        names.append(INDEX_NAME)
    missing = [name for name in names if not (checkpoint / name).is_file()]
    if missing:
        raise ToolkitError(
            f"checkpoint={checkpoint} lacks {', '.join(missing)}: it is no finished checkpoint of this toolkit. Give "
            "the output_dir of a fine-tune that has ended (launch_finetune_local.py says where it is)."
        )
    names += [str(EXPERIMENT / name) for name in OPTIONAL_RUN_FILES if (checkpoint / EXPERIMENT / name).is_file()]
    tokenizer = (path for path in (checkpoint / "processor" / "vlm").rglob("*") if path.suffix in _SUFFIXES)
    names += [path.relative_to(checkpoint).as_posix() for path in tokenizer if path.is_file()]
    return {name: checkpoint / name for name in sorted(set(names))}


def left_out(checkpoint: Path) -> list[str]:
    """What else lies in a checkpoint folder and does not go into a release; folders are named once."""
    taken = {*small_files(checkpoint), *(path.name for path in weight_files(checkpoint)), str(MANIFEST)}
    found = []
    for path in checkpoint.rglob("*"):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and name not in taken:
            found.append(name if "/" not in name or name.startswith(("processor/", "experiment_cfg/")) else _top(name))
    return sorted(set(found))


def _top(name: str) -> str:
    return name.split("/")[0] + "/"


def check_space(out: Path, files: Iterable[Path], linked: bool) -> None:
    """Refuse before the first byte where the disk cannot hold the release beside an older one."""
    needed = sum(path.stat().st_size for path in files if not (linked and path.suffix == ".safetensors"))
    free = free_space(out.parent)
    if needed * _MARGIN > free:
        remedy = "" if linked else ", or link=true to share the weights with the checkpoint"
        raise ToolkitError(
            f"{out.parent} has {in_bytes(free)} free, but the release takes {in_bytes(needed)}. Free some space, "
            f"give a folder on another disk, out=FOLDER{remedy}."
        )
