"""Two arms with a gripper each, a camera above and one at each wrist.

LeRobot records two SO-100 or SO-101 as one robot (`bi_so_follower`): 12 values as state and as action, the names of a
single arm after "left_", then after "right_"; cameras of an arm have its side before their names. Arms of other numbers
of joints fit too: how many values a group has is said by modality.json. Cameras are called as in the released
checkpoint's bimanual embodiment (xdof)."""

from __future__ import annotations

from gr00t.data.schema import ActionConfig, ActionRepresentation, ModalityConfig

ACTION_HORIZON = 16  # steps of 1/30 s at LeRobot's usual rate

MODALITY_CONFIG = {
    "video": ModalityConfig(delta_indices=[0], modality_keys=["top", "left_wrist", "right_wrist"]),
    "state": ModalityConfig(
        delta_indices=[0], modality_keys=["left_arm", "left_gripper", "right_arm", "right_gripper"]
    ),
    "action": ModalityConfig(
        delta_indices=list(range(ACTION_HORIZON)),
        modality_keys=["left_arm", "left_gripper", "right_arm", "right_gripper"],
        action_configs=[
            ActionConfig(rep=ActionRepresentation.RELATIVE),  # left_arm: joint targets, relative to its state
            ActionConfig(rep=ActionRepresentation.ABSOLUTE),  # left_gripper: how far open
            ActionConfig(rep=ActionRepresentation.RELATIVE),  # right_arm
            ActionConfig(rep=ActionRepresentation.ABSOLUTE),  # right_gripper
        ],
    ),
    "language": ModalityConfig(delta_indices=[0], modality_keys=["annotation.human.task_description"]),
}
