"""Before training with several processes: they reach each other, and see the same run folder; or a clear message.

torchrun --nproc_per_node=4 -m finetune.training.process_selftest"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import psutil
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from gr00t.errors import ToolkitError

LIMIT_SECONDS = 60.0
SHOWN_SECONDS, TOKEN_SHOWN_SECONDS = 120.0, 20.0  # network disks show late what another node has written
_INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def prove_processes_meet(device: torch.device) -> None:
    """Sum a one over all processes of torchrun; a failure ends this one, naming nodes, addresses and what to set.

    A process group of its own fails in LIMIT_SECONDS, and not in the half hour that training may wait for a slow
    process. A node that is at fault counts as a crash (status 1): another one may do.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return
    wait = timedelta(seconds=LIMIT_SECONDS)
    try:
        store, _, _ = next(rendezvous("env://", rank, world, timeout=wait))
    except (RuntimeError, ValueError) as error:
        _give_up([], world, str(error))
    store = dist.PrefixStore("selftest", store)
    store.set(str(rank), f"{_node()} {_addresses()}")
    # NCCL would wait on, or end without a message.
    late = f"no answer in {LIMIT_SECONDS:.0f} s"
    alarm = threading.Timer(LIMIT_SECONDS + 5, lambda: _give_up(_arrived(store, world), world, late))
    alarm.daemon = True
    alarm.start()
    try:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
        try:
            ones = torch.ones(1, device=device)
            dist.all_reduce(ones)
            if int(ones.item()) != world:
                raise RuntimeError(f"the sum over {world} processes is {ones.item()}")
        finally:
            dist.destroy_process_group()
        _see_run_folder()
    except RuntimeError as error:
        _give_up(_arrived(store, world), world, str(error))
    finally:
        alarm.cancel()


def appears(ready: Callable[[], bool], seconds: float = SHOWN_SECONDS) -> bool:
    """Whether `ready` comes true in that time."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _see_run_folder() -> None:
    """The token that this attempt has just written must be visible here."""
    if "GROOT_ATTEMPT_DIR" not in os.environ:
        return
    token, own = Path(os.environ["GROOT_ATTEMPT_DIR"]) / "attempt.json", os.environ["GROOT_ATTEMPT_ID"]
    if not appears(lambda: token.is_file() and json.loads(token.read_text())["id"] == own, TOKEN_SHOWN_SECONDS):
        raise ToolkitError(
            f"{_node()} does not see {token}, which the job's first node has written. Put run_dir on a disk that all "
            "nodes share."
        )


def _arrived(store: dist.Store, world: int) -> list[str]:
    """Node and addresses of every rank that reached the meeting point in a few seconds; '' for the others."""
    with suppress(RuntimeError):
        store.wait([str(rank) for rank in range(world)], timedelta(seconds=5))
    try:
        return [store.get(str(rank)).decode() if store.check([str(rank)]) else "" for rank in range(world)]
    except RuntimeError:  # the store's own node is gone
        return []


def _give_up(arrived: list[str], world: int, reason: str) -> NoReturn:
    """Print what is known of the others, and end this process from whatever thread, whatever NCCL does."""
    missing = [str(rank) for rank, node in enumerate(arrived) if not node]
    nodes = sorted({node for node in arrived if node}) or [f"{_node()} {_addresses()}"]
    where = f"no word from rank {', '.join(missing)}" if missing else "all came, but they cannot exchange data"
    if not arrived:
        where = f"the meeting point {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} is out of reach"
    now = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in _INTERFACES)
    message = (
        f"the {world} processes do not meet, as seen from {_node()}: {where} ({reason.strip().splitlines()[0][:300]}). "
        f"Nodes and their interfaces: {'; '.join(nodes)}. Name the interface that joins the nodes "
        f"(now {now}): cluster.environment=[{','.join(f'{name}=ib0' for name in _INTERFACES)}] in "
        "configs/local/, and render the scripts again; or leave out a node that is at fault, cluster.exclude=NODE."
    )
    print(f"error (rank {os.environ.get('RANK')}): {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _addresses() -> str:
    """This node's interfaces with an IPv4 address, the one that its host name stands for marked."""
    own, found = "", []
    with suppress(OSError):
        own = socket.gethostbyname(socket.gethostname())
    for name, addresses in psutil.net_if_addrs().items():
        ours = [address.address for address in addresses if address.family == socket.AF_INET]
        found += [f"{name} {address}{' (the host name)' if address == own else ''}" for address in ours]
    return f"({', '.join(found)})"


if __name__ == "__main__":
    try:
        prove_processes_meet(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except ToolkitError as error:
        sys.exit(f"error (rank {os.environ.get('RANK')}): {error}")
    print(f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} on {_node()}: all processes meet")
