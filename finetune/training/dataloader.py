"""From a dataset folder and a base checkpoint's processor to micro-batches, and a check of the dataset before."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import cv2
import torch
from torch.utils.data import DataLoader

from data_prep.doctor import ERROR, WARNING
from data_prep.doctor.examine import BETWEEN, TAUGHT, TRAIN, examine
from finetune.recipe import FinetuneConfig, datasets
from finetune.training.engine import Engine
from gr00t.data.dataset import Mixture, SampleSettings, TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import MicroBatchSampler, MixtureOrder
from gr00t.data.statistics import Tail
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.model.config import Gr00tN1d7Config
from toolkit.command_line import leave_signals_to_parent
from toolkit.processes import WORKER_SECONDS, silent
from toolkit.shared_keys import TRAIN_CONFLICT, modality_configs

FINDINGS_LISTED = 6

log = logging.getLogger(__name__)


def check_dataset(config: FinetuneConfig) -> None:
    """Refuse a training dataset that is not sound, or that shares episodes with conflict; log what may be meant.

    This is the fast part of the dataset doctor. What is wrong with the conflict part alone is only logged: it is not
    trained on; nor is train_conflict without dataset.conflict_share.
    """
    split = Path(config.dataset.data_dir) / config.split.name
    for part in datasets(config):
        path = split if not config.dataset.mixture and part.folder == split / "train" else part.folder
        wrong, report = [], examine(path, modality_configs(config.dataset), fast=True, exclude=part.exclude)[0]
        for dataset, result, finding in report.findings(WARNING, ERROR):
            if path == split and config.dataset.conflict_share and dataset.name in (TRAIN_CONFLICT, TAUGHT):
                continue  # a part of its own, which is examined without the episodes that are left out of it
            trained_on = path != split or dataset.name in (TRAIN, *BETWEEN.values())
            if finding.level == ERROR and trained_on:
                wrong.append(f"  {result.check}, {finding.where}: {finding.found} Remedy: {finding.remedy}")
            else:
                text = f"{finding.level} in {dataset.name}, {result.check} ({finding.where}): {finding.found}"
                log.warning("%s Remedy: %s", text, finding.remedy)
        if wrong:
            more = [f"  and {len(wrong) - FINDINGS_LISTED} more"] if len(wrong) > FINDINGS_LISTED else []
            listed = "\n".join(wrong[:FINDINGS_LISTED] + more)
            raise ToolkitError(
                f"{path / 'train' if path == split else path} is not sound:\n{listed}\nEverything that was found: "
                f"python -m data_prep.check {path}. To train anyway: dataset.check=false."
            )


def open_datasets(config: FinetuneConfig, copies: Sequence[Path] | None = None) -> Mixture:
    """The datasets that are trained on, or their `copies`, their frame tables mapped and their statistics there."""
    parts, configs = datasets(config), modality_configs(config.dataset)
    folders = copies or [part.folder for part in parts]
    readers = [StepReader(folder, configs, part.exclude) for folder, part in zip(folders, parts, strict=True)]
    mixture = Mixture(readers, [part.weight for part in parts], teaches_conflict=config.dataset.conflict_share > 0)
    mixture.statistics(cast(Tail, config.dataset.tail))
    return mixture


def build_processor(
    base: Gr00tN1d7Processor, reader: StepReader | Mixture, config: FinetuneConfig
) -> Gr00tN1d7Processor:
    """The base's processor with this robot, the statistics of what is trained on and this augmentation."""
    augment, side = config.augment, base.images.side
    processor = base.with_config(
        crop_fraction=augment.crop_fraction,
        shortest_image_edge=side,
        # the same crop once more, for readers that know these two keys only (LeRobot)
        image_target_size=[side] * 2,
        image_crop_size=[int(side * augment.crop_fraction)] * 2,
        random_rotation_angle=augment.random_rotation_angle,
        color_jitter_params=None if augment.color_jitter is None else dataclasses.asdict(augment.color_jitter),
        state_dropout_prob=augment.state_dropout,
    )
    mixture = Mixture([reader]) if isinstance(reader, StepReader) else reader
    statistics = mixture.statistics(cast(Tail, config.dataset.tail))
    return processor.with_embodiment(config.dataset.embodiment_tag, mixture.readers[0].configs, statistics)


def build_dataset(
    reader: StepReader | Mixture, processor: Gr00tN1d7Processor, model: Gr00tN1d7Config, config: FinetuneConfig
) -> TrainingDataset:
    """Training samples of the episodes that are not held out."""
    settings = SampleSettings(
        seed=config.train.seed,
        views=config.augment.views,
        state_dropout=config.augment.state_dropout,
        instruction_dropout=config.augment.instruction_dropout,
        tail=cast(Tail, config.dataset.tail),
        noise_beta=(model.noise_beta_alpha, model.noise_beta_beta),
        noise_s=model.noise_s,
        noise_draws=config.train.noise_draws,
    )
    if config.dataset.tail == "drop":
        log.warning(
            "dataset.tail=drop starts only where the whole action horizon is recorded, as the original does: on short "
            "episodes the policy never sees how they end, and does not learn to lift. The default is mask."
        )
    return TrainingDataset(reader, processor, config.dataset.embodiment_tag, settings)


def training_order(dataset: TrainingDataset, config: FinetuneConfig) -> MixtureOrder:
    """The order of the samples; early frames come train.early_draws times in a pass."""
    train = config.train
    repeated = [first * (train.early_draws - 1) for first in dataset.first_starts(train.early_frames)]
    shares, batch = dataset.mixture.shares, train.global_batch_size
    return MixtureOrder(dataset.lengths, shares, batch, train.seed, repeated=repeated)


def build_loader(
    dataset: TrainingDataset, config: FinetuneConfig, engine: Engine, first_step: int
) -> tuple[DataLoader[Any], MicroBatchSampler]:
    """This process's micro-batches from `first_step` on, prefetched by worker processes; read them by `answered`."""
    train = config.train
    sampler = MicroBatchSampler(
        training_order(dataset, config),
        train.micro_batch_size or train.global_batch_size // engine.world_size,
        rank=engine.rank,
        world_size=engine.world_size,
        first_step=first_step,
        last_step=train.max_steps,
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warns about the fork of workers otherwise
    return prefetched(dataset, sampler, dataset.collate, train.num_workers, engine), sampler


def prefetched(
    samples: Any, batches: Iterable[Any], collate: Callable[[list[Any]], Any], workers: int, engine: Engine
) -> DataLoader[Any]:
    """Batches of samples by number, made ahead by worker processes; `answered` reads them."""
    if workers:
        atexit.register(_end_workers)
    return DataLoader(
        samples,
        batch_sampler=batches,  # type: ignore[arg-type]  # indexed by SampleKey, where samples are a TrainingDataset
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=begin_worker,
        pin_memory=engine.device.type == "cuda",
        prefetch_factor=4 if workers else None,
        timeout=WORKER_SECONDS if workers else 0,
    )


def _end_workers() -> None:
    """Kill what is left of the worker processes when the program ends. After an error that nobody caught these are all,
    and as they ignore SIGTERM, multiprocessing would wait for them for ever, and the other ranks for this one."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would call this an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def begin_worker(worker: int) -> None:
    """One thread for each loader process, which ends with the training process and not before."""
    del worker
    leave_signals_to_parent()
    cv2.setNumThreads(0)  # workers are the parallelism
    torch.set_num_threads(1)


def answered(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a DataLoader; errors of its workers are those of `worker_errors`."""
    batches = iter(loader)  # starts the processes
    with worker_errors():
        yield from batches


@contextmanager
def worker_errors() -> Iterator[None]:
    """Around the batches of a DataLoader: workers that are silent, killed or refuse something raise ToolkitError."""
    pids = [child.pid for child in multiprocessing.active_children() if child.pid]
    try:
        yield
    except ToolkitError as error:  # a loader process puts its traceback before the message
        raise ToolkitError(str(error).rpartition("ToolkitError: ")[2].strip()) from None
    except RuntimeError as error:
        if "DataLoader timed out" in str(error):
            raise silent("loading data", pids) from None
        if "DataLoader worker" in str(error):
            raise ToolkitError(
                f"{error} Where it was killed, memory has run out: lower train.num_workers, or ask for more memory."
            ) from None
        raise
