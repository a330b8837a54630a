"""Comma lists on the launcher's command line: `split=a,b train.seed=1,2` is a sweep of four points."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from finetune.config.keys import Key
from finetune.config.overrides import known_key, split_argument
from gr00t.errors import ToolkitError

_QUOTES = ('"', "'")
_OPENING, _CLOSING = "([{", ")]}"
_LONGEST_WORD = 40


@dataclass(frozen=True)
class Point:
    """One point of a sweep: its arguments (name to raw value, in the order typed), and which of them are swept."""

    arguments: Mapping[str, str]
    swept: tuple[str, ...]


def expand(argv: Sequence[str], groups: Collection[str], keys: Mapping[str, Key]) -> list[Point]:
    """The product of all comma lists of `argv`, the last one varying fastest; without one a single point.

    A value in brackets, braces or quotes is no list of values, and neither is free text (an instruction, a partition),
    unless each of its parts is quoted.
    """
    values: dict[str, list[str]] = {}
    for index, argument in enumerate(argv):
        name, raw = split_argument(argument, argv[index + 1 :], [*groups, *keys])
        if values.get(name, [raw]) != [raw]:
            raise ToolkitError(f"{name} is given twice. Keep one of them; several values are written {name}=A,B.")
        values[name] = _values(name, raw, None if name in groups else known_key(name, groups, keys))
    swept = tuple(name for name, found in values.items() if len(found) > 1)
    return [Point(dict(zip(values, chosen, strict=True)), swept) for chosen in itertools.product(*values.values())]


def point_names(points: Sequence[Point], swept: Collection[str]) -> list[str]:
    """A short folder name for the values that each point has of the `swept` names: learning_rate_1e-4-seed_1."""
    leaves = [name.rsplit(".", 1)[-1] for name in swept]
    titles = {name: leaf if leaves.count(leaf) == 1 else name for name, leaf in zip(swept, leaves, strict=True)}
    words = {name: _words(point.arguments[name] for point in points) for name in swept}
    return ["-".join(f"{titles[name]}_{words[name][point.arguments[name]]}" for name in swept) for point in points]


def _values(name: str, raw: str, key: Key | None) -> list[str]:
    parts = _parts(raw)
    if len(parts) == 1 or (key is not None and not _may_sweep(key, parts)):
        return [raw]
    if "" in parts:
        raise ToolkitError(f'{name}={raw}: an empty value between two commas. Write {name}=A,B, or quote it: "A,B".')
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        raise ToolkitError(f"{name}={raw}: {twice} is there twice, and would be the same run. Leave one out.")
    return parts


def _may_sweep(key: Key, parts: list[str]) -> bool:
    if key.is_list:
        return all(part.startswith("[") for part in parts)
    free_text = key.type is str and not key.bounds.get("choices") and not key.bounds.get("folder")
    return not free_text or all(part[:1] in _QUOTES and part[-1:] == part[:1] for part in parts)


def _parts(raw: str) -> list[str]:
    """Split at the commas outside of quotes and brackets; text whose quotes or brackets do not close is one part."""
    parts, depth, quote = [""], 0, ""
    for letter in raw:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES and not parts[-1].strip():
            quote = letter
        elif letter == "," and depth == 0:
            parts.append("")
            continue
        else:
            depth += (letter in _OPENING) - (letter in _CLOSING)
        parts[-1] += letter
    return [part.strip() for part in parts] if not quote and depth == 0 else [raw]


def _words(values: Iterable[str]) -> dict[str, str]:
    """Each value as a part of a folder's name; numbers where they would be too long, or alike."""
    known = list(dict.fromkeys(values))
    words = {value: re.sub(r"[^\w.+-]+", "-", value.rstrip("/").rsplit("/", 1)[-1]).strip("-.") for value in known}
    if len(set(words.values())) == len(known) and all(0 < len(word) <= _LONGEST_WORD for word in words.values()):
        return words
    return {value: str(index) for index, value in enumerate(known)}
