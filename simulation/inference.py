"""From the observations of several episodes to their action chunks, by any object with `get_action`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from data_prep.lerobot import GROUPS
from finetune.config.modality import from_json, read_file
from gr00t.data.randomness import Stream, torch_seed
from gr00t.data.schema import ModalityConfigs
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1 import GR00TPolicy
from simulation.observation import as_batch, check_configs
from simulation.rollout import Request


class Policy(Protocol):
    """What acts on observations: a GR00TPolicy, a client of a server, or an object of your own."""

    def get_action(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        """{"action.arm": (B, H, 7), "action.gripper": (B, H, 1)} for observations as GR00TPolicy takes them."""


class Inference:
    """Asks one policy for action chunks.

    The noise of a chunk comes from (seed, episode, chunk): a policy whose `get_action` takes `seed` is given one for
    each. A GR00TPolicy is given all observations as one batch, any other object one at a time. What it reads is its
    `modality_configs`, or what its `get_modality_config()` says, or else that of conflict_panda_config.py.
    """

    def __init__(self, policy: Policy, seed: int, n_action_steps: int, conditions: Sequence[str]) -> None:
        """Raises ToolkitError for a policy that the simulation cannot serve."""
        self.policy, self.seed, self.n_action_steps = policy, seed, n_action_steps
        self.configs = _configs(policy)
        check_configs(self.configs, n_action_steps)
        self.options = set(inspect.signature(policy.get_action).parameters)
        if "zero_state" in conditions and "drop_state" not in self.options:
            raise ToolkitError(
                "ablations=[zero_state] hides the state from the model, which this policy's get_action cannot "
                "(drop_state). Evaluate the checkpoint itself, or leave that ablation out."
            )

    def chunks(self, requests: Sequence[Request], instruction: str, *, drop_state: bool) -> list[np.ndarray]:
        """One chunk (n_action_steps, 8) float32 for each request."""
        options = {"drop_state": True} if drop_state else {}
        batches = [requests] if isinstance(self.policy, GR00TPolicy) else [[request] for request in requests]
        return [chunk for batch in batches for chunk in self._ask(batch, instruction, options)]

    def _ask(self, requests: Sequence[Request], instruction: str, options: dict[str, Any]) -> list[np.ndarray]:
        seeds = [torch_seed(self.seed, Stream.ROLLOUT, request.seed, request.chunk) for request in requests]
        if isinstance(self.policy, GR00TPolicy):
            options = {**options, "seed": seeds}
        elif "seed" in self.options:
            options = {**options, "seed": seeds[0]}
        observation = as_batch([request.observation for request in requests], instruction, self.configs)
        actions = self.policy.get_action(observation, **options)
        groups = [self._group(actions, name, len(requests)) for name in GROUPS]
        return list(np.concatenate(groups, axis=-1).astype(np.float32))

    def _group(self, actions: dict[str, np.ndarray], name: str, count: int) -> np.ndarray:
        """(B, n_action_steps, D) of one action group."""
        key, dim = f"action.{name}", GROUPS[name]["end"] - GROUPS[name]["start"]
        if not isinstance(actions, dict) or key not in actions:
            found = ", ".join(actions) if isinstance(actions, dict) else type(actions).__name__
            raise ToolkitError(f'The policy\'s get_action gave no "{key}" (found: {found}).')
        values = np.asarray(actions[key])
        if values.ndim != 3 or values.shape[::2] != (count, dim) or values.shape[1] < self.n_action_steps:
            raise ToolkitError(
                f"The policy's get_action gave {key} of the shape {values.shape}; expected ({count}, "
                f"{self.n_action_steps} or more, {dim})."
            )
        if not np.isfinite(values).all():
            raise ToolkitError(f"The policy's get_action gave {key} that is not finite.")
        return values[:, : self.n_action_steps]


def _configs(policy: Any) -> ModalityConfigs:
    if not callable(getattr(policy, "get_action", None)):
        raise ToolkitError(f"A policy is an object with get_action(observation); {type(policy).__name__} has none.")
    if hasattr(policy, "modality_configs"):
        return policy.modality_configs
    return policy.get_modality_config() if hasattr(policy, "get_modality_config") else from_json(read_file(None))
