"""`load`: from a command's arguments to its checked configuration, or its help.

Hydra composes configs/, dataclasses give types and meanings, checks refuse early. Nothing here imports torch,
transformers or datasets, so help and refusals are quick.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from gr00t.errors import ToolkitError
from toolkit.composition import COMMANDS, compose, default_choices, parse, read_local
from toolkit.credentials import refuse_secret, refuse_secret_arguments
from toolkit.declaration import BOUNDS, Key, bounds_in_words, flat, keys_of
from toolkit.installation import CONFIG_DIR
from toolkit.shared_keys import expanded, read_robot

_OF_THE_SHELL = re.compile(r"(?<!\\)\$\{(?=[A-Z_])")  # our own keys are in small letters


def check_values(config: Any) -> None:
    """Refuse secrets, values out of range, unknown choices, empty texts, and shapes that do not fit together."""
    values = [(key, _value_at(config, key.name)) for key in keys_of(type(config)).values()]
    items = [(key, item, value) for key, value in values for item in (value if isinstance(value, list) else [value])]
    # Before any other message could repeat a value; also what a file or an interpolation brought.
    for key, item, _ in items:
        if isinstance(item, str):
            refuse_secret(key.name, item)
    for key, item, value in items:
        # OmegaConf lets sections and lists into a list of texts.
        if isinstance(value, list) and not isinstance(item, key.type):
            raise ToolkitError(f'{key.name} expects {key.expects}, got "{item}" in it.')
        _check_value(key, item)
    for key, value in values:
        if key.is_section:
            _call(value, "check_values")
    _call(config, "check_values")


def _call(section: Any, method: str, *values: Any) -> None:
    """What a section declares beside its keys: `check_values`, `check_given` with the names of those that were typed,
    `check_here` of this machine."""
    check = getattr(section, method, None)
    if check is not None:
        check(*values)


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
        if name in BOUNDS and not BOUNDS[name][0](value, bound):
            raise ToolkitError(f"{key.name}={value}: it must be {bounds_in_words(key.bounds)}.")
    try:
        key.bounds.get("check", lambda value: None)(value)
    except ToolkitError as error:
        raise ToolkitError(f"{key.name}={value}: {error}") from None


def load(config_name: str, argv: Sequence[str], config_dir: Path = CONFIG_DIR, check_here: bool = True) -> Any:
    """The configuration of the script that COMMANDS calls `config_name`, as its dataclass.

    `--help` prints every key, `--cfg` the resolved configuration; both then exit. Bad input raises ToolkitError.
    `check_here=False` leaves out what depends on this machine (folders, number of processes), for a job that
    will run on another one.
    """
    refuse_secret_arguments(argv)
    if any(argument in ("--help", "-h") for argument in argv):
        from toolkit.reference import help_text

        print(help_text(config_name, config_dir))
        raise SystemExit(0)
    groups = [*default_choices(config_name, config_dir), "local"]
    keys = keys_of(COMMANDS[config_name].config)
    command = parse([argument for argument in argv if argument != "--cfg"], groups, keys)
    local = read_local(config_name, command.choices.pop("local", None), config_dir)
    composition = compose(config_name, local, command, config_dir)
    config = _to_object(composition.config, check_here)
    check_values(config)
    _call(config, "check_given", composition.command.values)
    read_robot(config)
    if "--cfg" in argv:
        print(_with_origins(as_yaml(config), keys, composition.origins()), end="")
        raise SystemExit(0)
    if check_here:
        _call(config, "check_here")
    return config


def _to_object(config: DictConfig, here: bool = True) -> Any:
    """The dataclass instance, every interpolation, variable and ~ resolved; a missing value raises ToolkitError.

    `here=False` leaves variables that are not set in folders that only a job's node must know.
    """
    try:
        _leave_to_the_shell(config)
        instance = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise ToolkitError(f"{error.full_key} has no value. Write {error.full_key}=VALUE.") from None
    except OmegaConfBaseException as error:
        reason = str(error.msg).split("\n", 1)[0]
        raise ToolkitError(f"{error.full_key} cannot be resolved: {reason}.") from None
    for key in keys_of(type(instance)).values():
        if key.bounds.get("folder"):
            section, _, name = key.name.rpartition(".")
            holder = attrgetter(section)(instance) if section else instance
            value = getattr(holder, name)
            with suppress(ToolkitError) if key.bounds.get("on_node") and not here else nullcontext():
                setattr(holder, name, value and expanded(key.name, value))
    return instance


def _leave_to_the_shell(config: DictConfig) -> None:
    """${NAME} in capitals is a variable of the environment, not one of our keys."""
    raw: Any = OmegaConf.to_container(config)
    for name, value in flat(raw).items():
        texts = value if isinstance(value, list) else [value]
        spared = [_OF_THE_SHELL.sub(r"\${", text) if isinstance(text, str) else text for text in texts]
        if spared != texts:
            OmegaConf.update(config, name, spared if isinstance(value, list) else spared[0])


def load_with_words(config_name: str, argv: Sequence[str]) -> tuple[list[str], Any]:
    """What a command line names without a key (PATH, RUN; a path may hold "="), and the configuration of the rest."""
    words = [word for word in argv if not word.startswith("-") and ("=" not in word or "/" in word.partition("=")[0])]
    return words, load(config_name, [argument for argument in argv if argument not in words])


def as_yaml(config: Any) -> str:
    """A configuration, every value resolved, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _with_origins(text: str, keys: Collection[str], origins: Mapping[str, str]) -> str:
    """The YAML of a configuration, with the place where each value was set; one without is a default."""
    lines, section = list[str](), list[str]()
    place: str | None = None  # of the value that the last line is of; a long text takes several
    for line in text.splitlines():
        part = line.strip().partition(":")[0]
        path = [*section[: (len(line) - len(line.lstrip())) // 2], part]
        if place and (".".join(path) in keys or part.startswith("- ")):
            lines[-1] += f"  # {place}"
            place = None
        if ".".join(path) in keys:
            section, place = path, origins.get(".".join(path))
        lines.append(line)
    return "\n".join([*lines[:-1], lines[-1] + (f"  # {place}" if place else "")]) + "\n"
