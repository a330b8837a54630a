"""Programs on damaged inputs, each in a child that is forked from this process, which has imported everything once:

    python tests/fuzz/warm_process.py checkpoint --mutations 500 --seed 1 --folder .cache/fuzz
    python tests/fuzz/warm_process.py checkpoint --repeat LINE   (of failures.jsonl)

A child may succeed, or end with one of our errors, which names a file, within limits of time and memory. Anything else
is written to failures.jsonl, and does not end the search."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/fuzz")]
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "WANDB_MODE": "offline",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import cv2
import torch

torch.set_num_threads(1)  # a pool of threads does not survive a fork
cv2.setNumThreads(0)

import pyarrow as pa
import targets
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mutations import Mutation, apply, copied, mutations

HANGS_AFTER = 180.0  # seconds by the clock, on a machine that does other things too; CPU time is judged apart
CPU_SECONDS, MEMORY = 10.0, 10**9  # beyond those of the sound input
ADDRESSES = 6 * 2**30  # beyond this process's
_ALLOWED = {0, 1, 2}


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code (negative for a signal, None where it hung), CPU seconds, peak bytes, output."""

    code: int | None
    cpu: float
    peak: int
    output: str

    def fault(self, sound: Outcome | None, root: Path) -> str | None:
        """What must not be, in a few words; None where all is well."""
        if self.code is None:
            return "hang"
        if self.code < 0:
            return f"signal {-self.code}"
        if sound and self.cpu > sound.cpu + CPU_SECONDS:
            return f"{self.cpu:.0f} s of CPU time"
        if sound and self.peak > sound.peak + MEMORY:
            return f"{self.peak / 1e9:.1f} GB"
        if "Traceback (most recent call last)" in self.output:
            return self._place()
        if self.code == 2:
            errors = re.findall(r"^error: .*", self.output, re.MULTILINE)
            if len(errors) != 1:
                return f"{len(errors)} error lines"
            return None if names_a_file(errors[0], root) else f"names no file: {errors[0][:60]}"
        return None if self.code in _ALLOWED else f"status {self.code}"

    def _place(self) -> str:
        """The last line of ours in the traceback, and the exception."""
        ours = re.findall(rf'File "{re.escape(str(ROOT))}/((?!\.venv|tests)[^"]+)", line (\d+)', self.output)
        lines = [
            line for line in self.output.splitlines() if re.match(r"[\w.]+(Error|Exception|Warning|Refused)\b", line)
        ]
        return f"{':'.join(ours[-1]) if ours else '?'} {lines[-1].partition(':')[0] if lines else '?'}"


def names_a_file(line: str, root: Path) -> bool:
    """Whether an error says which file or folder is meant: the damaged one, or its place in the input."""
    known = {path.name for path in root.rglob("*")}
    return str(root) in line or any(len(name) > 4 and name in line for name in known)


def run(program: str, sound: Path, root: Path) -> Outcome:
    """The program on the folder `root`, in a child."""
    log, begin = root.parent / "output.txt", time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _in_child(program, sound, root, log)
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        hangs = not ended and time.monotonic() - begin > HANGS_AFTER
        if hangs:
            os.killpg(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
        if ended or hangs:
            break
        time.sleep(0.005)
    code = None if hangs else os.waitstatus_to_exitcode(status)
    return Outcome(code, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, log.read_text(errors="replace"))


def _in_child(program: str, sound: Path, root: Path, log: Path) -> None:
    code = 70
    try:
        os.setsid()
        limit = _addresses() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        output, nothing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, os.O_RDONLY)
        for number, target in ((0, nothing), (1, output), (2, output)):
            os.dup2(target, number)
        try:
            getattr(targets, program)(sound, root)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _addresses() -> int:
    """Bytes of addresses that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")


class Search:
    """Mutations of one target."""

    def __init__(self, name: str, folder: Path) -> None:
        self.target, self.folder = targets.TARGETS[name], folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sound, self.root = folder / "sound", self.folder / "copy"
        self.made, self.faults = 0, 0
        self._known: dict[str, Outcome] = {}

    def check(self, program: str, mutation: Mutation | None) -> tuple[str | None, Outcome]:
        """The fault of a program on a fresh copy with a mutation, and how it ended."""
        copied(self.sound / self.target.folder, self.root)
        for other in self.folder.iterdir():  # what programs made beside it
            if other.suffix != ".jsonl" and other != self.root:
                os.unlink(other) if other.is_file() else shutil.rmtree(other)
        if mutation is not None:
            apply(self.root / self.target.damaged, mutation)
        outcome = run(program, self.sound, self.root)
        return outcome.fault(self._known.get(program), self.root), outcome

    def look_at_sound(self) -> None:
        """Every program succeeds on the sound input; what it needs there is what others are compared with."""
        for program in dict.fromkeys(self.target.programs):
            fault, outcome = self.check(program, None)
            if fault or outcome.code:
                raise SystemExit(f"{program} fails on the sound input: {fault}\n{outcome.output[-3000:]}")
            self._known[program] = outcome
            print(f"{program}: {outcome.cpu:.1f} s, {outcome.peak / 1e9:.2f} GB", flush=True)

    def search(self, count: int, start: int) -> None:
        """Draw mutations and try each; a fault is written down."""
        drawn = st.tuples(
            st.sampled_from(self.target.programs), mutations(self.sound / self.target.folder / self.target.damaged)
        )

        @seed(start)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(drawn)
        def each(example: tuple[str, Mutation]) -> None:
            program, mutation = example
            try:
                fault, outcome = self.check(program, mutation)
            except (OSError, ValueError, TypeError, KeyError, IndexError, pa.ArrowException):
                return  # this mutation cannot be made here
            self.made += 1
            if self.made % 50 == 0:
                print(f"{self.made} mutations, {self.faults} faults", flush=True)
            if fault is not None:
                self.faults += 1
                record = {"program": program, "mutation": mutation, "fault": fault}
                with (self.folder / "failures.jsonl").open("a") as file:
                    file.write(json.dumps({**record, "seed": start, "end": outcome.output[-2500:]}) + "\n")

        each()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=[*targets.TARGETS])
    parser.add_argument("--mutations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache/fuzz")
    parser.add_argument("--repeat")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if not (folder / "sound/run/attempts").is_dir():
        child = os.fork()  # what it starts threads for ends with it
        if child == 0:
            try:
                targets.make_inputs(folder / "sound")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        if os.waitpid(child, 0)[1]:
            raise SystemExit("the sound inputs could not be made")
    if options.target == "request":
        targets.policy(folder / "sound")
    search = Search(options.target, folder)
    search.look_at_sound()
    if options.repeat:
        record = json.loads(options.repeat)
        fault, outcome = search.check(record["program"], Mutation(*record["mutation"]))
        print(outcome.output[-6000:], asdict(outcome) | {"output": ""}, fault, sep="\n")
        return
    begin = time.monotonic()
    search.search(options.mutations, options.seed)
    seconds = time.monotonic() - begin
    print(f"{options.target}: {search.made} mutations in {seconds:.0f} s, {search.faults} faults")


if __name__ == "__main__":
    main()
