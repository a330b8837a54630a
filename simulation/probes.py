"""Render cue probes: pairs of first frames of which one thing differs, for evaluations during training.

python -m simulation.probes split=color_object
python -m simulation.probes split=instruction/color_object pairs=100 image_size=128
python -m simulation.probes --help"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.open_loop.probe_set import Probe, ProbeSet
from finetune.recipe.train_config import PROBES
from gr00t.errors import ToolkitError, disk_errors
from gr00t.processes import first_done, one_thread_each, worker_pool
from simulation.scenes import require_rendering, require_simulator
from simulation.scenes.paired_scenes import PairedScene, scenes_of
from simulation.scenes.suites import PLATE, suite_of
from toolkit.command_line import run_main
from toolkit.composition import read_yaml
from toolkit.declaration import key
from toolkit.installation import CONFIG_DIR
from toolkit.progress import NOTE, progress_bar
from toolkit.shared_keys import SplitConfig, check_writable

if TYPE_CHECKING:
    from simulation.scenes.first_frames import FirstFrame

FIRST_SEED = 1_000_000_000  # far above those of recordings, and of evaluations, which begin at a million
GIVEN_UP_AT_MOST = 0.2  # of the seeds

Shown = list[tuple[PairedScene, "FirstFrame"]]

_photographer: Any = None  # in a worker process, its Photographer


@dataclass(kw_only=True)
class ProbesConfig:
    """Render pairs of scenes that differ in one thing, in which train.probes sees what a policy goes by."""

    split: SplitConfig = key("the conflict split")
    out: str = key("folder that receives the probes", "probes/${split.name}", folder=True)
    pairs: int = key("pairs of scenes for each thing that is changed", 40, at_least=1, at_most=1000)
    strategy: str | None = key(
        "instruction suite: the strategy by which the training's recordings were made; null for the suite's own", None
    )
    image_size: int = key("width and height of both cameras, pixels; as recorded", 224, at_least=32, at_most=1024)
    workers: int = key("processes, with a simulation each", 2, at_least=1)
    render: str = key("where images are rendered", "cpu", choices=("cpu", "gpu"))
    overwrite: bool = key("replace probes that are already there", False)

    def check_here(self) -> None:
        """Refuse a split without scenes, a strategy that it has not, and a folder that holds something else."""
        scenes_of(self.split.name, FIRST_SEED, self.strategy, ("", ""))
        out = Path(self.out)
        check_writable("out", out)
        if not out.exists():
            return
        if not (out / PROBES).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise ToolkitError(f"out={out} holds something else than probes. Choose another, out=FOLDER.")
        if (out / PROBES).is_file() and not self.overwrite:
            raise ToolkitError(f"out={out} holds probes already. Choose another, or replace them: overwrite=true.")


def make_probes(config: ProbesConfig) -> ProbeSet:
    """Render the scenes and write the set."""
    require_simulator()
    require_rendering(config.render)
    split, found = config.split.name, list[Shown]()
    with progress_bar(NOTE, unit="seeds") as bar, one_thread_each(), worker_pool(config.workers) as pool:
        task = bar.add_task(split, total=config.pairs, note="")
        for shown in _in_order(pool, config):
            found.append(shown)
            bar.update(task, advance=1)
    probes = _joined(split, [group for shown in found for group in _groups(shown)])
    facts = {"pairs": config.pairs, "strategy": config.strategy, "image_size": config.image_size}
    with disk_errors(Path(config.out), "Make room, or choose another out=FOLDER."):
        probes.write(Path(config.out), facts)
    return probes


def _in_order(pool: ProcessPoolExecutor, config: ProbesConfig) -> Iterator[Shown]:
    """The scenes of config.pairs seeds, from FIRST_SEED on, in their order; seeds that the expert gives up are left
    out, so the set does not depend on the number of workers."""
    seeds, most = itertools.count(FIRST_SEED), config.pairs + max(5, int(GIVEN_UP_AT_MOST * config.pairs))
    ahead = [pool.submit(_show, config, seed) for seed in itertools.islice(seeds, config.pairs)]
    try:
        while ahead:
            future = ahead.pop(0)
            first_done(pool, {future}, "rendering")
            if (shown := future.result()) is not None:
                yield shown
            elif (seed := next(seeds)) < FIRST_SEED + most:
                ahead.append(pool.submit(_show, config, seed))
            else:
                raise ToolkitError(f"The expert reaches too few objects of {config.split.name}: the scenes changed.")
    except BrokenProcessPool as error:
        raise ToolkitError("A worker process died, perhaps for lack of memory. Start again, workers=1.") from error


def _show(config: ProbesConfig, seed: int) -> Shown | None:
    """In a worker process: the scenes of a seed, each with its start; None where an object is out of reach."""
    # Only the worker processes load the simulator.
    from gr00t.processes import settle_in
    from simulation.scenes.expert import Unreachable
    from simulation.scenes.first_frames import Photographer

    global _photographer
    if _photographer is None:
        settle_in()
        _photographer = Photographer(config.split.name, image_size=config.image_size, render=config.render)
    scenes = scenes_of(config.split.name, seed, config.strategy, sentences(config.split))
    try:
        return [(scene, _photographer.show(scene.episode)) for group in scenes for scene in group]
    except Unreachable:
        return None


def sentences(split: SplitConfig) -> tuple[str, str]:
    """The plate suite's instruction, and that of the split with the cues exchanged; the other suite's scenes have
    sentences of their own."""
    if suite_of(split.name) is not PLATE:
        return "", ""
    a, b = PLATE.cues(split.name)
    return str(split.instruction), str(read_yaml(CONFIG_DIR / "split" / f"{b}_{a}.yaml")["instruction"])


def _groups(shown: Shown) -> Iterator[Shown]:
    """Each first scene with those that differ from it."""
    starts = [i for i, (scene, _) in enumerate(shown) if scene.change is None]
    yield from (shown[first:last] for first, last in itertools.pairwise([*starts, len(shown)]))


def _joined(split: str, groups: list[Shown]) -> ProbeSet:
    """All scenes as one set."""
    probes, frames = list[Probe](), [frame for group in groups for _, frame in group]
    for group in groups:
        first, conflict = len(probes), group[0][0].episode.lure is not None
        for scene, _ in group:
            episode, asked = scene.episode, scene.instruction
            probes.append(Probe(scene.change, first, conflict, asked, episode.target, scene.other, episode.describe()))
    most = max(len(frame.toward) for frame in frames)
    toward = np.full((len(frames), most, *frames[0].toward.shape[1:]), np.nan, np.float32)
    for row, frame in zip(toward, frames, strict=True):
        row[: len(frame.toward)] = frame.toward
    images = {camera: np.stack([frame.images[camera] for frame in frames]) for camera in frames[0].images}
    return ProbeSet(split, probes, images, np.stack([frame.state for frame in frames]), toward)


def main(config: ProbesConfig) -> None:
    """Render and say what there is."""
    probes = make_probes(config)
    changes = ", ".join(dict.fromkeys(probe.change for probe in probes.probes if probe.change))
    print(f"{config.out}: {len(probes)} scenes, {config.pairs} pairs each of {changes}. Train with train.probes=...")


if __name__ == "__main__":
    run_main(main, "probes")
