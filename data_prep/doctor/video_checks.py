"""Do the videos decode, have their episode's length, and does something happen in them? Are colours RGB, images upright
and cameras the ones they are called?

The latter has three witnesses: what the converter recorded of the first frames (meta/split.json), the other episodes,
and, for what both cannot say, which camera moves with the arm. Where none of them knows, colours alone are no proof: a
warning."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep.doctor.examined_dataset import Series, Subject
from data_prep.doctor.findings import PREPARE_AGAIN, Finding, error, split_message, warning
from data_prep.lerobot import sketch_from_text
from gr00t.file_replacement import file_sha256

# Of the images, in shades of 255 where nothing else is said.
BLANK = 2.0  # standard deviation over a frame below which it shows nothing
GREY = 4.0  # what the codec adds to an image without colours
CLOSE = 3.0  # what the codec does to the mean colour of a field
CLEAR = 5.0  # a difference that it does not make
EXPLAINED = 0.2  # of a difference, that may be left of it by what explains it
ENOUGH = 4  # episodes that show what is usual
UNLIKE = 12.0  # mean difference of thumbnails that needs an explanation
WARM, COOL = 20.0, 20.0  # red over blue, and blue over red

# Of the changes from frame to frame.
WINDOW = 5  # neighbouring changes judged together: their median is blind to the codec's own fresh starts
STILL = 0.1  # of the usual change: sound recordings stay above 0.2, a repeated image below 0.06
NOTHING = 0.08  # of 255: what the codec makes of the same image again and again
MOVING = 0.5  # of the usual speed
STRAIGHT = 1.45  # change over two frames by that over one: of a fixed camera 1.4 to 2, in any order 1
MIXED, BELOW = 1.15, 0.35  # the same of frames out of order, and its distance from the other episodes'

MEND_STUCK = (
    "The decoder or the camera stuck when this was written. Prepare the dataset again with the package versions of the "
    "constraints file; if the recording itself stands still, leave the episode out."
)
MEND_COLOURS = (
    "Red and blue were swapped between decoder and encoder (OpenCV reads BGR): swap them back (frame[..., ::-1]), or "
    "prepare the dataset again from the recordings."
)
MEND_TURNED = "Turn the frames back, or prepare the dataset again: the policy will see the camera's own orientation."
MEND_CAMERAS = "Exchange the two videos (or the original_key entries in meta/modality.json, where all are swapped)."
MEND_EPISODE = "The video belongs to another episode: find its own, or prepare the dataset again."

# What may have happened to an image (H, W, 3), how it looks then, and what mends it.
CHANGES: tuple[tuple[str, Callable[[np.ndarray], np.ndarray], str], ...] = (
    ("has red and blue swapped (BGR instead of RGB)", lambda image: image[..., ::-1], MEND_COLOURS),
    ("is mirrored left to right", lambda image: image[:, ::-1], MEND_TURNED),
    ("is upside down (mirrored)", lambda image: image[::-1], MEND_TURNED),
    ("is turned by 180 degrees", lambda image: image[::-1, ::-1], MEND_TURNED),
)


# -- files and frames --------------------------------------------------------------------------------------------------


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
        where = f"videos/, {camera}, {subject.which(i for i, _, _ in found)}"
        yield error(where, f"The video of episode {index} is the same file as {of_camera} of episode {of}.")


def check_decoding(subject: Subject) -> Iterator[Finding]:
    """Every video opens (in the full examination: decodes to its end) and has one frame for each row."""
    lengths = {e.index: e.length for e in subject.episodes}
    for camera in subject.cameras:
        footage = subject.footage_of(camera)
        broken = [i for i, f in footage.items() if f.problem and not f.problem.endswith(("is missing.", "is empty."))]
        if broken:
            found, remedy = split_message(footage[broken[0]].problem)
            yield error(f"videos/, {camera}, {subject.which(broken)}", found, remedy)
        wrong = [i for i, f in footage.items() if not f.problem and f.length != lengths[i]]
        if wrong:
            found = (
                f"The video of episode {wrong[0]} has {footage[wrong[0]].length} frames, its table should have "
                f"{lengths[wrong[0]]}: images and states drift apart."
            )
            yield error(f"videos/, {camera}, {subject.which(wrong)}", found)


def check_sizes(subject: Subject) -> Iterator[Finding]:
    """One frame size for each camera, the one that meta/info.json says."""
    for camera in subject.cameras:
        sizes = {i: f.size for i, f in subject.footage_of(camera).items() if f.size}
        if not sizes:
            continue
        usual = Counter(sizes.values()).most_common(1)[0][0]
        other = sorted(i for i, size in sizes.items() if size != usual)
        if other:
            size = sizes[other[0]]
            found = f"Frames are {size[0]}x{size[1]}, those of the other episodes {usual[0]}x{usual[1]}."
            remedy = f"Record the whole dataset with one size. {PREPARE_AGAIN}"
            yield error(f"videos/, {camera}, {subject.which(other)}", found, remedy)
        entry = subject.layout.modality["video"][camera]
        column = entry.get("original_key") or f"observation.images.{camera}"
        shape = subject.features.get(column, {}).get("shape")
        if isinstance(shape, list) and len(shape) == 3 and not set(usual) <= set(shape):
            found = f"{camera} has frames of {usual[0]}x{usual[1]}, the features say {shape}."
            yield warning("meta/info.json", found, "Correct shape in the features of meta/info.json.")


def check_frozen(subject: Subject) -> Iterator[Finding]:
    """Frames change while the robot moves."""
    steps = {i: np.abs(np.diff(v, axis=0)) for i, v in subject.state_tables.items()}
    speeds = {}  # (T-1,) each: how fast the state changes, each dimension measured by its own usual speed
    if steps:
        usual = np.concatenate(list(steps.values())).mean(axis=0)
        speeds = {i: (s / np.where(usual > 0, usual, np.inf)).mean(axis=1) for i, s in steps.items()}
    for camera in subject.cameras:
        motion = {
            i: f.motion
            for i, f in subject.footage_of(camera).items()
            if f.motion is not None and i in speeds and len(speeds[i]) == len(f.motion) >= WINDOW
        }
        if motion:
            yield from _frozen(subject, f"videos/, {camera}, ", motion, speeds)


def _frozen(subject: Subject, where: str, motion: Series, speeds: Series) -> Iterator[Finding]:
    limit = MOVING * float(np.median(np.concatenate([speeds[i] for i in motion])))
    moving = {i: speeds[i] > limit for i in motion}
    seen = np.concatenate([m[moving[i]] for i, m in motion.items()])
    usual = float(np.median(seen)) if len(seen) else 0.0
    if usual < NOTHING:
        yield error(where + subject.which(motion), "The picture never changes, in no episode.", MEND_STUCK)
        return
    dead = [i for i, m in motion.items() if np.median(m) < NOTHING / 2 and (m[moving[i]] < 4 * NOTHING).all()]
    if dead:
        yield error(where + subject.which(dead), "All frames show the same picture.", MEND_STUCK)
    stuck, repeated = {}, []
    windows = np.lib.stride_tricks.sliding_window_view
    for i, m in motion.items():
        if i in dead:
            continue
        still = (np.median(windows(m, WINDOW), axis=1) < STILL * usual) & windows(moving[i], WINDOW).all(axis=1)
        if still.any():
            stuck[i] = np.flatnonzero(still)
        changes = m[moving[i]]
        even, odd = (np.median(changes[start::2]) for start in (0, 1)) if len(changes) >= 8 else (0.0, 0.0)
        if min(even, odd) < 0.25 * max(even, odd):
            repeated.append(i)
    if stuck:
        first, starts = next(iter(stuck.items()))
        run = f"{starts[-1] - starts[0] + WINDOW} frames from frame {starts[0]} on in episode {first}"
        found = f"The picture stands still while the robot moves: {run}."
        yield error(where + subject.which(stuck), found, MEND_STUCK)
    if len(repeated) > len(motion) / 2 or (repeated and not set(repeated) <= set(stuck)):
        found = "Every other frame repeats the one before: a video of half the rate was stretched."
        yield error(where + subject.which(repeated), found, MEND_STUCK)


def check_blank(subject: Subject) -> Iterator[Finding]:
    """Frames that show nothing, and single frames that belong elsewhere."""
    for camera in subject.cameras:
        where = f"videos/, {camera}, "
        footage = subject.footage_of(camera)
        blank = {i: np.flatnonzero(f.contrast < BLANK) for i, f in footage.items() if f.contrast is not None}
        blank = {i: frames for i, frames in blank.items() if len(frames)}
        if blank:
            first, frames = next(iter(blank.items()))
            found = f"{len(frames)} frames of episode {first} show a single colour, the first is frame {frames[0]}."
            remedy = "A camera that was off or a lost frame: leave the episode out, or record it again."
            yield error(where + subject.which(blank), found, remedy)
        foreign = {i: t for i, f in footage.items() if i not in blank and (t := _foreign_frame(f.motion, f.leaps))}
        if foreign:
            first = next(iter(foreign))
            found = f"Frame {foreign[first]} of episode {first} is unlike both of its neighbours, which are alike."
            yield warning(where + subject.which(foreign), found, f"A damaged or misplaced frame. {PREPARE_AGAIN}")


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
            for i, f in subject.footage_of(camera).items()
            if f.leaps is not None and f.motion is not None and len(f.leaps) > 2 * WINDOW
        }
        usual = float(np.median(list(straight.values()))) if straight else 0.0
        mixed = [i for i, share in straight.items() if 0 < share < min(MIXED, usual - BELOW)]
        if mixed and usual >= STRAIGHT:
            where = f"videos/, {camera}, {subject.which(mixed)}"
            yield error(where, "The frames are out of order: each is as far from the next as from the one after.")


# -- what they show ----------------------------------------------------------------------------------------------------


def check_first_frames(subject: Subject) -> Iterator[Finding]:
    """First frames against what the converter recorded of them."""
    recorded = _recorded(subject)
    verdicts: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for (i, camera), f in subject.footage.items():
        if f.sketch is not None and (i, camera) in recorded:
            verdict = _verdict(f.sketch, i, camera, recorded)
            if verdict:
                verdicts[camera, *verdict].append(i)
    for (camera, found, remedy), indices in verdicts.items():
        where = f"videos/, {camera}, {subject.which(indices)}"
        yield error(where, f"The first frame {found}; it is not what was recorded.", remedy)


def _recorded(subject: Subject) -> dict[tuple[int, str], np.ndarray]:
    """{(episode, camera): sketch of the first frame}, from meta/split.json."""
    entries = subject.layout.split.get("episodes", [])
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        frames = entry.get("first_frame", {}) if isinstance(entry, dict) else {}
        for camera, text in frames.items() if isinstance(frames, dict) else []:
            found[int(entry.get("episode_index", -1)), str(camera)] = sketch_from_text(str(text))
    return found


def _verdict(
    seen: np.ndarray, episode: int, camera: str, recorded: dict[tuple[int, str], np.ndarray]
) -> tuple[str, str] | None:
    """(what happened, remedy) where a frame's sketch is not what was recorded."""

    def apart(image: np.ndarray, place: tuple[int, str]) -> float:
        return float(np.abs(image - recorded[place]).max())

    own = apart(seen, (episode, camera))
    if own <= CLEAR:
        return None
    for name, change, remedy in CHANGES:
        if apart(change(seen), (episode, camera)) < max(CLEAR, EXPLAINED * own):
            return name, remedy
    others = {place: apart(seen, place) for place in recorded if place != (episode, camera)}
    nearest = min(others, key=lambda place: others[place], default=None)
    if nearest is not None and others[nearest] < max(CLOSE, EXPLAINED * own):
        if nearest[1] != camera:
            return f"is the camera {nearest[1]}'s", MEND_CAMERAS
        return f"is that of episode {nearest[0]}", MEND_EPISODE
    return "shows something else", f"A damaged, shifted or foreign video. {PREPARE_AGAIN}"


def check_alike(subject: Subject) -> Iterator[Finding]:
    """Each episode's images against the other episodes' of its camera: swapped, turned, or much darker."""
    means, templates = {}, {}
    for camera in subject.cameras:
        means[camera] = {i: f.mean for i, f in subject.footage_of(camera).items() if f.mean is not None}
        if len(means[camera]) >= ENOUGH:
            templates[camera] = np.median(np.stack(list(means[camera].values())), axis=0)
    for camera, template in templates.items():
        changed: dict[tuple[str, str], list[int]] = defaultdict(list)
        apart = {i: np.abs(image - template).mean() for i, image in means[camera].items()}
        usual = float(np.median(list(apart.values())))
        for i, image in means[camera].items():
            if apart[i] >= max(UNLIKE, 2.5 * usual):
                verdict = _change(image, template, {c: t for c, t in templates.items() if c != camera})
                if verdict:
                    changed[verdict].append(i)
        for (found, remedy), indices in changed.items():
            where = f"videos/, {camera}, {subject.which(indices)}"
            level = warning if found.startswith("is much") else error
            yield level(where, f"The picture {found}, compared with the other episodes.", remedy)


def _change(image: np.ndarray, usual: np.ndarray, others: dict[str, np.ndarray]) -> tuple[str, str] | None:
    """(what happened, remedy) to a mean thumbnail that is not as usual; `others` are the other cameras' usual ones."""
    own = float(np.abs(image - usual).mean())
    for name, change, remedy in CHANGES:
        if np.abs(change(image) - usual).mean() < 0.4 * own:
            return name, remedy
    for camera, template in others.items():
        if np.abs(image - template).mean() < 0.4 * own:
            return f"is the camera {camera}'s", MEND_CAMERAS
    if image.mean() < 0.35 * usual.mean():
        return "is much darker", "Check the light or the camera's exposure; leave the episode out if it is no use."
    return None


def check_colours(subject: Subject) -> Iterator[Finding]:
    """Whether there are colours at all, or everything is blue where wood and skin are warm: hints, no proof."""
    if _recorded(subject):
        return  # check_first_frames knows
    shares, grey = [], []
    for camera in subject.cameras:
        images = [f.mean if f.mean is not None else f.first for f in subject.footage_of(camera).values()]
        seen = [image for image in images if image is not None]
        if not seen:
            return
        if max(np.ptp(image, axis=-1).max() for image in seen) < GREY:
            grey.append(camera)
        red_over_blue = np.concatenate([(image[..., 0] - image[..., 2]).ravel() for image in seen])
        shares.append(((red_over_blue < -COOL).mean(), (red_over_blue > WARM).mean()))
    if grey:
        found = "Every picture is grey: red, green and blue are the same everywhere."
        yield warning(f"videos/, {', '.join(grey)}", found, "Record in colour, unless instructions name no colour.")
    blue = shares and all(cool > 0.5 and warm < 0.1 for cool, warm in shares)
    if blue and min(warm for _, warm in shares) < 0.02:
        share = min(cool for cool, _ in shares)
        found = f"Nearly everything is bluish ({share:.0%} and more of each camera's picture)."
        remedy = f"Look at the pictures (html=FILE). If wood and skin are blue there: {MEND_COLOURS}"
        yield warning(f"videos/, {', '.join(subject.cameras)}", found, remedy)


def check_cameras(subject: Subject) -> Iterator[Finding]:
    """A camera called wrist or hand moves with the arm, the others do not: the still one cannot be at the wrist."""
    usual = {}
    for camera in subject.cameras:
        unrest = [f.unrest for f in subject.footage_of(camera).values() if f.unrest is not None]
        if unrest:
            usual[camera] = float(np.median(unrest))
    carried = {c: u for c, u in usual.items() if any(word in c.lower() for word in ("wrist", "hand", "gripper"))}
    fixed = {c: u for c, u in usual.items() if c not in carried}
    for camera, own in carried.items():
        livelier = [c for c, u in fixed.items() if u > 2 * own and u > 3.0]
        if livelier and len(livelier) == len(fixed):
            found = f"{camera} stands still while {livelier[0]} moves with the arm: the cameras seem to be swapped."
            yield warning(f"videos/, {camera}, {livelier[0]}", found, MEND_CAMERAS)
