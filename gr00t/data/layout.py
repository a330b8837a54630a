"""Where everything of one dataset folder lies (GR00T-flavoured LeRobot v2.1): meta files, frame tables, videos.

Reads only `meta/`, so it is cheap; frame tables and videos are opened by others through the paths given here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import file_sha256, parse_json

CODEBASE_VERSION = "v2.1"
SPLIT_FILE = "meta/split.json"
FINGERPRINTED_SPLIT_KEYS = ("part", "instruction", "seed", "val_fraction", "val_episodes")


@dataclass(frozen=True)
class EpisodeInfo:
    """One line of meta/episodes.jsonl: number of frames and the instructions that occur in it."""

    index: int
    length: int
    tasks: tuple[str, ...]


class DatasetLayout:
    """The meta data of the dataset at `root`, checked, and the paths that follow from it.

    Attributes: root; info (meta/info.json); fps (frames a second); chunks_size; modality (meta/modality.json);
    tasks ({task_index: instruction}); episodes (sorted by index); split (meta/split.json, {} where there is none).
    Raises ToolkitError for a missing folder or file, unreadable JSON, missing keys, or another LeRobot version.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ToolkitError(
                f"{self.root}: no such dataset folder. Give the folder that holds meta/, data/ and videos/, "
                "or write it with prepare_conflict_data.py."
            )
        self.info: dict[str, Any] = self._meta("info.json")
        self._check_version()
        self.fps = float(self._info("fps"))
        self.chunks_size = int(self.info.get("chunks_size", 1000))
        self.modality: dict[str, dict[str, dict[str, Any]]] = self._meta("modality.json")
        self.tasks = {
            int(t["task_index"]): str(t["task"]) for t in self._meta_lines("tasks.jsonl", "task_index", "task")
        }
        self.episodes = self._read_episodes()
        self._by_index = {e.index: e for e in self.episodes}
        self.split: dict[str, Any] = self._meta("split.json") if (self.root / SPLIT_FILE).is_file() else {}

    # -- what is in it ---------------------------------------------------------------------------------------------

    @property
    def cameras(self) -> list[str]:
        """The video keys of modality.json, e.g. ["image", "wrist_image"]."""
        return list(self.modality.get("video", {}))

    def frame_size(self, camera: str) -> list[int] | None:
        """[height, width] of a camera's frames, as info.json tells; None where it does not."""
        column = self.modality["video"][camera].get("original_key") or f"observation.images.{camera}"
        feature = self.info.get("features", {}).get(column, {})
        sides = dict(zip(feature.get("names") or [], feature.get("shape", []), strict=False))
        return [int(sides[side]) for side in ("height", "width")] if {"height", "width"} <= sides.keys() else None

    @property
    def val_episodes(self) -> list[int]:
        """Indices held out of training and statistics (empty for a dataset without meta/split.json)."""
        held_out = [int(i) for i in self.split.get("val_episodes", [])]
        for index in held_out:
            self.episode(index)
        return held_out

    @property
    def train_episodes(self) -> list[int]:
        """Indices of all episodes that are not held out."""
        held_out = set(self.val_episodes)
        return [e.index for e in self.episodes if e.index not in held_out]

    def episode(self, index: int) -> EpisodeInfo:
        """The episode of that index; an unknown one raises."""
        if index not in self._by_index:
            raise ToolkitError(
                f"{self.root}: there is no episode {index} in meta/episodes.jsonl ({len(self.episodes)})."
            )
        return self._by_index[index]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: as recorded in meta/split.json, else computed (reads every file once)."""
        return str(self.split.get("fingerprint") or dataset_fingerprint(self.root, self.split))

    def training_digest(self) -> str:
        """Hash of what training reads, as it is now: meta files and frame tables in full, of videos name and size.

        Unlike the recorded fingerprint it notices files that were edited since, at the cost of reading the tables.
        """
        digest = hashlib.sha256()
        for path in _files(self.root):
            what = str(path.stat().st_size) if path.suffix == ".mp4" else file_sha256(path)
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{what}\n".encode())
        digest.update(json.dumps(self.val_episodes).encode())
        return digest.hexdigest()

    def statistics(self) -> dict[str, Any]:
        """meta/stats.json: {column: {mean, std, min, max, q01, q99}}, lists of (D,)."""
        return self._meta("stats.json")

    def relative_statistics(self) -> dict[str, Any]:
        """meta/relative_stats.json: {action group: {stat: (H, dim) lists}}."""
        return self._meta("relative_stats.json")

    # -- where it lies ---------------------------------------------------------------------------------------------

    def parquet_path(self, episode: int) -> Path:
        """The frame table of one episode (the file may be missing; the path lies inside the folder)."""
        return self._path("data_path", episode)

    def video_path(self, episode: int, camera: str) -> Path:
        """The video of one episode; `camera` is a key of modality.json's video section."""
        cameras = self.modality.get("video", {})
        if camera not in cameras:
            raise ToolkitError(
                f'{self.root}: no camera "{camera}" in meta/modality.json.{did_you_mean(camera, cameras)}'
            )
        column = cameras[camera].get("original_key") or f"observation.images.{camera}"
        return self._path("video_path", episode, video_key=column)

    def _path(self, template_key: str, episode: int, **names: str) -> Path:
        self.episode(episode)
        template = str(self._info(template_key))
        try:
            relative = template.format(episode_chunk=episode // self.chunks_size, episode_index=episode, **names)
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            where = f'{self.root}/meta/info.json: {template_key} "{template}"'
            raise ToolkitError(
                f"{where} cannot be filled in ({error}); LeRobot's default is one file an episode."
            ) from error
        normal = os.path.normpath(relative)
        # Lexical on purpose: links that the user has put inside the folder (a download cache) stay usable.
        if os.path.isabs(normal) or normal.split(os.sep)[0] == "..":
            raise ToolkitError(
                f'{self.root}/meta: the path "{relative}" (from {template_key} and modality.json) leaves the dataset '
                "folder; mend the template or do not use this dataset."
            )
        return self.root / normal

    # -- reading meta/ ---------------------------------------------------------------------------------------------

    def _info(self, key: str) -> Any:
        if key not in self.info:
            raise ToolkitError(f'{self.root}/meta/info.json: the key "{key}" is missing.{did_you_mean(key, self.info)}')
        return self.info[key]

    def _check_version(self) -> None:
        version = self.info.get("codebase_version", CODEBASE_VERSION)
        if version not in ("v2.0", CODEBASE_VERSION):
            raise ToolkitError(
                f"{self.root}: this is a LeRobot {version} dataset; {CODEBASE_VERSION} is needed "
                "(one parquet and one mp4 per episode). Convert it back, or prepare it with prepare_conflict_data.py."
            )

    def _read_episodes(self) -> list[EpisodeInfo]:
        lines = self._meta_lines("episodes.jsonl", "episode_index", "length")
        episodes = [
            EpisodeInfo(int(e["episode_index"]), int(e["length"]), tuple(map(str, e.get("tasks", [])))) for e in lines
        ]
        if not episodes:
            raise ToolkitError(f"{self.root}/meta/episodes.jsonl lists no episode; prepare the dataset again.")
        if len({e.index for e in episodes}) != len(episodes):
            raise ToolkitError(f"{self.root}/meta/episodes.jsonl names an episode twice; prepare the dataset again.")
        return sorted(episodes, key=lambda e: e.index)

    def _text(self, name: str) -> str:
        path = self.root / "meta" / name
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            hint = (
                " LeRobot's own datasets have no modality.json: write one that gives state and action groups "
                '{"arm": {"start": 0, "end": 7}}, video and annotation {key: {"original_key": column}}.'
            )
            raise ToolkitError(
                f"{path}: cannot be read ({error.strerror}).{hint if name == 'modality.json' else ''}"
            ) from error

    def _meta(self, name: str) -> dict[str, Any]:
        value = parse_json(self._text(name), self.root / "meta" / name)
        if not isinstance(value, dict):
            raise ToolkitError(f"{self.root}/meta/{name}: expected a JSON object, found {type(value).__name__}.")
        return value

    def _meta_lines(self, name: str, *keys: str) -> list[dict[str, Any]]:
        records = []
        for number, line in enumerate(self._text(name).splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{self.root}/meta/{name}, line {number}"
            record = parse_json(line, where)
            missing = [key for key in keys if not isinstance(record, dict) or key not in record]
            if missing:
                raise ToolkitError(f"{where}: {', '.join(missing)} is missing; prepare the dataset again.")
            records.append(record)
        return records


def dataset_fingerprint(root: Path, split: dict[str, Any]) -> str:
    """Hash over every file of meta/, data/ and videos/ (names and content) and over what of `split` decides training.

    meta/split.json itself is left out: it carries the fingerprint, and the names of source files, which may move.
    """
    digest = hashlib.sha256()
    for path in _files(root):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_sha256(path)}\n".encode())
    deciding = {key: split[key] for key in FINGERPRINTED_SPLIT_KEYS if key in split}
    digest.update(json.dumps(deciding, sort_keys=True).encode())
    return digest.hexdigest()


def _files(root: Path) -> Iterable[Path]:
    files = (p for part in ("meta", "data", "videos") for p in (root / part).rglob("*") if p.is_file())
    return sorted((p for p in files if p != root / SPLIT_FILE), key=lambda p: p.relative_to(root).as_posix())
