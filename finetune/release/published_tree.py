"""The published tree: everything is refused before the first byte, then the tree is made aside and renamed, and sent to
the Hugging Face hub where that is asked. The token is the client's own business: it is never read here.

Refused is what must never be published: keys (toolkit.credentials), and what gives away this machine and its users."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from getpass import getuser
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from omegaconf import OmegaConf

from finetune.recipe.recipe_identity import differences, robot_of
from finetune.release import ReleaseConfig
from finetune.release.model_card import check_card, write_card
from finetune.release.run_facts import EXPERIMENT, Licence, RunFacts, left_out, licence_of, read_facts, small_files
from gr00t.data.schema import comparable
from gr00t.errors import ToolkitError, disk_errors, free_space, in_bytes
from gr00t.file_reading import parsing, read_json
from gr00t.file_replacement import copy_file, whole_folder
from gr00t.model.checkpoint_folder import is_hub_error, weight_files
from gr00t.model.finished_checkpoint import MANIFEST, write_manifest
from toolkit.code_files import code_files, in_words, new_files, tracked_among
from toolkit.credentials import secret_variables, secrets_in, text_of
from toolkit.installation import CHECKOUT, ROOT
from toolkit.shared_keys import modality_configs

FORMAT = 1
KEY = "files"  # names files that git does not track
MARK = "release.json"
CARD = "README.md"
WEIGHTS = ".safetensors"
ROBOT = "conflict_panda_config.py"
# only a published tree has it: scripts/ is a package, whatever else Python calls `scripts`
PACKAGE = '"""The scripts of a published tree; `from scripts.conflict_panda_config import MODALITY_CONFIG`."""\n'

_ROOMS = ("toolkit", "finetune", "data_prep", "simulation", "configs", "finetune_jobs")
_ENTRY = (ROBOT, "launch_finetune_local.py", "prepare_conflict_data.py")
_TOP = ("finetune.md", "LICENSE", "pyproject.toml", "constraints.txt")
_LINK = re.compile(r"\]\((?!\w+:|#|/)([\w./-]+)")
_MARGIN = 1.02  # of disk space
_HOME = re.compile(r"(?<![\w.])(?:/home|/Users|[A-Za-z]:\\+Users\\)[/\\]*\w[^/\\\s\"'<>]*")
_ABSOLUTE = re.compile(r"(?<![\w.:/<>\\~$}-])/(?:[\w.+-]+/)+[\w.+-]+")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_SHOWN = 8  # findings


@dataclass(frozen=True)
class Release:
    """A published tree: its folder, its files, what a user should know, and its address where it was uploaded."""

    out: Path
    files: list[str]
    notes: list[str] = field(default_factory=list)
    made: bool = True
    address: str | None = None

    def lines(self) -> list[str]:
        """What is printed of it."""
        size = sum((self.out / name).stat().st_size for name in self.files)
        verb = "is made" if self.made else "was there and is sent as it is"
        lines = [f"{self.out} {verb}: {len(self.files)} files, {size / 1e9:.2f} GB. Its card is {self.out / CARD}."]
        lines += [f"note: {note}" for note in self.notes]
        return lines + ([f"uploaded: {self.address}"] if self.address else [])


def release(configs: Sequence[ReleaseConfig]) -> Release:
    """Make the tree of these runs at their common `out`, and upload it where that is asked."""
    config, out = configs[0], Path(configs[0].out)
    there = out.is_dir() and any(out.iterdir())
    if there and not (out / MARK).is_file():
        raise ToolkitError(
            f"out={out} holds other files than a release; it is never replaced. Give another, out=FOLDER."
        )
    if there and not config.overwrite and not config.upload:
        raise ToolkitError(f"{out} is a release already. Say overwrite=true to make it again, or out=FOLDER.")
    if config.upload:  # making a release takes minutes: refused before where nobody is logged in
        with _hub(str(config.repo_id)) as api:
            api.whoami()
    found = _existing(out) if there and not config.overwrite else _make(configs, out)
    if not config.upload:
        return found
    return replace(found, address=upload(out, found.files, str(config.repo_id), private=config.private))


def _existing(out: Path) -> Release:
    """A release that is there: its files, edited ones too, looked at again before they leave."""
    files = [str(name) for name in read_json(out / MARK).get("files") or []]
    whole = [n for n in files if ".." not in Path(n).parts and (out / n).is_file() and not (out / n).is_symlink()]
    bad = [name for name in files if name not in whole]
    if bad or CARD not in files:
        raise ToolkitError(f"{out} is no whole release any more ({', '.join(bad[:3]) or CARD}). Say overwrite=true.")
    check_card((out / CARD).read_text(encoding="utf-8"), out / CARD)
    refuse_private({name: out / name for name in files}, Machine.here())
    return Release(out, files, made=False)


def _make(configs: Sequence[ReleaseConfig], out: Path) -> Release:
    config, runs = configs[0], []
    for of in configs:
        with parsing(Path(of.checkpoint)):
            runs.append(read_facts(of))
    for run, of in zip(runs, configs, strict=True):
        _check_robot(run, of)
    # one licence for all weights of a release: several bases with different terms need releases of their own
    licence, *others = (licence_of(run.base, run.base_model, config.licence, config.repo_id) for run in runs)
    if any((other.id, other.name, other.link) != (licence.id, licence.name, licence.link) for other in others):
        raise ToolkitError("These runs start from bases with different licences. Release them one by one.")
    sources, texts = _tree(runs, licence, config)
    refuse_private({**sources, **texts}, Machine.here(folder for run in runs for folder in run.folders))
    check_space(out, sources.values(), config.link)
    remedy = "Make room, or give another folder, out=FOLDER; then start the same command again."
    with disk_errors(out, remedy), whole_folder(out) as aside:
        for place, source in sources.items():
            (_link if config.link and source.suffix == WEIGHTS else copy_file)(source, aside / place)
        for place, text in texts.items():
            (aside / place).write_text(text, encoding="utf-8")
        for run in runs:
            write_manifest(aside / "checkpoints" / run.split)
    return Release(out, sorted({*sources, *texts}), _notes(runs, licence, config.files))


def _check_robot(run: RunFacts, config: ReleaseConfig) -> None:
    """The tree holds the robot's file, and its readers compare the checkpoint with it: refuse another one."""
    trained = {"modality_config": robot_of(run.checkpoint, run.tag)}
    different = differences(trained, {"modality_config": comparable(modality_configs(config))})
    if different:
        listed = "\n  ".join(different)
        raise ToolkitError(
            f"{config.modality_config or ROBOT} is not the one that {run.checkpoint} was trained with:\n  {listed}\n"
            "Give that one, modality_config=FILE."
        )


def _tree(runs: Sequence[RunFacts], licence: Licence, config: ReleaseConfig) -> tuple[dict[str, Path], dict[str, str]]:
    """What goes in, by its place: files of elsewhere, and texts made here."""
    folder = Path(config.out).name
    card = write_card(runs, licence, repo_id=config.repo_id, datasets=config.datasets, folder=folder)
    sources = {**code_sources(config.files), **licence.files}
    if config.modality_config is not None:
        sources[f"scripts/{ROBOT}"] = Path(config.modality_config)
    texts, manifests = {"scripts/__init__.py": PACKAGE, CARD: card}, []
    for run in runs:
        place = f"checkpoints/{run.split}"
        sources |= {f"{place}/{name}": path for name, path in small_files(run.checkpoint).items()}
        sources |= {f"{place}/{path.name}": path for path in weight_files(run.checkpoint)}
        # Checkpoints of an earlier toolkit have the folders of their machine in it.
        texts[f"{place}/{EXPERIMENT}/config.yaml"] = OmegaConf.to_yaml(OmegaConf.create(run.config))
        manifests.append(f"{place}/{MANIFEST}")
    sources = {place: source for place, source in sources.items() if place not in texts}
    mark = {
        "format": FORMAT,
        "runs": {run.split: str(run.mark.get("identity")) for run in runs},
        "files": sorted({*sources, *texts, MARK, *manifests}),
    }
    texts[MARK] = json.dumps(mark, indent=2) + "\n"
    return sources, texts


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise ToolkitError(
            f"link=true: {source} cannot be shared with the release ({error.strerror}): both must lie on one disk that "
            "has hard links. Leave link=true out."
        ) from None


def _notes(runs: Sequence[RunFacts], licence: Licence, named: Sequence[str]) -> list[str]:
    notes = [note for run in runs for note in run.results.notes]
    new = new_code(named)
    if new:
        notes.append(f"not in the release, since git does not track it: {in_words(new)} (git add, or {KEY}=[FILE,...])")
    for run in runs:
        others = left_out(run.checkpoint)
        if others:
            notes.append(f"not in the release: {', '.join(others[:8])} of {run.checkpoint}")
        if run.hardware is None:
            notes.append(f"{run.checkpoint} does not say what it was trained on; the card says so")
        if not (run.results.open_loop or run.results.closed_loop):
            notes.append(f"the card has no results of {run.split}: evaluate it first, or give reports_dir=FOLDER")
    if any(run.base_model is None for run in runs):
        notes.append("the base's hub id is unknown; say base_model=owner/name where it has one")
    if licence.id is None:
        notes.append("the licence of the weights is unknown; say licence=...")
    return notes


# -- code of the checkout ----------------------------------------------------------------------------------------------


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
    sources |= {name: ROOT / name for name in tracked_among(ROOT, [*_TOP, *_linked("finetune.md")])}
    needed = [*_TOP, "gr00t/__init__.py", *(f"scripts/{name}" for name in _ENTRY)]
    needed += ["scripts/finetune/__init__.py", "scripts/finetune_jobs/run.sh"]
    missing = [name for name in needed if name not in sources or not sources[name].is_file()]
    if missing:
        raise ToolkitError(
            f"{ROOT} is no complete checkout: it lacks {', '.join(missing)}. Clone or download it again."
        )
    return sources


def _linked(page: str, known: frozenset[str] = frozenset()) -> frozenset[str]:
    """The pages and images of docs/ that a page leads to, also by way of other pages; `known` were found before."""
    if not page.endswith(".md") or not (ROOT / page).is_file():
        return known
    for target in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        found = os.path.normpath(f"{os.path.dirname(page)}/{target}".lstrip("/"))
        if found.startswith("docs/") and found not in known:
            known = _linked(found, known | {found})
    return known


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


def check_space(out: Path, files: Iterable[Path], linked: bool) -> None:
    """Refuse before the first byte where the disk cannot hold the release beside an older one."""
    needed = sum(path.stat().st_size for path in files if not (linked and path.suffix == WEIGHTS))
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


# -- the hub -----------------------------------------------------------------------------------------------------------


@contextmanager
def _hub(repo_id: str, rest: str = "") -> Iterator[huggingface_hub.HfApi]:
    """The hub's client; its refusals as what the user can do about them, and without its messages, which may show an
    address with a token."""
    try:
        yield huggingface_hub.HfApi()
    except Exception as error:
        if not is_hub_error(error):
            raise
        answer = error.response if isinstance(error, HfHubHTTPError) else None
        status = None if answer is None else answer.status_code
        kind = f"{type(error).__name__}{f', status {status}' if status else ''}"
        what = (
            f"the hub cannot be reached or did not take {repo_id} ({kind}). Where there is internet, start the same "
            "command again."
        )
        if isinstance(error, LocalTokenNotFoundError) or status == 401:
            what = "nobody is logged in, or the token is no longer valid. Run `hf auth login`."
        elif status == 403:
            what = (
                f"this account may not write to {repo_id}. Take a token with write access (`hf auth login`), or "
                "another repo_id=owner/name."
            )
        raise ToolkitError(f"upload=true: {what}{rest}") from None


def upload(tree: Path, places: Sequence[str], repo_id: str, *, private: bool) -> str:
    """Make the repository if there is none, and send these files of the tree in one commit; its address."""
    with _hub(repo_id, f" {tree} is whole and will be sent as it is.") as api:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=tree,
            allow_patterns=list(places),
            commit_message=f"Release {tree.name}",
        )
    return f"https://huggingface.co/{repo_id}"
