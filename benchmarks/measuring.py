"""What benchmarks share: their options and tables, what they say of the machine, measuring in turns or in a process
apart from all others, and memory."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf

from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from gr00t.errors import did_you_mean
from toolkit.code_files import versions

ROOT = Path(__file__).resolve().parents[1]
SPLIT, INSTRUCTION = "color_object", "pick up the color-matching object"  # of the sample recordings
Found = dict[str, Any]  # what was measured, by name; of a measurement that failed, why: {"error": ...}
Columns = dict[str, str]  # heading of each column, and the format of what was found that fills it
T = TypeVar("T")


def options(**defaults: Any) -> Any:
    """The command line's key=value pairs over these defaults. --help prints them; what it does not know ends it."""
    taken = " ".join(f"{name}={default}" for name, default in defaults.items())
    if {"-h", "--help"} & {*sys.argv}:
        print(f"{sys.modules['__main__'].__doc__}\n\nTakes, with these defaults: {taken}")
        raise SystemExit(0)
    for word in sys.argv[1:]:
        name, equals, _ = word.partition("=")
        if not equals or name not in defaults:
            raise SystemExit(f"error: {word}: this benchmark takes {taken}.{did_you_mean(name, defaults)}")
    return OmegaConf.merge(OmegaConf.create(defaults), OmegaConf.from_cli())


def convert_samples(folder: Path | str) -> Path:
    """The datasets of the sample recordings, below `folder`; where they are."""
    convert_split(ROOT / "samples", folder, SPLIT, INSTRUCTION, MODALITY_CONFIG, workers=1, progress=False)
    return Path(folder, SPLIT)


def run(measure: Callable[[dict[str, Any]], Found], main: Callable[[], None]) -> None:
    """A benchmark's command; with a case as JSON in place of options it is the child process of `in_own_process`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        main()


def in_own_process(module: str, case: dict[str, Any], timeout: float = 1800) -> Found:
    """What `python -m module JSON` prints as its last line; {"error": ...} where it fails, so that others still run."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    command = [sys.executable, "-m", module, json.dumps(case)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:.0f} s"}
    if done.returncode == 0 and done.stdout.strip():
        return json.loads(done.stdout.splitlines()[-1])
    raised = re.findall(r"^(?:[\w.]+(?:Error|Exception)\b|error:).*", done.stderr, re.MULTILINE)
    return {"error": raised[-1][:300] if raised else f"ended with code {done.returncode} (-9: killed, out of memory?)"}


def in_turns(rounds: int, ways: dict[str, Callable[[], T]]) -> dict[str, list[T]]:
    """What each way gives in each round. They take turns, so that other work on the machine hits all alike."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            say(f"round {number + 1}, {name}")
            found[name].append(way())
    return found


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """How long a call takes, with what it leaves to a GPU."""
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    finish()
    begin = time.perf_counter()
    call()
    finish()
    return time.perf_counter() - begin


def heading(columns: Columns) -> str:
    text = " | ".join(columns)
    return f"| {text} |\n|---|{'---:|' * text.count(' | ')}"


def line(columns: Columns, found: Found) -> str:
    """A line of a table, "-" for NaN; of a measurement that failed, its name and why."""
    cells = [re.sub(r"^nan%?$", "-", text.format(**found)) for text in columns.values() if "error" not in found]
    return f"| {' | '.join(cells or [found['name'], 'failed: ' + found['error'], *[''] * (len(columns) - 2)])} |"


def show(columns: Columns, rows: Iterable[Found]) -> None:
    """Print a table, each line as soon as its row is there."""
    print(heading(columns))
    for row in rows:
        print(line(columns, row), flush=True)


def say(text: str) -> None:
    """A line of progress, apart from the results on stdout."""
    print(text, file=sys.stderr, flush=True)


# -- the machine -------------------------------------------------------------------------------------------------------


def describe() -> str:
    """Processor or GPU, memory, cores and versions, in two lines."""
    found = {name: version for name, version in versions().items() if version is not None}
    cores, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{processor()}, {cores} cores, {memory:.0f} GiB"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        machine = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}; {machine}"
    return f"{machine}\n" + ", ".join(f"{name} {version}" for name, version in found.items())


def processor() -> str:
    """The kind of processor, as it names itself."""
    try:
        named = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1].strip() if named else platform.machine()


def product_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product here, the best of a second's worth (at least eight)."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    while len(times) < 8 or sum(times) < 1:
        times.append(seconds(lambda: a @ b, device))
    return 2 * n**3 / min(times)


def resident(field: str) -> int:
    """Bytes that the kernel reports of this process: VmRSS now, VmHWM at most."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def peak_memory(device: str) -> int:
    """Bytes at most since `forget_peak`: of a GPU what PyTorch allocated there, of a CPU what was resident."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


def forget_peak(device: str) -> None:
    """Give back what is no longer used, and begin to measure again."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
