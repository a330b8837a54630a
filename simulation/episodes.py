"""Episodes in closed loop, in a worker process: one environment, one episode after the other."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from simulation.environment import REBUILD, ConflictPickEnv, make_env
from simulation.expert import Expert
from simulation.films import write_film
from simulation.observation import Images, blank, observe, seen
from simulation.outcomes import LURE, NOTHING, OTHER, TARGET, EpisodeOutcome
from simulation.policies import ScriptedPolicy
from simulation.processes import settle_in
from simulation.rollout import Film, Phase, Request, Settings

Ask = Callable[[Request], np.ndarray]


def serve(pipe: Connection, settings: Settings, policy: ScriptedPolicy | None) -> None:
    """Do what the parent says until it is gone: phases, to which Requests and outcomes are the answer, and films."""
    settle_in()

    def ask(request: Request) -> np.ndarray:
        pipe.send(request)
        return pipe.recv()

    player = EpisodePlayer(settings, policy, ask)
    while True:
        order = pipe.recv()
        if isinstance(order, Film):
            pipe.send(_trouble_of(player, order))
        else:
            player.begin(order)
            for seed in order.seeds:
                pipe.send(player.play(seed))
            pipe.send(None)


def _trouble_of(player: EpisodePlayer, film: Film) -> str | None:
    """Write a film; what went wrong, if anything: the outcomes are worth more than their pictures."""
    try:
        player.film(film)
    except Exception as error:
        return str(error) or type(error).__name__
    return None


class EpisodePlayer:
    """An environment in which `policy` acts, or who answers `ask`. Images are rendered when a chunk is due only."""

    def __init__(self, settings: Settings, policy: ScriptedPolicy | None, ask: Ask) -> None:
        self.settings, self.policy, self.ask = settings, policy, ask
        render = settings.render
        obs_mode = "none" if render == "none" else "rgb"
        env = make_env(settings.split, "train", image_size=settings.image_size, obs_mode=obs_mode, render=render)
        self.task: ConflictPickEnv = env.unwrapped  # type: ignore[assignment]
        self.task.render_when_asked()
        self.task.reset(seed=0)
        self.expert = Expert(self.task)
        self.films = _Films(settings.videos)

    def begin(self, phase: Phase) -> None:
        """What the next episodes have in common. Nothing of earlier phases reaches them: the scene is built anew."""
        self.phase, self.rebuild = phase, True
        self.task.part = phase.part

    def play(self, seed: int) -> EpisodeOutcome:
        """One episode from its seed to its end."""
        instead = self._instead_of_images(seed)
        self._reset(seed)
        plan = None if self.policy is None else self.policy.plan(self.task, self.expert)
        course = _Course(self.task)
        while not course.success and course.steps < self.settings.max_steps:
            if plan is None:
                chunk = self.ask(Request(observe(self.task, instead), seed, course.chunks))
            else:
                chunk = plan[course.steps :][: self.settings.n_action_steps]
            if len(chunk) == 0:
                break
            course.carry_out(chunk[: self.settings.max_steps - course.steps])
        if self.phase.condition == "none":
            self.films.keep(self.phase.part, seed, course)
        return EpisodeOutcome(
            condition=self.phase.condition,
            part=self.phase.part,
            seed=seed,
            success=course.success,
            picked=course.picked,
            picked_step=course.picked_step,
            steps=course.steps,
            chunks=course.chunks,
            instruction=self.phase.instruction,
            episode=self.task.episode.describe(),
        )

    def film(self, film: Film) -> None:
        """Render an episode that was played, from its states, and write it."""
        self.task.part = film.part
        self.task.reset(seed=film.seed)
        views = []
        for state in self.films.states[film.part, film.seed]:
            self.task.set_state(state)
            views.append(list(seen(self.task).values()))
        write_film(film.path, views, film.text)

    def _reset(self, seed: int) -> None:
        rebuild = self.rebuild or (self.policy is not None and self.policy.rebuilds)
        self.task.reset(seed=seed, options=dict(REBUILD) if rebuild else None)
        self.rebuild = False

    def _instead_of_images(self, seed: int) -> Images | None:
        """What an ablation shows throughout the episode: nothing, or the beginning of the next one."""
        if self.phase.condition == "blank_image":
            return blank(self.settings.image_size)
        if self.phase.condition == "other_image":
            self._reset(seed + 1)
            return seen(self.task)
        return None


class _Course:
    """How an episode goes."""

    def __init__(self, task: ConflictPickEnv) -> None:
        self.task = task
        self.success, self.picked = False, NOTHING
        self.picked_step: int | None = None
        self.steps, self.chunks = 0, 0
        self.states = [task.get_state()]

    def carry_out(self, chunk: np.ndarray) -> None:
        """Step by step, until success."""
        self.chunks += 1
        for action in chunk:
            info = self.task.step(action)[-1]
            self.steps += 1
            self.states.append(self.task.get_state())
            self._note(info)
            if self.success:
                return

    def _note(self, info: dict[str, Any]) -> None:
        self.success = bool(info["success"][0])
        picked = int(info["picked"][0])
        if self.picked == NOTHING and picked >= 0:
            episode = self.task.episode
            names = {episode.target: TARGET, episode.lure: LURE}
            self.picked, self.picked_step = names.get(picked, OTHER), self.steps


class _Films:
    """The states of the first successes and failures of each part, from which they can be rendered."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.states: dict[tuple[str, int], list[Any]] = {}
        self.kept: dict[tuple[str, bool], int] = {}

    def keep(self, part: str, seed: int, course: _Course) -> None:
        count = self.kept.get((part, course.success), 0)
        if count < self.most:
            self.states[part, seed] = course.states
            self.kept[part, course.success] = count + 1
