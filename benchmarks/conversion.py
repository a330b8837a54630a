"""Conversion: frames/s of the converter beside the plain way, from the same recordings in the same run.

    python benchmarks/conversion.py --files 25

Recordings: copies of the sample's train file, other in their actions and seeds, with images stored as ManiSkill's
RecordEpisode stores them (gzip 5, h5py's own chunks). Settings take turns, so that other work on the machine hits all
alike; the figure of each is the median of its rounds. A frame is one step, with the images of both cameras."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.reformatter import Interpolation

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.measuring import describe, say  # noqa: E402
from conflict_panda_config import MODALITY_CONFIG  # noqa: E402
from data_prep.convert import convert_split  # noqa: E402
from data_prep.maniskill import CAMERAS, CONTROL_FREQ  # noqa: E402
from gr00t.data.video import CRF, GOP, X264_PARAMS  # noqa: E402

ROUNDS = 3
INSTRUCTION = "pick up the color-matching object"


@dataclass(frozen=True)
class Rate:
    """Frames per second of the clock, and processor milliseconds a frame, of all processes together."""

    frames: float
    cpu_ms: float


def write_recordings(folder: Path, files: int) -> None:
    """`files` shards of eight episodes each, in ManiSkill's layout."""
    sample = ROOT / "samples/color_object/train/trajectory.h5"
    folder.mkdir(parents=True)
    for number in range(files):
        path = folder / f"trajectory.rank{number}.h5"
        shutil.copy(sample, path)
        with h5py.File(path, "a") as recording:
            for trajectory in recording.values():
                trajectory["actions"][...] += 1e-4 * number
                for sensor in CAMERAS.values():
                    _store_as_maniskill(trajectory[f"obs/sensor_data/{sensor}"])
        meta = json.loads(sample.with_suffix(".json").read_text())
        for entry in meta["episodes"]:
            entry["episode_seed"] += 1000 * number
        path.with_suffix(".json").write_text(json.dumps(meta))


def _store_as_maniskill(sensor: h5py.Group) -> None:
    frames = sensor["rgb"][:]
    del sensor["rgb"]
    sensor.create_dataset("rgb", data=frames, dtype=frames.dtype, compression="gzip", compression_opts=5)


# -- the ways ----------------------------------------------------------------------------------------------------------


def plain(raw: Path, out: Path, whole: bool = True) -> None:
    """One process, one episode after the other: read, encode frame by frame, write the table. No checks, no statistics.

    `whole` reads an episode's images at once, else one by one.
    """
    out.mkdir(parents=True)
    index = 0
    for path in sorted((raw / "color_object/train").glob("*.h5")):
        with h5py.File(path) as recording:
            for trajectory in recording.values():
                _plain_episode(trajectory, out, index, whole)
                index += 1


def _plain_episode(trajectory: h5py.Group, out: Path, index: int, whole: bool) -> None:
    actions, qpos = trajectory["actions"][:], trajectory["obs/agent/qpos"][:-1]
    for camera, sensor in CAMERAS.items():
        images = trajectory[f"obs/sensor_data/{sensor}/rgb"]
        _encode(out / f"{camera}_{index:06d}.mp4", images[: len(actions)] if whole else images, len(actions))
    states = np.concatenate([qpos[:, :7], qpos[:, 7:].sum(axis=1, keepdims=True)], axis=1)
    times = np.arange(len(actions)) / CONTROL_FREQ
    columns = {"observation.state": list(states), "action": list(actions), "timestamp": times}
    pq.write_table(pa.table(columns), out / f"episode_{index:06d}.parquet")


def _encode(path: Path, images: Any, count: int) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=CONTROL_FREQ)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt, stream.gop_size, stream.max_b_frames = "yuv420p", GOP, 0
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": str(CRF), "x264-params": X264_PARAMS}
        for step in range(count):
            frame = av.VideoFrame.from_ndarray(images[step], format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", interpolation=Interpolation.AREA)))
        container.mux(stream.encode(None))


def converter(workers: int) -> Callable[[Path, Path], None]:
    """The converter, with all its checks and statistics."""

    def convert(raw: Path, out: Path) -> None:
        convert_split(raw, out, "color_object", INSTRUCTION, MODALITY_CONFIG, workers=workers, progress=False)

    return convert


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "plain: an episode's images read at once": plain,
    "plain: images read one by one": lambda raw, out: plain(raw, out, whole=False),
    "converter, 1 worker": converter(1),
    "converter, 2 workers": converter(2),
}

# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(way: Callable[[Path, Path], None], raw: Path, frames: int) -> Rate:
    """One conversion into a folder of its own."""
    with tempfile.TemporaryDirectory() as out:
        cpu, begin = _cpu_seconds(), time.perf_counter()
        way(raw, Path(out) / "data")
        seconds, cpu = time.perf_counter() - begin, _cpu_seconds() - cpu
    return Rate(frames / seconds, 1000 * cpu / frames)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=25, help="recording files of eight episodes each")
    files = parser.parse_args().files
    found: dict[str, list[Rate]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        write_recordings(raw / "color_object/train", files)
        frames = files * sum(_lengths(ROOT / "samples/color_object/train/trajectory.json"))
        for number in range(ROUNDS):
            for name, way in WAYS.items():
                found[name].append(measure(way, raw, frames))
                say(f"round {number + 1}, {name}: {found[name][-1].frames:.0f} frames/s")
    print(f"{describe()}\n{files} files, {8 * files} episodes, {frames} frames of two 128x128 images\n")
    print("| way | frames/s | x plain | processor ms a frame |\n|---|---:|---:|---:|")
    baseline = statistics.median(rate.frames for rate in next(iter(found.values())))
    for name, rates in found.items():
        speeds, cpu = [rate.frames for rate in rates], statistics.median(rate.cpu_ms for rate in rates)
        middle = statistics.median(speeds)
        print(
            f"| {name} | {middle:.0f} ({min(speeds):.0f} to {max(speeds):.0f}) | {middle / baseline:.2f} | {cpu:.2f} |"
        )


def _lengths(path: Path) -> list[int]:
    return [entry["elapsed_steps"] for entry in json.loads(path.read_text())["episodes"]]


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
