"""Open-loop errors: predicted chunks beside recorded actions and two baselines that need no model.

*Hold still*: an action group that is relative to a state repeats that state; an absolute one (the gripper's command)
repeats the command recorded one frame before the start, and at an episode's first frame the one recorded there.
*Mean training chunk*: for each step ahead the mean over all training starts, of the relative action (added to the
current state) or of the absolute one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gr00t.data.dataset import StepReader
from gr00t.data.poses import absolute_pose
from gr00t.data.schema import ActionConfig, ActionRepresentation, ActionType
from gr00t.data.statistics import relative_action

POLICY, HOLD_STILL, MEAN_CHUNK = "policy", "hold_still", "mean_chunk"
PREDICTORS = (POLICY, HOLD_STILL, MEAN_CHUNK)
EDGE_FRAMES = 16
SECTIONS = ("all", "first", "last")
HEADINGS = {"all": "all starts", "first": f"first {EDGE_FRAMES} frames", "last": f"last {EDGE_FRAMES} frames"}
LATE_SIGN_ERRORS = 0.05  # policies that lift are near 0, one that never did stood at 0.18
SIGNED_GROUP = "gripper"  # its command's sign says open or close

Chunks = dict[str, np.ndarray]
"""{action group: (starts, H, D)} in robot units."""


@dataclass(frozen=True)
class Forecast:
    """One episode, every frame of it a start: what was recorded and what each predictor says.

    recorded and predicted[predictor]: {group: (T, H, D)}; exists (T, H) bool: False past the episode's end.
    """

    episode: int
    recorded: Chunks
    predicted: dict[str, Chunks]
    exists: np.ndarray

    def starts(self, section: str) -> np.ndarray:
        """(T,) bool: the starts of a section: all, or those in the first or last EDGE_FRAMES frames."""
        frame, length = np.arange(len(self.exists)), len(self.exists)
        masks = {"all": frame >= 0, "first": frame < EDGE_FRAMES, "last": frame >= length - EDGE_FRAMES}
        return masks[section]


@dataclass(frozen=True)
class Errors:
    """Errors of one predictor in one action group, every existing predicted step weighing the same.

    In the group's units; the lists hold one value a dimension. sign_error_rate (0 to 1): how often the command's sign
    is wrong, for the gripper only.
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
    errors = {
        group: {
            predictor: _errors(
                np.concatenate([f.predicted[predictor][group][m] for f, m in zip(forecasts, used, strict=True)]),
                np.concatenate([f.recorded[group][m] for f, m in zip(forecasts, used, strict=True)]),
                group,
            )
            for predictor in PREDICTORS
        }
        for group in forecasts[0].recorded
    }
    starts = sum(int(f.starts(section).sum()) for f in forecasts)
    return Section(starts, sum(int(m.sum()) for m in used), errors)


def _errors(predicted: np.ndarray, recorded: np.ndarray, group: str) -> Errors:
    """Errors over steps (N, D)."""
    difference = predicted.astype(np.float64) - recorded.astype(np.float64)
    absolute, square = np.abs(difference).mean(axis=0), np.square(difference).mean(axis=0)
    wrong = float(((predicted >= 0) != (recorded >= 0)).mean()) if group == SIGNED_GROUP else None
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
        self.mean_chunk = self._mean(training, list(episodes))

    def forecast(self, reader: StepReader, episode: int, policy: Chunks) -> Forecast:
        """The policy's chunks (T, H, D) of an episode with what was recorded and the baselines."""
        states, actions = reader.trajectory("state", episode), reader.trajectory("action", episode)
        recorded, exists = self._recorded(actions)
        references = {group: self._reference(states, group) for group in actions}
        hold = {g: self._hold(references[g], actions[g], len(self._deltas)) for g in actions}
        mean = {g: self._from_mean(references[g], g, len(exists)) for g in actions}
        return Forecast(episode, recorded, {POLICY: policy, HOLD_STILL: hold, MEAN_CHUNK: mean}, exists)

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

    @staticmethod
    def _hold(reference: np.ndarray | None, actions: np.ndarray, horizon: int) -> np.ndarray:
        kept = np.concatenate([actions[:1], actions[:-1]]) if reference is None else reference
        return np.repeat(kept[:, None], horizon, axis=1)

    def _from_mean(self, reference: np.ndarray | None, group: str, length: int) -> np.ndarray:
        chunk = np.broadcast_to(self.mean_chunk[group], (length, *self.mean_chunk[group].shape))
        if reference is None:
            return chunk
        return _added(chunk, reference, self._configs[group])

    def _mean(self, reader: StepReader, episodes: list[int]) -> dict[str, np.ndarray]:
        """{group: (H, D)} float64: the mean (relative) action of every step ahead."""
        chunks: dict[str, list[np.ndarray]] = {group: [] for group in self._configs}
        exists = []
        for episode in episodes:
            states, actions = reader.trajectory("state", episode), reader.trajectory("action", episode)
            recorded, there = self._recorded(actions)
            exists.append(there)
            for group, values in recorded.items():
                chunks[group].append(_relative(values, self._reference(states, group), self._configs[group]))
        weights = np.concatenate(exists)[..., None].astype(np.float64)
        count = np.maximum(weights.sum(axis=0), 1)  # no training episode reaches that far ahead: 0
        return {group: (np.concatenate(parts) * weights).sum(axis=0) / count for group, parts in chunks.items()}


def _relative(chunks: np.ndarray, reference: np.ndarray | None, config: ActionConfig) -> np.ndarray:
    """(T, H, D) as seen from (T, D), float64."""
    if reference is None:
        return chunks.astype(np.float64)
    steps = [relative_action(chunks[:, h], reference, config) for h in range(chunks.shape[1])]
    return np.stack(steps, axis=1)


def _added(chunks: np.ndarray, reference: np.ndarray, config: ActionConfig) -> np.ndarray:
    """Undo `_relative`."""
    if config.type is ActionType.EEF:
        return absolute_pose(chunks, reference, config.format)
    return chunks + reference[:, None].astype(np.float64)


def findings(overall: dict[str, Section]) -> list[str]:
    """What a reader should know at once: where the policy is no better than a baseline, and a gripper that errs late.

    The gripper's error is not compared with the baselines': holding on knows when it was closed.
    """
    found = []
    for section, measured in overall.items():
        for group, errors in measured.errors.items():
            policy, best = errors[POLICY], min((HOLD_STILL, MEAN_CHUNK), key=lambda name: errors[name].mae)
            if group != SIGNED_GROUP and policy.mae >= errors[best].mae:
                found.append(
                    f"{group}, {HEADINGS[section]}: the policy's error {policy.mae:.4f} is no smaller than "
                    f"{errors[best].mae:.4f} of the {label(best)} baseline"
                )
            if section == "last" and (policy.sign_error_rate or 0) > LATE_SIGN_ERRORS:
                found.append(
                    f"{group}, {HEADINGS[section]}: {policy.sign_error_rate:.1%} of the commands have the wrong sign; "
                    "such a policy may reach an object and never lift it"
                )
    return found


def label(predictor: str) -> str:
    """A predictor's name for people."""
    return {POLICY: "policy", HOLD_STILL: "hold still", MEAN_CHUNK: "mean training chunk"}[predictor]


def to_json(section: Section) -> dict[str, Any]:
    """A section as plain numbers."""
    errors = {
        group: {predictor: vars(values) for predictor, values in of_group.items()}
        for group, of_group in section.errors.items()
    }
    return {"starts": section.starts, "steps": section.steps, "errors": errors}
