"""SLURM's own commands: run without a shell, with a limit of time, and errors that say what to do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from gr00t.errors import ToolkitError

TIMEOUT_SECONDS = 60.0


def available() -> bool:
    """Whether this machine has SLURM's commands."""
    return shutil.which("sbatch") is not None


def slurm(
    *command: str, check: bool = True, timeout: float = TIMEOUT_SECONDS, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run e.g. `slurm("squeue", "--me", "--noheader")`, with `text` on its standard input.

    With `check`, a failure is a ToolkitError with its message.
    """
    name = command[0]
    if shutil.which(name) is None:
        raise ToolkitError(f"{name} is not on this machine. Log in to a node of the SLURM cluster, and start it there.")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, input=text)
    except subprocess.TimeoutExpired:
        raise ToolkitError(
            f"{_shown(command)} gave no answer in {timeout:.0f} s: is slurmctld up? (scontrol ping)"
        ) from None
    if check and done.returncode != 0:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise ToolkitError(f"{_shown(command)} was refused: {reason}")
    return done


def _shown(command: Sequence[str]) -> str:
    return " ".join(command[:3]) + (" ..." if len(command) > 3 else "")
