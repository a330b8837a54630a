"""modality_config=FILE: read once, by every command that needs it, with errors that name file, line and remedy."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from config_calls import compose
from recordings import INSTRUCTION, write_split
from robots import absolute_arm, robot_file
from test_training import config as training_config

import prepare_conflict_data
from conflict_panda_config import MODALITY_CONFIG
from data_prep import check
from data_prep.adopt import adopt
from finetune.recipe.recipe_identity import publishable
from finetune.slurm import attempt
from finetune.slurm.batches import batches_of
from finetune.slurm.launch_request import read
from finetune.slurm.submit import _run_records
from finetune.training.train import finetune
from gr00t.data.schema import (
    ActionConfig,
    ActionFormat,
    ActionRepresentation,
    ActionType,
    ModalityConfig,
    comparable,
    from_json,
    python_source,
    to_json,
)
from gr00t.errors import ToolkitError
from toolkit.configuration import as_yaml, load
from toolkit.installation import CHECKOUT
from toolkit.shared_keys import modality_configs, read_file

ROOMS = ("gr00t", "toolkit", "finetune", "data_prep", "simulation")


def test_no_module_imports_the_robot_by_name() -> None:
    modules = [path for room in ROOMS for path in (CHECKOUT / room).rglob("*.py")]
    modules += [path for path in CHECKOUT.glob("*.py") if path.name != "conflict_panda_config.py"]
    importing = re.compile(r"^\s*(from|import) conflict_panda_config", re.MULTILINE)
    assert not [str(path) for path in modules if importing.search(path.read_text())]


def test_the_checkouts_own_is_the_default_and_travels_as_a_plain_value() -> None:
    config = compose("finetune")
    assert config.dataset.modality_config is None and modality_configs(config.dataset) == MODALITY_CONFIG
    assert json.loads(json.dumps(config.dataset.modalities)) == config.dataset.modalities
    assert "modalities:" in as_yaml(config)


@pytest.mark.parametrize("name", ["finetune", "plan", "prepare", "adopt", "check", "release"])
def test_every_command_that_needs_a_robot_takes_its_file(name: str, tmp_path: Path) -> None:
    key = "dataset.modality_config" if name in ("finetune", "plan") else "modality_config"
    more = [f"dataset={tmp_path}"] if name == "adopt" else []
    config = compose(name, *more, f"{key}={absolute_arm(tmp_path / 'robot.py')}")
    section = config.dataset if name in ("finetune", "plan") else config
    actions = modality_configs(section)["action"].action_configs or []
    assert [action.rep for action in actions] == [ActionRepresentation.ABSOLUTE] * 2


def test_the_value_is_no_key_that_a_user_sets() -> None:
    for argument in ("dataset.modalities=x", "dataset.modalities.video=x"):
        with pytest.raises(ToolkitError, match="There is no key"):
            compose("finetune", argument)


def test_what_is_published_holds_the_value_and_no_place_of_this_machine(tmp_path: Path) -> None:
    config = compose("finetune", f"dataset.modality_config={absolute_arm(tmp_path / 'robot.py')}")
    dataset = publishable({"dataset": vars(config.dataset)})["dataset"]
    assert dataset["modality_config"] == "robot.py" and dataset["modalities"] == config.dataset.modalities


WRONG = {
    "no file": (None, ("does not exist", 'Did you mean "robot.py"?')),
    "no name": ("CONFIG = {}\n", ("defines no MODALITY_CONFIG",)),
    "an error": ("a = 1\nb = a / 0\n", ("line 2", "ZeroDivisionError", "Mend that file")),
    "no Python": ("a = (\n", ("line 1", "SyntaxError")),
    "a refusal": (
        "from gr00t.data.schema import ModalityConfig\nx = ModalityConfig([0], ['a', 'a'])\n",
        ("line 2", "names a key twice"),
    ),
    "no dict": ("MODALITY_CONFIG = 3\n", ("must be a dict of ModalityConfig",)),
    "plain dicts": (
        "MODALITY_CONFIG = {m: {} for m in ('video', 'state', 'action', 'language')}\n",
        ("must be a dict of ModalityConfig",),
    ),
    "a modality less": ("MODALITY_CONFIG = {}\n", ('the modality "video" is missing',)),
    "an end": ("import sys\nsys.exit(3)\n", ("line 2", "SystemExit")),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_none_is_refused_with_place_and_remedy(case: str, tmp_path: Path) -> None:
    text, parts = WRONG[case]
    path = tmp_path / "robot.py"
    path.write_text(text or "")
    given = path if text is not None else tmp_path / "robt.py"
    with pytest.raises(ToolkitError) as error:
        compose("finetune", f"dataset.modality_config={given}")
    message = str(error.value)
    assert message.startswith(f"dataset.modality_config={given}") and "\n" not in message
    assert all(part in message for part in parts), message


EEF = ActionConfig(ActionRepresentation.RELATIVE, ActionType.EEF, ActionFormat.XYZ_ROT6D, state_key="pose")


def test_a_robot_written_as_python_is_read_as_the_same(tmp_path: Path) -> None:
    configs = {
        **MODALITY_CONFIG,
        "state": ModalityConfig([-2, -1, 0], ["pose", "gripper"], ["gripper"], ["pose"]),
        "action": ModalityConfig([0, 2, 4], ["hand"], action_configs=[EEF]),
    }
    path = tmp_path / "robot.py"
    path.write_text(python_source(configs))
    assert from_json(read_file(str(path))) == configs == from_json(to_json(configs))
    assert len(read_file(str(robot_file(path)))["action"]["delta_indices"]) == 16


def test_two_spellings_of_one_meaning_are_equal(tmp_path: Path) -> None:
    spelt = [ActionConfig(ActionRepresentation.RELATIVE, state_key="arm"), ActionConfig(ActionRepresentation.ABSOLUTE)]
    path = robot_file(tmp_path / "robot.py", action={"action_configs": spelt})
    assert comparable(from_json(read_file(str(path)))) == comparable(MODALITY_CONFIG)


# -- other commands ----------------------------------------------------------------------------------------------------


def test_a_robots_horizon_decides_the_statistics_and_what_is_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_split(tmp_path / "raw", train=[20, 24, 18], conflict=[20])
    own = f"modality_config={robot_file(tmp_path / 'robot.py', action={'delta_indices': list(range(8))})}"
    folders = (f"raw_dir={raw}", f"data_dir={tmp_path}/data", f"split.instruction={INSTRUCTION}", "workers=1")
    prepare_conflict_data.main(load("prepare", ["local=none", *folders, own]))
    train = tmp_path / "data/color_object/train"
    assert len(json.loads((train / "meta/relative_stats.json").read_text())["arm"]["mean"]) == 8
    check.main(check.read([str(train), "local=none", "fast=true", own]))
    with pytest.raises(SystemExit):
        check.main(check.read([str(train), "local=none", "fast=true"]))
    assert "action horizon" in capsys.readouterr().out


def test_adopting_another_robot_says_its_file_and_the_key(small_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    (folder / "meta").mkdir(parents=True)
    source = small_data / "color_object/train"
    for name in ("data", "videos"):
        (folder / name).symlink_to(source / name)
    for name in ("info.json", "episodes.jsonl", "tasks.jsonl"):
        (folder / "meta" / name).write_text((source / "meta" / name).read_text())
    arguments = ["local=none", f"dataset={folder}"]
    assert "modality_config=FILE" not in "\n".join(adopt(load("adopt", arguments)))
    other = robot_file(tmp_path / "robot.py", video={"modality_keys": ["front", "top", "side"]})
    text = "\n".join(adopt(load("adopt", [*arguments, f"modality_config={other}"])))
    assert "dataset.modality_config=FILE" in text and "MODALITY_CONFIG = {" in text


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_a_job_takes_the_robot_as_it_is_at_submission(tmp_path: Path) -> None:
    own = absolute_arm(tmp_path / "robot.py")
    places = (f"run_dir={tmp_path}/run", f"data_dir={tmp_path}/data")
    request = read(["local=none", "stages=prepare,finetune", *places, f"dataset.modality_config={own}"])
    prepare, tune = request.tasks
    assert f"modality_config={tmp_path}/run/job-prepare/modality_config_of_job.py" in prepare.overrides
    assert f"dataset.modality_config={tmp_path}/run/job/modality_config_of_job.py" in tune.overrides
    batches = batches_of(request, tmp_path / "submission")
    assert "dataset.modality_config=" in batches[1].script and str(own) not in batches[1].script
    own.unlink()
    (tmp_path / "described").mkdir()
    with _run_records(tune.run_dir, batches, tmp_path / "described"):
        for task in request.tasks:
            rep = read_file(str(task.robot_file))["action"]["action_configs"][0]["rep"]
            assert rep == "ABSOLUTE"


def test_one_robot_for_all_stages(tmp_path: Path) -> None:
    own, other = absolute_arm(tmp_path / "robot.py"), robot_file(tmp_path / "other.py")
    given = ["local=none", "stages=prepare,finetune", f"modality_config={own}"]
    assert all(task.robot.modality_config == str(own) for task in read(given).tasks)
    with pytest.raises(ToolkitError, match="say two things of one dataset"):
        read([*given, f"dataset.modality_config={other}"])


def test_jobs_without_a_robot_of_their_own_read_that_of_their_code() -> None:
    assert not any("modality_config" in override for override in read(["local=none"]).tasks[0].overrides)


def test_a_script_submitted_by_hand_takes_the_robot_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOT_JOB_ID", "7")
    own = absolute_arm(tmp_path / "robot.py")
    given = ["finetune", "local=none", f"run_dir={tmp_path}/run", f"dataset.modality_config={own}"]
    code = Path(attempt.snapshot(*given)["GROOT_CODE"])
    carried = code / "modality_config_of_job.py"
    assert read_file(str(carried)) == read_file(str(own))

    (code / "finetune_jobs/run.sh").write_text("#!/bin/bash\nprintf '%s|' \"$@\"\n")
    checkout, python = tmp_path / "checkout", tmp_path / "python"
    (checkout / "finetune_jobs").mkdir(parents=True)
    run = checkout / "finetune_jobs/run.sh"
    run.write_text((CHECKOUT / "finetune_jobs/run.sh").read_text())
    python.write_text(f"#!/bin/bash\n[ $2 != finetune.slurm.attempt ] || echo GROOT_CODE={code}\n")
    for path in (run, python):
        path.chmod(0o755)
    job = {**os.environ, "SLURM_JOB_ID": "7", "GROOT_PYTHON": str(python)}
    done = subprocess.run([str(run), *given, "--", "train.seed=3"], env=job, capture_output=True, text=True, check=True)
    said = done.stdout.partition("\n")[2].split("|")  # after what Python it takes
    assert said == [*given[:3], f"dataset.modality_config={carried}", "train.seed=3", said[3], ""]


def test_more_frames_of_the_state_than_the_model_reads_are_refused_before_training(
    small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    own = robot_file(tmp_path / "robot.py", state={"delta_indices": [-1, 0]})
    settings = training_config(tmp_path, small_data, tiny_base, f"dataset.modality_config={own}")
    with pytest.raises(ToolkitError, match=r"new_embodiment: the states .* have 2 frames .* reads 1 "):
        finetune(settings)
    assert not (tmp_path / "run").exists()
