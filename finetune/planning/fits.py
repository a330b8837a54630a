"""Whether a run fits where it is going to run, and what to change where it does not."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config.schema import FinetuneConfig
from finetune.planning.build import Plan, changed, make_plan
from finetune.planning.disk import DiskPart
from finetune.planning.machine import available_memory, local_processes
from finetune.planning.memory import CUDA_CONTEXT, device_memory, loading_memory
from finetune.planning.remedies import remedy
from gr00t.errors import ToolkitError
from gr00t.files import free_space, in_bytes

GO_ON = "To start anyway: check_fit=false."


@dataclass(frozen=True)
class Verdict:
    """`needed` bytes of `room` (None: not known)."""

    what: str
    needed: int
    room: int | None
    remedies: list[tuple[str, int]]

    @property
    def fits(self) -> bool:
        return self.room is None or self.needed <= self.room

    def sentence(self) -> str:
        """As in "fits: 21.4 of 40.0 GB"."""
        if self.room is None:
            return f"{self.what}: needs {gigabytes(self.needed)} GB"
        word = "fits" if self.fits else "does not fit"
        return f"{self.what} {word}: {gigabytes(self.needed)} of {gigabytes(self.room)} GB"


def gigabytes(size: float) -> str:
    """In GB (1e9), with as many digits as say something."""
    return f"{size / 1e9:,.1f}" if size >= 1e9 else f"{size / 1e9:.3f}"


def device_verdict(plan: Plan, room: int | None) -> Verdict:
    """Memory of each GPU; on a CPU, of all processes of the node."""
    run, cuda = plan.run, plan.run.kernels.cuda

    def memory(config: FinetuneConfig, gpus: int) -> int:
        total = device_memory(changed(run, config, gpus)).total
        return total if cuda else run.per_node * total + host

    host = 0 if cuda else sum(part.size for part in plan.host)
    needed = memory(run.config, run.gpus)
    found = [] if room is None or needed <= room else remedy(run.config, run.gpus, memory, room)
    return Verdict("each GPU" if cuda else "this machine's memory", needed, room, found)


def host_verdict(plan: Plan, room: int | None) -> Verdict:
    """Memory of a node besides its GPUs."""
    needed = max(sum(part.size for part in plan.host), loading_memory(plan.run))
    return Verdict("each node's memory", needed, room, [])


def check_fits(
    config: FinetuneConfig,
    gpus: int,
    gpu_memory_bytes: int | None,
    *,
    per_node: int | None = None,
    cuda: bool = True,
    host_memory_bytes: int | None = None,
) -> None:
    """Refuse a run that cannot fit, with its largest parts and what to change; None leaves a memory unchecked.

    gpus: processes in all; gpu_memory_bytes: what one of them can take (on a CPU, cuda=False: what all of a node can).
    Nothing is checked where config.check_fit is false.
    """
    if not config.check_fit:
        return
    plan = make_plan(config, gpus, per_node=per_node, cuda=cuda)
    verdict = device_verdict(plan, gpu_memory_bytes)
    if not verdict.fits:
        raise ToolkitError(_refusal(plan, verdict))
    host = host_verdict(plan, host_memory_bytes)
    if cuda and not host.fits:
        raise ToolkitError(
            f"{host.sentence()}: of it {gigabytes(loading_memory(plan.run))} GB while the base is loaded. Ask for more "
            f"memory (cluster.memory), or for fewer processes on a node. {GO_ON}"
        )


def check_here(config: FinetuneConfig, gpus: int, free: int | None, *, bf16: bool, cuda: bool, writes: bool) -> None:
    """The same for a process that is about to train; `free` bytes of its device, `writes`: it is the one that does."""
    config = replace(config, train=replace(config.train, precision="bf16" if bf16 else "fp32"))
    context = CUDA_CONTEXT if cuda and free is not None else 0  # its own is taken already, and in the plan
    room = None if free is None else free + context
    host = available_memory() if cuda else None
    check_fits(config, gpus, room, per_node=local_processes(), cuda=cuda, host_memory_bytes=host)
    if writes:
        check_disk(config, gpus, cuda=cuda)


def check_disk(config: FinetuneConfig, gpus: int, *, cuda: bool = True) -> None:
    """Refuse a run whose files cannot fit on the disks they go to; what earlier attempts wrote counts as there."""
    if not config.check_fit:
        return
    for parts, needed, free in disk_needs(make_plan(config, gpus, cuda=cuda).disk):
        if needed <= free:
            continue
        listed = "\n  ".join(f"{part.name}: {in_bytes(part.size or 0)} in {part.folder}" for part in parts)
        raise ToolkitError(
            f"The disk has {in_bytes(free)} free, but {in_bytes(needed)} are still to be written:\n  {listed}\n"
            "Free some space, take a folder on another disk (run_dir, output_dir, cache_dir), or keep fewer "
            f"checkpoints (train.keep_last, train.keep_every). {GO_ON}"
        )


def disk_needs(parts: list[DiskPart]) -> list[tuple[list[DiskPart], int, int]]:
    """The parts of each disk, bytes still to be written there, and free bytes."""
    disks: dict[int, list[DiskPart]] = {}
    for part in parts:
        if part.size is not None:
            disks.setdefault(_existing(part.folder).stat().st_dev, []).append(part)
    return [(own, sum(_missing(part) for part in own), free_space(own[0].folder)) for own in disks.values()]


WRITTEN = {"checkpoints": "checkpoint-*", "frame store": "frames-*", "feature cache": "features-*"}


def _missing(part: DiskPart) -> int:
    """What of a part is not there yet. A finished checkpoint is written beside the one it replaces."""
    pattern = WRITTEN.get(part.name)
    folders = part.folder.glob(pattern) if pattern and part.folder.is_dir() else []
    there = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    return max(0, (part.size or 0) - there)


def _existing(folder: Path) -> Path:
    absolute = Path(os.path.abspath(folder))
    return next(path for path in [absolute, *absolute.parents] if path.exists())


def _refusal(plan: Plan, verdict: Verdict) -> str:
    parts = sorted(plan.device.parts, key=lambda part: -part.size)[:5]
    listed = ", ".join(f"{part.name} {gigabytes(part.size)}" for part in parts)
    lines = [f"{verdict.sentence()} ({plan.device.peak_moment}: {listed} GB)."]
    lines += remedy_lines(verdict)
    lines.append(f"python -m finetune.plan with the same settings shows every part. {GO_ON}")
    return "\n".join(lines)


def remedy_lines(verdict: Verdict) -> list[str]:
    """What to change, in order."""
    if verdict.room is None or verdict.fits:
        return []
    if not verdict.remedies or verdict.remedies[-1][1] > verdict.room:
        lines = ["No setting makes it fit here: take GPUs with more memory, or train less (train.tune.*)."]
    else:
        lines = ["What makes it fit:"]
    for place, (settings, size) in enumerate(verdict.remedies):
        lines.append(f"  {'and ' if place else ''}{settings}: {gigabytes(size)} GB")
    return lines
