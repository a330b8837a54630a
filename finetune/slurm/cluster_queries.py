"""What SLURM's own commands say of the cluster (partitions, nodes, accounts) and of jobs."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from gr00t.errors import ToolkitError

TIMEOUT_SECONDS = 60.0

# Variables that sbatch obeys before its script, and the keys of cluster.* that say the same: the launcher follows them.
_SBATCH_KEYS = {
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
_SBATCH_LEFT_OUT = (
    *("SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_SIGNAL", "SBATCH_OPEN_MODE"),
    *("SBATCH_OUTPUT", "SBATCH_ERROR", "SBATCH_INPUT", "SBATCH_DEPENDENCY"),
)
_OF_A_JOB = re.compile(
    r"SLURM_(?!CONF$|CLUSTERS$)|SLURMD_|SRUN_|PMI|GROOT_(?!API_TOKEN$)"
    r"|(MASTER_ADDR|MASTER_PORT|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|CUDA_VISIBLE_DEVICES)$"
)
_OF_OUTPUT = re.compile(r"(SQUEUE|SINFO|SACCT|SACCTMGR|SCONTROL)_|SLURM_(TIME_FORMAT|BITSTR_LEN)$")
UNKNOWN_JOB = "Invalid job id"  # what squeue says of a single job that it has forgotten
NO_CLUSTER = "Could not establish a configuration source"  # where SLURM's commands are installed, and no more
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
    ours = {*_SBATCH_KEYS, *_SBATCH_LEFT_OUT, JOB_NAME}
    kept = {name: value for name, value in os.environ.items() if not (name in ours or _OF_OUTPUT.match(name))}
    return {name: value for name, value in kept.items() if not (inside and _OF_A_JOB.match(name))}


def sbatch_variables(typed: Collection[str]) -> dict[str, tuple[str, str]]:
    """What SBATCH_* variables say of a job, as sbatch would follow them: the variable, its key and value.

    What was typed comes first, as an option of sbatch would.
    """
    found = {}
    for variable, key_name in _SBATCH_KEYS.items():
        name, value = f"cluster.{key_name}", os.environ.get(variable)
        if value is None or name in typed:
            continue
        if key_name == "requeue":
            value = "false" if "NO" in variable else "true"
        elif key_name == "time" and value.isdecimal():
            value = in_time(int(value) * 60)
        found[variable] = (name, value)
    return found


def notes_on_variables(typed: Collection[str]) -> list[str]:
    """What of the environment is followed, and what is not, a line each."""
    followed = sbatch_variables(typed)
    notes = [f"{variable} of the environment is followed: {name}={raw}" for variable, (name, raw) in followed.items()]
    for variable in sorted(name for name in os.environ if name.startswith("SBATCH_")):
        if variable in _SBATCH_LEFT_OUT:
            notes.append(f"{variable} of the environment is not passed to sbatch: the toolkit sets that itself")
        elif variable == JOB_NAME:
            notes.append(f"{variable} of the environment is followed: jobs are named {os.environ[variable]}")
        elif variable not in _SBATCH_KEYS:
            notes.append(f"{variable} of the environment is passed to sbatch, which puts it before the job's script")
    return notes


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


def log_of(shown: str) -> str | None:
    """Where a job's output goes, by its `scontrol show job --oneliner` line; None where that does not say."""
    found = re.search(r"\bStdOut=(/.*?)(?: \w+=|$)", shown)
    return found[1] if found else None


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


def settings() -> dict[str, str]:
    """The cluster's own configuration, by name."""
    return dict(re.findall(r"^(\w+)\s*= (.*)$", "\n".join(_ask("scontrol", "show", "config")), re.MULTILINE))


def max_array_size() -> int | None:
    """How many elements an array has at most; None where the cluster does not say."""
    said = settings().get("MaxArraySize", "")
    return max(int(said), 1) if said.isdecimal() else None


def accounting(*shown: str) -> list[str]:
    """One column of what `sacctmgr show` lists, e.g. accounting("qos", "format=name"); [] where none are kept."""
    if "slurmdbd" not in settings().get("AccountingStorageType", ""):
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
    """A job or an element of an array, as SLURM shows it.

    reason: why it waits, or what ended it; time_left: of its limit, as SLURM writes it; dependency: what it waits for,
    as squeue writes it; command: script and arguments; gpus: in all, None where that is not said; seconds: that it has
    run. Where accounts are kept and were asked: cpu_share, the part of its CPUs' time that was used, and peak_memory,
    the most that a task took, in bytes.
    """

    job_id: str
    name: str
    state: str
    reason: str = ""
    time_left: str = ""
    nodes: str = ""
    user: str = ""
    seconds: int = 0
    gpus: int | None = None
    dependency: str = ""
    work_dir: str = ""
    command: str = ""
    cpu_share: float | None = None
    peak_memory: int | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs or will run."""
        return self.state in ALIVE


@dataclass(frozen=True)
class Queue:
    """SLURM's answer at one moment, by job id; `silence` is the reason where there is none."""

    jobs: dict[str, Job]
    silence: str = ""

    @classmethod
    def read(cls, noted: Collection[Mapping[str, Any]] = (), *, usage: bool = False) -> Queue:
        """This user's jobs, and those of the records `noted`: of whichever user, and also after squeue has forgotten
        them, as sacct remembers them. With `usage` sacct is also asked what they used."""
        if not available():
            return cls({}, "SLURM is not on this machine")
        me = user_name(os.getuid())
        ids = {str(record["job_id"]): record.get("user", me) for record in noted if record.get("job_id")}
        try:
            jobs = _squeue("--me")
            foreign = [job_id for job_id, user in ids.items() if user != me and job_id not in jobs]
            jobs |= _squeue(f"--jobs={','.join(foreign)}") if foreign else {}
        except ToolkitError as error:
            return cls({}, str(error))
        asked = [job_id for job_id in ids if usage or job_id not in jobs]
        accounted = _sacct(asked, usage) if asked else {}
        for job_id in accounted.keys() & jobs.keys():
            found = accounted[job_id]
            jobs[job_id] = replace(jobs[job_id], cpu_share=found.cpu_share, peak_memory=found.peak_memory)
        return cls({**accounted, **jobs})

    def require(self) -> None:
        """Raise ToolkitError where there was no answer."""
        if self.silence:
            raise ToolkitError(f"{self.silence}. Do it on a login node of the cluster, once its controller answers.")

    def find(self, noted: Mapping[str, Any]) -> Job | None:
        """The job of a record; None when it has none, SLURM does not know it, or has given its number to another."""
        job = self.jobs.get(str(noted.get("job_id")))
        return job if job and noted.get("job_name") in (None, job.name) else None


@cache
def user_name(uid: int) -> str:
    """The name of a user; the number where it has none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# of squeue: what a job's fields are made of
_OF_A_JOB_LINE = {
    **{"job_id": "%i", "number": "%A", "state": "%T", "time_left": "%L", "nodes": "%N", "reason": "%r", "user": "%u"},
    **{"ran": "%M", "gres": "%b", "count": "%D", "dependency": "%E", "name": "%j", "work_dir": "%Z", "command": "%o"},
}
_NOTHING = {"reason": "None", "dependency": "(null)", "command": "(null)"}
_SEPARATOR = "\x1f"  # names and commands may hold any other


def _squeue(whose: str) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    shown = ("--noheader", "--states=all", "--array", f"--format={_SEPARATOR.join(_OF_A_JOB_LINE.values())}")
    try:
        lines = _ask("squeue", whose, *shown)
    except ToolkitError as error:
        if UNKNOWN_JOB in str(error):
            return {}
        raise
    for words in ([word.strip() for word in line.split(_SEPARATOR)] for line in lines):
        if len(words) != len(_OF_A_JOB_LINE):  # the rest of a command with line breaks
            continue
        said: dict[str, Any] = dict(zip(_OF_A_JOB_LINE, words, strict=True))
        said |= {name: "" for name, nothing in _NOTHING.items() if said[name] == nothing}
        number, ran, gres, count = (said.pop(name) for name in ("number", "ran", "gres", "count"))
        gpus = sum(gpus_of(gres).values()) * int(count) if "gpu" in gres and count.isdecimal() else None
        jobs[said["job_id"]] = job = Job(**said, seconds=_clock(ran), gpus=gpus)
        if "_" in job.job_id and job.state != "PENDING":  # elements that wait have the array's number in common
            jobs.setdefault(number, job)
    return jobs


def _sacct(job_ids: Collection[str], usage: bool) -> dict[str, Job]:
    """Nothing where no accounts are kept: sacct fails there. A requeued job has a line for each of its starts."""
    columns = "JobID,State,NodeList,User,ElapsedRaw,AllocTRES,TotalCPU,CPUTimeRAW,MaxRSS,JobName"
    asked = ("--noheader", "--parsable2", "--duplicates", *(() if usage else ("--allocations",)))
    done = slurm("sacct", *asked, f"--format={columns}", f"--jobs={','.join(job_ids)}", check=False)
    jobs: dict[str, Job] = {}
    peaks: dict[str, int] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        shown, state, nodes, user, ran, tres, used, allocated, peak, name = (line.split("|", 9) + [""] * 9)[:10]
        job_id, _, step = shown.partition(".")
        if step:
            peaks[job_id] = max(peaks.get(job_id, 0), _bytes(peak))
            continue
        before = jobs.get(job_id)
        gpus = re.search(r"\bgres/gpu=(\d+)", tres)
        jobs[job_id] = Job(
            job_id,
            name,
            (state.split() or ["UNKNOWN"])[0],  # "CANCELLED by 1000"
            nodes=nodes,
            user=user,
            seconds=int(ran or 0) + (before.seconds if before else 0),
            gpus=int(gpus[1]) if gpus else before.gpus if before else None,
            cpu_share=_clock(used) / int(allocated) if usage and int(allocated or 0) else None,
        )
    return {job_id: replace(job, peak_memory=peaks.get(job_id) or None) for job_id, job in jobs.items()}


def _clock(text: str) -> int:
    """A time that a job took (1-02:03:04, 03:04.567) in whole seconds; 0 where SLURM says none."""
    text = text.partition(".")[0]
    return seconds_of(text) or 0 if re.fullmatch(r"[\d:-]+", text) else 0


def _bytes(text: str) -> int:
    """A size as sacct writes it (123456K, 1.50G) in bytes; 0 where it says none."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return round(float(match[1]) * 1024 ** " KMGT".index(match[2] or " ")) if match else 0
