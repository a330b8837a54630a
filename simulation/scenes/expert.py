"""The scripted expert: straight lines by inverse kinematics, varied in speed and path, as joint targets.

SAPIEN brings the inverse kinematics (pinocchio). Planning needs the simulation's state and no images: the expert makes
demonstrations, and shows what evaluation scores at best."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sapien
from sapien.wrapper.pinocchio_model import PinocchioModel

from simulation.scenes import shapes
from simulation.scenes.environment import ConflictPickEnv
from simulation.scenes.instruction_suite import HALF_SIZE, Body

OPEN, CLOSED = 1.0, -1.0
ANGULAR_SPEED = 1.5  # rad/s
# The arm is a step or two behind its targets: fingers that close at once would close above a small object.
SETTLING_STEPS, CLOSING_STEPS, HOLDING_STEPS, RESTING_STEPS = 2, 5, 3, 6
DRAGGING = 0.6  # of the speed, along the table
# m: half a finger, how far from an object it comes down behind it, and how much nearer its middle the finger meets it.
FINGER, GAP, SLOPE = 0.011, 0.015, 0.008
IN_THE_WAY = 0.08  # m, in x
LEAN = 0.3  # rad, of the hand that pushes

_LOWEST_GRASP = 0.015  # m, of the point between the fingertips
# Where the fingers may close on a shape: angles from its x axis, and the turn after which they may again (rad);
# anywhere on those that are not here.
_CLOSINGS = {
    "cube": ((0.0,), math.pi / 2),
    "pyramid": ((0.0,), math.pi / 2),
    "star": ((0.0,), math.pi / 5),  # a point and the notch opposite
    "cup": ((-math.pi / 6, 0.0, math.pi / 6), math.pi),  # beside the handle
    "car": ((math.pi / 2,), math.pi),
}
_ANYWHERE = ((0.0,), math.pi / 6)
# m, of the open hand: how far it reaches from its middle, in the fingers' direction and across it.
_FINGERS, _PALM, _PALM_HEIGHT = (0.067, 0.012), (0.105, 0.032), 0.035
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

    def plan(self, goal: int, style: Style | None = None, verb: str | None = None) -> np.ndarray:
        """Actions (T, 8) float32 that do a verb, the episode's or lift, to object `goal` from where the arm is now;
        raises Unreachable."""
        style, verb = style or Style(), verb or str(getattr(self.env.episode, "verb", "lift"))
        if verb == "push":
            return self._push(goal, style)
        shift, turn = self._motion(verb, goal, style)
        grasp, turn = self._grasp(goal, style.depth, shift, turn)
        opened = self._approach(grasp, style)
        closed = [opened[-1]] * CLOSING_STEPS
        if verb == "grasp":
            closed += [closed[-1]] * self.env.thresholds.held
        else:
            speed = style.speed if verb == "lift" else style.speed * DRAGGING
            closed += self._line(closed[-1], _turned(sapien.Pose(grasp.p + shift, grasp.q), turn), speed)
        closed += [closed[-1]] * (HOLDING_STEPS if verb == "lift" else RESTING_STEPS)
        return _actions((OPEN, opened), (CLOSED, closed))

    def _approach(self, pose: sapien.Pose, style: Style) -> list[np.ndarray]:
        """Joint positions on the way to a pose, which is reached from above."""
        way = self._line(self.joints(), _shifted(pose, z=style.clearance), style.speed, np.array(style.bow))
        way += self._line(way[-1], pose, style.speed)
        return way + [way[-1]] * SETTLING_STEPS

    def _motion(self, verb: str, goal: int, style: Style) -> tuple[np.ndarray, float]:
        """How the hand, which holds the object, moves, (3,) m, and turns, rad."""
        shift, distance = np.zeros(3), self._far(style) * self.env.thresholds.moved
        if verb == "lift":
            shift[2] = style.lift
        elif verb == "pull":
            shift[0] = -distance
        elif verb == "slide":
            shift[1] = distance * self._free_side(goal, style)
        turned = self._far(style) * self.env.thresholds.turned
        return shift, math.copysign(turned, style.bow[0]) if verb == "rotate" else 0.0

    def _far(self, style: Style) -> float:
        """How far beyond its threshold a verb is carried, as a factor: varied as the height of a lift is."""
        return 1.4 * style.lift / Style.lift

    def _free_side(self, goal: int, style: Style) -> float:
        """1 or -1: the side (y) to which nothing lies in the object's way."""
        own, others = self._at(goal), [self._at(i) for i in range(len(self.env.objects)) if i != goal]
        beside = [other[1] - own[1] for other in others if abs(other[0] - own[0]) < IN_THE_WAY]
        nearest = min(beside, key=abs, default=style.bow[1])
        return -math.copysign(1.0, nearest)

    def _at(self, index: int) -> np.ndarray:
        return np.asarray(self.env.objects[index].pose.sp.p)

    def _push(self, goal: int, style: Style) -> np.ndarray:
        """With closed fingers from behind, away from the robot."""
        pose, thing = self.env.objects[goal].pose.sp, self.env.episode.objects[goal]
        behind = math.pi - _angle_of_axis(pose, 0)
        reach = shapes.extent(thing.object, HALF_SIZE[thing.size], behind) + FINGER
        across = _nearest(_angle_of_axis(self.hand_pose(self.joints()), 1), math.pi / 2, math.pi)
        # Upright, the arm is too short where objects lie in front.
        start = _turned(_shifted(self._hand_over(goal, across, style.depth), x=-reach - GAP), -LEAN, (0, 1, 0))
        closed = self._approach(start, style)
        distance = GAP + SLOPE + self._far(style) * self.env.thresholds.moved
        closed += self._line(closed[-1], _shifted(start, x=distance), style.speed * DRAGGING)
        closed += [closed[-1]] * RESTING_STEPS
        return _actions((CLOSED, closed))

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

    def _grasp(self, goal: int, depth: float, shift: np.ndarray, turn: float) -> tuple[sapien.Pose, float]:
        """From above; the fingers close along a cube's edge, turning the hand as little as possible, but so that it
        touches no other object, there and on its motion, where there is a way; and the turn, this one or its opposite.
        """
        now, shape = _angle_of_axis(self.hand_pose(self.joints()), 1), self.env.episode.objects[goal].object
        angles, period = _CLOSINGS.get(shape, _ANYWHERE)
        axis = _angle_of_axis(self.env.objects[goal].pose.sp, 0) if shape in _CLOSINGS else now
        nearest = [_nearest(now, axis + angle, period) for angle in angles]
        found = sorted((each + k * period for each in nearest for k in range(-3, 4)), key=lambda each: abs(each - now))
        in_reach = [each for each in found if abs(each - now) <= math.pi / 2]
        for closing, way in itertools.product(in_reach, (turn, -turn) if turn else (0.0,)):
            pose = self._hand_over(goal, closing, depth)
            if all(self._clear(goal, pose.p + part * shift, closing + part * way) for part in (0.0, 0.5, 1.0)):
                return pose, way
        return self._hand_over(goal, found[0], depth), turn

    def _clear(self, goal: int, at: np.ndarray, closing: float) -> bool:
        """Whether the open hand at that point, which closes in that direction (rad), is beside all other objects."""
        for index, other in enumerate(self.env.episode.objects):
            if index == goal or not isinstance(other, Body):
                continue
            x, y = (self._at(index) - at)[:2]
            reach = shapes.extent(other.object, HALF_SIZE[other.size], math.atan2(-y, -x) - other.yaw)
            along = abs(x * math.cos(closing) + y * math.sin(closing)) - reach
            across = abs(y * math.cos(closing) - x * math.sin(closing)) - reach
            below_palm = 2.1 * self._at(index)[2] < at[2] + _PALM_HEIGHT
            half_long, half_wide = _FINGERS if below_palm else _PALM
            if along < half_long and across < half_wide:
                return False
        return True

    def _hand_over(self, goal: int, closing: float, depth: float) -> sapien.Pose:
        """The hand points down at an object, at the height of a grasp; the fingers close in that direction (rad)."""
        axis = np.array([math.cos(closing), math.sin(closing), 0.0])
        frame, at = np.eye(4), self._at(goal)
        frame[:3, :3] = np.stack([np.cross(axis, _DOWN), axis, _DOWN], axis=1)
        frame[:3, 3] = at
        low = _LOW.get(self.env.episode.objects[goal].object, 1.0)
        frame[2, 3] = max(at[2] * low + depth, _LOWEST_GRASP)
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


def _actions(*phases: tuple[float, list[np.ndarray]]) -> np.ndarray:
    """Actions (T, 8) float32 of joint positions, each phase with its gripper command."""
    found = [np.append(joints[:7], gripper) for gripper, way in phases for joints in way]
    return np.stack(found).astype(np.float32)


def _shifted(pose: sapien.Pose, x: float = 0.0, z: float = 0.0) -> sapien.Pose:
    return sapien.Pose(pose.p + np.array([x, 0.0, z]), pose.q)


def _turned(pose: sapien.Pose, angle: float, axis: tuple[int, int, int] = (0, 0, 1)) -> sapien.Pose:
    """The same place, turned by an angle (rad) about an axis of the world, the vertical."""
    about = sapien.Pose(q=[math.cos(angle / 2), *(math.sin(angle / 2) * np.array(axis))])
    return sapien.Pose(pose.p, (about * sapien.Pose(q=pose.q)).q)


def _nearest(angle: float, other: float, turn: float) -> float:
    """Of `other` and what whole turns make of it, what is nearest to `angle`; rad."""
    return other + round((angle - other) / turn) * turn


def _angle_of_axis(pose: sapien.Pose, axis: int) -> float:
    """Direction on the table (rad) of a pose's x (0) or y (1) axis."""
    rotation = pose.to_transformation_matrix()[:3, :3]
    return math.atan2(rotation[1, axis], rotation[0, axis])
