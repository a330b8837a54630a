"""The page of a closed-loop evaluation: what toolkit/pages/closed_loop.html is filled with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from simulation.closed_loop import (
    CONDITIONS,
    EVALUATED,
    NOTHING,
    PICKS,
    STAGES,
    ClosedLoopConfig,
    EpisodeOutcome,
    Evaluation,
)
from simulation.report import AS_IT_IS, ENDINGS, Summary, Way
from simulation.report.conclusions import cue_preference, readings
from simulation.report.proportions import Quartiles
from simulation.scenes.instruction_suite import CELLS, JITTER
from simulation.scenes.plate_suite import OBJECT_X, OBJECT_Y, PLATE_X, PLATE_Y
from simulation.scenes.suites import PLATE, Suite, suite_of
from simulation.scenes.verbs import VERBS
from toolkit.html_page import data_uri, render_page
from toolkit.shared_keys import SplitConfig

EMBEDDED_BYTES = 12_000_000  # of videos; a page that is larger opens slowly and cannot be mailed
HISTOGRAM_BARS = 20
WAY_HEAD = ["stage", "reached", "step: median (quartiles)", "the expert", "the expert's step"]


def page(evaluation: Evaluation, summary: Summary, folder: Path) -> str:
    """The HTML; `folder` is where the page will lie and its videos are."""
    suite = suite_of(evaluation.info["split"])
    info, episodes, parts = evaluation.info, evaluation.episodes, list(summary.chance)
    plain = {part: [e for e in episodes if (e.condition, e.part) == (AS_IT_IS, part)] for part in parts}
    kept, notes = videos(episodes, folder)
    # Nested values as JSON; the recipe is compared only.
    told = {k: v for k, v in info.items() if k != "recipe"}
    facts = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v for k, v in told.items()}
    values: dict[str, Any] = {
        "title": f"Closed loop: {info['split']}",
        "info": {"checkpoint": None, **info},
        "summary": summary,
        "preference": cue_preference(summary) if "conflict" in parts else None,
        "readings": readings(summary),
        "weak": {(s.part, s.whose, s.factor, s.value) for s in summary.weak_spots},
        "maps": {part: [_place(e) for e in plain[part]] for part in parts},
        "zones": _zones(suite),
        "plates": {"x": (-1000 * PLATE_Y, 1000 * PLATE_Y) if suite is PLATE else (), "y": 1000 * PLATE_X},
        "instruction": instruction_in_words(info),
        "whose_factors": ("sentence", "target", "lure", "plate"),
        "verbs": (*VERBS, NOTHING),
        "parts": [p for p in EVALUATED if any(p in counted for counted in summary.counted.values())],
        "histograms": {part: _histogram(plain[part], part, info["max_steps"]) for part in parts},
        "other_instructions": sorted({e.instruction for e in episodes if e.condition == "other_instruction"}),
        "way_rows": {part: way_rows(way, summary.expert.get(part)) for part, way in summary.way.items()},
        "in_words": in_words,
        "failed": {part: _failed(plain[part], {v["id"] for _, shown in kept for v in shown}) for part in summary.way},
        "videos": kept,
        "video_notes": notes,
        "command": command(info),
        "facts": facts.items(),
        "episodes": episodes,
        "conditions": CONDITIONS,
        "picks": PICKS,
    }
    return render_page("closed_loop.html", values)


def instruction_in_words(info: dict[str, Any]) -> str:
    """What the policy was asked to do, as a sentence."""
    said = info["instruction"]
    return "Each episode has its own instruction." if said is None else f'Instruction "{said}".'


def command(info: dict[str, Any]) -> str:
    """The command that evaluates the same again: what its configuration says besides the defaults.

    report_dir and tracking are left out: who repeats it wants to keep what is there, and logs where they log.
    """
    given, instruction = {"split": info["split"], "mode": "closed_loop"}, info["instruction"]
    if instruction not in (
        None,
        f"pick up the {info['split'].split('_')[0]}-matching object",
    ):  # not the one that ships
        given["split.instruction"] = instruction
    for name, default in vars(ClosedLoopConfig(split=SplitConfig(name="", instruction=""))).items():
        value = info.get("config", {}).get(name, default)
        if name not in (*given, "report_dir", "tracking") and value != default:
            given[name] = value
    return shlex.join(["python", "evaluate_conflict.py", *(f"{k}={typed(v)}" for k, v in given.items())])


def typed(value: Any) -> str:
    """As it is typed on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _place(outcome: EpisodeOutcome) -> dict[str, Any]:
    """Where the target lay, in mm as the base camera sees it: y to the right, x towards the camera."""
    target = outcome.thing("target") or {}
    title = f"seed {outcome.seed}: {outcome.in_words('target')}; picked {outcome.picked}"
    x, y = round(1000 * target["y"], 1), round(1000 * target["x"], 1)
    return {"x": x, "y": y, "success": outcome.success, "picked": outcome.picked, "title": title}


def _zones(suite: Suite) -> list[dict[str, float]]:
    """Where objects may lie, in mm: left and right, or in the instruction suite's five places."""
    if suite is not PLATE:
        corner, size = -1000 * JITTER, 2000 * JITTER
        return [
            {"x": 1000 * y + corner, "y": 1000 * x + corner, "width": size, "height": size} for x, y in CELLS.values()
        ]
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
    counts, _ = np.histogram(steps, range(0, whole + 1 + size, size))
    return [
        {
            "first": first,
            "last": first + size - 1,
            "x": 100 * first / (whole + 1),
            "width": 100 * size / (whole + 1),
            "height": count / max(1, *counts),
            "count": count,
        }
        for first, count in zip(range(0, whole + 1, size), counts.tolist(), strict=True)
    ]


def way_rows(way: Way, expert: Way | None) -> list[list[str]]:
    """A row of WAY_HEAD for each stage."""
    return [
        [
            STAGES[stage],
            str(share),
            in_words(way.steps[stage]),
            expert.reached[stage].counts if expert else "-",
            in_words(expert.steps[stage]) if expert else "-",
        ]
        for stage, share in way.reached.items()
    ]


def in_words(found: Quartiles | None, digits: int = 0) -> str:
    """21 (19 to 24)."""
    if found is None:
        return "-"
    low, middle, high = (f"{q:.{digits}f}" for q in (found.first_quartile, found.median, found.third_quartile))
    return f"{middle} ({low} to {high})"


def _failed(episodes: Sequence[EpisodeOutcome], films: Collection[str]) -> list[tuple[str, int, list[tuple[int, str]]]]:
    """(where they ended, how many, (seed, place on the page) of each film) of the failures of a part."""
    found = []
    for stage, words in ENDINGS.items():
        ended = [e for e in episodes if e.stage == stage and not e.success]
        linked = [(e.seed, _film_id(e)) for e in ended if _film_id(e) in films]
        found += [(words, len(ended), linked)] if ended else []
    return found


def _film_id(outcome: EpisodeOutcome) -> str:
    return f"film-{outcome.part}-{outcome.seed}"


def videos(
    episodes: Sequence[EpisodeOutcome], folder: Path
) -> tuple[list[tuple[str, list[dict[str, Any]]]], list[str]]:
    """Successes and failures, each with its heading, and what is to be said about them; nothing where none was kept.

    A video is inside the page (embedded), beside it, or missing (its source is empty).
    """
    kept = [e for e in episodes if e.video is not None]
    if not kept:
        return [], []
    files = {e.video: path for e in kept if (path := video_file(e, folder)) is not None}
    size = sum(path.stat().st_size for path in files.values())
    fits, missing, notes = size <= EMBEDDED_BYTES, len({e.video for e in kept}) - len(files), []
    if not fits:
        notes.append(f"The videos ({size / 1e6:.0f} MB) are too large for this page: they lie in the folder beside it.")
    if missing:
        notes.append(f"{missing} of the videos are not there any more.")
    shown: dict[str, list[dict[str, Any]]] = {"Successes": [], "Failures": []}
    for e in kept:
        video = {"source": "", "embedded": False, "caption": f"{video_caption(e)} (video missing)", "id": _film_id(e)}
        if e.video in files:
            source = data_uri(files[e.video]) if fits else quote(str(e.video))
            video |= {"source": source, "embedded": fits, "caption": video_caption(e)}
        shown["Successes" if e.success else "Failures"].append(video)
    return list(shown.items()), notes


def video_file(outcome: EpisodeOutcome, folder: Path) -> Path | None:
    """The video of an episode; None where there is none, or its path leads out of the folder."""
    path = folder / (outcome.video or "")
    inside = path.resolve().is_relative_to(folder.resolve())
    return path if outcome.video and inside and path.is_file() else None


def video_caption(outcome: EpisodeOutcome) -> str:
    """Part, seed, target, lure, what was picked, where a failure ended, steps, and what the policy saw where that was
    changed."""
    lure = outcome.in_words("lure")
    changed = "" if outcome.condition == AS_IT_IS else f"; {CONDITIONS[outcome.condition]}"
    ending = "" if outcome.success or outcome.stage is None else f"; {ENDINGS[outcome.stage]}"
    return (
        f"{outcome.part}, seed {outcome.seed}; target: {outcome.in_words('target')}"
        f"{f'; lure: {lure}' if lure else ''}; picked: {outcome.picked}{ending}; {outcome.steps} steps{changed}"
    )
