"""Every key of a command in words: its help, and a page of the documentation.

python -m toolkit.reference > keys.md
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from toolkit.composition import COMMAND_LINE, COMMANDS, Overrides, compose, default_choices, options
from toolkit.declaration import Key, bounds_in_words, keys_of
from toolkit.installation import CONFIG_DIR

_WIDTH, _COLUMN = 118, 46
_LAST = "model.architecture"
_LOCAL = "a file of configs/local/ (default.yaml when present), or none"


def help_text(config_name: str, config_dir: Path) -> str:
    """What `--help` prints of a command."""
    command, sections = COMMANDS[config_name], list[str]()
    for name, section, keys in _sections(config_name, config_dir):
        lines = [f"  {name}: {section}"] if name else []
        for key, default in keys:
            lines += _wrapped(f"  {key.name}={default}", _COLUMN, f"{key.meaning} ({_kind(key)})")
        sections.append("\n".join(lines))
    groups = ["Groups (* is the default; a group's options are the files of its folder in configs/):"]
    for group, names in _groups(config_name, config_dir):
        groups += _wrapped(f"  {group}", 14, names)
    paragraphs = [
        inspect.cleandoc(command.config.__doc__ or ""),
        f"Usage: {command.start} [GROUP=OPTION ...] [KEY=VALUE ...] [--cfg | --help]",
        "\n".join(groups),
        "Keys, with their defaults (null is an empty value, a list is written [A,B]):",
        *sections,
        "Examples:\n" + "\n".join(f"  {call}" for call in command.calls),
        "--cfg prints the resolved configuration, each value with the place where it was set, and exits; "
        "configs/local/README.md explains how to set site defaults.",
    ]
    return "\n\n".join(paragraphs)


def markdown(config_name: str, config_dir: Path = CONFIG_DIR) -> str:
    """A section of the documentation about a command: what it does, its groups, every key, examples."""
    command = COMMANDS[config_name]
    lines = [
        f"## {command.start}",
        "",
        inspect.cleandoc(command.config.__doc__ or ""),
        "",
        "```bash",
        *command.calls,
        "```",
    ]
    lines += ["", "| group | options (* is the default) |", "|---|---|"]
    lines += [_row(f"`{group}`", names) for group, names in _groups(config_name, config_dir)]
    for name, section, keys in _sections(config_name, config_dir):
        lines += ["", *([f"### {name}", "", section, ""] if name else [])]
        lines += ["| key | default | what may be written | meaning |", "|---|---|---|---|"] if keys else []
        lines += [_row(f"`{key.name}`", f"`{default}`", _kind(key), key.meaning) for key, default in keys]
    return "\n".join(lines) + "\n"


def _groups(config_name: str, config_dir: Path) -> Iterator[tuple[str, str]]:
    """The groups of a command, each with its options in words."""
    for group, default in default_choices(config_name, config_dir).items():
        names = [f"{name}*" if name == default else name for name in options(group, config_dir)]
        own = ["or any name of your own with split.instruction=..."] if group == "split" else []
        yield group, ", ".join([*names, *own])
    yield "local", _LOCAL


def _sections(config_name: str, config_dir: Path) -> list[tuple[str, str, list[tuple[Key, str]]]]:
    """Name, meaning and keys with their defaults of each section: the command's own first, the model's shape last."""
    sections: dict[str, tuple[str, str, list[tuple[Key, str]]]] = {"": ("", "", [])}
    composition = compose(config_name, Overrides(""), Overrides(COMMAND_LINE), config_dir)
    composed = OmegaConf.to_container(composition.config, resolve=False)
    for name, key in keys_of(COMMANDS[config_name].config).items():
        if key.is_section:
            sections[name] = (name, (key.type.__doc__ or "").strip(), [])
            continue
        value: Any = composed
        for part in name.split("."):
            value = value[part] if value is not None else None
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        sections[name.rpartition(".")[0]][2].append((key, shown))
    return sorted(sections.values(), key=lambda section: section[0].startswith(_LAST))


def _kind(key: Key) -> str:
    return ", ".join(filter(None, [key.expects, bounds_in_words(key.bounds)]))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _wrapped(head: str, column: int, text: str) -> list[str]:
    """`head`, then `text` from that column on, on a line of its own where the head is too long."""
    indent = " " * column
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    if len(head) + 2 > column:
        return [head, *lines]
    return [head.ljust(column) + lines[0].lstrip(), *lines[1:]]


if __name__ == "__main__":
    print("# Keys\n\n" + "\n".join(map(markdown, COMMANDS)), end="")
