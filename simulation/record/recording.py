"""Recordings that are made by several processes, outlive being killed, and appear whole or not at all.

Single episodes collect in <out>/<split>/.<part>.recording/; when all are there they become one trajectory.h5 and
trajectory.json in <out>/<split>/<part>/. Each episode depends on its seed only, so neither the number of workers nor an
interruption changes what is recorded, and a finished recording becomes a longer one by recording what it lacks."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError, disk_errors, free_space, in_bytes
from gr00t.file_replacement import file_lock, read_json, whole_folder, write_json
from gr00t.processes import first_done, one_thread_each
from simulation.record import ATTEMPTS, RecordConfig
from simulation.record.trajectory_files import FAILED, H5, JSON, join_episodes, seeds_from, take_apart
from simulation.scenes import require_rendering, require_simulator
from simulation.scenes.factors import FIRST_EVALUATION_SEED, split_factors
from toolkit.progress import NOTE, progress_bar

SETTINGS = "settings.json"
BYTES_PER_PIXEL = 0.5  # compressed; twice what is measured, to err on the safe side
FRAMES_PER_EPISODE = 41
GIVEN_UP_AT_MOST = 0.2  # of the episodes


def record(config: RecordConfig) -> list[str]:
    """Record one part of one split, or resume; returns what there is to say.

    Raises ToolkitError for anything the user can mend.
    """
    split_factors(config.split.name)
    if config.seed + 2 * config.episodes > FIRST_EVALUATION_SEED:
        raise ToolkitError(
            f"seed={config.seed} with episodes={config.episodes} reaches the seeds that are kept for evaluation "
            f"({FIRST_EVALUATION_SEED} and up). Take a smaller seed."
        )
    if config.paraphrases and not config.split.paraphrases:
        raise ToolkitError(f"split={config.split.name} has no paraphrases. Leave paraphrases=true out.")
    target = Path(config.out) / config.split.name / config.part
    work = target.with_name(f".{config.part}.recording")
    settings = settings_of(config)
    if not config.overwrite and _recorded_settings(target) == settings:
        if (work / SETTINGS).is_file() and read_json(work / SETTINGS) == settings:
            with file_lock(work):  # a recording that was killed when it was finished, before it could remove them
                shutil.rmtree(work)
        return [f"{target}: already holds these {config.episodes} episodes."]
    require_simulator()
    require_rendering(config.render)
    with disk_errors(target, "Make room, or choose another out=FOLDER."):
        work.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(work):
            extends = _extends(target, config)
            _open_work(work, config)
            if extends:
                take_apart(target, work, config.seed)
            started, recorded = time.monotonic(), _record_missing(work, config)
            lines = _join(work, target, config, replace=config.overwrite or extends)
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


def _recorded_settings(target: Path) -> dict[str, Any] | None:
    """The settings of a recording that was made here; None for anything else."""
    if not (target / JSON).is_file():
        return None
    recording = read_json(target / JSON).get("recording")
    return recording.get("settings") if isinstance(recording, dict) else None


def _begins(begun: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether what was begun needs nothing but perhaps more episodes; with fewer, recorded ones would be lost."""
    return begun | {"episodes": wanted["episodes"]} == wanted and begun.get("episodes", 0) <= wanted["episodes"]


def _extends(target: Path, config: RecordConfig) -> bool:
    """Whether a recording is there that is the beginning of the wanted one; what may not be replaced is refused."""
    if not target.exists() and not target.is_symlink():
        return False
    recorded = _recorded_settings(target)
    others = {path.name for path in target.iterdir()} - {H5, JSON} if target.is_dir() else {target.name}
    if recorded is None or others or target.is_symlink():
        raise ToolkitError(
            f"{target}: holds {min(others, default=JSON)}, which was not recorded here, so it is left as it is. Move "
            "it away, or choose another out=FOLDER."
        )
    if not config.overwrite and not _begins(recorded, settings_of(config)):
        raise ToolkitError(
            f"{target}: holds a recording with {_difference(recorded, settings_of(config))}. To record anew: "
            "overwrite=true; or choose another out=FOLDER."
        )
    return not config.overwrite


def _open_work(work: Path, config: RecordConfig) -> None:
    """The folder of single episodes: new, or as an interrupted recording of as many episodes or fewer left it."""
    settings = settings_of(config)
    begun = read_json(work / SETTINGS) if (work / SETTINGS).is_file() else settings
    if not _begins(begun, settings):
        if not config.overwrite:
            raise ToolkitError(
                f"{work}: a recording was begun with {_difference(begun, settings)}. Go on with the same "
                "settings, or begin anew: overwrite=true."
            )
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    for leftover in work.glob("*.partial-*"):
        leftover.unlink()
    # While the single episodes become one file they are there twice.
    episodes = 2 * config.episodes - len(list(work.glob("*.h5")))
    needed = episodes * 2 * 3 * config.image_size**2 * FRAMES_PER_EPISODE * BYTES_PER_PIXEL
    if free_space(work) < needed:
        raise ToolkitError(
            f"{work.parent}: about {in_bytes(needed)} are needed and {in_bytes(free_space(work))} are free. Make "
            "room, choose another out=FOLDER, or a smaller image_size."
        )
    write_json(work / SETTINGS, settings)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    changed = [f"{name}={old.get(name)} (now {new[name]})" for name in new if old.get(name) != new[name]]
    return ", ".join(changed) or "the same settings"


# -- recording ---------------------------------------------------------------------------------------------------------


def _record_missing(work: Path, config: RecordConfig) -> int:
    """Record every episode that is not there yet, a spare one for each that is given up; returns their number."""
    seeds = seeds_from(config.seed, work)
    missing = [seed for seed in itertools.islice(seeds, config.episodes) if not (work / f"{seed}.h5").is_file()]
    if not missing:
        return 0
    bar = progress_bar(NOTE, unit="episodes", show=True)
    with bar, _worker_pool(work, config, min(config.workers, len(missing))) as pool:
        total, failed = config.episodes, 0
        task = bar.add_task(f"{config.split.name} {config.part}", total=total, completed=total - len(missing), note="")
        waiting: dict[Future[int | None], int] = {pool.submit(_demonstrate, seed): seed for seed in missing}
        while waiting:
            for future in first_done(pool, set(waiting), "recording")[0]:
                seed, failures = waiting.pop(future), future.result()
                failed += ATTEMPTS if failures is None else failures
                bar.update(task, advance=failures is not None, note=f"{failed} failed attempts" if failed else "")
                if failures is not None:
                    continue
                (work / f"{seed}{FAILED}").touch()
                count = len(list(work.glob(f"*{FAILED}")))
                if count > max(5, GIVEN_UP_AT_MOST * config.episodes):
                    raise ToolkitError(
                        f"The expert gave up {count} episodes of {config.split.name}: the task must have been changed "
                        "so that it cannot be solved (simulation/scenes/factors.py, simulation/scenes/environment.py)."
                    )
                spare = next(seeds)
                waiting[pool.submit(_demonstrate, spare)] = spare
    return len(missing)


@contextmanager
def _worker_pool(work: Path, config: RecordConfig, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes with an environment each, gone when the block ends, however it ends."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(config, work))
    try:
        with one_thread_each():
            yield pool
    except BrokenProcessPool as error:
        raise ToolkitError(
            "A worker process died, perhaps for lack of memory. What is recorded is kept: start again to go on, with "
            "fewer workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(config: RecordConfig, work: Path) -> None:
    # Only the worker processes load the simulator.
    from simulation.record.demonstration import Demonstrator

    global _demonstrator
    _demonstrator = Demonstrator(config, work)


def _demonstrate(seed: int) -> int | None:
    return _demonstrator.demonstrate(seed)


_demonstrator: Any  # in a worker process, its Demonstrator


def _join(work: Path, target: Path, config: RecordConfig, *, replace: bool) -> list[str]:
    """The single episodes, in order of their seeds, as one recording; says what it holds."""
    seeds = list(itertools.islice(seeds_from(config.seed, work), config.episodes))
    singles = [read_json(work / f"{seed}.json") for seed in seeds]
    episodes = [{**single["episodes"][0], "episode_id": number} for number, single in enumerate(singles)]
    given_up = len(list(work.glob(f"*{FAILED}")))
    failed = sum(episode["failed_attempts"] for episode in episodes) + ATTEMPTS * given_up
    recording = {"settings": settings_of(config), "failed_attempts": failed, "given_up": given_up}
    with whole_folder(target, replace=replace) as aside:
        join_episodes(work, seeds, aside / H5)
        write_json(aside / JSON, {**singles[0], "episodes": episodes, "recording": recording})
        size = sum(path.stat().st_size for path in aside.iterdir())
    frames = sum(episode["elapsed_steps"] for episode in episodes)
    lines = [f"{target}: {len(episodes)} successful episodes, {frames} steps, {size / 1e6:.1f} MB"]
    if failed:
        lines.append(f"  failed attempts, left out: {failed}; seeds replaced: {given_up}")
    return lines
