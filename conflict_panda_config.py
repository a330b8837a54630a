"""The Panda of the conflict splits: two cameras, seven arm joints, one gripper, chunks of 16 steps at 20 Hz."""

from __future__ import annotations

from gr00t.data.schema import ActionConfig, ActionRepresentation, ModalityConfig

ACTION_HORIZON = 16  # steps of 1/20 s

MODALITY_CONFIG = {
    "video": ModalityConfig(delta_indices=[0], modality_keys=["image", "wrist_image"]),
    "state": ModalityConfig(delta_indices=[0], modality_keys=["arm", "gripper"]),
    "action": ModalityConfig(
        delta_indices=list(range(ACTION_HORIZON)),
        modality_keys=["arm", "gripper"],
        action_configs=[
            ActionConfig(rep=ActionRepresentation.RELATIVE),  # arm: 7 joint targets (rad), relative to the arm's state
            ActionConfig(rep=ActionRepresentation.ABSOLUTE),  # gripper: command in [-1, 1]
        ],
    ),
    "language": ModalityConfig(delta_indices=[0], modality_keys=["annotation.human.task_description"]),
}
