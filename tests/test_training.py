"""Training: the same losses however the work is cut or interrupted, and nothing lost when something is wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.curves import read
from conflict_panda_config import MODALITY_CONFIG
from finetune.recipe import FinetuneConfig
from finetune.recipe.train_config import TrainConfig
from finetune.training.checkpointing import list_checkpoints, newest_checkpoint, take_snapshot, write_snapshot
from finetune.training.engine import Engine
from finetune.training.optimizer import learning_rate
from finetune.training.train import finetune
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_replacement import file_lock
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.configuration import load

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6


def overrides(out: Path, data: Path, base: Path, *more: str) -> list[str]:
    defaults = [
        "model=tiny",
        "local=none",
        f"model.base={base}",
        f"dataset.data_dir={data}",
        f"run_dir={out}/run",
        f"output_dir={out}/done",
        f"train.max_steps={STEPS}",
        "train.global_batch_size=4",
        "train.log_steps=1",
        "train.save_steps=3",
        "train.num_workers=0",
        "train.learning_rate=1e-3",
        "tracking=none",
        "device=cpu",
    ]
    chosen = dict(text.split("=", 1) for text in [*defaults, *more])
    return [f"{key}={value}" for key, value in chosen.items()]


def config(out: Path, data: Path, base: Path, *more: str) -> FinetuneConfig:
    return load("finetune", overrides(out, data, base, *more))


def metrics(out: Path, after: int = 0) -> list[dict[str, float]]:
    """The lines of a run's metrics past a step, in order and each as often as it was written."""
    return [line for line in read(out / "run") if line["step"] > after]


def losses(out: Path) -> dict[int, float]:
    """The loss logged at each step; a step that was logged twice is an error."""
    lines = metrics(out)
    found = {line["step"]: line["loss"] for line in lines}
    assert len(found) == len(lines), f"steps logged: {[line['step'] for line in lines]}"
    return found


def gradients(out: Path) -> dict[int, dict[str, float]]:
    """The norms of the gradients logged at each step: of all that is trained, and of each part of the model."""
    return {line["step"]: {k: v for k, v in line.items() if k.startswith("grad_norm")} for line in metrics(out)}


def assert_same_gradients(out: Path, other: Path) -> None:
    """Of one run and another that divides its work: AdamW and clipping would hide a wrong factor from the losses."""
    found, wanted = gradients(out), gradients(other)
    assert list(found) == list(wanted) and set(found[1]) == set(wanted[1])
    assert len(wanted[1]) == 4  # the whole, projector, diffusion model, vlln
    assert found[1] == pytest.approx(wanted[1], rel=1e-5)
    for step, norms in wanted.items():
        assert found[step] == pytest.approx(norms, rel=2e-2), step


def trained(out: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(out / "run" / f"checkpoint-{step}" / "trained.safetensors")


def run_processes(count: int, arguments: list[str]) -> None:
    """The launch script in so many processes of torchrun; one needs none."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if count > 1 else []
    command = [sys.executable, *torchrun, "launch_finetune_local.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_error_that_nobody_expected_ends_the_process(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    """With its traceback, and without waiting for loader processes that leave all signals to this one."""
    code = """
import runpy
from finetune.training.train import TrainingLoop
def fail(*_):
    raise RuntimeError("nobody expected this")
TrainingLoop._step = fail
runpy.run_path("launch_finetune_local.py", run_name="__main__")
"""
    command = [sys.executable, "-c", code, *overrides(tmp_path, small_data, tiny_base, "train.num_workers=2")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.strip().endswith("RuntimeError: nobody expected this")


@pytest.fixture(scope="module")
def finished(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its first step to its last."""
    out = tmp_path_factory.mktemp("finished")
    result = finetune(config(out, small_data, tiny_base, "tracking=wandb", "tracking.mode=offline"))
    assert result.steps == STEPS and result.output_dir == out / "done"
    return out


def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(finished / "run" / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    finetune(config(tmp_path, small_data, tiny_base))
    assert metrics(finished, after=3) == metrics(tmp_path)
    there, here = trained(finished), trained(tmp_path)
    assert all(torch.equal(there[name], here[name]) for name in there | here)


def test_a_damaged_newest_checkpoint_is_passed_over(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    with (tmp_path / "run" / f"checkpoint-{STEPS}" / "optimizer.safetensors").open("r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    found = newest_checkpoint(tmp_path / "run")
    assert found is not None and found.step == 3
    assert "optimizer.safetensors has changed" in caplog.text
    finetune(config(tmp_path, small_data, tiny_base))
    assert (
        tmp_path / "run" / f"checkpoint-{STEPS}.damaged" / "optimizer.safetensors"
    ).is_file()  # kept to be looked at
    assert metrics(tmp_path) == metrics(finished)


def test_a_finished_run_is_not_trained_again(finished: Path, small_data: Path, tiny_base: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "done").rglob("*")}
    assert finetune(config(finished, small_data, tiny_base)).already_finished
    assert before == {p: p.stat().st_mtime_ns for p in (finished / "done").rglob("*")}


def test_accumulated_micro_batches_give_the_loss_of_the_whole_batch(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    finetune(config(tmp_path, small_data, tiny_base, "train.micro_batch_size=1"))
    assert losses(tmp_path)[1] == pytest.approx(losses(finished)[1], rel=1e-6)
    assert losses(tmp_path) == pytest.approx(losses(finished), rel=1e-3)
    assert_same_gradients(tmp_path, finished)


@pytest.mark.multiprocess
def test_two_processes_give_the_losses_of_one(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run_processes(2, overrides(tmp_path, small_data, tiny_base))
    assert losses(tmp_path)[1] == pytest.approx(losses(finished)[1], rel=1e-6)
    assert losses(tmp_path) == pytest.approx(losses(finished), rel=1e-3)
    assert_same_gradients(tmp_path, finished)
    assert (tmp_path / "done" / "config.json").is_file()


@pytest.mark.multiprocess
@pytest.mark.long
def test_dropout_is_that_of_the_place_in_the_global_batch_whatever_the_layout(
    small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    settings["diffusion_model_cfg"]["dropout"] = settings["vl_self_attention_cfg"]["dropout"] = 0.2
    (base / "config.json").write_text(json.dumps(settings))
    more = ("train.micro_batch_size=1", "train.max_steps=3", "train.save_steps=3")
    finetune(config(tmp_path / "one", small_data, base, *more))
    run_processes(2, overrides(tmp_path / "two", small_data, base, *more))
    finetune(config(tmp_path / "other", small_data, base, "train.micro_batch_size=2", *more[1:]))
    one, two, other = (losses(tmp_path / name) for name in ("one", "two", "other"))
    assert two == pytest.approx(one, rel=1e-5)
    assert other[1] != pytest.approx(one[1], rel=1e-3)  # dropout shows


def test_only_the_chosen_groups_are_trained(finished: Path, tiny_base: Path) -> None:
    before, after = Gr00tN1d7.from_pretrained(tiny_base), Gr00tN1d7.from_pretrained(finished / "done")
    new = after.state_dict()
    for name, tensor in before.state_dict().items():
        changed = not torch.equal(tensor.to(torch.bfloat16), new[name])
        if name.startswith("backbone."):
            assert not changed, name
    assert not any(name.startswith("backbone.") for name in trained(finished))
    moved = [n for n, t in trained(finished).items() if not torch.equal(t, before.state_dict()[n])]
    assert any("action_decoder" in n for n in moved) and any("transformer_blocks" in n for n in moved)


def test_the_finished_checkpoint_has_the_release_layout(finished: Path) -> None:
    done = finished / "done"
    names = {str(p.relative_to(done)) for p in done.rglob("*") if p.is_file()}
    jsons = {"processor_config.json", "statistics.json", "embodiment_id.json"}
    assert names >= {"config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert names >= jsons | {f"processor/{n}" for n in jsons}
    assert names >= {"processor/vlm/tokenizer.json", "processor/vlm/preprocessor_config.json"}
    assert names >= {f"experiment_cfg/{n}" for n in ("config.yaml", "dataset.json", "versions.json")}
    assert not any(n.endswith((".pt", ".pkl", ".bin")) for n in names)
    processor = json.loads((done / "processor_config.json").read_text())["processor_kwargs"]
    assert list(processor["modality_configs"]) == ["new_embodiment"]
    model = json.loads((done / "config.json").read_text())
    assert model["crop_fraction"] == processor["crop_fraction"] == 0.95


def test_metrics_hold_what_a_user_needs_to_judge_a_run(finished: Path) -> None:
    first = json.loads((finished / "run" / "metrics.jsonl").read_text().splitlines()[0])
    wanted = {"loss", "loss_arm", "loss_gripper", "grad_norm", "learning_rate", "samples_per_second"}
    assert set(first) >= wanted | {"data_wait_seconds", "peak_memory_gib", "step"}
    assert list((finished / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_conflict_episodes_never_enter_training(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_data, tmp_path / "data")
    shutil.rmtree(copy / "color_object" / "conflict")
    finetune(config(tmp_path, copy, tiny_base, "train.max_steps=1"))


def test_another_recipe_does_not_continue_a_run(finished: Path, small_data: Path, tiny_base: Path) -> None:
    with pytest.raises(ToolkitError, match=r"train\.learning_rate: 0\.001 there, 0\.002 now"):
        finetune(config(finished, small_data, tiny_base, "train.learning_rate=2e-3"))


def test_a_checkpoint_of_another_run_is_not_overwritten(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ToolkitError, match="exists already and holds the checkpoint of another run"):
        finetune(config(finished, small_data, tiny_base, f"run_dir={tmp_path}/elsewhere", "train.seed=1"))
    assert not (tmp_path / "elsewhere").exists()


ABSURD = ("train.warmup_ratio=0", "train.save_steps=1")


@pytest.mark.parametrize("steps", [2, 8])
@pytest.mark.parametrize("rate", ["train.learning_rate=1e18", "train.learning_rate=1e300"])
def test_weights_that_are_not_finite_are_in_no_checkpoint_and_not_exported(
    rate: str, steps: int, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    settings = config(tmp_path, small_data, tiny_base, *ABSURD, rate, f"train.max_steps={steps}")
    for _ in range(2):  # and again by the same command
        with pytest.raises(ToolkitError, match="NaN or infinite"):
            finetune(settings)
    assert not (tmp_path / "done").exists()
    for checkpoint in list_checkpoints(tmp_path / "run"):
        tensors = load_file(checkpoint / "trained.safetensors").values()
        assert all(t.isfinite().all() for t in tensors), checkpoint


def test_the_checkpoint_before_stays_usable_where_weights_break(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, done = Engine.step, []

    def step(engine: Engine) -> torch.Tensor:
        norm = whole(engine)
        done.append(norm)
        if len(done) == STEPS:
            with torch.no_grad():
                next(iter(dict(engine.trained_weights()).values())).view(-1)[5] = float("inf")
        return norm

    settings = config(tmp_path, small_data, tiny_base)
    with (
        monkeypatch.context() as patch,
        pytest.raises(ToolkitError, match=r"after step 6 \(1 tensors, first action_head"),
    ):
        patch.setattr(Engine, "step", step)
        finetune(settings)
    assert newest_step(tmp_path) == 3 and not (tmp_path / "done").exists()
    finetune(settings)
    assert losses(tmp_path) == losses(finished)


def test_a_checkpoint_of_an_earlier_version_with_broken_weights_is_passed_over(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    for step in (1, 2):
        write_snapshot(tmp_path, take_snapshot(step, model.named_parameters(), [], {}), keep_last=2)
        with torch.no_grad():
            model.weight[0, 1] = float("nan")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1


def test_broken_moments_are_found_as_broken_weights_are() -> None:
    weights, moments = {"w": torch.zeros(2)}, {"exp_avg": torch.zeros(2), "exp_avg_sq": torch.tensor([0.0, torch.inf])}
    assert take_snapshot(1, weights.items(), [("w", moments)], {}).not_finite() == ["exp_avg_sq.w"]


def test_a_base_with_broken_weights_is_not_exported(tiny_base: Path, tmp_path: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    with torch.no_grad():
        model.backbone.vlm.visual.pos_embed.weight[0, 0] = 3.4e38  # infinite in bf16
    model.save_pretrained(tmp_path / "fp32")
    with pytest.raises(ToolkitError, match=r"in torch.bfloat16, first .*pos_embed.weight"):
        model.save_pretrained(tmp_path / "bf16", dtype=torch.bfloat16)
    assert not (tmp_path / "bf16").exists()


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_of_the_users_is_never_replaced(
    resume: str, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "thesis.txt").write_text("years of work")
    with pytest.raises(ToolkitError, match="never replaced"):
        finetune(config(tmp_path, small_data, tiny_base, f"train.resume={resume}"))
    assert (tmp_path / "done" / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "run").exists()


def test_a_dataset_edited_since_does_not_continue_a_run(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "run" / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    data = Path(shutil.copytree(small_data, tmp_path / "data"))
    stats = data / "color_object" / "train" / "meta" / "stats.json"
    stats.write_text(stats.read_text() + " ")
    with pytest.raises(ToolkitError, match="the dataset holds other data"):
        finetune(config(tmp_path, data, tiny_base))


def test_a_run_started_over_and_refused_leaves_the_old_one(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    data = Path(shutil.copytree(small_data, tmp_path.parent / f"{tmp_path.name}-data"))
    next((data / "color_object" / "train").rglob("*.mp4")).unlink()
    with pytest.raises(ToolkitError, match="1 of 5 videos are missing"):
        finetune(config(tmp_path, data, tiny_base, "train.resume=never"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_process_in_the_same_run_folder_is_refused(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    with file_lock(tmp_path / "run"), pytest.raises(ToolkitError, match="another process is writing"):
        finetune(config(tmp_path, small_data, tiny_base))


def test_pruning_keeps_what_was_just_saved(finished: Path, tmp_path: Path) -> None:
    for step in (50, 60):
        (tmp_path / f"checkpoint-{step}").mkdir()
    model = torch.nn.Linear(2, 2)
    for step in (1, 2):
        write_snapshot(tmp_path, take_snapshot(step, model.named_parameters(), [], {}), keep_last=2)
        assert tmp_path / f"checkpoint-{step}" in list_checkpoints(tmp_path)


def test_checkpoints_at_round_steps_are_kept_for_good(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    for step in range(1, 8):
        write_snapshot(tmp_path, take_snapshot(step, model.named_parameters(), [], {}), keep_last=2, keep_every=3)
    assert [p.name for p in list_checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (3, 6, 7)]


def test_a_snapshot_does_not_change_with_the_model(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    snapshot = take_snapshot(1, model.named_parameters(), [], {})
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    assert torch.equal(snapshot.trained["weight"], before)


@pytest.mark.long
@pytest.mark.multiprocess
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(
    small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    more = ("train.max_steps=60", "train.save_steps=2", "train.num_workers=1")
    finetune(config(tmp_path / "whole", small_data, tiny_base, *more))
    command = [sys.executable, "launch_finetune_local.py", *overrides(tmp_path / "cut", small_data, tiny_base, *more)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    moments = random.Random(7)
    for _ in range(2):
        before = newest_step(tmp_path / "cut")
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
        while newest_step(tmp_path / "cut") <= before and child.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.7))
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    there, here = trained(tmp_path / "whole", 60), trained(tmp_path / "cut", 60)
    assert all(torch.equal(there[name], here[name]) for name in there | here)
    assert not list((tmp_path / "cut" / "run").glob(".checkpoint-*"))


def newest_step(out: Path) -> int:
    found = list_checkpoints(out / "run")
    return int(found[-1].name.removeprefix("checkpoint-")) if found else 0


def test_damaged_checkpoints_alone_do_not_start_a_run_over(
    finished: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    for manifest in (tmp_path / "run").rglob("manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(ToolkitError, match=r"Every checkpoint in .* is damaged"):
        finetune(config(tmp_path, small_data, tiny_base))


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"quota is full.*Make room\."), disk_errors(tmp_path, "Make room."):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_relative_statistics_follow_the_start_rule(
    small_data: Path, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finetune(config(tmp_path, small_data, tiny_base, "dataset.tail=drop", "train.max_steps=1"))
    assert "dataset.tail=drop starts only where the whole action horizon is recorded" in caplog.text
    written = json.loads((tmp_path / "done" / "statistics.json").read_text())["new_embodiment"]["relative_action"]
    reader = StepReader(small_data / "color_object" / "train", MODALITY_CONFIG)
    train = reader.layout.train_episodes
    assert written["arm"] == reader.relative_statistics(train, "drop")["arm"]
    recorded = reader.layout.relative_statistics()["arm"]
    assert recorded == reader.relative_statistics(train, "mask")["arm"] and recorded != written["arm"]


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    recipe = TrainConfig(max_steps=1000, learning_rate=1e-4, warmup_ratio=0.05)
    rates = [learning_rate(step, recipe) for step in range(1000)]
    assert rates[0] == 0 and rates[25] == pytest.approx(5e-5) and max(rates) == rates[50] == 1e-4
    assert rates[525] == pytest.approx(5e-5) and rates[-1] < 1e-9
