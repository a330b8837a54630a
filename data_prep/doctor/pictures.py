"""Are colours RGB, pictures upright and cameras the ones they are called?

Three witnesses: what the converter recorded of the first frames (meta/split.json), the other episodes, and, for what
both cannot say, which camera moves with the arm. Where none of them knows, colours alone are no proof: a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data_prep.doctor.findings import PREPARE_AGAIN, Finding, episodes, error, warning
from data_prep.doctor.footage import sketch_from_text
from data_prep.doctor.subject import Subject

GREY = 4.0  # of 255: what the codec adds to a picture without colours
CLOSE = 3.0  # of 255: what the codec does to the mean colour of a field
CLEAR = 5.0  # a difference that it does not make
EXPLAINED = 0.2  # of a difference, that may be left of it by what explains it
ENOUGH = 4  # episodes that tell what is usual
UNLIKE = 12.0  # mean difference of thumbnails that needs an explanation
WARM, COOL = 20.0, 20.0  # red over blue, and blue over red
MEND_COLOURS = (
    "Red and blue were swapped between decoder and encoder (OpenCV reads BGR): swap them back (frame[..., ::-1]), or "
    "prepare the dataset again from the recordings."
)
MEND_TURNED = "Turn the frames back, or prepare the dataset again: the policy will see the camera's own orientation."
MEND_CAMERAS = "Exchange the two videos (or the original_key entries in meta/modality.json, where all are swapped)."
MEND_EPISODE = "The video belongs to another episode: find its own, or prepare the dataset again."

# What may have happened to a picture (H, W, 3).
CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "has red and blue swapped (BGR instead of RGB)": (lambda picture: picture[..., ::-1], MEND_COLOURS),
    "is mirrored left to right": (lambda picture: picture[:, ::-1], MEND_TURNED),
    "is upside down (mirrored)": (lambda picture: picture[::-1], MEND_TURNED),
    "is turned by 180 degrees": (lambda picture: picture[::-1, ::-1], MEND_TURNED),
}


def check_first_frames(subject: Subject) -> Iterator[Finding]:
    """First frames against what the converter recorded of them."""
    recorded = _recorded(subject)
    verdicts: dict[tuple[str, str, str], list[int]] = {}
    for (i, camera), f in subject.footage.items():
        if f.sketch is None or (i, camera) not in recorded:
            continue
        verdict = _verdict(f.sketch, i, camera, recorded)
        if verdict:
            verdicts.setdefault((camera, *verdict), []).append(i)
    for (camera, found, remedy), indices in verdicts.items():
        where = f"videos/, {camera}, {episodes(indices, len(subject.episodes))}"
        yield error(where, f"The first frame {found}; it is not what was recorded.", remedy)


def _recorded(subject: Subject) -> dict[tuple[int, str], np.ndarray]:
    """{(episode, camera): sketch of the first frame}, from meta/split.json."""
    entries = subject.layout.split.get("episodes", [])
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        frames: Any = entry.get("first_frame", {}) if isinstance(entry, dict) else {}
        for camera, text in frames.items() if isinstance(frames, dict) else []:
            found[int(entry.get("episode_index", -1)), str(camera)] = sketch_from_text(str(text))
    return found


def _verdict(
    seen: np.ndarray, episode: int, camera: str, recorded: dict[tuple[int, str], np.ndarray]
) -> tuple[str, str] | None:
    """(what happened, remedy) where a frame is not what was recorded."""
    own = _apart(seen, recorded[episode, camera])
    if own <= CLEAR:
        return None
    for name, (change, remedy) in CHANGES.items():
        if _apart(change(seen), recorded[episode, camera]) < max(CLEAR, EXPLAINED * own):
            return name, remedy
    others = {key: _apart(seen, colours) for key, colours in recorded.items() if key != (episode, camera)}
    nearest = min(others, key=lambda key: others[key], default=None)
    if nearest is not None and others[nearest] < max(CLOSE, EXPLAINED * own):
        if nearest[1] != camera:
            return f"is the camera {nearest[1]}'s", MEND_CAMERAS
        return f"is that of episode {nearest[0]}", MEND_EPISODE
    return "shows something else", f"A damaged, shifted or foreign video. {PREPARE_AGAIN}"


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def check_alike(subject: Subject) -> Iterator[Finding]:
    """Each episode's pictures against the other episodes' of its camera: swapped, turned, or much darker."""
    means = {
        camera: {i: f.mean for (i, c), f in subject.footage.items() if c == camera and f.mean is not None}
        for camera in subject.cameras
    }
    templates = {
        camera: np.median(np.stack(list(found.values())), axis=0)
        for camera, found in means.items()
        if len(found) >= ENOUGH
    }
    for camera, template in templates.items():
        changed: dict[tuple[str, str], list[int]] = {}
        usual = float(np.median([np.abs(picture - template).mean() for picture in means[camera].values()]))
        for i, picture in means[camera].items():
            if np.abs(picture - template).mean() < max(UNLIKE, 2.5 * usual):
                continue
            verdict = _change(picture, template, {c: t for c, t in templates.items() if c != camera})
            if verdict:
                changed.setdefault(verdict, []).append(i)
        for (found, remedy), indices in changed.items():
            where = f"videos/, {camera}, {episodes(indices, len(subject.episodes))}"
            level = warning if found.startswith("is much") else error
            yield level(where, f"The picture {found}, compared with the other episodes.", remedy)


def _change(picture: np.ndarray, usual: np.ndarray, others: dict[str, np.ndarray]) -> tuple[str, str] | None:
    own = float(np.abs(picture - usual).mean())
    for name, (change, remedy) in CHANGES.items():
        if np.abs(change(picture) - usual).mean() < 0.4 * own:
            return name, remedy
    for camera, template in others.items():
        if np.abs(picture - template).mean() < 0.4 * own:
            return f"is the camera {camera}'s", MEND_CAMERAS
    if picture.mean() < 0.35 * usual.mean():
        return "is much darker", "Check the light or the camera's exposure; leave the episode out if it is no use."
    return None


def check_colours(subject: Subject) -> Iterator[Finding]:
    """Whether there are colours at all, or everything is blue where wood and skin are warm: hints, no proof."""
    if _recorded(subject):
        return  # check_first_frames knows
    shares, grey = [], []
    for camera in subject.cameras:
        pictures = [f.mean if f.mean is not None else f.first for (_, c), f in subject.footage.items() if c == camera]
        seen = [p for p in pictures if p is not None]
        if not seen:
            return
        if max(np.ptp(p, axis=-1).max() for p in seen) < GREY:
            grey.append(camera)
        red_over_blue = np.concatenate([(p[..., 0] - p[..., 2]).ravel() for p in seen])
        shares.append(((red_over_blue < -COOL).mean(), (red_over_blue > WARM).mean()))
    if grey:
        found = "Every picture is grey: red, green and blue are the same everywhere."
        yield warning(f"videos/, {', '.join(grey)}", found, "Record in colour, unless instructions name no colour.")
    blue = shares and all(cool > 0.5 and warm < 0.1 for cool, warm in shares)
    if blue and min(warm for _, warm in shares) < 0.02:
        found = (
            f"Nearly everything is bluish ({min(cool for cool, _ in shares):.0%} and more of each camera's picture)."
        )
        remedy = f"Look at the pictures (html=FILE). If wood and skin are blue there: {MEND_COLOURS}"
        yield warning(f"videos/, {', '.join(subject.cameras)}", found, remedy)


def check_cameras(subject: Subject) -> Iterator[Finding]:
    """A camera called wrist or hand moves with the arm, the others do not: the still one cannot be at the wrist."""
    unrest = {
        camera: [f.unrest for (_, c), f in subject.footage.items() if c == camera and f.unrest is not None]
        for camera in subject.cameras
    }
    usual = {camera: float(np.median(values)) for camera, values in unrest.items() if values}
    carried = {c: u for c, u in usual.items() if any(word in c.lower() for word in ("wrist", "hand", "gripper"))}
    fixed = {c: u for c, u in usual.items() if c not in carried}
    for camera, own in carried.items():
        livelier = [c for c, u in fixed.items() if u > 2 * own and u > 3.0]
        if livelier and len(livelier) == len(fixed):
            found = f"{camera} stands still while {livelier[0]} moves with the arm: the cameras seem to be swapped."
            yield warning(f"videos/, {camera}, {livelier[0]}", found, MEND_CAMERAS)
