"""The wandb workspace of the project: printed or saved as JSON, created where there is a key.

python -m finetune.dashboard out=workspace.json
python -m finetune.dashboard split=color_object create=true
python -m finetune.dashboard --help
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.script import run_main

if TYPE_CHECKING:
    from finetune.config import DashboardConfig


def main(config: DashboardConfig) -> None:
    from gr00t.errors import ToolkitError
    from gr00t.files import disk_errors, write_json

    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ToolkitError(
            "The dashboard needs wandb-workspaces. Install it: pip install '.[dashboard]' -c constraints.txt"
        )
    workspace = define(config)
    from finetune.workspaces import to_json

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


def define(config: DashboardConfig) -> Any:
    """The workspace that the configuration asks for."""
    from finetune.workspaces import from_json, of_all_splits, of_split

    if config.saved is not None:
        workspace = from_json(Path(config.saved))
    elif config.split is not None:
        workspace = of_split("", config.project, config.split, config.group)
    else:
        workspace = of_all_splits("", config.project, config.group)
    if config.entity is not None:
        workspace.entity = config.entity
    return workspace


def create(workspace: Any) -> str:
    """Make it in the project; its address. Raises ToolkitError without a key, and where wandb refuses."""
    import wandb

    from finetune.wandb_start import has_key
    from gr00t.errors import ToolkitError

    if not has_key():
        raise ToolkitError(
            "create=true needs a wandb key (wandb login), and there is none here. Save the workspace with out=FILE, "
            "and create it where there is one: python -m finetune.dashboard saved=FILE create=true"
        )
    try:
        workspace.entity = workspace.entity or wandb.Api().default_entity
        return str(workspace.save_as_new_view().url)
    except (wandb.errors.Error, ValueError, OSError) as error:
        # wandb's own texts may hold the request, and with it the key
        raise ToolkitError(
            f"wandb did not create the workspace ({type(error).__name__}). Check the network, and that the project "
            f'"{workspace.project}" is there and yours: entity=..., project=...'
        ) from None


if __name__ == "__main__":
    run_main(main, "dashboard")
