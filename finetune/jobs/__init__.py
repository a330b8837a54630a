"""The runs of a project and their SLURM jobs: listed, followed, cancelled and submitted again."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.declaration import key


@dataclass(kw_only=True)
class JobsConfig:
    """The runs of this project and their SLURM jobs, also after the jobs are gone or where SLURM is not installed.

    `list` is what is done without a command; `follow RUN` shows the newest attempt's log as it grows, across requeues,
    until the run ends; `cancel RUN` (or all) ends its jobs; `resubmit RUN` submits its saved job script again, and the
    stages that were dropped with it. RUN is the name of a run folder, of a split, or a run folder's path.
    """

    runs_dir: str = key("folder with the run folders and the launcher's records", "runs", folder=True)
    json: bool = key("list the runs as JSON, with what accounts know of CPU and memory", False)
    lines: int = key("lines of the log that follow shows first", 20, at_least=0)
