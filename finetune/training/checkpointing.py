"""Checkpoints to resume from: `checkpoint-<step>/` holds trained tensors, optimizer moments and the step.

A checkpoint appears whole, by a rename, with a manifest of hashes; a damaged one is reported and the one before is
used. safetensors and JSON only. Nothing else need be stored: order, augmentation, noise and dropout follow from the
seed and the step, the learning rate from the step, and frozen weights from the base checkpoint."""

from __future__ import annotations

import logging
import math
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.recipe.recipe_identity import differences
from finetune.training import BEST
from finetune.training.process_selftest import appears
from finetune.training.stopping import AttemptToken
from gr00t.errors import ToolkitError
from gr00t.file_reading import check_types, parsing, read_json
from gr00t.file_replacement import file_sha256, open_to_others, whole_folder, write_json
from gr00t.model.weight_files import not_finite

FILES = ("trained.safetensors", "optimizer.safetensors", "state.json")

log = logging.getLogger(__name__)


@dataclass
class Best:
    """The best evaluation so far: its step and metric (smaller is better), called `name`; `evaluated` is the step of
    the last one, 0 before the first, `worse` how many there were since the best, and `episodes` those that all of them
    predicted, None before the first and in checkpoints of earlier versions."""

    name: str = ""
    step: int | None = None
    metric: float | None = None
    evaluated: int = 0
    worse: int = 0
    episodes: list[int] | None = None

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Best:
        """What a checkpoint's state holds; a new one from checkpoints that hold nothing."""
        return cls(**(state.get("best") or {}))

    def state(self) -> dict[str, Any]:
        """For a checkpoint's state, as JSON has it."""
        return asdict(self)

    def judge_on(self, episodes: list[int], name: str = "", *, say: bool = True) -> None:
        """Evaluations are of these episodes from here on, and by the metric `name`, "" where it is not known yet. If
        they were others until now, which is logged where `say`, no error of before says what is better: the search for
        the best step begins again."""
        other = "held-out episodes" if self.episodes not in (None, episodes) else ""
        other = "metric" if name and self.name not in ("", name) else other
        if say and other and self.step is not None:
            text = "%s %.4f after step %d, the best so far, was of other %s: a new best is looked for"
            log.warning(text, self.name, self.metric, self.step, other)
        if other:
            self.name, self.step, self.metric, self.worse = name, None, None, 0
        self.episodes = list(episodes)

    def update(self, step: int, name: str, metric: float) -> bool:
        """Count an evaluation after `step` steps; whether it is the best one. A metric that is NaN never is."""
        self.evaluated = step
        if not metric < (math.inf if self.metric is None else self.metric):
            self.worse += 1
            return False
        self.name, self.step, self.metric, self.worse = name, step, metric, 0
        return True

    def exhausted(self, patience: int | None) -> bool:
        """Whether `patience` evaluations in a row brought no improvement."""
        return patience is not None and self.worse >= patience

    def write(self, run_dir: Path) -> None:
        """Write best.json where the best step's checkpoint is there; remove it where there is no best step."""
        if self.step is None:
            (run_dir / BEST).unlink(missing_ok=True)
        elif (run_dir / f"checkpoint-{self.step}").is_dir():
            write_json(run_dir / BEST, {"step": self.step, "metric": self.metric, "name": self.name})

    def forget_lost(self, run_dir: Path) -> None:
        """Look for a new best step where the checkpoint of the old one has been removed."""
        if self.step is not None and not (run_dir / f"checkpoint-{self.step}").is_dir():
            log.warning("%s: checkpoint-%d, the best one so far, is not there any more", run_dir, self.step)
            self.step, self.metric = None, None


class _State:
    """What state.json holds, of which earlier versions lack some."""

    identity: dict[str, Any]
    conditions: dict[str, dict[str, Any]]
    meter: list[list[float]]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: `step` optimizer steps are done."""

    folder: Path
    step: int
    state: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """The checkpoint in a folder, unverified."""
        state = read_json(folder / "state.json")
        with parsing(folder / "state.json"):
            check_types(Best, asdict(Best.restored(state)), "best.")
            check_types(_State, state)
        return cls(folder, _step(folder), state)


@dataclass(frozen=True)
class Snapshot:
    """A copy of what a checkpoint holds, in CPU memory: training continues while it is written."""

    step: int
    trained: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]

    def not_finite(self) -> list[str]:
        """Names of the tensors that hold NaN or infinite values; such a snapshot is not to be written."""
        return not_finite([*self.trained.items(), *self.optimizer.items()])


def take_snapshot(
    step: int,
    trained: Iterable[tuple[str, Tensor]],
    optimizer: Iterable[tuple[str, dict[str, Tensor]]],
    state: dict[str, Any],
) -> Snapshot:
    """The state after `step` optimizer steps, from an engine's `trained_weights` and `optimizer_state`."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True).contiguous()

    weights = {name: copy(weight) for name, weight in trained}
    moments = {f"{key}.{name}": copy(value) for name, own in optimizer for key, value in own.items()}
    return Snapshot(step, weights, moments, state)


def write_snapshot(
    run_dir: Path,
    snapshot: Snapshot,
    keep_last: int,
    keep_every: int | None = None,
    allowed: Callable[[], None] = lambda: None,
) -> Path:
    """Write `checkpoint-<step>`, then remove all but the newest `keep_last`, those at multiples of `keep_every`, and
    the best evaluated one, which best.json names. `allowed` raises where nothing must be renamed or removed."""
    target, best = run_dir / f"checkpoint-{snapshot.step}", Best.restored(snapshot.state)
    with whole_folder(target, lock=False, allowed=allowed) as folder:
        for name, tensors in (("trained", snapshot.trained), ("optimizer", snapshot.optimizer)):
            save_file(tensors, folder / f"{name}.safetensors")
            open_to_others(folder / f"{name}.safetensors")
        write_json(folder / "state.json", {**snapshot.state, "step": snapshot.step})
        write_json(folder / "manifest.json", {name: file_sha256(folder / name) for name in FILES})
    allowed()
    best.write(run_dir)
    others = [folder for folder in list_checkpoints(run_dir) if folder != target]
    for old in others[: max(0, len(others) - (keep_last - 1))]:
        if not (keep_every and _step(old) % keep_every == 0) and _step(old) != best.step:
            shutil.rmtree(old)
    return target


class CheckpointWriter:
    """Writes snapshots in order, on a thread of its own; none once the token is lost. The last one took `seconds`."""

    def __init__(self, run_dir: Path, keep_last: int, keep_every: int | None, token: AttemptToken) -> None:
        self.run_dir, self._kept, self.token = run_dir, (keep_last, keep_every), token
        self.seconds = 0.0
        self._written: list[Path] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Begin to write; waits for the one before, so that at most one snapshot is held besides."""
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait until the last snapshot is on disk; an error of its writing is raised here."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    def written(self) -> list[Path]:
        """The checkpoints written since the last call."""
        found, self._written = self._written, []
        return found

    def _write(self, snapshot: Snapshot) -> None:
        begin = time.monotonic()
        try:
            self._written += [write_snapshot(self.run_dir, snapshot, *self._kept, self.token.require)]
        except Exception:  # also when the attempt after this one has cleared the half-written folder away
            if self.token.is_ours():
                raise
        self.seconds = time.monotonic() - begin


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders, oldest first (not verified)."""
    found = [p for p in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name) and p.is_dir()]
    return sorted(found, key=_step)


def is_ours(folder: Path) -> bool:
    """Whether a folder that is called checkpoint-<step> was written here, whole or damaged; other projects call theirs
    the same."""
    return any((folder / name).is_file() for name in ("state.json", "manifest.json"))


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def whole_checkpoint(run_dir: Path, step: int) -> Checkpoint:
    """The checkpoint of a step; raises ToolkitError where it is damaged or missing."""
    folder = run_dir / f"checkpoint-{step}"
    problem = _damage(folder)
    if problem is not None:
        raise ToolkitError(f"{folder} is damaged or missing ({problem}). Choose another checkpoint of {run_dir}.")
    return Checkpoint.read(folder)


def newest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are reported and passed over."""
    for folder in reversed(list_checkpoints(run_dir)):
        problem = _damage(folder)
        if problem is None:
            return Checkpoint.read(folder)
        log.warning("%s is damaged (%s); the one before it is looked at.", folder, problem)
    return None


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where it is whole."""
    try:
        manifest = read_json(folder / "manifest.json")
        for name in FILES:
            if file_sha256(folder / name) != manifest.get(name):
                return f"{name} has changed since it was written"
        for tensors in FILES[:2]:
            with safe_open(folder / tensors, framework="pt") as file:
                broken = not_finite((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - not a dict
            if broken:
                return f"{len(broken)} tensors of {tensors} hold NaN or infinite values, first {broken[0]}"
    except (ToolkitError, OSError, SafetensorError, AttributeError) as error:
        return str(error)
    return None


def read_checkpoint(run_dir: Path, step: int) -> Checkpoint:
    """A checkpoint that another process of this run has found whole; a shared folder may show it some seconds late."""
    folder = run_dir / f"checkpoint-{step}"
    if not appears((folder / "state.json").is_file):
        raise ToolkitError(
            f"{folder} is there for the first process, but not on {socket.gethostname()}: all nodes must share "
            "run_dir. Give a folder on the cluster's file system, run_dir=FOLDER."
        )
    return Checkpoint.read(folder)


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put a checkpoint's trained weights into a model that trains the same ones, before an engine divides them."""
    trained = load_file(checkpoint.folder / "trained.safetensors")
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    different = sorted(set(trained) ^ set(own))
    if different:
        raise ToolkitError(
            f"{checkpoint.folder} trains other parameters than this configuration (first: {different[0]}). Use the "
            "train.tune.* and model settings it was written with, or start again with train.resume=never."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(trained[name])


def read_optimizer(checkpoint: Checkpoint) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name, optimizer state) of one trained parameter after another, since all of them may not fit into memory."""
    with safe_open(checkpoint.folder / "optimizer.safetensors", framework="pt") as file:
        keys: dict[str, list[str]] = {}
        for tensor in file.keys():  # noqa: SIM118 - not a dict
            key, _, name = tensor.partition(".")
            keys.setdefault(name, []).append(key)
        for name, own in keys.items():
            yield name, {key: file.get_tensor(f"{key}.{name}") for key in own}


def check_same_run(
    checkpoint: Checkpoint,
    identity: dict[str, Any],
    files_there: Mapping[str, str] | None = None,
    files_now: Mapping[str, str] | None = None,
) -> None:
    """Refuse to continue a checkpoint under another recipe, robot, dataset or base; see `differences`."""
    changed = differences(checkpoint.state.get("identity", {}), identity, files_there, files_now)
    if changed:
        lines = "\n  ".join(changed)
        raise ToolkitError(
            f"{checkpoint.folder} belongs to a run with other settings:\n  {lines}\n"
            "Use its settings to continue it, another run_dir=... to start beside it, or train.resume=never to start "
            "again here."
        )
