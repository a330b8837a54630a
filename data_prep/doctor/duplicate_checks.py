"""Is every episode there once, and apart from what the policy is tested on?

Episodes are matched by rows of states and actions, by actions alone, by courses that nearly coincide and, in the full
examination, by what their videos show. A robot may repeat one motion in many scenes: where images can be compared they
decide, in any codec and light."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_prep.doctor import Finding, Level, episodes, error, remark, warning
from data_prep.doctor.decoded_video import SIDE
from data_prep.doctor.examined_dataset import Series, Subject, evenly, listed_objects
from gr00t.errors import ToolkitError

SPLIT = "meta/split.json"
SHARED = 0.5  # part of an episode's rows that two recordings of one task do not share
MANY = 20  # episodes that hold a row of actions, beyond which it is a habit
FEWEST = 8  # different rows of actions, below which equal ones are chance
RESAMPLED = 24  # steps at which episodes of any length are compared
AT_ONCE = 256  # episodes compared with all others in one product
NEARLY = 0.03  # of the usual distance between two episodes
SHOWN = 5  # pairs of equal episodes that are named
LOOKED_AT = 64  # pairs whose images are decoded

# Of images, in shades of 255. Copies in other codecs and light stay below (measured: 3.8, 0.34, 21), others
# above (9, 0.49, 62), also the same motion in other scenes (6.2, 0.29, 75).
NEAR = 5.0  # root mean square between sketches of one frame
REST = 0.45  # of the sketches' motion, what differs from moment to moment
STIRRED = 0.5  # motion below which a sketch says nothing
MOMENTS = 6  # at which thumbnails are compared
ALIKE = 25.0  # of any field of a thumbnail, most of the time
LIGHT = 25.0  # of a channel's mean; what differs in more is another scene, where only images are alike

MEND_TWIN = "Remove one of the two recordings and prepare the dataset again: what is there twice counts twice."
MEND_LEAK = (
    "Remove it from one of the two, then write the statistics again: a policy that is tested on what it was trained on "
    "looks better than it is."
)

Pair = tuple[int, int]  # (episode of the first dataset, of the second)


@dataclass(frozen=True)
class Match:
    """Two episodes that have "rows", "actions", a "course" (nearly the same rows) or "frames" in common.

    share: of the shorter one's rows. lag: frame t of the second is frame t + lag of the first. seen: whether they show
    the same, None where that is not known.
    """

    pair: Pair
    kind: str
    share: float = 1.0
    lag: int = 0
    seen: bool | None = None

    def level(self, leaks: bool) -> Level | None:
        """How serious it is; None for the same motion in another scene."""
        if self.seen is False or (self.kind == "actions" and not self.seen):
            return None
        return warning if self.kind == "course" and not (self.seen and leaks) else error

    def said(self, one: str, other: str) -> str:
        """What the second episode, called `one`, is to the first, called `other`."""
        how = {
            "rows": "is the same as" if self.share == 1 else f"shares {self.share:.0%} of its frames with",
            "actions": "has the actions and images of",
            "course": "has the images, and nearly the states and actions, of",
            "frames": "has the images of",
        }
        if self.kind == "course" and not self.seen:
            return f"{one} does nearly the same as {other}: a copy with noise, or a replay?"
        return f"{one} {how[self.kind]} {other}."


def check_duplicates(subject: Subject) -> Iterator[Finding]:
    """Is every episode there once?"""
    matches, held_out = _matches(subject, subject), subject.held_out
    for m, level, leaks in _named(matches, {m.pair for m in matches if len(held_out.intersection(m.pair)) == 1}):
        i, j = m.pair
        ending = " One is trained on, the other held out." if leaks else ""
        said = m.said(f"Episode {j}", f"episode {i}") + ending
        yield level(episodes([i, j]), said, MEND_LEAK if leaks else MEND_TWIN, episodes=(j,))
    later = _copied(matches, 1)
    if len(later) > SHOWN:
        yield error("episodes", f"{len(later)} episodes are copies of others.", MEND_TWIN, episodes=later)
    yield from _repeated(matches)


def check_apart(train: Subject, tested: Subject) -> Iterator[Finding]:
    """Is no episode in both?"""
    matches, name = _matches(train, tested), tested.name
    for m, level, _ in _named(matches, {m.pair for m in matches}):
        i, j = m.pair
        said = m.said(f"{name.capitalize()} episode {j}", f"{train.name} episode {i}")
        yield level(f"{name}, episode {j}", said, MEND_LEAK, episodes=(i,))
    first = _copied(matches, 0)
    if len(first) > SHOWN:
        found = f"{len(first)} {train.name} episodes are in {name} too."
        yield error(name, found, MEND_LEAK, episodes=first)
    yield from _repeated(matches)
    ours, theirs = (
        {s.get("sha256"): s["file"] for s in listed_objects(part, "sources") if str(s.get("file")).endswith(".h5")}
        for part in (train, tested)
    )
    for digest in sorted(filter(None, set(ours) & set(theirs))):
        yield error(SPLIT, f"Both parts were made from the same recording ({ours[digest]}).", MEND_LEAK)


def _named(matches: list[Match], leaks: set[Pair]) -> Iterator[tuple[Match, Level, bool]]:
    """The first matches of each level, leaks before others."""
    ordered = sorted(matches, key=lambda m: (m.pair not in leaks, m.pair))
    for level in (error, warning):
        of_level = [m for m in ordered if m.level(m.pair in leaks) is level]
        yield from ((m, level, m.pair in leaks) for m in of_level[:SHOWN])


def _copied(matches: list[Match], side: int) -> tuple[int, ...]:
    return tuple(sorted({m.pair[side] for m in matches if m.level(False) is error}))


def _repeated(matches: list[Match]) -> Iterator[Finding]:
    """A remark where scripted motions are repeated (or, in few episodes, a table lies beside another's videos)."""
    if other := [m.pair for m in matches if m.seen is False]:
        found = f"{len(other)} pairs do the same and show different scenes, the first are episodes"
        yield remark("episodes", f"{found} {' and '.join(map(str, other[0]))}: no copies")


def _matches(first: Subject, second: Subject) -> list[Match]:
    """What episodes of two datasets, or of one, have in common."""
    tables, actions = (first.motion_tables, second.motion_tables), (first.action_tables, second.action_tables)
    found: dict[Pair, Match] = {}
    for kind, (one, two), pairs in (
        ("rows", tables, _shared_rows(*tables)),
        ("actions", actions, _shared_rows(*actions, MANY)),
        ("course", tables, ((i, j, 1.0) for i, j in _nearly_equal(*tables))),
    ):
        for i, j, share in pairs:
            if (first is not second or i < j) and (i, j) not in found:
                found[i, j] = Match((i, j), kind, share, 0 if kind == "course" else _lag(one[i], two[j]))
    seen = {n: _show_the_same(first, second, match) for n, match in evenly(list(enumerate(found.values())), LOOKED_AT)}
    others = False if set(seen.values()) == {False} else None  # what all of these say goes for further ones
    matches = [replace(match, seen=seen.get(n, others)) for n, match in enumerate(found.values())]
    return matches if first.fast else matches + [m for m in _same_footage(first, second) if m.pair not in found]


# -- rows --------------------------------------------------------------------------------------------------------------


def _shared_rows(first: Series, second: Series, most: int | None = None) -> Iterator[tuple[int, int, float]]:
    """(episode of first, episode of second, share of the shorter one's rows found in the other), where it is large.

    most: episodes beyond which a row that they hold is no sign; few different rows are none either.
    """
    rows = {i: _places(table).keys() for i, table in first.items()}
    others = rows if first is second else {j: _places(table).keys() for j, table in second.items()}
    holders: dict[bytes, list[int]] = defaultdict(list)
    for i, of_episode in rows.items():
        for row in of_episode:
            holders[row].append(i)
    signs = {row: held for row, held in holders.items() if most is None or len(held) <= most}
    for j, of_episode in others.items():
        common = Counter(i for row in of_episode for i in signs.get(row, ()))
        for i, count in common.items():
            fewer = min(len(of_episode), len(rows[i]))
            if count >= SHARED * fewer and (most is None or fewer >= FEWEST):
                yield i, j, count / fewer


def _places(table: np.ndarray) -> dict[bytes, int]:
    """{row: where it is}."""
    return {row.tobytes(): t for t, row in enumerate(table.astype(np.float32))}


def _lag(one: np.ndarray, other: np.ndarray) -> int:
    """Rows by which what both have in common comes later in `one`."""
    places, others = _places(one), _places(other)
    return int(np.median([t - others[row] for row, t in places.items() if row in others]))


def _nearly_equal(first: Series, second: Series) -> Iterator[Pair]:
    """Pairs whose courses lie much closer than any two episodes usually do."""
    courses = {i: course(t) for i, t in first.items() if len(t) > 2}
    others = courses if second is first else {i: course(t) for i, t in second.items() if len(t) > 2}
    # Where the parts have different groups, other checks say so.
    if len(first) < 3 or not second or len({course.shape for course in [*courses.values(), *others.values()]}) != 1:
        return
    one, two = np.stack(list(courses.values())), np.stack(list(others.values()))
    # (D,): how far a dimension usually is off the middle course, blind to single strange episodes
    spread = np.median(np.abs(one - np.median(one, axis=0)).mean(axis=1), axis=0)
    low, high = np.percentile(one, [10, 90], axis=(0, 1))
    spread = np.maximum(spread, 0.1 * (high - low) + 1e-6)  # where all do the same, as grippers do
    middle = one.mean(axis=0)  # near it, what cancels in the product below is small
    one, two = (((part - middle) / spread).reshape(len(part), -1) for part in (one, two))
    rows, columns = list(courses), list(others)
    usual = float(np.median(apart(one[evenly(range(len(one)), 100)], two)))
    for start in range(0, len(one), AT_ONCE):
        near = apart(one[start : start + AT_ONCE], two) < NEARLY * usual
        yield from ((rows[start + r], columns[c]) for r, c in np.argwhere(near))


def apart(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M): root mean square distance of each of (N, D) from each of (M, D)."""
    some, others = some.astype(np.float32), others.astype(np.float32)
    squares = np.square(some).sum(axis=1)[:, None] + np.square(others).sum(axis=1) - 2 * some @ others.T
    return np.sqrt(np.maximum(squares, 0) / some.shape[1])


def course(table: np.ndarray) -> np.ndarray:
    """(T, D) at RESAMPLED even moments."""
    at = np.linspace(0, len(table) - 1, RESAMPLED)
    before = np.minimum(at.astype(int), len(table) - 2)
    return table[before] + (at - before)[:, None] * (table[before + 1] - table[before])


# -- images ------------------------------------------------------------------------------------------------------------


def _show_the_same(first: Subject, second: Subject, match: Match) -> bool | None:
    """Whether every camera of both shows the same at the same moments; None where they cannot be compared."""
    (i, j), lag = match.pair, match.lag
    moments = evenly(range(max(0, -lag), min(second.lengths[j], first.lengths[i] - lag)), MOMENTS)
    cameras = [camera for camera in first.cameras if camera in second.cameras]
    try:
        for camera in cameras if moments else ():
            ours = first.thumbnails(i, camera, [t + lag for t in moments], SIDE)
            theirs = second.thumbnails(j, camera, moments, SIDE)
            off = np.median(np.abs(ours - _in_light_of(ours, theirs)), axis=0)  # codecs blur what moves, never for long
            is_lit_alike = np.abs((ours - theirs).mean(axis=(0, 1, 2))).max() <= LIGHT
            if off.max() > ALIKE or (match.kind == "frames" and not is_lit_alike):
                return False
    except (ToolkitError, IndexError):
        return None  # check_decoding says why
    return True if cameras and moments else None


def _in_light_of(wanted: np.ndarray, images: np.ndarray) -> np.ndarray:
    """`images` (N, H, W, 3) in the brightness and contrast, channel by channel, that come nearest to `wanted`."""
    mean, other = images.mean(axis=(0, 1, 2)), wanted.mean(axis=(0, 1, 2))
    varied = np.square(images - mean).mean(axis=(0, 1, 2))
    gain = ((images - mean) * (wanted - other)).mean(axis=(0, 1, 2)) / np.maximum(varied, 1e-6)
    return other + gain * (images - mean)


def _same_footage(first: Subject, second: Subject) -> Iterator[Match]:
    """Episodes of both, or trained on and held out of one, that show the same; found by sketches of all frames."""
    cameras = [camera for camera in first.cameras if camera in second.cameras]
    films, others = _films(first, cameras), _films(second, cameras)
    if first is second:
        films, others = ({i: f for i, f in films.items() if (i in first.held_out) is part} for part in (False, True))
    for i, j, lag in dict.fromkeys(_alike(films, others)):
        turned = first is second and i > j
        match = Match((j, i) if turned else (i, j), "frames", lag=-lag if turned else lag, seen=True)
        if _is_copy(films[i], others[j], lag) and _show_the_same(first, second, match):
            yield match


def _films(subject: Subject, cameras: list[str]) -> Series:
    """{episode: sketches of all cameras over its frames (T, D)}; each channel as it differs from its mean."""
    found = {}
    for i in subject.lengths:
        parts = [subject.footage[i, camera].sketches.astype(np.float32) for camera in cameras]
        if parts and len(parts[0]) > 1 and len({len(part) for part in parts}) == 1:
            changes = [part - part.mean(axis=(1, 2), keepdims=True) for part in parts]
            found[i] = np.concatenate([change.reshape(len(change), -1) for change in changes], axis=1)
    return found


def _alike(first: Series, second: Series) -> Iterator[tuple[int, int, int]]:
    """(episode of first, episode of second, lag) where one of three frames of the second is much like one there."""
    probes = [(j, t) for j, film in second.items() for t in sorted({len(film) * part // 4 for part in (1, 2, 3)})]
    for some in (list(first)[n : n + AT_ONCE] for n in range(0, len(first), AT_ONCE)):
        starts = np.cumsum([0, *(len(first[i]) for i in some)])
        rows = np.concatenate([first[i] for i in some])
        for asked in (probes[n : n + AT_ONCE] for n in range(0, len(probes), AT_ONCE)):
            off = apart(np.stack([second[j][t] for j, t in asked]), rows)
            for p, e in np.argwhere(np.minimum.reduceat(off, starts[:-1], axis=1) < NEAR):
                j, t = asked[p]
                yield some[e], j, int(off[p, starts[e] : starts[e + 1]].argmin()) - t


def _is_copy(one: np.ndarray, other: np.ndarray, lag: int) -> bool:
    """Whether two films move alike at this lag, over half of the shorter one."""
    ours, theirs = one[max(0, lag) :], other[max(0, -lag) :]
    length = min(len(ours), len(theirs))
    if length < SHARED * min(len(one), len(other)):
        return False
    off, seen = ours[:length] - theirs[:length], theirs[:length]
    motion = np.abs(seen - seen.mean(axis=0)).mean()
    return bool(motion > STIRRED and np.abs(off - off.mean(axis=0)).mean() <= REST * motion)
