"""Do the parts of a split go together, and stay apart where they must?"""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.doctor.episodes import MEND_LEAK, nearly_equal, shared_rows
from data_prep.doctor.findings import PREPARE_AGAIN, Finding, error, warning
from data_prep.doctor.subject import Subject

SHOWN = 5


def check_apart(train: Subject, conflict: Subject) -> Iterator[Finding]:
    """No conflict episode is also a train episode, exactly, in part or nearly."""
    shared = shared_rows(train.motion_tables, conflict.motion_tables)
    for i, j, share in sorted(shared)[:SHOWN]:
        how = "is" if share == 1 else f"shares {share:.0%} of its frames with"
        yield error(f"conflict, episode {j}", f"Conflict episode {j} {how} train episode {i}.", MEND_LEAK)
    if len(shared) > SHOWN:
        yield error("conflict", f"{len(shared)} conflict episodes are in train too.", MEND_LEAK)
    known = {(i, j) for i, j, _ in shared}
    for i, j in sorted(set(nearly_equal(train.motion_tables, conflict.motion_tables)) - known)[:SHOWN]:
        found = f"Conflict episode {j} does nearly the same as train episode {i}: a copy with noise, or a replay?"
        yield warning(f"conflict, episode {j}", found, MEND_LEAK)
    yield from _same_source(train, conflict)


def _same_source(train: Subject, conflict: Subject) -> Iterator[Finding]:
    hashes = [
        {s.get("sha256"): s.get("file") for s in part.layout.split.get("sources", []) if isinstance(s, dict)}
        for part in (train, conflict)
    ]
    recordings = [{h: f for h, f in part.items() if h and str(f).endswith(".h5")} for part in hashes]
    for digest in sorted(set(recordings[0]) & set(recordings[1])):
        found = f"Both parts were made from the same recording ({recordings[0][digest]})."
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
    """Conflict episodes are told what train episodes are told."""
    told = [part.layout.split.get("instruction") for part in (train, conflict)]
    if None not in told and told[0] != told[1]:
        found = f'The instruction is "{told[0]}" in train, "{told[1]}" in conflict.'
        yield error("meta/split.json", found)
    elif None in told and not set(train.layout.tasks.values()) & set(conflict.layout.tasks.values()):
        found = "No instruction of conflict occurs in train: the policy would be tested on words it never heard."
        yield warning("meta/tasks.jsonl", found, "Tell both parts the same: prepare them again with one instruction.")
