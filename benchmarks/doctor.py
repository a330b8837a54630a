"""The dataset doctor's fast part, as training runs it before it begins, over many short episodes.

    python -m benchmarks.doctor episodes=5000 rounds=3

The dataset: frames around the grasp of the samples' train episodes, two cameras, one parquet and two mp4 an episode
(v2.1). Each episode moves beside the others and ends each video in a box of its own, so none equals another. The files
are in the page cache: one examination comes before those that are measured."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measuring
from benchmarks.measuring import ROOT, Columns
from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from data_prep.doctor.examine import examine
from data_prep.lerobot import (
    CHUNKS_SIZE,
    DATA_PATH,
    SKETCH_SIDE,
    VIDEO_KEYS,
    VIDEO_PATH,
    choose_val_episodes,
    read_table,
    thumbnail,
)
from gr00t.data.layout import fingerprint_entries
from gr00t.data.statistics import feature_statistics, relative_statistics
from gr00t.data.video import VideoReader, write_video

SPLIT, INSTRUCTION = "color_object", "pick up the color-matching object"
FRAMES = 17
STATE, ACTION = "observation.state", "action"
Model = tuple[dict[str, np.ndarray], dict[str, bytes], dict[str, str]]
COLUMNS: Columns = {"episodes": "{episodes}", "s": "{took:.1f}", "ms an episode": "{each:.2f}"}


def write_dataset(root: Path, episodes: int) -> None:
    """A sound v2.1 dataset of that many episodes at `root`."""
    with tempfile.TemporaryDirectory() as folder:
        convert_split(ROOT / "samples", folder, SPLIT, INSTRUCTION, MODALITY_CONFIG, workers=1, progress=False)
        source = Path(folder) / SPLIT / "train"
        models = [_model(source, number) for number in range(len(list(source.glob("data/*/*.parquet"))))]
        meta = {path.name: path.read_text() for path in (source / "meta").iterdir()}
    split, info = json.loads(meta["split.json"]), json.loads(meta["info.json"])
    tables = []
    for number in range(episodes):
        table, videos, _ = models[number % len(models)]
        tables.append(_write_episode(root, number, table, videos))
    info |= {"total_episodes": episodes, "total_frames": episodes * FRAMES, "total_videos": episodes * len(VIDEO_KEYS)}
    info |= {"total_chunks": -(-episodes // CHUNKS_SIZE), "splits": {"train": f"0:{episodes}"}}
    listed = [{"episode_index": i, "tasks": [INSTRUCTION], "length": FRAMES} for i in range(episodes)]
    split |= {"val_episodes": list(choose_val_episodes(episodes, 0.1, 42))}
    split["episodes"] = [
        {"episode_index": i, "file": "x.h5", "trajectory": f"traj_{i}", "first_frame": models[i % len(models)][2]}
        for i in range(episodes)
    ]
    meta |= _statistics(tables, set(split["val_episodes"]), json.loads(meta["modality.json"]))
    meta |= {"info.json": json.dumps(info), "episodes.jsonl": "".join(json.dumps(line) + "\n" for line in listed)}
    (root / "meta").mkdir()
    for name, text in meta.items():
        (root / "meta" / name).write_text(text)
    split |= fingerprint_entries(root, split)
    (root / "meta/split.json").write_text(json.dumps(split))


def _model(source: Path, number: int) -> Model:
    """The columns, videos and sketches of FRAMES frames of an episode in which the gripper closes."""
    place = {"episode_chunk": 0, "episode_index": number}
    whole = read_table(source / DATA_PATH.format(**place))
    start = min(max(0, int((whole[ACTION][:, 7] < 0).argmax()) - 8), len(whole[ACTION]) - FRAMES)
    columns = {name: values[start : start + FRAMES].copy() for name, values in whole.items()}
    columns |= {"timestamp": whole["timestamp"][:FRAMES], "frame_index": np.arange(FRAMES)}
    columns["next.reward"][-1], columns["next.done"][-1] = 1, True
    videos, sketches = {}, {}
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        for camera, key in VIDEO_KEYS.items():
            with VideoReader(source / VIDEO_PATH.format(**place, video_key=key)) as reader:
                frames = reader.frames(range(start, start + FRAMES))
                write_video(file.name, frames, round(reader.fps))
            videos[key] = Path(file.name).read_bytes()
            sketches[camera] = thumbnail(frames[0], SKETCH_SIDE).round().astype(np.uint8).tobytes().hex()
    return columns, videos, sketches


def _write_episode(
    root: Path, number: int, columns: dict[str, np.ndarray], videos: dict[str, bytes]
) -> dict[str, np.ndarray]:
    place = {"episode_chunk": number // CHUNKS_SIZE, "episode_index": number}
    frame, rng = np.arange(FRAMES), np.random.default_rng(number)
    beside = np.append(rng.normal(0, 0.05, 7), 0).astype(np.float32)
    columns = columns | {
        STATE: columns[STATE] + beside,
        ACTION: columns[ACTION] + beside,
        "episode_index": np.full(FRAMES, number),
        "index": frame + number * FRAMES,
    }
    path = root / DATA_PATH.format(**place)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({n: pa.array(list(v) if v.ndim == 2 else v) for n, v in columns.items()}), path)
    for key, data in videos.items():
        path = root / VIDEO_PATH.format(**place, video_key=key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
    return columns


def _statistics(tables: list[dict[str, np.ndarray]], held_out: set[int], modality: dict[str, Any]) -> dict[str, str]:
    used = [table for i, table in enumerate(tables) if i not in held_out]
    joined = {name: np.concatenate([t[name] for t in used]) for name, v in used[0].items() if v.dtype.kind == "f"}
    whole = {name: feature_statistics(v if v.ndim == 2 else v[:, None]) for name, v in joined.items()}
    relative = relative_statistics([t[STATE] for t in used], [t[ACTION] for t in used], modality, MODALITY_CONFIG)
    return {"stats.json": json.dumps(whole), "relative_stats.json": json.dumps(relative)}


def main() -> None:
    options = measuring.options(episodes=5000, rounds=3, keep="")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.keep or Path(folder) / "train")
        if not root.is_dir():
            write_dataset(root, options.episodes)
        report, _ = examine(root, MODALITY_CONFIG, fast=True)
        slow = sorted(((r.seconds, r.check) for d in report.datasets for r in d.results), reverse=True)
        measuring.say(f"{report.verdict}; " + ", ".join(f"{check} {took:.1f} s" for took, check in slow[:12]))
        for _, result, finding in report.findings("warning", "error"):
            measuring.say(f"{result.check}: {finding.where}: {finding.found}")
        took = [measuring.seconds(lambda: examine(root, MODALITY_CONFIG, fast=True)) for _ in range(options.rounds)]
    print(f"{measuring.describe()}\n\n{measuring.heading(COLUMNS)}")
    for seconds in took:
        found = {"episodes": options.episodes, "took": seconds, "each": 1000 * seconds / options.episodes}
        print(measuring.line(COLUMNS, found))


if __name__ == "__main__":
    main()
