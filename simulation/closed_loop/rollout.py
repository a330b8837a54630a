"""Plays episodes in closed loop: several worker processes with an environment each, one process that infers for all.

The same evaluation on the same number of workers gives the same outcomes: episode i of a part is worker i's modulo
their number, a scene is built again before its first one, and the policy is asked when all workers wait for their next
chunk, for all of them in their order. On another number of workers an episode follows upon others, whose contacts PhysX
remembers, and batches have other sizes, which changes the last bits of what a model computes."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np

from gr00t.errors import ToolkitError, did_you_mean
from gr00t.processes import WORKER_SECONDS, one_thread_each, settle_in, silent
from simulation.closed_loop import CONDITIONS, NOTHING, OTHER, EpisodeOutcome, Settings
from simulation.closed_loop.inference import Inference, Observation
from simulation.closed_loop.policies import ScriptedPolicy
from simulation.scenes.plate_suite import split_factors
from toolkit.progress import NOTE, progress_bar
from toolkit.shared_keys import PARTS


def run_episodes(
    policy: Any, settings: Settings, *, folder: Path | None = None, progress: bool = True
) -> list[EpisodeOutcome]:
    """Play settings.episodes episodes of each part under each condition; outcomes in that order, by seed.

    policy: any object with get_action(observation) -> {"action.arm": (B, H, 7), "action.gripper": (B, H, 1)} (Inference
    says how it is asked), in this process, or a ScriptedPolicy, which acts in the workers. folder: receives the videos,
    <part>_<seed>.mp4. The calling script needs an `if __name__ == "__main__":`, since the workers import it. Raises
    ToolkitError for what cannot be played and for a worker that died; workers are gone when this returns, however it
    does.
    """
    check_settings(policy, settings)
    crew = _Crew(policy, settings)
    try:
        with one_thread_each():
            for _ in range(min(settings.workers, settings.episodes)):
                crew.workers.append(_Worker(settings, crew.scripted))
        outcomes = crew.play_all(progress)
        return crew.film(outcomes, folder) if folder is not None and settings.videos else outcomes
    finally:
        for worker in crew.workers:
            worker.end()


def check_settings(policy: Any, settings: Settings) -> None:
    """Refuse names that are not there, and conditions or a renderer that do not fit the policy."""
    split_factors(settings.split)
    for given, known, what in ((settings.parts, PARTS, "part"), (settings.conditions, CONDITIONS, "condition")):
        for name in given:
            if name not in known:
                raise ToolkitError(f'There is no {what} "{name}".{did_you_mean(name, known)}')
    if isinstance(policy, ScriptedPolicy) and settings.conditions != ("none",):
        raise ToolkitError(
            "Ablations change what a policy observes; one that knows the simulation's state does not look."
        )
    if not isinstance(policy, ScriptedPolicy) and settings.render == "none":
        raise ToolkitError("render=none is for policies that know the simulation's state; this one needs images.")
    if "other_instruction" in settings.conditions and not settings.other_instruction:
        raise ToolkitError("The condition other_instruction needs another instruction.")


class _Worker:
    """A worker process, and what passes between it and this one."""

    def __init__(self, settings: Settings, policy: ScriptedPolicy | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs, settings, policy), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        with self._named():
            self.pipe.send(message)

    def receive(self) -> Any:
        with self._named():
            return self.pipe.recv()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            self.process.join(timeout=10)
            raise ToolkitError(
                f"A worker process died (exit code {self.process.exitcode}): what it said stands above; where it said "
                "nothing, memory may have run out (fewer workers need less). Nothing is written; start again."
            ) from error


def _serve(pipe: Connection, settings: Settings, policy: ScriptedPolicy | None) -> None:
    """In a worker process: carry out the parent's orders until it is gone.

    play is answered by what a policy is shown, outcomes and, at its end, None; film by what went wrong, or None.
    """
    # Only the worker processes load the simulator.
    from simulation.closed_loop.episode_player import EpisodePlayer

    settle_in()

    def ask(request: Observation) -> np.ndarray:
        pipe.send(request)
        return pipe.recv()

    player = EpisodePlayer(settings, policy, ask)
    while True:
        order, *arguments = pipe.recv()
        answer = None
        if order == "play":
            *shared, seeds = arguments
            player.begin(*shared)
            for seed in seeds:
                pipe.send(player.play(seed))
        else:
            try:
                player.film(*arguments)
            except Exception as error:  # the outcomes are worth more than their videos
                answer = str(error) or type(error).__name__
        pipe.send(answer)


class _Crew:
    """The workers, in which a scripted policy acts, or for which `inference` does."""

    def __init__(self, policy: Any, settings: Settings) -> None:
        self.settings, self.workers = settings, list[_Worker]()
        self.scripted = policy if isinstance(policy, ScriptedPolicy) else None
        plays = self.scripted or ScriptedPolicy()
        self.seeds = {part: plays.seeds(part, settings.episodes) for part in settings.parts}
        if self.scripted is None:
            self.inference = Inference(policy, settings.seed, settings.n_action_steps, settings.conditions)

    def play_all(self, progress: bool) -> list[EpisodeOutcome]:
        """Every condition and part, one after the other."""
        outcomes: list[EpisodeOutcome] = []
        with progress_bar(NOTE, unit="episodes", show=progress) as bar:
            for condition, part in itertools.product(self.settings.conditions, self.settings.parts):
                found, seeds = list[EpisodeOutcome](), self.seeds[part]
                name = part if condition == "none" else f"{part}, {CONDITIONS[condition]}"
                task = bar.add_task(name, total=len(seeds), note="")
                for outcome in self._play(condition, part, seeds):
                    found.append(outcome)
                    bar.update(task, advance=1, note=f"{sum(o.success for o in found)} successes")
                outcomes += sorted(found, key=lambda outcome: outcome.seed)
        return outcomes

    def film(self, outcomes: Sequence[EpisodeOutcome], folder: Path) -> list[EpisodeOutcome]:
        """Write the videos; the outcomes, which now name those that could be written."""
        folder.mkdir(parents=True, exist_ok=True)
        asked, names = [], {}
        for outcome in _to_film(outcomes, self.settings.videos):
            names[id(outcome)] = name = f"{outcome.part}_{outcome.seed}.mp4"
            worker = self.workers[self.seeds[outcome.part].index(outcome.seed) % len(self.workers)]
            worker.send(("film", outcome.part, outcome.seed, _caption(outcome), folder / name))
            asked.append((worker, outcome))
        for worker, outcome in asked:
            _, trouble = self._next([worker])
            if trouble is not None:
                print(f"note: the video {names.pop(id(outcome))} could not be written: {trouble}", file=sys.stderr)
        return [dataclasses.replace(o, video=names.get(id(o))) for o in outcomes]

    def _play(self, condition: str, part: str, seeds: list[int]) -> Iterator[EpisodeOutcome]:
        instruction = self.settings.instruction
        if condition == "other_instruction":
            instruction = self.settings.other_instruction or instruction
        for number, worker in enumerate(self.workers):
            worker.send(("play", condition, part, instruction, seeds[number :: len(self.workers)]))
        busy, waiting = list(self.workers), dict[_Worker, Observation]()
        while busy:
            if len(waiting) == len(busy):
                requests, waiting = [waiting[worker] for worker in busy], {}
                chunks = self.inference.chunks(requests, drop_state=condition == "zero_state")
                for worker, chunk in zip(busy, chunks, strict=True):
                    worker.send(chunk)
            worker, message = self._next([worker for worker in busy if worker not in waiting])
            if message is None:
                busy.remove(worker)
            elif isinstance(message, Observation):
                waiting[worker] = message
            else:
                yield message

    def _next(self, workers: Sequence[_Worker]) -> tuple[_Worker, Any]:
        """The next message of any of these workers."""
        ready = wait([worker.pipe for worker in workers], WORKER_SECONDS)
        if not ready:
            raise silent("closed loop", [worker.process.pid or 0 for worker in workers])
        worker = next(worker for worker in workers if worker.pipe in ready)
        return worker, worker.receive()


def _to_film(outcomes: Sequence[EpisodeOutcome], count: int) -> Iterator[EpisodeOutcome]:
    """The first `count` successes and failures of each part, by seed."""
    seen = Counter[tuple[str, bool]]()
    for outcome in outcomes:
        if outcome.condition == "none":
            seen[outcome.part, outcome.success] += 1
            if seen[outcome.part, outcome.success] <= count:
                yield outcome


def _caption(outcome: EpisodeOutcome) -> str:
    end = f"success after {outcome.steps} steps"
    if not outcome.success:
        words = {NOTHING: "nothing", OTHER: "the other object first"}
        picked = words.get(outcome.picked, f"the {outcome.picked} first")
        end = f"no success in {outcome.steps} steps, picked {picked}"
    return f'"{outcome.instruction}"\n{outcome.part} {outcome.seed}: {end}'
