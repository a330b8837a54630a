"""A finished checkpoint without a fine-tune: random weights, and what a checkpoint says of a dataset."""

from __future__ import annotations

from pathlib import Path

from conflict_panda_config import MODALITY_CONFIG
from finetune.training.run_folder import describe_dataset
from gr00t.data.layout import DatasetLayout
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.statistics import to_processor_statistics
from gr00t.file_replacement import write_json
from gr00t.model.gr00t_n1d7 import Gr00tN1d7


def finished_checkpoint(base: Path, data_dir: Path, folder: Path) -> Path:
    """The base's weights with the statistics of data_dir/color_object, and a note of what it was trained on."""
    layout = DatasetLayout(data_dir / "color_object/train")
    statistics = to_processor_statistics(
        layout.statistics(), layout.relative_statistics(), layout.modality, MODALITY_CONFIG
    )
    Gr00tN1d7.from_pretrained(base).save_pretrained(folder)
    processor = Gr00tN1d7Processor.from_pretrained(base)
    processor.with_embodiment("new_embodiment", MODALITY_CONFIG, statistics).save_pretrained(folder)
    (folder / "experiment_cfg").mkdir()
    write_json(folder / "experiment_cfg/dataset.json", describe_dataset(layout))
    return folder
