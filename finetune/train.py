"""Fine-tuning, from a dataset and a base checkpoint to a finished checkpoint: read `finetune` from top to bottom."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conflict_panda_config import MODALITY_CONFIG
from finetune import checkpointing, optim
from finetune.attempt_token import AttemptToken, Superseded
from finetune.cache import use_frame_store
from finetune.config.identity import recipe
from finetune.config.schema import FinetuneConfig
from finetune.data import build_dataset, build_loader, build_processor, mask_sum, train_folder
from finetune.dataset_check import check_dataset
from finetune.engine import Engine, build_engine
from finetune.export import write_release
from finetune.features import HeadOnFeatures, restore_backbone, use_cached_features
from finetune.lora import add_adapters, merge_adapters
from finetune.meter import Meter, action_groups
from finetune.planning.fits import check_here
from finetune.preemption import SUPERSEDED, TIME_LIMIT, Preemption, Stopped
from finetune.run_folder import RunFolder
from finetune.stop_signals import stop_signals
from finetune.tracking import Tracker
from gr00t.data.dataset import StepReader, TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.randomness import Stream, torch_seed
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors
from gr00t.model.attention import flash_attention
from gr00t.model.checkpoint import fingerprint, resolve_folder
from gr00t.model.compilation import compile_for_training, compiles
from gr00t.model.gr00t_n1d7 import Gr00tN1d7


@dataclass(frozen=True)
class FinetuneResult:
    """Where the finished checkpoint lies, and how training ended."""

    output_dir: Path
    run_dir: Path
    steps: int
    loss: float | None
    already_finished: bool = False
    stopped: str | None = None  # why it ended before the last step; the same command goes on

    def __str__(self) -> str:
        if self.stopped == SUPERSEDED:
            return f"was taken over by another attempt: {self.run_dir}"
        if self.stopped is not None:
            return f"stopped after {self.steps} steps ({self.stopped}): the same command goes on from {self.run_dir}"
        how = "was already finished" if self.already_finished else f"finished after {self.steps} steps"
        return f"{how}: {self.output_dir}"


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Train `config.split` and write the finished checkpoint to `config.output_dir`.

    SIGTERM, SIGUSR1 and SIGUSR2, and the end of a SLURM job's time, end it early: with a checkpoint, and no error.
    """
    token = AttemptToken.from_environment(Path(config.run_dir))
    with stop_signals(), token.failures():
        engine = build_engine(config)
        stop = Preemption(engine, token, config.cluster.grace_seconds)
        try:
            result = _finetune(config, engine, stop)
        except Stopped as stopped:
            folders = Path(config.output_dir), Path(config.run_dir)
            result = FinetuneResult(*folders, stop.step, None, stopped=str(stopped))
        except BaseException:
            engine.close(failed=True)
            raise
        engine.close()
        if engine.is_main:
            _record(token, result)
        return result


def _record(token: AttemptToken, result: FinetuneResult) -> None:
    """Tell the job how this attempt ended."""
    status = "finished" if result.stopped is None else "stopped"
    if result.stopped == SUPERSEDED:
        token.record(SUPERSEDED, "another attempt has taken over the run folder", result.steps, None)
    else:
        checkpoints = checkpointing.list_checkpoints(result.run_dir)
        token.record(status, result.stopped or "", result.steps, checkpoints[-1].name if checkpoints else None)


def _finetune(config: FinetuneConfig, engine: Engine, stop: Preemption) -> FinetuneResult:
    run_dir, output_dir = Path(config.run_dir), Path(config.output_dir)
    base = resolve_folder(config.model.base)
    with engine.main_first():
        if config.dataset.check and engine.is_main:
            check_dataset(config)
        reader = StepReader(train_folder(config), MODALITY_CONFIG)
    identity = run_identity(config, base, reader)
    run = RunFolder(config, identity)
    start, finished = run.starting_point(engine)
    if finished:
        return FinetuneResult(output_dir, run_dir, config.train.max_steps, None, already_finished=True)
    stop.step = start.step if start else 0
    check_room(config, engine)

    processor = build_processor(Gr00tN1d7Processor.from_pretrained(base), reader, config)
    model = load_base(config, base, engine, processor.embodiment_ids[config.dataset.embodiment_tag])
    if config.dataset.frames == "store":
        use_frame_store(config, reader, engine, stop)
    dataset = build_dataset(reader, processor, model.n1d7_config, config)
    if config.train.features == "cached":
        use_cached_features(config, engine, stop, model, dataset, identity["base"])
    if start is not None:
        checkpointing.load_weights(start, model)
    module = HeadOnFeatures(model) if config.train.features == "cached" else model
    engine.prepare(module, optim.build_optimizer(model, config.train))
    if start is not None:
        engine.restore_optimizer(checkpointing.read_optimizer(start))
    stop.check(TIME_LIMIT)  # which is looked at after the first step: every attempt gets on
    with run.opened(start, engine, stop):
        resolved = dataclasses.asdict(config)
        tracker = Tracker(config, resolved, active=engine.is_main, first_step=stop.step, token=stop.token)
        loss = TrainingLoop(config, engine, stop, model, dataset, tracker, identity).run(start)
        _release(config, base, engine, stop, model, dataset, identity)
    return FinetuneResult(output_dir, run_dir, config.train.max_steps, loss)


def _release(
    config: FinetuneConfig,
    base: Path,
    engine: Engine,
    stop: Preemption,
    model: Gr00tN1d7,
    dataset: TrainingDataset,
    identity: dict[str, Any],
) -> None:
    """The finished checkpoint, written by the main process while the others wait."""
    engine.gather_weights()
    if engine.is_main and stop.token.is_ours():
        if config.train.features == "cached":
            restore_backbone(model, base, identity["base"], engine.dtype)
        if config.train.lora.rank is not None:
            merge_adapters(model)
        folder = Path(config.output_dir)
        remedy = "The last checkpoint is whole: make room and start the same command again."
        with suppress(Superseded), disk_errors(folder, remedy):
            write_release(
                folder,
                model,
                dataset.processor,
                resolved=dataclasses.asdict(config),
                layout=dataset.reader.layout,
                identity=identity,
                allowed=stop.token.require,
            )
    stop.barrier()


def check_room(config: FinetuneConfig, engine: Engine) -> None:
    """Refuse what cannot fit on this process's device, or on the disks."""
    check_here(
        config,
        engine.world_size,
        engine.free_memory(),
        bf16=engine.dtype == torch.bfloat16,
        cuda=engine.device.type == "cuda",
        writes=engine.is_main,
    )


def load_base(config: FinetuneConfig, base: Path, engine: Engine, embodiment: int) -> Gr00tN1d7:
    """The base on this process's device: frozen weights in the engine's precision, trained ones in fp32."""
    tune = dataclasses.asdict(config.train.tune)
    all_embodiments = tune.pop("all_embodiments")
    model = Gr00tN1d7.from_pretrained(base, dtype=engine.dtype, trained_dtype=torch.float32, tune=tune)
    if not all_embodiments:
        model.keep_embodiments([embodiment])
    if config.train.lora.rank is not None:
        add_adapters(model, config.train.lora, config.train.seed)
    if not any(True for _ in model.trained_parameters()):
        raise ToolkitError("Nothing is trained: switch one of train.tune.* on.")
    if config.train.activation_checkpointing:
        model.recompute_activations()
    model.backbone.at_once = config.train.backbone_batch_size
    if config.train.attention == "flash":
        model.backbone.use_attention(flash_attention(engine.device, engine.dtype) or "sdpa")
    elif engine.device.type == "cpu" and trains_language_model(model):
        model.backbone.use_attention("eager")  # the backward of PyTorch's fused attention takes longer there
    if compiles(config.train.compile, engine.device):
        compile_for_training(model.action_head)
    model.config.state_dropout_prob = config.augment.state_dropout
    nn.Module.to(model, engine.device)
    return model.train()


def trains_language_model(model: Gr00tN1d7) -> bool:
    """Whether gradients flow through the language model's layers."""
    return any(parameter.requires_grad for parameter in model.backbone.vlm.language_model.parameters())


def run_identity(config: FinetuneConfig, base: Path, reader: StepReader) -> dict[str, Any]:
    """What must not change when a run is continued: all that decides a later step's loss."""
    return {
        **recipe(dataclasses.asdict(config)),
        "dataset": reader.layout.training_digest(),
        "base": fingerprint(base),
    }


class TrainingLoop:
    """Optimizer steps from a starting point to max_steps, with metrics and checkpoints."""

    def __init__(
        self,
        config: FinetuneConfig,
        engine: Engine,
        stop: Preemption,
        model: Gr00tN1d7,
        dataset: TrainingDataset,
        tracker: Tracker,
        identity: dict[str, Any],
    ) -> None:
        self.config, self.engine, self.stop, self.model = config, engine, stop, model
        self.dataset, self.tracker, self.identity = dataset, tracker, identity
        train, run_dir = config.train, Path(config.run_dir)
        self.writer: checkpointing.CheckpointWriter | None = None
        if engine.is_main:
            self.writer = checkpointing.CheckpointWriter(run_dir, train.keep_last, train.keep_every, stop.token)
        self.meter = Meter(action_groups(dataset.processor, dataset.tag), engine)

    def run(self, start: checkpointing.Checkpoint | None) -> float | None:
        """Train; the loss of the last logged steps. Raises Stopped when all is saved. The tracker is closed anyway."""
        failed, reason = True, None
        if start is not None and "meter" in start.state:
            self.meter.restore(start.state["meter"])
        try:
            reason = self._steps(start.step if start else 0)
            if self.writer is not None:
                with self._checkpoint_errors():
                    self.writer.wait()
            failed = False
        finally:
            if self.writer is not None:
                self.writer.close()
            self.tracker.finish({"loss": self.meter.last_loss}, failed=failed)
        if reason is not None:
            raise Stopped(reason)
        return self.meter.last_loss

    def _steps(self, first_step: int) -> str | None:
        """All steps that are left; the reason when there is one to stop before the last."""
        train = self.config.train
        loader, sampler = build_loader(self.dataset, self.config, self.engine, first_step)
        batches = iter(loader)
        for step in range(first_step, train.max_steps):
            micro_batches = self._next(batches, sampler.accumulation)
            self._step(step, micro_batches)
            done = step + 1
            reason = self.stop.agreed(done)
            if reason == SUPERSEDED:
                return reason
            saves = done % train.save_steps == 0 or done == train.max_steps or reason is not None
            if done % train.log_steps == 0 or done == train.max_steps:
                self.tracker.log(done, self.meter.read(self.config, optim.learning_rate(step, train)))
                self._refuse_nan(done)
            self.tracker.advance(done)
            if saves:
                self._refuse_nan(done)
                self._save(done)
            if reason is not None and done < train.max_steps:
                return reason
        return None

    def _next(self, batches: Iterator[dict[str, Tensor]], count: int) -> list[dict[str, Tensor]]:
        begin = time.perf_counter()
        try:
            found = [self.engine.move(next(batches)) for _ in range(count)]
        except ToolkitError as error:  # a loader process puts its traceback before the message
            raise ToolkitError(str(error).rpartition("ToolkitError: ")[2].strip()) from None
        self.meter.waited += time.perf_counter() - begin
        return found

    def _step(self, step: int, micro_batches: list[dict[str, Tensor]]) -> None:
        """One optimizer step over the global batch: the loss is the mean over all its unmasked action values."""
        engine, train = self.engine, self.config.train
        total = self.stop.sum(mask_sum(micro_batches)) + 1e-6
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            torch.manual_seed(
                torch_seed(train.seed, Stream.MODEL_DROPOUT, step, engine.rank * len(micro_batches) + index)
            )
            with engine.accumulate(last):
                with engine.autocast():
                    output = engine.module(batch)
                engine.backward(output.action_loss.sum() / total)
            self.meter.add(output.action_loss, output.action_mask)
        optim.set_learning_rate(engine.optimizer, optim.learning_rate(step, train))
        self.meter.end_step(engine.step())

    def _refuse_nan(self, step: int) -> None:
        loss = self.meter.last_loss
        if not self.meter.finite or (loss is not None and not math.isfinite(loss)):
            raise ToolkitError(
                f"Loss or gradients are no numbers any more at step {step}; the checkpoints from before are whole. "
                "Check the dataset's ranges, or lower train.learning_rate."
            )

    def _save(self, step: int) -> None:
        weights, optimizer = self.engine.trained_weights(), self.engine.optimizer_state()
        state = {"identity": self.identity, "loss": self.meter.last_loss, "meter": self.meter.state()}
        if self.writer is None:
            for _ in itertools.chain(weights, optimizer):  # this process gives its part of each
                pass
            return
        self.stop.save_seconds = self.writer.seconds
        with self._checkpoint_errors():
            self.writer.submit(checkpointing.take_snapshot(step, weights, optimizer, state))

    def _checkpoint_errors(self) -> AbstractContextManager[None]:
        remedy = "The checkpoint before is whole: make room and start the same command again."
        return disk_errors(Path(self.config.run_dir), remedy)
