"""Several datasets of one robot that are trained on together, each drawn as often as its weight says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from gr00t.data.own_statistics import training_statistics
from gr00t.data.statistics import Statistics, Tail, merge_statistics
from gr00t.data.steps import StepReader
from gr00t.errors import ToolkitError
from gr00t.files import file_sha256


class Mixture:
    """Datasets behind their readers, and `shares`: the part of the samples that comes from each, of sum 1.

    One dataset is a mixture too, and is trained on exactly as if it stood alone. Raises ToolkitError for datasets that
    are not of one robot: other sizes of a group, another frame rate; and for conflict episodes, which are never
    trained on.
    """

    def __init__(self, readers: Sequence[StepReader], weights: Sequence[float] | None = None) -> None:
        self.readers = list(readers)
        chosen = [1.0] * len(self.readers) if weights is None else list(weights)
        if not self.readers or len(chosen) != len(self.readers) or not all(0 < w < float("inf") for w in chosen):
            raise ToolkitError(f"A mixture needs a weight above 0 for each of {len(self.readers)} datasets: {chosen}.")
        self.shares = [weight / sum(chosen) for weight in chosen]
        for reader in self.readers:
            _check_like(reader, self.readers[0])

    @property
    def fingerprint(self) -> str:
        """Hash of the datasets' content, in their order; of one dataset its own."""
        return _joined([reader.layout.fingerprint for reader in self.readers])

    @property
    def content(self) -> str:
        """As the fingerprint, of the files as they are now, whatever was recorded (see DatasetLayout)."""
        return _joined([reader.layout.content for reader in self.readers])

    def training_digest(self, digest_of: Callable[[Path], str] = file_sha256) -> str:
        """Hash of what training reads, as it is now, and how often; of one dataset its own (see DatasetLayout)."""
        digests = [reader.layout.training_digest(digest_of) for reader in self.readers]
        return digests[0] if len(digests) == 1 else _joined([*digests, *map(repr, self.shares)])

    def statistics(self, tail: Tail) -> dict[str, dict[str, Statistics]]:
        """One embodiment's entry of a checkpoint's statistics.json, merged by share as the original does."""
        found = [training_statistics(reader, tail) for reader in self.readers]
        return found[0] if len(found) == 1 else merge_statistics(found, self.shares)

    def instructions(self, episodes: Sequence[list[int]]) -> list[str]:
        """Every instruction that occurs in these episodes, a list for each dataset, sorted."""
        return sorted({t for r, chosen in zip(self.readers, episodes, strict=True) for t in r.instructions(chosen)})


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_like(reader: StepReader, first: StepReader) -> None:
    here, there = reader.layout, first.layout
    if here.split.get("part") == "conflict":
        raise ToolkitError(
            f"{here.root} holds conflict episodes, which are for evaluation and never trained on. Take its train part."
        )
    if here.fps != there.fps:
        raise ToolkitError(
            f"{here.root} has {here.fps:g} frames a second, {there.root} {there.fps:g}: an action chunk would mean "
            "two lengths of time. Mix datasets of one rate."
        )
    for modality, groups in reader.widths().items():
        for group, width in groups.items():
            if width != first.widths()[modality][group]:
                raise ToolkitError(
                    f'{here.root}: {modality} "{group}" has {width} dimensions, {there.root} has '
                    f"{first.widths()[modality][group]}. A mixture is of one robot; train others apart."
                )
