"""Plays episodes in closed loop: several worker processes with an environment each, one process that infers for all.

The same evaluation on the same number of workers gives the same outcomes: episodes are played in segments; episode i of
a segment is worker i's modulo their number, a scene is built again before its first one, and the policy is asked when
all workers wait for their next chunk, for all of them in their order. On another number of workers an episode follows
upon others, whose contacts PhysX remembers, and batches have other sizes, which changes the last bits of what a model
computes. Segments know nothing of each other: played in any order, by any number of processes, they give the same."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np

from gr00t.errors import ToolkitError, did_you_mean
from simulation.closed_loop import CONDITIONS, NOTHING, OTHER, EpisodeOutcome, Settings
from simulation.closed_loop.kept_episodes import KeptEpisodes, SegmentRecord
from simulation.closed_loop.policies import Inference, Observation, ScriptedPolicy
from simulation.scenes import settle_in
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED
from simulation.scenes.suites import PLATE, suite_of
from toolkit.processes import WORKER_SECONDS, one_thread_each, silent
from toolkit.progress import NOTE, progress_bar


@dataclass(frozen=True)
class Segment:
    """Episodes, by their seeds, that are played one after another; `seed`: of the noise."""

    condition: str
    part: str
    seed: int
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.condition}-{self.part}-{self.seed}-{self.seeds[0]}"


def run_episodes(
    policy: Any,
    settings: Settings,
    *,
    folder: Path | None = None,
    progress: bool = True,
    kept: KeptEpisodes | None = None,
    share: slice = slice(None),
    enough: Callable[[Sequence[EpisodeOutcome]], bool] | None = None,
) -> list[EpisodeOutcome]:
    """Play settings.episodes episodes of each part under each condition; outcomes in that order, by seed.

    policy: any object with get_action(observation) -> {"action.arm": (B, H, 7), "action.gripper": (B, H, 1)} (Inference
    says how it is asked), in this process, or a ScriptedPolicy, which acts in the workers. folder: receives the videos,
    <part>_<seed>.mp4. kept: what was played before is taken from there, and what is played is written there. share: the
    segments that are played. enough: whether these episodes of a part suffice, asked after every segment. The calling
    script needs an `if __name__ == "__main__":`, since the workers import it. Raises ToolkitError for what cannot be
    played and for a worker that died; workers are gone when this returns, however it does.
    """
    check_settings(policy, settings)
    with ExitStack() as left:
        crew = _Crew(policy, settings, kept or KeptEpisodes(), left)
        return crew.play(segments(settings, crew.scripted)[share], folder, progress, enough)


def segments(settings: Settings, scripted: ScriptedPolicy | None) -> list[Segment]:
    """The whole evaluation in the order of its outcomes."""
    found, plays = [], scripted or ScriptedPolicy()
    for condition, part in itertools.product(settings.conditions, settings.parts):
        every = plays.seeds(part, settings.runs * settings.episodes)
        for run in range(settings.runs):
            seeds = every[run * settings.episodes :][: settings.episodes]
            for first in range(0, len(seeds), settings.segment or max(len(seeds), 1)):
                chosen = tuple(seeds[first:][: settings.segment])
                found.append(Segment(condition, part, settings.seed + run, chosen))
    return found


def check_settings(policy: Any, settings: Settings) -> None:
    """Refuse names that are not there, scenes that are not, and conditions or a renderer that do not fit the policy."""
    suite = suite_of(settings.split)
    parts = {*suite.recorded, *suite.evaluated}
    for given, known, what in ((settings.parts, parts, "part"), (settings.conditions, CONDITIONS, "condition")):
        for name in given:
            if name not in known:
                raise ToolkitError(f'{settings.split} has no {what} "{name}".{did_you_mean(name, known)}')
    for part in settings.parts:
        suite.sample(settings.split, part, FIRST_EVALUATION_SEED, settings.strategy, settings.no_distractor_prob)
    if isinstance(policy, ScriptedPolicy) and settings.conditions != ("none",):
        raise ToolkitError(
            "Ablations change what a policy observes; one that knows the simulation's state does not look."
        )
    if not isinstance(policy, ScriptedPolicy) and settings.render == "none":
        raise ToolkitError("render=none is for policies that know the simulation's state; this one needs images.")
    if suite is PLATE and settings.instruction is None:
        raise ToolkitError(
            f"split={settings.split}: its episodes have no sentence of their own; an instruction is needed."
        )
    if suite is PLATE and "other_instruction" in settings.conditions and not settings.other_instruction:
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
                "nothing, memory may have run out (fewer workers need less). Start the same command again."
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
    """The workers, in which a scripted policy acts, or for which `inference` does; they end with `left`."""

    def __init__(self, policy: Any, settings: Settings, kept: KeptEpisodes, left: ExitStack) -> None:
        self.settings, self.kept, self.left = settings, kept, left
        self.scripted = policy if isinstance(policy, ScriptedPolicy) else None
        self.workers: list[_Worker] = []
        self.fresh: list[Segment] = []  # played here, so that a worker can film them
        seeds = range(settings.seed, settings.seed + settings.runs)
        if self.scripted is None:
            steps, conditions = settings.n_action_steps, settings.conditions
            self.inference = {seed: Inference(policy, seed, steps, conditions) for seed in seeds}

    def play(
        self,
        chosen: Sequence[Segment],
        folder: Path | None,
        progress: bool,
        enough: Callable[[Sequence[EpisodeOutcome]], bool] | None,
    ) -> list[EpisodeOutcome]:
        """The segments, one after the other, and the videos of each; the outcomes name these."""
        outcomes, names = list[EpisodeOutcome](), dict[tuple[str, int], str]()
        with progress_bar(NOTE, unit="episodes", show=progress) as bar:
            for (condition, part), group in itertools.groupby(chosen, lambda s: (s.condition, s.part)):
                found, of_part = list[EpisodeOutcome](), list(group)
                name = part if condition == "none" else f"{part}, {CONDITIONS[condition]}"
                task = bar.add_task(name, total=sum(len(segment.seeds) for segment in of_part), note="")
                for segment in of_part:
                    for outcome in self._episodes(segment):
                        found.append(outcome)
                        bar.update(task, advance=1, note=f"{sum(o.success for o in found)} successes")
                    if folder is not None and condition == "none":
                        names |= self._film(segment, found, folder)
                    if enough is not None and enough(found):
                        break
                outcomes += sorted(found, key=lambda outcome: outcome.seed)
        return [
            o if o.condition != "none" else dataclasses.replace(o, video=names.get((o.part, o.seed))) for o in outcomes
        ]

    def _episodes(self, segment: Segment) -> Iterator[EpisodeOutcome]:
        """The outcomes of a segment as they come; all at once where it was played before."""
        with self.kept.record(segment.name) as record:
            if set(segment.seeds) <= set(record.outcomes):
                yield from record.outcomes.values()
                return
            for outcome in self._played(segment, record):
                record.add_outcome(outcome)
                yield outcome

    def _played(self, segment: Segment, record: SegmentRecord) -> Iterator[EpisodeOutcome]:
        self._start()
        self.fresh.append(segment)
        count = len(self.workers)
        for number, worker in enumerate(self.workers):
            seeds = segment.seeds[number::count]
            worker.send(("play", segment.condition, segment.part, record.asked(seeds), seeds))
        busy, waiting = list(self.workers), dict[_Worker, Observation]()
        while busy:
            if len(waiting) == len(busy):
                requests, waiting = [waiting[worker] for worker in busy], {}
                for worker, chunk in zip(busy, self._answer(segment, requests, record), strict=True):
                    worker.send(chunk)
            worker, message = self._next([worker for worker in busy if worker not in waiting])
            if message is None:
                busy.remove(worker)
            elif isinstance(message, Observation):
                waiting[worker] = message
            else:
                yield message

    def _answer(self, segment: Segment, requests: Sequence[Observation], record: SegmentRecord) -> Sequence[np.ndarray]:
        chunks = record.answer(requests)
        if chunks is None:
            inference = self.inference[segment.seed]
            chunks = inference.chunks(requests, drop_state=segment.condition == "zero_state")
            record.add_answer(requests, chunks)
        return chunks

    def _film(self, segment: Segment, found: Sequence[EpisodeOutcome], folder: Path) -> dict[tuple[str, int], str]:
        """Write the videos of a segment that was just played; the names, by part and seed, of those that are there."""
        folder.mkdir(parents=True, exist_ok=True)
        asked, names = [], {}
        for outcome in _to_film(sorted(found, key=lambda outcome: outcome.seed), self.settings.videos):
            if outcome.seed in segment.seeds:
                names[outcome.part, outcome.seed] = name = f"{outcome.part}_{outcome.seed}.mp4"
                if segment in self.fresh:
                    worker = self.workers[segment.seeds.index(outcome.seed) % len(self.workers)]
                    worker.send(("film", outcome.part, outcome.seed, _caption(outcome), folder / name))
                    asked.append((worker, outcome))
        for worker, outcome in asked:
            _, trouble = self._next([worker])
            if trouble is not None:
                name = names.pop((outcome.part, outcome.seed))
                print(f"note: the video {name} could not be written: {trouble}", file=sys.stderr)
        for place, name in [*names.items()]:
            if not (folder / name).is_file():
                del names[place]
                print(f"note: the evaluation was stopped before the video {name} was written.", file=sys.stderr)
        return names

    def _start(self) -> None:
        """Start the workers, where that was not done yet: an evaluation that is all there needs none."""
        if not self.workers:
            with one_thread_each():
                for _ in range(min(self.settings.workers, self.settings.episodes)):
                    worker = _Worker(self.settings, self.scripted)
                    self.workers.append(worker)
                    self.left.callback(worker.end)

    def _next(self, workers: Sequence[_Worker]) -> tuple[_Worker, Any]:
        """The next message of any of these workers."""
        ready = wait([worker.pipe for worker in workers], WORKER_SECONDS)
        if not ready:
            raise silent("closed loop", [worker.process.pid or 0 for worker in workers])
        worker = next(worker for worker in workers if worker.pipe in ready)
        return worker, worker.receive()


def _to_film(outcomes: Sequence[EpisodeOutcome], count: int) -> Iterator[EpisodeOutcome]:
    """The first `count` successes of each part, and failures that ended at each stage, by seed."""
    seen = Counter[tuple[str, str | None]]()
    for outcome in outcomes:
        if outcome.condition == "none":
            kind = outcome.part, outcome.stage or str(outcome.success)  # outcomes kept by older versions have no stage
            seen[kind] += 1
            if seen[kind] <= count:
                yield outcome


def _caption(outcome: EpisodeOutcome) -> str:
    end = f"success after {outcome.steps} steps"
    if not outcome.success:
        words = {NOTHING: "nothing", OTHER: "the other object first"}
        picked = words.get(outcome.picked, f"the {outcome.picked} first")
        end = f"no success in {outcome.steps} steps, picked {picked}"
    return f'"{outcome.instruction}"\n{outcome.part} {outcome.seed}: {end}'
