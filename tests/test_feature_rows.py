"""Rows of the feature cache: a start and a view have the same place in writing and in reading."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from gr00t.data.stored_arrays import FeatureStore
from gr00t.errors import ToolkitError
from gr00t.file_replacement import checksum_path


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """33 starts of 4 views: two whole files and one of four rows; row r holds r."""
    store = FeatureStore(tmp_path / "features", 33, 4, tokens=2, width=3, dtype=torch.float32)
    store.folder.mkdir()
    for path, rows in store.files():
        numbers = torch.tensor(list(rows), dtype=torch.float32)
        features = numbers[:, None, None].expand(len(rows), 2, 3).contiguous()
        masks = {name: torch.ones(len(rows), 2, dtype=torch.bool) for name in ("attention_mask", "image_mask")}
        store.write(path, {"features": features, **masks})
    return store


def test_files_hold_64_rows_each_and_the_last_the_rest(store: FeatureStore) -> None:
    assert [rows for _, rows in store.files()] == [range(64), range(64, 128), range(128, 132)]
    assert [path.name for path, _ in store.files()] == [f"rows-{n:05d}.safetensors" for n in range(3)]
    assert store.row_bytes == 2 * (3 * 4 + 1 + 1)


def test_a_start_and_a_view_name_one_row(store: FeatureStore) -> None:
    for start, view, row in ((0, 0, 0), (0, 3, 3), (15, 3, 63), (16, 0, 64), (32, 3, 131)):
        assert store.sample(start, view)["features"].unique().tolist() == [row]
    copy = pickle.loads(pickle.dumps(store))
    assert "_open" not in copy.__dict__ and copy.sample(20, 1)["features"].unique().tolist() == [81]
    batch = store.collate([store.sample(1, 1), store.sample(20, 0)])
    assert batch["features"][:, 0, 0].tolist() == [5, 80] and batch["image_mask"].shape == (2, 2)


def test_a_file_is_missing_without_its_checksum(store: FeatureStore) -> None:
    assert store.missing() == []
    first, second, _ = (path for path, _ in store.files())
    first.unlink()
    checksum_path(second).unlink()
    assert store.missing() == [first, second]


def test_a_file_of_other_rows_or_type_is_refused(store: FeatureStore) -> None:
    paths = [path for path, _ in store.files()]
    paths[2].replace(paths[0])
    with pytest.raises(ToolkitError, match=r"rows-00000\.safetensors holds \(4, 2, 3\)"):
        store.sample(0, 0)
    halved = FeatureStore(store.folder, 33, 4, tokens=2, width=3, dtype=torch.bfloat16)
    with pytest.raises(ToolkitError, match=r"rows-00001\.safetensors holds"):
        halved.sample(16, 0)
