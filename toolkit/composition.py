"""Every command of the toolkit, and from configs/, a local file and its command line to one typed configuration.

Hydra composes it, from the files and the dataclasses in its ConfigStore, whose types it enforces. Later over earlier:
defaults of the dataclasses, default groups, experiment, configs/local/, command line; of the last two each begins with
the groups that it chooses, whole. An experiment comes before both, wherever it is chosen.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gr00t.errors import ToolkitError, did_you_mean
from toolkit.arguments import split_argument, split_at_commas, unquoted
from toolkit.declaration import Key, keys_of, nearest
from toolkit.installation import CONFIG_DIR
from toolkit.shared_keys import check_split, choose_own_split

_PLAIN_LIST = re.compile(r"\[((?!.*'')[^\[\]{}\\]*)\]")
COMMAND_LINE = "the command line"
_DEFAULT = "default"
_WHOLE = "_with_keys"
_kept: list[dict[tuple[str, ...], Any]] = []  # of each `unchanged_files` that is entered


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file of keys, interpolations left as they are."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise ToolkitError(f"{path} does not exist: run the script of a complete checkout.") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
        raise ToolkitError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ToolkitError(f"{path} must hold lines of KEY: VALUE.")
    return {str(name): value for name, value in content.items()}


@dataclass(frozen=True)
class Command:
    """A command as configs/commands.yaml describes it, since this package knows none of those that declare keys."""

    declared: str  # dotted name of the dataclass
    start: str
    examples: tuple[str, ...]

    @property
    def calls(self) -> list[str]:
        """The examples as they are typed: `start` without the words that stand for others, and what follows."""
        said = itertools.takewhile(lambda word: not word.startswith("[") and not word.isupper(), self.start.split())
        typed = " ".join(said)
        return [f"{typed} {example}" for example in self.examples]

    @cached_property
    def config(self) -> type[Any]:
        """The dataclass whose fields are the command's keys; its module is imported when it is first asked for."""
        module, _, name = self.declared.rpartition(".")
        return getattr(importlib.import_module(module), name)


COMMANDS: Mapping[str, Command] = {
    name: Command(described["config"], described["start"], tuple(described["examples"]))
    for name, described in read_yaml(CONFIG_DIR / "commands.yaml").items()
}


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
        overrides.choices[name] = option = unquoted(raw)
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
    raise ToolkitError(_unknown(name, groups, keys, origin))


def _unknown(name: str, groups: Collection[str], keys: Mapping[str, Key], origin: str) -> str:
    near = nearest(name, [*groups, *(key.name for key in keys.values() if not key.is_section)])
    hint = f'Did you mean "{near}"?' if near else "--help lists every key."
    return f'{origin}There is no key "{name}". {hint}'


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
        return unquoted(raw)
    if key.type is str and (plain := _PLAIN_LIST.fullmatch(raw)):  # YAML reads 40:59 as a number of base 60
        parts = split_at_commas(plain[1])
        return [unquoted(part) for part in (parts if parts[-1] else parts[:-1])]
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:  # a folder with brackets in its name, say
        value = [unquoted(part) for part in split_at_commas(raw[1:-1])] if raw[:1] + raw[-1:] == "[]" else None
    if not isinstance(value, list):
        raise ToolkitError(f'{key.name}={raw}: expected a {key.expects}, got "{raw}"; a list is written [A,B].')
    return value


def default_choices(config_name: str, config_dir: Path) -> dict[str, str | None]:
    """The groups of a command, and the option each takes when none is chosen."""
    path, fields = config_dir / f"{config_name}.yaml", dataclasses.fields(COMMANDS[config_name].config)
    complete = all(field.default is not field.default_factory for field in fields)  # neither: both are MISSING
    defaults = [] if complete and not path.exists() else read_yaml(path).get("defaults", [])
    return {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}


def options(group: str, config_dir: Path) -> list[str]:
    """The options of a group, those in folders last: its files, and `default` where a dataclass is that option."""
    registered = group in (repo := ConfigStore.instance().repo) and f"{_DEFAULT}.yaml" in repo[group]
    folder = config_dir / group
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    return sorted(found | ({_DEFAULT} if registered else set()), key=lambda name: (name.count("/"), name))


def register(config_name: str, config_dir: Path) -> None:
    """Put what a command's room declares into Hydra's ConfigStore.

    A section's own defaults are the option `default` of its group, so that no file repeats them.
    """
    store, config_class, whole = ConfigStore.instance(), COMMANDS[config_name].config, f"{config_name}{_WHOLE}"
    choices = default_choices(config_name, config_dir)
    store.store(name=f"{config_name}_keys", node=config_class)
    store.store(name=whole, node={"defaults": [f"{config_name}_keys", *([config_name] if choices else [])]})
    for group in (group for group, option in choices.items() if option == _DEFAULT):
        store.store(group=group, name=_DEFAULT, node=keys_of(config_class)[group].type)


@dataclass(frozen=True)
class Composition:
    """A typed configuration, not yet resolved, and what it was composed of.

    typed: those of `chosen` that stand on the command line.
    """

    config: DictConfig
    whole: str
    chosen: Sequence[str]
    local: Overrides
    typed: Sequence[str]
    command: Overrides
    config_dir: Path

    def origins(self) -> dict[str, str]:
        """Where each key that was set was set last; what is left out has its dataclass's default."""
        found: dict[str, str] = {}
        with _hydra(self.config_dir) as loader:
            files = loader.compute_defaults_list(self.whole, [*self.chosen], RunMode.RUN).defaults
            paths = [file.config_path for file in files if not file.package.startswith("hydra")]
            self._note(found, loader, [*paths, *_places(self.chosen)])
            found |= dict.fromkeys(self.local.values, self.local.origin)
            self._note(found, loader, _places(self.typed))
        return found | dict.fromkeys(self.command.values, self.command.origin)

    def _note(self, found: dict[str, str], loader: Any, paths: Sequence[str]) -> None:
        for path in paths:
            shown = self.config_dir / f"{path}.yaml"
            for name, _ in _flatten(_content(loader, path), {}):
                if shown.is_file():
                    found[name] = _shown(shown, self.config_dir)
                else:
                    found.pop(name, None)


def compose(config_name: str, local: Overrides, command: Overrides, config_dir: Path) -> Composition:
    """What Hydra makes of the choices, then local's values, the typed groups over them, and the typed values.

    Unknown options and keys and wrong types raise ToolkitError."""
    choices, values = {**local.choices, **command.choices}, dict(command.values)
    known_splits = options("split", config_dir)
    own_split = choose_own_split(choices, values, known_splits)
    whole, defaults = f"{config_name}{_WHOLE}", default_choices(config_name, config_dir)
    if not any(of[0] == whole for of in (_kept[-1] if _kept else ())):
        register(config_name, config_dir)
    for group, option in choices.items():
        known = options(group, config_dir)
        if option not in known and (option != "null" or defaults[group] is not None):
            raise ToolkitError(
                f"{group}={option}: there is no {config_dir.name}/{group}/{option}.yaml.{did_you_mean(option, known)}"
            )
    keys = keys_of(COMMANDS[config_name].config)
    chosen = [f"{group}={option}" for group, option in choices.items() if option != "null"]
    config = _once((whole, str(config_dir), *chosen), lambda: _compose(whole, chosen, keys, config_dir))
    typed = [choice for choice in chosen if choice.partition("=")[0] in command.choices]
    _assign(config, keys, local)
    sections = {name.partition(".")[0] for name in local.values}
    if sections:
        contents = _once(("", str(config_dir), *typed), lambda: _contents(typed, config_dir))
        for content in (content for content in contents if sections & content.keys()):
            config.merge_with(content)
    _assign(config, keys, own := Overrides(command.origin, values=values))
    if "split" in defaults:
        given = {name for name in config.split if not OmegaConf.is_missing(config.split, name)}
        check_split(own_split, given, known_splits)
    return Composition(config, whole, chosen, local, typed, own, config_dir)


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


@contextmanager
def _hydra(config_dir: Path) -> Iterator[Any]:
    """Hydra's loader of that folder."""
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir.resolve())):
        yield GlobalHydra.instance().config_loader()


def _content(loader: Any, path: str) -> dict[str, Any]:
    """What an option sets, at its place in the whole."""
    found = loader.repository.load_config(path)
    whole: Any = OmegaConf.to_container(found.config)
    content = {name: value for name, value in whole.items() if name != "defaults"}
    package = found.header["package"] or path.partition("/")[0] * ("/" in path)
    return {package: content} if package and package != "_global_" else content


def _places(chosen: Sequence[str]) -> list[str]:
    """The paths of the options that are merged once more: Hydra has put an experiment where it belongs."""
    return [choice.replace("=", "/") for choice in chosen if not choice.startswith("experiment=")]


def _contents(chosen: Sequence[str], config_dir: Path) -> list[dict[str, Any]]:
    with _hydra(config_dir) as loader:
        return [_content(loader, path) for path in _places(chosen)]


@contextmanager
def unchanged_files() -> Iterator[None]:
    """Within it the same choices are composed once: a sweep composes many configurations of them."""
    _kept.append(_kept[-1] if _kept else {})
    try:
        yield
    finally:
        _kept.pop()


def _once(of: tuple[str, ...], make: Callable[[], Any]) -> Any:
    if not _kept:
        return make()
    if of not in _kept[-1]:
        _kept[-1][of] = make()
    return copy.deepcopy(_kept[-1][of])


def _compose(whole: str, chosen: Sequence[str], keys: Mapping[str, Key], config_dir: Path) -> DictConfig:
    """Hydra merges an experiment over every group; those that were chosen outright are merged once more after it."""
    try:
        with _hydra(config_dir) as loader:
            config = hydra_compose(whole, overrides=[*chosen])
            for path in _places(chosen):
                config.merge_with(_content(loader, path))
            return config
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        place = " ".join([f"{config_dir.name}/{whole.removesuffix(_WHOLE)}.yaml", *chosen])
        raise ToolkitError(
            _file_message(error, keys, config_dir) or f"{place} cannot be composed: {' '.join(str(error).split())}"
        ) from None


def _file_message(error: Exception, keys: Mapping[str, Key], config_dir: Path) -> str | None:
    """The file and the key that Hydra could not merge; None where it names none."""
    reason, file = error.__context__, re.match("In '(.*?)': ", str(error))
    if not file or not isinstance(reason, OmegaConfBaseException) or not reason.full_key:
        return None
    name, shown = str(reason.full_key).split("[")[0], _shown(config_dir / f"{file[1]}.yaml", config_dir)
    return _type_message(keys[name], reason.value, shown) if name in keys else _unknown(name, (), keys, f"{shown}: ")


def _flatten(content: Any, keys: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value under its full dotted name; a section stays whole only where it is null."""
    for part, value in content.items():
        name = f"{prefix}{part}"
        if isinstance(value, dict) and (name not in keys or keys[name].is_section):
            yield from _flatten(value, keys, f"{name}.")
        else:
            yield name, value


def _shown(path: Path, config_dir: Path) -> str:
    return str(Path(config_dir.name) / path.relative_to(config_dir))


def _assign(config: DictConfig, keys: Mapping[str, Key], overrides: Overrides) -> None:
    for name, value in overrides.values.items():
        _assign_one(config, keys[name], value, overrides.origin)


def _assign_one(config: DictConfig, key: Key, value: Any, origin: str) -> None:
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
