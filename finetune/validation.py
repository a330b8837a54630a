"""Evaluation during training: open loop on held-out episodes, between two steps, by the main process.

The noise depends on nothing but (seed, episode, frame) and no state of the training is touched: losses are the same
with and without it. The errors are those of `evaluate_conflict.py` on the same weights, up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.config.schema import FinetuneConfig
from finetune.engine import Engine
from finetune.open_loop import (
    HOLD_STILL,
    MEAN_CHUNK,
    POLICY,
    SECTIONS,
    SIGNED_GROUP,
    Baselines,
    Chunks,
    Forecast,
    Section,
    measure,
)
from finetune.plots import draw_episode, draw_errors
from finetune.predictor import Predictor
from finetune.run_files import EVALUATIONS
from finetune.stop_signals import received
from gr00t.data.dataset import SampleSettings, TrainingDataset
from gr00t.data.steps import StepReader
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1d7 import Gr00tN1d7


@dataclass(frozen=True)
class Evaluation:
    """values: by name ("val/arm_mae", "val/arm_mae_last", ...); the one called `metric` decides what is best."""

    values: dict[str, float]
    metric: str
    forecasts: list[Forecast]
    overall: dict[str, Section]
    seconds: float

    def __str__(self) -> str:
        name, hold = self.metric, self.values[f"{self.metric}_{HOLD_STILL}"]
        late = self.values[f"{name}_last"]
        return (
            f"{name} {self.values[name]:.4f} (last frames {late:.4f}; holding still {hold:.4f}) in {self.seconds:.0f} s"
        )


def held_out(config: FinetuneConfig, training: TrainingDataset) -> TrainingDataset | None:
    """The start frames that are evaluated; None without train.eval_steps."""
    if config.train.eval_steps is None:
        return None
    # A reader of its own: loader processes must not share the place in an open video with this one.
    reader = StepReader(training.reader.layout.root, training.reader.configs)
    reader.frame_store = training.reader.frame_store
    episodes = reader.layout.val_episodes[: config.train.eval_episodes]
    if not episodes:
        raise ToolkitError(
            f"{reader.layout.root} holds no val episodes (meta/split.json lists those held out for validation), which "
            "train.eval_steps asks for. Prepare it with prepare_conflict_data.py, or leave train.eval_steps out."
        )
    settings = SampleSettings(seed=config.train.seed, augment=False)
    return TrainingDataset(reader, training.processor, training.tag, settings, episodes)


class Validation:
    """Open-loop errors of the weights as they are, on the start frames of `dataset`."""

    def __init__(self, config: FinetuneConfig, engine: Engine, model: Gr00tN1d7, dataset: TrainingDataset) -> None:
        self.config, self.engine, self.model, self.dataset = config, engine, model, dataset
        self.batch_size = config.train.micro_batch_size or config.train.global_batch_size // engine.world_size
        self._baselines: Baselines | None = None

    def evaluate(self, *, interruptible: bool = True, alive: Callable[[], None] = lambda: None) -> Evaluation | None:
        """Predict from every start frame; None where a signal asks the run to stop meanwhile. `alive` is called as it
        gets on."""
        begin = time.perf_counter()
        chunks = self._chunks(interruptible, alive)
        if chunks is None:
            return None
        reader = self.dataset.reader
        if self._baselines is None:
            self._baselines = Baselines(reader, reader.layout.train_episodes)
        forecasts = [self._baselines.forecast(reader, episode, predicted) for episode, predicted in chunks.items()]
        overall = {section: measure(forecasts, section) for section in SECTIONS}
        groups = list(forecasts[0].recorded)
        judged = next((group for group in groups if group != SIGNED_GROUP), groups[0])
        return Evaluation(_values(overall), f"val/{judged}_mae", forecasts, overall, time.perf_counter() - begin)

    def draw(self, evaluation: Evaluation, step: int) -> dict[str, Path]:
        """The errors and the first episode as pictures in the run folder, by the name they are logged under."""
        folder = Path(self.config.run_dir) / EVALUATIONS
        folder.mkdir(exist_ok=True)
        errors, episode = folder / f"step-{step}-errors.png", folder / f"step-{step}-episode.png"
        draw_errors(evaluation.overall, f"{self.config.split.name} after {step} steps, held-out episodes", errors)
        draw_episode(evaluation.forecasts[0], self.dataset.reader, episode)
        return {"val/errors": errors, "val/episode": episode}

    def _chunks(self, interruptible: bool, alive: Callable[[], None]) -> dict[int, Chunks] | None:
        dataset = self.dataset

        def proceed(_: int) -> bool:
            alive()
            return not (interruptible and received() is not None)

        with _acting(self.model), self.engine.autocast():
            return Predictor(
                self.model,
                dataset.processor,
                dataset.tag,
                dataset.reader,
                dataset.episodes[0],
                self.config.train.seed,
                self.batch_size,
                features=dataset.feature_store,
            ).chunks(proceed)


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
            values[f"val/{group}_mae{suffix}"] = errors[POLICY].mae
            if errors[POLICY].sign_error_rate is not None:
                values[f"val/{group}_wrong_signs{suffix}"] = float(errors[POLICY].sign_error_rate or 0)
            if section == "all":
                values |= {f"val/{group}_mae_{name}": errors[name].mae for name in (HOLD_STILL, MEAN_CHUNK)}
    return values
