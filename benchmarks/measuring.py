"""What a benchmark says of the machine it ran on, and how it runs a measurement apart from all others."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def describe() -> str:
    """Processor or GPU, memory, cores and versions, in two lines."""
    import torch

    from toolkit.code_files import versions

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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def product_peak(device: str, dtype_name: str) -> float:
    """FLOP/s of a large matrix product here, the best of a second's worth (at least eight)."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype_name]
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    while len(times) < 8 or sum(times) < 1:
        begin = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return 2 * n**3 / min(times)


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def in_own_process(module: str, case: dict[str, Any], timeout: float = 1800) -> dict[str, Any]:
    """What `python -m module JSON` prints as its last line; {"error": ...} where it fails, so that others still run."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    command = [sys.executable, "-m", module, json.dumps(case)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:.0f} s"}
    if done.returncode == 0 and done.stdout.strip():
        return json.loads(done.stdout.splitlines()[-1])
    raised = re.findall(r"^[\w.]+(?:Error|Exception)\b.*", done.stderr, re.MULTILINE)
    return {"error": raised[-1][:300] if raised else f"ended with code {done.returncode} (-9: killed, out of memory?)"}


def say(text: str) -> None:
    """A line of progress, apart from the results on stdout."""
    print(text, file=sys.stderr, flush=True)
