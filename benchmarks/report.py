"""The page of many runs: seconds, processor seconds and MB, beside parsing the same files line by line.

    python -m benchmarks.report runs=200 lines=10000

Every measurement of a fine-tune is logged in each line, and after each two hundredth what an evaluation measures."""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Columns
from finetune.report import _lines, read_histories
from finetune.report.run_page import write_page
from finetune.training import METRICS, STATUS

COLUMNS: Columns = {"what": "{name}", "s": "{seconds:.1f}", "processor s": "{cpu:.1f}", "MB": "{size:.1f}"}


def write_runs(root: Path, runs: int, lines: int) -> None:
    """Run folders below `root` whose logs have so many lines each, other ones in each."""
    for number in range(runs):
        folder, chance = root / f"run_{number:03d}", random.Random(number)
        folder.mkdir(parents=True)
        rate = 10 ** chance.uniform(-5, -3)
        settings = {"split": {"name": "color_object"}, "model": {"base": "base"}, "train": {"learning_rate": rate}}
        data = {"dataset": {"data_dir": "data", "tail": "mask", "embodiment_tag": "new_embodiment"}}
        (folder / "run_config.json").write_text(json.dumps({**settings, **data, "augment": {"views": None}}))
        (folder / STATUS).write_text(json.dumps({"status": "finished", "reason": "", "step": 10 * lines}))
        with (folder / METRICS).open("w") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in _measured(chance, rate, lines))


def _measured(chance: random.Random, rate: float, lines: int) -> Iterator[dict[str, Any]]:
    for step in range(10, 10 * lines + 1, 10):
        loss, norm = math.exp(chance.gauss(0, 0.2)) / (1 + step / 1000), chance.random()
        parts = {"loss": loss, "loss_arm": 0.9 * loss, "loss_gripper": 1.3 * loss}
        norms = {"grad_norm": norm, "grad_norm_action_head": 0.8 * norm, "grad_norm_projector": 0.6 * norm}
        speed = {"samples_per_second": 40 + norm, "data_wait_seconds": 0.01 * norm, "peak_memory_gib": 31.25}
        yield {"step": step, **parts, **norms, "learning_rate": rate * min(1, step / 500), **speed}
        if step % 2000 == 0:
            errors = {"val/arm_mae": 0.1 * loss, "val/arm_mae_last": 0.12 * loss, "val/arm_mae_hold_still": 0.06}
            yield {"step": step, **errors, "val/gripper_wrong_signs_last": 0.02}


def main() -> None:
    asked = measuring.options(runs=200, lines=10_000)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_runs(root, asked.runs, asked.lines)
        folders, page = sorted(root.iterdir()), root / "report.html"
        logged = sum((folder / METRICS).stat().st_size for folder in folders) / 1e6
        ways = {
            "line by line, no page": lambda: [_lines(folder / METRICS) and None for folder in folders],
            "page": lambda: write_page(read_histories(folders, root), root, page),
        }
        rows = []
        for name, way in ways.items():
            before = time.process_time()
            took = measuring.seconds(way)
            size = page.stat().st_size / 1e6 if page.exists() else logged
            rows.append({"name": name, "seconds": took, "cpu": time.process_time() - before, "size": size})
    print(f"{measuring.describe()}\n{asked.runs} runs of {asked.lines} lines\n")
    measuring.show(COLUMNS, rows)


if __name__ == "__main__":
    main()
