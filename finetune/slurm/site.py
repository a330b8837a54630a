"""Find out what a cluster's jobs need, by one short job, and propose configs/local/default.yaml.

python -m finetune.slurm.site cluster.account=mine cluster.setup=['module load cuda'] write=true"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune.recipe import ClusterConfig, StagesConfig
from finetune.slurm.cluster_queries import (
    ALIVE,
    UNKNOWN_JOB,
    Partition,
    in_time,
    most,
    read_partitions,
    reason_of,
    seconds_of,
    slurm,
)
from finetune.slurm.refusals import check_accepted, explanation
from finetune.slurm.render import JOBS, site_lines
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import read_json
from toolkit.command_line import run_main
from toolkit.declaration import key
from toolkit.installation import CHECKOUT, CONFIG_DIR

ASK_SECONDS = 2.0
SHOWN_SECONDS = 10.0  # network disks show late what another node has written; SLURM may not answer for a moment
JOB_TIME = "00:10:00"
_MARK = "SITE_CHECK_EXPORTED"  # whether it arrives in the job shows what of a shell does
_SCRATCH_BYTES = 50e9  # what cached features of a large dataset take
_FEW_FILES = 200_000


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


def main(config: SiteConfig) -> None:
    target = CONFIG_DIR / "local" / "default.yaml"
    if config.write and target.exists():
        raise ToolkitError(f"{target} exists and is not replaced. Leave write=true out, and compare.")
    job = job_of(config)
    print(f"The check submits one job: {job.in_words}")
    answer, shown = ask_node(job, config)
    settings = dict(re.findall(r"^(\w+)\s*= (.*)$", slurm("scontrol", "show", "config").stdout, re.MULTILINE))
    if "--container-image" in slurm("srun", "--help", check=False).stdout:
        settings["Pyxis"] = "yes"
    head = f"Proposed by python -m finetune.slurm.site on {datetime.now():%Y-%m-%d}, after a job on {answer['node']}"
    text = proposal(Findings(job, config.cluster, answer, settings, shown), head)
    print(text, end="")
    if config.write:
        target.parent.mkdir(exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
        print(f"Written to {target}. python -m finetune.slurm.render writes it into the job scripts.")
    else:
        print(f"# write=true writes this to {target}")


# -- the job -----------------------------------------------------------------------------------------------------------


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
    refused = ""
    for cluster in _candidates(config, read_partitions()):
        done = slurm("sbatch", "--test-only", check=False, text=SiteJob(cluster, None).script + "\ntrue\n")
        if done.returncode == 0:
            return SiteJob(cluster, check_accepted(cluster, done.stderr), refused)
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


def ask_node(job: SiteJob, config: SiteConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """What the job saw, and what SLURM says of it. However this ends, the job and its files are gone afterwards."""
    runs = Path(config.runs_dir).absolute()
    with ExitStack() as undo:
        with disk_errors(runs, "Nothing was submitted."):
            for folder in [path for path in reversed([runs, *runs.parents]) if not path.exists()]:
                folder.mkdir()
                undo.callback(_remove_empty, folder)
            folder = Path(tempfile.mkdtemp(prefix=".site-", dir=runs))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        script = f"{job.script}\n{_payload(folder, runs)}"
        os.environ[_MARK] = "yes"
        undo.callback(os.environ.pop, _MARK)
        options = (f"--output={folder}/log", "--job-name=site-check", "--parsable")
        job_id = slurm("sbatch", *options, text=script).stdout.strip().split(";")[0]
        undo.callback(slurm, "scancel", job_id, check=False)
        print(f"job {job_id} is submitted; Ctrl-C cancels it")
        return _wait(job_id, folder, config)


def _payload(folder: Path, runs: Path) -> str:
    """What the job runs: the probe as every job of ours starts Python, else with any Python."""
    probe = [str(Path(__file__).with_name("node_probe.py")), f"{folder}/answer.json"]
    folders = ["--folders", str(Path.home()), str(CHECKOUT), str(runs)]
    return f"""export GROOT_CALLER_PYTHON={shlex.quote(sys.executable)}
probe=({shlex.join(probe)} "--exported=${{{_MARK}:-}}" {shlex.join(folders)})
{shlex.quote(str(JOBS / "run.sh"))} site "${{probe[@]}}" 2> {shlex.quote(f"{folder}/problem")} && exit
python3 "${{probe[@]}}" --problem="$(tail -n 1 {shlex.quote(f"{folder}/problem")})"
"""


def _wait(job_id: str, folder: Path, config: SiteConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The answer once it is there; ToolkitError where the job ends without, or does not start in time."""
    until, said, ended = time.monotonic() + config.wait_minutes * 60, "", math.inf
    while True:
        shown, silence = _show("job", job_id)
        state = silence or f"{shown.get('JobState', 'unknown').lower()} ({shown.get('Reason', '?')})"
        if shown.get("JobState") not in ALIVE and not silence:
            if (folder / "answer.json").is_file():
                partition, _ = _show("partition", shown.get("Partition", ""))
                return read_json(folder / "answer.json"), {**partition, **shown}
            ended = min(ended, time.monotonic())
        if time.monotonic() > ended + SHOWN_SECONDS:
            raise ToolkitError(f"job {job_id} ended without an answer, {state}: {_log(folder)}")
        if time.monotonic() > until:
            raise ToolkitError(
                f"job {job_id} is {state} after wait_minutes={config.wait_minutes:g}, and is cancelled. Wait longer, "
                "or ask for less: gpus=1, cluster.partition=NAME."
            )
        if state != said:
            print(f"job {job_id}: {state}")
            said = state
        time.sleep(ASK_SECONDS)


def _show(kind: str, name: str) -> tuple[dict[str, str], str]:
    """What SLURM says of a job or partition, and why it gives no answer; the first is {} for a job it has forgotten."""
    done = slurm("scontrol", "show", kind, "--oneliner", name, check=False)
    silent = done.returncode != 0 and UNKNOWN_JOB not in done.stderr
    return dict(re.findall(r"(\S+?)=(\S*)", done.stdout)), f"not known, {reason_of(done)}" if silent else ""


def _log(folder: Path) -> str:
    files = [path for path in (folder / "problem", folder / "log") if path.is_file()]
    lines = [line for path in files for line in path.read_text(errors="replace").splitlines()]
    nothing = f"it wrote nothing. Give a folder on a disk that all nodes see (runs_dir=FOLDER), not {folder.parent}"
    return " | ".join(lines[-5:]) or nothing


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


# -- what is proposed --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Findings:
    """What the job saw (node_probe.py), what `scontrol show config` says, and `scontrol show job` of it."""

    job: SiteJob
    given: ClusterConfig
    answer: Mapping[str, Any]
    settings: Mapping[str, str]
    shown: Mapping[str, str]


def proposal(found: Findings, head: str) -> str:
    lines = [(f"  {name}: {json.dumps(value)}", reason) for name, value, reason in _keys(found)]
    width = max((len(line) for line, _ in lines), default=0)
    comments = [f"# {text}" for text in [head, *_facts(found)]]
    body = [f"{line:{width}}  # {reason}" for line, reason in lines]
    return "\n".join([*comments, "cluster:" if body else "cluster: {}", *body]) + "\n"


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
    pyxis = "; Pyxis (cluster.srun=[--container-image=...])" if found.settings.get("Pyxis") else ""
    yield f"containers: {', '.join(answer['containers']) or 'no runtime on the node'}{pyxis}"
    reach = "reach a job" if answer["exported"] else "do not reach a job (--export=NONE): cluster.environment"
    yield f"variables of your shell {reach}"
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
    yield f"accounting: {'kept, sacct remembers jobs' if kept else 'none, so finished jobs are known for minutes only'}"
    plugins = says.get("JobSubmitPlugins", "(null)")
    if plugins not in ("(null)", ""):
        yield f"a plugin of the site changes or refuses jobs as they are submitted ({plugins})"
    yield f"largest array: {says.get('MaxArraySize', '?')}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f} GB"


if __name__ == "__main__":
    run_main(main, "site")
