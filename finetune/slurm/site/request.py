"""What the site check asks of the user, and of SLURM."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finetune.recipe import ClusterConfig
from finetune.slurm.cluster_queries import Partition, most, read_partitions, reason_of, slurm
from finetune.slurm.refusals import check_accepted, explanation
from finetune.slurm.render import site_lines
from gr00t.errors import ToolkitError
from toolkit.declaration import key

JOB_TIME = "00:10:00"


@dataclass(kw_only=True)
class SiteConfig:
    """Find out what this cluster's jobs need: submit one short job to it, and print a proposal of
    configs/local/default.yaml with the reason of each line.

    cluster.* (account, partition, setup, container, python, ...) is what the job takes from you; all else of it is
    found out.
    """

    cluster: ClusterConfig = key("what the job is given; its size and time are those of the check", ClusterConfig)
    gpus: int | None = key(
        "GPUs that the job takes, on one node; null for two, or as many as there are", None, at_least=0
    )
    runs_dir: str = key("folder on a disk that all nodes see; the job leaves its answer there", "runs", folder=True)
    wait_minutes: float = key("minutes after which a job that has not answered is cancelled", 60.0, more_than=0)
    write: bool = key("write the proposal to configs/local/default.yaml, where there is none", False)


@dataclass(frozen=True)
class SiteJob:
    """The job that SLURM accepts: what it asks for, the partition that it goes to, and what was refused before."""

    cluster: ClusterConfig
    partition: Partition | None
    refused: str = ""

    @property
    def script(self) -> str:
        """Its header and the site's own lines."""
        return "\n".join(["#!/bin/bash", *site_lines(self.cluster)])

    @property
    def where(self) -> str:
        """The partition's name."""
        return self.partition.name if self.partition else "?"

    @property
    def in_words(self) -> str:
        """What it asks for."""
        cluster = self.cluster
        kind = f" {cluster.gpu_type}" if cluster.gpu_type else ""
        gpus = f"{cluster.gpus_per_node}{kind} GPUs" if cluster.gpus_per_node else "no GPU"
        where = cluster.partition or f"{self.where}, which SLURM chooses"
        return f"partition {where}; {JOB_TIME}; one node with {gpus} and {cluster.cpus_per_task} CPUs"


def job_of(config: SiteConfig) -> SiteJob:
    """The first job that `sbatch --test-only` takes: where SLURM sends it by itself, else in a partition with GPUs.

    Raises ToolkitError where it takes none.
    """
    partitions, refused = read_partitions(), ""
    for cluster in _candidates(config, partitions):
        done = slurm("sbatch", "--test-only", check=False, text=SiteJob(cluster, None).script + "\ntrue\n")
        if done.returncode == 0:
            check_accepted(cluster, done.stderr)
            found = re.search(r"\bin partition (\S+)", done.stderr)
            return SiteJob(cluster, partitions.get(found[1]) if found else None, refused)
        refused = refused or f"{reason_of(done)}. {explanation(cluster)}"
    raise ToolkitError(f"SLURM would refuse the job: {refused} Nothing was submitted.")


def _candidates(config: SiteConfig, partitions: Mapping[str, Partition]) -> Iterator[ClusterConfig]:
    """The cluster as configured, in each partition that may take the job, sized by the nodes there."""
    with_gpus = [name for name, found in partitions.items() if found.is_up and most(found.nodes, None)]
    for name in [config.cluster.partition] if config.cluster.partition else [None, *with_gpus]:
        nodes = [node for found in partitions.values() if name in (None, found.name) for node in found.nodes]
        known = sorted({kind for node in nodes for kind in node.gpus}, key=lambda kind: -most(nodes, kind))
        wanted = config.cluster.gpu_type
        kind = wanted if wanted in known else next(filter(None, known), None)
        gpus = min(most(nodes, kind), 2) if config.gpus is None else config.gpus
        yield dataclasses.replace(
            config.cluster,
            partition=name,
            nodes=1,
            gpus_per_node=gpus,
            gpu_type=kind if gpus else None,
            cpus_per_task=min(2 * max(gpus, 2), max((node.cpus for node in nodes), default=1)),
            time=JOB_TIME,
            grace_seconds=1,  # a signal in the middle of it would end it
        )
