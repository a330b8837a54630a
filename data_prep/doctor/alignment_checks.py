"""Do the videos show what the states say, at the same moment?

An image changes as much as the joints move. How much each joint's speed changes a camera's image is fitted over the
whole dataset (not negative), once for every shift in time; the shift that explains the changes best is where the video
stands. Where no shift explains them (a camera that does not see the robot, noise), nothing is said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from data_prep.doctor import PREPARE_AGAIN, Finding, error, remark, warning
from data_prep.doctor.action_checks import count
from data_prep.doctor.examined_dataset import Subject

Changes = dict[int, tuple[np.ndarray, np.ndarray]]  # episode: (changes of the image (T-1,), of the state (T-1, D))

# Of the video against the state. The margin is left out at both ends, so that every shift is judged on the same frames.
MARGIN = 5
SHIFTS = range(-MARGIN, MARGIN + 1)
ROWS_FOR_A_WEIGHT = 5  # below that anything can be explained
FEW = 40  # episodes; among more, one changes nothing
DRIFTS = tuple(sign * rate for rate in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3) for sign in (1, -1))
EXPLAINED = 0.7  # correlation from which on the two belong together

MEND_SHIFTED_VIDEO = (
    "Shift the video or the table so that frame t shows what state[t] was, cutting the ends; or prepare the dataset "
    "again: the policy would learn to act on another moment's image."
)
MEND_DRIFT = (
    "The camera ran at another rate than the table, or lost frames: take the frame of each row's time from the "
    "recording and write the videos again."
)
MEND_FOREIGN_VIDEO = f"The video or the table is another episode's, or was turned round in time. {PREPARE_AGAIN}"


def check_alignment(subject: Subject) -> Iterator[Finding]:
    """Do they change at the same time?"""
    for camera in subject.cameras:
        where = f"videos/, {camera}"
        changes = _changes(subject, camera)
        if not changes:
            yield remark(where, "too few frames to compare image and state")
            continue
        scores = {shift: _score(changes, shift, 0.0, _fit(changes, shift)) for shift in SHIFTS}
        best = max(scores, key=lambda shift: scores[shift])
        if scores[best] < EXPLAINED:
            yield remark(where, f"The robot's motion does not show in the images (correlation {scores[best]:.2f}).")
        elif (rate := _drift(changes, scores[best])) is not None:
            found = f"The video drifts: it {_drift_in_words(rate)}."
            yield error(f"{where}, all episodes", found, MEND_DRIFT)
        elif best != 0 and 1 - scores[0] ** 2 > 1.25 * (1 - scores[best] ** 2) and _in_both_halves(changes, best):
            found = f"{_video_runs(best)} (correlation {scores[best]:.2f}, in place {scores[0]:.2f})."
            yield error(f"{where}, all episodes", found, MEND_SHIFTED_VIDEO)
        else:
            yield remark(where, f"Image and state change together (correlation {scores[0]:.2f}).")
            yield from _by_episode(subject, where, changes, best)


def _changes(subject: Subject, camera: str) -> Changes:
    found = {}
    for i, f in subject.footage_of(camera).items():
        speed = np.abs(np.diff(subject.state_tables.get(i, np.empty((0, 1))), axis=0))
        if len(f.motion) == len(speed) > 2 * MARGIN + 4 and i in subject.journeys:  # rest correlates with anything
            # Square roots: the image changes less than twice as much where the arm is twice as fast.
            found[i] = (np.sqrt(f.motion), np.sqrt(speed))
    rows = sum(len(motion) - 2 * MARGIN for motion, _ in found.values())
    weights = next((speed.shape[1] + 1 for _, speed in found.values()), 1)
    return found if rows >= ROWS_FOR_A_WEIGHT * weights else {}


def _inputs(changes: Changes, shift: int, drift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Speeds (N, D + 1), a column of ones last, and the images' changes (N,); shift > 0: the image comes late, and with
    drift > 0 by that part of the frames so far later."""
    speeds = np.concatenate([_delayed(speed, shift, drift) for _, speed in changes.values()])
    seen = np.concatenate([motion[MARGIN:-MARGIN] for motion, _ in changes.values()])
    return np.concatenate([speeds, np.ones((len(speeds), 1))], axis=1), seen


def _delayed(speed: np.ndarray, shift: int, drift: float) -> np.ndarray:
    frames = np.arange(MARGIN, len(speed) - MARGIN)
    return speed[np.clip(frames - shift - np.rint(drift * frames).astype(int), 0, len(speed) - 1)]


def _in_both_halves(changes: Changes, shift: int, drift: float = 0.0) -> bool:
    """Whether that delay explains more than none in every other episode, and in those between: chance does not."""
    for half in (list(changes)[::2], list(changes)[1::2]) if len(changes) > 1 else (list(changes),):
        part = {i: changes[i] for i in half}
        now, then = (_score(part, *at, _fit(changes, *at)) for at in ((0, 0.0), (shift, drift)))
        if 1 - now**2 < 1.1 * (1 - then**2):
            return False
    return True


def _drift(changes: Changes, constant: float) -> float | None:
    """The drift that explains the changes clearly better than any constant delay, whose score is given."""
    length = float(np.median([len(motion) for motion, _ in changes.values()]))
    rates = [rate for rate in DRIFTS if abs(rate) * length >= 2]
    scores = {rate: _score(changes, 0, rate, _fit(changes, 0, rate)) for rate in rates}
    best = max(scores, key=lambda rate: scores[rate], default=0.0)
    if not best or scores[best] < EXPLAINED or 1 - constant**2 < 1.25 * (1 - scores[best] ** 2):
        return None
    return best if _in_both_halves(changes, 0, best) else None


def _drift_in_words(rate: float) -> str:
    way = "falls behind" if rate > 0 else "runs ahead of"
    return f"{way} the states by about a frame every {1 / abs(rate):.0f} frames"


def _fit(changes: Changes, shift: int, drift: float = 0.0) -> np.ndarray:
    """Weights (D + 1,), none negative: what would be is left out, the most negative first."""
    rows, seen = _inputs(changes, shift, drift)
    weights, used = np.zeros(rows.shape[1]), np.flatnonzero(rows.any(axis=0))
    while len(used):
        found = np.linalg.lstsq(rows[:, used], seen, rcond=None)[0]
        if found.min() >= 0:
            weights[used] = found
            break
        used = np.delete(used, found.argmin())
    return weights


def _score(changes: Changes, shift: int, drift: float, weights: np.ndarray) -> float:
    """Correlation of what is expected with what is seen; 0 where either is constant."""
    rows, seen = _inputs(changes, shift, drift)
    expected = rows @ weights
    if expected.std() < 1e-9 or seen.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(expected, seen)[0, 1])


def _by_episode(subject: Subject, where: str, changes: Changes, best: int) -> Iterator[Finding]:
    """Episodes that another shift fits much better, or none: by the weights of all others."""
    if len(changes) < 3:
        return
    shifted: dict[int, dict[int, str]] = defaultdict(dict)
    backwards, foreign, drifting = {}, {}, {}
    everyone = _fit(changes, best)
    for i, (motion, speed) in changes.items():
        weights = _fit({j: c for j, c in changes.items() if j != i}, best) if len(changes) <= FEW else everyone
        scores = {shift: _score({i: (motion, speed)}, shift, 0.0, weights) for shift in SHIFTS}
        at = max(scores, key=lambda shift: scores[shift])
        if scores[best] < 0.5 and _score({i: (motion[::-1], speed)}, best, 0.0, weights) > max(EXPLAINED, scores[at]):
            backwards[i] = "The video runs backwards, unlike in the other episodes."
        elif (rate := _own_drift(motion, speed, scores[at], weights)) is not None:
            drifting[i] = f"The video drifts, unlike in the others: it {_drift_in_words(rate)}."
        elif scores[at] > EXPLAINED and abs(at - best) > 1 and 1 - scores[best] ** 2 > 2 * (1 - scores[at] ** 2):
            shifted[at][i] = f"{_video_runs(at)} or so, unlike in the others."
        elif scores[at] < 0.3:
            foreign[i] = "The video does not show the motion of the state, unlike in the other episodes."
    for of_shift in shifted.values():
        yield from subject.about(error, where, of_shift, MEND_SHIFTED_VIDEO)
    yield from subject.about(error, where, drifting, MEND_DRIFT)
    yield from subject.about(error, where, backwards, MEND_FOREIGN_VIDEO)
    yield from subject.about(warning, where, foreign, MEND_FOREIGN_VIDEO)


def _own_drift(motion: np.ndarray, speed: np.ndarray, constant: float, weights: np.ndarray) -> float | None:
    """The drift of one episode that explains it much better than any constant delay, whose score is given."""
    rates = [rate for rate in DRIFTS if abs(rate) * len(motion) >= 3]
    scores = {rate: _score({0: (motion, speed)}, 0, rate, weights) for rate in rates}
    best = max(scores, key=lambda rate: scores[rate], default=0.0)
    return best if best and scores[best] > 0.85 and 1 - constant**2 > 2 * (1 - scores[best] ** 2) else None


def _video_runs(shift: int) -> str:
    return f"The video runs {count(shift, 'frame')} {'behind' if shift > 0 else 'ahead of'} the states"
