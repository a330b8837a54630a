"""Render cue probes: pairs of first frames of which one thing differs, for evaluations during training.

python -m simulation.probes split=color_object
python -m simulation.probes split=instruction/color_object pairs=100 image_size=128
python -m simulation.probes --help"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gr00t.errors import ToolkitError, disk_errors
from simulation.scenes import require_rendering, require_simulator, settle_in
from simulation.scenes.paired_scenes import PairedScene, paired_scenes
from simulation.scenes.suites import PLATE, suite_of
from toolkit.command_line import run_main
from toolkit.composition import read_yaml
from toolkit.declaration import key
from toolkit.installation import CONFIG_DIR
from toolkit.processes import first_done, one_thread_each, worker_pool
from toolkit.progress import NOTE, progress_bar
from toolkit.shared_keys import SplitConfig, check_writable

if TYPE_CHECKING:
    from finetune.open_loop.probe_set import ProbeSet
    from simulation.scenes.first_frames import FirstFrame

FIRST_SEED = 1_000_000_000  # far above those of recordings, and of evaluations, which begin at a million
ATTEMPTS = 5  # seeds for a pair, until the expert reaches its objects

_photographer: Any = None  # in a worker process, its Photographer


@dataclass(kw_only=True)
class ProbesConfig:
    """Render pairs of scenes that differ in one thing, in which train.probes sees what a policy goes by."""

    split: SplitConfig = key("the conflict split")
    out: str = key("new folder that receives the probes", "probes/${split.name}", folder=True)
    pairs: int = key("pairs of scenes for each thing that is changed", 40, at_least=1, at_most=1000)
    strategy: str | None = key(
        "instruction suite: the strategy by which the training's recordings were made; null for the suite's own", None
    )
    image_size: int = key("width and height of both cameras, pixels, as recorded", 224, at_least=32, at_most=1024)
    workers: int = key("processes, with a simulation each", 2, at_least=1)
    render: str = key("where images are rendered", "cpu", choices=("cpu", "gpu"))

    def check_here(self) -> None:
        """Refuse a split without scenes, a strategy that it has not, and a folder that is there."""
        paired_scenes(self.split.name, FIRST_SEED, self.strategy, ("", ""))
        check_writable("out", Path(self.out))
        if Path(self.out).exists():
            raise ToolkitError(f"out={self.out} exists already. Remove it, or choose another, out=FOLDER.")


def make_probes(config: ProbesConfig) -> ProbeSet:
    """Render the scenes and write the set, which does not depend on the number of workers."""
    require_simulator()
    require_rendering(config.render)
    groups: list[list[tuple[PairedScene, FirstFrame]]] = []
    with progress_bar(NOTE, unit="pairs") as bar, one_thread_each(), worker_pool(config.workers) as pool:
        task = bar.add_task(config.split.name, total=config.pairs, note="")
        try:
            for future in [pool.submit(_show, config, number) for number in range(config.pairs)]:
                first_done(pool, {future}, "rendering")
                groups += future.result()
                bar.update(task, advance=1)
        except BrokenProcessPool as error:
            raise ToolkitError("A worker process died, perhaps for lack of memory. Start again, workers=1.") from error
    probes = _joined(config.split.name, groups)
    facts = {"pairs": config.pairs, "strategy": config.strategy, "image_size": config.image_size}
    with disk_errors(Path(config.out), "Make room, or choose another out=FOLDER."):
        probes.write(Path(config.out), facts)
    return probes


def _show(config: ProbesConfig, number: int) -> list[list[tuple[PairedScene, FirstFrame]]]:
    """In a worker process: a first scene and those that differ from it, each with its start; the same of a conflict."""
    # Only the worker processes load the simulator.
    from simulation.scenes.expert import Unreachable
    from simulation.scenes.first_frames import Photographer

    global _photographer
    split, suite, sentences = config.split.name, suite_of(config.split.name), ("", "")
    if _photographer is None:
        settle_in()
        _photographer = Photographer(split, image_size=config.image_size, render=config.render)
    if suite is PLATE:
        a, b = suite.cues(split)
        other = str(read_yaml(CONFIG_DIR / "split" / f"{b}_{a}.yaml")["instruction"])
        sentences = str(config.split.instruction), other
    for attempt in range(ATTEMPTS):
        groups = paired_scenes(split, FIRST_SEED + number + attempt * config.pairs, config.strategy, sentences)
        with suppress(Unreachable):
            return [[(scene, _photographer.show(scene.episode)) for scene in group] for group in groups]
    raise ToolkitError(f"{split}: the expert does not reach the objects of {ATTEMPTS} seeds; its scenes have changed.")


def _joined(split: str, groups: list[list[tuple[PairedScene, FirstFrame]]]) -> ProbeSet:
    """All scenes as one set."""
    # PyTorch, which --help should not wait for.
    from finetune.open_loop.probe_set import Probe, ProbeSet

    probes, frames = list[Probe](), [frame for group in groups for _, frame in group]
    for group in groups:
        first, conflict = len(probes), group[0][0].episode.lure is not None
        for scene, _ in group:
            whole, asked = scene.episode, scene.instruction
            probes.append(Probe(scene.change, first, conflict, asked, whole.target, scene.other, whole.describe()))
    most = max(len(frame.toward) for frame in frames)
    missing = [((0, most - len(frame.toward)), (0, 0), (0, 0)) for frame in frames]
    toward = [np.pad(f.toward, pad, constant_values=np.nan) for f, pad in zip(frames, missing, strict=True)]
    images = {camera: np.stack([frame.images[camera] for frame in frames]) for camera in frames[0].images}
    return ProbeSet(split, probes, images, np.stack([frame.state for frame in frames]), np.stack(toward))


def main(config: ProbesConfig) -> None:
    """Render and say what there is."""
    probes = make_probes(config)
    changes = ", ".join(dict.fromkeys(probe.change for probe in probes.probes if probe.change))
    print(f"{config.out}: {len(probes.probes)} scenes, {config.pairs} pairs each of {changes}.")


if __name__ == "__main__":
    run_main(main, "probes")
