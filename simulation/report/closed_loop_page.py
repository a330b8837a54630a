"""The page of a closed-loop evaluation: what toolkit/pages/closed_loop.html is filled with."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from finetune.open_loop import EvaluateConfig
from simulation.closed_loop import CONDITIONS, PICKS, EpisodeOutcome, Evaluation
from simulation.report.conclusions import WORDS, cue_preference, readings, tone, weak_spot_words
from simulation.report.summary import AS_IT_IS, Summary, thing
from simulation.scenes.factors import OBJECT_X, OBJECT_Y, PLATE_X, PLATE_Y
from toolkit.html_page import data_uri, render_page
from toolkit.shared_keys import PARTS

EMBEDDED_BYTES = 12_000_000  # of videos; a page that is larger opens slowly and cannot be mailed
HISTOGRAM_BARS = 20


@dataclass(frozen=True)
class Video:
    """A video on the page: inside it (embedded), beside it, or missing (source is empty)."""

    source: str
    embedded: bool
    caption: str


def page(evaluation: Evaluation, summary: Summary, folder: Path) -> str:
    """The HTML; `folder` is where the page will lie and its videos are."""
    info, episodes, parts = evaluation.info, evaluation.episodes, list(summary.chance)
    plain = {part: [e for e in episodes if (e.condition, e.part) == (AS_IT_IS, part)] for part in parts}
    kept, notes = videos(episodes, folder)
    # Everything in info as text, nested values as JSON.
    facts = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
        for name, value in info.items()
    }
    values: dict[str, Any] = {
        "title": f"Closed loop: {info['split']}",
        "info": {"checkpoint": None, **info},
        "summary": summary,
        "preference": cue_preference(summary) if "conflict" in parts else None,
        "readings": readings(summary),
        "weak": {(s.part, s.whose, s.factor, s.value) for s in summary.weak_spots},
        "maps": {part: [_place(e) for e in plain[part]] for part in parts},
        "zones": _zones(),
        "plates": {"x": (-1000 * PLATE_Y, 1000 * PLATE_Y), "y": 1000 * PLATE_X},
        "parts": [p for p in PARTS if any(p in counted for counted in summary.counted.values())],
        "histograms": {part: _histogram(plain[part], part, info["max_steps"]) for part in parts},
        "other_instructions": sorted({e.instruction for e in episodes if e.condition == "other_instruction"}),
        "videos": kept,
        "video_notes": notes,
        "command": command(info),
        "facts": facts.items(),
        "episodes": episodes,
        "conditions": CONDITIONS,
        "picks": PICKS,
        "tone": tone,
        "thing_words": thing_words,
        "weak_spot_words": weak_spot_words,
    }
    return render_page("closed_loop.html", {**values, **WORDS})


def thing_words(outcome: EpisodeOutcome, whose: str) -> str:
    """An object in words: small red cube, left."""
    found = thing(outcome, whose)
    return "" if found is None else f"{found['size']} {found['color']} {found['object']}, {found['position']}"


def command(info: dict[str, Any]) -> str:
    """The command that evaluates the same again: what its configuration says besides the defaults.

    report_dir and tracking are left out: who repeats it wants to keep what is there, and logs where they log.
    """
    config, instruction = dict(info.get("config", {})), f"pick up the {info['split'].split('_')[0]}-matching object"
    given = {"split": info["split"], "mode": "closed_loop"}
    if info["instruction"] != instruction:  # not the one that ships
        given["split.instruction"] = info["instruction"]
    for field in dataclasses.fields(EvaluateConfig):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name not in (*given, "report_dir", "tracking") and config.get(field.name, default) != default:
            given[field.name] = config[field.name]
    return shlex.join(["python", "evaluate_conflict.py", *(f"{k}={_written(v)}" for k, v in given.items())])


def _written(value: Any) -> str:
    """As it is typed on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


# -- figures -----------------------------------------------------------------------------------------------------------


def _place(outcome: EpisodeOutcome) -> dict[str, Any]:
    """Where the target lay, in mm as the base camera sees it: y to the right, x towards the camera."""
    target = thing(outcome, "target") or {}
    title = f"seed {outcome.seed}: {thing_words(outcome, 'target')}; picked {outcome.picked}"
    x, y = round(1000 * target["y"], 1), round(1000 * target["x"], 1)
    return {"x": x, "y": y, "success": outcome.success, "picked": outcome.picked, "title": title}


def _zones() -> list[dict[str, float]]:
    """Where objects may lie, in mm, left and right."""
    width, height = 1000 * (OBJECT_Y[1] - OBJECT_Y[0]), 1000 * (OBJECT_X[1] - OBJECT_X[0])
    return [
        {"x": x, "y": 1000 * OBJECT_X[0], "width": width, "height": height}
        for x in (-1000 * OBJECT_Y[1], 1000 * OBJECT_Y[0])
    ]


def _histogram(episodes: Iterable[EpisodeOutcome], part: str, max_steps: int) -> list[dict[str, Any]]:
    """Successes by their steps; x and width in % of the whole, height as a share of the highest bar."""
    steps = [e.steps for e in episodes if e.part == part and e.success]
    whole = max([max_steps, 1, *steps])
    size = -(-whole // HISTOGRAM_BARS)
    found = [sum(first <= s < first + size for s in steps) for first in range(0, whole + 1, size)]
    return [
        {
            "first": number * size,
            "last": (number + 1) * size - 1,
            "x": 100 * number * size / (whole + 1),
            "width": 100 * size / (whole + 1),
            "height": count / max([1, *found]),
            "count": count,
        }
        for number, count in enumerate(found)
    ]


# -- videos ------------------------------------------------------------------------------------------------------------


def videos(episodes: Sequence[EpisodeOutcome], folder: Path) -> tuple[list[tuple[str, list[Video]]], list[str]]:
    """Successes and failures, each with its heading, and what is to be said about them; nothing where none was kept."""
    kept = [e for e in episodes if e.video is not None]
    if not kept:
        return [], []
    files = {e.video: path for e in kept if (path := video_file(e, folder)) is not None}
    size = sum(path.stat().st_size for path in files.values())
    embedded, missing, notes = size <= EMBEDDED_BYTES, len({e.video for e in kept}) - len(files), []
    if not embedded:
        notes.append(f"The videos ({size / 1e6:.0f} MB) are too large for this page: they lie in the folder beside it.")
    if missing:
        notes.append(f"{missing} of the videos are not there any more.")
    shown: dict[str, list[Video]] = {"Successes": [], "Failures": []}
    for e in kept:
        caption = video_caption(e)
        if e.video not in files:
            video = Video("", False, f"{caption} (video missing)")
        else:
            video = Video(data_uri(files[e.video]) if embedded else quote(str(e.video)), embedded, caption)
        shown["Successes" if e.success else "Failures"].append(video)
    return list(shown.items()), notes


def video_file(outcome: EpisodeOutcome, folder: Path) -> Path | None:
    """The video of an episode; None where there is none, or its path leads out of the folder."""
    path = folder / (outcome.video or "")
    inside = path.resolve().is_relative_to(folder.resolve())
    return path if outcome.video and inside and path.is_file() else None


def video_caption(outcome: EpisodeOutcome) -> str:
    """Part, seed, target, lure, what was picked, steps, and what the policy saw where that was changed."""
    lure = thing_words(outcome, "lure")
    changed = "" if outcome.condition == AS_IT_IS else f"; {CONDITIONS[outcome.condition]}"
    return (
        f"{outcome.part}, seed {outcome.seed}; target: {thing_words(outcome, 'target')}"
        f"{f'; lure: {lure}' if lure else ''}; picked: {outcome.picked}; {outcome.steps} steps{changed}"
    )
