"""A study: every point of a grid recorded, trained and evaluated, and one page over them all.

python -m simulation.study strategy
python -m simulation.study conflict_share minutes=45
python -m simulation.study strategy where=slurm
python -m simulation.study --help"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from gr00t.errors import ToolkitError
from simulation.study import StudyConfig
from toolkit.command_line import run_main
from toolkit.configuration import load_with_words

Call = tuple[str, StudyConfig, list[str]]


def read(arguments: Sequence[str]) -> Call:
    """`NAME [key=value ...]` as name, configuration, and what every command is given too."""
    names, config = load_with_words("study", arguments)
    if len(names) != 1:
        raise ToolkitError("A study has one name: python -m simulation.study NAME (configs/study/NAME.yaml).")
    return names[0], config, [argument for argument in arguments if argument.startswith("local=")]


def main(call: Call) -> None:
    """Run what is left of the study, or submit it, and draw its page."""
    from simulation.study.grid import PAGE, read_study
    from simulation.study.study_page import draw
    from simulation.study.study_run import Standing, command_of, run_here

    name, config, more = call
    study = read_study(name, Path(config.out), more)
    slurm = config.where == "slurm"
    standing = Standing(study, None if slurm else config.processes)
    if not config.dry_run:
        draw(study, standing)  # with the settings, which must not change from now on
    if slurm and (left := standing.unfinished()):
        from finetune.slurm.submit import launch

        study.request.launch.dry_run, study.request.tasks = config.dry_run, left
        launch(study.request)
        return
    if config.dry_run:
        print("\n".join(shlex.join(command_of(task, config.processes)) for task in standing.all_left()))
    else:
        run_here(standing, config.minutes, lambda: draw(study, standing), config.parallel)
        draw(study, standing)
    failures = [reason for point in study.points if (reason := standing.failure(point))]
    done = sum(not standing.left(point) for point in study.points)
    print(f"{done} of {len(study.points)} points are done, {standing.estimate(config.parallel)}: {study.folder / PAGE}")
    if failures:
        raise ToolkitError(f"{len(failures)} of {len(study.points)} points failed, the first for this: {failures[0]}")


if __name__ == "__main__":
    run_main(main, "study", read=read)
