"""Whether the recordings of a split's parts may become its datasets: each episode once, in one part, with words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from data_prep.maniskill import Episode, Recordings, natural_key
from gr00t.errors import ToolkitError

NAMED_FILES = 3  # in a message


def check_told(parts: Mapping[str, Recordings], split_name: str, instruction: str | None) -> None:
    """Refuse an episode without an instruction, of its own or of the split."""
    silent = [e for found in parts.values() for e in found.episodes if e.instruction is None]
    if instruction is None and silent:
        raise ToolkitError(
            f"{silent[0].name}: holds no instruction ({len(silent)} such episodes), and {split_name} has none for all. "
            'Record them again, or say it: split.instruction="pick up the ...".'
        )


def check_apart(recordings: Mapping[str, Recordings]) -> None:
    """Refuse an episode that two parts hold, and parts of two strategies."""
    known: dict[str, tuple[str, str]] = {}
    for part, found in recordings.items():
        for episode in found.episodes:
            other, name = known.setdefault(episode.content, (part, episode.name))
            if other != part:
                raise ToolkitError(
                    f"{episode.name} is also a {other} episode ({name}). What one part holds must never enter "
                    "another: remove it from one of the two."
                )
        first = recordings["train"]
        if found.recorded != first.recorded:
            one, two = (of.recorded["strategy"] if of.recorded else "none" for of in (first, found))
            raise ToolkitError(
                f"{found.folder} was recorded with the strategy {two}, {first.folder} with {one}: seen and "
                "unseen would not be told apart. Record all parts with one strategy=...."
            )


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


def _remedy(recordings: Recordings, twins: list[list[Episode]]) -> str:
    """What to take away: the largest file whose every episode is in other files too, where there is one."""
    elsewhere: dict[Path, set[Path]] = defaultdict(set)
    held = Counter(episode.file for episode in recordings.episodes)
    alone = Counter(held)
    for same in twins:
        files = {episode.file for episode in same}
        for episode in same if len(files) > 1 else ():
            elsewhere[episode.file] |= files - {episode.file}
            alone[episode.file] -= 1
    whole = [file for file in elsewhere if not alone[file]]
    if not whole:
        return "Remove one of each two from its h5 and json, or one of the files."
    largest = max(whole, key=lambda file: (held[file], natural_key(file.as_posix())))
    folder = recordings.folder
    names = sorted((file.relative_to(folder).as_posix() for file in elsewhere[largest]), key=natural_key)
    more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
    kind = "a merged recording beside its parts" if len(names) > 1 else "a copy, or a recording and its replay"
    return (
        f"All {held[largest]} of {largest.relative_to(folder)} are in {', '.join(names[:NAMED_FILES])}{more} too: "
        f"{kind}. Keep one of the two, and move the other out of the folder, .h5 and .json."
    )
