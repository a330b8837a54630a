"""Tiny synthetic ManiSkill recordings for tests, in the layout that RecordEpisode writes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SAMPLES = Path(__file__).parent.parent / "samples"
INSTRUCTION = "pick up the color-matching object"
SIZE = (32, 32)
META: dict[str, Any] = {
    "env_info": {
        "env_id": "CueConflictPick-v1",
        "env_kwargs": {"obs_mode": "rgb", "control_mode": "pd_joint_pos", "sim_backend": "physx_cpu"},
        "max_episode_steps": 100,
    },
    "commit_info": None,
}


def write_recording(
    folder: Path,
    lengths: list[int],
    *,
    name: str = "trajectory",
    seed: int = 0,
    failed: tuple[int, ...] = (),
    size: tuple[int, int] = SIZE,
) -> Path:
    """Write <name>.h5 and <name>.json with episodes of these lengths (steps); `failed` names unsuccessful ids."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    rng = np.random.default_rng(seed)
    episodes = []
    with h5py.File(path, "w") as recording:
        for episode_id, length in enumerate(lengths):
            _write_trajectory(recording.create_group(f"traj_{episode_id}"), length, episode_id not in failed, size, rng)
            entry = {"episode_id": episode_id, "episode_seed": 100 * seed + episode_id, "elapsed_steps": length}
            episodes.append({**entry, "control_mode": "pd_joint_pos", "success": episode_id not in failed})
    path.with_suffix(".json").write_text(json.dumps({**copy.deepcopy(META), "episodes": episodes}))
    return path


def write_split(raw: Path, train: list[int], conflict: list[int], name: str = "color_object") -> Path:
    """Write raw/<name>/{train,conflict} with episodes of these lengths; returns `raw`."""
    write_recording(raw / name / "train", train, seed=1)
    write_recording(raw / name / "conflict", conflict, seed=2)
    return raw


def edit_json(h5_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the recording's .json."""
    path = h5_path.with_suffix(".json")
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def replace(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """Put other values, of any shape, in a dataset's place."""
    del group[name]
    group.create_dataset(name, data=values)


def _write_trajectory(
    group: h5py.Group, length: int, success: bool, size: tuple[int, int], rng: np.random.Generator
) -> None:
    actions, qpos = reach_and_grasp(length, rng)
    flags = np.zeros(length, dtype=bool)
    flags[-1:] = success
    for name, values in (("actions", actions), ("success", flags), ("terminated", flags), ("truncated", flags & False)):
        group.create_dataset(name, data=values)
    group.create_dataset("obs/agent/qpos", data=qpos.astype(np.float32))
    for start, camera in enumerate(("base_camera", "hand_camera")):
        frames = moving_square(length + 1, size, start=start * 8, row=int(rng.integers(0, size[0] - 8)))
        group.create_dataset(f"obs/sensor_data/{camera}/rgb", data=frames, compression="gzip")


def reach_and_grasp(length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Actions (length, 8) and qpos (length + 1, 9) of a Panda whose joints follow wandering targets, then close."""
    wander = np.cumsum(rng.normal(0, 0.02, (length, 7)), axis=0) + rng.normal(0, 0.05, 7)
    targets = np.array([0.0, 0.5, 0.0, -1.8, 0.0, 2.3, -0.8]) + wander
    command = np.where(np.arange(length) < length // 2, 1.0, -1.0)
    actions = np.concatenate([targets, command[:, None]], axis=1).astype(np.float32)
    qpos = np.zeros((length + 1, 9))
    qpos[0] = [*(targets[0] + rng.normal(0, 0.02, 7)), 0.04, 0.04]
    for t in range(length):
        goal = [*targets[t], *([0.015 + 0.025 * command[t]] * 2)]
        qpos[t + 1] = qpos[t] + 0.6 * (np.maximum(goal, [-np.inf] * 7 + [0, 0]) - qpos[t])
    return actions, qpos


def moving_square(count: int, size: tuple[int, int], start: int = 0, row: int = 8) -> np.ndarray:
    """(count, H, W, 3) uint8: an orange square that walks over a bluish ground, two pixels a frame."""
    height, width = size
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    frames[:] = (40, 60, 120)
    for t in range(count):
        x = (start + 2 * t) % max(1, width - 8)
        frames[t, row : row + 8, x : x + 8] = (230, 120, 20)
    return frames
