"""Is every frame told something, and is it listed?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from data_prep.doctor.findings import Finding, episodes, error, remark, warning
from data_prep.doctor.subject import Subject
from gr00t.errors import did_you_mean

PLACE = "meta/tasks.jsonl"
MEND = (
    "Write the instruction into meta/tasks.jsonl and its task_index into the column, or prepare the dataset again with "
    'split.instruction="...".'
)
SHOWN = 5
TASK_INDEX = "task_index"


def check_tasks(subject: Subject) -> Iterator[Finding]:
    """Listed instructions are texts that say something, each once."""
    tasks = subject.layout.tasks
    if not tasks:
        yield error(PLACE, "Lists no instruction.", MEND)
    for index, text in tasks.items():
        if not any(letter.isalnum() for letter in text):
            yield error(PLACE, f"Instruction {index} is empty ({text!r}): the policy would be told nothing.", MEND)
    for text, count in Counter(tasks.values()).items():
        if count > 1:
            remedy = "Give both the same task_index; a mixture of instructions is counted wrongly otherwise."
            yield warning(PLACE, f'"{text}" is listed {count} times.', remedy)


def check_told(subject: Subject) -> Iterator[Finding]:
    """The task indices in the tables are listed, all are used, and episodes.jsonl says the same."""
    column = annotation_column(subject)
    told = told_by_episode(subject, column)
    tasks = subject.layout.tasks
    unlisted = {i: sorted(n for n in found if n not in tasks) for i, found in told.items()}
    lost = [i for i, numbers in unlisted.items() if numbers]
    if lost:
        numbers = unlisted[lost[0]]
        known = did_you_mean(str(numbers[0]), map(str, tasks)).replace("Known:", "Listed:")
        found = f'Column "{column}" refers to instruction {numbers[0]}, which meta/tasks.jsonl does not list.{known}'
        yield error(f"data/, {episodes(lost, len(subject.episodes))}", found, MEND)
    if column != TASK_INDEX:
        yield from _task_index(subject, column, lost)
    used = Counter(tasks[n] for found in told.values() for n in found if n in tasks)
    for text, count in used.most_common(SHOWN):
        yield remark(PLACE, f'"{text}": {count} episodes')
    if len(used) > SHOWN:
        yield remark(PLACE, f"and {len(used) - SHOWN} more instructions")
    unused = [text for text in tasks.values() if text not in used]
    if unused and told:
        yield remark(PLACE, f'{len(unused)} listed instructions are not used, the first "{unused[0]}"')
    yield from _as_listed(subject, told)


def _task_index(subject: Subject, column: str, known: list[int]) -> Iterator[Finding]:
    """LeRobot's own column, where training reads another; `known` are episodes that something was said of."""
    told, tasks = told_by_episode(subject, TASK_INDEX), subject.layout.tasks
    lost = [i for i, numbers in told.items() if i not in known and not numbers <= set(tasks)]
    if lost:
        number = min(told[lost[0]] - set(tasks))
        found = f'Column "{TASK_INDEX}" refers to instruction {number}, which meta/tasks.jsonl does not list.'
        yield warning(
            f"data/, {episodes(lost, len(subject.episodes))}", found, f'Training reads "{column}", LeRobot this: {MEND}'
        )


def _as_listed(subject: Subject, told: dict[int, set[int]]) -> Iterator[Finding]:
    tasks, wrong = subject.layout.tasks, []
    for e in subject.episodes:
        listed, found = set(e.tasks), {tasks[n] for n in told.get(e.index, set()) if n in tasks}
        if listed and found and not found <= listed:
            wrong.append(e.index)
    if wrong:
        yield error(
            f"meta/episodes.jsonl, {episodes(wrong, len(subject.episodes))}",
            "The instruction listed for the episode is not the one its frames refer to.",
            "One of the two is another episode's: find out which (see the pictures of html=FILE), and mend the other.",
        )


def annotation_column(subject: Subject) -> str:
    """The column that says what a frame is told."""
    key = subject.configs["language"].modality_keys[0]
    entry = subject.layout.modality.get("annotation", {}).get(key.removeprefix("annotation."), {})
    return str((entry.get("original_key") if isinstance(entry, dict) else None) or key)


def told_by_episode(subject: Subject, column: str) -> dict[int, set[int]]:
    """{episode: task indices of its frames}; episodes told in words instead are left out."""
    found = {}
    for index, values in subject.column(column).items():
        if values.dtype.kind in "iufb" and len(values):
            numbers = values.reshape(len(values), -1)[:, 0]
            found[index] = {int(n) for n in np.unique(numbers[np.isfinite(numbers)])}
    return found
