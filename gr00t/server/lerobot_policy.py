"""A policy that LeRobot trained (ACT, diffusion, SmolVLA, pi0, ...), asked as ours are: observations in, chunks out.

LeRobot pins other versions than this toolkit, so it has an environment of its own as a rule, in which `python -m
gr00t.serve` needs beside it pyzmq and msgpack only."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from gr00t.data.schema import ModalityConfig, flattened, instructions, look_up
from gr00t.errors import ToolkitError, near_folder
from gr00t.file_reading import read_json
from gr00t.model.checkpoint_folder import PIPELINES, POLICY

# These read the state as a vector; others write it into the prompt, where nothing can be zeroed after normalisation.
STATE_AS_VECTOR = ("act", "diffusion", "vqbet", "smolvla", "pi0")
# These take images as they come, of whatever size; others scale them to the size that they read.
SIZED = ("act", "diffusion", "vqbet")
OWN_STEPS = ("lerobot.processor.", "lerobot.policies.")  # modules that a step of a pipeline may come from
_STATE = "observation.state"


def lerobot_kind(folder: Path) -> str | None:
    """What LeRobot calls the kind of policy in a folder of its own; None for another folder, and for its GR00T."""
    try:
        kind = read_json(folder / "config.json").get("type")
    except ToolkitError:
        return None
    return kind if isinstance(kind, str) and kind != POLICY else None


class LeRobotPolicy:
    """One policy of LeRobot's, ready to act on batches.

    Attributes: kind; device; modality_configs: its views, its undivided "state" and "action", and "task"; image_size,
    pixels a side, None where images are not square; max_batch; heeds.
    """

    max_batch = 64

    def __init__(self, folder: str | PathLike[str], device: str = "auto") -> None:
        """device: auto, cpu or cuda. Raises ToolkitError without LeRobot, and for what is not such a policy."""
        self.folder = Path(folder).expanduser()
        kind = lerobot_kind(self.folder)
        if kind is None:
            raise ToolkitError(
                f"{self.folder} is no policy of LeRobot's: it has no config.json with a type (its GR00T is read by "
                f"policy=checkpoint). Give the folder pretrained_model of one.{near_folder(self.folder)}"
            )
        if importlib.util.find_spec("lerobot") is None:
            raise ToolkitError(
                f"{self.folder} needs the package lerobot, which pins other versions than this toolkit: pip install "
                "lerobot pyzmq msgpack in an environment of its own, there python -m gr00t.serve "
                "checkpoint=FOLDER, and here server=127.0.0.1:5555."
            )
        missing = [name for name in PIPELINES if not (self.folder / name).is_file()]
        if missing:
            raise ToolkitError(
                f"{self.folder} lacks {missing[0]}, so LeRobot before 0.4 wrote it. Convert it with LeRobot's "
                "lerobot.processor.migrate_policy_normalization."
            )
        _check_steps(self.folder)
        self.kind = kind
        try:
            self._load(device)
        except ToolkitError:
            raise
        except Exception as error:  # whatever LeRobot raises
            reason = f"{type(error).__name__}: {str(error).strip() or 'no reason'}".splitlines()[0][:300]
            raise ToolkitError(f"{self.folder}: LeRobot cannot read this policy ({reason}).") from error

    @property
    def heeds(self) -> Sequence[str]:
        """The options that change what it does."""
        return ["seed", "zero_state"] if self.kind in STATE_AS_VECTOR else ["seed"]

    def get_action(
        self, observation: Mapping[str, Any], *, seed: int | Sequence[int] | None = None, drop_state: bool = False
    ) -> dict[str, np.ndarray]:
        """{"action.action": (B, n_action_steps, D) float32} from video.<view> (B, 1, H, W, 3) uint8, state.state (B, 1,
        D) and task, B texts; flat or nested. Of several seeds the first is that of the whole batch's noise. drop_state
        zeroes the normalised state. Raises ToolkitError for anything else, and for actions that are not finite."""
        import torch

        read = self._read(flattened(observation))
        chosen = None if seed is None else _first_seed(seed, len(read["task"]))
        with torch.random.fork_rng(enabled=chosen is not None), torch.inference_mode():
            if chosen is not None:
                torch.manual_seed(chosen)
            batch = self._before(read)
            if drop_state:
                batch[_STATE] = torch.zeros_like(batch[_STATE])
            self._policy.reset()
            # The first call computes a chunk, and the others take its next step, whatever they are shown.
            steps = [self._after(self._policy.select_action(dict(batch))) for _ in range(self._steps)]
        actions = torch.stack(steps, dim=1).float().cpu().numpy()
        if not np.isfinite(actions).all():
            raise ToolkitError(f"The actions of {self.folder} are not finite: do not run them. Its weights are broken.")
        return {"action.action": actions}

    def example_observation(self, text: str) -> dict[str, Any]:
        """An observation of one robot: black images, a state of zeros."""
        images = {f"video.{v}": np.zeros((1, 1, *s[1:], 3), np.uint8) for v, (_, s) in self._views.items()}
        state = {"state.state": np.zeros((1, 1, self._state_dim), np.float32)} if self._state_dim else {}
        return {**images, **state, "task": [text]}

    def _load(self, device: str) -> None:
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        config = PreTrainedConfig.from_pretrained(self.folder)
        config.device, path = self.device, str(self.folder)
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None  # the folder has the weights; nothing is downloaded
        self._check(config)
        self._policy = get_policy_class(self.kind).from_pretrained(path, config=config, strict=True)
        self._policy.to(self.device).eval()
        on_device = {"device_processor": {"device": self.device}}
        self._before, self._after = make_pre_post_processors(config, path, preprocessor_overrides=on_device)

    def _check(self, config: Any) -> None:
        """Refuse a policy that wants more than the present frame; note what it reads."""
        if config.n_obs_steps != 1:
            raise ToolkitError(
                f"{self.folder} reads the last {config.n_obs_steps} frames (n_obs_steps); it is shown the present one "
                "only. Train it with n_obs_steps=1."
            )
        if getattr(config, "temporal_ensemble_coeff", None) is not None or getattr(config, "use_peft", False):
            raise ToolkitError(
                f"{self.folder} blends chunks of several steps (temporal_ensemble_coeff), or keeps an adapter apart "
                "(use_peft). Set the former to null in its config.json; merge the latter into the weights."
            )
        views = {key.rpartition(".")[2]: (key, of.shape) for key, of in config.image_features.items()}
        others = set(config.input_features) - set(config.image_features) - {_STATE}
        if others or not views or config.action_feature is None:
            raise ToolkitError(
                f"{self.folder} reads {', '.join(sorted(config.input_features))}; expected images and {_STATE}."
            )
        self._views, state = views, config.robot_state_feature
        self._sized = self.kind in SIZED and getattr(config, "resize_shape", None) is None
        self._state_dim, self._steps = (state.shape[0] if state else 0), config.n_action_steps
        sides = {side for _, shape in views.values() for side in shape[1:]}
        self.image_size = sides.pop() if len(sides) == 1 else None
        self.modality_configs = {
            "video": ModalityConfig([0], list(views)),
            **({"state": ModalityConfig([0], ["state"])} if state else {}),
            "action": ModalityConfig(list(range(self._steps)), ["action"]),
            "language": ModalityConfig([0], ["task"]),
        }

    def _read(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The batch as LeRobot's pipelines take it: images (B, 3, H, W) float in [0, 1], a state (B, D), B tasks."""
        import torch

        expected = {"task", *(f"video.{view}" for view in self._views), *(["state.state"] if self._state_dim else [])}
        for name in observation:
            look_up(dict.fromkeys(expected), name, f'The observation has "{name}", which this policy does not read.')
        for name in sorted(expected):
            look_up(observation, name, f'The observation lacks "{name}".')
        tasks = instructions(observation["task"], "task")
        batch: dict[str, Any] = {"task": tasks}
        for view, (key, shape) in self._views.items():
            images, size = np.asarray(observation[f"video.{view}"]), tuple(shape[1:])
            fits = images.ndim == 5 and images.shape[:2] == (len(tasks), 1) and images.shape[4] == 3 and images.size
            if images.dtype != np.uint8 or not fits or (self._sized and images.shape[2:4] != size):
                height, width = size if self._sized else ("H", "W")
                raise ToolkitError(
                    f"video.{view}: expected ({len(tasks)}, 1, {height}, {width}, 3) uint8, found {images.shape} "
                    f"{images.dtype}."
                )
            batch[key] = torch.from_numpy(images[:, 0]).permute(0, 3, 1, 2).contiguous().to(self.device).float() / 255
        if self._state_dim:
            given, expected_shape = np.asarray(observation["state.state"]), (len(tasks), 1, self._state_dim)
            if given.shape != expected_shape or given.dtype.kind not in "fiu":
                raise ToolkitError(
                    f"state.state: expected the shape {expected_shape} of numbers, found {given.shape} {given.dtype}."
                )
            with np.errstate(over="ignore"):  # what overflows is refused
                state = given.astype(np.float32)
            if not np.isfinite(state).all():
                raise ToolkitError("state.state: it holds values that are not finite. Mend them at their source.")
            batch[_STATE] = torch.from_numpy(state[:, 0])
        return batch


def _first_seed(seed: int | Sequence[int], robots: int) -> int:
    """The seed of a whole batch's noise: the first of those of its robots."""
    seeds: list[Any] = list(seed) if isinstance(seed, list | tuple | range) else [seed] * robots
    if len(seeds) != robots:
        raise ToolkitError(f"seed: {len(seeds)} seeds for {robots} samples. Give one a sample, or one for all.")
    for each in seeds:
        if isinstance(each, bool) or not isinstance(each, Integral) or not -(2**63) <= int(each) < 2**64:
            raise ToolkitError(f"seed must be a whole number of 64 bits, not {each!r:.80}.")
    return int(seeds[0])


def _check_steps(folder: Path) -> None:
    """Refuse pipelines with steps of any other code: LeRobot imports what a step names, and calls it with arguments of
    the file, so that a policy of somebody else's could run any program."""
    for name in PIPELINES:
        steps = read_json(folder / name).get("steps")
        for step in steps if isinstance(steps, list) else [None]:
            named = step.get("class") if isinstance(step, dict) else None
            if isinstance(step, dict) and "registry_name" in step:
                continue
            if not isinstance(named, str) or not named.startswith(OWN_STEPS):
                raise ToolkitError(
                    f"{folder / name}: a step is {str(named)[:80]!r}, and only LeRobot's own are loaded, since loading "
                    "one runs it. Serve a policy without it."
                )
