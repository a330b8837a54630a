"""Writing one dataset folder, GR00T-flavoured LeRobot v2.1, from checked ManiSkill recordings; reading its tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.maniskill import CAMERAS, CONTROL_FREQ, Episode, Recordings
from gr00t.data.layout import CODEBASE_VERSION, fingerprint_entries
from gr00t.data.schema import ModalityConfigs
from gr00t.data.statistics import feature_statistics, relative_settings, relative_statistics
from gr00t.data.video import check_video, write_video
from gr00t.errors import ToolkitError
from gr00t.file_reading import open_table, read_columns
from gr00t.file_replacement import file_sha256, whole_file

CONVERTER_VERSION = 1  # raised when the same recordings would give another dataset
CHUNKS_SIZE = 1000  # episodes a folder
CHECKED_FRAMES = 8  # of each video, compared with the recording after writing
SKETCH_SIDE = 4  # of the thumbnail of each video's first frame, which the doctor compares
MIN_VAL_EPISODES = 2

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
TASK_COLUMN = "annotation.human.task_description"
VIDEO_KEYS = {camera: f"observation.images.{camera}" for camera in CAMERAS}
DIM_NAMES = [f"panda_joint{i}" for i in range(1, 8)] + ["gripper"]
GROUPS = {"arm": {"start": 0, "end": 7}, "gripper": {"start": 7, "end": 8}}
MODALITY: dict[str, dict[str, dict[str, Any]]] = {
    "state": GROUPS,
    "action": GROUPS,
    "video": {camera: {"original_key": key} for camera, key in VIDEO_KEYS.items()},
    "annotation": {"human.task_description": {"original_key": TASK_COLUMN}},
}

Columns = dict[str, np.ndarray]  # of a frame table: (T,) or, of lists, (T, D)


@dataclass(frozen=True)
class DatasetPlan:
    """What one dataset folder is to hold. `val_episodes` are indices into `recordings.episodes`."""

    part: str
    recordings: Recordings
    instruction: str | None
    val_episodes: tuple[int, ...]
    val_fraction: float
    seed: int
    modality_configs: ModalityConfigs

    @property
    def frames(self) -> int:
        """Steps of all episodes together."""
        return sum(e.length for e in self.recordings.episodes)

    @property
    def instructions(self) -> list[str]:
        """Of each episode: its own where the recording gives one, else the split's. One of them is there."""
        return [str(e.instruction or self.instruction) for e in self.recordings.episodes]

    @property
    def tasks(self) -> list[str]:
        """The different instructions; their places are the task indices."""
        return list(dict.fromkeys(self.instructions))


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to write: its place in the dataset, and `stamp`, that of its recording's file.

    `offset` is the number of its first frame in the dataset, `task` the index of its instruction.
    """

    part: str
    index: int
    offset: int
    task: int
    episode: Episode
    stamp: tuple[int, int]

    def files(self) -> list[str]:
        """The frame table and a video for each key of CAMERAS, relative to the folder of both parts."""
        place = {"episode_chunk": self.index // CHUNKS_SIZE, "episode_index": self.index}
        paths = [DATA_PATH.format(**place), *(VIDEO_PATH.format(**place, video_key=k) for k in VIDEO_KEYS.values())]
        return [f"{self.part}/{path}" for path in paths]

    def made_of(self) -> dict[str, Any]:
        """All that decides what is written, in JSON's types: where it is equal, the files are."""
        episode = self.episode
        return {
            "converter": [CONVERTER_VERSION, av.__version__, pa.__version__],
            "source": [*self.stamp, episode.episode_id, episode.content],
            "place": [self.offset, self.task, CHUNKS_SIZE],
        }


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode that is written: {file: SHA-256}, steps, bytes, and of its videos by camera the mean absolute
    difference to the recording, "error" (of 255), and a sketch of the "first_frame", in hexadecimal digits."""

    part: str
    index: int
    made_of: dict[str, Any]
    files: dict[str, str]
    frames: int
    size: int
    videos: dict[str, dict[str, Any]]


def choose_val_episodes(count: int, val_fraction: float, seed: int) -> tuple[int, ...]:
    """The seeded share of `count` episodes to hold out, two at least, sorted.

    Drawn by hashing (seed, index), so the choice is the same on every machine and with every library version.
    """
    if not 0 < val_fraction < 1:
        raise ToolkitError(f"val_fraction is {val_fraction}; it must lie between 0 and 1, for example 0.1.")
    wanted = max(MIN_VAL_EPISODES, round(count * val_fraction))
    if count <= wanted:
        raise ToolkitError(
            f"{count} successful train episodes cannot spare {wanted} for validation (val_fraction={val_fraction}, two "
            "at least): record more episodes."
        )
    drawn = sorted(range(count), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
    return tuple(sorted(drawn[:wanted]))


def episode_jobs(plan: DatasetPlan) -> list[EpisodeJob]:
    """What there is to write of each episode, in the dataset's order."""
    episodes = plan.recordings.episodes
    offsets = np.cumsum([0, *(e.length for e in episodes)]).tolist()
    tasks = {text: number for number, text in enumerate(plan.tasks)}
    stamps = {file: stamp(file) for file in plan.recordings.files}
    return [
        EpisodeJob(plan.part, index, offsets[index], tasks[text], episode, stamps[episode.file])
        for index, (episode, text) in enumerate(zip(episodes, plan.instructions, strict=True))
    ]


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of the last change, by which a changed file is known."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


# -- one episode -------------------------------------------------------------------------------------------------------


def write_episode(root: Path, job: EpisodeJob) -> EpisodeRecord:
    """Write table and videos of one episode below `root`, where each file appears when it is whole and checked.

    Holds the frames of one camera at a time. Raises ToolkitError for a recording that turns out damaged and for videos
    that do not show what was recorded.
    """
    table, *videos = (root / name for name in job.files())
    checked = {c: _write_camera(path, job.episode, c) for path, c in zip(videos, CAMERAS, strict=True)}
    columns = {name: pa.array(list(v) if v.ndim == 2 else v) for name, v in _columns(job).items()}
    with whole_file(table) as staged:
        pq.write_table(pa.table(columns), staged)
    hashes = {name: file_sha256(root / name) for name in job.files()}
    size = sum((root / name).stat().st_size for name in hashes)
    return EpisodeRecord(job.part, job.index, job.made_of(), hashes, job.episode.length, size, checked)


def _write_camera(path: Path, episode: Episode, camera: str) -> dict[str, Any]:
    frames = episode.frames(camera)
    checked = np.unique(np.linspace(0, len(frames) - 1, CHECKED_FRAMES).round().astype(int))
    with whole_file(path) as staged:
        write_video(staged, frames, CONTROL_FREQ)
        error = check_video(staged, len(frames), {int(i): frames[i] for i in checked})
    sketch = thumbnail(frames[0], SKETCH_SIDE).round().astype(np.uint8)
    return {"error": error, "first_frame": sketch.tobytes().hex()}


def thumbnail(frame: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 to (side, side, 3) float32, of 255: the mean colours of fields."""
    return cv2.resize(frame.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)


def sketch_from_text(text: str) -> np.ndarray:
    """(SKETCH_SIDE, SKETCH_SIDE, 3) float32 of the digits in meta/split.json; other text raises ValueError."""
    values = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    return values.reshape(SKETCH_SIDE, SKETCH_SIDE, 3).astype(np.float32)


def _columns(job: EpisodeJob) -> Columns:
    episode, length = job.episode, job.episode.length
    frame = np.arange(length, dtype=np.int64)
    return {
        "observation.state": episode.states(),
        "action": episode.actions(),
        "timestamp": (frame / CONTROL_FREQ).astype(np.float32),
        TASK_COLUMN: np.full(length, job.task, dtype=np.int64),
        "task_index": np.full(length, job.task, dtype=np.int64),
        "episode_index": np.full(length, job.index, dtype=np.int64),
        "frame_index": frame,
        "index": frame + job.offset,
        "next.reward": episode.successes().astype(np.float32),
        "next.done": frame == length - 1,
    }


def read_table(path: Path) -> Columns:
    """The columns of a frame table that hold numbers, texts or lists of numbers; images stored in it are left out.

    Raises ToolkitError for a file that cannot be read.
    """
    with open_table(path) as file:
        names = [field.name for field in file.schema_arrow if _is_plain(field.type)]
        table = read_columns(file, path, names)
        return {name: _to_numpy(table.column(name).combine_chunks(), name) for name in names}


def _is_plain(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    item = kind.value_type if is_list else kind
    number = pa.types.is_integer(item) or pa.types.is_floating(item) or pa.types.is_boolean(item)
    return bool(number or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _to_numpy(column: pa.Array, name: str) -> np.ndarray:
    """(T,) or (T, D); empty cells of numbers become NaN. Rows of several widths raise ValueError."""
    if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
        return column.to_numpy(zero_copy_only=False)  # of large lists, which training cannot read either, as objects
    if column.null_count:
        raise ValueError(f'column "{name}" has empty cells')
    widths = np.unique(pc.list_value_length(column).to_numpy())
    if len(widths) > 1:
        raise ValueError(f'column "{name}" has rows of {widths.min()} to {widths.max()} values')
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


# -- meta/ -------------------------------------------------------------------------------------------------------------


def finish_dataset(root: Path, plan: DatasetPlan, records: Sequence[EpisodeRecord]) -> str:
    """Write meta/ of the folder `root`, whose episodes are all there; `records` are theirs, in order.

    Returns the fingerprint. The low-dimensional columns of all episodes are in memory together (0.1 kB a frame), so
    that percentiles are exact.
    """
    meta = root / "meta"
    meta.mkdir(exist_ok=True)
    columns = [read_table(root.parent / next(iter(record.files))) for record in records]  # the table is the first file
    _write_json(meta / "info.json", _info(plan, columns[0]))
    _write_json(meta / "modality.json", MODALITY)
    _write_lines(meta / "tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(plan.tasks)])
    pairs = zip(plan.instructions, columns, strict=True)
    episodes = [{"episode_index": i, "tasks": [text], "length": len(c["action"])} for i, (text, c) in enumerate(pairs)]
    _write_lines(meta / "episodes.jsonl", episodes)
    used = [c for i, c in enumerate(columns) if i not in plan.val_episodes]
    joined = {name: np.concatenate([c[name] for c in used]) for name, v in used[0].items() if v.dtype.kind == "f"}
    stats = {name: feature_statistics(v if v.ndim == 2 else v[:, None]) for name, v in joined.items()}
    _write_json(meta / "stats.json", stats)
    states, actions = [c["observation.state"] for c in used], [c["action"] for c in used]
    relative = relative_statistics(states, actions, MODALITY, plan.modality_configs)
    _write_json(meta / "relative_stats.json", relative)
    split = _split(plan, records)
    split |= fingerprint_entries(root, split)
    _write_json(meta / "split.json", split)
    return str(split["fingerprint"])


def _info(plan: DatasetPlan, columns: Columns) -> dict[str, Any]:
    episodes = plan.recordings.episodes
    features: dict[str, dict[str, Any]] = {}
    for camera, key in VIDEO_KEYS.items():
        height, width = episodes[0].frame_sizes[camera]
        stream = {"height": height, "width": width, "channels": 3, "fps": CONTROL_FREQ, "codec": "h264"}
        stream |= {"pix_fmt": "yuv420p", "is_depth_map": False}
        features[key] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channel"],
            "info": {**{f"video.{name}": value for name, value in stream.items()}, "has_audio": False},
        }
    for name, values in columns.items():
        shape = list(values.shape[1:]) or [1]
        names = DIM_NAMES if shape == [len(DIM_NAMES)] else None
        features[name] = {"dtype": str(values.dtype), "shape": shape, "names": names}
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": "panda_wristcam",
        "total_episodes": len(episodes),
        "total_frames": plan.frames,
        "total_tasks": len(plan.tasks),
        "total_videos": len(episodes) * len(CAMERAS),
        "total_chunks": -(-len(episodes) // CHUNKS_SIZE),
        "chunks_size": CHUNKS_SIZE,
        "fps": CONTROL_FREQ,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
    }


def settings_told(instruction: str | None, seed: int, val_fraction: float, configs: ModalityConfigs) -> dict[str, Any]:
    """What meta/split.json says of the settings of a conversion."""
    return {
        "converter_version": CONVERTER_VERSION,
        "instruction": instruction,
        "seed": seed,
        "val_fraction": val_fraction,
        "relative_statistics": {"tail": "mask", **relative_settings(configs)},
    }


def _split(plan: DatasetPlan, records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """The content of meta/split.json: what is held out, and where everything came from."""
    folder = plan.recordings.folder
    told = settings_told(plan.instruction, plan.seed, plan.val_fraction, plan.modality_configs)
    sources = [path for h5 in plan.recordings.files for path in (h5, h5.with_suffix(".json"))]

    def name(file: Path) -> str:
        return file.relative_to(folder).as_posix()

    return {
        "converter_version": told["converter_version"],
        "part": plan.part,
        "instruction": told["instruction"],
        **({"recorded": plan.recordings.recorded} if plan.recordings.recorded else {}),
        "seed": told["seed"],
        "val_fraction": told["val_fraction"],
        "val_episodes": list(plan.val_episodes),
        "relative_statistics": told["relative_statistics"],
        "source_folder": str(folder),
        "sources": [{"file": name(p), "size": p.stat().st_size, "sha256": file_sha256(p)} for p in sources],
        "episodes": [
            {
                "episode_index": index,
                "file": name(e.file),
                "trajectory": f"traj_{e.episode_id}",
                "episode_seed": e.seed,
                "first_frame": {camera: video["first_frame"] for camera, video in records[index].videos.items()},
                **({"target": e.target} if e.target else {}),
            }
            for index, e in enumerate(plan.recordings.episodes)
        ],
        "left_out": [
            {"file": name(e.file), "trajectory": f"traj_{e.episode_id}", "reason": e.reason}
            for e in plan.recordings.left_out
        ],
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
