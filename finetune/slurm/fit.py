"""Whether the cluster can ever run what a job asks for; each refusal says what there is instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune.config.schema import ClusterConfig
from finetune.slurm import inventory
from finetune.slurm.inventory import Node, Partition
from gr00t.errors import ToolkitError, did_you_mean

_MEMORY_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


def check_fits(cluster: ClusterConfig) -> None:
    """Refuse a partition, account, GPU type, number of nodes or time that the cluster does not have."""
    partitions = inventory.read_partitions()
    wanted = _wanted(cluster, partitions)
    _check_time(cluster, wanted)
    problems = [_no_room(cluster, partition, partitions) for partition in wanted]
    if all(problems):
        raise ToolkitError(str(problems[0]))
    if cluster.account is not None or cluster.qos is not None:
        _check_account(cluster, wanted)


def _wanted(cluster: ClusterConfig, partitions: Mapping[str, Partition]) -> list[Partition]:
    """The partitions that the job may go to."""
    if cluster.partition is None:
        defaults = [partition for partition in partitions.values() if partition.is_default]
        if not defaults:
            raise ToolkitError(
                f"This cluster has no default partition. Write cluster.partition=NAME.{did_you_mean('', partitions)}"
            )
        return defaults
    for name in cluster.partition.split(","):
        if name not in partitions:
            raise ToolkitError(
                f'cluster.partition={cluster.partition}: this cluster has no partition "{name}".'
                f"{did_you_mean(name, partitions)} (sinfo lists them)"
            )
        if not partitions[name].is_up:
            raise ToolkitError(
                f"cluster.partition={name} is not up: jobs for it would wait. Take another, or wait (sinfo -p {name})."
            )
    return [partitions[name] for name in cluster.partition.split(",")]


def _check_time(cluster: ClusterConfig, wanted: Sequence[Partition]) -> None:
    seconds = inventory.seconds_of(cluster.time)
    if seconds is not None and seconds <= cluster.grace_seconds:
        raise ToolkitError(
            f"cluster.time={cluster.time} leaves no time to train before the last checkpoint, which is begun "
            f"cluster.grace_seconds={cluster.grace_seconds} before the limit. Ask for more time, or less grace."
        )
    limits = [partition.max_seconds for partition in wanted]
    if None in limits:
        return
    longest = max(limit for limit in limits if limit is not None)
    if seconds is None or seconds > longest:
        raise ToolkitError(
            f"cluster.time={cluster.time} is above the limit of {_names(wanted)}, {in_time(longest)}: the job would "
            f"wait for ever. Write cluster.time={in_time(longest)}; a run goes on in as many attempts as it needs."
        )


def _no_room(cluster: ClusterConfig, partition: Partition, partitions: Mapping[str, Partition]) -> str | None:
    """Why that many nodes of that kind are not to be had in the partition; None where they are."""
    kind, count = cluster.gpu_type, cluster.gpus_per_node
    where = f"partition {partition.name}"
    types = sorted({name for node in partition.nodes for name in node.gpus if name})
    if count and kind is not None and kind not in types:
        others = sorted({p.name for p in partitions.values() if inventory.most(p.nodes, kind)})
        there = f" It is in {', '.join(others)}: cluster.partition={others[0]}." if others else ""
        has = did_you_mean(kind, types) or " It has GPUs without a type, or none: cluster.gpu_type=null takes any."
        return f"cluster.gpu_type={kind}: no node of {where} has such GPUs.{there or has}"
    if count > inventory.most(partition.nodes, kind):
        best = inventory.most(partition.nodes, kind)
        return (
            f"cluster.gpus_per_node={count}: the nodes of {where} have {best} {kind or ''} GPUs at most. Write "
            f"cluster.gpus_per_node={best}, and take more nodes (cluster.nodes=...) where that is too few."
        ).replace("  ", " ")
    fitting = [node for node in partition.nodes if _fits(cluster, node)]
    if not fitting:
        largest = max(node.cpus for node in partition.nodes) if partition.nodes else 0
        memory = max((node.memory for node in partition.nodes), default=0)
        return (
            f"cluster.cpus_per_task={cluster.cpus_per_task}, cluster.memory={cluster.memory or 'null'}: no node of "
            f"{where} has as much. The largest have {largest} CPUs and {memory} MB."
        )
    limit = min(len(fitting), partition.max_nodes or len(fitting))
    if cluster.nodes > limit:
        return (
            f"cluster.nodes={cluster.nodes}: {where} gives {limit} nodes that fit to one job at most, so the job would "
            f"wait for ever. Write cluster.nodes={limit}."
        )
    return None


def _fits(cluster: ClusterConfig, node: Node) -> bool:
    memory = megabytes(cluster.memory) if cluster.memory else 0
    gpus = inventory.most([node], cluster.gpu_type) >= cluster.gpus_per_node
    return gpus and node.cpus >= cluster.cpus_per_task and node.memory >= memory


def megabytes(text: str) -> float:
    """A size as sbatch --mem takes it, in MB (2**20)."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "M")
    if not number.isdecimal() or unit not in _MEMORY_UNITS:
        raise ToolkitError(f"cluster.memory={text} is no size that sbatch takes. Write 64G, or 0 for all of a node.")
    return int(number) * _MEMORY_UNITS[unit]


def _check_account(cluster: ClusterConfig, wanted: Sequence[Partition]) -> None:
    for name, value in (("account", cluster.account), ("qos", cluster.qos)):
        allowed = [partition.accounts if name == "account" else partition.qos for partition in wanted]
        if value is not None and all(names is not None and value not in names for names in allowed):
            known = sorted({known for names in allowed for known in names or []})
            raise ToolkitError(f"cluster.{name}={value} may not use {_names(wanted)}.{did_you_mean(value, known)}")
    if not inventory.has_accounting():
        return
    accounts, qos = inventory.own_accounts(), inventory.known_qos()
    if cluster.account is not None and accounts and cluster.account not in accounts:
        raise ToolkitError(
            f"cluster.account={cluster.account} is none of your accounts.{did_you_mean(cluster.account, accounts)} "
            "(sacctmgr show associations user=$USER lists them)"
        )
    if cluster.qos is not None and qos and cluster.qos not in qos:
        raise ToolkitError(f"cluster.qos={cluster.qos}: the cluster has no such qos.{did_you_mean(cluster.qos, qos)}")


def in_time(seconds: int) -> str:
    """Seconds as sbatch takes a time: 24:00:00, 2-00:00:00."""
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def _names(partitions: Sequence[Partition]) -> str:
    names = ", ".join(partition.name for partition in partitions)
    return f"partition {names}" if len(partitions) == 1 else f"partitions {names}"
