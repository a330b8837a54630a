"""One demonstration after another, in a worker process: the expert acts, ManiSkill's RecordEpisode writes."""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path
from typing import Any

import gymnasium
from mani_skill.utils.wrappers.record import RecordEpisode

from gr00t.processes import settle_in
from simulation.record import ATTEMPTS, RecordConfig
from simulation.record.trajectory_files import leave_out_start
from simulation.scenes.environment import REBUILD, ConflictPickEnv, make_env
from simulation.scenes.expert import Expert, Unreachable, drawn_style


class Demonstrator:
    """An environment and its expert; made once per process. Episodes are written to `folder`."""

    def __init__(self, config: RecordConfig, folder: Path) -> None:
        settle_in()
        self.config, self.folder = config, folder
        self.env = make_env(config.split.name, config.part, image_size=config.image_size, render=config.render)
        self.task: ConflictPickEnv = self.env.unwrapped  # type: ignore[assignment]
        self.env.reset(seed=0)
        self.expert = Expert(self.task)

    def demonstrate(self, seed: int) -> int | None:
        """Write the episode of that seed to <seed>.h5 and .json.

        Returns the attempts that failed before one succeeded; None where all ATTEMPTS failed.
        """
        for attempt in range(ATTEMPTS):
            rng = random.Random(f"{self.config.split.name}/{self.config.part}/{seed}/{attempt}")
            disturbed = rng.random() < self.config.recoveries
            h5 = self.folder / f"{seed}.partial-{uuid.uuid4().hex[:8]}.h5"
            success, before = self._record(h5, seed, rng, disturbed)
            if success:
                self._finish(h5, seed, attempt, before, rng)
            h5.with_suffix(".json").unlink(missing_ok=True)
            h5.unlink(missing_ok=True)
            if success:
                return attempt
        return None

    def _record(self, h5: Path, seed: int, rng: random.Random, disturbed: bool) -> tuple[bool, int]:
        """One attempt; returns what `_act` does."""
        recorder = RecordEpisode(
            _KeptOpen(self.env),  # type: ignore[arg-type]
            str(self.folder),
            trajectory_name=h5.stem,
            save_video=False,
            save_on_reset=False,
            clean_on_close=False,
            record_reward=False,
            source_type="motionplanning",
            source_desc="scripted expert: straight lines by inverse kinematics",
        )
        try:
            recorder.reset(seed=seed, options=dict(REBUILD))
            success, before = self._act(recorder, rng, disturbed)
            recorder.flush_trajectory(save=success)
        finally:
            recorder.close()
        return success, before

    def _act(self, recorder: RecordEpisode, rng: random.Random, disturbed: bool) -> tuple[bool, int]:
        """Let the expert pick up the target; where disturbed, push the arm on its way and plan again from there.

        Returns whether it succeeded, and how many of the recorded steps are not a demonstration of it. Those up to the
        push are not: a push cannot be foreseen, and a policy should not learn to. Nor is the first one after it, whose
        action was chosen after an observation that is not recorded.
        """
        success, before = False, 0
        try:
            target, style = self.task.episode.target, drawn_style(rng)
            actions = self.expert.plan(target, style)
            if disturbed:
                before = rng.randint(4, 10)
                for action in actions[:before]:
                    recorder.step(action)
                before += 1
                self.expert.displace(rng)
                actions = self.expert.plan(target, style)
            for action in actions:
                success = bool(recorder.step(action)[-1]["success"][0])
        except Unreachable:
            success = False
        return success, before

    def _finish(self, h5: Path, seed: int, attempt: int, before: int, rng: random.Random) -> None:
        """Give the files their final names, the .json first: where <seed>.h5 is, both are complete."""
        source = h5.with_suffix(".json")
        meta = json.loads(source.read_text(encoding="utf-8"))
        extra: dict[str, Any] = {"conflict": self.task.episode.describe(), "failed_attempts": attempt}
        extra["disturbed"] = before > 0
        if before:
            leave_out_start(h5, before)
            extra["elapsed_steps"] = meta["episodes"][0]["elapsed_steps"] - before
        if self.config.paraphrases:
            extra["instruction"] = rng.choice((self.config.split.instruction, *self.config.split.paraphrases))
        meta["episodes"][0].update(extra)
        source.write_text(json.dumps(meta), encoding="utf-8")
        source.replace(self.folder / f"{seed}.json")
        h5.replace(self.folder / f"{seed}.h5")


class _KeptOpen(gymnasium.Wrapper[Any, Any, Any, Any]):
    """RecordEpisode closes its environment with its file; this one serves the next episode too."""

    def close(self) -> None:
        return None
