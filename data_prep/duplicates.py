"""Episodes that are there twice: within a file, over several files, in train and conflict."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from data_prep.maniskill import Episode, Recordings, natural_key
from gr00t.errors import ToolkitError

NAMED_FILES = 3  # in a message


def check_no_duplicates(recordings: Recordings) -> None:
    """Raise ToolkitError when an episode of the part is there twice, naming the files that are one too many."""
    copies: dict[str, list[Episode]] = defaultdict(list)
    for episode in recordings.episodes:
        copies[episode.content].append(episode)
    twins = [same for same in copies.values() if len(same) > 1]
    if twins:
        first, second = twins[0][:2]
        raise ToolkitError(
            f"{second.name} is the same recording as {first.name} (equal actions and start; {len(twins)} such "
            f"episodes in all). {_remedy(recordings, twins)}"
        )


def check_apart(train: Recordings, conflict: Recordings) -> None:
    """Raise ToolkitError when a conflict episode is a train episode too."""
    known = {e.content: e for e in train.episodes}
    for episode in conflict.episodes:
        if episode.content in known:
            raise ToolkitError(
                f"{episode.name} is also a train episode ({known[episode.content].name}). Conflict episodes must never "
                "enter training: remove it from one of the two."
            )


def _remedy(recordings: Recordings, twins: list[list[Episode]]) -> str:
    """What to take away: the largest file whose every episode is in other files too, where there is one."""
    elsewhere: dict[Path, set[Path]] = defaultdict(set)
    found: dict[Path, int] = defaultdict(int)
    for same in twins:
        files = {episode.file for episode in same}
        for file in files if len(files) > 1 else ():
            elsewhere[file] |= files - {file}
            found[file] += sum(episode.file == file for episode in same)
    held = {file: sum(episode.file == file for episode in recordings.episodes) for file in elsewhere}
    whole = [file for file in elsewhere if found[file] == held[file]]
    if not whole:
        return "Remove one of each two from its h5 and json, or one of the files."
    largest = max(whole, key=lambda file: (held[file], natural_key(file.as_posix())))
    others = _named(elsewhere[largest], recordings.folder)
    merged = len(elsewhere[largest]) > 1
    kind = "a merged recording beside its parts" if merged else "a copy, or a recording and its replay"
    return (
        f"All {held[largest]} of {largest.relative_to(recordings.folder)} are in {others} too: {kind}. Keep one of the "
        "two, and move the other out of the folder, .h5 and .json."
    )


def _named(files: set[Path], folder: Path) -> str:
    names = sorted((file.relative_to(folder).as_posix() for file in files), key=natural_key)
    more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
    return ", ".join(names[:NAMED_FILES]) + more
