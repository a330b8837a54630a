"""Record demonstrations of a conflict split in ManiSkill, in ManiSkill's own format. Start it again to go on.

python -m simulation.record split=color_object part=train episodes=500
python -m simulation.record split=size_color part=conflict episodes=100 workers=8
python -m simulation.record --help
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.script import run_main

if TYPE_CHECKING:
    from finetune.config import RecordConfig


def main(config: RecordConfig) -> None:
    # Imported only after the configuration has been accepted: a refusal should not wait for it.
    from simulation.recording import record

    print("\n".join(record(config)))


if __name__ == "__main__":
    run_main(main, "record")
