"""What a fine-tune will need, before it starts: trained parameters, memory by part, disk, time; and whether it fits.

    python -m finetune.plan split=color_object gpus=4 gpu=a100
    python -m finetune.plan model=released gpus=1 gpu_memory_gb=24 json=true

Takes every key of launch_finetune_local.py, and imports no torch: it runs on a login node, before weights and data are
there. Training makes the same plan and refuses to start what cannot fit (`check_fit=false` starts it anyway)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune.plan import (
    Plan,
    PlanConfig,
    Verdict,
    device_verdict,
    disk_needs,
    gigabytes,
    host_verdict,
    make_plan,
    remedy_lines,
)
from finetune.plan.disk_and_time import find_gpu, gpu_of_cluster, work
from finetune.plan.memory import Part, available_memory
from finetune.plan.model_shapes import by_group
from toolkit.command_line import run_main


def show(plan: Plan, verdicts: list[Verdict], console: Console) -> None:
    """Tables of parameters, memory, disk and time, each with its verdict."""
    run = plan.run
    kind = plan.gpu.name if plan.gpu else "GPU" if run.kernels.cuda else "CPU process"
    where = f"{run.gpus} x {kind}" if plan.gpu else f"{run.gpus} {kind}{'s' if run.gpus > 1 else ''}"
    heading = (
        f"{run.config.model.name}, counted from {run.shape.source}",
        f"{where}, engine={run.config.engine.name}, micro-batch {run.batch.samples} x {run.accumulation}, "
        f"{'bf16' if run.kernels.bf16 else 'fp32'}, features={run.config.train.features}, "
        f"{run.batch.tokens} tokens a sample",
    )
    for line in heading:
        console.print(line, highlight=False)
    process = f"{'each GPU' if run.kernels.cuda else 'each process'} at its peak ({plan.device.peak_moment})"
    phases = "; ".join(f"{name} {gigabytes(size)}" for name, size in plan.device.moments.items())  # without allowance
    device, host = _memory(process, plan.device.parts, phases), _memory("each node besides", plan.host, "")
    for table in (_parameters(plan), device, host, _disk(plan), _time(plan)):
        console.print()
        console.print(table)
    console.print()
    for verdict in verdicts:
        console.print(verdict.sentence(), style="" if verdict.fits else "bold red", highlight=False)
        for line in remedy_lines(verdict):
            console.print(line, highlight=False)


def as_json(plan: Plan, verdicts: list[Verdict]) -> dict[str, Any]:
    """Everything the tables show; sizes in bytes, time in seconds."""
    run, duration, time = plan.run, plan.duration, None
    if duration is not None:
        time = {
            "step": duration.step,
            "products": duration.products,
            "optimizer": duration.optimizer,
            "run": duration.step * run.config.train.max_steps,
            "samples_per_second": run.config.train.global_batch_size / duration.step,
            "basis": duration.basis,
        }
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
        "operations_per_sample": work(run),
        "time": time,
        "verdicts": [
            {"what": v.what, "needed": v.needed, "room": v.room, "fits": v.fits, "remedies": v.remedies}
            for v in verdicts
        ],
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
    trained, frozen = sum(group.trained for group in groups), sum(group.frozen for group in groups)
    table.add_row("together", f"{trained / 1e6:,.1f}", f"{frozen / 1e6:,.1f}", "", style="bold")
    return table


def _memory(what: str, parts: list[Part], note: str) -> Table:
    table = _table(f"Memory of {what}, GB", "part", "GB", "")
    for part in parts:
        if part.size:
            table.add_row(part.name, gigabytes(part.size), part.note)
    table.add_row("together", gigabytes(sum(part.size for part in parts)), note, style="bold")
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
    for part, operations in work(run).items():
        table.add_row(part, f"{operations / 1e12:.4f}", "")
    if duration is None:
        why = "gpu=NAME names one" if run.kernels.cuda else "no estimate for a CPU"
        table.add_row("a step", "", f"unknown: {why}", style="bold")
        return table
    steps = run.config.train.max_steps
    rate = run.config.train.global_batch_size / duration.step
    table.add_row("a step", f"{duration.step * 1e3:,.0f} ms", f"{rate:,.0f} samples/s: {duration.basis}", style="bold")
    table.add_row("the run", f"{duration.step * steps / 3600:.2f} h", f"{steps:,} steps", style="bold")
    return table


def plan(config: PlanConfig) -> tuple[Plan, list[Verdict]]:
    """The plan of a configuration, and whether it fits."""
    cuda = config.device != "cpu"
    cluster, single = config.cluster, config.engine.name == "single"
    per_node = 1 if single or not cuda else max(1, cluster.gpus_per_node)
    gpus = config.gpus or (per_node if single or not cuda else per_node * cluster.nodes)
    gpu = None
    if cuda:
        gpu = find_gpu(config.gpu) if config.gpu else gpu_of_cluster(cluster.gpu_type)
    made = make_plan(config, gpus, per_node=min(per_node, gpus), cuda=cuda, gpu=gpu)
    host = None if config.host_memory_gb is None else int(config.host_memory_gb * 1e9)
    if not cuda:
        return made, [device_verdict(made, host or available_memory())]
    memory = config.gpu_memory_gb or (gpu.memory if gpu else None)
    return made, [device_verdict(made, int(memory * 1e9) if memory else None), host_verdict(made, host)]


def main(config: PlanConfig) -> None:
    made, verdicts = plan(config)
    if config.json:
        print(json.dumps(as_json(made, verdicts), indent=2))
    else:
        show(made, verdicts, Console(width=118 if not Console().is_terminal else None))


if __name__ == "__main__":
    run_main(main, "plan")
