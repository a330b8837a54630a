"""The frame store: the same samples as from the videos, made once, whole or not there."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from conflict_panda_config import MODALITY_CONFIG
from finetune.recipe import FinetuneConfig
from finetune.training import caches as cache
from finetune.training.caches import use_frame_store, wait_until
from finetune.training.dataloader import build_dataset, build_processor
from finetune.training.engine import Engine
from finetune.training.stopping import AttemptToken, Stopped, ThisAttempt
from gr00t.data import stored_arrays as frames
from gr00t.data.dataset import TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import SampleKey
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.file_replacement import file_lock
from gr00t.model.weight_files import read_config
from toolkit.configuration import load


def config(data: Path, base: Path, cache_dir: Path, *more: str) -> FinetuneConfig:
    places = [f"model.base={base}", f"dataset.data_dir={data}", f"cache_dir={cache_dir}"]
    return load("finetune", ["model=tiny", "local=none", *places, "device=cpu", "dataset.frames=store", *more])


@pytest.fixture(scope="module")
def settings(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """A configuration whose cache_dir holds the frames of small_data."""
    found = config(small_data, tiny_base, tmp_path_factory.mktemp("cache"))
    stored(found)
    return found


def read(settings: FinetuneConfig) -> StepReader:
    return StepReader(Path(settings.dataset.data_dir) / "color_object" / "train", MODALITY_CONFIG)


def stored(settings: FinetuneConfig) -> StepReader:
    reader = read(settings)
    engine = Engine(settings)
    use_frame_store(ThisAttempt(settings, engine, AttemptToken(Path(settings.run_dir))), reader)
    return reader


def samples(reader: StepReader, settings: FinetuneConfig) -> TrainingDataset:
    base = Path(settings.model.base)
    processor = build_processor(Gr00tN1d7Processor.from_pretrained(base), reader, settings)
    return build_dataset(reader, processor, read_config(base), settings)


def store_folder(settings: FinetuneConfig) -> Path:
    return next(Path(settings.cache_dir).glob("frames-*"))


def test_samples_are_the_same_with_and_without(settings: FinetuneConfig) -> None:
    plain, quick = samples(read(settings), settings), samples(stored(settings), settings)
    assert quick.reader.frame_store is not None
    for key in (SampleKey(0, 0, 0), SampleKey(len(plain) - 1, 3, 1), SampleKey(25, 1, 2)):
        one, other = plain[key], quick[key]
        assert one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_the_store_is_made_once_and_no_video_is_opened(
    settings: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "write_frame_store", lambda *a, **k: pytest.fail("made again"))
    reader = stored(settings)
    reader.step(0, 3)
    assert not reader._videos


def test_another_process_maps_the_files_instead_of_receiving_them(settings: FinetuneConfig) -> None:
    store = stored(settings).frame_store
    assert store is not None
    sent = pickle.dumps(store)
    assert len(sent) < 20_000
    assert np.array_equal(pickle.loads(sent).frames(1, "image", [4]), store.frames(1, "image", np.array([4])))


def test_a_video_that_was_replaced_is_decoded_again(settings: FinetuneConfig, tmp_path: Path) -> None:
    data = Path(shutil.copytree(settings.dataset.data_dir, tmp_path / "data"))
    changed = config(data, Path(settings.model.base), Path(shutil.copytree(settings.cache_dir, tmp_path / "cache")))
    layout = read(changed).layout
    one, other = (layout.video_path(episode, "image") for episode in (0, 4))  # of one length
    before, state = read(changed).step(0, 0).images["image"], one.stat()
    shutil.copy(other, one)
    os.utime(one, ns=(state.st_atime_ns, state.st_mtime_ns))
    now = stored(changed).step(0, 0).images["image"]
    assert np.array_equal(now, read(changed).step(0, 0).images["image"]) and not np.array_equal(now, before)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000 if path.stat().st_size > 1000 else 10)


def by_the_other_camera(path: Path) -> None:
    """Image and wrist image, or their checksums, exchanged."""
    other = path.with_name(path.name.replace("image", "wrist_image"))
    both = path.read_bytes(), other.read_bytes()
    path.write_bytes(both[1]), other.write_bytes(both[0])


@pytest.mark.parametrize(
    "name, damage",
    [
        *((name, how) for name in ("image.npy", ".wrist_image.npy.sha256", "meta.json") for how in (flip, Path.unlink)),
        ("image.npy", cut),
        ("image.npy", by_the_other_camera),
        ("", lambda folder: (shutil.rmtree(folder), folder.mkdir())),
    ],
)
def test_a_damaged_store_is_made_again(
    settings: FinetuneConfig,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(settings.cache_dir, tmp_path / "cache"))
    (folder,) = copy.glob("frames-*")
    damage(folder / name)
    again = config(Path(settings.dataset.data_dir), Path(settings.model.base), copy)
    reader, sound = stored(again), stored(settings)
    assert f"{folder} is damaged" in capsys.readouterr().err
    for camera in ("image", "wrist_image"):
        maps = [r.frame_store._maps[camera] for r in (reader, sound) if r.frame_store is not None]
        assert np.array_equal(*maps)
    stored(again)
    assert not capsys.readouterr().err


def test_a_second_run_waits_for_the_first_and_uses_its_store(
    settings: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second = config(Path(settings.dataset.data_dir), Path(settings.model.base), tmp_path / "cache")
    monkeypatch.setattr(frames, "write_frame_store", lambda *a, **k: pytest.fail("made twice"))
    monkeypatch.setattr(cache, "TURN_SECONDS", 0.05)
    ready = store_folder(settings)
    target = tmp_path / "cache" / ready.name
    target.parent.mkdir()
    with ThreadPoolExecutor(1) as pool:
        with file_lock(target, holder="process 7 on node1, run runs/a"):
            found = pool.submit(stored, second)
            said = ""
            while "waiting for" not in said and not found.done():
                time.sleep(0.05)
                said += capsys.readouterr().err
            time.sleep(0.3)  # it is said once
            assert not found.done()
            shutil.copytree(ready, target)
        assert found.result(120).frame_store is not None
    said += capsys.readouterr().err
    assert said.count("waiting for process 7 on node1, run runs/a, which makes the frames of") == 1


def test_a_run_that_waits_can_be_stopped(
    settings: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = config(Path(settings.dataset.data_dir), Path(settings.model.base), tmp_path / "cache")
    target = tmp_path / "cache" / store_folder(settings).name
    target.parent.mkdir()
    monkeypatch.setattr("finetune.training.stopping.received", lambda: signal.SIGTERM)
    with file_lock(target), pytest.raises(Stopped, match="SIGTERM"):
        stored(second)


def test_a_killed_writer_leaves_nothing_that_counts(
    settings: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = config(Path(settings.dataset.data_dir), Path(settings.model.base), tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(frames, "write_json", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stored(fresh)
    assert not list((tmp_path / "cache").glob("frames-*"))
    assert stored(fresh).frame_store is not None


def test_a_full_disk_is_refused_before_anything_is_written(
    settings: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    fresh = config(Path(settings.dataset.data_dir), Path(settings.model.base), tmp_path / "cache")
    with pytest.raises(ToolkitError, match=r"only 1 bytes are free.*cache_dir=FOLDER"):
        stored(fresh)
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_fills_while_frames_are_decoded_leaves_nothing(settings: FinetuneConfig, tmp_path: Path) -> None:
    fresh = config(Path(settings.dataset.data_dir), Path(settings.model.base), tmp_path / "cache")
    read(fresh)  # its Arrow copy is there
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ToolkitError, match=r"frames-\w+: is larger than a file may be here.*cache_dir=FOLDER"):
            stored(fresh)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("cache/*"))


def test_what_never_appears_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="all nodes share"):
        wait_until(lambda: False, tmp_path, grace=0.1)


def test_episodes_longer_than_a_piece_are_stored_whole(
    settings: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "PIECE", 7)
    layout, counts = read(settings).layout, []
    shapes = frames.frame_shapes(layout, ["image"])
    frames.write_frame_store(tmp_path / "store", layout, shapes, threads=2, on_frames=counts.append)
    expected = stored(settings).frame_store
    assert expected is not None and counts == [e.length for e in layout.episodes]
    assert np.array_equal(np.load(tmp_path / "store/image.npy"), expected._maps["image"])


def test_frames_of_two_sizes_are_refused(settings: FinetuneConfig, tmp_path: Path) -> None:
    layout = read(settings).layout
    shapes = {"image": (104, 32, 64, 3)}
    with pytest.raises(ToolkitError, match="needs one size a camera"):
        frames.write_frame_store(tmp_path / "store", layout, shapes, threads=1)
    assert not (tmp_path / "store").exists()


def test_the_folder_of_frames_is_named_by_content_and_cameras(settings: FinetuneConfig, tmp_path: Path) -> None:
    layout = read(settings).layout
    chosen = (["image"], ["wrist_image"], ["image", "wrist_image"])
    assert len({frames.frame_store_folder(tmp_path, layout, cameras) for cameras in chosen}) == 3
