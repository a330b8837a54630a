"""Files of one's own under configs/: splits, recipes, site defaults, and the mistakes in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from config_calls import compose, refusal

from gr00t.errors import ToolkitError
from toolkit.composition import COMMANDS
from toolkit.configuration import load
from toolkit.installation import CONFIG_DIR


@pytest.fixture
def own_configs(tmp_path: Path) -> Path:
    """A copy of configs/ to add files to, without those of this site."""
    target = tmp_path / "configs"
    shutil.copytree(CONFIG_DIR, target, ignore=lambda folder, names: [n for n in names if Path(folder).name == "local"])
    for group in ("local", "train"):
        (target / group).mkdir(exist_ok=True)
    return target


def test_a_split_of_ones_own_may_have_a_file(own_configs: Path) -> None:
    (own_configs / "split" / "mine.yaml").write_text("name: mine\ninstruction: pick up the heavy object\n")
    assert compose("prepare", "split=mine", config_dir=own_configs).split.instruction == "pick up the heavy object"


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


def test_files_that_are_no_text_or_not_there_are_named(own_configs: Path) -> None:
    (own_configs / "experiment" / "mine.yaml").write_bytes(b"\xff\xfe train: 3")
    assert "experiment=mine cannot be composed" in refusal("finetune", "experiment=mine", config_dir=own_configs)
    (own_configs / "finetune.yaml").unlink()
    message = refusal("finetune", "model=tiny", config_dir=own_configs)
    assert "finetune.yaml does not exist: run the script of a complete checkout" in message


def test_a_model_file_that_lacks_a_key_is_refused(own_configs: Path) -> None:
    (own_configs / "model" / "mine.yaml").write_text("name: mine\nbase: x/y\n")
    assert "model.architecture" in refusal("finetune", "model=mine", config_dir=own_configs)


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


def test_a_group_that_is_typed_wins_over_local_values_and_an_experiment_does_not(own_configs: Path) -> None:
    (own_configs / "local" / "default.yaml").write_text(
        "tracking: {name: wandb, mode: offline, project: ours}\nmodel: {base: /scratch/base}\n"
        "train: {num_workers: 8}\naugment: none\n"
    )

    def here(config_name: str, *argv: str):
        return load(config_name, argv, config_dir=own_configs, check_here=False)

    config = here("finetune", "tracking=none", "model=tiny")
    assert (config.tracking.name, config.model.base) == ("none", "checkpoints/base/tiny")
    assert (config.tracking.project, config.train.num_workers) == (
        "ours",
        8,
    )  # options that were chosen say nothing of it
    assert here("finetune", "train=default").train.num_workers == here("finetune", "local=none").train.num_workers
    assert here("finetune", "model=tiny", "model.base=mine").model.base == "mine"
    assert here("create_base", "model=tiny").out == "checkpoints/base/tiny"
    config = here("finetune", "experiment=demo")
    assert (config.model.name, config.model.base, config.augment.crop_fraction) == ("tiny", "/scratch/base", 1.0)


def test_cfg_says_that_a_typed_group_set_it_last(own_configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_configs / "local" / "mine.yaml").write_text(
        "tracking: {name: wandb, project: ours}\ntrain: {num_workers: 8}\n"
    )
    for argv in (["tracking=none", "train=default"], ["tracking=none", "train=default", "experiment=demo"]):
        with pytest.raises(SystemExit):
            load("finetune", ["local=mine", *argv, "--cfg"], config_dir=own_configs)
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert "name: none # configs/tracking/none.yaml" in lines
        assert "project: ours # configs/local/mine.yaml" in lines
        assert [line for line in lines if line.startswith("num_workers: ")] == ["num_workers: 2"]


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
    for name in ("finetune",) if "tracking" in content or "many" in content else COMMANDS:
        with pytest.raises(ToolkitError) as error:
            load(name, [], config_dir=own_configs, check_here=False)
        assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize("example", [1, 2])
def test_the_examples_in_the_local_readme_are_valid(own_configs: Path, example: int) -> None:
    text = (CONFIG_DIR / "local" / "README.md").read_text()
    (own_configs / "local" / "example.yaml").write_text(text.split("```yaml\n")[example].split("```")[0])
    for name in COMMANDS:
        compose(name, "local=example", config_dir=own_configs)
