"""Closed loop: images rendered when a chunk is due beside images at every step, and episodes a minute.

    python -m benchmarks.closed_loop

Both ways play the same episodes with the same actions, the expert's, in one process, turn by turn; figures are medians
of the rounds. Episodes a minute are those of `run_episodes` with random weights, which use up every step: a policy that
succeeds takes about 40."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import ROOT, describe, say
from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from finetune.create_base import create_base
from gr00t.data.layout import DatasetLayout
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.statistics import to_processor_statistics
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from simulation.closed_loop import Settings
from simulation.closed_loop.policies import Observation, ScriptedPolicy, TargetPolicy
from simulation.closed_loop.rollout import run_episodes
from simulation.scenes.factors import FIRST_EVALUATION_SEED
from toolkit.configuration import load

SPLIT, INSTRUCTION = "color_object", "pick up the color-matching object"
SIZES, STEPS = (128, 224), 40


class Ways:
    """The two ways to play an episode with a policy that looks; the policy itself is the expert and costs nothing."""

    def __init__(self, size: int) -> None:
        from simulation.closed_loop.episode_player import EpisodePlayer
        from simulation.scenes.environment import make_env

        self.settings = Settings(SPLIT, INSTRUCTION, image_size=size)
        self.player = EpisodePlayer(self.settings, None, self._chunk)
        self.player.begin("none", "train", INSTRUCTION)
        self.always: Any = make_env(SPLIT, "train", image_size=size).unwrapped
        self.plans: dict[int, np.ndarray] = {}

    def plan(self, seed: int) -> None:
        """The actions of an episode, made before the clock starts."""
        self.player.task.reset(seed=seed)
        self.plans[seed] = TargetPolicy().plan(self.player.task, self.player.expert)

    def when_due(self, seed: int) -> int:
        """As closed-loop evaluation does it; the steps."""
        return self.player.play(seed).steps

    def every_step(self, seed: int) -> int:
        """As an environment with obs_mode rgb does it, which renders at every step; the steps."""
        self.always.reset(seed=seed)
        steps, success = 0, False
        while not success:
            success = bool(self.always.step(self.plans[seed][steps])[-1]["success"][0])
            steps += 1
        return steps

    def _chunk(self, request: Observation) -> np.ndarray:
        n = self.settings.n_action_steps
        return self.plans[request.seed][request.chunk * n :][:n]


def compared(size: int, episodes: int, rounds: int) -> None:
    """A line of the table: seconds an episode in both ways."""
    ways = Ways(size)
    seeds = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes)
    for seed in seeds:
        ways.plan(seed)
    found: dict[str, list[float]] = {"every_step": [], "when_due": []}
    for _ in range(rounds):
        for name, seconds in found.items():
            begin = time.perf_counter()
            steps = sum(getattr(ways, name)(seed) for seed in seeds)
            seconds.append((time.perf_counter() - begin) / episodes)
    always, due = (statistics.median(seconds) for seconds in found.values())
    print(f"| {size} | {steps / episodes:.0f} | {always:.2f} | {due:.2f} | {always / due:.1f} |", flush=True)


def random_policy(model: str, folder: Path) -> GR00TPolicy:
    """That size of model with random weights and the statistics of samples/."""
    convert_split(
        ROOT / "samples", folder / "data", SPLIT, INSTRUCTION, MODALITY_CONFIG, progress=False, overwrite=True
    )
    layout = DatasetLayout(folder / "data" / SPLIT / "train")
    found = to_processor_statistics(layout.statistics(), layout.relative_statistics(), layout.modality, MODALITY_CONFIG)
    base = create_base(load("create_base", ["local=none", f"model={model}", f"out={folder / model}"]))
    processor = Gr00tN1d7Processor.from_pretrained(base).with_embodiment("new_embodiment", MODALITY_CONFIG, found)
    return GR00TPolicy(Gr00tN1d7.from_pretrained(base), processor)


def rate(name: str, policy: GR00TPolicy | ScriptedPolicy, settings: Settings) -> None:
    """A line of the table: episodes a minute, from the first chunk asked for on, and with the start of the workers."""
    begin = time.perf_counter()
    asked = call_times(policy) if isinstance(policy, GR00TPolicy) else []
    outcomes = run_episodes(policy, settings, progress=False)
    end = time.perf_counter()
    chunks = sum(outcome.chunks for outcome in outcomes) / len(outcomes)
    rates = [f"{60 * len(outcomes) / (end - start):.0f}" for start in (*asked[:1], begin)]
    print(
        f"| {name} | {settings.workers} | {chunks:.1f} | {' | '.join(rates if asked else ['-', *rates])} |", flush=True
    )


def call_times(policy: GR00TPolicy) -> list[float]:
    """When it is asked for chunks; the list grows with each call."""
    times: list[float] = []
    act = type(policy).get_action.__get__(policy)

    @functools.wraps(act)
    def get_action(*arguments: Any, **options: Any) -> dict[str, np.ndarray]:
        times.append(time.perf_counter())
        return act(*arguments, **options)

    policy.get_action = get_action  # type: ignore[method-assign]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=10, help="episodes a round and way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--played", type=int, default=24, help="episodes for episodes a minute")
    parser.add_argument("--models", nargs="*", default=["tiny", "small"], help="sizes of models that act")
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4])
    given = parser.parse_args()
    print(describe())
    print(
        "\n| pixels | steps | s an episode, rendered at every step | when a chunk is due | x |\n"
        "|---:|---:|---:|---:|---:|"
    )
    for size in SIZES:
        say(f"rendering at {size} pixels")
        compared(size, given.episodes, given.rounds)
    print(
        "\n| who acts | workers | chunks an episode | episodes a minute | with the start |\n|---|---:|---:|---:|---:|"
    )
    settings = Settings(SPLIT, INSTRUCTION, parts=("train",), episodes=given.played, max_steps=STEPS, image_size=128)
    rate("expert, no images", TargetPolicy(), dataclasses.replace(settings, max_steps=100, render="none"))
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models:
            policy = random_policy(model, Path(folder))
            for workers in given.workers:
                say(f"model={model}, {workers} workers")
                rate(f"model={model}, 128 pixels", policy, dataclasses.replace(settings, workers=workers))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
