"""Writing one dataset folder: GR00T-flavoured LeRobot v2.1 from checked ManiSkill recordings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.doctor.footage import sketch_to_text
from data_prep.maniskill import CAMERAS, CONTROL_FREQ, Episode, Recordings
from gr00t.data.layout import CODEBASE_VERSION, fingerprint_entries
from gr00t.data.schema import ModalityConfigs
from gr00t.data.statistics import feature_statistics, relative_statistics
from gr00t.data.video import check_video, write_video
from gr00t.errors import ToolkitError
from gr00t.files import file_sha256, whole_file

CONVERTER_VERSION = 1  # raised when the same recordings would give another dataset
CHUNKS_SIZE = 1000  # episodes a folder
TASK_COLUMN = "annotation.human.task_description"
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
GROUPS = {"arm": {"start": 0, "end": 7}, "gripper": {"start": 7, "end": 8}}
DIM_NAMES = [f"panda_joint{i}" for i in range(1, 8)] + ["gripper"]
MODALITY: dict[str, dict[str, dict[str, Any]]] = {
    "state": GROUPS,
    "action": GROUPS,
    "video": {camera: {"original_key": f"observation.images.{camera}"} for camera in CAMERAS},
    "annotation": {"human.task_description": {"original_key": TASK_COLUMN}},
}
CHECKED_FRAMES = 8  # of each video, compared with the recording after writing
MIN_VAL_EPISODES = 2


@dataclass(frozen=True)
class DatasetPlan:
    """What one dataset folder is to hold. `val_episodes` are indices into `recordings.episodes`."""

    part: str
    recordings: Recordings
    instruction: str
    val_episodes: tuple[int, ...]
    val_fraction: float
    seed: int
    modality_configs: ModalityConfigs

    @property
    def frames(self) -> int:
        return sum(e.length for e in self.recordings.episodes)

    @property
    def instructions(self) -> list[str]:
        """Of each episode: its own where the recording gives one, else the split's."""
        return [e.instruction or self.instruction for e in self.recordings.episodes]

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
        videos = (_relative_path(VIDEO_PATH, self.index, video_key=key) for _, key in _video_keys())
        return [f"{self.part}/{path.as_posix()}" for path in (_relative_path(DATA_PATH, self.index), *videos)]

    def made_of(self) -> dict[str, Any]:
        """All that decides what is written, in JSON's types: where it is equal, the files are."""
        episode = self.episode
        return {
            "converter": [CONVERTER_VERSION, av.__version__, pa.__version__],
            "source": [*self.stamp, episode.episode_id, episode.content],
            "place": [self.offset, self.task, CHUNKS_SIZE],
        }


@dataclass(frozen=True)
class WrittenVideo:
    """Mean absolute difference to the recording (of 255), and a sketch of the recorded first frame."""

    error: float
    first_frame: str


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode that is written: {file: SHA-256}, steps, bytes, and its videos by camera."""

    part: str
    index: int
    made_of: dict[str, Any]
    files: dict[str, str]
    frames: int
    size: int
    videos: dict[str, WrittenVideo]


@dataclass(frozen=True)
class WrittenDataset:
    """Outcome of finish_dataset: mean absolute difference of checked video frames (of 255), and the fingerprint."""

    video_error: float
    fingerprint: str


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
    """Size and time of change, which tell a file from what it was."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def make_folders(root: Path, jobs: Iterable[EpisodeJob]) -> None:
    """The folders that the files of these episodes go to."""
    for folder in {(root / name).parent for job in jobs for name in job.files()}:
        folder.mkdir(parents=True, exist_ok=True)


def finish_dataset(root: Path, plan: DatasetPlan, records: Sequence[EpisodeRecord]) -> WrittenDataset:
    """Write meta/ of the folder `root`, whose episodes are all there; `records` are theirs, in order.

    The low-dimensional columns of all episodes are in memory together (0.1 kB a frame), so that percentiles are exact.
    """
    (root / "meta").mkdir(exist_ok=True)
    _write_meta(root, plan, [_read_table(root / _relative_path(DATA_PATH, record.index)) for record in records])
    errors = [video.error for record in records for video in record.videos.values()]
    return WrittenDataset(float(np.mean(errors)), _write_split(root, plan, [record.videos for record in records]))


Columns = dict[str, np.ndarray]


def _relative_path(template: str, index: int, **names: str) -> Path:
    return Path(template.format(episode_chunk=index // CHUNKS_SIZE, episode_index=index, **names))


def _video_keys() -> Iterator[tuple[str, str]]:
    for camera, entry in MODALITY["video"].items():
        yield camera, str(entry["original_key"])


# -- one episode -------------------------------------------------------------------------------------------------------


def write_episode(root: Path, job: EpisodeJob) -> EpisodeRecord:
    """Write table and videos of one episode below `root`, where each file appears when it is whole and checked.

    Holds the frames of one camera at a time. Raises ToolkitError for a recording that turns out damaged and for videos
    that do not show what was recorded.
    """
    table, *videos = (root / name for name in job.files())
    checked = {c: _write_camera(path, job.episode, c) for path, c in zip(videos, CAMERAS, strict=True)}
    with whole_file(table) as staged:
        pq.write_table(_table(_columns(job)), staged)
    hashes = {name: file_sha256(root / name) for name in job.files()}
    size = sum((root / name).stat().st_size for name in hashes)
    return EpisodeRecord(job.part, job.index, job.made_of(), hashes, job.episode.length, size, checked)


def _write_camera(path: Path, episode: Episode, camera: str) -> WrittenVideo:
    frames = episode.frames(camera)
    checked = np.unique(np.linspace(0, len(frames) - 1, CHECKED_FRAMES).round().astype(int))
    with whole_file(path) as staged:
        write_video(staged, frames, CONTROL_FREQ)
        error = check_video(staged, len(frames), {int(i): frames[i] for i in checked})
    return WrittenVideo(error, sketch_to_text(frames[0]))


def _columns(job: EpisodeJob) -> Columns:
    """The frame table of one episode: (T, D) for state and action, (T,) for the rest."""
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


def _table(columns: Columns) -> pa.Table:
    return pa.table({name: pa.array(list(v) if v.ndim == 2 else v) for name, v in columns.items()})


def _read_table(path: Path) -> Columns:
    """The same columns, bit for bit, from the file."""
    table = pq.read_table(path, use_threads=False)
    return {name: _array(table[name].combine_chunks()) for name in table.column_names}


def _array(values: pa.Array) -> np.ndarray:
    if pa.types.is_list(values.type):
        return values.flatten().to_numpy().reshape(len(values), -1)
    return values.to_numpy(zero_copy_only=False)


# -- meta/ -------------------------------------------------------------------------------------------------------------


def _write_meta(root: Path, plan: DatasetPlan, columns: list[Columns]) -> None:
    lengths = [len(c["action"]) for c in columns]
    _write_json(root / "meta/info.json", _info(plan, columns[0]))
    _write_json(root / "meta/modality.json", MODALITY)
    _write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(plan.tasks)])
    told = zip(plan.instructions, lengths, strict=True)
    episodes = [{"episode_index": i, "tasks": [text], "length": n} for i, (text, n) in enumerate(told)]
    _write_lines(root / "meta/episodes.jsonl", episodes)
    held_out = set(plan.val_episodes)
    used = [c for i, c in enumerate(columns) if i not in held_out]
    _write_json(root / "meta/stats.json", _stats(used))
    states, actions = [c["observation.state"] for c in used], [c["action"] for c in used]
    relative = relative_statistics(states, actions, MODALITY, plan.modality_configs)
    _write_json(root / "meta/relative_stats.json", relative)


def _stats(columns: list[Columns]) -> dict[str, Any]:
    names = [name for name, values in columns[0].items() if values.dtype.kind == "f"]
    joined = {name: np.concatenate([c[name] for c in columns]) for name in names}
    return {name: feature_statistics(v if v.ndim == 2 else v[:, None]) for name, v in joined.items()}


def _info(plan: DatasetPlan, columns: Columns) -> dict[str, Any]:
    episodes = plan.recordings.episodes
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
        "features": {
            **{key: _video_feature(episodes[0].frame_sizes[camera]) for camera, key in _video_keys()},
            **{name: _feature(values) for name, values in columns.items()},
        },
    }


def _feature(values: np.ndarray) -> dict[str, Any]:
    shape = list(values.shape[1:]) or [1]
    return {"dtype": str(values.dtype), "shape": shape, "names": DIM_NAMES if shape == [len(DIM_NAMES)] else None}


def _video_feature(size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channel"],
        "info": {
            "video.height": height,
            "video.width": width,
            "video.channels": 3,
            "video.fps": CONTROL_FREQ,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "has_audio": False,
        },
    }


def _write_split(root: Path, plan: DatasetPlan, videos: list[dict[str, WrittenVideo]]) -> str:
    """Write meta/split.json: what is held out, where everything came from; returns the fingerprint."""
    folder = plan.recordings.folder
    split: dict[str, Any] = {
        "converter_version": CONVERTER_VERSION,
        "part": plan.part,
        "instruction": plan.instruction,
        "seed": plan.seed,
        "val_fraction": plan.val_fraction,
        "val_episodes": list(plan.val_episodes),
        "relative_statistics": {"tail": "mask", "steps": len(plan.modality_configs["action"].delta_indices)},
        "source_folder": str(folder),
        "sources": [_source(path, folder) for h5 in plan.recordings.files for path in (h5, h5.with_suffix(".json"))],
        "episodes": [
            {
                "episode_index": index,
                "file": e.file.relative_to(folder).as_posix(),
                "trajectory": f"traj_{e.episode_id}",
                "episode_seed": e.seed,
                "first_frame": {camera: video.first_frame for camera, video in videos[index].items()},
            }
            for index, e in enumerate(plan.recordings.episodes)
        ],
        "left_out": [
            {"file": e.file.relative_to(folder).as_posix(), "trajectory": f"traj_{e.episode_id}", "reason": e.reason}
            for e in plan.recordings.left_out
        ],
    }
    split |= fingerprint_entries(root, split)
    _write_json(root / "meta/split.json", split)
    return str(split["fingerprint"])


def _source(path: Path, folder: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    return {"file": name, "size": path.stat().st_size, "sha256": file_sha256(path)}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
