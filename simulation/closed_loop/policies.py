"""Policies in closed loop: what one that looks is shown and how it is asked for action chunks, and scripted ones.

Scripted policies know the simulation's state and show that the closed loop itself is sound: the expert should nearly
always succeed, one that takes the lure never in conflict, one that picks at random by chance, and recorded actions
always. They act in the worker processes, so they must pickle; they need no images."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.lerobot import GROUPS
from data_prep.maniskill import CAMERAS
from data_prep.maniskill import Episode as Recorded
from data_prep.recording_checks import read_recordings
from gr00t.data.sampler import Stream, torch_seed
from gr00t.data.schema import ModalityConfigs, from_json
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.model.gr00t_n1 import GR00TPolicy
from simulation.scenes import ENV_ID
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED, Episode
from toolkit.shared_keys import read_file

if TYPE_CHECKING:
    from simulation.scenes.environment import ConflictPickEnv
    from simulation.scenes.expert import Expert

Images = dict[str, np.ndarray]  # key of CAMERAS: (H, W, 3) uint8 RGB
_ALL = {"start": 0, "end": 8}
STATE, ACTION = {**GROUPS, "state": _ALL}, {**GROUPS, "action": _ALL}  # in groups or, as other families have it, whole
UNDIVIDED = ["action"]
STYLES = 5  # tried until one keeps the arm within its joints' reach


@dataclass(frozen=True)
class Observation:
    """What a policy is shown, exactly as the converter makes it of a recording, or an ablation of it.

    state: (8,) float32, 7 joints (rad) and gripper width (m). seed, chunk: of the episode, and which of its chunks.
    instruction: what the policy is asked to do in this episode.
    """

    images: Images
    state: np.ndarray
    seed: int
    chunk: int
    instruction: str


class Inference:
    """Asks one policy for action chunks: a GR00TPolicy, a client of a server, or an object of your own.

    The noise of a chunk comes from (seed, episode, chunk): a policy whose `get_action` takes `seed` is given one for
    each. A GR00TPolicy is given all observations as one batch, another object as many at once as its `max_batch` says
    (and as many seeds), or one at a time. What it reads is its `modality_configs`, or what its `get_modality_config()`
    says, or else that of conflict_panda_config.py.
    """

    def __init__(self, policy: Any, seed: int, n_action_steps: int, conditions: Sequence[str]) -> None:
        """Raises ToolkitError for a policy that the simulation cannot serve."""
        if not callable(getattr(policy, "get_action", None)):
            raise ToolkitError(f"A policy is an object with get_action(observation); {type(policy).__name__} has none.")
        self.policy, self.seed, self.n_action_steps = policy, seed, n_action_steps
        read = getattr(policy, "get_modality_config", lambda: from_json(read_file(None)))
        self.configs: ModalityConfigs = policy.modality_configs if hasattr(policy, "modality_configs") else read()
        check_configs(self.configs, n_action_steps)
        self.name = getattr(policy, "url", "The policy's get_action")
        self.groups = self.configs["action"].modality_keys if "action" in self.configs else UNDIVIDED
        self.max_batch: int | None = None if isinstance(policy, GR00TPolicy) else getattr(policy, "max_batch", 1)
        self.options = set(inspect.signature(policy.get_action).parameters)
        if "zero_state" not in getattr(policy, "heeds", ["zero_state"]):
            self.options.discard("drop_state")
        if "zero_state" in conditions and "drop_state" not in self.options:
            who = getattr(policy, "url", "this policy's get_action")
            raise ToolkitError(
                f"ablations=[zero_state] hides the state from the model, which {who} cannot "
                "(drop_state). Evaluate the checkpoint itself, serve it with python -m gr00t.serve, or leave that "
                "ablation out."
            )

    def chunks(self, requests: Sequence[Observation], *, drop_state: bool) -> list[np.ndarray]:
        """One chunk (n_action_steps, 8) float32 for each request."""
        found, size = list[np.ndarray](), self.max_batch or max(1, len(requests))
        for batch in (requests[first : first + size] for first in range(0, len(requests), size)):
            seeds = [torch_seed(self.seed, Stream.ROLLOUT, request.seed, request.chunk) for request in batch]
            options: dict[str, Any] = {"drop_state": True} if drop_state else {}
            if "seed" in self.options:
                options["seed"] = seeds[0] if self.max_batch == 1 else seeds
            actions = self.policy.get_action(as_batch(batch, self.configs), **options)
            groups = [self._group(actions, name, len(batch)) for name in ACTION if name in self.groups]
            found += list(np.concatenate(groups, axis=-1).astype(np.float32))
        return found

    def _group(self, actions: dict[str, np.ndarray], name: str, count: int) -> np.ndarray:
        """(B, n_action_steps, D) of one action group."""
        key, dim = f"action.{name}", ACTION[name]["end"] - ACTION[name]["start"]
        if not isinstance(actions, dict) or key not in actions:
            found = ", ".join(actions) if isinstance(actions, dict) else type(actions).__name__
            raise ToolkitError(f'{self.name} gave no "{key}" (found: {found}).')
        values = np.asarray(actions[key])
        if values.ndim != 3 or values.shape[::2] != (count, dim) or values.shape[1] < self.n_action_steps:
            remedy = ""
            if values.ndim == 3 and 0 < values.shape[1] < self.n_action_steps:
                remedy = f" Its chunks are short: n_action_steps={values.shape[1]} or fewer."
            elif count > 1 and values.shape[:1] == (1,):
                remedy = " It answers one observation at a time: workers=1."
            raise ToolkitError(
                f"{self.name} gave {key} of the shape {values.shape}; expected ({count}, "
                f"{self.n_action_steps} or more, {dim}).{remedy}"
            )
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise ToolkitError(
                f"{self.name} gave {key} that is not finite. Nothing of it was executed: see whether its training "
                "diverged, or serve it in another precision."
            )
        return values[:, : self.n_action_steps]


def as_batch(observations: Sequence[Observation], configs: ModalityConfigs) -> dict[str, Any]:
    """The observation that `GR00TPolicy.get_action` takes: video (B, 1, H, W, 3), state (B, 1, D), B instructions."""
    batch: dict[str, Any] = {}
    for key in configs["video"].modality_keys:
        batch[f"video.{key}"] = np.stack([o.images[key] for o in observations])[:, None]
    for key in configs["state"].modality_keys if "state" in configs else ():
        group = slice(STATE[key]["start"], STATE[key]["end"])
        batch[f"state.{key}"] = np.stack([o.state[group] for o in observations])[:, None]
    batch[configs["language"].modality_keys[0]] = [o.instruction for o in observations]
    return batch


def check_configs(configs: ModalityConfigs, n_action_steps: int) -> None:
    """Refuse a policy that wants more than the simulation shows, or whose chunks are too short or not a Panda's."""
    groups = configs["action"].modality_keys if "action" in configs else UNDIVIDED
    actions = UNDIVIDED if groups == UNDIVIDED else list(GROUPS)
    for modality, names in {"video": list(CAMERAS), "state": list(STATE), "action": actions}.items():
        if modality not in configs:
            continue
        unknown = [key for key in configs[modality].modality_keys if key not in names]
        if unknown:
            raise ToolkitError(
                f'The policy has a {modality} "{unknown[0]}"; the simulated Panda has {", ".join(names)}. Closed loop '
                "is for policies trained on datasets of prepare_conflict_data.py."
            )
        if modality != "action" and configs[modality].delta_indices != [0]:
            raise ToolkitError(
                f"The policy reads {modality} at the frames {configs[modality].delta_indices}; in closed loop it is "
                "shown the present frame only, [0]."
            )
    if "action" not in configs:
        return  # the first answer shows how many steps there are
    missing = [key for key in actions if key not in groups]
    if missing:
        raise ToolkitError(f'The policy has no action "{missing[0]}", so it cannot move the simulated Panda.')
    frames = configs["action"].delta_indices
    if n_action_steps > len(frames):
        raise ToolkitError(
            f"n_action_steps={n_action_steps} is more than the {len(frames)} steps of the policy's action chunks. "
            f"Take {len(frames)} or fewer."
        )
    if (executed := frames[:n_action_steps]) != list(range(n_action_steps)):
        raise ToolkitError(
            f"The policy's actions are those of the frames {executed} from the present one on; in closed loop each is "
            "executed for one frame, so they would mean other times. Fine-tune with delta_indices 0, 1, 2, ...."
        )


# -- scripted policies -------------------------------------------------------------------------------------------------


class ScriptedPolicy:
    """Plans a whole episode at its start. `rebuilds`: it needs scenes that remember no earlier contacts."""

    rebuilds = False

    def seeds(self, part: str, episodes: int) -> list[int]:
        """The episodes that it, or a policy that looks, is evaluated on; none of them was ever recorded."""
        return list(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes))

    def choose(self, episode: Episode | InstructedEpisode) -> int:
        """Index of the object that the expert is to pick up; the expert's own choice is the target."""
        return episode.target

    def plan(self, task: ConflictPickEnv, expert: Expert) -> np.ndarray:
        """Actions (T, 8) float32 of the episode that `task` was just reset to; T = 0 where it gives up."""
        from simulation.scenes.expert import Unreachable, drawn_style

        goal = self.choose(task.episode)
        for attempt in range(STYLES):
            rng = random.Random(f"{task.split}/{task.part}/{task.episode.seed}/{attempt}")
            with suppress(Unreachable):
                return expert.plan(goal, drawn_style(rng))
        return np.zeros((0, 8), np.float32)


class TargetPolicy(ScriptedPolicy):
    """The expert: always the target."""


class LurePolicy(ScriptedPolicy):
    """Always the lure; where there is none, in train, both cues point at the target."""

    def choose(self, episode: Episode | InstructedEpisode) -> int:
        return episode.target if episode.lure is None else episode.lure


@dataclass(frozen=True)
class RandomPolicy(ScriptedPolicy):
    """Any of the objects, by (seed, episode)."""

    seed: int = 42

    def choose(self, episode: Episode | InstructedEpisode) -> int:
        rng = random.Random(f"{self.seed}/{episode.split}/{episode.part}/{episode.seed}")
        return rng.randrange(len(episode.objects))


class ReplayPolicy(ScriptedPolicy):
    """Actions recorded in raw_dir/<split>/<part>, in the same episodes, but those in which the arm was pushed aside.
    `strategy`: the one that the scenes were drawn by, None in the plate suite."""

    rebuilds = True  # as recordings are made, so that motions too are the same

    def __init__(self, raw_dir: Path, split: str, parts: Sequence[str]) -> None:
        self.recorded: dict[str, dict[Any, Recorded]] = {}  # by part and seed
        strategies: dict[str | None, str] = {}
        for part in parts:
            folder = raw_dir / split / part
            episodes = [(e, _entry(e, split, part)) for e in read_recordings(folder).episodes]
            strategies |= {entry.get("conflict", {}).get("strategy"): part for _, entry in episodes}
            self.recorded[part] = {e.seed: e for e, entry in episodes if not entry.get("disturbed")}
            if not self.recorded[part]:
                raise ToolkitError(
                    f"{folder}: the arm was pushed aside in every episode, which actions alone do not repeat."
                )
        if len(strategies) > 1:
            told = ", ".join(f"{part} by {strategy}" for strategy, part in strategies.items())
            raise ToolkitError(
                f"{raw_dir / split}: parts were recorded by other strategies ({told}). Replay one: parts=[...]."
            )
        self.strategy = next(iter(strategies), None)

    def seeds(self, part: str, episodes: int) -> list[int]:
        return list(self.recorded[part])[:episodes]

    def plan(self, task: ConflictPickEnv, expert: Expert) -> np.ndarray:
        return self.recorded[task.part][task.episode.seed].actions()


def _entry(episode: Recorded, split: str, part: str) -> dict[str, Any]:
    """The entry in the .json of an episode of this toolkit's recordings."""
    path = episode.file.with_suffix(".json")
    meta = read_json(path)
    kwargs = meta["env_info"]["env_kwargs"]
    if meta["env_info"].get("env_id") != ENV_ID or (kwargs.get("split"), kwargs.get("part")) != (split, part):
        raise ToolkitError(
            f"{path}: is no recording of {split} {part} by python -m simulation.record, so its seeds mean nothing "
            "here. Give the folder of one, raw_dir=FOLDER."
        )
    if episode.seed is None:
        raise ToolkitError(f"{episode.name}: the .json gives no episode_seed, so the episode cannot be set up again.")
    return next(entry for entry in meta["episodes"] if entry["episode_id"] == episode.episode_id)
