"""Are episodes long enough, each there once, and apart from what the policy is tested on?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from data_prep.doctor.findings import PREPARE_AGAIN, Finding, episodes, error, remark, warning
from data_prep.doctor.statistics import horizon
from data_prep.doctor.subject import Subject, evenly

SHARED = 0.5  # part of an episode's rows that two recordings of one task do not share
RESAMPLED = 24  # steps at which episodes of any length are compared
NEARLY = 0.03  # of the usual distance between two episodes
MEND_TWIN = "Remove one of the two recordings and prepare the dataset again: what is there twice counts twice."
MEND_LEAK = (
    "Remove it from one of the two, then write the statistics again: a policy that is tested on what it was trained on "
    "looks better than it is."
)


def check_lengths(subject: Subject) -> Iterator[Finding]:
    """No episode is too short to learn from."""
    lengths = {e.index: e.length for e in subject.episodes}
    total, needed = len(lengths), horizon(subject.configs)
    yield remark("episodes", f"{min(lengths.values())} to {max(lengths.values())} frames")
    empty = [i for i, n in lengths.items() if n < 2]
    if empty:
        yield error(episodes(empty, total), "Has fewer than two frames.", "Leave it out, or record it again.")
    training = [n for i, n in lengths.items() if i not in subject.held_out]
    if not training or max(training) < needed:
        found = f"No training episode is as long as the action horizon ({needed} steps)."
        yield error(
            "episodes", found, "Record longer episodes, or shorten the action horizon in the modality configuration."
        )
        return
    usual = float(np.median(list(lengths.values())))
    stubs = [i for i, n in lengths.items() if 2 <= n < 0.3 * usual]
    if stubs:
        found = f"Has {lengths[stubs[0]]} frames, where episodes have {usual:.0f}: was it cut off?"
        yield warning(episodes(stubs, total), found, "Watch it; leave it out if it does not end as it should.")
    short = sum(n < needed for n in lengths.values())
    if short:
        yield remark("episodes", f"{short} are shorter than the action horizon ({needed}): their chunks are masked")


def check_endings(subject: Subject) -> Iterator[Finding]:
    """Recorded success and end marks: where some episodes end in success, all should."""
    rewards = {i: v.reshape(-1) for i, v in subject.column("next.reward").items() if len(v)}
    failed = [i for i, v in rewards.items() if not v[-1] > 0]
    if failed and len(failed) < len(rewards):
        found = "Does not end in success (next.reward is 0 in its last frame), as the others do."
        yield error(episodes(failed, len(rewards)), found, "Leave it out: the policy would learn to fail.")
    done = {i: v.reshape(-1).astype(bool) for i, v in subject.column("next.done").items() if len(v)}
    early = [i for i, v in done.items() if v[:-1].any()]
    if early and len(early) < len(done):
        found = "Is marked as done before its last frame: two episodes in one, or wrong marks."
        yield warning(episodes(early, len(done)), found, "Cut it there, or prepare the dataset again.")


def check_idle(subject: Subject) -> Iterator[Finding]:
    """Episodes in which nothing happens for most of the time."""
    idle = {}
    for pursuit in subject.pursuits.values():
        for i, state, action in pursuit:
            if len(state) > 2:
                still = (np.diff(state, axis=0) == 0).all(axis=1) & (np.diff(action, axis=0) == 0).all(axis=1)
                idle[i] = float(still.mean())
    resting = [i for i, share in idle.items() if share > 0.5]
    if resting and len(resting) < len(idle):
        found = f"State and action stay exactly as they are in {idle[resting[0]]:.0%} of the frames."
        remedy = "A recorder that stuck, or padding: cut these frames off; the policy would learn to wait."
        yield warning(episodes(resting, len(subject.episodes)), found, remedy)


def check_duplicates(subject: Subject) -> Iterator[Finding]:
    """No episode is there twice, in whole or in part, exactly or nearly."""
    tables = subject.motion_tables
    twins = shared_rows(tables, tables)
    for i, j, share in sorted(twins)[:5]:
        how = "is the same as" if share == 1 else f"shares {share:.0%} of its frames with"
        leak = (i in subject.held_out) != (j in subject.held_out)
        found = f"Episode {j} {how} episode {i}" + (": one is trained on, the other held out." if leak else ".")
        yield error(episodes([i, j]), found, MEND_LEAK if leak else MEND_TWIN)
    if len(twins) > 5:
        yield error("episodes", f"{len(twins)} pairs of episodes are the same.", MEND_TWIN)
    known = {(i, j) for i, j, _ in twins}
    for i, j in sorted(set(nearly_equal(tables, tables)) - known)[:5]:
        leak = (i in subject.held_out) != (j in subject.held_out)
        found = f"Episodes {i} and {j} do nearly the same: one is a copy with noise, or a replay of the other."
        yield warning(episodes([i, j]), found, MEND_LEAK if leak else MEND_TWIN)


def shared_rows(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> list[tuple[int, int, float]]:
    """(episode of first, episode of second, share of the shorter one's rows found in the other), where it is large."""
    rows = {i: set(_rows(table)) for i, table in first.items()}
    others = rows if first is second else {j: set(_rows(table)) for j, table in second.items()}
    holders: dict[bytes, list[int]] = defaultdict(list)
    for i, of_episode in rows.items():
        for row in of_episode:
            holders[row].append(i)
    found = []
    for j, of_episode in others.items():
        common = Counter(i for row in of_episode for i in holders.get(row, ()))
        for i, count in common.items():
            share = count / min(len(of_episode), len(rows[i]))
            if share >= SHARED and (first is not second or i < j):
                found.append((i, j, share))
    return found


def _rows(table: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(table)]


def nearly_equal(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> list[tuple[int, int]]:
    """Pairs whose courses lie much closer than any two episodes usually do."""
    if len(first) < 3 or not second:
        return []
    courses = {i: _course(table) for i, table in first.items() if len(table) > 2}
    others = courses if first is second else {j: _course(table) for j, table in second.items() if len(table) > 2}
    if len({course.shape for course in [*courses.values(), *others.values()]}) != 1:
        return []  # the parts have different groups, which other checks say
    one, two = np.stack(list(courses.values())), np.stack(list(others.values()))
    # (D,): how far a dimension usually is off the middle course, blind to single strange episodes
    spread = np.median(np.abs(one - np.median(one, axis=0)).mean(axis=1), axis=0)
    low, high = np.percentile(one, [10, 90], axis=(0, 1))
    spread = np.maximum(spread, 0.1 * (high - low) + 1e-6)  # where all do the same, as grippers do
    one, two = (one / spread).reshape(len(one), -1), (two / spread).reshape(len(two), -1)
    keys, columns = list(courses), list(others)
    usual = float(np.median(np.concatenate([_apart(two, one[row]) for row in evenly(range(len(one)), 100)])))
    found = set()
    for row, i in enumerate(keys):
        for c in np.flatnonzero(_apart(two, one[row]) < NEARLY * usual):
            if first is not second or i < columns[c]:
                found.add((i, columns[c]))
    return sorted(found)


def _apart(courses: np.ndarray, course: np.ndarray) -> np.ndarray:
    """Root mean square distance of each of (N, D) from one (D,)."""
    return np.sqrt(np.square(courses - course).mean(axis=1))


def _course(table: np.ndarray) -> np.ndarray:
    """(T, D) at RESAMPLED even moments."""
    at = np.linspace(0, len(table) - 1, RESAMPLED)
    return np.stack([np.interp(at, np.arange(len(table)), table[:, d]) for d in range(table.shape[1])], axis=1)


def check_split(subject: Subject) -> Iterator[Finding]:
    """meta/split.json: the held-out episodes exist, are few, and the part is the folder's."""
    split = subject.layout.split
    if not split:
        yield remark("meta/split.json", "not there: no episode is held out of training")
        return
    where = "meta/split.json"
    listed, known = split.get("val_episodes", []), {e.index for e in subject.episodes}
    if not isinstance(listed, list) or not all(isinstance(i, int) for i in listed):
        yield error(where, f"val_episodes must be a list of episode numbers, not {listed!r}.")
        return
    if unknown := [i for i in listed if i not in known]:
        yield error(where, f"val_episodes names {episodes(unknown)}, which there is not.")
    if len(set(listed)) != len(listed):
        yield warning(where, "val_episodes names an episode twice.", "Name each once.")
    if known and set(listed) >= known:
        remedy = "Hold out a tenth, and train on the others."
        yield error(where, "Every episode is held out: nothing is left to train on.", remedy)
    elif len(set(listed) & known) > 0.5 * len(known) and len(known) > 5:
        yield warning(where, f"{len(set(listed))} of {len(known)} episodes are held out.", "Hold out a tenth or so.")
    part = split.get("part")
    if part and subject.name in ("train", "conflict") and part != subject.name:
        found = f'This folder is "{subject.name}", but was written as "{part}": the parts of the split are swapped.'
        yield error(where, found, "Put the folders back: conflict episodes must never be trained on.")
    if part == "train" and not listed:
        yield warning(where, "No episode is held out, so nothing can be evaluated open loop.", PREPARE_AGAIN)
    yield from _sources(subject)


def _sources(subject: Subject) -> Iterator[Finding]:
    """Each episode comes from a recording of its own."""
    entries = subject.layout.split.get("episodes", [])
    entries = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    if not entries:
        return
    if len(entries) != len(subject.episodes):
        found = f"Tells the source of {len(entries)} episodes; there are {len(subject.episodes)}."
        yield warning("meta/split.json", found, PREPARE_AGAIN)
    first: dict[tuple[str, str], int] = {}
    for e in entries:
        source = (str(e.get("file")), str(e.get("trajectory")))
        twin = first.setdefault(source, e.get("episode_index", -1))
        if twin != e.get("episode_index", -1):
            found = f"Episodes {twin} and {e.get('episode_index')} come from the same recording ({', '.join(source)})."
            yield error("meta/split.json", found, MEND_TWIN)
