"""ConflictPick-v1: the ManiSkill environment of the conflict splits of both suites.

Importing this module registers it with ManiSkill. One environment per process, physics on the CPU. A reset with a seed
builds the suite's `sample(split, part, seed, strategy)`: these say everything about an episode, and its first state is
the same bit for bit. options={"episode": EPISODE} builds that one, the arm as the seed has it. PhysX remembers
contacts of earlier episodes, which changes motions a little; with options=REBUILD (1 s) the whole scene is new and
motions too are the same bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import sapien.render
import sapien.wrapper.urdf_loader
import torch
from mani_skill.agents.robots import Panda, PandaWristCam
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.building import actors
from mani_skill.utils.registration import register_env
from mani_skill.utils.scene_builder.table import TableSceneBuilder
from mani_skill.utils.structs.actor import Actor

from simulation.scenes import ENV_ID, instruction_suite, shapes
from simulation.scenes.frustum_culling import only_what_is_seen
from simulation.scenes.instruction_suite import Body, InstructedEpisode
from simulation.scenes.plate_suite import HALF_SIZE, Episode, Thing
from simulation.scenes.suites import suite_of
from simulation.scenes.verbs import VERBS, Detector, Thresholds

MAX_EPISODE_STEPS = 100
REBUILD = {"reconfigure": True}  # options of reset
LIFTED = 0.05  # m above the table at which a held object counts as picked up
STILL = 0.2  # rad/s
GRASP_FORCE, GRASP_ANGLE = 0.5, 85.0  # N of each finger; degrees from where it opens to: ManiSkill's is_grasping
PLATE_SIZE = {"small": 0.022, "large": 0.040}  # half a square plate's edge, m
PLATE_THICKNESS = 0.002  # half
UPRIGHT = [0.70710678, 0, 0.70710678, 0]  # SAPIEN's cylinders lie along x
# Added to ManiSkill's start (rad): 10 cm higher, the hand hides no place of the instruction suite, and sees more.
RAISED = np.array([0, -0.281, 0, -0.12, 0, -0.161, 0, 0, 0], np.float32)


@contextmanager
def _without_materials(wanted: bool) -> Iterator[None]:
    """In the block, bodies are built without materials, where `wanted`: physics alone needs no Vulkan driver.

    SAPIEN makes a material with Vulkan even for a scene that renders nothing: without a driver that fails, and with one
    it starts and ends the renderer for each, 40 times as long as all the rest of a reset.
    """
    holders = (sapien.render, sapien.pysapien.render, sapien.wrapper.urdf_loader) if wanted else ()
    own = [holder.RenderMaterial for holder in holders]
    for holder in holders:
        holder.RenderMaterial = SimpleNamespace
    try:
        yield
    finally:
        for holder, material in zip(holders, own, strict=True):
            holder.RenderMaterial = material


@register_env(ENV_ID, max_episode_steps=MAX_EPISODE_STEPS)
class ConflictPickEnv(BaseEnv):
    """Pick up what matches the cue plate, or the sentence, in the factor that the split names first; `episode` is the
    last reset's."""

    SUPPORTED_ROBOTS = ["panda", "panda_wristcam"]  # noqa: RUF012
    agent: Panda | PandaWristCam
    episode: Episode | InstructedEpisode

    def __init__(
        self,
        *args: Any,
        split: str = "color_object",
        part: str = "train",
        strategy: str | None = None,
        no_distractor_prob: float | None = None,
        thresholds: Mapping[str, float] | None = None,
        image_size: int = 224,
        robot_uids: str = "panda_wristcam",
        **kwargs: Any,
    ) -> None:
        self.split, self.part, self.strategy, self.image_size = split, part, strategy, image_size
        self.no_distractor_prob = no_distractor_prob
        self.thresholds = Thresholds(**(thresholds or {}))  # type: ignore[arg-type]
        kwargs.setdefault("sensor_configs", {"width": image_size, "height": image_size})
        super().__init__(*args, robot_uids=robot_uids, **kwargs)

    @property
    def _default_sensor_configs(self) -> list[CameraConfig]:
        pose = sapien_utils.look_at(eye=[0.49, 0, 0.52], target=[0.06, 0, 0.02])
        return [CameraConfig("base_camera", pose, self.image_size, self.image_size, 0.8, 0.01, 100)]

    @property
    def _default_human_render_camera_configs(self) -> CameraConfig:
        pose = sapien_utils.look_at([0.6, 0.7, 0.6], [0.0, 0.0, 0.25])
        return CameraConfig("render_camera", pose, 512, 512, 1, 0.01, 100)

    def reset(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """ManiSkill's reset; a scene that renders nothing is built without materials."""
        with _without_materials(self._render_device is None):
            return super().reset(*args, **kwargs)

    def _load_agent(self, options: dict[str, Any]) -> None:
        super()._load_agent(options, sapien.Pose(p=[-0.615, 0, 0]))
        # The wrist camera's housing has 72 % of all triangles: without it rendering is 3 times faster.
        for link in self.agent.robot.get_links():
            if link.name == "camera_link":
                entity = link._objs[0].entity
                visual = entity.find_component_by_type(sapien.render.RenderBodyComponent)
                if visual is not None:
                    entity.remove_component(visual)

    def _load_scene(self, options: dict[str, Any]) -> None:
        self.table_scene = TableSceneBuilder(self, robot_init_qpos_noise=0.02)
        self.table_scene.build()
        self.objects: list[Actor] = []
        self.plate: Actor | None = None

    def _initialize_episode(self, env_idx: torch.Tensor, options: dict[str, Any]) -> None:
        self.table_scene.initialize(env_idx)
        seed = int(self._episode_seed[0])
        sample = suite_of(self.split).sample
        given = options.get("episode")
        self.episode = given or sample(self.split, self.part, seed, self.strategy, self.no_distractor_prob)
        for body in reversed([*self.objects, *filter(None, [self.plate])]):
            self.scene.remove_from_state_dict_registry(body)
            self.scene.actors.pop(body.name)
            self.scene.sub_scenes[0].remove_entity(body._objs[0])  # ManiSkill's own remove_actor fails on actors
        self.objects = [self._build_object(f"object_{i}", thing) for i, thing in enumerate(self.things)]
        self.plate = None
        if isinstance(self.episode, InstructedEpisode):
            self.agent.reset(self.qpos() + RAISED)
            shapes_there = [body.object for body in self.episode.objects]
            self.detector, self._judged = Detector(self.object_poses(), shapes_there, self.thresholds), 0
        else:
            self.plate = self._build_plate(self.episode.plate)

    def _build_object(self, name: str, thing: Thing | Body) -> Actor:
        if isinstance(thing, Body):
            half = instruction_suite.HALF_SIZE[thing.size]
            return shapes.build(self.scene, name, thing.object, thing.color, half, _pose(thing, _height(thing), False))
        half, height = HALF_SIZE[thing.size], _height(thing)
        sizes = {"cube": [half], "sphere": [height], "cylinder": [half, height]}[thing.object]
        pose = _pose(thing, height, lying=thing.object == "cylinder")
        build = getattr(actors, f"build_{thing.object}")
        body = build(self.scene, *sizes, shapes.COLORS[thing.color], name, initial_pose=pose)
        for rigid in body._bodies:
            rigid.set_angular_damping(5.0)  # a sphere that is touched should not roll away
        return body

    def _build_plate(self, thing: Thing) -> Actor:
        """A flat plate whose outline stands for a kind: square for cube, disc for sphere, bar for cylinder."""
        half, color = PLATE_SIZE[thing.size], shapes.COLORS[thing.color]
        common: dict[str, Any] = {"name": "plate", "body_type": "kinematic", "add_collision": False}
        common["initial_pose"] = _pose(thing, PLATE_THICKNESS, lying=thing.object == "sphere")
        if thing.object == "sphere":
            return actors.build_cylinder(self.scene, 1.13 * half, PLATE_THICKNESS, color, **common)
        sides = [half, half] if thing.object == "cube" else [0.6 * half, 1.67 * half]
        return actors.build_box(self.scene, [*sides, PLATE_THICKNESS], color, **common)

    @property
    def things(self) -> tuple[Thing | Body, ...]:
        """What the episode says of each of `objects`."""
        return self.episode.objects

    def render_when_asked(self) -> None:
        """From now on neither reset nor step renders; `look` does."""
        self._obs_mode = "none"

    def look(self) -> dict[str, np.ndarray]:
        """The image (H, W, 3) uint8 RGB of each camera in the present state, rendered now."""
        found = self._get_obs_sensor_data()
        return {name: images["rgb"][0].cpu().numpy() for name, images in found.items()}

    def capture_sensor_data(self) -> None:
        """Render each camera's image of what it can see."""
        bodies = self.scene.sub_scenes[0].render_system.render_bodies
        for sensor in self._sensors.values():
            with only_what_is_seen(sensor.camera._render_cameras[0], bodies):
                sensor.capture()

    def qpos(self) -> np.ndarray:
        """The robot's joint positions now, (9,): 7 joints (rad), 2 fingers (m)."""
        return self.agent.robot.get_qpos()[0].cpu().numpy()

    def _get_obs_extra(self, info: dict[str, Any]) -> dict[str, Any]:
        return {"tcp_pose": self.agent.tcp_pose.raw_pose}

    def evaluate(self) -> dict[str, torch.Tensor]:
        """success (1,) bool, picked (1,) int64: an object's index, or -1.

        Plate suite: a still arm holds the target above the table; picked: what is held there. Instruction suite: the
        sentence's verb holds for the target while the arm is still, and no other object was acted on before; picked:
        what was acted on first; did (1,) int64: the index in verbs.VERBS of what was done to it by now, or -1. In both
        touched, grasped, done (1,) bool: the robot presses on the target, both fingers hold it, and success but for an
        arm that still moves.
        """
        forces = self._forces()
        grasped = [self._grasped(of_object) for of_object in forces]
        if isinstance(self.episode, InstructedEpisode):
            done, found = self._judge_verb(self.episode, grasped)
        else:
            done, found = self._judge_pick(grasped)
        now = {"touched": bool(forces[self.episode.target]), "grasped": grasped[self.episode.target], "done": done}
        found |= {name: torch.tensor([value]) for name, value in now.items()}
        return {"success": found["done"] & self.agent.is_static(STILL), **found}

    def _judge_pick(self, grasped: list[bool]) -> tuple[bool, dict[str, torch.Tensor]]:
        lifted = [float(b.pose.p[0, 2]) - _height(t) > LIFTED for b, t in zip(self.objects, self.things, strict=True)]
        picked = next((i for i, held in enumerate(grasped) if held and lifted[i]), -1)
        return picked == self.episode.target, {"picked": torch.tensor([picked])}

    def _judge_verb(self, episode: InstructedEpisode, grasped: list[bool]) -> tuple[bool, dict[str, torch.Tensor]]:
        step = int(self.elapsed_steps[0])
        if step != self._judged:  # ManiSkill may ask more than once a step
            self._judged = step
            self.detector.update(self.object_poses(), grasped)
        picked, did, now = self.detector.picked, self.detector.did, self.detector.now
        done = picked == episode.target and now == VERBS.index(episode.verb)
        return done, {"picked": torch.tensor([picked]), "did": torch.tensor([did])}

    def _forces(self) -> list[dict[str, np.ndarray]]:
        """Of each object, the force (3,) N that it puts on each of the robot's links that press on it."""
        objects = {body._bodies[0]: index for index, body in enumerate(self.objects)}
        links = {link._bodies[0]: link.name for link in self.agent.robot.get_links()}
        found: list[dict[str, np.ndarray]] = [{} for _ in objects]
        # Before the first step SAPIEN still lists those of bodies that the reset removed, and reading these crashes.
        for contact in self.scene.px.get_contacts() if self.elapsed_steps[0] > 0 else ():
            (first, second), sign = contact.bodies, 1.0
            if first in objects:
                first, second, sign = second, first, -1.0
            if first in links and second in objects:
                impulse = sum((point.impulse for point in contact.points), np.zeros(3))
                if impulse.any():
                    forces, link = found[objects[second]], links[first]
                    forces[link] = forces.get(link, 0.0) + sign * impulse / self.scene.px.timestep
        return found

    def _grasped(self, forces: dict[str, np.ndarray]) -> bool:
        """Whether both fingers hold an object: what ManiSkill's is_grasping says, which reads all contacts twice for
        each object, half of an episode's time."""
        for finger, opens in ((self.agent.finger1_link, 1.0), (self.agent.finger2_link, -1.0)):
            force = forces.get(finger.name, np.zeros(3))
            size = float(np.linalg.norm(force))
            if size < GRASP_FORCE:
                return False
            direction = opens * finger.pose.sp.to_transformation_matrix()[:3, 1]
            if math.degrees(math.acos(float(np.clip(direction @ force / size, -1, 1)))) > GRASP_ANGLE:
                return False
        return True

    def hand(self) -> np.ndarray:
        """Where the point between the fingertips is, (3,) m."""
        return self.agent.tcp_pos[0].numpy()

    def object_poses(self) -> np.ndarray:
        """(objects, 7): position (m) and quaternion, w first."""
        return torch.cat([body.pose.raw_pose for body in self.objects]).numpy()

    def compute_dense_reward(self, obs: Any, action: torch.Tensor, info: dict[str, Any]) -> torch.Tensor:
        """(1,) float32: 1 for success."""
        return info["success"].float()

    compute_normalized_dense_reward = compute_dense_reward


def make_env(
    split: str,
    part: str,
    *,
    strategy: str | None = None,
    no_distractor_prob: float | None = None,
    thresholds: Mapping[str, float] | None = None,
    image_size: int = 224,
    render: str = "cpu",
) -> gymnasium.Env[Any, Any]:
    """The environment as recordings and evaluation use it.

    Of the instruction suite: strategy, which combinations are recorded; no_distractor_prob, of instruction/all;
    thresholds, fields of verbs.Thresholds that are not as usual. render: cpu, gpu, or none for physics only.
    """
    given = {"strategy": strategy, "no_distractor_prob": no_distractor_prob, "thresholds": thresholds}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}  # recordings name them
    return gymnasium.make(
        ENV_ID,
        split=split,
        part=part,
        **chosen,
        image_size=image_size,
        obs_mode="none" if render == "none" else "rgb",
        control_mode="pd_joint_pos",
        render_mode="rgb_array",
        sim_backend="physx_cpu",
        render_backend=render,
    )


def _height(thing: Thing | Body) -> float:
    """Of an object's centre above the table it stands on, m."""
    if isinstance(thing, Body):
        return shapes.height(thing.object, instruction_suite.HALF_SIZE[thing.size])
    # Nothing is taller than 62 mm: the wrist camera passes 71 mm above the table while the hand grasps beside it.
    return HALF_SIZE[thing.size] * (1.0 if thing.object == "cube" else 1.1)


def _pose(thing: Thing | Body, z: float, lying: bool) -> sapien.Pose:
    turned = [float(np.cos(thing.yaw / 2)), 0, 0, float(np.sin(thing.yaw / 2))]
    return sapien.Pose([thing.x, thing.y, z], UPRIGHT if lying else turned)
