"""Demonstrations of a conflict split in ManiSkill's own format, recorded by several processes, whole or not at all.

Single episodes, <seed>.h5 and <seed>.json (<seed>.failed for one that was given up), collect in
<out>/<split>/.<part>.recording/; when all are there they become trajectory.h5 and trajectory.json in
<out>/<split>/<part>/. Each depends on its seed only: neither the number of workers nor an interruption changes it, and
a finished recording becomes a longer one by recording what it lacks. Several processes, each with a share=i/n, may add
to one folder of single episodes."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py

from gr00t.errors import ToolkitError, disk_errors, free_space, in_bytes
from gr00t.file_reading import read_json
from gr00t.file_replacement import file_lock, lock_in_turn, whole_folder, write_json
from simulation.scenes import instruction_suite, require_rendering, require_simulator
from simulation.scenes.combinations import Strategy
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED
from simulation.scenes.suites import suite_of
from toolkit.declaration import key
from toolkit.processes import first_done, one_thread_each, worker_pool
from toolkit.progress import NOTE, progress_bar
from toolkit.shared_keys import (
    LARGEST_SEED,
    SUITE_PARTS,
    TRAIN_CONFLICT,
    SplitConfig,
    check_writable,
    parts_of,
    share_key,
    share_of,
)

EPISODES = 500
ATTEMPTS = 5  # at one episode, each in another style
SETTINGS, H5, JSON, FAILED = "settings.json", "trajectory.h5", "trajectory.json", ".failed"
BYTES_PER_PIXEL = 0.5  # compressed; twice what is measured, to err on the safe side
FRAMES_PER_EPISODE = 41
GIVEN_UP_AT_MOST = 0.2  # of the episodes

_demonstrator: Any = None  # in a worker process, its Demonstrator


@dataclass(kw_only=True)
class RecordConfig:
    """Record demonstrations of a conflict split in simulation, as ManiSkill would."""

    split: SplitConfig = key("the conflict split")
    part: str = key(
        "train, in which the cues agree, or conflict; of the instruction suite also unseen, the combinations that the "
        "strategy leaves out, and train_conflict, conflict scenes that dataset.conflict_share may train on",
        "train",
        choices=SUITE_PARTS,
    )
    strategy: str | None = key(
        "instruction suite: which combinations of the factors' values are recorded, none, single, random, diagonal, L, "
        "Lrandom, stair or complete, with numbers as in random_f6_v3_d1_n100 (6 combinations of the first 3 values of "
        "each factor, the draw 1 of them, 100 episodes); null for the suite's own",
        None,
    )
    combinations: int | None = key(
        "at most so many of the strategy's combinations; null for the number in its name", None, at_least=1
    )
    episodes: int | None = key(
        "successful episodes recorded; null for the number in the strategy's name, else 500; a finished recording can "
        "be made longer",
        None,
        at_least=1,
    )
    out: str = key("folder that receives <split>/<part>", "conflict_maniskill", folder=True)
    image_size: int = key("width and height of both cameras, pixels", 224, at_least=32, at_most=1024, multiple_of=2)
    seed: int = key("seed of the first episode; the others follow", 0, at_least=0, at_most=LARGEST_SEED)
    recoveries: float = key("part of the episodes in which the arm is pushed aside once", 0.0, at_least=0, at_most=1)
    paraphrases: bool = key("tell each episode's instruction in one of the split's ways", False)
    workers: int = key("processes, with a simulation each", 2, at_least=1)
    share: str | None = share_key("record")
    render: str = key("where images are rendered", "cpu", choices=("cpu", "gpu"))
    overwrite: bool = key("replace a recording that is already there", False)

    def check_here(self) -> None:
        """Refuse what cannot be recorded, also on another machine that sees the same folders."""
        check_writable("out", Path(self.out))
        _check_settings(self)
        if not self.is_recorded:
            _extends(self)
            _check_work(self)

    @property
    def target(self) -> Path:
        """The folder of the recording."""
        return Path(self.out) / self.split.name / self.part

    @property
    def work(self) -> Path:
        """The folder of single episodes."""
        return self.target.with_name(f".{self.part}.recording")

    @property
    def is_recorded(self) -> bool:
        """Whether these episodes are there and stay."""
        return not self.overwrite and _recorded_with(self.target) == settings_of(self)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of its split that a launch records; those that its strategy leaves nothing for are none."""
        wanted = suite_of(self.split.name).recorded_of(self.split.name)
        return tuple(p for p in wanted if p == "train" or (p != TRAIN_CONFLICT and _has_scenes(self, p)))

    @property
    def count(self) -> int:
        """The episodes of a `completed` configuration."""
        return self.episodes or EPISODES


def _has_scenes(config: RecordConfig, part: str) -> bool:
    with suppress(ToolkitError):
        return bool(completed(replace(config, part=part)))
    return False


def _check_settings(config: RecordConfig) -> RecordConfig:
    """Refuse settings that do not fit each other or the split; the completed configuration."""
    config = completed(config)
    if config.seed + 2 * config.count > FIRST_EVALUATION_SEED:
        raise ToolkitError(
            f"seed={config.seed} with episodes={config.episodes} reaches the seeds that are kept for evaluation "
            f"({FIRST_EVALUATION_SEED} and up). Take a smaller seed."
        )
    if config.paraphrases and config.strategy is None and not config.split.paraphrases:
        raise ToolkitError(f"split={config.split.name} has no paraphrases. Leave paraphrases=true out.")
    return config


def record(config: RecordConfig) -> list[str]:
    """Record one part of one split, or resume; returns what there is to say."""
    config = _check_settings(config)
    target, work = config.target, config.work
    if config.is_recorded:
        if _json(work / SETTINGS) == settings_of(config) and config.share is None:
            with file_lock(work):  # a recording that was killed when it was finished, before it could remove them
                shutil.rmtree(work)
        return [f"{target}: already holds these {config.count} episodes."]
    require_simulator()
    require_rendering(config.render)
    with disk_errors(target, "Make room, or choose another out=FOLDER."):
        work.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(work, shared=config.share is not None):
            with lock_in_turn(work.with_name(f"{work.name}.opening")):  # shares begin together
                extends = _extends(config)
                _open_work(config)
                if extends:
                    take_apart(target, work, config.seed)
            started, missing = time.monotonic(), _record_missing(config)
            if config.share is None:
                lines = _join_episodes(config, replace=config.overwrite or extends)
                shutil.rmtree(work)
            else:
                lines = [f"{work}: share {config.share} is there; the same without share=... joins all of them."]
    seconds = time.monotonic() - started
    return [*lines, f"  {missing} recorded now in {seconds:.0f} s, {60 * missing / seconds:.0f} a minute"]


def completed(config: RecordConfig) -> RecordConfig:
    """With the strategy by its canonical name (None for a suite that has none) and the number of episodes.

    Raises ToolkitError for a part or a strategy that the split does not have.
    """
    suite, name = suite_of(config.split.name), config.split.name
    if config.part not in parts_of(name):
        raise ToolkitError(f"part={config.part}: {name} is recorded in the parts {', '.join(parts_of(name))}.")
    if not suite.strategies and config.combinations is not None:
        raise ToolkitError(f"combinations={config.combinations}: {name} always shows all of them. Leave it out.")
    episode = suite.sample(name, "train", config.seed, config.strategy)
    if not isinstance(episode, instruction_suite.InstructedEpisode):
        return replace(config, episodes=config.count)
    named = Strategy.read(config.strategy or episode.strategy)
    chosen = replace(named, combinations=config.combinations or named.combinations)
    suite.sample(name, config.part, config.seed, chosen.text)  # refuses `unseen` where nothing is left for it
    episodes = config.episodes or chosen.episodes or EPISODES
    return replace(config, strategy=chosen.text, combinations=None, episodes=episodes)


def settings_of(config: RecordConfig) -> dict[str, Any]:
    """What decides which episodes a recording holds and what they look like."""
    config = completed(config)
    names = ("part", "episodes", "seed", "image_size", "recoveries", "paraphrases")
    settings = {"split": config.split.name, **{name: getattr(config, name) for name in names}}
    settings |= {"strategy": config.strategy} if config.strategy else {}
    # Earlier versions recorded the push too; their episodes and these do not belong in one recording.
    return settings | ({"begins_after_push": True} if config.recoveries else {})


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is missing."""
    return read_json(path) if path.is_file() else {}


def _recorded_with(target: Path) -> dict[str, Any] | None:
    """The settings of a recording that was made here."""
    settings: dict[str, Any] | None = _json(target / JSON).get("recording", {}).get("settings")
    return settings


def _begins(begun: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether what was begun needs nothing but perhaps more episodes; with fewer, recorded ones would be lost."""
    return begun | {"episodes": wanted["episodes"]} == wanted and begun.get("episodes", 0) <= wanted["episodes"]


def _extends(config: RecordConfig) -> bool:
    """Whether the recording there, of these settings, is to be made longer; what may not be replaced is refused."""
    target = config.target
    if not target.exists() and not target.is_symlink():
        return False
    recorded = _recorded_with(target)
    others = {path.name for path in target.iterdir()} - {H5, JSON} if target.is_dir() else {target.name}
    if recorded is None or others or target.is_symlink():
        raise ToolkitError(
            f"{target}: holds {min(others, default=JSON)}, which was not recorded here, so it is left as it is. Move "
            "it away, or choose another out=FOLDER."
        )
    _refuse_others(target, config, recorded)
    return not config.overwrite


def _refuse_others(place: Path, config: RecordConfig, begun: dict[str, Any]) -> None:
    """Refuse to replace a recording of other settings, or to make it shorter, unless that was asked for."""
    wanted = settings_of(config)
    if not config.overwrite and not _begins(begun, wanted):
        changed = [f"{name}={begun.get(name)} (now {new})" for name, new in wanted.items() if begun.get(name) != new]
        raise ToolkitError(
            f"{place}: holds a recording with {', '.join(changed) or 'the same settings'}. Take the same settings, "
            "choose another out=FOLDER, or replace it: overwrite=true."
        )


def _check_work(config: RecordConfig) -> bool:
    """Whether single episodes are of another recording and go; refuses that where they may not."""
    begun = _json(config.work / SETTINGS) or settings_of(config)
    _refuse_others(config.work, config, begun)
    if _begins(begun, settings_of(config)):
        return False
    if config.share is not None:
        raise ToolkitError(
            f"{config.work}: holds an interrupted recording of other settings, which a share does not remove, for "
            "others may be at it. Remove it, or choose another out=FOLDER."
        )
    return True


def _open_work(config: RecordConfig) -> None:
    """The folder of single episodes: new, or as an interrupted recording of as many episodes or fewer left it."""
    work = config.work
    if _check_work(config):
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    for leftover in work.glob("*.partial-*") if config.share is None else ():  # another share may be writing it
        leftover.unlink()
    # While the single episodes become one file they are there twice.
    episodes = 2 * config.count - len(list(work.glob("*.h5")))
    needed = episodes * 2 * 3 * config.image_size**2 * FRAMES_PER_EPISODE * BYTES_PER_PIXEL
    if free_space(work) < needed:
        raise ToolkitError(
            f"{work.parent}: about {in_bytes(needed)} are needed and {in_bytes(free_space(work))} are free. Make "
            "room, choose another out=FOLDER, or a smaller image_size."
        )
    write_json(work / SETTINGS, settings_of(config))


def _record_missing(config: RecordConfig) -> int:
    """Record every episode that is not there yet, a spare one for each that is given up; returns their number.

    A share takes its part of the seeds that come first, and leaves spare ones to the process that joins.
    """
    seeds = _seeds(config)
    wanted = list(itertools.islice(seeds, config.count))
    if config.share is not None:
        own = range(config.seed, config.seed + config.count)[share_of(config.share)]
        wanted = [seed for seed in wanted if seed in own]
    missing = [seed for seed in wanted if not (config.work / f"{seed}.h5").is_file()]
    bar, failed, done = progress_bar(NOTE, unit="episodes", show=bool(missing)), 0, len(wanted) - len(missing)
    task = bar.add_task(f"{config.split.name} {config.part}", total=len(wanted), completed=done, note="")
    try:
        with bar, one_thread_each(), worker_pool(min(config.workers, len(missing) or 1)) as pool:
            waiting = {pool.submit(_demonstrate, config, seed): seed for seed in missing}
            while waiting:
                for future in first_done(pool, set(waiting), "recording")[0]:
                    seed, failures = waiting.pop(future), future.result()
                    failed += ATTEMPTS if failures is None else failures
                    bar.update(task, advance=failures is not None, note=f"{failed} failed attempts" if failed else "")
                    if failures is None:
                        _give_up(config, seed)
                        for spare in [next(seeds)] if config.share is None else []:
                            waiting[pool.submit(_demonstrate, config, spare)] = spare
    except BrokenProcessPool as error:
        raise ToolkitError(
            "A worker process died, perhaps for lack of memory. What is recorded is kept: start again, with "
            "fewer workers."
        ) from error
    return len(missing)


def _demonstrate(config: RecordConfig, seed: int) -> int | None:
    """In a worker process, which makes its Demonstrator once: record one episode."""
    # Only the worker processes load the simulator.
    from simulation.record.demonstration import Demonstrator

    global _demonstrator
    _demonstrator = _demonstrator or Demonstrator(config)
    return _demonstrator.demonstrate(seed)


def _give_up(config: RecordConfig, seed: int) -> None:
    (config.work / f"{seed}{FAILED}").touch()
    count = len(list(config.work.glob(f"*{FAILED}")))
    if count > max(5, GIVEN_UP_AT_MOST * config.count):
        raise ToolkitError(
            f"The expert gave up {count} episodes of {config.split.name}: the task must have been changed so that it "
            "cannot be solved (simulation/scenes/suites.py, simulation/scenes/environment.py)."
        )


# -- single episodes and recordings ------------------------------------------------------------------------------------


def _seeds(config: RecordConfig) -> Iterator[int]:
    """The seeds of a recording in order, without end, those given up left out."""
    return (seed for seed in itertools.count(config.seed) if not (config.work / f"{seed}{FAILED}").exists())


def _join_episodes(config: RecordConfig, *, replace: bool) -> list[str]:
    """The single episodes as one recording, whose .json states what it holds; says that too."""
    work, facts = config.work, dict[str, Any](settings=settings_of(config))
    if config.strategy is not None:
        name = config.split.name
        chosen, _ = instruction_suite.combinations(name, config.strategy)
        facts |= {"strategy": config.strategy, "factors": suite_of(name).cues(name), "combinations": chosen}
    seeds = list(itertools.islice(_seeds(config), config.count))
    singles = [read_json(work / f"{seed}.json") for seed in seeds]
    episodes = [{**single["episodes"][0], "episode_id": number} for number, single in enumerate(singles)]
    given_up = len(list(work.glob(f"*{FAILED}")))
    failed = sum(episode["failed_attempts"] for episode in episodes) + ATTEMPTS * given_up
    facts |= {"failed_attempts": failed, "given_up": given_up}
    with whole_folder(config.target, replace=replace) as aside:
        with h5py.File(aside / H5, "w") as whole:
            for number, seed in enumerate(seeds):
                _add(work / f"{seed}.h5", whole, f"traj_{number}")
        write_json(aside / JSON, {**singles[0], "episodes": episodes, "recording": facts})
        size = sum(path.stat().st_size for path in aside.iterdir())
    frames = sum(episode["elapsed_steps"] for episode in episodes)
    failures = [f"  failed attempts, left out: {failed}; seeds replaced: {given_up}"] if failed else []
    return [f"{config.target}: {len(episodes)} successful episodes, {frames} steps, {size / 1e6:.1f} MB", *failures]


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
