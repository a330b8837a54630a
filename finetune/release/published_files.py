"""Which files make a published tree and where each of them goes; and what must never be in them: keys
(toolkit.credentials), and what gives away this machine and its users."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from typing import NamedTuple

from finetune.recipe.recipe_identity import RELEASE_MARK
from gr00t.data.processor_files import FILES as PROCESSOR_FILES
from gr00t.errors import ToolkitError, free_space, in_bytes
from gr00t.model.checkpoint_folder import CONFIG_NAME, INDEX_NAME, weight_files
from gr00t.model.finished_checkpoint import MANIFEST
from toolkit.code_files import code_files, new_files, tracked_among
from toolkit.credentials import secret_variables, secrets_in, text_of
from toolkit.installation import CHECKOUT, ROOT

KEY = "files"  # names files that git does not track
MARK = "release.json"
CARD = "README.md"
EXPERIMENT = RELEASE_MARK.parent
RUN_FILES = [str(EXPERIMENT / name) for name in ("config.yaml", "dataset.json", "versions.json", RELEASE_MARK.name)]
ROBOT = "conflict_panda_config.py"
# only a published tree has it: scripts/ is a package, whatever else Python calls `scripts`
PACKAGE = '"""The scripts of a published tree; `from scripts.conflict_panda_config import MODALITY_CONFIG`."""\n'

_ROOMS = ("toolkit", "finetune", "data_prep", "simulation", "configs", "finetune_jobs")
_ENTRY = (ROBOT, "launch_finetune_local.py", "prepare_conflict_data.py")
_TOP = ("finetune.md", "LICENSE", "pyproject.toml", "constraints.txt")
_OPTIONAL = (INDEX_NAME, *(str(EXPERIMENT / name) for name in ("hardware.json", "conditions.json")))
_SUFFIXES = (".json", ".jinja", ".txt")
_IN_GUIDE = re.compile(r"\bdocs/[\w./-]+\.(?:png|md)\b")
_MARGIN = 1.02  # of disk space
_HOME = re.compile(r"(?<![\w.])(?:/home|/Users|[A-Za-z]:\\+Users\\)[/\\]*\w[^/\\\s\"'<>]*")
_ABSOLUTE = re.compile(r"(?<![\w.:/<>\\~$}-])/(?:[\w.+-]+/)+[\w.+-]+")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_SHOWN = 8  # findings


def code_sources(named: Sequence[str] = ()) -> dict[str, Path]:
    """{place in the tree: file}: gr00t/, scripts/, the guide with what it shows, licence and requirements.

    Only what git tracks, and the files and folders of the checkout that are `named`; site defaults (configs/local),
    tests and samples stay out. Raises ToolkitError for a checkout that lacks a part, and for links.
    """
    tracked = code_files(CHECKOUT)
    added = {*code_files(CHECKOUT, named, KEY)} - {*tracked}
    sources: dict[str, Path] = {}
    if ROOT != CHECKOUT:
        sources = {f"gr00t/{name}": ROOT / "gr00t" / name for name in code_files(ROOT / "gr00t")}
    for name in [*filter(_is_published, tracked), *added]:
        sources[name if name.startswith("gr00t/") else f"scripts/{name}"] = CHECKOUT / name
    guide = (ROOT / "finetune.md").read_text(encoding="utf-8")
    sources |= {name: ROOT / name for name in tracked_among(ROOT, [*_TOP, *_IN_GUIDE.findall(guide)])}
    needed = [*_TOP, "gr00t/__init__.py", *(f"scripts/{name}" for name in _ENTRY)]
    needed += ["scripts/finetune/__init__.py", "scripts/finetune_jobs/run.sh"]
    missing = [name for name in needed if name not in sources or not sources[name].is_file()]
    if missing:
        raise ToolkitError(f"{ROOT} is no complete checkout: it lacks {', '.join(missing)}. Clone or download it anew.")
    return sources


def new_code(named: Sequence[str]) -> list[str]:
    """Files beside those that are published which git does not track, and which are not `named`."""
    copied = {*code_files(CHECKOUT, named, KEY)}
    return [name for name in new_files(CHECKOUT) if _is_published(name) and name not in copied]


def _is_published(name: str) -> bool:
    room, *inside = Path(name).parts
    if not inside:
        return (name.endswith(".py") and name != "__init__.py") or name == ".gitignore"
    is_local = name.startswith("configs/local/") and name != "configs/local/README.md"
    return room == "gr00t" or (room in _ROOMS and not is_local)


def small_files(checkpoint: Path) -> dict[str, Path]:
    """{place in the checkpoint: file} of all that a release holds of a finished checkpoint, but its weights.

    Raises ToolkitError for a folder that lacks one of them: an unfinished checkpoint, or one of another project.
    """
    needed = [CONFIG_NAME, *PROCESSOR_FILES, *(f"processor/{name}" for name in PROCESSOR_FILES), *RUN_FILES]
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    if missing:
        raise ToolkitError(
            f"checkpoint={checkpoint} lacks {', '.join(missing)}: it is no finished checkpoint of this toolkit. Give "
            "the output_dir of a fine-tune that has ended (launch_finetune_local.py says where it is)."
        )
    tokenizer = (path for path in (checkpoint / "processor" / "vlm").rglob("*") if path.suffix in _SUFFIXES)
    names = {*needed, *_OPTIONAL, *(path.relative_to(checkpoint).as_posix() for path in tokenizer)}
    return {name: checkpoint / name for name in sorted(names) if (checkpoint / name).is_file()}


def left_out(checkpoint: Path) -> list[str]:
    """What else lies in a checkpoint folder and does not go into a release; folders are named once."""
    taken = {*small_files(checkpoint), *(path.name for path in weight_files(checkpoint)), str(MANIFEST)}
    others = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()} - taken
    named = ("processor/", "experiment_cfg/")
    return sorted({x if x.startswith(named) or "/" not in x else x.split("/")[0] + "/" for x in others})


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


# -- what must not be published ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What gives this machine away: its folders, and those a run was given (absolute paths); names (login, host); the
    values of secret variables, with the variables' names."""

    folders: tuple[str, ...] = ()
    run_folders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    secrets: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls, run_folders: Iterable[str] = ()) -> Machine:
        """This machine, and the folders that a run's own records name; those of one part, such as /data, which every
        second machine has, are left out."""
        home, host = str(Path.home()), socket.gethostname()
        names = {host, host.split(".")[0], Path(home).name}
        with suppress(OSError, KeyError):  # a user without a name, as in some containers
            names.add(getuser())
        own, given = (
            sorted(folder for folder in folders if len(Path(folder).parts) > 2)
            for folders in ({str(CHECKOUT), str(ROOT), str(Path.cwd())} - {home}, set(run_folders))
        )
        return cls((*own, home), tuple(given), tuple(sorted(n for n in names if len(n) > 2)), secret_variables())


class Finding(NamedTuple):
    """A line that must not be published. What stands there is not repeated."""

    place: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.what}"


def refuse_private(contents: Mapping[str, Path | str], machine: Machine) -> None:
    """Raise ToolkitError, naming file and line, where a file (or a text) of a release holds a key or gives away
    this machine. `contents`: by their place in the release."""
    found = list(find_private(contents, machine))
    if found:
        listed = "\n  ".join(map(str, found[:_SHOWN])) + (f"\n  and {len(found) - _SHOWN} more" * (len(found) > _SHOWN))
        raise ToolkitError(
            f"The release would hold what must not be published:\n  {listed}\n"
            "Take it out there, then start the same command again. A key that has been in a file is best replaced by a "
            "new one; a line that holds an example may be marked: # pragma: allowlist secret"
        )


def find_private(contents: Mapping[str, Path | str], machine: Machine) -> Iterator[Finding]:
    """Everything of that kind, file by file, and files in which nobody can look."""
    texts = {place: content if isinstance(content, str) else text_of(content) for place, content in contents.items()}
    code = set(re.findall(r"[\w-]+", "\n".join(text or "" for place, text in texts.items() if not _of_run(place))))
    # A login such as "train" or "data" is a word of the toolkit as well and gives nobody away.
    names = [name for name in machine.names if not set(re.findall(r"[\w-]+", name)) <= code]
    for place, text in sorted(texts.items()):
        shown = str(contents[place]) if isinstance(contents[place], Path) else place
        if text is None:
            yield Finding(shown, 1, "neither text (UTF-8), nor a PNG, JPEG or MP4 file, nor weights in safetensors")
            continue
        patterns = [(what, pattern) for what, pattern in _patterns(place, machine, names) if pattern.search(text)]
        found: dict[int, str] = {}
        for number, line in enumerate(text.splitlines(), start=1) if patterns else ():
            what = next((what for what, pattern in patterns if pattern.search(line)), None)
            found |= {number: what} if what else {}
        found |= dict(secrets_in(text, place, named=Path(place).name not in _VOCABULARY))
        yield from (Finding(shown, line, what) for line, what in sorted(found.items()))


def _of_run(place: str) -> bool:
    """Whether a file was made by a run, and not by the authors of the code."""
    return place.startswith("checkpoints/") or place == "README.md"


def _patterns(place: str, machine: Machine, names: list[str]) -> list[tuple[str, re.Pattern[str]]]:
    """What to look for in a file. A vocabulary holds words of all kinds, and pieces of paths among them."""
    found = [(f"the value of {name}", re.compile(re.escape(value))) for value, name in machine.secrets.items()]
    if Path(place).name in _VOCABULARY:
        return found
    folders = [*machine.folders, *(machine.run_folders if _of_run(place) else ())]
    found += [("a folder of this machine", _whole(folder)) for folder in folders] + [("a home folder", _HOME)]
    if _of_run(place):
        found += [("an absolute path", _ABSOLUTE), *(("a login or host name", _whole(name)) for name in names)]
    return found


def _whole(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w./-]){re.escape(text)}(?![\w-])")
