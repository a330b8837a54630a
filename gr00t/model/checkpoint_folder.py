"""Finding a checkpoint and its weight files: a local folder, a hub id, one sub-folder of a suite.

Nothing here reads a tensor or imports torch: what is wrong with a folder is said before anything heavy starts.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import near_folder, read_json

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
SMALL_FILES = ["*.json", "*.jinja", "*.txt"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LFS_POINTER = b"version https://git-lfs"


def resolve_folder(
    name: str | PathLike[str],
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    *,
    weights: bool = True,
) -> Path:
    """The local folder of a checkpoint, given as a path or as a hub id: owner/name, or owner/name/sub-folder.

    A hub id is downloaded, or found in the local cache; without `weights`, its small files only. A repository that
    holds several checkpoints is refused before their weights are downloaded, listing them.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    repository, subfolder = hub_parts(str(name), folder)
    options = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
    root = _snapshot(repository, SMALL_FILES, None, options)
    inside = root / subfolder
    if not inside.is_dir():
        raise ToolkitError(f'{repository} has no folder "{subfolder}".{did_you_mean(subfolder, suites(root))}')
    require_config(inside, str(name))
    if weights:
        below = f"{subfolder}/" if subfolder else ""
        _snapshot(repository, [f"{below}*.safetensors"], [f"{below}*/*.safetensors"], options)
    return inside


def hub_parts(name: str, folder: Path) -> tuple[str, str]:
    """ "owner/name/a/b" to ("owner/name", "a/b"); what cannot be a hub id is a folder that is missing."""
    parts = name.rstrip("/").split("/")
    here = Path(parts[0]).is_dir()
    if len(parts) < 2 or here or name.startswith((".", "~", "/")) or any(part in ("", ".", "..") for part in parts):
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = near_folder(folder) or did_you_mean(folder.name, siblings)
        raise ToolkitError(
            f"No checkpoint folder {folder}. Give a folder that holds {CONFIG_NAME}, or a hub id (owner/name).{hint}"
        )
    return "/".join(parts[:2]), "/".join(parts[2:])


def _snapshot(repository: str, allow: list[str], ignore: list[str] | None, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=allow, ignore_patterns=ignore, **options))
    except Exception as error:
        if not is_hub_error(error):
            raise
        raise ToolkitError(hub_failure(repository, error)) from None


def is_hub_error(error: Exception) -> bool:
    """Whether the hub's client or its connection failed; the kinds have no class in common over its versions."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("huggingface_hub", "httpx", "httpx2")


def hub_failure(repository: str, error: Exception) -> str:
    """Why a repository cannot be had, and what to do: a gate, a wrong name, no network. Never shows a token."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return (
            f"{repository} is gated: accept its terms at https://huggingface.co/{repository} with your account, then "
            "make a read token of that account known here (`hf auth login`, or the environment variable HF_TOKEN)."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no such revision. Leave the revision out, or take one that its page lists."
    hint = near_folder(Path(repository))
    if isinstance(error, RepositoryNotFoundError):
        return (
            f'There is no folder "{repository}" here, and no repository of that name on the hub (or it is private: '
            f"then `hf auth login` first). Give a folder, or owner/name as its page spells it.{hint}"
        )
    return (
        f'"{repository}" is neither a local folder nor a hub repository that can be reached from here '
        f"({type(error).__name__}), nor is it whole in the local cache. Where there is internet, run "
        f"`python -m finetune.prefetch base={repository} out=DIR`, copy DIR here and give DIR.{hint}"
    )


def suites(folder: Path) -> list[str]:
    """Names of the sub-folders that are checkpoints themselves, as in GR00T-N1.7-LIBERO."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if (path / CONFIG_NAME).is_file())


def require_config(folder: Path, name: str | None = None) -> None:
    """Refuse a folder without config.json, saying what it holds instead."""
    if (folder / CONFIG_NAME).is_file():
        return
    name = name or str(folder)
    inside = suites(folder)
    if inside:
        listed = "\n  ".join(f"{name.rstrip('/')}/{suite}" for suite in inside)
        raise ToolkitError(f"{name} holds several checkpoints, one a folder. Give one of them:\n  {listed}")
    if (folder / "adapter_config.json").is_file():
        raise ToolkitError(
            f"{name} is an adapter (PEFT) without the model it was trained on. Merge it into its base where it was "
            "trained (merge_and_unload, then save_pretrained), and give that folder."
        )
    raise ToolkitError(f"{name} holds no {CONFIG_NAME}: it is no checkpoint folder.{_half_downloaded(folder)}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order. Refuses what is missing, unsafe or not really there."""
    if (folder / INDEX_NAME).is_file():
        names = sorted(set(weight_map(folder).values()))
    elif (folder / SINGLE_NAME).is_file():
        names = [SINGLE_NAME]
    else:
        raise ToolkitError(_no_weights(folder))
    files = [folder / name for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ToolkitError(
            f"{folder} lacks the shards {missing} that {INDEX_NAME} lists.{_half_downloaded(folder)} "
            "Download or copy them."
        )
    for path in files:
        refuse_lfs_pointer(path)
    return files


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to file name, out of the index; a name that leaves the folder is refused."""
    index = folder / INDEX_NAME
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise ToolkitError(f"{index} is damaged: it has no weight_map of file names. Copy or download it anew.")
    for name in sorted(set(found.values())):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ToolkitError(
                f'{index} names the file "{name}": only safetensors files of the folder itself are read. The index is '
                "damaged or was tampered with; download the checkpoint anew from a source you trust."
            )
    return found


def refuse_lfs_pointer(path: Path) -> None:
    """A clone without git-lfs leaves a note of 130 bytes in place of every large file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ToolkitError(
                f"{path} is a git-lfs pointer, not the file itself: the repository was cloned without git-lfs. Run "
                f"`git lfs pull` in {path.parent}, or download it with `hf download`."
            )


def _no_weights(folder: Path) -> str:
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    if shards:
        return (
            f"{folder} holds {shards[0]} but no {INDEX_NAME}, which says which shards there are."
            f"{_half_downloaded(folder)} Download or copy the index too."
        )
    if (folder / "adapter_model.safetensors").is_file():
        return (
            f"{folder} holds an adapter (PEFT) only. Merge it into its base where it was trained "
            "(merge_and_unload, then save_pretrained), and give that folder."
        )
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} holds pickled weights only ({pickles[0]}). Pickles can run code when they are opened and are "
            "never read here. Convert them where you trust them: load the model in the project that wrote it and save "
            "it with save_pretrained(folder, safe_serialization=True)."
        )
    half = _half_downloaded(folder)
    return f"{folder} holds neither {INDEX_NAME} nor {SINGLE_NAME}: there are no weights in it.{half}"


def _half_downloaded(folder: Path) -> str:
    """A sentence about unfinished downloads in the folder or the hub cache it belongs to; empty if there are none."""
    places = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    if not any(True for place in places for _ in place.rglob("*.incomplete")):
        return ""
    return " A download was broken off here (*.incomplete files): start the same download again, it goes on."
