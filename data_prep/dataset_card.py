"""The card of a published dataset: Hugging Face metadata, counts, first frames, and how to train on it. What was not
recorded is said to be so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from huggingface_hub import DatasetCardData

from data_prep import PublishConfig
from data_prep.doctor.examined_dataset import Subject, evenly, listed_objects
from gr00t.data.schema import python_source
from toolkit.publication import fill_card, rows
from toolkit.shared_keys import cues_of, modality_configs, of_suite, split_arguments

TEMPLATE = Path(__file__).with_name("dataset_card.md")
UNKNOWN = "not recorded"
COLUMNS, HEIGHT = 6, 120  # episodes and pixels of the strip
INSTRUCTIONS = 20


def first_frames(subject: Subject) -> bytes:
    """A JPEG with the first frames of a few episodes, a row for each camera."""
    rows = []
    for camera in subject.cameras:
        tiles = []
        for index in evenly(list(subject.lengths), COLUMNS):
            with subject.open_camera(index, camera) as video:
                frame = video.frames([0])[0]
            size = (max(1, round(frame.shape[1] * HEIGHT / frame.shape[0])), HEIGHT)
            tiles.append(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
        rows.append(np.concatenate(tiles, axis=1))
    width = max(row.shape[1] for row in rows)
    whole = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    image = cv2.cvtColor(np.concatenate(whole), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done
    return data.tobytes()


def write_card(config: PublishConfig, subjects: Mapping[str, Subject], images: Sequence[str]) -> str:
    """The text of README.md. subjects: the datasets by their place in the folder; images: the strips' places."""
    return fill_card(TEMPLATE, _values(config, subjects, images), _metadata(config, subjects))


def _metadata(config: PublishConfig, subjects: Mapping[str, Subject]) -> DatasetCardData:
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


def _values(config: PublishConfig, subjects: Mapping[str, Subject], images: Sequence[str]) -> dict[str, Any]:
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
        "images": images,
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
