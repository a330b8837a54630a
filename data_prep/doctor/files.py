"""Do files, counts and columns agree?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.doctor.findings import Finding, episodes, error, remark, warning
from data_prep.doctor.subject import Columns, Subject, matrix
from gr00t.data.layout import dataset_fingerprint, file_hashes
from gr00t.files import file_sha256

MEND_COUNTS = (
    "A copy that broke off, or meta/ of another version: copy or prepare the dataset again; or correct the number in "
    "meta/info.json."
)
MEND_CHANGED = (
    "Damaged on the disk or on the way: copy them again, or prepare the dataset again (overwrite=true). Changed on "
    'purpose: remove "fingerprint" from meta/split.json, and they are no longer compared.'
)


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
    """Every episode has its frame table, which can be read and has its length and its numbers."""
    total = len(subject.episodes)
    unreadable = {index: reason for index, reason in subject.tables.items() if isinstance(reason, str)}
    if unreadable:
        first = next(iter(unreadable.values()))
        yield error(f"data/, {episodes(list(unreadable), total)}", f"The frame table cannot be read: {first}")
    wrong = {
        e.index: (e.length, rows)
        for e in subject.episodes
        if e.index in subject.readable and (rows := _rows(subject.readable[e.index])) != e.length
    }
    for index, (promised, rows) in list(wrong.items())[:3]:
        yield error(
            f"data/, episode {index}",
            f"The frame table has {rows} rows, meta/episodes.jsonl promises {promised}.",
        )
    if len(wrong) > 3:
        yield error(f"data/, {episodes(list(wrong), total)}", "Frame tables and meta/episodes.jsonl differ in length.")
    yield from _numbering(subject)


def _rows(table: Columns) -> int:
    return len(next(iter(table.values()))) if table else 0


def _numbering(subject: Subject) -> Iterator[Finding]:
    """The columns that number rows: episode_index, frame_index, index."""
    expected = {
        "episode_index": lambda index, rows: np.full(rows, index),
        "frame_index": lambda index, rows: np.arange(rows),
    }
    for name, form in expected.items():
        wrong = [i for i, v in subject.column(name).items() if not np.array_equal(v.reshape(-1), form(i, len(v)))]
        if wrong:
            meaning = "the episode's number" if name == "episode_index" else "0, 1, 2, ..."
            yield error(
                f"data/, {episodes(wrong, len(subject.episodes))}",
                f"The column {name} is not {meaning}: rows were lost, reordered or taken from another episode.",
            )
    rows = {i: v.reshape(-1) for i, v in subject.column("index").items() if len(v)}
    ends = {i: (v[0], v[-1]) for i, v in rows.items()}
    gaps = [i for i in ends if i + 1 in ends and ends[i + 1][0] != ends[i][1] + 1]
    inner = [i for i, v in rows.items() if (np.diff(v) != 1).any()]
    if gaps or inner:
        yield warning(
            f"data/, {episodes(sorted(set(gaps + inner)))}",
            "The column index does not run on from row to row through the dataset.",
            "Training does not read it, LeRobot does: prepare the dataset again.",
        )


def check_videos_present(subject: Subject) -> Iterator[Finding]:
    """Every episode has a video of every camera, and there is nothing else in data/ and videos/."""
    for camera in subject.cameras:
        paths = {e.index: subject.video_path(e.index, camera) for e in subject.episodes}
        lost = [i for i, p in paths.items() if isinstance(p, str) or not p.is_file() or not p.stat().st_size]
        if lost:
            first = paths[lost[0]]
            where = first if isinstance(first, str) else f"the first is {_relative(subject, first)}"
            found = f"{len(lost)} of {len(paths)} videos are missing or empty: {where}."
            yield error(f"videos/, {camera}, {episodes(lost, len(subject.episodes))}", found)
    total = subject.layout.info.get("total_videos")
    cameras = [name for name, entry in _features(subject).items() if entry.get("dtype") == "video"]
    if total is not None and cameras and total not in (len(subject.episodes) * len(cameras), len(cameras)):
        yield warning(
            "meta/info.json",
            f"total_videos says {total}; {len(subject.episodes)} episodes of {len(cameras)} cameras are "
            f"{len(subject.episodes) * len(cameras)}.",
            MEND_COUNTS,
        )
    yield from _strangers(subject)


def _features(subject: Subject) -> dict[str, dict[str, Any]]:
    features = subject.layout.info.get("features")
    return {n: e for n, e in features.items() if isinstance(e, dict)} if isinstance(features, dict) else {}


def _strangers(subject: Subject) -> Iterator[Finding]:
    """Files that no episode refers to: left by an older version, or episodes that meta/ forgot."""
    known = set(subject.layout.data_files())
    for e in subject.episodes:
        known |= {Path(path) for camera in subject.layout.cameras if (path := subject.video_path(e.index, camera))}
    tables = [p for p in (subject.root / "data").rglob("*.parquet") if p not in known]
    named = {str(subject.layout.modality["video"][c].get("original_key")) for c in subject.layout.cameras}
    videos = [p for p in (subject.root / "videos").rglob("*.mp4") if p not in known and named & set(p.parts)]
    for kind, found in (("frame tables", tables), ("videos", videos)):
        if found:
            yield warning(
                str(_relative(subject, sorted(found)[0])),
                f"{len(found)} {kind} belong to no episode of meta/episodes.jsonl and are not used.",
                "Episodes lost from meta/episodes.jsonl: prepare the dataset again. Leftovers: remove them.",
            )


def check_features(subject: Subject) -> Iterator[Finding]:
    """What meta/info.json says of the columns' and frames' sizes against what is there."""
    for name, entry in _features(subject).items():
        if entry.get("dtype") == "video" or not isinstance(entry.get("shape"), list):
            continue
        promised = int(np.prod([n for n in entry["shape"] if isinstance(n, int)] or [1]))
        widths = {i: matrix(v).shape[1] for i, v in subject.column(name).items()}
        wrong = [i for i, width in widths.items() if width != promised]
        if wrong:
            yield error(
                f"data/, column {name}, {episodes(wrong, len(subject.episodes))}",
                f"Rows have {widths[wrong[0]]} values, meta/info.json promises {promised}.",
            )
    used = {place[0] for m, g in subject.groups() if (place := subject.group_entry(m, g))}
    for name in sorted(used):
        kinds = {v.dtype.kind for v in subject.column(name).values()}
        if kinds - set("f"):
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
        yield from _damaged(subject, recorded, {name: file_sha256(subject.root / name) for name in tables})
        return
    hashes = file_hashes(subject.root)
    damage = list(_damaged(subject, recorded, hashes))
    yield from damage
    if not damage and dataset_fingerprint(subject.root, split, hashes) != split["fingerprint"]:
        # Without the files' own hashes it cannot be said which file it is.
        level, what = (warning, "meta/, or which files there are,") if recorded else (error, "The content")
        found = f"{what} is no longer what was written: the hash differs from the recorded fingerprint."
        yield level("meta/split.json", found, MEND_CHANGED)


def _damaged(subject: Subject, recorded: dict[str, Any], hashes: dict[str, str]) -> Iterator[Finding]:
    """Frame tables and videos that are there, but not as they were written."""
    for kind in ("data/", "videos/"):
        names = [n for n in recorded if n.startswith(kind) and n in hashes and hashes[n] != recorded[n]]
        if names:
            where = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            yield error(where, "Not as it was written: its SHA-256 differs from meta/split.json's.", MEND_CHANGED)


def _relative(subject: Subject, path: Path) -> Path:
    return path.relative_to(subject.root) if path.is_relative_to(subject.root) else path
