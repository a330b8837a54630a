"""Images in cells of the frame tables (`dtype: image`, the convention of openpi's scripts) are read where they lie."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conflict_panda_config import MODALITY_CONFIG
from data_prep.adopt import adopt
from data_prep.dataset_page import dataset_page
from data_prep.doctor.examine import examine
from gr00t.data import frame_tables
from gr00t.data.frame_tables import TableImages
from gr00t.data.layout import DatasetLayout
from gr00t.data.step_reader import StepReader
from gr00t.data.stored_arrays import FrameStore, frame_shapes, write_frame_store
from gr00t.errors import ToolkitError
from toolkit.configuration import load

LENGTHS, FPS, SIDE = (24, 30, 27), 20, 48
CAMERAS = ("image", "wrist_image")


def drawn(episode: int, frame: int, camera: str) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    shade = np.stack([x * 4 + frame * 3, y * 4 + episode * 20, (x + y) * 2 + frame], -1)
    return (shade % 256 if camera == "image" else 255 - shade % 256).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


def write_dataset(root: Path, version: str, cell: Callable[[int, int, str], object]) -> Path:
    """A Panda of 8 values whose images lie in the tables, as openpi's conversion scripts write it."""
    (root / "meta").mkdir(parents=True)
    rng, tables, episodes, total = np.random.default_rng(0), [], [], 0
    for e, length in enumerate(LENGTHS):
        t = np.linspace(0, 1, length + 1)[:, None]
        joints = 0.4 * np.sin(3 * t + rng.uniform(0, 6, (1, 7))) - [0, 0, 0, 1.6, 0, -1.6, 0]
        state = np.concatenate([joints, 0.04 - 0.03 * (t > 0.5)], axis=1).astype(np.float32)
        action = np.concatenate([joints[1:], 1.0 - 2.0 * (t[1:] > 0.5)], axis=1).astype(np.float32)
        columns = {camera: [cell(e, f, camera) for f in range(length)] for camera in CAMERAS}
        columns |= {"state": list(state[:-1]), "actions": list(action), "timestamp": np.arange(length) / FPS}
        columns |= {"frame_index": range(length), "episode_index": [e] * length, "task_index": [0] * length}
        columns["index"] = range(total, total + length)
        tables.append(pa.table({name: pa.array(values) for name, values in columns.items()}))
        episodes.append({"episode_index": e, "tasks": ["lift the red cube"], "length": length})
        total += length
    features: dict[str, dict] = {c: {"dtype": "image", "shape": [SIDE, SIDE, 3]} for c in CAMERAS}
    features |= {name: {"dtype": "float32", "shape": [8], "names": [name]} for name in ("state", "actions")}
    info = {"codebase_version": version, "fps": FPS, "features": features, "chunks_size": 1000, "robot_type": "panda"}
    if version == "v3.0":
        info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        (root / "data/chunk-000").mkdir(parents=True)
        pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet", row_group_size=20)
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        rows = [{**e, "data/chunk_index": 0, "data/file_index": 0} for e in episodes]
        pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
        pq.write_table(pa.table({"task_index": [0], "task": ["lift the red cube"]}), root / "meta/tasks.parquet")
    else:
        info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        (root / "data/chunk-000").mkdir(parents=True)
        for e, table in enumerate(tables):
            pq.write_table(table, root / f"data/chunk-000/episode_{e:06d}.parquet")
        (root / "meta/episodes.jsonl").write_text("".join(json.dumps(e) + "\n" for e in episodes))
        (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "lift the red cube"}) + "\n")
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def png(episode: int, frame: int, camera: str) -> dict[str, object]:
    return {"bytes": encoded(drawn(episode, frame, camera)), "path": f"frame_{frame:06d}.png"}


@pytest.fixture(scope="module", params=["v2.1", "v3.0"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dataset(tmp_path_factory.mktemp("openpi") / "set", request.param, png)
    lines = adopt(load("adopt", ["local=none", f"dataset={root}", "write=true", "val_fraction=0"]))
    assert any("taken for a Panda" in line for line in lines)
    return root


def test_a_panda_of_eight_values_is_proposed_as_arm_and_gripper(dataset: Path) -> None:
    modality = DatasetLayout(dataset).modality
    assert modality["state"]["arm"] == {"start": 0, "end": 7, "original_key": "state"}
    assert modality["action"]["gripper"] == {"start": 7, "end": 8, "original_key": "actions"}
    assert modality["video"] == {name: {"original_key": name} for name in CAMERAS}


def test_every_frame_is_the_one_in_its_cell(dataset: Path) -> None:
    reader = StepReader(dataset, MODALITY_CONFIG)
    for episode, length in enumerate(LENGTHS):
        for frame in range(0, length, 5):
            step = reader.step(episode, frame)
            assert step.text == "lift the red cube"
            for camera in CAMERAS:
                assert np.array_equal(step.images[camera][0], drawn(episode, frame, camera))


def test_the_frame_store_holds_the_same(dataset: Path, tmp_path: Path) -> None:
    layout = DatasetLayout(dataset)
    shapes = frame_shapes(layout, list(CAMERAS))
    write_frame_store(tmp_path / "store", layout, shapes, threads=2)
    store = FrameStore(tmp_path / "store", layout, list(CAMERAS))
    assert np.array_equal(store.frames(1, "image", np.array([7]))[0], drawn(1, 7, "image"))
    assert np.array_equal(store.frames(2, "wrist_image", np.array([0]))[0], drawn(2, 0, "wrist_image"))


def test_a_frame_store_of_images_of_another_size_is_refused(dataset: Path, tmp_path: Path) -> None:
    layout, shapes = DatasetLayout(dataset), {"image": (sum(LENGTHS), 8, 8, 3)}
    with pytest.raises(ToolkitError, match="needs one size a camera"):
        write_frame_store(tmp_path / "store", layout, shapes, threads=1)


def test_the_doctor_looks_at_them(dataset: Path) -> None:
    report, _ = examine(dataset, MODALITY_CONFIG)
    assert not report.findings("error"), report.findings("error")


def test_the_name_of_a_camera_leads_nowhere_outside_the_dataset(dataset: Path) -> None:
    def outside() -> set[Path]:
        return {path for path in dataset.parent.parent.rglob("*") if dataset not in path.parents}

    layout, before = DatasetLayout(dataset), outside()
    layout.modality["video"] = {"../../elsewhere/*": {"original_key": "image"}}
    assert np.array_equal(TableImages(layout, "../../elsewhere/*").frames(1, [2])[0], drawn(1, 2, "image"))
    assert outside() == before


def test_each_camera_keeps_its_copy(dataset: Path) -> None:
    layout = DatasetLayout(dataset)
    for camera in (*CAMERAS, *CAMERAS):
        TableImages(layout, camera).frames(0, [0])
    assert len(list((dataset / ".cache").glob("images_*"))) == len(CAMERAS)


def test_the_tables_are_hashed_once_whoever_reads_their_images(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    whole = frame_tables.files_digest
    monkeypatch.setattr(frame_tables, "files_digest", lambda paths: hashed.append(1) or whole(paths))
    reader = StepReader(dataset, MODALITY_CONFIG)
    for episode in range(len(LENGTHS)):
        reader.step(episode, 0)
    assert len(hashed) == 1
    report, subjects = examine(dataset, MODALITY_CONFIG)
    dataset_page(report, subjects, 3)
    assert len(hashed) == 2


def test_a_damaged_table_is_named_with_a_remedy_that_is_whole(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", png)
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true"]))
    table = root / "data/chunk-000/episode_000001.parquet"
    table.write_bytes(table.read_bytes()[:3000])
    report, _ = examine(root, MODALITY_CONFIG, fast=True)
    found = [f for _, r, f in report.findings("error") if r.check == "video decoding"]
    assert found and all("episode_000001.parquet cannot be read (Parquet magic bytes" in f.found for f in found)
    assert all(f.found.endswith(").") and f.remedy.startswith("Copy that file again") for f in found)


@pytest.mark.parametrize("fast", [False, True])
def test_the_doctor_names_a_cell_that_holds_no_image(fast: bool, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lambda e, f, c: {"bytes": b"x", "path": None})
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true"]))
    report, _ = examine(root, MODALITY_CONFIG, fast=fast)
    assert any("no image that can be decoded" in f.found for _, _, f in report.findings("error"))


@pytest.mark.parametrize(
    "cell",
    [
        lambda e, f, c: f"images/{c}/{e}-{f}.png",
        lambda e, f, c: encoded(drawn(e, f, c)),
        lambda e, f, c: {"bytes": None, "path": f"images/{c}/{e}-{f}.png"},
    ],
    ids=["path alone", "bytes alone", "path"],
)
def test_bytes_alone_and_paths_are_read_too(cell: Callable[[int, int, str], object], tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", cell)
    for camera in CAMERAS:
        (root / "images" / camera).mkdir(parents=True)
        for e, length in enumerate(LENGTHS):
            for f in range(length):
                (root / f"images/{camera}/{e}-{f}.png").write_bytes(encoded(drawn(e, f, camera)))
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true"]))
    image = StepReader(root, MODALITY_CONFIG).step(1, 3).images["wrist_image"][0]
    assert np.array_equal(image, drawn(1, 3, "wrist_image"))
    before = DatasetLayout(root).content
    (root / "images/image/1-3.png").write_bytes(encoded(drawn(1, 4, "image")))
    assert DatasetLayout(root).content != before


def test_a_column_of_numbers_is_no_camera(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lambda e, f, c: [1.0, 2.0])
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true"]))
    with pytest.raises(ToolkitError, match="neither image bytes nor a path in images/"):
        StepReader(root, MODALITY_CONFIG).step(0, 0)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": b"no image", "path": None}, "no image that can be decoded"),
        ({"bytes": None, "path": "../../secret.png"}, "neither image bytes nor a path in images/"),
        ({"bytes": None, "path": "/etc/passwd"}, "neither image bytes nor a path in images/"),
        ({"bytes": None, "path": None}, "neither image bytes nor a path in images/"),
        ({"bytes": None, "path": "images/missing.png"}, "no image that can be decoded"),
    ],
)
def test_what_is_no_image_is_named_by_episode_and_frame(cell: dict, message: str, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lambda e, f, c: cell if (e, f) == (1, 4) else png(e, f, c))
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true"]))
    reader = StepReader(root, MODALITY_CONFIG)
    reader.step(1, 3)
    with pytest.raises(ToolkitError, match=f'column "image", episode 1, frame 4.*{message}'):
        reader.step(1, 4)
    shutil.rmtree(root)
