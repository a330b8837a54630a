"""A GR00T-flavoured LeRobot dataset (v2.x or v3.0) as steps: images, states, actions and instruction of a frame."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gr00t.data.frame_tables import EPISODE, EpisodeImages, FrameTables, matrix, table_images
from gr00t.data.layout import DatasetLayout
from gr00t.data.meta_files import whole_number
from gr00t.data.processor import Step
from gr00t.data.schema import ModalityConfigs, check_modality_configs
from gr00t.data.statistics import COLUMNS, Statistics, Tail, feature_statistics, relative_statistics
from gr00t.data.stored_arrays import FrameStore
from gr00t.data.video import EpisodeVideo
from gr00t.errors import ToolkitError
from gr00t.file_reading import refuse_special

OPEN_VIDEOS = 64  # containers a process keeps open; each holds a few frames' worth of memory


class StepReader:
    """Steps of one dataset: the frames, states, actions and instruction that a modality configuration names.

    Frames before the first repeat the first. Actions after the last repeat the last and are marked as missing. (The
    original wraps negative offsets round to the episode's end.) `table_digest` is the hash of the frame tables;
    `exclude` names episodes to leave out (see DatasetLayout).
    """

    def __init__(self, root: str | Path, configs: ModalityConfigs, exclude: Iterable[int | str] = ()) -> None:
        self.layout = DatasetLayout(root, exclude)
        self.configs = check_modality_configs(configs)
        self.layout.refuse_lost_tables()
        self._groups = {m: _group_slices(self.layout, m, configs[m].modality_keys) for m in ("state", "action")}
        self._check_videos()
        key = configs["language"].modality_keys[0]
        annotation = _entry(self.layout, "annotation", key.removeprefix("annotation."), "annotation")
        self._text_column: str = annotation.get("original_key") or key
        self._value_columns = sorted({column for groups in self._groups.values() for column, _ in groups.values()})
        self._tables = FrameTables(self.layout, sorted({*self._value_columns, self._text_column, EPISODE}))
        self.table_digest = self._tables.digest
        self._check_widths()
        self._images = table_images(self.layout, configs["video"].modality_keys, self.table_digest)
        self._videos: OrderedDict[Path, dict[tuple[int, str], EpisodeVideo]] = OrderedDict()
        self.frame_store: FrameStore | None = None  # takes the place of the videos

    def step(self, episode: int, frame: int, *, images: bool = True) -> Step:
        """What was known and done at one frame: images (T, H, W, 3), states (T, D), actions (H, D), instruction.

        Without `images` no frame is read and `Step.images` is empty.
        """
        last = self.layout.episode(episode).length - 1
        frames = {name: frame + np.asarray(self.configs[name].delta_indices) for name in ("video", "state", "action")}
        inside = {name: np.clip(of_modality, 0, last) for name, of_modality in frames.items()}
        views = {}
        for camera in self.configs["video"].modality_keys if images else []:
            if self.frame_store is not None:
                views[camera] = self.frame_store.frames(episode, camera, inside["video"])
            else:
                views[camera] = self._video(episode, camera).frames(inside["video"].tolist())
        return Step(
            images=views,
            states=self._values("state", episode, inside["state"]),
            text=self.instruction(episode, frame),
            actions=self._values("action", episode, inside["action"]),
            action_valid=(frames["action"] >= 0) & (frames["action"] <= last),
        )

    def instruction(self, episode: int, frame: int = 0) -> str:
        """The instruction given at that frame."""
        value = self._tables.rows(self._text_column, episode, np.array([frame]))[0]
        if isinstance(value, str):
            return value
        value = np.asarray(value).reshape(-1)[0].item()
        number = whole_number(value, self.layout.root, f"episode {episode}: task_index")
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
        return {
            column: feature_statistics(np.concatenate([matrix(self._tables.episode(column, e)) for e in episodes]))
            for column in self._value_columns
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
        # modality.json's form for groups that lie one behind the other, as they have just been concatenated.
        packed = {}
        for modality, widths in self.widths().items():
            ends = np.cumsum([*widths.values()])
            packed[modality] = {
                key: {"start": e - w, "end": e} for (key, w), e in zip(widths.items(), ends, strict=True)
            }
        return relative_statistics(states, actions, packed, self.configs, tail)

    def trajectory(self, modality: str, episode: int) -> dict[str, np.ndarray]:
        """Every group of "state" or "action" over a whole episode, (frames, D) float32."""
        return self._values(modality, episode, np.arange(self.layout.episode(episode).length))

    def _values(self, modality: str, episode: int, frames: np.ndarray) -> dict[str, np.ndarray]:
        return {
            key: matrix(self._tables.rows(column, episode, frames))[:, part].astype(np.float32)
            for key, (column, part) in self._groups[modality].items()
        }

    def _video(self, episode: int, camera: str) -> EpisodeVideo | EpisodeImages:
        """The video of an episode, kept open with its file, which others may lie in too (v3.0); or its images."""
        if camera in self._images:
            return EpisodeImages(self.layout, episode, self._images[camera])
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
            if not self.layout.is_in_tables(camera)
        }
        missing = [path for path in paths if not path.is_file() or not path.stat().st_size]
        if missing:
            refuse_special(missing[0])
            raise ToolkitError(
                f"{len(missing)} of {len(paths)} videos are missing or empty, the first {missing[0]}. Copy the dataset "
                "again, or prepare it again."
            )

    def _check_widths(self) -> None:
        for modality, groups in self._groups.items():
            for key, (column, part) in groups.items():
                width = matrix(self._tables.episode(column, self.layout.episodes[0].index)).shape[1]
                if part.stop > width:
                    raise ToolkitError(
                        f'{self.layout.root}/meta/modality.json: {modality} "{key}" ends at {part.stop}, but the '
                        f'column "{column}" has {width} values. Prepare the dataset again or mend modality.json.'
                    )


def _entry(layout: DatasetLayout, section: str, name: str, kind: str) -> dict[str, Any]:
    """What meta/modality.json says of a name."""
    return layout.entry(section, name, f' has no {kind} "{name}", which the modality configuration names.')


def _group_slices(layout: DatasetLayout, modality: str, keys: list[str]) -> dict[str, tuple[str, slice]]:
    found = {}
    for key in keys:
        entry = _entry(layout, modality, key, f"{modality} group")
        where = layout.meta.folder / "modality.json"
        start, end = (whole_number(entry.get(side), where, f"{modality}.{key}.{side}") for side in ("start", "end"))
        found[key] = (entry.get("original_key") or COLUMNS[modality], slice(start, end))
    return found
