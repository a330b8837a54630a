"""Making a LeRobot dataset of another source trainable: what GR00T needs beside it, without touching what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from data_prep.lerobot import choose_val_episodes
from data_prep.modality import Proposal, propose
from finetune.config.modality import from_json
from gr00t.data.layout import CODEBASE_VERSION, DatasetLayout, fingerprint_entries
from gr00t.data.meta import MetaFolder, by_number, read_episodes
from gr00t.data.schema import ActionConfig, ActionRepresentation, ModalityConfig, ModalityConfigs, python_source
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import disk_errors, near_folder, write_json

if TYPE_CHECKING:
    from finetune.config import AdoptConfig

MODALITY, SPLIT = "modality.json", "split.json"


def adopt(config: AdoptConfig) -> list[str]:
    """Propose meta/modality.json and the held-out episodes of meta/split.json; write what is missing with write=true.

    Returns what was found and done, as lines of text. What exists is never replaced. Raises ToolkitError for a folder
    that is no LeRobot dataset, and for one that cannot be made one that GR00T reads.
    """
    root = Path(config.dataset)
    if not (root / "meta" / "info.json").is_file():
        raise ToolkitError(f"dataset={root} {_missing(root)}")
    meta = MetaFolder(root)
    files: dict[str, Any] = {}
    lines = [f"{root}: LeRobot {meta.json('info.json').get('codebase_version', CODEBASE_VERSION)}"]
    if meta.has(MODALITY):
        lines.append(f"{root}/meta/{MODALITY} is there already and stays as it is.")
    else:
        configs = from_json(config.modalities)
        proposal = propose(meta.json("info.json"), configs, f"{root}/meta/info.json")
        _check_columns(root, proposal)
        files[MODALITY] = proposal.modality
        lines += _described(root, proposal, configs)
    if not meta.has(SPLIT):
        files[SPLIT] = _split(meta, config.val_fraction, config.seed)
        held_out = ", ".join(map(str, files[SPLIT]["val_episodes"])) or "none"
        lines.append(f"episodes held out of training, for evaluation: {held_out}")
    return lines + (_write(root, files) if config.write else _how_to_write(root, files))


def _missing(root: Path) -> str:
    """Why a folder is no dataset, and which is."""
    if not root.is_dir():
        return f"does not exist. Give the folder of a LeRobot dataset, dataset=FOLDER.{near_folder(root)}"
    inside = sorted(path.name for path in root.iterdir() if (path / "meta" / "info.json").is_file())
    hint = f" It holds {', '.join(inside[:8])}: give one, dataset={root / inside[0]}." if inside else ""
    return f"has no meta/info.json: give the folder of a LeRobot dataset.{hint}"


def _split(meta: MetaFolder, val_fraction: float, seed: int) -> dict[str, Any]:
    episodes = read_episodes(meta, str(meta.json("info.json").get("codebase_version", CODEBASE_VERSION)))
    try:
        chosen = choose_val_episodes(len(episodes), val_fraction, seed) if val_fraction else ()
    except ToolkitError as error:
        raise ToolkitError(f"{error} Or hold none out: val_fraction=0") from None
    return {"seed": seed, "val_fraction": val_fraction, "val_episodes": [episodes[i].index for i in chosen]}


def _check_columns(root: Path, proposal: Proposal) -> None:
    """meta/info.json may list what the frame tables do not hold."""
    tables = by_number((root / "data").glob("*/*.parquet"))
    if not tables:
        raise ToolkitError(f"{root}/data holds no chunk-*/*.parquet. Download or copy the dataset again.")
    try:
        columns = pq.read_schema(tables[0]).names
    except (OSError, ValueError) as error:
        raise ToolkitError(f"{tables[0]} cannot be read ({error}). Download or copy the dataset again.") from error
    defaults = {"state": "observation.state", "action": "action"}
    for modality in ("state", "action", "annotation"):
        for entry in proposal.modality[modality].values():
            column = entry.get("original_key") or defaults[modality]
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
    missing = {
        m: [k.removeprefix("annotation.") for k in c.modality_keys if k.removeprefix("annotation.") not in groups]
        for (m, c), groups in ((item, proposal.modality[_section(item[0])]) for item in configs.items())
    }
    if any(missing.values()):
        lines.append(
            "The modality configuration names other groups and cameras. Write this robot's to a file of its own:"
        )
        lines.append(python_source(proposed_configs(proposal.modality, configs)))
        lines.append("and give it to every command: modality_config=FILE, for training dataset.modality_config=FILE")
    return lines


def _section(modality: str) -> str:
    """Of modality.json."""
    return "annotation" if modality == "language" else modality


def proposed_configs(modality: dict[str, dict[str, dict[str, Any]]], like: ModalityConfigs) -> ModalityConfigs:
    """The modality configuration of a modality.json, with the action horizon of `like`: what has a state group of its
    name and size is relative to it, grippers and the rest are absolute."""
    states, actions = modality["state"], modality["action"]

    def width(group: dict[str, Any]) -> int:
        return int(group["end"]) - int(group["start"])

    def rep(name: str) -> ActionRepresentation:
        alike = name in states and width(states[name]) == width(actions[name])
        relative = alike and "gripper" not in name and "base" not in name
        return ActionRepresentation.RELATIVE if relative else ActionRepresentation.ABSOLUTE

    return {
        "video": ModalityConfig([0], list(modality["video"])),
        "state": ModalityConfig([0], list(states)),
        "action": ModalityConfig(
            like["action"].delta_indices, list(actions), action_configs=[ActionConfig(rep(name)) for name in actions]
        ),
        "language": ModalityConfig([0], [f"annotation.{next(iter(modality['annotation']))}"]),
    }


def _write(root: Path, files: dict[str, Any]) -> list[str]:
    if not files:
        return ["nothing to write"]
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


def _how_to_write(root: Path, files: dict[str, Any]) -> list[str]:
    if not files:
        return ["nothing to write"]
    names = " and ".join(f"meta/{name}" for name in files)
    return [f"nothing was written. Write {names}: python -m data_prep.adopt dataset={root} write=true"]
