"""Plays episodes in closed loop: several worker processes with an environment each, one process that infers for all.

The same evaluation on the same number of workers gives the same outcomes. Episode i of a part belongs to worker i
modulo their number; a scene is built again before its first one, and what PhysX remembers of contacts after that is the
same every time. The policy is asked when all workers wait for their next chunk, for all of them, in the workers' order,
so a batch holds the same episodes whatever the timing. On another number of workers an episode follows upon others,
whose contacts reach its motions, and batches have other sizes, which changes the last bits of what a model computes:
single outcomes may differ then."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from rich.console import Console

from gr00t.errors import ToolkitError, did_you_mean
from gr00t.processes import WORKER_SECONDS, one_thread_each, silent
from simulation.closed_loop import CONDITIONS, NOTHING, OTHER, EpisodeOutcome, Film, Phase, Settings
from simulation.closed_loop.policies import Inference, Policy, Request, ScriptedPolicy, evaluation_seeds
from simulation.scenes.factors import split_factors
from toolkit.progress import NOTE, progress_bar
from toolkit.shared_keys import PARTS


def run_episodes(
    policy: Policy | ScriptedPolicy, settings: Settings, *, folder: Path | None = None, progress: bool = True
) -> list[EpisodeOutcome]:
    """Play settings.episodes episodes of each part under each condition; outcomes in that order, by seed.

    policy: any object with get_action (policies.py says how it is asked), in this process, or a ScriptedPolicy, which
    acts in the workers. folder: receives the videos, <part>_<seed>.mp4. The calling script needs an
    `if __name__ == "__main__":`, since the workers import it. Raises ToolkitError for what cannot be played and for
    a worker that died; workers are gone when this returns, however it does.
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


def check_settings(policy: Policy | ScriptedPolicy, settings: Settings) -> None:
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
        try:
            self.pipe.send(message)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> Any:
        try:
            if not self.pipe.poll(WORKER_SECONDS):
                raise silent("closed loop", [self.process.pid or 0])
            return self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _died(self) -> ToolkitError:
        self.process.join(timeout=10)
        return ToolkitError(
            f"A worker process died (exit code {self.process.exitcode}): what it said stands above; where it said "
            "nothing, memory may have run out (fewer workers need less). Nothing is written; start again."
        )


def _serve(pipe: Connection, settings: Settings, policy: ScriptedPolicy | None) -> None:
    # Only the worker processes load the simulator.
    from simulation.closed_loop.episode_player import serve

    serve(pipe, settings, policy)


class _Crew:
    """The workers, in which a scripted policy acts, or for which `inference` does."""

    def __init__(self, policy: Policy | ScriptedPolicy, settings: Settings) -> None:
        self.settings, self.workers = settings, list[_Worker]()
        self.scripted = policy if isinstance(policy, ScriptedPolicy) else None
        self.inference: Inference | None = None
        if not isinstance(policy, ScriptedPolicy):
            self.inference = Inference(policy, settings.seed, settings.n_action_steps, settings.conditions)

    def play_all(self, progress: bool) -> list[EpisodeOutcome]:
        """Every condition and part, one after the other."""
        outcomes: list[EpisodeOutcome] = []
        with progress_bar(NOTE, unit="episodes", show=progress) as bar:
            for condition in self.settings.conditions:
                for part in self.settings.parts:
                    seeds = self._seeds(part)
                    name = part if condition == "none" else f"{part}, {CONDITIONS[condition]}"
                    task = bar.add_task(name, total=len(seeds), note="")
                    found: list[EpisodeOutcome] = []
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
            worker = self.workers[self._seeds(outcome.part).index(outcome.seed) % len(self.workers)]
            worker.send(Film(outcome.part, outcome.seed, _caption(outcome), folder / name))
            asked.append((worker, outcome))
        for worker, outcome in asked:
            trouble = worker.receive()
            if trouble is not None:
                name = names.pop(id(outcome))
                Console(stderr=True).print(
                    f"note: the video {name} could not be written: {trouble}", highlight=False, soft_wrap=True
                )
        return [dataclasses.replace(o, video=names.get(id(o))) for o in outcomes]

    def _seeds(self, part: str) -> list[int]:
        episodes = self.settings.episodes
        return self.scripted.seeds(part, episodes) if self.scripted else evaluation_seeds(episodes)

    def _play(self, condition: str, part: str, seeds: list[int]) -> Iterator[EpisodeOutcome]:
        instruction = self.settings.instruction
        if condition == "other_instruction":
            instruction = self.settings.other_instruction or instruction
        for number, worker in enumerate(self.workers):
            worker.send(Phase(condition, part, instruction, tuple(seeds[number :: len(self.workers)])))
        busy, waiting = list(self.workers), dict[_Worker, Request]()
        while busy:
            pipes = {worker.pipe: worker for worker in busy if worker not in waiting}
            ready = wait(list(pipes), WORKER_SECONDS)
            if not ready:
                raise silent("closed loop", [worker.process.pid or 0 for worker in pipes.values()])
            for pipe in ready:
                worker = pipes[pipe]  # type: ignore[index]
                message = worker.receive()
                if message is None:
                    busy.remove(worker)
                elif isinstance(message, Request):
                    waiting[worker] = message
                else:
                    yield message
            if busy and len(waiting) == len(busy):
                assert self.inference is not None
                requests, waiting = [waiting[worker] for worker in busy], {}
                chunks = self.inference.chunks(requests, instruction, drop_state=condition == "zero_state")
                for worker, chunk in zip(busy, chunks, strict=True):
                    worker.send(chunk)


def _to_film(outcomes: Sequence[EpisodeOutcome], count: int) -> Iterator[EpisodeOutcome]:
    """The first `count` successes and failures of each part, by seed."""
    seen = Counter[tuple[str, bool]]()
    for outcome in outcomes:
        if outcome.condition == "none":
            seen[outcome.part, outcome.success] += 1
            if seen[outcome.part, outcome.success] <= count:
                yield outcome


def _caption(outcome: EpisodeOutcome) -> str:
    if outcome.success:
        end = f"success after {outcome.steps} steps"
    else:
        picked = {NOTHING: "nothing", OTHER: "the other object first"}.get(
            outcome.picked, f"the {outcome.picked} first"
        )
        end = f"no success in {outcome.steps} steps, picked {picked}"
    return f'"{outcome.instruction}"\n{outcome.part} {outcome.seed}: {end}'
