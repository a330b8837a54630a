"""The instruction suite's six shapes, put together from convex pieces. Nothing is downloaded.

Lengths follow from `half`, half of a cube's edge (m); every shape stands on its own, fits between the Panda's fingers
along its x or y axis, and looks unlike the others to both cameras at 128 pixels."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sapien
import trimesh
from mani_skill.envs.scene import ManiSkillScene
from mani_skill.utils.structs.actor import Actor

COLORS = {
    "red": [0.8, 0.05, 0.05, 1],
    "yellow": [0.9, 0.75, 0.05, 1],
    "blue": [0.05, 0.15, 0.85, 1],
    "orange": [0.95, 0.35, 0.03, 1],
    "green": [0.05, 0.6, 0.1, 1],
    "black": [0.03, 0.03, 0.03, 1],
}
DAMPING = 5.0  # of rotation: what is touched should not roll away

_WHEEL = [0.25, 0.25, 0.25, 1]
_SIDES = 12  # of a cup


@dataclass(frozen=True)
class Piece:
    """A box (size: its half lengths), sphere (radius), cylinder along y (radius, half length) or the hull of points."""

    kind: str
    size: tuple[Any, ...]
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turned: float = 0.0
    color: list[float] | None = None

    @property
    def pose(self) -> sapien.Pose:
        """Where it is in the object."""
        if self.kind == "cylinder":  # SAPIEN's lie along x
            return sapien.Pose(self.at, [math.sqrt(0.5), 0, 0, math.sqrt(0.5)])
        return sapien.Pose(self.at, [math.cos(self.turned / 2), 0, 0, math.sin(self.turned / 2)])


def height(shape: str, half: float) -> float:
    """Of an object's origin above the table that it stands on, m."""
    return {"cube": 1.0, "sphere": 1.1, "cup": 1.1, "car": 0.98, "pyramid": 1.0, "star": 0.8}[shape] * half


def build(scene: ManiSkillScene, name: str, shape: str, color: str, half: float, pose: sapien.Pose) -> Actor:
    """An object of that shape and color, with its origin at `pose`."""
    builder = scene.create_actor_builder()
    for piece in pieces(shape, half):
        material = sapien.render.RenderMaterial(base_color=piece.color or COLORS[color])
        if piece.kind == "hull":
            file = _hull_file(piece.size)
            builder.add_convex_collision_from_file(file, piece.pose)
            builder.add_visual_from_file(file, piece.pose, material=material)
            continue
        size = [piece.size] if piece.kind == "box" else piece.size
        getattr(builder, f"add_{piece.kind}_collision")(piece.pose, *size)
        getattr(builder, f"add_{piece.kind}_visual")(piece.pose, *size, material=material)
    builder.initial_pose = pose
    actor = builder.build(name)
    for rigid in actor._bodies:
        rigid.set_angular_damping(DAMPING)
    return actor


def pieces(shape: str, half: float) -> list[Piece]:
    """What an object is made of."""
    if shape == "cube":
        return [Piece("box", (half, half, half))]
    if shape == "sphere":
        return [Piece("sphere", (1.1 * half,))]
    return list({"cup": _cup, "car": _car, "pyramid": _pyramid, "star": _star}[shape](half))


def extent(shape: str, half: float, angle: float) -> float:
    """How far an object reaches from its origin in a direction on the table (rad from its own x axis), m."""
    direction = np.array([math.cos(angle), math.sin(angle)])
    return max(float(np.max(_outline(piece) @ direction)) for piece in pieces(shape, half))


def _outline(piece: Piece) -> np.ndarray:
    """(n, 2): the corners of a piece seen from above; a sphere's are many."""
    if piece.kind == "hull":
        return np.array(piece.size)[:, :2]
    if piece.kind == "sphere":
        angles = np.arange(0, 2 * math.pi, 0.1)
        return piece.size[0] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    x, y = piece.size[:2]
    cos, sin = math.cos(piece.turned), math.sin(piece.turned)
    corners = np.array([(x, y), (x, -y), (-x, y), (-x, -y)]) @ np.array([[cos, sin], [-sin, cos]])
    return corners + np.array(piece.at[:2])


def _cup(half: float) -> Iterator[Piece]:
    """Open at the top, with a handle to the side of -y."""
    wall, tall = 0.14 * half, 1.1 * half
    for side in range(_SIDES):
        angle = 2 * math.pi * side / _SIDES
        at = ((half - wall) * math.cos(angle), (half - wall) * math.sin(angle), 0.0)
        yield Piece("box", (wall, half * math.tan(math.pi / _SIDES), tall), at, angle)
    yield Piece("box", (0.68 * half, 0.68 * half, wall), (0.0, 0.0, wall - tall))
    for z in (0.5 * tall, -0.45 * tall):
        yield Piece("box", (0.13 * half, 0.3 * half, 0.1 * tall), (0.0, -1.25 * half, z))
    yield Piece("box", (0.13 * half, 0.1 * half, 0.58 * tall), (0.0, -1.5 * half, 0.03 * tall))


def _car(half: float) -> Iterator[Piece]:
    """Along x, with four wheels."""
    yield Piece("box", (1.75 * half, 0.87 * half, 0.42 * half), (0.0, 0.0, -0.15 * half))
    yield Piece("box", (0.95 * half, 0.76 * half, 0.38 * half), (-0.15 * half, 0.0, 0.6 * half))
    for x in (-1.05 * half, 1.05 * half):
        for y in (-0.87 * half, 0.87 * half):
            yield Piece("cylinder", (0.38 * half, 0.14 * half), (x, y, -0.6 * half), color=_WHEEL)


def _pyramid(half: float) -> Iterator[Piece]:
    """With a square base."""
    base = 1.15 * half
    corners = [(x, y, -half) for x in (-base, base) for y in (-base, base)]
    yield Piece("hull", (*corners, (0.0, 0.0, 1.2 * half)))


def _star(half: float) -> Iterator[Piece]:
    """Flat, five points, the first along x: a pentagon and prisms, blunt: sharp ones turn in a grasp."""
    radii = [1.6 * half, 0.72 * half]
    rim = [np.array([math.cos(math.pi * k / 5), math.sin(math.pi * k / 5)]) * radii[k % 2] for k in range(10)]
    yield _prism(rim[1::2], 0.8 * half)
    for tip in range(0, 10, 2):
        sides = [rim[tip - 1], rim[tip + 1]]
        yield _prism([*sides, *(rim[tip] + 0.2 * (side - rim[tip]) for side in sides)], 0.8 * half)


def _prism(outline: Sequence[np.ndarray], tall: float) -> Piece:
    return Piece("hull", tuple((float(x), float(y), z) for x, y in outline for z in (-tall, tall)))


@cache
def _hull_file(points: tuple[tuple[float, float, float], ...]) -> str:
    """SAPIEN takes meshes from files only: a file of this process."""
    path = Path(_folder().name) / f"{_hull_file.cache_info().currsize}.stl"
    trimesh.convex.convex_hull(np.array(points)).export(path)
    return str(path)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="shapes-")
