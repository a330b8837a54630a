"""The manifest of a checkpoint: size and hash of every file, so that a copy can prove that it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from gr00t.files import file_sha256, read_json, write_json

MANIFEST = Path("experiment_cfg") / "manifest.json"
# What checkpoints hold that were written before there was a manifest.
_ALWAYS = ("config.json", "processor_config.json", "statistics.json", "embodiment_id.json")
_SHOWN = 6


def write_manifest(folder: Path) -> None:
    """Write experiment_cfg/manifest.json over all other files; the last step of making a checkpoint."""
    found = {name: path for name, path in _files(folder).items() if path != folder / MANIFEST}
    (folder / MANIFEST).parent.mkdir(exist_ok=True)
    described = {name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for name, path in found.items()}
    write_json(folder / MANIFEST, {"files": described})


def verify_manifest(folder: Path, *, added: bool = False) -> None:
    """Compare every file with the manifest, which reads them all; a missing, changed or added one raises ToolkitError.

    So does a checkpoint without a manifest: nothing can be said of it. `added` allows further files.
    """
    if not (folder / MANIFEST).is_file():
        raise ToolkitError(
            f"{folder} has no {MANIFEST}, so its files cannot be verified: it was written by an earlier version or by "
            "another project. Leave verify out, or fetch it with `python -m finetune.prefetch`, which writes one."
        )
    listed, found = _listed(folder), _files(folder)
    wrong = [f"{name} is missing" for name in sorted(set(listed) - set(found))]
    wrong += [] if added else [f"{name} is not listed" for name in foreign_files(folder)]
    wrong += [
        f"{name} has changed" for name in sorted(set(listed) & set(found)) if not _same(found[name], listed[name])
    ]
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        lines = "\n  ".join([*wrong[:_SHOWN], *more])
        raise ToolkitError(
            f"{folder} is not what {MANIFEST} says:\n  {lines}\nCopy or fetch it again from where it is whole."
        )


def foreign_files(folder: Path) -> list[str]:
    """Files of a checkpoint's folder that its manifest does not list, or, without one, that no checkpoint has."""
    found = [name for name, path in _files(folder).items() if path != folder / MANIFEST]
    if (folder / MANIFEST).is_file():
        listed = _listed(folder)
        return [name for name in found if name not in listed]
    return [name for name in found if not _is_usual(name)]


def _is_usual(name: str) -> bool:
    weights = name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))
    return name in _ALWAYS or ("/" not in name and weights) or name.startswith(("processor/", "experiment_cfg/"))


def _same(path: Path, described: Any) -> bool:
    return path.stat().st_size == described.get("bytes") and file_sha256(path) == described.get("sha256")


def _listed(folder: Path) -> dict[str, Any]:
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict) or not all(isinstance(described, dict) for described in files.values()):
        raise ToolkitError(f"{folder / MANIFEST} is damaged: it lists no files. Copy it again.")
    return files


def _files(folder: Path) -> dict[str, Path]:
    """Everything below the folder that is no folder, sorted; links count as what they are called."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}
