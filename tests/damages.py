"""Ways in which a dataset goes wrong, each done to a folder that was sound; used by test_doctor.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from conflict_panda_config import MODALITY_CONFIG
from gr00t.data.statistics import feature_statistics, relative_statistics
from gr00t.data.video import VideoReader, write_video

Columns = dict[str, np.ndarray]
CAMERAS = ("image", "wrist_image")
ANNOTATION = "annotation.human.task_description"


def table_path(root: Path, episode: int) -> Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def video_path(root: Path, episode: int, camera: str = "image") -> Path:
    return root / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"


def episode_numbers(root: Path) -> list[int]:
    return sorted(int(path.stem[-6:]) for path in (root / "data").rglob("*.parquet"))


def read_table(root: Path, episode: int) -> Columns:
    table = pq.read_table(table_path(root, episode))
    return {name: np.array(table.column(name).to_pylist()) for name in table.column_names}


def write_table(root: Path, episode: int, columns: Columns) -> None:
    floats = {n: v.astype(np.float32) if v.dtype.kind == "f" else v for n, v in columns.items()}
    table = pa.table({n: pa.array(list(v) if v.ndim == 2 else v) for n, v in floats.items()})
    pq.write_table(table, table_path(root, episode))


def edit_tables(
    root: Path,
    change: Callable[[Columns], object],
    episodes: Iterable[int] | None = None,
    *,
    new_statistics: bool = True,
) -> None:
    """Apply `change` to the columns of some or all episodes, and write new statistics, as a careful user would."""
    for episode in episode_numbers(root) if episodes is None else episodes:
        columns = read_table(root, episode)
        change(columns)
        write_table(root, episode, columns)
    if new_statistics:
        renew_statistics(root)


def renew_statistics(root: Path) -> None:
    """stats.json and relative_stats.json from the training episodes as they are now."""
    held_out = json.loads((root / "meta/split.json").read_text())["val_episodes"]
    tables = [read_table(root, i) for i in episode_numbers(root) if i not in held_out]
    recorded = json.loads((root / "meta/stats.json").read_text())
    for name in recorded:
        joined = np.concatenate([t[name] for t in tables]).astype(np.float64)
        recorded[name] = feature_statistics(joined if joined.ndim == 2 else joined[:, None])
    (root / "meta/stats.json").write_text(json.dumps(recorded))
    modality = json.loads((root / "meta/modality.json").read_text())
    pairs = [[t[name].astype(np.float32) for t in tables] for name in ("observation.state", "action")]
    relative = relative_statistics(pairs[0], pairs[1], modality, MODALITY_CONFIG)
    (root / "meta/relative_stats.json").write_text(json.dumps(relative))


def edit_meta(root: Path, name: str, change: Callable[[Any], object]) -> None:
    path = root / "meta" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_lines(root: Path, name: str, change: Callable[[list[Any]], object]) -> None:
    path = root / "meta" / name
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_videos(
    root: Path,
    change: Callable[[np.ndarray], np.ndarray],
    episodes: Iterable[int] | None = None,
    cameras: Iterable[str] = CAMERAS,
) -> None:
    """Decode, change (T, H, W, 3) and encode again."""
    for episode in episode_numbers(root) if episodes is None else episodes:
        for camera in cameras:
            path = video_path(root, episode, camera)
            with VideoReader(path) as reader:
                frames, fps = reader.frames(range(len(reader))), round(reader.fps)
            write_video(path, np.ascontiguousarray(change(frames)), fps)


def shifted(values: np.ndarray, steps: int) -> np.ndarray:
    """values[t - steps] at t, the ends held."""
    return values[np.clip(np.arange(len(values)) - steps, 0, len(values) - 1)]


def slowed(frames: np.ndarray, rate: float) -> np.ndarray:
    """What a camera of another rate saw: frame t is of the moment rate * t."""
    at = np.arange(len(frames)) * rate
    before, share = at.astype(int), (at % 1)[:, None, None, None]
    return (frames[before] * (1 - share) + frames[np.minimum(before + 1, len(frames) - 1)] * share).astype(np.uint8)


def show_later(root: Path, factor: float) -> None:
    """Frames whose times grow by that factor, below the 2 % at which the frame rate itself is another."""
    path = video_path(root, 4)
    with VideoReader(path) as reader:
        frames = reader.frames(range(len(reader)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(number * 4500 * factor), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def put(columns: Columns, name: str, where: Any, value: Any) -> None:
    columns[name] = columns[name].astype(np.float64)
    columns[name][where] = value


def scale(columns: Columns, name: str, dims: slice, factor: float) -> None:
    columns[name] = columns[name].astype(np.float64)
    columns[name][:, dims] *= factor


def shift_column(columns: Columns, name: str, steps: int) -> None:
    columns[name] = shifted(columns[name], steps)


def make_deltas(columns: Columns) -> None:
    columns["action"] = columns["action"].astype(np.float64)
    columns["action"][:, :7] -= columns["observation.state"][:, :7]


def half_frozen(frames: np.ndarray) -> np.ndarray:
    return frames[np.minimum(np.arange(len(frames)), len(frames) // 2)]


def copy_episode(root: Path, source: int, target: int) -> None:
    """Put one episode's content in another's place, numbered and listed as if it belonged there."""
    columns = read_table(root, source)
    columns["episode_index"][:] = target
    write_table(root, target, columns)
    for camera in CAMERAS:
        shutil.copyfile(video_path(root, source, camera), video_path(root, target, camera))
    lengths: dict[int, int] = {}

    def listed(lines: list[Any]) -> None:
        lines[target]["length"] = lines[source]["length"]
        lengths.update({line["episode_index"]: line["length"] for line in lines})

    edit_lines(root, "episodes.jsonl", listed)
    start = 0
    for index in episode_numbers(root):
        table = read_table(root, index)
        table["index"] = start + np.arange(lengths[index])
        start += lengths[index]
        write_table(root, index, table)
    edit_meta(root, "info.json", lambda info: info.update(total_frames=start))
    renew_statistics(root)


# -- the damages -------------------------------------------------------------------------------------------------------

ARM, GRIPPER = slice(0, 7), slice(7, 8)
STATE, ACTION = "observation.state", "action"
Damage = Callable[[Path], object]


def forget_first_frames(root: Path) -> None:
    """As a dataset that another converter wrote."""
    edit_meta(root, "split.json", lambda split: [entry.pop("first_frame") for entry in split["episodes"]])


def damaged_bytes(root: Path) -> None:
    path = video_path(root, 2)
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = np.random.default_rng(0).integers(0, 256, third, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(content))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def forget_hashes(root: Path) -> None:
    """As a dataset that an earlier version wrote."""
    edit_meta(root, "split.json", lambda split: split.pop("files"))


def truncated(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def swap_cameras(root: Path, episodes: Iterable[int]) -> None:
    for episode in episodes:
        one, other = (video_path(root, episode, camera) for camera in CAMERAS)
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)


def show_another_episode(root: Path, episode: int, shown: int) -> None:
    for camera in CAMERAS:
        with VideoReader(video_path(root, shown, camera)) as reader:
            frames = reader.frames(range(len(reader)))
        length = len(read_table(root, episode)[ACTION])
        write_video(video_path(root, episode, camera), frames[np.minimum(np.arange(length), len(frames) - 1)], 20)


def one_frame(frames: np.ndarray, index: int, value: np.ndarray | int) -> np.ndarray:
    changed = frames.copy()
    changed[index] = value
    return changed


def count_val_too(root: Path) -> None:
    """Statistics over all episodes, relative ones over the training episodes."""
    split, relative = (root / "meta/split.json").read_text(), (root / "meta/relative_stats.json").read_text()
    edit_meta(root, "split.json", lambda content: content.update(val_episodes=[]))
    renew_statistics(root)
    (root / "meta/split.json").write_text(split)
    (root / "meta/relative_stats.json").write_text(relative)


def nearly_copy(root: Path, source: int, target: int) -> None:
    copy_episode(root, source, target)
    rng = np.random.default_rng(0)

    def tremble(columns: Columns) -> None:
        for name in (STATE, ACTION):
            columns[name] = columns[name].astype(np.float64)
            columns[name][:, ARM] += rng.normal(0, 1e-4, columns[name][:, ARM].shape)

    edit_tables(root, tremble, [target])


def unlisted(columns: Columns) -> None:
    columns["task_index"][:] = 5
    columns["annotation.human.task_description"][:] = 5


COLORS = ("red", "green", "blue", "red", "green", "blue", "red", "green")


def record_targets(root: Path, *, swapped: bool = False) -> None:
    """Instructions that name a color, and targets as our recordings have them; `swapped` exchanges those of 4 and 5."""
    colors = [COLORS[i] for i in ((0, 1, 2, 3, 5, 4, 6, 7) if swapped else range(8))]
    targets = [{"color": color, "object": "cube", "x": 0.1} for color in colors]
    record_episodes(root, [f"Lift the {color} cube" for color in COLORS], targets)


def record_episodes(
    root: Path, instructions: Sequence[str], targets: Sequence[Mapping[str, Any]], part: str = "train"
) -> None:
    """The instructions of the episodes of a dataset, and which object each of them picked."""
    tasks = list(dict.fromkeys(instructions))

    def record(split: Any) -> None:
        split.pop("fingerprint"), split.pop("files")
        split["part"] = part
        for entry, target in zip(split["episodes"], targets, strict=True):
            entry["target"] = dict(target)

    edit_meta(root, "split.json", record)
    edit_lines(root, "tasks.jsonl", list.clear)
    edit_lines(
        root, "tasks.jsonl", lambda lines: lines.extend({"task_index": i, "task": t} for i, t in enumerate(tasks))
    )
    edit_lines(root, "episodes.jsonl", lambda ls: [e.update(tasks=[instructions[i]]) for i, e in enumerate(ls)])
    edit_meta(root, "info.json", lambda info: info.update(total_tasks=len(tasks)))
    for i, told in enumerate(instructions):
        number = tasks.index(told)
        edit_tables(
            root, lambda c, n=number: (c["task_index"].fill(n), c["annotation.human.task_description"].fill(n)), [i]
        )


def another_answer(root: Path) -> None:
    """Episode 5 begins as episode 3 does and goes elsewhere."""
    copy_episode(root, 3, 5)

    def turn(columns: Columns) -> None:
        away = np.linspace(0, 1, len(columns[ACTION]))[:, None] ** 2 * [[0.8, -0.5, 0.6, 0.5, -0.6, 0.5, 0.7]]
        for name in (STATE, ACTION):
            columns[name] = columns[name] + np.pad(away, ((0, 0), (0, 1)))

    edit_tables(root, turn, [5])


# name: (the check that names it, level, damage). Those of tables and meta/ are found without decoding a video.
IN_TABLES: dict[str, tuple[str, str, Damage]] = {
    "modality.json is gone": ("layout", "error", lambda r: (r / "meta/modality.json").unlink()),
    "info.json is no JSON": ("layout", "error", lambda r: (r / "meta/info.json").write_text("{broken")),
    "fps is a word": ("layout", "error", lambda r: edit_meta(r, "info.json", lambda i: i.update(fps="fast"))),
    "total_frames": ("counts", "error", lambda r: edit_meta(r, "info.json", lambda i: i.update(total_frames=9))),
    "a table is gone": ("tables", "error", lambda r: table_path(r, 3).unlink()),
    "a table is cut off": ("tables", "error", lambda r: truncated(table_path(r, 3), 0.3)),
    "rows are lost": (
        "tables",
        "error",
        lambda r: edit_tables(r, lambda c: c.update({k: v[:-3] for k, v in c.items()}), [4]),
    ),
    "another episode's number": (
        "tables",
        "error",
        lambda r: edit_tables(r, lambda c: c["episode_index"].fill(1), [4]),
    ),
    "rows in reverse": (
        "tables",
        "error",
        lambda r: edit_tables(r, lambda c: c.update({k: v[::-1] for k, v in c.items()}), [4]),
    ),
    "a flipped bit in a table": ("fingerprint", "error", lambda r: flip_a_bit(table_path(r, 3))),
    "a video is gone": ("video files", "error", lambda r: video_path(r, 2).unlink()),
    "a video is empty": ("video files", "error", lambda r: video_path(r, 2).write_bytes(b"")),
    "a video is cut off": ("video decoding", "error", lambda r: truncated(video_path(r, 2), 0.6)),
    "a video is too short": ("video decoding", "error", lambda r: edit_videos(r, lambda f: f[:-4], [2], ["image"])),
    "a video is there twice": (
        "video copies",
        "error",
        lambda r: shutil.copyfile(video_path(r, 5), video_path(r, 4)),
    ),
    "a group's name": (
        "modality names",
        "error",
        lambda r: edit_meta(r, "modality.json", lambda m: m["state"].update(grippper=m["state"].pop("gripper"))),
    ),
    "a camera's name": (
        "modality names",
        "error",
        lambda r: edit_meta(r, "modality.json", lambda m: m["video"].update(wristimage=m["video"].pop("wrist_image"))),
    ),
    "a range beyond the column": (
        "modality ranges",
        "error",
        lambda r: edit_meta(r, "modality.json", lambda m: m["action"]["gripper"].update(start=8, end=9)),
    ),
    "ranges overlap": (
        "modality ranges",
        "error",
        lambda r: edit_meta(r, "modality.json", lambda m: m["action"]["gripper"].update(start=6, end=8)),
    ),
    "groups of different widths": (
        "modality groups",
        "error",
        lambda r: edit_meta(
            r, "modality.json", lambda m: (m["state"]["arm"].update(end=6), m["state"]["gripper"].update(start=6))
        ),
    ),
    "30 Hz, consistently": (
        "frame rate",
        "error",
        lambda r: (
            edit_meta(r, "info.json", lambda i: i.update(fps=30)),
            edit_tables(r, lambda c: c.update(timestamp=c["frame_index"] / 30)),
        ),
    ),
    "timestamps of another rate": (
        "timestamps",
        "error",
        lambda r: edit_tables(r, lambda c: c.update(timestamp=c["frame_index"] / 10)),
    ),
    "timestamps go back": (
        "timestamps",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, "timestamp", slice(5, 7), 0.0), [3]),
    ),
    "a gap in time": (
        "timestamps",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, "timestamp", slice(9, None), c["timestamp"][9:] + 0.3), [3]),
    ),
    "NaN in the state": (
        "numbers",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, STATE, (7, 2), np.nan), [3], new_statistics=False),
    ),
    "infinity in the action": (
        "numbers",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, ACTION, (7, 2), np.inf), [3], new_statistics=False),
    ),
    "degrees": (
        "units",
        "error",
        lambda r: edit_tables(r, lambda c: (scale(c, STATE, ARM, 57.29578), scale(c, ACTION, ARM, 57.29578))),
    ),
    "degrees in the action alone": (
        "action convention",
        "error",
        lambda r: edit_tables(r, lambda c: scale(c, ACTION, ARM, 57.29578)),
    ),
    "the gripper's command in metres": (
        "units",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, ACTION, (slice(None), 7), (c[ACTION][:, 7] + 1) * 0.04)),
    ),
    "the gripper's opening in millimetres": (
        "units",
        "error",
        lambda r: edit_tables(r, lambda c: scale(c, STATE, GRIPPER, 1000)),
    ),
    "the gripper's command from 0 to 1": (
        "units",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, ACTION, (slice(None), 7), (c[ACTION][:, 7] + 1) / 2)),
    ),
    "the gripper's sign": ("gripper", "error", lambda r: edit_tables(r, lambda c: scale(c, ACTION, GRIPPER, -1))),
    "the gripper never closes": (
        "constants",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, ACTION, (slice(None), 7), 1.0)),
    ),
    "a joint is not measured": (
        "constants",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, STATE, (slice(None), 3), -1.7)),
    ),
    "the state sticks in an episode": (
        "constants",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, STATE, slice(None), c[STATE][0]), [4]),
    ),
    "a spike in an action": (
        "outliers",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, ACTION, (12, 1), 4.0), [4]),
    ),
    "a spike in the state": ("outliers", "error", lambda r: edit_tables(r, lambda c: put(c, STATE, (20, 4), 1.5), [5])),
    "a joint that was calibrated again": (
        "action convention",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, STATE, (slice(None), 3), c[STATE][:, 3] + 0.5)),
    ),
    "actions of another scale": (
        "action convention",
        "error",
        lambda r: edit_tables(r, lambda c: scale(c, ACTION, ARM, 1.1)),
    ),
    "deltas": ("action convention", "error", lambda r: edit_tables(r, make_deltas)),
    "deltas in one episode": ("action convention", "error", lambda r: edit_tables(r, make_deltas, [5])),
    "joints in another order": (
        "action convention",
        "error",
        lambda r: edit_tables(r, lambda c: c.update(action=c[ACTION][:, [1, 0, 2, 3, 4, 5, 6, 7]])),
    ),
    "a joint's sign": (
        "action convention",
        "error",
        lambda r: edit_tables(r, lambda c: scale(c, ACTION, slice(5, 6), -1)),
    ),
    "actions a step late": ("action lead", "error", lambda r: edit_tables(r, lambda c: shift_column(c, ACTION, 1))),
    "actions a step early": ("action lead", "error", lambda r: edit_tables(r, lambda c: shift_column(c, ACTION, -1))),
    "actions late in one episode": (
        "action lead",
        "error",
        lambda r: edit_tables(r, lambda c: shift_column(c, ACTION, 2), [4]),
    ),
    "actions that copy the state": (
        "action lead",
        "error",
        lambda r: edit_tables(r, lambda c: put(c, ACTION, (slice(None), ARM), c[STATE][:, ARM])),
    ),
    "a wrong maximum": (
        "statistics",
        "error",
        lambda r: edit_meta(r, "stats.json", lambda s: s[ACTION]["max"].__setitem__(1, 2.0)),
    ),
    "statistics of held-out episodes": ("statistics", "warning", count_val_too),
    "statistics of another horizon": (
        "relative statistics",
        "error",
        lambda r: edit_meta(
            r, "relative_stats.json", lambda s: s["arm"].update({k: v[:8] for k, v in s["arm"].items()})
        ),
    ),
    "relative statistics that are a list": (
        "relative statistics",
        "error",
        lambda r: edit_meta(r, "relative_stats.json", lambda s: s.update(arm=[1.0])),
    ),
    "relative statistics without a percentile": (
        "relative statistics",
        "error",
        lambda r: edit_meta(r, "relative_stats.json", lambda s: s["arm"].pop("q99")),
    ),
    "relative statistics with rows of several widths": (
        "relative statistics",
        "error",
        lambda r: edit_meta(r, "relative_stats.json", lambda s: s["arm"]["min"][2].pop()),
    ),
    "relative statistics with a word": (
        "relative statistics",
        "error",
        lambda r: edit_meta(r, "relative_stats.json", lambda s: s["arm"]["max"][2].__setitem__(1, "0.5")),
    ),
    "relative statistics with a NaN": (
        "relative statistics",
        "error",
        lambda r: edit_meta(r, "relative_stats.json", lambda s: s["arm"]["max"][2].__setitem__(1, float("nan"))),
    ),
    "statistics that are a number": (
        "statistics",
        "error",
        lambda r: edit_meta(r, "stats.json", lambda s: s[ACTION].update(q01=0.5)),
    ),
    "chunks_size below one": (
        "layout",
        "error",
        lambda r: edit_meta(r, "info.json", lambda i: i.update(chunks_size=1e-9)),
    ),
    "a length that is a word": (
        "layout",
        "error",
        lambda r: edit_lines(r, "episodes.jsonl", lambda lines: lines[2].update(length="long")),
    ),
    "a path of a billion characters": (
        "tables",
        "error",
        lambda r: edit_meta(r, "info.json", lambda i: i.update(data_path="{episode_index:01000000000d}")),
    ),
    "a path that no system takes": (
        "tables",
        "error",
        lambda r: edit_meta(r, "info.json", lambda i: i.update(data_path="data/\0{episode_index}")),
    ),
    "stale relative statistics": (
        "relative statistics",
        "error",
        lambda r: edit_meta(
            r,
            "relative_stats.json",
            lambda s: s["arm"].update({k: (np.array(v) / 2).tolist() for k, v in s["arm"].items()}),
        ),
    ),
    "an empty instruction": (
        "instructions",
        "error",
        lambda r: edit_lines(r, "tasks.jsonl", lambda lines: lines[0].update(task="  ")),
    ),
    "one scene, two answers": ("one answer", "warning", another_answer),
    "one scene, two recorded targets": (
        "one answer",
        "error",
        lambda r: (
            copy_episode(r, 3, 5),
            edit_meta(
                r,
                "split.json",
                lambda s: [
                    e.update(target={"color": "red" if i == 5 else "blue"}) for i, e in enumerate(s["episodes"])
                ],
            ),
        ),
    ),
    "an instruction that names another value": ("targets", "error", lambda r: record_targets(r, swapped=True)),
    "an unlisted instruction": ("told", "error", lambda r: edit_tables(r, unlisted, [3])),
    "LeRobot's column of instructions": (
        "told",
        "warning",
        lambda r: edit_tables(r, lambda c: c["task_index"].fill(7), [3]),
    ),
    "another episode's instruction": (
        "told",
        "error",
        lambda r: edit_lines(r, "episodes.jsonl", lambda lines: lines[3].update(tasks=["stack the cubes"])),
    ),
    "an episode is there twice": ("duplicates", "error", lambda r: copy_episode(r, 3, 5)),
    "a held-out episode is trained on": ("duplicates", "error", lambda r: copy_episode(r, 0, 5)),
    "an episode and its replay": ("duplicates", "warning", lambda r: nearly_copy(r, 3, 5)),
    "an unknown episode is held out": (
        "held out",
        "error",
        lambda r: edit_meta(r, "split.json", lambda s: s.update(val_episodes=[0, 99])),
    ),
    "everything is held out": (
        "held out",
        "error",
        lambda r: edit_meta(r, "split.json", lambda s: s.update(val_episodes=list(range(8)))),
    ),
    "the conflict part in train's place": (
        "held out",
        "error",
        lambda r: edit_meta(r, "split.json", lambda s: s.update(part="conflict")),
    ),
    "an episode that fails": ("endings", "error", lambda r: edit_tables(r, lambda c: c["next.reward"].fill(0), [4])),
    "BGR": ("first frames", "error", lambda r: edit_videos(r, lambda f: f[..., ::-1])),
    "BGR, of another converter": (
        "colours",
        "warning",
        lambda r: (forget_first_frames(r), edit_videos(r, lambda f: f[..., ::-1])),
    ),
    "grey images": (
        "colours",
        "warning",
        lambda r: (forget_first_frames(r), edit_videos(r, lambda f: np.repeat(f[..., 1:2], 3, axis=-1))),
    ),
    "mirrored images": ("first frames", "error", lambda r: edit_videos(r, lambda f: f[:, :, ::-1], None, ["image"])),
    "frames that are shown ever later": ("video rate", "warning", lambda r: show_later(r, 1.018)),
    "swapped cameras": ("first frames", "error", lambda r: swap_cameras(r, episode_numbers(r))),
    "another episode's videos": ("first frames", "error", lambda r: show_another_episode(r, 4, 5)),
}

# Those that only the whole videos show.
IN_VIDEOS: dict[str, tuple[str, str, Damage]] = {
    "damaged bytes inside a video": ("video decoding", "error", damaged_bytes),
    "a frozen video": (
        "frozen frames",
        "error",
        lambda r: edit_videos(r, lambda f: np.repeat(f[:1], len(f), 0), [4], ["image"]),
    ),
    "a video that freezes": ("frozen frames", "error", lambda r: edit_videos(r, half_frozen, [4], ["image"])),
    "a decoder that stuck": ("frozen frames", "error", lambda r: edit_videos(r, lambda f: np.repeat(f[:1], len(f), 0))),
    "half the frame rate": (
        "frozen frames",
        "error",
        lambda r: edit_videos(r, lambda f: np.repeat(f[::2], 2, 0)[: len(f)]),
    ),
    "a black video": ("blank frames", "error", lambda r: edit_videos(r, np.zeros_like, [4], ["image"])),
    "a black frame": ("blank frames", "error", lambda r: edit_videos(r, lambda f: one_frame(f, 10, 0), [4], ["image"])),
    "a frame of another time": (
        "blank frames",
        "warning",
        lambda r: edit_videos(r, lambda f: one_frame(f, 6, 255 - f[6]), [4], ["wrist_image"]),
    ),
    "BGR in one episode": (
        "likeness",
        "error",
        lambda r: (forget_first_frames(r), edit_videos(r, lambda f: f[..., ::-1], [3], ["image"])),
    ),
    "one episode upside down": (
        "likeness",
        "error",
        lambda r: (forget_first_frames(r), edit_videos(r, lambda f: f[:, ::-1, ::-1], [3], ["image"])),
    ),
    "swapped cameras in one episode": ("likeness", "error", lambda r: (forget_first_frames(r), swap_cameras(r, [4]))),
    "swapped cameras, of another converter": (
        "cameras",
        "warning",
        lambda r: (forget_first_frames(r), swap_cameras(r, episode_numbers(r))),
    ),
    "a video one frame late": ("video and state", "error", lambda r: edit_videos(r, lambda f: shifted(f, 1))),
    "a video two frames early": ("video and state", "error", lambda r: edit_videos(r, lambda f: shifted(f, -2))),
    "a video late in one episode": ("video and state", "error", lambda r: edit_videos(r, lambda f: shifted(f, 3), [4])),
    "a video that drifts": (
        "video and state",
        "error",
        lambda r: edit_videos(r, lambda f: slowed(f, 0.8)),
    ),
    "a video that drifts in one episode": (
        "video and state",
        "error",
        lambda r: edit_videos(r, lambda f: slowed(f, 0.75), [4]),
    ),
    "a video backwards": ("video and state", "error", lambda r: edit_videos(r, lambda f: f[::-1], [4])),
    "a flipped bit in a video": ("fingerprint", "error", lambda r: flip_a_bit(video_path(r, 3))),
    "a flipped bit in a dataset of an earlier version": (
        "fingerprint",
        "error",
        lambda r: (forget_hashes(r), flip_a_bit(video_path(r, 3))),
    ),
    "an edited file": ("fingerprint", "warning", lambda r: (r / "meta/stats.json").open("a").write("\n")),
}


def rest_from(columns: Columns, frame: int) -> None:
    for name in (STATE, ACTION):
        columns[name][frame:] = columns[name][frame]


def jump_at(columns: Columns, frame: int) -> None:
    for name in (STATE, ACTION):
        columns[name][frame:, 4] += 1.2


def retype_column(root: Path, episode: int, name: str, kind: pa.DataType) -> None:
    table = pq.read_table(table_path(root, episode))
    place = table.column_names.index(name)
    column = table.column(name).combine_chunks().cast(kind)
    pq.write_table(table.set_column(place, name, column), table_path(root, episode))


def list_instruction(root: Path, **changes: str) -> None:
    edit_lines(root, "tasks.jsonl", lambda lines: lines.append({**lines[0], "task_index": 1, **changes}))


def of_one_recording(entries: list[dict[str, Any]]) -> None:
    entries[5].update(file=entries[3]["file"], trajectory=entries[3]["trajectory"])


# name: (the check that names it, level, words of place, finding and remedy, damage).
IN_WORDS: dict[str, tuple[str, str, list[str], Damage]] = {
    "episodes are not numbered from 0": (
        "counts",
        "warning",
        ["The 8 episodes are not numbered from 0: episode 7 missing.", "Check that none was lost"],
        lambda r: edit_lines(r, "episodes.jsonl", lambda lines: lines[7].update(episode_index=9)),
    ),
    "what there is": ("counts", "ok", ["8 episodes, ", " frames, 1 instructions"], lambda r: None),
    "lengths of four episodes": (
        "tables",
        "error",
        [
            "data/, episode 2: ",
            "promises 9.",
            "episodes 0, 1, 2, 3: Frame tables and meta/episodes.jsonl differ in length",
        ],
        lambda r: edit_lines(r, "episodes.jsonl", lambda lines: [line.update(length=9) for line in lines[:4]]),
    ),
    "the index begins again": (
        "tables",
        "warning",
        ["data/, episodes 3, 4: The column index does not run on", "Training does not read it, LeRobot does"],
        lambda r: edit_tables(r, lambda c: c["index"].__isub__(c["index"][0]), [4]),
    ),
    "a row of the index is lost": (
        "tables",
        "warning",
        ["data/, episode 4: The column index does not run on"],
        lambda r: edit_tables(r, lambda c: c["index"].__setitem__(5, 0), [4]),
    ),
    "another width than promised": (
        "features",
        "error",
        ["data/, column action, all 8 episodes: Rows have 8 values, meta/info.json promises 9."],
        lambda r: edit_meta(r, "info.json", lambda i: i["features"][ACTION].update(shape=[9])),
    ),
    "whole numbers for actions": (
        "features",
        "error",
        ["data/, column action: Holds whole numbers or texts, where measured values are expected."],
        lambda r: edit_tables(r, lambda c: c.update(action=c[ACTION].round().astype(np.int64)), new_statistics=False),
    ),
    "actions in lists that training cannot read": (
        "features",
        "error",
        ["data/, column action, episode 4: Rows have 1 values, meta/info.json promises 8."],
        lambda r: retype_column(r, 4, ACTION, pa.large_list(pa.float32())),
    ),
    "total_videos": (
        "video files",
        "warning",
        ["total_videos says 5; 8 episodes of 2 cameras are 16.", "An interrupted copy"],
        lambda r: edit_meta(r, "info.json", lambda i: i.update(total_videos=5)),
    ),
    "a group that is not there": (
        "modality names",
        "error",
        ['There is no state "gripper", which the modality configuration names.', "Correct the entry in"],
        lambda r: edit_meta(r, "modality.json", lambda m: m["state"].pop("gripper")),
    ),
    "a camera of no feature": (
        "modality names",
        "error",
        ['video "image" is taken from "observation.images.top", which meta/info.json does not list.'],
        lambda r: edit_meta(
            r, "modality.json", lambda m: m["video"]["image"].update(original_key="observation.images.top")
        ),
    ),
    "a group of no column": (
        "modality names",
        "error",
        ['action "arm" is taken from the column "actions", which no table has. Did you mean "action"?'],
        lambda r: edit_meta(r, "modality.json", lambda m: m["action"]["arm"].update(original_key="actions")),
    ),
    "timestamps from one second on": (
        "timestamps",
        "warning",
        ["data/, episode 3: Timestamps do not begin at 0 (episode 3: 1 s).", "Subtract the first from each"],
        lambda r: edit_tables(r, lambda c: c.update(timestamp=c["timestamp"] + 1), [3]),
    ),
    "a jump": (
        "outliers",
        "warning",
        ['state "arm", episode 5: ', " jumps by 1.2 after frame 19 of episode 5.", "cut the episode there"],
        lambda r: edit_tables(r, lambda c: jump_at(c, 20), [5]),
    ),
    "a column without statistics": (
        "statistics",
        "error",
        ["meta/stats.json, action: Has no statistics, which normalisation needs."],
        lambda r: edit_meta(r, "stats.json", lambda s: s.pop(ACTION)),
    ),
    "a statistic is missing": (
        "statistics",
        "error",
        ["meta/stats.json, action: q99 is missing."],
        lambda r: edit_meta(r, "stats.json", lambda s: s[ACTION].pop("q99")),
    ),
    "a statistic is missing, another is wrong": (
        "statistics",
        "error",
        ["action: q99 is missing.", "max of ", "says 2, the training episodes give"],
        lambda r: edit_meta(r, "stats.json", lambda s: (s[ACTION].pop("q99"), s[ACTION]["max"].__setitem__(1, 2.0))),
    ),
    "a statistic that is a number": (
        "statistics",
        "error",
        ["q01 holds 1 numbers for 8 dimensions."],
        lambda r: edit_meta(r, "stats.json", lambda s: s[ACTION].update(q01=0.5)),
    ),
    "an instruction is listed twice": (
        "instructions",
        "warning",
        ["meta/tasks.jsonl: ", " is listed 2 times.", "Give both the same task_index"],
        list_instruction,
    ),
    "a frame without an instruction": (
        "told",
        "error",
        ["refers to no instruction at frame 3 of episode 4. Write the instruction into meta/tasks.jsonl"],
        lambda r: edit_tables(r, lambda c: put(c, ANNOTATION, 3, np.nan), [4], new_statistics=False),
    ),
    "a frame between two instructions": (
        "told",
        "error",
        ["refers to no instruction at frame 2 of episode 4."],
        lambda r: edit_tables(r, lambda c: put(c, ANNOTATION, 2, 0.5), [4], new_statistics=False),
    ),
    "a misspelt list of episodes that are left out": (
        "held out",
        "warning",
        ['"excluded" is no key of it, and nothing reads it. Did you mean "exclude"? Correct the key'],
        lambda r: edit_meta(r, "split.json", lambda s: s.update(excluded=[3])),
    ),
    "an instruction is not used": (
        "told",
        "ok",
        ['1 listed instructions are not used, the first "wave"', ": 8 episodes"],
        lambda r: list_instruction(r, task="wave"),
    ),
    "an episode of one frame": (
        "lengths",
        "error",
        ["episode 4: Has fewer than two frames. Leave it out, or record it again."],
        lambda r: edit_lines(r, "episodes.jsonl", lambda lines: lines[4].update(length=1)),
    ),
    "an episode shorter than the horizon": (
        "lengths",
        "ok",
        ["episodes: 10 to ", "1 are shorter than the action horizon (16): their chunks are masked"],
        lambda r: edit_lines(r, "episodes.jsonl", lambda lines: lines[4].update(length=10)),
    ),
    "done before the end": (
        "endings",
        "warning",
        ["episode 4: Is marked as done before its last frame", "Cut it there"],
        lambda r: edit_tables(r, lambda c: c["next.done"].__setitem__(5, True), [4]),
    ),
    "an episode that rests": (
        "idle",
        "warning",
        ["episode 4: State and action stay exactly as they are in ", "cut these frames off"],
        lambda r: edit_tables(r, lambda c: rest_from(c, 10), [4]),
    ),
    "an episode and its copy": (
        "duplicates",
        "error",
        ["episodes 3, 5: Episode 5 is the same as episode 3.", "Remove one of the two recordings"],
        lambda r: copy_episode(r, 3, 5),
    ),
    "the source of one episode is missing": (
        "held out",
        "warning",
        ["meta/split.json: Names the source of 7 episodes; there are 8."],
        lambda r: edit_meta(r, "split.json", lambda s: s["episodes"].pop()),
    ),
    "two episodes of one recording": (
        "held out",
        "error",
        ["Episodes 3 and 5 come from the same recording (", "Remove one of the two recordings"],
        lambda r: edit_meta(r, "split.json", lambda s: of_one_recording(s["episodes"])),
    ),
    "an episode is held out twice": (
        "held out",
        "warning",
        ["val_episodes names an episode twice. Name each once."],
        lambda r: edit_meta(r, "split.json", lambda s: s.update(val_episodes=[0, 0])),
    ),
    "most episodes are held out": (
        "held out",
        "warning",
        ["5 of 8 episodes are held out. Hold out a tenth or so."],
        lambda r: edit_meta(r, "split.json", lambda s: s.update(val_episodes=[0, 1, 2, 3, 4])),
    ),
    "no episode is held out": (
        "held out",
        "warning",
        ["No episode is held out, so nothing can be evaluated open loop."],
        lambda r: edit_meta(r, "split.json", lambda s: s.update(val_episodes=[])),
    ),
    "a size that info.json does not say": (
        "video size",
        "warning",
        ["meta/info.json: image has frames of ", "the features say [3, 7, 7].", "Correct shape in the features"],
        lambda r: edit_meta(
            r, "info.json", lambda i: i["features"]["observation.images.image"].update(shape=[3, 7, 7])
        ),
    ),
    "a dark episode": (
        "likeness",
        "warning",
        ["image, episode 3: The image is much darker, compared with the other", "Check the light or the camera's"],
        lambda r: edit_videos(r, lambda f: f // 5, [3], ["image"]),
    ),
    "no state beside the image": (
        "video and state",
        "ok",
        ["videos/, image: too few frames to compare image and state"],
        lambda r: edit_tables(r, lambda c: put(c, STATE, slice(None), np.nan), new_statistics=False),
    ),
}
