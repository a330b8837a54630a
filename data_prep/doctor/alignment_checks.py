"""Do actions, states and videos go together, in convention and in time?

Actions should be absolute targets that lead the state, joint by joint. Of actions the groups are looked at that the
modality configuration makes relative to a state: for these, a wrong convention trains without complaint and fails on
the robot.

An image changes as much as the joints move. How much each joint's speed changes a camera's image is fitted over the
whole dataset (not negative), once for every shift in time; the shift that explains the changes best is where the video
stands. Where no shift explains them (a camera that does not see the robot, noise), nothing is said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from data_prep.doctor import PREPARE_AGAIN, Finding, error, remark, warning
from data_prep.doctor.decoded_video import Footage
from data_prep.doctor.examined_dataset import LEAST, MOVED, Group, Pursuit, Subject
from gr00t.data.schema import ActionType
from gr00t.data.statistics import relative_groups

# Of the actions against the state. A best shift at either end is none: it might lie beyond.
LEAD_MARGIN = 4
LEADS = range(-LEAD_MARGIN, LEAD_MARGIN + 1)
UNEXPLAINED = 0.5  # of the steps' squares: where more is left, the best shift is chance
IN_PLACE = LEADS.index(0)

# Of the video against the state. The margin is left out at both ends, so that every shift is judged on the same frames.
MARGIN = 5
SHIFTS = range(-MARGIN, MARGIN + 1)
ROWS_FOR_A_WEIGHT = 5  # below that anything can be explained
FEW = 40  # episodes; among more, one changes nothing
DRIFTS = tuple(sign * rate for rate in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3) for sign in (1, -1))
EXPLAINED = 0.7  # correlation from which on the two belong together

MEND_DELTA = (
    "Write absolute targets (recorded control_mode pd_joint_pos; else add each delta to the state it starts from), or "
    "make the group ABSOLUTE in the modality configuration."
)
MEND_LEAD = (
    "Shift the action column so that action[t] is the command given after observation t, or record again; then write "
    "the statistics again."
)
MEND_COPY = (
    "Write the commands that were sent. Where none were recorded, take the next frame's state: action[t] = state[t+1]."
)
MEND_ORDER = "Bring states and actions into the same order, signs and units, then write the statistics again."
MEND_BESIDE = (
    "One of the two is not calibrated, or in another unit: correct its zero or its scale, then write the statistics "
    "again."
)
MEND_FOREIGN_ACTIONS = (
    "The actions belong to another episode or another convention: prepare the episode again, or leave it out."
)
MEND_SHIFTED_VIDEO = (
    "Shift the video or the table so that frame t shows what state[t] was, cutting the ends; or prepare the dataset "
    "again: the policy would learn to act on another moment's image."
)
MEND_DRIFT = (
    "The camera ran at another rate than the table, or lost frames: take the frame of each row's time from the "
    "recording and write the videos again."
)
MEND_FOREIGN_VIDEO = f"The video or the table is another episode's, or was turned round in time. {PREPARE_AGAIN}"

Changes = dict[int, tuple[np.ndarray, np.ndarray]]  # episode: (changes of the image (T-1,), of the state (T-1, D))


# -- actions and states ------------------------------------------------------------------------------------------------


def check_convention(subject: Subject) -> Iterator[Finding]:
    """Are actions absolute targets, in the state's order and units?"""
    for group, pursuit in _joint_pursuits(subject):
        steps = _Steps(pursuit)
        if steps.are_deltas:
            found = (
                f"These already are deltas: they go with the state's change (correlation {steps.change:.2f}), not with "
                f"the state ({steps.level:.2f}). Made relative once more, they are wrong by the whole state."
            )
            yield error(group.where, found, MEND_DELTA)
        elif abs(steps.level) < 0.3 and abs(steps.change) < 0.3:
            correlations = f"(correlation {steps.level:.2f}, of its changes {steps.change:.2f})"
            found = f"The state does not follow the actions {correlations}."
            yield warning(group.where, found, MEND_FOREIGN_ACTIONS)
        else:
            yield from _dimensions(group, steps)
            # Episodes whose actions lie much farther from their states than the others' do.
            apart = {i: float(np.sqrt(np.square(a[:-1] - s[1:]).mean())) for i, s, a in pursuit}
            usual = float(np.median(list(apart.values())))
            strange = {
                i: f"Actions lie {distance:.3g} off the states in episode {i}, {usual:.3g} in the others."
                for i, distance in apart.items()
                if distance > 3 * usual + 0.01 and len(apart) >= 3
            }
            yield from subject.about(error, group.where, strange, MEND_FOREIGN_ACTIONS)


def _joint_pursuits(subject: Subject) -> Iterator[tuple[Group, Pursuit]]:
    """The relative groups of joints, with their episodes that are long enough."""
    for name, config in relative_groups(subject.configs["action"]):
        long = [(i, s, a) for i, s, a in subject.pursuits[name] if len(s) > 2 * LEAD_MARGIN + 4]
        if config.type is not ActionType.EEF and long:
            yield subject.all_groups["action", name], long


class _Steps:
    """The steps of some episodes together: state, action and following state, (N, D) each, and how they go together.

    level, change: median over dimensions of the actions' correlation with the next state, and with the change towards
    it. beside (D,): how far each action dimension stays on one side of the state that follows; 0 where the two meet now
    and then, as they do wherever a robot rests or turns back.
    """

    def __init__(self, pursuit: Pursuit) -> None:
        self.state = np.concatenate([s[:-1] for _, s, _ in pursuit])
        self.action = np.concatenate([a[:-1] for _, _, a in pursuit])
        self.following = np.concatenate([s[1:] for _, s, _ in pursuit])
        self.level = _median_correlation(self.action, self.following)
        self.change = _median_correlation(self.action, self.following - self.state)
        low, high = np.quantile(self.action - self.following, [0.05, 0.95], axis=0)
        aside = np.maximum(low, -high) > np.maximum(0.1, 0.25 * self.state.std(axis=0))
        self.beside = np.where(aside, np.median(self.action - self.following, axis=0), 0.0)

    @property
    def are_deltas(self) -> bool:
        """Whether the actions are differences."""
        state, action = np.abs(self.state.mean(axis=0)), np.abs(self.action.mean(axis=0))
        # Where a joint works far from 0, absolute targets do too.
        far = state > 3 * self.state.std(axis=0) + 0.1
        if far.any() and (action[far] < 0.3 * state[far]).all():
            return self.change > 0.3 or bool(np.abs(self.action).mean() < 0.5 * np.abs(self.state).mean())
        return bool(not far.any() and self.change > 0.5 and self.change > self.level + 0.2)


def _median_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Over the dimensions (columns) that vary in both; 0 where none does."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    size = np.sqrt(np.square(one).sum(axis=0) * np.square(other).sum(axis=0))
    varied = size > 1e-12
    return float(np.median((one * other).sum(axis=0)[varied] / size[varied])) if varied.any() else 0.0


def _dimensions(group: Group, steps: _Steps) -> Iterator[Finding]:
    """Each action dimension goes with its own state dimension, with the same sign and scale."""
    action, following, names = steps.action, steps.following, group.dims
    lines = [_line(following[:, d], action[:, d]) for d in range(len(names))]  # (slope, part explained)
    apart = np.sqrt(np.square(action[:, :, None] - following[:, None, :]).mean(axis=0))  # (action dim, state dim)
    crossed = [d for d, (_, fit) in enumerate(lines) if fit < 0.8 and 4 * apart[d].min() < apart[d, d]]
    if crossed:
        pairs = ", ".join(f"{names[d]} follows {names[int(apart[d].argmin())]}" for d in crossed)
        yield error(group.where, f"The order of dimensions differs from the state's: {pairs}.", MEND_ORDER)
        return
    for name, (slope, fit), beside in zip(names, lines, steps.beside, strict=True):
        if fit <= 0.8:
            continue
        if slope < 0:
            found = f"{name} goes against the state (slope {slope:.3g}): the sign is wrong in one of them."
            yield error(group.where, found, MEND_ORDER)
        elif not 0.5 < slope < 2.0:
            units = " (57.3 is degrees for radians)" if 50 < slope < 65 or 50 < 1 / slope < 65 else ""
            yield error(group.where, f"{name} is {slope:.4g} times the state{units}.", MEND_ORDER)
        elif beside:
            yield error(group.where, f"{name} lies {beside:.3g} beside the state all the time.", MEND_BESIDE)


def _line(given: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope of the straight line through (given, values), and the part of the values' variance that it explains."""
    x, y = given - given.mean(), values - values.mean()
    if x @ x < 1e-9 or y @ y < 1e-9:
        return 1.0, 0.0
    slope = float(x @ y / (x @ x))
    return slope, float(1 - np.square(y - slope * x).sum() / (y @ y))


def check_lead(subject: Subject) -> Iterator[Finding]:
    """Does action[t] lead from state[t] to state[t+1]?"""
    for group, pursuit in _joint_pursuits(subject):
        steps = _Steps(pursuit)
        if abs(steps.level) < 0.3 or steps.are_deltas:
            continue  # check_convention says so
        found = "The actions are copies of the state at the same frame: a policy that learns them stands still."
        copies = {i: found for i, s, a in pursuit if np.allclose(a, s, rtol=0, atol=1e-7)}
        yield from subject.about(error, group.where, copies, MEND_COPY)
        # Of a robot that rests, what leads is noise.
        spread = np.ptp(np.concatenate([s for _, s, _ in pursuit]), axis=0)
        ways = {i: np.ptp(s, axis=0) for i, s, _ in pursuit}
        shares = {i: (way / np.maximum(spread, LEAST)).mean() for i, way in ways.items()}
        moving = {i for i, way in ways.items() if way.max() >= LEAST and shares[i] >= MOVED}
        others = [p for p in pursuit if p[0] not in copies and p[0] in moving]
        if others:
            aside = _Steps(others).beside  # check_convention says so
            yield from _lead(subject, group.where, {i: _unexplained(s, a - aside) for i, s, a in others})


def _lead(subject: Subject, where: str, left: dict[int, np.ndarray]) -> Iterator[Finding]:
    """Which command explains each step of the state best: of the dataset as a whole, and of each episode.

    left: {episode: what each of LEADS leaves unexplained}.
    """
    usual = np.median(list(left.values()), axis=0)
    best = LEADS[int(usual.argmin())]
    if _is_wrong(subject, best, usual):
        yield error(f"{where}, all episodes", _lead_in_words(best, usual), MEND_LEAD)
        return
    yield remark(where, f"Commands act on the step they are given for: {1 - usual[IN_PLACE]:.1%} explained.")
    wrong: dict[int, dict[int, str]] = defaultdict(dict)
    for i, own in left.items():
        shift = LEADS[int(own.argmin())]
        if shift != best and _is_wrong(subject, shift, own) and own[IN_PLACE] > 3 * usual[IN_PLACE]:
            wrong[shift][i] = _lead_in_words(shift, own)
    for of_shift in wrong.values():
        yield from subject.about(error, where, of_shift, MEND_LEAD)


def _is_wrong(subject: Subject, shift: int, left: np.ndarray) -> bool:
    """Whether that shift explains clearly more. A real robot answers late (one or two steps); no one answers early."""
    if shift in (LEADS[0], LEADS[-1]):
        return False
    now, best = left[IN_PLACE], left[LEADS.index(shift)]
    if best > UNEXPLAINED:
        return False
    if shift > 0:
        return bool(now > 1.5 * best and now - best > 0.005)
    if shift < 0 and (subject.is_maniskill_panda or shift < -2):
        return bool(now > 1.25 * best)
    return False


def _lead_in_words(shift: int, left: np.ndarray) -> str:
    now, best = left[IN_PLACE], left[LEADS.index(shift)]
    when = "early" if shift < 0 else "late"
    why = "" if shift < 0 else ": the state moves before its command"
    open_ = f"Shifted back they leave {best:.2%} of the motion unexplained, as they are {now:.2%}"
    return f"The actions come {when} by {_count(shift, 'step')}{why}. {open_}."


def _count(shift: int, what: str) -> str:
    return f"{abs(shift)} {what}{'s' if abs(shift) > 1 else ''}"


def _unexplained(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """For each of LEADS the part of the steps of `state` (T, D) that the last step and the way to action[t + shift]
    leave open.

    A position-controlled joint continues with its speed and is drawn towards its target; the target that counts at t is
    the one that explains the step from t to t+1 best.
    """
    t = np.arange(LEAD_MARGIN, len(state) - LEAD_MARGIN)
    last, steps = (state[t] - state[t - 1]).ravel(), (state[t + 1] - state[t]).ravel()
    ways = np.stack([(action[t + shift] - state[t]).ravel() for shift in LEADS])

    def without_last(rows: np.ndarray) -> np.ndarray:
        return rows - np.multiply.outer(rows @ last / max(1e-12, last @ last), last)

    beside, open_ = without_last(ways), without_last(steps)
    pull = np.maximum(0, beside @ open_)  # a target does not push away
    explained = np.square(pull) / np.maximum(1e-12, np.square(beside).sum(axis=1))
    return (open_ @ open_ - explained) / max(1e-12, steps @ steps)


# -- videos and states -------------------------------------------------------------------------------------------------


def check_alignment(subject: Subject) -> Iterator[Finding]:
    """Do they change at the same time?"""
    for _, where, footage in subject.filmed():
        changes = _changes(subject, footage)
        if not changes:
            yield remark(where, "too few frames to compare image and state")
            continue
        scores = {shift: _score(changes, shift) for shift in SHIFTS}
        best = max(scores, key=scores.__getitem__)
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


def _changes(subject: Subject, footage: dict[int, Footage]) -> Changes:
    found = {}
    for i, f in footage.items():
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
    delayed = []
    for _, speed in changes.values():
        frames = np.arange(MARGIN, len(speed) - MARGIN)
        delayed.append(speed[np.clip(frames - shift - np.rint(drift * frames).astype(int), 0, len(speed) - 1)])
    seen = np.concatenate([motion[MARGIN:-MARGIN] for motion, _ in changes.values()])
    return np.pad(np.concatenate(delayed), ((0, 0), (0, 1)), constant_values=1.0), seen


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
    scores = {rate: _score(changes, 0, rate) for rate in DRIFTS if abs(rate) * length >= 2}
    best = max(scores, key=scores.__getitem__, default=0.0)
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


def _score(changes: Changes, shift: int, drift: float = 0.0, weights: np.ndarray | None = None) -> float:
    """Correlation of what is expected (by weights of their own where none are given) with what is seen; 0 where either
    is constant."""
    rows, seen = _inputs(changes, shift, drift)
    expected = rows @ (_fit(changes, shift, drift) if weights is None else weights)
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
        at = max(scores, key=scores.__getitem__)
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
    own = {0: (motion, speed)}
    scores = {rate: _score(own, 0, rate, weights) for rate in DRIFTS if abs(rate) * len(motion) >= 3}
    best = max(scores, key=scores.__getitem__, default=0.0)
    return best if best and scores[best] > 0.85 and 1 - constant**2 > 2 * (1 - scores[best] ** 2) else None


def _video_runs(shift: int) -> str:
    return f"The video runs {_count(shift, 'frame')} {'behind' if shift > 0 else 'ahead of'} the states"
