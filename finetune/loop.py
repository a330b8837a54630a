"""The training loop: optimizer steps with metrics, evaluations and checkpoints between them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import checkpointing, first_batch, optim
from finetune.best import Best
from finetune.config.schema import FinetuneConfig
from finetune.data import build_loader, mask_sum, worker_errors
from finetune.engine import Engine
from finetune.meter import Meter, action_groups, trained_parts
from finetune.preemption import SUPERSEDED, Preemption, Stopped
from finetune.run_files import FIRST_BATCH
from finetune.tracking import Tracker
from finetune.validation import Validation
from gr00t.data.dataset import TrainingDataset
from gr00t.data.randomness import Stream, torch_seed
from gr00t.data.sampler import SampleKey
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors
from gr00t.model.gr00t_n1d7 import Gr00tN1d7


class TrainingLoop:
    """Optimizer steps from a starting point to max_steps, with metrics, evaluations and checkpoints.

    `origin` is what every checkpoint says of its run: identity and conditions. `done` steps are done; `best` is the
    best evaluation so far, in the main process.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        engine: Engine,
        stop: Preemption,
        model: Gr00tN1d7,
        dataset: TrainingDataset,
        tracker: Tracker,
        origin: dict[str, Any],
        validation: Validation | None,
    ) -> None:
        self.config, self.engine, self.stop, self.model = config, engine, stop, model
        self.dataset, self.tracker, self.origin, self.validation = dataset, tracker, origin, validation
        train, run_dir = config.train, Path(config.run_dir)
        self.writer: checkpointing.CheckpointWriter | None = None
        if engine.is_main:
            self.writer = checkpointing.CheckpointWriter(run_dir, train.keep_last, train.keep_every, stop.token)
        self.meter = Meter(action_groups(dataset.processor, dataset.tag), trained_parts(engine.optimizer), engine)
        self.done, self.best = stop.step, Best()

    def run(self, start: checkpointing.Checkpoint | None) -> float | None:
        """Train; the loss of the last logged steps. Raises Stopped when all is saved."""
        if start is not None and "meter" in start.state:
            self.meter.restore(start.state["meter"])
        try:
            reason = self._steps(start)
            if self.writer is not None:
                with self._checkpoint_errors():
                    self.writer.wait()
                self._tell_checkpoints()
        finally:
            if self.writer is not None:
                self.writer.close()
            self.tracker.summary = {"loss": self.meter.last_loss, "steps": self.done, "best": self.best.state()}
        if reason is not None:
            raise Stopped(reason)
        return self.meter.last_loss

    def _steps(self, start: checkpointing.Checkpoint | None) -> str | None:
        """All steps that are left; the reason when there is one to stop before the last."""
        train = self.config.train
        if start is not None and self._go_on_from(start):
            return None
        loader, sampler = build_loader(self.dataset, self.config, self.engine, self.done)
        batches = iter(loader)
        for step in range(self.done, train.max_steps):
            micro_batches = self._next(batches, sampler.accumulation)
            if step == 0 and self.engine.is_main:
                self._show_first(next(iter(sampler)), micro_batches[0])
            self._step(step, micro_batches)
            self.done = done = step + 1
            reason = self.stop.agreed(done)
            if reason == SUPERSEDED:
                return reason
            if done % train.log_steps == 0 or done == train.max_steps:
                self.tracker.log(done, self.meter.read(self.config, optim.learning_rate(step, train)))
                self._refuse_nan(done)
            self.tracker.advance(done)
            better = enough = False
            if self._evaluates(done) and reason is None:
                better, enough = self._evaluate()
                reason = self.stop.agreed(done)
            ends = done == train.max_steps or enough
            if done % train.save_steps == 0 or ends or better or reason is not None:
                self._refuse_nan(done)
                self._save(done)
            if ends:
                return None
            if reason is not None:
                return reason
        return None

    def _go_on_from(self, start: checkpointing.Checkpoint) -> bool:
        """Take the evaluations up to a checkpoint over, make up for one that a signal cut short; whether to end."""
        self.best, run_dir = Best.restored(start.state), Path(self.config.run_dir)
        enough = self.best.exhausted(self.config.train.patience)
        if self.engine.is_main and self.stop.token.is_ours():
            self.best.forget_lost(run_dir)
        if self._evaluates(self.done) and self.best.evaluated < self.done:
            enough = self._evaluate()[1]
        if self.engine.is_main and self.stop.token.is_ours():
            self.best.write(run_dir)
        return enough

    def _evaluates(self, step: int) -> bool:
        return self.validation is not None and step % (self.config.train.eval_steps or 1) == 0

    def _evaluate(self) -> tuple[bool, bool]:
        """Evaluate the weights after `done` steps; whether they are the best so far, and whether it is time to end.

        The main process does, and tells the others; a signal that comes meanwhile leaves it for the next attempt.
        """
        begin, train = time.perf_counter(), self.config.train
        verdict = torch.zeros(2, device=self.engine.device)
        if self.engine.is_main and self.validation is not None:
            found = self.validation.evaluate(interruptible=self.done < train.max_steps, alive=self.tracker.alive)
            if found is not None:
                better = self.best.update(self.done, found.metric, found.values[found.metric])
                verdict += verdict.new_tensor([better, self.best.exhausted(train.patience)])
                said = f"{found}{', the best so far' if better else ''}"
                with self._checkpoint_errors():
                    pictures = self.validation.draw(found, self.done)
                self.tracker.log_evaluation(self.done, found.values, pictures, said)
        self.stop.sum(torch.zeros((), device=self.engine.device))
        better, enough = (bool(value) for value in self.engine.sum(verdict))
        self.meter.leave_out(time.perf_counter() - begin)
        return better, enough

    def _show_first(self, keys: list[SampleKey], batch: dict[str, Tensor]) -> None:
        seen = first_batch.look(self.dataset, keys, batch)
        picture = Path(self.config.run_dir) / FIRST_BATCH
        with self._checkpoint_errors():
            first_batch.draw(seen, picture)
        apart = ", ".join(f"{group} {value:.1g}" for group, value in first_batch.differences(seen).items())
        texts = " | ".join(dict.fromkeys(sample.text for sample in seen))
        self.tracker.show(0, "first_batch", picture, f"{texts} (un-normalised actions apart from recorded: {apart})")

    def _next(self, batches: Iterator[dict[str, Tensor]], count: int) -> list[dict[str, Tensor]]:
        begin = time.perf_counter()
        with worker_errors():
            found = [self.engine.move(next(batches)) for _ in range(count)]
        self.meter.waited += time.perf_counter() - begin
        return found

    def _step(self, step: int, micro_batches: list[dict[str, Tensor]]) -> None:
        """One optimizer step over the global batch: the loss is the mean over all its unmasked action values."""
        engine, train = self.engine, self.config.train
        total = self.stop.sum(mask_sum(micro_batches)) + 1e-6
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            place = index * engine.world_size + engine.rank  # in the global batch, as MicroBatchSampler cuts it
            torch.manual_seed(torch_seed(train.seed, Stream.MODEL_DROPOUT, step, place))
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
                f"The loss or its gradients are NaN or infinite at step {step}; the checkpoints from before are whole. "
                "Check the dataset's ranges, or lower train.learning_rate."
            )

    def _save(self, step: int) -> None:
        weights, optimizer = self.engine.trained_weights(), self.engine.optimizer_state()
        state = {**self.origin, "loss": self.meter.last_loss, "meter": self.meter.state()}
        state["best"] = self.best.state()
        if self.writer is None:
            for _ in itertools.chain(weights, optimizer):  # this process gives its part of each
                pass
            self._refuse_broken(step, [])
            return
        self.stop.save_seconds = self.writer.seconds
        with self._checkpoint_errors():
            self.writer.wait()
            self._tell_checkpoints()  # before the next one prunes them
            snapshot = checkpointing.take_snapshot(step, weights, optimizer, state)
            self._refuse_broken(step, snapshot.not_finite())
            self.writer.submit(snapshot)

    def _refuse_broken(self, step: int, names: list[str]) -> None:
        """End all processes where the main one has found tensors that are not finite."""
        found = self.engine.tell(f"{len(names)} tensors, first {names[0]}" if names else "")
        if found:
            raise ToolkitError(
                f"Weights or optimizer moments hold NaN or infinite values after step {step} ({found}), so no "
                "checkpoint of it is written; those from before are whole. Lower train.learning_rate, and check the "
                "dataset's ranges."
            )

    def _tell_checkpoints(self) -> None:
        for folder in self.writer.written() if self.writer is not None else []:
            self.tracker.checkpoint_written(folder, best=folder.name == f"checkpoint-{self.best.step}")

    def _checkpoint_errors(self) -> AbstractContextManager[None]:
        remedy = "The checkpoint before is whole: make room and start the same command again."
        return disk_errors(Path(self.config.run_dir), remedy)
