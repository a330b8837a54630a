"""The command line of an entry script: `group=option` choices and `key=value` assignments."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from finetune.config.keys import Key, nearest
from gr00t.errors import ToolkitError

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
COMMAND_LINE = "the command line"
_QUOTES = ('"', "'")


@dataclass
class Overrides:
    """Chosen options by group, and assigned values by full key; `origin` says in messages where they stand."""

    origin: str
    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def parse(argv: Sequence[str], groups: Collection[str], keys: Mapping[str, Key]) -> Overrides:
    """Read `argv`; anything but `group=option` and `key=value` with known names raises ToolkitError."""
    overrides = Overrides(COMMAND_LINE)
    seen: dict[str, str] = {}
    for index, argument in enumerate(argv):
        name, raw = split_argument(argument, argv[index + 1 :], [*groups, *keys])
        if seen.setdefault(name, raw) != raw:
            raise ToolkitError(f'{name} is given twice: "{seen[name]}" and "{raw}". Keep one of them.')
        if name in groups:
            overrides.choices[name] = _choice(name, raw)
        else:
            overrides.values[name] = _value(known_key(name, groups, keys), raw)
    return overrides


def known_key(name: str, groups: Collection[str], keys: Mapping[str, Key], origin: str = "") -> Key:
    """The key of that full name; an unknown one raises with the nearest."""
    if name in keys:
        return keys[name]
    near = nearest(name, [*groups, *(key.name for key in keys.values() if not key.is_section)])
    hint = f'Did you mean "{near}"?' if near else "--help lists every key."
    raise ToolkitError(f'{origin}There is no key "{name}". {hint}')


def split_argument(argument: str, rest: Sequence[str], names: Collection[str]) -> tuple[str, str]:
    """The name and the raw value of `argument`; `rest` (what follows it) and the known `names` serve its refusal."""
    if argument.startswith("-"):
        raise ToolkitError(_flag_message(argument, rest, names))
    name, equals, raw = argument.partition("=")
    if not equals:
        raise ToolkitError(
            f'"{argument}" is no key=value. {_instead(argument, names)}'
            " Quote a value with spaces, as in split.instruction='pick up the cube'."
        )
    if name[:1] in ("+", "~"):
        raise ToolkitError(f'"{argument}": keys cannot be added or removed; write {name.lstrip("+~")}=VALUE.')
    if not _NAME.fullmatch(name):
        raise ToolkitError(f'"{argument}": "{name}" is no name of a key; write KEY=VALUE without spaces around "=".')
    if not _unquoted(raw):
        raise ToolkitError(f'"{argument}" has no value. Write {name}=VALUE, or leave it out for the default.')
    return name, raw.strip()


def _flag_message(argument: str, rest: Sequence[str], names: Collection[str]) -> str:
    flag, equals, value = argument.partition("=")
    if not equals and rest and "=" not in rest[0] and not rest[0].startswith("-"):
        argument, value = f"{argument} {rest[0]}", rest[0]
    name = flag.lstrip("-").replace("-", "_")
    name = name if name in names else nearest(name, names) or "KEY"
    return f"Options are written key=value: write {name}={value or 'VALUE'}, not {argument}. See --help."


def _instead(word: str, names: Collection[str]) -> str:
    near = word if word in names else nearest(word, names)
    return f"Did you mean {near}=VALUE?" if near else "Write KEY=VALUE; --help lists the keys."


def _choice(group: str, raw: str) -> str:
    option = _unquoted(raw)
    if "," in option:
        first, second = (option.strip("[]").split(",") + [""])[:2]
        raise ToolkitError(f"{group}={raw}: one option at a time; start one run with {group}={first}, "
                           f"one with {group}={second.strip()}, and so on.")  # fmt: skip
    return option


def _value(key: Key, raw: str) -> Any:
    """The text as it is where text is wanted, so that commas, colons and equals signs need no quoting."""
    if raw in ("null", "~") and key.optional:
        return None
    if key.is_section:
        first = f"{key.name}.<key>=VALUE"
        raise ToolkitError(f"{key.name}={raw}: {key.name} is a section; set its keys one by one, {first}"
                           f"{', or ' + key.name + '=null' if key.optional else ''}. See --help.")  # fmt: skip
    if key.is_list:
        return _list(key, raw)
    return _unquoted(raw)


def _list(key: Key, raw: str) -> list[Any]:
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, list):
        raise ToolkitError(f'{key.name}={raw}: expected a {key.expects}, got "{raw}"; a list is written [A,B].')
    return value


def _unquoted(raw: str) -> str:
    raw = raw.strip()
    if len(raw) >= 2 and raw[0] in _QUOTES and raw[-1] == raw[0]:
        raw = raw[1:-1].strip()
    return raw
