"""A sweep: which points the comma lists of a command line ask for, and what the folders of each are called."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from gr00t.errors import ToolkitError
from toolkit.arguments import QUOTES, split_argument, split_at_commas
from toolkit.composition import known_key
from toolkit.declaration import Key

Point = dict[str, str]  # name to raw value, in the order typed


def expand(argv: Sequence[str], groups: Collection[str], keys: Mapping[str, Key]) -> tuple[list[Point], list[str]]:
    """The product of all comma lists of `argv`, the last one varying fastest, and the names of those.

    A value in brackets, braces or quotes is no list of values, and neither is free text (an instruction, a partition),
    unless each of its parts is quoted.
    """
    values: dict[str, list[str]] = {}
    for index, argument in enumerate(argv):
        name, raw = split_argument(argument, argv[index + 1 :], [*groups, *keys])
        if values.get(name, [raw]) != [raw]:
            raise ToolkitError(f"{name} is given twice. Keep one of them; several values are written {name}=A,B.")
        values[name] = _values(name, raw, None if name in groups else known_key(name, groups, keys))
    points = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return points, [name for name, found in values.items() if len(found) > 1]


def _values(name: str, raw: str, key: Key | None) -> list[str]:
    """The values that `raw` lists; itself alone where it is one value of the key (None for a group's choice)."""
    parts, is_list = split_at_commas(raw), True
    if key is not None and key.is_list:
        is_list = all(part.startswith("[") for part in parts)
    elif key is not None and key.type is str and not key.bounds.get("choices") and not key.bounds.get("folder"):
        is_list = all(part[:1] in QUOTES and part[-1:] == part[:1] for part in parts)
    if len(parts) == 1 or not is_list:
        return [raw]
    if "" in parts:
        raise ToolkitError(f'{name}={raw}: an empty value between two commas. Write {name}=A,B, or quote it: "A,B".')
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        raise ToolkitError(f"{name}={raw}: {twice} is there twice, and would be the same run. Leave one out.")
    return parts


def point_names(points: Sequence[Point], swept: Collection[str]) -> list[str]:
    """A short folder name for the values that each point has of the `swept` names: learning_rate_1e-4-seed_1."""
    leaves = [name.rsplit(".", 1)[-1] for name in swept]
    titles = {name: leaf if leaves.count(leaf) == 1 else name for name, leaf in zip(swept, leaves, strict=True)}
    words = {name: _words(point[name] for point in points) for name in swept}
    return ["-".join(f"{titles[name]}_{words[name][point[name]]}" for name in swept) for point in points]


def _words(values: Iterable[str]) -> dict[str, str]:
    """Each value as a part of a folder's name; where that would be too long, or alike, in part a digest of the value:
    a number would be another value's as soon as the list changes."""
    known = list(dict.fromkeys(values))
    words = {value: re.sub(r"[^\w.+-]+", "-", value.rstrip("/").rsplit("/", 1)[-1]).strip("-.") for value in known}
    if len(set(words.values())) == len(known) and all(0 < len(word) <= 40 for word in words.values()):
        return words
    return {v: f"{words[v][:30]}-{hashlib.sha256(v.encode()).hexdigest()[:6]}".strip("-") for v in known}
