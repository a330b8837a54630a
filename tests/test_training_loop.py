"""The training loop by itself: when it logs, evaluates, saves and ends, and what one step hands on."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from config_calls import compose

from finetune.recipe import FinetuneConfig
from finetune.training import dataloader
from finetune.training.checkpointing import Best, Checkpoint
from finetune.training.optimizer import learning_rate
from finetune.training.stopping import SUPERSEDED, Stopped
from finetune.training.train import TrainingLoop, unmasked_values
from gr00t.data.sampler import Stream, torch_seed
from gr00t.errors import ToolkitError

BASIC = ("model=tiny", "train.max_steps=5", "train.log_steps=2", "train.save_steps=3")


class Script:
    """A loop whose parts only note that they were called; `reasons` by call of `agreed`, `verdicts` by step."""

    def __init__(
        self, *more: str, begin: int = 0, reasons: dict[int, str] | None = None, verdicts: dict[int, Any] | None = None
    ) -> None:
        self.events: list[str] = []
        self.reasons, self.verdicts, self.asked = reasons or {}, verdicts, 0
        config: FinetuneConfig = compose("finetune", *BASIC, *more)
        found = self.loop = object.__new__(TrainingLoop)
        found.config, found.done, found.best = config, begin, Best()
        found.engine = SimpleNamespace(is_main=True)  # type: ignore[assignment]
        found.attempt = SimpleNamespace(agreed=self.agreed, writes=True)  # type: ignore[assignment]
        found.meter = SimpleNamespace(read=lambda *_: {}, restore=self.note("restored"), last_loss=1.0, finite=True)  # type: ignore[assignment]
        found.tracker = SimpleNamespace(log=lambda step, _: self.say(f"log {step}"), advance=lambda _: None)  # type: ignore[assignment]
        found.validation = None if verdicts is None else SimpleNamespace(episodes=[8, 9])  # type: ignore[assignment]
        found.dataset = None  # type: ignore[assignment]
        found.writer = SimpleNamespace(wait=lambda: None, written=list, close=lambda: None)  # type: ignore[assignment]
        found._next = lambda *_: [{}]  # type: ignore[method-assign, assignment]
        found._show_first = lambda *_: self.say("first")  # type: ignore[method-assign]
        found._step = lambda step, _: self.say(f"step {step}")  # type: ignore[method-assign]
        found._evaluate = self.evaluate  # type: ignore[method-assign]
        found._save = lambda step: self.say(f"save {step}")  # type: ignore[method-assign]

    def say(self, event: str) -> None:
        self.events.append(event)

    def note(self, event: str) -> Any:
        return lambda *_: self.say(event)

    def agreed(self, _: int) -> str | None:
        self.asked += 1
        return self.reasons.get(self.asked)

    def evaluate(self) -> tuple[bool, bool]:
        self.say(f"evaluate {self.loop.done}")
        return (self.verdicts or {}).get(self.loop.done, (False, False))

    def run(self, start: Checkpoint | None = None) -> str | None:
        return self.loop._steps(start)

    @property
    def between(self) -> list[str]:
        return [event for event in self.events if not event.startswith("step")]


@pytest.fixture(autouse=True)
def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sampler:
        accumulation = 1

        def __iter__(self) -> Any:
            return iter([[]])

    monkeypatch.setattr(dataloader, "build_loader", lambda *_: ([], Sampler()))


def test_it_logs_and_saves_at_round_steps_and_at_the_last() -> None:
    script = Script()
    assert script.run() is None
    assert [event for event in script.events if event.startswith("step")] == [f"step {n}" for n in range(5)]
    assert script.between == ["first", "log 2", "save 3", "log 4", "log 5", "save 5"]
    assert script.loop.done == 5


def test_a_run_that_continues_does_its_steps_that_are_left_and_shows_no_first_batch() -> None:
    script = Script(begin=3)
    assert script.run() is None
    assert script.events == ["step 3", "log 4", "step 4", "log 5", "save 5"]
    assert Script(begin=5).run() is None


def test_a_signal_saves_and_leaves_out_the_evaluation() -> None:
    script = Script("train.eval_steps=2", reasons={2: "signal"}, verdicts={})
    assert script.run() == "signal"
    assert script.between == ["first", "log 2", "save 2"]


def test_a_signal_during_an_evaluation_ends_after_it() -> None:
    script = Script("train.eval_steps=2", reasons={3: "signal"}, verdicts={})
    assert script.run() == "signal"
    assert script.between == ["first", "log 2", "evaluate 2", "save 2"]


def test_a_superseded_attempt_writes_nothing_more() -> None:
    script = Script(reasons={2: SUPERSEDED})
    assert script.run() == SUPERSEDED
    assert script.between == ["first"]


def test_a_signal_at_the_last_step_leaves_a_finished_run() -> None:
    script = Script(reasons={5: "signal"})
    assert script.run() is None
    assert script.between[-2:] == ["log 5", "save 5"]


def test_a_signal_at_the_last_step_leaves_its_evaluation_to_the_attempt_after_it(tmp_path: Any) -> None:
    settings = ("train.eval_steps=5", f"run_dir={tmp_path}")
    script = Script(*settings, reasons={5: "signal"}, verdicts={})
    assert script.run() == "signal"
    assert script.between[-2:] == ["log 5", "save 5"]
    script = Script(*settings, begin=5, verdicts={})
    assert script.run(Checkpoint(tmp_path / "checkpoint-5", 5, {"best": Best().state()})) is None
    assert script.events == ["evaluate 5"]
    script = Script(*settings, reasons={6: "signal"}, verdicts={})  # it comes during the evaluation
    assert script.run() is None
    assert script.between[-3:] == ["log 5", "evaluate 5", "save 5"]


def test_the_best_weights_are_saved_and_others_only_at_round_steps() -> None:
    script = Script("train.eval_steps=2", verdicts={2: (True, False), 4: (False, False)})
    assert script.run() is None
    assert script.between == [
        *("first", "log 2", "evaluate 2", "save 2", "save 3"),
        *("log 4", "evaluate 4", "log 5", "save 5"),
    ]


def test_enough_evaluations_without_progress_end_the_run_with_a_checkpoint() -> None:
    script = Script("train.eval_steps=2", verdicts={2: (False, True)})
    assert script.run() is None
    assert script.between == ["first", "log 2", "evaluate 2", "save 2"] and script.loop.done == 2


@pytest.mark.parametrize("evaluated, made_up", [(0, True), (2, True), (4, False)])
def test_only_an_evaluation_that_is_missing_is_made_up_for(evaluated: int, made_up: bool, tmp_path: Any) -> None:
    script = Script("train.eval_steps=2", f"run_dir={tmp_path}", begin=4, verdicts={4: (False, True)})
    state = {"best": Best("val/arm_mae", 2, 0.5, evaluated, 0).state()}
    script.run(Checkpoint(tmp_path / "checkpoint-4", 4, state))
    assert script.events == (["evaluate 4"] if made_up else ["step 4", "log 5", "save 5"])


def test_a_run_resumed_with_other_held_out_episodes_looks_for_a_new_best_step(tmp_path: Any) -> None:
    for episodes, kept in (([8, 9], True), (None, True), ([8], False)):  # None: a checkpoint of an earlier version
        script = Script("train.eval_steps=4", "train.patience=2", f"run_dir={tmp_path}", begin=3, verdicts={})
        before = Best("val/arm_mae", 2, 0.5, 2, worse=2, episodes=episodes)
        (tmp_path / "checkpoint-2").mkdir(exist_ok=True)
        script.run(Checkpoint(tmp_path / "checkpoint-3", 3, {"best": before.state()}))
        found = script.loop.best
        assert (found.step, found.worse, found.episodes) == ((2, 2, [8, 9]) if kept else (None, 0, [8, 9]))
        assert script.events == ([] if kept else ["step 3", "log 4", "evaluate 4", "step 4", "log 5", "save 5"])


def test_a_step_between_two_evaluations_has_none_to_make_up_for(tmp_path: Any) -> None:
    script = Script("train.eval_steps=2", f"run_dir={tmp_path}", begin=3, verdicts={})
    script.run(Checkpoint(tmp_path / "checkpoint-3", 3, {"best": Best("val/arm_mae", 2, 0.5, 2, 0).state()}))
    assert script.events[0] == "step 3"


def test_what_was_measured_before_is_taken_over_and_a_stop_is_raised(tmp_path: Any) -> None:
    script = Script(reasons={1: "signal"}, begin=2)
    script.loop.tracker.summary = {}
    with pytest.raises(Stopped, match="signal"):
        script.loop.run(Checkpoint(tmp_path, 2, {"meter": [[0.0]]}))
    assert script.events == ["restored", "step 2", "save 3"] and script.loop.tracker.summary["steps"] == 3
    fresh = Script()
    assert fresh.loop.run(None) == 1.0 and "restored" not in fresh.events


@pytest.mark.parametrize("loss, finite, refused", [(1.0, True, False), (None, True, False), (1.0, False, True)])
def test_a_loss_or_gradient_that_is_no_number_ends_the_run(loss: float | None, finite: bool, refused: bool) -> None:
    script = Script()
    script.loop.meter = SimpleNamespace(last_loss=loss, finite=finite)  # type: ignore[assignment]
    with pytest.raises(ToolkitError, match="at step 7") if refused else nullcontext():
        script.loop._refuse_nan(7)
    for broken in (math.nan, math.inf):
        script.loop.meter.last_loss = broken
        with pytest.raises(ToolkitError, match="NaN or infinite"):
            script.loop._refuse_nan(7)


def test_a_step_weighs_every_value_the_same_with_its_own_rate_and_dropout() -> None:
    """The second of two processes, two micro-batches with unequal numbers of masked values."""
    script = Script("train.warmup_ratio=0.8")
    del script.loop._step  # the real one
    losses, seeds, lasts, rates, added, received = [], [], [], [], [], []
    group: dict[str, Any] = {"lr": 0.0, "rate": 1.0}

    def module(batch: dict[str, torch.Tensor]) -> Any:
        seeds.append(torch.initial_seed())
        mask = batch["action_mask"]
        return SimpleNamespace(action_loss=2.0 * mask, action_mask=mask)

    script.loop.engine = SimpleNamespace(  # type: ignore[assignment]
        **{"rank": 1, "world_size": 2, "module": module, "autocast": nullcontext},
        accumulate=lambda last: (lasts.append(last), nullcontext())[1],
        backward=lambda loss: losses.append(float(loss)),
        optimizer=SimpleNamespace(param_groups=[group]),
        step=lambda: (rates.append(group["lr"]), torch.tensor(1.0))[1],
        sum=lambda own: own + torch.tensor([5.0, 1.0]),  # the other's values, and its flag
    )
    script.loop.attempt = SimpleNamespace(flags=lambda: torch.zeros(1), receive=lambda flags: received.append(flags))  # type: ignore[assignment]
    script.loop.meter = SimpleNamespace(add=lambda *of: added.append(of), end_step=lambda _: None)  # type: ignore[assignment]
    masks = [torch.ones(1, 2, 3), torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])]
    assert unmasked_values([{"action_mask": mask} for mask in masks]) == 7
    script.loop._step(3, [{"action_mask": mask} for mask in masks])
    assert losses == pytest.approx([12 / 12, 2 / 12], rel=1e-5) and lasts == [False, True]
    train = script.loop.config.train
    assert seeds == [torch_seed(train.seed, Stream.MODEL_DROPOUT, 3, place) for place in (1, 3)]
    assert rates == [learning_rate(3, train)] and 0 < rates[0] < train.learning_rate
    assert [float(mask.sum()) for _, mask in added] == [6, 1]
    assert [flags.tolist() for flags in received] == [[1.0]]


def test_a_process_without_a_writer_gives_its_part_of_weights_and_optimizer() -> None:
    script, given = Script(), []
    del script.loop._save
    script.loop.origin = {}
    script.loop.meter = SimpleNamespace(last_loss=1.0, state=lambda: [])  # type: ignore[assignment]
    script.loop.engine = SimpleNamespace(  # type: ignore[assignment]
        is_main=False,
        trained_weights=lambda: (given.append(n) or (n, None) for n in ("w", "v")),
        optimizer_state=lambda: (given.append(n) or (n, {}) for n in ("w moments", "v moments")),
        tell=lambda _: "",
    )
    script.loop._save(3)
    assert given == ["w", "v", "w moments", "v moments"]
    script.loop.engine.tell = lambda _: "2 tensors, first w"  # type: ignore[method-assign]
    with pytest.raises(ToolkitError, match="after step 3"):
        script.loop._save(3)
