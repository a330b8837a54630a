"""What is refused before anything is queued, because the job could only fail; each message says the remedy."""

from __future__ import annotations

import getpass
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from data_prep import check_prepare
from finetune import plan
from finetune.plan.disk_and_time import gpu_of_cluster
from finetune.recipe import ClusterConfig, FinetuneConfig, check_finetune
from finetune.slurm import cluster_queries
from finetune.slurm.attempt_record import jobs_of
from finetune.slurm.cluster_queries import Partition, Queue, in_time, most
from finetune.slurm.done_and_busy import leave_out
from finetune.slurm.launch_request import Request, Task
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.model.checkpoint_folder import resolve_folder
from toolkit.code_files import check_code
from toolkit.installation import CHECKOUT
from toolkit.shared_keys import is_hub_id

_MEMORY_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


def check_request(request: Request, say: Callable[[str], None]) -> bool:
    """Leave out what is done or busy, saying so; refuse the request when one of the other tasks cannot work.

    Returns whether SLURM was asked: where it does not answer, a dry run is checked as far as it goes without.
    """
    folders = {task.run_dir for task in request.tasks if task.run_dir.is_dir()}
    queue = Queue.read([noted for folder in sorted(folders) for noted in jobs_of(folder)])
    leave_out(request, queue, say)
    for task in request.tasks:
        data_comes = _comes("prepare", task)
        if task.stage == "record":
            task.config.check_here()
        elif task.stage == "prepare":
            check_prepare(task.config, recordings_come=_comes("record", task))
            _check_parts(task)
        elif task.stage == "finetune":
            _check_finetune(task.config, data_comes)
        else:
            task.config.check_here(checkpoint_comes=_comes("finetune", task), dataset_comes=data_comes)
    if request.tasks:
        check_code(CHECKOUT, sorted({name for task in request.tasks for name in task.run.cluster.files}), say)
    if not request.launch.dry_run:
        queue.require()
    if queue.silence:
        say(f"{queue.silence}: partition, account, GPU type, nodes and time are not checked")
    return not queue.silence


def _comes(stage: str, task: Task) -> bool:
    """Whether a task waits for one of that stage, itself or through others."""
    return any(other.stage == stage or _comes(stage, other) for other in task.after)


def _check_parts(task: Task) -> None:
    """Refuse a conversion of which a fine-tune needs a part that is neither recorded nor is going to be."""
    config, name = task.config, task.config.split.name
    places = [Path(config.raw_dir) / name, Path(config.data_dir) / name]
    coming = {other.config.part for other in task.recordings}
    for part in sorted(task.parts - coming - {"train"}):
        if not any((place / part).is_dir() for place in places):
            raise ToolkitError(
                f"{places[0] / part} is not there, and dataset.conflict_share={task.run.dataset.conflict_share} trains "
                f"on it. Record it too: stages=record,..., or python -m simulation.record split={name} "
                f"part={part} out={config.raw_dir}."
            )


def _check_finetune(config: FinetuneConfig, data_comes: bool) -> None:
    """Refuse a base that nodes without internet do not find, and what memory and disks do not hold."""
    cluster, base = config.cluster, config.model.base
    check_grace(cluster)
    processes = cluster.nodes * (cluster.processes_per_node or cluster.gpus_per_node or 1)
    check_finetune(config, processes, dataset_comes=data_comes)
    if cluster.offline and is_hub_id(base):
        try:
            resolve_folder(base, local_files_only=True)
        except ToolkitError:
            raise ToolkitError(
                f"model.base={base} is a Hugging Face id that is not in the local cache, and cluster.offline=true says "
                f"that nodes have no internet. Fetch it here: python -m finetune.prefetch base={base} "
                f"out=checkpoints/base/{base.split('/')[-1]}, then model.base=checkpoints/base/{base.split('/')[-1]}."
            ) from None
    cuda = config.device != "cpu" and cluster.gpus_per_node > 0
    gpu = gpu_of_cluster(cluster.gpu_type) if cuda else None
    host = int(megabytes(cluster.memory or "0") * 2**20) or None
    room = host if not cuda else int(gpu.memory * 1e9) if gpu else None
    plan.check_fits(config, processes, room, per_node=processes // cluster.nodes, cuda=cuda, host_memory_bytes=host)
    plan.check_disk(config, processes, cuda=cuda)


# -- the cluster -------------------------------------------------------------------------------------------------------


def check_accepted(cluster: ClusterConfig, said: str) -> Partition | None:
    """Refuse a job that SLURM accepts, but would never start; `said` is what `sbatch --test-only` answered.

    The answer names the partition that the job would go to, also where a plugin of the site chooses it; that is
    returned, None where it is not known.
    """
    found = re.search(r"\bin partition (\S+)", said)
    partition = cluster_queries.read_partitions().get(found[1]) if found else None
    if partition is None:
        return None
    if not partition.is_up:
        raise ToolkitError(
            f"partition {partition.name} is not up: the job would wait. Take another (cluster.partition), or wait "
            f"(sinfo -p {partition.name})."
        )
    _check_limit(cluster, partition.max_seconds, f"partition {partition.name}")
    return partition


def explanation(cluster: ClusterConfig) -> str:
    """Why SLURM may have refused a job that asks for this, as far as partitions, nodes and accounts show it."""
    try:
        check_fits(cluster)
    except ToolkitError as problem:
        return str(problem)
    return (
        "Mend cluster.* (sinfo, scontrol show partition and sacctmgr show associations show what there is; the site's "
        "own rules may say more)."
    )


def check_grace(cluster: ClusterConfig) -> None:
    """Refuse a time that ends before training would."""
    seconds = cluster_queries.seconds_of(cluster.time)
    if seconds is not None and seconds <= cluster.grace_seconds:
        raise ToolkitError(
            f"cluster.time={cluster.time} leaves no time to train before the last checkpoint, which is begun "
            f"cluster.grace_seconds={cluster.grace_seconds} before the limit. Ask for more time, or less grace."
        )


def check_fits(cluster: ClusterConfig) -> None:
    """Refuse a partition, account, GPU type, number of nodes or time that the cluster does not have.

    Only to explain: what a site's plugins make of a request, SLURM alone knows.
    """
    partitions = cluster_queries.read_partitions()
    wanted = _wanted(cluster, partitions)
    names = ("partition " if len(wanted) == 1 else "partitions ") + ", ".join(partition.name for partition in wanted)
    check_grace(cluster)
    limits = [partition.max_seconds for partition in wanted]
    _check_limit(cluster, None if None in limits else max(filter(None, limits)), names)
    problems = [_no_room(cluster, partition, partitions) for partition in wanted]
    if all(problems):
        raise ToolkitError(str(problems[0]))
    for name, value in (("account", cluster.account), ("qos", cluster.qos)):
        if value is None:
            continue
        allowed = [partition.accounts if name == "account" else partition.qos for partition in wanted]
        if all(some is not None and value not in some for some in allowed):
            known = [known for some in allowed for known in some or []]
            raise ToolkitError(f"cluster.{name}={value} may not use {names}.{did_you_mean(value, known)}")
        listing = [f"user={getpass.getuser()}", "format=account"] if name == "account" else ["format=name"]
        known = cluster_queries.accounting("associations" if name == "account" else "qos", *listing)
        if known and value not in known:
            whose = "none of your accounts" if name == "account" else "no qos of this cluster"
            raise ToolkitError(f"cluster.{name}={value} is {whose} (sacctmgr).{did_you_mean(value, known)}")


def _wanted(cluster: ClusterConfig, partitions: Mapping[str, Partition]) -> list[Partition]:
    """The partitions that the job may go to."""
    if cluster.partition is None:
        defaults = [partition for partition in partitions.values() if partition.is_default]
        if not defaults:
            raise ToolkitError(
                f"This cluster has no default partition. Write cluster.partition=NAME.{did_you_mean('', partitions)}"
            )
        return defaults
    names = cluster.partition.split(",")
    for name in names:
        if name not in partitions:
            raise ToolkitError(
                f'cluster.partition={cluster.partition}: this cluster has no partition "{name}".'
                f"{did_you_mean(name, partitions)} (sinfo lists them)"
            )
        if not partitions[name].is_up:
            raise ToolkitError(
                f"cluster.partition={name} is not up: jobs for it would wait. Take another, or wait (sinfo -p {name})."
            )
    return [partitions[name] for name in names]


def _check_limit(cluster: ClusterConfig, limit: float | None, names: str) -> None:
    seconds = cluster_queries.seconds_of(cluster.time)
    if limit is not None and (seconds or math.inf) > limit and not _lifts_limits(cluster):
        longest = in_time(int(limit))
        raise ToolkitError(
            f"cluster.time={cluster.time} is above the limit of {names}, {longest}: the job would "
            f"wait for ever. Write cluster.time={longest}; a run continues in as many attempts as it needs."
        )


def _lifts_limits(cluster: ClusterConfig) -> bool:
    """Whether the QOS of the job, the user's default where it names none, holds in place of a partition's limits."""
    with suppress(ToolkitError):  # no answer says nothing of the limit
        listed = (line.partition("|") for line in cluster_queries.accounting("qos", "format=name,flags"))
        lifting = {name for name, _, flags in listed if "PartitionTimeLimit" in flags.split(",")}
        if cluster.qos is not None or not lifting:
            return cluster.qos in lifting
        own = f"user={getpass.getuser()}"
        return bool(lifting & {*cluster_queries.accounting("associations", own, "format=defaultqos")})
    return False


def _no_room(cluster: ClusterConfig, partition: Partition, partitions: Mapping[str, Partition]) -> str | None:
    """Why that many nodes of that kind are not to be had in the partition; None where they are."""
    kind, count, nodes = cluster.gpu_type, cluster.gpus_per_node, partition.nodes
    where, best = f"partition {partition.name}", most(nodes, kind)
    types = sorted({name for node in nodes for name in node.gpus if name})
    if count and kind is not None and kind not in types:
        others = sorted({p.name for p in partitions.values() if most(p.nodes, kind)})
        there = f" It is in {', '.join(others)}: cluster.partition={others[0]}." if others else ""
        has = did_you_mean(kind, types) or " It has GPUs without a type, or none: cluster.gpu_type=null takes any."
        return f"cluster.gpu_type={kind}: no node of {where} has such GPUs.{there or has}"
    if count > best:
        gpus = f"{kind} GPUs" if kind else "GPUs"
        return (
            f"cluster.gpus_per_node={count}: the nodes of {where} have {best} {gpus} at most. "
            f"Write cluster.gpus_per_node={best}, and take more nodes (cluster.nodes=...) where that is too few."
        )
    memory = megabytes(cluster.memory) if cluster.memory else 0
    large = [node for node in nodes if node.cpus >= cluster.cpus_per_task and node.memory >= memory]
    fitting = [node for node in large if most([node], kind) >= count]
    if not fitting:
        cpus, memory = (max(sizes, default=0) for sizes in ([n.cpus for n in nodes], [n.memory for n in nodes]))
        return (
            f"cluster.cpus_per_task={cluster.cpus_per_task}, cluster.memory={cluster.memory or 'null'}: no node of "
            f"{where} has as much. The largest have {cpus} CPUs and {memory} MB."
        )
    limit = min(len(fitting), partition.max_nodes or len(fitting))
    if cluster.nodes > limit:
        return (
            f"cluster.nodes={cluster.nodes}: {where} gives {limit} nodes that fit to one job at most, so the job would "
            f"wait for ever. Write cluster.nodes={limit}."
        )
    return None


def megabytes(text: str) -> float:
    """A size as sbatch --mem takes it, in MB (2**20)."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "M")
    if not number.isdecimal() or unit not in _MEMORY_UNITS:
        raise ToolkitError(f"cluster.memory={text} is no size that sbatch takes. Write 64G, or 0 for all of a node.")
    return int(number) * _MEMORY_UNITS[unit]
