"""What an offline wandb run holds, read from its .wandb file: a LevelDB log of wandb's own protobuf records."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 32 * 1024  # bytes of the file's header and of a chunk's (checksum, length, kind), and of a block
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(run: Path) -> list[Any]:
    """The records of <run>/*.wandb, in the order in which they were written."""
    from wandb.proto import wandb_internal_pb2 as messages

    (path,) = run.glob("*.wandb")
    data, place, pending, found = path.read_bytes(), HEADER, b"", []
    assert data[:4] == b":W&B"
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # no room for a chunk: zeros up to the next block
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        pending += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            record = messages.Record()  # type: ignore[attr-defined]
            record.ParseFromString(pending)
            found.append(record)
            pending = b""
    return found
