"""One demonstration after the other, in worker processes: the expert acts, ManiSkill's RecordEpisode writes."""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path
from typing import Any

import gymnasium
from mani_skill.utils.wrappers.record import RecordEpisode

from simulation.cut import leave_out_start
from simulation.environment import REBUILD, ConflictPickEnv, make_env
from simulation.expert import Expert, Unreachable, drawn_style
from simulation.processes import settle_in
from simulation.recording import ATTEMPTS, Job, Outcome


def start(job: Job) -> None:
    """Make this process's environment and expert, once."""
    global _worker
    settle_in()
    _worker = Worker(job)


def demonstrate(seed: int) -> Outcome:
    """Write the episode of that seed to <seed>.h5 and .json in the job's folder, in this process's environment."""
    assert _worker is not None
    return _worker.demonstrate(seed)


class Worker:
    """An environment and its expert."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.env = make_env(job.split, job.part, image_size=job.image_size, render=job.render)
        self.task: ConflictPickEnv = self.env.unwrapped  # type: ignore[assignment]
        self.env.reset(seed=0)
        self.expert = Expert(self.task)

    def demonstrate(self, seed: int) -> Outcome:
        """Up to ATTEMPTS tries; the successful one stays."""
        for attempt in range(ATTEMPTS):
            rng = random.Random(f"{self.job.split}/{self.job.part}/{seed}/{attempt}")
            disturbed = rng.random() < self.job.recoveries
            name = f"{seed}.partial-{uuid.uuid4().hex[:8]}"
            success, before = self._record(name, seed, rng, disturbed)
            self._finish(self.job.folder / f"{name}.h5", seed, attempt, before, success, rng)
            if success:
                return Outcome(seed, attempt, True)
        return Outcome(seed, ATTEMPTS, False)

    def _record(self, name: str, seed: int, rng: random.Random, disturbed: bool) -> tuple[bool, int]:
        recorder = RecordEpisode(
            _KeptOpen(self.env),  # type: ignore[arg-type]
            str(self.job.folder),
            trajectory_name=name,
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
        """Let the expert pick up the target; where disturbed, push the arm on its way and plan anew from there.

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

    def _finish(self, h5: Path, seed: int, attempt: int, before: int, success: bool, rng: random.Random) -> None:
        """Name the files for good, the .json first: where <seed>.h5 is, both are complete."""
        source = h5.with_suffix(".json")
        if success:
            meta = json.loads(source.read_text(encoding="utf-8"))
            extra: dict[str, Any] = {"conflict": self.task.episode.describe(), "failed_attempts": attempt}
            extra["disturbed"] = before > 0
            if before:
                leave_out_start(h5, before)
                extra["elapsed_steps"] = meta["episodes"][0]["elapsed_steps"] - before
            if self.job.instructions:
                extra["instruction"] = rng.choice(self.job.instructions)
            meta["episodes"][0].update(extra)
            source.write_text(json.dumps(meta), encoding="utf-8")
            source.replace(self.job.folder / f"{seed}.json")
            h5.replace(self.job.folder / f"{seed}.h5")
        source.unlink(missing_ok=True)
        h5.unlink(missing_ok=True)


class _KeptOpen(gymnasium.Wrapper[Any, Any, Any, Any]):
    """RecordEpisode closes its environment with its file; this one serves the next episode too."""

    def close(self) -> None:
        return None


_worker: Worker | None = None
