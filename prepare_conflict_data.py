"""Turn the ManiSkill recordings of a conflict split into two checked datasets, train and conflict.

python prepare_conflict_data.py split=color_object raw_dir=conflict_maniskill data_dir=data
python prepare_conflict_data.py split=my_split split.instruction="pick up the heavy object"
python prepare_conflict_data.py --help"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.command_line import run_main

if TYPE_CHECKING:
    from data_prep import PrepareConfig


def main(config: PrepareConfig) -> None:
    """Convert the split and print what was written."""
    # Imported only after the configuration has been accepted: a refusal should not wait for it.
    from data_prep.convert import convert_split
    from toolkit.shared_keys import modality_configs

    report = convert_split(
        raw_dir=Path(config.raw_dir),
        data_dir=Path(config.data_dir),
        split_name=config.split.name,
        instruction=config.split.instruction,
        modality_configs=modality_configs(config),
        val_fraction=config.val_fraction,
        seed=config.seed,
        overwrite=config.overwrite,
        workers=config.workers,
        share=config.share,
    )
    print("\n".join(report.lines()))


if __name__ == "__main__":
    run_main(main, "prepare")
