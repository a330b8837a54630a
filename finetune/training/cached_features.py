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

from finetune.recipe import FinetuneConfig
from finetune.training.caches import MAKE_ROOM, announce, progress, say, turn, wait_until
from finetune.training.dataloader import answered, begin_worker
from finetune.training.engine import Engine
from finetune.training.stopping import Preemption
from gr00t.data.dataset import TrainingDataset
from gr00t.data.stored_arrays import KEYS, FeatureStore
from gr00t.errors import ToolkitError, disk_errors, in_bytes
from gr00t.file_replacement import READERS, checksum_path, damaged, unsound, write_checksum, write_json
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
        cache = _FeatureCache(config, engine, stop, model, dataset, base)
        cache.make_missing()
        cache.check_against_live()
        dataset.feature_store = cache.store
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
        """The loss of a collated batch with `features` (B, S, dim), `attention_mask` and `image_mask` (B, S)."""
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


class _FeatureCache:
    """The feature store of one dataset, in a folder of cache_dir named by a hash of all that decides its rows."""

    def __init__(
        self,
        config: FinetuneConfig,
        engine: Engine,
        stop: Preemption,
        model: Gr00tN1d7,
        dataset: TrainingDataset,
        base: str,
    ) -> None:
        self.config, self.engine, self.stop, self.model, self.dataset = config, engine, stop, model, dataset
        self.identity = store_identity(config, engine, model, dataset, base)
        self.roots = ", ".join(str(reader.layout.root) for reader in dataset.mixture.readers)
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        self.store = FeatureStore(
            folder=Path(config.cache_dir) / f"features-{digest[:16]}",
            starts=len(dataset),
            views=dataset.settings.views or 1,
            tokens=dataset.prompts.shape[1],
            width=model.config.backbone_embedding_dim,
            dtype=engine.dtype,
        )
        self.folder, self.rows = self.store.folder, self.store.files()
        self.files = [*(path for path, _ in self.rows), self.folder / META]

    def make_missing(self) -> None:
        """Compute what is not there or damaged, when it is this run's turn."""
        if not self._to_make():
            return
        with turn(self.folder, f"the features of {self.roots}", self.config, self.engine, self.stop):
            numbers = self._to_make()
            if self.engine.is_main and numbers:
                with disk_errors(self.folder, MAKE_ROOM):
                    self._prepare({self.files[number] for number in numbers})
            self.engine.barrier()  # before the first file is written: what is damaged is gone
            self._compute([self.rows[number] for number in numbers if number < len(self.rows)])
            self.engine.barrier()
            wait_until(lambda: not self.store.missing(), self.folder)

    def check_against_live(self) -> None:
        """Compute a few random rows again; a difference beyond rounding is refused."""
        _, rows = self.rows[np.random.default_rng().integers(len(self.rows))]
        batches = _batches(rows)
        chosen = batches[np.random.default_rng().integers(len(batches))]
        live = next(self._outputs([chosen], workers=0))
        on_cpu = self.engine.device.type == "cpu"
        kind = "bf16" if self.engine.dtype == torch.bfloat16 else "fp32" if on_cpu else "tf32"
        for place, row in enumerate(chosen):
            cached = self.store.row(row)
            masks = all(torch.equal(cached[key], live[key][place]) for key in KEYS[1:])
            expected = live["features"][place].double()
            error = float((cached["features"].double() - expected).norm() / expected.norm())
            if not masks or not error <= TOLERANCE[kind]:
                raise ToolkitError(
                    f"{self.folder}: row {row} is not what the backbone computes now (relative difference {error:.1e}, "
                    f"{TOLERANCE[kind]:.0e} allowed in {kind}). Delete that folder; it is then made anew."
                )

    def _to_make(self) -> list[int]:
        """Which of `files` are missing or damaged; each process checks its share, and all get the same answer."""
        found = unsound(self.files[self.engine.rank :: self.engine.world_size], self.folder.name)
        marks = torch.tensor([float(path in found) for path in self.files])
        return self.engine.sum(marks).nonzero().flatten().tolist()

    def _prepare(self, files: set[Path]) -> None:
        """Remove what is damaged, see that there is room, and write what the rows are made of."""
        bad = [path for path in files if path.exists()]
        if bad:
            say(damaged(self.folder, f"{len(bad)} of {len(self.files)} files"))
        for path in bad:
            path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Half files of killed writers; a young one may be another run's where the file system has no locks.
        for path in set(self.folder.glob(".*")) - {checksum_path(path) for path in self.files}:
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
        count = sum(len(rows) for path, rows in self.rows if path in files)
        if count:
            size = count * self.store.row_bytes
            announce(f"features of {count} of {self.store.rows} views of frames", size, self.folder)
        if self.folder / META in files:
            write_json(self.folder / META, {**self.identity, "rows": self.store.rows, "tokens": self.store.tokens})
            write_checksum(self.folder / META, self.folder.name)

    def _compute(self, missing: list[tuple[Path, range]]) -> None:
        """The rows of the missing files; the processes take every world_size-th."""
        rank, world_size = self.engine.rank, self.engine.world_size
        share = missing[rank::world_size]
        batches = [batch for _, rows in share for batch in _batches(rows)]
        outputs = self._outputs(batches, workers=self.config.train.num_workers)
        with progress("features", sum(map(len, batches)), active=self.engine.is_main) as advance:
            for first in range(0, len(missing), world_size):  # a file of each process, the last time of some
                self.stop.check()
                if first + rank >= len(missing):
                    continue
                path, rows = share[first // world_size]
                parts = []
                for batch in _batches(rows):
                    parts.append(next(outputs))
                    advance(len(batch))
                self.store.write(path, {key: torch.cat([part[key] for part in parts]) for key in KEYS})

    def _outputs(self, batches: list[list[int]], *, workers: int) -> Iterator[dict[str, Tensor]]:
        """The live backbone's tensors of each batch of rows, on the CPU."""
        rows = _Rows(self.dataset, self.store)
        loader: DataLoader[Any] = DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=rows.collate,
            num_workers=workers,
            worker_init_fn=begin_worker,
            pin_memory=self.engine.device.type == "cuda",
            timeout=WORKER_SECONDS if workers else 0,
        )
        for inputs in answered(loader):
            with torch.no_grad(), self.engine.autocast():
                output = self.model.features(self.engine.move(inputs))
            tokens = output.features.shape[1]
            if tokens != self.store.tokens:
                raise ToolkitError(
                    f"A sample has {tokens} tokens, {self.store.tokens} were expected for the longest instruction of "
                    f"{self.roots}, so its images differ in size. Use train.features=live."
                )
            yield {
                "features": output.features.to(self.store.dtype).cpu(),
                "attention_mask": output.attention_mask.cpu(),
                "image_mask": output.image_mask.cpu(),
            }


def _batches(rows: range) -> list[list[int]]:
    return [list(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH)]


class _Rows(Dataset[dict[str, Any]]):
    """What the backbone reads for a row of the store."""

    def __init__(self, dataset: TrainingDataset, store: FeatureStore) -> None:
        self.dataset, self.store = dataset, store

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.dataset.vlm_inputs(*divmod(row, self.store.views))

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.dataset.processor.collate_vlm(samples, length=self.store.tokens)
