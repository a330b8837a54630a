"""What must never be published: keys (toolkit.credentials), and what gives away a machine and its users."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from typing import NamedTuple

from gr00t.errors import ToolkitError
from toolkit.credentials import secret_variables, secrets_in, text_of
from toolkit.installation import CHECKOUT, ROOT

_HOME = re.compile(r"(?<![\w.])(?:/home|/Users|[A-Za-z]:\\+Users\\)[/\\]*\w[^/\\\s\"'<>]*")
_ABSOLUTE = re.compile(r"(?<![\w.:/<>\\~$}-])/(?:[\w.+-]+/)+[\w.+-]+")
_WORD = re.compile(r"[\w-]+")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_SHOWN = 8  # findings


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
    return re.compile(rf"(?<![\w./-]){re.escape(text)}(?![\w-])")
