"""The published tree of one or several runs, and its model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.declaration import key
from toolkit.shared_keys import (
    SplitConfig,
    check_finished_folder,
    check_publication,
    modalities_field,
    modality_config_key,
    refuse_inside,
)


@dataclass(kw_only=True)
class ReleaseConfig:
    """Make the published tree of a run: checkpoint, code, guide and a model card; upload it when asked.

    split=A,B puts several runs into one tree (with out=FOLDER).
    """

    split: SplitConfig = key("the conflict split")
    checkpoint: str = key("folder of the finished checkpoint", "checkpoints/${split.name}", folder=True)
    run_dir: str = key("folder of the run that made it, for its card; may be gone", "runs/${split.name}", folder=True)
    reports_dir: str = key("folder with the evaluations of it, at any depth", "reports/${split.name}", folder=True)
    out: str = key("folder that receives the published tree", "release/${split.name}", folder=True)
    base_model: str | None = key("Hugging Face id of the base, owner/name; null for what the run was given", None)
    licence: str | None = key(
        "licence of the weights, as Hugging Face names it; null for what the base says of itself", None
    )
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    datasets: list[str] = key("Hugging Face ids of the published training data, owner/name", [])
    files: list[str] = key("files and folders of the checkout that git does not track, published as well", [])
    repo_id: str | None = key("Hugging Face repository of the release, owner/name", None)
    upload: bool = key("send the release to repo_id, with the login of hf auth login or HF_TOKEN", False)
    private: bool = key("where upload=true makes the repository, only its owner sees it", True)
    link: bool = key("share the weight files with the checkpoint (hard links): no room needed, but one content", False)
    overwrite: bool = key("replace a release that is already there", False)

    def check_here(self) -> None:
        """Require a finished checkpoint, an `out` apart from it and its run, and names as the hub takes them."""
        out = Path(self.out)
        check_publication(self, ("base_model", self.base_model), *(("datasets", hub_id) for hub_id in self.datasets))
        check_finished_folder(Path(self.checkpoint), self.split)
        for name in ("checkpoint", "run_dir", "reports_dir"):
            refuse_inside("out", out, name, Path(getattr(self, name)))
            refuse_inside(name, Path(getattr(self, name)), "out", out)
