"""A run's curves, or several runs', as one HTML page: no account, no network, no second file.

python -m finetune.report runs/color_object
python -m finetune.report runs
python -m finetune.report --help
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.script import run_main

if TYPE_CHECKING:
    from finetune.config import ReportConfig


@dataclass(frozen=True)
class Call:
    """What is shown (run folders, or folders that hold some), and the configuration."""

    shown: list[str]
    config: ReportConfig


def read(arguments: Sequence[str]) -> Call:
    """`[RUN ...] [key=value ...]`; a wrong key raises ToolkitError."""
    from finetune.config import load

    words = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    config = load("report", [argument for argument in arguments if argument not in words])
    return Call(words or [config.runs_dir], config)


def main(call: Call) -> None:
    from finetune.report_page import write_page
    from finetune.run_files import METRICS, REPORT
    from finetune.run_history import read_history
    from finetune.slurm.runs import run_folders
    from gr00t.errors import ToolkitError
    from gr00t.files import near_folder

    folders: list[Path] = []
    for shown in map(Path, call.shown):
        alone = (shown / METRICS).is_file()
        found = [shown] if alone else [path for path in run_folders(shown) if (path / METRICS).is_file()]
        if not found:
            raise ToolkitError(
                f"{shown} is no run folder and holds none that has logged anything ({METRICS}). Give the run_dir of a "
                f"fine-tune, or the folder that holds them (python -m finetune.report runs).{near_folder(shown)}"
            )
        folders += [path for path in found if path not in folders]
    root = _root([Path(shown) for shown in call.shown])
    reports = Path(call.config.reports_dir)
    out = Path(call.config.out) if call.config.out else root / REPORT
    write_page([read_history(folder, reports) for folder in folders], root, out)
    print(f"{len(folders)} run{'s' * (len(folders) > 1)}: {out}")


def _root(shown: list[Path]) -> Path:
    """The folder that all of these lie in, below the working folder as it would be typed; of one, itself."""
    if len(shown) == 1:
        return shown[0]
    here, above = Path.cwd(), Path(os.path.commonpath([path.absolute().parent for path in shown]))
    return above.relative_to(here) if above.is_relative_to(here) else above


if __name__ == "__main__":
    run_main(main, "report", read=read)
