"""From configs/, a local file and the command line to one typed configuration.

Later over earlier: defaults of the dataclasses, default groups, experiment, configs/local/, command line; a group that
the last two choose comes after the experiment whole. Hydra composes the groups; the result is merged into OmegaConf's
structured form of the dataclasses, which enforces the types.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from gr00t.errors import ToolkitError, did_you_mean
from toolkit.commands import COMMANDS
from toolkit.declaration import Key, keys_of, nearest

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
COMMAND_LINE = "the command line"


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
        if name not in groups:
            overrides.values[name] = _value(known_key(name, groups, keys), raw)
            continue
        overrides.choices[name] = option = _unquoted(raw)
        if "," in option:
            first, second = (option.strip("[]").split(",") + [""])[:2]
            raise ToolkitError(
                f"{name}={raw}: one option at a time; start one run with {name}={first}, one with "
                f"{name}={second.strip()}, and so on."
            )
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
    if not _unquoted(raw):
        raise ToolkitError(f'"{argument}" has no value. Write {name}=VALUE, or leave it out for the default.')
    return name, raw.strip()


def _value(key: Key, raw: str) -> Any:
    """The text as it is where text is wanted, so that commas, colons and equals signs need no quoting."""
    if raw in ("null", "~") and key.optional:
        return None
    if key.is_section:
        null = f", or {key.name}=null" if key.optional else ""
        raise ToolkitError(
            f"{key.name}={raw}: {key.name} is a section; set its keys one by one, {key.name}.<key>=VALUE{null}. "
            "See --help."
        )
    if not key.is_list:
        return _unquoted(raw)
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, list):
        raise ToolkitError(f'{key.name}={raw}: expected a {key.expects}, got "{raw}"; a list is written [A,B].')
    return value


def _unquoted(raw: str) -> str:
    raw = raw.strip()
    quoted = len(raw) >= 2 and raw[0] in ('"', "'") and raw[-1] == raw[0]
    return raw[1:-1].strip() if quoted else raw


def default_choices(config_name: str, config_dir: Path) -> dict[str, str | None]:
    """The groups of an entry script, and the option each takes when none is chosen."""
    defaults = read_yaml(config_dir / f"{config_name}.yaml").get("defaults", [])
    return {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}


def options(group: str, config_dir: Path) -> list[str]:
    """The options of a group: the names of its files."""
    return sorted(path.stem for path in (config_dir / group).glob("*.yaml"))


def compose(config_name: str, local: Overrides, command: Overrides, config_dir: Path) -> DictConfig:
    """The typed configuration, not yet resolved; unknown options and keys and wrong types raise ToolkitError."""
    choices, values = {**local.choices, **command.choices}, dict(command.values)
    own_split = _own_split(choices, values, config_dir)
    defaults = default_choices(config_name, config_dir)
    for group, option in choices.items():
        known = options(group, config_dir)
        if option not in known and (option != "null" or defaults[group] is not None):
            raise ToolkitError(
                f"{group}={option}: there is no {config_dir.name}/{group}/{option}.yaml.{did_you_mean(option, known)}"
            )
    config = _compose_files(config_name, choices, config_dir)
    keys = keys_of(COMMANDS[config_name].config)
    for origin, assigned in ((local.origin, local.values), (command.origin, values)):
        for name, value in assigned.items():
            _assign(config, keys[name], value, origin)
    if own_split and OmegaConf.is_missing(config.split, "instruction"):
        shipped = [name for name in options("split", config_dir) if name != "custom"]
        raise ToolkitError(
            f'There is no split "{own_split}".{did_you_mean(own_split, shipped)} For a split of your own give its '
            f'instruction: split={own_split} split.instruction="pick up the ...".'
        )
    if choices.get("split") == "custom" and OmegaConf.is_missing(config.split, "name"):
        raise ToolkitError('split=custom has no name. Write split=NAME split.instruction="pick up the ...".')
    return config


def to_object(config: DictConfig) -> Any:
    """The dataclass instance, every interpolation and ~ resolved; a missing value raises ToolkitError."""
    try:
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
            setattr(holder, name, value and os.path.expanduser(value))
    return instance


def read_local(config_name: str, name: str | None, config_dir: Path) -> Overrides:
    """configs/local/<name>.yaml as overrides of this script; groups and keys of other scripts are skipped.

    None takes default.yaml where it is there, "none" takes no file.
    """
    path = config_dir / "local" / f"{name or 'default'}.yaml"
    overrides = Overrides(_shown(path, config_dir))
    if name == "none" or (name is None and not path.exists()):
        return overrides
    if not path.exists():
        known = [*options("local", config_dir), "none"]
        raise ToolkitError(f"local={name}: {overrides.origin} does not exist.{did_you_mean(str(name), known)}")
    groups = {group for script in COMMANDS for group in default_choices(script, config_dir)}
    every_key = {name: key for script in COMMANDS.values() for name, key in keys_of(script.config).items()}
    own_groups, own_keys = default_choices(config_name, config_dir), keys_of(COMMANDS[config_name].config)
    for name, value in _flatten(read_yaml(path), every_key):
        if name in groups and isinstance(value, str):
            overrides.choices.update({name: value} if name in own_groups else {})
        elif known_key(name, groups, every_key, f"{overrides.origin}: ").name in own_keys:
            overrides.values[name] = value
    return overrides


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file of keys, interpolations left as they are."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise ToolkitError(f"{path} does not exist: run the script of a complete checkout.") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ToolkitError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ToolkitError(f"{path} must hold lines of KEY: VALUE.")
    return {str(name): value for name, value in content.items()}


def _own_split(choices: dict[str, str], values: dict[str, Any], config_dir: Path) -> str | None:
    """Turn split=<a name without a file> into the option `custom` with that name, which is returned."""
    name = choices.get("split")
    if name is None or name in options("split", config_dir):
        return None
    if not SPLIT_NAME.fullmatch(name):
        raise ToolkitError(f'split={name}: "{name}" becomes a folder name: use letters, digits, "_" and "-" only.')
    if values.setdefault("split.name", name) != name:
        raise ToolkitError(f"split={name} and split.name={values['split.name']} name two splits. Keep one of them.")
    choices["split"] = "custom"
    return name


def _compose_files(config_name: str, choices: Mapping[str, str], config_dir: Path) -> DictConfig:
    """What the files make of the choices; a group that is chosen outright wins over what an experiment says of it."""
    wanted = [f"{group}={option}" for group, option in choices.items() if option != "null"]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_dir.resolve())):
            composed = hydra_compose(config_name, overrides=wanted, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        place = " ".join([f"{config_dir.name}/{config_name}.yaml", *wanted])
        raise ToolkitError(f"{place} cannot be composed: {' '.join(str(error).split())}") from None
    chosen = [(group, option) for group, option in composed.hydra.runtime.choices.items() if option is not None]
    with open_dict(composed):
        del composed["hydra"]
        for group, option in choices.items():
            if group != "experiment":
                path = config_dir / group / f"{option}.yaml"
                content = {name: value for name, value in read_yaml(path).items() if name != "defaults"}
                composed.merge_with(content if _is_global(path) else {group: content})
    # Hydra lists its choices last to first.
    files = [config_dir / group / f"{option}.yaml" for group, option in reversed(chosen)]
    return _typed(COMMANDS[config_name].config, composed, [config_dir / f"{config_name}.yaml", *files])


def _typed(config_class: type[Any], composed: DictConfig, files: list[Path]) -> DictConfig:
    keys = keys_of(config_class)
    for name, _ in _flatten(OmegaConf.to_container(composed), keys):
        if name not in keys:
            known_key(name, (), keys, f"{_file_with(name, files)}: ")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(config_class), composed)
    except OmegaConfBaseException as error:
        name = str(error.full_key).split("[")[0]
        raise ToolkitError(
            _type_message(keys[name], OmegaConf.select(composed, name), _file_with(name, files))
        ) from None
    assert isinstance(merged, DictConfig)
    return merged


def _flatten(content: Any, keys: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value under its full dotted name; a section stays whole only where it is null."""
    for part, value in content.items():
        name = f"{prefix}{part}"
        if isinstance(value, dict) and (name not in keys or keys[name].is_section):
            yield from _flatten(value, keys, f"{name}.")
        else:
            yield name, value


def _file_with(name: str, files: list[Path]) -> str:
    """The last of the chosen files that sets the key, as users see it; `files` starts with the script's own."""
    for path in filter(Path.exists, reversed(files)):
        package = "" if path == files[0] or _is_global(path) else f"{path.parent.name}."
        content = OmegaConf.create(read_yaml(path))
        if name.startswith(package) and OmegaConf.select(content, name.removeprefix(package)) is not None:
            return _shown(path, files[0].parent)
    return files[0].parent.name


def _is_global(path: Path) -> bool:
    """Whether a group's file sets keys outside of its group."""
    return "@package _global_" in path.read_text(encoding="utf-8").split("\n", 1)[0]


def _shown(path: Path, config_dir: Path) -> str:
    return str(Path(config_dir.name) / path.relative_to(config_dir))


def _assign(config: DictConfig, key: Key, value: Any, origin: str) -> None:
    parents = [key.name[: dot.start()] for dot in re.finditer(r"\.", key.name)]
    for parent in parents:
        if OmegaConf.select(config, parent) is None:
            raise ToolkitError(
                f"{key.name} ({origin}): {parent} is null here, so it has no keys. "
                f"Choose an option that fills {parent}, or leave {key.name} out."
            )
    try:
        OmegaConf.update(config, key.name, value)
    except (OmegaConfBaseException, AssertionError):
        raise ToolkitError(_type_message(key, value, origin)) from None


def _type_message(key: Key, value: Any, origin: str) -> str:
    given = "null" if value is None else f'"{value}"'
    place = "" if origin == COMMAND_LINE else f"{origin}: "
    try:
        whole = key.type is int and float(value).is_integer()
    except (TypeError, ValueError):
        whole = False
    return f"{place}{key.name} expects {key.expects}, got {given}." + (f" Write {int(float(value))}." if whole else "")
