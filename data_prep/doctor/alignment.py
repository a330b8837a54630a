"""Do the videos show what the states say, at the same moment?

The picture changes as much as the joints move. How much each joint's speed changes a camera's picture is fitted over
the whole dataset (not negative), once for every shift in time; the shift that explains the changes best is where the
video stands. Where no shift explains them (a camera that does not see the robot, noise), nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.doctor.findings import PREPARE_AGAIN, Finding, episodes, error, remark, warning
from data_prep.doctor.subject import Subject

MARGIN = 5  # frames at both ends left out, so that every shift is judged on the same ones
SHIFTS = range(-MARGIN, MARGIN + 1)
ROWS_FOR_A_WEIGHT = 5  # below that anything can be explained
FEW = 40
EXPLAINED = 0.7  # correlation from which on the two belong together
MEND = (
    "Shift the video or the table so that frame t shows what state[t] was, cutting the ends; or prepare the dataset "
    "again: the policy would learn to act on another moment's picture."
)
MEND_FOREIGN = f"The video or the table is another episode's, or was turned round in time. {PREPARE_AGAIN}"

Changes = dict[int, tuple[np.ndarray, np.ndarray]]  # episode: (changes of the picture (T-1,), of the state (T-1, D))


def check_alignment(subject: Subject) -> Iterator[Finding]:
    """Pictures and states change at the same time, in the whole dataset and in each episode."""
    for camera in subject.cameras:
        changes = _changes(subject, camera)
        if not changes:
            yield remark(f"videos/, {camera}", "too few frames to compare picture and state")
            continue
        weights = {shift: _fit(changes, shift) for shift in SHIFTS}
        scores = {shift: _score(changes, shift, weights[shift]) for shift in SHIFTS}
        best = max(scores, key=lambda shift: scores[shift])
        where = f"videos/, {camera}"
        if scores[best] < EXPLAINED:
            yield remark(where, f"The robot's motion does not tell in the picture (correlation {scores[best]:.2f}).")
            continue
        if best != 0 and 1 - scores[0] ** 2 > 1.25 * (1 - scores[best] ** 2):
            yield error(
                f"{where}, all episodes",
                f"{_in_words(best)} (correlation {scores[best]:.2f}, in place {scores[0]:.2f}).",
                MEND,
            )
            continue
        yield remark(where, f"Picture and state change together (correlation {scores[0]:.2f}).")
        yield from _by_episode(subject, where, changes, best)


def _changes(subject: Subject, camera: str) -> Changes:
    states, found = subject.state_tables, {}
    for (i, c), f in subject.footage.items():
        if c != camera or f.motion is None or i not in states or len(f.motion) != len(states[i]) - 1:
            continue
        if len(f.motion) > 2 * MARGIN + 4:
            # Square roots: the picture changes less than twice as much where the arm is twice as fast.
            found[i] = (np.sqrt(f.motion), np.sqrt(np.abs(np.diff(states[i], axis=0))))
    rows = sum(len(motion) - 2 * MARGIN for motion, _ in found.values())
    weights = next((speed.shape[1] + 1 for _, speed in found.values()), 1)
    return found if rows >= ROWS_FOR_A_WEIGHT * weights else {}


def _inputs(changes: Changes, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Speeds (N, D + 1), a column of ones last, and the pictures' changes (N,); shift > 0: the picture comes late."""
    rows, seen = [], []
    for motion, speed in changes.values():
        t = np.arange(MARGIN, len(motion) - MARGIN)
        rows.append(speed[t - shift])
        seen.append(motion[t])
    joined = np.concatenate(rows)
    return np.concatenate([joined, np.ones((len(joined), 1))], axis=1), np.concatenate(seen)


def _fit(changes: Changes, shift: int) -> np.ndarray:
    """Weights (D + 1,), none negative: what would be is left out, the most negative first."""
    rows, seen = _inputs(changes, shift)
    weights, used = np.zeros(rows.shape[1]), np.flatnonzero(rows.any(axis=0))
    while len(used):
        found = np.linalg.lstsq(rows[:, used], seen, rcond=None)[0]
        if found.min() >= 0:
            weights[used] = found
            break
        used = np.delete(used, found.argmin())
    return weights


def _score(changes: Changes, shift: int, weights: np.ndarray) -> float:
    """Correlation of what is expected with what is seen; 0 where either is constant."""
    rows, seen = _inputs(changes, shift)
    expected = rows @ weights
    if expected.std() < 1e-9 or seen.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(expected, seen)[0, 1])


def _by_episode(subject: Subject, where: str, changes: Changes, best: int) -> Iterator[Finding]:
    """Episodes that another shift fits much better, or none: by the weights of all others."""
    if len(changes) < 3:
        return
    shifted: dict[int, list[int]] = {}
    foreign = []
    everyone = _fit(changes, best)
    for i in changes:
        few = len(changes) <= FEW  # among many, one changes nothing
        weights = _fit({j: c for j, c in changes.items() if j != i}, best) if few else everyone
        scores = {shift: _score({i: changes[i]}, shift, weights) for shift in SHIFTS}
        at = max(scores, key=lambda shift: scores[shift])
        if scores[best] < 0.5 and _backwards(changes[i], best, weights) > max(EXPLAINED, scores[at]):
            foreign.append((i, "runs backwards"))
        elif scores[at] > EXPLAINED and abs(at - best) > 1 and 1 - scores[best] ** 2 > 2 * (1 - scores[at] ** 2):
            shifted.setdefault(at, []).append(i)
        elif max(scores.values()) < 0.3:
            foreign.append((i, "does not show the motion that the state tells"))
    total = len(subject.episodes)
    for shift, indices in shifted.items():
        yield error(f"{where}, {episodes(indices, total)}", f"{_in_words(shift)} or so, unlike in the others.", MEND)
    for text in dict.fromkeys(text for _, text in foreign):
        indices = [i for i, said in foreign if said == text]
        level = error if text == "runs backwards" else warning
        yield level(
            f"{where}, {episodes(indices, total)}", f"The video {text}, unlike in the other episodes.", MEND_FOREIGN
        )


def _backwards(changes: tuple[np.ndarray, np.ndarray], shift: int, weights: np.ndarray) -> float:
    motion, speed = changes
    return _score({0: (motion[::-1], speed)}, shift, weights)


def _in_words(shift: int) -> str:
    frames = f"{abs(shift)} frame{'s' if abs(shift) > 1 else ''}"
    return f"The video runs {frames} {'behind' if shift > 0 else 'ahead of'} the states"
