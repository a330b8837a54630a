"""Plays and films episodes in a worker process: one environment, one episode after the other."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep.maniskill import CAMERAS, CONTROL_FREQ, state_of
from gr00t.data.video import write_video
from gr00t.file_replacement import whole_file
from simulation.closed_loop import LURE, NOTHING, OTHER, TARGET, EpisodeOutcome, Settings
from simulation.closed_loop.episode_stages import StageWatch
from simulation.closed_loop.policies import Images, Observation, ScriptedPolicy
from simulation.scenes.environment import REBUILD, ConflictPickEnv, make_env
from simulation.scenes.expert import Expert
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.single_factor import other_sentence
from simulation.scenes.verbs import VERBS

VIEW = 256  # least height of a camera's image, pixels
FONT, LINE, MARGIN = 14, 18, 6


class EpisodePlayer:
    """An environment in which `policy` acts, or whatever answers `ask`. Images are rendered when a chunk is due."""

    def __init__(
        self, settings: Settings, policy: ScriptedPolicy | None, ask: Callable[[Observation], np.ndarray]
    ) -> None:
        self.settings, self.policy, self.ask = settings, policy, ask
        names = ("strategy", "no_distractor_prob", "image_size", "render")
        env = make_env(settings.split, settings.parts[0], **{name: getattr(settings, name) for name in names})
        self.task: ConflictPickEnv = env.unwrapped  # type: ignore[assignment]
        self.task.render_when_asked()
        self.task.reset(seed=0)
        self.expert = Expert(self.task)
        self.states: dict[tuple[str, int], list[Any]] = {}  # of the first that ended at each stage, to be filmed
        self.kept = Counter[tuple[str, str | None]]()

    def begin(self, condition: str, part: str, answered: int = 0) -> None:
        """Set what the next episodes share; the scene is built again, so nothing of earlier ones reaches them.

        answered: so many requests are answered without being looked at, so they hold no images.
        """
        self.condition, self.task.part, self.answered, self.rebuild = condition, part, answered, True

    def play(self, seed: int) -> EpisodeOutcome:
        """One episode from its seed to its end."""
        settings, task = self.settings, self.task
        instead = self._instead_of_images(seed)
        self._reset(seed)
        plan = None if self.policy is None else self.policy.plan(task, self.expert)
        names, instruction = {task.episode.target: TARGET, task.episode.lure: LURE}, self._instruction()
        success, picked, picked_step, did, steps, chunks = False, NOTHING, None, None, 0, 0
        filmed = self.condition == "none" and settings.videos > 0  # only then are states kept, which take time
        states = [task.get_state()] if filmed else []
        watch = StageWatch(task.hand(), task.object_poses(), task.episode.target)
        while not success and steps < settings.max_steps:
            if plan is None:
                images: Images = {} if self.answered > 0 else instead or self._images()
                self.answered -= 1
                chunk = self.ask(Observation(images, state_of(task.qpos()), seed, chunks, instruction))
            else:
                chunk = plan[steps : steps + settings.n_action_steps]
            if len(chunk) == 0:
                break
            chunks += 1
            for action in chunk[: settings.max_steps - steps]:
                info = task.step(action)[-1]
                steps += 1
                if filmed:
                    states.append(task.get_state())
                success, index = bool(info["success"][0]), int(info["picked"][0])
                now = {name: bool(info[name][0]) for name in ("touched", "grasped", "done")}
                watch.update(task.hand(), task.object_poses(), {**now, "held": success})
                if picked == NOTHING and index >= 0:
                    picked, picked_step = names.get(index, OTHER), steps
                if int(info.get("did", [-1])[0]) >= 0:
                    did = VERBS[int(info["did"][0])]
                if success:
                    break
        ending = success, picked, picked_step, steps, chunks, instruction, task.episode.describe()
        way: dict[str, Any] = {"did": did, "stages": watch.stages(), "smoothness": watch.smoothness()}
        found = EpisodeOutcome(self.condition, task.part, seed, *ending, **way)
        if filmed and self.kept[task.part, found.stage] < settings.videos:
            self.kept[task.part, found.stage] += 1
            self.states[task.part, seed] = states
        return found

    def film(self, part: str, seed: int, text: str, path: Path) -> None:
        """Render an episode that was played, from its states, and write the cameras side by side above `text`."""
        self.task.part = part
        self.task.reset(seed=seed)
        views = []
        for state in self.states.pop((part, seed)):
            self.task.set_state(state)
            views.append(np.concatenate(list(self._images().values()), axis=1))
        scale = -(-VIEW // len(views[0]))
        images = np.stack(views).repeat(scale, axis=1).repeat(scale, axis=2)
        caption = _caption(text, images.shape[2])
        frames = np.concatenate([images, np.broadcast_to(caption, (len(images), *caption.shape))], axis=1)
        height, width = (size // 2 * 2 for size in frames.shape[1:3])  # yuv420p needs even sizes
        with whole_file(path) as aside:  # one that was cut off would be taken for the video when this continues
            write_video(aside, frames[:, :height, :width], CONTROL_FREQ)

    def _reset(self, seed: int) -> None:
        rebuild = self.rebuild or (self.policy is not None and self.policy.rebuilds)
        self.task.reset(seed=seed, options=dict(REBUILD) if rebuild else None)
        self.rebuild = False

    def _instruction(self) -> str:
        """What the policy is asked to do in the episode that was just reset to."""
        settings, episode, other = self.settings, self.task.episode, self.condition == "other_instruction"
        told = settings.other_instruction if other else settings.instruction
        if told is None and isinstance(episode, InstructedEpisode):
            return other_sentence(episode) if other else episode.instruction
        return str(told)

    def _images(self) -> Images:
        """The images of the present state, rendered now."""
        images = self.task.look()
        return {key: images[sensor] for key, sensor in CAMERAS.items()}

    def _instead_of_images(self, seed: int) -> Images | None:
        """What an ablation shows throughout the episode: black images, or the beginning of the next episode."""
        if self.condition == "blank_image":
            size = self.settings.image_size
            return {key: np.zeros((size, size, 3), np.uint8) for key in CAMERAS}
        if self.condition == "other_image":
            self._reset(seed + 1)
            return self._images()
        return None


def _caption(text: str, width: int) -> np.ndarray:
    """(h, width, 3) uint8: white on black, in lines that fit."""
    font = ImageFont.load_default(FONT)
    letters = max(10, int((width - 2 * MARGIN) / font.getlength("x")))
    lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, letters)]
    image = Image.new("RGB", (width, LINE * len(lines) + 2 * MARGIN))
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((MARGIN, MARGIN + number * LINE), line, "white", font)
    return np.asarray(image)
