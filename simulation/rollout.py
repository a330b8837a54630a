"""Episodes in closed loop: several worker processes with an environment each, one process that infers for all.

The same evaluation on the same number of workers gives the same outcomes. Episode i of a part belongs to worker i
modulo their number; a scene is built anew before its first one, and what PhysX remembers of contacts after that is the
same every time. The policy is asked when all workers wait for their next chunk, for all of them, in the workers' order,
so a batch holds the same episodes whatever the timing. On another number of workers an episode follows upon others,
whose contacts reach its motions, and batches have other sizes, which changes the last bits of what a model computes:
single outcomes may differ then.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gr00t.errors import ToolkitError, did_you_mean
from gr00t.processes import WORKER_SECONDS, silent
from simulation.factors import PARTS, split_factors
from simulation.observation import Observation
from simulation.outcomes import CONDITIONS, NOTHING, EpisodeOutcome
from simulation.policies import ScriptedPolicy, evaluation_seeds
from simulation.processes import one_thread_each

if TYPE_CHECKING:
    from simulation.inference import Inference, Policy


@dataclass(frozen=True)
class Settings:
    """How episodes are played.

    instruction: what the policy is told; other_instruction: under the condition of that name. n_action_steps: steps
    executed of each chunk; max_steps: control steps (1/20 s) of an episode. image_size: of both cameras, pixels.
    render: cpu, gpu, or none for policies without images. seed: of the noise. videos: of the first successes, and of
    the first failures, of each part.
    """

    split: str
    instruction: str
    other_instruction: str | None = None
    parts: tuple[str, ...] = PARTS
    conditions: tuple[str, ...] = ("none",)
    episodes: int = 100
    n_action_steps: int = 8
    max_steps: int = 100
    image_size: int = 224
    render: str = "cpu"
    seed: int = 42
    workers: int = 2
    videos: int = 0


@dataclass(frozen=True)
class Phase:
    """Episodes of one worker under one condition in one part."""

    condition: str
    part: str
    instruction: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """A worker waits for chunk number `chunk` of its episode."""

    observation: Observation
    seed: int
    chunk: int


@dataclass(frozen=True)
class Film:
    """A video of an episode that the worker has played."""

    part: str
    seed: int
    text: str
    path: Path


def run_episodes(
    policy: Policy | ScriptedPolicy, settings: Settings, *, folder: Path | None = None, progress: bool = True
) -> list[EpisodeOutcome]:
    """Play settings.episodes episodes of each part under each condition; outcomes in that order, by seed.

    policy: any object with get_action (simulation.inference says how it is asked), in this process, or a
    ScriptedPolicy, which acts in the workers. folder: receives the videos, <part>_<seed>.mp4. The calling script needs
    an `if __name__ == "__main__":`, since the workers import it. Raises ToolkitError for what cannot be played and for
    a worker that died; workers are gone when this returns, however it does.
    """
    check_settings(policy, settings)
    inference = None if isinstance(policy, ScriptedPolicy) else _inference(policy, settings)
    with _crew(settings, policy, inference) as crew:
        outcomes = crew.play_all(progress)
        return crew.film(outcomes, folder) if folder is not None and settings.videos else outcomes


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


@contextmanager
def _crew(settings: Settings, policy: Policy | ScriptedPolicy, inference: Inference | None) -> Iterator[_Crew]:
    """Workers with an environment each, ended when the block ends."""
    scripted = policy if isinstance(policy, ScriptedPolicy) else None
    workers: list[_Worker] = []
    try:
        with one_thread_each():
            for _ in range(min(settings.workers, settings.episodes)):
                workers.append(_Worker(settings, scripted))
        yield _Crew(settings, scripted, inference, workers)
    finally:
        for worker in workers:
            worker.end()


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


class _Crew:
    """The workers, in which `scripted` acts, or for which `inference` does."""

    def __init__(
        self,
        settings: Settings,
        scripted: ScriptedPolicy | None,
        inference: Inference | None,
        workers: list[_Worker],
    ) -> None:
        self.settings, self.scripted, self.inference, self.workers = settings, scripted, inference, workers

    def play_all(self, progress: bool) -> list[EpisodeOutcome]:
        """Every condition and part, one after the other."""
        outcomes: list[EpisodeOutcome] = []
        with _progress_bar(progress) as bar:
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
        chosen = {id(o): f"{o.part}_{o.seed}.mp4" for o in _to_film(outcomes, self.settings.videos)}
        films = [
            (self._worker_of(o), Film(o.part, o.seed, _caption(o), folder / chosen[id(o)]))
            for o in outcomes
            if id(o) in chosen
        ]
        for worker, film in films:
            worker.send(film)
        troubles = {film.path.name: worker.receive() for worker, film in films}
        for name, trouble in troubles.items():
            if trouble is not None:
                Console(stderr=True).print(
                    f"note: the video {name} could not be written: {trouble}", highlight=False, soft_wrap=True
                )
                chosen = {key: path for key, path in chosen.items() if path != name}
        return [dataclasses.replace(o, video=chosen.get(id(o))) for o in outcomes]

    def _seeds(self, part: str) -> list[int]:
        episodes = self.settings.episodes
        return self.scripted.seeds(part, episodes) if self.scripted else evaluation_seeds(episodes)

    def _worker_of(self, outcome: EpisodeOutcome) -> _Worker:
        return self.workers[self._seeds(outcome.part).index(outcome.seed) % len(self.workers)]

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
                self._answer(condition, instruction, [(worker, waiting.pop(worker)) for worker in busy])

    def _answer(self, condition: str, instruction: str, requests: list[tuple[_Worker, Request]]) -> None:
        assert self.inference is not None
        chunks = self.inference.chunks(
            [request for _, request in requests], instruction, drop_state=condition == "zero_state"
        )
        for (worker, _), chunk in zip(requests, chunks, strict=True):
            worker.send(chunk)


def _to_film(outcomes: Sequence[EpisodeOutcome], count: int) -> Iterator[EpisodeOutcome]:
    """The first `count` successes and failures of each part, by seed."""
    seen: dict[tuple[str, bool], int] = {}
    for outcome in (o for o in outcomes if o.condition == "none"):
        kind = (outcome.part, outcome.success)
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= count:
            yield outcome


def _caption(outcome: EpisodeOutcome) -> str:
    picked = "picked nothing" if outcome.picked == NOTHING else f"picked the {outcome.picked} object first"
    picked = picked.replace("target object", "target").replace("lure object", "lure")
    end = (
        f"success after {outcome.steps} steps" if outcome.success else f"no success in {outcome.steps} steps, {picked}"
    )
    return f'"{outcome.instruction}"\n{outcome.part} {outcome.seed}: {end}'


def _inference(policy: Policy, settings: Settings) -> Inference:
    # Scripted policies need no model.
    from simulation.inference import Inference

    return Inference(policy, settings.seed, settings.n_action_steps, settings.conditions)


def _serve(pipe: Connection, settings: Settings, policy: ScriptedPolicy | None) -> None:
    # Only the worker processes load the simulator.
    from simulation import episodes

    episodes.serve(pipe, settings, policy)


def _progress_bar(enabled: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes"))
    return Progress(
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        disable=not enabled,
    )
