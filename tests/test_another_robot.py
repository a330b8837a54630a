"""A robot that nobody configured: from its recorder's dataset to errors in open loop, and robots that are ready."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_calls import compose
from six_joint_arm import INSTRUCTION, write_dataset, write_six_joint_arm

from data_prep.adopt import adopt
from data_prep.doctor.examine import examine
from data_prep.doctor.examined_dataset import Subject
from data_prep.doctor.value_checks import check_relative
from data_prep.modality_proposal import proposed_configs
from finetune.open_loop.evaluation import evaluate_open_loop
from finetune.slurm.launch_request import read as read_launch
from finetune.training.train import finetune
from gr00t.data.dataset import training_statistics
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.schema import (
    ActionConfig,
    ActionFormat,
    ActionRepresentation,
    EmbodimentTag,
    ModalityConfig,
    ModalityConfigs,
    from_json,
)
from gr00t.data.statistics import relative_statistics
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1 import GR00TPolicy
from toolkit.configuration import load
from toolkit.installation import CHECKOUT, CONFIG_DIR
from toolkit.shared_keys import modality_configs, read_file

TAG = EmbodimentTag.NEW_EMBODIMENT


def adopted(root: Path, *more: str) -> str:
    return "\n".join(adopt(load("adopt", ["local=none", f"dataset={root}", *more])))


def representations(configs: ModalityConfigs) -> dict[str, tuple[str, str, str]]:
    action = configs["action"]
    pairs = zip(action.modality_keys, action.action_configs or [], strict=True)
    return {name: (config.rep.name, config.type.name, config.format.name) for name, config in pairs}


def test_statistics_of_groups_in_columns_of_their_own_are_compared_with_these(tmp_path: Path) -> None:
    rng, groups = np.random.default_rng(0), {"joints": "", "pose": ".pose"}
    columns = [f"{name}{column}" for name in ("observation.state", "action") for column in groups.values()]
    episodes = [{name: rng.uniform(-1, 1, (30, 6)).astype(np.float32) for name in columns} for _ in range(3)]
    root = write_dataset(tmp_path / "set", episodes, {})
    relative = [ActionConfig(ActionRepresentation.RELATIVE)] * 2
    configs = {name: ModalityConfig([0], list(groups)) for name in ("state", "action")}
    configs["action"] = ModalityConfig([*range(8)], list(groups), action_configs=relative)
    configs |= {"video": ModalityConfig([0], ["top"]), "language": ModalityConfig([0], ["annotation.task"])}
    places = {"joints": {"start": 0, "end": 6}, "pose": {"start": 6, "end": 12}}
    joined = [[np.concatenate([e[c] for c in two], axis=1) for e in episodes] for two in (columns[:2], columns[2:])]
    stats = relative_statistics(*joined, {"state": places, "action": places}, configs)
    modality: dict[str, Any] = {"video": {"top": {}}, "annotation": {"task": {"original_key": "task_index"}}}
    for name, own in (("state", columns[:2]), ("action", columns[2:])):
        modality[name] = {g: {"start": 0, "end": 6, "original_key": c} for g, c in zip(groups, own, strict=True)}
    for file, content in (("modality", modality), ("relative_stats", stats)):
        (root / f"meta/{file}.json").write_text(json.dumps(content))
    assert list(check_relative(Subject(root, configs))) == []
    stats["joints"], stats["pose"] = stats["pose"], stats["joints"]
    (root / "meta/relative_stats.json").write_text(json.dumps(stats))
    assert [f.level for f in check_relative(Subject(root, configs))] == ["error", "error"]


# -- from start to end -------------------------------------------------------------------------------------------------


def test_six_joints_and_a_pose_are_adopted_trained_on_and_evaluated(tiny_base: Path, tmp_path: Path) -> None:
    data = write_six_joint_arm(tmp_path / "arm/train", episodes=5)
    robot = tmp_path / "arm.py"
    assert "rows of the rotation matrix" in adopted(data, "write=true", f"robot_file={robot}")
    configs = from_json(read_file(str(robot)))
    assert [len(configs["action"].delta_indices), configs["video"].modality_keys] == [16, ["front"]]
    assert not examine(data, configs)[0].findings("warning", "error")

    split = ("local=none", "split=arm", f"split.instruction={INSTRUCTION}", "device=cpu")
    config = load(
        "finetune",
        [
            *(*split, "model=tiny", "tracking=none", f"model.base={tiny_base}", f"dataset.data_dir={tmp_path}"),
            *(f"dataset.modality_config={robot}", f"run_dir={tmp_path}/run", f"output_dir={tmp_path}/done"),
            *("train.max_steps=2", "train.global_batch_size=2", "train.num_workers=0", "train.log_steps=1"),
        ],
    )
    assert finetune(config).steps == 2
    policy = GR00TPolicy.from_pretrained(tmp_path / "done", modality_config=configs, embodiment_tag=TAG)
    step = StepReader(data, configs).step(0, 3)
    seen = {f"state.{name}": values[None] for name, values in step.states.items()}
    seen |= {"video.front": step.images["front"][None], "annotation.human.task_description": [step.text]}
    acted = policy.get_action(seen)
    assert {name: values.shape[1:] for name, values in acted.items()} == {
        "action.arm": (16, 6),
        "action.gripper": (16, 1),
        "action.eef_pose": (16, 9),
    }
    rows = np.asarray(acted["action.eef_pose"], np.float64)[0, :, 3:].reshape(16, 2, 3)
    np.testing.assert_allclose(rows @ rows.swapaxes(1, 2), np.tile(np.eye(2), (16, 1, 1)), atol=1e-5)

    places = (f"checkpoint={tmp_path}/done", f"data_dir={tmp_path}", f"report_dir={tmp_path}/report")
    evaluation = load("evaluate", [*split, *places, "max_episodes=1", "denoising_steps=1"])
    report = evaluate_open_loop(evaluation.chosen)
    assert sorted(report.overall["all"].errors) == ["arm", "eef_pose", "gripper"]
    assert all(np.isfinite(errors["policy"].mae) for errors in report.overall["all"].errors.values())


# -- what is proposed --------------------------------------------------------------------------------------------------

POSES = {
    "rot6d": ("RELATIVE", "EEF", "XYZ_ROT6D"),
    "rotvec": ("RELATIVE", "EEF", "XYZ_ROTVEC"),
    "euler": ("ABSOLUTE", "NON_EEF", "DEFAULT"),
}


@pytest.mark.parametrize("rotation", POSES)
def test_the_form_of_a_rotation_is_read_from_its_names(rotation: str, tmp_path: Path) -> None:
    data, robot = write_six_joint_arm(tmp_path / "arm", episodes=2, rotation=rotation), tmp_path / "arm.py"
    said = adopted(data, f"robot_file={robot}", "val_fraction=0")
    assert ("roll, pitch, yaw may be Euler angles" in said) == (rotation == "euler")
    assert representations(from_json(read_file(str(robot)))) == {
        "arm": ("RELATIVE", "NON_EEF", "DEFAULT"),
        "gripper": ("ABSOLUTE", "NON_EEF", "DEFAULT"),
        "eef_pose": POSES[rotation],
    }
    assert "# - action arm is RELATIVE: targets of the joints" in robot.read_text()
    assert not (data / "meta/modality.json").exists()


def pose_of(names: list[str] | None, size: int, values: np.ndarray | None = None, name: str = "eef_pose") -> str:
    """What is proposed for an action group of that name, dimensions' names and size: the format, or why it has none."""
    group = {"start": 0, "end": size, "original_key": "pose"}
    modality: dict[str, Any] = {"state": {name: group}, "action": {name: group}, "video": {"top": {}}}
    info = {"features": {"pose": {"shape": [size], "names": names}}}
    panda = from_json(read_file(None))
    modality["annotation"] = {"human.task_description": {}}
    configs, reasons = proposed_configs(modality, info, panda, None if values is None else lambda column: values)
    rep, kind, form = representations(configs)[name]
    return form if kind == "EEF" else f"{rep}: {reasons[0]}"


def test_values_decide_whether_a_rotation_is_what_its_names_say() -> None:
    rows, vector = ["x", "y", "z", *"abcdef"], ["ee.x", "ee.y", "ee.z", "ee.wx", "ee.wy", "ee.wz"]
    turned = np.array([[0.1, 0.2, 0.3, 0, 1, 0, -1, 0, 0]])
    assert pose_of(rows, 9, turned) == pose_of(None, 9, turned) == ActionFormat.XYZ_ROT6D.name
    assert "rows are not orthonormal" in pose_of(rows, 9, turned * 2)
    assert pose_of(vector, 6, np.array([[1, 2, 3, 0, 3.14, 0]])) == ActionFormat.XYZ_ROTVEC.name
    assert "a rotation vector of 90 radians" in pose_of(vector, 6, np.array([[1, 2, 3, 0, 90.0, 0]]))


@pytest.mark.parametrize(
    ("names", "size", "name", "part"),
    [
        (["x", "y", "z", "qx", "qy", "qz", "qw"], 7, "eef_pose", "ABSOLUTE: action eef_pose is ABSOLUTE: a quaternion"),
        (None, 6, "left_eef", "6 values without telling names may be Euler angles"),
        (["x", "y", "z"], 3, "eef_position", "RELATIVE: action eef_position is RELATIVE: a position without rotation"),
        (["a", "b"], 2, "joint_velocity", "ABSOLUTE: action joint_velocity is ABSOLUTE: commands"),
    ],
)
def test_what_has_no_relative_form_says_why(names: list[str] | None, size: int, name: str, part: str) -> None:
    assert part in pose_of(names, size, name=name)


def test_a_robots_file_is_never_written_over_and_comes_from_a_modality_json_that_is_there(tmp_path: Path) -> None:
    data, robot = write_six_joint_arm(tmp_path / "arm", episodes=2), tmp_path / "deep/arm.py"
    robot.parent.mkdir()
    robot.write_text("mine")
    assert f"{robot} is there already and stays as it is" in adopted(data, f"robot_file={robot}", "val_fraction=0")
    assert robot.read_text() == "mine"
    adopted(data, "write=true", "val_fraction=0")
    other = tmp_path / "new/arm.py"
    path = data / "meta/modality.json"
    modality = json.loads(path.read_text())
    modality["action"]["joints"] = modality["action"].pop("arm")
    path.write_text(json.dumps(modality))
    said = adopted(data, f"robot_file={other}")
    assert "action joints is ABSOLUTE: there is no state group of that name" in said
    assert set(representations(from_json(read_file(str(other))))) == {"joints", "gripper", "eef_pose"}
    modality["action"]["joints"] = {"start": "0", "end": 6}
    path.write_text(json.dumps(modality))
    with pytest.raises(ToolkitError, match=r'modality\.json: action "joints" has no whole numbers'):
        adopted(data, f"robot_file={tmp_path}/third.py")
    path.unlink()
    info = json.loads((data / "meta/info.json").read_text())
    for fps in (0, -1, "x", None):
        (data / "meta/info.json").write_text(json.dumps({**info, "fps": fps}))
        with pytest.raises(ToolkitError, match=r"info\.json: fps is .*; it must be a number above 0"):
            adopted(data, f"robot_file={tmp_path}/fourth.py", "write=true")
        assert not path.exists() and not (tmp_path / "fourth.py").exists()


def test_a_robots_file_has_a_name_that_commands_read_as_a_file() -> None:
    with pytest.raises(ToolkitError, match=r"robot_file=arm: .* ends in \.py"):
        compose("adopt", "dataset=d", "robot_file=arm")


# -- ready robots ------------------------------------------------------------------------------------------------------

SO_ARM = [f"{joint}.pos" for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")]
SO_ARM.append("gripper.pos")
VIPER = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
BOTH = ("left", "right")
JOINTS = [f"joint_{number}" for number in range(7)]
XYZ_RPY = ["x", "y", "z", "roll", "pitch", "yaw"]


def both(column: str) -> tuple[str, str]:
    return f"observation.{column}", "action" if column == "state" else f"action.{column.removeprefix('state.')}"


# Columns as LeRobot writes them, by the names of their dimensions; cameras; sizes of the groups that are expected.
RECORDED: dict[str, tuple[dict[str, Any], list[str], dict[str, int]]] = {
    "so100": ({"state": SO_ARM}, ["front", "wrist"], {"single_arm": 5, "gripper": 1}),
    "so100 seen from above": ({"state": SO_ARM}, ["top", "wrist"], {"single_arm": 5, "gripper": 1}),
    "aloha": (
        {"state": [[f"{side}_{joint}" for side in BOTH for joint in VIPER]]},
        ["cam_high", "cam_left_wrist", "cam_low", "cam_right_wrist"],
        {"left_arm": 6, "left_gripper": 1, "right_arm": 6, "right_gripper": 1},
    ),
    "droid": (
        {
            "state": {"axes": [*JOINTS, "gripper"]},
            "state.gripper_position": {"axes": ["gripper"]},
            "state.cartesian_position": {"axes": XYZ_RPY},
            "state.joint_position": {"axes": JOINTS},
        },
        ["wrist_left", "exterior_1_left", "exterior_2_left"],
        {"joint_position": 7, "gripper_position": 1},
    ),
    "bimanual": (
        {"state": [f"{side}_{joint}" for side in BOTH for joint in SO_ARM]},
        ["left_top", "left_wrist", "right_wrist"],
        {"left_arm": 5, "left_gripper": 1, "right_arm": 5, "right_gripper": 1},
    ),
}


@pytest.fixture(scope="module")
def processor(tiny_base: Path) -> Gr00tN1d7Processor:
    return Gr00tN1d7Processor.from_pretrained(tiny_base)


def recorded(root: Path, columns: dict[str, Any], cameras: list[str]) -> Path:
    """Two episodes with those columns as state and action."""
    rng, names, episodes = np.random.default_rng(0), {}, []
    for column, given in columns.items():
        names |= dict.fromkeys(both(column), given)
    for _ in range(2):
        sizes = {n: len(np.ravel(v["axes"] if isinstance(v, dict) else v)) for n, v in names.items()}
        episode = {name: rng.uniform(-1, 1, (20, size)) for name, size in sizes.items()}
        shots = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        episodes.append(episode | {f"observation.images.{camera}": shots for camera in cameras})
    return write_dataset(root, episodes, names, "fold the towel")


@pytest.mark.parametrize("case", RECORDED)
def test_a_ready_robot_fits_what_lerobot_records(case: str, processor: Gr00tN1d7Processor, tmp_path: Path) -> None:
    columns, cameras, sizes = RECORDED[case]
    name = case.split()[0]
    root = recorded(tmp_path / "set", columns, cameras)
    said = adopted(root, f"modality_config={name}", "write=true", "val_fraction=0")
    assert "names other groups" not in said and f"dataset.modality_config={name}" in said
    configs = modality_configs(compose("finetune", f"dataset.modality_config={name}").dataset)
    reader = StepReader(root, configs)
    step = reader.step(1, 3)
    assert {group: values.shape for group, values in step.states.items()} == {g: (1, d) for g, d in sizes.items()}
    assert step.actions and {g: v.shape for g, v in step.actions.items()} == {g: (16, d) for g, d in sizes.items()}
    expected = "RELATIVE", "ABSOLUTE"
    assert all(value[0] == expected["gripper" in group] for group, value in representations(configs).items())

    own = processor.with_embodiment(TAG, configs, training_statistics(reader, "mask"))
    sample = own.encode(step, TAG)
    assert len(sample["images"]) == len(configs["video"].modality_keys)
    assert sample["action_mask"].sum() == 16 * sum(sizes.values())
    undone = own.state_action.decode_action(sample["action"][None], {g: v[None] for g, v in step.states.items()}, TAG)
    for group, values in step.actions.items():
        np.testing.assert_allclose(undone[group][0], values, atol=1e-5)


def test_every_ready_robot_names_its_source() -> None:
    files = {path.stem: path.read_text() for path in (CONFIG_DIR / "robots").glob("*.py")}
    assert set(files) == {case.split()[0] for case in RECORDED}
    assert all("LeRobot" in text.split('"""')[1] for text in files.values())


REFUSED: dict[str, tuple[str, str]] = {
    "a name nearly right": ("so10", 'Did you mean "so100"?'),
    "the other arm of the same": ("so101", 'Did you mean "so100"?'),
    "a name of nothing": ("humanoid", "Known: aloha, bimanual, "),
    "a ready one as a file": ("aloha.py", 'Did you mean "aloha"?'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_name_that_is_none_is_refused_with_those_there_are(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, part = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToolkitError) as error:
        compose("finetune", f"dataset.modality_config={given}")
    assert str(error.value).startswith(f"dataset.modality_config={given} does not exist") and part in str(error.value)


def test_a_file_of_that_name_comes_first_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "so100").mkdir()
    assert read_file("so100")["state"]["modality_keys"] == ["single_arm", "gripper"]
    (tmp_path / "aloha").write_text((CHECKOUT / "conflict_panda_config.py").read_text())
    assert read_file("aloha") == read_file(None)


def test_a_job_submitted_elsewhere_takes_the_ready_robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = read_launch(["local=none", "stages=prepare,finetune", "dataset.modality_config=droid", "dry_run=true"])
    for task in request.tasks:
        assert modality_configs(task.robot)["state"].modality_keys == ["joint_position", "gripper_position"]
