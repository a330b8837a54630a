"""What is computed once beside a job: every frame decoded, or the frozen backbone's features of each view of a start
frame, after which the backbone leaves memory. Its size is announced, its space checked, its progress shown, while the
other processes wait."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from finetune.training.dataloader import answered, prefetched
from finetune.training.engine import Engine
from finetune.training.process_selftest import SHOWN_SECONDS, appears
from finetune.training.stopping import TIME_LIMIT, Stopped, ThisAttempt
from gr00t import file_replacement as files
from gr00t.data import stored_arrays
from gr00t.data.dataset import TrainingDataset
from gr00t.data.layout import DatasetLayout
from gr00t.data.step_reader import StepReader
from gr00t.data.stored_arrays import KEYS, META, FeatureStore, FrameStore
from gr00t.errors import ToolkitError, disk_errors, free_space, in_bytes
from gr00t.model.action_head import ActionLoss
from gr00t.model.checkpoint_folder import fingerprint
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.command_line import received
from toolkit.progress import progress_bar

RESERVE = 1.02  # of the bytes that are written
TURN_SECONDS = 1.0  # between two looks whether another run is done
BEAT_SECONDS = 10.0  # NCCL and gloo time out after half an hour without a collective
MAKE_ROOM = "Make room there, or choose another cache_dir=FOLDER."
FORMAT = 1  # of features
BATCH = 16  # rows a forward, when they are made and when they are checked: the same kernels then run
ABANDONED_SECONDS = 3600.0
# Relative to a row's norm. Kernels round differently on another device or library version; another weight, image or
# prompt differs by far more.
TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
# What of processor_config.json decides the images.
IMAGE_SETTINGS = (
    *("shortest_image_edge", "crop_fraction", "image_crop_size", "image_target_size"),
    *("random_rotation_angle", "color_jitter_params"),
)


def use_frame_store(attempt: ThisAttempt, reader: StepReader, copied: Callable[[Path], Path] = Path) -> None:
    """Let `reader` take its frames from a store in cache_dir; the main process makes one that is missing or damaged.

    `copied` gives the folder that is read, a node's own copy maybe. A signal meanwhile raises Stopped, and leaves no
    half store.
    """
    layout, cameras = reader.layout, reader.configs["video"].modality_keys
    engine, place = attempt.engine, Path(attempt.config.cache_dir)
    name = stored_arrays.frame_store_folder(place, layout, cameras).name if engine.is_main else ""
    folder = place / engine.tell(name)

    def whole() -> bool:
        return bool(engine.tell(engine.is_main and stored_arrays.frame_store_is_whole(folder, cameras)))

    if not whole():
        with turn(folder, f"the frames of {layout.root}", attempt):
            if not whole():
                if engine.is_main:
                    _decode(folder, layout, cameras, engine)
                while not engine.tell(True):  # the main process's answer ends it
                    pass
    attempt.check(TIME_LIMIT)
    wait_until((folder / META).is_file, folder)
    reader.frame_store = FrameStore(copied(folder), layout, cameras)


def _decode(folder: Path, layout: DatasetLayout, cameras: list[str], engine: Engine) -> None:
    """Write the frame store in the main process; the others, which wait, get a False now and then."""
    if folder.exists():
        say(files.damaged(folder, f"the frames of {layout.root}"))
        with disk_errors(folder, "Delete it by hand."):
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    shapes = stored_arrays.frame_shapes(layout, cameras)
    size = sum(frames * height * width * 3 for frames, height, width, _ in shapes.values())
    announce(f"decoding every frame of {layout.root} once", size, folder)
    beat = time.monotonic()
    with suppress(Stopped), progress("frames", sum(shape[0] for shape in shapes.values())) as advance:

        def on_frames(count: int) -> None:
            nonlocal beat
            advance(count)
            if time.monotonic() - beat > BEAT_SECONDS:
                engine.tell(False)
                beat = time.monotonic()
            number = received()
            if number is not None:
                raise Stopped(number.name)  # no further; all processes agree on it after this

        threads = len(os.sched_getaffinity(0))
        stored_arrays.write_frame_store(folder, layout, shapes, threads=threads, on_frames=on_frames)


@contextmanager
def turn(target: Path, what: str, attempt: ThisAttempt) -> Iterator[None]:
    """Wait until no other run makes `target`, then hold its lock in the main process.

    It logs once which run it waits for; a signal meanwhile raises Stopped.
    """
    holder, waits = f"{files.this_process()}, run {attempt.config.run_dir}", False

    def is_ours() -> bool:
        nonlocal waits
        try:
            with disk_errors(target, MAKE_ROOM):
                target.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(files.file_lock(target, required=False, holder=holder))
        except files.LockHeld as error:
            if not waits:
                say(files.waiting_for(error.holder, what))
            waits = True
            return False
        return True

    try:
        with ExitStack() as held:
            while not attempt.engine.tell(attempt.engine.is_main and is_ours()):
                attempt.check()
                time.sleep(TURN_SECONDS)
            yield
    finally:
        with suppress(OSError):
            target.parent.rmdir()  # where it is empty


def announce(what: str, size: int, folder: Path) -> None:
    """Say what is about to be written and where; refuse it where the space is missing."""
    free = free_space(folder)
    if size * RESERVE > free:
        raise ToolkitError(
            f"{folder}: {what} takes {in_bytes(size)}, but only {in_bytes(free)} are free there. Free some space, "
            "or choose another cache_dir=FOLDER."
        )
    say(f"{what}: {in_bytes(size)} in {folder} ({in_bytes(free)} free)")


def say(message: str) -> None:
    Console(stderr=True).print(message, highlight=False, soft_wrap=True)


@contextmanager
def progress(what: str, total: int, *, active: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar of `total`, advanced by the function that is yielded; in a log file a line for every tenth."""
    done = 0
    with progress_bar(show=None if active else False) as bar:
        task = bar.add_task(what, total=total)

        def advance(count: int) -> None:
            nonlocal done
            bar.advance(task, count)
            tenths, done = done * 10 // total, done + count
            if active and not bar.console.is_terminal and done * 10 // total > tenths:
                say(f"{what} {done}/{total}")

        yield advance


def wait_until(ready: Callable[[], bool], folder: Path, *, grace: float = SHOWN_SECONDS) -> None:
    """Wait until this process sees what another has made in `folder`; what does not appear is refused."""
    if not appears(ready, grace):
        raise ToolkitError(
            f"{folder} is not complete as this process sees it. cache_dir must lie on a file system that all nodes "
            "share: choose another, cache_dir=FOLDER."
        )


def use_cached_features(
    attempt: ThisAttempt,
    model: Gr00tN1d7,
    datasets: Sequence[TrainingDataset],
    base: str,
    copied: Callable[[Path], Path] = Path,
) -> None:
    """Let `datasets` give features in place of images and text, and take the backbone out of memory.

    base: the base checkpoint's fingerprint; copied: as for use_frame_store. Rows that are missing or damaged in
    cache_dir are computed, each process its share, and a few are compared with the live backbone. Raises ToolkitError
    where space is missing or a row differs, and Stopped between two files of rows; those that are written stay.
    """
    for dataset in datasets:
        cache = _FeatureCache(attempt, model, dataset, base)
        cache.make_missing()
        cache.check_against_live()
        dataset.feature_store = dataclasses.replace(cache.store, folder=copied(cache.folder))
    size = sum(p.numel() * p.element_size() for p in model.backbone.parameters())
    model.backbone.to("meta")
    if attempt.engine.is_main:
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
            "one back and continue the run with train.resume=auto: the last checkpoint of run_dir is used."
        )
    model.backbone = Gr00tN1d7.from_pretrained(base, dtype=dtype).backbone
    model.backbone.requires_grad_(False)


def store_identity(attempt: ThisAttempt, model: Gr00tN1d7, dataset: TrainingDataset, base: str) -> dict[str, Any]:
    """All that decides a row; the main process reads what is large for all."""
    engine, processor = attempt.engine, dataset.processor
    large = [dataset.mixture.content, weights_digest(model.backbone)] if engine.is_main else []
    content, weights = engine.tell(large)
    video = processor.modality_config(dataset.tag)["video"]
    return {
        "format": FORMAT,
        "base": base,
        "backbone": weights,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "dataset": content,
        "episodes": dataset.episodes if len(dataset.episodes) > 1 else dataset.episodes[0],
        "tail": dataset.settings.tail,
        **_horizon(dataset),
        "seed": attempt.config.train.seed,
        "views": dataset.settings.views or 1,
        **({} if dataset.settings.augment else {"augment": False}),
        "video": {"modality_keys": video.modality_keys, "delta_indices": video.delta_indices},
        "images": {name: getattr(processor.config, name) for name in IMAGE_SETTINGS},
        "image_limits": dataclasses.asdict(processor.vlm.limits),
        "prompts": hashlib.sha256(np.ascontiguousarray(dataset.prompts).tobytes()).hexdigest(),
    }


def _horizon(dataset: TrainingDataset) -> dict[str, Any]:
    """The steps ahead, where they decide which frames are starts."""
    deltas = dataset.processor.modality_config(dataset.tag)["action"].delta_indices
    return {"actions": list(deltas)} if dataset.settings.tail == "drop" or 0 not in deltas else {}


def weights_digest(module: nn.Module) -> str:
    """Hash of every weight and buffer by name."""

    def digest(item: tuple[str, Tensor]) -> bytes:
        values = item[1].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return hashlib.sha256(item[0].encode() + b"\0" + hashlib.sha256(values).digest()).digest()

    with ThreadPoolExecutor(files.READERS) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, module.state_dict().items()))).hexdigest()


class _FeatureCache:
    """The feature store of one dataset, in a folder of cache_dir named by a hash of all that decides its rows."""

    def __init__(self, attempt: ThisAttempt, model: Gr00tN1d7, dataset: TrainingDataset, base: str) -> None:
        self.attempt, self.engine, self.model, self.dataset = attempt, attempt.engine, model, dataset
        self.identity = store_identity(attempt, model, dataset, base)
        self.roots = ", ".join(str(reader.layout.root) for reader in dataset.mixture.readers)
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        self.store = FeatureStore(
            folder=Path(attempt.config.cache_dir) / f"features-{digest[:16]}",
            starts=len(dataset),
            views=dataset.inputs_of_a_start,
            tokens=dataset.prompts.shape[1],
            width=model.config.backbone_embedding_dim,
            dtype=self.engine.dtype,
        )
        self.folder, self.rows = self.store.folder, self.store.files()
        self.files = [*(path for path, _ in self.rows), self.folder / META]

    def make_missing(self) -> None:
        """Compute what is not there or damaged, when it is this run's turn."""
        if not self._to_make():
            return
        with turn(self.folder, f"the features of {self.roots}", self.attempt):
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
                    f"{TOLERANCE[kind]:.0e} allowed in {kind}). Delete that folder; it is then made again."
                )

    def _to_make(self) -> list[int]:
        """Which of `files` are missing or damaged; each process checks its share, and all get the same answer."""
        found = files.unsound(self.files[self.engine.rank :: self.engine.world_size], self.folder.name)
        marks = torch.tensor([float(path in found) for path in self.files])
        return self.engine.sum(marks).nonzero().flatten().tolist()

    def _prepare(self, wanted: set[Path]) -> None:
        """Remove what is damaged, see that there is room, and write what the rows are made of."""
        bad = [path for path in wanted if path.exists()]
        if bad:
            say(files.damaged(self.folder, f"{len(bad)} of {len(self.files)} files"))
        for path in bad:
            path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Half files of killed writers; a young one may be another run's where the file system has no locks.
        for path in set(self.folder.glob(".*")) - {files.checksum_path(path) for path in self.files}:
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
        count = sum(len(rows) for path, rows in self.rows if path in wanted)
        if count:
            size = count * self.store.row_bytes
            announce(f"features of {count} of {self.store.rows} views of frames", size, self.folder)
        meta = self.folder / META
        if meta in wanted:
            files.write_json(meta, {**self.identity, "rows": self.store.rows, "tokens": self.store.tokens})
            files.write_checksum(meta, self.folder.name)

    def _compute(self, missing: list[tuple[Path, range]]) -> None:
        """The rows of the missing files; the processes take every world_size-th."""
        rank, world_size = self.engine.rank, self.engine.world_size
        batches = [batch for _, rows in missing[rank::world_size] for batch in _batches(rows)]
        outputs = self._outputs(batches, workers=self.attempt.config.train.num_workers)
        with progress("features", sum(map(len, batches)), active=self.engine.is_main) as advance:
            for first in range(0, len(missing), world_size):  # a file of each process, the last time of some
                self.attempt.check()
                if first + rank < len(missing):
                    path, rows = missing[first + rank]
                    parts = [next(outputs) for _ in _batches(rows)]
                    self.store.write(path, {key: torch.cat([part[key] for part in parts]) for key in KEYS})
                    advance(len(rows))

    def _outputs(self, batches: list[list[int]], *, workers: int) -> Iterator[dict[str, Tensor]]:
        """The live backbone's tensors of each batch of rows, on the CPU."""

        def collate(rows: list[int]) -> dict[str, Tensor]:
            samples = [self.dataset.vlm_inputs(*divmod(row, self.store.views)) for row in rows]
            return self.dataset.processor.collate_vlm(samples, length=self.store.tokens)

        loader = prefetched(range(self.store.rows), batches, collate, workers, self.engine)
        for inputs in answered(loader):
            with torch.no_grad(), self.engine.autocast():
                output = self.model.features(self.engine.move(inputs))
            tokens = output.features.shape[1]
            if tokens != self.store.tokens:
                raise ToolkitError(
                    f"A sample has {tokens} tokens, {self.store.tokens} were expected for the longest instruction of "
                    f"{self.roots}, so its images differ in size. Use train.features=live."
                )
            features = output.features.to(self.store.dtype)
            found = zip(KEYS, (features, output.attention_mask, output.image_mask), strict=True)
            yield {key: tensor.cpu() for key, tensor in found}


def _batches(rows: range) -> list[list[int]]:
    return [list(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH)]
