"""What a job sees on its node, as JSON; or which Python it runs in, in a line for the top of its log. Runs with plain
Python; what needs torch is left out where there is none.

python node_probe.py ANSWER.json --exported=yes --folders FOLDER ...
python node_probe.py --python hydra torch"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata

GPU_BYTES, CPU_BYTES = 2**30, 2**26
_SCRATCH = (
    *("SLURM_TMPDIR", "TMPDIR", "JOBSCRATCH", "LOCAL_SCRATCH", "SCRATCH", "LOCAL"),  # variables
    *("/scratch/local", "/local", "/tmp"),
)
_SHARED_KINDS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse", "cifs", "panfs", "wekafs", "afs")
_CONTAINERS = ("apptainer", "singularity", "podman", "enroot", "docker")
_HOSTS = ("huggingface.co", "api.wandb.ai")


def main() -> None:
    """Write the answer whole, or not at all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("answer")
    parser.add_argument("--exported", default="")
    parser.add_argument("--problem", default="", help="why the job's own Python does not run")
    parser.add_argument("--folders", nargs="*", default=[])
    given = parser.parse_args()
    torch = None if given.problem else torch_facts()
    answer = {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "exported": given.exported == "yes",
        "python": {"problem": given.problem, "executable": sys.executable, "version": platform.python_version()},
        "missing": [name for name in ("hydra", "torch", "transformers") if importlib.util.find_spec(name) is None],
        "gpus": nvidia_smi(),
        "torch": torch,
        "all_reduce": all_reduce(torch) if torch else None,
        "scratch": [facts for facts in map(scratch_facts, _SCRATCH) if facts],
        "folders": [folder_facts(path) for path in given.folders],
        "reached": {host: is_reached(host) for host in _HOSTS},
        "proxy": os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY"),
        "containers": [name for name in _CONTAINERS if shutil.which(name)],
        "modules": "LMOD_CMD" in os.environ or "MODULESHOME" in os.environ,
        "interfaces": [name for _, name in socket.if_nameindex() if name != "lo"],
    }
    aside = f"{given.answer}.part"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.replace(aside, given.answer)


def describe_python(needed: list[str]) -> None:
    """Print which Python this is, and its environment; status 1 where it lacks a module that is needed."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"it has no {', no '.join(missing)}")
    environment = f"virtual environment {sys.prefix}" if sys.prefix != sys.base_prefix else "no environment"
    if os.path.isdir(os.path.join(sys.prefix, "conda-meta")):
        environment = f"conda environment {sys.prefix}"
    print(f"Python {platform.python_version()}, {sys.executable}, {environment}")


def output_of(*command: str, seconds: float = 20) -> tuple[str, str]:
    """What a command prints, and why it could not: one of the two is empty."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
    return (done.stdout, "") if done.returncode == 0 else ("", said[-1])


def nvidia_smi() -> dict:
    """Name, memory (MiB) and driver of each GPU that the driver shows."""
    if not shutil.which("nvidia-smi"):
        return {"problem": "there is no nvidia-smi", "devices": []}
    asked = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
    said, problem = output_of("nvidia-smi", *asked)
    return {"problem": problem, "devices": [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]}


def torch_facts() -> dict | None:
    """What torch makes of the GPUs; asked in a process of its own, which CUDA may end."""
    if importlib.util.find_spec("torch") is None:
        return None
    code = "import torch as t; print(f'[{int(t.cuda.is_available())}, {t.cuda.device_count()}, \"{t.version.cuda}\"]')"
    said, problem = output_of(sys.executable, "-W", "ignore", "-c", code, seconds=180)
    available, devices, cuda = json.loads(said.splitlines()[-1]) if said else (False, 0, None)
    version = metadata.version("torch")
    return {"version": version, "cuda": cuda, "available": available, "devices": devices, "problem": problem}


def all_reduce(torch: dict) -> dict:
    """Bytes, seconds and processes of an all-reduce among the job's GPUs, or of two processes on the CPU."""
    processes = torch["devices"] if torch["available"] else 2
    if processes < 2:
        return {"problem": "it takes two GPUs"}
    file = f"{sys.argv[1]}.all_reduce"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    _, problem = output_of(*command, os.path.abspath(__file__), "--all-reduce", file, seconds=180)
    if problem or not os.path.exists(file):
        return {"problem": problem or "no answer"}
    with open(file, encoding="utf-8") as answer:
        return {"problem": "", **json.load(answer)}


def measure(file: str) -> None:
    """One process of torchrun: the fastest of five all-reduces, after two to warm up."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    values = torch.ones((GPU_BYTES if on_gpu else CPU_BYTES) // 4, device=device)
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        dist.all_reduce(values)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        size, best = values.numel() * 4, min(seconds[2:])
        with open(file, "w", encoding="utf-8") as answer:
            found = {"bytes": size, "seconds": best, "processes": dist.get_world_size()}
            json.dump({**found, "backend": dist.get_backend()}, answer)
    dist.destroy_process_group()


def mount_of(path: str) -> str:
    """The kind of file system that a path lies on."""
    path, best, kind = os.path.realpath(path), "", "?"
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, place, found = line.split(" ")[:3]
            inside = path == place or path.startswith(place.rstrip("/") + "/")
            if inside and len(place) >= len(best):
                best, kind = place, found
    return kind


def folder_facts(path: str) -> dict:
    """Room and files that are left in a folder, or the nearest one above it that is there; what a quota leaves, too."""
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(there)
    room = os.statvfs(there)
    kind = mount_of(there)
    quota = ["lfs", "quota", "-q", "-h", "-u", str(os.getuid()), there] if kind == "lustre" else ["quota", "-s", "-w"]
    said = output_of(*quota)[0] if shutil.which(quota[0]) else ""
    return {
        "path": path,
        "kind": kind,
        "local": not kind.startswith(_SHARED_KINDS),
        "free_bytes": room.f_bavail * room.f_frsize,
        "free_files": room.f_favail if room.f_files else None,
        "writable": os.access(there, os.W_OK | os.X_OK),
        "quota": " ".join(said.split())[:300],
    }


def scratch_facts(name: str) -> dict | None:
    """The folder that a variable names, or that is there by itself; None where it is not."""
    path = name if name.startswith("/") else os.environ.get(name, "")
    if not path or not os.path.isdir(path):
        return None
    return {**folder_facts(path), "name": name if name.startswith("/") else f"${name}"}


def is_reached(host: str) -> bool:
    """Whether a server is reached, through the proxy that the environment names, where it does."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(f"https://{host}", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "--all-reduce":
        measure(sys.argv[2])
    elif sys.argv[1] == "--python":
        describe_python(sys.argv[2:])
    else:
        main()
