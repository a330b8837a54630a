"""From what a job and SLURM say of a site to the text of configs/local/default.yaml, with a reason for each line."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.recipe import ClusterConfig, StagesConfig
from finetune.slurm.cluster_queries import in_time, most, seconds_of
from finetune.slurm.site.request import SiteJob

_SCRATCH_BYTES = 50e9  # what cached features of a large dataset take
_FEW_FILES = 200_000


@dataclass(frozen=True)
class Findings:
    """What the job saw (probe.py), what `scontrol show config` says, and `scontrol show job` of it."""

    job: SiteJob
    given: ClusterConfig
    answer: Mapping[str, Any]
    settings: Mapping[str, str]
    shown: Mapping[str, str]


def proposal(found: Findings, head: str) -> str:
    """The text of the file."""
    lines = [(f"  {name}: {json.dumps(value)}", reason) for name, value, reason in _keys(found)]
    width = max((len(line) for line, _ in lines), default=0)
    comments = [f"# {text}" for text in [head, *_facts(found)]]
    body = [f"{line:{width}}  # {reason}" for line, reason in lines]
    return "\n".join([*comments, "cluster:" if body else "cluster: {}", *body]) + "\n"


# -- keys --------------------------------------------------------------------------------------------------------------


def _keys(found: Findings) -> Iterator[tuple[str, Any, str]]:
    """Name, value and reason of each key, those that were given as they were."""
    proposed = {name: (value, reason) for name, value, reason in [*_resources(found), *_surroundings(found)]}
    for field in dataclasses.fields(ClusterConfig):
        name, value = field.name, getattr(found.given, field.name)
        if value != getattr(ClusterConfig(), name) and name not in ("gpu_type", "gpus_per_node"):
            yield name, dataclasses.asdict(value) if isinstance(value, StagesConfig) else value, "as given"
        elif name in proposed:
            yield name, *proposed[name]


def _resources(found: Findings) -> Iterator[tuple[str, Any, str]]:
    """Partition, GPUs, CPUs and time."""
    cluster, partition = found.job.cluster, found.job.partition
    if cluster.partition:
        yield "partition", cluster.partition, f"without it SLURM refuses: {found.job.refused.split('. ')[0]}"
    nodes = partition.nodes if partition else []
    best = most(nodes, cluster.gpu_type)
    largest = max(nodes, key=lambda node: (most([node], cluster.gpu_type), node.cpus), default=None)
    if best:
        gpus = min(best, 4)
        yield "gpus_per_node", gpus, f"of {best} in a node of {found.job.where}"
        yield "gpu_type", cluster.gpu_type, "as SLURM names them" if cluster.gpu_type else "SLURM names no type"
        if largest:
            yield "cpus_per_task", max(largest.cpus * gpus // best, 1), f"of {largest.cpus}, the share of {gpus} GPUs"
    elif largest:
        yield "gpus_per_node", 0, "no node has a GPU: training on the CPU"
        yield "cpus_per_task", largest.cpus, "all of a node"
    limit = partition.max_seconds if partition else None
    if limit is not None and limit < (seconds_of(ClusterConfig().time) or math.inf):
        yield "time", in_time(limit), f"the limit of partition {found.job.where}"


def _surroundings(found: Findings) -> Iterator[tuple[str, Any, str]]:
    """What the node has: internet, a disk of its own; and whether the job may be requeued."""
    answer = found.answer
    if found.shown.get("Requeue") == "0":
        yield "requeue", False, "the site does not let jobs be requeued: submit again to continue"
    yes = [host for host, reached in answer["reached"].items() if reached]
    through = f" through {answer['proxy']}" if answer["proxy"] else ""
    if len(yes) < len(answer["reached"]):
        hosts = ", ".join(host for host in answer["reached"] if host not in yes)
        yield "offline", True, f"{answer['node']} does not reach {hosts}{through}"
    for place in answer["scratch"]:
        if place["local"] and place["writable"] and place["free_bytes"] > _SCRATCH_BYTES:
            room = f"{place['kind']} of the node, {_gigabytes(place['free_bytes'])} free"
            yield "scratch", f"{place['name'].rstrip('/')}/groot-$USER", room
            return


# -- what there is to know ---------------------------------------------------------------------------------------------


def _facts(found: Findings) -> Iterator[str]:
    """Findings that need no key, a line each."""
    answer = found.answer
    python = answer["python"]
    if python["problem"]:
        yield f"Python: {python['problem']}"
    else:
        lacks = f", without {', '.join(answer['missing'])}: see docs/how-to/install.md" if answer["missing"] else ""
        yield f"Python: {python['version']}, {python['executable']}{lacks}"
    yield from _gpu_facts(answer)
    yield f"containers: {', '.join(answer['containers']) or 'no runtime on the node'}" + (
        "; Pyxis (cluster.srun=[--container-image=...])" if found.settings.get("Pyxis") else ""
    )
    exported = answer["exported"]
    yield "variables of your shell " + (
        "reach a job" if exported else "do not reach a job (--export=NONE): cluster.environment"
    )
    yield from _policy(found)
    for folder in answer["folders"]:
        files = "" if folder["free_files"] is None else f", {folder['free_files']:,} files"
        few = " (few: a run folder has some hundred files)" if (folder["free_files"] or _FEW_FILES) < _FEW_FILES else ""
        quota = f"; quota: {folder['quota']}" if folder["quota"] else ""
        yield f"{folder['path']}: {folder['kind']}, {_gigabytes(folder['free_bytes'])}{files} free{few}{quota}"
    if len(answer["interfaces"]) > 1:
        yield f"interfaces: {', '.join(answer['interfaces'])}; for several nodes name one in NCCL_SOCKET_IFNAME"


def _gpu_facts(answer: Mapping[str, Any]) -> Iterator[str]:
    smi, torch, reduced = answer["gpus"], answer["torch"], answer["all_reduce"]
    for name, memory, driver in smi["devices"]:
        yield f"GPU: {name}, {int(memory) / 1024:.0f} GiB, driver {driver}"
    if smi["problem"]:
        yield f"GPU: none is seen on the node ({smi['problem']})"
    if torch and smi["devices"] and not torch["available"]:
        why = torch["problem"] or f"torch {torch['version']} is for CUDA {torch['cuda']}: is the driver older?"
        yield f"GPU: torch cannot use them: {why}"
    if reduced and not reduced["problem"]:
        size, n = reduced["bytes"], reduced["processes"]
        rate = 2 * (n - 1) / n * size / reduced["seconds"] / 1e9
        yield f"all-reduce of {size / 2**30:.3g} GiB, {n} processes ({reduced['backend']}): {rate:.1f} GB/s"
    elif reduced:
        yield f"all-reduce: not measured, {reduced['problem']}"


def _policy(found: Findings) -> Iterator[str]:
    """How SLURM ends jobs here, and what it keeps of them."""
    says, partition = found.settings, found.job.partition
    wait = says.get("KillWait", "?").removesuffix(" sec")
    yield f"a cancelled job is killed after {wait} s (KillWait); it saves if that is enough"
    if partition and not partition.is_default and not found.job.cluster.partition:
        yield f"jobs with GPUs are sent to partition {partition.name} by the site itself"
    mode, grace = found.shown.get("PreemptMode", "OFF"), found.shown.get("GraceTime", "0")
    if mode not in ("OFF", "GANG"):
        yield f"partition {found.job.where} is preempted ({mode}), with {grace} s of grace"
    if found.shown.get("Requeue") == "1":
        yield "SLURM lets jobs be requeued, so that a run continues by itself"
    kept = "slurmdbd" in says.get("AccountingStorageType", "")
    yield "accounting: " + (
        "kept, sacct remembers jobs" if kept else "none, so finished jobs are known for minutes only"
    )
    plugins = says.get("JobSubmitPlugins", "(null)")
    if plugins not in ("(null)", ""):
        yield f"a plugin of the site changes or refuses jobs as they are submitted ({plugins})"
    yield f"largest array: {says.get('MaxArraySize', '?')}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f} GB"
