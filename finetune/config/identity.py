"""What makes a run the same run: all that decides the loss of a later step, compared entry by entry.

An identity is a dict: keys of the recipe, and entries that are no configuration keys (`ENTRIES`). What is added to it
later says what the runs written before acted as: `before=VALUE` of a configuration key, or its value in `ENTRIES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from finetune.config.keys import keys_of
from finetune.config.schema_train import AugmentConfig, TrainConfig

UNKNOWN = object()  # before an entry was recorded: there is nothing to compare with
ENTRIES: dict[str, Any] = {
    "modality_config": UNKNOWN,
    "statistics": UNKNOWN,
    "dataset.shares": UNKNOWN,
    "dataset_files": UNKNOWN,
    "base_files": UNKNOWN,
    "train.export": "last",  # of a finished checkpoint
    "padding": "attended to",  # where prompts have several lengths; no entry where they have not
}
_SAID = {
    "base": "model.base holds other weights than when the run began",
    "dataset": "the dataset holds other data than when the run began",
    "content": "the dataset or model.base holds other content than when that was made",
    "statistics": "states and actions are normalised with other statistics than when the run began",
    "padding": "padding: instructions of several lengths were padded and the padding reached the losses when the run "
    "began; it no longer does. Finish the run with the version that began it, or begin it again",
}
_FILES = {"dataset_files": "the dataset", "base_files": "model.base"}
_ABSENT = object()
_SHOWN = 8


def recipe(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a resolved fine-tune that must not change when it is continued, with their values."""
    return {
        **{f"train.{key}": value for key, value in resolved["train"].items() if key not in _left_out(TrainConfig)},
        "augment": {key: value for key, value in resolved["augment"].items() if key not in _left_out(AugmentConfig)},
        "dataset.tail": resolved["dataset"]["tail"],
        "dataset.embodiment_tag": resolved["dataset"]["embodiment_tag"],
    }


def _left_out(section: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(section) if not field.metadata.get("identity", True)}


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value under its full dotted name."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {f"{prefix}{name}": inner}
    return found


def befores() -> dict[str, Any]:
    """What later keys and entries were before they existed, by full dotted name."""
    sections = {"train": TrainConfig, "augment": AugmentConfig}
    keys = {f"{name}.{key.name}": key for name, section in sections.items() for key in keys_of(section).values()}
    declared = {name: key.bounds["before"] for name, key in keys.items() if "before" in key.bounds}
    return declared | {name: value for name, value in ENTRIES.items() if value is not UNKNOWN}


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored identity by full dotted names, with what its version did not know yet and acted as."""
    found = flat(stored)
    sections = {name for name, value in found.items() if value is None}
    later = {n: v for n, v in befores().items() if not any(n.startswith(f"{section}.") for section in sections)}
    return later | found


def differences(
    stored: Mapping[str, Any],
    now: Mapping[str, Any],
    files_stored: Mapping[str, str] | None = None,
    files_now: Mapping[str, str] | None = None,
) -> list[str]:
    """What differs between two identities, a line each; `files_*` (every input's digest) name files by which they do.

    Entries that an older version did not record are left out.
    """
    there, here = completed(stored), completed(now)
    unknown = tuple(
        f"{name}." for name, was in ENTRIES.items() if was is UNKNOWN and (name not in stored or name not in now)
    )
    changed = [
        name
        for name in sorted({*there, *here})
        if there.get(name, _ABSENT) != here.get(name, _ABSENT) and not f"{name}.".startswith(unknown)
    ]
    if "statistics" in changed and len(changed) > 1:
        changed.remove("statistics")  # they follow from the rest
    files = _changed_files(files_stored or {}, files_now or {})
    return [line for name in changed for line in _lines(name, there, here, files)]


def _changed_files(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*there, *here} if there.get(name) != here.get(name)) if there else []


def _lines(name: str, there: Mapping[str, Any], here: Mapping[str, Any], files: list[str]) -> list[str]:
    entry, _, place = name.partition(".")
    if entry in _FILES:
        inside = [file for file in files if file.startswith(f"{entry}.{place}/")]  # place: a file, or a folder
        names = [file.partition(".")[2] for file in inside] or [place]
        more = [f"{_FILES[entry]}: {len(names) - _SHOWN} more files"] if len(names) > _SHOWN else []
        return [f"{_FILES[entry]}: {_how(name, there, here)} {file}" for file in names[:_SHOWN]] + more
    if name in _SAID:
        return [_SAID[name]]
    was, now = ("absent" if side.get(name, _ABSENT) is _ABSENT else repr(side[name]) for side in (there, here))
    return [f"{name}: {was} there, {now} now"]


def _how(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    return "lost" if name not in here else "new" if name not in there else "changed"
