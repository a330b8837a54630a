"""What the data can teach: how far image, instruction, state and place each tell where the arm goes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from data_prep.doctor import Finding, Level, remark, warning
from data_prep.doctor.examined_dataset import Series, Subject, evenly
from data_prep.doctor.file_checks import annotation_column, instructions_by_episode
from data_prep.doctor.label_checks import targets
from data_prep.goal_probe import SIDE, Openings, Told, probe_openings
from data_prep.lerobot import thumbnail
from gr00t.errors import ToolkitError
from toolkit.html_page import percent

LEAST, MOST = 60, 1000  # episodes
CLOSES = 0.9  # of the episodes in which a gripper must move, for its first move to be where the arm goes
ONE_PLACE = 0.05  # of the way there: how much goals vary where they are all the same
TELLS = 0.85  # of the other goals are farther off: with two things to go to, what cannot say which reaches about 0.75
MARGIN = 0.05  # by which all inputs together may be better than one that tells as much
Z = 1.96

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


def check_taught(subject: Subject) -> Iterator[Finding]:
    """What do image, instruction, state and place tell of where the arm goes?"""
    goals, rule = _goals(subject)
    openings = _openings(subject, goals) if len(goals) >= LEAST else None
    count = len(openings.goals) if openings else len(goals)
    verdict, numbers = "too few", dict[str, Any]()
    if openings is not None and count >= LEAST:
        if _one_place(subject, goals):
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


def _goals(subject: Subject) -> tuple[Series, str]:
    """{episode: where the arm goes (D,)} and in words what that is: where it is when a gripper first moves by half its
    range, in all datasets where grippers do, else where the episode ends."""
    arms = subject.arm_tables or subject.state_tables
    for modality in ("action", "state"):
        grippers = [g for g in subject.groups if g.is_gripper and g.modality == modality]
        moments = [_first_moves(group.series) for group in grippers]
        first = {i: min(m[i] for m in moments if i in m) for i in arms if any(i in m for m in moments)}
        if arms and len(first) >= CLOSES * len(arms):
            return {
                i: arms[i][min(t, len(arms[i]) - 1)] for i, t in first.items()
            }, f"{modality} of the gripper changes"
    return {i: table[-1] for i, table in arms.items()}, "the end"


def _first_moves(series: Series) -> dict[int, int]:
    """{episode: the first frame in which a value is half of its range away from where it began}."""
    joined = np.concatenate([*series.values(), np.empty((0, 1))]) if series else np.empty((0, 1))
    half = np.ptp(np.percentile(joined, [1, 99], axis=0), axis=0).max(initial=0.0) / 2 if len(joined) else 0.0
    moved = {i: np.abs(values - values[0]).max(axis=1) > half for i, values in series.items() if half > 0}
    return {i: int(m.argmax()) for i, m in moved.items() if m.any()}


def _one_place(subject: Subject, goals: Series) -> bool:
    arms = subject.arm_tables or subject.state_tables
    way = np.stack([goals[i] - arms[i][0] for i in goals])
    return bool(np.stack(list(goals.values())).std(axis=0).max() < ONE_PLACE * np.abs(way).mean(axis=0).max())


def _openings(subject: Subject, goals: Series) -> Openings | None:
    """The first frames of at most MOST of these episodes; episodes without images or instruction are left out, and None
    is said where there is none."""
    told = instructions_by_episode(subject, annotation_column(subject))
    recorded, images = targets(subject), dict[int, np.ndarray]()
    chosen = evenly([i for i in goals if i in subject.state_tables and i in told], MOST)
    for number, i in enumerate(chosen):
        subject.progress(f"{subject.name}: first frames", number, len(chosen))
        frames = []
        for camera in subject.cameras:
            try:
                with subject.open_camera(i, camera) as video:
                    frames.append(thumbnail(video.frames([0])[0], SIDE))
            except ToolkitError:
                break  # check_decoding says why
        if frames and len(frames) == len(subject.cameras):
            images[i] = np.stack(frames)
    if not images:
        return None
    tasks = subject.layout.tasks
    factors = sorted({factor for i in images for factor in recorded.get(i, {})})
    return Openings(
        np.stack(list(images.values())),
        [" ".join(tasks.get(n, "") for n in sorted(told[i])) for i in images],
        np.stack([subject.state_tables[i][0] for i in images]),
        np.stack([goals[i] for i in images]),
        {factor: [recorded.get(i, {}).get(factor) for i in images] for factor in factors},
    )
