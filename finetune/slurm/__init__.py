"""SLURM: the launcher, the job scripts, and the record of a run's attempts."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.declaration import key


@dataclass(kw_only=True)
class LaunchConfig:
    """Submit fine-tunes to SLURM: one job, an array of the points of a sweep, or a chain of stages for each of them.

    Takes every key of launch_finetune_local.py (cluster.* is what a job asks for) and, with their stages, those of
    prepare_conflict_data.py and evaluate_conflict.py; see their --help. A comma list is a sweep: split=A,B
    train.seed=1,2 is four runs, each with folders of its own.
    """

    stages: str = key("what is done for each point, in this order: prepare, finetune, evaluate", "finetune")
    max_parallel: int | None = key("fine-tunes that run at once; null for no limit", None, at_least=1)
    dry_run: bool = key("print each job script and resolved configuration, submit and write nothing", False)
    runs_dir: str = key("folder of the launcher's own records, and where finetune.jobs looks", "runs", folder=True)
