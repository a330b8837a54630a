"""Make a base checkpoint with random weights: python -m finetune.create_base model=tiny."""

from __future__ import annotations

from finetune.create_base import CreateBaseConfig, create_base
from toolkit.command_line import run_main


def main(config: CreateBaseConfig) -> None:
    out = create_base(config)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6
    print(f"{out}: the {config.model.name} model with random weights (seed {config.seed}), {size:,.1f} MB.")
    print("It is for trying things out, not for robots.")


if __name__ == "__main__":
    run_main(main, "create_base")
