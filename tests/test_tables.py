"""The Arrow copy of frame tables and computed statistics: kept by content, checked when used, made by one process."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conflict_panda_config import MODALITY_CONFIG
from gr00t.data.dataset import training_statistics
from gr00t.data.frame_tables import FrameTables, cache_folder
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.file_replacement import file_lock

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import os, sys, time
from pathlib import Path
from gr00t.file_replacement import file_lock
with file_lock(Path(sys.argv[1]), holder="somebody"):
    if os.fork():
        print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def dataset(small_data: Path, tmp_path: Path) -> Path:
    """A copy of the train part that carries no statistics, and nothing cached."""
    copy = shutil.copytree(small_data / "color_object/train", tmp_path / "train", ignore=lambda *_: [".cache"])
    for name in ("stats.json", "relative_stats.json"):
        (copy / "meta" / name).unlink()
    return copy


def read(root: Path) -> tuple[np.ndarray, object]:
    reader = StepReader(root, MODALITY_CONFIG)
    return reader.trajectory("action", 1)["arm"], training_statistics(reader, "mask")


def kept(root: Path, pattern: str) -> Path:
    (found,) = cache_folder(root).glob(pattern)
    return found


def rewrite(root: Path, offset: float) -> list[tuple[int, int]]:
    """Add to every action; size and time of the files stay."""
    states = []
    for path in sorted(root.glob("data/*/*.parquet")):
        before, table = path.stat(), pq.read_table(path)
        place = table.schema.get_field_index("action")
        values = np.stack(table["action"].to_numpy()) + offset
        column = pa.array(list(values.astype(np.float32)), table.schema.field(place).type)
        pq.write_table(table.set_column(place, "action", column), path, compression="none", use_dictionary=False)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        states.append((path.stat().st_size, path.stat().st_mtime_ns))
    return states


def test_tables_restored_with_their_times_are_read(dataset: Path) -> None:
    before = rewrite(dataset, 0.0)
    actions, statistics = read(dataset)
    assert rewrite(dataset, 0.5) == before
    changed, others = read(dataset)
    np.testing.assert_allclose(changed, actions + 0.5, atol=1e-6)
    assert others != statistics
    assert len(list(cache_folder(dataset).glob("tables-*"))) == 1  # the copy of the old tables is gone


def test_runs_of_other_columns_leave_each_others_copies(dataset: Path) -> None:
    """One may have the other's mapped: on a network file system it would lose its pages."""
    for columns in (["action"], ["observation.state"], ["action"]):
        FrameTables(StepReader(dataset, MODALITY_CONFIG).layout, columns)
    names = {path.name for path in cache_folder(dataset).glob("tables-*")}
    assert len(names) == 3  # both columns of the reader itself too


def flip(path: Path, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def with_checksum(path: Path) -> None:
    """Damage that somebody signed for another cache."""
    from gr00t.file_replacement import write_checksum

    flip(path)
    write_checksum(path, "another")


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, with_checksum])
@pytest.mark.parametrize(
    "pattern", ["tables-*/*.arrow", "tables-*/.*.sha256", "statistics-*.json", ".statistics-*.sha256"]
)
def test_damage_is_found_and_made_again(
    dataset: Path, pattern: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected, statistics = read(dataset)
    content = kept(dataset, pattern).read_bytes()
    damage(kept(dataset, pattern))
    again, others = read(dataset)
    assert np.array_equal(again, expected) and others == statistics
    assert kept(dataset, pattern).read_bytes() == content
    gone = pattern == "statistics-*.json" and damage is Path.unlink
    assert len(caplog.messages) == (not gone) and all("will be made again" in line for line in caplog.messages)
    caplog.clear()
    read(dataset)
    assert not caplog.messages


def test_the_copy_of_another_dataset_is_not_used(dataset: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    rewrite(other, 1.0)
    expected, _ = read(dataset)
    read(other)
    for pattern in ("tables-*", "statistics-*.json", ".statistics-*.sha256"):
        target = kept(dataset, pattern)
        (shutil.rmtree if target.is_dir() else Path.unlink)(target)
        kept(other, pattern).rename(target)
    assert np.array_equal(read(dataset)[0], expected)


def test_read_only_datasets_keep_their_copies_apart(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    rewrite(other, 1.0)
    for root in (dataset, other):
        root.chmod(0o555)
    try:
        expected = [read(root)[0] for root in (dataset, other)]
        flip(kept(dataset, "tables-*/*.arrow"))
        assert all(np.array_equal(read(root)[0], e) for root, e in zip((dataset, other), expected, strict=True))
        assert not (dataset / ".cache").exists() and kept(other, "tables-*") != kept(dataset, "tables-*")
    finally:
        dataset.chmod(0o755), other.chmod(0o755)


@contextmanager
def held(target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `target`, with a forked child as loaders have."""
    target.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(target)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, start_new_session=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            yield holder
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


def test_a_second_process_waits_for_the_first_until_that_is_dead(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = read(dataset)
    target = kept(dataset, "tables-*")
    shutil.rmtree(target)
    found: list[np.ndarray] = []
    with held(target) as holder:
        second = threading.Thread(target=lambda: found.append(read(dataset)[0]), daemon=True)
        second.start()
        second.join(2)
        assert second.is_alive() and not target.exists()
        assert caplog.messages == [f"waiting for somebody, which makes the Arrow copy of {dataset}"]
        os.kill(holder.pid, signal.SIGKILL)  # its child lives on
        second.join(20)
    assert np.array_equal(found[0], expected)


def test_what_the_first_process_made_is_used(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = read(dataset)
    target, away = kept(dataset, "tables-*"), dataset / "away"
    target.rename(away)
    monkeypatch.setattr("gr00t.data.frame_tables._copy", lambda *_: pytest.fail("made twice"))
    found: list[np.ndarray] = []
    second = threading.Thread(target=lambda: found.append(read(dataset)[0]), daemon=True)
    with file_lock(target):
        second.start()
        second.join(0.5)
        away.rename(target)
    second.join(20)
    assert np.array_equal(found[0], expected)


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ToolkitError, match=r"tables-\w+: is larger than a file may be.*Make room"):
            read(dataset)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(cache_folder(dataset).iterdir())
    caplog.set_level(logging.WARNING)
    assert len(read(dataset)[0]) and not caplog.messages
