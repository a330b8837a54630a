"""Make the published tree of one or several runs: checkpoints, code, guide and a model card; upload it when asked.

    python -m finetune.release split=color_object,color_size out=release/both repo_id=owner/name

Where `out` is a release already and upload=true, it is sent as it is, with what was written into its card by hand."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.release import ReleaseConfig
from gr00t.errors import ToolkitError
from toolkit.command_line import run_main
from toolkit.configuration import load


def read(arguments: Sequence[str]) -> list[ReleaseConfig]:
    """A configuration for each split of `split=A,B`; they share all but what follows from the split."""
    several = next((a for a in arguments if a.startswith("split=") and "," in a), None)
    if several is None:
        return [load("release", arguments)]
    names = [name.strip() for name in several.removeprefix("split=").strip("[]").split(",")]
    if len(set(names)) < len(names):
        raise ToolkitError(f"{several} names a split twice.")
    configs: list[ReleaseConfig] = [
        load("release", [f"split={name}" if a == several else a for a in arguments]) for name in names
    ]
    if len({config.out for config in configs}) > 1:
        raise ToolkitError(f"{several}: several splits go into one folder; name it, out=release/NAME.")
    if len({config.checkpoint for config in configs}) < len(configs):
        raise ToolkitError(f"{several}: each needs its own checkpoint, as checkpoint='checkpoints/${{split.name}}'.")
    return configs


def main(configs: list[ReleaseConfig]) -> None:
    # Imported only after the configuration has been accepted: a refusal should not wait for torch.
    from finetune.release.published_tree import release

    print("\n".join(release(configs).lines()))


if __name__ == "__main__":
    run_main(main, "release", read=read)
