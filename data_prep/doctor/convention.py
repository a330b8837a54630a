"""Are actions absolute targets that lead the state, joint by joint?

Looked at are the groups that the modality configuration makes relative to a state: for these, a wrong convention
trains without complaint and fails on the robot.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.doctor.findings import Finding, episodes, error, remark, warning
from data_prep.doctor.subject import Subject
from gr00t.data.schema import ActionType
from gr00t.data.statistics import relative_groups

Pursuit = list[tuple[int, np.ndarray, np.ndarray]]  # (episode, state (T, D), action (T, D))
MARGIN = 4  # frames at both ends left out, so that every shift is judged on the same ones
SHIFTS = range(-4, 5)  # a best one at either end is none: it would go on beyond
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
MEND_FOREIGN = (
    "The actions belong to another episode or another convention: prepare the episode again, or leave it out."
)


def check_convention(subject: Subject) -> Iterator[Finding]:
    """Actions are targets in the state's own units, not differences, and belong to their episode."""
    for group, pursuit in _pursuits(subject):
        where = f'action "{group}"'
        level, change = _correlations(pursuit)
        if _are_deltas(pursuit, level, change):
            found = (
                f"These already are deltas: they go with the state's change (correlation {change:.2f}), not with the "
                f"state ({level:.2f}). Made relative once more, they are wrong by the whole state."
            )
            yield error(where, found, MEND_DELTA)
        elif abs(level) < 0.3 and abs(change) < 0.3:
            found = f"The state does not follow the actions (correlation {level:.2f}, of its changes {change:.2f})."
            yield warning(where, found, MEND_FOREIGN)
        else:
            yield from _dimensions(subject, group, pursuit)
            yield from _strange_episodes(subject, where, pursuit)


def _pursuits(subject: Subject) -> Iterator[tuple[str, Pursuit]]:
    joints = {g for g, config in relative_groups(subject.configs["action"]) if config.type is not ActionType.EEF}
    for group, pursuit in subject.pursuits.items():
        long = [(i, s, a) for i, s, a in pursuit if len(s) > 2 * MARGIN + 4]
        if group in joints and long:
            yield group, long


def _correlations(pursuit: Pursuit) -> tuple[float, float]:
    """Median over dimensions of the actions' correlation with the next state, and with the change towards it."""
    target = np.concatenate([a[:-1] for _, _, a in pursuit])
    following = np.concatenate([s[1:] for _, s, _ in pursuit])
    change = np.concatenate([np.diff(s, axis=0) for _, s, _ in pursuit])
    return _median_correlation(target, following), _median_correlation(target, change)


def _median_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Over the dimensions (columns) that vary in both; 0 where none does."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    size = np.sqrt(np.square(one).sum(axis=0) * np.square(other).sum(axis=0))
    varied = size > 1e-12
    return float(np.median((one * other).sum(axis=0)[varied] / size[varied])) if varied.any() else 0.0


def _are_deltas(pursuit: Pursuit, level: float, change: float) -> bool:
    state = np.concatenate([s for _, s, _ in pursuit])
    action = np.concatenate([a for _, _, a in pursuit])
    # Where a joint works far from 0, absolute targets do too.
    far = np.abs(state.mean(axis=0)) > 3 * state.std(axis=0) + 0.1
    near_zero = np.abs(action.mean(axis=0))[far] < 0.3 * np.abs(state.mean(axis=0))[far]
    if far.any() and near_zero.all():
        return change > 0.3 or np.abs(action).mean() < 0.5 * np.abs(state).mean()
    return bool(not far.any() and change > 0.5 and change > level + 0.2)


def _dimensions(subject: Subject, group: str, pursuit: Pursuit) -> Iterator[Finding]:
    """Each action dimension goes with its own state dimension, with the same sign and scale."""
    action = np.concatenate([a[:-1] for _, _, a in pursuit])
    following = np.concatenate([s[1:] for _, s, _ in pursuit])
    names, where = subject.dim_names("action", group), f'action "{group}"'
    lines = [_line(following[:, d], action[:, d]) for d in range(len(names))]  # (slope, part explained)
    apart = np.sqrt(np.square(action[:, :, None] - following[:, None, :]).mean(axis=0))  # (action dim, state dim)
    crossed = [d for d, (_, fit) in enumerate(lines) if fit < 0.8 and 4 * apart[d].min() < apart[d, d]]
    if crossed:
        pairs = ", ".join(f"{names[d]} follows {names[int(apart[d].argmin())]}" for d in crossed)
        yield error(where, f"The order of dimensions differs from the state's: {pairs}.", MEND_ORDER)
        return
    beside = _beside(pursuit)
    for d, (slope, fit) in enumerate(lines):
        if fit > 0.8 and not 0.5 < slope < 2.0:
            yield error(where, _scale(names[d], slope), MEND_ORDER)
        elif fit > 0.8 and beside[d]:
            yield error(where, f"{names[d]} lies {beside[d]:.3g} beside the state all the time.", MEND_BESIDE)


def _beside(pursuit: Pursuit) -> np.ndarray:
    """How far each action dimension stays on one side of the state that follows; 0 where the two meet now and then, as
    they do wherever a robot rests or turns back."""
    apart = np.concatenate([a[:-1] - s[1:] for _, s, a in pursuit])
    low, high = np.quantile(apart, [0.05, 0.95], axis=0)
    nearest = np.maximum(low, -high)
    spread = np.concatenate([s for _, s, _ in pursuit]).std(axis=0)
    return np.where(nearest > np.maximum(0.1, 0.25 * spread), np.median(apart, axis=0), 0.0)


def _line(given: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope of the straight line through (given, values), and the part of the values' variance that it explains."""
    x, y = given - given.mean(), values - values.mean()
    if x @ x < 1e-9 or y @ y < 1e-9:
        return 1.0, 0.0
    slope = float(x @ y / (x @ x))
    return slope, float(1 - np.square(y - slope * x).sum() / (y @ y))


def _scale(name: str, slope: float) -> str:
    if slope < 0:
        return f"{name} goes against the state (slope {slope:.3g}): the sign is wrong in one of them."
    units = " (57.3 is degrees for radians)" if 50 < slope < 65 or 50 < 1 / slope < 65 else ""
    return f"{name} is {slope:.4g} times the state{units}."


def _strange_episodes(subject: Subject, where: str, pursuit: Pursuit) -> Iterator[Finding]:
    """Episodes whose actions lie much farther from their states than the others' do."""
    if len(pursuit) < 3:
        return
    apart = {i: float(np.sqrt(np.square(a[:-1] - s[1:]).mean())) for i, s, a in pursuit}
    usual = float(np.median(list(apart.values())))
    strange = [i for i, distance in apart.items() if distance > 3 * usual + 0.01]
    if strange:
        first = strange[0]
        found = f"Actions lie {apart[first]:.3g} off the states in episode {first}, {usual:.3g} in the others."
        yield error(f"{where}, {episodes(strange, len(subject.episodes))}", found, MEND_FOREIGN)


def check_lead(subject: Subject) -> Iterator[Finding]:
    """action[t] is what moves the state from t to t+1: neither a copy of the state nor early nor late."""
    for group, pursuit in _pursuits(subject):
        level, change = _correlations(pursuit)
        if abs(level) < 0.3 or _are_deltas(pursuit, level, change):
            continue  # check_convention says so
        where = f'action "{group}"'
        copies = [i for i, s, a in pursuit if np.allclose(a, s, rtol=0, atol=1e-7)]
        if copies:
            found = "The actions are copies of the state at the same frame: a policy that learns them stands still."
            yield error(f"{where}, {episodes(copies, len(subject.episodes))}", found, MEND_COPY)
            pursuit = [p for p in pursuit if p[0] not in copies]
        if pursuit:
            aside = _beside(pursuit)  # check_convention says so
            yield from _shifted(subject, where, [(i, s, a - aside) for i, s, a in pursuit])


def _shifted(subject: Subject, where: str, pursuit: Pursuit) -> Iterator[Finding]:
    """Which command explains each step of the state best: of the dataset as a whole, and of each episode."""
    left = {i: unexplained([(i, s, a)]) for i, s, a in pursuit}  # by SHIFTS
    usual = np.median(list(left.values()), axis=0)
    best = SHIFTS[int(usual.argmin())]
    if _is_wrong(subject, best, usual):
        yield error(f"{where}, all episodes", _shift_in_words(best, usual), MEND_LEAD)
        return
    yield remark(where, f"Commands act on the step they are given for: {1 - usual[SHIFTS.index(0)]:.1%} explained.")
    wrong: dict[int, list[int]] = {}
    for i, own in left.items():
        shift = SHIFTS[int(own.argmin())]
        if shift != best and _is_wrong(subject, shift, own) and own[SHIFTS.index(0)] > 3 * usual[SHIFTS.index(0)]:
            wrong.setdefault(shift, []).append(i)
    for shift, indices in wrong.items():
        found = _shift_in_words(shift, left[indices[0]])
        yield error(f"{where}, {episodes(indices, len(subject.episodes))}", found, MEND_LEAD)


def _is_wrong(subject: Subject, shift: int, left: np.ndarray) -> bool:
    """Whether that shift explains clearly more. A real robot answers late (one or two steps); no one answers early."""
    if shift in (SHIFTS[0], SHIFTS[-1]):
        return False
    now = left[SHIFTS.index(0)]
    best = left[SHIFTS.index(shift)]
    if shift > 0:
        return bool(now > 1.5 * best and now - best > 0.005)
    if shift < 0 and (subject.is_maniskill_panda or shift < -2):
        return bool(now > 1.25 * best)
    return False


def _shift_in_words(shift: int, left: np.ndarray) -> str:
    now, best = left[SHIFTS.index(0)], left[SHIFTS.index(shift)]
    steps = f"{abs(shift)} step{'s' if abs(shift) > 1 else ''}"
    told = f"late by {steps}: the state moves before its command" if shift > 0 else f"early by {steps}"
    return (
        f"The actions come {told}. Shifted back they leave {best:.2%} of the motion unexplained, as they are {now:.2%}."
    )


def unexplained(pursuit: Pursuit) -> np.ndarray:
    """For each of SHIFTS the part of the state's steps that the last step and the way to action[t + shift] leave open.

    A position-controlled joint goes on with its speed and is drawn towards its target; the target that counts at t is
    the one that explains the step from t to t+1 best.
    """
    return np.array([_unexplained_by(pursuit, shift, _weights(pursuit, shift)) for shift in SHIFTS])


def _regression(pursuit: Pursuit, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (last step, way to the target) (N, 2) and the steps (N,), over all frames and dimensions."""
    rows, steps = [], []
    for _, state, action in pursuit:
        t = np.arange(MARGIN, len(state) - MARGIN)
        rows.append(np.stack([(state[t] - state[t - 1]).ravel(), (action[t + shift] - state[t]).ravel()], axis=1))
        steps.append((state[t + 1] - state[t]).ravel())
    return np.concatenate(rows), np.concatenate(steps)


def _weights(pursuit: Pursuit, shift: int) -> np.ndarray:
    """Of the last step and of the way to the target; a target does not push away."""
    rows, steps = _regression(pursuit, shift)
    weights = np.linalg.lstsq(rows, steps, rcond=None)[0]
    if weights[1] < 0:
        weights = np.array([(rows[:, 0] @ steps) / max(1e-12, rows[:, 0] @ rows[:, 0]), 0.0])
    return weights


def _unexplained_by(pursuit: Pursuit, shift: int, w: np.ndarray) -> float:
    rows, steps = _regression(pursuit, shift)
    return float(np.square(steps - rows @ w).sum() / max(1e-12, np.square(steps).sum()))


def check_gripper_direction(subject: Subject) -> Iterator[Finding]:
    """A command to open opens: only where the command's sign is known."""
    if not subject.is_maniskill_panda or ("action", "gripper") not in subject.groups():
        return
    states, actions = subject.series("state", "gripper"), subject.series("action", "gripper")
    pairs = [(i, states[i][:, 0], actions[i][:, 0]) for i in actions if i in states and len(states[i]) > 6]
    pairs = [(i, s, a) for i, s, a in pairs if s.shape == a.shape and np.ptp(a) > 0 and np.ptp(s) > 0]
    # Where the gripper is a few frames later: it takes that long to get anywhere.
    signs = {i: float(np.corrcoef(s[3:], a[:-3])[0, 1]) for i, s, a in pairs if np.ptp(a[:-3]) and np.ptp(s[3:])}
    wrong = [i for i, sign in signs.items() if sign < -0.3]
    if wrong:
        found = "The gripper opens when it is told to close: the command's sign is reversed."
        remedy = "Turn the sign of the gripper's action (1 opens, -1 closes), then write the statistics again."
        yield error(f'action "gripper", {episodes(wrong, len(subject.episodes))}', found, remedy)
    stays = [i for i, a in actions.items() if len(a) and (a > 0).all()]
    if stays and len(stays) < len(actions):
        found = "The gripper is never told to close, though it is in other episodes."
        remedy = "Leave them out unless they are meant so: nothing is picked up there."
        yield warning(f'action "gripper", {episodes(stays, len(subject.episodes))}', found, remedy)
