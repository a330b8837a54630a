"""Write finetune_jobs/<split>.sbatch for the twelve splits, from the template and the cluster's configuration.

python -m finetune.slurm.render                                  what configs/local/default.yaml says, where it is there
python -m finetune.slurm.render local=none                       as shipped
python -m finetune.slurm.render cluster.nodes=2 train.max_steps=20000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.checkout import CHECKOUT, CONFIG_DIR
from finetune.config import FinetuneConfig, load
from finetune.config.compose import options
from finetune.slurm.template import render
from gr00t.errors import ToolkitError

JOBS = CHECKOUT / "finetune_jobs"


def splits() -> list[str]:
    """The twelve conflict splits that ship."""
    return [name for name in options("split", CONFIG_DIR) if name != "custom"]


def script(split: str, arguments: Sequence[str]) -> str:
    """The job script of a split. What is given here also stands in the script, as the job's own arguments."""
    overrides = [f"split={split}", *[text for text in arguments if text != "local=none"]]
    config: FinetuneConfig = load("finetune", [f"split={split}", *arguments], check_here=False)
    about = [
        f"Fine-tune GR00T N1.7 on the split {config.split.name}: {config.split.instruction}.",
        f"sbatch [options of sbatch] finetune_jobs/{split}.sbatch [key=value ...], in the folder of the checkout",
        "Written by python -m finetune.slurm.render from configs/cluster and configs/local; may be edited by hand.",
    ]
    return render(config.cluster, job_name=split, stage="finetune", overrides=overrides, about=about)


def main(arguments: Sequence[str], folder: Path = JOBS) -> None:
    texts = {name: script(name, arguments) for name in splits()}  # all or none
    for name, text in texts.items():
        path = folder / f"{name}.sbatch"
        path.write_text(text, encoding="utf-8")
    print(f"{len(texts)} scripts written to {folder}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ToolkitError as error:
        sys.exit(f"error: {error}")
