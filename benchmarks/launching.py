"""What it costs to submit a sweep: seconds, bytes and files, beside as many plain copies of the code that its jobs run.

    make cluster && . .cache/cluster/env.sh
    python -m benchmarks.launching points=50

The launcher submits that many seeds of one fine-tune to the cluster that SLURM_CONF names; the jobs sleep, and are
cancelled. Bytes are those that the files take on the disk."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import ROOT, Columns, Found
from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from finetune.create_base import create_base
from toolkit.code_files import copy_code, describe_git
from toolkit.configuration import load

SPLIT, INSTRUCTION = "color_object", "pick up the color-matching object"
COLUMNS: Columns = {"way": "{name}", "s": "{seconds:.1f}", "MB": "{mb:.1f}", "files": "{files}", "ratio": "{ratio:.2f}"}


def launching(folder: Path, points: int) -> float:
    """Seconds until the launcher has submitted that many points with all their files below `folder`/runs."""
    convert_split(ROOT / "samples", folder / "data", SPLIT, INSTRUCTION, MODALITY_CONFIG, workers=1, progress=False)
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
    asked = measuring.options(points=50)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        ours = {"seconds": launching(Path(one), asked.points), **taken(Path(one) / "runs")}
        plain = {"seconds": copying(Path(other), asked.points), **taken(Path(other) / "copies")}
    rows = [{"name": f"launching {asked.points} points", **ours}, {"name": f"{asked.points} plain copies", **plain}]
    print(measuring.describe() + "\n")
    print(measuring.heading(COLUMNS))
    for row in rows:
        print(measuring.line(COLUMNS, {**row, "ratio": row["seconds"] / plain["seconds"]}))


if __name__ == "__main__":
    main()
