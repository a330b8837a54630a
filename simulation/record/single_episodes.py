"""A recording as a whole, and as single episodes: <seed>.h5 and <seed>.json, <seed>.failed where one was given up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.file_replacement import whole_folder, write_json

ATTEMPTS = 5  # at one episode, each in another style
H5, JSON = "trajectory.h5", "trajectory.json"
FAILED = ".failed"


def seeds_from(first: int, work: Path) -> Iterator[int]:
    """The seeds of a recording in order, without end, those given up left out."""
    return (seed for seed in itertools.count(first) if not (work / f"{seed}{FAILED}").exists())


def join_episodes(
    work: Path, target: Path, seeds: Sequence[int], facts: Mapping[str, Any], *, replace: bool
) -> list[str]:
    """The single episodes of these seeds as one recording, whose .json states `facts`; says what it holds."""
    singles = [read_json(work / f"{seed}.json") for seed in seeds]
    episodes = [{**single["episodes"][0], "episode_id": number} for number, single in enumerate(singles)]
    given_up = len(list(work.glob(f"*{FAILED}")))
    failed = sum(episode["failed_attempts"] for episode in episodes) + ATTEMPTS * given_up
    recording = {**facts, "failed_attempts": failed, "given_up": given_up}
    with whole_folder(target, replace=replace) as aside:
        with h5py.File(aside / H5, "w") as whole:
            for number, seed in enumerate(seeds):
                _add(work / f"{seed}.h5", whole, f"traj_{number}")
        write_json(aside / JSON, {**singles[0], "episodes": episodes, "recording": recording})
        size = sum(path.stat().st_size for path in aside.iterdir())
    frames = sum(episode["elapsed_steps"] for episode in episodes)
    lines = [f"{target}: {len(episodes)} successful episodes, {frames} steps, {size / 1e6:.1f} MB"]
    if failed:
        lines.append(f"  failed attempts, left out: {failed}; seeds replaced: {given_up}")
    return lines


def _add(path: Path, recording: h5py.File, name: str) -> None:
    """Copy a single episode into a recording; a damaged one is removed and raises ToolkitError."""
    try:
        with h5py.File(path, "r") as single:
            single.copy("traj_0", recording, name=name)
    except (OSError, KeyError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise ToolkitError(
            f"{path}: was damaged ({error}) and is removed. Start again: this episode is then recorded again."
        ) from error


def take_apart(target: Path, work: Path, first: int) -> None:
    """Write the episodes of a recording to `work` as single ones, so that it can be made longer.

    `first` is the seed it began with; a seed that it passed over is one that was given up.
    """
    whole: dict[str, Any] = read_json(target / JSON)
    del whole["recording"]
    seeds = {episode["episode_seed"]: episode for episode in whole["episodes"]}
    for seed in set(range(first, max(seeds))) - set(seeds):
        (work / f"{seed}{FAILED}").touch()
    try:
        recording = h5py.File(target / H5, "r")
    except OSError as error:
        raise ToolkitError(f"{target / H5}: cannot be read ({error}). Record again: overwrite=true.") from error
    with recording:
        for seed, episode in seeds.items():
            name = f"traj_{episode['episode_id']}"
            if name not in recording:
                raise ToolkitError(f"{target / H5}: has no {name}. Record again: overwrite=true.")
            if not (work / f"{seed}.h5").is_file():
                write_json(work / f"{seed}.json", {**whole, "episodes": [{**episode, "episode_id": 0}]})
                aside = work / f"{seed}.partial-whole.h5"
                with h5py.File(aside, "w") as single:
                    recording.copy(name, single, name="traj_0")
                aside.replace(work / f"{seed}.h5")
