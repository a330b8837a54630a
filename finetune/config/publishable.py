"""What of a fine-tune's configuration may leave this machine: the recipe, without paths, accounts and names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any

from finetune.config.keys import keys_of
from finetune.config.mixture import parts
from finetune.config.schema import FinetuneConfig

# No result depends on them, and they name accounts, projects, modules and proxies of a site.
_OF_THE_SITE = ("cluster", "tracking")


def publishable(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved fine-tune without `cluster` and `tracking`; of a folder outside the working one its name is left."""
    kept = copy.deepcopy({section: value for section, value in resolved.items() if section not in _OF_THE_SITE})
    for key in keys_of(FinetuneConfig).values():
        *parents, name = key.name.split(".")
        holder: Any = kept
        for parent in parents:
            holder = holder.get(parent) or {}
        if key.bounds.get("folder") and isinstance(holder.get(name), str):
            holder[name] = _without_place(holder[name])
    dataset = kept.get("dataset") or {}
    if dataset.get("mixture"):
        dataset["mixture"] = [f"{_dataset(str(p.folder))}:{p.weight:g}" for p in parts(dataset["mixture"])]
    return kept


def _dataset(folder: str) -> str:
    """A dataset's folder without its place; `train` alone, which many end in, would tell none from another."""
    kept, path = _without_place(folder), PurePath(folder)
    return f"{path.parent.name}/{kept}" if kept == "train" and path.parent.name else kept


def _without_place(folder: str) -> str:
    """A path within the working folder (or a hub id) as it is, else its last part."""
    windows = PureWindowsPath(folder)
    if windows.drive or "\\" in folder:
        return windows.name
    path = PurePath(folder)
    outside = path.is_absolute() or ".." in path.parts or folder.startswith("~")
    return path.name if outside else folder
