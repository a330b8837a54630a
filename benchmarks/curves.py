"""Compare the loss curves of two commits on this machine bit for bit: whether a change has altered numbers.

    python -m benchmarks.curves HEAD~1 HEAD          # two commits
    python -m benchmarks.curves HEAD                 # a commit and the working tree
    python -m benchmarks.curves --record tests/golden/curves.json
    python -m benchmarks.curves runs/whole runs/cut --draw docs/images/resume.png --killed 17,38

Each commit converts the sample recordings, makes the base checkpoints and trains with its own code: the tiny and the
small model, live and with cached features. Losses, gradient norms and learning rates of every step are compared, and
the finished weights. Status 1 where they differ. `--record` writes the working tree's losses and gradient norms in fp32
with what they were computed on; tests/test_curves.py compares later ones with them. `--draw` draws the loss of a run
that was stopped at steps and continued over that of an undisturbed one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.measuring import ROOT, processor, say

Lines = list[dict[str, float]]
THREADS = 1  # of every training here: sums over more are divided otherwise
NOT_NUMBERS = ("samples_per_second", "data_wait_seconds", "peak_memory_gib")  # of the metrics: what a run took


@dataclass(frozen=True)
class Case:
    """A short training."""

    model: str
    features: str
    precision: str = "fp32"
    device: str = "cpu"
    engine: str = "single"
    more: tuple[str, ...] = ()  # further overrides

    @property
    def name(self) -> str:
        return f"{self.model} {self.features} {self.precision}"

    def overrides(self, data: Path, base: Path, out: Path) -> list[str]:
        """Of launch_finetune_local.py: every random choice is made, and each step is logged."""
        return [
            *("local=none", "split=color_object", f"model={self.model}", f"model.base={base}"),
            *(f"dataset.data_dir={data}", f"run_dir={out}/run", f"output_dir={out}/done", f"cache_dir={out}/cache"),
            *(f"train.features={self.features}", f"train.precision={self.precision}", "augment.views=2"),
            *("train.max_steps=4", "train.global_batch_size=8", "train.micro_batch_size=4", "train.warmup_ratio=0.25"),
            *("train.log_steps=1", "train.num_workers=0", "tracking=none"),
            *(f"device={self.device}", f"engine={self.engine}", *self.more),
        ]


CASES = [
    *(Case("tiny", "live"), Case("tiny", "cached"), Case("small", "live"), Case("small", "cached")),
    Case("small", "live", "bf16"),
]


def read(run: Path) -> Lines:
    """The metrics of a run, line by line as they were written, without what it took."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in NOT_NUMBERS} for line in lines]


def machine() -> dict[str, Any]:
    """What the last bits of a number depend on: kind of processor, its instructions, torch and threads."""
    known = {"cpu": processor(), "capability": torch.backends.cpu.get_cpu_capability()}
    return {**known, "torch": torch.__version__, "threads": THREADS}


@dataclass(frozen=True)
class Checkout:
    """A commit's code, or the working tree, with its dataset and base checkpoints below `folder`."""

    name: str
    code: Path
    folder: Path

    @classmethod
    def of(cls, revision: str, folder: Path) -> Checkout:
        """A copy of a commit below folder; `.` is the working tree itself."""
        folder.mkdir(exist_ok=True)
        if revision == ".":
            return cls("the working tree", ROOT, folder)
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", str(ROOT), f"{folder}/code"], check=True)
        found = subprocess.run(
            ["git", "rev-parse", "--verify", f"{revision}^{{commit}}"], cwd=ROOT, capture_output=True, text=True
        )
        if found.returncode:
            raise SystemExit(f"error: {revision} is no commit of {ROOT}; git log lists them.")
        commit = found.stdout.strip()
        subprocess.run(["git", "checkout", "-q", "--detach", commit], cwd=folder / "code", check=True)
        return cls(f"{revision} ({commit[:9]})", folder / "code", folder)

    def run(self, *command: str) -> None:
        """Python on this checkout's code; what it says is shown where it fails."""
        environment = {**os.environ, "PYTHONPATH": str(self.code), "OMP_NUM_THREADS": str(THREADS)}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.code, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"error: {self.name}: {' '.join(command)} failed:\n{done.stderr[-3000:]}")

    def prepare(self, cases: Iterable[Case]) -> None:
        """The dataset, of the working tree's sample recordings, and the bases."""
        where = (f"raw_dir={ROOT}/samples", f"data_dir={self.folder}/data")
        self.run("prepare_conflict_data.py", "local=none", "split=color_object", *where)
        for model in dict.fromkeys(case.model for case in cases):
            out = f"out={self.folder}/{model}"
            self.run("-m", "finetune.create_base", "local=none", f"model={model}", "dtype=fp32", out)

    def train(self, case: Case, out: str = "") -> tuple[Lines, str]:
        """The metrics of a case, and the hash of its finished weights; it trains in `out`, by default its name."""
        say(f"{self.name}: {case.name} ...")
        place = self.folder / (out or case.name.replace(" ", "-"))
        self.run("launch_finetune_local.py", *case.overrides(self.folder / "data", self.folder / case.model, place))
        weights = sha256()
        for file in sorted((place / "done").glob("*.safetensors")):
            weights.update(file.read_bytes())
        return read(place / "run"), weights.hexdigest()


def difference(old: Lines, new: Lines) -> str:
    """The first value that is another, or nothing."""
    for before, after in zip(old, new, strict=False):
        for key in before | after:
            if before.get(key) != after.get(key):
                return f"step {before['step']}: {key} {before.get(key)}, now {after.get(key)}"
    return "" if len(old) == len(new) else f"{len(old)} lines, now {len(new)}"


def compare(old: Checkout, new: Checkout, cases: list[Case]) -> bool:
    """Print what became of each case; whether all are equal."""
    for checkout in (old, new):
        checkout.prepare(cases)
    print(f"{old.name} and {new.name}, {json.dumps(machine())}\n\n| case | metrics | weights |\n|---|---|---|")
    same = True
    for case in cases:
        (before, weights_before), (after, weights_after) = old.train(case), new.train(case)
        apart = difference(before, after)
        metrics = apart or f"{len(after)} steps equal, loss {after[-1]['loss']!r} at the last"
        print(f"| {case.name} | {metrics} | {'equal' if weights_before == weights_after else 'other'} |", flush=True)
        same = same and not apart and weights_before == weights_after
    return same


def record(checkout: Checkout, cases: list[Case], file: Path) -> None:
    """Write the curves of the working tree, and what they were computed on."""
    checkout.prepare(cases)
    kept = {"machine": machine(), "curves": {case.name: checkout.train(case)[0] for case in cases}}
    file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def draw(whole_run: Path, cut_run: Path, killed: list[int], file: Path) -> None:
    """The loss of a run that was stopped and continued over that of an undisturbed one."""
    whole, cut = ({line["step"]: line["loss"] for line in read(run)} for run in (whole_run, cut_run))
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    axis.plot(list(whole), list(whole.values()), color="#1b5e9b", linewidth=5, alpha=0.35, label="undisturbed")
    axis.plot(list(cut), list(cut.values()), color="#e0592b", linewidth=1.4, label="killed and continued")
    for step in killed:
        axis.axvline(step, color="0.6", linestyle=":", linewidth=1)
    equal = sum(whole.get(step) == loss for step, loss in cut.items())
    axis.set(xlabel="optimizer step", ylabel="loss", title=f"{equal} of {len(cut)} losses equal bit for bit")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    print(f"{file}: {equal} of {len(cut)} losses equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", default="HEAD", help="a commit")
    parser.add_argument("new", nargs="?", default=".", help="another; . (the default) is the working tree")
    parser.add_argument("--only", default="", help="cases whose name holds this text, such as tiny")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the working tree's curves there")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="old and new are folders of runs: draw their losses")
    parser.add_argument("--killed", default="", help="steps at which the second was killed, as in 17,38")
    chosen = parser.parse_args()
    if chosen.draw:
        draw(Path(chosen.old), Path(chosen.new), [int(step) for step in chosen.killed.split(",") if step], chosen.draw)
        return
    cases = [case for case in CASES if chosen.only in case.name]
    if not cases:
        raise SystemExit(f"error: no case's name holds {chosen.only!r}: {', '.join(case.name for case in CASES)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.record:
            fp32 = [case for case in cases if case.precision == "fp32"]
            record(Checkout.of(".", folder / "new"), fp32, chosen.record)
        elif not compare(Checkout.of(chosen.old, folder / "old"), Checkout.of(chosen.new, folder / "new"), cases):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
