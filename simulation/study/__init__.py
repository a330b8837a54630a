"""A grid of recordings, fine-tunes and closed-loop evaluations, from a file in configs/study, and one page over it."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.declaration import key


@dataclass(kw_only=True)
class StudyConfig:
    """Record, prepare, fine-tune and evaluate in closed loop every point of a grid, and draw one page over them all.

    NAME is that of a file configs/study/NAME.yaml, or the path of one of your own. What is done is left out, so the
    same command continues; a point that fails is noted with its reason, and the others are run. Of points that are done
    study.json is enough: all else that was made for them may be deleted.
    """

    out: str = key(
        "folder that receives <NAME>/: the page study.html, its numbers study.json, and all that is made",
        "studies",
        folder=True,
    )
    where: str = key(
        "here runs one command after another; slurm submits all that is left, as arrays of the launcher",
        "here",
        choices=("here", "slurm"),
    )
    processes: int = key("here: processes of a fine-tune, started by torchrun", 1, at_least=1)
    parallel: int = key(
        "here: commands that run side by side and share the CPUs; of small fine-tunes one on each core is the fastest",
        1,
        at_least=1,
    )
    minutes: float | None = key(
        "here: no command is begun after so many minutes; 0 only draws the page; null for no limit", None, at_least=0
    )
    dry_run: bool = key("print what is left; run, submit and write nothing", False)
