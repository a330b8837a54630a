"""SO-100 and SO-101: five joints, a gripper, a camera in front and one at the wrist.

LeRobot records six values as state and as action (`so_follower`): shoulder_pan, shoulder_lift, elbow_flex, wrist_flex,
wrist_roll and gripper, each with ".pos"; joints in degrees or as -100 to 100, the gripper as 0 to 100.
Groups, cameras, horizon and representations are those of NVIDIA's example (Isaac-GR00T, examples/SO100)."""

from __future__ import annotations

from gr00t.data.schema import ActionConfig, ActionRepresentation, ModalityConfig

ACTION_HORIZON = 16  # steps of 1/30 s at LeRobot's usual rate

MODALITY_CONFIG = {
    "video": ModalityConfig(delta_indices=[0], modality_keys=["front", "wrist"]),
    "state": ModalityConfig(delta_indices=[0], modality_keys=["single_arm", "gripper"]),
    "action": ModalityConfig(
        delta_indices=list(range(ACTION_HORIZON)),
        modality_keys=["single_arm", "gripper"],
        action_configs=[
            ActionConfig(rep=ActionRepresentation.RELATIVE),  # single_arm: 5 joint targets, relative to its state
            ActionConfig(rep=ActionRepresentation.ABSOLUTE),  # gripper: how far open
        ],
    ),
    "language": ModalityConfig(delta_indices=[0], modality_keys=["annotation.human.task_description"]),
}
