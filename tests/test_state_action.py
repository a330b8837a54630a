import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_files import batch_size, below, checkpoint_of, golden_path, infer_files, load, tag_of, train_files

from conflict_panda_config import MODALITY_CONFIG
from gr00t.data.processor_files import read_processor_files
from gr00t.data.schema import ActionConfig, ActionFormat, ActionRepresentation, ActionType, ModalityConfig
from gr00t.data.state_action import SIN_COS, Group, StateActionProcessor
from gr00t.errors import ToolkitError

TAG = "new_embodiment"
ULP = 2.0**-23  # of a float32 near 1


def processor_of(checkpoint: Path, **changes: Any) -> StateActionProcessor:
    files = read_processor_files(checkpoint)
    names = ("use_percentiles", "clip_outliers", "apply_sincos_state_encoding", "use_relative_action")
    settings = {name: getattr(files.config, name) for name in names}
    return StateActionProcessor(files.config.modality_configs, files.statistics, **settings | changes)


@pytest.fixture
def panda() -> StateActionProcessor:
    statistics = json.loads(golden_path("dataset_merged_statistics.json").read_text())
    return StateActionProcessor({TAG: MODALITY_CONFIG}, statistics, False, True, True, True)


@pytest.fixture
def moment() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    points = load(golden_path("dataset_points.npz"))
    return below(points, "7::state::"), below(points, "7::action::")


@pytest.mark.parametrize("path", infer_files(), ids=lambda p: p.stem)
def test_states_and_decoded_actions_are_the_originals(path):
    data, tag, processor = load(path), tag_of(path), processor_of(checkpoint_of(path))
    states = [below(data, f"raw::{b}::state::") for b in range(batch_size(data))]
    encoded = np.stack([processor.encode_state(s, tag) for s in states])
    width = encoded.shape[-1]
    assert (np.abs(encoded - data["in::state"][..., :width]) <= state_tolerance(processor, tag)).all()
    assert not data["in::state"][..., width:].any()
    stacked = {key: np.stack([s[key] for s in states]) for key in states[0]}
    decoded = processor.decode_action(data["action_pred"], stacked, tag)
    golden = below(data, "decoded::")
    assert list(decoded) == list(golden)
    for group in processor.groups(tag, "action"):
        values = golden[group.name]
        assert decoded[group.name].dtype == values.dtype
        atol = (1e-6 if is_pose(group) else 1e-7) * max(1, np.abs(values).max())
        np.testing.assert_allclose(decoded[group.name], values, rtol=0, atol=atol, err_msg=group.name)


def is_pose(group: Group) -> bool:
    """A relative end-effector group; the original makes its rotations orthogonal with an epsilon."""
    return group.relative is not None and group.relative.type is ActionType.EEF


def state_tolerance(processor: StateActionProcessor, tag: str) -> np.ndarray:
    """(D,): 0, but for sines and cosines, whose last bit depends on the processor's vector unit."""
    groups = processor.groups(tag, "state")
    return np.concatenate([np.full(g.encoded_dim, 2 * ULP if g.method == SIN_COS else 0.0) for g in groups])


def action_tolerance(processor: StateActionProcessor, tag: str) -> np.ndarray:
    """(H, D): two units in the last place of 1; more for relative poses, which the original turns at single precision
    before it divides by the range."""
    columns = []
    for group in processor.groups(tag, "action"):
        scale = np.where(group.constant, 1.0, group.scale) * np.ones((processor.horizon(tag), 1))
        columns.append(1e-6 / scale if is_pose(group) else np.full_like(scale, 2 * ULP))
    return np.concatenate(columns, axis=-1)


@pytest.mark.parametrize("path", train_files(), ids=lambda p: p.stem)
def test_training_states_and_actions_are_the_originals(path):
    data, processor = load(path), processor_of(checkpoint_of(path))
    for i in range(batch_size(data)):
        tag = str(data[f"raw::{i}::tag"])
        states, actions = below(data, f"raw::{i}::state::"), below(data, f"raw::{i}::action::")
        state, action = processor.encode_state(states, tag), processor.encode_action(actions, states, tag)
        assert (np.abs(state - data["in::state"][i][:, : state.shape[1]]) <= state_tolerance(processor, tag)).all()
        golden = data["in::action"][i][: len(action), : action.shape[1]]
        assert (np.abs(action - golden) <= action_tolerance(processor, tag)).all(), tag
        assert data["in::action_mask"][i].sum() == action.size


@pytest.mark.parametrize("frame", [0, 7, 36])
def test_points_of_a_dataset_are_the_originals(panda, frame):
    points = load(golden_path("dataset_points.npz"))
    states, actions = below(points, f"{frame}::state::"), below(points, f"{frame}::action::")
    assert np.array_equal(panda.encode_state(states, TAG), points[f"{frame}::out::state"][:, :8])
    assert np.array_equal(panda.encode_action(actions, states, TAG), points[f"{frame}::out::action"][:16, :8])


def test_decoding_undoes_encoding_of_the_data_behind_the_statistics(panda, moment):
    states, actions = moment
    encoded = panda.encode_action(actions, states, TAG)
    decoded = panda.decode_action(encoded, states, TAG)
    for group in panda.groups(TAG, "action"):
        varying = np.broadcast_to(~group.constant, actions[group.name].shape)
        assert varying.any()
        np.testing.assert_allclose(decoded[group.name][varying], actions[group.name][varying], atol=1e-6)


def small(method: str = "", **settings: Any) -> StateActionProcessor:
    """One absolute group of two dimensions (the second constant) as state and action."""
    group = {"min": [0, 5], "max": [4, 5], "mean": [1, 5], "std": [2, 0], "q01": [1, 5], "q99": [3, 5]}
    keys = ["g"]
    config = {
        "state": ModalityConfig(
            [0],
            keys,
            sin_cos_embedding_keys=keys if "sin_cos" in method else None,
            mean_std_embedding_keys=keys if "mean_std" in method else None,
        ),
        "action": ModalityConfig(
            [0, 1],
            keys,
            mean_std_embedding_keys=keys if "mean_std" in method else None,
            action_configs=[ActionConfig(ActionRepresentation.ABSOLUTE)],
        ),
    }
    return StateActionProcessor({"t": config}, {"t": {"state": {"g": group}, "action": {"g": group}}}, **settings)


def test_min_and_max_go_to_one_and_constant_dimensions_to_zero():
    values = {"g": np.array([[0, 5], [4, 9], [8, 5]], np.float32)}
    assert small().encode_state(values, "t").tolist() == [[-1, 0], [1, 0], [1, 0]]
    assert small(clip_outliers=False).encode_state(values, "t")[2].tolist() == [3, 0]
    assert small(use_percentiles=True).encode_state(values, "t")[0].tolist() == [-1, 0]
    assert small(use_percentiles=True, clip_outliers=False).encode_state(values, "t")[0].tolist() == [-2, 0]


@pytest.mark.parametrize("apart, constant", [(0.0, True), (1e-9, True), (4e-5, True), (1e-3, False)])
def test_a_range_of_rounding_errors_alone_counts_as_constant(apart: float, constant: bool) -> None:
    processor = small()
    for modality in ("state", "action"):
        processor.statistics["t"][modality]["g"]["max"][1] = 5 + apart  # beside the minimum of 5
    assert processor.groups("t", "state")[0].constant.tolist() == [False, constant]
    values = {"g": np.array([[2, 5 + apart], [2, 6]], np.float32)}
    encoded = processor.encode_state(values, "t")
    assert encoded[:, 1].tolist() == pytest.approx([0, 0] if constant else [1, 1], abs=1e-3)


def test_standardised_states_are_not_clipped_but_actions_are_and_constants_keep_their_value():
    values = {"g": np.array([[9, 0.5], [1, -0.5]], np.float32)}
    assert small("mean_std").encode_state(values, "t").tolist() == [[4, 0.5], [0, -0.5]]
    assert small("mean_std").encode_action(values, {}, "t").tolist() == [[1, 0.5], [0, -0.5]]


def test_sine_and_cosine_go_before_the_rest_and_only_with_the_global_flag():
    values = {"g": np.array([[0.5, 1.0]], np.float32)}
    on = small("sin_cos mean_std", apply_sincos_state_encoding=True).encode_state(values, "t")
    np.testing.assert_allclose(on, [[np.sin(0.5), np.sin(1), np.cos(0.5), np.cos(1)]], atol=1e-7)
    assert small("sin_cos mean_std").encode_state(values, "t").shape == (1, 2)


def test_relative_groups_use_min_and_max_of_each_step_even_with_percentiles(panda, moment):
    states, actions = moment
    panda = dataclasses.replace(panda, use_percentiles=True)
    group = panda.groups(TAG, "action")[0]
    table = panda.statistics[TAG]["relative_action"]["arm"]
    assert np.array_equal(group.offset, table["min"]) and group.offset.shape == (16, 7)
    low = {"arm": np.asarray(table["min"]) + states["arm"][-1], "gripper": actions["gripper"]}
    varying = ~group.constant
    np.testing.assert_allclose(panda.encode_action(low, states, TAG)[:, :7][varying], -1, atol=1e-5)


def test_without_relative_actions_every_group_is_absolute(panda, moment):
    states, actions = moment
    panda = dataclasses.replace(panda, use_relative_action=False)
    assert panda.groups(TAG, "action")[0].relative is None
    other = {"arm": states["arm"] + 1, "gripper": states["gripper"]}
    assert np.array_equal(panda.encode_action(actions, states, TAG), panda.encode_action(actions, other, TAG))


@pytest.mark.parametrize("format, dim", [(ActionFormat.XYZ_ROT6D, 9), (ActionFormat.XYZ_ROTVEC, 6)])
def test_relative_poses_come_back(format, dim):
    rng = np.random.default_rng(0)
    config = {
        "state": ModalityConfig([-1, 0], ["wrist"]),
        "action": ModalityConfig(
            [0, 1, 2],
            ["hand"],
            action_configs=[ActionConfig(ActionRepresentation.RELATIVE, ActionType.EEF, format, "wrist")],
        ),
    }
    wide = {"min": np.full((3, dim), -9.0).tolist(), "max": np.full((3, dim), 9.0).tolist()}
    plain = {"min": [-9.0] * dim, "max": [9.0] * dim}
    statistics = {"t": {"state": {"wrist": plain}, "relative_action": {"hand": wide}}}
    processor = StateActionProcessor({"t": config}, statistics, use_relative_action=True)
    states = {"wrist": rng.normal(size=(2, dim)).astype(np.float32)}
    actions = {"hand": 0.5 * rng.normal(size=(3, dim)).astype(np.float32)}
    encoded = processor.encode_action(actions, states, "t")
    decoded = processor.decode_action(encoded[None], {"wrist": states["wrist"][None]}, "t")["hand"]
    # A 6-D rotation comes back as the orthonormal one it stands for, so the second trip is compared with the first.
    again = processor.encode_action({"hand": decoded[0]}, states, "t")
    np.testing.assert_allclose(again, encoded, atol=1e-5)
    np.testing.assert_allclose(decoded[0, :, :3], actions["hand"][:, :3], atol=1e-5)


def test_bad_input_is_refused_with_its_name_and_a_remedy(panda, moment):
    states, actions = moment

    def refused(message: str, states: dict = states, actions: dict = actions, tag: str = TAG) -> None:
        with pytest.raises(ToolkitError, match=message):
            panda.encode_state(states, tag)
            panda.encode_action(actions, states, tag)

    refused('no modality config for the embodiment "new_embodimen".*mean "new_embodiment"', tag="new_embodimen")
    refused('state: the group "arm" is missing. Did you mean "arms"', {"arms": states["arm"]})
    refused(r'state "arm": expected \(steps, 7\).*\(1, 6\)', states | {"arm": states["arm"][:, :6]})
    refused("different numbers of steps", states | {"arm": np.repeat(states["arm"], 2, axis=0)})
    broken = states["arm"].copy()
    broken[0, 3] = np.nan
    refused(r"state \"arm\": value nan at index \(0, 3\)", states | {"arm": broken})
    refused("15 steps given.*horizon of 16.*action_valid", actions={k: a[:15] for k, a in actions.items()})
    with pytest.raises(ToolkitError, match='relative to the state group "arm", which is not given'):
        panda.encode_action(actions, {"gripper": states["gripper"]}, TAG)
    with pytest.raises(ToolkitError, match="H >= 16 and D >= 8"):
        panda.decode_action(np.zeros((1, 8, 8), np.float32), states, TAG)


@pytest.mark.parametrize("entry", [None, ActionConfig(ActionRepresentation.ABSOLUTE)])
def test_relative_actions_are_never_taken_as_positions_for_want_of_their_config(entry, panda):
    kept = MODALITY_CONFIG["action"].action_configs
    configs = None if entry is None else [entry, *kept[1:]]
    action = dataclasses.replace(MODALITY_CONFIG["action"], action_configs=configs)
    statistics = copy.deepcopy(panda.statistics)
    statistics[TAG]["action"].setdefault("arm", {key: [0.0] * 7 for key in ("min", "max", "mean", "std", "q01", "q99")})
    edited = StateActionProcessor({TAG: MODALITY_CONFIG | {"action": action}}, statistics, use_relative_action=True)
    with pytest.raises(ToolkitError, match=r'"arm" of "new_embodiment" were learned relative .*action_configs'):
        edited.groups(TAG, "action")
    dataclasses.replace(edited, use_relative_action=False).groups(TAG, "action")


def test_statistics_that_do_not_fit_are_refused(panda, moment):
    states, _ = moment
    shorter = dataclasses.replace(MODALITY_CONFIG["action"], delta_indices=list(range(8)))
    with pytest.raises(ToolkitError, match=r"\(16, 7\).*horizon of 8.*relative_stats\.json.*16 delta_indices"):
        StateActionProcessor(
            {TAG: MODALITY_CONFIG | {"action": shorter}}, panda.statistics, use_relative_action=True
        ).groups(TAG, "action")
    for path, message in (
        ((TAG,), 'no entry for the embodiment "new_embodiment"'),
        ((TAG, "state", "arm"), 'state": no group "arm"'),
        ((TAG, "state", "arm", "max"), 'no "max"'),
    ):
        statistics = copy.deepcopy(panda.statistics)
        node = statistics
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        with pytest.raises(ToolkitError, match=message):
            StateActionProcessor({TAG: MODALITY_CONFIG}, statistics).encode_state(states, TAG)


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("", {"min": [4, 5], "max": [0, 5]}, r't\.action\.g": a minimum above its maximum'),
        ("mean_std", {"std": [-2, 0]}, r't\.action\.g": a standard deviation below 0'),
        ("", {"min": [[0, 5]] * 3, "max": [[4, 5]] * 3}, r't\.action\.g": expected one value a dimension.*\(3, 2\)'),
    ],
)
def test_statistics_that_would_turn_or_stretch_actions_are_refused(method: str, change: Any, said: str) -> None:
    processor = small(method)
    processor.statistics["t"]["action"]["g"] = processor.statistics["t"]["action"]["g"] | change
    processor.groups("t", "state")
    with pytest.raises(ToolkitError, match=said):
        processor.groups("t", "action")


def test_relative_statistics_of_another_horizon_are_refused_with_the_way_out(panda):
    action = dataclasses.replace(MODALITY_CONFIG["action"], delta_indices=list(range(20)))
    longer = StateActionProcessor(
        {TAG: {**MODALITY_CONFIG, "action": action}}, panda.statistics, use_relative_action=True
    )
    with pytest.raises(ToolkitError, match=r"are \(16, 7\).*horizon of 20.*another horizon.*16 delta_indices"):
        longer.groups(TAG, "action")


def test_relative_actions_start_from_the_last_row_of_the_states_history(panda, moment):
    states, actions = moment
    history = {key: np.concatenate([value - 1, value]) for key, value in states.items()}
    expected = panda.encode_action(actions, states, TAG)
    assert np.array_equal(panda.encode_action(actions, history, TAG), expected)
    decoded, plain = (panda.decode_action(expected, of, TAG) for of in (history, states))
    assert all(np.array_equal(decoded[group], plain[group]) for group in plain)
