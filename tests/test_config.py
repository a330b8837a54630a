"""Configuration: everything that ships composes, values get their types, help lists every key."""

from __future__ import annotations

import itertools
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from config_calls import compose, refusal

from data_prep import PrepareConfig
from finetune.create_base import CreateBaseConfig
from finetune.recipe import FinetuneConfig, datasets
from finetune.recipe.model_config import BackboneConfig
from finetune.recipe.train_config import AugmentConfig, TrainConfig
from finetune.slurm.launch_request import read as read_request
from gr00t.errors import ToolkitError
from simulation.closed_loop import EvaluateConfig
from simulation.scenes.suites import INSTRUCTION
from toolkit.composition import COMMANDS, default_choices, register
from toolkit.composition import options as options_of
from toolkit.configuration import load
from toolkit.declaration import keys_of, nearest
from toolkit.installation import CHECKOUT, CONFIG_DIR
from toolkit.reference import markdown

FACTORS = ("color", "object", "size", "position")

SPLITS = [f"{cue}_{lure}" for cue, lure in itertools.permutations(FACTORS, 2)]


def options(group: str) -> list[str]:
    register("finetune", CONFIG_DIR)
    return options_of(group, CONFIG_DIR)


COMBINATIONS = list(
    itertools.product(
        options("model"), options("engine"), options("tracking"), options("augment"), [*options("experiment"), "null"]
    )
)


def quick() -> set[tuple[str, ...]]:
    """A few of them, in which every two choices of different groups still meet."""
    met: set[tuple[tuple[int, str], ...]] = set()
    found = set()
    for chosen in random.Random(0).sample(COMBINATIONS, len(COMBINATIONS)):
        pairs = set(itertools.combinations(enumerate(chosen), 2))
        if not pairs <= met:
            met |= pairs
            found.add(chosen)
    return found


QUICK = quick()


@pytest.mark.parametrize(
    "model, engine, tracking, augment, experiment",
    [pytest.param(*chosen, marks=() if chosen in QUICK else pytest.mark.long) for chosen in COMBINATIONS],
)
def test_every_shipped_combination_composes(model, engine, tracking, augment, experiment) -> None:
    chosen = {"model": model, "engine": engine, "tracking": tracking, "augment": augment, "experiment": experiment}
    config = compose("finetune", *(f"{group}={option}" for group, option in chosen.items()))
    assert isinstance(config, FinetuneConfig)
    assert (config.model.name, config.engine.name, config.tracking.name) == (model, engine.split("_")[0], tracking)
    assert (config.augment.color_jitter is None) == (augment == "none")


@pytest.mark.parametrize("split", SPLITS)
def test_every_ordered_pair_of_cues_is_a_split(split: str) -> None:
    config = compose("prepare", f"split={split}")
    assert isinstance(config, PrepareConfig)
    assert config.split.name == split
    assert config.split.instruction == f"pick up the {split.split('_')[0]}-matching object"


def test_no_other_split_ships() -> None:
    assert options("split") == [*sorted([*SPLITS, "custom"]), *sorted(INSTRUCTION.splits)]


@pytest.mark.parametrize("split", INSTRUCTION.splits)
def test_a_split_of_the_instruction_suite_is_complete_by_its_name(split: str) -> None:
    config = compose("prepare", f"split={split}")
    assert isinstance(config, PrepareConfig)
    assert (config.split.name, config.split.instruction, config.split.suite) == (split, None, "instruction")


@pytest.mark.parametrize("model", options("model"))
def test_every_model_can_be_made(model: str) -> None:
    config = compose("create_base", f"model={model}")
    assert isinstance(config, CreateBaseConfig)
    assert config.out == config.model.base


def test_evaluation_follows_the_split() -> None:
    config = compose("evaluate", "split=size_color")
    assert isinstance(config, EvaluateConfig)
    assert (config.checkpoint, str(config.report_folder)) == ("checkpoints/size_color", "reports/size_color/val")
    closed = compose("evaluate", "split=size_color", "mode=closed_loop")
    assert str(closed.report_folder) == "reports/size_color/closed_loop"
    assert str(compose("evaluate", "report_dir=elsewhere").report_folder) == "elsewhere"


def test_defaults_are_the_released_model_on_color_object_with_ddp_and_wandb() -> None:
    config = compose("finetune")
    assert (config.model.name, config.split.name) == ("released", "color_object")
    assert (config.engine.name, config.tracking.name) == ("ddp", "wandb")
    assert (config.run_dir, config.output_dir) == ("runs/color_object", "checkpoints/color_object")


def test_defaults_of_the_recipe_are_those_of_the_dataclasses() -> None:
    config = compose("finetune")
    assert config.train == TrainConfig()
    assert config.augment == AugmentConfig()


def test_the_default_recipe_chosen_after_an_experiment_leaves_nothing_of_it() -> None:
    config = compose("finetune", "experiment=scratch", "train=default", "augment=default")
    assert config.train == TrainConfig() and config.augment == AugmentConfig()
    assert config.dataset.data_dir == "example/data"


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


@pytest.mark.parametrize("others", [(), ("experiment=conflict", "train=default")])
def test_zero2_bf16_is_zero2_with_bf16_forward_passes(others: tuple[str, ...]) -> None:
    config = compose("finetune", *others, "engine=zero2_bf16")
    assert (config.engine.name, config.train.precision) == ("zero2", "bf16")


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


def test_a_chosen_group_wins_over_what_the_experiment_says_of_it() -> None:
    config = compose("finetune", "experiment=demo", "model=small", "split=size_color")
    assert (config.model.base, config.split.name) == ("checkpoints/base/small", "size_color")
    assert (config.train.max_steps, config.output_dir) == (400, "demo/checkpoints/size_color")


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


@pytest.mark.parametrize(
    ("typed", "folders"),
    [
        ("[a:2,b]", ["a:2", "b"]),
        ("[data/[x]/train:2, b]", ["data/[x]/train:2", "b"]),
        ("['data/x, y/train:2',b:0.5]", ["data/x, y/train:2", "b:0.5"]),
        ("[/data/a:b/train:3]", ["/data/a:b/train:3"]),
        ("[data/(new) {1}/train]", ["data/(new) {1}/train"]),
    ],
)
def test_a_mixture_names_folders_with_brackets_commas_and_colons(typed: str, folders: list[str]) -> None:
    assert compose("finetune", f"dataset.mixture={typed}").dataset.mixture == folders


def test_one_pair_of_quotes_is_taken_off() -> None:
    assert compose("prepare", "split=mine", "split.instruction='pick it up'").split.instruction == "pick it up"


def test_interpolation_and_home_folder_are_resolved() -> None:
    config = compose("finetune", "run_dir=~/runs/${model.name}/${split.name}")
    assert config.run_dir == str(Path.home() / "runs/released/color_object")


def test_variables_in_folders_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/disk/me")
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    config = compose(
        *("finetune", "run_dir=$SCRATCH/runs/${split.name}", "output_dir=${SCRATCH}/done", "model.base=$SCRATCH/base"),
        *("dataset.mixture=[$SCRATCH/a/train:2,${SCRATCH}/b/train]", "cluster.setup=['export X=${SCRATCH%/}/x']"),
        "cache_dir=$SLURM_TMPDIR/cache",
    )
    assert (config.run_dir, config.output_dir) == ("/disk/me/runs/color_object", "/disk/me/done")
    assert config.model.base == "/disk/me/base" and config.cluster.setup == ["export X=${SCRATCH%/}/x"]
    assert [str(part.folder) for part in datasets(config)] == ["/disk/me/a/train", "/disk/me/b/train"]
    assert config.cache_dir == "$SLURM_TMPDIR/cache"  # which only a node may know


def test_a_variable_that_is_not_set_is_named_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "")
    for typed in ("run_dir=$SCRATCH/runs", "output_dir=${SCRATCH}/done", "dataset.mixture=[$SCRATCH/a/train]"):
        message = refusal("finetune", typed)
        assert message.startswith(typed.partition("=")[0]) and "the variable SCRATCH is not set here" in message
    monkeypatch.setenv("SCRATCH", "/disk")
    with pytest.raises(ToolkitError, match=r"cache_dir=\$NODE_DISK/x: the variable NODE_DISK is not set"):
        load("finetune", ["local=none", "cache_dir=$NODE_DISK/x"])


def test_a_split_of_ones_own_needs_no_file() -> None:
    config = compose("finetune", "split=my_split", "split.instruction=pick up the heavy object")
    assert (config.split.name, config.split.instruction) == ("my_split", "pick up the heavy object")
    assert config.output_dir == "checkpoints/my_split"


def test_a_key_given_twice_alike_is_no_conflict() -> None:
    assert compose("finetune", "train.seed=3", "train.seed=3").train.seed == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_key_and_group(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(name, ["--help", "nonsense"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for key in keys_of(COMMANDS[name].config).values():
        assert f"  {key.name}:" in text if key.is_section else f"  {key.name}=" in text
        assert key.meaning.split()[0] in text or key.is_section
    assert "Groups" in text and "Examples:" in text and "--cfg" in text


def test_help_shows_defaults_types_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("finetune", ["-h"])
    text = " ".join(capsys.readouterr().out.split())
    assert "train.max_steps=10000 optimizer steps (int, at least 1)" in text
    assert "train.max_grad_norm=1.0" in text and "train.tune.llm=false" in text
    assert "released*, scratch, small, tiny" in text and "conflict, demo, scratch" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_the_help_compose(name: str) -> None:
    for example in COMMANDS[name].examples:
        arguments = [argument for argument in shlex.split(example) if "=" in argument]
        read_request(["local=none", *arguments]) if name == "launch" else compose(name, *arguments)


def test_examples_in_the_help_can_be_typed() -> None:
    placeholders = [
        w for command in COMMANDS.values() for w in " ".join(command.calls).split() if w.isupper() or w[0] in "[|"
    ]
    assert not placeholders
    assert "python -m simulation.study strategy minutes=45" in COMMANDS["study"].calls


def test_cfg_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load("finetune", ["local=none", "split=size_color", "--cfg"])
    assert stop.value.code == 0
    assert "run_dir: runs/size_color\n" in capsys.readouterr().out


def test_cfg_says_where_each_value_was_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(CONFIG_DIR, configs)
    (configs / "local" / "mine.yaml").write_text("augment: none\ntracking: {run_name: mine, group: g}\n")
    text = "a long instruction, so long that it takes two lines of YAML: train: {max_steps: 3}, and more of it: seed: 4"
    arguments = ["local=mine", "experiment=demo", "split=mine", f"split.instruction={text}", "engine=zero2_bf16"]
    with pytest.raises(SystemExit):
        load("finetune", [*arguments, "tracking.tags=[a]", "tracking.group=h", "--cfg"], config_dir=configs)
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["split"]["instruction"] == text
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for line in (
        "name: mine # the command line",
        "max_steps: 400 # configs/experiment/demo.yaml",
        "precision: bf16 # configs/engine/zero2_bf16.yaml",
        "crop_fraction: 1.0 # configs/augment/none.yaml",
        "run_name: mine # configs/local/mine.yaml",
        "group: h # the command line",
        "base: demo/checkpoints/base # configs/experiment/demo.yaml",
        "tags: # the command line",
        "select_layer: 3 # configs/model/tiny.yaml",
        "save_steps: 200 # configs/experiment/demo.yaml",
        "keep_last: 2",
    ):
        assert line in lines
    with pytest.raises(SystemExit):
        load("finetune", ["local=none", "experiment=demo", "model=tiny", "--cfg"], config_dir=configs)
    assert "base: checkpoints/base/tiny  # configs/model/tiny.yaml" in capsys.readouterr().out


def test_the_reference_has_a_row_for_every_key_of_every_command() -> None:
    for name, command in COMMANDS.items():
        page = markdown(name)
        assert page.startswith(f"## {command.start}\n")
        rows = [line for line in page.splitlines() if line.startswith("| `")]
        keys = [key for key in keys_of(command.config).values() if not key.is_section]
        for key in keys:
            assert sum(row.startswith(f"| `{key.name}` | ") and key.meaning[:20] in row for row in rows) == 1
        assert len(rows) == len(keys) + page.count("| group |") + len(default_choices(name, CONFIG_DIR))


def test_every_field_has_a_meaning() -> None:
    for script in COMMANDS.values():
        for key in keys_of(script.config).values():
            assert key.meaning and (not key.is_section or key.type.__doc__)


def test_nearest_prefers_the_same_last_part_then_initials() -> None:
    names = ["train.learning_rate", "train.tune.llm", "train.max_steps"]
    assert nearest("model.max_steps", names) == "train.max_steps"
    assert nearest("train.lr", names) == "train.learning_rate"
    assert nearest("tran.max_step", names) == "train.max_steps"
    assert nearest("qqqqqq", names) is None


def python(*arguments: str, cwd: Path = CHECKOUT, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True)


HEAVY = """
import sys
from toolkit.configuration import load
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


HELP_OF_ALL = """
import contextlib, io, sys
from toolkit.composition import COMMANDS
from toolkit.configuration import load
for name in COMMANDS:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        load(name, ["--help"])
heavy = ("torch", "transformers", "datasets", "wandb", "matplotlib", "av", "cv2")
print([name for name in heavy if name in sys.modules])
"""


def test_no_commands_help_imports_what_is_slow() -> None:
    result = python("-c", HELP_OF_ALL)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


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
    code = "from toolkit.command_line import SPEAK_AFTER_SECONDS, run_main; run_main(print, 'finetune', [])"
    result = python("-P", "-c", code, PYTHONPATH=f"{tmp_path}:{CHECKOUT}")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for part in ("another package named gr00t", str(tmp_path / "gr00t"), "pip uninstall gr00t", "PYTHONPATH="):
        assert part in result.stderr


def test_typed_sections_are_dataclasses() -> None:
    assert isinstance(compose("create_base", "model=tiny").model.architecture.backbone, BackboneConfig)
