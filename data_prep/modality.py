"""A proposal for meta/modality.json of a LeRobot dataset that has none, from the features in its meta/info.json.

modality.json names slices of the state and action columns (groups), cameras and annotations; LeRobot's own datasets
name single dimensions at most. What is guessed is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from data_prep.lerobot import GROUPS
from gr00t.data.schema import ModalityConfigs
from gr00t.data.statistics import COLUMNS
from gr00t.errors import ToolkitError

PANDA_STATES, PANDA_ACTIONS = (8, 9), 8  # values of a Panda in joint positions, with one finger or two
_SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}
_KINDS = (
    ("gripper", re.compile(r"gripper|finger|claw|jaw")),
    ("base", re.compile(r"base|wheel|\.vel$")),
    ("eef", re.compile(r"^(eef|ee|tcp)[^a-z]|^(x|y|z|r[xyz]|q[xyzw]|roll|pitch|yaw)$")),
)
_NUMBERED = re.compile(r"(joint|motor|action|state|dim|axis|)[ _]?\d+")
_ON_THE_HAND = re.compile(r"wrist|hand|gripper")

Groups = dict[str, dict[str, Any]]


@dataclass
class Proposal:
    """What meta/modality.json may hold. `assumed`: what was guessed, to be looked at; `left_out`: columns not used."""

    modality: dict[str, Groups] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def propose(info: dict[str, Any], configs: ModalityConfigs, where: str) -> Proposal:
    """The groups, cameras and annotations of a dataset's features, under the names of `configs` where they fit.

    info: meta/info.json; where: its path, for messages. Raises ToolkitError for a dataset without a state, an action
    or a video.
    """
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise ToolkitError(f"{where}: there is no object of features, from which modality.json is proposed.")
    proposal = Proposal()
    columns = {m: _vectors(features, m) for m in ("state", "action")}
    for modality, found in columns.items():
        if not found:
            raise ToolkitError(
                f"{where}: no feature is a {modality} ({COLUMNS[modality]}, float, one dimension). Features: "
                f"{', '.join(features)}."
            )
    proposal.modality["state"], proposal.modality["action"] = _groups(columns, proposal)
    proposal.modality["video"] = _cameras(features, configs, proposal, where)
    proposal.modality["annotation"] = _annotations(features, configs, proposal)
    used = {entry.get("original_key") for groups in proposal.modality.values() for entry in groups.values()}
    taken = {*used, *columns["state"], *columns["action"]}
    bookkeeping = {"timestamp", "frame_index", "episode_index", "index", "task_index", "task"}
    proposal.left_out += [name for name in features if name not in taken | bookkeeping]
    return proposal


# -- state and action --------------------------------------------------------------------------------------------------


def _vectors(features: dict[str, dict[str, Any]], modality: str) -> dict[str, dict[str, Any]]:
    """The float columns of one dimension: the usual one first, then those whose names begin like it."""
    main, prefix = COLUMNS[modality], {"state": "observation.", "action": "action"}[modality]
    fitting = {
        name: feature
        for name, feature in features.items()
        if name.startswith(prefix) and str(feature.get("dtype")).startswith("float") and len(_shape(feature)) == 1
    }
    return {name: fitting[name] for name in sorted(fitting, key=lambda n: n != main)}


def _groups(columns: dict[str, dict[str, dict[str, Any]]], proposal: Proposal) -> tuple[Groups, Groups]:
    """Groups of state and of action: parts of the usual column, and every other column as one."""
    found: dict[str, Groups] = {"state": {}, "action": {}}
    main = {m: of[COLUMNS[m]] for m, of in columns.items() if COLUMNS[m] in of}
    sizes = {m: _shape(feature)[0] for m, feature in main.items()}
    names = {m: _dim_names(feature) for m, feature in main.items()}
    if None in names.values() and sizes.get("action") == PANDA_ACTIONS and sizes.get("state") in PANDA_STATES:
        found = {m: {name: dict(part) for name, part in GROUPS.items()} for m in columns}
        proposal.assumed.append(_like_a_panda(sizes))
    else:
        found |= {m: _named_groups(names[m], sizes[m], m, proposal) for m in main}
    for modality, of_modality in columns.items():
        for column, feature in of_modality.items():
            if column != COLUMNS[modality]:
                name = column.removeprefix("observation.").removeprefix("action.").replace(".", "_")
                name = column.replace(".", "_") if name in found[modality] else name
                found[modality][name] = {"start": 0, "end": _shape(feature)[0], "original_key": column}
    return found["state"], found["action"]


def _like_a_panda(sizes: dict[str, int]) -> str:
    fingers = " (of the state's two fingers the first, which the second mirrors)" if sizes["state"] == 9 else ""
    return (
        f"dimensions have no telling names; {sizes['state']} state and {sizes['action']} action values are taken for a "
        f"Panda's joint positions: seven of the arm, then the gripper{fingers}"
    )


def _named_groups(names: list[str] | None, size: int, modality: str, proposal: Proposal) -> Groups:
    """Runs of dimensions of one side and kind."""
    if names is None:
        proposal.assumed.append(
            f"the {size} dimensions of {modality} have no telling names: they are one group, arm. Split off a gripper "
            "by hand where there is one"
        )
        return {"arm": {"start": 0, "end": size}}
    groups: Groups = {}
    for label, run in groupby(range(size), key=lambda d: _label(names[d])):
        dims = list(run)
        copies = sum(1 for name in groups if re.fullmatch(rf"{label}(_\d+)?", name))
        groups[f"{label}_{copies + 1}" if copies else label] = {"start": dims[0], "end": dims[-1] + 1}
    spelled = "; ".join(f"{name}: {', '.join(names[g['start'] : g['end']])}" for name, g in groups.items())
    proposal.assumed.append(f"{modality} groups by the names of dimensions - {spelled}")
    return groups


def _label(name: str) -> str:
    lower = name.lower()
    side = next((_SIDES[part] for part in re.split(r"[^a-z]+", lower) if part in _SIDES), None)
    kind = next((kind for kind, pattern in _KINDS if pattern.search(lower)), "arm")
    return f"{side}_{kind}" if side else kind


def _dim_names(feature: dict[str, Any]) -> list[str] | None:
    """One name a dimension; None where there are none, or numbers only."""
    names = feature.get("names")
    if isinstance(names, dict):
        lists = list(names.values())
        names = [n for part in lists for n in part] if all(isinstance(part, list) for part in lists) else list(names)
    if not isinstance(names, list) or len(names) != _shape(feature)[0]:
        return None
    texts = [str(name) for name in names]
    return None if all(_NUMBERED.fullmatch(text.lower()) for text in texts) else texts


def _shape(feature: dict[str, Any]) -> list[int]:
    shape = feature.get("shape")
    return [int(side) for side in shape] if isinstance(shape, list | tuple) else []


# -- cameras and language ----------------------------------------------------------------------------------------------


def _cameras(features: dict[str, Any], configs: ModalityConfigs, proposal: Proposal, where: str) -> Groups:
    videos = {n: f for n, f in features.items() if f.get("dtype") == "video" and not _is_depth(f)}
    images = [name for name, feature in features.items() if feature.get("dtype") == "image"]
    if not videos:
        stored = f"{', '.join(images)} are images inside the frame tables; encode them as videos" if images else "none"
        raise ToolkitError(f"{where}: no feature is a video, which the policy sees with ({stored}).")
    own = {name.removeprefix("observation.images.").replace(".", "_"): name for name in videos}
    wanted = configs["video"].modality_keys
    matched = dict(_matched(list(own), wanted)) if not set(wanted) <= set(own) else {}
    if matched:
        taken = ", ".join(f"{camera} for {name}" for name, camera in matched.items())
        proposal.assumed.append(f"cameras by their names: {taken}")
        return {name: {"original_key": own[camera]} for name, camera in matched.items()}
    return {name: {"original_key": column} for name, column in own.items()}


def _matched(own: list[str], wanted: list[str]) -> Iterator[tuple[str, str]]:
    """(wanted name, own name) where each has one camera on the hand and one that is not; else nothing."""
    for on_hand in (False, True):
        names, cameras = ([n for n in part if bool(_ON_THE_HAND.search(n)) is on_hand] for part in (wanted, own))
        if len(names) != 1 or len(cameras) != 1 or len(own) != 2:
            return
    for name in wanted:
        yield name, next(c for c in own if bool(_ON_THE_HAND.search(c)) is bool(_ON_THE_HAND.search(name)))


def _is_depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(info.get("video.is_depth_map") or info.get("is_depth_map"))


def _annotations(features: dict[str, Any], configs: ModalityConfigs, proposal: Proposal) -> Groups:
    found = {n.removeprefix("annotation."): {"original_key": n} for n in features if n.startswith("annotation.")}
    for key in configs["language"].modality_keys:
        name = key.removeprefix("annotation.")
        if name not in found:
            found[name] = {"original_key": "task_index"}
            proposal.assumed.append(f"{name} is LeRobot's task of each frame (task_index)")
    return found
