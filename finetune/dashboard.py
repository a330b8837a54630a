"""The wandb workspace of the project: printed or saved as JSON, created where there is a key."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr00t.errors import ToolkitError, disk_errors, require_extra
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from toolkit.command_line import run_main
from toolkit.declaration import key
from toolkit.trackers import has_key

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

MEASURED = {
    "Loss": ["train/loss", "train/loss_arm", "train/loss_gripper"],
    "Held-out episodes": ["val/arm_mae", "val/arm_mae_last", "val/gripper_wrong_signs", "val/gripper_wrong_signs_last"],
    "Gradients and learning rate": [
        *(f"train/grad_norm{part}" for part in ("", "_projector", "_diffusion_model", "_vlln")),
        "train/learning_rate",
    ],
    "Speed": ["train/samples_per_second", "train/data_wait_seconds", "train/peak_memory_gib"],
}
MEDIA = {"First batch": ["first_batch"], "Open loop": ["val/errors", "val/episode"]}
CLOSED_LOOP = ["closed_loop/train/success", "closed_loop/conflict/success", "closed_loop/cue_preference"]
SIDE_BY_SIDE = ["val/arm_mae", "val/arm_mae_last", "val/gripper_wrong_signs_last", "train/loss"]
COLUMNS = ["config:split.value.name", "config:engine.value.name"]
COLUMNS += [f"summary:{name}" for name in ("status", *SIDE_BY_SIDE)]


@dataclass(kw_only=True)
class DashboardConfig:
    """Define the wandb project's workspace: of one split, or of all splits side by side.

    It is printed as JSON, which needs no account; out=FILE saves it, create=true makes it in the project.
    """

    split: str | None = key("the split whose runs it shows; null for all splits side by side", None)
    group: str | None = key("show the runs of this wandb group only; null for all", None)
    project: str = key("wandb project", "groot-conflict")
    entity: str | None = key("wandb user or team; null for the one the key belongs to", None)
    out: str | None = key("file that receives the workspace as JSON; null prints it", None, folder=True)
    saved: str | None = key("a file of out=, used in place of what is defined here; null for none", None, folder=True)
    create: bool = key("make the workspace in the project; needs a wandb key", False)

    def check_given(self, given: Collection[str]) -> None:
        """Refuse what a saved workspace has settled already."""
        settled = [f"{name}={getattr(self, name)}" for name in ("split", "group", "project") if name in given]
        if self.saved is not None and settled:
            raise ToolkitError(
                f"saved={self.saved} is a whole workspace, with a project and what it shows; {', '.join(settled)} acts "
                "on nothing. Leave that out, or define the workspace again, without saved=...."
            )


def main(config: DashboardConfig) -> None:
    """Define the workspace or read a saved one, then print, save or create it."""
    require_extra("dashboard", "The dashboard needs", wandb_workspaces="wandb-workspaces")
    workspace = define(config) if config.saved is None else from_json(Path(config.saved))
    workspace.entity = workspace.entity if config.entity is None else config.entity
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


def define(config: DashboardConfig) -> ws.Workspace:
    """The workspace of a split, or of all splits side by side."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    def section(name: str, shown: list[Any]) -> ws.Section:
        return ws.Section(name=name, panels=shown, is_open=True)

    def bars(metrics: list[str]) -> list[Any]:  # of each run, or group of runs
        return [panels.BarPlot(title=metric, metrics=[metric], orientation="h") for metric in metrics]

    filters: list[Any] = [expr.Tags().isin([config.split])] if config.split else []  # a run is tagged with its split
    filters += [] if config.group is None else [expr.Metric("Group") == config.group]
    curves = [
        section(name, [panels.LinePlot(title=metric, x="Step", y=[metric]) for metric in metrics])
        for name, metrics in MEASURED.items()
    ]
    if config.split is None:
        sections = [section("Splits side by side", bars(SIDE_BY_SIDE + CLOSED_LOOP)), *curves]
    else:
        seen = [panels.MediaBrowser(title=title, media_keys=keys, num_columns=1) for title, keys in MEDIA.items()]
        sections = [
            *curves,
            section("What the policy sees and does", seen),
            section("Closed loop", bars(CLOSED_LOOP)),
            ws.Section(name="Settings that differ", panels=[panels.RunComparer(diff_only=True)]),
        ]
    by_split: list[Any] = [] if config.split else [expr.Config("split.name")]
    return ws.Workspace(
        entity="",
        project=config.project,
        name=f"GR00T {config.split}" if config.split else "GR00T, all splits",
        sections=sections,
        settings=ws.WorkspaceSettings(group_by_prefix="first", max_runs=50),
        runset_settings=ws.RunsetSettings(filters=filters, groupby=by_split, pinned_columns=COLUMNS),
    )


def create(workspace: Any) -> str:
    """Make it in the project; its address. Raises ToolkitError without a key, and where wandb refuses."""
    import wandb

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


def to_json(workspace: ws.Workspace) -> dict[str, Any]:
    """A workspace as plain JSON; `from_json` gives it back."""
    # the package has no public way to serialise one
    return workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def from_json(path: Path) -> ws.Workspace:
    """The workspace in a file of `to_json`; anything else raises ToolkitError."""
    import wandb_workspaces.workspaces as ws
    from pydantic import ValidationError
    from wandb_workspaces.workspaces.internal import View

    try:
        return ws.Workspace._from_model(View.model_validate(read_json(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ToolkitError(
            f"{path} is no workspace of python -m finetune.dashboard ({where}: {first['msg']}). Make it again with "
            "out=FILE."
        ) from None


if __name__ == "__main__":
    run_main(main, "dashboard")
