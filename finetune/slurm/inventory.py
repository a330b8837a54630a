"""What the SLURM cluster has: partitions, their limits, and the nodes in them, as its own commands tell."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.slurm.commands import slurm
from gr00t.errors import ToolkitError

_GPUS = re.compile(r"gpu:(?:(?P<type>[^:(,]+):)?(?P<count>\d+)")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_NO_LIMIT = ("UNLIMITED", "INFINITE", "-1")


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
    lines = _ask("scontrol", "show", "partition", "--oneliner").splitlines()
    partitions = [_partition(dict(word.partition("=")[::2] for word in line.split())) for line in lines if line.strip()]
    found = {partition.name: partition for partition in partitions}
    for line in _ask("sinfo", "--noheader", "--Node", "--format=%N|%R|%c|%m|%G").splitlines():
        name, partition, cpus, memory, gres = (word.strip() for word in line.split("|", 4))
        if partition in found:
            found[partition].nodes.append(Node(name, _count(cpus), _count(memory), gpus_of(gres)))
    return found


def gpus_of(gres: str) -> dict[str, int]:
    """'gpu:a100:4(S:0-1),gpu:v100:2' as {'a100': 4, 'v100': 2}."""
    gpus: dict[str, int] = {}
    for match in _GPUS.finditer(gres):
        kind = match["type"] or ""
        gpus[kind] = gpus.get(kind, 0) + int(match["count"])
    return gpus


def seconds_of(text: str) -> int | None:
    """A time as sbatch takes it (minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s) in seconds; None for no limit."""
    if text.strip().upper() in _NO_LIMIT:
        return None
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ToolkitError(
            f'cluster.time={text} is no time that sbatch takes. Write hours:minutes:seconds ("24:00:00") or '
            'days-hours ("2-00").'
        )
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return int(match["days"]) * 86400 + hours * 3600 + minutes * 60 + seconds
    hours, minutes, seconds = parts if len(parts) == 3 else [0, *parts, 0][:3]
    return hours * 3600 + minutes * 60 + seconds


def has_accounting() -> bool:
    """Whether the cluster keeps accounts: without, sacct and sacctmgr have nothing to tell."""
    line = re.search(r"^AccountingStorageType\s*=\s*(\S+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return line is not None and line[1] == "accounting_storage/slurmdbd"


def own_accounts() -> list[str]:
    """The accounts this user may charge; empty where none are kept."""
    return _associations("account")


def known_qos() -> list[str]:
    """Every quality of service the cluster knows."""
    return _column("sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=name")


def _associations(column: str) -> list[str]:
    user = f"user={getpass.getuser()}"
    return _column("sacctmgr", "--noheader", "--parsable2", "show", "associations", user, f"format={column}")


def _column(*command: str) -> list[str]:
    return sorted({line.strip() for line in slurm(*command).stdout.splitlines() if line.strip()})


def _ask(*command: str) -> str:
    """The answer of a command that only reads; a controller that is down is said in one line."""
    done = slurm(*command, check=False)
    if done.returncode == 0:
        return done.stdout
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    raise ToolkitError(
        f"SLURM does not answer ({command[0]}: {reason}). Wait until its controller is back (scontrol ping tells), and "
        "start the same command again; nothing was submitted."
    )


def _partition(words: dict[str, str]) -> Partition:
    return Partition(
        name=words["PartitionName"],
        is_default=words.get("Default") == "YES",
        is_up=words.get("State") == "UP",
        max_seconds=seconds_of(words.get("MaxTime", "UNLIMITED")),
        max_nodes=None if words.get("MaxNodes", "UNLIMITED") == "UNLIMITED" else int(words["MaxNodes"]),
        accounts=_allowed(words.get("AllowAccounts", "ALL")),
        qos=_allowed(words.get("AllowQos", "ALL")),
    )


def _allowed(text: str) -> list[str] | None:
    return None if text in ("ALL", "(null)") else text.split(",")


def _count(text: str) -> int:
    return int(text.rstrip("+") or 0)


def most(nodes: Sequence[Node], kind: str | None) -> int:
    """The most GPUs (of that type, None for any) that one of the nodes has."""
    return max((sum(n for k, n in node.gpus.items() if kind in (None, k)) for node in nodes), default=0)
