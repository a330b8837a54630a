"""Conversion: frames/s of the converter beside the plain way, from the same recordings in the same run.

    python -m benchmarks.conversion files=25

Recordings: copies of the sample's train file, other in their actions and seeds, with images stored as ManiSkill's
RecordEpisode stores them (gzip 5, h5py's own chunks). Settings take turns, so that other work on the machine hits all
alike; the figure of each is the median of its rounds. A frame is one step, with the images of both cameras."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.reformatter import Interpolation

from benchmarks import measuring
from benchmarks.measuring import INSTRUCTION, ROOT, SPLIT, Columns
from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from data_prep.maniskill import CAMERAS, CONTROL_FREQ, state_of
from gr00t.data.video import CRF, GOP, X264_PARAMS

SAMPLE = ROOT / "samples" / SPLIT / "train" / "trajectory.h5"
COLUMNS: Columns = {
    "way": "{name}",
    "frames/s": "{speed:.0f} ({least:.0f} to {most:.0f})",
    "x plain": "{x:.2f}",
    "processor ms a frame": "{cpu_ms:.2f}",
}
Way = Callable[[Path, Path], Any]  # converts recordings in a folder into another


def write_recordings(folder: Path, files: int) -> int:
    """`files` shards of eight episodes each, in ManiSkill's layout; how many frames they hold."""
    meta = json.loads(SAMPLE.with_suffix(".json").read_text())
    folder.mkdir(parents=True)
    for number in range(files):
        path = folder / f"trajectory.rank{number}.h5"
        shutil.copy(SAMPLE, path)
        with h5py.File(path, "a") as recording:
            for trajectory in recording.values():
                trajectory["actions"][...] += 1e-4 * number
                for sensor in CAMERAS.values():
                    group = trajectory[f"obs/sensor_data/{sensor}"]
                    images = group.pop("rgb")[:]
                    group.create_dataset("rgb", data=images, compression="gzip", compression_opts=5)
        episodes = [{**entry, "episode_seed": entry["episode_seed"] + 1000 * number} for entry in meta["episodes"]]
        path.with_suffix(".json").write_text(json.dumps({**meta, "episodes": episodes}))
    return files * sum(entry["elapsed_steps"] for entry in meta["episodes"])


def plain(raw: Path, out: Path) -> None:
    """One process, episode after episode: read, encode frame by frame, write the table. No checks, no statistics."""
    out.mkdir(parents=True)
    for path in sorted((raw / SPLIT / "train").glob("*.h5")):
        with h5py.File(path) as recording:
            for name, trajectory in recording.items():
                place, actions = f"{out}/{path.stem}_{name}", trajectory["actions"][:]
                for camera, sensor in CAMERAS.items():
                    _encode(f"{place}_{camera}.mp4", trajectory[f"obs/sensor_data/{sensor}/rgb"][: len(actions)])
                states = state_of(trajectory["obs/agent/qpos"][:-1])
                times = np.arange(len(actions)) / CONTROL_FREQ
                columns = {"observation.state": list(states), "action": list(actions), "timestamp": times}
                pq.write_table(pa.table(columns), f"{place}.parquet")


def _encode(path: str, images: np.ndarray) -> None:
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=CONTROL_FREQ)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt, stream.gop_size, stream.max_b_frames = "yuv420p", GOP, 0
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": str(CRF), "x264-params": X264_PARAMS}
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", interpolation=Interpolation.AREA)))
        container.mux(stream.encode(None))


def converter(workers: int) -> Way:
    """The converter, with all its checks and statistics."""
    given = (SPLIT, INSTRUCTION, MODALITY_CONFIG)
    return lambda raw, out: convert_split(raw, out, *given, workers=workers, progress=False)


WAYS: dict[str, Way] = {
    "plain": plain,
    "converter, 1 worker": converter(1),
    "converter, 2 workers": converter(2),
}


def measure(way: Way, raw: Path) -> tuple[float, float]:
    """Seconds of the clock, and of the processor in all processes, of a conversion into a folder of its own."""
    with tempfile.TemporaryDirectory() as out:
        before = os.times()
        took = measuring.seconds(lambda: way(raw, Path(out) / "data"))
        after = os.times()
    return took, sum(after[:4]) - sum(before[:4])


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    files = measuring.options(files=25).files
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        frames = write_recordings(raw / SPLIT / "train", files)
        found = measuring.in_turns(3, {name: partial(measure, way, raw) for name, way in WAYS.items()})
    print(f"{measuring.describe()}\n{files} files, {8 * files} episodes, {frames} frames of two 128x128 images\n")
    rows, plain_seconds = [], median(took for took, _ in next(iter(found.values())))
    for name, times in found.items():
        took, cpu = (sorted(values) for values in zip(*times, strict=True))
        speed, least, most = (frames / value for value in (median(took), took[-1], took[0]))
        row = {"speed": speed, "least": least, "most": most, "x": plain_seconds / median(took)}
        rows.append({"name": name, **row, "cpu_ms": 1000 * median(cpu) / frames})
    measuring.show(COLUMNS, rows)


if __name__ == "__main__":
    main()
