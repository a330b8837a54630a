"""How the tests of the configuration compose one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gr00t.errors import ToolkitError
from toolkit.configuration import load
from toolkit.installation import CONFIG_DIR


def compose(config_name: str, *argv: str, config_dir: Path = CONFIG_DIR):
    """The configuration without the checks of this machine, and without the site's own defaults."""
    own = [] if any(argument.startswith("local=") for argument in argv) else ["local=none"]
    return load(config_name, [*own, *argv], config_dir=config_dir, check_here=False)


def refusal(config_name: str, *argv: str, **options) -> str:
    with pytest.raises(ToolkitError) as error:
        compose(config_name, *argv, **options)
    return str(error.value)
