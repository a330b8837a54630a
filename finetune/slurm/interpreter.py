"""Which Python this is, for the top of a job's log; status 1 where it lacks a module that is named. Needs no packages.

python -m finetune.slurm.interpreter hydra torch"""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path


def environment() -> str:
    """The environment that this Python belongs to, in words."""
    if (Path(sys.prefix) / "conda-meta").is_dir():
        return f"conda environment {sys.prefix}"
    return f"virtual environment {sys.prefix}" if sys.prefix != sys.base_prefix else "no environment"


if __name__ == "__main__":
    missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"it has no {', no '.join(missing)}")
    print(f"Python {platform.python_version()}, {sys.executable}, {environment()}")
