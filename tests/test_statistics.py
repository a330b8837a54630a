"""Statistics equal numpy's and the original's, per column and per step of relative action groups."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from conflict_panda_config import MODALITY_CONFIG
from gr00t.data.schema import ActionConfig, ActionFormat, ActionRepresentation, ActionType, ModalityConfig
from gr00t.data.state_action import relative_pose
from gr00t.data.statistics import (
    check_relative_statistics,
    feature_statistics,
    merge_statistics,
    relative_statistics,
    start_frames,
    to_processor_statistics,
)
from gr00t.errors import ToolkitError

GOLDEN = Path(__file__).parent / "golden"
DATASET = GOLDEN / "dataset_new_embodiment"
MODALITY = json.loads((DATASET / "meta/modality.json").read_text())
STATS = json.loads((DATASET / "meta/stats.json").read_text())
RELATIVE = json.loads((DATASET / "meta/relative_stats.json").read_text())


def column(name: str) -> list[np.ndarray]:
    tables = [pq.read_table(DATASET / f"data/chunk-000/episode_{i:06d}.parquet") for i in range(3)]
    return [np.array(table[name].to_pylist(), dtype=np.float32) for table in tables]


def assert_equal_statistics(found: dict, expected: dict, tolerance: float = 3e-7) -> None:
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=tolerance, err_msg=name)


def action_configs(arm: ActionConfig, horizon: int = 4) -> dict[str, ModalityConfig]:
    action = ModalityConfig(delta_indices=list(range(horizon)), modality_keys=["arm"], action_configs=[arm])
    return {**MODALITY_CONFIG, "action": action}


@pytest.mark.parametrize("name", ["observation.state", "action", "timestamp"])
def test_column_statistics_are_the_originals(name):
    values = np.concatenate(column(name)).reshape(122, -1)
    assert_equal_statistics(feature_statistics(values), STATS[name])


def test_relative_statistics_with_dropped_tails_are_the_originals():
    found = relative_statistics(column("observation.state"), column("action"), MODALITY, MODALITY_CONFIG, tail="drop")
    assert set(found) == {"arm"}
    assert_equal_statistics(found["arm"], RELATIVE["arm"])


def test_masked_tails_count_every_pair_inside_an_episode():
    states, actions = column("observation.state"), column("action")
    found = relative_statistics(states, actions, MODALITY, MODALITY_CONFIG)["arm"]
    for step in (0, 7, 15):
        pairs = [a[t + step, :7] - s[t, :7] for s, a in zip(states, actions, strict=True) for t in range(len(a) - step)]
        expected = np.stack(pairs).astype(np.float64)
        np.testing.assert_allclose(found["mean"][step], expected.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(found["std"][step], expected.std(axis=0), atol=1e-6)
        np.testing.assert_allclose(found["q99"][step], np.quantile(expected, 0.99, axis=0), atol=1e-6)


def test_start_frames_are_all_or_those_with_a_whole_chunk():
    assert start_frames(30, range(16), "mask") == range(30)
    assert start_frames(30, range(16), "drop") == range(15)
    assert start_frames(10, range(16), "drop") == range(0)
    assert start_frames(30, [-2, 0, 3], "drop") == range(2, 27)
    with pytest.raises(ToolkitError, match='Did you mean "mask"'):
        start_frames(30, range(16), "masked")


def test_negative_offsets_never_wrap_to_the_episodes_end():
    action = ModalityConfig([-1, 0], ["arm"], action_configs=[ActionConfig(ActionRepresentation.RELATIVE)])
    values = np.zeros((5, 8), dtype=np.float32)
    moved = values.copy()
    moved[-1] = 9.0
    found = relative_statistics([values], [moved], MODALITY, {**MODALITY_CONFIG, "action": action})["arm"]
    assert found["max"][0] == [0.0] * 7
    assert found["max"][1] == [9.0] * 7


def test_a_constant_column_has_deviation_exactly_zero():
    found = feature_statistics(np.full((1000, 1), 0.1, dtype=np.float32))
    assert found["std"] == [0.0]
    assert found["mean"] == found["min"] == [float(np.float32(0.1))]


def test_a_column_that_hardly_varies_is_not_constant():
    found = feature_statistics(5 + 1e-9 * np.array([[0.0], [1.0], [2.0]]))
    assert found["std"][0] == pytest.approx(1e-9 * np.sqrt(2 / 3), rel=1e-3)
    assert found["min"][0] < found["mean"][0] < found["max"][0]


def test_an_action_group_may_refer_to_another_state_group():
    config = ActionConfig(ActionRepresentation.RELATIVE, state_key="other")
    modality = {"state": {"other": {"start": 1, "end": 8}}, "action": {"arm": {"start": 0, "end": 7}}}
    states, actions = column("observation.state"), column("action")
    found = relative_statistics(states, actions, modality, action_configs(config))["arm"]
    expected = np.concatenate([a[:, :7] - s[:, 1:8] for s, a in zip(states, actions, strict=True)])
    np.testing.assert_allclose(found["max"][0], expected.max(axis=0), atol=1e-6)


def test_end_effector_groups_use_the_pose_seen_from_the_reference():
    config = ActionConfig(ActionRepresentation.RELATIVE, ActionType.EEF, ActionFormat.XYZ_ROTVEC)
    modality = {m: {"arm": {"start": 0, "end": 6}} for m in ("state", "action")}
    rng = np.random.default_rng(0)
    state, action = rng.normal(size=(2, 6, 6))
    found = relative_statistics([state], [action], modality, action_configs(config))["arm"]
    expected = np.stack([relative_pose(action[t + 2 : t + 3], state[t], config.format)[0] for t in range(4)])
    np.testing.assert_allclose(found["mean"][2], expected.mean(axis=0), atol=1e-12)


def test_the_processors_form_is_the_originals():
    expected = json.loads((GOLDEN / "dataset_merged_statistics.json").read_text())["new_embodiment"]
    assert to_processor_statistics(STATS, RELATIVE, MODALITY, MODALITY_CONFIG) == expected


def test_statistics_of_another_horizon_are_refused_with_the_command_that_mends_it():
    longer = action_configs(ActionConfig(ActionRepresentation.RELATIVE), horizon=20)
    with pytest.raises(ToolkitError, match=r"shape \(16, 7\).* needs \(20, 7\).*prepare_conflict_data\.py.*overwrite"):
        check_relative_statistics(RELATIVE, MODALITY, longer, DATASET / "meta/relative_stats.json")


def test_missing_relative_statistics_are_refused():
    with pytest.raises(ToolkitError, match='no statistics of the relative action group "arm"'):
        to_processor_statistics(STATS, {}, MODALITY, MODALITY_CONFIG)


def test_an_unknown_group_gets_the_nearest_name():
    configs = {**MODALITY_CONFIG, "state": ModalityConfig([0], ["griper"])}
    with pytest.raises(ToolkitError, match=r'no group "griper"\. Did you mean "gripper"'):
        to_processor_statistics(STATS, RELATIVE, MODALITY, configs)


def test_groups_of_different_size_cannot_be_relative_to_each_other():
    config = ActionConfig(ActionRepresentation.RELATIVE, state_key="gripper")
    with pytest.raises(ToolkitError, match="7 dims refers to a state group of 1 dims"):
        relative_statistics(column("observation.state"), column("action"), MODALITY, action_configs(config))


def test_a_horizon_that_no_episode_reaches_is_refused():
    short = np.zeros((3, 8), dtype=np.float32)
    with pytest.raises(ToolkitError, match="No episode is long enough for step 3"):
        relative_statistics([short], [short], MODALITY, MODALITY_CONFIG)


def test_no_values_have_no_statistics():
    with pytest.raises(ToolkitError, match="N > 0"):
        feature_statistics(np.zeros((0, 3)))


def entry(values: np.ndarray, steps: np.ndarray | None = None) -> dict:
    """Statistics of one state group, and of one relative group where `steps` (N, H, D) is given."""
    found = {"state": {"arm": feature_statistics(values)}}
    if steps is not None:
        per_step = [feature_statistics(steps[:, h]) for h in range(steps.shape[1])]
        found["relative_action"] = {"arm": {name: [step[name] for step in per_step] for name in per_step[0]}}
    return found


def test_merged_statistics_of_one_dataset_are_its_own():
    own = json.loads((GOLDEN / "dataset_merged_statistics.json").read_text())["new_embodiment"]
    for modality, groups in merge_statistics([own], [3.0]).items():
        for group, statistics in groups.items():
            assert_equal_statistics(statistics, own[modality][group], 1e-15)


def test_datasets_weighted_by_their_length_merge_to_mean_and_deviation_of_all_values():
    rng = np.random.default_rng(0)
    parts = [rng.normal(m, s, size=(n, 3)) for m, s, n in ((0, 1, 40), (5, 0.1, 160), (-2, 3, 10))]
    steps = [part[:, None] * np.array([[1.0], [2.0]]) for part in parts]
    merged = merge_statistics([entry(p, s) for p, s in zip(parts, steps, strict=True)], [len(p) for p in parts])
    whole = entry(np.concatenate(parts), np.concatenate(steps))
    for modality in ("state", "relative_action"):
        for name in ("mean", "std", "min", "max"):
            found, wanted = merged[modality]["arm"][name], whole[modality]["arm"][name]
            np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=name)


def test_merging_takes_the_outermost_percentiles_and_the_originals_weighting():
    rng = np.random.default_rng(1)
    first, second = entry(rng.normal(size=(50, 2))), entry(rng.normal(3, 2, size=(50, 2)))
    merged = merge_statistics([first, second], [1, 3])["state"]["arm"]
    a, b = ({name: np.array(v) for name, v in e["state"]["arm"].items()} for e in (first, second))
    mean = 0.25 * a["mean"] + 0.75 * b["mean"]
    square = 0.25 * (a["std"] ** 2 + a["mean"] ** 2) + 0.75 * (b["std"] ** 2 + b["mean"] ** 2)
    np.testing.assert_allclose(merged["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(merged["std"], np.sqrt(square - mean**2), rtol=1e-12)
    assert merged["q01"] == np.minimum(a["q01"], b["q01"]).tolist()
    assert merged["q99"] == np.maximum(a["q99"], b["q99"]).tolist()


def test_a_column_constant_in_all_datasets_stays_constant_when_merged():
    same = entry(np.full((9, 1), 1234.1))
    merged = merge_statistics([same] * 3, [0.1, 0.2, 0.7])["state"]["arm"]
    assert merged["std"] == [0.0] and merged["mean"] == merged["min"] == [1234.1]
    moved = merge_statistics([same, entry(np.full((9, 1), 1235.1))], [1, 1])["state"]["arm"]
    np.testing.assert_allclose(moved["std"], [0.5], rtol=1e-9)


@pytest.mark.parametrize(
    "others, weights, said",
    [
        ([], [1.0], "0 statistics and 1 weights"),
        ([entry(np.eye(3))], [0.0], "at least 0 and not all 0"),
        ([entry(np.eye(3)), {"state": {"leg": {}}}], [1, 1], r"Dataset 1 has the state groups \['leg'\]"),
        ([entry(np.eye(3)), entry(np.eye(4))], [1, 1], "state.arm: the datasets' statistics differ in size"),
    ],
)
def test_datasets_that_cannot_be_merged_are_refused(others, weights, said):
    with pytest.raises(ToolkitError, match=said):
        merge_statistics(others, weights)


def test_relative_actions_refer_to_the_last_state_of_a_history():
    """To the row before the start frame where the history ends at -1; before the first row, to the first."""
    configs = {**action_configs(ActionConfig(ActionRepresentation.RELATIVE), horizon=2)}
    configs["state"] = ModalityConfig([-3, -1], ["arm"])
    modality = {m: {"arm": {"start": 0, "end": 1}} for m in ("state", "action")}
    state, action = np.array([[1.0], [2.0], [4.0], [8.0]]), np.array([[10.0], [20.0], [30.0], [40.0]])
    found = relative_statistics([state], [action], modality, configs)["arm"]
    assert found["mean"][0] == [np.mean([10 - 1, 20 - 1, 30 - 2, 40 - 4])]
    assert found["mean"][1] == [np.mean([20 - 1, 30 - 1, 40 - 2])]


def test_a_future_state_as_reference_stays_within_the_episode():
    configs = {**action_configs(ActionConfig(ActionRepresentation.RELATIVE), horizon=1)}
    configs["state"] = ModalityConfig([0, 1], ["arm"])
    modality = {m: {"arm": {"start": 0, "end": 1}} for m in ("state", "action")}
    state, action = np.array([[1.0], [2.0]]), np.array([[10.0], [20.0]])
    found = relative_statistics([state], [action], modality, configs)["arm"]
    assert (found["min"], found["max"]) == ([[8.0]], [[18.0]])


def test_chunks_that_lie_wholly_in_the_past_may_start_on_the_last_frame():
    assert start_frames(5, [-2, -1], "drop") == range(2, 5)
    assert start_frames(5, [1, 2], "drop") == range(3)


def test_a_dataset_of_weight_zero_moves_the_extremes_only():
    first, second = entry(np.array([[0.0], [2.0]])), entry(np.array([[9.0], [11.0]]))
    merged = merge_statistics([first, second], [1, 0])["state"]["arm"]
    assert (merged["mean"], merged["std"], merged["min"], merged["max"]) == ([1.0], [1.0], [0.0], [11.0])
    with pytest.raises(ToolkitError, match="at least 0 and not all 0"):
        merge_statistics([first, second], [3, -1])


def test_statistics_lie_under_the_column_that_modality_json_names():
    modality = json.loads(json.dumps(MODALITY))
    modality["state"]["gripper"] = {"start": 1, "end": 2, "original_key": "own"}
    own = {name: [5.0, 6.0] for name in STATS["action"]}
    found = to_processor_statistics({**STATS, "own": own}, RELATIVE, modality, MODALITY_CONFIG)
    assert found["state"]["gripper"]["mean"] == [6.0]
    assert found["state"]["arm"]["mean"] == STATS["observation.state"]["mean"][:7]


@pytest.mark.parametrize("value", [float("nan"), "x", None])
def test_statistics_that_are_no_finite_numbers_are_refused(value):
    spoilt = json.loads(json.dumps(STATS))
    spoilt["action"]["q99"][3] = value
    with pytest.raises(ToolkitError, match=r'"q99" of the column "action" must be 7 numbers'):
        to_processor_statistics(spoilt, RELATIVE, MODALITY, MODALITY_CONFIG)
    relative = json.loads(json.dumps(RELATIVE))
    relative["arm"]["min"][2][1] = value
    with pytest.raises(ToolkitError, match='"arm" min is no table of finite numbers'):
        check_relative_statistics(relative, MODALITY, MODALITY_CONFIG)


def test_a_start_has_a_step_of_its_chunk_inside_the_episode():
    assert [*start_frames(5, range(1, 17), "mask")] == [0, 1, 2, 3]
    assert [*start_frames(5, [-2, -1], "mask")] == [1, 2, 3, 4]
    assert [*start_frames(6, [-4, 4], "mask")] == [0, 1, 4, 5]
