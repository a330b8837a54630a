"""Fine-tuning: `finetune` is one attempt with its ends, `_recipe` all that a run does from top to bottom, and
`TrainingLoop` the optimizer steps, with the loss in its `_step`."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.plan import check_here
from finetune.recipe import FinetuneConfig
from finetune.training import FIRST_BATCH, caches, checkpointing, dataloader, first_batch
from finetune.training.checkpointing import Best, Checkpoint, CheckpointWriter
from finetune.training.engine import Engine, build_engine
from finetune.training.metrics import Meter, Validation, action_groups, held_out, read_probes, trained_parts
from finetune.training.node_copies import NodeCopies
from finetune.training.optimizer import add_adapters, build_optimizer, learning_rate, merge_adapters, set_learning_rate
from finetune.training.run_folder import RunFolder
from finetune.training.run_identity import conditions, run_identity, warn
from finetune.training.stopping import SUPERSEDED, TIME_LIMIT, AttemptToken, Stopped, ThisAttempt, again
from finetune.training.tracking import Tracker
from gr00t.data.dataset import TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import SampleKey, Stream, torch_seed
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import parsing
from gr00t.model import cpu_kernels
from gr00t.model.checkpoint_folder import resolve_folder
from gr00t.model.device import compile_for_training, compiles
from gr00t.model.finished_checkpoint import check_fit
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.command_line import stop_signals


@dataclass(frozen=True)
class FinetuneResult:
    """Where the finished checkpoint lies, and how training ended."""

    output_dir: Path
    run_dir: Path
    steps: int
    loss: float | None
    already_finished: bool = False
    stopped: str | None = None  # why it ended before the last step
    again: str = "the same command"  # what resumes it then

    def __str__(self) -> str:
        if self.stopped == SUPERSEDED:
            return f"was taken over by another attempt: {self.run_dir}"
        if self.stopped is not None:
            return f"stopped after {self.steps} steps ({self.stopped}): {self.again} resumes from {self.run_dir}"
        how = "was already finished" if self.already_finished else f"finished after {self.steps} steps"
        return f"{how}: {self.output_dir}"


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Train `config.split` and write the finished checkpoint to `config.output_dir`.

    SIGTERM, SIGUSR1 and SIGUSR2, and the end of a SLURM job's time, end it early: with a checkpoint, and no error.
    """
    run_dir, output_dir = Path(config.run_dir), Path(config.output_dir)
    token = AttemptToken.from_environment(run_dir)
    with stop_signals(), token.failures():
        engine = build_engine(config)
        attempt = ThisAttempt(config, engine, token)
        try:
            with NodeCopies(attempt) as copies:
                result = _recipe(attempt, copies)
        except Stopped as stopped:
            result = FinetuneResult(output_dir, run_dir, attempt.step, None, stopped=str(stopped))
            if attempt.step:  # before its first step a run that is to start over has cleared nothing
                result = dataclasses.replace(result, again=again(config))
        except BaseException:
            engine.close(failed=True)
            raise
        engine.close()
        if engine.is_main and result.stopped == SUPERSEDED:
            token.record(SUPERSEDED, "another attempt has taken over the run folder", result.steps, None)
        elif engine.is_main:
            newest = [None, *(folder.name for folder in checkpointing.list_checkpoints(run_dir))][-1]
            token.record("stopped" if result.stopped else "finished", result.stopped or "", result.steps, newest)
        return result


def _recipe(attempt: ThisAttempt, copies: NodeCopies) -> FinetuneResult:
    config, engine = attempt.config, attempt.engine
    base = resolve_folder(config.model.base)
    with engine.main_first():
        if config.dataset.check and engine.is_main:
            dataloader.check_dataset(config)
        mixture = dataloader.open_datasets(config)
    identity, files = run_identity(config, base, mixture) if engine.is_main else ({}, {})
    identity = engine.tell(identity)  # the main process alone hashes the files
    run = RunFolder(attempt, identity, files)
    start, finished = run.starting_point()
    if finished:
        return FinetuneResult(run.output_dir, run.run_dir, config.train.max_steps, None, already_finished=True)
    attempt.step = start.step if start else 0
    bf16, cuda = engine.dtype == torch.bfloat16, engine.device.type == "cuda"
    check_here(config, engine.world_size, engine.free_memory(), bf16=bf16, cuda=cuda, writes=engine.is_main)
    mixture = copies.datasets(mixture)

    processor = dataloader.build_processor(Gr00tN1d7Processor.from_pretrained(base), mixture, config)
    model = load_base(config, base, engine, processor.embodiment_ids[config.dataset.embodiment_tag])
    check_fit(processor, model, base, config.dataset.embodiment_tag)
    if config.dataset.frames == "store":
        for reader in mixture.readers:
            caches.use_frame_store(attempt, reader, copies.folder)
    dataset = dataloader.build_dataset(mixture, processor, model.config, config)
    unseen = held_out(config, dataset)
    probes = read_probes(config, unseen, engine) if unseen and engine.is_main else None
    if config.train.features == "cached":
        if probes is not None:
            with engine.autocast():
                probes.keep_features(model)
        used = [dataset, unseen] if unseen else [dataset]
        caches.use_cached_features(attempt, model, used, identity["base"], copies.folder)
    computed_with = _ready_to_train(config, engine, model, start)
    attempt.check(TIME_LIMIT)  # the time limit counts after the first step only: every attempt advances
    with run.opened(start, computed_with), Tracker(attempt, run.describe(mixture)) as tracker:
        if config.cluster.stage_data:
            tracker.log_copies(copies.seconds)
        validation = Validation(attempt, model, unseen, probes) if unseen else None
        origin = {"identity": identity, "conditions": computed_with}
        loop = TrainingLoop(attempt, model, dataset, tracker, origin, validation)
        loss = loop.run(start)
        tracker.released(run.output_dir, loop.release(base, run))
    return FinetuneResult(run.output_dir, run.run_dir, loop.done, loss)


def _ready_to_train(
    config: FinetuneConfig, engine: Engine, model: Gr00tN1d7, start: Checkpoint | None
) -> dict[str, Any]:
    """Hand the model and its optimizer to the engine, as `start` left them; returns what its numbers depend on."""
    if start is not None:
        with parsing(start.folder / checkpointing.FILES[0]):
            checkpointing.load_weights(start, model)
    cached = config.train.features == "cached"
    engine.prepare(caches.HeadOnFeatures(model) if cached else model, build_optimizer(model, config.train))
    computed_with = conditions(config, engine, model)
    if start is not None:
        with parsing(start.folder / checkpointing.FILES[1]):
            engine.restore_optimizer(checkpointing.read_optimizer(start))
        if engine.is_main:
            warn(start, computed_with)
    return computed_with


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
        model.backbone.use_attention(cpu_kernels.flash_attention(engine.device, engine.dtype) or "sdpa")
    elif config.train.tune.llm or config.train.tune.top_llm_layers:
        model.backbone.use_attention(cpu_kernels.trained_attention(engine.device))
    if compiles(config.train.compile, engine.device):
        compile_for_training(model.action_head)
    model.config.state_dropout_prob = config.augment.state_dropout
    nn.Module.to(model, engine.device)
    return model.train()


@dataclass(eq=False)
class TrainingLoop:
    """Optimizer steps from a starting point to max_steps, with metrics, evaluations and checkpoints.

    `origin` is what every checkpoint says of its run: identity and conditions. `done` steps are done; the main process
    alone submits to `writer`, and knows the `best` evaluation so far.
    """

    attempt: ThisAttempt
    model: Gr00tN1d7
    dataset: TrainingDataset
    tracker: Tracker
    origin: dict[str, Any]
    validation: Validation | None

    def __post_init__(self) -> None:
        self.config, self.engine = self.attempt.config, self.attempt.engine
        train, groups = self.config.train, action_groups(self.dataset.processor, self.dataset.tag)
        self.writer = CheckpointWriter(Path(self.config.run_dir), train.keep_last, train.keep_every, self.attempt.token)
        self.meter = Meter(groups, trained_parts(self.engine.optimizer), self.engine)
        self.done, self.best = self.attempt.step, Best()

    def run(self, start: Checkpoint | None) -> float | None:
        """Train; the loss of the last logged steps. Raises Stopped when all is saved."""
        if start is not None and "meter" in start.state:
            with parsing(start.folder / "state.json"):
                self.meter.restore(start.state["meter"])
        try:
            reason = self._steps(start)
            with self._disk_errors():
                self.writer.wait()
            self._track_checkpoints()
        finally:
            self.writer.close()
            self.tracker.summary = {"loss": self.meter.last_loss, "steps": self.done, "best": self.best.state()}
        if reason is not None:
            raise Stopped(reason)
        return self.meter.last_loss

    def _steps(self, start: Checkpoint | None) -> str | None:
        """All steps that are left; the reason when there is one to stop before the last."""
        train = self.config.train
        if start is not None and self._resume(start):
            return None
        loader, sampler = dataloader.build_loader(self.dataset, self.config, self.engine, self.done)
        batches = dataloader.answered(loader)
        for step in range(self.done, train.max_steps):
            micro_batches = self._next(batches, sampler.accumulation)
            if step == 0 and self.engine.is_main:
                self._show_first(next(iter(sampler)), micro_batches[0])
            self._step(step, micro_batches)
            self.done = done = step + 1
            reason = self.attempt.agreed(done)
            if reason == SUPERSEDED:
                return reason
            if done % train.log_steps == 0 or done == train.max_steps:
                self.tracker.log(done, self.meter.read(self.config, learning_rate(step, train)))
                self._refuse_nan(done)
            self.tracker.advance(done)
            due, better, enough = self._evaluates(done), False, False
            if due and reason is None:
                better, enough = self._evaluate()
                reason, due = self.attempt.agreed(done), False
            # an evaluation of the last step that a signal leaves no time for is made up for by the next attempt
            ends = (done == train.max_steps and not due) or enough
            if done % train.save_steps == 0 or ends or better or reason is not None:
                self._refuse_nan(done)
                self._save(done)
            if ends or reason is not None:
                return None if ends else reason
        return None

    def _resume(self, start: Checkpoint) -> bool:
        """Restore the history of evaluations up to a checkpoint, and rerun one that a signal interrupted; whether
        training should end."""
        self.best, run_dir = Best.restored(start.state), Path(self.config.run_dir)
        if self.validation is not None:
            self.best.judge_on(self.validation.episodes, say=self.attempt.writes)
        enough = self.best.exhausted(self.config.train.patience)
        if self.attempt.writes:
            self.best.forget_lost(run_dir)
        if self._evaluates(self.done) and self.best.evaluated < self.done:
            enough = self._evaluate()[1]
        if self.attempt.writes:
            self.best.write(run_dir)
        return enough

    def _next(self, batches: Iterator[dict[str, Tensor]], count: int) -> list[dict[str, Tensor]]:
        """The micro-batches of this process's part of a global batch, on its device."""
        begin = time.perf_counter()
        found = [self.engine.move(next(batches)) for _ in range(count)]
        self.meter.waited += time.perf_counter() - begin
        return found

    def _step(self, step: int, micro_batches: list[dict[str, Tensor]]) -> None:
        """One optimizer step. The loss is the mean of the squared errors over all action values of the global batch
        that are not masked, whichever micro-batch or process has them."""
        engine, train = self.engine, self.config.train
        # One all-reduce a step carries the number of those values, and the flags of processes that must stop.
        summed = engine.sum(torch.cat([unmasked_values(micro_batches).reshape(1), self.attempt.flags()]))
        values = summed[0] + 1e-6
        self.attempt.receive(summed[1:])
        for index, batch in enumerate(micro_batches):
            place = index * engine.world_size + engine.rank  # in the global batch, as MicroBatchSampler cuts it
            torch.manual_seed(torch_seed(train.seed, Stream.MODEL_DROPOUT, step, place))
            with engine.accumulate(index == len(micro_batches) - 1):
                with engine.autocast():
                    output = engine.module(batch)
                engine.backward(output.action_loss.sum() / values)  # action_loss (B, H, D): squared error x mask
            self.meter.add(output.action_loss, output.action_mask)
        set_learning_rate(engine.optimizer, learning_rate(step, train))
        self.meter.end_step(engine.step())

    def _show_first(self, keys: list[SampleKey], batch: dict[str, Tensor]) -> None:
        path = Path(self.config.run_dir) / FIRST_BATCH
        with self._disk_errors():
            caption = first_batch.show_first_batch(self.dataset, keys, batch, path)
        self.tracker.show(0, "first_batch", path, caption)

    def _evaluates(self, step: int) -> bool:
        return self.validation is not None and step % (self.config.train.eval_steps or 1) == 0

    def _evaluate(self) -> tuple[bool, bool]:
        """Evaluate the weights after `done` steps; whether they are the best so far, and whether it is time to end.

        The main process evaluates and the others learn its verdict; a signal meanwhile leaves it to the next attempt.
        """
        begin, train = time.perf_counter(), self.config.train
        verdict = torch.zeros(2, device=self.engine.device)
        if self.engine.is_main and self.validation is not None:
            found = self.validation.evaluate(interruptible=self.done < train.max_steps, alive=self.tracker.alive)
            if found is not None:
                self.best.judge_on(self.validation.episodes, found.metric)
                better = self.best.update(self.done, found.metric, found.values[found.metric])
                verdict += verdict.new_tensor([better, self.best.exhausted(train.patience)])
                with self._disk_errors():
                    images = self.validation.draw(found, self.done)
                said = f"{found}{', the best so far' if better else ''}"
                self.tracker.log_evaluation(self.done, found.values, images, said)
        self.attempt.exchange()
        better, enough = (bool(value) for value in self.engine.sum(verdict))
        self.meter.leave_out(time.perf_counter() - begin)
        return better, enough

    def _refuse_nan(self, step: int) -> None:
        loss = self.meter.last_loss
        if not self.meter.finite or (loss is not None and not math.isfinite(loss)):
            raise ToolkitError(
                f"The loss or its gradients are NaN or infinite at step {step}; the checkpoints from before are whole. "
                "Check the dataset's ranges, or lower train.learning_rate."
            )

    def _save(self, step: int) -> None:
        """Copy what a checkpoint holds and let the writer write it; all processes give their parts."""
        weights, moments = self.engine.trained_weights(), self.engine.optimizer_state()
        state = {**self.origin, "loss": self.meter.last_loss, "meter": self.meter.state(), "best": self.best.state()}
        names: list[str] = []
        with self._disk_errors():
            if not self.engine.is_main:
                for _ in itertools.chain(weights, moments):
                    pass
            else:
                self.attempt.save_seconds = self.writer.seconds
                self.writer.wait()
                self._track_checkpoints()  # before the next one prunes them
                snapshot = checkpointing.take_snapshot(step, weights, moments, state)
                names = snapshot.not_finite()
            # found by the main process, and the end of all
            broken = self.engine.tell(f"{len(names)} tensors, first {names[0]}" if names else "")
            if broken:
                raise ToolkitError(
                    f"Weights or optimizer moments hold NaN or infinite values after step {step} ({broken}), so no "
                    "checkpoint of it is written; those from before are whole. Lower train.learning_rate, and check "
                    "the dataset's ranges."
                )
            if self.engine.is_main:
                self.writer.submit(snapshot)

    def _track_checkpoints(self) -> None:
        for folder in self.writer.written():
            self.tracker.checkpoint_written(folder, best=folder.name == f"checkpoint-{self.best.step}")

    def _disk_errors(self) -> AbstractContextManager[None]:
        remedy = f"The checkpoint before is whole: make room and start {again(self.config)} again."
        return disk_errors(Path(self.config.run_dir), remedy)

    def release(self, base: Path, run: RunFolder) -> int:
        """The finished checkpoint, written by the main process while the others wait; the step its weights are from."""
        self.engine.gather_weights()
        step, train = self.done, self.config.train
        if self.attempt.writes:
            if train.export == "best" and self.best.step is not None:
                step = self.best.step
                checkpointing.load_weights(checkpointing.whole_checkpoint(run.run_dir, step), self.model)
            if train.features == "cached":
                caches.restore_backbone(self.model, base, run.identity["base"], self.engine.dtype)
            if train.lora.rank is not None:
                merge_adapters(self.model)
            run.release(self.model, self.dataset, self.origin["conditions"], step)
        self.attempt.barrier()
        return step


def unmasked_values(batches: list[dict[str, Tensor]]) -> Tensor:
    """How many action values of one process's part of a global batch count in the loss: the sum of action_mask."""
    return torch.stack([batch["action_mask"].sum() for batch in batches]).sum()
