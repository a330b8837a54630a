"""The text of --help: groups and options, every key with type, default and meaning, examples."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from finetune.config.compose import default_choices, options
from finetune.config.keys import Key, keys_of
from finetune.config.scripts import SCRIPTS
from finetune.config.values import bounds_in_words

_WIDTH, _COLUMN = 118, 46
_LAST = "model.architecture"


def help_text(config_name: str, config_dir: Path, defaults: DictConfig) -> str:
    """Help of one entry script; `defaults` is its composed configuration without overrides."""
    script = SCRIPTS[config_name]
    paragraphs = [
        inspect.cleandoc(script.config.__doc__ or ""),
        f"Usage: {script.command} [GROUP=OPTION ...] [KEY=VALUE ...] [--cfg | --help]",
        _groups(config_name, config_dir),
        "Keys, with their defaults (null is an empty value, a list is written [A,B]):",
        *_sections(script.config, defaults),
        "Examples:\n" + "\n".join(f"  {script.command} {example}" for example in script.examples),
        "--cfg prints the resolved configuration and exits; configs/local/README.md tells how to set site defaults.",
    ]
    return "\n\n".join(paragraphs)


def _groups(config_name: str, config_dir: Path) -> str:
    lines = ["Groups (* is the default; a group's options are the files of its folder in configs/):"]
    for group, default in default_choices(config_name, config_dir).items():
        names = [f"{name}*" if name == default else name for name in options(group, config_dir)]
        own = ["or any name of your own with split.instruction=..."] if group == "split" else []
        lines += _wrapped(f"  {group}", 14, ", ".join([*names, *own]))
    lines += _wrapped("  local", 14, "a file of configs/local/ (default.yaml when present), or none")
    return "\n".join(lines)


def _sections(config_class: type[Any], defaults: DictConfig) -> list[str]:
    """One paragraph a section: the script's own keys first, the model's architecture last."""
    keys = keys_of(config_class)
    sections: dict[str, list[str]] = {"": []}
    for name, key in keys.items():
        if key.is_section:
            sections[name] = [f"  {name}: {(key.type.__doc__ or '').strip()}"]
        else:
            sections[name.rpartition(".")[0]] += _key(key, defaults)
    order = sorted(sections, key=lambda name: name.startswith(_LAST))
    return ["\n".join(sections[name]) for name in order]


def _key(key: Key, defaults: DictConfig) -> list[str]:
    bounds = bounds_in_words(key.bounds)
    kind = f"{key.expects}, {bounds}" if bounds else key.expects
    return _wrapped(f"  {key.name}={_default(key.name, defaults)}", _COLUMN, f"{key.meaning} ({kind})")


def _default(name: str, defaults: DictConfig) -> str:
    value: Any = OmegaConf.to_container(defaults, resolve=False)
    for part in name.split("."):
        value = value[part] if value is not None else None
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _wrapped(head: str, column: int, text: str) -> list[str]:
    """`head`, then `text` from that column on, on a line of its own where the head is too long."""
    indent = " " * column
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    if len(head) + 2 > column:
        return [head, *lines]
    return [head.ljust(column) + lines[0].lstrip(), *lines[1:]]
