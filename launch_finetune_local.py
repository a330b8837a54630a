"""Fine-tune GR00T N1.7 on one conflict split, on this machine.

torchrun --nproc_per_node=4 launch_finetune_local.py split=color_object
python launch_finetune_local.py split=color_object train.micro_batch_size=4
python launch_finetune_local.py --help"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from toolkit.command_line import run_main, stop_signals

if TYPE_CHECKING:
    from finetune.recipe import FinetuneConfig


def main(config: FinetuneConfig) -> None:
    with stop_signals():
        # Imported only after the configuration has been accepted: a refusal should not wait for torch.
        from finetune.training.train import finetune

        result = finetune(config)
    if os.environ.get("RANK", "0") == "0":
        print(f"{config.split.name} {result}")


if __name__ == "__main__":
    run_main(main, "finetune")
