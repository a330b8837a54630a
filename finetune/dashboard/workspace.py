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
from gr00t.file_reading import read_json
from toolkit.trackers import has_key

MEASURED = {
    "Loss": ["train/loss", "train/loss_arm", "train/loss_gripper"],
    "Held-out episodes": ["val/arm_mae", "val/arm_mae_last", "val/gripper_wrong_signs", "val/gripper_wrong_signs_last"],
    "Gradients and learning rate": [
        *(f"train/grad_norm{part}" for part in ("", "_projector", "_diffusion_model", "_vlln")),
        "train/learning_rate",
    ],
    "Speed": ["train/samples_per_second", "train/data_wait_seconds", "train/peak_memory_gib"],
}
CLOSED_LOOP = ["closed_loop/train/success", "closed_loop/conflict/success", "closed_loop/cue_preference"]
SIDE_BY_SIDE = ["val/arm_mae", "val/arm_mae_last", "val/gripper_wrong_signs_last", "train/loss"]
COLUMNS = ["config:split.value.name", "config:engine.value.name"]
COLUMNS += [f"summary:{name}" for name in ("status", *SIDE_BY_SIDE)]


def define(config: DashboardConfig) -> ws.Workspace:
    """The workspace that the configuration asks for: a saved one, that of a split, or all splits side by side."""
    workspace = from_json(Path(config.saved)) if config.saved is not None else _defined(config)
    workspace.entity = workspace.entity if config.entity is None else config.entity
    return workspace


def _defined(config: DashboardConfig) -> ws.Workspace:
    filters: list[Any] = [expr.Tags().isin([config.split])] if config.split else []  # a run is tagged with its split
    filters += [] if config.group is None else [expr.Metric("Group") == config.group]
    curves = [
        _section(name, [panels.LinePlot(title=metric, x="Step", y=[metric]) for metric in metrics])
        for name, metrics in MEASURED.items()
    ]
    if config.split is None:
        sections = [_section("Splits side by side", _bars(SIDE_BY_SIDE + CLOSED_LOOP)), *curves]
    else:
        media = (("First batch", ["first_batch"]), ("Open loop", ["val/errors", "val/episode"]))
        seen = [panels.MediaBrowser(title=title, media_keys=keys, num_columns=1) for title, keys in media]
        sections = [
            *curves,
            _section("What the policy sees and does", seen),
            _section("Closed loop", _bars(CLOSED_LOOP)),
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


def _section(name: str, shown: list[Any]) -> ws.Section:
    return ws.Section(name=name, panels=shown, is_open=True)


def _bars(metrics: list[str]) -> list[Any]:
    """A bar of each metric for every run, or group of runs."""
    return [panels.BarPlot(title=metric, metrics=[metric], orientation="h") for metric in metrics]


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
            f"{path} is no workspace of python -m finetune.dashboard ({where}: {first['msg']}). Make it again with "
            "out=FILE."
        ) from None
