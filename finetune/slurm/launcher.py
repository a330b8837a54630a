"""The launcher: a request is checked, shown or submitted, and its jobs are listed with the ways to follow them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from finetune.config.load import as_yaml
from finetune.slurm.batch import Batch, batches_of
from finetune.slurm.commands import slurm
from finetune.slurm.refusals import check_request
from finetune.slurm.request import Request
from finetune.slurm.runs import OWN_FOLDER, note_elsewhere
from finetune.slurm.submit import one_at_a_time, submit
from gr00t.errors import ToolkitError


def launch(request: Request) -> list[Batch]:
    """Submit what is asked for, or with dry_run=true print it; the jobs, with their ids once submitted."""
    console = Console(highlight=False, soft_wrap=True)
    for note in request.notes:
        console.print(note, markup=False)
    runs_dir = Path(request.launch.runs_dir).absolute()
    with nullcontext() if request.launch.dry_run else one_at_a_time(runs_dir):
        return _launch(request, runs_dir, console)


def _launch(request: Request, runs_dir: Path, console: Console) -> list[Batch]:
    asked = check_request(request, lambda note: console.print(note, markup=False))
    if not request.tasks:
        console.print("nothing is left to do, nothing was submitted")
        return []
    folder = runs_dir / OWN_FOLDER / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    batches = batches_of(request, folder)
    for batch in batches if asked else []:
        _test(batch)
    if request.launch.dry_run:
        print(_shown(batches))
        return batches
    submit(batches, folder)
    for task in request.tasks:
        note_elsewhere(runs_dir, task.run_dir)
    _report(console, batches, runs_dir)
    return batches


def _test(batch: Batch) -> None:
    """Let SLURM say whether it would take this script."""
    done = slurm("sbatch", "--test-only", check=False, text=batch.script)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        names = ", ".join(task.name for task in batch.tasks)
        raise ToolkitError(
            f"SLURM would refuse the job of {names}: {reason.removeprefix('sbatch: ')}. Mend cluster.* "
            "(sinfo and scontrol show partition tell what there is); nothing was submitted."
        )


def _shown(batches: Sequence[Batch]) -> str:
    """Scripts and configurations of a dry run."""
    parts = []
    for batch in batches:
        names = ", ".join(task.name for task in batch.tasks)
        waits = [f"# waits for {task.name} to succeed" for other in batch.after for task in other.tasks]
        waits += [f"# waits for {task.name} to end" for task in (batch.turn.tasks if batch.turn else [])]
        parts.append("\n".join([f"# ===== job script of {names}", *waits, batch.script]))
        for task in batch.tasks:
            parts.append(f"# ----- configuration of {task.name}: {' '.join(task.overrides)}\n{as_yaml(task.config)}")
    return "\n".join([*parts, "# dry_run=true: nothing was submitted or written"])


def _report(console: Console, batches: Sequence[Batch], runs_dir: Path) -> None:
    table = Table("job", "run", "stage", "waits for", "run folder", box=None, pad_edge=False)
    for batch in batches:
        waits = ", ".join(other.job_id for other in [*batch.after, *([batch.turn] if batch.turn else [])])
        for index, task in enumerate(batch.tasks):
            table.add_row(batch.id_of(index), task.run_dir.name, task.stage, waits, str(task.run_dir))
    console.print(table)
    here = "" if runs_dir == Path("runs").absolute() else f" runs_dir={runs_dir}"
    name = batches[-1].tasks[-1].run_dir.name
    console.print(f"all runs:  python -m finetune.jobs{here}\none's log: python -m finetune.jobs follow {name}{here}")
    console.print(f"end it:    python -m finetune.jobs cancel {name}{here}")
