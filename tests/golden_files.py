"""Where the numbers recorded from the original lie, and how they are named (see tests/golden)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def golden_dir() -> Path:
    """The folder of the golden files: GROOT_GOLDEN_DIR, else tests/golden (a subset)."""
    return Path(os.environ.get("GROOT_GOLDEN_DIR") or Path(__file__).parent / "golden")


def infer_files() -> list[Path]:
    """Recorded inferences, infer_<checkpoint>__<tag>.npz."""
    return sorted(golden_dir().glob("infer_*.npz"))


def train_files() -> list[Path]:
    """Recorded training batches, train_<checkpoint>.npz (a json of the same name beside each)."""
    return sorted(golden_dir().glob("train_*.npz"))


def checkpoint_of(path: Path) -> Path:
    """The checkpoint folder that a golden file was recorded with."""
    return path.parent / path.stem.removeprefix("infer_").removeprefix("train_").split("__")[0]


def tag_of(path: Path) -> str:
    """The embodiment tag of a recorded inference."""
    return path.stem.split("__")[1]


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
