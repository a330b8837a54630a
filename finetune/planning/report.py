"""A plan as tables for people and as JSON for machines."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune.planning.build import Plan
from finetune.planning.duration import work
from finetune.planning.fits import Verdict, disk_needs, gigabytes, remedy_lines
from finetune.planning.parameters import by_group


def show(plan: Plan, verdicts: list[Verdict], console: Console) -> None:
    """Tables of parameters, memory, disk and time, each with its verdict."""
    for line in heading(plan):
        console.print(line, highlight=False)
    for table in (_parameters(plan), _device(plan), _host(plan), _disk(plan), _time(plan)):
        console.print()
        console.print(table)
    console.print()
    for verdict in verdicts:
        console.print(verdict.sentence(), style="" if verdict.fits else "bold red", highlight=False)
        for line in remedy_lines(verdict):
            console.print(line, highlight=False)


def heading(plan: Plan) -> list[str]:
    """What is planned, in two lines."""
    run = plan.run
    where = (
        f"{run.gpus} x {plan.gpu.name}" if plan.gpu else f"{run.gpus} {'GPU' if run.kernels.cuda else 'CPU process'}"
    )
    where += "s" if run.gpus > 1 and not plan.gpu else ""
    return [
        f"{run.config.model.name}, counted from {run.shape.source}",
        f"{where}, engine={run.config.engine.name}, micro-batch {run.batch.samples} x {run.accumulation}, "
        f"{'bf16' if run.kernels.bf16 else 'fp32'}, features={run.config.train.features}, "
        f"{run.batch.tokens} tokens a sample",
    ]


def as_json(plan: Plan, verdicts: list[Verdict]) -> dict[str, Any]:
    """Everything the tables show; sizes in bytes, time in seconds."""
    run, duration = plan.run, plan.duration
    return {
        "model": run.config.model.name,
        "counted_from": run.shape.source,
        "gpus": run.gpus,
        "engine": run.config.engine.name,
        "micro_batch_size": run.batch.samples,
        "accumulation": run.accumulation,
        "tokens": run.batch.tokens,
        "parameters": [dataclasses.asdict(group) for group in by_group(run.parameters)],
        "trained": run.trained,
        "device_memory": {
            "total": plan.device.total,
            "peak_moment": plan.device.peak_moment,
            "moments": plan.device.moments,
            "parts": [dataclasses.asdict(part) for part in plan.device.parts],
        },
        "host_memory": [dataclasses.asdict(part) for part in plan.host],
        "disk": [{**dataclasses.asdict(part), "folder": str(part.folder)} for part in plan.disk],
        "operations_per_sample": {part.part: part.operations for part in work(run)},
        "time": None if duration is None else _seconds(plan),
        "verdicts": [
            {"what": v.what, "needed": v.needed, "room": v.room, "fits": v.fits, "remedies": v.remedies}
            for v in verdicts
        ],
    }


def _seconds(plan: Plan) -> dict[str, Any]:
    assert plan.duration is not None
    train = plan.run.config.train
    return {
        "step": plan.duration.step,
        "products": plan.duration.products,
        "optimizer": plan.duration.optimizer,
        "run": plan.duration.step * train.max_steps,
        "samples_per_second": train.global_batch_size / plan.duration.step,
        "basis": plan.duration.basis,
    }


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < number < len(columns) - 1 else "left", no_wrap=number == 0)
    return table


def _parameters(plan: Plan) -> Table:
    table = _table("Parameters, millions", "group", "trained", "frozen", "")
    groups = by_group(plan.run.parameters)
    for group in groups:
        waiting = f"{group.waiting / 1e6:,.1f} with all robots', which wait in host memory" if group.waiting else ""
        table.add_row(group.group, f"{group.trained / 1e6:,.1f}", f"{group.frozen / 1e6:,.1f}", waiting)
    total = [sum(getattr(g, kind) for g in groups) / 1e6 for kind in ("trained", "frozen")]
    table.add_row("together", f"{total[0]:,.1f}", f"{total[1]:,.1f}", "", style="bold")
    return table


def _device(plan: Plan) -> Table:
    what = "each GPU" if plan.run.kernels.cuda else "each process"
    table = _table(f"Memory of {what} at its peak ({plan.device.peak_moment}), GB", "part", "GB", "")
    for part in plan.device.parts:
        table.add_row(part.name, gigabytes(part.size), part.note)
    table.add_row("together", gigabytes(plan.device.total), _moments(plan), style="bold")
    return table


def _moments(plan: Plan) -> str:
    """The fullest of each phase, without the allowance."""
    return "; ".join(f"{name} {gigabytes(size)}" for name, size in plan.device.moments.items())


def _host(plan: Plan) -> Table:
    table = _table("Memory of each node besides, GB", "part", "GB", "")
    for part in plan.host:
        if part.size:
            table.add_row(part.name, gigabytes(part.size), part.note)
    table.add_row("together", gigabytes(sum(part.size for part in plan.host)), "", style="bold")
    return table


def _disk(plan: Plan) -> Table:
    table = _table("Disk, GB", "what", "GB", "")
    for part in plan.disk:
        size = "unknown" if part.size is None else gigabytes(part.size)
        table.add_row(part.name, size, f"{part.folder}: {part.note}")
    for parts, needed, free in disk_needs(plan.disk):
        names = ", ".join(part.name for part in parts)
        table.add_row("still to write", gigabytes(needed), f"{gigabytes(free)} GB free here for {names}", style="bold")
    return table


def _time(plan: Plan) -> Table:
    run, duration = plan.run, plan.duration
    table = _table("Time", "part", "TFLOP a sample", "")
    for part in work(run):
        table.add_row(part.part, f"{part.operations / 1e12:.4f}", "")
    if duration is None:
        why = "gpu=NAME names one" if run.kernels.cuda else "no estimate for a CPU"
        table.add_row("a step", "", f"unknown: {why}", style="bold")
        return table
    steps = run.config.train.max_steps
    rate = run.config.train.global_batch_size / duration.step
    table.add_row("a step", f"{duration.step * 1e3:,.0f} ms", f"{rate:,.0f} samples/s: {duration.basis}", style="bold")
    table.add_row("the run", f"{duration.step * steps / 3600:.2f} h", f"{steps:,} steps", style="bold")
    return table
