"""A run's curves, or several runs', as one HTML page: no account, no network, no second file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from finetune.report import ReportConfig, read_histories
from finetune.slurm.attempt_record import run_folders
from finetune.training import METRICS, REPORT
from gr00t.errors import ToolkitError, near_folder
from toolkit.command_line import run_main
from toolkit.configuration import load_with_words


def read(arguments: Sequence[str]) -> tuple[list[Path], ReportConfig]:
    """`[RUN ...] [key=value ...]` as what is shown (run folders, or folders that hold some) and the configuration."""
    words, config = load_with_words("report", arguments)
    return [Path(word) for word in words or [config.runs_dir]], config


def main(call: tuple[list[Path], ReportConfig]) -> None:
    """Write the page of what `read` found."""
    from finetune.report.run_page import write_page  # with Bokeh, which a refusal should not wait for

    shown, config = call
    folders: list[Path] = []
    for folder in shown:
        found = [path for path in (folder, *run_folders(folder)) if (path / METRICS).is_file()]
        if not found:
            raise ToolkitError(
                f"{folder} is no run folder and holds none that has logged anything ({METRICS}). Give the run_dir of a "
                f"fine-tune, or the folder that holds them (python -m finetune.report runs).{near_folder(folder)}"
            )
        folders += [path for path in found if path not in folders]
    root = shown[0]
    if len(shown) > 1:  # the folder that all lie in, below the working folder as it would be typed
        root, here = Path(os.path.commonpath([path.absolute().parent for path in shown])), Path.cwd()
        root = root.relative_to(here) if root.is_relative_to(here) else root
    out = Path(config.out) if config.out else root / REPORT
    write_page(read_histories(folders, Path(config.reports_dir)), root, out)
    print(f"{len(folders)} run{'s' * (len(folders) > 1)}: {out}")


if __name__ == "__main__":
    run_main(main, "report", read=read)
