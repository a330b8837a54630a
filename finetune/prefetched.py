"""What a prefetched folder holds: the repository or folder that it came from, and which revision of it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gr00t.errors import ToolkitError
from gr00t.files import read_json, write_json

RECORD = "prefetched.json"
MAIN = "main"
SHORTEST_COMMIT = 7  # as git abbreviates it


@dataclass(frozen=True)
class Origin:
    """A source as a user writes it; of a repository also the revision that was asked for and the commit it was."""

    source: str
    revision: str | None = None
    commit: str | None = None

    def __str__(self) -> str:
        named = f"{self.source}, revision {self.revision}" if self.revision else self.source
        return f"{named} ({self.commit[:12]})" if self.commit and self.commit != self.revision else named

    def is_what(self, asked: Origin) -> bool:
        """Whether this is what is asked for now; a branch that has moved on since is still the same."""
        if self.source != asked.source:
            return False
        if self.commit and asked.commit:
            return self.commit == asked.commit
        wanted, commit = asked.revision or "", self.commit or ""
        return asked.revision == self.revision or (len(wanted) >= SHORTEST_COMMIT and commit.startswith(wanted))


def asked_for(base: str, revision: str | None) -> Origin:
    """What `base` stands for: of a folder that was prefetched itself, where that came from."""
    folder = Path(base).expanduser()
    if folder.is_dir():
        return recorded(folder) or Origin(os.path.realpath(folder))
    return Origin(base.rstrip("/"), revision or MAIN)


def recorded(folder: Path) -> Origin | None:
    """What the folder says of itself; None where it does not. A damaged record raises ToolkitError."""
    path = folder / RECORD
    if not path.is_file():
        return None
    data = read_json(path)
    values = [data.get(name) for name in ("source", "revision", "commit")]
    if not isinstance(values[0], str) or not all(value is None or isinstance(value, str) for value in values):
        raise ToolkitError(f"{path} is damaged. Remove it, or fetch again with overwrite=true.")
    return Origin(values[0], values[1], values[2])


def record(folder: Path, origin: Origin) -> None:
    """Write it down beside the files."""
    write_json(folder / RECORD, asdict(origin))


def refuse_other(out: Path, asked: Origin, earlier: str | None) -> None:
    """Raise ToolkitError unless `out` holds what is asked for.

    earlier: the repository that a folder without a record names otherwise; of which revision it is, it cannot say.
    """
    held = recorded(out)
    if held is None:
        if earlier is not None and asked == Origin(earlier, MAIN):
            return
        held_by = f"{earlier}, of a revision that was not recorded" if earlier else "what no record tells the origin of"
    elif held.is_what(asked):
        return
    else:
        held_by = str(held)
    raise ToolkitError(
        f"{out} holds {held_by}; asked for is {asked}. Give another folder, out=FOLDER, or replace what is there: "
        "overwrite=true."
    )
