"""One page over all closed-loop evaluations: the twelve splits, every checkpoint, and what differs between them.

python -m simulation.compare reports_dir=reports out=reports/compare.html
python -m simulation.compare pages=true
python -m simulation.compare --help"""

from __future__ import annotations

from simulation.compare import CompareConfig, write_comparison
from toolkit.command_line import run_main


def main(config: CompareConfig) -> None:
    """Write the page and print a line for each evaluation."""
    print("\n".join(write_comparison(config)))


if __name__ == "__main__":
    run_main(main, "compare")
