"""How soon a command answers, and what it costs to submit a sweep.

    python -m benchmarks.startup rounds=9

Help and refusals of commands take turns with `python -c "import hydra"`; figures are the fastest of all rounds.

    make cluster && . .cache/cluster/env.sh
    python -m benchmarks.startup points=50

The launcher submits that many seeds of one fine-tune to the cluster that SLURM_CONF names; the jobs sleep, and are
cancelled. Seconds, bytes and files stand beside those of as many plain copies of the code; bytes are those that the
files take on the disk."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import ROOT, SPLIT, Columns, Found
from finetune.create_base import create_base
from toolkit.code_files import copy_code, describe_git
from toolkit.configuration import load

BASELINE = ("-c", "import hydra")
COMMANDS = {
    "launch_finetune_local.py --help": 0,
    "launch_finetune_slurm.py --help": 0,
    "prepare_conflict_data.py --help": 0,
    "evaluate_conflict.py --help": 0,
    "-m finetune.plan --help": 0,
    "-m finetune.jobs --help": 0,
    "-m data_prep.check --help": 0,
    "launch_finetune_local.py local=none train.lr=1": 2,
    "launch_finetune_local.py local=none train.max_steps=many": 2,
    "launch_finetune_local.py local=none model.base=nowhere": 2,
    "launch_finetune_slurm.py local=none splitt=x": 2,
    "evaluate_conflict.py local=none checkpoint=nowhere": 2,
}
ANSWERS: Columns = {"command": "{name}", "ms": "{ms:.0f}", "beside import hydra": "{ratio:.2f}"}
SWEEP: Columns = {"way": "{name}", "s": "{seconds:.1f}", "MB": "{mb:.1f}", "files": "{files}", "ratio": "{ratio:.2f}"}


def answering(words: tuple[str, ...], status: int) -> float:
    """Seconds until the command has ended with that status."""

    def start() -> None:
        found = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True).returncode
        assert found == status, f"ended with {found}, not {status}"

    return measuring.seconds(start)


def launching(folder: Path, points: int) -> float:
    """Seconds until the launcher has submitted that many points with all their files below `folder`/runs."""
    measuring.convert_samples(folder / "data")
    base = create_base(load("create_base", ["model=tiny", "local=none", f"out={folder}/base"]))
    seeds = ",".join(str(seed) for seed in range(points))
    arguments = [
        *("local=none", f"split={SPLIT}", "model=tiny", f"model.base={base}", f"dataset.data_dir={folder}/data"),
        *(f"run_dir={folder}/runs/${{train.seed}}", f"output_dir={folder}/done/${{train.seed}}"),
        f"runs_dir={folder}/runs",
        *(f"train.seed={seeds}", "train.global_batch_size=4", "device=cpu", "tracking=none", "cluster.time=0:30:00"),
        *("cluster.gpus_per_node=1", "cluster.cpus_per_task=2", "cluster.setup=[exec sleep 600]"),
    ]
    command = [sys.executable, "launch_finetune_slurm.py", *arguments]
    said: list[str] = []

    def submit() -> None:
        said.append(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)

    try:
        return measuring.seconds(submit)
    finally:
        jobs = sorted(set(re.findall(r"^(\d+)(?:_\d+)?\s", "".join(said), re.MULTILINE)))
        subprocess.run(["scancel", *jobs], check=bool(jobs))


def copying(folder: Path, copies: int) -> float:
    """Seconds for so many plain copies of the code below `folder`."""
    one = folder / "code"
    one.mkdir()
    copy_code(ROOT, one, describe_git(ROOT))
    (folder / "copies").mkdir()
    return measuring.seconds(lambda: [shutil.copytree(one, folder / "copies" / str(n)) for n in range(copies)])


def taken(folder: Path) -> Found:
    """What the files below a folder take."""
    files = [path.lstat() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {"mb": sum(found.st_blocks for found in files) * 512 / 1e6, "files": len(files)}


def main() -> None:
    chosen = measuring.options(rounds=9, points=0)
    print(measuring.describe() + "\n")
    if chosen.points:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            ours = {"seconds": launching(Path(one), chosen.points), **taken(Path(one) / "runs")}
            plain = {"seconds": copying(Path(other), chosen.points), **taken(Path(other) / "copies")}
        named = {f"launching {chosen.points} points": ours, f"{chosen.points} plain copies": plain}
        ratio = {name: row["seconds"] / plain["seconds"] for name, row in named.items()}
        measuring.show(SWEEP, ({"name": name, **row, "ratio": ratio[name]} for name, row in named.items()))
        return
    ways: dict[str, Callable[[], float]] = {"import hydra": partial(answering, BASELINE, 0)}
    ways |= {name: partial(answering, tuple(name.split()), status) for name, status in COMMANDS.items()}
    found = {name: min(times) for name, times in measuring.in_turns(chosen.rounds, ways).items()}
    usual = found["import hydra"]
    measuring.show(ANSWERS, ({"name": name, "ms": 1000 * best, "ratio": best / usual} for name, best in found.items()))


if __name__ == "__main__":
    main()
