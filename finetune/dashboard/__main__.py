"""The wandb workspace of the project: printed or saved as JSON, created where there is a key.

python -m finetune.dashboard out=workspace.json
python -m finetune.dashboard split=color_object create=true
python -m finetune.dashboard --help"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.command_line import run_main

if TYPE_CHECKING:
    from finetune.dashboard import DashboardConfig


def main(config: DashboardConfig) -> None:
    """Define the workspace, then print, save or create it."""
    from gr00t.errors import disk_errors, require_extra
    from gr00t.file_replacement import write_json

    require_extra("dashboard", "The dashboard needs", wandb_workspaces="wandb-workspaces")
    from finetune.dashboard.workspace import create, define, to_json

    workspace = define(config)
    if config.out is not None:
        out = Path(config.out)
        with disk_errors(out, "Choose another file, out=FILE."):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, to_json(workspace))
        print(f"saved {workspace.name}: {out}")
    elif not config.create:
        print(json.dumps(to_json(workspace), indent=2))
    if config.create:
        print(f"created {workspace.name}: {create(workspace)}")


if __name__ == "__main__":
    run_main(main, "dashboard")
