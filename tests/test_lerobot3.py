"""LeRobot v3.0 as its writers leave it: the same frames, values and texts, and what is damaged named."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from golden_files import golden_path
from recordings import SAMPLES

from conflict_panda_config import MODALITY_CONFIG
from data_prep import adopt as adoption
from data_prep.adopt import adopt
from data_prep.lerobot import choose_val_episodes
from data_prep.modality_proposal import propose, proposed_configs
from gr00t.data.dataset import training_statistics
from gr00t.data.layout import DatasetLayout, by_number, dataset_fingerprint
from gr00t.data.schema import ModalityConfigs
from gr00t.data.statistics import Tail, feature_statistics
from gr00t.data.step_reader import StepReader
from gr00t.data.stored_arrays import FrameStore, frame_shapes, write_frame_store
from gr00t.data.video import EpisodeVideo
from gr00t.errors import ToolkitError
from toolkit.configuration import load

WRITTEN = Path(__file__).parent / "lerobot_v3"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
CAMERAS = ["image", "wrist_image"]


def copy_of(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN / name, tmp_path / name))


def adopted(name: str, tmp_path: Path, *more: str) -> Path:
    folder = copy_of(name, tmp_path)
    adopt(load("adopt", ["local=none", f"dataset={folder}", "write=true", *more]))
    return folder


def decoded(path: Path) -> np.ndarray:
    """Every frame of a video, one after another from its beginning, (N, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_table(path: Path, change: Callable[[dict[str, list]], object]) -> None:
    columns = pq.read_table(path).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), path)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_dataset_that_lerobot_converted_reads_as_before(tmp_path: Path) -> None:
    before = StepReader(shutil.copytree(golden_path("dataset_new_embodiment"), tmp_path / "v21"), MODALITY_CONFIG)
    after = StepReader(copy_of("converted", tmp_path), MODALITY_CONFIG)
    assert after.layout.version == "v3.0" and [e.length for e in after.layout.episodes] == [40, 52, 30]
    for episode, frame in [(0, 0), (1, 51), (0, 39), (2, 29), (1, 0), (1, 23), (2, 0)]:
        old, new = before.step(episode, frame), after.step(episode, frame)
        assert all(np.array_equal(old.images[c], new.images[c]) for c in CAMERAS)
        assert all(np.array_equal(old.states[g], new.states[g]) for g in ("arm", "gripper"))
        assert old.actions and new.actions
        assert all(np.array_equal(old.actions[g], new.actions[g]) for g in ("arm", "gripper"))
        assert old.text == new.text


def test_frames_of_a_shared_video_are_those_decoded_one_by_one(tmp_path: Path) -> None:
    layout = StepReader(adopted("recorded", tmp_path), MODALITY_CONFIG).layout
    whole = decoded(layout.video_path(0, "image"))
    first = 0
    for episode in layout.episodes:
        assert layout.video_path(episode.index, "image") == layout.video_path(0, "image")
        with EpisodeVideo(layout, episode.index, "image") as video:
            order = np.random.default_rng(episode.index).permutation(episode.length)
            assert len(video) == episode.length
            assert np.array_equal(video.frames(order.tolist()), whole[first + order])
        first += episode.length
    assert first == len(whole) == 64


def test_rows_are_found_where_lerobots_converter_names_the_wrong_file(tmp_path: Path) -> None:
    layout = DatasetLayout(copy_of("converted", tmp_path))
    assert len(layout.data_files()) == 2
    assert {layout.parquet_path(e.index).name for e in layout.episodes} == {"file-000.parquet"}
    values = np.concatenate([np.array(pq.read_table(p)["action"].to_pylist()) for p in layout.data_files()])
    reader = StepReader(layout.root, MODALITY_CONFIG)
    assert np.array_equal(reader.trajectory("action", 2)["arm"], values[92:, :7].astype(np.float32))


def test_episodes_share_the_open_file_and_few_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = StepReader(adopted("recorded", tmp_path), MODALITY_CONFIG)
    for episode in (0, 1, 2):
        reader.step(episode, 3)
    assert len(reader._videos) == 2
    monkeypatch.setattr("gr00t.data.step_reader.OPEN_VIDEOS", 1)
    frames = [reader.step(0, 5).images["image"] for _ in range(2)]
    assert np.array_equal(*frames)


def test_the_frame_store_holds_the_same_frames(tmp_path: Path) -> None:
    layout = DatasetLayout(adopted("recorded", tmp_path))
    write_frame_store(tmp_path / "store", layout, frame_shapes(layout, CAMERAS), threads=2)
    store = FrameStore(tmp_path / "store", layout, CAMERAS)
    whole = decoded(layout.video_path(0, "wrist_image"))
    assert np.array_equal(store.frames(1, "wrist_image", np.array([0, 25])), whole[[20, 45]])
    assert np.array_equal(store.frames(2, "wrist_image", np.array([17])), whole[[63]])


def test_maniskills_own_conversion_holds_what_was_recorded(tmp_path: Path) -> None:
    reader = StepReader(adopted("maniskill", tmp_path), MODALITY_CONFIG)
    with h5py.File(SAMPLES / "color_object/train/trajectory.h5") as recording:
        for episode in (0, 1, 2):
            one = recording[f"traj_{episode}"]
            length = len(one["actions"])
            assert reader.layout.episode(episode).length == length
            assert np.array_equal(reader.trajectory("state", episode)["arm"], one["obs/agent/qpos"][:length, :7])
            assert np.array_equal(reader.trajectory("action", episode)["gripper"], one["actions"][:, 7:])
            step = reader.step(episode, length - 1)
            for camera, sensor in (("image", "base_camera"), ("wrist_image", "hand_camera")):
                frames = one[f"obs/sensor_data/{sensor}/rgb"]
                small = [cv2.resize(frames[i], (64, 64)).astype(int) for i in (length - 1, 0)]
                same, other = (np.abs(step.images[camera][0] - frame).mean() for frame in small)
                assert same < 8 and same < other
            assert step.text == "pick up the color-matching object"


@pytest.mark.parametrize("name", ["maniskill", "recorded", "converted"])
def test_fingerprints_notice_every_change(name: str, tmp_path: Path) -> None:
    folder = adopted(name, tmp_path)
    before = DatasetLayout(folder)
    seen = before.fingerprint, before.training_digest()
    assert seen[0] == dataset_fingerprint(folder, before.split)
    edit_table(folder / EPISODES, lambda columns: columns["tasks"].__setitem__(0, ["another"]))
    after = DatasetLayout(folder)
    assert dataset_fingerprint(folder, after.split) != seen[0] and after.training_digest() != seen[1]


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics_are_computed_over_the_episodes_not_held_out(tmp_path: Path) -> None:
    reader = StepReader(adopted("maniskill", tmp_path), MODALITY_CONFIG)
    (train,) = reader.layout.train_episodes
    found = training_statistics(reader, "mask")
    assert found["state"]["arm"] == feature_statistics(reader.trajectory("state", train)["arm"])
    assert np.shape(found["relative_action"]["arm"]["q99"]) == (16, 7)
    assert list((reader.layout.root / ".cache").glob("statistics-*.json"))
    assert training_statistics(reader, "mask") == found
    lerobots = reader.layout.statistics()["action"]["max"]
    assert found["action"]["arm"]["max"] != lerobots[:7]  # of all episodes


def test_kept_statistics_are_not_used_for_other_episodes_or_when_damaged(tmp_path: Path) -> None:
    folder = adopted("maniskill", tmp_path)
    first = training_statistics(StepReader(folder, MODALITY_CONFIG), "mask")
    (kept,) = (folder / ".cache").glob("statistics-*.json")
    kept.write_text("{")
    assert training_statistics(StepReader(folder, MODALITY_CONFIG), "mask") == first
    edit_json(folder / "meta/split.json", lambda split: split.update(val_episodes=[]))
    assert training_statistics(StepReader(folder, MODALITY_CONFIG), "mask")["state"] != first["state"]


def test_what_a_gr00t_flavoured_dataset_carries_is_used_and_what_it_lacks_computed(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_path("dataset_new_embodiment"), tmp_path / "v21"))
    edit_json(folder / "meta/stats.json", lambda stats: stats["action"]["max"].__setitem__(0, 77.0))
    (folder / "meta/relative_stats.json").unlink()
    found = training_statistics(StepReader(folder, MODALITY_CONFIG), "mask")
    assert found["action"]["arm"]["max"][0] == 77.0
    assert np.shape(found["relative_action"]["arm"]["mean"]) == (16, 7)


def test_a_dataset_that_may_not_be_written_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adopted("maniskill", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder.chmod(0o555)
    try:
        before = sorted(folder.rglob("*"))
        training_statistics(StepReader(folder, MODALITY_CONFIG), "mask")
        assert sorted(folder.rglob("*")) == before
    finally:
        folder.chmod(0o755)


# -- adoption ----------------------------------------------------------------------------------------------------------


def test_without_modality_json_the_error_names_the_command(tmp_path: Path) -> None:
    folder = copy_of("recorded", tmp_path)
    with pytest.raises(ToolkitError, match=f"python -m data_prep.adopt dataset={folder} write=true"):
        StepReader(folder, MODALITY_CONFIG)


@pytest.mark.parametrize("arguments", [["--help"], ["dataset=nowhere"]])
def test_neither_help_nor_a_refusal_loads_pyarrow_and_decoders(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from toolkit.command_line import run_main; from data_prep.adopt import main\n"
        "try: run_main(main, 'adopt')\n"
        "finally: print([n for n in ('pyarrow', 'av', 'cv2', 'h5py') if n in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert result.stderr.endswith("[]\n") and "Traceback" not in result.stderr, result.stderr


def test_adoption_writes_only_when_asked_and_never_over_what_is_there(tmp_path: Path) -> None:
    folder = copy_of("recorded", tmp_path)
    arguments = ["local=none", f"dataset={folder}"]
    text = "\n".join(adopt(load("adopt", arguments)))
    assert "nothing was written" in text and "wrist for wrist_image" in text
    assert not (folder / "meta/modality.json").exists()
    adopt(load("adopt", [*arguments, "write=true"]))
    edit_json(folder / "meta/modality.json", lambda modality: modality["state"].update(own={"start": 0, "end": 1}))
    before = (folder / "meta/modality.json").read_text()
    assert "nothing to write" in adopt(load("adopt", [*arguments, "write=true"]))
    assert (folder / "meta/modality.json").read_text() == before
    assert len(DatasetLayout(folder).val_episodes) == 2
    assert DatasetLayout(adopted("maniskill", tmp_path, "val_fraction=0")).train_episodes == [0, 1, 2]


def test_groups_follow_the_names_of_dimensions() -> None:
    names = [f"{side}_{part}" for side in ("left", "right") for part in ("waist", "elbow", "wrist", "gripper")]
    found = propose(info(names), MODALITY_CONFIG, "info.json")
    assert list(found.modality["state"]) == ["left_arm", "left_gripper", "right_arm", "right_gripper"]
    assert found.modality["action"]["right_arm"] == {"start": 4, "end": 7}
    configs, _ = proposed_configs(found.modality, info(names), MODALITY_CONFIG)
    assert [c.rep.name for c in configs["action"].action_configs or []] == ["RELATIVE", "ABSOLUTE"] * 2


def info(names: list[str] | dict | None, **features: dict) -> dict:
    size = 8 if names is None or isinstance(names, dict) else len(names)
    vector = {"dtype": "float32", "shape": [size], "names": names}
    camera = {"dtype": "video", "shape": [64, 64, 3]}
    return {"features": {"observation.state": vector, "action": vector, "observation.images.top": camera, **features}}


def test_names_in_a_dictionary_are_read_and_numbers_are_no_names() -> None:
    named = {"motors": ["j1", "j2", "j3", "gripper", "base_x", "base_y", "base_w", "j9"]}
    found = propose(info(named), MODALITY_CONFIG, "info.json").modality["state"]
    assert list(found) == ["arm", "gripper", "base", "arm_2"]
    unnamed = propose(info([f"motor_{i}" for i in range(6)]), MODALITY_CONFIG, "info.json")
    assert unnamed.modality["state"] == {"arm": {"start": 0, "end": 6}}
    assert "no telling names" in unnamed.assumed[0]


def half_named(state: list[str] | int, action: list[str] | int) -> dict:
    """info of a state and an action: the names of the dimensions, or how many there are without names."""
    features = info(None)["features"]
    for column, given in (("observation.state", state), ("action", action)):
        size, names = (len(given), given) if isinstance(given, list) else (given, None)
        features[column] = {"dtype": "float32", "shape": [size], "names": names}
    return {"features": features}


def test_names_of_state_or_action_alone_count_more_than_the_guess_of_a_panda() -> None:
    joints = ["gripper", *(f"j{n}" for n in range(1, 8))]
    found = propose(half_named(state=joints, action=8), MODALITY_CONFIG, "info.json")
    own = {"gripper": {"start": 0, "end": 1}, "arm": {"start": 1, "end": 8}}
    assert found.modality["state"] == found.modality["action"] == own
    assert not any("Panda" in said for said in found.assumed)
    assert "action has no telling names of dimensions, and as many as state: it has its names" in found.assumed
    pose = ["x", "y", "z", "qx", "qy", "qz", "qw", "gripper"]
    found = propose(half_named(state=8, action=pose), MODALITY_CONFIG, "info.json")
    assert list(found.modality["state"]) == list(found.modality["action"]) == ["eef", "gripper"]
    found = propose(half_named(state=9, action=pose), MODALITY_CONFIG, "info.json")
    assert list(found.modality["action"]) == ["eef", "gripper"]
    assert found.modality["state"] == {"arm": {"start": 0, "end": 9}}
    found = propose(half_named(state=9, action=8), MODALITY_CONFIG, "info.json")
    assert "Panda" in found.assumed[0] and list(found.modality["state"]) == ["arm", "gripper"]


def test_further_columns_become_groups_and_depth_is_left_out() -> None:
    depth = {"dtype": "video", "shape": [64, 64, 3], "info": {"video.is_depth_map": True}}
    force = {"dtype": "float32", "shape": [1], "names": None}
    extra = {"observation.force": force, "observation.images.depth": depth, "next.reward": force}
    found = propose(info(["a", "b"], **extra), MODALITY_CONFIG, "info.json")
    assert found.modality["state"]["force"] == {"start": 0, "end": 1, "original_key": "observation.force"}
    assert list(found.modality["video"]) == ["top"]
    assert found.left_out == ["observation.images.depth", "next.reward"]


def test_a_column_of_one_value_is_read_as_a_group(tmp_path: Path) -> None:
    folder = adopted("recorded", tmp_path)
    edit_table(folder / "data/chunk-000/file-000.parquet", lambda c: c.update(force=[0.5] * 64))
    entry = {"start": 0, "end": 1, "original_key": "force"}
    edit_json(folder / "meta/modality.json", lambda modality: modality["state"].update(force=entry))
    more = {**MODALITY_CONFIG, "state": type(MODALITY_CONFIG["state"])([0], ["arm", "gripper", "force"])}
    reader = StepReader(folder, more)
    assert reader.step(1, 3).states["force"].tolist() == [[0.5]]
    assert training_statistics(reader, "mask")["state"]["force"]["std"] == [0.0]


NOT_ADOPTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no dataset": (lambda d: (d / "meta/info.json").unlink(), r"has no meta/info\.json"),
    "no features": (lambda d: edit_json(d / "meta/info.json", lambda i: i.pop("features")), "no object of features"),
    "no action": (
        lambda d: edit_json(d / "meta/info.json", lambda i: i["features"].pop("action")),
        r"no feature is a action \(action",
    ),
    "no camera": (
        lambda d: edit_json(
            d / "meta/info.json", lambda i: [f.update(dtype="depth") for n, f in i["features"].items() if "images" in n]
        ),
        "no feature is a video or an image",
    ),
    "no data": (lambda d: shutil.rmtree(d / "data"), "data holds no"),
    "a column that is not there": (
        lambda d: edit_table(d / "data/chunk-000/file-000.parquet", lambda c: c.pop("action")),
        'has no column "action", which meta/info.json lists',
    ),
    "too few episodes": (
        lambda d: edit_table(d / EPISODES, lambda c: [column.__delitem__(slice(1, None)) for column in c.values()]),
        "val_fraction=0",
    ),
}


@pytest.mark.parametrize("case", NOT_ADOPTED)
def test_what_cannot_be_adopted_is_refused_and_left_alone(case: str, tmp_path: Path) -> None:
    folder = copy_of("recorded", tmp_path)
    spoil, message = NOT_ADOPTED[case]
    spoil(folder)
    with pytest.raises(ToolkitError, match=message):
        adopt(load("adopt", ["local=none", f"dataset={folder}", "write=true"]))
    assert not (folder / "meta/modality.json").exists() and not (folder / "meta/split.json").exists()


def test_a_folder_that_may_not_be_written_gets_the_way_with_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of("recorded", tmp_path)

    def read_only(path: Path, value: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(adoption, "write_json", read_only)
    with pytest.raises(ToolkitError, match="write=true split=NAME"):
        adopt(load("adopt", ["local=none", f"dataset={folder}", "write=true"]))


def test_a_folder_of_links_is_adopted_and_read_without_touching_the_dataset(tmp_path: Path) -> None:
    folder, own = copy_of("recorded", tmp_path), tmp_path / "own"
    own.mkdir()
    for part in ("data", "videos"):
        (own / part).symlink_to(folder / part)
    shutil.copytree(folder / "meta", own / "meta")
    adopt(load("adopt", ["local=none", f"dataset={own}", "write=true"]))
    reader = StepReader(own, MODALITY_CONFIG)
    assert reader.step(2, 0).text == "open the drawer" and len(reader.layout.fingerprint) == 64
    assert not (folder / ".cache").exists() and not (folder / "meta/modality.json").exists()


def test_a_dataset_in_read_only_folders_becomes_a_split(tmp_path: Path) -> None:
    folder = copy_of("recorded", tmp_path)
    for path in filter(Path.is_dir, [folder, *folder.rglob("*")]):
        path.chmod(0o555)
    adopt(load("adopt", ["local=none", f"dataset={folder}", f"data_dir={tmp_path}", "split=mine", "write=true"]))
    own = tmp_path / "mine/train"
    assert all(path.stat().st_mode & 0o700 == 0o700 for path in filter(Path.is_dir, [own, *own.rglob("meta/**")]))
    assert StepReader(own, MODALITY_CONFIG).step(2, 0).text == "open the drawer"
    for path in filter(Path.is_dir, [folder, *folder.rglob("*")]):
        path.chmod(0o755)  # whoever tidies up is not the superuser everywhere


# -- what is damaged ---------------------------------------------------------------------------------------------------


def shift(seconds: float) -> Callable[[Path], None]:
    """Move the beginning of episode 1 in the front camera's video."""
    name = "videos/observation.images.front/from_timestamp"
    return lambda d: edit_table(d / EPISODES, lambda c: c[name].__setitem__(1, c[name][1] + seconds))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


FRONT = "videos/observation.images.front/chunk-000/file-000.mp4"
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list of episodes": (lambda d: shutil.rmtree(d / "meta/episodes"), r"meta/episodes holds no .*again"),
    "half a list of episodes": (lambda d: cut(d / EPISODES), r"episodes/.*cannot be read.*finalize"),
    "a list without lengths": (lambda d: edit_table(d / EPISODES, lambda c: c.pop("length")), "columns length are"),
    "no tasks": (lambda d: (d / "meta/tasks.parquet").unlink(), r"tasks\.parquet cannot be read"),
    "a task without text": (
        lambda d: pq.write_table(pa.table({"task_index": [0, 1]}), d / "meta/tasks.parquet"),
        "task 0 has no instruction",
    ),
    "an episode twice": (
        lambda d: edit_table(d / EPISODES, lambda c: c["episode_index"].__setitem__(1, 0)),
        "names an episode twice",
    ),
    "an episode that is too long": (
        lambda d: edit_table(d / EPISODES, lambda c: c["length"].__setitem__(1, 30)),
        r"file-000\.parquet: the episode_index column does not say 1 in 30 rows",
    ),
    "two lengths exchanged": (
        lambda d: edit_table(d / EPISODES, lambda c: c.update(length=[26, 20, 18])),
        r"file-000\.parquet: the episode_index column does not say 0 in 26 rows",
    ),
    "no video": (lambda d: (d / FRONT).unlink(), r"1 of 2 videos are missing.*front"),
    "half a video": (lambda d: cut(d / FRONT), r"front.*ends \d+ frames before episode 1"),
    "a video's place unknown": (
        lambda d: edit_table(d / EPISODES, lambda c: c.pop("videos/observation.images.front/file_index")),
        "episode 0 has no videos/observation.images.front/file_index",
    ),
    "a camera that is not there": (
        lambda d: edit_json(d / "meta/modality.json", lambda m: m["video"]["image"].update(original_key="front")),
        "has no videos/front/chunk_index.*original_key",
    ),
    "an episode behind the video's end": (shift(100), "ends 25 frames before episode 1"),
    "another frame rate": (
        lambda d: edit_json(d / "meta/info.json", lambda i: i.update(fps=20)),
        r"frame 2 of episode 1 .*fps in meta/info\.json \(20\)",
    ),
    "no frame rate": (lambda d: edit_json(d / "meta/info.json", lambda i: i.update(fps=0)), "fps is 0"),
    "a path that leaves the folder": (
        lambda d: edit_json(d / "meta/info.json", lambda i: i.update(video_path="../../{video_key}{file_index}")),
        "leaves the dataset folder",
    ),
    "the templates of v2.1": (
        lambda d: edit_json(d / "meta/info.json", lambda i: i.update(data_path="data/{episode_index}.parquet")),
        r"cannot be filled in .*v3\.0",
    ),
    "a table less": (lambda d: (d / "data/chunk-000/file-000.parquet").unlink(), r"file-000\.parquet is missing"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adopted("recorded", tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_named(case: str, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "damaged"))
    spoil, message = DAMAGED[case]
    spoil(folder)
    with pytest.raises(ToolkitError, match=message):
        StepReader(folder, MODALITY_CONFIG).step(1, 3)


def test_a_video_in_which_a_frame_is_missing_is_found_out(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "damaged"))
    with av.open(str(sound / FRONT)) as source, av.open(str(folder / FRONT), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is not None and number not in (31,):  # of episode 1
                packet.stream = stream
                target.mux(packet)
    reader = StepReader(folder, MODALITY_CONFIG)
    assert reader.step(0, 19).images["image"].shape == (1, 64, 64, 3)
    with pytest.raises(ToolkitError, match=r"frame 11 of episode 1 .*missing or doubled"):
        reader.step(1, 3)


def lengthen_seconds(folder: Path, by: float) -> None:
    """Let the front camera's from_timestamp grow by so much too much an episode."""
    name = "videos/observation.images.front/from_timestamp"
    edit_table(folder / EPISODES, lambda c: c.update({name: [t + by * e for e, t in enumerate(c[name])]}))


@pytest.mark.parametrize("by", [0.012, -0.012, 0.1])
def test_seconds_that_drift_change_no_frame_where_the_lengths_add_up(by: float, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "drifting"))
    lengthen_seconds(folder, by)
    readers = [StepReader(each, MODALITY_CONFIG) for each in (sound, folder)]
    for episode in readers[0].layout.episodes:
        for frame in (0, episode.length - 1):
            images = [reader.step(episode.index, frame).images["image"] for reader in readers]
            assert np.array_equal(*images)


def without(episode: int) -> Callable[[dict[str, list]], object]:
    return lambda columns: [column.pop(episode) for column in columns.values()]


@pytest.mark.parametrize("by", [0.012, -0.012, -1 / 30])  # by a whole frame: each begins before the other has ended
def test_seconds_that_drift_are_refused_where_the_lengths_do_not_add_up(by: float, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "drifting"))
    edit_table(folder / EPISODES, without(0))
    assert StepReader(folder, MODALITY_CONFIG).step(1, 0).images["image"].any()
    lengthen_seconds(folder, by)
    reader = StepReader(folder, MODALITY_CONFIG)
    with pytest.raises(ToolkitError, match=r"episode 2 .*from_timestamp of that file drift away"):
        reader.step(2, 0)


def test_rows_of_episodes_that_are_not_listed_are_passed_over(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "fewer"))
    edit_table(folder / EPISODES, without(1))
    whole, fewer = StepReader(sound, MODALITY_CONFIG), StepReader(folder, MODALITY_CONFIG)
    assert [e.index for e in fewer.layout.episodes] == [0, 2]
    for episode in (0, 2):
        a, b = whole.step(episode, 5), fewer.step(episode, 5)
        assert np.array_equal(a.images["image"], b.images["image"]) and a.text == b.text
        assert np.array_equal(a.actions["arm"], b.actions["arm"])


def test_an_episode_whose_rows_are_there_twice_is_named(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "twice"))
    (path,) = (folder / "data").glob("*/*.parquet")
    table = pq.read_table(path)
    first = table.filter(pa.compute.equal(table["episode_index"], 0))
    pq.write_table(pa.concat_tables([table, first]), path)
    with pytest.raises(ToolkitError, match="does not say 0 in 20 rows that follow each other"):
        StepReader(folder, MODALITY_CONFIG)


def test_columns_that_nobody_reads_may_differ_between_files(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "differing"))
    expected = StepReader(sound, MODALITY_CONFIG).step(2, 0)
    (path,) = (folder / "data").glob("*/*.parquet")
    table = pq.read_table(path)
    last = pa.compute.equal(table["episode_index"], 2)
    for part, extra, name in ((pa.compute.invert(last), 1.0, path), (last, "text", path.with_name("file-001.parquet"))):
        rows = table.filter(part)
        pq.write_table(rows.append_column("extra", pa.array([extra] * len(rows))), name)
    assert np.array_equal(StepReader(folder, MODALITY_CONFIG).step(2, 0).actions["arm"], expected.actions["arm"])


TASKS = ["open the drawer", "close the drawer"]


@pytest.mark.parametrize(
    "columns",
    [
        {"scene": ["kitchen", "kitchen"], "task_index": [0, 1], "task": TASKS},
        {"scene": ["kitchen", "kitchen"], "task_index": [0, 1], "__index_level_0__": TASKS},
        {"task_index": [0, 1], "instruction": TASKS},
    ],
)
def test_the_instruction_is_in_the_column_of_that_name_the_index_or_the_only_text(
    columns: dict[str, list], sound: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "tasks"))
    pq.write_table(pa.table(columns), folder / "meta/tasks.parquet")
    assert DatasetLayout(folder).tasks == dict(enumerate(TASKS))


def test_two_columns_that_may_hold_the_instruction_are_named(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "tasks"))
    pq.write_table(pa.table({"a": TASKS, "b": TASKS, "task_index": [0, 1]}), folder / "meta/tasks.parquet")
    with pytest.raises(ToolkitError, match=r"which of the columns a, b holds the instructions\?.*\"task\""):
        DatasetLayout(folder)


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_files_are_in_the_order_of_their_numbers() -> None:
    names = ["chunk-001/file-000", "chunk-000/file-1000", "chunk-000/file-999", "chunk-000/file-002"]
    assert [p.as_posix() for p in by_number(map(Path, names))] == [names[3], names[2], names[1], names[0]]


def test_end_effector_dimensions_and_velocities_are_groups_of_their_own() -> None:
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper.pos", "shoulder_pan", "x.vel", "y.vel"]
    found = propose(info(names), MODALITY_CONFIG, "info.json").modality["state"]
    ends = {name: (group["start"], group["end"]) for name, group in found.items()}
    assert ends == {"eef": (0, 6), "gripper": (6, 7), "arm": (7, 8), "base": (8, 10)}


def test_only_a_state_of_eight_or_nine_values_and_eight_actions_is_taken_for_a_panda() -> None:
    def groups(state: int, action: int, names: list[str] | None = None) -> list[str]:
        vectors = {"observation.state": state, "action": action}
        features = {n: {"dtype": "float32", "shape": [size], "names": names} for n, size in vectors.items()}
        camera = {"dtype": "video", "shape": [64, 64, 3]}
        found = propose({"features": {**features, "observation.images.a": camera}}, MODALITY_CONFIG, "info.json")
        return [f"{name}:{g['end']}" for name, g in found.modality["state"].items()]

    assert groups(8, 8) == groups(9, 8) == ["arm:7", "gripper:8"]
    assert groups(7, 8) == ["arm:7"] and groups(9, 7) == ["arm:9"] and groups(10, 8) == ["arm:10"]
    assert groups(8, 8, list("abcdefgh")) == ["arm:8"]


def test_only_float_columns_of_one_dimension_are_groups() -> None:
    columns = {
        "observation.count": {"dtype": "int64", "shape": [1]},
        "observation.map": {"dtype": "float32", "shape": [2, 2]},
        "action.extra": {"dtype": "float64", "shape": [3]},
    }
    found = propose(info(["a", "b"], **columns), MODALITY_CONFIG, "info.json")
    assert list(found.modality["state"]) == ["arm"] and list(found.modality["action"]) == ["arm", "extra"]
    assert found.left_out == ["observation.count", "observation.map"]


@pytest.mark.parametrize(
    ("own", "names"),
    [
        (["front", "wrist"], {"image": "front", "wrist_image": "wrist"}),
        (["wrist", "front"], {"image": "front", "wrist_image": "wrist"}),
        (["front", "top"], {"front": "front", "top": "top"}),  # none on the hand
        (["front", "wrist", "top"], {"front": "front", "wrist": "wrist", "top": "top"}),
        (["wrist_image", "image", "top"], {"wrist_image": "wrist_image", "image": "image", "top": "top"}),
    ],
)
def test_cameras_get_the_names_of_the_configuration_where_there_is_no_doubt(own: list[str], names: dict) -> None:
    features = {f"observation.images.{name}": {"dtype": "video", "shape": [64, 64, 3]} for name in own}
    vector = {"dtype": "float32", "shape": [8], "names": None}
    given = {"features": {"observation.state": vector, "action": vector, **features}}
    found = propose(given, MODALITY_CONFIG, "info.json").modality["video"]
    assert found == {key: {"original_key": f"observation.images.{name}"} for key, name in names.items()}


def test_actions_are_relative_to_a_state_of_their_name_and_size_only() -> None:
    def part(start: int, end: int) -> dict[str, int]:
        return {"start": start, "end": end}

    state = {"arm": part(0, 6), "hand": part(6, 9), "base": part(9, 12), "left_gripper": part(12, 13)}
    action = {
        "arm": part(1, 7),
        "hand": part(7, 9),
        "base": part(9, 12),
        "left_gripper": part(12, 13),
        "own": part(0, 1),
    }
    modality = {"state": state, "action": action, "video": {"top": {}}, "annotation": {"first": {}, "second": {}}}
    configs, _ = proposed_configs(modality, {}, MODALITY_CONFIG)
    assert [c.rep.name for c in configs["action"].action_configs or []] == ["RELATIVE"] + ["ABSOLUTE"] * 4
    assert configs["action"].delta_indices == MODALITY_CONFIG["action"].delta_indices
    assert configs["state"].modality_keys == list(state) and configs["video"].modality_keys == ["top"]
    assert configs["language"].modality_keys == ["annotation.first"]


def test_held_out_episodes_of_an_adopted_dataset_are_named_by_their_index(tmp_path: Path) -> None:
    folder = copy_of("recorded", tmp_path)
    edit_table(folder / EPISODES, lambda c: c.update(episode_index=[10, 20, 30]))
    adopt(load("adopt", ["local=none", f"dataset={folder}", "write=true", "seed=3"]))
    layout = DatasetLayout(folder)
    places = choose_val_episodes(3, layout.split["val_fraction"], 3)
    assert layout.split["seed"] == 3 and layout.val_episodes == [[10, 20, 30][i] for i in places]


def test_a_split_that_is_there_stays_when_a_dataset_is_adopted(tmp_path: Path) -> None:
    folder = copy_of("recorded", tmp_path)
    (folder / "meta/split.json").write_text('{"val_episodes": [2]}')
    adopt(load("adopt", ["local=none", f"dataset={folder}", "write=true"]))
    assert json.loads((folder / "meta/split.json").read_text()) == {"val_episodes": [2]}
    assert DatasetLayout(folder).train_episodes == [0, 1]


def test_statistics_that_lerobot_wrote_are_left_aside(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_path("dataset_new_embodiment"), tmp_path / "v21"))
    expected = training_statistics(StepReader(folder, MODALITY_CONFIG), "mask")["action"]
    edit_json(folder / "meta/stats.json", lambda stats: [of.pop("q01") for of in stats.values()])
    found = training_statistics(StepReader(folder, MODALITY_CONFIG), "mask")["action"]
    np.testing.assert_allclose(found["arm"]["q01"], expected["arm"]["q01"], atol=1e-6)


def test_kept_statistics_are_of_one_tail_modality_and_horizon(tmp_path: Path) -> None:
    folder = adopted("maniskill", tmp_path)

    def arm(tail: Tail, configs: ModalityConfigs = MODALITY_CONFIG) -> dict[str, list]:
        return training_statistics(StepReader(folder, configs), tail)["relative_action"]["arm"]

    masked = arm("mask")
    assert arm("drop") != masked
    shorter = dataclasses.replace(MODALITY_CONFIG["action"], delta_indices=[0, 3])
    assert arm("mask", {**MODALITY_CONFIG, "action": shorter})["mean"] == [masked["mean"][0], masked["mean"][3]]
    edit_json(folder / "meta/modality.json", lambda m: m["state"]["arm"].update(start=1, end=8))
    assert arm("mask") != masked


def test_with_dropped_tails_carried_relative_statistics_are_not_used(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_path("dataset_new_embodiment"), tmp_path / "v21"))
    edit_json(folder / "meta/relative_stats.json", lambda stats: stats["arm"]["max"][0].__setitem__(0, 77.0))
    edit_json(folder / "meta/stats.json", lambda stats: stats["action"]["max"].__setitem__(0, 77.0))
    reader = StepReader(folder, MODALITY_CONFIG)
    masked, dropped = training_statistics(reader, "mask"), training_statistics(reader, "drop")
    assert masked["relative_action"]["arm"]["max"][0][0] == 77.0 != dropped["relative_action"]["arm"]["max"][0][0]
    assert masked["action"] == dropped["action"]
    assert dropped["relative_action"]["arm"] == reader.relative_statistics([0, 1, 2], "drop")["arm"]
