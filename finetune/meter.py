"""What training measures of itself between two log lines."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.config.schema import FinetuneConfig
from finetune.engine import Engine
from gr00t.data.processor import Gr00tN1d7Processor


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
        """Whether every gradient so far was a number; the same on all processes. Waits for the device."""
        return bool(self._finite)

    def _reset(self) -> None:
        self._error = torch.zeros(len(self.groups), device=self.engine.device)
        self._count = torch.zeros_like(self._error)
        self._norm = torch.zeros((), device=self.engine.device)
        self._part_norms = torch.zeros(len(self.parts), device=self.engine.device)
        self._steps = 0
        self.waited = 0.0
        self._begin = time.perf_counter()

    def add(self, action_loss: Tensor, action_mask: Tensor) -> None:
        """Squared errors x mask and mask of one micro-batch, both (B, H, D)."""
        error, count = action_loss.detach().sum((0, 1)), action_mask.sum((0, 1))
        self._error += torch.stack([error[part].sum() for part in self.groups.values()])
        self._count += torch.stack([count[part].sum() for part in self.groups.values()])

    def end_step(self, norm: Tensor) -> None:
        """Count the engine's last step, whose gradients had this norm."""
        self._norm += norm.detach()
        self._finite &= norm.detach().isfinite()
        unknown = norm.new_tensor(math.nan)
        self._part_norms += torch.stack([self.engine.part_norms.get(part, unknown).detach() for part in self.parts])
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        """Time that was spent on something else than training."""
        self._begin += seconds

    def state(self) -> list[list[float]]:
        """What was summed since the last reading, a row for each process; all processes call it, all get it."""
        norms = [self._norm.reshape(1), self._norm.new_tensor([self._steps]), self._part_norms.nan_to_num(-1.0)]
        own = torch.cat([self._error, self._count, *norms])
        rows = own.new_zeros(self.engine.world_size, len(own))
        rows[self.engine.rank] = own
        return self.engine.sum(rows).tolist()

    def restore(self, state: list[list[float]]) -> None:
        """Go on from the sums of an interrupted run; of another number of processes, the first one takes them all."""
        rows = torch.tensor(state, device=self.engine.device)
        same = len(rows) == self.engine.world_size
        own = rows[self.engine.rank] if same else rows.sum(0) if self.engine.is_main else torch.zeros_like(rows[0])
        groups = len(self.groups)
        self._error, self._count = own[:groups], own[groups : 2 * groups]
        self._norm, self._steps = rows[0, 2 * groups], int(rows[0, 2 * groups + 1])
        norms = rows[0, 2 * groups + 2 :]
        known = len(norms) == len(self.parts)  # a checkpoint from before parts were measured has none
        self._part_norms = norms.where(norms >= 0, math.nan) if known else torch.full_like(self._part_norms, math.nan)

    def read(self, config: FinetuneConfig, learning_rate: float) -> dict[str, float]:
        """Means since the last reading, over all processes; starts anew. Parts whose norm is not known are left out."""
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
            "samples_per_second": config.train.global_batch_size * self._steps / seconds,
            "data_wait_seconds": self.waited,
            "peak_memory_gib": self.engine.peak_memory(),
        }
        self._reset()
        return metrics


def action_groups(processor: Gr00tN1d7Processor, tag: str) -> dict[str, slice]:
    """Columns of each action group in the padded action."""
    groups, start = {}, 0
    for key in processor.modality_config(tag)["action"].modality_keys:
        width = len(processor.files.statistics[tag]["action"][key]["min"])
        groups[key] = slice(start, start + width)
        start += width
    return groups


def trained_parts(optimizer: torch.optim.Optimizer) -> list[str]:
    """The parts of the model that an optimizer of `build_optimizer` trains."""
    return sorted({part for group in optimizer.param_groups for part in group["parts"]})
