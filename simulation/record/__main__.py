"""Record demonstrations of a conflict split in ManiSkill, in ManiSkill's own format. Start it again to resume.

python -m simulation.record split=color_object part=train episodes=500
python -m simulation.record split=size_color part=conflict episodes=100 workers=8
python -m simulation.record --help"""

from __future__ import annotations

from simulation.record import RecordConfig, record
from toolkit.command_line import run_main


def main(config: RecordConfig) -> None:
    """Record and print what the recording holds."""
    print("\n".join(record(config)))


if __name__ == "__main__":
    run_main(main, "record")
