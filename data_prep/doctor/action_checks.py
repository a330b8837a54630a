"""Are actions absolute targets that lead the state, joint by joint?

Of actions the groups are looked at that the modality configuration makes relative to a state: for these, a wrong
convention trains without complaint and fails on the robot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from data_prep.doctor import Finding, error, remark, warning
from data_prep.doctor.examined_dataset import LEAST, MOVED, Group, Pursuit, Subject
from gr00t.data.schema import ActionType
from gr00t.data.statistics import relative_groups

# Of the actions against the state. A best shift at either end is none: it might lie beyond.
LEAD_MARGIN = 4
LEADS = range(-LEAD_MARGIN, LEAD_MARGIN + 1)
UNEXPLAINED = 0.5  # of the steps' squares: where more is left, the best shift is chance
IN_PLACE = LEADS.index(0)

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
            yield from _strange_episodes(subject, group, pursuit)


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


def _strange_episodes(subject: Subject, group: Group, pursuit: Pursuit) -> Iterator[Finding]:
    """Episodes whose actions lie much farther from their states than the others' do."""
    apart = {i: float(np.sqrt(np.square(a[:-1] - s[1:]).mean())) for i, s, a in pursuit}
    usual = float(np.median(list(apart.values())))
    strange = {
        i: f"Actions lie {distance:.3g} off the states in episode {i}, {usual:.3g} in the others."
        for i, distance in apart.items()
        if distance > 3 * usual + 0.01 and len(apart) >= 3
    }
    yield from subject.about(error, group.where, strange, MEND_FOREIGN_ACTIONS)


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
        moving = {i for i, s, _ in pursuit if _moves(np.ptp(s, axis=0), spread)}
        others = [p for p in pursuit if p[0] not in copies and p[0] in moving]
        if others:
            aside = _Steps(others).beside  # check_convention says so
            yield from _lead(subject, group.where, {i: _unexplained(s, a - aside) for i, s, a in others})


def _moves(way: np.ndarray, spread: np.ndarray) -> bool:
    """Whether a state (D,) that moves so far is more than a sensor's noise, in rad or m."""
    return bool(way.max() >= LEAST and (way / np.maximum(spread, LEAST)).mean() >= MOVED)


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
    when = f"late by {count(shift, 'step')}: the state moves before its command"
    if shift < 0:
        when = f"early by {count(shift, 'step')}"
    open_ = f"Shifted back they leave {best:.2%} of the motion unexplained, as they are {now:.2%}"
    return f"The actions come {when}. {open_}."


def count(shift: int, what: str) -> str:
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


def check_gripper_direction(subject: Subject) -> Iterator[Finding]:
    """Does it close when commanded to?"""
    group = subject.all_groups.get(("action", "gripper"))
    if not subject.is_maniskill_panda or group not in subject.groups:
        return
    states, wrong, stays = subject.series("state", "gripper"), {}, {}
    for i, action in group.series.items():
        state = states.get(i, action[:0])
        # Where the gripper is a few frames later: it takes that long to get anywhere.
        now, then = action[:-3, 0], state[3:, 0]
        if len(now) == len(then) > 3 and np.ptp(now) > 0 and np.ptp(then) > 0 and np.corrcoef(then, now)[0, 1] < -0.3:
            wrong[i] = "The gripper opens when it is commanded to close: the command's sign is reversed."
        if (action > 0).all():
            stays[i] = "The gripper is never commanded to close, though it is in other episodes."
    remedy = "Turn the sign of the gripper's action (1 opens, -1 closes), then write the statistics again."
    yield from subject.about(error, group.where, wrong, remedy)
    if len(stays) < len(group.series):
        remedy = "Leave them out unless they are meant so: nothing is picked up there."
        yield from subject.about(warning, group.where, stays, remedy)
