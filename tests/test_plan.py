"""The plan: its counts are the model's, and it says before a run starts what will not fit."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from config_calls import compose, refusal
from terminal import bars, in_terminal

from finetune import plan as fits
from finetune.create_base import _model_config, architecture_json
from finetune.plan import (
    Verdict,
    changes,
    check_disk,
    check_fits,
    device_verdict,
    disk_needs,
    gigabytes,
    host_verdict,
    make_plan,
    remedy,
)
from finetune.plan import memory as machine
from finetune.plan.__main__ import as_json, main, plan
from finetune.plan.disk_and_time import DiskPart, gpu_of_cluster, held_out_count, start_count, work
from finetune.plan.memory import (
    CUDA_CONTEXT,
    HOST_PROCESS,
    available_memory,
    loading_memory,
    local_processes,
    own_memory,
)
from finetune.plan.model_shapes import by_group, parameters, shape_of_architecture, shape_of_checkpoint
from finetune.recipe import FinetuneConfig, check_divided
from finetune.recipe.model_config import ModelConfig
from finetune.training.optimizer import add_adapters
from finetune.training.train import finetune
from gr00t.data.layout import DatasetLayout
from gr00t.errors import ToolkitError
from gr00t.model.architecture import parse_backbone
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.composition import read_yaml
from toolkit.configuration import load

ROOT = Path(__file__).resolve().parents[1]
TOKENS = {"<|image_pad|>": 6, "<|video_pad|>": 7, "<|vision_start|>": 3, "<|vision_end|>": 4}
GB = 1_000_000_000
INFO = "data/color_object/train/meta/info.json"


def model_config(name: str) -> ModelConfig:
    return compose("create_base", f"model={name}", "out=unused").model


def on_meta(name: str) -> Gr00tN1d7:
    """The real model of that name, without memory for its weights."""
    architecture = model_config(name).architecture
    with torch.device("meta"):
        return Gr00tN1d7(_model_config(architecture), parse_backbone(architecture_json(architecture, TOKENS), "test"))


def configuration(*argv: str) -> FinetuneConfig:
    return compose("finetune", *argv)


@pytest.mark.parametrize("name", ["tiny", "small", "scratch", "released"])
def test_the_shapes_worked_out_are_those_of_the_model(name: str) -> None:
    shape, model = shape_of_architecture(model_config(name).architecture), on_meta(name)
    assert shape.tensors == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert shape.text_every == model.config.attend_text_every_n_blocks


def test_the_shapes_of_a_checkpoint_are_read_from_its_headers(tiny_base: Path) -> None:
    shape, worked_out = shape_of_checkpoint(tiny_base), shape_of_architecture(model_config("tiny").architecture)
    assert {**vars(shape), "source": ""} == {**vars(worked_out), "source": ""}


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["train.tune.all_embodiments=true"],
        ["train.tune.projector=false", "train.tune.vlln=false"],
        ["train.tune.diffusion_model=false", "train.tune.top_llm_layers=2"],
        ["train.tune.llm=true", "train.tune.visual=true"],
        ["train.lora.rank=8", "train.lora.targets=[q_proj,down_proj]"],
    ],
)
def test_what_is_trained_is_what_the_model_trains(settings: list[str]) -> None:
    train = configuration("model=tiny", *settings).train
    if train.lora.rank:
        pytest.importorskip("peft", reason="peft is not installed")
    model = Gr00tN1d7(on_meta("tiny").config, on_meta("tiny").backbone_config)
    tune = dataclasses.asdict(train.tune)
    every_robot = tune.pop("all_embodiments")
    model.set_trainable(**tune)
    if not every_robot:
        model.keep_embodiments([10])
    if train.lora.rank:
        add_adapters(model, train.lora, seed=0)
    found = parameters(shape_of_architecture(model_config("tiny").architecture), train)
    assert {p.name: p.count for p in found if p.trained} == {n: p.numel() for n, p in model.trained_parameters()}


def test_the_released_size_takes_what_the_project_aims_at() -> None:
    live = make_plan(configuration(), 1)
    assert live.run.trained * 16 == pytest.approx(20.9 * GB, rel=0.01)
    cached = make_plan(configuration("train.features=cached", "augment.views=4"), 1)
    eight_bit = make_plan(configuration("train.optimizer=adamw_8bit"), 1)
    allocated = [max(p.device.moments.values()) for p in (live, cached, eight_bit)]
    assert allocated[0] < 32 * GB and allocated[1] < 26 * GB and allocated[2] < 24 * GB


def test_a_plan_needs_neither_torch_nor_data_nor_weights(tmp_path: Path) -> None:
    script = (
        "import sys, runpy; sys.argv = ['plan', 'local=none', 'gpus=4', 'json=true']; "
        "runpy.run_module('finetune.plan', run_name='__main__'); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gpus"] == 4 and found["verdicts"][0]["fits"] and found["time"]["step"] > 0


def test_tables_and_json_name_the_same_total(capsys: pytest.CaptureFixture[str]) -> None:
    from finetune.plan.__main__ import main

    config = compose("plan", "gpus=1", "gpu_memory_gb=40", "train.features=cached", "augment.views=2")
    made, verdicts = plan(config)
    main(config)
    shown = capsys.readouterr().out
    total = as_json(made, verdicts)["device_memory"]["total"]
    assert f"each GPU fits: {total / GB:.1f} of 40.0 GB" in shown
    assert total == sum(part.size for part in made.device.parts)


def test_a_terminal_shows_parts_of_the_gpus_memory_as_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(columns: int, *arguments: str, **variables: str) -> str:
        config = compose("plan", "model=released", "gpus=1", *arguments)
        return in_terminal(monkeypatch, columns, lambda: main(config), **variables)

    wide = shown(120, "gpu_memory_gb=24")
    (weights,) = re.findall("trained weights.*", wide)
    assert "of 24.0 GB" in wide and bars(weights) == [(3, 11)]  # 5.2 GB
    (together,) = [line for line in wide.split("Memory of each node")[0].splitlines() if "28.3" in line]
    assert bars(together) == [(14, 0)] and "\x1b[1;31m━" in together  # 28.3 GB, in red
    assert not bars(shown(99, "gpu_memory_gb=24")) and not bars(shown(120, "gpu_memory_gb=24", NO_COLOR="1"))
    assert not bars(shown(120, "cluster.gpu_type=null"))


def test_the_tables_show_every_part_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    from finetune.plan.__main__ import main

    config = compose("plan", "gpus=4", "gpu=a100", "engine=zero2", "train.eval_steps=10", "dataset.data_dir=absent")
    made, _ = plan(config)
    main(config)
    shown = capsys.readouterr().out
    assert "released, counted from" in shown and "4 x a100, engine=zero2, micro-batch 8 x 1, bf16" in shown
    rows = {" ".join(line.split()) for line in shown.splitlines()}
    for part in [*made.device.parts, *made.host, *made.disk]:
        if part.size:
            row = f"{part.name} {gigabytes(part.size)}"
            assert any(line.startswith(row) for line in rows), row
    for name, sizes in (("device", made.device.parts), ("host", made.host)):
        assert any(line.startswith(f"together {gigabytes(sum(p.size for p in sizes))}") for line in rows), name
    assert made.duration is not None
    assert any(line.startswith(f"a step {made.duration.step * 1e3:,.0f} ms") for line in rows)
    assert any(line.startswith(f"the run {made.duration.step * 10_000 / 3600:.2f} h 10,000 steps") for line in rows)
    trained = sum(group.trained for group in by_group(made.run.parameters)) / 1e6
    assert any(line.startswith(f"together {trained:,.1f} ") for line in rows)


@pytest.mark.parametrize(
    ("settings", "gpus", "offered"),
    [
        (
            ["train.global_batch_size=32"],
            1,
            [
                "train.micro_batch_size=1",
                "train.features=cached augment.views=4",
                "train.activation_checkpointing=true",
                "train.optimizer=adamw_8bit",
                "engine=zero2 on 2 GPUs",
                "engine=zero2 on 4 GPUs",
            ],
        ),
        (
            ["train.global_batch_size=12", "train.micro_batch_size=2", "augment.views=3", "train.optimizer=adamw_8bit"],
            2,
            [
                "train.micro_batch_size=1",
                "train.features=cached",
                "train.activation_checkpointing=true",
                "engine=zero2 on 2 GPUs",
                "engine=zero2 on 4 GPUs",
            ],
        ),
        (
            ["train.global_batch_size=3", "train.tune.top_llm_layers=1", "train.activation_checkpointing=true"],
            3,
            ["train.optimizer=adamw_8bit", "engine=zero2 on 3 GPUs"],
        ),
        (
            ["train.global_batch_size=2", "engine=fsdp2", "augment=none"],
            1,
            [
                "train.micro_batch_size=1",
                "train.features=cached augment.views=4",
                "train.activation_checkpointing=true",
                "engine=fsdp2 on 2 GPUs",
            ],
        ),
        (
            ["train.global_batch_size=4", "engine=zero2", "train.lora.rank=4"],
            2,
            ["train.micro_batch_size=1", "train.activation_checkpointing=true", "engine=zero2 on 4 GPUs"],
        ),
    ],
)
def test_what_is_offered_is_the_cheapest_first_and_divides_the_batch(
    settings: list[str], gpus: int, offered: list[str]
) -> None:
    found = list(changes(configuration(*settings), gpus))
    assert [change.settings for change in found] == offered
    assert [change.config.train.optimizer for change in found][-1] == "adamw"  # which ZeRO-2 divides
    assert found[-1].gpus == int(offered[-1].split()[2])
    for change in found:  # none that training would refuse
        change.config.train.check_values()
        check_divided(change.config)


def test_more_processes_are_no_remedy_where_all_share_one_memory() -> None:
    config = configuration("model=small", "device=cpu")
    assert [c.settings for c in changes(config, 1, cuda=False) if c.settings.startswith("engine")] == []
    lines = device_verdict(make_plan(config, 1, cuda=False), GB).advice()
    assert lines[0].startswith("No setting makes it fit here: take a machine with more memory")
    assert not any("GPU" in line for line in lines)


def test_of_a_node_with_too_little_memory_it_is_said_what_helps() -> None:
    (line,) = host_verdict(make_plan(configuration(), 4), GB).advice()
    assert "cluster.memory" in line and "fewer processes" in line


def test_what_does_not_fit_is_refused_with_what_makes_it_fit() -> None:
    with pytest.raises(ToolkitError) as error:
        check_fits(configuration(), 1, 24 * GB)
    message = str(error.value)
    assert "each GPU does not fit" in message and "of 24.0 GB" in message
    settings = ["micro_batch_size=1", "train.features=cached augment.views=4", "train.optimizer=adamw_8bit"]
    places = [message.index(setting) for setting in settings]
    assert places == sorted(places)
    check_fits(configuration("train.micro_batch_size=1", *" ".join(settings[1:]).split()), 1, 24 * GB)


def test_a_smaller_micro_batch_is_tried_first() -> None:
    batch = ["train.global_batch_size=128"]
    with pytest.raises(ToolkitError, match=r"What makes it fit:\n  train.micro_batch_size=\d+: [\d.]+ GB\n"):
        check_fits(configuration(*batch), 1, 40 * GB)


def test_what_no_setting_mends_is_said() -> None:
    with pytest.raises(ToolkitError, match="No setting makes it fit"):
        check_fits(configuration(), 1, 8 * GB)


def test_check_fit_false_continues() -> None:
    check_fits(configuration("check_fit=false"), 1, 8 * GB)


def test_training_refuses_what_cannot_fit_and_leaves_nothing(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    places = [f"model.base={tiny_base}", f"dataset.data_dir={small_data}", f"run_dir={tmp_path}/run"]
    huge = ["train.global_batch_size=1000000", "tracking=none", "device=cpu", f"output_dir={tmp_path}/done"]
    with pytest.raises(ToolkitError, match="the machine's memory does not fit"):
        finetune(load("finetune", ["local=none", "model=tiny", *places, *huge]))
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_fill_the_disk_are_refused(tmp_path: Path) -> None:
    kept = ["train.save_steps=1", "train.keep_every=1", "train.max_steps=1000000000", f"run_dir={tmp_path}/run"]
    with pytest.raises(ToolkitError, match=r"(?s)The disk has .* checkpoints: [\d.,]+ GB in .*train.keep_last"):
        check_disk(configuration(*kept, f"output_dir={tmp_path}/done"), 1)


def test_caches_are_counted_from_the_dataset(small_data: Path, tiny_base: Path) -> None:
    where = ["model=tiny", f"model.base={tiny_base}", f"dataset.data_dir={small_data}", "device=cpu"]
    config = configuration(*where, "dataset.frames=store", "train.features=cached", "augment.views=3")
    made = make_plan(config, 1, cuda=False)
    sizes = {part.name: part.size for part in made.disk}
    lengths = [20, 24, 18, 22, 20]
    side = json.loads((small_data / "color_object/train/meta/info.json").read_text())["features"][
        "observation.images.image"
    ]["shape"][0]
    assert sizes["frame store"] == sum(lengths) * 2 * side * side * 3
    held_out = json.loads((small_data / "color_object/train/meta/split.json").read_text())["val_episodes"]
    starts = sum(length for episode, length in enumerate(lengths) if episode not in held_out)
    assert sizes["feature cache"] == starts * 3 * made.run.batch.tokens * (64 * 4 + 2)


def test_a_control_groups_limit_counts(tmp_path: Path) -> None:
    job = tmp_path / "cgroup" / "slurm" / "job"
    job.mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slurm/job\n")
    room = [tmp_path / "proc", tmp_path / "cgroup"]
    assert available_memory(*room) == 8_000_000 * 1024
    for name, value in (("max", "3000"), ("current", "1500"), ("stat", "inactive_file 200\nactive_file 300\n")):
        (job.parent / f"memory.{name}").write_text(value)
    assert available_memory(*room) == 2000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gpu=a1000"], 'Did you mean "a100"'),
        (["gpus=3"], "is no multiple of 3"),
        (["engine=single", "gpus=2"], "engine=single is one process"),
        (["gpus=0"], "at least 1"),
        (["gpu_memory_gb=-1"], "more than 0"),
        (["engine=zero2", "train.optimizer=adamw_8bit"], "Use one of the two"),
        (["--json"], "json=VALUE"),
    ],
)
def test_bad_input_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(ToolkitError, match=message):
        plan(load("plan", ["local=none", *argv]))


def test_the_plan_takes_the_fine_tunes_choices() -> None:
    files = [read_yaml(ROOT / "configs" / f"{name}.yaml") for name in ("finetune", "plan")]
    assert files[0] == files[1]
    assert "gpu_memroy_gb" in refusal("plan", "gpu_memroy_gb=3")


def test_what_is_needed_fits_into_as_much_and_into_what_is_not_known() -> None:
    assert Verdict("x", 5, 5, []).fits and Verdict("x", 5, None, []).fits and not Verdict("x", 6, 5, []).fits


def test_a_node_needs_the_larger_of_loading_and_training() -> None:
    small = make_plan(configuration("train.num_workers=0"), 8, per_node=8)
    assert host_verdict(small, None).needed == max(sum(p.size for p in small.host), loading_memory(small.run))
    busy = make_plan(configuration("train.num_workers=60"), 8, per_node=8)
    assert host_verdict(busy, None).needed == sum(p.size for p in busy.host) > loading_memory(busy.run)
    assert loading_memory(small.run) == 2 * loading_memory(make_plan(configuration(), 8, per_node=4).run)


def test_on_a_cpu_all_processes_of_a_node_count() -> None:
    made = make_plan(configuration("model=tiny", "train.precision=fp32"), 4, per_node=2, cuda=False)
    needed = 2 * made.device.total + sum(part.size for part in made.host)
    assert device_verdict(made, None).needed == needed


@pytest.mark.parametrize(
    ("settings", "processes", "on_a_node", "what"),
    [
        (["device=cpu", "gpus=4"], 4, 4, "the machine's memory"),
        (["device=cpu"], 1, 1, "the machine's memory"),
        (["cluster.gpus_per_node=0", "cluster.processes_per_node=2", "cluster.nodes=2"], 4, 2, "the machine's memory"),
        (["cluster.gpus_per_node=0", "gpu=a100"], 1, 1, "each GPU"),
        (["cluster.gpus_per_node=4", "cluster.processes_per_node=2", "cluster.nodes=2"], 4, 2, "each GPU"),
        (["gpus=2"], 2, 2, "each GPU"),
        (["engine=single"], 1, 1, "each GPU"),
    ],
)
def test_a_plan_counts_the_processes_that_will_run(
    settings: list[str], processes: int, on_a_node: int, what: str
) -> None:
    made, verdicts = plan(compose("plan", "model=small", "train.global_batch_size=8", *settings))
    assert (made.run.gpus, made.run.per_node, verdicts[0].what) == (processes, on_a_node, what)


def test_images_are_as_large_as_the_base_says_wherever_it_says_so(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / "processor_config.json").unlink()  # some checkpoints have it in processor/ only
    path = tmp_path / "base" / "processor" / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["processor_kwargs"]["shortest_image_edge"] = 128
    path.write_text(json.dumps(settings))
    assert make_plan(configuration("model=tiny", f"model.base={tmp_path}/base"), 1).run.batch.side == 128


def in_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("base/processor_config.json", lambda c: c.update(processor_kwargs=[1])),
        ("base/processor_config.json", lambda c: c["processor_kwargs"].update(shortest_image_edge="big")),
        ("base/processor_config.json", lambda c: c["processor_kwargs"].update(shortest_image_edge=1e300)),
        ("base/config.json", lambda c: c.update(attend_text_every_n_blocks=0)),
        ("base/config.json", lambda c: c.update(action_horizon=-4)),
        (INFO, lambda c: c.update(features=[])),
        (INFO, lambda c: [feature.update(shape=["a", 2, 3]) for feature in c["features"].values()]),
    ],
)
def test_a_damaged_file_is_named(
    file: str, change: Callable[[Any], object], small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.copytree(small_data, tmp_path / "data")
    in_json(tmp_path / file, change)
    where = [f"model.base={tmp_path}/base", f"dataset.data_dir={tmp_path}/data", "dataset.frames=store"]
    with pytest.raises(ToolkitError, match=re.escape(str(tmp_path / file))):
        make_plan(configuration("model=tiny", *where), 1)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ("max_steps=10 save_steps=10 keep_last=3 eval_steps=2", "4 kept, one being written"),  # 2, 4, 6, 8, 10
        ("max_steps=10 save_steps=10 keep_last=3", "1 kept;"),
        ("max_steps=10 save_steps=5 keep_last=3 eval_steps=5", "2 kept;"),  # the best is one of the two
        ("max_steps=12 save_steps=4 keep_last=1 keep_every=6 eval_steps=3", "4 kept, one being written"),  # 6, 12
        ("max_steps=9 save_steps=4 keep_last=1 keep_every=9", "2 kept, one being written"),  # the last one too
    ],
)
def test_checkpoints_of_the_best_evaluations_take_room_too(settings: str, kept: str) -> None:
    config = configuration(*(f"train.{setting}" for setting in settings.split()))
    assert make_plan(config, 1).disk[0].note.startswith(kept)


def test_time_counts_what_is_computed_again_and_only_trained_weights_as_trained() -> None:
    def tflops(*settings: str) -> dict[str, float]:
        return work(make_plan(configuration("train.global_batch_size=1", *settings), 1).run)

    frozen, checkpointing = tflops(), tflops("train.activation_checkpointing=true")
    assert checkpointing["vl_self_attention"] == pytest.approx(frozen["vl_self_attention"] * 4 / 3)
    assert frozen["diffusion transformer"] < checkpointing["diffusion transformer"]
    assert checkpointing["diffusion transformer"] < frozen["diffusion transformer"] * 4 / 3
    assert checkpointing["language model"] == frozen["language model"]
    layer = frozen["language model"] / 16
    top = [tflops(f"train.tune.top_llm_layers={n}")["language model"] for n in (1, 16)]
    assert top == [pytest.approx((15 + 3) * layer), pytest.approx(3 * 16 * layer)]
    adapters = tflops("train.lora.rank=1")["language model"]  # the frozen weights pass gradients on
    assert adapters == pytest.approx(2 * 16 * layer, rel=0.03)


def remedies(config: FinetuneConfig, room: int) -> list[tuple[str, int]]:
    """Of a memory of 100, less 10 by each change; 30 on ZeRO-2."""

    def memory(config: FinetuneConfig, _: int) -> int:
        train = config.train
        if config.engine.name == "zero2":
            return 30
        less = (train.features == "cached") + train.activation_checkpointing + (train.optimizer == "adamw_8bit")
        return 100 - 10 * less - (32 - (train.micro_batch_size or 32)) // 4

    return remedy(config, 1, memory, room)


def test_a_remedy_is_the_largest_micro_batch_that_fits_or_changes_until_it_does() -> None:
    config = configuration("train.global_batch_size=32")
    assert remedies(config, 97) == [("train.micro_batch_size=16", 96)]
    assert remedies(config, 96) == [("train.micro_batch_size=16", 96)]
    assert remedies(config, 95) == [("train.micro_batch_size=8", 94)]
    least = ("train.micro_batch_size=1", 93)
    cached = ("train.features=cached augment.views=4", 83)
    assert remedies(config, 90) == [least, cached]
    checkpointing, eight_bit = ("train.activation_checkpointing=true", 73), ("train.optimizer=adamw_8bit", 63)
    assert remedies(config, 63) == [least, cached, checkpointing, eight_bit]
    assert remedies(config, 40) == [least, cached, checkpointing, ("engine=zero2 on 2 GPUs", 30)]
    assert remedies(config, 20) == [least, cached, checkpointing, ("engine=zero2 on 4 GPUs", 30)]


def test_a_disk_holds_what_is_still_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "free_space", lambda _: 77)
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-10" / "model").write_bytes(bytes(30))
    (tmp_path / "run" / "metrics.jsonl").write_bytes(bytes(500))
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "model").write_bytes(bytes(40))
    (tmp_path / "cache" / "frames-a").mkdir(parents=True)
    (tmp_path / "cache" / "frames-a" / "x").write_bytes(bytes(90))
    parts = [
        DiskPart("checkpoints", tmp_path / "run", 100),
        DiskPart("finished checkpoint", tmp_path / "done", 50),
        DiskPart("frame store", tmp_path / "cache", 60),
        DiskPart("feature cache", tmp_path / "cache" / "new" / "folder", 7),
        DiskPart("unknown", tmp_path, None),
    ]
    assert disk_needs(parts) == [(parts[:4], 70 + 50 + 0 + 7, 77)]


def test_a_process_counts_its_own_context_as_room(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int | None] = []
    monkeypatch.setattr(fits, "check_fits", lambda config, gpus, room, **_: given.append(room))
    config = configuration()
    for cuda, free in ((True, 5), (True, None), (False, 5)):
        fits.check_here(config, 1, free, bf16=True, cuda=cuda, writes=False)
    assert given == [5 + CUDA_CONTEXT, None, 5]


def test_what_the_processes_of_a_node_have_taken_already_counts_as_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a job that was given just the memory that the plan names would be refused when it starts."""
    given: list[int | None] = []
    monkeypatch.setattr(fits, "check_fits", lambda *_, host_memory_bytes, **__: given.append(host_memory_bytes))
    monkeypatch.setattr(fits, "available_memory", lambda: 10 * GB)
    monkeypatch.setattr(fits, "local_processes", lambda: 4)
    for own in (GB, 100 * GB):  # no more than the plan allows a process
        monkeypatch.setattr(fits, "own_memory", lambda own=own: own)
        fits.check_here(configuration(), 4, 5, bf16=True, cuda=True, writes=False)
    fits.check_here(configuration(), 4, 5, bf16=True, cuda=False, writes=False)
    assert given == [14 * GB, 10 * GB + 4 * HOST_PROCESS, None]
    (tmp_path / "self").mkdir()
    assert own_memory(tmp_path) == 0
    (tmp_path / "self" / "status").write_text("VmRSS:\t    900 kB\nRssAnon:\t     300 kB\n")
    assert own_memory(tmp_path) == 300 * 1024


def test_starts_and_held_out_frames_are_counted_by_tail_and_by_evaluated_episodes(small_data: Path) -> None:
    layout = DatasetLayout(small_data / "color_object/train")
    lengths = [layout.episode(index).length for index in layout.train_episodes]
    assert start_count(configuration("dataset.tail=mask"), layout) == sum(lengths)
    assert start_count(configuration("dataset.tail=drop"), layout) == sum(length - 15 for length in lengths)
    held_out = [layout.episode(index).length for index in layout.val_episodes]
    assert held_out_count(configuration(), layout) == 0
    one = configuration("train.eval_steps=10", "train.eval_episodes=1")
    every = configuration("train.eval_steps=10", "train.eval_episodes=null")
    assert (held_out_count(one, layout), held_out_count(every, layout)) == (held_out[0], sum(held_out))


@pytest.mark.parametrize(
    "name, meant",
    [
        ("a100", "a100"),
        ("nvidia_a100-sxm4-40gb", "a100"),
        ("NVIDIA_A100-SXM4-80GB", "a100-80gb"),
        ("h100_pcie", "h100"),
        ("gh200", "gh200"),
        ("l40s", "l40s"),
        ("nvidia_a100_3g.20gb", "a100, 3g.20gb"),
        ("3g.20gb", None),
        ("v100", None),
        (None, None),
    ],
)
def test_a_clusters_name_of_a_gpu_is_understood(name: str | None, meant: str | None) -> None:
    found = gpu_of_cluster(name)
    assert (found.name if found else None) == meant


def test_a_slice_of_a_gpu_has_its_own_memory() -> None:
    whole, part = gpu_of_cluster("nvidia_h100_80gb_hbm3"), gpu_of_cluster("nvidia_h100_80gb_hbm3_2g.20gb")
    assert whole is not None and part is not None
    assert (part.memory, part.tflops) == (20, pytest.approx(whole.tflops * 2 / 7))


def test_an_older_control_groups_limit_counts_too(tmp_path: Path) -> None:
    """Of version 1, in a root of its own; a limit that is none is left out."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable: 8000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("5:cpu,memory:/job\n3:cpuset:/other\n0::/x\n")
    job = tmp_path / "cgroup" / "memory" / "job"
    job.mkdir(parents=True)
    (tmp_path / "cgroup" / "x").mkdir()
    (tmp_path / "cgroup" / "x" / "memory.max").write_text("max\n")
    (tmp_path / "cgroup" / "x" / "memory.current").write_text("5\n")
    (job / "memory.limit_in_bytes").write_text("9000\n")
    (job / "memory.usage_in_bytes").write_text("2000\n")
    assert available_memory(tmp_path / "proc", tmp_path / "cgroup") == 7000
    assert machine.available_memory(tmp_path / "none", tmp_path / "cgroup") is None


@pytest.mark.parametrize("text, count", [("4", 4), ("0", 1), ("x", 1), (None, 1)])
def test_local_processes_are_those_of_torchrun(text: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if text is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", text)
    assert local_processes() == count


@pytest.mark.parametrize(
    "settings, gpus, per_node",
    [
        (["cluster.nodes=2", "cluster.gpus_per_node=4"], 8, 4),
        (["cluster.nodes=2", "cluster.gpus_per_node=4", "gpus=2"], 2, 2),
        (["engine=single", "cluster.nodes=2"], 1, 1),
        (["device=cpu", "cluster.nodes=2"], 1, 1),
    ],
)
def test_a_plan_is_for_the_processes_that_the_cluster_would_start(
    settings: list[str], gpus: int, per_node: int
) -> None:
    made, _ = plan(compose("plan", "dataset.data_dir=absent", *settings))
    assert (made.run.gpus, made.run.per_node) == (gpus, per_node)
