"""Evaluation during training: it changes nothing, finds the best checkpoint, keeps it, and may end the run."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_training import config, losses, overrides, run_processes, trained

from finetune.open_loop.evaluation import evaluate_open_loop
from finetune.open_loop.predictions import Predictor
from finetune.training import first_batch, read_best
from finetune.training.checkpointing import Best, list_checkpoints, take_snapshot, write_snapshot
from finetune.training.metrics import Evaluation, Validation
from finetune.training.tracking import StallWatch
from finetune.training.train import finetune
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.configuration import load

EVALUATED = ("train.eval_steps=2", "train.save_steps=1", "train.keep_last=1")


def lines(out: Path) -> dict[int, dict[str, float]]:
    """What was evaluated, by step."""
    found = map(json.loads, (out / "run" / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in found if "val/arm_mae" in line}


def training(out: Path) -> dict[int, float]:
    found = map(json.loads, (out / "run" / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in found if "loss" in line}


def steps_of(out: Path) -> list[int]:
    return [int(folder.name.removeprefix("checkpoint-")) for folder in list_checkpoints(out / "run")]


def scripted(monkeypatch: pytest.MonkeyPatch, *errors: float) -> None:
    """Real evaluations, whose deciding error is replaced, so that the best step is known."""
    original, given = Validation.evaluate, iter(errors)

    def evaluate(self: Validation, **options: Any) -> Evaluation | None:
        found = original(self, **options)
        if found is not None:
            found.values[found.metric] = next(given)
        return found

    monkeypatch.setattr(Validation, "evaluate", evaluate)


@pytest.fixture(scope="module", autouse=True)
def without_images() -> Iterator[None]:
    """They take most of the time, and test_tracking.py looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "draw", lambda *_: {})
        patch.setattr(first_batch, "draw", lambda _, image: image.touch())
        yield


@pytest.fixture(scope="module")
def plain(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    finetune(config(out, small_data, tiny_base))
    return out


@pytest.fixture(scope="module")
def evaluated(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    finetune(config(out, small_data, tiny_base, *EVALUATED, "train.keep_last=3"))
    return out


def test_evaluations_change_no_bit_of_the_training(plain: Path, evaluated: Path) -> None:
    assert training(evaluated) == losses(plain)
    there, here = trained(plain), trained(evaluated)
    assert all(torch.equal(there[name], here[name]) for name in there | here)


def test_the_error_is_that_of_the_evaluation_of_the_finished_checkpoint(
    evaluated: Path, small_data: Path, tmp_path: Path
) -> None:
    arguments = [f"checkpoint={evaluated}/done", f"data_dir={small_data}", f"report_dir={tmp_path}", "device=cpu"]
    found = evaluate_open_loop(load("evaluate", ["local=none", "precision=fp32", *arguments])).overall
    last = lines(evaluated)[6]
    # the finished checkpoint is in bf16
    assert last["val/arm_mae"] == pytest.approx(found["all"].errors["arm"]["policy"].mae, rel=0.01)
    assert last["val/arm_mae_last"] == pytest.approx(found["last"].errors["arm"]["policy"].mae, rel=0.01)
    assert last["val/arm_mae_hold_still"] == pytest.approx(found["all"].errors["arm"]["hold_still"].mae)


def transformer(out: Path, step: int) -> dict[str, torch.Tensor]:
    return {name: w for name, w in trained(out, step).items() if name.startswith("action_head.model.")}


def test_the_finished_checkpoint_holds_the_last_weights(evaluated: Path) -> None:
    written = Gr00tN1d7.from_pretrained(evaluated / "done").state_dict()
    for name, weight in transformer(evaluated, 6).items():
        assert torch.equal(written[name], weight.to(torch.bfloat16)), name


def test_the_best_checkpoint_is_kept_named_and_exported(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.4, 0.2, 0.3)
    settings = config(tmp_path, small_data, tiny_base, *EVALUATED, "train.export=best")
    finetune(settings)
    assert read_best(tmp_path / "run") == {"step": 4, "metric": 0.2, "name": "val/arm_mae"}
    assert steps_of(tmp_path) == [4, 6]
    written = Gr00tN1d7.from_pretrained(tmp_path / "done").state_dict()
    for name, weight in transformer(tmp_path, 4).items():
        assert torch.equal(written[name], weight.to(torch.bfloat16)), name
    assert json.loads((tmp_path / "done" / "experiment_cfg" / "run.json").read_text())["step"] == 4
    assert finetune(settings).already_finished
    with pytest.raises(ToolkitError, match=r"or of other steps of it \(train.export\)"):
        finetune(config(tmp_path, small_data, tiny_base, *EVALUATED, "train.export=last"))


def test_a_resumed_run_knows_the_best_and_evaluates_what_is_left(
    evaluated: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(evaluated / "run", tmp_path / "run")
    (run / "checkpoint-6" / "manifest.json").write_text("{}")  # the newest one is damaged: continue from step 5
    (run / "best.json").unlink()
    finetune(config(tmp_path, small_data, tiny_base, *EVALUATED))
    assert read_best(run) == read_best(evaluated / "run")
    assert lines(tmp_path) == lines(evaluated)


def test_an_evaluation_cut_short_by_a_signal_is_made_up_for(
    evaluated: Path, small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Predictor._predict

    def predict(self: Predictor, *batch: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(self, *batch)

    settings = config(tmp_path, small_data, tiny_base, *EVALUATED, "train.micro_batch_size=4")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_predict", predict)
        result = finetune(settings)
    assert (result.stopped, result.steps) == ("signal SIGTERM", 2)
    assert lines(tmp_path) == {} and steps_of(tmp_path) == [2]  # the last one saved
    finetune(settings)
    assert lines(tmp_path) == lines(evaluated)
    assert read_best(tmp_path / "run") == read_best(evaluated / "run")


def test_an_evaluation_is_no_stall_however_long_it_takes(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = Predictor._predict
    monkeypatch.setattr(Predictor, "_predict", lambda *batch: (seen.append("batch"), original(*batch))[1])
    monkeypatch.setattr(StallWatch, "beat", lambda self: seen.append("got on"))
    more = ("train.max_steps=1", "train.eval_steps=1", "train.eval_episodes=1", "train.micro_batch_size=4")
    finetune(config(tmp_path, small_data, tiny_base, *more))
    batches = [place for place, what in enumerate(seen) if what == "batch"]
    assert len(batches) > 2 and all(seen[place + 1] == "got on" for place in batches)
    assert seen[batches[-1] + 2] == "got on"  # figures are drawn and logged


def test_training_ends_early_when_nothing_gets_better(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.1, 0.2, 0.3)
    settings = config(tmp_path, small_data, tiny_base, *EVALUATED, "train.patience=1")
    result = finetune(settings)
    assert (result.steps, result.stopped) == (4, None)
    assert steps_of(tmp_path) == [2, 4] and (tmp_path / "done" / "config.json").is_file()
    assert finetune(settings).already_finished
    elsewhere = ("train.patience=1", f"output_dir={tmp_path}/b")
    again = finetune(config(tmp_path, small_data, tiny_base, *EVALUATED, *elsewhere))
    assert again.steps == 4 and (tmp_path / "b" / "config.json").is_file()
    longer = finetune(config(tmp_path, small_data, tiny_base, *EVALUATED, "train.patience=9"))
    assert longer.steps == settings.train.max_steps and steps_of(tmp_path) == [2, 6]
    assert finetune(config(tmp_path, small_data, tiny_base, *EVALUATED, "train.patience=9")).already_finished


def test_cached_features_give_the_same_errors(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    more = ("augment.views=2", "train.max_steps=1", "train.eval_steps=1", "train.eval_episodes=1")
    finetune(config(tmp_path / "live", small_data, tiny_base, *more))
    cached = ("train.features=cached", f"cache_dir={tmp_path}/cache")
    finetune(config(tmp_path / "cached", small_data, tiny_base, *more, *cached))
    live, stored = lines(tmp_path / "live")[1], lines(tmp_path / "cached")[1]
    assert stored == pytest.approx(live, rel=1e-4)
    assert (tmp_path / "cached" / "run" / "first_batch.png").is_file()


@pytest.mark.long
@pytest.mark.multiprocess
def test_two_processes_agree_on_the_best(evaluated: Path, small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    run_processes(2, overrides(tmp_path, small_data, tiny_base, *EVALUATED, "train.patience=5", "tracking=none"))
    for step, line in lines(evaluated).items():
        assert lines(tmp_path)[step]["val/arm_mae"] == pytest.approx(line["val/arm_mae"], rel=1e-3)
    assert (read_best(tmp_path / "run") or {})["step"] == (read_best(evaluated / "run") or {})["step"]


def test_a_best_checkpoint_that_is_gone_is_not_named(tmp_path: Path) -> None:
    best = Best("val/arm_mae", 4, 0.1, 6, 1)
    best.write(tmp_path)
    assert read_best(tmp_path) is None
    best.forget_lost(tmp_path)
    assert best.update(8, "val/arm_mae", 0.3) and (best.step, best.worse) == (8, 0)


def test_an_error_that_is_no_number_is_never_best(tmp_path: Path) -> None:
    best = Best()
    assert not best.update(2, "val/arm_mae", float("nan")) and best.step is None
    assert best.exhausted(1) and not best.exhausted(None)
    assert Best.restored({"best": json.loads(json.dumps(best.state()))}) == best


def test_the_best_one_outlives_pruning(tmp_path: Path) -> None:
    model, best = torch.nn.Linear(2, 2), Best()
    for step in range(1, 6):
        best.update(step, "val/arm_mae", abs(step - 2.5))
        state = {"best": best.state()}
        write_snapshot(tmp_path, take_snapshot(step, model.named_parameters(), [], state), keep_last=1)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-5"]
    assert load_file(tmp_path / "checkpoint-2" / "trained.safetensors")
    assert read_best(tmp_path) == {"step": 2, "metric": 0.5, "name": "val/arm_mae"}


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (("train.patience=2",), "train.patience=2 needs evaluations"),
        (("train.export=best",), "train.export=best needs evaluations"),
        (("train.eval_steps=100",), "is more than train.max_steps=6"),
        (("train.eval_steps=2", "engine=fsdp2"), "engine=fsdp2 divides the weights"),
        (("train.eval_steps=0",), "at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_once(
    arguments: tuple[str, ...], problem: str, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ToolkitError, match=problem):
        config(tmp_path, small_data, tiny_base, *arguments)
