"""Results of a checkpoint for its card: open_loop.json and closed_loop.json in the reports folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.open_loop import PREDICTORS, label
from gr00t.errors import ToolkitError
from gr00t.files import read_json
from gr00t.model.checkpoint import fingerprint

OPEN_LOOP, CLOSED_LOOP = "open_loop.json", "closed_loop.json"
PARTS = ("train", "val", "conflict")
AS_IT_IS = "none"  # the condition under which the policy sees what is there


@dataclass(frozen=True)
class OpenLoop:
    """Errors on the episodes of one part: rows of (group, predictor, mean absolute error, share of wrong signs)."""

    part: str
    episodes: int
    starts: int
    precision: str
    denoising_steps: int
    rows: list[tuple[str, str, float, float | None]]
    findings: list[str]


@dataclass(frozen=True)
class Results:
    """Everything that was measured with a checkpoint; notes: what was found and not used, and why."""

    open_loop: list[OpenLoop] = field(default_factory=list)
    closed_loop: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_results(reports_dir: Path, checkpoint: Path, split: str) -> Results:
    """The results below `reports_dir` that are of this very checkpoint, of each part the newest open loop."""
    notes: list[str] = []
    own = fingerprint(checkpoint)
    open_loop: dict[str, OpenLoop] = {}
    for path, data in _found(reports_dir, OPEN_LOOP):
        if _is_of(data, path, checkpoint, own, split, notes):
            result = _parsed(path, data, _open_loop)
            open_loop[result.part] = result
    closed_loop = []
    for path, data in _found(reports_dir, CLOSED_LOOP):
        if not _is_of(data.get("info") or {}, path, checkpoint, own, split, notes):
            continue
        if "summary" not in data:
            notes.append(f"{path} holds no summary, left out: make its report anew")
            continue
        closed_loop.append(_parsed(path, data, _closed_loop))
    parts = [part for part in PARTS if part in open_loop]
    return Results([open_loop[part] for part in parts], closed_loop, notes)


def _found(folder: Path, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files of that name, oldest first; those in hidden folders are half-written."""
    paths = [path for path in folder.rglob(name) if not any(p.startswith(".") for p in path.relative_to(folder).parts)]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        yield path, read_json(path)


def _is_of(info: dict[str, Any], path: Path, checkpoint: Path, own: str, split: str, notes: list[str]) -> bool:
    """Whether it was measured with this checkpoint: by its fingerprint, or else by its folder and the time."""
    if info.get("split") != split:
        return False
    measured = info.get("checkpoint_fingerprint")
    if measured is None:
        same = Path(str(info.get("checkpoint"))).resolve() == checkpoint.resolve()
        same = same and path.stat().st_mtime >= (checkpoint / "config.json").stat().st_mtime
    else:
        same = measured == own
    if not same:
        notes.append(f"{path} was measured with another checkpoint, left out")
    return same


def _parsed(path: Path, data: dict[str, Any], read: Any) -> Any:
    try:
        return read(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ToolkitError(f"{path} is damaged ({type(error).__name__}: {error}). Evaluate again.") from None


def _open_loop(data: dict[str, Any]) -> OpenLoop:
    measured = data["overall"]["all"]
    rows = [
        (group, label(predictor), float(errors[predictor]["mae"]), errors[predictor]["sign_error_rate"])
        for group, errors in measured["errors"].items()
        for predictor in PREDICTORS
    ]
    return OpenLoop(
        part=data["part"],
        episodes=len(data["episodes"]),
        starts=int(measured["starts"]),
        precision=data["precision"],
        denoising_steps=int(data["denoising_steps"]),
        rows=rows,
        findings=[_without_places(finding, data) for finding in data["findings"]],
    )


def _without_places(finding: str, data: dict[str, Any]) -> str:
    """A finding without the folders of the machine it was made on."""
    training = str(Path(data["config"]["data_dir"]) / data["split"] / "train")
    return finding.replace(training, "its training dataset")


def _closed_loop(data: dict[str, Any]) -> dict[str, Any]:
    """The summary as it stands in the file, with what was played."""
    info, summary = data["info"], data["summary"]
    return {
        "denoising_steps": info.get("denoising_steps"),
        "n_action_steps": info["n_action_steps"],
        "max_steps": info["max_steps"],
        "cues": list(summary["cues"]),
        "parts": {part: _counted(of) for part, of in summary["counted"].get(AS_IT_IS, {}).items()},
        "ablations": {
            condition: {part: _counted(of) for part, of in parts.items()}
            for condition, parts in summary["counted"].items()
            if condition != AS_IT_IS
        },
        "cue_preference": summary["cue_preference"],
        "readings": [(r["question"], r["headline"], r["text"]) for r in summary["readings"]],
    }


def _counted(of: dict[str, Any]) -> dict[str, Any]:
    return {"success": of["success"], "target": of["picks"]["target"], "lure": of["picks"]["lure"]}
