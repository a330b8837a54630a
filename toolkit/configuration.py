"""`load`: from a command's arguments to its checked configuration, or its help.

Hydra composes configs/, dataclasses give types and meanings, checks refuse early. Nothing here imports torch,
transformers or datasets, so help and refusals are quick.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gr00t.data.schema import EmbodimentTag
from gr00t.errors import ToolkitError
from toolkit.commands import COMMANDS
from toolkit.composition import SPLIT_NAME, compose, default_choices, options, parse, read_local, to_object
from toolkit.credentials import refuse_secret, refuse_secret_arguments
from toolkit.declaration import Key, keys_of
from toolkit.installation import CONFIG_DIR
from toolkit.shared_keys import read_robot

_BOUNDS = {
    "at_least": (lambda value, bound: value >= bound, "at least"),
    "more_than": (lambda value, bound: value > bound, "more than"),
    "at_most": (lambda value, bound: value <= bound, "at most"),
    "less_than": (lambda value, bound: value < bound, "less than"),
}


def check_values(config: Any) -> None:
    """Refuse secrets, values out of range, unknown choices, empty texts, and shapes that do not fit together."""
    _check_secrets(config)
    for key in keys_of(type(config)).values():
        value = _value_at(config, key.name)
        for item in value if isinstance(value, list) else [value]:
            # OmegaConf lets sections and lists into a list of texts.
            if isinstance(value, list) and not isinstance(item, key.type):
                raise ToolkitError(f'{key.name} expects {key.expects}, got "{item}" in it.')
            _check_value(key, item)
    if not SPLIT_NAME.fullmatch(_value_at(config, "split.name") or "x"):
        raise ToolkitError(
            f'split.name={config.split.name}: it becomes a folder name: use letters, digits, "_" and "-" only.'
        )
    for name in ("embodiment_tag", "dataset.embodiment_tag"):
        _check_embodiment_tag(name, _value_at(config, name))
    for key in keys_of(type(config)).values():
        if key.is_section:
            _call(_value_at(config, key.name), "check_values")
    _call(config, "check_values")


def _call(section: Any, method: str) -> None:
    """What a section declares beside its keys: `check_values`, `check_here` of this machine."""
    check = getattr(section, method, None)
    if check is not None:
        check()


def _check_secrets(config: Any) -> None:
    """Before any other message could repeat a value; also what a file or an interpolation brought."""
    for key in keys_of(type(config)).values():
        value = _value_at(config, key.name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                refuse_secret(key.name, item)


def _value_at(config: Any, name: str) -> Any:
    """The value of a dotted key; None below a section that is null or not there."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _check_value(key: Key, value: Any) -> None:
    if value is None or key.is_section:
        return
    if isinstance(value, str) and not value.strip():
        raise ToolkitError(f"{key.name} is empty. Give it a value, or leave it out for the default.")
    if isinstance(value, str) and not value.isprintable():
        raise ToolkitError(f"{key.name}={value!r}: line breaks and control characters are not allowed.")
    choices = key.bounds.get("choices")
    if choices and value not in choices:
        raise ToolkitError(f"{key.name}={value}: expected {key.expects}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ToolkitError(f"{key.name}={value}: it must be a finite number.")
    for name, bound in key.bounds.items():
        if name in _BOUNDS and not _BOUNDS[name][0](value, bound):
            raise ToolkitError(f"{key.name}={value}: it must be {bounds_in_words(key.bounds)}.")


def bounds_in_words(bounds: Mapping[str, Any]) -> str:
    """'at least 0 and less than 1'; empty without bounds."""
    return " and ".join(f"{_BOUNDS[name][1]} {bound}" for name, bound in bounds.items() if name in _BOUNDS)


def _check_embodiment_tag(name: str, tag: str | None) -> None:
    if tag is None:
        return
    try:
        EmbodimentTag.parse(tag)
    except ToolkitError as error:
        raise ToolkitError(f"{name}={tag}: {error}") from None


_WIDTH, _COLUMN = 118, 46
_LAST = "model.architecture"


def help_text(config_name: str, config_dir: Path, defaults: DictConfig) -> str:
    """Help of one command; `defaults` is its composed configuration without overrides."""
    command = COMMANDS[config_name]
    groups = ["Groups (* is the default; a group's options are the files of its folder in configs/):"]
    for group, default in default_choices(config_name, config_dir).items():
        names = [f"{name}*" if name == default else name for name in options(group, config_dir)]
        own = ["or any name of your own with split.instruction=..."] if group == "split" else []
        groups += _wrapped(f"  {group}", 14, ", ".join([*names, *own]))
    groups += _wrapped("  local", 14, "a file of configs/local/ (default.yaml when present), or none")
    paragraphs = [
        inspect.cleandoc(command.config.__doc__ or ""),
        f"Usage: {command.start} [GROUP=OPTION ...] [KEY=VALUE ...] [--cfg | --help]",
        "\n".join(groups),
        "Keys, with their defaults (null is an empty value, a list is written [A,B]):",
        *_sections(command.config, defaults),
        "Examples:\n" + "\n".join(f"  {command.start} {example}" for example in command.examples),
        "--cfg prints the resolved configuration and exits; configs/local/README.md tells how to set site defaults.",
    ]
    return "\n\n".join(paragraphs)


def _sections(config_class: type[Any], defaults: DictConfig) -> list[str]:
    """One paragraph a section: the command's own keys first, the model's architecture last."""
    sections: dict[str, list[str]] = {"": []}
    composed = OmegaConf.to_container(defaults, resolve=False)
    for name, key in keys_of(config_class).items():
        if key.is_section:
            sections[name] = [f"  {name}: {(key.type.__doc__ or '').strip()}"]
            continue
        value: Any = composed
        for part in name.split("."):
            value = value[part] if value is not None else None
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        bounds = bounds_in_words(key.bounds)
        kind = f"{key.expects}, {bounds}" if bounds else key.expects
        sections[name.rpartition(".")[0]] += _wrapped(f"  {name}={shown}", _COLUMN, f"{key.meaning} ({kind})")
    order = sorted(sections, key=lambda name: name.startswith(_LAST))
    return ["\n".join(sections[name]) for name in order]


def _wrapped(head: str, column: int, text: str) -> list[str]:
    """`head`, then `text` from that column on, on a line of its own where the head is too long."""
    indent = " " * column
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    if len(head) + 2 > column:
        return [head, *lines]
    return [head.ljust(column) + lines[0].lstrip(), *lines[1:]]


_HELP = ("--help", "-h")


def load(config_name: str, argv: Sequence[str], config_dir: Path = CONFIG_DIR, check_here: bool = True) -> Any:
    """The configuration of the script that COMMANDS calls `config_name`, as its dataclass.

    `--help` prints every key, `--cfg` the resolved configuration; both then exit. Bad input raises ToolkitError.
    `check_here=False` leaves out what depends on this machine (folders, number of processes), for a job that
    will run on another one.
    """
    refuse_secret_arguments(argv)
    if any(argument in _HELP for argument in argv):
        print(help_text(config_name, config_dir, _compose(config_name, ["local=none"], config_dir)))
        raise SystemExit(0)
    config = to_object(_compose(config_name, [argument for argument in argv if argument != "--cfg"], config_dir))
    check_values(config)
    read_robot(config)
    if "--cfg" in argv:
        print(as_yaml(config), end="")
        raise SystemExit(0)
    if check_here:
        _call(config, "check_here")
    return config


def as_yaml(config: Any) -> str:
    """A configuration, every value resolved, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _compose(config_name: str, argv: Sequence[str], config_dir: Path) -> DictConfig:
    groups = [*default_choices(config_name, config_dir), "local"]
    command = parse(argv, groups, keys_of(COMMANDS[config_name].config))
    local = read_local(config_name, command.choices.pop("local", None), config_dir)
    return compose(config_name, local, command, config_dir)
