"""Are episodes long enough, without spikes and jumps, at one frame rate, each there once, and apart from what the
policy is tested on? Do the parts of a split go together?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from data_prep.doctor.examined_dataset import Series, Subject, evenly
from data_prep.doctor.findings import PREPARE_AGAIN, Finding, episodes, error, remark, warning
from data_prep.maniskill import CONTROL_FREQ

SHARED = 0.5  # part of an episode's rows that two recordings of one task do not share
RESAMPLED = 24  # steps at which episodes of any length are compared
NEARLY = 0.03  # of the usual distance between two episodes
SPIKE = 20.0  # times what 95 % of the frames stay below
FEW_VALUES = 5  # a dimension of no more different values is a switch, whose jumps are meant
SHOWN = 5  # pairs of equal episodes that are named
PLAUSIBLE_FPS = (1.0, 240.0)
RATE_TOLERANCE = 0.1  # of a frame's time: LeRobot refuses at 1e-4 s, timestamps in float32 stay below that

MEND_SPIKE = "Replace the value by its neighbours' mean or leave the episode out, then write the statistics again."
MEND_TWIN = "Remove one of the two recordings and prepare the dataset again: what is there twice counts twice."
MEND_LEAK = (
    "Remove it from one of the two, then write the statistics again: a policy that is tested on what it was trained on "
    "looks better than it is."
)
MEND_RATE = (
    "Find out at which rate it was recorded, and put that into fps of meta/info.json and into the timestamps "
    "(frame_index / fps): the policy is run at this rate."
)


def check_lengths(subject: Subject) -> Iterator[Finding]:
    """No episode is too short to learn from."""
    lengths = {e.index: e.length for e in subject.episodes}
    deltas = subject.configs["action"].delta_indices
    needed = max(deltas) - min(0, *deltas) + 1
    yield remark("episodes", f"{min(lengths.values())} to {max(lengths.values())} frames")
    empty = [i for i, n in lengths.items() if n < 2]
    if empty:
        yield error(subject.which(empty), "Has fewer than two frames.", "Leave it out, or record it again.")
    training = [n for i, n in lengths.items() if i not in subject.held_out]
    if not training or max(training) < needed:
        found = f"No training episode is as long as the action horizon ({needed} steps)."
        remedy = "Record longer episodes, or shorten the action horizon in the modality configuration."
        yield error("episodes", found, remedy)
        return
    usual = float(np.median(list(lengths.values())))
    stubs = [i for i, n in lengths.items() if 2 <= n < 0.3 * usual]
    if stubs:
        found = f"Has {lengths[stubs[0]]} frames, where episodes have {usual:.0f}: was it cut off?"
        yield warning(subject.which(stubs), found, "Watch it; leave it out if it does not end as it should.")
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
        yield warning(subject.which(resting), found, remedy)


def check_outliers(subject: Subject) -> Iterator[Finding]:
    """Single frames that lie far off their neighbours, and values far outside of what is usual."""
    for modality, group in subject.groups():
        whole = {i: v for i, v in subject.series(modality, group).items() if len(v) >= 5 and np.isfinite(v).all()}
        for d, name in enumerate(subject.dim_names(modality, group) if whole else ()):
            series = {i: v[:, d] for i, v in whole.items()}
            if len(np.unique(np.concatenate(list(series.values())))) <= FEW_VALUES:
                continue
            yield from _spikes(subject, f'{modality} "{group}"', name, series)
            if "gripper" not in group.lower():  # it snaps
                yield from _jumps(subject, f'{modality} "{group}"', name, series)


def _spikes(subject: Subject, where: str, name: str, series: Series) -> Iterator[Finding]:
    heights = {i: _spike_heights(v) for i, v in series.items()}
    usual = np.percentile(np.abs(np.concatenate([np.diff(v) for v in series.values()])), 95)
    low, high = np.percentile(np.concatenate(list(series.values())), [2, 98])
    limit = max(SPIKE * np.percentile(np.concatenate(list(heights.values())), 95), 4 * usual, 0.2 * (high - low))
    found = {i: int(h.argmax()) for i, h in heights.items() if h.max() > limit > 0}
    if not found:
        return
    first = next(iter(found))
    value = series[first][found[first]]
    rest = np.concatenate([np.delete(v, found[i]) if i in found else v for i, v in series.items()])
    stretched = value < rest.min() - 0.25 * np.ptp(rest) or value > rest.max() + 0.25 * np.ptp(rest)
    text = f"{name} is {value:.4g} for one frame ({found[first]} of episode {first}), off both of its neighbours."
    if stretched:
        text += f" Everything else lies between {rest.min():.4g} and {rest.max():.4g}: the range is spoilt."
    level = error if stretched else warning
    yield level(f"{where}, {subject.which(found)}", text, MEND_SPIKE)


def _spike_heights(values: np.ndarray) -> np.ndarray:
    """(T,): how far each value lies outside of what its neighbours span; the ends off a straight line on."""
    before, here, after = values[:-2], values[1:-1], values[2:]
    inner = np.maximum(0, np.maximum(here - np.maximum(before, after), np.minimum(before, after) - here))
    first = abs(values[0] - (2 * values[1] - values[2]))
    last = abs(values[-1] - (2 * values[-2] - values[-3]))
    # An end moves on with its own acceleration: twice as far off before it counts.
    return np.concatenate([[first / 2], inner, [last / 2]])


def _jumps(subject: Subject, where: str, name: str, series: Series) -> Iterator[Finding]:
    """Steps of a size that occurs nowhere else: two episodes in one, or lost frames."""
    steps = {i: np.abs(np.diff(v)) for i, v in series.items()}
    low, high = np.percentile(np.concatenate(list(series.values())), [2, 98])
    limit = max(8 * np.percentile(np.concatenate(list(steps.values())), 95), 0.4 * (high - low))
    found = {}
    for i, step in steps.items():
        t = int(step.argmax())
        stays = np.abs(np.median(series[i][t + 1 : t + 4]) - np.median(series[i][max(0, t - 2) : t + 1])) > limit / 2
        if step[t] > limit > 0 and stays:
            found[i] = t
    if found and len(found) <= max(1, len(series) / 3):  # what most episodes do is no accident
        first = next(iter(found))
        text = f"{name} jumps by {steps[first][found[first]]:.3g} after frame {found[first]} of episode {first}."
        remedy = "Two episodes in one, or lost frames: cut the episode there, or leave it out."
        yield warning(f"{where}, {subject.which(found)}", text, remedy)


def check_duplicates(subject: Subject) -> Iterator[Finding]:
    """No episode is there twice, in whole or in part, exactly or nearly."""
    tables = subject.motion_tables
    twins = _shared_rows(tables, tables)
    for i, j, share in sorted(twins)[:SHOWN]:
        how = "is the same as" if share == 1 else f"shares {share:.0%} of its frames with"
        leak = (i in subject.held_out) != (j in subject.held_out)
        found = f"Episode {j} {how} episode {i}" + (": one is trained on, the other held out." if leak else ".")
        yield error(episodes([i, j]), found, MEND_LEAK if leak else MEND_TWIN)
    if len(twins) > SHOWN:
        yield error("episodes", f"{len(twins)} pairs of episodes are the same.", MEND_TWIN)
    for i, j in sorted(_nearly_equal(tables, tables) - {(i, j) for i, j, _ in twins})[:SHOWN]:
        leak = (i in subject.held_out) != (j in subject.held_out)
        found = f"Episodes {i} and {j} do nearly the same: one is a copy with noise, or a replay of the other."
        yield warning(episodes([i, j]), found, MEND_LEAK if leak else MEND_TWIN)


def _shared_rows(first: Series, second: Series) -> list[tuple[int, int, float]]:
    """(episode of first, episode of second, share of the shorter one's rows found in the other), where it is large."""
    rows = {i: {row.tobytes() for row in table} for i, table in first.items()}
    others = rows if first is second else {j: {row.tobytes() for row in table} for j, table in second.items()}
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


def _nearly_equal(first: Series, second: Series) -> set[tuple[int, int]]:
    """Pairs whose courses lie much closer than any two episodes usually do."""
    if len(first) < 3 or not second:
        return set()
    courses = {i: _course(table) for i, table in first.items() if len(table) > 2}
    others = courses if first is second else {j: _course(table) for j, table in second.items() if len(table) > 2}
    if len({course.shape for course in [*courses.values(), *others.values()]}) != 1:
        return set()  # the parts have different groups, which other checks say
    one, two = np.stack(list(courses.values())), np.stack(list(others.values()))
    # (D,): how far a dimension usually is off the middle course, blind to single strange episodes
    spread = np.median(np.abs(one - np.median(one, axis=0)).mean(axis=1), axis=0)
    low, high = np.percentile(one, [10, 90], axis=(0, 1))
    spread = np.maximum(spread, 0.1 * (high - low) + 1e-6)  # where all do the same, as grippers do
    one, two = (one / spread).reshape(len(one), -1), (two / spread).reshape(len(two), -1)
    columns = list(others)
    usual = float(np.median(np.concatenate([_apart(two, one[row]) for row in evenly(range(len(one)), 100)])))
    found = set()
    for row, i in enumerate(courses):
        for c in np.flatnonzero(_apart(two, one[row]) < NEARLY * usual):
            if first is not second or i < columns[c]:
                found.add((i, columns[c]))
    return found


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
    entries = subject.layout.split.get("episodes", [])
    entries = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    if entries and len(entries) != len(subject.episodes):
        found = f"Tells the source of {len(entries)} episodes; there are {len(subject.episodes)}."
        yield warning("meta/split.json", found, PREPARE_AGAIN)
    first: dict[tuple[str, str], int] = {}
    for e in entries:
        source = (str(e.get("file")), str(e.get("trajectory")))
        twin = first.setdefault(source, e.get("episode_index", -1))
        if twin != e.get("episode_index", -1):
            found = f"Episodes {twin} and {e.get('episode_index')} come from the same recording ({', '.join(source)})."
            yield error("meta/split.json", found, MEND_TWIN)


def check_rate(subject: Subject) -> Iterator[Finding]:
    """fps is plausible, and that of the robot where it is known."""
    fps = subject.layout.fps
    if not PLAUSIBLE_FPS[0] <= fps <= PLAUSIBLE_FPS[1]:
        yield error("meta/info.json", f"fps is {fps:g}, which no camera of a robot has.", MEND_RATE)
    elif subject.is_maniskill_panda and fps != CONTROL_FREQ:
        found = f"fps is {fps:g}, but ManiSkill's Panda is controlled at {CONTROL_FREQ} Hz."
        yield error("meta/info.json", found, MEND_RATE)


def check_timestamps(subject: Subject) -> Iterator[Finding]:
    """Timestamps begin at 0, grow, and lie 1/fps apart."""
    times = {i: v.reshape(-1).astype(np.float64) for i, v in subject.column("timestamp").items() if len(v)}
    broken = [i for i, t in times.items() if not np.isfinite(t).all() or (np.diff(t) <= 0).any()]
    if broken:
        yield error(f"data/, {subject.which(broken)}", "Timestamps do not grow from frame to frame.")
    if not PLAUSIBLE_FPS[0] <= subject.layout.fps <= PLAUSIBLE_FPS[1]:
        return
    frame = 1 / subject.layout.fps
    whole = {i: t for i, t in times.items() if i not in broken and len(t) > 1}
    steps = {i: float(np.median(np.diff(t))) for i, t in whole.items()}
    other = [i for i, step in steps.items() if abs(step - frame) > RATE_TOLERANCE * frame]
    if other:
        rate = 1 / steps[other[0]]
        yield error(
            f"data/, {subject.which(other)}",
            f"Timestamps are those of {rate:.4g} frames a second, fps of meta/info.json is {subject.layout.fps:g}.",
            MEND_RATE,
        )
    gaps = {i: np.flatnonzero(np.abs(np.diff(t) - frame) > 0.5 * frame) for i, t in whole.items() if i not in other}
    jumps = [i for i, frames in gaps.items() if len(frames)]
    if jumps:
        place = f"episode {jumps[0]} after frame {gaps[jumps[0]][0]}"
        yield error(
            f"data/, {subject.which(jumps)}",
            f"Timestamps jump: {place}. Frames were lost or are unevenly spaced.",
            f"Cut the episode there, or record it again. {PREPARE_AGAIN}",
        )
    late = [i for i, t in times.items() if i not in broken and abs(t[0]) > 0.5 * frame]
    if late:
        found = f"Timestamps do not begin at 0 (episode {late[0]}: {times[late[0]][0]:.4g} s)."
        yield warning(f"data/, {subject.which(late)}", found, "Subtract the first from each episode's timestamps.")


def check_video_rate(subject: Subject) -> Iterator[Finding]:
    """The videos' own frame rate is that of meta/info.json."""
    fps = subject.layout.fps
    for camera in subject.cameras:
        rates = {i: f.fps for i, f in subject.footage_of(camera).items() if f.fps}
        other = [i for i, rate in rates.items() if abs(rate - fps) > 0.02 * fps]
        if other:
            yield warning(
                f"videos/, {camera}, {subject.which(other)}",
                f"The videos run at {rates[other[0]]:.4g} frames a second, fps of meta/info.json is {fps:g}.",
                f"Frames are read by number here, by time in LeRobot. {MEND_RATE} Then write the videos at that rate.",
            )


def check_apart(train: Subject, conflict: Subject) -> Iterator[Finding]:
    """No conflict episode is also a train episode, exactly, in part or nearly."""
    shared = _shared_rows(train.motion_tables, conflict.motion_tables)
    for i, j, share in sorted(shared)[:SHOWN]:
        how = "is" if share == 1 else f"shares {share:.0%} of its frames with"
        yield error(f"conflict, episode {j}", f"Conflict episode {j} {how} train episode {i}.", MEND_LEAK)
    if len(shared) > SHOWN:
        yield error("conflict", f"{len(shared)} conflict episodes are in train too.", MEND_LEAK)
    alike = _nearly_equal(train.motion_tables, conflict.motion_tables) - {(i, j) for i, j, _ in shared}
    for i, j in sorted(alike)[:SHOWN]:
        found = f"Conflict episode {j} does nearly the same as train episode {i}: a copy with noise, or a replay?"
        yield warning(f"conflict, episode {j}", found, MEND_LEAK)
    hashes = []
    for part in (train, conflict):
        sources = [s for s in part.layout.split.get("sources", []) if isinstance(s, dict)]
        recordings = [s for s in sources if s.get("sha256") and str(s.get("file")).endswith(".h5")]
        hashes.append({s["sha256"]: s["file"] for s in recordings})
    for digest in sorted(set(hashes[0]) & set(hashes[1])):
        found = f"Both parts were made from the same recording ({hashes[0][digest]})."
        yield error("meta/split.json", found, MEND_LEAK)


def check_same_form(train: Subject, conflict: Subject) -> Iterator[Finding]:
    """Rate, groups and frame sizes are the same: one policy reads both."""
    if train.layout.fps != conflict.layout.fps:
        found = f"fps is {train.layout.fps:g} in train, {conflict.layout.fps:g} in conflict."
        yield error("meta/info.json", found)
    for modality in ("state", "action", "video"):
        for key in train.configs[modality].modality_keys:
            entries = [part.layout.modality.get(modality, {}).get(key) for part in (train, conflict)]
            if None not in entries and entries[0] != entries[1]:
                found = f'{modality} "{key}" is {entries[0]} in train, {entries[1]} in conflict.'
                yield error("meta/modality.json", found)
    sizes = [{c: f.size for (_, c), f in part.footage.items() if f.size} for part in (train, conflict)]
    for camera in train.cameras:
        seen = [size.get(camera) for size in sizes]
        if None not in seen and seen[0] != seen[1]:
            found = f"{camera} has frames of {seen[0]} in train, {seen[1]} in conflict."
            yield error("videos/", found, f"Record both with one size. {PREPARE_AGAIN}")


def check_same_words(train: Subject, conflict: Subject) -> Iterator[Finding]:
    """Conflict episodes have the instruction that train episodes have."""
    words = [part.layout.split.get("instruction") for part in (train, conflict)]
    if None not in words and words[0] != words[1]:
        found = f'The instruction is "{words[0]}" in train, "{words[1]}" in conflict.'
        yield error("meta/split.json", found)
    elif None in words and not set(train.layout.tasks.values()) & set(conflict.layout.tasks.values()):
        found = "No instruction of conflict occurs in train: the policy would be tested on words it never heard."
        yield warning("meta/tasks.jsonl", found, "Tell both parts the same: prepare them again with one instruction.")
