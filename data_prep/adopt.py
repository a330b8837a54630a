"""Make a LeRobot dataset (v2.1 or v3.0) of another source trainable: propose its meta/modality.json, hold episodes out.

python -m data_prep.adopt dataset=FOLDER
python -m data_prep.adopt dataset=FOLDER write=true
python -m data_prep.adopt --help"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.command_line import run_main

if TYPE_CHECKING:
    from data_prep import AdoptConfig


def main(config: AdoptConfig) -> None:
    """Print what is proposed, or written."""
    # Imported only after the configuration has been accepted: a refusal should not wait for it.
    from data_prep.foreign_dataset import adopt

    print("\n".join(adopt(config)))


if __name__ == "__main__":
    run_main(main, "adopt")
