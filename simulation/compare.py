"""One page over all closed-loop evaluations: the twelve splits, every checkpoint, and what differs between them.

python -m simulation.compare reports_dir=reports out=reports/compare.html
python -m simulation.compare pages=true
python -m simulation.compare --help
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.script import run_main

if TYPE_CHECKING:
    from finetune.config import CompareConfig


def main(config: CompareConfig) -> None:
    # Imported only after the configuration has been accepted: a refusal should not wait for it.
    from simulation.comparison import write_comparison

    print("\n".join(write_comparison(config)))


if __name__ == "__main__":
    run_main(main, "compare")
