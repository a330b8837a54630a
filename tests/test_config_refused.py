"""What is refused before anything is loaded: each message names the key and the remedy."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from config_calls import compose, refusal

from finetune.recipe import check_batch, check_cache, check_evaluation
from gr00t.data.sampler import Stream, generator, torch_seed
from gr00t.errors import ToolkitError
from toolkit.command_line import SPEAK_AFTER_SECONDS, run_main
from toolkit.composition import COMMANDS
from toolkit.configuration import load
from toolkit.declaration import keys_of
from toolkit.shared_keys import is_hub_id

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install '.[deepspeed]'"
)


@pytest.fixture(autouse=True)
def outside_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a converted color_object dataset and a base checkpoint."""
    for part in ("train", "conflict"):
        (tmp_path / "data" / "color_object" / part / "meta").mkdir(parents=True)
        (tmp_path / "data" / "color_object" / part / "meta" / "info.json").write_text("{}")
    (tmp_path / "checkpoints" / "base" / "tiny").mkdir(parents=True)
    (tmp_path / "checkpoints" / "base" / "tiny" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused_here(config_name: str, *argv: str) -> str:
    with pytest.raises(ToolkitError) as error:
        load(config_name, ["local=none", *argv])
    return str(error.value)


REFUSALS = {
    "modle=tiny": ('There is no key "modle"', 'Did you mean "model"?'),
    "lr=1e-3": ('"lr"', '"train.learning_rate"'),
    "max_steps=3": ('"max_steps"', '"train.max_steps"'),
    "train.warmup=0.1": ('"train.warmup"', '"train.warmup_ratio"'),
    "datset.data_dir=x": ('"dataset.data_dir"',),
    "completely.unknown=1": ('"completely.unknown"', "--help"),
    "hydra.run.dir=x": ('There is no key "hydra.run.dir"',),
    "model=smal": ("model=smal", "configs/model/smal.yaml", '"small"'),
    "experiment=conflic": ("experiment=conflic", '"conflict"'),
    "tracking=null": ("tracking=null", "none, tensorboard, wandb"),
    "model=../secret": ("model=../secret",),
    "train.max_steps=abc": ("train.max_steps expects int", '"abc"'),
    "train.max_steps=1e4": ("train.max_steps expects int", '"1e4"', "Write 10000."),
    "train.max_steps=2.5": ("train.max_steps expects int", '"2.5"'),
    "train.learning_rate=fast": ("train.learning_rate expects number", '"fast"'),
    "train.tune.llm=maybe": ("train.tune.llm expects true or false", '"maybe"'),
    "train.micro_batch_size=few": ("train.micro_batch_size expects int or null",),
    "train.seed=null": ("train.seed expects int", "null"),
    "tracking.tags=a,b": ("tracking.tags", "list of text", "[A,B]"),
    "tracking.tags=[a,{b: c}]": ("tracking.tags expects list of text",),
    "dataset=x": ("dataset is a section", "dataset.<key>=VALUE"),
    "augment.color_jitter=strong": ("augment.color_jitter is a section", "augment.color_jitter=null"),
    "train": ('"train" is no key=value', "train=VALUE"),
    "cube": ('"cube" is no key=value', "Quote a value with spaces"),
    "split=": ('"split=" has no value', "split=VALUE"),
    "split.instruction='  '": ("has no value",),
    "run_dir=": ('"run_dir=" has no value',),
    "train.seed =3": ('"train.seed " is no name of a key', 'without spaces around "="'),
    "+train.seed=3": ("cannot be added or removed", "train.seed=VALUE"),
    "~train.seed=3": ("cannot be added or removed",),
    "--split": ("write split=VALUE, not --split",),
    "--split=color_size": ("write split=color_size, not --split=color_size",),
    "--multirun": ("Options are written key=value",),
    "split=color_object,color_size": ("one option at a time", "split=color_size"),
    "split=colour_object": ('There is no split "colour_object"', '"color_object"', 'split.instruction="'),
    "split=heavy": ('There is no split "heavy"', "color_object, color_position", "split=heavy split.instruction="),
    "split=../up": ("split=../up", "folder name"),
    "split=-x": ("folder name",),
    "split=custom": ("split=custom has no name", "split=NAME split.instruction="),
    "split.name=a/b": ("split.name=a/b", "folder name"),
    "train.learning_rate=nan": ("train.learning_rate=nan", "finite"),
    "train.learning_rate=inf": ("train.learning_rate=inf", "finite"),
    "train.early_draws=0": ("train.early_draws=0", "at least 1"),
    "train.noise_draws=0": ("train.noise_draws=0", "at least 1"),
    "train.learning_rate=0": ("train.learning_rate=0", "more than 0"),
    "train.learning_rate=-1e-4": ("more than 0",),
    "train.max_steps=0": ("train.max_steps=0", "at least 1"),
    "train.global_batch_size=-32": ("train.global_batch_size=-32", "at least 1"),
    "train.micro_batch_size=0": ("train.micro_batch_size=0", "at least 1"),
    "train.save_steps=0": ("train.save_steps=0",),
    "train.keep_last=0": ("train.keep_last=0",),
    "train.log_steps=0": ("train.log_steps=0",),
    "train.num_workers=-1": ("train.num_workers=-1", "at least 0"),
    "train.warmup_ratio=1": ("train.warmup_ratio=1", "less than 1"),
    "train.adam_beta1=1": ("train.adam_beta1=1", "less than 1"),
    "train.seed=-1": ("train.seed=-1",),
    "train.precision=fp16": ("train.precision=fp16", "auto, fastest, bf16 or fp32"),
    "train.resume=always": ("train.resume=always", "auto or never"),
    "dataset.tail=repeat": ("dataset.tail=repeat", "mask or drop"),
    "dataset.embodiment_tag=NEW_EMBODIMENT": ("write it as checkpoints do", '"new_embodiment"'),
    "dataset.embodiment_tag=panda": ("dataset.embodiment_tag=panda", "new_embodiment"),
    "augment.crop_fraction=0": ("augment.crop_fraction=0", "more than 0 and at most 1"),
    "augment.crop_fraction=1.1": ("at most 1",),
    "augment.color_jitter.hue=0.6": ("augment.color_jitter.hue=0.6", "at most 0.5"),
    "augment.state_dropout=1": ("augment.state_dropout=1", "less than 1"),
    "augment.views=0": ("augment.views=0", "at least 1"),
    "augment.random_rotation_angle=0": ("augment.random_rotation_angle=0", "more than 0"),
    "device=gpu": ("device=gpu", "auto, cpu or cuda"),
    "engine.name=fsdp": ("engine.name=fsdp", "single, ddp, zero2 or fsdp2"),
    "tracking.mode=of": ("tracking.mode=of", "auto, online or offline"),
    "run_dir=runs/${split.nam}": ("run_dir cannot be resolved", "split.nam"),
    "run_dir=${": ("run_dir",),
    "run_dir=a\nb": ("run_dir='a\\nb'", "line breaks"),
    "train.num_workers=???": ("train.num_workers has no value",),
    "local=elsewhere": ("local=elsewhere", "configs/local/elsewhere.yaml does not exist"),
    "train.tune.top_llm_layers=17": ("train.tune.top_llm_layers=17", "keeps 16"),
    "model.architecture.image_size=100": ("model.architecture.image_size=100", "a multiple of 32"),
    "model.architecture.backbone.vocab_size=3": ("model.architecture.backbone is null",),
}


@pytest.mark.parametrize("argument", REFUSALS)
def test_refusal_names_the_key_and_the_remedy(argument: str) -> None:
    message = refusal("finetune", argument)
    for part in REFUSALS[argument]:
        assert part in message
    assert "\n" not in message and len(message) < 500


@pytest.mark.parametrize(
    "argv, parts",
    [
        (["--split", "color_object"], ("write split=color_object, not --split color_object",)),
        (["--max-steps", "5"], ("write train.max_steps=5, not --max-steps 5",)),
        (["train.seed=1", "train.seed=2"], ("train.seed is given twice", '"1" and "2"')),
        (["model=tiny", "model=small"], ("model is given twice",)),
        (["split=mine", "split.name=yours", "split.instruction=x"], ("split=mine and split.name=yours",)),
        (["augment=none", "augment.color_jitter.hue=0.1"], ("augment.color_jitter is null here",)),
        ([f"train.tune.{part}=false" for part in ("projector", "diffusion_model", "vlln")], ("nothing is trained",)),
    ],
)
def test_refusal_of_arguments_together(argv: list[str], parts: tuple[str, ...]) -> None:
    message = refusal("finetune", *argv)
    for part in parts:
        assert part in message


MISFITS = {
    "input_embedding_dim=96": "input_embedding_dim is 96",
    "hidden_size=96": "must equal hidden_size, which is 96",
    "vl_self_attention.attention_head_dim=8": "must equal backbone_embedding_dim, which is 64",
    "backbone.text.hidden_size=32": "backbone.text.hidden_size is 32",
    "backbone.vision.out_hidden_size=32": "backbone.vision.out_hidden_size is 32",
    "backbone.text.mrope_section=[4,2,3]": "is 18, but must equal backbone.text.head_dim, which is 16",
    "backbone.text.mrope_section=[4,4]": "three positive parts",
    "backbone.text.mrope_section=[8,4,-4]": "three positive parts",
    "backbone.text.num_key_value_heads=3": "a multiple of backbone.text.num_key_value_heads",
    "backbone.vision.num_heads=3": "a multiple of 4 x backbone.vision.num_heads",
    "backbone.vision.num_position_embeddings=150": "no square number",
    "backbone.vision.deepstack_visual_indexes=[0,3]": "0 to 2",
    "backbone.vision.deepstack_visual_indexes=[1,0]": "ascending",
    "select_layer=5": "more than backbone.text.num_hidden_layers=4",
    "select_layer=1": "select_layer keeps too few",
}


@pytest.mark.parametrize("change", MISFITS)
def test_shapes_that_do_not_fit_are_refused(change: str) -> None:
    message = refusal("create_base", "model=tiny", f"model.architecture.{change}")
    assert "model.architecture." in message and MISFITS[change] in message


SEEDS = [
    (name, key.name)
    for name, script in COMMANDS.items()
    for key in keys_of(script.config).values()
    if "seed" in key.name
]


@pytest.mark.parametrize(("script", "key"), SEEDS)
def test_a_seed_beyond_64_bits_is_refused(script: str, key: str) -> None:
    needed = {"prefetch": ["base=a/b"], "adopt": ["dataset=d"], "audit": []}.get(script, ["split=color_object"])
    if script == "create_base":
        needed = []
    assert load(script, ["local=none", *needed, f"{key}={2**64 - 1}"], check_here=False)
    with pytest.raises(ToolkitError, match=rf"{key}={2**64}: it must be at least 0 and at most {2**64 - 1}\."):
        load(script, ["local=none", *needed, f"{key}={2**64}"], check_here=False)


def test_the_largest_seed_is_good_for_every_generator() -> None:
    numbers = generator(2**64 - 1, Stream.NOISE).random(3), torch_seed(2**64 - 1, Stream.MODEL_DROPOUT)
    torch.manual_seed(numbers[1])
    torch.manual_seed(2**64 - 1)
    assert not (numbers[0] == generator(0, Stream.NOISE).random(3)).any()


def test_other_scripts_have_keys_of_their_own() -> None:
    assert '"data_dir"' in refusal("prepare", "dataset.data_dir=x")
    assert "open_loop or closed_loop" in refusal("evaluate", "mode=closed")
    assert "list of train, seen, unseen" in refusal("evaluate", "parts=[val]")
    assert "other_image, blank_image" in refusal("evaluate", "ablations=[image]")
    assert "val_fraction=1.0" in refusal("prepare", "val_fraction=1")
    assert "val, train, conflict or unseen" in refusal("evaluate", "part=test")
    assert "bf16 or fp32" in refusal("create_base", "dtype=fp16")


@pytest.mark.parametrize("argument", ["episodes=5", "ablations=[zero_state]", "tracking.mode=offline", "policy=expert"])
def test_a_key_of_closed_loop_is_refused_in_open_loop(argument: str) -> None:
    name = argument.partition("=")[0]
    wanted = f"{name} acts on nothing with mode=open_loop. Add mode=closed_loop, or leave it out."
    assert refusal("evaluate", argument) == wanted
    assert compose("evaluate", argument, "mode=closed_loop", *(["render=none"] if name == "policy" else []))


def test_a_key_of_open_loop_is_refused_in_closed_loop() -> None:
    assert "batch_size acts on nothing with mode=closed_loop" in refusal("evaluate", "mode=closed_loop", "batch_size=4")
    both = ["seed=1", "data_dir=x", "checkpoint=y", "report_dir=z", "denoising_steps=2", "device=cpu"]
    compose("evaluate", "mode=closed_loop", *both)


def test_a_complete_site_is_accepted(site: Path) -> None:
    assert load("finetune", ["local=none", "model=tiny"]).model.name == "tiny"
    assert load("finetune", ["local=none"]).model.base == "nvidia/GR00T-N1.7-3B"


def test_missing_dataset_says_which_command_makes_it(site: Path) -> None:
    message = refused_here("finetune", "model=tiny", "split=color_size")
    assert "data/color_size/train does not exist" in message
    assert "python prepare_conflict_data.py split=color_size raw_dir=FOLDER data_dir=data" in message
    message = refused_here("finetune", "model=tiny", "split=mine", "split.instruction=pick it up")
    assert "split=mine 'split.instruction=pick it up'" in message


def test_data_dir_must_be_the_parent_of_the_splits(site: Path) -> None:
    message = refused_here("finetune", "model=tiny", "dataset.data_dir=data/color_object")
    assert f"dataset.data_dir={site / 'data'}" in message


def test_missing_base_says_how_to_get_it(site: Path) -> None:
    assert "With random weights: python -m finetune.create_base model=small" in refused_here("finetune", "model=small")
    message = refused_here("finetune", "model.base=checkpoints/released")
    assert "checkpoints/released does not exist" in message and "finetune.prefetch base=nvidia/GR00T-N1.7-3B" in message
    assert "model.base=./x/y" in refused_here("finetune", "model.base=./x/y")
    message = refused_here("finetune", "model=small", "model.base=example/checkpoints/instruction/color_object")
    assert "Finish the training that leaves its checkpoint there first" in message and "random weights" not in message
    (site / "empty" / "base").mkdir(parents=True)
    assert "has no config.json" in refused_here("finetune", "model.base=empty/base")


MISTYPED = {
    "model.base=checkpoints/base/tny": ("finetune", "checkpoints/base/tiny"),
    "model.base=checkpoints/bse/tiny": ("finetune", "checkpoints/base/tiny"),
    "dataset.mixture=[data/colr_object/train:2]": ("finetune", "data/color_object/train"),
    "checkpoint=checkpoint/base/tinny": ("evaluate", "checkpoints/base/tiny"),
}


@pytest.mark.parametrize("typed", MISTYPED)
def test_a_mistyped_folder_is_not_taken_for_a_hub_id(typed: str, site: Path) -> None:
    config_name, meant = MISTYPED[typed]
    own = ["model=tiny"] if config_name == "finetune" else []
    assert "does not exist" in (message := refused_here(config_name, *own, typed))
    assert f'Did you mean "{meant}"?' in message


def test_folders_must_not_meet(site: Path) -> None:
    assert "are the same folder" in refused_here("finetune", "model=tiny", "run_dir=out", "output_dir=out")
    assert "lies inside run_dir" in refused_here("finetune", "model=tiny", "run_dir=out", "output_dir=out/final")
    assert "lies inside output_dir" in refused_here("finetune", "model=tiny", "run_dir=out/run", "output_dir=out")
    assert "model.base" in refused_here("finetune", "model=tiny", "output_dir=checkpoints/base")
    assert "the dataset" in refused_here("finetune", "model=tiny", "run_dir=data")
    assert "the dataset" in refused_here("finetune", "model=tiny", "run_dir=data/color_object/runs")
    assert "the dataset" in refused_here("evaluate", "checkpoint=checkpoints/base/tiny", "report_dir=data")


def test_a_file_in_the_way_is_named(site: Path) -> None:
    (site / "taken").write_text("")
    assert "is a file, not a folder" in refused_here("finetune", "model=tiny", "run_dir=taken/run")


@pytest.mark.parametrize(
    "processes, arguments, parts",
    [
        (3, [], ("=32 is no multiple of 3 (3 processes)", "30 or 33")),
        (4, ["train.micro_batch_size=3"], ("12 (4 processes x train.micro_batch_size=3)", "24 or 36", "=2 or 4")),
        (1, ["train.micro_batch_size=5"], ("5 (1 process x train.micro_batch_size=5)", "30 or 35")),
        (64, [], ("train.global_batch_size=64",)),
    ],
)
def test_a_batch_that_does_not_divide_names_the_nearest(site, monkeypatch, processes, arguments, parts) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    message = refused_here("finetune", "model=tiny", *arguments)
    assert all(part in message for part in parts)


def test_a_batch_that_divides_is_accepted(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert load("finetune", ["local=none", "model=tiny", "train.micro_batch_size=4"]).train.micro_batch_size == 4


def test_one_process_engine_is_refused_under_torchrun(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "engine=ddp" in refused_here("finetune", "model=tiny", "engine=single")
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert 'WORLD_SIZE is "two"' in refused_here("finetune", "model=tiny")


def test_zero2_without_deepspeed_says_what_to_install(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as if it were not installed
    assert "pip install '.[deepspeed]' -c constraints.txt (or use engine=fsdp2, or ddp)" in refused_here(
        "finetune", "model=tiny", "engine=zero2_bf16"
    )


@pytest.mark.parametrize("half", ["train.early_draws=3", "train.early_frames=12"])
def test_half_of_what_early_draws_need_is_refused(site: Path, half: str) -> None:
    assert "acts on nothing. Give both" in refused_here("finetune", "model=tiny", half)
    load("finetune", ["local=none", "model=tiny", "train.early_draws=3", "train.early_frames=12"])


def test_a_rate_of_a_frozen_backbone_is_refused(site: Path) -> None:
    rate = "train.backbone_learning_rate=1e-5"
    assert "acts on nothing" in refused_here("finetune", "model=tiny", rate)
    load("finetune", ["local=none", "model=tiny", rate, "train.tune.visual=true"])


@pytest.mark.parametrize("engine", ["fsdp2", pytest.param("zero2", marks=needs_deepspeed)])
def test_moments_are_divided_or_shrunk_but_not_both(engine: str, site: Path) -> None:
    message = refused_here("finetune", "model=tiny", f"engine={engine}", "train.optimizer=adamw_8bit")
    assert "engine=ddp, or train.optimizer=adamw" in message


@pytest.mark.parametrize("part", ["tune.llm=true", "tune.visual=true", "tune.top_llm_layers=1", "lora.rank=4"])
def test_fsdp2_trains_the_head_only(part: str, site: Path) -> None:
    assert "divides the action head" in refused_here("finetune", "model=tiny", "engine=fsdp2", f"train.{part}")


def test_missing_recordings_say_where_they_are(site: Path) -> None:
    assert "There is no folder conflict_maniskill" in refused_here("prepare")
    (site / "raw" / "color_object" / "train").mkdir(parents=True)
    load("prepare", ["local=none", "raw_dir=raw"])
    assert f"raw_dir={site / 'raw'}." in refused_here("prepare", "raw_dir=raw/color_object")
    message = refused_here("prepare", "split=color_size", "raw_dir=raw/color_object")
    assert f"raw_dir={site / 'raw'} split=color_object" in message
    message = refused_here("prepare", "split=colour_object", "split.instruction=x", "raw_dir=raw")
    assert 'Did you mean "color_object"?' in message
    assert "are the same folder" in refused_here("prepare", "raw_dir=raw", "data_dir=raw")


def test_evaluation_needs_a_finished_checkpoint(site: Path) -> None:
    assert "python launch_finetune_local.py split=color_object" in refused_here("evaluate")
    (site / "runs" / "color_object").mkdir(parents=True)
    assert "output_dir of a fine-tune" in refused_here("evaluate", "checkpoint=runs/color_object")
    load("evaluate", ["local=none", "checkpoint=checkpoints/base/tiny", "part=conflict"])
    shutil.rmtree(site / "data" / "color_object" / "conflict")
    message = refused_here("evaluate", "checkpoint=checkpoints/base/tiny", "part=conflict")
    assert "data/color_object/conflict does not exist" in message


def test_a_base_is_made_in_an_empty_local_folder(site: Path) -> None:
    assert "is a Hugging Face id" in refused_here("create_base", "model=released")
    assert "overwrite=true" in refused_here("create_base", "model=tiny")
    load("create_base", ["local=none", "model=tiny", "overwrite=true"])
    load("create_base", ["local=none", "model=small"])


def test_run_main_reports_errors_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_main(lambda config: None, "finetune", ["train.lr=1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == 'error: There is no key "train.lr". Did you mean "train.learning_rate"?\n'


def test_run_main_ends_quietly_on_ctrl_c_and_lets_bugs_through(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    def buggy(config: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as stop:
        run_main(interrupted, "finetune", ["local=none", "model=tiny"])
    assert stop.value.code == 130 and "interrupted" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_main(buggy, "finetune", ["local=none", "model=tiny"])


def test_under_torchrun_the_other_ranks_let_the_first_one_speak(monkeypatch, capsys) -> None:
    waited: list[float] = []
    monkeypatch.setattr("toolkit.command_line.time.sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit):
            run_main(lambda config: None, "finetune", ["train.lr=1"])
        assert waited == ([] if rank == "0" else [SPEAK_AFTER_SECONDS])
    assert capsys.readouterr().err.startswith('error: There is no key "train.lr"')


def test_an_evaluation_at_the_last_step_is_one_and_after_it_none() -> None:
    check_evaluation(compose("finetune", "train.max_steps=10", "train.eval_steps=10", "train.patience=2"))
    with pytest.raises(ToolkitError, match=r"is more than train\.max_steps=10"):
        check_evaluation(compose("finetune", "train.max_steps=10", "train.eval_steps=11"))
    with pytest.raises(ToolkitError, match=r"train\.export=best needs evaluations"):
        check_evaluation(compose("finetune", "train.export=best"))


@pytest.mark.parametrize("varied", ["crop_fraction=0.9", "random_rotation_angle=5", "color_jitter.hue=0.1"])
def test_cached_features_need_a_number_of_views_for_whatever_is_varied(varied: str) -> None:
    still = ["augment.crop_fraction=1", "augment.random_rotation_angle=null"]
    still += [] if varied.startswith("color") else ["augment.color_jitter=null"]
    own = [setting for setting in still if not setting.startswith(f"augment.{varied.split('=')[0]}=")]
    config = compose("finetune", "train.features=cached", *own, f"augment.{varied}")
    with pytest.raises(ToolkitError, match=r"Say augment\.views=4"):
        check_cache(config)
    config.augment.views = 1
    check_cache(config)


def test_cached_features_of_images_that_are_not_varied_need_no_number_of_views() -> None:
    check_cache(compose("finetune", "train.features=cached", "augment=none"))


def test_whole_batches_are_accepted_and_the_nearest_is_never_none() -> None:
    check_batch(24, 3, 4)
    check_batch(24, None, 24)
    with pytest.raises(ToolkitError, match=r"train\.global_batch_size=8\.$"):
        check_batch(5, None, 8)


def test_a_hub_id_is_no_folder_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    bases = ("nvidia/GR00T-N1.7-3B", "nvidia/GR00T-suite/folder", "nvidia/other/folder", "owner/name", "runs/x", "name")
    assert [is_hub_id(base) for base in bases] == [True, True, False, False, False, False]
