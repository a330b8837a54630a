"""Every command of the toolkit: which dataclass declares its keys, how it is started, and examples of use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from gr00t.errors import ToolkitError
from toolkit.installation import CONFIG_DIR


@dataclass(frozen=True)
class Command:
    """A command as configs/commands.yaml describes it."""

    declared: str  # dotted name of the dataclass
    start: str
    examples: tuple[str, ...]

    @cached_property
    def config(self) -> type[Any]:
        """The dataclass whose fields are the command's keys; its module is imported when it is first asked for."""
        module, _, name = self.declared.rpartition(".")
        return getattr(importlib.import_module(module), name)


def _read() -> Mapping[str, Command]:
    """The commands by name. They are read from a file because this package knows none of those that declare keys."""
    path = CONFIG_DIR / "commands.yaml"
    if not path.is_file():
        raise ToolkitError(f"{path} does not exist: run the script of a complete checkout.")
    described: Any = OmegaConf.to_container(OmegaConf.load(path))
    return {name: Command(c["config"], c["start"], tuple(c["examples"])) for name, c in described.items()}


COMMANDS = _read()
