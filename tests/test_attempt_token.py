"""The token of a run folder: who has lost it stays out, and the end of an attempt is recorded once."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from finetune.training.checkpointing import CheckpointWriter, Snapshot, list_checkpoints, take_snapshot, write_snapshot
from finetune.training.stopping import ATTEMPT, ATTEMPT_ID, AttemptToken, Superseded
from gr00t.errors import ToolkitError
from gr00t.file_replacement import write_json


def token(folder: Path, identity: str = "mine") -> AttemptToken:
    write_json(folder / "attempt.json", {"id": "mine"})
    return AttemptToken(folder, "0", identity)


def snapshot(step: int) -> Snapshot:
    return take_snapshot(step, torch.nn.Linear(2, 2).named_parameters(), [], {})


def test_what_is_lost_once_stays_lost_though_the_id_comes_back(tmp_path: Path) -> None:
    ours = token(tmp_path)
    assert ours.is_ours()
    write_json(tmp_path / "attempt.json", {"id": "another's"})
    assert not ours.is_ours()
    write_json(tmp_path / "attempt.json", {"id": "mine"})
    assert not ours.is_ours()
    with pytest.raises(Superseded, match="another attempt has taken over"):
        ours.require()


def test_outside_slurm_nobody_is_superseded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ATTEMPT, ATTEMPT_ID):
        monkeypatch.delenv(name, raising=False)
    local = AttemptToken.from_environment(tmp_path)
    write_json(tmp_path / "attempt.json", {"id": "another's"})
    assert local.is_ours()
    local.require()
    local.record("finished", "", 3, None)
    assert not (tmp_path / "attempts").exists()


def test_the_variables_of_an_attempt_are_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ATTEMPT, "4")
    monkeypatch.setenv(ATTEMPT_ID, "mine")
    found = AttemptToken.from_environment(tmp_path)
    assert (found.run_dir, found.attempt, found.id) == (tmp_path, "4", "mine")


def outcome(folder: Path) -> dict[str, object]:
    return json.loads((folder / "attempts/0/outcome.json").read_text())


def test_the_first_outcome_of_an_attempt_is_the_one_that_counts(tmp_path: Path) -> None:
    ours = token(tmp_path)
    ours.record("stopped", "signal SIGTERM", 7, "checkpoint-7")
    ours.record("failed", "later", 8, None)
    assert outcome(tmp_path) == {
        "status": "stopped",
        "reason": "signal SIGTERM",
        "step": 7,
        "checkpoint": "checkpoint-7",
    }


@pytest.mark.parametrize(
    "number, recorded", [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EIO, False), (errno.ESTALE, False)]
)
def test_only_what_the_user_must_mend_is_recorded_as_failed(number: int, recorded: bool, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError), token(tmp_path).failures():
        raise ToolkitError("the disk") from OSError(number, "refused")
    assert (tmp_path / "attempts").exists() is recorded
    if recorded:
        assert outcome(tmp_path) == {"status": "failed", "reason": "the disk", "step": 0, "checkpoint": None}


def test_a_bug_is_not_recorded_as_a_failure_of_the_users(tmp_path: Path) -> None:
    with pytest.raises(ValueError), token(tmp_path).failures():
        raise ValueError
    assert not (tmp_path / "attempts").exists()


def test_the_token_is_looked_at_before_older_checkpoints_are_removed(tmp_path: Path) -> None:
    for step in (1, 2):
        write_snapshot(tmp_path, snapshot(step), keep_last=2)
    answers = iter([None, None, Superseded("lost")])  # begun, renamed, pruned

    def allowed() -> None:
        if answer := next(answers):
            raise answer

    with pytest.raises(Superseded):
        write_snapshot(tmp_path, snapshot(3), keep_last=1, allowed=allowed)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert not (tmp_path / "best.json").exists()


def test_a_writer_that_has_lost_the_token_writes_nothing_and_does_not_complain(tmp_path: Path) -> None:
    ours = token(tmp_path)
    writer = CheckpointWriter(tmp_path, 2, None, ours)
    writer.submit(snapshot(1))
    writer.wait()
    assert [path.name for path in writer.written()] == ["checkpoint-1"] and writer.written() == []
    write_json(tmp_path / "attempt.json", {"id": "another's"})
    writer.submit(snapshot(2))
    writer.wait()
    writer.close()
    assert writer.written() == [] and [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1"]


def test_a_writer_tells_what_went_wrong_while_the_token_is_its_own(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "missing" / "run", 2, None, token(tmp_path))
    (tmp_path / "missing").write_text("a file")
    writer.submit(snapshot(1))
    with pytest.raises(OSError):
        writer.wait()
    writer.wait()  # once
    writer.close()
