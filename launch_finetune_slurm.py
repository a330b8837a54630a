"""Fine-tune GR00T N1.7 on a SLURM cluster: one split or many, a sweep, or all stages of each.

python launch_finetune_slurm.py split=color_object,color_size max_parallel=2
python launch_finetune_slurm.py split=color_object train.learning_rate=1e-4,5e-5 dry_run=true
python launch_finetune_slurm.py split=color_object stages=prepare,finetune,evaluate
python launch_finetune_slurm.py --help"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.command_line import run_main

if TYPE_CHECKING:
    from finetune.slurm.launch_request import Request


def read(arguments: Sequence[str]) -> Request:
    """The jobs that the arguments ask for."""
    # Imported only here: by now run_main has made sure that the gr00t package is ours.
    from finetune.slurm.launch_request import read

    return read(arguments)


def main(request: Request) -> None:
    """Check the request, then submit or print it."""
    from finetune.slurm.submit import launch

    launch(request)


if __name__ == "__main__":
    run_main(main, "launch", read=read)
