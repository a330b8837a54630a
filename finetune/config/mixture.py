"""dataset.mixture: which datasets are trained on together, and how often each is drawn."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config.schema import FinetuneConfig
from gr00t.errors import ToolkitError


@dataclass(frozen=True)
class Part:
    """A dataset's folder and its weight."""

    folder: Path
    weight: float


def datasets(config: FinetuneConfig) -> list[Part]:
    """What is trained on: the datasets of dataset.mixture, else the split's own. `conflict` beside it never is."""
    if not config.dataset.mixture:
        return [Part(Path(config.dataset.data_dir) / config.split.name / "train", 1.0)]
    return parts(config.dataset.mixture)


def parts(entries: Sequence[str]) -> list[Part]:
    """What the entries of dataset.mixture name, in their order."""
    return [_part(entry) for entry in entries]


def check_mixture(entries: list[str]) -> None:
    """Refuse weights that are none, and a dataset named twice."""
    folders = Counter(os.path.realpath(part.folder) for part in parts(entries))
    for folder, count in folders.items():
        if count > 1:
            raise ToolkitError(f"dataset.mixture names {folder} {count} times. Name it once, with the sum of weights.")


def _part(entry: str) -> Part:
    folder, colon, weight = entry.rpartition(":")
    if not colon or os.sep in weight:
        folder, weight = entry, "1"
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not folder or not 0 < value < math.inf:
        raise ToolkitError(
            f'dataset.mixture: "{entry}" is no FOLDER or FOLDER:WEIGHT with a weight above 0, as in '
            "[data/color_object/train:2,data/color_size/train:1]."
        )
    return Part(Path(os.path.expanduser(folder)), value)
