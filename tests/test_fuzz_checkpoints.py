"""Damaged checkpoints, run folders and requests, by the thousand: each is read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import faults


@pytest.mark.long
@pytest.mark.parametrize(("target", "mutations"), [("checkpoint", 600), ("run", 500), ("request", 300)])
def test_no_damage_ends_in_a_traceback_or_a_hang(
    target: str, mutations: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert faults(target, mutations, Path(tmp_path_factory.getbasetemp()) / "fuzz") == []
