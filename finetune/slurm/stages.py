"""The stages of a launch, in order, and what the job of each asks SLURM for."""

from __future__ import annotations

import dataclasses

from finetune.recipe import ClusterConfig

STAGES = ("record", "prepare", "finetune", "evaluate")
DIVIDED = ("record", "prepare")  # those whose work may be divided into shares


def asks_for(cluster: ClusterConfig, stage: str) -> ClusterConfig:
    """What a job asks for: a fine-tune all of cluster.*; others, closed_loop among them, theirs of cluster.stages.*, on
    one node."""
    if stage == "finetune":
        return cluster
    own = getattr(cluster.stages, stage)
    gpus = min(own.gpus, cluster.gpus_per_node)
    share = cluster.cpus_per_task * gpus // max(cluster.gpus_per_node, 1)  # as many as come with that many GPUs
    cpus = own.cpus or (share if gpus else min(cluster.cpus_per_task, 8))
    return dataclasses.replace(
        cluster,
        nodes=1,
        gpus_per_node=gpus,
        processes_per_node=None,
        cpus_per_task=max(cpus, 1),
        memory=own.memory,  # that of a fine-tune is for its whole node; a site's default goes with the CPUs
        partition=own.partition or cluster.partition,
        time=own.time or cluster.time,
        sbatch=cluster.sbatch if own.sbatch is None else own.sbatch,
    )


def shares_of(cluster: ClusterConfig, stage: str) -> int:
    """How many jobs divide a stage's work; 1 where one does all of it."""
    return int(getattr(cluster.stages, stage).shares) if stage in DIVIDED else 1
