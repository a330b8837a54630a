"""Publishing a folder on the Hugging Face hub: looked through for what must never be published (keys, and what gives
away a machine and its users), made aside and renamed, its card, and sent in one commit.

The token is the client's own business: it is never read here."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from getpass import getuser
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import yaml
from huggingface_hub import CardData, CommitOperationAdd, CommitOperationDelete, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RevisionNotFoundError
from jinja2 import Environment, StrictUndefined

from gr00t.errors import ToolkitError, disk_errors, free_space, in_bytes
from gr00t.file_reading import read_json
from gr00t.file_replacement import copy_file, whole_folder
from gr00t.model.checkpoint_folder import is_hub_error
from toolkit.credentials import secret_variables, secrets_in, text_of
from toolkit.installation import CHECKOUT, ROOT

CARD = "README.md"
HUB = "https://huggingface.co"
_MARGIN = 1.02  # of disk space
_HOME = re.compile(r"(?<![\w.])(?:/home|/Users|[A-Za-z]:\\+Users\\)[/\\]*\w[^/\\\s\"'<>]*")
# also behind the name of a host (node:/scratch/a), or as an address (file:///scratch/a)
_ABSOLUTE = re.compile(r"(?:(?<![\w./<>\\~$}-])|(?<=file://))/(?:[\w.+-]+/)+[\w.+-]+")
_WORD = re.compile(r"[\w-]+")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_SHOWN = 8  # findings
# what Python, pip, the toolkit's caches and macOS leave in a folder that is used
_MADE_AGAIN = re.compile(r"__pycache__|.*\.egg-info|\.cache|\.DS_Store|\._.*")

Look = Callable[[dict[str, Path]], object]


@dataclass(frozen=True)
class Kind:
    """What is published: how messages call it, the file that marks its folder, and the hub's type of repository.

    replaces: an upload removes what the repository holds in the published folders and is no longer published.
    """

    noun: str
    mark: str
    repo_type: str
    replaces: bool = False


@dataclass(frozen=True)
class Published:
    """A published folder: its place, its files, what a user should know, and its address where it was uploaded; `tag`
    is what its commit is called besides."""

    out: Path
    files: list[str]
    notes: list[str] = field(default_factory=list)
    made: bool = True
    tag: str | None = None
    address: str | None = None

    def lines(self) -> list[str]:
        """What is printed of it."""
        size = sum((self.out / name).stat().st_size for name in self.files)
        verb = "is made" if self.made else "was there and is sent as it is"
        lines = [f"{self.out} {verb}: {len(self.files)} files, {size / 1e9:.2f} GB. Its card is {self.out / CARD}."]
        lines += [f"note: {note}" for note in self.notes]
        return lines + ([f"uploaded: {self.address}"] if self.address else [])


def publish(config: Any, kind: Kind, make: Callable[[], Published], look: Look) -> Published:
    """Make the folder config.out, and upload it where that is asked; one that is there is sent as it is.

    config has out, repo_id, upload, private and overwrite. make: makes it, whole or not at all. look: raises where
    these files, by their places, may not be published.
    """
    out = Path(config.out)
    there = out.is_dir() and any(out.iterdir())
    if there and not (out / kind.mark).is_file():
        raise ToolkitError(
            f"out={out} holds other files than a {kind.noun}; it is never replaced. Give another, out=FOLDER."
        )
    if there and not config.overwrite and not config.upload:
        raise ToolkitError(f"{out} is a {kind.noun} already. Say overwrite=true to make it again, or out=FOLDER.")
    if there and config.overwrite:
        _refuse_added(out, kind)
    if config.upload:  # making one takes minutes: refused before where nobody is logged in
        with _hub(str(config.repo_id)) as api:
            api.whoami()
    found = _existing(out, kind, look) if there and not config.overwrite else make()
    if not config.upload:
        return found
    return replace(found, address=upload(found, str(config.repo_id), kind, private=config.private))


def _refuse_added(out: Path, kind: Kind) -> None:
    """Making it again would delete what was put into it since: a run that was made there, another checkpoint."""
    known = set(read_json(out / kind.mark).get("files") or [])
    places = (path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_symlink() or not path.is_dir())
    added = [
        place.as_posix()
        for place in places
        if place.as_posix() not in known and not any(_MADE_AGAIN.fullmatch(part) for part in place.parts)
    ]
    if added:
        more = f" and {len(added) - 1} more" * (len(added) > 1)
        raise ToolkitError(
            f"{out} holds {added[0]}{more}, which the {kind.noun} did not have when it was made, and overwrite=true "
            "would delete it. Move it away, or give another folder, out=FOLDER."
        )


def _existing(out: Path, kind: Kind, look: Look) -> Published:
    """One that is there: its files, edited ones too, looked at again before they leave."""
    mark = read_json(out / kind.mark)
    files = [str(name) for name in mark.get("files") or []]
    whole = [n for n in files if ".." not in Path(n).parts and (out / n).is_file() and not (out / n).is_symlink()]
    bad = [name for name in files if name not in whole]
    if bad or CARD not in files:
        raise ToolkitError(
            f"{out} is no whole {kind.noun} any more ({', '.join(bad[:3]) or CARD}). Say overwrite=true."
        )
    check_card(out / CARD)
    look({name: out / name for name in files})
    return Published(out, files, made=False, tag=mark.get("tag"))


@contextmanager
def new_folder(
    out: Path, kind: Kind, sources: Mapping[str, Path], texts: Mapping[str, str], linked: Collection[str], sharing: str
) -> Iterator[Path]:
    """Yield the folder that will be `out`, with copies of `sources` and with `texts`, each by its place in it.

    linked: places that are hard links, which take no room; sharing: what link=true would share with what. Raises
    ToolkitError before the first byte where the disk cannot hold it beside an older one.
    """
    needed = sum(source.stat().st_size for place, source in sources.items() if place not in linked)
    free = free_space(out.parent)
    if needed * _MARGIN > free:
        otherwise = "" if linked else f", or link=true to share {sharing}"
        raise ToolkitError(
            f"{out.parent} has {in_bytes(free)} free, but the {kind.noun} takes {in_bytes(needed)}. Free some space, "
            f"give a folder on another disk, out=FOLDER{otherwise}."
        )
    remedy = "Make room, or give another folder, out=FOLDER; then start the same command again."
    with disk_errors(out, remedy), whole_folder(out) as aside:
        for place, source in sources.items():
            if place in linked:
                _link(source, aside / place, kind.noun)
            else:
                copy_file(source, aside / place)
        for place, text in texts.items():
            (aside / place).parent.mkdir(parents=True, exist_ok=True)
            (aside / place).write_text(text, encoding="utf-8")
        yield aside


def _link(source: Path, target: Path, noun: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise ToolkitError(
            f"link=true: {source} cannot be shared with the {noun} ({error.strerror}): both must lie on one disk that "
            "has hard links. Leave link=true out."
        ) from None


# -- what is private --------------------------------------------------------------------------------------------------


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


class Noise(str):
    """Runs of letters in compressed data, such as frames: short patterns occur there by chance, so only keys, home
    folders and the machine's own folders are looked for."""


class Finding(NamedTuple):
    """A line that must not be published. What stands there is not repeated."""

    place: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.what}"


def refuse_private(
    contents: Mapping[str, Path | str], machine: Machine, noun: str, authored: Callable[[str], bool], words: str = ""
) -> None:
    """Raise ToolkitError, naming file and line, where a file (or a text) holds a key or gives away this machine.

    `contents`: by their place in what is published, the `noun`; the others as for find_private.
    """
    found = list(find_private(contents, machine, authored, words))
    if found:
        listed = "\n  ".join(map(str, found[:_SHOWN])) + (f"\n  and {len(found) - _SHOWN} more" * (len(found) > _SHOWN))
        raise ToolkitError(
            f"The {noun} would hold what must not be published:\n  {listed}\n"
            "Take it out there, then start the same command again. A key that has been in a file is best replaced by a "
            "new one; a line that holds an example may be marked: # pragma: allowlist secret"
        )


def find_private(
    contents: Mapping[str, Path | str], machine: Machine, authored: Callable[[str], bool], words: str = ""
) -> Iterator[Finding]:
    """Everything of that kind, file by file, and files in which nobody can look.

    authored: whether the toolkit's authors, and not a run or a recording, made the file of a place: it may hold paths
    and a login's name as examples. words: a text whose words are no names of users either.
    """
    texts = {place: content if isinstance(content, str) else text_of(content) for place, content in contents.items()}
    common = set(_WORD.findall("\n".join([words, *(text or "" for place, text in texts.items() if authored(place))])))
    # A login such as "train" or "data" is a word of the toolkit as well and gives nobody away.
    names = [name for name in machine.names if not set(_WORD.findall(name)) <= common]
    for place, text in sorted(texts.items()):
        shown = str(contents[place]) if isinstance(contents[place], Path) else place
        if text is None:
            yield Finding(shown, 1, "neither text (UTF-8), nor PNG, JPEG, WebP, MP4, nor weights in safetensors")
            continue
        strict = not authored(place) and not isinstance(text, Noise)
        wanted = _patterns(place, machine, names, authored(place), strict)
        patterns = [(what, pattern) for what, pattern in wanted if pattern.search(text)]
        found: dict[int, str] = {}
        for number, line in enumerate(text.splitlines(), start=1) if patterns else ():
            what = next((what for what, pattern in patterns if pattern.search(line)), None)
            found |= {number: what} if what else {}
        found |= dict(secrets_in(text, place, named=Path(place).name not in _VOCABULARY))
        yield from (Finding(shown, line, what) for line, what in sorted(found.items()))


def _patterns(
    place: str, machine: Machine, names: list[str], authored: bool, strict: bool
) -> list[tuple[str, re.Pattern[str]]]:
    """What to look for in a file. A vocabulary holds words of all kinds, and pieces of paths among them."""
    found = [(f"the value of {name}", re.compile(re.escape(value))) for value, name in machine.secrets.items()]
    if Path(place).name in _VOCABULARY:
        return found
    folders = [*machine.folders, *(() if authored else machine.run_folders)]
    found += [("a folder of this machine", _whole(folder)) for folder in folders] + [("a home folder", _HOME)]
    if strict:
        found += [("an absolute path", _ABSOLUTE), *(("a login or host name", _whole(name)) for name in names)]
    return found


def _whole(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?<![\w./-])|(?<=file://)){re.escape(text)}(?![\w-])")


# -- the card ----------------------------------------------------------------------------------------------------------


def rows(columns: Sequence[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """A table's rows, name and values, of a column for each of what is compared."""
    return [(name, [column[name] for column in columns]) for name in columns[0]]


def fill_card(template: Path, values: Mapping[str, Any], metadata: CardData, **filters: Callable[..., str]) -> str:
    """The text of README.md: Hugging Face's metadata, then the template with `values`."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(cell=_cell, quoted=partial(json.dumps, ensure_ascii=False), **filters)
    body = environment.from_string(template.read_text(encoding="utf-8")).render(values)
    body = re.sub(r"\n{3,}", "\n\n", body)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body.strip()}\n"


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def check_card(card: Path) -> None:
    """Raise ToolkitError where the hub's client cannot read a card's metadata, or finds none."""
    try:
        found = ModelCard(card.read_text(encoding="utf-8")).data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ToolkitError(
            f"{card}: the metadata between the --- lines cannot be read ({' '.join(str(error).split())}). Mend it, or "
            "make it again with overwrite=true."
        ) from None
    if not found:
        raise ToolkitError(f"{card} has no metadata between --- lines. Make it again with overwrite=true.")


# -- the hub -----------------------------------------------------------------------------------------------------------


@contextmanager
def _hub(repo_id: str, rest: str = "") -> Iterator[huggingface_hub.HfApi]:
    """The hub's client; its refusals as what the user can do about them, and without its messages, which may show an
    address with a token."""
    try:
        yield huggingface_hub.HfApi()
    except Exception as error:
        # a file that fails underway is a RuntimeError of the client's
        if not (is_hub_error(error) or isinstance(error, RuntimeError)):
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


def upload(published: Published, repo_id: str, kind: Kind, *, private: bool) -> str:
    """Make the repository if there is none, and send the files in one commit; its address.

    An interrupted upload leaves the repository as it was, and one that is started again sends only what is missing.
    """
    places, tree = published.files, published.out
    with _hub(repo_id, f" {tree} is whole and will be sent as it is.") as api:
        api.create_repo(repo_id, repo_type=kind.repo_type, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type=kind.repo_type).private:
            raise ToolkitError(f"upload=true: {repo_id} is there and everybody sees it. To publish, say private=false.")
        there = api.list_repo_files(repo_id, repo_type=kind.repo_type) if kind.replaces else []
        kept, folders = set(places), {place.split("/")[0] for place in places if "/" in place}
        gone = [name for name in there if name not in kept and "/" in name and name.split("/")[0] in folders]
        api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(place, tree / place) for place in places),
                *(CommitOperationDelete(place, is_folder=False) for place in gone),
            ],
            commit_message=f"Release {tree.name}",
            repo_type=kind.repo_type,
        )
        if published.tag is not None:
            with suppress(RevisionNotFoundError):
                api.delete_tag(repo_id, tag=published.tag, repo_type=kind.repo_type)
            api.create_tag(repo_id, tag=published.tag, repo_type=kind.repo_type)
    return f"{HUB}/{'' if kind.repo_type == 'model' else kind.repo_type + 's/'}{repo_id}"
