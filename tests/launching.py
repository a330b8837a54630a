"""Requests of the launcher as tests write them."""

from __future__ import annotations

import pytest

from finetune.slurm.batches import Batch
from finetune.slurm.launch_request import Request, read
from gr00t.errors import ToolkitError


def asked(*argv: str) -> Request:
    return read(argv if "local=none" in argv else ["local=none", *argv])


def refusal(*argv: str) -> str:
    with pytest.raises(ToolkitError) as error:
        asked(*argv)
    return str(error.value)


def overrides(request: Request, name: str) -> list[str]:
    return [o.partition("=")[2] for task in request.tasks for o in task.overrides if o.startswith(f"{name}=")]


def submitted_as(first: int, batches: list[Batch]) -> list[str | None]:
    """Give the batches these job ids in turn; what each waits for."""
    waits = []
    for number, batch in enumerate(batches, start=first):
        waits.append(batch.waits)
        batch.submitted(str(number))
    return waits
