"""What a checkpoint takes and gives, for the usage snippet of its card."""

from __future__ import annotations

from dataclasses import dataclass

from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.schema import EmbodimentTag

_MEANINGS = {  # of the conflict splits' Panda; groups of other robots have their shape only
    "state.arm": "rad",
    "state.gripper": "opening in metres",
    "action.arm": "joint targets in rad",
    "action.gripper": "command in [-1, 1]",
}


@dataclass(frozen=True)
class Entry:
    """One value: its key in get_action, the name of a variable for it, its shape and type, and its unit where known."""

    key: str
    variable: str
    shape: str

    @property
    def comment(self) -> str:
        meaning = _MEANINGS.get(self.key)
        return f"{self.shape}, {meaning}" if meaning else self.shape


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of one embodiment; horizon: steps of an action chunk."""

    tag: EmbodimentTag
    inputs: tuple[Entry, ...]
    language_key: str
    outputs: tuple[Entry, ...]
    horizon: int


def interface_of(processor: Gr00tN1d7Processor, tag: str) -> Interface:
    """The interface of `tag`, for one observation at a time."""
    configs = processor.modality_config(tag)
    video, horizon = configs["video"], len(configs["action"].delta_indices)
    frames, times = len(video.delta_indices), len(configs["state"].delta_indices)
    states = processor.state_action.groups(tag, "state")
    actions = processor.state_action.groups(tag, "action")
    return Interface(
        tag=EmbodimentTag.parse(tag),
        inputs=(
            *(Entry(f"video.{name}", name, f"(1, {frames}, H, W, 3) uint8") for name in video.modality_keys),
            *(Entry(f"state.{g.name}", g.name, f"(1, {times}, {g.dim}) float32") for g in states),
        ),
        language_key=configs["language"].modality_keys[0],
        outputs=tuple(Entry(f"action.{g.name}", g.name, f"(1, {horizon}, {g.dim})") for g in actions),
        horizon=horizon,
    )
