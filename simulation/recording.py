"""Recordings that are made by several processes, outlive being killed, and appear whole or not at all.

Single episodes collect in <out>/<split>/.<part>.recording/; when all are there they become one trajectory.h5 and
trajectory.json in <out>/<split>/<part>/. Each episode depends on its seed only, so neither the number of workers nor an
interruption changes what is recorded, and a finished recording becomes a longer one by recording what it lacks.
"""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.config import RecordConfig
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, file_lock, free_space, in_bytes, read_json, whole_folder, write_json
from gr00t.processes import first_done
from simulation.factors import FIRST_EVALUATION_SEED, split_factors
from simulation.processes import one_thread_each
from simulation.rendering import require_rendering, require_simulator

H5, JSON = "trajectory.h5", "trajectory.json"
SETTINGS = "settings.json"
FAILED = ".failed"  # ending of the mark that a seed is given up
BYTES_PER_PIXEL = 0.5  # compressed; twice what is measured, to err on the safe side
FRAMES_PER_EPISODE = 41
ATTEMPTS = 5  # at one episode, each in another style
GIVEN_UP_AT_MOST = 0.2  # of the episodes


@dataclass(frozen=True)
class Job:
    """What the demonstrations of one folder have in common; `instructions` is empty where they hold none."""

    folder: Path
    split: str
    part: str
    image_size: int
    render: str
    recoveries: float
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Of one seed: the attempts that failed, and whether one succeeded after them."""

    seed: int
    failed: int
    success: bool


def record(config: RecordConfig) -> list[str]:
    """Record, or go on recording, one part of one split; returns what there is to say.

    Raises ToolkitError for anything the user can mend.
    """
    split_factors(config.split.name)
    _check_config(config)
    target = Path(config.out) / config.split.name / config.part
    work = target.with_name(f".{config.part}.recording")
    if not config.overwrite and _recorded_settings(target) == settings_of(config):
        _remove_leftover(work, config)
        return [f"{target}: already holds these {config.episodes} episodes."]
    require_simulator()
    require_rendering(config.render)
    with disk_errors(target, "Make room, or choose another out=FOLDER."):
        work.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(work):
            _check_target(target, config)
            _open_work(work, config)
            if _extends(target, config):
                _take_apart(target, work, config)
            started, recorded = time.monotonic(), _record_missing(work, config)
            lines = _join(work, target, config)
            shutil.rmtree(work)
    seconds = time.monotonic() - started
    return [*lines, f"  {recorded} recorded now in {seconds:.0f} s, {60 * recorded / seconds:.0f} a minute"]


def settings_of(config: RecordConfig) -> dict[str, Any]:
    """What decides which episodes a recording holds and what they look like."""
    names = ("part", "episodes", "seed", "image_size", "recoveries", "paraphrases")
    settings = {"split": config.split.name, **{name: getattr(config, name) for name in names}}
    # Earlier versions recorded the push too; their episodes and these do not belong in one recording.
    return settings | ({"begins_after_push": True} if config.recoveries else {})


# -- what is there already ---------------------------------------------------------------------------------------------


def _check_config(config: RecordConfig) -> None:
    if config.seed + 2 * config.episodes > FIRST_EVALUATION_SEED:
        raise ToolkitError(
            f"seed={config.seed} with episodes={config.episodes} reaches the seeds that are kept for evaluation "
            f"({FIRST_EVALUATION_SEED} and up). Take a smaller seed."
        )
    if config.paraphrases and not config.split.paraphrases:
        raise ToolkitError(f"split={config.split.name} has no paraphrases. Leave paraphrases=true out.")


def _recorded_settings(target: Path) -> dict[str, Any] | None:
    """The settings of a recording that was made here; None for anything else."""
    if not (target / JSON).is_file():
        return None
    recording = read_json(target / JSON).get("recording")
    return recording.get("settings") if isinstance(recording, dict) else None


def _extends(target: Path, config: RecordConfig) -> bool:
    """Whether a recording is there that is the beginning of the wanted one."""
    recorded = _recorded_settings(target)
    return not config.overwrite and recorded is not None and _begins(recorded, settings_of(config))


def _begins(begun: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether what was begun needs nothing but perhaps more episodes; with fewer, recorded ones would be lost."""
    return begun | {"episodes": wanted["episodes"]} == wanted and begun.get("episodes", 0) <= wanted["episodes"]


def _take_apart(target: Path, work: Path, config: RecordConfig) -> None:
    """The episodes of a recording as single ones; a seed that it passed over is one that was given up."""
    whole = read_json(target / JSON)
    del whole["recording"]
    seeds = {episode["episode_seed"]: episode for episode in whole["episodes"]}
    for seed in set(range(config.seed, max(seeds))) - set(seeds):
        (work / f"{seed}{FAILED}").touch()
    with _readable(target / H5) as recording:
        for seed, episode in seeds.items():
            name = f"traj_{episode['episode_id']}"
            if name not in recording:
                raise ToolkitError(f"{target / H5}: has no {name}. Record anew: overwrite=true.")
            if not (work / f"{seed}.h5").is_file():
                write_json(work / f"{seed}.json", {**whole, "episodes": [{**episode, "episode_id": 0}]})
                with h5py.File(work / f"{seed}.partial-whole.h5", "w") as single:
                    recording.copy(name, single, name="traj_0")
                (work / f"{seed}.partial-whole.h5").replace(work / f"{seed}.h5")


@contextmanager
def _readable(path: Path) -> Iterator[h5py.File]:
    try:
        recording = h5py.File(path, "r")
    except OSError as error:
        raise ToolkitError(f"{path}: cannot be read ({error}). Record anew: overwrite=true.") from error
    with recording:
        yield recording


def _remove_leftover(work: Path, config: RecordConfig) -> None:
    """The single episodes of a finished recording that was killed before it could remove them."""
    if (work / SETTINGS).is_file() and read_json(work / SETTINGS) == settings_of(config):
        with file_lock(work):
            shutil.rmtree(work)


def _check_target(target: Path, config: RecordConfig) -> None:
    if not target.exists() and not target.is_symlink():
        return
    recorded = _recorded_settings(target)
    others = {path.name for path in target.iterdir()} - {H5, JSON} if target.is_dir() else {target.name}
    if recorded is None or others or target.is_symlink():
        raise ToolkitError(
            f"{target}: holds {min(others, default=JSON)}, which was not recorded here, so it is left as it is. Move "
            "it away, or choose another out=FOLDER."
        )
    if not config.overwrite and not _extends(target, config):
        raise ToolkitError(
            f"{target}: holds a recording with {_difference(recorded, settings_of(config))}. To record anew: "
            "overwrite=true; or choose another out=FOLDER."
        )


def _open_work(work: Path, config: RecordConfig) -> None:
    """The folder of single episodes: new, or as an interrupted recording of as many episodes or fewer left it."""
    begun = read_json(work / SETTINGS) if (work / SETTINGS).is_file() else settings_of(config)
    if not _begins(begun, settings_of(config)):
        if not config.overwrite:
            raise ToolkitError(
                f"{work}: a recording was begun with {_difference(begun, settings_of(config))}. Go on with the same "
                "settings, or begin anew: overwrite=true."
            )
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    for leftover in work.glob("*.partial-*"):
        leftover.unlink()
    _check_space(work, config)
    write_json(work / SETTINGS, settings_of(config))


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    changed = [f"{name}={old.get(name)} (now {new[name]})" for name in new if old.get(name) != new[name]]
    return ", ".join(changed) or "the same settings"


def _check_space(work: Path, config: RecordConfig) -> None:
    # While the single episodes become one file they are there twice.
    episodes = 2 * config.episodes - len(list(work.glob("*.h5")))
    needed = episodes * 2 * 3 * config.image_size**2 * FRAMES_PER_EPISODE * BYTES_PER_PIXEL
    if free_space(work) < needed:
        raise ToolkitError(
            f"{work.parent}: about {in_bytes(needed)} are needed and {in_bytes(free_space(work))} are free. Make "
            "room, choose another out=FOLDER, or a smaller image_size."
        )


# -- recording ---------------------------------------------------------------------------------------------------------


def _seeds(work: Path, config: RecordConfig) -> Iterator[int]:
    """The seeds of the recording in order, without end, those given up left out."""
    return (seed for seed in itertools.count(config.seed) if not (work / f"{seed}{FAILED}").exists())


def _record_missing(work: Path, config: RecordConfig) -> int:
    """Record every episode that is not there yet; returns their number."""
    seeds = _seeds(work, config)
    missing = [s for s in itertools.islice(seeds, config.episodes) if not (work / f"{s}.h5").is_file()]
    if not missing:
        return 0
    with _progress_bar() as bar, _pool(_job(work, config), min(config.workers, len(missing))) as pool:
        total, failed = config.episodes, 0
        task = bar.add_task(f"{config.split.name} {config.part}", total=total, completed=total - len(missing), note="")
        for outcome in _outcomes(pool, missing, seeds):
            failed += outcome.failed
            bar.update(task, advance=int(outcome.success), note=f"{failed} failed attempts" if failed else "")
            if not outcome.success:
                _give_up(work, outcome.seed, config)
    return len(missing)


def _give_up(work: Path, seed: int, config: RecordConfig) -> None:
    (work / f"{seed}{FAILED}").touch()
    count = len(list(work.glob(f"*{FAILED}")))
    if count > max(5, GIVEN_UP_AT_MOST * config.episodes):
        raise ToolkitError(
            f"The expert gave up {count} episodes of {config.split.name}: the task must have been changed so that it "
            "cannot be solved (simulation/factors.py, simulation/environment.py)."
        )


def _job(work: Path, config: RecordConfig) -> Job:
    instructions = (config.split.instruction, *config.split.paraphrases) if config.paraphrases else ()
    return Job(
        folder=work,
        split=config.split.name,
        part=config.part,
        image_size=config.image_size,
        render=config.render,
        recoveries=config.recoveries,
        instructions=instructions,
    )


@contextmanager
def _pool(job: Job, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes with an environment each, gone when the block ends, however it ends."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(job,))
    try:
        with one_thread_each():
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _outcomes(pool: ProcessPoolExecutor, missing: list[int], spare: Iterator[int]) -> Iterator[Outcome]:
    """One outcome after the other; for each seed that fails for good, a spare one is tried."""
    try:
        waiting: set[Future[Outcome]] = {pool.submit(_demonstrate, seed) for seed in missing}
        while waiting:
            ready, waiting = first_done(pool, waiting, "recording")
            for future in ready:
                yield future.result()
                if not future.result().success:
                    waiting.add(pool.submit(_demonstrate, next(spare)))
    except BrokenProcessPool as error:
        raise ToolkitError(
            "A worker process died, perhaps for lack of memory. What is recorded is kept: start again to go on, with "
            "fewer workers."
        ) from error


def _start(job: Job) -> None:
    # Only the worker processes load the simulator.
    from simulation import demonstrate

    demonstrate.start(job)


def _demonstrate(seed: int) -> Outcome:
    from simulation import demonstrate

    return demonstrate.demonstrate(seed)


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes"))
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True))


# -- one recording -----------------------------------------------------------------------------------------------------


def _join(work: Path, target: Path, config: RecordConfig) -> list[str]:
    """The single episodes, in order of their seeds, as one recording; says what it holds."""
    seeds = list(itertools.islice(_seeds(work, config), config.episodes))
    singles = [read_json(work / f"{seed}.json") for seed in seeds]
    episodes = [{**single["episodes"][0], "episode_id": number} for number, single in enumerate(singles)]
    failed = sum(episode["failed_attempts"] for episode in episodes)
    given_up = len(list(work.glob(f"*{FAILED}")))
    counts = {"failed_attempts": failed + ATTEMPTS * given_up, "given_up": given_up}
    with whole_folder(target, replace=config.overwrite or _extends(target, config)) as aside:
        with h5py.File(aside / H5, "w") as recording:
            for number, seed in enumerate(seeds):
                _copy_episode(work / f"{seed}.h5", recording, f"traj_{number}")
        write_json(
            aside / JSON,
            {**singles[0], "episodes": episodes, "recording": {"settings": settings_of(config), **counts}},
        )
        size = sum(path.stat().st_size for path in aside.iterdir())
    frames = sum(episode["elapsed_steps"] for episode in episodes)
    lines = [f"{target}: {len(episodes)} successful episodes, {frames} steps, {size / 1e6:.1f} MB"]
    if counts["failed_attempts"]:
        lines.append(f"  failed attempts, left out: {counts['failed_attempts']}; seeds replaced: {given_up}")
    return lines


def _copy_episode(path: Path, recording: h5py.File, name: str) -> None:
    try:
        with h5py.File(path, "r") as single:
            single.copy("traj_0", recording, name=name)
    except (OSError, KeyError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise ToolkitError(
            f"{path}: was damaged ({error}) and is removed. Start again: this episode is then recorded anew."
        ) from error
