"""Make a LeRobot dataset (v2.1 or v3.0) of another source trainable, without touching what is there.

python -m data_prep.adopt dataset=FOLDER
python -m data_prep.adopt dataset=FOLDER write=true
python -m data_prep.adopt --help

GR00T needs meta/modality.json, which names slices of the state and action columns (groups), cameras and annotations;
LeRobot's own datasets name single dimensions at most. It is proposed from the features in meta/info.json, and what is
guessed is said."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr00t.data.schema import ActionConfig, ActionRepresentation, ModalityConfig, ModalityConfigs, python_source
from gr00t.data.statistics import COLUMNS
from gr00t.errors import ToolkitError, did_you_mean, disk_errors, near_folder
from gr00t.file_replacement import write_json
from toolkit.command_line import run_main
from toolkit.shared_keys import modality_configs

if TYPE_CHECKING:
    from data_prep import AdoptConfig

MODALITY, SPLIT = "modality.json", "split.json"
PANDA_STATES, PANDA_ACTIONS = (8, 9), 8  # values of a Panda in joint positions, with one finger or two
OPENPI = {"state": "state", "action": "actions"}  # what its scripts call the columns
BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index", "task"}

# What names of dimensions and cameras say.
_SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}
_KINDS = (
    ("gripper", re.compile(r"gripper|finger|claw|jaw")),
    ("base", re.compile(r"base|wheel|\.vel$")),
    ("eef", re.compile(r"^(eef|ee|tcp)[^a-z]|^(x|y|z|r[xyz]|q[xyzw]|roll|pitch|yaw)$")),
)
_NUMBERED = re.compile(r"(joint|motor|action|state|dim|axis|)[ _]?\d+")
_ON_THE_HAND = re.compile(r"wrist|hand|gripper")

Features = dict[str, dict[str, Any]]  # {column: its entry in meta/info.json}
Groups = dict[str, dict[str, Any]]  # {group, camera or annotation: its entry in modality.json}


def main(config: AdoptConfig) -> None:
    """Print what is proposed, or written."""
    print("\n".join(adopt(config)))


def adopt(config: AdoptConfig) -> list[str]:
    """Propose meta/modality.json and the held-out episodes of meta/split.json; write what is missing with write=true.

    Returns what was found and done, as lines of text. What exists is never replaced. Raises ToolkitError for a folder
    that is no LeRobot dataset, and for one that cannot be made one that GR00T reads.
    """
    root = Path(config.dataset)
    _check_folder(root)
    # Here and below imported only when needed: --help and a refusal should not wait for pyarrow and the decoders.
    from data_prep.lerobot import choose_val_episodes
    from gr00t.data.layout import CODEBASE_VERSION, MetaFolder, read_episodes

    meta = MetaFolder(root)
    info, info_path = meta.json("info.json"), f"{root}/meta/info.json"
    version = str(info.get("codebase_version", CODEBASE_VERSION))
    files: dict[str, Any] = {}
    lines = [f"{root}: LeRobot {version}"]
    if meta.has(MODALITY):
        lines.append(f"{root}/meta/{MODALITY} is there already and stays as it is.")
    else:
        configs = modality_configs(config)
        proposal = propose(info, configs, info_path)
        _check_columns(root, proposal)
        files[MODALITY] = proposal.modality
        lines += _described(root, proposal, configs)
    if not meta.has(SPLIT):
        episodes = read_episodes(meta, version)
        try:
            val = choose_val_episodes(len(episodes), config.val_fraction, config.seed) if config.val_fraction else ()
        except ToolkitError as error:
            raise ToolkitError(f"{error} Or hold none out: val_fraction=0") from None
        held_out = [episodes[i].index for i in val]
        files[SPLIT] = {"seed": config.seed, "val_fraction": config.val_fraction, "val_episodes": held_out}
        lines.append(f"episodes held out of training, for evaluation: {', '.join(map(str, held_out)) or 'none'}")
    if not files:
        return [*lines, "nothing to write"]
    if config.write:
        return lines + _write(root, files)
    names = " and ".join(f"meta/{name}" for name in files)
    return [*lines, f"nothing was written. Write {names}: python -m data_prep.adopt dataset={root} write=true"]


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        problem = f"dataset={root} does not exist. Give the folder of a LeRobot dataset, dataset=FOLDER."
        raise ToolkitError(problem + near_folder(root))
    if not (root / "meta" / "info.json").is_file():
        inside = sorted(path.name for path in root.iterdir() if (path / "meta" / "info.json").is_file())
        hint = f" It holds {', '.join(inside[:8])}: give one, dataset={root / inside[0]}." if inside else ""
        raise ToolkitError(f"dataset={root} has no meta/info.json: give the folder of a LeRobot dataset.{hint}")


def _check_columns(root: Path, proposal: Proposal) -> None:
    """meta/info.json may list what the frame tables do not hold."""
    from gr00t.data.meta_files import numbered_tables
    from gr00t.data.parquet_files import open_table

    tables = numbered_tables(root / "data")
    if not tables:
        raise ToolkitError(f"{root}/data holds no chunk-*/*.parquet. Download or copy the dataset again.")
    with open_table(tables[0]) as file:
        columns = file.schema_arrow.names
    for modality in ("state", "action", "annotation"):
        for entry in proposal.modality[modality].values():
            column = entry.get("original_key") or COLUMNS[modality]
            if column not in columns:
                raise ToolkitError(
                    f'{tables[0]} has no column "{column}", which meta/info.json lists.{did_you_mean(column, columns)}'
                )


def _described(root: Path, proposal: Proposal, configs: ModalityConfigs) -> list[str]:
    lines = [f"proposed {root}/meta/{MODALITY}:"]
    lines += [f"  {json.dumps(section)}: {json.dumps(groups)}" for section, groups in proposal.modality.items()]
    lines += [f"assumed: {text}" for text in proposal.assumed]
    if proposal.left_out:
        lines.append(f"left out: {', '.join(proposal.left_out)}")
    proposed = {**proposal.modality, "language": proposal.modality["annotation"]}
    wanted = {m: {key.removeprefix("annotation.") for key in config.modality_keys} for m, config in configs.items()}
    if all(keys <= set(proposed[modality]) for modality, keys in wanted.items()):
        return lines
    return [
        *lines,
        "The modality configuration names other groups and cameras. Write this robot's to a file of its own:",
        python_source(proposed_configs(proposal.modality, configs)),
        "and give it to every command: modality_config=FILE, for training dataset.modality_config=FILE",
    ]


def proposed_configs(modality: dict[str, Groups], like: ModalityConfigs) -> ModalityConfigs:
    """The modality configuration of a modality.json, with the action horizon of `like`: what has a state group of its
    name and size is relative to it, grippers and the rest are absolute."""
    representations = []
    for name, group in modality["action"].items():
        state = modality["state"].get(name, {"start": 0, "end": 0})
        alike = state["end"] - state["start"] == group["end"] - group["start"]
        relative = alike and "gripper" not in name and "base" not in name
        representations.append(ActionRepresentation.RELATIVE if relative else ActionRepresentation.ABSOLUTE)
    configs = [ActionConfig(representation) for representation in representations]
    return {
        "video": ModalityConfig([0], list(modality["video"])),
        "state": ModalityConfig([0], list(modality["state"])),
        "action": ModalityConfig(like["action"].delta_indices, list(modality["action"]), action_configs=configs),
        "language": ModalityConfig([0], [f"annotation.{next(iter(modality['annotation']))}"]),
    }


def _write(root: Path, files: dict[str, Any]) -> list[str]:
    from gr00t.data.layout import DatasetLayout, fingerprint_entries

    remedy = (
        "To leave that folder as it is, adopt one of your own that links to it: mkdir OWN; ln -s "
        f"{root.absolute()}/data {root.absolute()}/videos OWN/; cp -r {root}/meta OWN/"
    )
    for name, value in files.items():
        if name == SPLIT:  # last: the fingerprint is also of what was just written
            value |= fingerprint_entries(root, value)
        with disk_errors(root / "meta" / name, remedy):
            write_json(root / "meta" / name, value)
    layout = DatasetLayout(root)
    frames = sum(e.length for e in layout.episodes)
    return [
        *(f"wrote {root}/meta/{name}" for name in files),
        f"{len(layout.episodes)} episodes, {frames} frames, {layout.fps:g} fps. Train on it: "
        f"python launch_finetune_local.py dataset.mixture=[{root}] ...",
    ]


# -- the proposal ------------------------------------------------------------------------------------------------------


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
    proposal.modality |= _groups(columns, proposal.assumed)
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
    if None in names.values() and sizes.get("action") == PANDA_ACTIONS and sizes.get("state") in PANDA_STATES:
        found = {m: {name: dict(part) for name, part in GROUPS.items()} for m in columns}
        fingers = " (of the state's two fingers the first, which the second mirrors)" if sizes["state"] == 9 else ""
        assumed.append(
            f"dimensions have no telling names; {sizes['state']} state and {sizes['action']} action values are taken "
            f"for a Panda's joint positions: seven of the arm, then the gripper{fingers}"
        )
    else:
        found |= {m: _named_groups(names[m], sizes[m], m, assumed) for m in main}
    for modality, first in firsts.items():
        if first != COLUMNS[modality]:
            for group in found[modality].values():
                group["original_key"] = first
    for modality, column in [(m, c) for m, of_modality in columns.items() for c in of_modality if c != firsts.get(m)]:
        name = column.removeprefix("observation.").removeprefix("action.").replace(".", "_")
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
    if not set(wanted) <= set(own) and len(own) == 2:
        # One of either kind, on the hand and not on it: no doubt which is which.
        ours, theirs = ({bool(_ON_THE_HAND.search(name)): name for name in names} for names in (wanted, own))
        if len(wanted) == len(ours) == len(theirs) == 2:
            matched = {name: theirs[on_hand] for on_hand, name in ours.items()}
            assumed.append(f"cameras by their names: {', '.join(f'{c} for {name}' for name, c in matched.items())}")
            return {name: {"original_key": own[camera]} for name, camera in matched.items()}
    return {name: {"original_key": column} for name, column in own.items()}


if __name__ == "__main__":
    run_main(main, "adopt")
