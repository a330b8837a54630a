"""What do instructions say, and what can be learned from them? Is every one listed, does it name what was done, has the
same scene one answer, and how far do image, instruction, state and place each tell where the arm goes?"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from data_prep.doctor import Finding, Level, episodes, error, remark, warning
from data_prep.doctor.duplicate_checks import AT_ONCE, SPLIT, apart, course
from data_prep.doctor.examined_dataset import Series, Subject, evenly, listed_objects, matrix
from data_prep.input_probes import SIDE, Openings, Told, probe_openings
from gr00t.errors import ToolkitError, did_you_mean
from toolkit.html_page import percent
from toolkit.shared_keys import TRAIN_CONFLICT

TASKS = "meta/tasks.jsonl"
TASK_INDEX = "task_index"  # LeRobot's own column
SHOWN_TASKS = 5

SAME_STATE = 0.02  # of a dimension's range, on average
SAME_IMAGE = 12.0  # of 255, in any field of a first frame
FIELDS = 32  # a side
ELSEWHERE = 0.5  # of the usual distance between two episodes' last quarters
LOOKED_AT = 16  # pairs whose first frames are compared
FEW = 20  # episodes, among which what an instruction changes cannot be said

LEAST, MOST = 60, 1000  # episodes that are probed
CLOSES = 0.9  # of the episodes in which a gripper must move, for its first move to be where the arm goes
ONE_PLACE = 0.05  # of the way there: how much goals vary where they are all the same
TELLS = 0.85  # of the other goals are farther off: with two things to go to, what cannot say which reaches about 0.75
MARGIN = 0.05  # by which all inputs together may be better than one that tells as much
Z = 1.96

MEND_TASKS = (
    "Write the instruction into meta/tasks.jsonl and its task_index into the column, or prepare the dataset again with "
    'split.instruction="...".'
)
MEND_LABELS = (
    "Find out which of the two is right, and leave the other out: a policy cannot learn two answers to one question. "
    "Where both are right, let the instructions say what distinguishes them."
)
MEND_TARGET = "Correct the episode's instruction, or its target in meta/split.json; then prepare the dataset again."

WHERE = "the arm goes"
VERDICTS: dict[str, tuple[Level, str, str]] = {
    "too few": (remark, f"too few episodes to say what they teach: {LEAST} are needed", ""),
    "one place": (warning, f"{WHERE} to one place in all episodes", "Vary where the objects lie."),
    "nothing": (
        warning,
        f"neither image, instruction nor state tell where {WHERE}",
        "Record more episodes, or look whether the target can be seen in the first frame and is named.",
    ),
    "state": (
        warning,
        f"the state at the start alone tells where {WHERE}",
        "Begin episodes in states that do not depend on the target.",
    ),
    "instruction": (
        warning,
        f"looking cannot be learned from this: the instruction alone tells where {WHERE}",
        "Vary where the object lies that an instruction names.",
    ),
    "image": (
        warning,
        f"language cannot be learned from this: without the instruction, the image tells where {WHERE}",
        "Record scenes in which only the instruction says which object is meant: ask for each of their objects.",
    ),
    "one instruction": (remark, "language cannot be learned from this: there is one instruction", ""),
    "language": (remark, f"the instruction is needed: without it, where {WHERE} is found less often", ""),
    "unclear": (remark, "whether the instruction is needed cannot be said from these episodes", ""),
}


# -- does every frame have an instruction? -----------------------------------------------------------------------------


def check_tasks(subject: Subject) -> Iterator[Finding]:
    """Does every one say something?"""
    tasks = subject.layout.tasks
    if not tasks:
        yield error(TASKS, "Lists no instruction.", MEND_TASKS)
    for index, text in tasks.items():
        if not any(letter.isalnum() for letter in text):
            found = f"Instruction {index} is empty ({text!r}): the policy would get no instruction."
            yield error(TASKS, found, MEND_TASKS)
    for text, count in Counter(tasks.values()).items():
        if count > 1:
            remedy = "Give both the same task_index; a mixture of instructions is counted wrongly otherwise."
            yield warning(TASKS, f'"{text}" is listed {count} times.', remedy)


def check_told(subject: Subject) -> Iterator[Finding]:
    """Has every frame a listed instruction?"""
    column, tasks = annotation_column(subject), subject.layout.tasks
    by_episode = instructions_by_episode(subject, column)
    lost = {**_unlisted(column, by_episode, tasks), **_unnumbered(subject, column)}
    yield from subject.about(error, "data/", lost, MEND_TASKS)
    if column != TASK_INDEX:
        others = _unlisted(TASK_INDEX, instructions_by_episode(subject, TASK_INDEX), tasks)
        others |= _unnumbered(subject, TASK_INDEX)
        wrong = {i: found for i, found in others.items() if i not in lost}
        yield from subject.about(warning, "data/", wrong, f'Training reads "{column}", LeRobot this: {MEND_TASKS}')
    used = Counter(tasks[n] for numbers in by_episode.values() for n in numbers if n in tasks)
    for text, count in used.most_common(SHOWN_TASKS):
        yield remark(TASKS, f'"{text}": {count} episodes')
    if len(used) > SHOWN_TASKS:
        yield remark(TASKS, f"and {len(used) - SHOWN_TASKS} more instructions")
    unused = [text for text in tasks.values() if text not in used]
    if unused and by_episode:
        yield remark(TASKS, f'{len(unused)} listed instructions are not used, the first "{unused[0]}"')
    strange = {
        e.index: "The instruction listed for the episode is not the one its frames refer to."
        for e in subject.layout.episodes
        if e.tasks and not {tasks[n] for n in by_episode.get(e.index, ()) if n in tasks} <= set(e.tasks)
    }
    remedy = "One of the two is another episode's: find out which (see the images of html=FILE), and mend the other."
    yield from subject.about(error, "meta/episodes.jsonl", strange, remedy)


def _unlisted(column: str, by_episode: dict[int, set[int]], tasks: dict[int, str]) -> dict[int, str]:
    """What is wrong with the episodes that refer to instructions which there are not."""
    unknown = {i: min(numbers - set(tasks)) for i, numbers in by_episode.items() if not numbers <= set(tasks)}
    hints = {n: did_you_mean(str(n), map(str, tasks)).replace("Known:", "Listed:") for n in unknown.values()}
    lists = "which meta/tasks.jsonl does not list"
    return {i: f'Column "{column}" refers to instruction {n}, {lists}.{hints[n]}' for i, n in unknown.items()}


def _unnumbered(subject: Subject, column: str) -> dict[int, str]:
    """What is wrong with the episodes in which a frame's cell is empty or holds no whole number."""
    found = {}
    for i, values in subject.column(column).items():
        numbers = matrix(values)[:, 0] if values.dtype.kind == "f" and len(values) else np.empty(0)
        wrong = np.flatnonzero(~np.isfinite(numbers) | (numbers != np.floor(numbers)))
        if len(wrong):
            found[i] = f'Column "{column}" refers to no instruction at frame {wrong[0]} of episode {i}.'
    return found


def annotation_column(subject: Subject) -> str:
    """The column that gives each frame's instruction."""
    key = subject.configs["language"].modality_keys[0]
    entry = subject.entries("annotation").get(key.removeprefix("annotation."), {})
    return str((entry.get("original_key") if isinstance(entry, dict) else None) or key)


def instructions_by_episode(subject: Subject, column: str = "") -> dict[int, set[int]]:
    """{episode: task indices of its frames}; episodes whose column holds words instead are left out."""
    found = {}
    for index, values in subject.column(column or annotation_column(subject)).items():
        if values.dtype.kind in "iufb" and len(values):
            numbers = matrix(values)[:, 0]
            found[index] = {int(n) for n in np.unique(numbers[np.isfinite(numbers)])}
    return found


# -- is it what was done, and has one answer? --------------------------------------------------------------------------


def _targets(subject: Subject) -> dict[int, dict[str, str]]:
    """{episode: {factor: value}} of the object that was picked, where meta/split.json records it."""
    found = {entry.get("episode_index"): entry.get("target") for entry in listed_objects(subject, "episodes")}
    return {
        i: {str(factor): value for factor, value in target.items() if isinstance(value, str)}
        for i, target in found.items()
        if isinstance(i, int) and i in subject.lengths and isinstance(target, dict)
    }


def check_conflicting(subject: Subject) -> Iterator[Finding]:
    """Has the same scene one answer?"""
    recorded, told = _targets(subject), instructions_by_episode(subject)
    ends = {i: course(table)[-6:] for i, table in subject.action_tables.items() if len(table) > 2}
    groups: dict[Any, list[int]] = defaultdict(list)
    for i in ends:
        if i in subject.state_tables and i in told:
            groups[tuple(sorted(told[i]))].append(i)
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


def _same_image(subject: Subject, *pair: int) -> bool:
    try:
        for camera in subject.cameras:
            one, other = (subject.thumbnails(episode, camera, [0], FIELDS) for episode in pair)
            if np.abs(one - other).max() > SAME_IMAGE:
                return False
    except ToolkitError:
        return False  # check_decoding says why
    return bool(subject.cameras)


def check_targets(subject: Subject) -> Iterator[Finding]:
    """Do they name what was done?"""
    tasks, recorded, told = subject.layout.tasks, _targets(subject), instructions_by_episode(subject)
    values = defaultdict(set)
    for target in recorded.values():
        for factor, value in target.items():
            values[factor].add(value.lower())
    wrong = {}
    for i, target in recorded.items():
        words = {w for n in told.get(i, ()) for w in re.findall(r"\w+", tasks.get(n, "").lower())}
        named = {f: words & known for f, known in values.items() if words & known}
        missed = [f for f, names in named.items() if str(target.get(f)).lower() not in names]
        # In a conflict no object is all that the instruction names, but the target is one of it: of two words both are
        # wrong, or neither. A verb, and what is said by comparison (smaller), are no values of an object.
        disagree = subject.layout.split.get("part") in ("conflict", TRAIN_CONFLICT)
        if missed and (not disagree or len(missed) == len(named) > 1):
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
        yield remark(TASKS, found)


# -- what the data teach -----------------------------------------------------------------------------------------------


def check_taught(subject: Subject) -> Iterator[Finding]:
    """What do image, instruction, state and place tell of where the arm goes?"""
    arms = subject.arm_tables or subject.state_tables
    goals, rule = _goals(subject, arms)
    openings = _openings(subject, goals) if len(goals) >= LEAST else None
    count = len(openings.goals) if openings else len(goals)
    verdict, numbers = "too few", dict[str, Any]()
    if openings is not None and count >= LEAST:
        way = np.stack([goal - arms[i][0] for i, goal in goals.items()])
        if np.stack(list(goals.values())).std(axis=0).max() < ONE_PLACE * np.abs(way).mean(axis=0).max():
            verdict = "one place"
        else:
            told = probe_openings(openings, 0, lambda n, total: subject.progress(f"{subject.name}: probe", n, total))
            verdict, numbers = judge(told, len(set(openings.instructions))), _numbers(told)
    level, text, remedy = VERDICTS[verdict]
    subject.probed = {"verdict": verdict, "in_words": text, "goal": rule, "episodes": count, **numbers}
    shares = ", ".join(f"{name} {percent(found['share'])}" for name, found in numbers.get("places", {}).items())
    found = f"{text[0].upper()}{text[1:]}{f' ({shares})' if shares else ''}."
    yield replace(level(f"{count} episodes, {rule}", found), remedy=remedy)


def judge(told: Told, instructions: int) -> str:
    """Which of VERDICTS the probes of some episodes come to; instructions: how many different ones there are."""
    whole, deaf = told.places["everything"], told.places["all but instruction"]
    if max(interval(values)[0] for values in told.places.values()) < 0.5 + MARGIN:
        return "nothing"
    for name in ("state", "instruction", "all but instruction"):
        tells = told.places[name].mean() >= TELLS and interval(whole - told.places[name])[1] < MARGIN
        if tells and (name != "all but instruction" or instructions > 1):
            return "image" if name == "all but instruction" else name
    if instructions < 2:
        return "one instruction"
    return "language" if interval(whole - deaf)[0] > 0 else "unclear"


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the mean, over episodes."""
    spread = Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - spread, float(values.mean()) + spread


def _numbers(told: Told) -> dict[str, Any]:
    """Shares and intervals as plain JSON, and the same as the rows of a table, headings first."""
    places = {}
    for name, found in told.places.items():
        low, high = interval(found)
        places[name] = {"share": float(found.mean()), "low": max(0.0, low), "high": min(1.0, high)}
    values = {
        factor: {name: {"count": int(hits.sum()), "n": len(hits)} for name, hits in by.items()}
        for factor, by in told.values.items()
    }
    rows = [["what is given", f"where {WHERE}", *values]]
    for name in dict.fromkeys([*places, *(name for by in values.values() for name in by)]):
        where = "{} ({} to {})".format(*map(percent, places[name].values())) if name in places else "-"
        rows.append([name, where, *(percent(by[name]["count"] / max(1, by[name]["n"])) for by in values.values())])
    return {"places": places, "values": values, "rows": rows}


def _goals(subject: Subject, arms: Series) -> tuple[Series, str]:
    """{episode: where the arm goes (D,)} and in words what that is: where it is when a gripper first moves by half its
    range, in all datasets where grippers do, else where the episode ends."""
    for modality in ("action", "state"):
        grippers = [g for g in subject.groups if g.is_gripper and g.modality == modality]
        moments = [_first_moves(group.series) for group in grippers]
        first = {i: min(m[i] for m in moments if i in m) for i in arms if any(i in m for m in moments)}
        if arms and len(first) >= CLOSES * len(arms):
            goals = {i: arms[i][min(t, len(arms[i]) - 1)] for i, t in first.items()}
            return goals, f"{modality} of the gripper changes"
    return {i: table[-1] for i, table in arms.items()}, "the end"


def _first_moves(series: Series) -> dict[int, int]:
    """{episode: the first frame in which a value is half of its range away from where it began}."""
    if not series:
        return {}
    low, high = np.percentile(np.concatenate(list(series.values())), [1, 99], axis=0)
    half = (high - low).max(initial=0.0) / 2
    moved = {i: np.abs(values - values[0]).max(axis=1) > half for i, values in series.items() if half > 0}
    return {i: int(m.argmax()) for i, m in moved.items() if m.any()}


def _openings(subject: Subject, goals: Series) -> Openings | None:
    """The first frames of at most MOST of these episodes; episodes without images or instruction are left out, and None
    is said where there is none."""
    told, recorded, tasks = instructions_by_episode(subject), _targets(subject), subject.layout.tasks
    images: dict[int, np.ndarray] = {}
    chosen = evenly([i for i in goals if i in subject.state_tables and i in told], MOST)
    for number, i in enumerate(chosen if subject.cameras else ()):
        subject.progress(f"{subject.name}: first frames", number, len(chosen))
        with suppress(ToolkitError):  # check_decoding says why
            images[i] = np.concatenate([subject.thumbnails(i, camera, [0], SIDE) for camera in subject.cameras])
    if not images:
        return None
    factors = sorted({factor for i in images for factor in recorded.get(i, {})})
    return Openings(
        np.stack(list(images.values())),
        [" ".join(tasks.get(n, "") for n in sorted(told[i])) for i in images],
        np.stack([subject.state_tables[i][0] for i in images]),
        np.stack([goals[i] for i in images]),
        {factor: [recorded.get(i, {}).get(factor) for i in images] for factor in factors},
    )
