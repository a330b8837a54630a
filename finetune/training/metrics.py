"""What is measured during training: means between two log lines, and open-loop errors on held-out episodes.

The main process evaluates between two steps. Its noise depends on nothing but (seed, episode, frame) and no state of
the training is touched: losses are the same without it. The errors are those of `evaluate_conflict.py`, up to
rounding."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from finetune.open_loop import predictions
from finetune.open_loop.figures import draw_episode, draw_errors
from finetune.open_loop.predictions import HOLD_STILL, Forecast, Section
from finetune.open_loop.probe_set import ProbePredictor, ProbeSet
from finetune.recipe import FinetuneConfig
from finetune.training import EVALUATIONS
from finetune.training.engine import Engine
from finetune.training.stopping import ThisAttempt
from gr00t.data.dataset import SampleSettings, TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.command_line import received


class Meter:
    """Sums kept on the device between two log lines, so that logging alone makes the processes wait.

    groups: columns of each action group; parts: the trained parts of the model, whose gradients are measured apart.
    """

    def __init__(self, groups: dict[str, slice], parts: Sequence[str], engine: Engine) -> None:
        self.groups, self.parts, self.engine = groups, parts, engine
        self.last_loss: float | None = None
        self._finite = torch.ones((), dtype=torch.bool, device=engine.device)
        self._reset()

    @property
    def finite(self) -> bool:
        """Whether every gradient so far was finite; the same on all processes. Waits for the device."""
        return bool(self._finite)

    def _reset(self) -> None:
        device = self.engine.device
        self._error, self._count = torch.zeros(2, len(self.groups), device=device)
        self._norm, self._part_norms = torch.zeros((), device=device), torch.zeros(len(self.parts), device=device)
        self._steps, self._untimed, self.waited, self._begin = 0, 0, 0.0, time.perf_counter()

    def add(self, action_loss: Tensor, action_mask: Tensor) -> None:
        """Squared errors x mask and mask of one micro-batch, both (B, H, D)."""
        for total, values in ((self._error, action_loss.detach()), (self._count, action_mask)):
            columns = values.sum((0, 1))
            total += torch.stack([columns[part].sum() for part in self.groups.values()])

    def end_step(self, norm: Tensor) -> None:
        """Count the engine's last step, whose gradients had this norm, a scalar."""
        self._norm += norm.detach()
        self._finite &= norm.detach().isfinite()
        unknown = norm.new_tensor(math.nan)
        self._part_norms += torch.stack([self.engine.part_norms.get(part, unknown).detach() for part in self.parts])
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        """Do not count time that was spent on something else than training."""
        self._begin += seconds

    def state(self) -> list[list[float]]:
        """What was summed since the last reading, a row for each process; all processes call it, all get it."""
        norms = [self._norm.reshape(1), self._norm.new_tensor([self._steps]), self._part_norms.nan_to_num(-1.0)]
        own = torch.cat([self._error, self._count, *norms])
        rows = own.new_zeros(self.engine.world_size, len(own))
        rows[self.engine.rank] = own
        return self.engine.sum(rows).tolist()

    def restore(self, state: list[list[float]]) -> None:
        """Continue the sums of an interrupted run; of another number of processes, the first one takes them all."""
        rows = torch.tensor(state, device=self.engine.device)
        same = len(rows) == self.engine.world_size
        own = rows[self.engine.rank] if same else rows.sum(0) if self.engine.is_main else torch.zeros_like(rows[0])
        both = 2 * len(self.groups)
        self._error, self._count = own[:both].chunk(2)
        self._norm, self._steps, norms = rows[0, both], int(rows[0, both + 1]), rows[0, both + 2 :]
        self._untimed = self._steps  # an earlier attempt took them, and their time is not known
        known = len(norms) == len(self.parts)  # a checkpoint from before parts were measured has none
        self._part_norms = norms.where(norms >= 0, math.nan) if known else torch.full_like(self._part_norms, math.nan)

    def read(self, config: FinetuneConfig, learning_rate: float) -> dict[str, float]:
        """Means since the last reading, over all processes; begins again. Parts of unknown norm are left out."""
        error, count = self.engine.sum(self._error), self.engine.sum(self._count)
        self.last_loss = float(error.sum() / (count.sum() + 1e-6))
        seconds = time.perf_counter() - self._begin
        norms = dict(zip(self.parts, (self._part_norms / self._steps).tolist(), strict=True))
        metrics = {
            "loss": self.last_loss,
            **{f"loss_{g}": float(e / (c + 1e-6)) for g, e, c in zip(self.groups, error, count, strict=True)},
            "grad_norm": float(self._norm / self._steps),
            **{f"grad_norm_{part}": norm for part, norm in norms.items() if math.isfinite(norm)},
            "learning_rate": learning_rate,
            "samples_per_second": config.train.global_batch_size * (self._steps - self._untimed) / seconds,
            "data_wait_seconds": self.waited,
            "peak_memory_gib": self.engine.peak_memory(),
        }
        self._reset()
        return metrics


def action_groups(processor: Gr00tN1d7Processor, tag: str) -> dict[str, slice]:
    """Columns of each action group in the padded action."""
    groups = processor.state_action.groups(tag, "action")
    ends = itertools.accumulate((group.encoded_dim for group in groups), initial=0)
    return {group.name: slice(*place) for group, place in zip(groups, itertools.pairwise(ends), strict=True)}


def trained_parts(optimizer: torch.optim.Optimizer) -> list[str]:
    """The parts of the model that an optimizer of `build_optimizer` trains."""
    return sorted({part for group in optimizer.param_groups for part in group["parts"]})


@dataclass(frozen=True)
class Evaluation:
    """values: by name ("val/arm_mae", "val/arm_mae_last", ...); the one called `metric` decides what is best."""

    values: dict[str, float]
    metric: str
    forecasts: list[Forecast]
    overall: dict[str, Section]
    seconds: float

    def __str__(self) -> str:
        error, late, hold = (self.values[f"{self.metric}{suffix}"] for suffix in ("", "_last", f"_{HOLD_STILL}"))
        return f"{self.metric} {error:.4f} (last frames {late:.4f}; holding still {hold:.4f}) in {self.seconds:.0f} s"


def held_out(config: FinetuneConfig, training: TrainingDataset) -> TrainingDataset | None:
    """The start frames that are evaluated; None without train.eval_steps."""
    if config.train.eval_steps is None:
        return None
    # A reader of its own: loader processes must not share the place in an open video with this one.
    reader = StepReader(training.reader.layout.root, training.reader.configs, training.reader.layout.excluded)
    reader.frame_store = training.reader.frame_store
    episodes = reader.layout.val_episodes[: config.train.eval_episodes]
    if not episodes:
        raise ToolkitError(
            f"{reader.layout.root} holds no val episodes (meta/split.json lists those held out for validation), which "
            "train.eval_steps asks for. Prepare it with prepare_conflict_data.py, or leave train.eval_steps out."
        )
    settings = SampleSettings(seed=config.train.seed, augment=False)
    return TrainingDataset(reader, training.processor, training.tag, settings, episodes)


def per_forward(config: FinetuneConfig, engine: Engine) -> int:
    """Samples that an evaluation predicts at once: as many as training does."""
    return config.train.micro_batch_size or config.train.global_batch_size // engine.world_size


def read_probes(config: FinetuneConfig, dataset: TrainingDataset, engine: Engine) -> ProbePredictor | None:
    """The cue probes of train.probes, if any, which must fit the dataset's robot and images."""
    if config.train.probes is None:
        return None
    probes, processor, tag = ProbeSet.read(Path(config.train.probes)), dataset.processor, dataset.tag
    shown = dataset.reader.step(dataset.reader.layout.episodes[0].index, 0).images
    probes.check_robot(dataset.reader.configs, next(iter(shown.values())).shape[1])
    return ProbePredictor(probes, processor, tag, config.train.seed, per_forward(config, engine))


class Validation:
    """Open-loop errors of the weights as they are, on the start frames of `dataset`, and what cue `probes` show."""

    def __init__(
        self, attempt: ThisAttempt, model: Gr00tN1d7, dataset: TrainingDataset, probes: ProbePredictor | None = None
    ) -> None:
        self.config, self.engine, self.model, self.dataset = attempt.config, attempt.engine, model, dataset
        self.probes, self.batch_size = probes, per_forward(self.config, self.engine)

    @property
    def episodes(self) -> list[int]:
        """The held-out episodes that are evaluated."""
        return self.dataset.episodes[0]

    @cached_property
    def _baselines(self) -> predictions.Baselines:
        return predictions.Baselines(self.dataset.reader, self.dataset.reader.layout.train_episodes)

    def evaluate(self, *, interruptible: bool = True, alive: Callable[[], None] = lambda: None) -> Evaluation | None:
        """Predict from every start frame, calling `alive` after each part; None where a signal asks the run to stop."""
        begin, dataset = time.perf_counter(), self.dataset

        def proceed(_: int) -> bool:
            alive()
            return not (interruptible and received() is not None)

        with _acting(self.model), self.engine.autocast():
            chunks = predictions.Predictor(
                self.model,
                dataset.processor,
                dataset.tag,
                dataset.reader,
                dataset.episodes[0],
                self.config.train.seed,
                self.batch_size,
                features=dataset.feature_store,
            ).chunks(proceed)
            probed = self.probes.measure(self.model, proceed) if self.probes and chunks is not None else {}
        if chunks is None or probed is None:
            return None
        forecasts = [self._baselines.forecast(dataset.reader, episode, found) for episode, found in chunks.items()]
        overall = {section: predictions.measure(forecasts, section) for section in predictions.SECTIONS}
        groups = list(forecasts[0].recorded)
        judged = next((group for group in groups if group not in self._baselines.signed), groups[0])
        values, seconds = _values(overall) | probed, time.perf_counter() - begin
        return Evaluation(values, f"val/{judged}_mae", forecasts, overall, seconds)

    def draw(self, evaluation: Evaluation, step: int) -> dict[str, Path]:
        """The errors and the first episode as images in the run folder, by the name they are logged under."""
        folder = Path(self.config.run_dir) / EVALUATIONS
        folder.mkdir(exist_ok=True)
        errors, episode = folder / f"step-{step}-errors.png", folder / f"step-{step}-episode.png"
        draw_errors(evaluation.overall, f"{self.config.split.name} after {step} steps, held-out episodes", errors)
        draw_episode(evaluation.forecasts[0], self.dataset.reader, episode)
        return {"val/errors": errors, "val/episode": episode}


@contextmanager
def _acting(model: Gr00tN1d7) -> Iterator[None]:
    """The model as it acts, compiled blocks left alone: graphs for acting would count among those for training."""
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train()


def _values(overall: dict[str, Section]) -> dict[str, float]:
    """Errors by name: over all starts, those of the first and last frames apart, and the baselines'."""
    values: dict[str, float] = {}
    for section, measured in overall.items():
        suffix = "" if section == "all" else f"_{section}"
        for group, errors in measured.errors.items():
            own = errors[predictions.POLICY]
            values[f"val/{group}_mae{suffix}"] = own.mae
            if own.sign_error_rate is not None:
                values[f"val/{group}_wrong_signs{suffix}"] = own.sign_error_rate
            if section == "all":
                for name in (HOLD_STILL, predictions.MEAN_CHUNK):
                    values[f"val/{group}_mae_{name}"] = errors[name].mae
    return values
