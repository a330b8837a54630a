"""Fine-tuning, from a dataset and a base checkpoint to a finished checkpoint: read `finetune` from top to bottom."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune import checkpointing, optim
from finetune.cache import use_frame_store
from finetune.config.schema import FinetuneConfig
from finetune.data import build_dataset, build_loader, build_processor, mask_sum, train_folder
from finetune.engine import Engine
from finetune.export import write_release
from finetune.features import HeadOnFeatures, restore_backbone, use_cached_features
from finetune.tracking import Tracker
from gr00t.data.dataset import StepReader
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.randomness import Stream, torch_seed
from gr00t.errors import ToolkitError
from gr00t.files import remove_leftovers, write_json
from gr00t.model.checkpoint import fingerprint, resolve_folder
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneResult:
    """Where the finished checkpoint lies, and how training ended."""

    output_dir: Path
    run_dir: Path
    steps: int
    loss: float | None
    already_finished: bool = False


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Train `config.split` and write the finished checkpoint to `config.output_dir`."""
    run_dir, output_dir = Path(config.run_dir), Path(config.output_dir)
    engine = Engine(config)
    try:
        base = resolve_folder(config.model.base)
        with engine.main_first():
            reader = StepReader(train_folder(config), _modality_config())
        identity = run_identity(config, base, reader)
        start = _starting_point(config, identity, engine)
        if start is not None and start.step >= config.train.max_steps and output_dir.is_dir():
            return FinetuneResult(output_dir, run_dir, start.step, start.state.get("loss"), already_finished=True)

        processor = build_processor(Gr00tN1d7Processor.from_pretrained(base), reader, config)
        model = load_base(config, base, engine, processor.embodiment_ids[config.dataset.embodiment_tag])
        if config.dataset.frames == "store":
            use_frame_store(config, reader, engine)
        dataset = build_dataset(reader, processor, model.n1d7_config, config)
        if config.train.features == "cached":
            use_cached_features(config, engine, model, dataset, identity["base"])
        optimizer = optim.build_optimizer(model, config.train)
        if start is not None:
            checkpointing.load_checkpoint(start, model, optimizer)
        resolved = dataclasses.asdict(config)
        tracker = Tracker(config, resolved, active=engine.is_main, first_step=start.step if start else 0)
        loop = TrainingLoop(config, engine, model, optimizer, dataset, tracker, identity)
        loss = loop.run(start.step if start else 0)
        if engine.is_main:
            if config.train.features == "cached":
                restore_backbone(model, base, identity["base"], engine.dtype)
            write_release(output_dir, model, processor, resolved=resolved, layout=reader.layout)
        engine.barrier()
        return FinetuneResult(output_dir, run_dir, config.train.max_steps, loss)
    finally:
        engine.close()


def load_base(config: FinetuneConfig, base: Path, engine: Engine, embodiment: int) -> Gr00tN1d7:
    """The base on this process's device: frozen weights in the engine's precision, trained ones in fp32."""
    tune = dataclasses.asdict(config.train.tune)
    all_embodiments = tune.pop("all_embodiments")
    model = Gr00tN1d7.from_pretrained(base, dtype=engine.dtype, trained_dtype=torch.float32, tune=tune)
    if not all_embodiments:
        model.keep_embodiments([embodiment])
    if not any(True for _ in model.trained_parameters()):
        raise ToolkitError("Nothing is trained: switch one of train.tune.* on.")
    model.config.state_dropout_prob = config.augment.state_dropout
    nn.Module.to(model, engine.device)
    return model.train()


def run_identity(config: FinetuneConfig, base: Path, reader: StepReader) -> dict[str, Any]:
    """What must not change when a run is continued: all that decides a later step's loss."""
    keep_out = ("save_steps", "keep_last", "log_steps", "num_workers", "resume", "micro_batch_size", "features")
    train = {k: v for k, v in dataclasses.asdict(config.train).items() if k not in keep_out}
    return {
        **{f"train.{k}": v for k, v in train.items()},
        "augment": dataclasses.asdict(config.augment),
        "dataset.tail": config.dataset.tail,
        "dataset.embodiment_tag": config.dataset.embodiment_tag,
        "dataset": reader.layout.fingerprint,
        "base": fingerprint(base),
    }


class TrainingLoop:
    """Optimizer steps from a starting point to max_steps, with metrics and checkpoints."""

    def __init__(
        self,
        config: FinetuneConfig,
        engine: Engine,
        model: Gr00tN1d7,
        optimizer: torch.optim.Optimizer,
        dataset: Any,
        tracker: Tracker,
        identity: dict[str, Any],
    ) -> None:
        self.config, self.engine, self.model, self.optimizer = config, engine, model, optimizer
        self.dataset, self.tracker, self.identity = dataset, tracker, identity
        self.wrapped = engine.prepare(HeadOnFeatures(model) if config.train.features == "cached" else model)
        self.meter = Meter(_action_groups(dataset), engine)

    def run(self, first_step: int) -> float | None:
        """Train; the loss of the last logged steps. The tracker is closed in any case."""
        failed = True
        try:
            self._steps(first_step)
            failed = False
        finally:
            self.tracker.finish({"loss": self.meter.last_loss}, failed=failed)
        return self.meter.last_loss

    def _steps(self, first_step: int) -> None:
        train = self.config.train
        loader, sampler = build_loader(self.dataset, self.config, self.engine, first_step)
        batches = iter(loader)
        for step in range(first_step, train.max_steps):
            micro_batches = self._next(batches, sampler.accumulation)
            self._step(step, micro_batches)
            done = step + 1
            if done % train.log_steps == 0 or done == train.max_steps:
                self.tracker.log(done, self.meter.read(self.config, optim.learning_rate(step, train)))
                self._refuse_nan(done)
            self.tracker.advance(done)
            if done % train.save_steps == 0 or done == train.max_steps:
                self._save(done)

    def _next(self, batches: Iterator[dict[str, Tensor]], count: int) -> list[dict[str, Tensor]]:
        begin = time.perf_counter()
        found = [self.engine.move(next(batches)) for _ in range(count)]
        self.meter.waited += time.perf_counter() - begin
        return found

    def _step(self, step: int, micro_batches: list[dict[str, Tensor]]) -> None:
        """One optimizer step over the global batch: the loss is the mean over all its unmasked action values."""
        engine, train = self.engine, self.config.train
        total = engine.sum(mask_sum(micro_batches)) + 1e-6
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            torch.manual_seed(
                torch_seed(train.seed, Stream.MODEL_DROPOUT, step, engine.rank * len(micro_batches) + index)
            )
            with engine.accumulate(self.wrapped, last):
                with engine.autocast():
                    output = self.wrapped(batch)
                # DDP takes the mean over processes, the loss is a sum over them
                (output.action_loss.sum() / total * engine.world_size).backward()
            self.meter.add(output.action_loss, output.action_mask)
        norm = nn.utils.clip_grad_norm_([p for _, p in self.model.trained_parameters()], train.max_grad_norm)
        optim.set_learning_rate(self.optimizer, optim.learning_rate(step, train))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.end_step(norm)

    def _refuse_nan(self, step: int) -> None:
        loss = self.meter.last_loss
        if loss is not None and loss != loss:
            raise ToolkitError(
                f"The loss is not a number after step {step}; nothing was saved since the last checkpoint. Check the "
                "dataset's ranges, or lower train.learning_rate."
            )

    def _save(self, step: int) -> None:
        if self.engine.is_main:
            state = {"identity": self.identity, "loss": self.meter.last_loss}
            train = self.config.train
            checkpointing.save_checkpoint(
                Path(self.config.run_dir), step, self.model, self.optimizer, state, train.keep_last
            )
        self.engine.barrier()


class Meter:
    """Sums kept on the device between two log lines, so that logging alone makes the processes wait."""

    def __init__(self, groups: dict[str, slice], engine: Engine) -> None:
        self.groups, self.engine = groups, engine
        self.last_loss: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._error = torch.zeros(len(self.groups), device=self.engine.device)
        self._count = torch.zeros_like(self._error)
        self._norm = torch.zeros((), device=self.engine.device)
        self._steps = 0
        self.waited = 0.0
        self._begin = time.perf_counter()

    def add(self, action_loss: Tensor, action_mask: Tensor) -> None:
        """Squared errors x mask and mask of one micro-batch, both (B, H, D)."""
        error, count = action_loss.detach().sum((0, 1)), action_mask.sum((0, 1))
        self._error += torch.stack([error[part].sum() for part in self.groups.values()])
        self._count += torch.stack([count[part].sum() for part in self.groups.values()])

    def end_step(self, norm: Tensor) -> None:
        self._norm += norm.detach()
        self._steps += 1

    def read(self, config: FinetuneConfig, learning_rate: float) -> dict[str, float]:
        """Means since the last reading, over all processes; starts anew."""
        error, count = self.engine.sum(self._error), self.engine.sum(self._count)
        self.last_loss = float(error.sum() / (count.sum() + 1e-6))
        seconds = time.perf_counter() - self._begin
        metrics = {
            "loss": self.last_loss,
            **{f"loss_{g}": float(e / (c + 1e-6)) for g, e, c in zip(self.groups, error, count, strict=True)},
            "grad_norm": float(self._norm / self._steps),
            "learning_rate": learning_rate,
            "samples_per_second": config.train.global_batch_size * self._steps / seconds,
            "data_wait_seconds": self.waited,
            "peak_memory_gib": self.engine.peak_memory(),
        }
        self._reset()
        return metrics


def _starting_point(
    config: FinetuneConfig, identity: dict[str, Any], engine: Engine
) -> checkpointing.Checkpoint | None:
    """The checkpoint to go on from, after refusing what would destroy another run's results."""
    run_dir, output_dir = Path(config.run_dir), Path(config.output_dir)
    start = checkpointing.newest_checkpoint(run_dir) if config.train.resume == "auto" else None
    engine.barrier()
    if start is not None:
        checkpointing.check_same_run(start, identity)
    elif output_dir.exists() and config.train.resume == "auto":
        raise ToolkitError(
            f"output_dir {output_dir} exists already and run_dir {run_dir} holds no run to continue. Choose another "
            "output_dir=..., remove it, or replace it with train.resume=never."
        )
    if engine.is_main:
        if config.train.resume == "never" and run_dir.is_dir():
            for old in [*checkpointing.list_checkpoints(run_dir), run_dir / "run.json", run_dir / "metrics.jsonl"]:
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        run_dir.mkdir(parents=True, exist_ok=True)
        for folder in (run_dir, output_dir.parent):
            remove_leftovers(folder, "checkpoint-*" if folder == run_dir else output_dir.name)
        write_json(run_dir / "config.json", dataclasses.asdict(config))
    engine.barrier()
    return start


def _modality_config() -> Any:
    from conflict_panda_config import MODALITY_CONFIG

    return MODALITY_CONFIG


def _action_groups(dataset: Any) -> dict[str, slice]:
    """Columns of each action group in the padded action."""
    processor, tag = dataset.processor, dataset.tag
    groups, start = {}, 0
    for key in processor.modality_config(tag)["action"].modality_keys:
        width = len(processor.files.statistics[tag]["action"][key]["min"])
        groups[key] = slice(start, start + width)
        start += width
    return groups
