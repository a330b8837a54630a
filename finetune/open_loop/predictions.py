"""Open-loop predictions, during training and of a finished checkpoint: a chunk from every frame, beside what was
recorded and beside two baselines that need no model.

*Hold still*: an action group that is relative to a state repeats that state; an absolute one (the gripper's command)
repeats the command recorded one frame before the start, and at an episode's first frame the one recorded there.
*Mean training chunk*: for each step ahead the mean over all training starts, of the relative action (added to the
current state) or of the absolute one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gr00t.data.processor import Gr00tN1d7Processor, Step
from gr00t.data.sampler import Stream, generator
from gr00t.data.schema import ActionRepresentation, ActionType
from gr00t.data.state_action import absolute_pose
from gr00t.data.statistics import relative_action
from gr00t.data.step_reader import StepReader
from gr00t.data.stored_arrays import FeatureStore
from gr00t.model.gr00t_n1 import in_robot_units, without_instructions
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

POLICY, HOLD_STILL, MEAN_CHUNK = "policy", "hold_still", "mean_chunk"
LABELS = {POLICY: "policy", HOLD_STILL: "hold still", MEAN_CHUNK: "mean training chunk"}
PREDICTORS = tuple(LABELS)
EDGE_FRAMES = 16
SECTIONS = ("all", "first", "last")
HEADINGS = {"all": "all starts", "first": f"first {EDGE_FRAMES} frames", "last": f"last {EDGE_FRAMES} frames"}
MOSTLY = 0.95  # of a command's values lie near its extremes
LATE_SIGN_ERRORS = 0.05  # policies that lift are near 0, one that never did stood at 0.18

Chunks = dict[str, np.ndarray]  # {action group: (starts, H, D)} in robot units


@dataclass(frozen=True)
class Forecast:
    """One episode, every frame of it a start: what was recorded and what each predictor says.

    recorded and predicted[predictor]: {group: (T, H, D)}; exists (T, H) bool: False past the episode's end; signed:
    the groups that are commands whose sign alone counts, as that of a gripper to open or close.
    """

    episode: int
    recorded: Chunks
    predicted: dict[str, Chunks]
    exists: np.ndarray
    signed: frozenset[str]

    def starts(self, section: str) -> np.ndarray:
        """(T,) bool: the starts of a section: all, or those in the first or last EDGE_FRAMES frames."""
        frame, length = np.arange(len(self.exists)), len(self.exists)
        masks = {"all": frame >= 0, "first": frame < EDGE_FRAMES, "last": frame >= length - EDGE_FRAMES}
        return masks[section]


@dataclass(frozen=True)
class Errors:
    """Errors of one predictor in one action group, every existing predicted step weighing the same.

    In the group's units; the lists hold one value a dimension. sign_error_rate (0 to 1): how often the command's sign
    is wrong, for such commands only (Forecast.signed).
    """

    mae: float
    rmse: float
    mae_per_dim: list[float]
    rmse_per_dim: list[float]
    sign_error_rate: float | None


@dataclass(frozen=True)
class Section:
    """Errors over some starts: {group: {predictor: Errors}}, with the numbers of starts and of compared steps."""

    starts: int
    steps: int
    errors: dict[str, dict[str, Errors]]


def measure(forecasts: Sequence[Forecast], section: str) -> Section:
    """The errors over the starts of a section, pooled over all given episodes."""
    used = [f.exists & f.starts(section)[:, None] for f in forecasts]

    def pooled(chunks: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([values[steps] for values, steps in zip(chunks, used, strict=True)])

    errors: dict[str, dict[str, Errors]] = {}
    for group in forecasts[0].recorded:
        recorded = pooled([f.recorded[group] for f in forecasts])
        said = {name: pooled([f.predicted[name][group] for f in forecasts]) for name in PREDICTORS}
        signed = group in forecasts[0].signed
        errors[group] = {name: _errors(predicted, recorded, signed) for name, predicted in said.items()}
    starts = sum(int(f.starts(section).sum()) for f in forecasts)
    return Section(starts, sum(int(m.sum()) for m in used), errors)


def _errors(predicted: np.ndarray, recorded: np.ndarray, signed: bool) -> Errors:
    """Errors over steps (N, D)."""
    difference = predicted.astype(np.float64) - recorded.astype(np.float64)
    absolute, square = np.abs(difference).mean(axis=0), np.square(difference).mean(axis=0)
    wrong = float(((predicted >= 0) != (recorded >= 0)).mean()) if signed else None
    rmse = float(np.sqrt(square.mean()))
    return Errors(float(absolute.mean()), rmse, absolute.tolist(), np.sqrt(square).tolist(), wrong)


class Baselines:
    """The recorded chunks of a dataset, and the two predictors that only look at recorded numbers."""

    def __init__(self, training: StepReader, episodes: Iterable[int]) -> None:
        """The mean chunk comes from these episodes of the training dataset."""
        action = training.configs["action"]
        self._configs = dict(zip(action.modality_keys, action.action_configs or [], strict=True))
        self._deltas = np.asarray(action.delta_indices)
        self._state_delta = training.configs["state"].delta_indices[-1]
        chosen = list(episodes)
        self.mean_chunk = self._mean(training, chosen)
        self.signed = frozenset(group for group in self._configs if self._is_signed(training, group, chosen))

    def forecast(self, reader: StepReader, episode: int, policy: Chunks) -> Forecast:
        """The policy's chunks (T, H, D) of an episode with what was recorded and the baselines."""
        states, actions = reader.trajectory("state", episode), reader.trajectory("action", episode)
        recorded, exists = self._recorded(actions)
        hold, mean = {}, {}
        for group, values in actions.items():
            reference, chunk = self._reference(states, group), self.mean_chunk[group]
            kept = np.concatenate([values[:1], values[:-1]]) if reference is None else reference
            hold[group] = np.repeat(kept[:, None], len(self._deltas), axis=1)
            chunk = np.broadcast_to(chunk, (len(exists), *chunk.shape))
            if reference is not None and self._configs[group].type is ActionType.EEF:
                chunk = absolute_pose(chunk, reference, self._configs[group].format)
            elif reference is not None:
                chunk = chunk + reference[:, None].astype(np.float64)
            mean[group] = chunk
        return Forecast(episode, recorded, {POLICY: policy, HOLD_STILL: hold, MEAN_CHUNK: mean}, exists, self.signed)

    def _recorded(self, actions: Chunks) -> tuple[Chunks, np.ndarray]:
        """Recorded chunks {group: (T, H, D)}, the episode's ends repeated, and which steps exist (T, H)."""
        length = len(next(iter(actions.values())))
        frames = np.arange(length)[:, None] + self._deltas
        inside = np.clip(frames, 0, length - 1)
        return {group: values[inside] for group, values in actions.items()}, frames == inside

    def _reference(self, states: dict[str, np.ndarray], group: str) -> np.ndarray | None:
        """(T, D): the state that the group's actions are relative to; None for an absolute group."""
        config = self._configs[group]
        if config.rep is not ActionRepresentation.RELATIVE:
            return None
        values = states[config.state_key or group]
        return values[np.clip(np.arange(len(values)) + self._state_delta, 0, len(values) - 1)]

    def _is_signed(self, reader: StepReader, group: str, episodes: list[int]) -> bool:
        """Whether the recorded actions lie on two sides of 0 and hardly any between; a position that passes 0 does
        not, and neither does one from 0 (closed) to 1."""
        if not episodes or self._configs[group].rep is not ActionRepresentation.ABSOLUTE:
            return False
        values = np.concatenate([reader.trajectory("action", episode)[group] for episode in episodes])
        far = np.abs(values) >= np.abs(values).max() / 2
        return bool(values.shape[-1] == 1 and values.min() < 0 < values.max() and far.mean() >= MOSTLY)

    def _mean(self, reader: StepReader, episodes: list[int]) -> dict[str, np.ndarray]:
        """{group: (H, D)} float64: the mean (relative) action of every step ahead."""
        chunks: dict[str, list[np.ndarray]] = {group: [] for group in self._configs}
        exists = []
        for episode in episodes:
            states, actions = reader.trajectory("state", episode), reader.trajectory("action", episode)
            recorded, there = self._recorded(actions)
            exists.append(there)
            for group, values in recorded.items():
                reference = self._reference(states, group)
                if reference is not None:
                    config, ahead = self._configs[group], range(values.shape[1])
                    values = np.stack([relative_action(values[:, h], reference, config) for h in ahead], axis=1)
                chunks[group].append(values.astype(np.float64))
        weights = np.concatenate(exists)[..., None].astype(np.float64)
        count = np.maximum(weights.sum(axis=0), 1)  # no training episode reaches that far ahead: 0
        return {group: (np.concatenate(parts) * weights).sum(axis=0) / count for group, parts in chunks.items()}


def findings(overall: dict[str, Section]) -> list[str]:
    """What a reader should know at once: where the policy is no better than a baseline, and a gripper that errs late.

    The gripper's error is not compared with the baselines': holding on knows when it was closed.
    """
    found = []
    for section, measured in overall.items():
        for group, errors in measured.errors.items():
            policy, best = errors[POLICY], min((HOLD_STILL, MEAN_CHUNK), key=lambda name: errors[name].mae)
            where = f"{group}, {HEADINGS[section]}"
            if policy.sign_error_rate is None and policy.mae >= errors[best].mae:
                found.append(
                    f"{where}: the policy's error {policy.mae:.4f} is no smaller than {errors[best].mae:.4f} of the "
                    f"{LABELS[best]} baseline"
                )
            if section == "last" and (policy.sign_error_rate or 0) > LATE_SIGN_ERRORS:
                found.append(
                    f"{where}: {policy.sign_error_rate:.1%} of the commands have the wrong sign; such a policy may "
                    "reach an object and never lift it"
                )
    return found


@dataclass(frozen=True)
class Predictor:
    """A model, and the recorded episodes that it predicts actions for.

    A prediction depends on the weights, the frame and `seed` only, not on its batch. features: the backbone's output
    for every frame of these episodes in order, in place of images and instruction. denoising_steps: None for the
    checkpoint's own. guidance: of GR00TPolicy; with features 1.
    """

    model: Gr00tN1d7
    processor: Gr00tN1d7Processor
    tag: str
    reader: StepReader
    episodes: Sequence[int]
    seed: int
    batch_size: int
    denoising_steps: int | None = None
    features: FeatureStore | None = None
    guidance: float = 1.0

    @property
    def starts(self) -> list[tuple[int, int]]:
        """(episode, frame) of every prediction."""
        return [(e, frame) for e in self.episodes for frame in range(self.reader.layout.episode(e).length)]

    def chunks(self, proceed: Callable[[int], bool] = lambda _: True) -> dict[int, Chunks] | None:
        """{episode: {group: (T, H, D)}} in robot units.

        `proceed` is given the number of predictions so far, before each batch and after the last; None is returned
        where it says to stop. Raises ToolkitError for actions that are not finite.
        """
        starts = self.starts
        found: dict[int, list[Chunks]] = {episode: [] for episode in self.episodes}
        for first in range(0, len(starts), self.batch_size):
            if not proceed(first):
                return None
            batch = starts[first : first + self.batch_size]
            actions = self._predict(batch, range(first, first + len(batch)))
            for place, (episode, _) in enumerate(batch):
                found[episode].append({group: values[place] for group, values in actions.items()})
        proceed(len(starts))
        return {e: {group: np.stack([c[group] for c in chunks]) for group in chunks[0]} for e, chunks in found.items()}

    def _predict(self, starts: Sequence[tuple[int, int]], rows: Sequence[int]) -> Chunks:
        """The chunks {group: (B, H, D)} of these starts; `rows` are their places among all starts."""
        steps = [self.reader.step(*start, images=self.features is None) for start in starts]
        steps = [replace(step, actions=None, action_valid=None) for step in steps]  # the last may have none to come
        if self.features is None:
            asked = steps if self.guidance == 1 else [*steps, *without_instructions(steps)]
            batch = self.processor.collate([self.processor.encode(step, self.tag) for step in asked])
        else:
            batch = self.processor.collate_robot([self.processor.encode_robot(step, self.tag) for step in steps])
            batch |= self.features.collate([self.features.sample(row, 0) for row in rows])
        drawn = [generator(self.seed, Stream.NOISE, *start) for start in starts]
        return predicted_actions(
            self.model, self.processor, self.tag, batch, steps, drawn, self.denoising_steps, self.guidance
        )


@torch.no_grad()
def predicted_actions(
    model: Gr00tN1d7,
    processor: Gr00tN1d7Processor,
    tag: str,
    batch: dict[str, torch.Tensor],
    steps: Sequence[Step],
    noise: Sequence[np.random.Generator],
    denoising_steps: int | None = None,
    guidance: float = 1.0,
) -> Chunks:
    """The chunks {group: (B, H, D)} in robot units for a collated batch of these steps, each from noise of its own.

    guidance: other than 1, the batch holds the steps once more without instructions (ActionHead.sample). Raises
    ToolkitError for actions that are not finite.
    """
    shape = (model.config.action_horizon, model.config.max_action_dim)
    drawn = torch.from_numpy(np.stack([each.standard_normal(shape, np.float32) for each in noise]))
    device = next(model.action_head.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    predicted = model.get_action(batch, denoising_steps=denoising_steps, noise=drawn, guidance=guidance)
    return in_robot_units(predicted, processor, tag, steps)
