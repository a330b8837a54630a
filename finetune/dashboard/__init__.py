"""The wandb workspace of the project."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.declaration import key


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
