"""The published folder of a dataset: the files that its meta/ names, looked at for what must stay at home, and a card
with counts, first frames and how to train on it, which says what was not recorded.

It is a dataset like the one it is made of, for this toolkit, GR00T and LeRobot alike."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from data_prep import PublishConfig
from data_prep.doctor import ERROR, PREPARE_AGAIN
from data_prep.doctor.decoded_video import jpeg
from data_prep.doctor.examine import examine
from data_prep.doctor.examined_dataset import Subject, evenly, listed_objects
from gr00t.data.layout import IMAGES, DatasetLayout, fingerprint_entries
from gr00t.data.schema import python_source
from gr00t.errors import ToolkitError, first_of
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from toolkit.credentials import strings_of, text_of
from toolkit.progress import progress_bar
from toolkit.publication import (
    CARD,
    Kind,
    Machine,
    Noise,
    Published,
    fill_card,
    new_folder,
    publish,
    refuse_private,
    rows,
)
from toolkit.shared_keys import cues_of, modality_configs, of_suite, split_arguments

FORMAT = 1
KIND = Kind("published dataset", "published.json", "dataset", replaces=True)
SPLIT = "meta/split.json"
TEMPLATE = Path(__file__).with_name("dataset_card.md")
UNKNOWN = "not recorded"
COLUMNS, HEIGHT = 6, 120  # episodes and pixels of the strip of first frames
INSTRUCTIONS = 20

_META = (".json", ".jsonl", ".parquet")
_TABLE = ".parquet"
_STILLS = (".png", ".jpg", ".jpeg")
_ROWS = 256  # that are read at a time
_SHOWN = 5

Contents = dict[str, Path | str]


@dataclass(frozen=True)
class Part:
    """One dataset of what is published.

    place: of its folder, "" for the top; files: by their place there; left_out: what else is in its folders; contents:
    the texts of the files, by their place or what of it they are.
    """

    place: str
    subject: Subject
    files: dict[str, Path] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    contents: Contents = field(default_factory=dict)


def publish_dataset(config: PublishConfig) -> Published:
    """Make the folder at config.out, and upload it where that is asked.

    Raises ToolkitError, before anything is written, for a dataset that is not sound or not whole, and for what must not
    be published.
    """
    return publish(config, KIND, lambda: _make(config), lambda files: _look(config, files))


def _look(config: PublishConfig, files: Mapping[str, Path]) -> None:
    """At a published folder that is there: whole still, and as private as it was."""
    texts = {name: text for place, path in files.items() for name, text in texts_of(place, path).items()}
    _refuse_private(config, texts)
    for root in (path.parents[1] for place, path in files.items() if f"/{place}".endswith(f"/{SPLIT}")):
        _refuse_changed(root, root, "Say overwrite=true to make it again.")


def _refuse_private(config: PublishConfig, contents: Contents) -> None:
    # a login that is a word of the card or of LeRobot's format, or the owner's name on the hub, gives nobody away
    known = (TEMPLATE, *sorted(TEMPLATE.parent.glob("*.py")))
    words = "\n".join([config.repo_id or "", *(path.read_text(encoding="utf-8") for path in known)])
    refuse_private(contents, Machine.here(), KIND.noun, lambda place: False, words)


def _make(config: PublishConfig) -> Published:
    out, parts = Path(config.out), _parts(config)
    sources = {part.place + name: path for part in parts for name, path in part.files.items()}
    frames = {f"first_frames_{part.place}".rstrip("/_") + ".jpg": _first_frames(part.subject) for part in parts}
    splits = {part.place + SPLIT: dict(part.subject.layout.split) for part in parts}
    for split in splits.values():  # without the folders of the machine that converted the recordings
        split |= {"source_folder": Path(split["source_folder"]).name} if "source_folder" in split else {}
    subjects = {part.place: part.subject for part in parts}
    card = fill_card(TEMPLATE, _card_values(config, subjects, frames), _card_metadata(config, subjects))
    tag = parts[0].subject.layout.version if not parts[0].place else None  # LeRobot looks for it
    files = sorted({*sources, *frames, CARD, KIND.mark})
    texts = {CARD: card, KIND.mark: json.dumps({"format": FORMAT, "tag": tag, "files": files}, indent=1) + "\n"}
    texts |= {place: json.dumps(split, indent=1) + "\n" for place, split in splits.items() if place in sources}
    contents = {part.place + name: text for part in parts for name, text in part.contents.items()}
    _refuse_private(config, {**contents, **texts})
    linked = {place for place, path in sources.items() if config.link and "/meta/" not in f"/{place}"}
    copied = {place: path for place, path in sources.items() if place not in texts}
    with new_folder(out, KIND, copied, texts, linked, "tables and videos with the dataset") as aside:
        for name, data in frames.items():
            (aside / name).write_bytes(data)
        for part in parts:
            _fingerprint(aside / part.place, part.subject.root)
    return Published(out, files, _notes(config, parts), tag=tag)


def _parts(config: PublishConfig) -> list[Part]:
    """The datasets below the folder, examined, with their files and what these say."""
    folder, parts = config.folder, list[Part]()
    with progress_bar(transient=True) as bar:
        task = bar.add_task("examining", total=None)
        report, subjects = examine(folder, modality_configs(config), fast=True)
        errors = report.findings(ERROR)
        if errors:
            listed = "\n  ".join(f"{dataset.name}, {f.where}: {f.found}" for dataset, _, f in errors[:_SHOWN])
            raise ToolkitError(
                f"{folder} is not sound:\n  {listed}\npython -m data_prep.check {folder} says how to mend it; for "
                "another robot than the checkout's give its file, modality_config=FILE."
            )
        for subject in subjects:
            part = Part("" if subject.root == folder else f"{subject.name}/", subject)
            _choose(part)
            bar.update(task, description=f"looking at {subject.root}", total=len(part.files), completed=0)
            for name, path in part.files.items():
                part.contents.update(texts_of(name, path))
                bar.advance(task)
            for name, path in _stills(part).items():
                part.files[name] = path
                part.contents.update(texts_of(name, path))
            root = subject.root.resolve()
            outside = [name for name, path in part.files.items() if not path.resolve().is_relative_to(root)]
            if outside and not config.follow_links:
                raise ToolkitError(
                    f"{subject.root / outside[0]} is reached by a link that leads out of the dataset ({len(outside)} "
                    "such files). Say follow_links=true to publish what is there, or put the files themselves in its "
                    "place."
                )
            parts.append(part)
    return parts


# -- which files, and what they say ------------------------------------------------------------------------------------


def _choose(part: Part) -> None:
    """The files of meta/, and the tables and videos that meta/ names; ToolkitError where one is missing, or would lie
    outside the folder."""
    root, layout = part.subject.root, copy.copy(part.subject.layout)
    columns = [name for name, of in part.subject.features.items() if of.get("dtype") in ("video", "image")]
    # LeRobot reads every camera of info.json, the policy perhaps fewer
    cameras = {**layout.modality.get("video", {}), **{name: {"original_key": name} for name in columns}}
    layout.modality = {**layout.modality, "video": cameras}
    named = _named(layout, cameras)
    missing = sorted(path for path in named if not path.is_file())
    if missing:
        raise ToolkitError(f"{missing[0]} is missing ({len(missing)} of {len(named)} files). {PREPARE_AGAIN}")
    layout.episodes = layout.listed  # what meta/split.json leaves out is published with that list, where it is there
    named |= {path for path in _named(layout, cameras) if path.is_file()}
    for path in sorted({*layout.files(), *((root / SPLIT,) if (root / SPLIT).is_file() else ())}):
        place = path.relative_to(root)
        of_meta = place.parts[0] == "meta" and path.suffix in _META and not any(p[0] == "." for p in place.parts)
        if path in named or of_meta:
            part.files[place.as_posix()] = path
        elif place.parts[0] != IMAGES:
            part.left_out.append(place.as_posix())


def _named(layout: DatasetLayout, cameras: Iterable[str]) -> set[Path]:
    """The tables and videos of the layout's episodes."""
    return {*layout.data_files(), *(layout.camera_path(e.index, c) for e in layout.episodes for c in cameras)}


def _stills(part: Part) -> dict[str, Path]:
    """The images beside the tables that cells name."""
    said = [text for place, text in part.contents.items() if ", column " in place and isinstance(text, str)]
    if not (part.subject.root / IMAGES).is_dir():
        return {}
    names = {os.path.normpath(line) for text in said for line in text.splitlines()}
    found = {name: part.subject.root / name for name in sorted(names) if name.split(os.sep)[0] == IMAGES}
    return {name: path for name, path in found.items() if path.is_file()}


def texts_of(place: str, path: Path) -> Contents:
    """What there is to look at in a file of a dataset: {the place, or what of it: text or file}."""
    if path.suffix == _TABLE:
        return _table_texts(place, path)
    if path.suffix in _STILLS:
        text = text_of(path)
        return {place: path if text is None else Noise(text)}
    if path.suffix in (*_META, ".md"):
        return {place: path}
    try:
        with av.open(str(path)) as video:
            tags = [*video.metadata.items(), *(tag for stream in video.streams for tag in stream.metadata.items())]
    except (OSError, ValueError) as error:
        raise ToolkitError(f"{path} is no video that can be read ({type(error).__name__}). {PREPARE_AGAIN}") from None
    described = "\n".join(f"{name}: {value}" for name, value in tags)
    return {f"{place}, its tags": described, place: Noise(strings_of(path.read_bytes()))}


def _table_texts(place: str, path: Path) -> Contents:
    """The schema of a parquet file, the different texts of each column, and letters in its binary cells (images)."""
    texts: dict[str, dict[str, None]] = {}
    noise: list[str] = []
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow.to_string(truncate_metadata=False)
            for batch in file.iter_batches(batch_size=_ROWS):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    for leaf, values in _leaves(name, column):
                        found = [value for value in values.to_pylist() if value]
                        noise.append(strings_of(b"\n".join(v for v in found if isinstance(v, bytes))))
                        texts.setdefault(leaf, {}).update((str(v), None) for v in found if not isinstance(v, bytes))
    except (OSError, pa.ArrowException) as error:
        raise ToolkitError(f"{path} cannot be read ({type(error).__name__}). {PREPARE_AGAIN}") from None
    columns = {f"{place}, column {leaf}": "\n".join(values) for leaf, values in texts.items()}
    return {f"{place}, schema": schema, **columns, f"{place}, binary cells": Noise("\n".join(noise))}


def _leaves(name: str, values: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """The texts and binary values of a column, also those in structs and lists."""
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        yield from _leaves(name, values.storage)
    elif pa.types.is_dictionary(kind):
        yield from _leaves(name, values.dictionary)
    elif pa.types.is_struct(kind):
        for part, inside in zip(kind, values.flatten(), strict=True):
            yield from _leaves(f"{name}.{part.name}", inside)
    elif pa.types.is_map(kind) or pa.types.is_union(kind):
        yield name, pa.array([str(value) for value in values.to_pylist()])
    elif pa.types.is_nested(kind):
        yield from _leaves(name, values.flatten())
    elif not pa.types.is_primitive(kind) and not pa.types.is_null(kind):
        yield name, values


# -- meta/split.json, and what there is to say -------------------------------------------------------------------------


def _fingerprint(folder: Path, origin: Path) -> None:
    """Record the fingerprint of what is published, where there was one; refuse files that changed since."""
    now = _refuse_changed(folder, origin, PREPARE_AGAIN)
    if now:
        write_json(folder / SPLIT, {**read_json(folder / SPLIT), **now})


def _refuse_changed(folder: Path, origin: Path, remedy: str) -> dict[str, Any]:
    """The fingerprint of a dataset as it is now, nothing where none was recorded; ToolkitError, naming a file below
    `origin`, for one that changed since."""
    split = read_json(folder / SPLIT) if (folder / SPLIT).is_file() else {}
    if not split.get("fingerprint"):
        return {}
    now, then = fingerprint_entries(folder, split), split.get("files") or {}
    changed = [name for name, content in now["files"].items() if then.get(name, content) != content]
    if changed:
        raise ToolkitError(
            f"{origin / changed[0]} is not as it was written ({len(changed)} such files): its SHA-256 differs from "
            f"meta/split.json's. {remedy}"
        )
    return now


def _notes(config: PublishConfig, parts: list[Part]) -> list[str]:
    notes = list[str]()
    for part in parts:
        if part.left_out:
            notes.append(f"not published: {first_of(part.left_out)} of {part.subject.root}")
        if SPLIT not in part.files:
            notes.append(f"no episodes are held out: python -m data_prep.adopt dataset={part.subject.root} write=true")
    if config.licence is None:
        notes.append("the licence of the recordings is unknown; say licence=...")
    if config.recorded is None and not all("sources" in part.subject.layout.split for part in parts):
        notes.append('the card does not say how the episodes were recorded; say recorded="..."')
    return notes


# -- the card ----------------------------------------------------------------------------------------------------------


def _first_frames(subject: Subject) -> bytes:
    """A JPEG with the first frames of a few episodes, a row for each camera."""
    strips = []
    for camera in subject.cameras:
        tiles = []
        for index in evenly(list(subject.lengths), COLUMNS):
            with subject.open_camera(index, camera) as video:
                frame = video.frames([0])[0]
            size = (max(1, round(frame.shape[1] * HEIGHT / frame.shape[0])), HEIGHT)
            tiles.append(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
        strips.append(np.concatenate(tiles, axis=1))
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    return jpeg(np.concatenate(padded))


def _card_metadata(config: PublishConfig, subjects: Mapping[str, Subject]) -> DatasetCardData:
    robots = {str(robot) for of in subjects.values() if (robot := of.layout.info.get("robot_type"))}
    return DatasetCardData(
        license=config.licence or "unknown",
        task_categories=["robotics"],
        tags=["LeRobot", "gr00t", "robotics", *config.split.name.split("/"), *sorted(robots)],
        configs=[
            {"config_name": place.strip("/") or "default", "data_files": f"{place}data/*/*.parquet"}
            for place in subjects
        ],
    )


def _card_values(config: PublishConfig, subjects: Mapping[str, Subject], images: Iterable[str]) -> dict[str, Any]:
    """What dataset_card.md is filled with."""
    top, name = "" in subjects, config.split.name
    first = next(iter(subjects.values()))
    counted = Counter(text for of in subjects.values() for e in of.layout.episodes for text in e.tasks)
    place = f"data/{name}/{config.part or 'train'}" if top else f"data/{name}"
    version, fps, robot = first.layout.version, f"{first.layout.fps:g}", first.layout.info.get("robot_type") or UNKNOWN
    return {
        "title": config.repo_id.split("/")[-1] if config.repo_id else name,
        "lead": f"Demonstrations of a robot ({robot}) at {fps} frames a second, in LeRobot's format {version} with the "
        "meta data that GR00T needs.",
        "cues": cues_of(name) if first.is_maniskill_panda else None,
        "names_both": of_suite(name),
        "strategy": _strategy(first.layout.split.get("recorded")),
        "images": list(images),
        "parts": [of.name for of in subjects.values()],
        "rows": rows([_facts(of) for of in subjects.values()]),
        "instructions": counted.most_common(INSTRUCTIONS),
        "further": max(0, len(counted) - INSTRUCTIONS),
        "groups": first.groups,
        "recorded": "\n\n".join(filter(None, [config.recorded, *_sources(subjects)])) or f"This was {UNKNOWN}.",
        "licence": config.licence or UNKNOWN,
        "repo_id": config.repo_id,
        "place": place,
        "split_arguments": split_arguments(config.split),
        "trains": config.part in (None, "train"),
        "robot_key": " modality_config=robot.py" if config.modality_config else "",
        "robot": python_source(modality_configs(config)).strip() if config.modality_config else "",
        "lerobot": f"LeRobot reads `{place}`{'' if top else ' (each part is a dataset)'} as `root`.",
    }


def _strategy(recorded: Any) -> dict[str, Any] | None:
    """Of the instruction suite: the strategy's name, its factors, and the combinations of their values in words."""
    if not isinstance(recorded, dict):
        return None
    chosen = [" ".join(map(str, values)) for values in recorded.get("combinations") or []]
    return {"name": recorded.get("strategy"), "factors": recorded.get("factors") or [], "combinations": chosen}


def _facts(subject: Subject) -> dict[str, str]:
    layout, frames = subject.layout, sum(subject.lengths.values())
    sizes = {camera: layout.frame_size(camera) for camera in subject.cameras}
    return {
        "Episodes": f"{len(subject.lengths):,}",
        "Episodes held out": f"{len(subject.held_out):,}",
        "Frames": f"{frames:,}",
        "Duration": f"{frames / layout.fps / 60:,.1f} minutes",
        "Cameras": ", ".join(f"{c} ({of[1]} x {of[0]})" if of else c for c, of in sizes.items()),
        "Instructions": f"{len({text for e in layout.episodes for text in e.tasks}):,}",
    }


def _sources(subjects: Mapping[str, Subject]) -> list[str]:
    """What the converter recorded of ManiSkill's recordings."""
    found = []
    for subject in subjects.values():
        if "sources" in subject.layout.split:
            why = Counter(str(of.get("reason")) for of in listed_objects(subject, "left_out"))
            left = "; left out: " + ", ".join(f"{count} ({reason})" for reason, count in why.items()) if why else ""
            found.append(f"`{subject.name}`: {len(subject.lengths):,} trajectories simulated in ManiSkill{left}.")
    return found
