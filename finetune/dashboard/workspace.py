"""The wandb workspaces of the project, defined with wandb-workspaces, and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as ws
from pydantic import ValidationError
from wandb_workspaces import expr
from wandb_workspaces.workspaces.internal import View

from finetune.dashboard import DashboardConfig
from gr00t.errors import ToolkitError
from gr00t.file_replacement import read_json
from toolkit.wandb_session import has_key

MEASURED = {
    "Loss": ["train/loss", "train/loss_arm", "train/loss_gripper"],
    "Held-out episodes": ["val/arm_mae", "val/arm_mae_last", "val/gripper_wrong_signs", "val/gripper_wrong_signs_last"],
    "Gradients and learning rate": [
        "train/grad_norm",
        "train/grad_norm_projector",
        "train/grad_norm_diffusion_model",
        "train/grad_norm_vlln",
        "train/learning_rate",
    ],
    "Speed": ["train/samples_per_second", "train/data_wait_seconds", "train/peak_memory_gib"],
}
CLOSED_LOOP = ["closed_loop/train/success", "closed_loop/conflict/success", "closed_loop/cue_preference"]
SIDE_BY_SIDE = ["val/arm_mae", "val/arm_mae_last", "val/gripper_wrong_signs_last", "train/loss"]
COLUMNS = [
    "config:split.value.name",
    "config:engine.value.name",
    "summary:status",
    *(f"summary:{metric}" for metric in SIDE_BY_SIDE),
]


def define(config: DashboardConfig) -> ws.Workspace:
    """The workspace that the configuration asks for: a saved one, that of a split, or all splits side by side."""
    workspace = from_json(Path(config.saved)) if config.saved is not None else _defined(config)
    if config.entity is not None:
        workspace.entity = config.entity
    return workspace


def _defined(config: DashboardConfig) -> ws.Workspace:
    filters: list[Any] = [] if config.group is None else [expr.Metric("Group") == config.group]
    by_split: list[Any] = []
    measured = [_section(name, metrics) for name, metrics in MEASURED.items()]
    if config.split is None:
        name = "GR00T, all splits"
        by_split.append(expr.Config("split.name"))
        sections = [_bars("Splits side by side", [*SIDE_BY_SIDE, *CLOSED_LOOP]), *measured]
    else:
        name = f"GR00T {config.split}"
        filters.insert(0, expr.Tags().isin([config.split]))  # every run is tagged with its split
        media: list[Any] = [
            panels.MediaBrowser(title="First batch", media_keys=["first_batch"], num_columns=1),
            panels.MediaBrowser(title="Open loop", media_keys=["val/errors", "val/episode"], num_columns=1),
        ]
        sections = [
            *measured,
            ws.Section(name="What the policy sees and does", panels=media, is_open=True),
            _bars("Closed loop", CLOSED_LOOP),
            ws.Section(name="Settings that differ", panels=[panels.RunComparer(diff_only=True)]),
        ]
    return ws.Workspace(
        entity="",
        project=config.project,
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(group_by_prefix="first", max_runs=50),
        runset_settings=ws.RunsetSettings(filters=filters, groupby=by_split, pinned_columns=COLUMNS),
    )


def _section(name: str, metrics: list[str]) -> ws.Section:
    """A curve of each metric."""
    plots: list[Any] = [panels.LinePlot(title=metric, x="Step", y=[metric]) for metric in metrics]
    return ws.Section(name=name, panels=plots, is_open=True)


def _bars(name: str, metrics: list[str]) -> ws.Section:
    """A bar of each metric for every run, or group of runs."""
    plots: list[Any] = [panels.BarPlot(title=metric, metrics=[metric], orientation="h") for metric in metrics]
    return ws.Section(name=name, panels=plots, is_open=True)


def create(workspace: Any) -> str:
    """Make it in the project; its address. Raises ToolkitError without a key, and where wandb refuses."""
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
    view: View = workspace._to_model()  # the package has no public way to serialise one
    return view.model_dump(mode="json", by_alias=True, exclude_none=True)


def from_json(path: Path) -> ws.Workspace:
    """The workspace in a file of `to_json`; anything else raises ToolkitError."""
    try:
        return ws.Workspace._from_model(View.model_validate(read_json(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ToolkitError(
            f"{path} is no workspace of python -m finetune.dashboard ({where}: {first['msg']}). Make it anew with "
            "out=FILE."
        ) from None
