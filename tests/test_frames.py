"""The frame store: the same samples as from the videos, made once, whole or not there."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from conflict_panda_config import MODALITY_CONFIG
from finetune import cache
from finetune.attempt_token import AttemptToken
from finetune.cache import use_frame_store, wait_until
from finetune.config import FinetuneConfig, load
from finetune.data import build_dataset, build_processor
from finetune.engine import Engine
from finetune.preemption import Preemption
from gr00t.data import frames
from gr00t.data.dataset import StepReader, TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import SampleKey
from gr00t.errors import ToolkitError
from gr00t.model.checkpoint import read_config


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
    use_frame_store(settings, reader, engine, Preemption(engine, AttemptToken(Path(settings.run_dir)), 1))
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
    monkeypatch.setattr(cache, "write_frame_store", lambda *a, **k: pytest.fail("made again"))
    reader = stored(settings)
    reader.step(0, 3)
    assert not reader._videos


def test_another_process_maps_the_files_instead_of_receiving_them(settings: FinetuneConfig) -> None:
    store = stored(settings).frame_store
    assert store is not None
    sent = pickle.dumps(store)
    assert len(sent) < 20_000
    assert np.array_equal(pickle.loads(sent).frames(1, "image", [4]), store.frames(1, "image", np.array([4])))


def test_another_dataset_has_another_folder(settings: FinetuneConfig) -> None:
    layout = read(settings).layout
    layout.__dict__["fingerprint"] = "another"
    assert frames.frame_store_folder(Path(settings.cache_dir), layout, ["image"]) != store_folder(settings)


def test_a_store_that_differs_from_the_videos_is_refused(settings: FinetuneConfig, tmp_path: Path) -> None:
    copy = shutil.copytree(settings.cache_dir, tmp_path / "cache")
    path = next(copy.glob("frames-*")) / "image.npy"
    np.load(path, mmap_mode="r+")[0] += 1
    changed = config(Path(settings.dataset.data_dir), Path(settings.model.base), copy)
    with pytest.raises(ToolkitError, match=r"episode 0 differs from its video\). Delete that folder"):
        stored(changed)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ToolkitError, match=r"image\.npy.*Delete that folder"):
        stored(changed)


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


def test_what_never_appears_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="all nodes share"):
        wait_until(lambda: False, tmp_path, grace=0.1)
