"""Are episodes long enough, without spikes and jumps, at one frame rate? Do the parts of a split go together?"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

import numpy as np

from data_prep.doctor import PREPARE_AGAIN, Finding, episodes, error, remark, warning
from data_prep.doctor.duplicate_checks import MEND_TWIN, SPLIT
from data_prep.doctor.examined_dataset import Group, Series, Subject, listed_objects
from data_prep.maniskill import CONTROL_FREQ
from toolkit.shared_keys import SUITE_PARTS

CHOOSING = ("val_episodes", "exclude")  # keys of meta/split.json that users write
DESCRIBING = ("episodes", "val_fraction")  # of those that the converter writes, what looks like them
SPIKE = 20.0  # times what 95 % of the frames stay below
FEW_VALUES = 5  # a dimension of no more different values is a switch, whose jumps are meant
PLAUSIBLE_FPS = (1.0, 240.0)
RATE_TOLERANCE = 0.1  # of a frame's time: LeRobot refuses at 1e-4 s, timestamps in float32 stay below that

MEND_SPIKE = "Replace the value by its neighbours' mean or leave the episode out, then write the statistics again."
MEND_RATE = (
    "Find out at which rate it was recorded, and put that into fps of meta/info.json and into the timestamps "
    "(frame_index / fps): the policy is run at this rate."
)


def check_lengths(subject: Subject) -> Iterator[Finding]:
    """Is every episode long enough?"""
    lengths, deltas = subject.lengths, subject.configs["action"].delta_indices
    needed = max(deltas) - min(0, *deltas) + 1
    yield remark("episodes", f"{min(lengths.values())} to {max(lengths.values())} frames")
    empty = {i: "Has fewer than two frames." for i, n in lengths.items() if n < 2}
    yield from subject.about(error, "", empty, "Leave it out, or record it again.")
    if not any(n >= needed for i, n in lengths.items() if i not in subject.held_out):
        found = f"No training episode is as long as the action horizon ({needed} steps)."
        remedy = "Record longer episodes, or shorten the action horizon in the modality configuration."
        yield error("episodes", found, remedy)
        return
    usual = float(np.median(list(lengths.values())))
    text = f"Has {{}} frames, where episodes have {usual:.0f}: was it cut off?"
    stubs = {i: text.format(n) for i, n in lengths.items() if 2 <= n < 0.3 * usual}
    yield from subject.about(warning, "", stubs, "Watch it; leave it out if it does not end as it should.")
    short = sum(n < needed for n in lengths.values())
    if short:
        yield remark("episodes", f"{short} are shorter than the action horizon ({needed}): their chunks are masked")


def check_endings(subject: Subject) -> Iterator[Finding]:
    """Does every episode end in success?"""
    rewards = {i: v.reshape(-1) for i, v in subject.column("next.reward").items() if len(v)}
    found = "Does not end in success (next.reward is 0 in its last frame), as the others do."
    failed = {i: found for i, v in rewards.items() if not v[-1] > 0}
    if len(failed) < len(rewards):
        yield from subject.about(error, "", failed, "Leave it out: the policy would learn to fail.")
    done = {i: v.reshape(-1).astype(bool) for i, v in subject.column("next.done").items() if len(v)}
    found = "Is marked as done before its last frame: two episodes in one, or wrong marks."
    early = {i: found for i, v in done.items() if v[:-1].any()}
    if len(early) < len(done):
        yield from subject.about(warning, "", early, "Cut it there, or prepare the dataset again.")


def check_idle(subject: Subject) -> Iterator[Finding]:
    """Does something happen in every episode?"""
    moves: Series = {}  # whether anything does, from frame to frame: an arm may rest while the other one works
    for pursuit in subject.pursuits.values():
        for i, state, action in pursuit:
            if len(state) > 2:
                moved = np.asarray(np.diff(np.concatenate([state, action], axis=1), axis=0).any(axis=1))
                moves[i] = moves.get(i, np.zeros(len(moved), bool)) | moved
    still = {i: 1 - float(moved.mean()) for i, moved in moves.items()}
    text = "State and action stay exactly as they are in {:.0%} of the frames."
    resting = {i: text.format(share) for i, share in still.items() if share > 0.5}
    if len(resting) < len(still):
        remedy = "A recorder that stuck, or padding: cut these frames off; the policy would learn to wait."
        yield from subject.about(warning, "", resting, remedy)


def check_outliers(subject: Subject) -> Iterator[Finding]:
    """Are there spikes and jumps?"""
    for group in subject.groups:
        whole = {i: v for i, v in group.series.items() if len(v) >= 5 and np.isfinite(v).all()}
        heights = {i: _spike_heights(v) for i, v in whole.items()}
        steps = {i: np.abs(np.diff(v, axis=0)) for i, v in whole.items()}
        for d, name in enumerate(group.dims if whole else ()):
            series, height, step = ({i: v[:, d] for i, v in tables.items()} for tables in (whole, heights, steps))
            values, usual = _joined(series), float(np.percentile(_joined(step), 95))
            if len(np.unique(values)) > FEW_VALUES:
                spread = float(np.subtract(*np.percentile(values, [98, 2])))
                yield from _spikes(subject, group, name, series, height, max(4 * usual, 0.2 * spread))
                if not group.is_gripper:  # it snaps
                    yield from _jumps(subject, group, name, series, step, max(8 * usual, 0.4 * spread))


def _joined(series: Series) -> np.ndarray:
    return np.concatenate(list(series.values()))


def _spikes(
    subject: Subject, group: Group, name: str, series: Series, heights: Series, least: float
) -> Iterator[Finding]:
    limit = max(SPIKE * float(np.percentile(_joined(heights), 95)), least)
    places = {i: int(h.argmax()) for i, h in heights.items() if h.max() > limit > 0}
    if not places:
        return
    rest = _joined({i: np.delete(v, places[i]) if i in places else v for i, v in series.items()})
    first, t = next(iter(places.items()))
    value, level = series[first][t], warning
    found = f"{name} is {value:.4g} for one frame ({t} of episode {first}), off both of its neighbours."
    if value < rest.min() - 0.25 * np.ptp(rest) or value > rest.max() + 0.25 * np.ptp(rest):
        level = error
        found += f" Everything else lies between {rest.min():.4g} and {rest.max():.4g}: the range is spoilt."
    yield from subject.about(level, group.where, dict.fromkeys(places, found), MEND_SPIKE)


def _spike_heights(values: np.ndarray) -> np.ndarray:
    """(T, D): how far each value lies outside of what its neighbours span; the ends off a straight line on."""
    before, here, after = values[:-2], values[1:-1], values[2:]
    inner = np.maximum(0, np.maximum(here - np.maximum(before, after), np.minimum(before, after) - here))
    first = abs(values[0] - (2 * values[1] - values[2]))
    last = abs(values[-1] - (2 * values[-2] - values[-3]))
    # An end moves on with its own acceleration: twice as far off before it counts.
    return np.concatenate([first[None] / 2, inner, last[None] / 2])


def _jumps(subject: Subject, group: Group, name: str, series: Series, steps: Series, limit: float) -> Iterator[Finding]:
    """Steps of a size that occurs nowhere else: two episodes in one, or lost frames."""
    found = {}
    for i, step in steps.items():
        t = int(step.argmax())
        if step[t] > limit > 0:
            before, after = series[i][max(0, t - 2) : t + 1], series[i][t + 1 : t + 4]
            if np.abs(np.median(after) - np.median(before)) > limit / 2:
                found[i] = f"{name} jumps by {step[t]:.3g} after frame {t} of episode {i}."
    if len(found) <= max(1, len(series) / 3):  # what most episodes do is no accident
        remedy = "Two episodes in one, or lost frames: cut the episode there, or leave it out."
        yield from subject.about(warning, group.where, found, remedy)


def check_split(subject: Subject) -> Iterator[Finding]:
    """Are validation episodes apart, and few?"""
    split = subject.layout.split
    if not split:
        yield remark(SPLIT, "not there: no episode is held out of training")
        return
    for name in split.keys() - {*CHOOSING, *DESCRIBING}:
        if meant := difflib.get_close_matches(name.lower(), CHOOSING, 1, cutoff=0.8):
            found = f'"{name}" is no key of it, and nothing reads it. Did you mean "{meant[0]}"?'
            yield warning(SPLIT, found, "Correct the key's name.")
    listed, known = split.get("val_episodes", []), {e.index for e in subject.layout.listed}
    if not isinstance(listed, list) or not all(isinstance(i, int) for i in listed):
        yield error(SPLIT, f"val_episodes must be a list of episode numbers, not {listed!r}.")
        return
    if unknown := [i for i in listed if i not in known]:
        yield error(SPLIT, f"val_episodes names {episodes(unknown)}, which there is not.")
    if len(set(listed)) != len(listed):
        yield warning(SPLIT, "val_episodes names an episode twice.", "Name each once.")
    if subject.held_out == set(subject.lengths):
        remedy = "Hold out a tenth, and train on the others."
        yield error(SPLIT, "Every episode is held out: nothing is left to train on.", remedy)
    elif len(subject.held_out) > 0.5 * len(known) and len(known) > 5:
        yield warning(SPLIT, f"{len(set(listed))} of {len(known)} episodes are held out.", "Hold out a tenth or so.")
    part = split.get("part")
    if part and subject.name in SUITE_PARTS and part != subject.name:
        found = f'This folder is "{subject.name}", but was written as "{part}": the parts of the split are swapped.'
        yield error(SPLIT, found, "Put the folders back: conflict episodes must never be trained on.")
    if part == "train" and not listed:
        yield warning(SPLIT, "No episode is held out, so nothing can be evaluated open loop.", PREPARE_AGAIN)
    entries = listed_objects(subject, "episodes")
    if entries and len(entries) != (count := len(subject.layout.listed)):
        found = f"Names the source of {len(entries)} episodes; there are {count}."
        yield warning(SPLIT, found, PREPARE_AGAIN)
    first: dict[tuple[str, str], int] = {}
    for entry in entries:
        index, source = entry.get("episode_index", -1), (str(entry.get("file")), str(entry.get("trajectory")))
        twin = index if index in subject.layout.excluded else first.setdefault(source, index)
        if twin != index:
            found = f"Episodes {twin} and {index} come from the same recording ({', '.join(source)})."
            yield error(SPLIT, found, MEND_TWIN, episodes=(index,))


def check_rate(subject: Subject) -> Iterator[Finding]:
    """Is fps plausible?"""
    fps = subject.layout.fps
    if not PLAUSIBLE_FPS[0] <= fps <= PLAUSIBLE_FPS[1]:
        yield error("meta/info.json", f"fps is {fps:g}, which no camera of a robot has.", MEND_RATE)
    elif subject.is_maniskill_panda and fps != CONTROL_FREQ:
        found = f"fps is {fps:g}, but ManiSkill's Panda is controlled at {CONTROL_FREQ} Hz."
        yield error("meta/info.json", found, MEND_RATE)


def check_timestamps(subject: Subject) -> Iterator[Finding]:
    """Do they grow evenly, at fps?"""
    fps = subject.layout.fps
    times = {i: v.reshape(-1).astype(np.float64) for i, v in subject.column("timestamp").items() if len(v)}
    broken = {
        i: "Timestamps do not grow from frame to frame."
        for i, t in times.items()
        if not np.isfinite(t).all() or (np.diff(t) <= 0).any()
    }
    yield from subject.about(error, "data/", broken)
    if not PLAUSIBLE_FPS[0] <= fps <= PLAUSIBLE_FPS[1]:
        return
    other, jumps, late = {}, {}, {}
    for i, t in times.items():
        if i in broken:
            continue
        if abs(t[0]) * fps > 0.5:
            late[i] = f"Timestamps do not begin at 0 (episode {i}: {t[0]:.4g} s)."
        steps = np.diff(t) * fps
        rate = fps / float(np.median(steps)) if len(steps) else fps
        gaps = np.flatnonzero(np.abs(steps - 1) > 0.5)
        if abs(fps / rate - 1) > RATE_TOLERANCE:
            said = f"fps of meta/info.json is {fps:g}"
            other[i] = f"Timestamps are those of {rate:.4g} frames a second, {said}."
        elif len(gaps):
            where = f"episode {i} after frame {gaps[0]}"
            jumps[i] = f"Timestamps jump: {where}. Frames were lost or are unevenly spaced."
    yield from subject.about(error, "data/", other, MEND_RATE)
    yield from subject.about(error, "data/", jumps, f"Cut the episode there, or record it again. {PREPARE_AGAIN}")
    yield from subject.about(warning, "data/", late, "Subtract the first from each episode's timestamps.")


def check_video_rate(subject: Subject) -> Iterator[Finding]:
    """Do the videos run at fps?"""
    fps = subject.layout.fps
    text = f"The videos run at {{:.4g}} frames a second, fps of meta/info.json is {fps:g}."
    remedy = f"Frames are read by number here, by time in LeRobot. {MEND_RATE} Then write the videos at that rate."
    stamps = subject.column("timestamp")
    for _, where, footage in subject.filmed():
        rates = {i: f.fps for i, f in footage.items() if f.fps}
        other = {i: text.format(rate) for i, rate in rates.items() if abs(rate - fps) > 0.02 * fps}
        yield from subject.about(warning, where, other, remedy)
        drifts = {i: _last_apart(f.times, stamps.get(i, np.empty(0)).reshape(-1)) for i, f in footage.items()}
        shown = "Frames are shown {:+.2f} s from their timestamps at the end of episode {}; the distance grows."
        away = {i: shown.format(d, i) for i, d in drifts.items() if abs(d) * fps > 0.5 and i not in other}
        yield from subject.about(warning, where, away, remedy)


def _last_apart(times: np.ndarray, stamps: np.ndarray) -> float:
    """Seconds from the last timestamp to when the last frame is shown, both counted from the first."""
    stamps = stamps.astype(np.float64)
    return float(times[-1] - times[0] - (stamps[-1] - stamps[0])) if len(times) == len(stamps) > 1 else 0.0


def check_same_form(train: Subject, conflict: Subject) -> Iterator[Finding]:
    """Rate, groups, frame sizes?"""
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
    """Have both the same instructions?"""
    words = [part.layout.split.get("instruction") for part in (train, conflict)]
    if None not in words and words[0] != words[1]:
        found = f'The instruction is "{words[0]}" in train, "{words[1]}" in conflict.'
        yield error(SPLIT, found)
    elif "recorded" in train.layout.split:
        texts = (" ".join(part.layout.tasks.values()).lower() for part in (train, conflict))
        heard, said = (set(re.findall(r"\w+", text)) for text in texts)
        if new := sorted(said - heard):
            found = f"Instructions of conflict hold words that none of train does: {', '.join(new)}"
            yield warning("meta/tasks.jsonl", found, "Record more train episodes, or both parts with one strategy.")
    elif None in words and not set(train.layout.tasks.values()) & set(conflict.layout.tasks.values()):
        found = "No instruction of conflict occurs in train: the policy would be tested on words it never heard."
        yield warning("meta/tasks.jsonl", found, "Tell both parts the same: prepare them again with one instruction.")
