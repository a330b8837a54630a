"""What the dataset of another robot holds, in GR00T's terms: its modality.json and its modality configuration.

Both are proposed from the features in meta/info.json: names of columns, of their dimensions and of cameras. What is
guessed is said, with the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from gr00t.data.schema import (
    ActionConfig,
    ActionFormat,
    ActionRepresentation,
    ActionType,
    ModalityConfig,
    ModalityConfigs,
)
from gr00t.data.state_action import POSE_DIMS
from gr00t.data.statistics import COLUMNS
from gr00t.errors import ToolkitError

PANDA_STATES, PANDA_ACTIONS = (8, 9), 8  # values of a Panda in joint positions, with one finger or two
OPENPI = {"state": "state", "action": "actions"}  # what its scripts call the columns
BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index", "task"}

# What names of groups, dimensions and cameras say.
_SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}
_KINDS = (
    ("gripper", re.compile(r"gripper|finger|claw|jaw")),
    ("base", re.compile(r"base|wheel|\.vel$")),
    ("eef", re.compile(r"^(eef|ee|tcp|pose)([^a-z]|$)|cartesian|^(x|y|z|[rw][xyz]|q[xyzw]|roll|pitch|yaw|rot6d\S*)$")),
)
_NUMBERED = re.compile(r"(joint|motor|action|state|dim|axis|)[ _]?\d+")
_ON_THE_HAND = re.compile(r"wrist|hand|gripper")
_NO_TARGET = re.compile(r"veloc|effort|torque|force|current")
_OF_ANY_CAMERA = {"image", "images", "camera", "cam", "rgb", "view", "color", ""}
_ROTATION_VECTOR = re.compile(r"[rw][xyz]$|rot_?vec|axis_?angle")

Features = dict[str, dict[str, Any]]  # {column: its entry in meta/info.json}
Groups = dict[str, dict[str, Any]]  # {group, camera or annotation: its entry in modality.json}
Values = Callable[[str], np.ndarray]  # the values (frames, D) of a column

_ABSOLUTE = ActionConfig(ActionRepresentation.ABSOLUTE)


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
    groups = _groups(columns, proposal.assumed)
    proposal.modality |= _under_names_of(configs, groups, proposal.assumed)
    proposal.modality["video"] = _cameras(features, configs, proposal.assumed, where)
    annotations = {n.removeprefix("annotation."): {"original_key": n} for n in features if n.startswith("annotation.")}
    for key in configs["language"].modality_keys:
        name = key.removeprefix("annotation.")
        if name not in annotations:
            annotations[name] = {"original_key": "task_index"}
            proposal.assumed.append(f"{name} is LeRobot's task of each frame (task_index)")
    proposal.modality["annotation"] = annotations
    used = {entry.get("original_key") for groups in proposal.modality.values() for entry in groups.values()}
    taken = {*used, *columns["state"], *columns["action"], *BOOKKEEPING}
    proposal.left_out += [name for name in features if name not in taken]
    return proposal


def _vectors(features: Features, modality: str) -> Features:
    """The float columns of one dimension: the usual one first, then those whose names begin like it."""
    usual = COLUMNS[modality]
    names = [n for n in features if n.startswith(usual.removesuffix("state")) or n == OPENPI[modality]]
    floats = [n for n in names if str(features[n].get("dtype")).startswith("float") and len(_shape(features[n])) == 1]
    order = [usual, OPENPI[modality]]
    return {n: features[n] for n in sorted(floats, key=lambda n: order.index(n) if n in order else len(order))}


def _groups(columns: dict[str, Features], assumed: list[str]) -> dict[str, Groups]:
    """Groups of state and of action: parts of the usual column, and every other column as one."""
    from data_prep.lerobot import GROUPS

    found: dict[str, Groups] = {"state": {}, "action": {}}
    firsts = {m: next(iter(of)) for m, of in columns.items() if next(iter(of)) in (COLUMNS[m], OPENPI[m])}
    main = {m: columns[m][first] for m, first in firsts.items()}
    sizes = {m: _shape(feature)[0] for m, feature in main.items()}
    names = {m: _dim_names(feature) for m, feature in main.items()}
    named = [m for m in main if names[m] is not None]
    if not named and sizes.get("action") == PANDA_ACTIONS and sizes.get("state") in PANDA_STATES:
        found = {m: {name: dict(part) for name, part in GROUPS.items()} for m in columns}
        fingers = " (of the state's two fingers the first, which the second mirrors)" if sizes["state"] == 9 else ""
        assumed.append(
            f"dimensions have no telling names; {sizes['state']} state and {sizes['action']} action values are taken "
            f"for a Panda's joint positions: seven of the arm, then the gripper{fingers}"
        )
    else:
        if len(named) == 1 and len(set(sizes.values())) == 1 < len(main):
            (other,) = set(main) - set(named)
            assumed.append(f"{other} has no telling names of dimensions, and as many as {named[0]}: it has its names")
            names[other] = names[named[0]]
        found |= {m: _named_groups(names[m], sizes[m], m, assumed) for m in main}
    for modality, first in firsts.items():
        if first != COLUMNS[modality]:
            for group in found[modality].values():
                group["original_key"] = first
    for modality, column in [(m, c) for m, of_modality in columns.items() for c in of_modality if c != firsts.get(m)]:
        name = re.sub(r"^(observation\.(state\.)?|action\.)", "", column).replace(".", "_")
        name = column.replace(".", "_") if name in found[modality] else name
        size = _shape(columns[modality][column])[0]
        found[modality][name] = {"start": 0, "end": size, "original_key": column}
    return found


def _named_groups(names: list[str] | None, size: int, modality: str, assumed: list[str]) -> Groups:
    """Runs of dimensions of one side and kind."""
    if names is None:
        assumed.append(
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
    assumed.append(f"{modality} groups by the names of dimensions - {spelled}")
    return groups


def _label(name: str) -> str:
    """Side and kind, as in left_gripper, of a dimension or a group."""
    lower = name.lower()
    side = next((_SIDES[part] for part in re.split(r"[^a-z]+", lower) if part in _SIDES), None)
    rest = re.sub(r"^(left|right|l|r)[^a-z]+", "", lower)
    kind = next((kind for kind, pattern in _KINDS if pattern.search(rest)), "arm")
    return f"{side}_{kind}" if side else kind


def _dim_names(feature: dict[str, Any]) -> list[str] | None:
    """One name a dimension; None where there are none, or numbers only."""
    names = feature.get("names")
    if isinstance(names, dict):
        lists = list(names.values())
        names = lists if all(isinstance(part, list) for part in lists) else list(names)
    if isinstance(names, list) and all(isinstance(part, list) for part in names):
        names = [name for part in names for name in part]
    if not isinstance(names, list) or len(names) != _shape(feature)[0]:
        return None
    texts = [str(name) for name in names]
    return None if all(_NUMBERED.fullmatch(text.lower()) for text in texts) else texts


def _shape(feature: dict[str, Any]) -> list[int]:
    shape = feature.get("shape")
    return [int(side) for side in shape] if isinstance(shape, list | tuple) else []


def _cameras(features: Features, configs: ModalityConfigs, assumed: list[str], where: str) -> Groups:
    """Every video or column of images that holds no depth; under the configuration's names where these say which."""
    own = {}
    for column, feature in features.items():
        info = feature.get("info") or feature.get("video_info") or {}
        is_image = feature.get("dtype") == "image"
        depth = (is_image and "depth" in column.lower()) or info.get("video.is_depth_map") or info.get("is_depth_map")
        if (is_image or feature.get("dtype") == "video") and not depth:
            own[column.removeprefix("observation.images.").replace(".", "_")] = column
    if not own:
        raise ToolkitError(f"{where}: no feature is a video or an image, which the policy sees with.")
    wanted = configs["video"].modality_keys
    if not set(wanted) <= set(own) and (same := _same_cameras(wanted, list(own))):
        assumed.append(f"cameras by their names: {', '.join(f'{c} for {name}' for c, name in same.items())}")
        return {same.get(name, name): {"original_key": column} for name, column in own.items()}
    if not set(wanted) <= set(own) and len(own) == 2:
        # One of either kind, on the hand and not on it: no doubt which is which.
        ours, theirs = ({bool(_ON_THE_HAND.search(name)): name for name in names} for names in (wanted, own))
        if len(wanted) == len(ours) == len(theirs) == 2:
            matched = {name: theirs[on_hand] for on_hand, name in ours.items()}
            assumed.append(f"cameras by their names: {', '.join(f'{c} for {name}' for name, c in matched.items())}")
            return {name: {"original_key": own[camera]} for name, camera in matched.items()}
    return {name: {"original_key": column} for name, column in own.items()}


def _same_cameras(wanted: list[str], own: list[str]) -> dict[str, str]:
    """{own camera: the configuration's name for it} where each of these is said by one camera's name; else nothing."""
    words = {name: set(re.split(r"[^a-z0-9]+", name.lower())) - _OF_ANY_CAMERA for name in [*wanted, *own]}
    found: dict[str, str] = {}
    for name in wanted:
        same = [camera for camera in own if words[camera] == words[name]]
        alike = same or [camera for camera in own if words[name] and words[name] < words[camera]]
        if len(alike) != 1 or alike[0] in found:
            return {}
        found[alike[0]] = name
    return found


def _under_names_of(configs: ModalityConfigs, found: dict[str, Groups], assumed: list[str]) -> dict[str, Groups]:
    """The groups under the configuration's names, where every one of these is one group's by side and kind."""
    names: dict[str, dict[str, str]] = {}
    for modality, groups in found.items():
        wanted, names[modality] = configs[modality].modality_keys, {}
        for name in wanted:
            alike = [name] if name in groups else [own for own in groups if _label(own) == _label(name)]
            if len(alike) != 1 or alike[0] in names[modality]:
                return found
            names[modality][alike[0]] = name
    changed = {own: name for pairs in names.values() for own, name in pairs.items() if own != name}
    if changed:
        assumed.append(f"groups by their kinds: {', '.join(f'{own} for {name}' for own, name in changed.items())}")
    return {m: {names[m].get(own, own): entry for own, entry in groups.items()} for m, groups in found.items()}


# -- the modality configuration ----------------------------------------------------------------------------------------


def read_groups(modality: dict[str, Any], where: str) -> dict[str, Groups]:
    """An existing modality.json as far as a configuration is proposed from it, else ToolkitError."""
    for section in ("state", "action", "video", "annotation"):
        entries = modality.get(section)
        if not isinstance(entries, dict) or not entries or not all(isinstance(e, dict) for e in entries.values()):
            raise ToolkitError(f'{where}: "{section}" is no object of groups. Correct it, or move that file away.')
        for name, entry in entries.items() if section in ("state", "action") else ():
            if not all(isinstance(entry.get(end), int) for end in ("start", "end")):
                raise ToolkitError(f'{where}: {section} "{name}" has no whole numbers "start" and "end". Correct it.')
    return modality


def proposed_configs(
    modality: dict[str, Groups], info: dict[str, Any], like: ModalityConfigs, values: Values | None = None
) -> tuple[ModalityConfigs, list[str]]:
    """The modality configuration of a modality.json, and in words what each part of it rests on.

    An action group that has a state group of its name and size is relative to it, as joint or as pose; commands are
    absolute. Cameras, states and actions are all that modality.json names; the horizon is that of `like`. `values`
    gives the values of a column, with which the form of a rotation is verified.
    """
    features = info.get("features", {})
    found = {name: _representation(name, modality, features, values) for name in modality["action"]}
    deltas = like["action"].delta_indices
    languages = [f"annotation.{name}" for name in modality["annotation"]]
    language = next((key for key in like["language"].modality_keys if key in languages), languages[0])
    configs = {
        "video": ModalityConfig([0], list(modality["video"])),
        "state": ModalityConfig([0], list(modality["state"])),
        "action": ModalityConfig(deltas, list(found), action_configs=[config for config, _ in found.values()]),
        "language": ModalityConfig([0], [language]),
    }
    reasons = [f"action {name} is {config.rep.name}: {why}" for name, (config, why) in found.items()]
    steps, fps = len(deltas), info.get("fps")
    seconds = f", {(deltas[-1] + 1) / fps:.2g} s at {fps:g} Hz" if isinstance(fps, int | float) else ""
    reasons += [
        f"a chunk has {steps} steps{seconds}: the horizon of the given modality configuration",
        f"the policy sees {', '.join(modality['video'])}: every camera without depth; one image of each",
        f"the instruction is {language}",
    ]
    return configs, reasons


def _representation(
    name: str, modality: dict[str, Groups], features: Features, values: Values | None
) -> tuple[ActionConfig, str]:
    """How an action group is stored for the model, and why so."""
    group, state = modality["action"][name], modality["state"].get(name)
    size, kind = group["end"] - group["start"], _label(name)
    if "gripper" in kind or "base" in kind or _NO_TARGET.search(name.lower()):
        return _ABSOLUTE, "commands of grippers and bases, speeds and forces are no offsets from a state"
    if state is None:
        return _ABSOLUTE, "there is no state group of that name"
    if state["end"] - state["start"] != size:
        return _ABSOLUTE, "the state group of that name has another size"
    column = group.get("original_key") or COLUMNS["action"]
    names = (_dim_names(features.get(column, {})) or [])[group["start"] : group["end"]]
    if "eef" not in kind and [re.split(r"[^a-z0-9]+", n.lower())[-1] for n in names[:3]] != ["x", "y", "z"]:
        return ActionConfig(ActionRepresentation.RELATIVE), "targets of the joints whose state it starts from"
    if size == 3:
        return ActionConfig(ActionRepresentation.RELATIVE), "a position without rotation, from the state's"
    pose, why = _pose(names, size)
    if pose is None:
        return _ABSOLUTE, why
    for source, of in ((group, "action"), (state, "state")):
        wrong = values and _not_a_rotation(values(source.get("original_key") or COLUMNS[of]), source, pose)
        if wrong:
            return _ABSOLUTE, f"it reads like a pose ({why}), but {wrong} in the first file's {of}"
    return ActionConfig(ActionRepresentation.RELATIVE, ActionType.EEF, pose), f"an end-effector pose; {why}"


def _pose(names: list[str], size: int) -> tuple[ActionFormat | None, str]:
    """The form of a pose of position and rotation, from its dimensions' names and number."""
    rotation = [name.lower() for name in names[3:]]
    if size == POSE_DIMS[ActionFormat.XYZ_ROT6D]:
        return ActionFormat.XYZ_ROT6D, "nine values are taken for xyz and two rows of the rotation matrix"
    if size == POSE_DIMS[ActionFormat.XYZ_ROTVEC] and rotation and all(map(_ROTATION_VECTOR.search, rotation)):
        return ActionFormat.XYZ_ROTVEC, f"{', '.join(names[3:])} are taken for axis times angle, in radians"
    if size == 7:
        return None, "a quaternion is no form of a relative pose: store xyz and a rotation vector (6) or two rows (9)"
    return None, (
        f"{', '.join(names[3:]) or f'{size} values without telling names'} may be Euler angles, and those are no form "
        "of a relative pose: store xyz and a rotation vector (6) or two rows (9), or say XYZ_ROTVEC if that is one"
    )


def _not_a_rotation(column: np.ndarray, group: dict[str, Any], pose: ActionFormat) -> str:
    """Why the values of a group are no pose of that form; empty where they may be."""
    rotation = column[:, group["start"] + 3 : group["end"]].astype(np.float64)
    if pose is ActionFormat.XYZ_ROTVEC:
        longest = np.linalg.norm(rotation, axis=1).max(initial=0.0)
        return f"a rotation vector of {longest:.3g} radians is longer than half a turn" * bool(longest > math.pi + 1e-3)
    rows = rotation.reshape(-1, 2, 3)
    off = np.abs(rows @ rows.swapaxes(1, 2) - np.eye(2)).max(initial=0.0)
    return f"rows are not orthonormal (off by {off:.2g})" * bool(off > 0.02)
