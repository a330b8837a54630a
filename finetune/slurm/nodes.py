"""Which nodes the next attempt of a job should not get."""

from __future__ import annotations

import re

from finetune.slurm import commands

UNUSABLE = ("down", "drain", "fail", "maint", "not_responding", "unknown")


def exclusion(job: str, failed: tuple[str, ...]) -> str:
    """The job's ExcNodeList with `failed` added, given its `scontrol show job` line.

    Empty when nothing is to be added, when too few nodes would remain or the job insists on one of them, and where
    SLURM's commands are not here.
    """
    partition, wanted = _field(job, "Partition"), _field(job, "NumNodes")
    if not failed or partition is None or wanted is None or not commands.available():
        return ""
    if {*failed} & {*expand(_field(job, "ReqNodeList") or "")}:
        return ""
    excluded = {*failed, *expand(_field(job, "ExcNodeList") or "")}
    listed = commands.slurm("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N %T", check=False)
    pairs = (line.split() for line in listed.stdout.splitlines())
    usable = {name for name, state in pairs if not state.lower().startswith(UNUSABLE)}
    if len(usable - excluded) < int(wanted.partition("-")[0]):
        return ""
    return ",".join(sorted(excluded))


def expand(nodes: str) -> list[str]:
    """node[1-2],node5 as three names."""
    return commands.slurm("scontrol", "show", "hostnames", nodes).stdout.split() if nodes else []


def _field(job: str, name: str) -> str | None:
    found = re.search(rf"(?:^|\s){name}=(\S+)", job)
    return found[1] if found and found[1] != "(null)" else None
