"""What a run writes to disk: checkpoints to resume from, the finished one, and what is computed once into cache_dir."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from finetune.config.mixture import datasets
from finetune.config.modality import modality_configs
from finetune.config.schema import FinetuneConfig
from finetune.planning.memory import Run, checkpoint_size
from gr00t.data.layout import DatasetLayout
from gr00t.errors import ToolkitError

SMALL_FILES = 20_000_000  # tokenizer and configurations


@dataclass(frozen=True)
class DiskPart:
    """Bytes below a folder; None where they cannot be known yet, `note` then says why."""

    name: str
    folder: Path
    size: int | None
    note: str = ""


def disk(run: Run, layouts: list[DatasetLayout]) -> list[DiskPart]:
    """Everything a run writes, at its fullest."""
    config = run.config
    parts = [checkpoints(run), DiskPart("finished checkpoint", Path(config.output_dir), release_size(run), "bf16")]
    if config.dataset.frames == "store":
        parts.append(_frames(config, layouts))
    if run.cached:
        parts.append(_features(run, layouts))
    return parts


def checkpoints(run: Run) -> DiskPart:
    """Those that are kept, the best evaluated one among them, and one more while it is written."""
    train = run.config.train
    saved = math.ceil(train.max_steps / train.save_steps)
    for_good = train.max_steps // math.lcm(train.save_steps, train.keep_every) if train.keep_every else 0
    best = 0 if train.eval_steps is None else 1
    kept = min(saved + best, train.keep_last + for_good + best)
    writing = 1 if saved + best > kept else 0
    note = f"{kept} kept" + (", one being written" if writing else "")
    note += f"; {checkpoint_size(run) / 1e9:.1f} GB each"
    return DiskPart("checkpoints", Path(run.config.run_dir), (kept + writing) * checkpoint_size(run), note)


def release_size(run: Run) -> int:
    """bf16, with the copy of the token embeddings that the release holds."""
    embeddings = next(p.count for p in run.parameters if p.name.endswith("embed_tokens.weight"))
    return 2 * (sum(max(p.count, p.waiting) for p in run.parameters) + embeddings) + SMALL_FILES


def find_layouts(config: FinetuneConfig) -> list[DatasetLayout]:
    """The datasets' meta data; none where one is not converted yet."""
    folders = [part.folder for part in datasets(config)]
    there = all((folder / "meta" / "info.json").is_file() for folder in folders)
    return [DatasetLayout(folder) for folder in folders] if there else []


def _frames(config: FinetuneConfig, layouts: list[DatasetLayout]) -> DiskPart:
    folder = Path(config.cache_dir)
    if not layouts:
        return DiskPart("frame store", folder, None, "known when the dataset is converted")
    cameras = modality_configs(config.dataset)["video"].modality_keys
    frames = [sum(episode.length for episode in layout.episodes) for layout in layouts]
    pixels = [sum(_pixels(layout, camera) for camera in cameras) for layout in layouts]
    size = sum(count * of_frame * 3 for count, of_frame in zip(frames, pixels, strict=True))
    return DiskPart("frame store", folder, size, f"{sum(frames)} frames of {len(cameras)} cameras")


def _pixels(layout: DatasetLayout, camera: str) -> int:
    column = layout.video_column(camera)
    shape = layout.info.get("features", {}).get(column, {}).get("shape")
    if not isinstance(shape, list) or len(shape) != 3:
        raise ToolkitError(f"{layout.root}/meta/info.json: {column} has no shape of three numbers; prepare it again.")
    height, width = shape[1:] if shape[0] == 3 else shape[:2]
    return int(height) * int(width)


def _features(run: Run, layouts: list[DatasetLayout]) -> DiskPart:
    folder = Path(run.config.cache_dir)
    if not layouts:
        return DiskPart("feature cache", folder, None, "known when the dataset is converted")
    starts, views = sum(start_count(run.config, layout) for layout in layouts), run.config.augment.views or 1
    row = run.batch.tokens * (run.shape.context * run.kernels.size + 2)
    unseen = held_out_count(run.config, layouts[0])
    note = f"{starts} start frames x {views} views" + (f", {unseen} held-out frames" if unseen else "")
    return DiskPart("feature cache", folder, (starts * views + unseen) * row, note)


def held_out_count(config: FinetuneConfig, layout: DatasetLayout) -> int:
    """Frames that are evaluated during training."""
    if config.train.eval_steps is None:
        return 0
    return sum(layout.episode(index).length for index in layout.val_episodes[: config.train.eval_episodes])


def start_count(config: FinetuneConfig, layout: DatasetLayout) -> int:
    """Start frames of the training episodes, by dataset.tail."""
    offsets = modality_configs(config.dataset)["action"].delta_indices
    lost = max(0, max(offsets)) + max(0, -min(offsets)) if config.dataset.tail == "drop" else 0
    return sum(max(0, layout.episode(index).length - lost) for index in layout.train_episodes)
