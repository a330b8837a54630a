"""A GR00T-flavoured LeRobot dataset (v2.x or v3.0) as steps: what the robot saw, felt and did. Its frame tables
(parquet) are memory-mapped through Hugging Face `datasets`."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gr00t.data.layout import DatasetLayout
from gr00t.data.processor import Step
from gr00t.data.schema import ModalityConfigs, check_modality_configs, look_up
from gr00t.data.statistics import COLUMNS, Statistics, Tail, feature_statistics, relative_statistics
from gr00t.data.stored_arrays import FrameStore
from gr00t.data.video import EpisodeVideo
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_replacement import files_digest, make_once, unsound, whole_folder, write_checksum

CACHE_FOLDER = ".cache"
EPISODE = "episode_index"
PARTS = "part-*.arrow"
OPEN_VIDEOS = 64  # containers a process keeps open; each holds a few frames' worth of memory


class FrameTables:
    """Columns of all episodes, one row a frame; `digest` is the hash of the parquet files' content.

    The parquet files are converted once to Arrow (in `.cache/` of the dataset folder, or of the temporary folder
    where the dataset is read-only) and mapped into memory; processes of one machine share the pages. The copy is named
    by their content, and checked whenever it is opened; a damaged one is made again.
    """

    def __init__(self, layout: DatasetLayout, columns: list[str]) -> None:
        root, paths = layout.root, layout.data_files()
        for path in paths:
            if not path.is_file():
                raise ToolkitError(f"{path} is missing. Prepare the dataset again.")
        self.digest = files_digest(paths)
        names = sorted({*columns, EPISODE})
        read = hashlib.sha256("\0".join([self.digest, *names]).encode()).hexdigest()
        copy = cache_folder(root) / f"tables-{read[:16]}"
        make_once(copy, f"the Arrow copy of {root}", lambda: _is_whole(copy), lambda: _copy(layout, copy, names))
        parts = sorted(copy.glob(PARTS))
        table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(part)) for part in parts])
        self._columns = {name: _to_numpy(table, name, root) for name in names}
        self._span = _spans(layout, self._columns[EPISODE])

    def rows(self, column: str, episode: int, frames: np.ndarray) -> np.ndarray:
        """Values (len(frames), ...) of `column` at frame numbers within an episode."""
        start, end = self._span[episode]
        if len(frames) and (frames.min() < 0 or frames.max() >= end - start):
            raise IndexError(f"episode {episode} has {end - start} frames, not {frames.max() + 1}")
        return self._columns[column][start + frames]

    def episode(self, column: str, episode: int) -> np.ndarray:
        """All values (T, ...) of an episode, a view into the mapped file."""
        start, end = self._span[episode]
        return self._columns[column][start:end]


def _spans(layout: DatasetLayout, numbers: np.ndarray) -> dict[int, tuple[int, int]]:
    """{episode: (first row, one past the last)} from the column of episode indices (rows,), which may hold others.

    Where rows lie is read from the rows: in LeRobot v3.0 files hold many episodes, and its own converter may write the
    wrong file into meta/episodes.
    """
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    ends = np.append(starts[1:], len(numbers))
    found = {int(numbers[start]): (int(start), int(end)) for start, end in zip(starts, ends, strict=True)}
    parts = Counter(map(int, numbers[starts]))
    for e in layout.episodes:
        start, end = found.get(e.index, (0, 0))
        if end - start != e.length or parts[e.index] > 1:
            raise ToolkitError(
                f"{layout.parquet_path(e.index)}: the episode_index column does not say {e.index} in {e.length} rows "
                "that follow each other. Prepare the dataset again."
            )
    return found


def _is_whole(copy: Path) -> bool:
    parts = sorted(copy.glob(PARTS))
    return bool(parts) and parts[-1].name == _part_name(len(parts) - 1, len(parts)) and not unsound(parts, copy.name)


def _part_name(number: int, count: int) -> str:
    return f"part-{number:05d}-of-{count:05d}.arrow"


def _copy(layout: DatasetLayout, copy: Path, columns: list[str]) -> None:
    """Write these columns as Arrow files, rows in their order, then remove the copies of what the tables held before.

    Columns that nobody reads may differ between the files, and may be large.

    What `datasets` keeps by itself is found again by path and time, which files that were restored may share.
    """
    with whole_folder(copy, lock=False) as aside:
        had_bars = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            paths = [str(path) for path in layout.data_files()]
            for path in paths:
                for name in columns:
                    look_up(dict.fromkeys(pq.read_schema(path).names), name, f'{path}: no column "{name}".')
            table = datasets.Dataset.from_parquet(paths, cache_dir=str(aside / "datasets"), columns=columns)
        except ToolkitError:
            raise
        except Exception as error:  # datasets wraps what pyarrow says in many types
            if (disk := _disk_error(error)) is not None:
                raise disk from error
            raise ToolkitError(f"{layout.root}/data cannot be read ({error}). Prepare the dataset again.") from error
        finally:
            if had_bars:
                datasets.enable_progress_bars()
        assert isinstance(table, datasets.Dataset)
        made = [Path(file["filename"]) for file in table.cache_files]
        for number, path in enumerate(made):
            part = aside / _part_name(number, len(made))
            path.rename(part)
            write_checksum(part, copy.name)
        shutil.rmtree(aside / "datasets")
    for other in copy.parent.glob("tables-*"):
        if other != copy:
            shutil.rmtree(other, ignore_errors=True)


def _disk_error(error: BaseException | None) -> OSError | None:
    """What the disk said when a copy could not be written; None for anything else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        if "Not enough disk space" in str(error):  # of `datasets`, ahead of writing
            return OSError(errno.ENOSPC, str(error))
        error = error.__cause__ or error.__context__
    return None


def cache_folder(root: Path) -> Path:
    """The folder of what is made from a dataset: beside it, or below the temporary folder where it is read-only."""
    beside = root / CACHE_FOLDER
    place = beside if beside.is_dir() else root
    # the mode besides: the superuser may write where nobody is meant to
    if os.access(place, os.W_OK) and root.stat().st_mode & 0o222:
        return beside
    folder = Path(tempfile.gettempdir()) / f"groot-tables-{os.getuid()}"
    with disk_errors(folder, "Set TMPDIR to a folder with room."):
        folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ToolkitError(f"{folder} belongs to another user. Remove it, or set TMPDIR to a folder of your own.")
    return folder / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def _to_numpy(table: datasets.Dataset, name: str, root: Path) -> np.ndarray:
    """(rows,) or (rows, D); without a copy where the mapped column is one piece."""
    pieces = []
    for chunk in table.data.column(name).chunks:
        if chunk.null_count:
            raise ToolkitError(f'{root}/data: column "{name}" has empty cells. Prepare the dataset again.')
        if pa.types.is_list(chunk.type) or pa.types.is_fixed_size_list(chunk.type):
            flat = chunk.flatten().to_numpy(zero_copy_only=False)
            if len(chunk) and flat.size % len(chunk):
                raise ToolkitError(f'{root}/data: column "{name}" has rows of several widths. Prepare it again.')
            pieces.append(flat.reshape(len(chunk), -1))
        else:
            pieces.append(chunk.to_numpy(zero_copy_only=False))
    try:
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    except ValueError:
        raise ToolkitError(f'{root}/data: column "{name}" has rows of several widths.') from None


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
        key = configs["language"].modality_keys[0]
        annotation = _entry(self.layout, "annotation", key.removeprefix("annotation."), "annotation")
        self._text_column: str = annotation.get("original_key") or key
        self._value_columns = sorted({column for groups in self._groups.values() for column, _ in groups.values()})
        self._tables = FrameTables(self.layout, sorted({*self._value_columns, self._text_column, EPISODE}))
        self.table_digest = self._tables.digest
        self._check_widths()
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
        return {
            column: feature_statistics(np.concatenate([_matrix(self._tables.episode(column, e)) for e in episodes]))
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
        packed: dict[str, dict[str, dict[str, int]]] = {}
        for modality, widths in self.widths().items():
            end = 0
            packed[modality] = {}
            for key, width in widths.items():
                packed[modality][key] = {"start": end, "end": end + width}
                end += width
        return relative_statistics(states, actions, packed, self.configs, tail)

    def trajectory(self, modality: str, episode: int) -> dict[str, np.ndarray]:
        """Every group of "state" or "action" over a whole episode, (frames, D) float32."""
        return self._values(modality, episode, np.arange(self.layout.episode(episode).length))

    def _values(self, modality: str, episode: int, frames: np.ndarray) -> dict[str, np.ndarray]:
        return {
            key: _matrix(self._tables.rows(column, episode, frames))[:, part].astype(np.float32)
            for key, (column, part) in self._groups[modality].items()
        }

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


def _entry(layout: DatasetLayout, section: str, name: str, kind: str) -> dict[str, Any]:
    """What meta/modality.json says of a name."""
    problem = f'{layout.root}/meta/modality.json has no {kind} "{name}", which the modality configuration names.'
    return look_up(layout.modality.get(section, {}), name, problem)


def _group_slices(layout: DatasetLayout, modality: str, keys: list[str]) -> dict[str, tuple[str, slice]]:
    found = {}
    for key in keys:
        entry = _entry(layout, modality, key, f"{modality} group")
        found[key] = (entry.get("original_key") or COLUMNS[modality], slice(int(entry["start"]), int(entry["end"])))
    return found
