"""The scripted expert: straight lines by inverse kinematics, varied in speed and path, as joint targets.

SAPIEN brings the inverse kinematics (pinocchio). Planning needs the simulation's state and no images: the expert makes
demonstrations, and shows what evaluation scores at best."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sapien
from sapien.wrapper.pinocchio_model import PinocchioModel

from simulation.scenes.environment import ConflictPickEnv

OPEN, CLOSED = 1.0, -1.0
ANGULAR_SPEED = 1.5  # rad/s
# The arm is a step or two behind its targets: fingers that close at once would close above a small object.
SETTLING_STEPS, CLOSING_STEPS, HOLDING_STEPS = 2, 5, 3

_LOWEST_GRASP = 0.015  # m, of the point between the fingertips
# Where the fingers may close on a shape: an angle from its x axis, and the turn after which they may again (rad);
# anywhere on those that are not here.
_CLOSINGS = {
    "cube": (0.0, math.pi / 2),
    "pyramid": (0.0, math.pi / 2),
    "star": (0.0, math.pi / 5),  # a point and the notch opposite
    "cup": (0.0, math.pi),  # beside the handle
    "car": (math.pi / 2, math.pi),
}
_LOW = {"pyramid": 0.35}  # of its height above the table at which it is grasped; others in the middle
_DOWN = np.array([0.0, 0.0, -1.0])


class Unreachable(Exception):
    """Inverse kinematics found no joint angles for a point of the path."""


@dataclass(frozen=True)
class Style:
    """How one demonstration is done: m and m/s; `bow` is how far the way to the object swings aside and up."""

    speed: float = 0.30
    clearance: float = 0.10
    bow: tuple[float, float, float] = (0.0, 0.0, 0.0)
    depth: float = 0.0
    lift: float = 0.15


def drawn_style(rng: random.Random) -> Style:
    """A style within what succeeds."""
    return Style(
        speed=rng.uniform(0.24, 0.36),
        clearance=rng.uniform(0.08, 0.12),
        bow=(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03), rng.uniform(0.0, 0.03)),
        depth=rng.uniform(-0.003, 0.001),
        lift=rng.uniform(0.13, 0.17),
    )


class Expert:
    """Plans for one environment; made once, used for every episode."""

    def __init__(self, env: ConflictPickEnv) -> None:
        self.env = env
        agent = env.agent
        self.model = PinocchioModel(Path(agent.urdf_path).read_text(), [0, 0, -9.81])
        self.model.set_joint_order([joint.name for joint in agent.robot.active_joints])
        links = [link.name for link in agent.robot.links]
        self.model.set_link_order(links)
        self.hand = links.index(agent.ee_link_name)
        self.base = agent.robot.pose.sp

    def plan(self, goal: int, style: Style | None = None) -> np.ndarray:
        """Actions (T, 8) float32 that pick up object `goal` from where the arm is now; raises Unreachable."""
        style, up = style or Style(), np.array([0, 0, 1.0])
        start = self.joints()
        grasp = self._grasp_pose(goal, start, style.depth)
        above, lifted = (sapien.Pose(grasp.p + height * up, grasp.q) for height in (style.clearance, style.lift))
        opened = self._line(start, above, style.speed, np.array(style.bow))
        opened += self._line(opened[-1], grasp, style.speed)
        opened += [opened[-1]] * SETTLING_STEPS
        closed = [opened[-1]] * CLOSING_STEPS
        closed += self._line(closed[-1], lifted, style.speed)
        closed += [closed[-1]] * HOLDING_STEPS
        actions = [np.append(joints[:7], OPEN) for joints in opened]
        actions += [np.append(joints[:7], CLOSED) for joints in closed]
        return np.stack(actions).astype(np.float32)

    def joints(self) -> np.ndarray:
        """The robot's joint positions now, (9,) float64."""
        return self.env.qpos().astype(np.float64)

    def hand_pose(self, joints: np.ndarray) -> sapien.Pose:
        """Pose in the world of the point between the fingertips."""
        self.model.compute_forward_kinematics(joints)
        return self.base * self.model.get_link_pose(self.hand)

    def solve(self, pose: sapien.Pose, near: np.ndarray) -> np.ndarray:
        """Joint positions (9,) that bring the hand there, near those given; raises Unreachable."""
        arm_only = np.array([1] * 7 + [0] * 2)
        found, success, _ = self.model.compute_inverse_kinematics(
            self.hand, self.base.inv() * pose, near, arm_only, max_iterations=100
        )
        if not success:
            raise Unreachable(f"hand at {np.round(pose.p, 3)}")
        return np.concatenate([found[:7], near[7:]])

    def displace(self, rng: random.Random) -> None:
        """Push the arm aside by 2 to 4 cm, as something that bumps into it would."""
        pose = self.hand_pose(self.joints())
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.02, 0.04)
        aside = np.array([distance * math.cos(angle), distance * math.sin(angle), rng.uniform(0.0, 0.02)])
        self.env.agent.robot.set_qpos(self.solve(sapien.Pose(pose.p + aside, pose.q), self.joints()))

    def _grasp_pose(self, goal: int, joints: np.ndarray, depth: float) -> sapien.Pose:
        """From above; the fingers close along a cube's edge, turning the hand as little as possible."""
        object_pose = self.env.objects[goal].pose.sp
        closing = _angle_of_axis(self.hand_pose(joints), 1)
        shape = self.env.episode.objects[goal].object
        if shape in _CLOSINGS:
            angle, turn = _CLOSINGS[shape]
            edge = _angle_of_axis(object_pose, 0) + angle
            closing = edge + round((closing - edge) / turn) * turn
        axis = np.array([math.cos(closing), math.sin(closing), 0.0])
        frame = np.eye(4)
        frame[:3, :3] = np.stack([np.cross(axis, _DOWN), axis, _DOWN], axis=1)
        frame[:3, 3] = object_pose.p
        frame[2, 3] = max(object_pose.p[2] * _LOW.get(shape, 1.0) + depth, _LOWEST_GRASP)
        return sapien.Pose(frame)

    def _line(
        self, joints: np.ndarray, goal: sapien.Pose, speed: float, bow: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Joint positions (9,) on a straight line, or one bent by `bow` in its middle, that starts and ends slowly."""
        start, found = self.hand_pose(joints), [joints]
        q0, q1 = np.array(start.q), np.array(goal.q)
        q1 = -q1 if q0 @ q1 < 0 else q1
        angle = 2 * math.acos(float(np.clip(q0 @ q1, -1, 1)))
        duration = max(float(np.linalg.norm(goal.p - start.p)) / speed, angle / ANGULAR_SPEED)
        steps = max(2, math.ceil(duration / self.env.control_timestep))
        for i in range(1, steps + 1):
            s = (i / steps) ** 2 * (3 - 2 * i / steps)
            q = (1 - s) * q0 + s * q1
            p = (1 - s) * start.p + s * goal.p + (0 if bow is None else math.sin(math.pi * s) * bow)
            found.append(self.solve(sapien.Pose(p, q / np.linalg.norm(q)), found[-1]))
        return found[1:]


def _angle_of_axis(pose: sapien.Pose, axis: int) -> float:
    """Direction on the table (rad) of a pose's x (0) or y (1) axis."""
    rotation = pose.to_transformation_matrix()[:3, :3]
    return math.atan2(rotation[1, axis], rotation[0, axis])
