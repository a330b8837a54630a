"""The examination as one HTML page: findings, what the cameras see, and the values' ranges and courses."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import cv2
import numpy as np

from data_prep.dataset_figures import draw_histograms, draw_lengths, draw_traces
from data_prep.doctor.findings import ERROR, WARNING, Report
from data_prep.doctor.language import annotation_column, told_by_episode
from data_prep.doctor.subject import Subject, evenly
from finetune.page import data_uri, render_page
from gr00t.data.episode_video import EpisodeVideo
from gr00t.errors import ToolkitError

MOMENTS = ("first", "middle", "last")
PICTURE_WIDTH = 192  # pixels: a page with a few dozen pictures stays below a few MB
INSTRUCTIONS = 20
_EPISODES = re.compile(r"episodes? (?:\()?([\d, ]+)")  # as data_prep.doctor.findings.episodes writes them
VERDICTS = {"ok": "sound", WARNING: "sound, with warnings", ERROR: "not sound"}


def dataset_page(report: Report, subjects: Sequence[Subject], shown: int) -> str:
    """The page's HTML; of each part `shown` episodes appear with frames and curves."""
    parts = []
    for subject in subjects:
        with suppress(Exception):  # of data too damaged to be drawn: the findings say what is wrong
            if not subject.refusal:
                parts.append(_part(subject, _chosen(subject, report, shown)))
    return render_page(
        "dataset.html",
        {
            "title": f"Dataset {report.path}",
            "when": time.strftime("%Y-%m-%d %H:%M"),
            "report": report,
            "verdict": VERDICTS[report.level],
            "errors": len(report.findings(ERROR)),
            "warnings": len(report.findings(WARNING)),
            "findings": report.findings(ERROR) + report.findings(WARNING),
            "parts": parts,
            "moments": MOMENTS,
            "columns": max((len(part["cameras"]) for part in parts), default=1) * len(MOMENTS) or 1,
        },
    )


def _chosen(subject: Subject, report: Report, shown: int) -> list[int]:
    """The episodes that appear: those that findings name, then others evenly."""
    places = [f.where for dataset, _, f in report.findings(ERROR, WARNING) if dataset.folder == subject.root]
    known = [e.index for e in subject.episodes]
    named = [int(n) for place in places for text in _EPISODES.findall(place) for n in re.findall(r"\d+", text)]
    blamed = list(dict.fromkeys(n for n in named if n in known))[:shown]
    others = [index for index in known if index not in blamed]
    return sorted(blamed + evenly(others, shown - len(blamed)))


def _part(subject: Subject, chosen: list[int]) -> dict[str, Any]:
    told = _told(subject)
    return {
        "name": subject.name,
        "facts": {
            "episodes": len(subject.episodes),
            "frames": sum(e.length for e in subject.episodes),
            "fps": subject.layout.fps,
            "held_out": sorted(subject.held_out),
        },
        "cameras": subject.cameras,
        "instructions": Counter(told.values()).most_common(INSTRUCTIONS),
        "pictures": [_pictures(subject, index, told.get(index, "")) for index in chosen],
        "lengths": draw_lengths(subject),
        "histograms": draw_histograms(subject),
        "traces": draw_traces(subject, chosen),
    }


def _told(subject: Subject) -> dict[int, str]:
    """{episode: its instructions, joined}."""
    tasks = subject.layout.tasks
    told = told_by_episode(subject, annotation_column(subject))
    return {i: " / ".join(tasks.get(n, f"task {n}, not listed") for n in sorted(found)) for i, found in told.items()}


def _pictures(subject: Subject, index: int, instruction: str) -> dict[str, Any]:
    length = subject.layout.episode(index).length
    return {
        "index": index,
        "length": length,
        "held_out": index in subject.held_out,
        "instruction": instruction,
        "frames": [
            {"name": f"{camera}, {moment}", "uri": uri}
            for camera in subject.cameras
            for moment, uri in zip(MOMENTS, _frames(subject, index, camera), strict=True)
        ],
    }


def _frames(subject: Subject, index: int, camera: str) -> list[str]:
    """First, middle and last frame as data URIs; empty texts where the video cannot be read."""
    try:
        with EpisodeVideo(subject.layout, index, camera) as video:
            last = len(video) - 1
            return [_uri(frame) for frame in video.frames([0, last // 2, last])]
    except ToolkitError:
        return [""] * len(MOMENTS)


def _uri(frame: np.ndarray) -> str:
    """(H, W, 3) RGB as a small JPEG."""
    height, width = frame.shape[:2]
    if width > PICTURE_WIDTH:
        size = (PICTURE_WIDTH, max(1, round(height * PICTURE_WIDTH / width)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done
    return data_uri(data.tobytes(), "image/jpeg")
