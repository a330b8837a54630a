"""Datasets and checkpoints as wandb artifacts, so that lineage can be followed: which data and base made which weights.

By default an artifact is a short JSON file of hashes and sizes: enough to prove which files they were, and it costs
nothing where a checkpoint has 16 GB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from finetune.best import Best
from finetune.config.mixture import datasets
from finetune.config.schema import FinetuneConfig
from finetune.run_files import ARTIFACTS
from gr00t.files import file_sha256, read_json, write_json

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Artifacts:
    """The artifacts of one run, holding what `tracking.artifacts` says. Folders in them are as the user wrote them."""

    def __init__(self, config: FinetuneConfig) -> None:
        self._config, self._uploads = config, config.tracking.artifacts == "upload"
        self._folder = Path(config.run_dir) / ARTIFACTS

    def dataset(self, described: Mapping[str, Any]) -> wandb.Artifact:
        """What is trained on, as `describe_datasets` has it: of a mixture, each dataset in a folder of its own."""
        folders = [part.folder for part in datasets(self._config)]
        name, inside = f"{self._config.split.name}-dataset", {}
        if len(folders) > 1:
            described = {"folders": [str(folder) for folder in folders], **described}
            inside = {folder: f"{number}/" for number, folder in enumerate(folders)}
        artifact = self._make(name, "dataset", folders[0], described)
        for folder in folders if self._uploads else []:
            _add_files(artifact, folder, inside.get(folder, ""))
        return artifact

    def base(self, fingerprint: str) -> wandb.Artifact:
        """The base checkpoint."""
        base = self._config.model.base
        return self._make(f"{Path(base).name}-base", "model", Path(base), {"fingerprint": fingerprint})

    def checkpoint(self, folder: Path) -> wandb.Artifact:
        """A checkpoint to resume from, by the hashes of its manifest. Only this run reads it: it is not uploaded."""
        state, files = read_json(folder / "state.json"), _sizes(folder, read_json(folder / "manifest.json"))
        best = Best.restored(state)
        metric = {best.name: best.metric} if best.step == state["step"] else {}
        described = {"step": state["step"], "files": files, **metric}
        return self._make(f"{self._config.split.name}-training-state", "training-state", folder, described)

    def policy(self, folder: Path, step: int) -> wandb.Artifact:
        """The finished checkpoint."""
        found = sorted(p for p in folder.rglob("*") if p.is_file())
        files = _sizes(folder, {str(p.relative_to(folder)): file_sha256(p) for p in found})
        described = {"step": step, "files": files}
        artifact = self._make(f"{self._config.split.name}-policy", "model", folder, described)
        if self._uploads:
            _add_files(artifact, folder)
        return artifact

    def _make(self, name: str, kind: str, folder: Path, described: Mapping[str, Any]) -> wandb.Artifact:
        metadata = {name: value for name, value in described.items() if not isinstance(value, dict | list)}
        artifact = wandb.Artifact(_NOT_IN_NAMES.sub("-", name)[:128], type=kind, metadata=metadata)
        self._folder.mkdir(exist_ok=True)
        note = self._folder / f"{artifact.name}-{folder.name}.json"
        write_json(note, {"folder": str(folder), **described})
        # "immutable": wandb makes no copy in the user's home
        artifact.add_file(str(note), name="reference.json", policy="immutable", skip_cache=True)
        return artifact


def _add_files(artifact: wandb.Artifact, folder: Path, below: str = "") -> None:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not inside.parts[0].startswith("."):
            artifact.add_file(str(path), name=f"{below}{inside}", policy="immutable", skip_cache=True)


def _sizes(folder: Path, hashes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in hashes.items()}
