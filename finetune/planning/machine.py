"""What this machine has left: memory of the host, also where a job may use only a part of it."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that may still be taken on this host; None where it does not say (not Linux).

    The smaller of what the kernel can give and what the control groups of this process (a SLURM job's --mem) leave.
    """
    rooms = [room for room in (_of_kernel(proc), *_of_groups(proc, cgroups)) if room is not None]
    return min(rooms, default=None)


def _of_kernel(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    words = fields.get("MemAvailable", "").split()
    return int(words[0]) * 1024 if words and words[0].isdecimal() else None


def _of_groups(proc: Path, cgroups: Path) -> list[int | None]:
    """Of every control group from this process's own up to the root, version 1 and 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    rooms: list[int | None] = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not controllers:
            rooms += _up(cgroups, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            rooms += _up(cgroups / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return rooms


def _up(root: Path, path: str, limit: str, used: str) -> list[int | None]:
    folder, rooms = root / path.lstrip("/"), []
    while folder == root or root in folder.parents:
        rooms.append(_room(folder, limit, used))
        if folder == root:
            break
        folder = folder.parent
    return rooms


def _room(folder: Path, limit: str, used: str) -> int | None:
    """Limit less use; page cache, which a group gives back, counts as free."""
    try:
        most, now = (folder / limit).read_text().strip(), (folder / used).read_text().strip()
        statistics = (folder / "memory.stat").read_text().split() if (folder / "memory.stat").is_file() else []
    except OSError:
        return None
    if not most.isdecimal() or not now.isdecimal():
        return None
    found = dict(zip(statistics[::2], statistics[1::2], strict=False))
    cache = sum(int(found.get(name, 0)) for name in ("inactive_file", "active_file"))
    return int(most) - int(now) + cache


def local_processes() -> int:
    """Training processes on this node, as torchrun says."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(text) if text.isdecimal() and int(text) else 1
