"""What a fine-tune will need, before it starts: trained parameters, memory by part, disk, time; and whether it fits.

    python -m finetune.plan split=color_object gpus=4 gpu=a100
    python -m finetune.plan model=released gpus=1 gpu_memory_gb=24 json=true

Takes every key of launch_finetune_local.py, and imports no torch: it runs on a login node, before weights and data are
there. Training makes the same plan and refuses to start what cannot fit (`check_fit=false` starts it anyway)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple
from typing import Any

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from finetune.plan import Plan, PlanConfig, Verdict, device_verdict, disk_needs, gigabytes, host_verdict, make_plan
from finetune.plan.disk_and_time import find_gpu, gpu_of_cluster, work
from finetune.plan.memory import Part, available_memory, total_size
from finetune.plan.model_shapes import by_group
from toolkit.command_line import run_main
from toolkit.progress import shows_bars

WITH_BARS = 100  # columns of a terminal


def show(plan: Plan, verdicts: list[Verdict], console: Console) -> None:
    """Tables of parameters, memory, disk and time, each with its verdict."""
    run, cuda = plan.run, plan.run.kernels.cuda
    kind = plan.gpu.name if plan.gpu else "GPU" if cuda else "CPU process"
    process = f"{'each GPU' if cuda else 'each process'} at its peak ({plan.device.peak_moment})"
    phases = "; ".join(f"{name} {gigabytes(size)}" for name, size in plan.device.moments.items())  # without allowance
    console.print(f"{run.config.model.name}, counted from {run.shape.source}")
    console.print(
        f"{run.gpus} x {kind}, engine={run.config.engine.name}, micro-batch {run.batch.samples} x {run.accumulation}, "
        f"{'bf16' if run.kernels.bf16 else 'fp32'}, features={run.config.train.features}, "
        f"{run.batch.tokens} tokens a sample",
    )
    room = verdicts[0].room if shows_bars(console, WITH_BARS) else None
    device, host = _memory(process, plan.device.parts, phases, room), _memory("each node besides", plan.host, "")
    for table in (_parameters(plan), device, host, _disk(plan), _time(plan)):
        console.print()
        console.print(table)
    console.print()
    for verdict in verdicts:
        console.print(verdict.sentence(), style="" if verdict.fits else "bold red")
        for line in verdict.advice():
            console.print(line)


def as_json(plan: Plan, verdicts: list[Verdict]) -> dict[str, Any]:
    """Everything the tables show; sizes in bytes, time in seconds."""
    run, duration, train = plan.run, plan.duration, plan.run.config.train
    time = duration and {
        **asdict(duration),
        "step": duration.step,
        "run": duration.step * train.max_steps,
        "samples_per_second": train.global_batch_size / duration.step,
    }
    return {
        "model": run.config.model.name,
        "counted_from": run.shape.source,
        "gpus": run.gpus,
        "engine": run.config.engine.name,
        "micro_batch_size": run.batch.samples,
        "accumulation": run.accumulation,
        "tokens": run.batch.tokens,
        "parameters": [asdict(group) for group in by_group(run.parameters)],
        "trained": run.trained,
        "device_memory": {"total": plan.device.total, **asdict(plan.device)},
        "host_memory": [asdict(part) for part in plan.host],
        "disk": [{**asdict(part), "folder": str(part.folder)} for part in plan.disk],
        "operations_per_sample": work(run),
        "time": time,
        "verdicts": [{**asdict(verdict), "fits": verdict.fits} for verdict in verdicts],
    }


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], totals: Iterable[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < number < len(columns) - 1 else "left", no_wrap=number == 0)
    for style, cells in [*(("", row) for row in rows), *(("bold", total) for total in totals)]:
        table.add_row(*cells, style=style)
    return table


def _parameters(plan: Plan) -> Table:
    def row(name: str, trained: int, frozen: int, waiting: int = 0) -> tuple[str, ...]:
        note = f"{waiting / 1e6:,.1f} with all robots', which wait in host memory" if waiting else ""
        return name, f"{trained / 1e6:,.1f}", f"{frozen / 1e6:,.1f}", note

    groups = by_group(plan.run.parameters)
    total = row("together", sum(group.trained for group in groups), sum(group.frozen for group in groups))
    columns = ("group", "trained", "frozen", "")
    return _table("Parameters, millions", columns, [row(*astuple(group)) for group in groups], [total])


def _memory(what: str, parts: list[Part], note: str, room: int | None = None) -> Table:
    """room: bytes that the parts are drawn as shares of; None draws no bars."""

    def row(name: str, size: int, note: str) -> tuple[Any, ...]:
        bar = [] if room is None else [ProgressBar(room, size, width=14, finished_style="red")]
        return name, gigabytes(size), *bar, note

    columns = ("part", "GB", *([] if room is None else [f"of {gigabytes(room)} GB"]), "")
    rows = [row(part.name, part.size, part.note) for part in parts if part.size]
    return _table(f"Memory of {what}, GB", columns, rows, [row("together", total_size(parts), note)])


def _disk(plan: Plan) -> Table:
    sizes = ["unknown" if part.size is None else gigabytes(part.size) for part in plan.disk]
    rows = [(part.name, size, f"{part.folder}: {part.note}") for part, size in zip(plan.disk, sizes, strict=True)]
    totals = [
        ("still to write", gigabytes(needed), f"{gigabytes(free)} GB free here for {', '.join(p.name for p in parts)}")
        for parts, needed, free in disk_needs(plan.disk)
    ]
    return _table("Disk, GB", ("what", "GB", ""), rows, totals)


def _time(plan: Plan) -> Table:
    duration, train = plan.duration, plan.run.config.train
    if duration is None:
        why = "gpu=NAME names one" if plan.run.kernels.cuda else "no estimate for a CPU"
        totals = [("a step", "", f"unknown: {why}")]
    else:
        rate = f"{train.global_batch_size / duration.step:,.0f} samples/s: {duration.basis}"
        hours = f"{duration.step * train.max_steps / 3600:.2f} h"
        totals = [("a step", f"{duration.step * 1e3:,.0f} ms", rate), ("the run", hours, f"{train.max_steps:,} steps")]
    rows = [(part, f"{operations / 1e12:.4f}", "") for part, operations in work(plan.run).items()]
    return _table("Time", ("part", "TFLOP a sample", ""), rows, totals)


def plan(config: PlanConfig) -> tuple[Plan, list[Verdict]]:
    """The plan of a configuration, and whether it fits."""
    cluster = config.cluster
    asked = cluster.gpus_per_node or config.gpu or config.gpu_memory_gb or config.device == "cuda"
    cuda = config.device != "cpu" and bool(asked)
    gpus, per_node = _processes(config, cuda)
    gpu = (find_gpu(config.gpu) if config.gpu else gpu_of_cluster(cluster.gpu_type)) if cuda else None
    made = make_plan(config, gpus, per_node=per_node, cuda=cuda, gpu=gpu)
    host = None if config.host_memory_gb is None else int(config.host_memory_gb * 1e9)
    if not cuda:
        return made, [device_verdict(made, host or available_memory())]
    memory = config.gpu_memory_gb or (gpu.memory if gpu else None)
    return made, [device_verdict(made, int(memory * 1e9) if memory else None), host_verdict(made, host)]


def _processes(config: PlanConfig, cuda: bool) -> tuple[int, int]:
    """Training processes, in all and on one node; device=cpu of a cluster that has GPUs is about this machine."""
    cluster = config.cluster
    here = not cuda and cluster.gpus_per_node > 0
    started = cluster.processes_per_node or cluster.gpus_per_node or 1  # on a node, as the launcher does
    one, nodes = config.engine.name == "single" or here, 1 if here else cluster.nodes
    gpus = config.gpus or (1 if one else started * nodes)
    return gpus, min(gpus, started) if cuda else math.ceil(gpus / nodes)


def main(config: PlanConfig) -> None:
    made, verdicts = plan(config)
    if config.json:
        print(json.dumps(as_json(made, verdicts), indent=2))
    else:
        show(made, verdicts, Console(width=None if Console().is_terminal else 118, highlight=False))


if __name__ == "__main__":
    run_main(main, "plan")
