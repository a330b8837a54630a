"""Checkpoints to resume from: what is kept and removed, what counts as whole, what lies in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.training.checkpointing import (
    FILES,
    Best,
    Snapshot,
    list_checkpoints,
    load_weights,
    newest_checkpoint,
    read_checkpoint,
    read_optimizer,
    take_snapshot,
    whole_checkpoint,
    write_snapshot,
)
from gr00t.errors import ToolkitError


def snapshot(step: int, best: Best | None = None) -> Snapshot:
    moments = [("0.weight", {"exp_avg": torch.full((2,), float(step)), "step": torch.tensor(float(step))})]
    state = {"best": best.state()} if best else {}
    return take_snapshot(step, torch.nn.Linear(2, 2).named_parameters(), moments, state)


def kept(run: Path) -> list[int]:
    return [int(folder.name.split("-")[1]) for folder in list_checkpoints(run)]


@pytest.mark.parametrize(
    "last, every, remain",
    [
        (1, None, [12]),
        (2, None, [10, 12]),
        (3, None, [8, 10, 12]),
        (2, 4, [4, 8, 10, 12]),
        (9, None, [2, 4, 6, 8, 10, 12]),
    ],
)
def test_the_newest_and_every_so_many_steps_are_kept(
    last: int, every: int | None, remain: list[int], tmp_path: Path
) -> None:
    for step in range(2, 13, 2):
        write_snapshot(tmp_path, snapshot(step), last, every)
    assert kept(tmp_path) == remain


def test_the_one_just_written_stays_though_newer_ones_are_there(tmp_path: Path) -> None:
    for step in (4, 6, 2):
        write_snapshot(tmp_path, snapshot(step), 1)
    assert kept(tmp_path)[0] == 2 and 4 not in kept(tmp_path)


def test_checkpoints_are_listed_by_step_and_nothing_else_is_one(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.damaged", "checkpoint-x", ".checkpoint-3.partial-a"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert kept(tmp_path) == [9, 10]


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_any_file_changed_is_passed_over(name: str, tmp_path: Path) -> None:
    for step in (1, 2):
        write_snapshot(tmp_path, snapshot(step), 5)
        newest = newest_checkpoint(tmp_path)
        assert newest is not None and newest.step == step
    path = tmp_path / "checkpoint-2" / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    found = newest_checkpoint(tmp_path)
    assert found is not None and (found.step, found.folder.name) == (1, "checkpoint-1")
    with pytest.raises(ToolkitError, match=f"{name} has changed"):
        whole_checkpoint(tmp_path, 2)
    assert whole_checkpoint(tmp_path, 1).step == 1


def test_a_checkpoint_that_holds_nan_is_passed_over(tmp_path: Path) -> None:
    write_snapshot(tmp_path, snapshot(1), 5)
    bad = snapshot(2)
    bad.trained["weight"][1, 0] = float("nan")
    write_snapshot(tmp_path, bad, 5)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert newest_checkpoint(tmp_path / "none") is None


def test_a_snapshot_names_what_is_not_finite_in_weights_and_moments() -> None:
    good, bad = snapshot(1), snapshot(1)
    assert good.not_finite() == []
    bad.trained["bias"][0] = float("inf")
    bad.optimizer["exp_avg.0.weight"][1] = float("nan")
    assert sorted(bad.not_finite()) == ["bias", "exp_avg.0.weight"]


def test_a_snapshot_keeps_what_training_changes_afterwards(tmp_path: Path) -> None:
    weight, moment = torch.ones(2), torch.zeros(2)
    taken = take_snapshot(3, [("w", weight)], [("w", {"exp_avg": moment})], {"identity": {"a": 1}, "step": 99})
    weight += 1
    moment += 1
    assert taken.trained["w"].tolist() == [1, 1] and taken.optimizer["exp_avg.w"].tolist() == [0, 0]
    write_snapshot(tmp_path, taken, 1)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.state == {"identity": {"a": 1}, "step": 3}


def test_moments_come_back_under_their_parameters_names(tmp_path: Path) -> None:
    moments: dict[str, dict[str, Tensor]] = {
        "head.0.weight": {"exp_avg": torch.tensor([1.0, 2.0]), "exp_avg_sq": torch.tensor([3.0])},
        "head.1.bias": {"exp_avg": torch.tensor([4.0])},
    }
    write_snapshot(tmp_path, take_snapshot(1, [("w", torch.ones(1))], moments.items(), {}), 1)
    found = {
        name: {key: value.tolist() for key, value in own.items()}
        for name, own in read_optimizer(read_checkpoint(tmp_path, 1))
    }
    assert found == {"head.0.weight": {"exp_avg": [1, 2], "exp_avg_sq": [3]}, "head.1.bias": {"exp_avg": [4]}}


def test_weights_go_into_a_model_that_trains_the_same_ones_only(tmp_path: Path) -> None:
    taken = snapshot(1)
    write_snapshot(tmp_path, taken, 1)
    found, model = read_checkpoint(tmp_path, 1), torch.nn.Linear(2, 2)
    load_weights(found, model)
    assert torch.equal(model.weight, taken.trained["weight"]) and torch.equal(model.bias, taken.trained["bias"])
    model.bias.requires_grad_(False)
    with pytest.raises(ToolkitError, match=r"trains other parameters .*\(first: bias\)"):
        load_weights(found, model)


def test_an_equal_error_is_no_better_one_and_patience_counts_since_the_best() -> None:
    best = Best()
    assert [best.update(step, "mae", metric) for step, metric in enumerate((0.5, 0.4, 0.4, 0.6))] == [
        True,
        True,
        False,
        False,
    ]
    assert (best.step, best.metric, best.evaluated, best.worse) == (1, 0.4, 3, 2)
    assert best.exhausted(2) and not best.exhausted(3) and not best.exhausted(None)
    assert best.update(4, "mae", 0.1) and best.worse == 0
    assert Best.restored(json.loads(json.dumps({"best": best.state()}))) == best and Best.restored({}) == Best()


def test_evaluations_of_other_episodes_or_by_another_metric_are_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    best = Best()
    best.judge_on([1, 2], "mae")
    assert best.update(2, "mae", 0.01)
    best.judge_on([1, 2])
    best.judge_on([1, 2], "mae")
    assert not best.update(4, "mae", 0.02) and (best.step, best.worse) == (2, 1) and not caplog.messages
    best.judge_on([1, 2, 3])
    assert (best.step, best.metric, best.worse, best.evaluated) == (None, None, 0, 4)
    assert best.update(6, "mae", 0.03) and "mae 0.0100 after step 2" in caplog.text and "episodes" in caplog.text
    best.judge_on([1, 2, 3], "poses")
    assert best.update(8, "poses", 0.5) and (best.name, best.step) == ("poses", 8) and "other metric" in caplog.text


def test_the_best_step_of_an_earlier_version_is_taken_over() -> None:
    stored = {"name": "mae", "step": 2, "metric": 0.01, "evaluated": 4, "worse": 1}
    best = Best.restored({"best": stored})
    best.judge_on([1, 2])
    assert best.state() == {**stored, "episodes": [1, 2]}


def test_best_json_follows_what_a_snapshot_knows(tmp_path: Path) -> None:
    best = Best()
    best.update(1, "mae", 0.25)
    write_snapshot(tmp_path, snapshot(1, best), 2)
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 1, "metric": 0.25, "name": "mae"}
    best.forget_lost(tmp_path)
    assert best.step == 1
    write_snapshot(tmp_path, snapshot(2), 2)  # of a run that began again and has evaluated nothing
    assert not (tmp_path / "best.json").exists()
