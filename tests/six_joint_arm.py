"""A small LeRobot v2.1 dataset of a made-up arm with six joints, as its recorder leaves it: no modality.json.

python -m tests.six_joint_arm FOLDER

Each episode reaches for a red dot that the only camera sees. State and action hold the joints (rad) and the gripper,
and as a column of their own the end-effector's pose, a position (m) with two rows of the rotation matrix or a rotation
vector."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gr00t.data.state_action import _from_rotvec, _to_rotvec
from gr00t.data.video import write_video

FPS, SIDE = 10, 64
INSTRUCTION = "touch the red dot"
JOINTS = [f"joint_{number}.pos" for number in range(1, 7)]
ROTATIONS = {
    "rot6d": [f"rot6d_{number}" for number in range(6)],
    "rotvec": ["rx", "ry", "rz"],
    "euler": ["roll", "pitch", "yaw"],
}
AXES = "zyyzyz"  # of the joints, from the base to the hand
LINKS = (0.15, 0.3, 0.25, 0.1, 0.08, 0.05)  # metres, each along its own z

Episode = Mapping[str, np.ndarray]  # {column: (frames, D), or a video (frames, H, W, 3)}


def write_dataset(root: Path, episodes: Sequence[Episode], names: Mapping[str, Any], task: str = INSTRUCTION) -> Path:
    """Write what LeRobot v2.1 writes; `names` gives the names of a column's dimensions, where it has some."""
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    total = 0
    for number, episode in enumerate(episodes):
        columns: dict[str, Any] = {}
        for column, values in episode.items():
            if values.ndim == 2:
                columns[column] = pa.array(list(values.astype(np.float32)))
                continue
            path = root / f"videos/chunk-000/{column}/episode_{number:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, values, FPS)
        frames = len(next(iter(episode.values())))
        columns |= {"timestamp": np.arange(frames, dtype=np.float32) / FPS, "frame_index": np.arange(frames)}
        columns |= {"episode_index": [number] * frames, "index": np.arange(total, total + frames)}
        columns["task_index"] = [0] * frames
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{number:06d}.parquet")
        total += frames
    described = [{"episode_index": n, "tasks": [task], "length": len(e["action"])} for n, e in enumerate(episodes)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in described))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": task}) + "\n")
    (root / "meta/info.json").write_text(json.dumps(_info(episodes, names, total)))
    return root


def _info(episodes: Sequence[Episode], names: Mapping[str, Any], total: int) -> dict[str, Any]:
    features: dict[str, Any] = {
        column: {"dtype": "video", "shape": list(values.shape[1:]), "names": ["height", "width", "channels"]}
        if values.ndim == 4
        else {"dtype": "float32", "shape": [values.shape[1]], "names": names.get(column)}
        for column, values in episodes[0].items()
    }
    for column in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[column] = {"dtype": "float32" if column == "timestamp" else "int64", "shape": [1], "names": None}
    return {
        "codebase_version": "v2.1",
        "robot_type": "six_joint_arm",
        "total_episodes": len(episodes),
        "total_frames": total,
        "fps": FPS,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }


def hand_pose(joints: np.ndarray, rotation: str) -> np.ndarray:
    """Joints (frames, 6) to the hand's position (3) and its rotation in that form (3 or 6)."""
    turned, place = np.tile(np.eye(3), (len(joints), 1, 1)), np.zeros((len(joints), 3))
    for axis, link, angle in zip(AXES, LINKS, joints.T, strict=True):
        turned = turned @ _from_rotvec(angle[:, None] * np.eye(3)["xyz".index(axis)])
        place = place + link * turned[..., 2]
    form = turned[:, :2].reshape(-1, 6) if rotation == "rot6d" else _to_rotvec(turned)
    return np.concatenate([place, form], axis=1)


def recorded_reach(frames: int, rotation: str, rng: np.random.Generator) -> Episode:
    """The joints follow targets from a pose at rest, past a random one, to another, where the gripper closes."""
    rest, past, goal = np.array([0, 0.5, 1.2, 0, 0.5, 0]), *rng.uniform(-0.6, 0.6, (2, 6))
    share = np.clip(np.linspace(0, 1.15, frames)[:, None], 0, 1)
    targets = rest + past * 8 * share * (1 - share) ** 3 + goal * share**2
    joints = np.empty_like(targets)
    joints[0] = rest + rng.normal(0, 0.02, 6)
    for t in range(1, frames):
        joints[t] = joints[t - 1] + 0.6 * (targets[t - 1] - joints[t - 1])
    command = np.where(share < 1, 1.0, 0.0)
    opened = np.concatenate([np.ones((1, 1)), 0.5 * (command[:-1] + command[1:])])
    return {
        "observation.state": np.concatenate([joints, opened], axis=1),
        "action": np.concatenate([targets, command], axis=1),
        "observation.eef_pose": hand_pose(joints, rotation),
        "action.eef_pose": hand_pose(targets, rotation),
        "observation.images.front": _seen(hand_pose(joints, rotation), hand_pose(targets[-1:], rotation)[0]),
    }


def _seen(hand: np.ndarray, dot: np.ndarray) -> np.ndarray:
    """(frames, SIDE, SIDE, 3): the hand (white) and what it reaches for (red), from the front; depth is size."""
    y, x = np.mgrid[:SIDE, :SIDE]
    frames = np.full((len(hand), SIDE, SIDE, 3), (30.0, 40.0, 60.0))
    for image, place in zip(frames, hand, strict=True):
        for (depth, across, height), color in ((dot[:3], (220, 40, 40)), (place[:3], (240, 240, 240))):
            distance = np.hypot(x - SIDE * (0.5 + across), y - SIDE * (0.9 - height))
            share = np.clip((4 + 8 * depth - distance) / 2, 0, 1)[..., None]  # soft, so that small motions show
            image[:] = share * np.array(color) + (1 - share) * image
    return frames.astype(np.uint8)


def write_six_joint_arm(root: Path, episodes: int = 10, rotation: str = "rot6d") -> Path:
    """The dataset in `root`, which must not be there; the same at every call."""
    rng = np.random.default_rng(0)
    reaches = [recorded_reach(int(rng.integers(24, 34)), rotation, rng) for _ in range(episodes)]
    joints, pose = [*JOINTS, "gripper.pos"], ["x", "y", "z", *ROTATIONS[rotation]]
    columns = {"observation.state": joints, "action": joints, "observation.eef_pose": pose, "action.eef_pose": pose}
    return write_dataset(root, reaches, columns)


if __name__ == "__main__":
    print(f"wrote {write_six_joint_arm(Path(sys.argv[1]))}")
