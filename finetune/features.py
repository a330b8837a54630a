"""Training on cached features: the frozen backbone runs once for each view of a start frame, then leaves memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from finetune.cache import MAKE_ROOM, announce, in_bytes, progress, say, turn, wait_until
from finetune.config.schema import FinetuneConfig
from finetune.data import answered, begin_worker
from finetune.engine import Engine
from finetune.preemption import Preemption
from gr00t.checksums import READERS, checksum_path, damaged, unsound, write_checksum
from gr00t.data.dataset import TrainingDataset
from gr00t.data.features import KEYS, FeatureStore
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, write_json
from gr00t.model.action_head import ActionLoss
from gr00t.model.checkpoint import fingerprint
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.processes import WORKER_SECONDS

FORMAT = 1
META = "meta.json"
BATCH = 16  # rows a forward, when they are made and when they are checked: the same kernels then run
ABANDONED_SECONDS = 3600.0
# Relative to a row's norm. Kernels round differently on another device or library version; another weight, image or
# prompt differs by far more.
TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
# What of processor_config.json decides the images.
IMAGE_SETTINGS = (
    "shortest_image_edge",
    "crop_fraction",
    "image_crop_size",
    "image_target_size",
    "random_rotation_angle",
    "color_jitter_params",
)


def use_cached_features(
    config: FinetuneConfig,
    engine: Engine,
    stop: Preemption,
    model: Gr00tN1d7,
    datasets: Sequence[TrainingDataset],
    base: str,
) -> None:
    """Let `datasets` give features in place of images and text, and take the backbone out of memory.

    base: the base checkpoint's fingerprint. Rows that are missing or damaged in cache_dir are computed, each process
    its share, and a few are compared with the live backbone. Raises ToolkitError where space is missing or a row
    differs, and Stopped between two files of rows; those that are written stay.
    """
    for dataset in datasets:
        identity = store_identity(config, engine, model, dataset, base)
        store = open_store(config, engine, model, dataset, identity)
        _make_missing(store, identity, config, engine, stop, model, dataset)
        check_against_live(store, engine, model, dataset)
        dataset.feature_store = store
    size = sum(p.numel() * p.element_size() for p in model.backbone.parameters())
    model.backbone.to("meta")
    if engine.is_main:
        say(f"cached features: the backbone's {in_bytes(size)} are not kept in memory")


class HeadOnFeatures(nn.Module):
    """The part of the model that a step runs when its batches bring the features with them."""

    def __init__(self, model: Gr00tN1d7) -> None:
        super().__init__()
        self.action_head = model.action_head
        self._features = model.features

    def forward(self, inputs: dict[str, Tensor]) -> ActionLoss:
        return self.action_head(self._features(inputs), inputs)


def restore_backbone(model: Gr00tN1d7, base: Path, identity: str, dtype: torch.dtype) -> None:
    """Read the frozen backbone again, on the CPU; a base that has changed since training began is refused."""
    if fingerprint(base) != identity:
        raise ToolkitError(
            f"{base} has changed while training ran, so the finished checkpoint would mix two backbones. Put the old "
            "one back and start the same command again; the last checkpoint of run_dir is used."
        )
    model.backbone = Gr00tN1d7.from_pretrained(base, dtype=dtype).backbone
    model.backbone.requires_grad_(False)


def open_store(
    config: FinetuneConfig, engine: Engine, model: Gr00tN1d7, dataset: TrainingDataset, identity: dict[str, Any]
) -> FeatureStore:
    """The store of these weights, images, prompts and views; its folder is named by a hash of them all."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return FeatureStore(
        folder=Path(config.cache_dir) / f"features-{digest[:16]}",
        starts=len(dataset),
        views=dataset.settings.views or 1,
        tokens=dataset.prompts.shape[1],
        width=model.n1d7_config.backbone_embedding_dim,
        dtype=engine.dtype,
    )


def store_identity(
    config: FinetuneConfig, engine: Engine, model: Gr00tN1d7, dataset: TrainingDataset, base: str
) -> dict[str, Any]:
    """All that decides a row; the main process reads what is large for all."""
    content, weights = json.loads(
        engine.tell(json.dumps([dataset.mixture.content, weights_digest(model.backbone)]) if engine.is_main else "")
    )
    processor = dataset.processor
    video = processor.modality_config(dataset.tag)["video"]
    return {
        "format": FORMAT,
        "base": base,
        "backbone": weights,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "dataset": content,
        "episodes": dataset.episodes if len(dataset.episodes) > 1 else dataset.episodes[0],
        "tail": dataset.settings.tail,
        "seed": config.train.seed,
        "views": dataset.settings.views or 1,
        **({} if dataset.settings.augment else {"augment": False}),
        "video": {"modality_keys": video.modality_keys, "delta_indices": video.delta_indices},
        "images": {name: getattr(processor.config, name) for name in IMAGE_SETTINGS},
        "image_limits": dataclasses.asdict(processor.vlm.limits),
        "prompts": hashlib.sha256(np.ascontiguousarray(dataset.prompts).tobytes()).hexdigest(),
    }


def weights_digest(module: nn.Module) -> str:
    """Hash of every weight and buffer by name."""

    def digest(item: tuple[str, Tensor]) -> bytes:
        values = item[1].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return hashlib.sha256(item[0].encode() + b"\0" + hashlib.sha256(values).digest()).digest()

    with ThreadPoolExecutor(READERS) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, module.state_dict().items()))).hexdigest()


def check_against_live(store: FeatureStore, engine: Engine, model: Gr00tN1d7, dataset: TrainingDataset) -> None:
    """Compute a few random rows anew; a difference beyond rounding is refused."""
    _, rows = store.files()[np.random.default_rng().integers(len(store.files()))]
    batches = _batches(rows)
    chosen = batches[np.random.default_rng().integers(len(batches))]
    live = next(_outputs(store, engine, model, dataset, [chosen], workers=0))
    kind = "bf16" if engine.dtype == torch.bfloat16 else "fp32" if engine.device.type == "cpu" else "tf32"
    for place, row in enumerate(chosen):
        cached = store.row(row)
        masks = all(torch.equal(cached[key], live[key][place]) for key in KEYS[1:])
        expected = live["features"][place].double()
        error = float((cached["features"].double() - expected).norm() / expected.norm())
        if not masks or not error <= TOLERANCE[kind]:
            raise ToolkitError(
                f"{store.folder}: row {row} is not what the backbone computes now (relative difference {error:.1e}, "
                f"{TOLERANCE[kind]:.0e} allowed in {kind}). Delete that folder; it is then made anew."
            )


def _make_missing(
    store: FeatureStore,
    identity: dict[str, Any],
    config: FinetuneConfig,
    engine: Engine,
    stop: Preemption,
    model: Gr00tN1d7,
    dataset: TrainingDataset,
) -> None:
    """Compute what is not there or damaged, when it is this run's turn."""
    if not _to_make(store, engine):
        return
    roots = ", ".join(str(reader.layout.root) for reader in dataset.mixture.readers)
    with turn(store.folder, f"the features of {roots}", config, engine, stop):
        numbers = _to_make(store, engine)
        if engine.is_main and numbers:
            with disk_errors(store.folder, MAKE_ROOM):
                _prepare(store, identity, numbers)
        engine.barrier()  # before the first file is written: what is damaged is gone
        _compute(
            store, [store.files()[n] for n in numbers if n < len(store.files())], config, engine, stop, model, dataset
        )
        engine.barrier()
        wait_until(lambda: not store.missing(), store.folder)


def _all_files(store: FeatureStore) -> list[Path]:
    return [*(path for path, _ in store.files()), store.folder / META]


def _to_make(store: FeatureStore, engine: Engine) -> list[int]:
    """Which of `_all_files` are missing or damaged; each process checks its share, and all get the same answer."""
    files = _all_files(store)
    found = unsound(files[engine.rank :: engine.world_size], store.folder.name)
    marks = torch.tensor([float(path in found) for path in files])
    return engine.sum(marks).nonzero().flatten().tolist()


def _prepare(store: FeatureStore, identity: dict[str, Any], numbers: list[int]) -> None:
    """Remove what is damaged, see that there is room, and write what the rows are made of."""
    files = [_all_files(store)[n] for n in numbers]
    bad = [path for path in files if path.exists()]
    if bad:
        say(damaged(store.folder, f"{len(bad)} of {len(_all_files(store))} files"))
    for path in bad:
        path.unlink()
    store.folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(store)
    count = sum(len(rows) for path, rows in store.files() if path in files)
    if count:
        announce(f"features of {count} of {store.rows} views of frames", count * store.row_bytes, store.folder)
    if store.folder / META in files:
        write_json(store.folder / META, {**identity, "rows": store.rows, "tokens": store.tokens})
        write_checksum(store.folder / META, store.folder.name)


def _compute(
    store: FeatureStore,
    missing: list[tuple[Path, range]],
    config: FinetuneConfig,
    engine: Engine,
    stop: Preemption,
    model: Gr00tN1d7,
    dataset: TrainingDataset,
) -> None:
    """The rows of the missing files; the processes take every world_size-th."""
    share = missing[engine.rank :: engine.world_size]
    batches = [batch for _, rows in share for batch in _batches(rows)]
    outputs = _outputs(store, engine, model, dataset, batches, workers=config.train.num_workers)
    with progress("features", sum(map(len, batches)), active=engine.is_main) as advance:
        for first in range(0, len(missing), engine.world_size):  # a file of each process, the last time of some
            stop.check()
            path, rows = share[first // engine.world_size] if first + engine.rank < len(missing) else (None, range(0))
            parts = []
            for batch in _batches(rows):
                parts.append(next(outputs))
                advance(len(batch))
            if path is not None:
                store.write(path, {key: torch.cat([part[key] for part in parts]) for key in KEYS})


def _outputs(
    store: FeatureStore,
    engine: Engine,
    model: Gr00tN1d7,
    dataset: TrainingDataset,
    batches: list[list[int]],
    *,
    workers: int,
) -> Iterator[dict[str, Tensor]]:
    """The live backbone's tensors of each batch of rows, on the CPU."""
    rows = _Rows(dataset, store)
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=rows.collate,
        num_workers=workers,
        worker_init_fn=begin_worker,
        pin_memory=engine.device.type == "cuda",
        timeout=WORKER_SECONDS if workers else 0,
    )
    for inputs in answered(loader):
        with torch.no_grad(), engine.autocast():
            output = model.features(engine.move(inputs))
        tokens = output.features.shape[1]
        if tokens != store.tokens:
            raise ToolkitError(
                f"A sample has {tokens} tokens, {store.tokens} were expected for the longest instruction of "
                f"{', '.join(str(reader.layout.root) for reader in dataset.mixture.readers)}, so its images differ in "
                "size. Use train.features=live."
            )
        yield {
            "features": output.features.to(store.dtype).cpu(),
            "attention_mask": output.attention_mask.cpu(),
            "image_mask": output.image_mask.cpu(),
        }


def _batches(rows: range) -> list[list[int]]:
    return [list(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH)]


def _remove_abandoned(store: FeatureStore) -> None:
    """Clear half files of killed writers; a young one may be another run's where the file system has no locks."""
    checksums = {checksum_path(path) for path in _all_files(store)}
    for path in set(store.folder.glob(".*")) - checksums:
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            path.unlink()


class _Rows(Dataset[dict[str, Any]]):
    """What the backbone reads for a row of the store."""

    def __init__(self, dataset: TrainingDataset, store: FeatureStore) -> None:
        self.dataset, self.store = dataset, store

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.dataset.vlm_inputs(*divmod(row, self.store.views))

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.dataset.processor.collate_vlm(samples, length=self.store.tokens)
