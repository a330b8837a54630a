"""Make a LeRobot dataset (v2.0, v2.1 or v3.0) of another source trainable, without touching what is there.

python -m data_prep.adopt dataset=FOLDER
python -m data_prep.adopt dataset=FOLDER robot_file=FILE.py
python -m data_prep.adopt dataset=FOLDER write=true
python -m data_prep.adopt dataset=FOLDER write=true split=instruction/color_object
python -m data_prep.adopt --help

GR00T needs meta/modality.json, which names slices of the state and action columns (groups), cameras and annotations;
LeRobot's own datasets name single dimensions at most. It is proposed from the features in meta/info.json, and with
robot_file so is the robot's modality configuration; what is guessed is said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.modality_proposal import Proposal, propose, proposed_configs, read_groups
from gr00t.data.schema import python_source
from gr00t.data.statistics import COLUMNS
from gr00t.errors import ToolkitError, did_you_mean, disk_errors, near_folder
from gr00t.file_replacement import whole_folder, write_json, write_text
from toolkit.command_line import run_main
from toolkit.shared_keys import modality_configs

if TYPE_CHECKING:
    from data_prep import AdoptConfig
    from gr00t.data.layout import MetaFolder

MODALITY, SPLIT = "modality.json", "split.json"
ELSEWHERE = "Choose another data_dir=FOLDER."


def main(config: AdoptConfig) -> None:
    """Print what is proposed, or written."""
    print("\n".join(adopt(config)))


def adopt(config: AdoptConfig) -> list[str]:
    """Propose meta/modality.json, the held-out episodes of meta/split.json, and the robot's modality configuration.

    With write=true, those of the first two that are missing are written; with robot_file the third is, to that file.

    Returns what was found and done, as lines of text. What exists is never replaced. Raises ToolkitError for a folder
    that is no LeRobot dataset, and for one that cannot be made one that GR00T reads.
    """
    root = Path(config.dataset)
    _check_folder(root)
    # Here and below imported only when needed: --help and a refusal should not wait for pyarrow and the decoders.
    from gr00t.data.layout import CODEBASE_VERSION, MetaFolder, positive

    meta, configs = MetaFolder(root), modality_configs(config)
    info, info_path = meta.json("info.json"), f"{root}/meta/info.json"
    positive(info_path, "fps", info.get("fps"))  # before anything is written
    version = str(info.get("codebase_version", CODEBASE_VERSION))
    files: dict[str, Any] = {}
    lines = [f"{root}: LeRobot {version}"]
    fits = meta.has(MODALITY)
    if fits:
        modality = read_groups(meta.json(MODALITY), f"{root}/meta/{MODALITY}")
        lines.append(f"{root}/meta/{MODALITY} is there already and stays as it is.")
    else:
        proposal = propose(info, configs, info_path)
        modality = files[MODALITY] = proposal.modality
        _check_columns(root, proposal)
        lines.append(f"proposed {root}/meta/{MODALITY}:")
        lines += [f"  {json.dumps(section)}: {json.dumps(groups)}" for section, groups in modality.items()]
        lines += [f"assumed: {text}" for text in proposal.assumed]
        lines += [f"left out: {', '.join(proposal.left_out)}"] if proposal.left_out else []
        named = {**modality, "language": modality["annotation"]}
        wanted = {m: {key.removeprefix("annotation.") for key in of.modality_keys} for m, of in configs.items()}
        fits = all(keys <= set(named[m]) for m, keys in wanted.items())
    source = None
    if config.robot_file is not None or not fits:
        robot, reasons = proposed_configs(modality, info, configs, partial(_values, root))
        source = python_source(robot, reasons)
        lines += [f"assumed of the robot: {text}" for text in reasons]
    if not meta.has(SPLIT):
        files[SPLIT] = held_out = _split(meta, version, config)
        names = ", ".join(map(str, held_out["val_episodes"])) or "none"
        lines.append(f"episodes held out of training, for evaluation: {names}")
    return lines + _robot(source, config) + _write(root, files, config)


def _split(meta: MetaFolder, version: str, config: AdoptConfig) -> dict[str, Any]:
    """The content of meta/split.json, but its fingerprint."""
    from data_prep.lerobot import choose_val_episodes
    from gr00t.data.layout import read_episodes

    episodes = read_episodes(meta, version)
    meta.refuse_empty(episodes)
    try:
        val = choose_val_episodes(len(episodes), config.val_fraction, config.seed) if config.val_fraction else ()
    except ToolkitError as error:
        raise ToolkitError(f"{error} Or hold none out: val_fraction=0") from None
    held_out = [episodes[i].index for i in val]
    return {"seed": config.seed, "val_fraction": config.val_fraction, "val_episodes": held_out}


def _robot(source: str | None, config: AdoptConfig) -> list[str]:
    """Write the robot's file, or say how; an existing one stays."""
    if source is None:
        return []
    if config.robot_file is None:
        return [
            "The modality configuration names other groups and cameras. Write this robot's to a file of its own:",
            source,
            "and give it to every command: modality_config=FILE, for training dataset.modality_config=FILE. "
            "robot_file=FILE.py writes it.",
        ]
    if os.path.lexists(config.robot_file):
        return [f"{config.robot_file} is there already and stays as it is."]
    path = Path(config.robot_file)
    with disk_errors(path, "Give another, robot_file=FILE.py."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, source)
    return [f"wrote {path}: see whether it is right, then give it to every command, modality_config={path}"]


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        problem = f"dataset={root} does not exist. Give the folder of a LeRobot dataset, dataset=FOLDER."
        raise ToolkitError(problem + near_folder(root))
    if not (root / "meta" / "info.json").is_file():
        inside = sorted(path.name for path in root.iterdir() if (path / "meta" / "info.json").is_file())
        hint = f" It holds {', '.join(inside[:8])}: give one, dataset={root / inside[0]}." if inside else ""
        raise ToolkitError(f"dataset={root} has no meta/info.json: give the folder of a LeRobot dataset.{hint}")


def _first_table(root: Path) -> Path:
    from gr00t.data.meta_files import numbered_tables

    tables = numbered_tables(root / "data")
    if not tables:
        raise ToolkitError(f"{root}/data holds no chunk-*/*.parquet. Download or copy the dataset again.")
    return tables[0]


def _check_columns(root: Path, proposal: Proposal) -> None:
    """meta/info.json may list what the frame tables do not hold."""
    from gr00t.file_reading import open_table

    table = _first_table(root)
    with open_table(table) as file:
        columns = file.schema_arrow.names
    for modality in ("state", "action", "annotation"):
        for entry in proposal.modality[modality].values():
            column = entry.get("original_key") or COLUMNS[modality]
            if column not in columns:
                raise ToolkitError(
                    f'{table} has no column "{column}", which meta/info.json lists.{did_you_mean(column, columns)}'
                )


def _values(root: Path, column: str) -> np.ndarray:
    """A column of the first frame table, (frames, D)."""
    from gr00t.file_reading import open_table, read_columns

    table = _first_table(root)
    with open_table(table) as file:
        return np.array(read_columns(file, table, [column])[column].to_pylist(), np.float64)


def _write(root: Path, files: dict[str, Any], config: AdoptConfig) -> list[str]:
    """Write what is missing in the dataset, with write=true; what was done, or is to do, in words."""
    from gr00t.data.layout import DatasetLayout, fingerprint_entries

    if not files and config.split is None:
        return ["nothing to write"]
    if not config.write:
        names = " and ".join(f"meta/{name}" for name in files) or "the links"
        untouched = "nothing was written" if config.robot_file is None else "the dataset is as it was"
        split = f" split={config.split}" if config.split else ""
        return [f"{untouched}. Write {names}: python -m data_prep.adopt dataset={root} write=true{split}"]
    remedy = f"To leave that folder as it is: python -m data_prep.adopt dataset={root} write=true split=NAME"
    remedy = ELSEWHERE if config.split else remedy
    place = root if config.split is None else Path(config.data_dir) / config.split / "train"
    with nullcontext(root) if config.split is None else _links(root, place) as folder:
        for name, value in files.items():
            if name == SPLIT:  # last: the fingerprint is also of what was just written
                value |= fingerprint_entries(folder, value)
            with disk_errors(place / "meta" / name, remedy):
                write_json(folder / "meta" / name, value)
    layout, robot = DatasetLayout(place), config.robot_file or config.modality_config
    frames = sum(e.length for e in layout.episodes)
    chosen = f"split={config.split}" if config.split else f"dataset.mixture=[{root}]"
    return [
        *(f"wrote {place}/meta/{name}" for name in files),
        f"{len(layout.episodes)} episodes, {frames} frames, {layout.fps:g} fps. Train on it: "
        f"python launch_finetune_local.py {chosen} {f'dataset.modality_config={robot} ' if robot else ''}...",
    ]


@contextmanager
def _links(root: Path, place: Path) -> Iterator[Path]:
    """A folder that appears at `place` when the block ends: links to what the dataset holds, a copy of its meta/."""
    if os.path.lexists(place):
        raise ToolkitError(f"{place}: exists already and is left as it is. Remove it, or name another split=....")
    with disk_errors(place, ELSEWHERE), whole_folder(place, replace=False) as aside:
        shutil.copytree(root / "meta", aside / "meta")
        for folder in (aside / "meta", *filter(Path.is_dir, (aside / "meta").rglob("*"))):
            folder.chmod(folder.stat().st_mode | 0o700)  # the dataset's own may be read-only
        for path in root.iterdir():
            if path.name != "meta" and not path.name.startswith("."):
                (aside / path.name).symlink_to(path.resolve())
        yield aside


if __name__ == "__main__":
    run_main(main, "adopt")
