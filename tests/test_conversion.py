"""Conversion: the dataset says exactly what the recordings say, in the format that GR00T reads."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from recordings import INSTRUCTION, SAMPLES, edit_json, replace, write_recording, write_split

from conflict_panda_config import MODALITY_CONFIG
from data_prep import lerobot
from data_prep.convert import convert_split
from data_prep.lerobot import choose_val_episodes
from data_prep.recording_checks import read_recordings
from gr00t.data.dataset import training_statistics
from gr00t.data.layout import DatasetLayout
from gr00t.data.statistics import feature_statistics, relative_statistics, to_processor_statistics
from gr00t.data.step_reader import StepReader
from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError
from gr00t.file_replacement import file_lock, whole_folder
from toolkit.shared_keys import share_of

ELEVEN = [12, 5, 7, 9, 6, 8, 20, 11, 10, 13, 14]  # lengths; one must reach the 16 steps of the horizon


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The sample recordings, converted."""
    data = tmp_path_factory.mktemp("samples")
    convert_split(SAMPLES, data, "color_object", INSTRUCTION, MODALITY_CONFIG, progress=False)
    return data / "color_object"


@pytest.fixture(scope="module")
def eleven(tmp_path_factory):
    """A synthetic split: raw recordings with eleven train episodes, and their dataset."""
    folder = tmp_path_factory.mktemp("eleven")
    write_split(folder / "raw", ELEVEN, [17, 16])
    report = convert_split(
        folder / "raw", folder / "data", "color_object", INSTRUCTION, MODALITY_CONFIG, progress=False
    )
    return folder / "raw/color_object", folder / "data/color_object", report


def table(dataset, episode):
    return pq.read_table(DatasetLayout(dataset).parquet_path(episode))


def array(dataset, episode, column):
    return np.array(table(dataset, episode)[column].to_pylist(), dtype=np.float32)


@pytest.mark.parametrize(("part", "count"), [("train", 8), ("conflict", 2)])
def test_actions_and_states_equal_the_recordings_exactly(samples, part, count):
    with h5py.File(SAMPLES / "color_object" / part / "trajectory.h5") as recording:
        for episode in range(count):
            trajectory = recording[f"traj_{episode}"]
            qpos = trajectory["obs/agent/qpos"][:-1]
            states = array(samples / part, episode, "observation.state")
            assert np.array_equal(array(samples / part, episode, "action"), trajectory["actions"][:])
            assert np.array_equal(states[:, :7], qpos[:, :7])
            assert np.array_equal(states[:, 7], qpos[:, 7] + qpos[:, 8])


@pytest.mark.parametrize(("camera", "sensor"), [("image", "base_camera"), ("wrist_image", "hand_camera")])
def test_frames_match_the_recordings_in_order_and_colour(samples, camera, sensor):
    layout = DatasetLayout(samples / "train")
    with h5py.File(SAMPLES / "color_object/train/trajectory.h5") as recording:
        for episode in (0, 7):
            original = recording[f"traj_{episode}/obs/sensor_data/{sensor}/rgb"][:-1].astype(np.float32)
            decoded = VideoReader(layout.video_path(episode, camera)).frames(range(len(original)))
            assert np.abs(decoded - original).mean() < 5
            assert np.abs(decoded - original[..., ::-1]).mean() > np.abs(decoded - original).mean()
            moving = range(0, len(original), 8)
            distances = [[np.abs(decoded[i] - original[j]).mean() for j in moving] for i in moving]
            assert np.array_equal(np.argmin(distances, axis=1), np.arange(len(moving)))


def test_the_columns_are_those_of_the_format(eleven):
    first = table(eleven[1] / "train", 2)
    rows = first.to_pylist()
    assert len(rows) == 7
    assert str(first.schema.field("action").type) == "list<element: float>"
    assert [r["frame_index"] for r in rows] == list(range(7))
    assert [r["index"] for r in rows] == list(range(17, 24))
    assert [r["next.done"] for r in rows] == [False] * 6 + [True]
    assert [r["next.reward"] for r in rows] == [0.0] * 6 + [1.0]
    assert np.allclose([r["timestamp"] for r in rows], np.arange(7) / 20)
    assert {r["episode_index"] for r in rows} == {2}
    assert {(r["task_index"], r["annotation.human.task_description"]) for r in rows} == {(0, 0)}


def test_the_frame_tables_open_with_datasets(eleven, tmp_path):
    loaded = Dataset.from_parquet(str(table_path(eleven)), cache_dir=str(tmp_path))
    assert len(loaded) == 20
    assert len(loaded[0]["action"]) == 8


def table_path(eleven):
    return DatasetLayout(eleven[1] / "train").parquet_path(6)


def test_eleven_episodes_keep_their_numeric_order(eleven):
    layout = DatasetLayout(eleven[1] / "train")
    assert [e.length for e in layout.episodes] == ELEVEN
    assert [e["trajectory"] for e in layout.split["episodes"]] == [f"traj_{i}" for i in range(11)]


def test_several_files_keep_their_natural_order(tmp_path):
    for number in (10, 2, 1):
        write_recording(tmp_path / "train", [number, 20], name=f"trajectory_{number}", seed=number)
    assert [e.length for e in read_recordings(tmp_path / "train").episodes] == [1, 20, 2, 20, 10, 20]


def test_info_names_every_feature_and_counts_everything(eleven):
    info = DatasetLayout(eleven[1] / "train").info
    assert (info["total_episodes"], info["total_frames"], info["total_videos"]) == (11, sum(ELEVEN), 22)
    assert (info["fps"], info["chunks_size"], info["total_chunks"]) == (20, 1000, 1)
    assert set(table(eleven[1] / "train", 0).column_names) < set(info["features"])
    assert info["features"]["observation.images.wrist_image"]["shape"] == [32, 32, 3]


def test_the_layout_finds_every_file(eleven):
    for part in ("train", "conflict"):
        layout = DatasetLayout(eleven[1] / part)
        assert layout.tasks == {0: INSTRUCTION}
        assert layout.cameras == ["image", "wrist_image"]
        for episode in layout.episodes:
            assert layout.parquet_path(episode.index).is_file()
            assert all(layout.video_path(episode.index, camera).is_file() for camera in layout.cameras)
            assert episode.tasks == (INSTRUCTION,)


def test_statistics_equal_numpys_over_the_episodes_not_held_out(eleven):
    layout = DatasetLayout(eleven[1] / "train")
    assert len(layout.val_episodes) == 2
    assert sorted(layout.val_episodes + layout.train_episodes) == list(range(11))
    for column in ("observation.state", "action"):
        values = np.concatenate([array(layout.root, i, column) for i in layout.train_episodes]).astype(np.float64)
        stats = layout.statistics()[column]
        assert stats == feature_statistics(values)
        np.testing.assert_allclose(stats["std"], np.std(values, axis=0))
        np.testing.assert_allclose(stats["q01"], np.quantile(values, 0.01, axis=0))


def test_relative_statistics_fit_the_robots_configuration(eleven):
    layout = DatasetLayout(eleven[1] / "train")
    states = [array(layout.root, i, "observation.state") for i in layout.train_episodes]
    actions = [array(layout.root, i, "action") for i in layout.train_episodes]
    relative = layout.relative_statistics()
    assert relative == relative_statistics(states, actions, layout.modality, MODALITY_CONFIG)
    form = to_processor_statistics(layout.statistics(), relative, layout.modality, MODALITY_CONFIG)
    assert np.shape(form["relative_action"]["arm"]["max"]) == (16, 7)
    assert np.shape(form["state"]["gripper"]["mean"]) == (1,)


def test_conflict_holds_nothing_out(eleven):
    assert DatasetLayout(eleven[1] / "conflict").val_episodes == []


def test_validation_is_a_seeded_tenth_and_two_at_least():
    assert choose_val_episodes(260, 0.1, 42) == choose_val_episodes(260, 0.1, 42)
    assert choose_val_episodes(260, 0.1, 42) != choose_val_episodes(260, 0.1, 43)
    assert len(choose_val_episodes(260, 0.1, 42)) == 26
    assert choose_val_episodes(11, 0.1, 42) == (0, 1)  # fixed for ever: published splits depend on it
    with pytest.raises(ToolkitError, match="cannot spare 2"):
        choose_val_episodes(2, 0.1, 42)
    with pytest.raises(ToolkitError, match="val_fraction is 0; it must lie between 0 and 1"):
        choose_val_episodes(20, 0, 42)


def test_the_same_recordings_give_the_same_dataset_with_any_number_of_workers(eleven, tmp_path):
    again = convert_split(
        eleven[0].parent, tmp_path, "color_object", INSTRUCTION, MODALITY_CONFIG, workers=2, progress=False
    )
    assert [p.fingerprint for p in again.parts] == [p.fingerprint for p in eleven[2].parts]


def test_shares_converted_apart_are_finished_to_the_same_dataset_byte_for_byte(eleven, tmp_path):
    def convert(data, **how):
        return convert_split(
            eleven[0].parent, data, "color_object", INSTRUCTION, MODALITY_CONFIG, workers=1, progress=False, **how
        )

    work = tmp_path / "shares/.color_object.converting/dataset"
    assert convert(tmp_path / "shares", share="1/3").parts == []
    unclaimed = work / "train/data/chunk-000/.partial"  # of another share that is writing it
    unclaimed.touch()
    with file_lock(tmp_path / "shares/color_object", shared=True):
        convert(tmp_path / "shares", share="2/3")
        with pytest.raises(ToolkitError, match="another process is writing it"):
            convert(tmp_path / "shares")
    assert unclaimed.exists()
    assert convert(tmp_path / "shares", share="2/3").converted == 0
    whole, joined = convert(tmp_path / "whole"), convert(tmp_path / "shares")
    assert 0 < joined.converted < whole.converted
    files = {p.relative_to(tmp_path / "whole"): p for p in (tmp_path / "whole").rglob("*") if p.is_file()}
    others = {p.relative_to(tmp_path / "shares"): p for p in (tmp_path / "shares").rglob("*") if p.is_file()}
    assert {name: p.read_bytes() for name, p in files.items()} == {name: p.read_bytes() for name, p in others.items()}


@pytest.mark.parametrize("share", ["0/2", "3/2", "2", "1/0", "-1/2"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ToolkitError, match="as in 2/8"):
        share_of(share)


def test_shares_together_take_everything_once():
    assert sorted(n for i in range(1, 5) for n in range(11)[share_of(f"{i}/4")]) == list(range(11))


def test_the_fingerprint_follows_content_and_held_out_episodes(eleven, tmp_path):
    copied = tmp_path / "train"
    shutil.copytree(eleven[1] / "train", copied)
    layout = DatasetLayout(copied)
    original = layout.fingerprint
    del layout.split["fingerprint"], layout.__dict__["fingerprint"]
    assert layout.fingerprint == original
    layout.split["val_episodes"] = [2, 3]
    del layout.__dict__["fingerprint"]
    assert layout.fingerprint != original


def test_split_json_tells_where_every_episode_came_from(eleven):
    split = DatasetLayout(eleven[1] / "train").split
    assert (split["part"], split["instruction"], split["seed"], split["val_fraction"]) == (
        "train",
        INSTRUCTION,
        42,
        0.1,
    )
    assert [s["file"] for s in split["sources"]] == ["trajectory.h5", "trajectory.json"]
    assert split["sources"][0]["size"] == (eleven[0] / "train/trajectory.h5").stat().st_size
    expected = {"episode_index": 3, "file": "trajectory.h5", "trajectory": "traj_3", "episode_seed": 103}
    sketches = split["episodes"][3].pop("first_frame")
    assert split["episodes"][3] == expected
    assert {camera: len(text) for camera, text in sketches.items()} == {"image": 96, "wrist_image": 96}


def test_failed_episodes_are_left_out_and_reported(tmp_path):
    path = write_recording(tmp_path / "raw/own/train", [20, 20, 9, 20, 20], failed=(1, 2))
    with h5py.File(path, "a") as recording:
        replace(recording["traj_2"], "success", np.arange(9) == 4)
    edit_json(path, lambda meta: meta["episodes"][1].update(success=True))  # the recording decides, not this
    report = convert_split(tmp_path / "raw", tmp_path / "data", "own", "do it", MODALITY_CONFIG, progress=False)
    assert report.parts[0].episodes == 3
    lines = "\n".join(report.lines())
    assert "left out, not successful: 1" in lines
    assert "left out, solved, but no longer at its last step: 1" in lines
    left_out = DatasetLayout(tmp_path / "data/own/train").split["left_out"]
    assert [e["trajectory"] for e in left_out] == ["traj_1", "traj_2"]


def test_a_missing_conflict_part_is_a_loud_warning(tmp_path):
    write_recording(tmp_path / "raw/own/train", [20, 20, 20])
    report = convert_split(tmp_path / "raw", tmp_path / "data", "own", "do it", MODALITY_CONFIG, progress=False)
    assert [p.part for p in report.parts] == ["train"]
    assert report.lines()[0].startswith("WARNING:")
    assert "conflict is missing" in report.lines()[0]


def test_a_raw_recording_with_its_replay_beside_it_is_passed_over(tmp_path):
    raw = write_recording(tmp_path, [20, 6, 6])
    write_recording(tmp_path, [20, 6, 6], name="trajectory.rgb.pd_joint_pos.physx_cpu")
    edit_json(raw, lambda meta: meta["env_info"]["env_kwargs"].update(obs_mode="none"))
    recordings = read_recordings(tmp_path)
    assert [e.file.name for e in recordings.episodes] == ["trajectory.rgb.pd_joint_pos.physx_cpu.h5"] * 3
    assert "passed over" in recordings.notes[0]


def test_more_episodes_than_a_chunk_holds_go_to_further_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "CHUNKS_SIZE", 2)
    write_recording(tmp_path / "raw/own/train", [20, 4, 20, 4, 20])
    convert_split(tmp_path / "raw", tmp_path / "data", "own", "do it", MODALITY_CONFIG, progress=False)
    layout = DatasetLayout(tmp_path / "data/own/train")
    assert layout.info["total_chunks"] == 3
    assert layout.parquet_path(4) == layout.root / "data/chunk-002/episode_000004.parquet"
    assert layout.parquet_path(4).is_file()
    assert layout.video_path(3, "image").is_file()


def edit_meta(dataset, name, change):
    path = dataset / "meta" / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def dataset(eleven, tmp_path):
    """A copy of a converted dataset whose meta files may be spoilt."""
    return shutil.copytree(eleven[1] / "conflict", tmp_path / "spoilt")


@pytest.mark.parametrize("template", ["../../{episode_index}.parquet", "/etc/{episode_index}", "data/../../x"])
def test_paths_never_leave_the_dataset(dataset, template):
    edit_meta(dataset, "info.json", lambda info: info.update(data_path=template))
    with pytest.raises(ToolkitError, match="leaves the dataset folder"):
        DatasetLayout(dataset).parquet_path(0)


def test_a_template_with_unknown_names_is_refused(dataset):
    edit_meta(dataset, "info.json", lambda info: info.update(data_path="data/{file_index}.parquet"))
    with pytest.raises(ToolkitError, match="cannot be filled in"):
        DatasetLayout(dataset).parquet_path(0)


def test_unknown_cameras_and_episodes_are_named(dataset):
    with pytest.raises(ToolkitError, match='Did you mean "wrist_image"'):
        DatasetLayout(dataset).video_path(0, "wrist")
    with pytest.raises(ToolkitError, match="no episode 9"):
        DatasetLayout(dataset).parquet_path(9)


def test_a_dataset_of_another_lerobot_version_is_refused(dataset):
    edit_meta(dataset, "info.json", lambda info: info.update(codebase_version="v1.6"))
    with pytest.raises(ToolkitError, match=r"LeRobot v1\.6 dataset; v2\.0, v2\.1 and v3\.0 are read"):
        DatasetLayout(dataset)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("info.json", "{", r"info\.json: not valid JSON"),
        ("info.json", "[]", "expected a JSON object, not list"),
        ("modality.json", None, r"LeRobot's own datasets have no modality\.json"),
        ("episodes.jsonl", '{"episode_index": 0}\n', r"episodes\.jsonl, line 1: length is missing"),
        ("episodes.jsonl", "\n", "lists no episode"),
        ("tasks.jsonl", "{}\nnonsense", r"tasks\.jsonl, line 1: task_index, task is missing"),
    ],
)
def test_spoilt_meta_files_are_named(dataset, name, text, message):
    path = dataset / "meta" / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ToolkitError, match=message):
        DatasetLayout(dataset)


def test_the_originals_own_dataset_is_read():
    layout = DatasetLayout(SAMPLES.parent / "tests/golden/dataset_new_embodiment")
    assert [e.length for e in layout.episodes] == [40, 52, 30]
    assert (layout.fps, layout.val_episodes, layout.train_episodes) == (10, [], [0, 1, 2])
    assert layout.parquet_path(2).is_file()
    assert layout.video_path(2, "image").name == "episode_000002.mp4"
    assert len(layout.fingerprint) == 64


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ToolkitError, match="no such dataset folder"):
        DatasetLayout(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["", "../elsewhere", "a/b", ".hidden", "instruction/../up", "instruction/a/b"])
def test_a_split_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ToolkitError, match="it becomes a folder name"):
        convert_split(tmp_path, tmp_path, name, INSTRUCTION, MODALITY_CONFIG)


def test_a_missing_instruction_is_refused(tmp_path):
    with pytest.raises(ToolkitError, match="has no one-line instruction"):
        convert_split(tmp_path, tmp_path, "color_object", "  ", MODALITY_CONFIG)


def test_no_process_at_all_is_refused(tmp_path):
    with pytest.raises(ToolkitError, match="workers is 0; give the number of processes, 1 or more"):
        convert_split(tmp_path, tmp_path, "color_object", INSTRUCTION, MODALITY_CONFIG, workers=0)


def test_staging_is_readable_by_others_as_the_umask_says(tmp_path):
    with whole_folder(tmp_path / "new") as aside:
        (aside / "file").write_text("x")
    expected = (tmp_path / "other").mkdir() or (tmp_path / "other").stat().st_mode
    assert (tmp_path / "new").stat().st_mode == expected


def with_replays(folder):
    """The recording of a folder as ManiSkill leaves it: without images, and beside it the replay that has them."""
    for end in (".h5", ".json"):
        shutil.copy(folder / f"trajectory{end}", folder / f"trajectory.rgb.pd_joint_pos.physx_cpu{end}")
    edit_json(folder / "trajectory.h5", lambda meta: meta["env_info"]["env_kwargs"].update(obs_mode="none"))


def test_a_part_that_is_recorded_later_is_added_beside_replays_and_linked_folders(tmp_path):
    raw, elsewhere = write_split(tmp_path / "raw", [20, 16, 18], [20]), tmp_path / "larger disk"
    for part in ("train", "conflict"):
        with_replays(raw / "color_object" / part)
    later = shutil.move(raw / "color_object" / "conflict", tmp_path / "conflict")

    def again():
        return convert_split(raw, tmp_path / "data", "color_object", "do it", MODALITY_CONFIG, progress=False).lines()

    again()
    videos = tmp_path / "data/color_object/train/videos"
    shutil.move(videos, elsewhere)
    videos.symlink_to(elsewhere)
    assert "already holds these recordings" in again()[-1]
    shutil.move(later, raw / "color_object" / "conflict")
    assert any("train: is there already and stays as it is" in line for line in again())
    assert videos.is_symlink() and DatasetLayout(tmp_path / "data/color_object/conflict").episodes
    assert "already holds these recordings" in again()[-1]


def test_as_many_steps_at_other_offsets_are_another_dataset_with_other_statistics(tmp_path):
    raw = write_split(tmp_path / "raw", [20, 21, 22], [20])
    action, state = MODALITY_CONFIG["action"], MODALITY_CONFIG["state"]
    later = {**MODALITY_CONFIG, "action": dataclasses.replace(action, delta_indices=[*range(1, 17)])}
    before = {**MODALITY_CONFIG, "state": dataclasses.replace(state, delta_indices=[-1])}
    every = {"usual": MODALITY_CONFIG, "later": later, "before": before}
    for name, configs in every.items():
        convert_split(raw, tmp_path / name, "color_object", "do it", configs, progress=False)
    for name, configs in every.items():
        for other in every.keys() - {name}:
            with pytest.raises(ToolkitError, match="exists already and is left as it is"):
                convert_split(raw, tmp_path / other, "color_object", "do it", configs, progress=False)
        found = [training_statistics(StepReader(tmp_path / f"{o}/color_object/train", configs), "mask") for o in every]
        own = DatasetLayout(tmp_path / f"{name}/color_object/train").relative_statistics()["arm"]
        for of in found:
            np.testing.assert_allclose(of["relative_action"]["arm"]["mean"], own["mean"], rtol=1e-6, atol=1e-9)
