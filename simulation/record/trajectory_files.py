"""Trajectory files in ManiSkill's format: single episodes, and the recording of many that they are joined into.

A folder of single episodes holds <seed>.h5 and <seed>.json for each, and <seed>.failed for a seed that was given up."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py

from gr00t.errors import ToolkitError
from gr00t.file_replacement import read_json, write_json

H5, JSON = "trajectory.h5", "trajectory.json"
FAILED = ".failed"


def seeds_from(first: int, work: Path) -> Iterator[int]:
    """The seeds of a recording in order, without end, those given up left out."""
    return (seed for seed in itertools.count(first) if not (work / f"{seed}{FAILED}").exists())


def leave_out_start(path: Path, steps: int) -> None:
    """Rewrite the .h5 of a single episode so that it begins `steps` steps later, observations and states too."""
    aside = path.with_name(f"{path.stem}.partial-cut.h5")
    with h5py.File(path, "r") as whole, h5py.File(aside, "w") as rest:
        _copy_rest(whole, rest, steps)
    aside.replace(path)


def _copy_rest(group: h5py.Group, into: h5py.Group, steps: int) -> None:
    into.attrs.update(group.attrs)
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            _copy_rest(item, into.create_group(name), steps)
        else:  # of one entry a step, or one more
            packing = {"compression": item.compression, "compression_opts": item.compression_opts}
            into.create_dataset(name, data=item[steps:], **packing).attrs.update(item.attrs)


def join_episodes(work: Path, seeds: Iterable[int], h5: Path) -> None:
    """Write the single episodes of `seeds` to one .h5; a damaged one is removed and raises ToolkitError."""
    with h5py.File(h5, "w") as recording:
        for number, seed in enumerate(seeds):
            path = work / f"{seed}.h5"
            try:
                with h5py.File(path, "r") as single:
                    single.copy("traj_0", recording, name=f"traj_{number}")
            except (OSError, KeyError, RuntimeError) as error:
                path.unlink(missing_ok=True)
                raise ToolkitError(
                    f"{path}: was damaged ({error}) and is removed. Start again: this episode is then recorded anew."
                ) from error


def take_apart(target: Path, work: Path, first: int) -> None:
    """Write the episodes of a recording to `work` as single ones, so that it can be made longer.

    `first` is the seed it began with; a seed that it passed over is one that was given up. Raises ToolkitError for a
    recording that cannot be read.
    """
    whole: dict[str, Any] = read_json(target / JSON)
    del whole["recording"]
    seeds = {episode["episode_seed"]: episode for episode in whole["episodes"]}
    for seed in set(range(first, max(seeds))) - set(seeds):
        (work / f"{seed}{FAILED}").touch()
    try:
        recording = h5py.File(target / H5, "r")
    except OSError as error:
        raise ToolkitError(f"{target / H5}: cannot be read ({error}). Record anew: overwrite=true.") from error
    with recording:
        for seed, episode in seeds.items():
            name = f"traj_{episode['episode_id']}"
            if name not in recording:
                raise ToolkitError(f"{target / H5}: has no {name}. Record anew: overwrite=true.")
            if not (work / f"{seed}.h5").is_file():
                write_json(work / f"{seed}.json", {**whole, "episodes": [{**episode, "episode_id": 0}]})
                aside = work / f"{seed}.partial-whole.h5"
                with h5py.File(aside, "w") as single:
                    recording.copy(name, single, name="traj_0")
                aside.replace(work / f"{seed}.h5")
