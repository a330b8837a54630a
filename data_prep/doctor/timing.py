"""Do timestamps and frame rate agree, in the tables and in the videos?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.doctor.findings import PREPARE_AGAIN, Finding, episodes, error, warning
from data_prep.doctor.subject import Subject
from data_prep.maniskill import CONTROL_FREQ

PLAUSIBLE_FPS = (1.0, 240.0)
TOLERANCE = 0.1  # of a frame's time: LeRobot refuses at 1e-4 s, timestamps in float32 stay below that
MEND_RATE = (
    "Find out at which rate it was recorded, and put that into fps of meta/info.json and into the timestamps "
    "(frame_index / fps): the policy is run at this rate."
)


def check_rate(subject: Subject) -> Iterator[Finding]:
    """fps is plausible, and that of the robot where it is known."""
    fps = subject.layout.fps
    if not PLAUSIBLE_FPS[0] <= fps <= PLAUSIBLE_FPS[1]:
        yield error("meta/info.json", f"fps is {fps:g}, which no camera of a robot has.", MEND_RATE)
    elif subject.is_maniskill_panda and fps != CONTROL_FREQ:
        found = f"fps is {fps:g}, but ManiSkill's Panda is controlled at {CONTROL_FREQ} Hz."
        yield error("meta/info.json", found, MEND_RATE)


def check_timestamps(subject: Subject) -> Iterator[Finding]:
    """Timestamps begin at 0, grow, and lie 1/fps apart."""
    times = {i: v.reshape(-1).astype(np.float64) for i, v in subject.column("timestamp").items() if len(v)}
    total = len(subject.episodes)
    broken = [i for i, t in times.items() if not np.isfinite(t).all() or (np.diff(t) <= 0).any()]
    if broken:
        yield error(f"data/, {episodes(broken, total)}", "Timestamps do not grow from frame to frame.")
    if not PLAUSIBLE_FPS[0] <= subject.layout.fps <= PLAUSIBLE_FPS[1]:
        return
    frame = 1 / subject.layout.fps
    whole = {i: t for i, t in times.items() if i not in broken and len(t) > 1}
    steps = {i: float(np.median(np.diff(t))) for i, t in whole.items()}
    other = [i for i, step in steps.items() if abs(step - frame) > TOLERANCE * frame]
    if other:
        rate = 1 / steps[other[0]]
        yield error(
            f"data/, {episodes(other, total)}",
            f"Timestamps are those of {rate:.4g} frames a second, fps of meta/info.json is {subject.layout.fps:g}.",
            MEND_RATE,
        )
    gaps = {i: _gap(t, frame) for i, t in whole.items() if i not in other}
    jumps = {i: gap for i, gap in gaps.items() if gap is not None}
    if jumps:
        first = next(iter(jumps))
        yield error(
            f"data/, {episodes(list(jumps), total)}",
            f"Timestamps jump: episode {first} after frame {jumps[first]}. Frames were lost or are unevenly spaced.",
            f"Cut the episode there, or record it again. {PREPARE_AGAIN}",
        )
    late = [i for i, t in times.items() if i not in broken and abs(t[0]) > 0.5 * frame]
    if late:
        found = f"Timestamps do not begin at 0 (episode {late[0]}: {times[late[0]][0]:.4g} s)."
        yield warning(f"data/, {episodes(late, total)}", found, "Subtract the first from each episode's timestamps.")


def _gap(times: np.ndarray, frame: float) -> int | None:
    """The frame after which the next one does not follow 1/fps later."""
    wrong = np.flatnonzero(np.abs(np.diff(times) - frame) > 0.5 * frame)
    return int(wrong[0]) if len(wrong) else None


def check_video_rate(subject: Subject) -> Iterator[Finding]:
    """The videos' own frame rate is that of meta/info.json."""
    fps = subject.layout.fps
    for camera in subject.cameras:
        rates = {i: f.fps for (i, c), f in subject.footage.items() if c == camera and f.fps}
        other = [i for i, rate in rates.items() if abs(rate - fps) > 0.02 * fps]
        if other:
            yield warning(
                f"videos/, {camera}, {episodes(other, len(subject.episodes))}",
                f"The videos run at {rates[other[0]]:.4g} frames a second, fps of meta/info.json is {fps:g}.",
                f"Frames are read by number here, by time in LeRobot. {MEND_RATE} Then write the videos at that rate.",
            )
