"""What a finished checkpoint says of itself before its weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.errors import ToolkitError
from gr00t.files import near_folder, read_json
from gr00t.model.checkpoint import read_config, weight_files


def read_processor(checkpoint: Path) -> Gr00tN1d7Processor:
    """Its processor; a folder that is no complete checkpoint raises ToolkitError."""
    if not checkpoint.is_dir():
        raise ToolkitError(
            f"checkpoint={checkpoint} does not exist. Fine-tune first (launch_finetune_local.py), or give the folder "
            f"of a finished checkpoint, checkpoint=FOLDER.{near_folder(checkpoint)}"
        )
    read_config(checkpoint)
    weight_files(checkpoint)
    return Gr00tN1d7Processor.from_pretrained(checkpoint)


def read_trained_on(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint of this toolkit says about its dataset; {} for others."""
    path = checkpoint / "experiment_cfg" / "dataset.json"
    return read_json(path) if path.is_file() else {}
