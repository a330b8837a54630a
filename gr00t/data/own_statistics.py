"""The statistics that training normalises with: those a dataset carries, and what it lacks computed and kept.

GR00T-flavoured datasets (v2.x) carry meta/stats.json and meta/relative_stats.json. LeRobot's own carry others: of all
episodes, without or with approximate percentiles, nothing relative. Theirs are left aside.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from gr00t.checksums import is_sound, make_once, write_checksum
from gr00t.data.meta import V3
from gr00t.data.statistics import Statistics, Tail, to_processor_statistics
from gr00t.data.tables import cache_folder
from gr00t.errors import ToolkitError
from gr00t.files import read_json, write_json

if TYPE_CHECKING:
    from gr00t.data.layout import DatasetLayout
    from gr00t.data.steps import StepReader

FORMAT = 1  # raised when the same data would give other statistics


def training_statistics(reader: StepReader, tail: Tail) -> dict[str, dict[str, Statistics]]:
    """One embodiment's entry of a checkpoint's statistics.json for a dataset: state, action, relative_action.

    What a dataset carries holds for tail=mask. What is computed is over the training episodes, and kept beside the
    Arrow copy of the frame tables. Raises ToolkitError for carried statistics of another horizon or size.
    """
    layout = reader.layout
    recorded = carried(layout, "stats.json")
    relative = carried(layout, "relative_stats.json")
    if recorded is None or relative is None or tail == "drop":
        computed = _computed(reader, tail)
        recorded = recorded or computed["columns"]
        relative = computed["relative"] if relative is None or tail == "drop" else relative
    where = layout.root / "meta" / "relative_stats.json"
    return to_processor_statistics(recorded, relative, layout.modality, reader.configs, where)


def carried(layout: DatasetLayout, name: str) -> dict[str, Any] | None:
    """A statistics file of the dataset in GR00T's form; None where there is none, so that training computes its own."""
    if layout.version == V3 or not layout.meta.has(name):
        return None
    found = layout.meta.json(name)
    if name == "stats.json" and not any("q01" in of for of in found.values() if isinstance(of, dict)):
        return None  # LeRobot v2.0 wrote a file of that name, without percentiles
    return found


def _computed(reader: StepReader, tail: Tail) -> dict[str, Any]:
    """{"columns": as in stats.json, "relative": as in relative_stats.json}."""
    root, episodes = reader.layout.root, reader.layout.train_episodes
    if not episodes:
        raise ToolkitError(f"{root}: every episode is held out of training (meta/split.json).")
    path = cache_folder(root) / f"statistics-{_digest(reader, tail)[:16]}.json"

    def make() -> None:
        found = {"columns": reader.column_statistics(episodes), "relative": reader.relative_statistics(episodes, tail)}
        write_json(path, found)
        write_checksum(path, path.stem)

    make_once(path, f"the statistics of {root}", lambda: is_sound(path, path.stem), make)
    return read_json(path)


def _digest(reader: StepReader, tail: Tail) -> str:
    """Of all that decides them."""
    layout = reader.layout
    decides = {
        "format": FORMAT,
        "tables": reader.table_digest,
        "episodes": layout.train_episodes,
        "modality": layout.modality,
        "configs": {name: config.to_json() for name, config in reader.configs.items()},
        "tail": tail,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
