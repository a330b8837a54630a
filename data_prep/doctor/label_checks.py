"""Does the same scene with the same instruction have one answer, and does an instruction name what was done?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.doctor import Finding, episodes, error, remark, warning
from data_prep.doctor.duplicate_checks import AT_ONCE, SPLIT, apart, course
from data_prep.doctor.examined_dataset import Series, Subject, evenly, listed_objects
from data_prep.doctor.file_checks import annotation_column, instructions_by_episode
from data_prep.lerobot import thumbnail
from gr00t.errors import ToolkitError
from toolkit.shared_keys import TRAIN_CONFLICT

SAME_STATE = 0.02  # of a dimension's range, on average
SAME_IMAGE = 12.0  # of 255, in any field of a first frame
FIELDS = 32  # a side
ELSEWHERE = 0.5  # of the usual distance between two episodes' last quarters
LOOKED_AT = 16  # pairs whose first frames are compared
FEW = 20  # episodes, among which what an instruction changes cannot be said

MEND_LABELS = (
    "Find out which of the two is right, and leave the other out: a policy cannot learn two answers to one question. "
    "Where both are right, let the instructions say what distinguishes them."
)
MEND_TARGET = "Correct the episode's instruction, or its target in meta/split.json; then prepare the dataset again."


def targets(subject: Subject) -> dict[int, dict[str, str]]:
    """{episode: {factor: value}} of the object that was picked, where meta/split.json records it."""
    found = {entry.get("episode_index"): entry.get("target") for entry in listed_objects(subject, "episodes")}
    return {
        i: {str(factor): value for factor, value in target.items() if isinstance(value, str)}
        for i, target in found.items()
        if isinstance(i, int) and i in subject.lengths and isinstance(target, dict)
    }


def check_conflicting(subject: Subject) -> Iterator[Finding]:
    """Has the same scene one answer?"""
    recorded = targets(subject)
    ends = {i: course(table)[-6:] for i, table in subject.action_tables.items() if len(table) > 2}
    told = {i: tuple(sorted(n)) for i, n in instructions_by_episode(subject, annotation_column(subject)).items()}
    groups: dict[Any, list[int]] = defaultdict(list)
    for i in ends:
        if i in subject.state_tables and i in told:
            groups[told[i]].append(i)
    unlike = [pair for group in groups.values() for pair in _unlike(subject, group, ends, recorded)]
    for _, i, j in sorted(unlike)[:LOOKED_AT]:
        if not _same_image(subject, i, j):
            continue
        start = f"Episodes {i} and {j} begin with the same image and state and are given the same instruction, but"
        if i in recorded and j in recorded:
            yield error(episodes([i, j]), f"{start} have the targets {recorded[i]} and {recorded[j]}.", MEND_LABELS)
        else:
            yield warning(episodes([i, j]), f"{start} their actions go to different places.", MEND_LABELS)


def _unlike(
    subject: Subject, group: list[int], ends: Series, recorded: dict[int, dict[str, str]]
) -> Iterator[tuple[float, int, int]]:
    """(distance of the first states, episode, episode) of pairs that begin alike and end differently."""
    tables = [subject.state_tables[i] for i in group]
    if len(group) < 2 or len({table.shape[1] for table in tables}) != 1:
        return
    low, high = np.percentile(np.concatenate(tables), [2, 98], axis=0)
    first = np.stack([table[0] for table in tables]) / np.maximum(high - low, 1e-6)
    last = np.stack([ends[i] for i in group])
    last = (last / np.maximum(np.ptp(last, axis=(0, 1)), 1e-6)).reshape(len(group), -1)
    first, last = first - first.mean(axis=0), last - last.mean(axis=0)
    usual = float(np.median(apart(last[evenly(range(len(last)), 100)], last)))
    for start in range(0, len(group), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        begin = apart(first[some], first)
        differ = apart(last[some], last) > ELSEWHERE * max(usual, 1e-6)
        alike = np.argwhere(begin < SAME_STATE)
        pairs = [(float(begin[r, c]), start + r, c, differ[r, c]) for r, c in alike if start + r < c]
        for distance, a, b, is_far in sorted(pairs)[: 64 * LOOKED_AT]:
            i, j = group[a], group[b]
            if recorded[i] != recorded[j] if i in recorded and j in recorded else is_far:
                yield distance, i, j


def _same_image(subject: Subject, i: int, j: int) -> bool:
    for camera in subject.cameras:
        frames = []
        for episode in (i, j):
            try:
                with subject.open_camera(episode, camera) as video:
                    frames.append(thumbnail(video.frames([0])[0], FIELDS))
            except ToolkitError:
                return False  # check_decoding says why
        if np.abs(frames[0] - frames[1]).max() > SAME_IMAGE:
            return False
    return bool(subject.cameras)


def check_targets(subject: Subject) -> Iterator[Finding]:
    """Do they name what was done?"""
    tasks, recorded = subject.layout.tasks, targets(subject)
    told = instructions_by_episode(subject, annotation_column(subject))
    values = defaultdict(set)
    for target in recorded.values():
        for factor, value in target.items():
            values[factor].add(value.lower())
    wrong = {}
    for i, target in recorded.items():
        words = {w for n in told.get(i, ()) for w in re.findall(r"\w+", tasks.get(n, "").lower())}
        named = {f: words & known for f, known in values.items() if words & known}
        missed = [f for f, names in named.items() if str(target.get(f)).lower() not in names]
        # In a conflict no object is all that the instruction names, but the target is one of it.
        disagree = subject.layout.split.get("part") in ("conflict", TRAIN_CONFLICT)
        if missed and (not disagree or len(missed) == len(named)):
            said = ", ".join(f"{f} {' '.join(sorted(named[f]))}, the target is {target.get(f)}" for f in missed)
            wrong[i] = f"The instruction names {said}."
    yield from subject.about(error, SPLIT, wrong, MEND_TARGET)
    yield from _uninformative(subject, {i: min(n) for i, n in told.items() if len(n) == 1})


def _uninformative(subject: Subject, told: dict[int, int]) -> Iterator[Finding]:
    """A remark where episodes of one instruction differ as much as those of several."""
    tables = {i: course(t).ravel() for i, t in subject.action_tables.items() if i in told and len(t) > 2}
    kinds = np.array([told[i] for i in tables])
    if len(tables) < FEW or len(set(kinds.tolist())) < 2 or len({len(t) for t in tables.values()}) != 1:
        return
    rows = np.stack(list(tables.values()))
    rows = (rows - rows.mean(axis=0)) / np.maximum(rows.std(axis=0), 1e-6)
    between = sum((kinds == k).sum() * np.square(rows[kinds == k].mean(axis=0)).mean() for k in set(kinds.tolist()))
    expected = len(set(kinds.tolist())) - 1  # by chance, each row being of variance 1
    if between < 2 * expected:
        found = f"The {expected + 1} instructions make no difference to the actions: are they told at random?"
        yield remark("meta/tasks.jsonl", found)
