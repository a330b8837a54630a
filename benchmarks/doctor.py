"""The dataset doctor's fast part, as training runs it before it begins, over many short episodes.

    python -m benchmarks.doctor episodes=5000 rounds=3

The dataset: frames around the grasp of the samples' train episodes, two cameras, one parquet and two mp4 an episode
(v2.1). Each episode moves beside the others and ends each video in a box of its own, so none equals another. The files
are in the page cache: one examination comes before those that are measured."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measuring
from benchmarks.measuring import INSTRUCTION, Columns
from conflict_panda_config import MODALITY_CONFIG
from data_prep.doctor.examine import examine
from data_prep.lerobot import (
    SKETCH_SIDE,
    DatasetPlan,
    EpisodeJob,
    EpisodeRecord,
    choose_val_episodes,
    finish_dataset,
    read_table,
    thumbnail,
)
from data_prep.maniskill import CAMERAS, Episode, Recordings
from gr00t.data.video import VideoReader, write_video

PART = "train"
FRAMES = 17
STATE, ACTION = "observation.state", "action"
Model = tuple[dict[str, np.ndarray], list[bytes], dict[str, str]]  # columns, videos, sketches of first frames
COLUMNS: Columns = {"episodes": "{episodes}", "s": "{took:.1f}", "ms an episode": "{each:.2f}"}


def write_dataset(folder: Path, episodes: int) -> Path:
    """A sound v2.1 dataset of that many episodes below `folder`; where it is."""
    with tempfile.TemporaryDirectory() as samples:
        source = measuring.convert_samples(samples)
        models = [_model(source, number) for number in range(len(list(source.glob(f"{PART}/data/*/*.parquet"))))]
    recorded = Recordings(folder, [_recorded(folder, number) for number in range(episodes)])
    held_out = choose_val_episodes(episodes, 0.1, 42)
    plan = DatasetPlan(PART, recorded, INSTRUCTION, held_out, 0.1, 42, MODALITY_CONFIG)
    records = [_write_episode(folder, number, *models[number % len(models)]) for number in range(episodes)]
    finish_dataset(folder / PART, plan, records)
    return folder / PART


def _recorded(folder: Path, number: int) -> Episode:
    return Episode(folder / "x.h5", number, None, FRAMES, dict.fromkeys(CAMERAS, (128, 128)), content="")


def _files(folder: Path, number: int) -> list[str]:
    """The table and the videos of an episode, relative to `folder`."""
    return EpisodeJob(PART, number, number * FRAMES, 0, _recorded(folder, number), (0, 0)).files()


def _model(source: Path, number: int) -> Model:
    """FRAMES frames of an episode in which the gripper closes."""
    table, *paths = (source / name for name in _files(source, number))
    whole = read_table(table)
    start = min(max(0, int((whole[ACTION][:, 7] < 0).argmax()) - 8), len(whole[ACTION]) - FRAMES)
    columns = {name: values[start : start + FRAMES].copy() for name, values in whole.items()}
    columns |= {"timestamp": whole["timestamp"][:FRAMES], "frame_index": np.arange(FRAMES)}
    columns["next.reward"][-1], columns["next.done"][-1] = 1, True
    videos, sketches = [], {}
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        for camera, path in zip(CAMERAS, paths, strict=True):
            with VideoReader(path) as reader:
                frames = reader.frames(range(start, start + FRAMES))
                write_video(file.name, frames, round(reader.fps))
            videos.append(Path(file.name).read_bytes())
            sketches[camera] = thumbnail(frames[0], SKETCH_SIDE).round().astype(np.uint8).tobytes().hex()
    return columns, videos, sketches


def _write_episode(
    folder: Path, number: int, columns: dict[str, np.ndarray], videos: list[bytes], sketches: dict[str, str]
) -> EpisodeRecord:
    files, rng = _files(folder, number), np.random.default_rng(number)
    beside = np.append(rng.normal(0, 0.05, 7), 0).astype(np.float32)
    columns = columns | {
        STATE: columns[STATE] + beside,
        ACTION: columns[ACTION] + beside,
        "episode_index": np.full(FRAMES, number),
        "index": np.arange(FRAMES) + number * FRAMES,
    }
    table, *paths = (folder / name for name in files)
    for path in (table, *paths):
        path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({n: pa.array(list(v) if v.ndim == 2 else v) for n, v in columns.items()}), table)
    for path, data in zip(paths, videos, strict=True):
        path.write_bytes(data + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
    shown = {camera: {"first_frame": sketch} for camera, sketch in sketches.items()}
    return EpisodeRecord(PART, number, {}, dict.fromkeys(files, ""), FRAMES, 0, shown)


def main() -> None:
    options = measuring.options(episodes=5000, rounds=3, keep="")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        there = (folder / PART).is_dir()
        root = folder / PART if there else write_dataset(folder, options.episodes)
        report, _ = examine(root, MODALITY_CONFIG, fast=True)
        slow = sorted(((r.seconds, r.check) for d in report.datasets for r in d.results), reverse=True)
        measuring.say(f"{report.verdict}; " + ", ".join(f"{check} {took:.1f} s" for took, check in slow[:12]))
        for _, result, finding in report.findings("warning", "error"):
            measuring.say(f"{result.check}: {finding.where}: {finding.found}")
        took = [measuring.seconds(lambda: examine(root, MODALITY_CONFIG, fast=True)) for _ in range(options.rounds)]
    print(f"{measuring.describe()}\n")
    each = ({"took": seconds, "each": 1000 * seconds / options.episodes} for seconds in took)
    measuring.show(COLUMNS, ({"episodes": options.episodes, **row} for row in each))


if __name__ == "__main__":
    main()
