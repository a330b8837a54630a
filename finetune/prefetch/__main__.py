"""Bring a base checkpoint and its tokenizer to a folder: python -m finetune.prefetch base=OWNER/NAME."""

from __future__ import annotations

from finetune.prefetch import PrefetchConfig, prefetch
from toolkit.command_line import run_main


def main(config: PrefetchConfig) -> None:
    out, found = prefetch(config)
    tags = ", ".join(found.tags) or "none yet"
    print(
        f"{out} is whole: {found.parameters:,} parameters, {found.weight_bytes / 1e9:.2f} GB in {found.shards} files."
    )
    print(f"Robots with statistics: {tags}. Use it with model.base={out}; it needs no internet.")


if __name__ == "__main__":
    run_main(main, "prefetch")
