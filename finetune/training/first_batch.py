"""A figure of the first batch as the policy sees it, so that wrong images, instructions or actions are noticed before
hours of training.

The actions that the loss is computed from, un-normalised again, must lie on the recorded ones, except where they were
clipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from finetune.open_loop.figures import PREDICTED, RECORDED, in_unit, save, tidy
from gr00t.data.dataset import TrainingDataset
from gr00t.data.sampler import SampleKey

SAMPLES_DRAWN = 4


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


def show_first_batch(dataset: TrainingDataset, keys: list[SampleKey], batch: Mapping[str, Tensor], path: Path) -> str:
    """Draw the first samples of a micro-batch, which `keys` name in its order, into a file; a caption for them."""
    seen = look(dataset, keys, batch)
    draw(seen, path)
    apart = ", ".join(f"{group} {value:.1g}" for group, value in differences(seen).items())
    texts = " | ".join(dict.fromkeys(sample.text for sample in seen))
    return f"{texts} (un-normalised actions apart from recorded: {apart})"


def look(dataset: TrainingDataset, keys: list[SampleKey], batch: Mapping[str, Tensor]) -> list[Seen]:
    """The first samples of a micro-batch, `keys` naming them in its order."""
    images, seen = batch["images"].cpu().numpy() if "images" in batch else None, []
    for row, key in enumerate(keys[:SAMPLES_DRAWN]):
        episode, frame = dataset.start(key.index)
        step = dataset.step(key.index, images=False)
        assert step.actions is not None and step.action_valid is not None
        decoded = dataset.processor.decode_action(batch["action"][row], dataset.tag, step.states)
        own = dataset.images(key) if images is None else np.split(images, len(batch["state"]))[row]
        there = [{g: v[step.action_valid] for g, v in actions.items()} for actions in (decoded, step.actions)]
        heard = "(no instruction)" if dataset.is_silent(key) else step.text
        seen.append(Seen(f"episode {episode}, frame {frame}", heard, own, *there))
    return seen


def differences(seen: list[Seen]) -> dict[str, float]:
    """Largest difference between un-normalised and recorded actions, by group, over the samples."""
    return {
        group: max(float(np.abs(sample.decoded[group] - sample.recorded[group]).max()) for sample in seen)
        for group in seen[0].decoded
    }


def draw(seen: list[Seen], path: Path) -> None:
    """One row a sample: its views, then one panel an action group."""
    views, groups = len(seen[0].images), list(seen[0].decoded)
    style: dict[str, Any] = {"loc": "left", "fontsize": 9, "color": "#444444"}
    widths = [1.0] * views + [1.5] * len(groups)
    figure = Figure(figsize=(2.5 * sum(widths), 2.75 * len(seen) + 0.5), dpi=100, layout="constrained")
    panels = figure.subplots(len(seen), len(widths), squeeze=False, width_ratios=widths)
    for sample, row in zip(seen, panels, strict=True):
        for view, panel in zip(sample.images, row[:views], strict=True):
            panel.imshow(view)
            panel.set_axis_off()
        row[0].set_title(f'{sample.place}: "{sample.text}"', **style)
        for group, panel in zip(groups, row[views:], strict=True):
            tidy(panel)
            panel.set_title(f"{group}{in_unit(group)}: {differences([sample])[group]:.1g} apart at most", **style)
            steps = np.arange(len(sample.recorded[group]))
            panel.plot(steps, sample.recorded[group], color=RECORDED, linewidth=1.2)
            panel.plot(steps, sample.decoded[group], ".", color=PREDICTED, markersize=3.5)
    what = "The first batch as the policy sees it: line recorded, dots from the batch, un-normalised"
    figure.suptitle(what, fontsize=11)
    save(figure, path)
