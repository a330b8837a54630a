"""ALOHA: two ViperX arms of six joints with a gripper each, a camera above and one at each wrist.

Datasets of LeRobot (lerobot/aloha_static_*, 50 Hz) hold 14 values as state and as action, for the left arm, then the
right: waist, shoulder, elbow, forearm_roll, wrist_angle and wrist_rotate in radians, then gripper. Source: Zhao et al.
2023, arXiv:2304.13705. ALOHA has a fourth camera, cam_low, which Mobile ALOHA lacks: add it where you have it. Joints
are relative and grippers absolute as in openpi's ALOHA configuration. ACT predicts 100 steps (2 s); the released base
takes 40 at most."""

from __future__ import annotations

from gr00t.data.schema import ActionConfig, ActionRepresentation, ModalityConfig

ACTION_HORIZON = 16  # steps of 1/50 s

MODALITY_CONFIG = {
    "video": ModalityConfig(delta_indices=[0], modality_keys=["cam_high", "cam_left_wrist", "cam_right_wrist"]),
    "state": ModalityConfig(
        delta_indices=[0], modality_keys=["left_arm", "left_gripper", "right_arm", "right_gripper"]
    ),
    "action": ModalityConfig(
        delta_indices=list(range(ACTION_HORIZON)),
        modality_keys=["left_arm", "left_gripper", "right_arm", "right_gripper"],
        action_configs=[
            ActionConfig(rep=ActionRepresentation.RELATIVE),  # left_arm: 6 joint targets (rad), relative to its state
            ActionConfig(rep=ActionRepresentation.ABSOLUTE),  # left_gripper: how far open
            ActionConfig(rep=ActionRepresentation.RELATIVE),  # right_arm
            ActionConfig(rep=ActionRepresentation.ABSOLUTE),  # right_gripper
        ],
    ),
    "language": ModalityConfig(delta_indices=[0], modality_keys=["annotation.human.task_description"]),
}
