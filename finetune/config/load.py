"""`load`: the one way from an entry script's arguments to its checked configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from finetune.checkout import CONFIG_DIR
from finetune.config.checks import check
from finetune.config.compose import compose, default_choices, read_local, to_object
from finetune.config.help import help_text
from finetune.config.keys import keys_of
from finetune.config.modality import read_robot
from finetune.config.no_credentials import refuse_secret_arguments
from finetune.config.overrides import parse
from finetune.config.scripts import SCRIPTS
from finetune.config.values import check_values

_HELP = ("--help", "-h")


def load(config_name: str, argv: Sequence[str], config_dir: Path = CONFIG_DIR, check_here: bool = True) -> Any:
    """The configuration of the script that SCRIPTS calls `config_name`, as its dataclass.

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
        check(config)
    return config


def as_yaml(config: Any) -> str:
    """A configuration, every value resolved, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _compose(config_name: str, argv: Sequence[str], config_dir: Path) -> DictConfig:
    groups = [*default_choices(config_name, config_dir), "local"]
    command = parse(argv, groups, keys_of(SCRIPTS[config_name].config))
    local = read_local(config_name, command.choices.pop("local", None), config_dir)
    return compose(config_name, local, command, config_dir)
