"""The first batch as the policy sees it: what is wrong with images, instructions or actions shows here, before hours of
training.

Every view after augmentation with its instruction, and beside it the actions the loss is computed from, un-normalised
again, over the recorded ones: they must lie on each other, except where they were clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from finetune.plots import PREDICTED, RECORDED, save, tidy, unit_of
from gr00t.data.dataset import TrainingDataset
from gr00t.data.sampler import SampleKey

SHOWN = 4  # samples


@dataclass(frozen=True)
class Seen:
    """One sample of a batch.

    images (V, S, S, 3) uint8 after augmentation; decoded and recorded: {group: (H, D)} in robot units, where the
    steps exist; place: where it is from.
    """

    place: str
    text: str
    images: np.ndarray
    decoded: dict[str, np.ndarray]
    recorded: dict[str, np.ndarray]

    def difference(self) -> dict[str, float]:
        """Largest difference between decoded and recorded, by group."""
        return {group: float(np.abs(values - self.recorded[group]).max()) for group, values in self.decoded.items()}


def look(dataset: TrainingDataset, keys: list[SampleKey], batch: Mapping[str, Tensor]) -> list[Seen]:
    """The first samples of a micro-batch, `keys` naming them in its order."""
    images = batch["images"].cpu().numpy() if "images" in batch else None
    seen = []
    for row, key in enumerate(keys[:SHOWN]):
        episode, frame = dataset.start(key.index)
        step = dataset.step(key.index, images=False)
        own = dataset.images(key) if images is None else np.split(images, len(batch["state"]))[row]
        assert step.actions is not None and step.action_valid is not None
        decoded = dataset.processor.decode_action(batch["action"][row], dataset.tag, step.states)
        exists = step.action_valid
        seen.append(
            Seen(
                place=f"episode {episode}, frame {frame}",
                text=step.text,
                images=own,
                decoded={group: values[exists] for group, values in decoded.items()},
                recorded={group: values[exists] for group, values in step.actions.items()},
            )
        )
    return seen


def differences(seen: list[Seen]) -> dict[str, float]:
    """Largest difference between un-normalised and recorded actions, by group, over the samples."""
    return {group: max(sample.difference()[group] for sample in seen) for group in seen[0].decoded}


def draw(seen: list[Seen], path: Path) -> None:
    """One row a sample: its views, then one panel an action group."""
    views, groups = len(seen[0].images), list(seen[0].decoded)
    columns = views + len(groups)
    widths = [1.0] * views + [1.5] * len(groups)
    figure = Figure(figsize=(2.5 * sum(widths), 2.75 * len(seen) + 0.5), dpi=100, layout="constrained")
    panels = figure.subplots(len(seen), columns, squeeze=False, width_ratios=widths)
    for sample, row in zip(seen, panels, strict=True):
        for view, panel in zip(sample.images, row[:views], strict=True):
            panel.imshow(view)
            panel.set_axis_off()
        row[0].set_title(f'{sample.place}: "{sample.text}"', loc="left", fontsize=9, color="#444444")
        for group, panel in zip(groups, row[views:], strict=True):
            _draw_group(panel, sample, group)
    figure.suptitle(
        "The first batch as the policy sees it: line recorded, dots from the batch, un-normalised", fontsize=11
    )
    save(figure, path)


def _draw_group(panel: Axes, sample: Seen, group: str) -> None:
    tidy(panel)
    unit = unit_of(group)
    name = f"{group}{f' ({unit})' if unit else ''}"
    panel.set_title(f"{name}: {sample.difference()[group]:.1g} apart at most", loc="left", fontsize=9, color="#444444")
    steps = np.arange(len(sample.recorded[group]))
    panel.plot(steps, sample.recorded[group], color=RECORDED, linewidth=1.2)
    panel.plot(steps, sample.decoded[group], ".", color=PREDICTED, markersize=3.5)
