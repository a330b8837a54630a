"""Do files, counts and columns agree? Does meta/modality.json fit the columns and the modality configuration, and has
every frame an instruction that is listed?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.doctor.examined_dataset import Subject, matrix
from data_prep.doctor.findings import Finding, episodes, error, remark, warning
from gr00t.data.layout import dataset_fingerprint, file_hashes
from gr00t.data.schema import ActionType
from gr00t.data.statistics import COLUMNS, relative_groups
from gr00t.errors import did_you_mean
from gr00t.file_replacement import file_sha256

MODALITY, TASKS = "meta/modality.json", "meta/tasks.jsonl"
TASK_INDEX = "task_index"  # LeRobot's own column
SHOWN_TASKS = 5

MEND_COUNTS = (
    "A copy that broke off, or meta/ of another version: copy or prepare the dataset again; or correct the number in "
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
MEND_TASKS = (
    "Write the instruction into meta/tasks.jsonl and its task_index into the column, or prepare the dataset again with "
    'split.instruction="...".'
)


# -- files and counts --------------------------------------------------------------------------------------------------


def check_counts(subject: Subject) -> Iterator[Finding]:
    """The totals of meta/info.json against meta/episodes.jsonl and meta/tasks.jsonl."""
    layout = subject.layout
    frames = sum(e.length for e in layout.episodes)
    yield remark("meta/", f"{len(layout.episodes)} episodes, {frames} frames, {len(layout.tasks)} instructions")
    for key, counted, level in (
        ("total_episodes", len(layout.episodes), error),
        ("total_frames", frames, error),
        ("total_tasks", len(layout.tasks), warning),
    ):
        said = layout.info.get(key)
        if said is not None and said != counted:
            yield level("meta/info.json", f"{key} says {said}, but there are {counted}.", MEND_COUNTS)
    missing = sorted(set(range(len(layout.episodes))) - {e.index for e in layout.episodes})
    if missing:
        yield warning(
            "meta/episodes.jsonl",
            f"The {len(layout.episodes)} episodes are not numbered from 0: {episodes(missing)} missing.",
            "Check that none was lost: prepare the dataset again, or number what is there from 0.",
        )


def check_tables(subject: Subject) -> Iterator[Finding]:
    """Every episode has its frame table, which can be read, has its length and numbers its rows."""
    unreadable = {index: reason for index, reason in subject.tables.items() if isinstance(reason, str)}
    if unreadable:
        first = next(iter(unreadable.values()))
        yield error(f"data/, {subject.which(unreadable)}", f"The frame table cannot be read: {first}")
    rows = {index: len(next(iter(table.values()), ())) for index, table in subject.readable.items()}
    lengths = {e.index: e.length for e in subject.episodes}
    wrong = [index for index in lengths if index in rows and rows[index] != lengths[index]]
    for index in wrong[:3]:
        found = f"The frame table has {rows[index]} rows, meta/episodes.jsonl promises {lengths[index]}."
        yield error(f"data/, episode {index}", found)
    if len(wrong) > 3:
        yield error(f"data/, {subject.which(wrong)}", "Frame tables and meta/episodes.jsonl differ in length.")
    numbers, frames = subject.column("episode_index"), subject.column("frame_index")
    strange = [i for i, v in numbers.items() if not np.array_equal(v.reshape(-1), np.full(len(v), i))]
    unordered = [i for i, v in frames.items() if not np.array_equal(v.reshape(-1), np.arange(len(v)))]
    for name, meaning, wrong in (
        ("episode_index", "the episode's number", strange),
        ("frame_index", "0, 1, 2, ...", unordered),
    ):
        if wrong:
            found = f"The column {name} is not {meaning}: rows were lost, reordered or taken from another episode."
            yield error(f"data/, {subject.which(wrong)}", found)
    places = {i: v.reshape(-1) for i, v in subject.column("index").items() if len(v)}
    gaps = [i for i in places if i + 1 in places and places[i + 1][0] != places[i][-1] + 1]
    inner = [i for i, v in places.items() if (np.diff(v) != 1).any()]
    if gaps or inner:
        yield warning(
            f"data/, {episodes(sorted(set(gaps + inner)))}",
            "The column index does not run on from row to row through the dataset.",
            "Training does not read it, LeRobot does: prepare the dataset again.",
        )


def check_videos_present(subject: Subject) -> Iterator[Finding]:
    """Every episode has a video of every camera, and there is nothing else in data/ and videos/."""
    count = len(subject.episodes)
    for camera in subject.cameras:
        paths = {e.index: subject.video_path(e.index, camera) for e in subject.episodes}
        lost = [i for i, p in paths.items() if isinstance(p, str) or not p.is_file() or not p.stat().st_size]
        if lost:
            first = paths[lost[0]]
            where = first if isinstance(first, str) else f"the first is {_relative(subject, first)}"
            found = f"{len(lost)} of {len(paths)} videos are missing or empty: {where}."
            yield error(f"videos/, {camera}, {subject.which(lost)}", found)
    total = subject.layout.info.get("total_videos")
    cameras = sum(entry.get("dtype") == "video" for entry in subject.features.values())
    if total is not None and cameras and total not in (count * cameras, cameras):
        found = f"total_videos says {total}; {count} episodes of {cameras} cameras are {count * cameras}."
        yield warning("meta/info.json", found, MEND_COUNTS)
    # Left by an older version, or of episodes that meta/ forgot.
    known = set(subject.layout.data_files())
    for e in subject.episodes:
        known |= {Path(path) for camera in subject.layout.cameras if (path := subject.video_path(e.index, camera))}
    tables = [p for p in (subject.root / "data").rglob("*.parquet") if p not in known]
    named = {str(subject.layout.modality["video"][c].get("original_key")) for c in subject.layout.cameras}
    videos = [p for p in (subject.root / "videos").rglob("*.mp4") if p not in known and named & set(p.parts)]
    for kind, strangers in (("frame tables", tables), ("videos", videos)):
        if strangers:
            yield warning(
                str(_relative(subject, min(strangers))),
                f"{len(strangers)} {kind} belong to no episode of meta/episodes.jsonl and are not used.",
                "Episodes lost from meta/episodes.jsonl: prepare the dataset again. Leftovers: remove them.",
            )


def _relative(subject: Subject, path: Path) -> Path:
    return path.relative_to(subject.root) if path.is_relative_to(subject.root) else path


def check_features(subject: Subject) -> Iterator[Finding]:
    """What meta/info.json says of the columns' and frames' sizes against what is there."""
    for name, entry in subject.features.items():
        if entry.get("dtype") == "video" or not isinstance(entry.get("shape"), list):
            continue
        promised = int(np.prod([n for n in entry["shape"] if isinstance(n, int)] or [1]))
        widths = {i: matrix(v).shape[1] for i, v in subject.column(name).items()}
        wrong = [i for i, width in widths.items() if width != promised]
        if wrong:
            found = f"Rows have {widths[wrong[0]]} values, meta/info.json promises {promised}."
            yield error(f"data/, column {name}, {subject.which(wrong)}", found)
    for name in subject.group_columns:
        if any(v.dtype.kind != "f" for v in subject.column(name).values()):
            yield error(f"data/, column {name}", "Holds whole numbers or texts, where measured values are expected.")


def check_unchanged(subject: Subject) -> Iterator[Finding]:
    """The content against what was recorded when it was written; the fast part reads the frame tables only."""
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
    changed = [name for name in recorded if name in hashes and hashes[name] != recorded[name]]
    damage = [names for kind in ("data/", "videos/") if (names := [n for n in changed if n.startswith(kind)])]
    for names in damage:
        where = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        yield error(where, "Not as it was written: its SHA-256 differs from meta/split.json's.", MEND_CHANGED)
    if not subject.fast and not damage and dataset_fingerprint(subject.root, split, hashes) != split["fingerprint"]:
        # Without the files' own hashes it cannot be said which file it is.
        level, what = (warning, "meta/, or which files there are,") if recorded else (error, "The content")
        found = f"{what} is no longer what was written: the hash differs from the recorded fingerprint."
        yield level("meta/split.json", found, MEND_CHANGED)


# -- meta/modality.json ------------------------------------------------------------------------------------------------


def check_names(subject: Subject) -> Iterator[Finding]:
    """Every key of the modality configuration is in meta/modality.json, and what it names exists."""
    language = subject.configs["language"].modality_keys[0].removeprefix("annotation.")
    wanted = {modality: subject.configs[modality].modality_keys for modality in ("state", "action", "video")}
    for modality, keys in {**wanted, "annotation": [language]}.items():
        entries = subject.layout.modality.get(modality, {})
        if not isinstance(entries, dict):
            found = f'"{modality}" must be an object of groups, not {type(entries).__name__}.'
            yield error(MODALITY, found, MEND_MODALITY)
            continue
        for key in keys:
            if key not in entries:
                hint = did_you_mean(key, entries)
                found = f'There is no {modality} "{key}", which the modality configuration names.{hint}'
                yield error(MODALITY, found, MEND_MODALITY)
            elif not isinstance(entries[key], dict):
                found = f'{modality} "{key}" must be an object, not {type(entries[key]).__name__}.'
                yield error(MODALITY, found, MEND_MODALITY)
            elif modality == "video":
                features = list(subject.layout.info.get("features", {}))
                column = entries[key].get("original_key") or f"observation.images.{key}"
                if features and column not in features:
                    hint = did_you_mean(column, features)
                    found = f'video "{key}" is taken from "{column}", which meta/info.json does not list.{hint}'
                    yield error(MODALITY, found, MEND_MODALITY)
            else:
                column = str(entries[key].get("original_key") or COLUMNS.get(modality, f"annotation.{key}"))
                missing = [i for i, table in subject.readable.items() if column not in table]
                if missing and len(missing) == len(subject.readable):
                    hint = did_you_mean(column, subject.readable[missing[0]])
                    found = f'{modality} "{key}" is taken from the column "{column}", which no table has.{hint}'
                    yield error(MODALITY, found, MEND_MODALITY)
                elif missing:
                    yield error(f"data/, episode {missing[0]}", f'The column "{column}" is missing.')


def check_ranges(subject: Subject) -> Iterator[Finding]:
    """Groups lie inside their column, do not overlap, and cover it."""
    for modality in ("state", "action"):
        entries = subject.layout.modality.get(modality, {})
        taken: dict[str, list[tuple[int, int, str]]] = {}
        for group, entry in entries.items() if isinstance(entries, dict) else []:
            place = subject.group_entry(modality, group)
            if place is None:
                yield error(MODALITY, f'{modality} "{group}" is no range of columns: {entry}.', MEND_MODALITY)
                continue
            taken.setdefault(place[0], []).append((place[1].start, place[1].stop, group))
        for column, parts in taken.items():
            yield from _fit(subject, modality, column, sorted(parts))


def _fit(subject: Subject, modality: str, column: str, parts: list[tuple[int, int, str]]) -> Iterator[Finding]:
    widths = {matrix(v).shape[1] for v in subject.column(column).values() if len(v)}
    for start, end, group in parts:
        if widths and end > min(widths):
            text = f'{modality} "{group}" is {start} to {end} of "{column}", which has {min(widths)} values.'
            yield error(MODALITY, text, MEND_MODALITY)
    for (_, end, one), (start, _, other) in pairwise(parts):
        if start < end:
            text = f'{modality} "{one}" and "{other}" overlap in "{column}" ({start} before {end}).'
            yield error(MODALITY, text, MEND_MODALITY)
    covered = {d for start, end, _ in parts for d in range(start, end)}
    left = sorted(set(range(min(widths, default=0))) - covered)
    if left:
        yield remark(MODALITY, f'{modality}: columns {left} of "{column}" belong to no group and are not used.')


def check_groups(subject: Subject) -> Iterator[Finding]:
    """Relative groups are as wide as their state; a group named gripper holds the dimensions that meta/info.json calls
    gripper, and no other group does."""
    for group, config in relative_groups(subject.configs["action"]):
        action = subject.group_entry("action", group)
        state = subject.group_entry("state", config.state_key or group)
        if action and state and config.type is not ActionType.EEF:
            widths = [part.stop - part.start for _, part in (action, state)]
            if widths[0] != widths[1]:
                text = f'action "{group}" has {widths[0]} dimensions, the state it is relative to has {widths[1]}.'
                yield error(MODALITY, text, MEND_MODALITY)
    for modality, group in subject.groups():
        entry = subject.group_entry(modality, group)
        assert entry is not None
        names = subject.features.get(entry[0], {}).get("names")
        if not isinstance(names, list) or not any("gripper" in str(name).lower() for name in names):
            continue
        is_gripper = "gripper" in group.lower()
        own = [str(name) for name in names[entry[1]]]
        strange = [name for name in own if ("gripper" in name.lower()) != is_gripper]
        if strange and (is_gripper or len(strange) < len(own)):
            text = f'{modality} "{group}" holds {", ".join(strange)} of "{entry[0]}" (by name).'
            yield warning(MODALITY, text, MEND_MODALITY)


# -- instructions ------------------------------------------------------------------------------------------------------


def check_tasks(subject: Subject) -> Iterator[Finding]:
    """Listed instructions are texts that say something, each once."""
    tasks = subject.layout.tasks
    if not tasks:
        yield error(TASKS, "Lists no instruction.", MEND_TASKS)
    for index, text in tasks.items():
        if not any(letter.isalnum() for letter in text):
            found = f"Instruction {index} is empty ({text!r}): the policy would be told nothing."
            yield error(TASKS, found, MEND_TASKS)
    for text, count in Counter(tasks.values()).items():
        if count > 1:
            remedy = "Give both the same task_index; a mixture of instructions is counted wrongly otherwise."
            yield warning(TASKS, f'"{text}" is listed {count} times.', remedy)


def check_told(subject: Subject) -> Iterator[Finding]:
    """The task indices in the tables are listed, all are used, and episodes.jsonl says the same."""
    column, tasks = annotation_column(subject), subject.layout.tasks
    by_episode = instructions_by_episode(subject, column)
    lost = [i for i, numbers in by_episode.items() if not numbers <= set(tasks)]
    if lost:
        number = min(by_episode[lost[0]] - set(tasks))
        known = did_you_mean(str(number), map(str, tasks)).replace("Known:", "Listed:")
        found = f'Column "{column}" refers to instruction {number}, which meta/tasks.jsonl does not list.{known}'
        yield error(f"data/, {subject.which(lost)}", found, MEND_TASKS)
    if column != TASK_INDEX:
        others = instructions_by_episode(subject, TASK_INDEX)
        wrong = [i for i, numbers in others.items() if i not in lost and not numbers <= set(tasks)]
        if wrong:
            number = min(others[wrong[0]] - set(tasks))
            found = f'Column "{TASK_INDEX}" refers to instruction {number}, which meta/tasks.jsonl does not list.'
            remedy = f'Training reads "{column}", LeRobot this: {MEND_TASKS}'
            yield warning(f"data/, {subject.which(wrong)}", found, remedy)
    used = Counter(tasks[n] for numbers in by_episode.values() for n in numbers if n in tasks)
    for text, count in used.most_common(SHOWN_TASKS):
        yield remark(TASKS, f'"{text}": {count} episodes')
    if len(used) > SHOWN_TASKS:
        yield remark(TASKS, f"and {len(used) - SHOWN_TASKS} more instructions")
    unused = [text for text in tasks.values() if text not in used]
    if unused and by_episode:
        yield remark(TASKS, f'{len(unused)} listed instructions are not used, the first "{unused[0]}"')
    strange = []
    for e in subject.episodes:
        texts = {tasks[n] for n in by_episode.get(e.index, set()) if n in tasks}
        if e.tasks and not texts <= set(e.tasks):
            strange.append(e.index)
    if strange:
        yield error(
            f"meta/episodes.jsonl, {subject.which(strange)}",
            "The instruction listed for the episode is not the one its frames refer to.",
            "One of the two is another episode's: find out which (see the pictures of html=FILE), and mend the other.",
        )


def annotation_column(subject: Subject) -> str:
    """The column that gives each frame's instruction."""
    key = subject.configs["language"].modality_keys[0]
    entry = subject.layout.modality.get("annotation", {}).get(key.removeprefix("annotation."), {})
    return str((entry.get("original_key") if isinstance(entry, dict) else None) or key)


def instructions_by_episode(subject: Subject, column: str) -> dict[int, set[int]]:
    """{episode: task indices of its frames}; episodes whose column holds words instead are left out."""
    found = {}
    for index, values in subject.column(column).items():
        if values.dtype.kind in "iufb" and len(values):
            numbers = matrix(values)[:, 0]
            found[index] = {int(n) for n in np.unique(numbers[np.isfinite(numbers)])}
    return found
