"""The text of one argument of a command line: its name and its value, the parts of a list, and what quotes hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from gr00t.errors import ToolkitError
from toolkit.declaration import nearest

QUOTES = ('"', "'")

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def split_argument(argument: str, rest: Sequence[str], names: Collection[str]) -> tuple[str, str]:
    """The name and the raw value of `argument`; `rest` (what follows it) and the known `names` serve its refusal."""
    name, equals, raw = argument.partition("=")
    if argument.startswith("-"):
        if not equals and rest and "=" not in rest[0] and not rest[0].startswith("-"):
            argument, raw = f"{argument} {rest[0]}", rest[0]
        name = name.lstrip("-").replace("-", "_")
        name = name if name in names else nearest(name, names) or "KEY"
        raise ToolkitError(f"Options are written key=value: write {name}={raw or 'VALUE'}, not {argument}. See --help.")
    if not equals:
        near = argument if argument in names else nearest(argument, names)
        hint = f"Did you mean {near}=VALUE?" if near else "Write KEY=VALUE; --help lists the keys."
        raise ToolkitError(
            f'"{argument}" is no key=value. {hint} Quote a value with spaces, as in '
            "split.instruction='pick up the cube'."
        )
    if name[:1] in ("+", "~"):
        raise ToolkitError(f'"{argument}": keys cannot be added or removed; write {name.lstrip("+~")}=VALUE.')
    if not _NAME.fullmatch(name):
        raise ToolkitError(f'"{argument}": "{name}" is no name of a key; write KEY=VALUE without spaces around "=".')
    if not unquoted(raw):
        raise ToolkitError(f'"{argument}" has no value. Write {name}=VALUE, or leave it out for the default.')
    return name, raw.strip()


def split_at_commas(raw: str) -> list[str]:
    """Split at the commas outside of quotes and brackets; text whose quotes or brackets do not close is one part."""
    parts, depth, quote = [""], 0, ""
    for letter in raw:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES and not parts[-1].strip():
            quote = letter
        elif letter == "," and depth == 0:
            parts.append("")
            continue
        else:
            depth += (letter in "([{") - (letter in ")]}")
        parts[-1] += letter
    return [part.strip() for part in parts] if not quote and depth == 0 else [raw]


def unquoted(raw: str) -> str:
    """Without the quotes around it, if it has them, and without spaces around what is left."""
    raw = raw.strip()
    quoted = len(raw) >= 2 and raw[0] in QUOTES and raw[-1] == raw[0]
    return raw[1:-1].strip() if quoted else raw
