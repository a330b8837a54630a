"""The licence of the published weights: what the user says, else what the base says of itself, else unknown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from finetune.config.checks import is_hub_id
from finetune.prefetch import ORIGIN
from gr00t.errors import ToolkitError
from gr00t.files import read_json

_FILES = ("LICENSE*", "LICENCE*", "NOTICE*")
_NAME = "terms-of-the-base-model"
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Licence:
    """Hugging Face's three fields for the weights (None: unknown), and the base's own files that go along."""

    id: str | None = None
    name: str | None = None
    link: str | None = None
    files: dict[str, Path] = field(default_factory=dict)


def hub_id_of(base: str | None) -> str | None:
    """The repository of a base: itself, or where finetune.prefetch had it from; None where nothing says."""
    if base is None:
        return None
    if is_hub_id(base):
        return "/".join(base.split("/")[:2])
    origin = Path(base) / ORIGIN
    return str(read_json(origin)["base_model"]) if origin.is_file() else None


def licence_of(base: str | None, base_model: str | None, chosen: str | None, repo_id: str | None) -> Licence:
    """The licence of weights that were tuned from `base`, a folder or a hub id (None: unknown); `chosen` wins.

    base_model: the base's hub id, where there is one: its page has its terms. repo_id: where the release will be.
    """
    folder = Path(base) if base is not None and Path(base).is_dir() else None
    files, stated = (_carried(folder), _stated(folder / "README.md")) if folder else ({}, {})
    found = chosen or stated.get("license") or ("other" if files or base_model else None)
    if found != "other":
        return Licence(found, files=files)
    return Licence(found, stated.get("license_name", _NAME), _link(files, stated, base_model, repo_id), files)


def _carried(folder: Path) -> dict[str, Path]:
    """The base's licence and notice, under names of their own: LICENSE is the code's."""
    found = sorted(path for pattern in _FILES for path in folder.glob(pattern) if path.is_file())
    return {f"{path.stem}-WEIGHTS{path.suffix}": path for path in found}


def _link(files: dict[str, Path], stated: dict[str, str], base_model: str | None, repo_id: str | None) -> str | None:
    """An address of the terms: the hub takes no other file of a repository than LICENSE."""
    if files and repo_id:
        return f"{_HUB}/{repo_id}/blob/main/{next(iter(files))}"
    link = stated.get("license_link", "")
    if "://" in link:
        return link
    return f"{_HUB}/{base_model}" if base_model else None


def _stated(readme: Path) -> dict[str, str]:
    """The licence fields in the front matter of the base's own card."""
    if not readme.is_file():
        return {}
    try:
        data = ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise ToolkitError(f"{readme} cannot be read ({type(error).__name__}). Mend it, or say licence=...") from None
    return {name: str(value) for name, value in data.items() if name.startswith("license") and value}
