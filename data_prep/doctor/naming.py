"""Does meta/modality.json fit the columns and the modality configuration?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from data_prep.doctor.findings import Finding, error, remark, warning
from data_prep.doctor.subject import Subject, matrix
from gr00t.data.schema import ActionType
from gr00t.data.statistics import COLUMNS, relative_groups
from gr00t.errors import did_you_mean

PLACE = "meta/modality.json"
MEND = (
    "Correct the entry in meta/modality.json (groups lie one behind the other: start is the first column, end the one "
    "after the last), or the modality configuration (modality_config=FILE, else conflict_panda_config.py)."
)


def check_names(subject: Subject) -> Iterator[Finding]:
    """Every key of the modality configuration is in meta/modality.json, and what it names exists."""
    for modality in ("state", "action", "video", "annotation"):
        entries = subject.layout.modality.get(modality, {})
        if not isinstance(entries, dict):
            yield error(PLACE, f'"{modality}" must be an object of groups, not {type(entries).__name__}.', MEND)
            continue
        for key in _keys(subject, modality):
            if key not in entries:
                hint = did_you_mean(key, entries)
                yield error(
                    PLACE, f'There is no {modality} "{key}", which the modality configuration names.{hint}', MEND
                )
            elif not isinstance(entries[key], dict):
                yield error(PLACE, f'{modality} "{key}" must be an object, not {type(entries[key]).__name__}.', MEND)
            else:
                yield from _source(subject, modality, key, entries[key])


def _keys(subject: Subject, modality: str) -> list[str]:
    if modality == "annotation":
        return [subject.configs["language"].modality_keys[0].removeprefix("annotation.")]
    return subject.configs[modality].modality_keys


def _source(subject: Subject, modality: str, key: str, entry: dict[str, Any]) -> Iterator[Finding]:
    """The column, or the video's feature, that an entry takes its values from."""
    features = [name for name in subject.layout.info.get("features", {})]
    if modality == "video":
        column = entry.get("original_key") or f"observation.images.{key}"
        if features and column not in features:
            hint = did_you_mean(column, features)
            yield error(
                PLACE, f'video "{key}" is taken from "{column}", which meta/info.json does not list.{hint}', MEND
            )
        return
    default = COLUMNS.get(modality, f"annotation.{key}")
    column = str(entry.get("original_key") or default)
    tables = list(subject.readable.values())
    if tables and not any(column in table for table in tables):
        hint = did_you_mean(column, tables[0])
        yield error(PLACE, f'{modality} "{key}" is taken from the column "{column}", which no table has.{hint}', MEND)
    elif missing := [i for i, table in subject.readable.items() if column not in table]:
        yield error(f"data/, episode {missing[0]}", f'The column "{column}" is missing.')


def check_ranges(subject: Subject) -> Iterator[Finding]:
    """Groups lie inside their column, do not overlap, and cover it."""
    for modality in ("state", "action"):
        entries = subject.layout.modality.get(modality, {})
        taken: dict[str, list[tuple[int, int, str]]] = {}
        for group, entry in entries.items() if isinstance(entries, dict) else []:
            place = subject.group_entry(modality, group)
            if place is None:
                yield error(PLACE, f'{modality} "{group}" is no range of columns: {entry}.', MEND)
                continue
            taken.setdefault(place[0], []).append((place[1].start, place[1].stop, group))
        for column, parts in taken.items():
            yield from _fit(subject, modality, column, sorted(parts))


def _fit(subject: Subject, modality: str, column: str, parts: list[tuple[int, int, str]]) -> Iterator[Finding]:
    widths = {matrix(v).shape[1] for v in subject.column(column).values() if len(v)}
    for start, end, group in parts:
        if widths and end > min(widths):
            text = f'{modality} "{group}" is {start} to {end} of "{column}", which has {min(widths)} values.'
            yield error(PLACE, text, MEND)
    for (_, end, one), (start, _, other) in pairwise(parts):
        if start < end:
            yield error(PLACE, f'{modality} "{one}" and "{other}" overlap in "{column}" ({start} before {end}).', MEND)
    covered = {d for start, end, _ in parts for d in range(start, end)}
    left = sorted(set(range(min(widths, default=0))) - covered)
    if left:
        yield remark(PLACE, f'{modality}: columns {left} of "{column}" belong to no group and are not used.')


def check_groups(subject: Subject) -> Iterator[Finding]:
    """Relative groups are as wide as their state; groups hold the dimensions that their names promise."""
    for group, config in relative_groups(subject.configs["action"]):
        action = subject.group_entry("action", group)
        state = subject.group_entry("state", config.state_key or group)
        if action and state and config.type is not ActionType.EEF:
            widths = [part.stop - part.start for _, part in (action, state)]
            if widths[0] != widths[1]:
                text = f'action "{group}" has {widths[0]} dimensions, the state it is relative to has {widths[1]}.'
                yield error(PLACE, text, MEND)
    for modality, group in subject.groups():
        yield from _own_names(subject, modality, group)


def _own_names(subject: Subject, modality: str, group: str) -> Iterator[Finding]:
    """A group named gripper holds the dimensions that meta/info.json calls gripper, and no other group does."""
    entry = subject.group_entry(modality, group)
    assert entry is not None
    names = subject.feature(entry[0]).get("names")
    if not isinstance(names, list) or not any("gripper" in str(name).lower() for name in names):
        return
    own = [str(name) for name in names[entry[1]]]
    strange = [name for name in own if ("gripper" in name.lower()) != ("gripper" in group.lower())]
    if own and strange and ("gripper" in group.lower() or len(strange) < len(own)):
        yield warning(PLACE, f'{modality} "{group}" holds {", ".join(strange)} of "{entry[0]}" (by name).', MEND)
