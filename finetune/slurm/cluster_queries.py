"""What SLURM's own commands say of the cluster (partitions, nodes, accounts) and of this user's jobs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from gr00t.errors import ToolkitError

TIMEOUT_SECONDS = 60.0

# Variables that sbatch obeys before its script, and the keys of cluster.* that say the same: the launcher follows them.
SBATCH_KEYS = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_MEM_PER_NODE": "memory",
    "SBATCH_REQUEUE": "requeue",
    "SBATCH_NO_REQUEUE": "requeue",
}
JOB_NAME = "SBATCH_JOB_NAME"
# Those that would take from a job what the toolkit relies on: where its log is, when it is warned, how it is counted.
SBATCH_LEFT_OUT = (
    *("SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_SIGNAL", "SBATCH_OPEN_MODE"),
    *("SBATCH_OUTPUT", "SBATCH_ERROR", "SBATCH_INPUT", "SBATCH_DEPENDENCY"),
)
_OF_A_JOB = re.compile(
    r"SLURM_(?!CONF$|CLUSTERS$)|SLURMD_|SRUN_|PMI|GROOT_(?!API_TOKEN$)"
    r"|(MASTER_ADDR|MASTER_PORT|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|CUDA_VISIBLE_DEVICES)$"
)
_OF_OUTPUT = re.compile(r"(SQUEUE|SINFO|SACCT|SACCTMGR|SCONTROL)_|SLURM_(TIME_FORMAT|BITSTR_LEN)$")
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED", "SIGNALING")


def available() -> bool:
    """Whether this machine has SLURM's commands."""
    return shutil.which("sbatch") is not None


def environment() -> dict[str, str]:
    """This process's variables for SLURM's commands.

    Without those of an enclosing job (salloc, a Jupyter server), which would pass for a new job's own, those that
    change how answers are written, and those of sbatch that our scripts have taken in already or cannot work with.
    """
    inside = "SLURM_JOB_ID" in os.environ
    ours = {*SBATCH_KEYS, *SBATCH_LEFT_OUT, JOB_NAME}
    kept = {name: value for name, value in os.environ.items() if not (name in ours or _OF_OUTPUT.match(name))}
    return {name: value for name, value in kept.items() if not (inside and _OF_A_JOB.match(name))}


def slurm(*command: str, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command without a shell, with `text` on its standard input; with `check`, a failure is a ToolkitError."""
    name, shown = command[0], " ".join(command[:3]) + (" ..." if len(command) > 3 else "")
    if shutil.which(name) is None:
        raise ToolkitError(f"{name} is not on this machine. Log in to a node of the SLURM cluster, and start it there.")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, input=text, env=environment()
        )
    except subprocess.TimeoutExpired:
        raise ToolkitError(
            f"{shown} gave no answer in {TIMEOUT_SECONDS:.0f} s: is slurmctld up? (scontrol ping)"
        ) from None
    if check and done.returncode != 0:
        raise ToolkitError(f"{shown} was refused: {reason_of(done)}")
    return done


def reason_of(failed: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed says of it, in one line."""
    said = " ".join(failed.stderr.split()) or f"exit status {failed.returncode}"
    return said.removeprefix(f"{failed.args[0]}: ")


def _ask(*command: str) -> list[str]:
    """The lines that a command answers which only reads; a controller that is down is reported in one line."""
    done = slurm(*command, check=False)
    if done.returncode != 0:
        raise ToolkitError(
            f"SLURM does not answer ({command[0]}: {reason_of(done)}; scontrol ping says when its controller is back)"
        )
    return done.stdout.splitlines()


# -- the cluster -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A node: CPUs, memory (MB), and GPUs by type ("" where the cluster names no type)."""

    name: str
    cpus: int
    memory: int
    gpus: dict[str, int]


@dataclass
class Partition:
    """A partition; max_seconds and max_nodes are None without a limit; accounts and qos None where all are allowed."""

    name: str
    is_default: bool
    is_up: bool
    max_seconds: int | None
    max_nodes: int | None
    accounts: list[str] | None
    qos: list[str] | None
    nodes: list[Node] = field(default_factory=list)


def read_partitions() -> dict[str, Partition]:
    """Every partition by name, with its nodes; ToolkitError where SLURM does not answer."""
    found: dict[str, Partition] = {}
    for line in filter(str.strip, _ask("scontrol", "show", "partition", "--oneliner")):
        words = dict(word.partition("=")[::2] for word in line.split())
        accounts, qos = (words.get(name, "ALL") for name in ("AllowAccounts", "AllowQos"))
        found[words["PartitionName"]] = Partition(
            name=words["PartitionName"],
            is_default=words.get("Default") == "YES",
            is_up=words.get("State") == "UP",
            max_seconds=seconds_of(words.get("MaxTime", "UNLIMITED")),
            max_nodes=None if words.get("MaxNodes", "UNLIMITED") == "UNLIMITED" else int(words["MaxNodes"]),
            accounts=None if accounts in ("ALL", "(null)") else accounts.split(","),
            qos=None if qos in ("ALL", "(null)") else qos.split(","),
        )
    for line in _ask("sinfo", "--noheader", "--Node", "--format=%N|%R|%c|%m|%G"):
        name, partition, *sizes, gres = (word.strip() for word in line.split("|", 4))
        if partition in found:
            cpus, memory = (int(size.rstrip("+") or 0) for size in sizes)
            found[partition].nodes.append(Node(name, cpus, memory, gpus_of(gres)))
    return found


def max_array_size() -> int | None:
    """How many elements an array has at most; None where the cluster does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", "\n".join(_ask("scontrol", "show", "config")), re.MULTILINE)
    return max(int(found[1]), 1) if found else None


def accounting(*shown: str) -> list[str]:
    """One column of what `sacctmgr show` lists, e.g. accounting("qos", "format=name"); nothing on a cluster that keeps
    no accounts."""
    storage = [line for line in _ask("scontrol", "show", "config") if line.startswith("AccountingStorageType")]
    if not any("slurmdbd" in line for line in storage):
        return []
    listed = slurm("sacctmgr", "--noheader", "--parsable2", "show", *shown).stdout.splitlines()
    return sorted({line.strip() for line in listed if line.strip()})


def gpus_of(gres: str) -> dict[str, int]:
    """'gpu:a100:4(S:0-1),gpu:v100:2' as {'a100': 4, 'v100': 2}."""
    gpus: Counter[str] = Counter()
    for kind, count in re.findall(r"gpu:(?:([^:(,]+):)?(\d+)", gres):
        gpus[kind] += int(count)
    return gpus


def most(nodes: Sequence[Node], kind: str | None) -> int:
    """The most GPUs (of that type, None for any) that one of the nodes has."""
    return max((sum(n for k, n in node.gpus.items() if kind in (None, k)) for node in nodes), default=0)


def seconds_of(text: str) -> int | None:
    """A time as sbatch takes it (minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s) in seconds; None for no limit."""
    if text.strip().upper() in ("UNLIMITED", "INFINITE", "-1"):
        return None
    match = re.fullmatch(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})", text.strip())
    if match is None:
        raise ToolkitError(
            f'cluster.time={text} is no time that sbatch takes. Write hours:minutes:seconds ("24:00:00") or '
            'days-hours ("2-00").'
        )
    parts = [int(part) for part in match["clock"].split(":")]
    if not match["days"] and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return int(match["days"] or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def in_time(seconds: int) -> str:
    """Seconds as sbatch takes a time: 24:00:00, 2-00:00:00."""
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


# -- jobs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A job or an element of an array: SLURM's state, why it waits, what is left of its limit (as SLURM writes it)."""

    job_id: str
    name: str
    state: str
    reason: str = ""
    time_left: str = ""
    nodes: str = ""

    @property
    def alive(self) -> bool:
        """Whether it runs or will run."""
        return self.state in ALIVE


@dataclass(frozen=True)
class Queue:
    """SLURM's answer at one moment about this user's jobs, by id; `silence` is the reason where there is none."""

    jobs: dict[str, Job]
    silence: str = ""

    @classmethod
    def read(cls, ask_accounts_for: Collection[str] = ()) -> Queue:
        """squeue's jobs; those of `ask_accounts_for` that it has forgotten as sacct remembers them."""
        if not available():
            return cls({}, "SLURM is not on this machine")
        try:
            jobs = _squeue()
        except ToolkitError as error:
            return cls({}, str(error))
        forgotten = sorted(set(ask_accounts_for) - set(jobs))
        return cls({**_sacct(forgotten), **jobs} if forgotten else jobs)

    @classmethod
    def answered(cls) -> Queue:
        """As `read`, for what must not continue without an answer."""
        queue = cls.read()
        queue.require()
        return queue

    def require(self) -> None:
        """Raise ToolkitError where there was no answer."""
        if self.silence:
            raise ToolkitError(f"{self.silence}. Do it on a login node of the cluster, once its controller answers.")

    def find(self, noted: dict[str, Any]) -> Job | None:
        """The job of a record; None when it has none, SLURM does not know it, or has given its number to another."""
        job = self.jobs.get(str(noted.get("job_id")))
        return job if job and noted.get("job_name") in (None, job.name) else None


def _squeue() -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for line in _ask("squeue", "--me", "--noheader", "--states=all", "--array", "--format=%i|%A|%T|%L|%N|%r|%j"):
        shown, number, state, left, nodes, reason, name = (word.strip() for word in line.split("|", 6))
        job = Job(shown, name, state, "" if reason == "None" else reason, left, nodes)
        jobs[shown] = job
        if "_" in shown and state != "PENDING":  # elements that wait have the array's number in common
            jobs.setdefault(number, job)
    return jobs


def _sacct(job_ids: Collection[str]) -> dict[str, Job]:
    """Nothing where no accounts are kept: sacct fails there."""
    columns = "--format=JobID,State,NodeList,JobName"
    done = slurm("sacct", "-X", "--noheader", "--parsable2", columns, f"--jobs={','.join(job_ids)}", check=False)
    jobs = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        job_id, state, nodes, name = (line.split("|", 3) + [""] * 3)[:4]
        words = state.split()  # "CANCELLED by 1000"
        jobs[job_id] = Job(job_id, name, words[0] if words else "UNKNOWN", nodes=nodes)
    return jobs
