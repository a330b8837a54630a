"""Configuration: everything shipped composes, everything wrong is refused with the key, the place and the remedy."""

from __future__ import annotations

import itertools
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.checkout import CHECKOUT, CONFIG_DIR
from finetune.config import (
    AugmentConfig,
    BackboneConfig,
    CreateBaseConfig,
    EvaluateConfig,
    FinetuneConfig,
    PrepareConfig,
    TrainConfig,
    load,
)
from finetune.config.keys import keys_of, nearest
from finetune.config.schema import SCRIPTS
from finetune.script import SPEAK_AFTER_SECONDS, run_main
from gr00t.errors import ToolkitError

FACTORS = ("color", "object", "size", "position")
SPLITS = [f"{cue}_{lure}" for cue, lure in itertools.permutations(FACTORS, 2)]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def compose(config_name: str, *argv: str, config_dir: Path = CONFIG_DIR):
    """The configuration without the checks of this machine, and without the site's own defaults."""
    own = [] if any(argument.startswith("local=") for argument in argv) else ["local=none"]
    return load(config_name, [*own, *argv], config_dir=config_dir, check_here=False)


def refusal(config_name: str, *argv: str, **options) -> str:
    with pytest.raises(ToolkitError) as error:
        compose(config_name, *argv, **options)
    return str(error.value)


@pytest.fixture(autouse=True)
def outside_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def own_configs(tmp_path: Path) -> Path:
    """A copy of configs/ to add files to, without those of this site."""
    target = tmp_path / "configs"
    shutil.copytree(CONFIG_DIR, target, ignore=lambda folder, names: [n for n in names if Path(folder).name == "local"])
    (target / "local").mkdir(exist_ok=True)
    return target


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


# --- what ships ---


COMBINATIONS = list(
    itertools.product(
        options("model"), options("engine"), options("tracking"), options("augment"), [*options("experiment"), "null"]
    )
)


@pytest.mark.parametrize("model, engine, tracking, augment, experiment", COMBINATIONS)
def test_every_shipped_combination_composes(model, engine, tracking, augment, experiment) -> None:
    chosen = {"model": model, "engine": engine, "tracking": tracking, "augment": augment, "experiment": experiment}
    config = compose("finetune", *(f"{group}={option}" for group, option in chosen.items()))
    assert isinstance(config, FinetuneConfig)
    assert (config.model.name, config.engine.name, config.tracking.name) == (model, engine, tracking)
    assert (config.augment.color_jitter is None) == (augment == "none")


@pytest.mark.parametrize("split", SPLITS)
def test_every_ordered_pair_of_cues_is_a_split(split: str) -> None:
    config = compose("prepare", f"split={split}")
    assert isinstance(config, PrepareConfig)
    assert config.split.name == split
    assert config.split.instruction == f"pick up the {split.split('_')[0]}-matching object"


def test_no_other_split_ships() -> None:
    assert options("split") == sorted([*SPLITS, "custom"])


@pytest.mark.parametrize("model", options("model"))
def test_every_model_can_be_made(model: str) -> None:
    config = compose("create_base", f"model={model}")
    assert isinstance(config, CreateBaseConfig)
    assert config.out == config.model.base


def test_evaluation_follows_the_split() -> None:
    config = compose("evaluate", "split=size_color")
    assert isinstance(config, EvaluateConfig)
    assert (config.checkpoint, config.report_dir) == ("checkpoints/size_color", "reports/size_color")


def test_defaults_are_the_released_model_on_color_object_with_ddp_and_wandb() -> None:
    config = compose("finetune")
    assert (config.model.name, config.split.name) == ("released", "color_object")
    assert (config.engine.name, config.tracking.name) == ("ddp", "wandb")
    assert (config.run_dir, config.output_dir) == ("runs/color_object", "checkpoints/color_object")


def test_default_files_say_what_the_dataclasses_say() -> None:
    config = compose("finetune")
    assert config.train == TrainConfig()
    assert config.augment == AugmentConfig()


def test_experiment_conflict_is_the_published_recipe() -> None:
    config = compose("finetune", "experiment=conflict")
    train, tune = config.train, config.train.tune
    assert (train.max_steps, train.global_batch_size, train.learning_rate) == (10_000, 32, 1e-4)
    assert (train.warmup_ratio, train.weight_decay, train.max_grad_norm) == (0.05, 1e-5, 1.0)
    assert (train.adam_beta1, train.adam_beta2, train.adam_eps, train.seed) == (0.9, 0.999, 1e-8, 42)
    assert (tune.projector, tune.diffusion_model, tune.vlln) == (True, True, True)
    assert (tune.llm, tune.visual, tune.top_llm_layers) == (False, False, 0)
    assert (config.model.base, config.dataset.embodiment_tag) == ("nvidia/GR00T-N1.7-3B", "new_embodiment")
    jitter = config.augment.color_jitter
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.3, 0.4, 0.5, 0.08)
    assert (config.augment.crop_fraction, config.augment.state_dropout) == (0.95, 0.2)


def test_released_architecture_is_the_released_one() -> None:
    shape = compose("finetune").model.architecture
    dit, attention = shape.diffusion_model, shape.vl_self_attention
    assert (shape.select_layer, shape.action_horizon, shape.max_num_embodiments) == (16, 40, 32)
    assert (shape.max_state_dim, shape.max_action_dim) == (132, 132)
    assert (shape.hidden_size, shape.input_embedding_dim, shape.backbone_embedding_dim) == (1024, 1536, 2048)
    assert (dit.num_layers, dit.num_attention_heads, dit.attention_head_dim, dit.output_dim) == (32, 32, 48, 1024)
    assert (attention.num_layers, attention.num_attention_heads, attention.attention_head_dim) == (4, 32, 64)
    assert shape.backbone is None


def test_demo_stays_below_its_folder_and_needs_neither_gpu_nor_account() -> None:
    config = compose("finetune", "experiment=demo")
    for folder in (config.run_dir, config.output_dir, config.dataset.data_dir, config.model.base):
        assert folder.startswith("demo/")
    assert (config.model.name, config.device, config.tracking.mode) == ("tiny", "cpu", "offline")


def test_composing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose("finetune", "experiment=conflict")
    assert list(tmp_path.iterdir()) == []


# --- values on the command line ---


def test_a_chosen_group_wins_over_what_the_experiment_says_of_it() -> None:
    config = compose("finetune", "experiment=demo", "model=small", "split=size_color")
    assert (config.model.base, config.split.name) == ("checkpoints/base/small", "size_color")
    assert (config.train.max_steps, config.output_dir) == (300, "demo/checkpoints/size_color")


def test_types_are_those_of_the_dataclass() -> None:
    config = compose(
        "finetune", "train.max_steps=7", "train.learning_rate=1e-3", "train.tune.llm=yes", "tracking.tags=[a, b]",
        "train.micro_batch_size=4", "augment.color_jitter=null", "tracking.run_name=null",
    )  # fmt: skip
    assert config.train.max_steps == 7 and config.train.learning_rate == 1e-3 and config.train.tune.llm is True
    assert config.tracking.tags == ["a", "b"] and config.train.micro_batch_size == 4
    assert config.augment.color_jitter is None and config.tracking.run_name is None


@pytest.mark.parametrize(
    "instruction", ["pick up: the red, or the blue one", "don't touch x=3", "grab [the] {cube} (now)"]
)
def test_texts_need_no_quoting_beyond_the_shells(instruction: str) -> None:
    config = compose("prepare", "split=my_split", f"split.instruction={instruction}")
    assert config.split.instruction == instruction


def test_one_pair_of_quotes_is_taken_off() -> None:
    assert compose("prepare", "split=mine", "split.instruction='pick it up'").split.instruction == "pick it up"


def test_interpolation_and_home_folder_are_resolved() -> None:
    config = compose("finetune", "run_dir=~/runs/${model.name}/${split.name}")
    assert config.run_dir == str(Path.home() / "runs/released/color_object")


def test_a_split_of_ones_own_needs_no_file() -> None:
    config = compose("finetune", "split=my_split", "split.instruction=pick up the heavy object")
    assert (config.split.name, config.split.instruction) == ("my_split", "pick up the heavy object")
    assert config.output_dir == "checkpoints/my_split"


def test_a_split_of_ones_own_may_have_a_file(own_configs: Path) -> None:
    (own_configs / "split" / "mine.yaml").write_text("name: mine\ninstruction: pick up the heavy object\n")
    assert compose("prepare", "split=mine", config_dir=own_configs).split.instruction == "pick up the heavy object"


def test_a_key_given_twice_alike_is_no_conflict() -> None:
    assert compose("finetune", "train.seed=3", "train.seed=3").train.seed == 3


# --- refusals that need only the configuration ---


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
    "tracking=null": ("tracking=null", "none, wandb"),
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
    "train.precision=fp16": ("train.precision=fp16", "auto, bf16 or fp32"),
    "train.resume=always": ("train.resume=always", "auto or never"),
    "dataset.tail=repeat": ("dataset.tail=repeat", "mask or drop"),
    "dataset.embodiment_tag=panda": ("dataset.embodiment_tag=panda", "new_embodiment"),
    "augment.crop_fraction=0": ("augment.crop_fraction=0", "more than 0 and at most 1"),
    "augment.crop_fraction=1.1": ("at most 1",),
    "augment.color_jitter.hue=0.6": ("augment.color_jitter.hue=0.6", "at most 0.5"),
    "augment.state_dropout=1": ("augment.state_dropout=1", "less than 1"),
    "augment.views=0": ("augment.views=0", "at least 1"),
    "augment.random_rotation_angle=0": ("augment.random_rotation_angle=0", "more than 0"),
    "device=gpu": ("device=gpu", "auto, cpu or cuda"),
    "engine.name=fsdp": ("engine.name=fsdp", "single or ddp"),
    "tracking.mode=of": ("tracking.mode=of", "auto, online or offline"),
    "run_dir=runs/${split.nam}": ("run_dir cannot be resolved", "split.nam"),
    "run_dir=${": ("run_dir",),
    "run_dir=a\nb": ("run_dir='a\\nb'", "line breaks"),
    "train.num_workers=???": ("train.num_workers has no value",),
    "local=elsewhere": ("local=elsewhere", "configs/local/elsewhere.yaml does not exist"),
    "train.tune.top_llm_layers=17": ("train.tune.top_llm_layers=17", "keeps 16"),
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


def test_other_scripts_have_keys_of_their_own() -> None:
    assert '"data_dir"' in refusal("prepare", "dataset.data_dir=x")
    assert "open_loop" in refusal("evaluate", "mode=closed_loop")
    assert "val_fraction=1.0" in refusal("prepare", "val_fraction=1")
    assert "val, train or conflict" in refusal("evaluate", "part=test")
    assert "bf16 or fp32" in refusal("create_base", "dtype=fp16")


def test_mistakes_in_files_are_named_with_the_file(own_configs: Path) -> None:
    mine = own_configs / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\ntrain:\n  lr: 1e-3\n")
    message = refusal("finetune", "experiment=mine", config_dir=own_configs)
    assert message.startswith("configs/experiment/mine.yaml: ") and '"train.learning_rate"' in message
    mine.write_text("# @package _global_\ntrain:\n  max_steps: many\n")
    message = refusal("finetune", "experiment=mine", config_dir=own_configs)
    assert message == 'configs/experiment/mine.yaml: train.max_steps expects int, got "many".'
    (own_configs / "augment" / "mine.yaml").write_text("view: 3\n")
    message = refusal("finetune", "augment=mine", config_dir=own_configs)
    assert message.startswith("configs/augment/mine.yaml: ") and '"augment.views"' in message


def test_broken_files_are_refused_in_one_line(own_configs: Path) -> None:
    (own_configs / "train" / "mine.yaml").write_text("max_steps: [1\n")
    assert "mine.yaml" in refusal("finetune", "train=mine", config_dir=own_configs)
    (own_configs / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: big\n")
    message = refusal("finetune", "experiment=mine", config_dir=own_configs)
    assert "experiment=mine cannot be composed" in message and "\n" not in message


def test_a_model_file_that_lacks_a_key_is_refused(own_configs: Path) -> None:
    (own_configs / "model" / "mine.yaml").write_text("name: mine\nbase: x/y\n")
    assert "model.architecture" in refusal("finetune", "model=mine", config_dir=own_configs)


# --- site defaults ---


def test_local_defaults_reach_every_script_and_yield_to_the_command_line(own_configs: Path) -> None:
    (own_configs / "local" / "default.yaml").write_text(
        "tracking: none\ndata_dir: /scratch/data\ndataset:\n  data_dir: /scratch/data\ntrain:\n  num_workers: 8\n"
        "model:\n  base: /scratch/base\n"
    )

    def here(config_name: str, *argv: str):
        return load(config_name, argv, config_dir=own_configs, check_here=False)

    config = here("finetune", "experiment=conflict")
    assert (config.tracking.name, config.dataset.data_dir) == ("none", "/scratch/data")
    assert (config.train.num_workers, config.model.base) == (8, "/scratch/base")
    assert here("prepare").data_dir == here("evaluate").data_dir == "/scratch/data"
    assert here("create_base").model.base == "/scratch/base"
    config = here("finetune", "tracking=wandb", "train.num_workers=1")
    assert (config.tracking.name, config.train.num_workers) == ("wandb", 1)
    assert here("finetune", "local=none").dataset.data_dir == "data"


def test_another_local_file_can_be_named(own_configs: Path) -> None:
    (own_configs / "local" / "cluster.yaml").write_text("train: {num_workers: 5}\n")
    assert compose("finetune", "local=cluster", config_dir=own_configs).train.num_workers == 5


@pytest.mark.parametrize(
    "content, parts",
    [
        ("trian: {num_workers: 8}\n", ("configs/local/default.yaml: ", '"train.num_workers"')),
        ("train: {num_workers: many}\n", ("configs/local/default.yaml: ", "train.num_workers expects int")),
        ("tracking: nothing\n", ("tracking=nothing",)),
        ("train: [\n", ("default.yaml is not valid YAML",)),
        ("- a\n", ("KEY: VALUE",)),
    ],
)
def test_mistakes_in_local_defaults_are_refused_by_every_script(own_configs: Path, content: str, parts) -> None:
    (own_configs / "local" / "default.yaml").write_text(content)
    for name in ("finetune",) if "tracking" in content or "many" in content else SCRIPTS:
        with pytest.raises(ToolkitError) as error:
            load(name, [], config_dir=own_configs, check_here=False)
        assert all(part in str(error.value) for part in parts)


def test_the_example_in_the_local_readme_is_valid(own_configs: Path) -> None:
    text = (CONFIG_DIR / "local" / "README.md").read_text()
    (own_configs / "local" / "example.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    for name in SCRIPTS:
        compose(name, "local=example", config_dir=own_configs)


# --- refusals that look at this machine ---


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
    assert "python -m finetune.create_base model=small" in refused_here("finetune", "model=small")
    message = refused_here("finetune", "model.base=checkpoints/released")
    assert "checkpoints/released does not exist" in message and "hf download nvidia/GR00T-N1.7-3B" in message
    assert "model.base=./x/y" in refused_here("finetune", "model.base=./x/y")
    (site / "empty" / "base").mkdir(parents=True)
    assert "has no config.json" in refused_here("finetune", "model.base=empty/base")


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


# --- help, --cfg, entry scripts ---


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_lists_every_key_and_group(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(name, ["--help", "nonsense"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for key in keys_of(SCRIPTS[name].config).values():
        assert f"  {key.name}:" in text if key.is_section else f"  {key.name}=" in text
        assert key.meaning.split()[0] in text or key.is_section
    assert "Groups" in text and "Examples:" in text and "--cfg" in text


def test_help_shows_defaults_types_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("finetune", ["-h"])
    text = " ".join(capsys.readouterr().out.split())
    assert "train.max_steps=10000 optimizer steps (int, at least 1)" in text
    assert "train.max_grad_norm=1.0" in text and "train.tune.llm=false" in text
    assert "released*, small, tiny" in text and "conflict, demo" in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_in_the_help_compose(name: str) -> None:
    for example in SCRIPTS[name].examples:
        compose(name, *shlex.split(example))


def test_cfg_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load("finetune", ["local=none", "split=size_color", "--cfg"])
    assert stop.value.code == 0
    assert "run_dir: runs/size_color\n" in capsys.readouterr().out


def test_every_field_has_a_meaning() -> None:
    for script in SCRIPTS.values():
        for key in keys_of(script.config).values():
            assert key.meaning and (not key.is_section or key.type.__doc__)


def test_nearest_prefers_the_same_last_part_then_initials() -> None:
    names = ["train.learning_rate", "train.tune.llm", "train.max_steps"]
    assert nearest("model.max_steps", names) == "train.max_steps"
    assert nearest("train.lr", names) == "train.learning_rate"
    assert nearest("tran.max_step", names) == "train.max_steps"
    assert nearest("qqqqqq", names) is None


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
    monkeypatch.setattr("finetune.script.time.sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit):
            run_main(lambda config: None, "finetune", ["train.lr=1"])
        assert waited == ([] if rank == "0" else [SPEAK_AFTER_SECONDS])
    assert capsys.readouterr().err.startswith('error: There is no key "train.lr"')


def python(*arguments: str, cwd: Path = CHECKOUT, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True)


HEAVY = """
import sys
from finetune.config import load
from gr00t.errors import ToolkitError
for argv in (["train.lr=1"], []):
    try:
        load("finetune", ["local=none", *argv], check_here=bool(argv))
    except ToolkitError as error:
        print(error)
print([name for name in ("torch", "transformers", "datasets", "wandb", "matplotlib") if name in sys.modules])
"""


def test_neither_a_refusal_nor_a_valid_configuration_imports_torch() -> None:
    result = python("-c", HEAVY)
    assert result.returncode == 0, result.stderr
    assert "train.learning_rate" in result.stdout and result.stdout.endswith("[]\n")


@pytest.mark.parametrize("script", ["prepare_conflict_data.py", "launch_finetune_local.py", "evaluate_conflict.py"])
def test_entry_scripts_refuse_without_a_traceback(script: str, tmp_path: Path) -> None:
    result = python(str(CHECKOUT / script), "splitt=color_object", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, 'error: There is no key "splitt". Did you mean "split"?\n')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["prepare_conflict_data.py", "launch_finetune_local.py", "evaluate_conflict.py"])
def test_entry_scripts_show_their_command(script: str) -> None:
    text = (CHECKOUT / script).read_text()
    assert f"{script} split=" in text.split('"""')[1]


def test_another_gr00t_package_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "gr00t").mkdir()
    (tmp_path / "gr00t" / "__init__.py").write_text("")
    code = "from finetune.script import SPEAK_AFTER_SECONDS, run_main; run_main(print, 'finetune', [])"
    result = python("-P", "-c", code, PYTHONPATH=f"{tmp_path}:{CHECKOUT}")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for part in ("another package named gr00t", str(tmp_path / "gr00t"), "pip uninstall gr00t", "PYTHONPATH="):
        assert part in result.stderr


def test_typed_sections_are_dataclasses() -> None:
    assert isinstance(compose("create_base", "model=tiny").model.architecture.backbone, BackboneConfig)
