"""modality_config=FILE: what the robot's Python file says, read once by `load`, then handed on as a plain value."""

from __future__ import annotations

import runpy
import traceback
from pathlib import Path
from typing import Any

from finetune.checkout import CHECKOUT
from gr00t.data.schema import ModalityConfig, ModalityConfigs, check_modality_configs
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import near_folder

DEFAULT_FILE = CHECKOUT / "conflict_panda_config.py"
NAME = "MODALITY_CONFIG"


def read_robot(config: Any) -> None:
    """Fill `modalities` of a configuration, or of its dataset section, from the file that modality_config names."""
    for section, key in ((config, "modality_config"), (getattr(config, "dataset", None), "dataset.modality_config")):
        if section is not None and hasattr(section, "modality_config"):
            section.modalities = read_file(section.modality_config, key)


def read_file(file: str | None, key: str = "modality_config") -> dict[str, Any]:
    """MODALITY_CONFIG of a Python file (None: conflict_panda_config.py of the checkout), as processor_config.json holds
    it. Raises ToolkitError, with the line where there is one, for a file that does not define it."""
    path = DEFAULT_FILE if file is None else Path(file)
    where = f"{path}" if file is None else f"{key}={file}"
    if not path.is_file():
        raise ToolkitError(
            f"{where} {'is a folder' if path.is_dir() else 'does not exist'}. Give a Python file that defines {NAME}, "
            f"as conflict_panda_config.py of the checkout does.{_near(path)}"
        )
    variables = _run(path, where)
    if NAME not in variables:
        raise ToolkitError(f"{where} defines no {NAME}. Name the robot's modality configuration so in that file.")
    try:
        return to_json(check_modality_configs(variables[NAME], f"{where}: {NAME}"))
    except (AttributeError, TypeError):
        raise ToolkitError(
            f"{where}: {NAME} must be a dict of ModalityConfig, with ActionConfig in action_configs "
            "(gr00t.data.schema). Compare conflict_panda_config.py of the checkout."
        ) from None


def to_json(configs: ModalityConfigs) -> dict[str, Any]:
    """The plain value of a modality configuration, as processor_config.json holds it."""
    return {modality: config.to_json() for modality, config in configs.items()}


def modality_configs(section: Any) -> ModalityConfigs:
    """What `section.modalities` holds, as the rest of the toolkit takes it."""
    return from_json(section.modalities)


def from_json(modalities: dict[str, Any]) -> ModalityConfigs:
    """The modality configuration of a plain value."""
    return {modality: ModalityConfig.from_json(value) for modality, value in modalities.items()}


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return near_folder(path.parent)
    return did_you_mean(path.name, [other.name for other in path.parent.glob("*.py")])


def _run(path: Path, where: str) -> dict[str, Any]:
    try:
        return runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise ToolkitError(f"{where}{_line(error, path)}: {type(error).__name__}: {error}. Mend that file.") from None


def _line(error: BaseException, path: Path) -> str:
    """', line 3' where the file itself is in the error's traceback."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
