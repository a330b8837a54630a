"""What an offline wandb run holds, read from its .wandb file: a LevelDB log of wandb's own protobuf records."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 32 * 1024  # bytes of the file's header and of a chunk's (checksum, length, kind), and of a block
FULL, LAST = 1, 4  # kinds of chunks that end a record
WRITTEN_SECONDS = 30


def records(run: Path) -> list[Any]:
    """The records of <run>/*.wandb, in the order in which they were written, the last of which is the run's end.

    wandb writes the last of them in a process of its own, after finish has returned.
    """
    (path,) = run.glob("*.wandb")
    until = time.monotonic() + WRITTEN_SECONDS
    while time.monotonic() < until:
        found = _read(path.read_bytes())
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path}: the run has no end")


def _read(data: bytes) -> list[Any]:
    from wandb.proto import wandb_internal_pb2 as messages

    assert data[:4] == b":W&B"
    place, pending, found = HEADER, b"", []
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # no room for a chunk: zeros up to the next block
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        place += HEADER
        if place + length > len(data):  # it is being written
            break
        pending += data[place : place + length]
        place += length
        if kind in (FULL, LAST):
            record = messages.Record()  # type: ignore[attr-defined]
            record.ParseFromString(pending)
            found.append(record)
            pending = b""
    return found
