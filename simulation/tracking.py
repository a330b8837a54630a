"""A closed-loop evaluation as a wandb run: the numbers, tables, videos and the page of its report."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulation.outcomes import TARGET, EpisodeOutcome, Evaluation
from simulation.page import thing_words, video_caption, video_file
from simulation.readings import cue_preference
from simulation.report import PAGE_FILE
from simulation.shares import Share
from simulation.summary import AS_IT_IS, Summary, summarize

if TYPE_CHECKING:
    from finetune.config import TrackingConfig

JOB_TYPE = "evaluate"
PREFIX = "closed_loop"
_VIDEOS = (".mp4", ".webm", ".gif", ".ogg")  # what wandb takes
_OUTCOME = ("condition", "part", "seed", "success", "picked", "picked_step", "steps", "chunks", "instruction")
_OF_SUCCESS = ("episodes", "success", "low", "high")


def log_to_wandb(evaluation: Evaluation, folder: Path, tracking: TrackingConfig) -> None:
    """Log the report that write_report left in `folder`; does nothing unless tracking.name is wandb.

    One run of job_type evaluate in the group of `tracking`; without a key it stays in <folder>/wandb, and wandb sync
    sends it. Raises ToolkitError where tracking.mode=online cannot be had.
    """
    if tracking.name != "wandb":
        return
    from finetune.wandb_start import start_run

    summary = summarize(evaluation)
    run = start_run(tracking, folder, id=uuid.uuid4().hex[:12], job_type=JOB_TYPE, config=evaluation.info)
    with run:
        run.log({f"{PREFIX}/{name}": value for name, value in _media(evaluation, summary, folder).items()})
        for name, value in numbers(summary).items():
            run.summary[name] = value


def numbers(summary: Summary) -> dict[str, float | str]:
    """Every share under a name of its own, with the ends of its interval; shares of no episodes are left out."""
    shares = {}
    for condition, parts in summary.counted.items():
        place = PREFIX if condition == AS_IT_IS else f"{PREFIX}/{condition}"
        for part, counted in parts.items():
            shares[f"{place}/{part}/success"] = counted.success
            shares |= {f"{place}/{part}/picked_{pick}": share for pick, share in counted.picks.items()}
            if part == "conflict":
                shares[f"{place}/cue_preference"] = counted.preference
    found: dict[str, float | str] = {}
    for name, share in shares.items():
        found |= _ends(name, share)
    if "conflict" in summary.chance:
        found[f"{PREFIX}/verdict"] = cue_preference(summary).headline
    return found


def _ends(name: str, share: Share) -> dict[str, float]:
    if share.value is None:
        return {}
    return {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high, f"{name}_of": share.n}


def _media(evaluation: Evaluation, summary: Summary, folder: Path) -> dict[str, Any]:
    import wandb

    media = {
        "picks": _table(["part", "condition", "share", "count", "of", "value", "low", "high"], _share_rows(summary)),
        "by_factor": _table(["part", "whose", "factor", "value", *_OF_SUCCESS, "target picked"], _factor_rows(summary)),
        "episodes": _table([*_OUTCOME, "target", "lure"], [_episode_row(e) for e in evaluation.episodes]),
        "page": wandb.Html((folder / PAGE_FILE).read_text(encoding="utf-8"), inject=False),
    }
    if summary.changes:
        media["changes"] = _table(["condition", "part", *_OF_SUCCESS, "other pick"], _change_rows(summary))
    for kind, success in (("successes", True), ("failures", False)):
        films = _films([e for e in evaluation.episodes if e.success is success], folder)
        if films:
            media[kind] = films
    return media


def _films(episodes: Sequence[EpisodeOutcome], folder: Path) -> list[Any]:
    import wandb

    found = ((video_file(e, folder), video_caption(e)) for e in episodes)
    return [wandb.Video(str(path), caption=c) for path, c in found if path is not None and path.suffix in _VIDEOS]


def _table(columns: list[str | int], rows: list[list[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=columns, data=rows, allow_mixed_types=True)


def _share_rows(summary: Summary) -> list[list[Any]]:
    rows = []
    for condition, parts in summary.counted.items():
        for part, counted in parts.items():
            for name, share in {"success": counted.success, **counted.picks}.items():
                rows.append([part, condition, name, share.count, share.n, share.value, share.low, share.high])
    return rows


def _factor_rows(summary: Summary) -> list[list[Any]]:
    return [
        [t.part, t.whose, t.factor, value, c.n, c.success.value, c.success.low, c.success.high, c.picks[TARGET].count]
        for t in summary.factors
        for value, c in t.rows.items()
    ]


def _change_rows(summary: Summary) -> list[list[Any]]:
    return [
        [c.condition, c.part, c.before.n, c.success.value, c.success.low, c.success.high, c.other_pick.value]
        for c in summary.changes
    ]


def _episode_row(outcome: EpisodeOutcome) -> list[Any]:
    return [*(getattr(outcome, name) for name in _OUTCOME), *(thing_words(outcome, w) for w in ("target", "lure"))]
