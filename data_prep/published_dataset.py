"""The published folder of a dataset: the files that its meta/ names, looked at for what must stay at home, and a card.

It is a dataset like the one it is made of, for this toolkit, GR00T and LeRobot alike."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import PublishConfig
from data_prep.dataset_card import TEMPLATE, first_frames, write_card
from data_prep.doctor import ERROR, PREPARE_AGAIN
from data_prep.doctor.examine import examine
from data_prep.doctor.examined_dataset import Subject
from gr00t.data.layout import IMAGES, DatasetLayout, fingerprint_entries
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from toolkit.credentials import strings_of, text_of
from toolkit.progress import progress_bar
from toolkit.publication import CARD, Kind, Machine, Noise, Published, new_folder, publish, refuse_private
from toolkit.shared_keys import modality_configs

FORMAT = 1
KIND = Kind("published dataset", "published.json", "dataset", replaces=True)
SPLIT = "meta/split.json"

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
    return publish(config, KIND, lambda: _make(config), _look)


def _look(files: Mapping[str, Path]) -> None:
    """At a published folder that is there."""
    _refuse_private({name: text for place, path in files.items() for name, text in texts_of(place, path).items()})


def _refuse_private(contents: Contents) -> None:
    # a login that is a word of the card or of LeRobot's format gives nobody away
    words = "\n".join(path.read_text(encoding="utf-8") for path in (TEMPLATE, *sorted(TEMPLATE.parent.glob("*.py"))))
    refuse_private(contents, Machine.here(), KIND.noun, lambda place: False, words)


def _make(config: PublishConfig) -> Published:
    out, parts = Path(config.out), _parts(config)
    sources = {part.place + name: path for part in parts for name, path in part.files.items()}
    frames = {f"first_frames_{part.place}".rstrip("/_") + ".jpg": first_frames(part.subject) for part in parts}
    splits = {part.place + SPLIT: _without_folders(part.subject.layout.split) for part in parts}
    card = write_card(config, {part.place: part.subject for part in parts}, list(frames))
    tag = parts[0].subject.layout.version if not parts[0].place else None  # LeRobot looks for it
    files = sorted({*sources, *frames, CARD, KIND.mark})
    texts = {CARD: card, KIND.mark: json.dumps({"format": FORMAT, "tag": tag, "files": files}, indent=1) + "\n"}
    texts |= {place: json.dumps(split, indent=1) + "\n" for place, split in splits.items() if place in sources}
    contents = {part.place + name: text for part in parts for name, text in part.contents.items()}
    _refuse_private({**contents, **texts})
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
            if not config.follow_links:
                _refuse_links(part)
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


def _refuse_links(part: Part) -> None:
    root = part.subject.root.resolve()
    outside = [place for place, path in part.files.items() if not path.resolve().is_relative_to(root)]
    if outside:
        raise ToolkitError(
            f"{part.subject.root / outside[0]} is reached by a link that leads out of the dataset ({len(outside)} such "
            "files). Say follow_links=true to publish what is there, or put the files themselves in its place."
        )


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


def _without_folders(split: dict[str, Any]) -> dict[str, Any]:
    """meta/split.json without the folders of the machine that converted the recordings."""
    return {name: Path(of).name if name == "source_folder" else of for name, of in split.items()}


def _fingerprint(folder: Path, origin: Path) -> None:
    """Record the fingerprint of what is published, where there was one; refuse files that changed since."""
    split = read_json(folder / SPLIT) if (folder / SPLIT).is_file() else {}
    if not split.get("fingerprint"):
        return
    now, then = fingerprint_entries(folder, split), split.get("files") or {}
    changed = [name for name, content in now["files"].items() if then.get(name, content) != content]
    if changed:
        raise ToolkitError(
            f"{origin / changed[0]} is not as it was written ({len(changed)} such files): its SHA-256 differs from "
            f"meta/split.json's. {PREPARE_AGAIN}"
        )
    write_json(folder / SPLIT, {**split, **now})


def _notes(config: PublishConfig, parts: list[Part]) -> list[str]:
    notes = list[str]()
    for part in parts:
        if part.left_out:
            more = f" and {len(part.left_out) - _SHOWN} more" if len(part.left_out) > _SHOWN else ""
            notes.append(f"not published: {', '.join(part.left_out[:_SHOWN])}{more} of {part.subject.root}")
        if SPLIT not in part.files:
            notes.append(f"no episodes are held out: python -m data_prep.adopt dataset={part.subject.root} write=true")
    if config.licence is None:
        notes.append("the licence of the recordings is unknown; say licence=...")
    if config.recorded is None and not all("sources" in part.subject.layout.split for part in parts):
        notes.append('the card does not say how the episodes were recorded; say recorded="..."')
    return notes
