"""Do the videos decode, have their episode's length, and does something happen in them?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.doctor.findings import PREPARE_AGAIN, Finding, episodes, error, split_message, warning
from data_prep.doctor.footage import BLANK
from data_prep.doctor.subject import Subject
from gr00t.files import file_sha256

WINDOW = 5  # neighbouring changes judged together: their median is blind to the codec's own fresh starts
STILL = 0.1  # of the usual change: sound recordings stay above 0.2, a repeated picture below 0.06
NOTHING = 0.08  # of 255: what the codec makes of the same picture again and again
MOVING = 0.5  # of the usual speed
STRAIGHT, MIXED, BELOW = (
    1.45,
    1.15,
    0.35,
)  # change over two frames by that over one: of a fixed camera 1.4 to 2, in any order 1
MEND_STUCK = (
    "The decoder or the camera stuck when this was written. Prepare the dataset again with the package versions of the "
    "constraints file; if the recording itself stands still, leave the episode out."
)


def check_decoding(subject: Subject) -> Iterator[Finding]:
    """Every video opens (in the full examination: decodes to its end) and has one frame for each row."""
    lengths = {e.index: e.length for e in subject.episodes}
    for camera in subject.cameras:
        footage = {i: f for (i, c), f in subject.footage.items() if c == camera}
        broken = [i for i, f in footage.items() if f.problem and not f.problem.endswith(("is missing.", "is empty."))]
        if broken:
            found, remedy = split_message(footage[broken[0]].problem)
            yield error(f"videos/, {camera}, {episodes(broken, len(lengths))}", found, remedy)
        wrong = [i for i, f in footage.items() if not f.problem and f.length != lengths[i]]
        if wrong:
            found = (
                f"The video of episode {wrong[0]} has {footage[wrong[0]].length} frames, its table should have "
                f"{lengths[wrong[0]]}: images and states drift apart."
            )
            yield error(f"videos/, {camera}, {episodes(wrong, len(lengths))}", found)


def check_sizes(subject: Subject) -> Iterator[Finding]:
    """One frame size for each camera, the one that meta/info.json says."""
    for camera in subject.cameras:
        sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for (i, c), f in subject.footage.items():
            if c == camera and f.size:
                sizes[f.size].append(i)
        if not sizes:
            continue
        usual = max(sizes, key=lambda size: len(sizes[size]))
        other = sorted(i for size, found in sizes.items() if size != usual for i in found)
        if other:
            size = next(size for size, found in sizes.items() if other[0] in found)
            found = f"Frames are {size[0]}x{size[1]}, those of the other episodes {usual[0]}x{usual[1]}."
            remedy = f"Record the whole dataset with one size. {PREPARE_AGAIN}"
            yield error(f"videos/, {camera}, {episodes(other, len(subject.episodes))}", found, remedy)
        entry = subject.layout.modality["video"][camera]
        shape = subject.feature(entry.get("original_key") or f"observation.images.{camera}").get("shape")
        if isinstance(shape, list) and len(shape) == 3 and not set(usual) <= set(shape):
            found = f"{camera} has frames of {usual[0]}x{usual[1]}, the features say {shape}."
            yield warning("meta/info.json", found, "Correct shape in the features of meta/info.json.")


def check_frozen(subject: Subject) -> Iterator[Finding]:
    """Frames change while the robot moves."""
    speeds = speed_by_episode(subject)
    for camera in subject.cameras:
        motion = {
            i: f.motion
            for (i, c), f in subject.footage.items()
            if c == camera and f.motion is not None and i in speeds and len(speeds[i]) == len(f.motion) >= WINDOW
        }
        if motion:
            yield from _frozen(subject, f"videos/, {camera}, ", motion, speeds)


def _frozen(
    subject: Subject, where: str, motion: dict[int, np.ndarray], speeds: dict[int, np.ndarray]
) -> Iterator[Finding]:
    total = len(subject.episodes)
    limit = MOVING * float(np.median(np.concatenate([speeds[i] for i in motion])))
    moving = {i: speeds[i] > limit for i in motion}
    seen = np.concatenate([m[moving[i]] for i, m in motion.items()])
    usual = float(np.median(seen)) if len(seen) else 0.0
    dead = [i for i, m in motion.items() if np.median(m) < NOTHING / 2 and (m[moving[i]] < 4 * NOTHING).all()]
    if usual < NOTHING:
        found = "The picture never changes, in no episode."
        yield error(where + episodes(list(motion), total), found, MEND_STUCK)
        return
    if dead:
        yield error(where + episodes(dead, total), "All frames show the same picture.", MEND_STUCK)
    stuck = {i: run for i, m in motion.items() if i not in dead and (run := _still(m, moving[i], STILL * usual))[1]}
    if stuck:
        first = next(iter(stuck))
        found = "The picture stands still while the robot moves: {1} frames from frame {0} on in episode {2}."
        yield error(where + episodes(list(stuck), total), found.format(*stuck[first], first), MEND_STUCK)
    repeated = [i for i, m in motion.items() if i not in dead and _repeats(m[moving[i]])]
    if len(repeated) > len(motion) / 2 or (repeated and not set(repeated) <= set(stuck)):
        found = "Every other frame repeats the one before: a video of half the rate was stretched."
        yield error(where + episodes(repeated, total), found, MEND_STUCK)


def speed_by_episode(subject: Subject) -> dict[int, np.ndarray]:
    """{episode: (T-1,)}: how fast the state changes, each dimension measured by its own usual speed."""
    tables = subject.state_tables
    if not tables:
        return {}
    steps = {i: np.abs(np.diff(v, axis=0)) for i, v in tables.items()}
    usual = np.concatenate(list(steps.values())).mean(axis=0)
    usual = np.where(usual > 0, usual, np.inf)
    return {i: (s / usual).mean(axis=1) for i, s in steps.items()}


def _still(motion: np.ndarray, moving: np.ndarray, limit: float) -> tuple[int, int]:
    """(first frame, frames) of what does not change while the state moves; (0, 0) where there is nothing such."""
    windows = np.lib.stride_tricks.sliding_window_view
    still = (np.median(windows(motion, WINDOW), axis=1) < limit) & windows(moving, WINDOW).all(axis=1)
    starts = np.flatnonzero(still)
    return (int(starts[0]), int(starts[-1] - starts[0]) + WINDOW) if len(starts) else (0, 0)


def _repeats(motion: np.ndarray) -> bool:
    """Whether changes come in every other frame only."""
    if len(motion) < 8:
        return False
    even, odd = np.median(motion[::2]), np.median(motion[1::2])
    return bool(min(even, odd) < 0.25 * max(even, odd))


def check_blank(subject: Subject) -> Iterator[Finding]:
    """Frames that show nothing, and single frames that belong elsewhere."""
    for camera in subject.cameras:
        footage = {i: f for (i, c), f in subject.footage.items() if c == camera}
        where = f"videos/, {camera}, "
        blank = {i: np.flatnonzero(f.contrast < BLANK) for i, f in footage.items() if f.contrast is not None}
        blank = {i: frames for i, frames in blank.items() if len(frames)}
        if blank:
            first = next(iter(blank))
            count, start = len(blank[first]), blank[first][0]
            found = f"{count} frames of episode {first} show a single colour, the first is frame {start}."
            remedy = "A camera that was off or a lost frame: leave the episode out, or record it again."
            yield error(where + episodes(list(blank), len(subject.episodes)), found, remedy)
        foreign = {i: t for i, f in footage.items() if i not in blank and (t := _foreign_frame(f.motion, f.leaps))}
        if foreign:
            first = next(iter(foreign))
            found = f"Frame {foreign[first]} of episode {first} is unlike both of its neighbours, which are alike."
            remedy = f"A damaged or misplaced frame. {PREPARE_AGAIN}"
            yield warning(where + episodes(list(foreign), len(subject.episodes)), found, remedy)


def _foreign_frame(motion: np.ndarray | None, leaps: np.ndarray | None) -> int | None:
    """An inner frame far off both neighbours, which resemble each other."""
    if motion is None or leaps is None or len(leaps) < 5:
        return None
    off = np.minimum(motion[:-1], motion[1:])
    odd = (off > 4 * leaps) & (off > 5 * np.median(motion)) & (off > 3.0)
    return int(np.flatnonzero(odd)[0]) + 1 if odd.any() else None


def check_order(subject: Subject) -> Iterator[Finding]:
    """Frames follow one another: the second next is farther off than the next, where that is so in most episodes."""
    for camera in subject.cameras:
        straight = {
            i: float(np.median(f.leaps) / max(1e-6, np.median(f.motion)))
            for (i, c), f in subject.footage.items()
            if c == camera and f.leaps is not None and f.motion is not None and len(f.leaps) > 2 * WINDOW
        }
        usual = float(np.median(list(straight.values()))) if straight else 0.0
        if usual < STRAIGHT:
            continue
        mixed = [i for i, share in straight.items() if 0 < share < min(MIXED, usual - BELOW)]
        if mixed:
            where = f"videos/, {camera}, {episodes(mixed, len(subject.episodes))}"
            yield error(where, "The frames are out of order: each is as far from the next as from the one after.")


def check_copies(subject: Subject) -> Iterator[Finding]:
    """No two videos are the same file."""
    by_size: dict[int, list[tuple[int, str, Path]]] = defaultdict(list)
    for e in subject.episodes:
        for camera in subject.cameras:
            path = subject.video_path(e.index, camera)
            if isinstance(path, Path) and path.is_file() and path.stat().st_size:
                by_size[path.stat().st_size].append((e.index, camera, path))
    copies: dict[str, list[tuple[int, int, str]]] = defaultdict(list)  # camera: (episode, episode and camera it is of)
    for group in by_size.values():
        if len({path for _, _, path in group}) < 2:
            continue
        first: dict[str, tuple[int, str, Path]] = {}
        for index, camera, path in group:
            twin = first.setdefault(file_sha256(path), (index, camera, path))
            if twin[2] != path:
                copies[camera].append((index, *twin[:2]))
    for camera, found in copies.items():
        index, of, of_camera = found[0]
        where = f"videos/, {camera}, {episodes([i for i, _, _ in found], len(subject.episodes))}"
        yield error(where, f"The video of episode {index} is the same file as {of_camera} of episode {of}.")
