"""Where the numbers recorded from the original lie, and how they are named (see tests/golden).

A subset is carried in tests/golden and always tested; every further file in the folder GROOT_GOLDEN_DIR is a case too,
with its checkpoint looked up beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
CARRIED = Path(__file__).parent / "golden"


def golden_dir() -> Path:
    """The folder GROOT_GOLDEN_DIR, else tests/golden. One that holds no golden file is an error, not an empty test."""
    folder = Path(os.environ.get("GROOT_GOLDEN_DIR") or CARRIED)
    if not (any(folder.glob("infer_*.npz")) or any(folder.glob("train_*.npz"))):
        raise FileNotFoundError(
            f"GROOT_GOLDEN_DIR={folder} holds neither infer_*.npz nor train_*.npz: give the folder of the golden files."
        )
    return folder


def golden_path(name: str) -> Path:
    """A file or folder of that name in `golden_dir()`, else the carried one."""
    found = golden_dir() / name
    return found if found.exists() else CARRIED / name


def infer_files() -> list[Path]:
    """Recorded inferences, infer_<checkpoint>__<tag>.npz."""
    return _cases("infer_*.npz")


def train_files() -> list[Path]:
    """Recorded training batches, train_<checkpoint>.npz (a json of the same name beside each)."""
    return _cases("train_*.npz")


def _cases(pattern: str) -> list[Path]:
    files = {path.name: path for folder in (CARRIED, golden_dir()) for path in folder.glob(pattern)}
    return [files[name] for name in sorted(files)]


def checkpoint_of(path: Path) -> Path:
    """The checkpoint folder that a golden file was recorded with: beside the file, else the carried one."""
    name = path.stem.removeprefix("infer_").removeprefix("train_").split("__")[0]
    return next((f / name for f in (path.parent, CARRIED) if (f / name).is_dir()), path.parent / name)


def tag_of(path: Path) -> str:
    """The embodiment tag of a recorded inference."""
    return path.stem.split("__", 1)[1]


def load(path: Path) -> dict[str, np.ndarray]:
    """Every array of a golden file."""
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def below(data: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names start with the prefix, under the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in data.items() if name.startswith(prefix)}


def batch_size(data: dict[str, np.ndarray]) -> int:
    """Number of samples in a recorded batch."""
    return len(data["in::state"])


def batch_images(data: dict[str, np.ndarray]) -> np.ndarray:
    """The images of the whole batch in order, uint8 (N, S, S, 3): one array `img`, or `img::<b>` for each sample."""
    if "img" in data:
        return data["img"]
    return np.concatenate([data[f"img::{b}"] for b in range(batch_size(data))])
