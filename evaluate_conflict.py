"""Evaluate a fine-tuned checkpoint on a conflict split.

python evaluate_conflict.py split=color_object
python evaluate_conflict.py split=color_object part=conflict report_dir=reports/color_object_conflict
python evaluate_conflict.py split=color_object mode=closed_loop episodes=200
python evaluate_conflict.py --help"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.command_line import run_main

if TYPE_CHECKING:
    from simulation.closed_loop import EvaluateConfig


def main(config: EvaluateConfig) -> None:
    """Evaluate in open or closed loop, as mode says."""
    # Imported only after the configuration has been accepted: a refusal should not wait for torch.
    if config.mode == "open_loop":
        from finetune.open_loop.evaluation import evaluate_open_loop

        evaluate_open_loop(config)
    else:
        from simulation.closed_loop_evaluation import evaluate_closed_loop

        evaluate_closed_loop(config)


if __name__ == "__main__":
    run_main(main, "evaluate")
