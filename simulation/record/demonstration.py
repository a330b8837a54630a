"""One demonstration after another, in a worker process: the expert acts, ManiSkill's RecordEpisode writes."""

from __future__ import annotations

import random
import secrets
from contextlib import suppress
from pathlib import Path

from mani_skill.utils.wrappers.record import RecordEpisode

from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from simulation.record import ATTEMPTS, RecordConfig
from simulation.scenes import settle_in
from simulation.scenes.environment import REBUILD, ConflictPickEnv, make_env
from simulation.scenes.expert import Expert, Unreachable, drawn_style
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.verbs import ways_to_say


class Demonstrator:
    """An environment and its expert; made once per process. Episodes are written to the folder of single ones."""

    def __init__(self, config: RecordConfig) -> None:
        settle_in()
        self.config, self.folder = config, config.work
        self.partial = f"partial-{secrets.token_hex(4)}"  # a share that was started twice records an episode twice
        split, part, size = config.split.name, config.part, config.image_size
        self.env = make_env(split, part, strategy=config.strategy, image_size=size, render=config.render)
        self.task: ConflictPickEnv = self.env.unwrapped  # type: ignore[assignment]
        self.env.reset(seed=0)
        self.expert = Expert(self.task)

    def demonstrate(self, seed: int) -> int | None:
        """Write the episode of that seed to <seed>.h5 and .json; the attempts that failed before, None if all did."""
        for attempt in range(ATTEMPTS):
            rng = random.Random(f"{self.config.split.name}/{self.config.part}/{seed}/{attempt}")
            disturbed = rng.random() < self.config.recoveries
            h5 = self.folder / f"{seed}.{self.partial}-{attempt}.h5"
            if self._record(h5, seed, rng, disturbed):
                entry = {"conflict": self.task.episode.describe(), "failed_attempts": attempt, "disturbed": disturbed}
                if ways := self._ways_to_say_it():
                    entry["instruction"] = rng.choice(ways)
                source = h5.with_suffix(".json")
                meta = read_json(source)
                meta["episodes"][0].update(entry)
                # The .json first: where <seed>.h5 is, both are complete.
                write_json(self.folder / f"{seed}.json", meta)
                source.unlink()
                h5.replace(self.folder / f"{seed}.h5")
                return attempt
            h5.unlink()
        return None

    def _ways_to_say_it(self) -> list[str]:
        """The instructions that the episode may be recorded with; none where the split's own is meant."""
        split, paraphrases = self.config.split, self.config.paraphrases
        if isinstance(self.task.episode, InstructedEpisode):
            published = self.task.episode.instruction
            return ways_to_say(published) if paraphrases else [published]
        return [str(split.instruction), *split.paraphrases] if paraphrases else []

    def _record(self, h5: Path, seed: int, rng: random.Random, disturbed: bool) -> bool:
        """One attempt; whether it succeeded, and is in `h5` and the .json beside it."""
        recorder = RecordEpisode(
            self.env,  # type: ignore[arg-type]
            str(self.folder),
            trajectory_name=h5.stem,
            save_video=False,
            save_on_reset=False,
            record_reward=False,
            source_type="motionplanning",
            source_desc="scripted expert: straight lines by inverse kinematics",
        )
        try:
            recorder.reset(seed=seed, options=dict(REBUILD))
            success = self._act(recorder, rng, disturbed)
            recorder.flush_trajectory(save=success)
        finally:
            recorder._h5_file.close()  # its own close would end the environment, which serves the next episode too
        return success

    def _act(self, recorder: RecordEpisode, rng: random.Random, disturbed: bool) -> bool:
        """Let the expert pick up the target; where disturbed, push the arm on its way and plan again from there.

        Returns whether it succeeded. The steps up to the push are left out of the recording: a push cannot be foreseen,
        and a policy should not learn to. So is the first one after it, whose action was chosen after an observation
        that is not recorded.
        """
        success = False
        with suppress(Unreachable):
            target, style = self.task.episode.target, drawn_style(rng)
            actions = self.expert.plan(target, style)
            if disturbed:
                before = rng.randint(4, 10)
                for action in actions[:before]:
                    recorder.step(action)
                recorder._trajectory_buffer.env_episode_ptr[:] = before + 1  # where the recorded episode begins
                self.expert.displace(rng)
                actions = self.expert.plan(target, style)
            for action in actions:
                success = bool(recorder.step(action)[-1]["success"][0])
        return success
