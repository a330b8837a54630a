"""DROID: a Panda with a Robotiq gripper, a camera beside it and one at the wrist, at 15 Hz.

Source: Khazatsky et al. 2024, arXiv:2403.12945, and LeRobot's port of the dataset (lerobot/droid_1.0.1), whose columns
observation.state.joint_position (7, rad) and .gripper_position (1) have their like in the action.
Groups and cameras are called as in the released checkpoint's own DROID embodiment, which also has a pose (eef_9d).
LeRobot's port stores poses as Euler angles (cartesian_position), no form of a relative pose, so they are left out. The
second camera is exterior_image_2_left."""

from __future__ import annotations

from gr00t.data.schema import ActionConfig, ActionRepresentation, ModalityConfig

ACTION_HORIZON = 16  # steps of 1/15 s

MODALITY_CONFIG = {
    "video": ModalityConfig(delta_indices=[0], modality_keys=["exterior_image_1_left", "wrist_image_left"]),
    "state": ModalityConfig(delta_indices=[0], modality_keys=["joint_position", "gripper_position"]),
    "action": ModalityConfig(
        delta_indices=list(range(ACTION_HORIZON)),
        modality_keys=["joint_position", "gripper_position"],
        action_configs=[
            ActionConfig(
                rep=ActionRepresentation.RELATIVE
            ),  # joint_position: 7 joint targets (rad), relative to its state
            ActionConfig(rep=ActionRepresentation.ABSOLUTE),  # gripper_position: how far closed
        ],
    ),
    "language": ModalityConfig(delta_indices=[0], modality_keys=["annotation.human.task_description"]),
}
