"""Plays and films episodes in a worker process: one environment, one episode after the other."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep.maniskill import CAMERAS, CONTROL_FREQ, state_of
from gr00t.data.video import write_video
from gr00t.processes import settle_in
from simulation.closed_loop import LURE, NOTHING, OTHER, TARGET, EpisodeOutcome, Film, Phase, Settings
from simulation.closed_loop.policies import Images, Observation, Request, ScriptedPolicy
from simulation.scenes.environment import REBUILD, ConflictPickEnv, make_env
from simulation.scenes.expert import Expert

VIEW = 256  # least height of a camera's image, pixels
FONT, LINE, MARGIN = 14, 18, 6


def serve(pipe: Connection, settings: Settings, policy: ScriptedPolicy | None) -> None:
    """Carry out the parent's orders until it is gone.

    A Phase is answered by Requests and outcomes and, at its end, None; a Film by what went wrong, or None.
    """
    settle_in()

    def ask(request: Request) -> np.ndarray:
        pipe.send(request)
        return pipe.recv()

    player = EpisodePlayer(settings, policy, ask)
    while True:
        order = pipe.recv()
        answer = None
        if isinstance(order, Film):
            try:
                player.film(order)
            except Exception as error:  # the outcomes are worth more than their videos
                answer = str(error) or type(error).__name__
        else:
            player.begin(order)
            for seed in order.seeds:
                pipe.send(player.play(seed))
        pipe.send(answer)


class EpisodePlayer:
    """An environment in which `policy` acts, or whatever answers `ask`. Images are rendered only when a chunk is due.

    The states of the first successes and failures of each part are kept, from which they can be filmed.
    """

    def __init__(self, settings: Settings, policy: ScriptedPolicy | None, ask: Callable[[Request], np.ndarray]) -> None:
        self.settings, self.policy, self.ask = settings, policy, ask
        render = settings.render
        obs_mode = "none" if render == "none" else "rgb"
        env = make_env(settings.split, "train", image_size=settings.image_size, obs_mode=obs_mode, render=render)
        self.task: ConflictPickEnv = env.unwrapped  # type: ignore[assignment]
        self.task.render_when_asked()
        self.task.reset(seed=0)
        self.expert = Expert(self.task)
        self.states: dict[tuple[str, int], list[Any]] = {}
        self.kept = Counter[tuple[str, bool]]()

    def begin(self, phase: Phase) -> None:
        """Set what the next episodes share; the scene is built again, so nothing of earlier phases reaches them."""
        self.phase, self.rebuild = phase, True
        self.task.part = phase.part

    def play(self, seed: int) -> EpisodeOutcome:
        """One episode from its seed to its end."""
        settings, phase, task = self.settings, self.phase, self.task
        instead = self._instead_of_images(seed)
        self._reset(seed)
        plan = None if self.policy is None else self.policy.plan(task, self.expert)
        names = {task.episode.target: TARGET, task.episode.lure: LURE}
        success, picked, picked_step, steps, chunks = False, NOTHING, None, 0, 0
        states = [task.get_state()]
        while not success and steps < settings.max_steps:
            if plan is None:
                images = self._images() if instead is None else instead
                chunk = self.ask(Request(Observation(images, state_of(task.qpos())), seed, chunks))
            else:
                chunk = plan[steps : steps + settings.n_action_steps]
            if len(chunk) == 0:
                break
            chunks += 1
            for action in chunk[: settings.max_steps - steps]:
                info = task.step(action)[-1]
                steps += 1
                states.append(task.get_state())
                success, index = bool(info["success"][0]), int(info["picked"][0])
                if picked == NOTHING and index >= 0:
                    picked, picked_step = names.get(index, OTHER), steps
                if success:
                    break
        if phase.condition == "none" and self.kept[phase.part, success] < settings.videos:
            self.kept[phase.part, success] += 1
            self.states[phase.part, seed] = states
        return EpisodeOutcome(
            condition=phase.condition,
            part=phase.part,
            seed=seed,
            success=success,
            picked=picked,
            picked_step=picked_step,
            steps=steps,
            chunks=chunks,
            instruction=phase.instruction,
            episode=task.episode.describe(),
        )

    def film(self, film: Film) -> None:
        """Render an episode that was played, from its states, and write it."""
        self.task.part = film.part
        self.task.reset(seed=film.seed)
        views = []
        for state in self.states[film.part, film.seed]:
            self.task.set_state(state)
            views.append(list(self._images().values()))
        write_film(film.path, views, film.text)

    def _reset(self, seed: int) -> None:
        rebuild = self.rebuild or (self.policy is not None and self.policy.rebuilds)
        self.task.reset(seed=seed, options=dict(REBUILD) if rebuild else None)
        self.rebuild = False

    def _images(self) -> Images:
        """The images of the present state, rendered now."""
        images = self.task.look()
        return {key: images[sensor] for key, sensor in CAMERAS.items()}

    def _instead_of_images(self, seed: int) -> Images | None:
        """What an ablation shows throughout the episode: black images, or the beginning of the next episode."""
        if self.phase.condition == "blank_image":
            size = self.settings.image_size
            return {key: np.zeros((size, size, 3), np.uint8) for key in CAMERAS}
        if self.phase.condition == "other_image":
            self._reset(seed + 1)
            return self._images()
        return None


def write_film(path: Path, views: Sequence[Sequence[np.ndarray]], text: str) -> None:
    """Write frames of several views (H, W, 3) uint8, side by side above `text`, as H.264 at the speed of the robot."""
    scale = max(1, -(-VIEW // views[0][0].shape[0]))
    images = np.stack([np.concatenate(list(frame), axis=1) for frame in views])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    caption = _caption(text, images.shape[2])
    frames = np.concatenate([images, np.broadcast_to(caption, (len(images), *caption.shape))], axis=1)
    # yuv420p needs even sizes
    write_video(path, frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2], CONTROL_FREQ)


def _caption(text: str, width: int) -> np.ndarray:
    """(h, width, 3) uint8: white on black, in lines that fit."""
    font = ImageFont.load_default(FONT)
    letters = max(10, int((width - 2 * MARGIN) / font.getlength("x")))
    lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, letters)]
    image = Image.new("RGB", (width, LINE * len(lines) + 2 * MARGIN))
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((MARGIN, MARGIN + number * LINE), line, "white", font)
    return np.asarray(image)
