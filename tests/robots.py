"""Files that a user with a robot of their own would write."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from conflict_panda_config import MODALITY_CONFIG
from gr00t.data.schema import ActionConfig, ActionRepresentation, python_source


def robot_file(path: Path, **changes: dict[str, Any]) -> Path:
    """The Panda's modality configuration with other fields of some modalities, as video={"modality_keys": [...]}."""
    changed = {name: dataclasses.replace(MODALITY_CONFIG[name], **fields) for name, fields in changes.items()}
    path.write_text(python_source({**MODALITY_CONFIG, **changed}))
    return path


def absolute_arm(path: Path) -> Path:
    """The Panda's, but its arm's actions are absolute."""
    return robot_file(path, action={"action_configs": [ActionConfig(ActionRepresentation.ABSOLUTE)] * 2})
