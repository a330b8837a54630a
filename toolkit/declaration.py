"""How a command declares its keys: fields of dataclasses, with default, bounds and meaning."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_REQUIRED: Any = object()


def key(meaning: str, default: Any = _REQUIRED, **bounds: Any) -> Any:
    """A documented field. Without a default its value comes from a configuration file or the command line.

    `bounds`: choices (a tuple of texts); at_least, more_than, at_most, less_than, multiple_of (numbers); folder=True
    for a path, in which a leading ~ is the home folder and $NAME a variable (with file=True, of a file; with
    on_node=True, of a variable that only a job on the machine may have); check, a function of the value that raises
    ToolkitError. Of train.* and augment.*, which make a run the same run: identity=False for what changes no later
    step's loss; before=VALUE for a key that came later, with what the runs written before it acted as.
    """
    metadata = {"meaning": meaning, **bounds}
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, type):  # a section
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """One key: its full dotted name, its type (the item type of a list), and what its field says of it."""

    name: str
    type: type[Any]
    optional: bool
    is_list: bool
    meaning: str
    bounds: Mapping[str, Any]

    @property
    def is_section(self) -> bool:
        """Whether the key holds further keys."""
        return dataclasses.is_dataclass(self.type)

    @property
    def expects(self) -> str:
        """What may be written, in words: 'int or null', 'auto, bf16 or fp32', 'list of text'."""
        word = {int: "int", float: "number", bool: "true or false", str: "text"}.get(self.type, "section")
        word = "file" if self.bounds.get("file") else "folder" if self.bounds.get("folder") else word
        words = [*self.bounds.get("choices", [word])]
        words[0] = f"list of {words[0]}" if self.is_list else words[0]
        words += ["null"] if self.optional else []
        return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


BOUNDS = {
    "at_least": (lambda value, bound: value >= bound, "at least"),
    "more_than": (lambda value, bound: value > bound, "more than"),
    "at_most": (lambda value, bound: value <= bound, "at most"),
    "less_than": (lambda value, bound: value < bound, "less than"),
    "multiple_of": (lambda value, bound: value % bound == 0, "a multiple of"),
}


def bounds_in_words(bounds: Mapping[str, Any]) -> str:
    """'at least 0 and less than 1'; empty without bounds."""
    return " and ".join(f"{BOUNDS[name][1]} {bound}" for name, bound in bounds.items() if name in BOUNDS)


_known: dict[type[Any], Mapping[str, Key]] = {}


def keys_of(config_class: type[Any]) -> Mapping[str, Key]:
    """Every key of a configuration class, sections included, in the order of the fields; no derived fields."""
    if config_class not in _known:
        _known[config_class] = {key.name: key for key in _walk(config_class, "")}
    return _known[config_class]


def _walk(config_class: type[Any], prefix: str) -> Iterator[Key]:
    annotations = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if field.metadata.get("derived"):
            continue
        kind, optional = annotations[field.name], False
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            kind, optional = next(k for k in typing.get_args(kind) if k is not type(None)), True
        is_list = typing.get_origin(kind) is list
        kind = typing.get_args(kind)[0] if is_list else kind
        bounds = {name: bound for name, bound in field.metadata.items() if name != "meaning"}
        key = Key(prefix + field.name, kind, optional, is_list, field.metadata["meaning"], bounds)
        yield key
        if key.is_section:
            yield from _walk(kind, key.name + ".")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The full name that `name` probably meant: the same last part, its initials (lr), or a similar spelling."""
    known = sorted(set(names))
    parts = {full: full.rpartition(".")[2] for full in known}
    leaf = name.rpartition(".")[2].lower()
    for alike in (lambda part: part, lambda part: "".join(word[0] for word in part.split("_")) if "_" in part else ""):
        if same := [full for full, part in parts.items() if alike(part) == leaf]:
            return same[0]
    if near := difflib.get_close_matches(name, known, n=1):
        return near[0]
    leaves = difflib.get_close_matches(leaf, parts.values(), n=1)
    return next((full for full, part in parts.items() if part in leaves), None)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value under its full dotted name."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {f"{prefix}{name}": inner}
    return found
