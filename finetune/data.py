"""From a dataset folder and a base checkpoint's processor to batches of training samples."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.config.mixture import datasets
from finetune.config.modality import modality_configs
from finetune.config.schema import FinetuneConfig
from finetune.engine import Engine
from finetune.stop_signals import leave_signals_to_parent
from gr00t.data.dataset import SampleSettings, TrainingDataset
from gr00t.data.mixture import Mixture
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import MicroBatchSampler, MixtureOrder
from gr00t.data.statistics import Tail
from gr00t.data.steps import StepReader
from gr00t.errors import ToolkitError
from gr00t.model.config import Gr00tN1d7Config
from gr00t.processes import WORKER_SECONDS, silent

log = logging.getLogger(__name__)


def open_datasets(config: FinetuneConfig) -> Mixture:
    """The datasets that are trained on, their frame tables mapped and their statistics there."""
    parts, configs = datasets(config), modality_configs(config.dataset)
    mixture = Mixture([StepReader(part.folder, configs) for part in parts], [part.weight for part in parts])
    mixture.statistics(cast(Tail, config.dataset.tail))
    return mixture


def build_processor(
    base: Gr00tN1d7Processor, reader: StepReader | Mixture, config: FinetuneConfig
) -> Gr00tN1d7Processor:
    """The base's processor with this robot, the statistics of what is trained on and this augmentation."""
    augment = config.augment
    jitter = augment.color_jitter
    processor = base.with_config(
        crop_fraction=augment.crop_fraction,
        shortest_image_edge=base.images.side,
        # the same crop once more, for readers that know these two keys only (LeRobot)
        image_target_size=[base.images.side] * 2,
        image_crop_size=[int(base.images.side * augment.crop_fraction)] * 2,
        random_rotation_angle=augment.random_rotation_angle,
        color_jitter_params=None if jitter is None else dataclasses.asdict(jitter),
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
    """Which sample stands where; early frames as often as train.early_draws says."""
    train = config.train
    return MixtureOrder(
        dataset.lengths,
        dataset.mixture.shares,
        train.global_batch_size,
        train.seed,
        repeated=[first * (train.early_draws - 1) for first in dataset.first_starts(train.early_frames)],
    )


def build_loader(
    dataset: TrainingDataset, config: FinetuneConfig, engine: Engine, first_step: int
) -> tuple[DataLoader[Any], MicroBatchSampler]:
    """This process's micro-batches from `first_step` on, prefetched by worker processes."""
    train = config.train
    sampler = MicroBatchSampler(
        training_order(dataset, config),
        train.micro_batch_size or train.global_batch_size // engine.world_size,
        rank=engine.rank,
        world_size=engine.world_size,
        first_step=first_step,
        last_step=train.max_steps,
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warns about the fork below otherwise
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # indexed by SampleKey
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=dataset.collate,
        num_workers=train.num_workers,
        worker_init_fn=begin_worker,
        pin_memory=engine.device.type == "cuda",
        prefetch_factor=4 if train.num_workers else None,
        timeout=WORKER_SECONDS if train.num_workers else 0,
    )
    return loader, sampler


@contextmanager
def worker_errors() -> Iterator[None]:
    """Around the next batch of a DataLoader: workers that do not answer or are killed become a ToolkitError, as what
    one of them refuses does."""
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


def answered(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a DataLoader, its errors as of `worker_errors`."""
    batches = iter(loader)
    while True:
        with worker_errors():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def begin_worker(worker: int) -> None:
    """One thread for each loader process, which ends with the training process and not before."""
    del worker
    leave_signals_to_parent()
    cv2.setNumThreads(0)  # workers are the parallelism
    torch.set_num_threads(1)


def mask_sum(batches: list[dict[str, Tensor]]) -> Tensor:
    """Number of action values of one process's part of a global batch that count in the loss."""
    return torch.stack([b["action_mask"].sum() for b in batches]).sum()
