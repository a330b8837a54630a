"""Small LeRobot datasets that teach something known: which of two things the arm goes to, and what says so.

Images are drawn: shapes on a table, as PNG in the tables. The joints follow from the place by a smooth, made-up map."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.lerobot import MODALITY

COLORS = {
    "red": (200, 30, 30),
    "green": (20, 150, 40),
    "blue": (30, 50, 210),
    "yellow": (220, 200, 30),
    "black": (25, 25, 25),
    "white": (240, 240, 240),
}
SHAPES = ("cube", "sphere", "star")
CORNERS = {"left": (0.2, 0.5), "right": (0.8, 0.5), "front": (0.5, 0.8), "back": (0.5, 0.2)}
SIDE, FRAMES, FPS = 64, 12, 20
# What each is, and what the check should find.
TEN = {
    "the sentence names one of two colors": "language",
    "the sentence names one of two shapes and colors": "language",
    "one object, which the sentence names": "image",
    "always the larger of two": "image",
    "one object, one sentence": "one instruction",
    "the sentence names the place": "instruction",
    "the arm begins above the target": "state",
    "one place": "one place",
    "nothing says which way": "nothing",
    "forty episodes": "too few",
}


def scene(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, str, np.ndarray, np.ndarray, dict[str, str]]:
    """Image (SIDE, SIDE, 3), instruction, start (7,) and goal (7,) of the joints, and the target's factors."""
    places = rng.uniform(0.15, 0.85, (2, 2))
    while np.hypot(*(places[0] - places[1])) < 0.25:
        places = rng.uniform(0.15, 0.85, (2, 2))
    colors, shapes = rng.permutation(list(COLORS))[:2], rng.permutation(SHAPES)[:2]
    sizes, target = np.array([0.075, 0.075]), int(rng.integers(2))
    text, shown = f"lift the {colors[target]} {shapes[target]}", [0, 1]
    if kind == "the sentence names one of two colors":
        shapes[:] = "cube"
    elif kind in ("one object, which the sentence names", "one object, one sentence", "forty episodes"):
        shown = [target]
    elif kind == "always the larger of two":
        sizes[target], sizes[1 - target] = 0.09, 0.05
    elif kind == "the sentence names the place":
        names = rng.permutation(list(CORNERS))[:2]
        places = np.array([CORNERS[name] for name in names]) + rng.uniform(-0.03, 0.03, (2, 2))
        text = f"lift the one on the {names[target]}"
    elif kind == "one place":
        places[target], shown = 0.5 + rng.normal(0, 0.005, 2), [target]
    if kind == "one object, one sentence":
        text = "pick it up"
    image = draw(rng, [(places[i], colors[i], shapes[i], sizes[i]) for i in shown])
    if kind == "nothing says which way":
        places[target] = rng.uniform(0.15, 0.85, 2)
    start, goal = rng.normal(0, 0.02, 7), joints(places[target]) + rng.normal(0, 0.01, 7)
    if kind == "the arm begins above the target":
        start = start + 0.5 * goal
    return image, text, start, goal, {"color": str(colors[target]), "object": str(shapes[target])}


def draw(rng: np.random.Generator, things: list[tuple[np.ndarray, str, str, float]]) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    image = 150 + rng.normal(0, 4, (SIDE, SIDE, 3)) + 25 * y[..., None]
    for (left, down), color, shape, size in things:
        across, along = abs(x - left), abs(y - down)
        inside = {
            "cube": np.maximum(across, along) < 0.88 * size,
            "sphere": np.hypot(across, along) < size,
            "star": across + along < 1.3 * size,
        }[shape]
        image[inside] = np.array(COLORS[color]) * np.where(x > left, 0.8, 1.0)[inside][:, None]
    return np.clip(image, 0, 255).astype(np.uint8)


def joints(place: np.ndarray) -> np.ndarray:
    """(7,) rad, where the arm is above a place on the table."""
    away, aside = place[1] + 0.4, place[0] - 0.5
    turn, reach = np.arctan2(aside, away), np.hypot(aside, away)
    return np.array([turn, reach, 0.2 * turn * reach, 1.4 * reach**2 - 1, 0.1 * turn, 1 - reach, turn / 2])


def write_taught(root: Path, kind: str, episodes: int, seed: int = 0) -> Path:
    """A dataset of the Panda's keys in which the arm goes to the target, closes the gripper there and returns."""
    rng = np.random.default_rng(seed)
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    tasks: dict[str, int] = {}
    described, known = [], []
    for e in range(episodes):
        image, text, start, goal, factors = scene(kind, rng)
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG", compress_level=1)
        way = np.minimum(1, np.arange(FRAMES) / (FRAMES // 2))[:, None]
        arm = start + way * (goal - start)
        arm[FRAMES * 3 // 4 :] = 0.0
        closed = (np.arange(FRAMES) >= FRAMES // 2)[:, None]
        number = tasks.setdefault(text, len(tasks))
        columns = {
            "observation.state": list(np.hstack([arm, 0.04 - 0.02 * closed]).astype(np.float32)),
            "action": list(np.hstack([arm, 1.0 - 2.0 * closed]).astype(np.float32)),
            "image": [{"bytes": out.getvalue(), "path": "0.png"}] * FRAMES,
            "timestamp": np.arange(FRAMES) / FPS,
            "frame_index": range(FRAMES),
            "episode_index": [e] * FRAMES,
            "index": range(e * FRAMES, (e + 1) * FRAMES),
            "task_index": [number] * FRAMES,
            "annotation.human.task_description": [number] * FRAMES,
        }
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        pq.write_table(table, root / f"data/chunk-000/episode_{e:06d}.parquet")
        described.append({"episode_index": e, "tasks": [text], "length": FRAMES})
        known.append({"episode_index": e, "target": factors})
    features = {name: {"dtype": "float32", "shape": [8]} for name in ("observation.state", "action")}
    features["image"] = {"dtype": "image", "shape": [SIDE, SIDE, 3]}
    info = {"codebase_version": "v2.1", "fps": FPS, "features": features, "chunks_size": 1000}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    modality = {**MODALITY, "video": {"image": {"original_key": "image"}}}
    for name, content in (("info", info), ("modality", modality), ("split", {"episodes": known})):
        (root / f"meta/{name}.json").write_text(json.dumps(content))
    lines = {"episodes": described, "tasks": [{"task_index": n, "task": text} for text, n in tasks.items()]}
    for name, rows in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
