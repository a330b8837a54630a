"""What a policy is shown of the simulation: exactly what the converter makes of a recording, or an ablation of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.lerobot import GROUPS
from data_prep.maniskill import CAMERAS, state_of
from gr00t.data.schema import ModalityConfigs
from gr00t.errors import ToolkitError

if TYPE_CHECKING:
    from simulation.environment import ConflictPickEnv


Images = dict[str, np.ndarray]  # key of CAMERAS: (H, W, 3) uint8 RGB


@dataclass(frozen=True)
class Observation:
    """state: (8,) float32, 7 joints (rad) and gripper width (m)."""

    images: Images
    state: np.ndarray


def observe(task: ConflictPickEnv, instead: Images | None = None) -> Observation:
    """The present state and its images, rendered now, or those `instead`."""
    return Observation(seen(task) if instead is None else instead, state_of(task.qpos()))


def seen(task: ConflictPickEnv) -> Images:
    """The images of the present state, rendered now."""
    images = task.look()
    return {key: images[sensor] for key, sensor in CAMERAS.items()}


def blank(size: int) -> Images:
    """Black images."""
    return {key: np.zeros((size, size, 3), np.uint8) for key in CAMERAS}


def as_batch(observations: Sequence[Observation], instruction: str, configs: ModalityConfigs) -> dict[str, Any]:
    """The observation that `GR00TPolicy.get_action` takes: video (B, 1, H, W, 3), state (B, 1, D), B instructions."""
    batch: dict[str, Any] = {}
    for key in configs["video"].modality_keys:
        batch[f"video.{key}"] = np.stack([o.images[key] for o in observations])[:, None]
    for key in configs["state"].modality_keys:
        group = slice(GROUPS[key]["start"], GROUPS[key]["end"])
        batch[f"state.{key}"] = np.stack([o.state[group] for o in observations])[:, None]
    batch[configs["language"].modality_keys[0]] = [instruction] * len(observations)
    return batch


def check_configs(configs: ModalityConfigs, n_action_steps: int) -> None:
    """Refuse a policy that wants more than the simulation shows, or whose chunks are too short or not a Panda's."""
    given = {"video": list(CAMERAS), "state": list(GROUPS), "action": list(GROUPS)}
    for modality, names in given.items():
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
    missing = [key for key in GROUPS if key not in configs["action"].modality_keys]
    if missing:
        raise ToolkitError(f'The policy has no action "{missing[0]}", so it cannot move the simulated Panda.')
    horizon = len(configs["action"].delta_indices)
    if n_action_steps > horizon:
        raise ToolkitError(
            f"n_action_steps={n_action_steps} is more than the {horizon} steps of the policy's action chunks. "
            f"Take {horizon} or fewer."
        )
