"""How soon a command answers: its help and a refusal, beside Python with hydra imported.

    python -m benchmarks.startup rounds=9

The commands take turns with `python -c "import hydra"`; figures are the fastest of all rounds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

from benchmarks import measuring
from benchmarks.measuring import ROOT, Columns

BASELINE = ("-c", "import hydra")
COMMANDS = {
    "launch_finetune_local.py --help": 0,
    "launch_finetune_slurm.py --help": 0,
    "prepare_conflict_data.py --help": 0,
    "evaluate_conflict.py --help": 0,
    "-m finetune.plan --help": 0,
    "-m finetune.jobs --help": 0,
    "-m data_prep.check --help": 0,
    "launch_finetune_local.py local=none train.lr=1": 2,
    "launch_finetune_local.py local=none train.max_steps=many": 2,
    "launch_finetune_local.py local=none model.base=nowhere": 2,
    "launch_finetune_slurm.py local=none splitt=x": 2,
    "evaluate_conflict.py local=none checkpoint=nowhere": 2,
}
COLUMNS: Columns = {"command": "{name}", "ms": "{ms:.0f}", "beside import hydra": "{ratio:.2f}"}


def start(words: tuple[str, ...], status: int) -> float:
    """Seconds until the command has ended with that status."""
    command = [sys.executable, *words]
    return measuring.seconds(lambda: _ended(subprocess.run(command, cwd=ROOT, capture_output=True).returncode, status))


def _ended(found: int, wanted: int) -> None:
    assert found == wanted, f"ended with {found}, not {wanted}"


def main() -> None:
    chosen = measuring.options(rounds=9)
    ways: dict[str, Callable[[], float]] = {"import hydra": partial(start, BASELINE, 0)}
    ways |= {name: partial(start, tuple(name.split()), status) for name, status in COMMANDS.items()}
    found = {name: min(times) for name, times in measuring.in_turns(chosen.rounds, ways).items()}
    print(measuring.describe() + "\n")
    print(measuring.heading(COLUMNS))
    for name, best in found.items():
        print(measuring.line(COLUMNS, {"name": name, "ms": 1000 * best, "ratio": best / found["import hydra"]}))


if __name__ == "__main__":
    main()
