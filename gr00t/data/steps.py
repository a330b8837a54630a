"""A GR00T-flavoured LeRobot dataset (v2.1 or v3.0) as steps: what the robot saw, felt and did."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from gr00t.data.episode_video import EpisodeVideo
from gr00t.data.frames import FrameStore
from gr00t.data.layout import DatasetLayout
from gr00t.data.processor import Step
from gr00t.data.schema import ModalityConfigs, check_modality_configs
from gr00t.data.statistics import Statistics, Tail, feature_statistics, relative_statistics
from gr00t.data.tables import FrameTables
from gr00t.errors import ToolkitError, did_you_mean

OPEN_VIDEOS = 64  # containers a process keeps open; each holds a few frames' worth of memory


class StepReader:
    """Steps of one dataset: the frames, states, actions and instruction that a modality configuration names.

    Frames before the first repeat the first. Actions after the last repeat the last and are marked as missing. (The
    original wraps negative offsets round to the episode's end.) `table_digest` is the hash of the frame tables.
    """

    def __init__(self, root: str | Path, configs: ModalityConfigs) -> None:
        self.layout = DatasetLayout(root)
        self.configs = check_modality_configs(configs)
        self._groups = {m: _group_slices(self.layout, m, configs[m].modality_keys) for m in ("state", "action")}
        self._check_videos()
        self._text_column = _annotation_column(self.layout, configs["language"].modality_keys[0])
        columns = {column for groups in self._groups.values() for column, _ in groups.values()}
        self._tables = FrameTables(self.layout, sorted(columns | {self._text_column, "episode_index"}))
        self.table_digest = self._tables.digest
        self._check_widths()
        self._videos: OrderedDict[Path, dict[tuple[int, str], EpisodeVideo]] = OrderedDict()
        self.frame_store: FrameStore | None = None  # takes the place of the videos

    def step(self, episode: int, frame: int, *, images: bool = True) -> Step:
        """What was known and done at one frame: images (T, H, W, 3), states (T, D), actions (H, D), instruction.

        Without `images` no frame is read and `Step.images` is empty.
        """
        last = self.layout.episode(episode).length - 1
        action_frames = frame + np.asarray(self.configs["action"].delta_indices)
        return Step(
            images={
                camera: self._frames(episode, camera, self._offsets("video", frame, last))
                for camera in (self.configs["video"].modality_keys if images else [])
            },
            states=self._values("state", episode, self._offsets("state", frame, last)),
            text=self.instruction(episode, frame),
            actions=self._values("action", episode, np.clip(action_frames, 0, last)),
            action_valid=(action_frames >= 0) & (action_frames <= last),
        )

    def instruction(self, episode: int, frame: int = 0) -> str:
        """The instruction given at that frame."""
        value = self._tables.rows(self._text_column, episode, np.array([frame]))[0]
        if isinstance(value, str):
            return value
        number = int(np.asarray(value).reshape(-1)[0])
        if number not in self.layout.tasks:
            raise ToolkitError(
                f"{self.layout.root}: episode {episode} refers to task {number}, which meta/tasks.jsonl does not list. "
                "Prepare the dataset again."
            )
        return self.layout.tasks[number]

    def instructions(self, episodes: list[int]) -> list[str]:
        """Every instruction that occurs in these episodes, sorted."""
        found: set[str] = set()
        for episode in episodes:
            values = self._tables.episode(self._text_column, episode)
            _, first = np.unique(values.reshape(len(values), -1)[:, 0].astype(str), return_index=True)
            found.update(self.instruction(episode, int(frame)) for frame in first)
        return sorted(found)

    def column_statistics(self, episodes: list[int]) -> dict[str, Statistics]:
        """Statistics of every state and action column over these episodes, as meta/stats.json holds them."""
        columns = {column for groups in self._groups.values() for column, _ in groups.values()}
        return {
            column: feature_statistics(np.concatenate([_matrix(self._tables.episode(column, e)) for e in episodes]))
            for column in sorted(columns)
        }

    def widths(self) -> dict[str, dict[str, int]]:
        """{"state" and "action": {group: dimensions}}."""
        return {m: {k: part.stop - part.start for k, (_, part) in groups.items()} for m, groups in self._groups.items()}

    def relative_statistics(self, episodes: list[int], tail: Tail) -> dict[str, Any]:
        """Statistics of the relative action groups over the starts that `tail` admits (see gr00t.data.statistics)."""
        states, actions = (
            [np.concatenate(list(self.trajectory(modality, e).values()), axis=1) for e in episodes]
            for modality in ("state", "action")
        )
        return relative_statistics(states, actions, _packed(self._groups), self.configs, tail)

    def trajectory(self, modality: str, episode: int) -> dict[str, np.ndarray]:
        """Every group of "state" or "action" over a whole episode, (frames, D) float32."""
        return self._values(modality, episode, np.arange(self.layout.episode(episode).length))

    def _offsets(self, modality: str, frame: int, last: int) -> np.ndarray:
        return np.clip(frame + np.asarray(self.configs[modality].delta_indices), 0, last)

    def _values(self, modality: str, episode: int, frames: np.ndarray) -> dict[str, np.ndarray]:
        return {
            key: _matrix(self._tables.rows(column, episode, frames))[:, part].astype(np.float32)
            for key, (column, part) in self._groups[modality].items()
        }

    def _frames(self, episode: int, camera: str, frames: np.ndarray) -> np.ndarray:
        if self.frame_store is not None:
            return self.frame_store.frames(episode, camera, frames)
        return self._video(episode, camera).frames(frames.tolist())

    def _video(self, episode: int, camera: str) -> EpisodeVideo:
        """The video of an episode, kept open with its file, which others may lie in too (v3.0)."""
        path = self.layout.video_path(episode, camera)
        if path not in self._videos:
            if len(self._videos) >= OPEN_VIDEOS:
                for video in self._videos.popitem(last=False)[1].values():
                    video.reader.close()
            self._videos[path] = {}
        self._videos.move_to_end(path)
        of_file = self._videos[path]
        if (episode, camera) not in of_file:
            shared = next(iter(of_file.values())).reader if of_file else None
            of_file[episode, camera] = EpisodeVideo(self.layout, episode, camera, shared)
        return of_file[episode, camera]

    def _check_videos(self) -> None:
        paths = {
            self.layout.video_path(e.index, camera): None
            for e in self.layout.episodes
            for camera in self.configs["video"].modality_keys
        }
        missing = [path for path in paths if not path.is_file() or not path.stat().st_size]
        if missing:
            raise ToolkitError(
                f"{len(missing)} of {len(paths)} videos are missing or empty, the first {missing[0]}. Copy the dataset "
                "again, or prepare it again."
            )

    def _check_widths(self) -> None:
        for modality, groups in self._groups.items():
            for key, (column, part) in groups.items():
                width = _matrix(self._tables.episode(column, self.layout.episodes[0].index)).shape[1]
                if part.stop > width:
                    raise ToolkitError(
                        f'{self.layout.root}/meta/modality.json: {modality} "{key}" ends at {part.stop}, but the '
                        f'column "{column}" has {width} values. Prepare the dataset again or mend modality.json.'
                    )


def _matrix(values: np.ndarray) -> np.ndarray:
    """(N, D); LeRobot stores a column of one dimension as (N,)."""
    return values.reshape(len(values), -1)


def _group_slices(layout: DatasetLayout, modality: str, keys: list[str]) -> dict[str, tuple[str, slice]]:
    groups = layout.modality.get(modality, {})
    default = {"state": "observation.state", "action": "action"}[modality]
    found = {}
    for key in keys:
        if key not in groups:
            raise ToolkitError(
                f'{layout.root}/meta/modality.json has no {modality} group "{key}", which the modality configuration '
                f"names.{did_you_mean(key, groups)}"
            )
        entry = groups[key]
        found[key] = (entry.get("original_key") or default, slice(int(entry["start"]), int(entry["end"])))
    return found


def _packed(groups: dict[str, dict[str, tuple[str, slice]]]) -> dict[str, dict[str, dict[str, int]]]:
    """modality.json's form for groups that lie one behind the other, as `trajectory` gives them."""
    packed: dict[str, dict[str, dict[str, int]]] = {}
    for modality, parts in groups.items():
        end = 0
        packed[modality] = {}
        for key, (_, part) in parts.items():
            width = part.stop - part.start
            packed[modality][key] = {"start": end, "end": end + width}
            end += width
    return packed


def _annotation_column(layout: DatasetLayout, key: str) -> str:
    annotations = layout.modality.get("annotation", {})
    name = key.removeprefix("annotation.")
    if name not in annotations:
        raise ToolkitError(
            f'{layout.root}/meta/modality.json has no annotation "{name}", which the modality configuration names.'
            f"{did_you_mean(name, annotations)}"
        )
    return annotations[name].get("original_key") or key
