"""An evaluation that was stopped continues, and several processes share one: with the outcomes of one in one piece."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from outcomes import acted, any_object
from simulator import needs_simulator

from gr00t.errors import ToolkitError
from gr00t.file_replacement import LockHeld, file_lock
from simulation.closed_loop import EpisodeOutcome, Settings
from simulation.closed_loop.kept_episodes import KeptEpisodes, SegmentRecord, kept_in
from simulation.closed_loop.policies import Observation, TargetPolicy
from simulation.closed_loop.rollout import run_episodes, segments
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED as FIRST
from toolkit.installation import CHECKOUT

SPLIT = "instruction/color_object"


class Waves:
    """A policy whose actions depend on images, state, sentence and seed; it is stopped at its call of that number."""

    def __init__(self, stops: int | None = None) -> None:
        self.calls, self.stops = 0, stops
        self.asked: list[str] = []

    def get_action(self, observation: dict, seed: int = 0) -> dict:
        self.calls += 1
        if self.calls == self.stops:
            raise KeyboardInterrupt
        self.asked += observation["annotation.human.task_description"]
        seen = observation["video.image"].mean() + observation["video.wrist_image"].mean() / 7
        turn = np.sin(seen + seed % 97 + len(self.asked[-1])) * np.linspace(0, 0.3, 16)
        arm = observation["state.arm"] + turn[None, :, None]
        return {"action.arm": arm, "action.gripper": np.ones((1, 16, 1))}


def stripped(outcomes: list[EpisodeOutcome]) -> list[EpisodeOutcome]:
    return [dataclasses.replace(outcome, video=None) for outcome in outcomes]


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.long
def test_stopped_and_shared_evaluations_end_as_one_in_one_piece(renderer: None, tmp_path: Path) -> None:
    settings = Settings(SPLIT, parts=("seen", "conflict"), episodes=4, max_steps=24, image_size=32, segment=2)
    whole_policy = Waves()
    whole = run_episodes(whole_policy, settings, progress=False)
    assert [(o.part, o.seed) for o in whole] == [(p, FIRST + i) for p in settings.parts for i in range(4)]
    own = [o.instruction for o in whole]
    assert len(set(own)) > 4 and set(own) == set(whole_policy.asked)  # each episode its own, in one batch of two

    asked = 0
    with kept_in(tmp_path / "kept", {}, shared=False) as kept:
        with pytest.raises(KeyboardInterrupt):
            run_episodes(Waves(stops=16), settings, kept=kept, progress=False)
        found = [json.loads(line) for path in kept.folder.glob("*.jsonl") for line in path.read_text().splitlines()]
        asked = sum(len(line.get("of", ())) for line in found)
        assert asked >= 14 and sum("outcome" in line for line in found) >= 4
        again = Waves()
        videos = tmp_path / "videos"
        resumed = run_episodes(again, dataclasses.replace(settings, videos=1), kept=kept, folder=videos, progress=False)
    assert stripped(resumed) == whole and asked + again.calls == whole_policy.calls
    assert not (tmp_path / "kept").exists()
    named = {o.video for o in resumed if o.video}
    assert named == {path.name for path in videos.iterdir()} and f"conflict_{FIRST}.mp4" in named

    shares = KeptEpisodes(made(tmp_path / "shares"))
    parts = [run_episodes(Waves(), settings, kept=shares, share=slice(n, None, 2), progress=False) for n in range(2)]
    assert all(len(part) == 4 for part in parts)
    idle = Waves()
    joined = run_episodes(idle, settings, kept=shares, progress=False)
    assert joined == whole and idle.calls == 0


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_segments_hold_every_episode_once_in_order_and_runs_have_episodes_of_their_own() -> None:
    settings = Settings(SPLIT, parts=("seen", "conflict"), conditions=("none", "blank_image"), episodes=5)
    settings = dataclasses.replace(settings, segment=2, runs=3, seed=40)
    found = segments(settings, None)
    assert len(found) == 2 * 2 * 3 * 3 and len({segment.name for segment in found}) == len(found)
    for condition, part in itertools.product(settings.conditions, settings.parts):
        chosen = [segment for segment in found if (segment.condition, segment.part) == (condition, part)]
        assert [seed for segment in chosen for seed in segment.seeds] == list(range(FIRST, FIRST + 15))
        firsts = {segment.seed: min(segment.seeds) - FIRST for segment in reversed(chosen)}
        assert firsts == {40: 0, 41: 5, 42: 10}
    plate = segments(Settings("color_object", "x", episodes=100), None)
    assert [(segment.part, len(segment.seeds)) for segment in plate] == [("train", 100), ("conflict", 100)]


# -- the files ---------------------------------------------------------------------------------------------------------


def requests(*places: tuple[int, int]) -> list[Observation]:
    return [Observation({}, np.zeros(8, np.float32), seed, chunk, "x") for seed, chunk in places]


def test_what_was_answered_and_how_episodes_ended_is_there_bit_for_bit_after_a_kill(tmp_path: Path) -> None:
    path, outcome = tmp_path / "a.jsonl", acted(SPLIT, ["conflict"], 1, any_object)[0]
    chunks = list(np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32))
    record = SegmentRecord(path)
    assert record.answer(requests((1, 0), (2, 0))) is None
    record.add_answer(requests((1, 0), (2, 0)), chunks)
    record.add_outcome(outcome)
    record.add_answer(requests((2, 1)), chunks[:1])
    record.close()
    with path.open("a") as file:
        file.write('{"of": [[1, 2')  # killed while it wrote
    again = SegmentRecord(path)
    assert again.asked([1]) == 1 and again.asked([1, 2]) == 3 and again.outcomes == {outcome.seed: outcome}
    found = again.answer(requests((1, 0), (2, 0)))
    assert found is not None and np.array_equal(found, chunks)
    with pytest.raises(ToolkitError, match="does not continue as it began"):
        again.answer(requests((2, 2)))
    last = SegmentRecord(path)
    last.add_answer(requests((9, 9)), chunks[:1])
    last.close()
    assert SegmentRecord(path).asked([1, 2, 9]) == 4


def test_an_episode_that_ends_otherwise_than_before_is_refused(tmp_path: Path) -> None:
    outcome = acted(SPLIT, ["seen"], 1, any_object)[0]
    record = SegmentRecord(tmp_path / "a.jsonl")
    record.add_outcome(outcome)
    record.close()
    again = SegmentRecord(tmp_path / "a.jsonl")
    again.add_outcome(outcome)
    with pytest.raises(ToolkitError, match="the simulation moves otherwise on this machine"):
        again.add_outcome(dataclasses.replace(outcome, steps=outcome.steps + 1))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"of": []}x\n')
    with pytest.raises(ToolkitError, match=r"a\.jsonl, line 1: is damaged"):
        SegmentRecord(tmp_path / "a.jsonl")


def test_other_settings_leave_what_was_played_and_a_share_moves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    with pytest.raises(RuntimeError), kept_in(folder, {"episodes": 4}, shared=False) as kept:
        (kept.folder / "a.jsonl").write_text("")
        raise RuntimeError
    with kept_in(folder, {"episodes": 4}, shared=True) as kept:
        assert (kept.folder / "a.jsonl").exists()
        with pytest.raises(LockHeld), kept_in(folder, {"episodes": 4}, shared=False):
            pass
    with pytest.raises(ToolkitError, match=r"episodes=4 \(now 5\), which a share does not move"):
        with kept_in(folder, {"episodes": 5}, shared=True):
            pass
    with kept_in(folder, {"episodes": 5}, shared=False):
        assert not (folder / "a.jsonl").exists()
    assert "unfinished evaluation with episodes=4 (now 5)" in capsys.readouterr().err and not folder.exists()
    with pytest.raises(RuntimeError), kept_in(folder, {"episodes": 5}, shared=False):
        raise RuntimeError
    with kept_in(folder, {"episodes": 4}, shared=False):
        assert (folder / "a.jsonl").exists()
    assert "continues with the episodes" in capsys.readouterr().err
    with kept_in(folder, {"episodes": 5}, shared=False):
        assert not (folder / "a.jsonl").exists()


def test_a_segment_is_played_by_one_process(tmp_path: Path) -> None:
    with file_lock(tmp_path / "a.jsonl"), pytest.raises(LockHeld), KeptEpisodes(tmp_path).record("a"):
        pass


@needs_simulator
def test_a_replayed_request_holds_no_images(renderer: None) -> None:
    from simulation.closed_loop.episode_player import EpisodePlayer

    shown: list[Observation] = []

    def ask(request: Observation) -> np.ndarray:
        shown.append(request)
        return np.tile(np.append(request.state[:7], 1).astype(np.float32), (8, 1))

    player = EpisodePlayer(Settings(SPLIT, parts=("seen",), image_size=32, max_steps=24), None, ask)
    player.begin("none", "seen", 4)
    first, second = player.play(FIRST), player.play(FIRST + 1)
    assert [bool(request.images) for request in shown] == [False] * 4 + [True] * 2
    assert [o.chunks for o in (first, second)] == [3, 3]
    player.begin("other_instruction", "seen")
    other = player.play(FIRST).instruction
    assert other != first.instruction == shown[0].instruction
    player.settings = dataclasses.replace(player.settings, instruction="lift the red cube")  # of the split
    assert player.play(FIRST).instruction == shown[-1].instruction == other
    player.begin("none", "seen")
    assert player.play(FIRST).instruction == "lift the red cube"
    player.policy = TargetPolicy()
    player.settings = dataclasses.replace(player.settings, max_steps=100)
    player.begin("none", "seen")
    held = player.play(FIRST)
    assert held.success and (held.picked, held.did, held.episode["named"].keys()) == (
        "target",
        "lift",
        {"color", "object"},
    )


# -- the command -------------------------------------------------------------------------------------------------------


def command(folder: Path, *arguments: str) -> list[str]:
    given = ["local=none", "mode=closed_loop", "policy=random", "render=none", "episodes=50", "seed=3", *arguments]
    return [sys.executable, "evaluate_conflict.py", *given, f"report_dir={folder}"]


def evaluated(folder: Path, *arguments: str) -> dict:
    """What the report holds, without how long it took; nothing of a share."""
    done = subprocess.run(command(folder, *arguments), cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = folder / "closed_loop.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    return {name: told[name] for name in ("episodes", "summary")} if told else {}


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.long
@pytest.mark.parametrize("split", ["instruction/size_object", "color_object"])
def test_killed_at_random_moments_and_shared_the_command_reports_the_same(split: str, tmp_path: Path) -> None:
    arguments, rng = (f"split={split}", "parts=[conflict]"), random.Random(split)
    whole = evaluated(tmp_path / "whole", *arguments)
    for _ in range(3):
        running = subprocess.Popen(command(tmp_path / "killed", *arguments), cwd=CHECKOUT, stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            running.wait(rng.uniform(15, 45))
        running.kill()
        running.wait()
    assert evaluated(tmp_path / "killed", *arguments) == whole
    assert [path.name for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")] == []

    shares = [subprocess.Popen(command(tmp_path / "shared", *arguments, f"share={n}/2"), cwd=CHECKOUT) for n in (1, 2)]
    assert [share.wait() for share in shares] == [0, 0]
    joined = evaluated(tmp_path / "shared", *arguments)
    if split == "color_object":  # in one piece where it is not shared
        joined, whole = ([e["seed"] for e in found["episodes"]] for found in (joined, whole))
    assert joined == whole
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_what_was_put_aside_is_continued_when_the_other_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "kept"

    def played(episodes: int, *, ends: bool) -> bool:
        there = False
        with suppress(RuntimeError), kept_in(folder, {"episodes": episodes}, shared=False) as kept:
            there = (folder / "a.jsonl").exists()
            (folder / "a.jsonl").write_text("")
            if not ends:
                raise RuntimeError
        assert kept.folder == folder
        return there

    assert not played(4, ends=False)
    assert not played(5, ends=True)
    assert played(4, ends=False)
    assert not played(5, ends=False)
    assert played(4, ends=True) and played(5, ends=True)
