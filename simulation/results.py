"""closed_loop.json: written with its summary, read back with every value checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from gr00t.files import read_json
from simulation.factors import FACTORS, PARTS, split_factors
from simulation.outcomes import CONDITIONS, LURE, PICKS, EpisodeOutcome, Evaluation
from simulation.readings import readings
from simulation.shares import Difference, Share
from simulation.summary import Summary

JSON_FILE = "closed_loop.json"
_ALWAYS = ("split", "policy", "n_action_steps", "max_steps", "seed", "instruction", "versions")  # in info


def as_json(evaluation: Evaluation, summary: Summary) -> dict[str, Any]:
    """What closed_loop.json holds: the evaluation, and its summary for those who read no Python."""
    return {**evaluation.to_json(), "summary": summary_json(summary)}


def summary_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON; a share is {count, n, share, low, high}."""
    return {
        "cues": list(summary.cues),
        "cue_preference": summary.preference.to_json(),
        "readings": [asdict(reading) for reading in readings(summary)],
        "chance": summary.chance,
        "counted": _plain(summary.counted),
        "by_factor": _plain(summary.factors),
        "weak_spots": _plain(summary.weak_spots),
        "changes": _plain(summary.changes),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Share | Difference):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return _plain(vars(value)) if hasattr(value, "__dataclass_fields__") else value


def find_evaluations(folder: Path) -> list[Path]:
    """Every closed_loop.json below a folder, in the order of their paths; hidden folders are left out."""
    found = (path for path in folder.rglob(JSON_FILE) if path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a closed_loop.json; a damaged one raises ToolkitError that names the file and the place."""
    evaluation = Evaluation.from_json(read_json(path), str(path))
    for problem in _problems(evaluation):
        raise ToolkitError(f"{path}: is damaged: {problem}. Evaluate again.")
    return evaluation


def _problems(evaluation: Evaluation) -> Iterator[str]:
    missing = [name for name in _ALWAYS if name not in evaluation.info]
    if missing:
        yield f"info lacks {', '.join(missing)}"
        return
    try:
        split_factors(str(evaluation.info["split"]))
    except ToolkitError as error:
        yield str(error).rstrip(".?")
    if not evaluation.episodes:
        yield "it holds no episodes"
    seen = set()
    for number, outcome in enumerate(evaluation.episodes):
        problem = episode_problem(outcome)
        if problem is None and (key := (outcome.condition, outcome.part, outcome.seed)) in seen:
            problem = f"{key} is there twice"
        if problem is not None:
            yield f"episodes[{number}]: {problem}"
            return
        seen.add((outcome.condition, outcome.part, outcome.seed))


def episode_problem(outcome: EpisodeOutcome) -> str | None:
    """What is wrong with an outcome's values; None where it is sound."""
    for name, known in (("condition", CONDITIONS), ("part", PARTS), ("picked", PICKS)):
        if getattr(outcome, name) not in tuple(known):
            return f"{name} is {getattr(outcome, name)!r}, none of {', '.join(known)}"
    for name in ("seed", "steps", "chunks"):
        if type(getattr(outcome, name)) is not int or getattr(outcome, name) < 0:
            return f"{name} is {getattr(outcome, name)!r}, no count"
    if outcome.part == "train" and outcome.picked == LURE:
        return "a lure was picked in train, where there is none"
    if type(outcome.success) is not bool:
        return f"success is {outcome.success!r}, neither true nor false"
    if not isinstance(outcome.instruction, str) or not isinstance(outcome.video, str | None):
        return "instruction or video is no text"
    return _scene_problem(outcome)


def _scene_problem(outcome: EpisodeOutcome) -> str | None:
    try:
        objects, plate = outcome.episode["objects"], outcome.episode["plate"]
        target, lure = outcome.episode["target"], outcome.episode["lure"]
        for thing in [*objects, plate]:
            if any(thing[factor] not in values for factor, values in FACTORS.items()):
                return f"the scene has {dict(thing)}, whose factors are unknown"
            if not all(math.isfinite(thing[axis]) for axis in ("x", "y")):
                return f"the scene has an object at {thing['x']}, {thing['y']}"
        indices = [target] if outcome.part == "train" else [target, lure]
        if not all(type(i) is int and 0 <= i < len(objects) for i in indices):
            return f"target {target} and lure {lure} are not among its {len(objects)} objects"
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return f"its scene is incomplete ({type(error).__name__}: {error})"
    return None
