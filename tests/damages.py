"""Ways in which a dataset goes wrong, each done to a folder that was sound; used by test_doctor.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from conflict_panda_config import MODALITY_CONFIG
from gr00t.data.statistics import feature_statistics, relative_statistics
from gr00t.data.video import VideoReader, write_video

Columns = dict[str, np.ndarray]
CAMERAS = ("image", "wrist_image")


def table_path(root: Path, episode: int) -> Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def video_path(root: Path, episode: int, camera: str = "image") -> Path:
    return root / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"


def episode_numbers(root: Path) -> list[int]:
    return sorted(int(path.stem[-6:]) for path in (root / "data").rglob("*.parquet"))


def read_table(root: Path, episode: int) -> Columns:
    table = pq.read_table(table_path(root, episode))
    return {name: np.array(table.column(name).to_pylist()) for name in table.column_names}


def write_table(root: Path, episode: int, columns: Columns) -> None:
    floats = {n: v.astype(np.float32) if v.dtype.kind == "f" else v for n, v in columns.items()}
    table = pa.table({n: pa.array(list(v) if v.ndim == 2 else v) for n, v in floats.items()})
    pq.write_table(table, table_path(root, episode))


def edit_tables(
    root: Path,
    change: Callable[[Columns], object],
    episodes: Iterable[int] | None = None,
    *,
    new_statistics: bool = True,
) -> None:
    """Apply `change` to the columns of some or all episodes, and write the statistics anew, as a careful user would."""
    for episode in episode_numbers(root) if episodes is None else episodes:
        columns = read_table(root, episode)
        change(columns)
        write_table(root, episode, columns)
    if new_statistics:
        renew_statistics(root)


def renew_statistics(root: Path) -> None:
    """stats.json and relative_stats.json from the training episodes as they are now."""
    held_out = json.loads((root / "meta/split.json").read_text())["val_episodes"]
    tables = [read_table(root, i) for i in episode_numbers(root) if i not in held_out]
    recorded = json.loads((root / "meta/stats.json").read_text())
    for name in recorded:
        joined = np.concatenate([t[name] for t in tables]).astype(np.float64)
        recorded[name] = feature_statistics(joined if joined.ndim == 2 else joined[:, None])
    (root / "meta/stats.json").write_text(json.dumps(recorded))
    modality = json.loads((root / "meta/modality.json").read_text())
    pairs = [[t[name].astype(np.float32) for t in tables] for name in ("observation.state", "action")]
    relative = relative_statistics(pairs[0], pairs[1], modality, MODALITY_CONFIG)
    (root / "meta/relative_stats.json").write_text(json.dumps(relative))


def edit_meta(root: Path, name: str, change: Callable[[Any], object]) -> None:
    path = root / "meta" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_lines(root: Path, name: str, change: Callable[[list[Any]], object]) -> None:
    path = root / "meta" / name
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_videos(
    root: Path,
    change: Callable[[np.ndarray], np.ndarray],
    episodes: Iterable[int] | None = None,
    cameras: Iterable[str] = CAMERAS,
) -> None:
    """Decode, change (T, H, W, 3) and encode again."""
    for episode in episode_numbers(root) if episodes is None else episodes:
        for camera in cameras:
            path = video_path(root, episode, camera)
            with VideoReader(path) as reader:
                frames, fps = reader.frames(range(len(reader))), round(reader.fps)
            write_video(path, np.ascontiguousarray(change(frames)), fps)


def shifted(values: np.ndarray, steps: int) -> np.ndarray:
    """values[t - steps] at t, the ends held."""
    return values[np.clip(np.arange(len(values)) - steps, 0, len(values) - 1)]


def put(columns: Columns, name: str, where: Any, value: Any) -> None:
    columns[name] = columns[name].astype(np.float64)
    columns[name][where] = value


def scale(columns: Columns, name: str, dims: slice, factor: float) -> None:
    columns[name] = columns[name].astype(np.float64)
    columns[name][:, dims] *= factor


def shift_column(columns: Columns, name: str, steps: int) -> None:
    columns[name] = shifted(columns[name], steps)


def make_deltas(columns: Columns) -> None:
    columns["action"] = columns["action"].astype(np.float64)
    columns["action"][:, :7] -= columns["observation.state"][:, :7]


def half_frozen(frames: np.ndarray) -> np.ndarray:
    return frames[np.minimum(np.arange(len(frames)), len(frames) // 2)]


def copy_episode(root: Path, source: int, target: int) -> None:
    """Put one episode's content in another's place, numbered and listed as if it belonged there."""
    columns = read_table(root, source)
    columns["episode_index"][:] = target
    write_table(root, target, columns)
    for camera in CAMERAS:
        shutil.copyfile(video_path(root, source, camera), video_path(root, target, camera))
    lengths: dict[int, int] = {}

    def listed(lines: list[Any]) -> None:
        lines[target]["length"] = lines[source]["length"]
        lengths.update({line["episode_index"]: line["length"] for line in lines})

    edit_lines(root, "episodes.jsonl", listed)
    start = 0
    for index in episode_numbers(root):
        table = read_table(root, index)
        table["index"] = start + np.arange(lengths[index])
        start += lengths[index]
        write_table(root, index, table)
    edit_meta(root, "info.json", lambda info: info.update(total_frames=start))
    renew_statistics(root)
