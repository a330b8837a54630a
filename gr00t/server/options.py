"""The command line of a script in gr00t: `key=value` for the fields of one dataclass, and its --help."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from gr00t.errors import ToolkitError, did_you_mean

_T = TypeVar("_T")
_WIDTH, _COLUMN = 118, 34
_WORDS = {int: "int", bool: "true or false", str: "text"}


def option(meaning: str, default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """A documented field, required without a default. bounds: choices (a tuple of texts); at_least (an int)."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, **bounds})


def read_options(config_class: type[_T], argv: Sequence[str]) -> _T:
    """The configuration that `argv` describes; anything that is no key=value of it raises ToolkitError."""
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, config_class))}
    kinds = typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for argument in argv:
        name, raw = _split(argument, list(fields))
        if name in values:
            raise ToolkitError(f"{name} is given twice. Keep one of them.")
        values[name] = _value(fields[name], kinds[name], raw)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise ToolkitError(f"{name} is missing: give {name}=VALUE, {field.metadata['meaning']}. See --help.")
    return config_class(**values)


def help_text(config_class: type[Any], command: str, examples: Sequence[str]) -> str:
    """What --help prints: the class's docstring, every key with its default, meaning and kind, and examples."""
    kinds = typing.get_type_hints(config_class)
    lines = [_described(field, kinds[field.name]) for field in dataclasses.fields(config_class)]
    return "\n\n".join(
        [
            inspect.cleandoc(config_class.__doc__ or ""),
            f"Usage: {command} [KEY=VALUE ...] [--help]",
            "Keys, with their defaults (null is an empty value):\n" + "\n".join(lines),
            "Examples:\n" + "\n".join(f"  {command} {example}" for example in examples),
        ]
    )


def _split(argument: str, names: list[str]) -> tuple[str, str]:
    if argument.startswith("-"):
        flag, _, value = argument.lstrip("-").replace("-", "_").partition("=")
        name = flag if flag in names else "KEY"
        raise ToolkitError(
            f"Options are written key=value: write {name}={value or 'VALUE'}, not {argument}. See --help."
        )
    name, equals, raw = argument.partition("=")
    if not equals:
        raise ToolkitError(f'"{argument}" is no key=value.{did_you_mean(argument, names)} See --help.')
    if name not in names:
        raise ToolkitError(f'There is no key "{name}".{did_you_mean(name, names)}')
    if not raw.strip():
        raise ToolkitError(f"{name} is empty. Give it a value, or leave it out for the default.")
    return name, raw.strip()


def _value(field: dataclasses.Field[Any], annotation: Any, raw: str) -> Any:
    kind, optional = _without_none(annotation)
    choices = field.metadata.get("choices")
    if optional and raw == "null":
        return None
    refusal = ToolkitError(f"{field.name}={raw}: expected {_expects(field, annotation)}.")
    if choices and raw not in choices:
        raise refusal
    if kind is bool:
        if raw not in ("true", "false"):
            raise refusal
        return raw == "true"
    if kind is str:
        return raw
    try:
        number = int(raw)
    except ValueError:
        raise refusal from None
    if number < field.metadata.get("at_least", number):
        raise refusal
    return number


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) is types.UnionType:
        return next(kind for kind in typing.get_args(annotation) if kind is not types.NoneType), True
    return annotation, False


def _expects(field: dataclasses.Field[Any], annotation: Any) -> str:
    kind, optional = _without_none(annotation)
    words = ", ".join(field.metadata.get("choices", [_WORDS[kind]]))
    words += f" of at least {field.metadata['at_least']}" if "at_least" in field.metadata else ""
    return words + (" or null" if optional else "")


def _described(field: dataclasses.Field[Any], annotation: Any) -> str:
    default = field.default
    if default is dataclasses.MISSING:
        shown = "VALUE"
    else:
        shown = str(default).lower() if isinstance(default, bool) else "null" if default is None else str(default)
    text = f"{field.metadata['meaning']} ({_expects(field, annotation)})"
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join([f"  {field.name}={shown}".ljust(_COLUMN) + lines[0].lstrip(), *lines[1:]])
