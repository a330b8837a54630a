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

from data_prep.doctor import PREPARE_AGAIN, Finding, error, remark, split_message, warning
from data_prep.doctor.examined_dataset import Series, Subject, listed_objects
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
WINDOW = 5  # steps of a run that is long enough to be judged
SEEN = 0.3  # of 255: a change from one frame to the next that a codec shows for sure
STILL = 0.1  # of the usual change over a journey of the state
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
SLOW = 64  # frames between two at which decoding can begin
MEND_SLOW = (
    "Decode every frame once with dataset.frames=store, or encode the videos again as mp4 with a key frame every 10 "
    "frames (ffmpeg -g 10 -bf 0)."
)
MEND_LIGHT = "Check the light or the camera's exposure; leave the episode out if it is no use."

Verdict = tuple[str, str]  # what happened to an image, and what mends it

# What may have happened to an image (H, W, 3), how it looks then, and what mends it.
CHANGES: tuple[tuple[str, Callable[[np.ndarray], np.ndarray], str], ...] = (
    ("has red and blue swapped (BGR instead of RGB)", lambda image: image[..., ::-1], MEND_COLOURS),
    ("is mirrored left to right", lambda image: image[:, ::-1], MEND_TURNED),
    ("is upside down (mirrored)", lambda image: image[::-1], MEND_TURNED),
    ("is turned by 180 degrees", lambda image: image[::-1, ::-1], MEND_TURNED),
)


# -- files and frames --------------------------------------------------------------------------------------------------


def check_copies(subject: Subject) -> Iterator[Finding]:
    """Is every video there once?"""
    filmed = [camera for camera in subject.cameras if not subject.layout.is_in_tables(camera)]
    places = [(i, camera, subject.video_path(i, camera)) for i in subject.lengths for camera in filmed]
    files = [(i, camera, path) for i, camera, path in places if isinstance(path, Path) and path.is_file()]
    sizes = Counter({path: path.stat().st_size for _, _, path in files}.values())
    first: dict[str, tuple[int, str, Path]] = {}
    copies: dict[str, dict[int, str]] = defaultdict(dict)
    for i, camera, path in files:
        if path.stat().st_size and sizes[path.stat().st_size] > 1:
            of, of_camera, twin = first.setdefault(file_sha256(path), (i, camera, path))
            if twin != path:
                copies[camera][i] = f"The video of episode {i} is the same file as {of_camera} of episode {of}."
    for camera, wrong in copies.items():
        yield from subject.about(error, f"videos/, {camera}", wrong)


def check_decoding(subject: Subject) -> Iterator[Finding]:
    """Does it decode, with a frame for each row?"""
    for _, where, footage in subject.filmed():
        broken = [i for i, f in footage.items() if f.problem and not f.problem.endswith(("is missing.", "is empty."))]
        if broken:
            found, remedy = split_message(footage[broken[0]].problem)
            yield from subject.about(error, where, dict.fromkeys(broken, found), remedy)
        wrong = {
            i: f"The video of episode {i} has {f.length} frames, its table should have {subject.lengths[i]}: images "
            "and states drift apart."
            for i, f in footage.items()
            if not f.problem and f.length != subject.lengths[i]
        }
        yield from subject.about(error, where, wrong)
        slow = {
            i: f"A random frame of episode {i} costs decoding up to {f.cost} frames: training will wait for data."
            for i, f in footage.items()
            if f.cost > SLOW
        }
        yield from subject.about(warning, where, slow, MEND_SLOW)


def check_sizes(subject: Subject) -> Iterator[Finding]:
    """Is there one frame size?"""
    for camera, where, footage in subject.filmed():
        sizes = {i: f.size for i, f in footage.items() if f.size}
        if not sizes:
            continue
        usual = Counter(sizes.values()).most_common(1)[0][0]
        text = f"Frames are {{}}x{{}}, those of the other episodes {usual[0]}x{usual[1]}."
        other = {i: text.format(*size) for i, size in sorted(sizes.items()) if size != usual}
        remedy = f"Record the whole dataset with one size. {PREPARE_AGAIN}"
        yield from subject.about(error, where, other, remedy)
        column = subject.entries("video")[camera].get("original_key") or f"observation.images.{camera}"
        shape = subject.features.get(column, {}).get("shape")
        if isinstance(shape, list) and len(shape) == 3 and not set(usual) <= set(shape):
            found = f"{camera} has frames of {usual[0]}x{usual[1]}, the features say {shape}."
            yield warning("meta/info.json", found, "Correct shape in the features of meta/info.json.")


def check_frozen(subject: Subject) -> Iterator[Finding]:
    """Do frames change when the robot moves?"""
    # Only between frames over which the state moves far: a codec gives still scenes, and slow ones, equal frames.
    for _, where, footage in subject.filmed():
        moved = {i: f.moved for i, f in footage.items() if len(f.moved) == len(subject.journeys.get(i, ())) > 0}
        if not moved:
            yield remark(where, "The state hardly moves: whether the image should change cannot be said.")
            continue
        if np.median([changes[-1] for changes in moved.values()]) < NOTHING:
            yield error(f"{where}, {subject.which(moved)}", "The image never changes, in no episode.", MEND_STUCK)
            continue
        yield from _frozen(subject, where, moved)
        yield from _repeated(subject, where, {i: footage[i].motion for i in moved})


def _frozen(subject: Subject, where: str, moved: Series) -> Iterator[Finding]:
    usual = float(np.median(np.concatenate([changes[:-1] for changes in moved.values()])))
    limit = max(STILL * usual, min(NOTHING, 3 * STILL * usual))
    dead: dict[int, str] = {}
    stuck: dict[int, str] = {}
    for i, changes in moved.items():
        still = np.append(changes[:-1] < limit, False)
        if still[:-1].all() and changes[-1] < max(limit, NOTHING):
            dead[i] = "All frames show the same image."
            continue
        for start, end in np.flatnonzero(np.diff(still, prepend=False)).reshape(-1, 2):
            first, last = subject.journeys[i][start][0], subject.journeys[i][end - 1][1]
            if last - first >= WINDOW and end - start > 1:
                run = f"{last - first + 1} frames from frame {first} on in episode {i}"
                stuck.setdefault(i, f"The image stands still while the robot moves: {run}.")
    yield from subject.about(error, where, dead, MEND_STUCK)
    yield from subject.about(error, where, stuck, MEND_STUCK)


def _repeated(subject: Subject, where: str, motion: Series) -> Iterator[Finding]:
    """Videos in which every other change is none, though the state changes in all of them."""
    steps = {i: np.abs(np.diff(subject.state_tables[i], axis=0)) for i in motion if i in subject.state_tables}
    usual = np.concatenate(list(steps.values())).mean(axis=0)
    speeds = {i: (s / np.where(usual > 0, usual, np.inf)).mean(axis=1) for i, s in steps.items()}
    limit = MOVING * float(np.median(np.concatenate(list(speeds.values()))))
    repeated = {}
    for i, speed in speeds.items():
        changes = motion[i][speed > limit] if len(motion[i]) == len(speed) else ()
        even, odd = (np.median(changes[start::2]) for start in (0, 1)) if len(changes) >= 8 else (0.0, 0.0)
        if min(even, odd) < 0.25 * max(even, odd) and max(even, odd) > SEEN:
            repeated[i] = "Every other frame repeats the one before: a video of half the rate was stretched."
    yield from subject.about(error, where, repeated, MEND_STUCK)


def check_blank(subject: Subject) -> Iterator[Finding]:
    """Does every frame show something?"""
    for _, where, footage in subject.filmed():
        blank, foreign = {}, {}
        for i, f in footage.items():
            frames, odd = np.flatnonzero(f.contrast < BLANK), _foreign_frames(f.motion, f.leaps)
            if len(frames):
                blank[i] = f"{len(frames)} frames of episode {i} show a single colour, the first is frame {frames[0]}."
            elif len(odd):
                foreign[i] = f"Frame {odd[0]} of episode {i} is unlike both of its neighbours, which are alike."
        remedy = "A camera that was off or a lost frame: leave the episode out, or record it again."
        yield from subject.about(error, where, blank, remedy)
        remedy = f"A damaged or misplaced frame. {PREPARE_AGAIN}"
        yield from subject.about(warning, where, foreign, remedy)


def _foreign_frames(motion: np.ndarray, leaps: np.ndarray) -> np.ndarray:
    """Inner frames far off both neighbours, which resemble each other."""
    if len(leaps) < 5:
        return np.empty(0)
    off = np.minimum(motion[:-1], motion[1:])
    return np.flatnonzero((off > 4 * leaps) & (off > 5 * np.median(motion)) & (off > 3.0)) + 1


def check_order(subject: Subject) -> Iterator[Finding]:
    """Do frames follow one another?"""
    # The second next frame is farther off than the next, where that is so in most episodes.
    for _, where, footage in subject.filmed():
        long = {i: f for i, f in footage.items() if len(f.leaps) > 2 * WINDOW}
        straight = {i: float(np.median(f.leaps) / max(1e-6, np.median(f.motion))) for i, f in long.items()}
        usual = float(np.median(list(straight.values()))) if straight else 0.0
        found = "The frames are out of order: each is as far from the next as from the one after."
        mixed = {i: found for i, share in straight.items() if 0 < share < min(MIXED, usual - BELOW)}
        if usual >= STRAIGHT:
            yield from subject.about(error, where, mixed)


# -- what they show ----------------------------------------------------------------------------------------------------


def check_first_frames(subject: Subject) -> Iterator[Finding]:
    """Are they what was recorded?"""
    recorded = _recorded(subject)
    for camera, where, footage in subject.filmed():
        sketches = {i: f.sketches for i, f in footage.items() if (i, camera) in recorded}
        verdicts = {i: _verdict(seen[0], (i, camera), recorded) for i, seen in sketches.items() if len(seen)}
        yield from _by_verdict(subject, where, verdicts, "The first frame {}; it is not what was recorded.")


def _by_verdict(subject: Subject, where: str, verdicts: dict[int, Verdict | None], text: str) -> Iterator[Finding]:
    """A finding for each verdict, of the episodes that share it."""
    for found, remedy in dict.fromkeys(verdict for verdict in verdicts.values() if verdict):
        wrong = {i: text.format(found) for i, verdict in verdicts.items() if verdict == (found, remedy)}
        level = warning if remedy == MEND_LIGHT else error
        yield from subject.about(level, where, wrong, remedy)


def _recorded(subject: Subject) -> dict[tuple[int, str], np.ndarray]:
    """{(episode, camera): sketch of the first frame}, from meta/split.json."""
    found = {}
    for entry in listed_objects(subject, "episodes"):
        frames = entry.get("first_frame")
        for camera, text in frames.items() if isinstance(frames, dict) else []:
            found[int(entry.get("episode_index", -1)), str(camera)] = sketch_from_text(str(text))
    return found


def _verdict(seen: np.ndarray, place: tuple[int, str], recorded: dict[tuple[int, str], np.ndarray]) -> Verdict | None:
    """What happened where a frame's sketch is not what was recorded of that episode and camera."""

    def apart(image: np.ndarray, other: tuple[int, str]) -> float:
        return float(np.abs(image - recorded[other]).max())

    own = apart(seen, place)
    if own <= CLEAR:
        return None
    for name, change, remedy in CHANGES:
        if apart(change(seen), place) < max(CLEAR, EXPLAINED * own):
            return name, remedy
    episode, camera = nearest = min(recorded, key=lambda other: apart(seen, other))
    if nearest != place and apart(seen, nearest) < max(CLOSE, EXPLAINED * own):
        if camera != place[1]:
            return f"is the camera {camera}'s", MEND_CAMERAS
        return f"is that of episode {episode}", MEND_EPISODE
    return "shows something else", f"A damaged, shifted or foreign video. {PREPARE_AGAIN}"


def check_alike(subject: Subject) -> Iterator[Finding]:
    """Do episodes look alike: colours, up and down, camera?"""
    means, usual = {}, {}
    for camera, _, footage in subject.filmed():
        means[camera] = {i: f.mean for i, f in footage.items() if f.mean is not None}
        if len(means[camera]) >= ENOUGH:
            usual[camera] = np.median(np.stack(list(means[camera].values())), axis=0)
    for camera, image in usual.items():
        apart = {i: float(np.abs(mean - image).mean()) for i, mean in means[camera].items()}
        limit = max(UNLIKE, 2.5 * float(np.median(list(apart.values()))))
        unlike = {i: mean for i, mean in means[camera].items() if apart[i] >= limit}
        verdicts = {i: _change(mean, camera, usual) for i, mean in unlike.items()}
        yield from _by_verdict(
            subject, f"videos/, {camera}", verdicts, "The image {}, compared with the other episodes."
        )


def _change(mean: np.ndarray, camera: str, usual: dict[str, np.ndarray]) -> Verdict | None:
    """What happened to a mean thumbnail that is not as usual for its camera."""
    own = float(np.abs(mean - usual[camera]).mean())
    for name, change, remedy in CHANGES:
        if np.abs(change(mean) - usual[camera]).mean() < 0.4 * own:
            return name, remedy
    for other, image in usual.items():
        if other != camera and np.abs(mean - image).mean() < 0.4 * own:
            return f"is the camera {other}'s", MEND_CAMERAS
    return ("is much darker", MEND_LIGHT) if mean.mean() < 0.35 * usual[camera].mean() else None


def check_colours(subject: Subject) -> Iterator[Finding]:
    """Red, green, blue, in this order?"""
    # Hints, no proof: whether there are colours at all, or everything is blue where wood and skin are warm.
    if _recorded(subject):
        return  # check_first_frames knows
    cool, warm, grey = [], [], []
    for camera, _, footage in subject.filmed():
        seen = [f.mean for f in footage.values() if f.mean is not None]
        if not seen:
            return
        if max(np.ptp(image, axis=-1).max() for image in seen) < GREY:
            grey.append(camera)
        red_over_blue = np.concatenate([(image[..., 0] - image[..., 2]).ravel() for image in seen])
        cool.append((red_over_blue < -COOL).mean())
        warm.append((red_over_blue > WARM).mean())
    if grey:
        found = "Every image is grey: red, green and blue are the same everywhere."
        yield warning(f"videos/, {', '.join(grey)}", found, "Record in colour, unless instructions name no colour.")
    if cool and min(cool) > 0.5 and max(warm) < 0.1 and min(warm) < 0.02:
        found = f"Nearly everything is bluish ({min(cool):.0%} and more of each camera's image)."
        remedy = f"Look at the images (html=FILE). If wood and skin are blue there: {MEND_COLOURS}"
        yield warning(f"videos/, {', '.join(subject.cameras)}", found, remedy)


def check_cameras(subject: Subject) -> Iterator[Finding]:
    """Does the wrist camera move with the arm?"""
    # A camera called wrist or hand moves with the arm, the others do not: the still one cannot be at the wrist.
    usual = {}
    for camera, _, footage in subject.filmed():
        unrest = [f.unrest for f in footage.values() if f.unrest is not None]
        if unrest:
            usual[camera] = float(np.median(unrest))
    carried = {c: u for c, u in usual.items() if any(word in c.lower() for word in ("wrist", "hand", "gripper"))}
    fixed = {c: u for c, u in usual.items() if c not in carried}
    for camera, own in carried.items():
        if fixed and min(fixed.values()) > max(2 * own, 3.0):
            other = next(iter(fixed))
            found = f"{camera} stands still while {other} moves with the arm: the cameras seem to be swapped."
            yield warning(f"videos/, {camera}, {other}", found, MEND_CAMERAS)
