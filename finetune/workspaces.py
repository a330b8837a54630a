"""The wandb workspaces of the project, defined with wandb-workspaces, and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as ws
from pydantic import ValidationError
from wandb_workspaces import expr
from wandb_workspaces.workspaces.internal import View

from gr00t.errors import ToolkitError
from gr00t.files import read_json

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


def of_split(entity: str, project: str, split: str, group: str | None) -> ws.Workspace:
    """Every curve and picture of the runs of one split."""
    filters = [expr.Tags().isin([split]), *_of_group(group)]  # every run is tagged with its split
    pictures: list[Any] = [
        panels.MediaBrowser(title="First batch", media_keys=["first_batch"], num_columns=1),
        panels.MediaBrowser(title="Open loop", media_keys=["val/errors", "val/episode"], num_columns=1),
    ]
    sections = [
        *(_section(name, metrics) for name, metrics in MEASURED.items()),
        ws.Section(name="What the policy sees and does", panels=pictures, is_open=True),
        ws.Section(name="Closed loop", panels=_bars(CLOSED_LOOP), is_open=True),
        ws.Section(name="Settings that differ", panels=[panels.RunComparer(diff_only=True)]),
    ]
    runs = ws.RunsetSettings(filters=filters, pinned_columns=COLUMNS)
    return _workspace(entity, project, f"GR00T {split}", sections, runs)


def of_all_splits(entity: str, project: str, group: str | None) -> ws.Workspace:
    """The splits side by side: a bar and a curve of each."""
    sections = [
        ws.Section(name="Splits side by side", panels=_bars([*SIDE_BY_SIDE, *CLOSED_LOOP]), is_open=True),
        *(_section(name, metrics) for name, metrics in MEASURED.items()),
    ]
    by_split: list[Any] = [expr.Config("split.name")]
    runs = ws.RunsetSettings(filters=_of_group(group), groupby=by_split, pinned_columns=COLUMNS)
    return _workspace(entity, project, "GR00T, all splits", sections, runs)


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


def _workspace(
    entity: str, project: str, name: str, sections: list[ws.Section], runs: ws.RunsetSettings
) -> ws.Workspace:
    settings = ws.WorkspaceSettings(group_by_prefix="first", max_runs=50)
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=sections, settings=settings, runset_settings=runs
    )


def _section(name: str, metrics: list[str]) -> ws.Section:
    plots: list[Any] = [panels.LinePlot(title=metric, x="Step", y=[metric]) for metric in metrics]
    return ws.Section(name=name, panels=plots, is_open=True)


def _bars(metrics: list[str]) -> list[Any]:
    return [panels.BarPlot(title=metric, metrics=[metric], orientation="h") for metric in metrics]


def _of_group(group: str | None) -> list[Any]:
    return [] if group is None else [expr.Metric("Group") == group]
