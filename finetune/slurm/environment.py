"""What a job runs with: interpreter, machine and packages, nothing of the user's environment variables."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

from gr00t.files import write_json


def write_environment(folder: Path) -> None:
    """Write environment.json of this process into `folder`."""
    packages = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    environment = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": dict(sorted(packages.items())),
    }
    write_json(folder / "environment.json", environment)
