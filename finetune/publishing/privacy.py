"""What must never be published: keys (finetune.credentials), and what tells of this machine and its users."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

from finetune.checkout import CHECKOUT, ROOT
from finetune.contents import text_of
from finetune.credentials import secret_variables, secrets_in
from gr00t.errors import ToolkitError

_HOME = re.compile(r"(?<![\w.])(?:/home|/Users|[A-Za-z]:\\+Users\\)[/\\]*\w[^/\\\s\"'<>]*")
_ABSOLUTE = re.compile(r"(?<![\w.:/<>\\~$}-])/(?:[\w.+-]+/)+[\w.+-]+")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_SHOWN = 8


@dataclass(frozen=True)
class Machine:
    """What tells of this machine: its folders, and those a run was given (absolute paths); names (login, host); the
    values of secret variables, with the variables' names."""

    folders: tuple[str, ...] = ()
    run_folders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    secrets: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls, run_folders: Iterable[str] = ()) -> Machine:
        """This machine, and the folders that a run's own records name."""
        home, host = str(Path.home()), socket.gethostname()
        names = {host, host.split(".")[0], Path(home).name, _login()}
        return cls(
            folders=(*_deep({str(CHECKOUT), str(ROOT), str(Path.cwd())} - {home}), home),
            run_folders=_deep(run_folders),
            names=tuple(sorted(name for name in names if len(name) > 2)),
            secrets=secret_variables(),
        )


def _deep(folders: Iterable[str]) -> tuple[str, ...]:
    """Without those of one part, such as /data, which every second machine has."""
    return tuple(sorted(folder for folder in set(folders) if len(Path(folder).parts) > 2))


def _login() -> str:
    try:
        return getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return ""


@dataclass(frozen=True)
class Finding:
    """A line that must not be published. What stands there is not repeated."""

    place: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.what}"


def refuse_private(contents: Mapping[str, Path | str], machine: Machine) -> None:
    """Raise ToolkitError, naming file and line, where a file (or a text) of a release holds a key or tells of this
    machine. `contents`: by their place in the release."""
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
        content = contents[place]
        shown = str(content) if isinstance(content, Path) else place
        if text is None:
            yield Finding(shown, 1, "neither text (UTF-8), nor a PNG, JPEG or MP4 file, nor weights in safetensors")
            continue
        vocabulary = Path(place).name in _VOCABULARY
        found = dict(_lines_with(text, _patterns(place, machine, names)))
        found |= dict(secrets_in(text, place, named=not vocabulary))
        yield from (Finding(shown, line, what) for line, what in sorted(found.items()))


def _lines_with(text: str, patterns: Iterable[tuple[str, re.Pattern[str]]]) -> Iterator[tuple[int, str]]:
    """(line, what) of each line in which one of the patterns is found."""
    present = [(what, pattern) for what, pattern in patterns if pattern.search(text)]
    for number, line in enumerate(text.splitlines(), start=1) if present else ():
        what = next((what for what, pattern in present if pattern.search(line)), None)
        if what is not None:
            yield number, what


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
