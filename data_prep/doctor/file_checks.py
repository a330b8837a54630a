"""Do files, counts and columns agree? Does meta/modality.json fit the columns and the modality configuration?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.doctor import Finding, episodes, error, remark, warning
from data_prep.doctor.examined_dataset import Group, Subject, matrix
from gr00t.data.layout import dataset_fingerprint, file_hashes
from gr00t.data.schema import ActionType
from gr00t.data.statistics import COLUMNS, relative_groups
from gr00t.errors import did_you_mean
from gr00t.file_reading import files_below
from gr00t.file_replacement import file_sha256

MODALITY = "meta/modality.json"

MEND_COUNTS = (
    "An interrupted copy, or meta/ of another version: copy or prepare the dataset again; or correct the number in "
    "meta/info.json."
)
MEND_CHANGED = (
    "Damaged on the disk or on the way: copy them again, or prepare the dataset again (overwrite=true). Changed on "
    'purpose: remove "fingerprint" from meta/split.json, and they are no longer compared.'
)
MEND_MODALITY = (
    "Correct the entry in meta/modality.json (groups lie one behind the other: start is the first column, end the one "
    "after the last), or the modality configuration (modality_config=FILE, else conflict_panda_config.py)."
)


# -- files and counts --------------------------------------------------------------------------------------------------


def check_counts(subject: Subject) -> Iterator[Finding]:
    """Do the totals agree?"""
    layout, count, frames = subject.layout, len(subject.layout.listed), sum(e.length for e in subject.layout.listed)
    if layout.excluded:
        yield remark("meta/", f"{episodes(sorted(layout.excluded))} left out, and not examined")
    yield remark("meta/", f"{count} episodes, {frames} frames, {len(layout.tasks)} instructions")
    for key, counted, level in (
        ("total_episodes", count, error),
        ("total_frames", frames, error),
        ("total_tasks", len(layout.tasks), warning),
    ):
        said = layout.info.get(key)
        if said is not None and said != counted:
            yield level("meta/info.json", f"{key} says {said}, but there are {counted}.", MEND_COUNTS)
    if missing := sorted(set(range(count)) - {e.index for e in layout.listed}):
        found = f"The {count} episodes are not numbered from 0: {episodes(missing)} missing."
        remedy = "Check that none was lost: prepare the dataset again, or number what is there from 0."
        yield warning("meta/episodes.jsonl", found, remedy)


def check_tables(subject: Subject) -> Iterator[Finding]:
    """Is every frame table there, whole and numbered?"""
    reasons = {i: reason for i, reason in subject.tables.items() if isinstance(reason, str)}
    yield from subject.about(error, "data/", {i: f"The frame table cannot be read: {r}" for i, r in reasons.items()})
    rows = {i: len(next(iter(table.values()), ())) for i, table in subject.readable.items()}
    wrong = {
        i: f"The frame table has {rows[i]} rows, meta/episodes.jsonl promises {length}."
        for i, length in subject.lengths.items()
        if rows.get(i, length) != length
    }
    for index in list(wrong)[:3]:
        yield from subject.about(error, "data/", {index: wrong[index]})
    if len(wrong) > 3:
        found = "Frame tables and meta/episodes.jsonl differ in length."
        yield from subject.about(error, "data/", dict.fromkeys(wrong, found))
    numbered: tuple[tuple[str, str, Callable[[int, int], np.ndarray]], ...] = (
        ("episode_index", "the episode's number", lambda index, rows: np.full(rows, index)),
        ("frame_index", "0, 1, 2, ...", lambda index, rows: np.arange(rows)),
    )
    for name, meaning, right in numbered:
        found = f"The column {name} is not {meaning}: rows were lost, reordered or taken from another episode."
        columns = subject.column(name).items()
        wrong = {i: found for i, v in columns if not np.array_equal(v.reshape(-1), right(i, len(v)))}
        yield from subject.about(error, "data/", wrong)
    places = {i: v.reshape(-1) for i, v in subject.column("index").items() if len(v)}
    found = "The column index does not run on from row to row through the dataset."
    gaps = {}
    for i, place in places.items():
        following = places.get(i + 1, place[-1:] + 1)
        if (np.diff(place) != 1).any() or following[0] != place[-1] + 1:
            gaps[i] = found
    remedy = "Training does not read it, LeRobot does: prepare the dataset again."
    yield from subject.about(warning, "data/", gaps, remedy)


def check_features(subject: Subject) -> Iterator[Finding]:
    """Are columns as wide as meta/info.json says?"""
    for name, entry in subject.features.items():
        if entry.get("dtype") not in ("video", "image") and isinstance(entry.get("shape"), list):
            promised = int(np.prod([n for n in entry["shape"] if isinstance(n, int)] or [1]))
            widths = {i: matrix(v).shape[1] for i, v in subject.column(name).items()}
            text = f"Rows have {{}} values, meta/info.json promises {promised}."
            wrong = {i: text.format(width) for i, width in widths.items() if width != promised}
            yield from subject.about(error, f"data/, column {name}", wrong)
    for name in subject.group_columns:
        if any(v.dtype.kind != "f" for v in subject.column(name).values()):
            yield error(f"data/, column {name}", "Holds whole numbers or texts, where measured values are expected.")


def check_videos_present(subject: Subject) -> Iterator[Finding]:
    """Has every episode its videos?"""
    paths = {c: {i: subject.video_path(i, c) for i in subject.lengths} for c in subject.layout.cameras}
    for camera in subject.cameras:
        lost = [i for i, p in paths[camera].items() if isinstance(p, str) or not p.is_file() or not p.stat().st_size]
        if lost:
            first = paths[camera][lost[0]]
            where = first if isinstance(first, str) else f"the first is {_relative(subject, first)}"
            found = f"{len(lost)} of {len(subject.lengths)} videos are missing or empty: {where}."
            yield from subject.about(error, f"videos/, {camera}", dict.fromkeys(lost, found))
    count, total = len(subject.layout.listed), subject.layout.info.get("total_videos")
    cameras = sum(entry.get("dtype") == "video" for entry in subject.features.values())
    if total is not None and cameras and total not in (count * cameras, cameras):
        found = f"total_videos says {total}; {count} episodes of {cameras} cameras are {count * cameras}."
        yield warning("meta/info.json", found, MEND_COUNTS)
    # Left by an older version, or of episodes that meta/ forgot.
    known = {*subject.layout.data_files(), *(Path(p) for of_camera in paths.values() for p in of_camera.values())}
    known |= set(_files_of(subject, subject.layout.excluded))
    named = {str(subject.entries("video")[c].get("original_key")) for c in paths}
    tables = [p for p in files_below(subject.root / "data") if p.suffix == ".parquet" and p not in known]
    videos = [p for p in files_below(subject.root / "videos") if p.suffix == ".mp4" and p not in known]
    videos = [p for p in videos if named & set(p.parts)]
    for kind, strangers in (("frame tables", tables), ("videos", videos)):
        if strangers:
            found = f"{len(strangers)} {kind} belong to no episode of meta/episodes.jsonl and are not used."
            remedy = "Episodes lost from meta/episodes.jsonl: prepare the dataset again. Leftovers: remove them."
            yield warning(str(_relative(subject, min(strangers))), found, remedy)


def _files_of(subject: Subject, indices: Iterable[int]) -> dict[Path, list[int]]:
    """{frame table or video: those of these episodes that lie in it}."""
    found: dict[Path, list[int]] = defaultdict(list)
    for index in indices:
        for path in {
            subject.layout.parquet_path(index),
            *(subject.video_path(index, c) for c in subject.layout.cameras),
        }:
            found[path if isinstance(path, Path) else Path(path)].append(index)  # parsing is slow
    return found


def _relative(subject: Subject, path: Path) -> Path:
    return path.relative_to(subject.root) if path.is_relative_to(subject.root) else path


def check_unchanged(subject: Subject) -> Iterator[Finding]:
    """Are the files those that were written?"""
    split = subject.layout.split
    if not split.get("fingerprint"):
        return
    files = split.get("files")
    recorded: dict[str, Any] = files if isinstance(files, dict) else {}
    if subject.fast:
        tables = [name for name in recorded if name.startswith("data/") and (subject.root / name).is_file()]
        hashes = {name: file_sha256(subject.root / name) for name in tables}
    else:
        hashes = file_hashes(subject.root)
    holders = _files_of(subject, subject.lengths)
    spared = {
        _relative(subject, path).as_posix() for path in _files_of(subject, subject.layout.excluded).keys() - holders
    }
    hashes |= {name: recorded[name] for name in spared & recorded.keys()}
    changed = [name for name in recorded if name in hashes and hashes[name] != recorded[name]]
    damage = [names for kind in ("data/", "videos/") if (names := [n for n in changed if n.startswith(kind)])]
    for names in damage:
        where = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        found = "Not as it was written: its SHA-256 differs from meta/split.json's."
        held = [index for name in names for index in holders.get(subject.root / name, ())]
        yield error(where, found, MEND_CHANGED, episodes=tuple(dict.fromkeys(held)))
    if not subject.fast and not damage and dataset_fingerprint(subject.root, split, hashes) != split["fingerprint"]:
        # Without the files' own hashes it cannot be said which file it is.
        level, what = (warning, "meta/, or which files there are,") if recorded else (error, "The content")
        found = f"{what} is no longer what was written: the hash differs from the recorded fingerprint."
        yield level("meta/split.json", found, MEND_CHANGED)


# -- meta/modality.json ------------------------------------------------------------------------------------------------


def check_names(subject: Subject) -> Iterator[Finding]:
    """Does modality.json fit the modality configuration?"""
    wanted = {modality: subject.configs[modality].modality_keys for modality in ("state", "action", "video")}
    language = subject.configs["language"].modality_keys[0].removeprefix("annotation.")
    for modality, keys in {**wanted, "annotation": [language]}.items():
        entries = subject.entries(modality)
        if not isinstance(entries, dict):
            found = f'"{modality}" must be an object of groups, not {type(entries).__name__}.'
            yield error(MODALITY, found, MEND_MODALITY)
            continue
        for key in keys:
            found = _misnamed(subject, modality, key, entries)
            if found:
                yield error(MODALITY, found, MEND_MODALITY)
            elif modality != "video":
                column = _column(modality, key, entries)
                missing = [i for i, table in subject.readable.items() if column not in table]
                if missing:
                    yield from subject.about(
                        error, "data/", dict.fromkeys(missing, f'The column "{column}" is missing.')
                    )


def _misnamed(subject: Subject, modality: str, key: str, entries: dict[str, Any]) -> str:
    """What is wrong with an entry, or what it names, throughout the dataset; empty where nothing is."""
    if key not in entries:
        hint = did_you_mean(key, entries)
        return f'There is no {modality} "{key}", which the modality configuration names.{hint}'
    if not isinstance(entries[key], dict):
        return f'{modality} "{key}" must be an object, not {type(entries[key]).__name__}.'
    column = _column(modality, key, entries)
    place, there = f'the column "{column}", which no table has', [list(t) for t in subject.readable.values()]
    if modality == "video":
        place = f'"{column}", which meta/info.json does not list'
        there = [names] if (names := list(subject.layout.info.get("features", {}))) else []
    if there and not any(column in names for names in there):
        return f'{modality} "{key}" is taken from {place}.{did_you_mean(column, there[0])}'
    return ""


def _column(modality: str, key: str, entries: dict[str, Any]) -> str:
    usual = {"video": f"observation.images.{key}", "annotation": f"annotation.{key}", **COLUMNS}
    return str(entries[key].get("original_key") or usual[modality])


def check_ranges(subject: Subject) -> Iterator[Finding]:
    """Do groups lie inside their columns, apart?"""
    for modality in ("state", "action"):
        entries = subject.entries(modality)
        taken: dict[str, list[Group]] = defaultdict(list)
        for name, entry in entries.items() if isinstance(entries, dict) else []:
            group = subject.all_groups.get((modality, name))
            if group is None:
                yield error(MODALITY, f'{modality} "{name}" is no range of columns: {entry}.', MEND_MODALITY)
            else:
                taken[group.column].append(group)
        for column, groups in taken.items():
            yield from _fit(subject, column, sorted(groups, key=lambda g: (g.part.start, g.part.stop, g.name)))


def _fit(subject: Subject, column: str, groups: list[Group]) -> Iterator[Finding]:
    widths = {matrix(v).shape[1] for v in subject.column(column).values() if len(v)}
    for group in groups:
        if widths and group.part.stop > min(widths):
            place = f'{group.part.start} to {group.part.stop} of "{column}", which has {min(widths)} values'
            yield error(MODALITY, f"{group.where} is {place}.", MEND_MODALITY)
    for one, other in pairwise(groups):
        if other.part.start < one.part.stop:
            place = f'in "{column}" ({other.part.start} before {one.part.stop})'
            yield error(MODALITY, f'{one.where} and "{other.name}" overlap {place}.', MEND_MODALITY)
    left = [d for d in range(min(widths, default=0)) if not any(g.part.start <= d < g.part.stop for g in groups)]
    if left:
        text = f'{groups[0].modality}: columns {left} of "{column}" belong to no group and are not used.'
        yield remark(MODALITY, text)


def check_groups(subject: Subject) -> Iterator[Finding]:
    """Do groups hold what they are called?"""
    for name, config in relative_groups(subject.configs["action"]):
        action = subject.all_groups.get(("action", name))
        state = subject.all_groups.get(("state", config.state_key or name))
        if action and state and config.type is not ActionType.EEF and len(action.dims) != len(state.dims):
            widths = f"{len(action.dims)} dimensions, the state it is relative to has {len(state.dims)}"
            yield error(MODALITY, f"{action.where} has {widths}.", MEND_MODALITY)
    for group in subject.groups:
        names = subject.features.get(group.column, {}).get("names")
        if not isinstance(names, list) or not any("gripper" in str(name).lower() for name in names):
            continue
        own = [str(name) for name in names[group.part]]
        strange = [name for name in own if ("gripper" in name.lower()) != group.is_gripper]
        if strange and (group.is_gripper or len(strange) < len(own)):
            text = f'{group.where} holds {", ".join(strange)} of "{group.column}" (by name).'
            yield warning(MODALITY, text, MEND_MODALITY)
