"""Render cue probes: pairs of first frames of which one thing differs, for evaluations during training.

python -m simulation.probes split=color_object
python -m simulation.probes split=instruction/color_object pairs=100 image_size=128
python -m simulation.probes --help"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gr00t.errors import ToolkitError, disk_errors
from simulation.scenes import instruction_suite, require_rendering, require_simulator, settle_in
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.plate_suite import Episode, other_instruction
from simulation.scenes.single_factor import other_sentence
from simulation.scenes.suites import PLATE, suite_of
from simulation.scenes.verbs import suits
from toolkit.command_line import run_main
from toolkit.declaration import key
from toolkit.processes import first_done, one_thread_each, worker_pool
from toolkit.progress import NOTE, progress_bar
from toolkit.shared_keys import SplitConfig, check_writable

if TYPE_CHECKING:
    from finetune.open_loop.probe_set import ProbeSet
    from simulation.scenes.environment import ConflictPickEnv

FIRST_SEED = 1_000_000_000  # far above those of recordings, and of evaluations, which begin at a million
ATTEMPTS = 5  # seeds for a pair, until the expert reaches its objects
STEPS = 32  # of the expert's way to an object, 1/20 s each
PLACES = ("position", "spatial")

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

    global _photographer
    split, sentences = config.split.name, ("", "")
    if _photographer is None:
        settle_in()
        _photographer = Photographer(split, image_size=config.image_size, render=config.render)
    if suite_of(split) is PLATE:
        sentences = str(config.split.instruction), other_instruction(split)
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


# -- scenes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedScene:
    """A scene and what is asked of the policy in it. change: what differs from the first scene, None for that itself;
    other: the index of the object that takes part beside episode.target."""

    change: str | None
    episode: Episode | InstructedEpisode
    instruction: str
    other: int


def paired_scenes(split: str, seed: int, strategy: str | None, sentences: tuple[str, str]) -> list[list[PairedScene]]:
    """Of this seed a scene in which the cues agree and, where the split has one, a conflict: each the first of a list
    of scenes that differ from it in one thing: by what changes a policy's heading, it can be seen what it goes by.

    Two objects take part: the target, and one other (in conflict the lure). A factor is changed by exchanging their
    values of it, a place by exchanging where they lie; where both have the same value, the other one gets another. All
    else stays, each object's index and yaw included. `instruction` is the sentence that names the other object (in the
    plate suite, in conflict, the one that names the other cue), `verb` the sentence with a verb that recordings pair
    with the other object, `plate` a plate that shows the other object's values of both cues. sentences: the plate
    suite's instruction, and the one for its other cue.
    """
    chosen = suite_of(split)
    parts = [part for part in chosen.evaluated_of(split) if part in (chosen.evaluated[0], "conflict")]
    alone = {"no_distractor_prob": 0.0} if split == instruction_suite.ALL else {}
    return [list(_variants(chosen.sample(split, part, seed, strategy, **alone), sentences)) for part in parts]


def _variants(episode: Any, sentences: tuple[str, str]) -> Iterator[PairedScene]:
    plate_suite = isinstance(episode, Episode)
    asked = sentences[0] if plate_suite else episode.instruction
    beside = [i for i, body in enumerate(episode.objects) if i != episode.target and body.size != "medium"]
    other = beside[0] if episode.lure is None else episode.lure
    yield PairedScene(None, episode, asked, other)
    if episode.lure is not None:
        if plate_suite:
            yield PairedScene("instruction", episode, sentences[1], other)
        return
    for factor in suite_of(episode.split).factors:
        if factor != "verb":
            yield PairedScene(factor, _with_factor(episode, factor, other), asked, other)
    if plate_suite:
        yield PairedScene("plate", _with_plate(episode, other), asked, other)
        return
    yield PairedScene("instruction", episode, other_sentence(episode), other)
    if verbs := _other_verbs(episode, other):
        named = {**episode.named, "verb": _rng(episode).choice(verbs)}
        spoken = replace(episode, named=named, instruction=instruction_suite.sentence(named))
        yield PairedScene("verb", spoken, spoken.instruction, other)


def _rng(episode: Any) -> random.Random:
    return random.Random(f"{episode.split}/{episode.seed}/changed")


def _with_factor(episode: Any, factor: str, other: int) -> Any:
    objects, target = list(episode.objects), episode.target
    fields = (factor, "x", "y") if factor in PLACES else (factor,)
    mine, theirs = ({name: getattr(objects[i], name) for name in fields} for i in (target, other))
    if mine == theirs:
        values = ("small", "large") if factor == "size" else suite_of(episode.split).factors[factor]
        verb = getattr(episode, "verb", "lift")
        mine = {factor: _rng(episode).choice([v for v in values if v != mine[factor] and suits(verb, v)])}
    objects[target], objects[other] = replace(objects[target], **theirs), replace(objects[other], **mine)
    return replace(episode, objects=tuple(objects))


def _with_plate(episode: Episode, other: int) -> Episode:
    plate = episode.plate
    shown: dict[str, Any] = {cue: episode.objects[other][cue] for cue in suite_of(episode.split).cues(episode.split)}
    moved = shown.get("position", plate.position) != plate.position
    return replace(episode, plate=replace(plate, **shown, y=-plate.y if moved else plate.y))


def _other_verbs(episode: InstructedEpisode, other: int) -> list[str]:
    """Verbs that were recorded with the other object's value and not with the target's; none but in verb_<b>."""
    paired, factor = instruction_suite._paired(episode.split, episode.strategy), list(episode.named)[-1]
    mine, theirs = (getattr(episode.objects[i], factor) for i in (episode.target, other))
    places, shapes = zip(*((body.spatial, body.object) for body in episode.objects), strict=True)
    found = {verb for verb, kind in paired if kind == theirs} - {verb for verb, kind in paired if kind == mine}
    return sorted(
        v for v in found if instruction_suite._has_room(v, places) and all(suits(v, shape) for shape in shapes)
    )


@dataclass(frozen=True)
class FirstFrame:
    """The start of an episode. images: by key of CAMERAS, (H, W, 3) uint8 RGB. state: (8,) float32, 7 joints (rad) and
    gripper width (m). toward: (objects, STEPS, 7) float32, the expert's first joint targets (rad) for each object."""

    images: dict[str, np.ndarray]
    state: np.ndarray
    toward: np.ndarray


class Photographer:
    """An environment that builds scenes of a split and looks at them, without playing; one per process."""

    def __init__(self, split: str, *, image_size: int = 224, render: str = "cpu") -> None:
        # Only the worker processes load the simulator.
        from simulation.scenes.environment import make_env
        from simulation.scenes.expert import Expert

        env = make_env(split, suite_of(split).evaluated[0], image_size=image_size, render=render)
        self.task: ConflictPickEnv = env.unwrapped  # type: ignore[assignment]
        self.task.render_when_asked()
        self.task.reset(seed=0)
        self.expert = Expert(self.task)

    def show(self, episode: Episode | InstructedEpisode) -> FirstFrame:
        """The start of that episode, the arm as its seed has it. Raises expert.Unreachable where an object is."""
        from data_prep.maniskill import CAMERAS, state_of  # which reads HDF5

        self.task.reset(seed=episode.seed, options={"episode": episode})
        seen = self.task.look()
        ways = [self.expert.plan(index)[:, :7] for index in range(len(episode.objects))]
        toward = np.stack([way[np.minimum(np.arange(STEPS), len(way) - 1)] for way in ways])
        return FirstFrame({key: seen[sensor] for key, sensor in CAMERAS.items()}, state_of(self.task.qpos()), toward)


def main(config: ProbesConfig) -> None:
    """Render and say what there is."""
    probes = make_probes(config)
    changes = ", ".join(dict.fromkeys(probe.change for probe in probes.probes if probe.change))
    print(f"{config.out}: {len(probes.probes)} scenes, {config.pairs} pairs each of {changes}.")


if __name__ == "__main__":
    run_main(main, "probes")
