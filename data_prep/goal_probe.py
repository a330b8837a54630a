"""Probes of recordings: how far images, instruction and state of an episode's first frame tell where the arm then goes.

One small network has a head for each set of inputs, and is scored on episodes that it did not learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

SIDE = 32  # pixels of an image
CHANNELS, HEADS, WIDTH = 16, 4, 32
FOLDS, STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 3, 250, 64, 6e-3, 1e-2
# What each head is given: images, instruction, state, and the place itself, which tells factors but no place.
INPUTS = {
    "instruction": (False, True, False, False),
    "state": (False, False, True, False),
    "image": (True, False, False, False),
    "all but instruction": (True, False, True, False),
    "everything": (True, True, True, False),
    "place": (False, False, False, True),
}


@dataclass(frozen=True)
class Openings:
    """How N episodes begin and where they go. images (N, cameras, SIDE, SIDE, 3) of 255; instructions; states (N, S);
    goals (N, G): where the arm goes; factors: {name: value of each episode's target, None where it is not known}."""

    images: np.ndarray
    instructions: Sequence[str]
    states: np.ndarray
    goals: np.ndarray
    factors: Mapping[str, Sequence[str | None]]


@dataclass(frozen=True)
class Told:
    """What each set of inputs tells of an episode. places: {inputs: (N,) how many of the other episodes' goals are
    farther from the predicted one than its own, as a share: 0.5 by chance}. values: {factor: {inputs: (N,) bool,
    whether the value is right}}, with the training episodes' most frequent one as `usual`."""

    places: dict[str, np.ndarray]
    values: dict[str, dict[str, np.ndarray]]


def probe_openings(openings: Openings, seed: int, progress: Callable[[int, int], object]) -> Told:
    """Cross-validated over FOLDS parts of the episodes; progress is called with steps done and in all."""
    count, rng = len(openings.goals), np.random.default_rng(seed)
    parts = rng.permutation(count) % FOLDS
    places = {name: np.zeros(count) for name in INPUTS if name != "place"}
    values = {f: {name: np.zeros(count, bool) for name in (*INPUTS, "usual")} for f in openings.factors}
    for fold in range(FOLDS):
        train, tested = np.flatnonzero(parts != fold), np.flatnonzero(parts == fold)
        inputs, goals, labels = _tensors(openings, train)

        def advance(step: int, before: int = fold * STEPS) -> None:
            progress(before + step, FOLDS * STEPS)

        net = _fit(inputs, goals, labels, train, seed, advance)
        with torch.no_grad():
            found = net(*(x[tested] for x in inputs), goals[tested])
        for name, (place, logits) in found.items():
            if name in places:
                places[name][tested] = _nearer(place, goals[tested])
            for (factor, known), logit in zip(labels.items(), logits, strict=True):
                values[factor][name][tested] = (logit.argmax(1) == known[tested]).numpy()
        for factor, known in labels.items():
            usual = Counter(known[train][known[train] >= 0].tolist()).most_common(1)
            values[factor]["usual"][tested] = (known[tested] == (usual[0][0] if usual else -1)).numpy()
    known_only = {f: np.array([v is not None for v in given]) for f, given in openings.factors.items()}
    return Told(places, {f: {n: hit[known_only[f]] for n, hit in by.items()} for f, by in values.items()})


def _nearer(predicted: torch.Tensor, goals: torch.Tensor) -> np.ndarray:
    """(N,) the share of the other goals that lie farther from a prediction than its own; half of those as near."""
    distances = torch.cdist(predicted, goals)
    own = distances.diagonal()[:, None]
    farther = (own < distances).float() + 0.5 * (own == distances).float()
    return ((farther.sum(1) - 0.5) / max(1, len(goals) - 1)).numpy()


def _tensors(
    openings: Openings, train: np.ndarray
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, dict[str, torch.Tensor]]:
    """(images (N, cameras, 3, SIDE, SIDE), words (N, W), states (N, S)), goals (N, G), {factor: (N,) class or -1}; all
    scaled as the training episodes are."""
    images = torch.from_numpy(openings.images.astype(np.float32)).permute(0, 1, 4, 2, 3)
    images = (images - images[train].mean(0)) / images[train].std((0, 3, 4), keepdim=True)[0].clamp(min=1)
    texts = [frozenset(text.lower().replace(".", " ").split()) for text in openings.instructions]
    seen = Counter(word for i in train for word in texts[i])
    words = [word for word, often in seen.items() if 2 <= often < len(train)] or [""]
    said = torch.tensor([[float(word in text) for word in words] for text in texts])
    labels = {}
    for factor, given in openings.factors.items():
        classes = {value: n for n, value in enumerate(sorted({given[i] or "" for i in train} - {""}))}
        labels[factor] = torch.tensor([classes.get(value or "", -1) for value in given])
    return (images, said, _scaled(openings.states, train)), _scaled(openings.goals, train), labels


def _scaled(values: np.ndarray, train: np.ndarray) -> torch.Tensor:
    """To deviations of the training rows; a dimension that hardly varies is not blown up."""
    spread = values[train].std(0)
    scale = np.maximum(spread, max(0.1 * spread.max(initial=0.0), 1e-6))
    return torch.from_numpy(((values - values[train].mean(0)) / scale).astype(np.float32))


def _fit(
    inputs: tuple[torch.Tensor, ...],
    goals: torch.Tensor,
    labels: Mapping[str, torch.Tensor],
    train: np.ndarray,
    seed: int,
    progress: Callable[[int], object],
) -> _Heads:
    """Huber loss of the goals and cross-entropy of the factors, of all heads together."""
    torch.manual_seed(seed)
    sizes = [max(1, int(known.max()) + 1) for known in labels.values()]
    net = _Heads(inputs[0].shape[1], [inputs[1].shape[1], inputs[2].shape[1], goals.shape[1]], goals.shape[1], sizes)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    known = [values for values in labels.values()]
    for step in range(STEPS):
        rows = torch.from_numpy(train)[torch.randperm(len(train))[:BATCH]]
        found = net(*(x[rows] for x in inputs), goals[rows])
        loss = torch.stack([nn.functional.smooth_l1_loss(place, goals[rows]) for place, _ in found.values()]).sum()
        for _, logits in found.values():
            for logit, values in zip(logits, known, strict=True):
                if (values[rows] >= 0).any():
                    loss = loss + 0.3 * nn.functional.cross_entropy(logit, values[rows], ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1)
    return net


class _Heads(nn.Module):
    """{inputs: (goals (N, G), [logits of each factor])}, each from its own inputs and the shared features of images.

    A head looks twice (soft attention over the pixels' features): first by what it is given beside the images, then by
    that and what it saw, so that it can look for what a word names, or for what is like something else there.
    """

    def __init__(self, cameras: int, sizes: Sequence[int], goal: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.cameras, self.goal, self.classes = cameras, goal, list(classes)
        self.tower = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, stride=2),
            nn.ReLU(),
        )
        line = torch.linspace(-1, 1, SIDE // 2)
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="xy")).view(2, -1))
        seen, asked = cameras * HEADS * (CHANNELS + 2), cameras * HEADS * CHANNELS
        self.given, self.first, self.second, self.out = (nn.ModuleDict() for _ in range(4))
        for name, (image, *others) in INPUTS.items():
            size = sum(size for size, given in zip(sizes, others, strict=True) if given)
            self.given[name] = nn.Sequential(nn.Linear(max(1, size), WIDTH), nn.ReLU())
            if image:
                self.first[name], self.second[name] = nn.Linear(WIDTH, asked), nn.Linear(WIDTH + seen, asked)
            inside = WIDTH + 2 * seen * image
            self.out[name] = nn.Sequential(nn.Linear(inside, 64), nn.ReLU(), nn.Linear(64, goal + sum(classes)))

    def forward(
        self, images: torch.Tensor, words: torch.Tensor, states: torch.Tensor, goals: torch.Tensor
    ) -> dict[str, tuple[torch.Tensor, list[torch.Tensor]]]:
        features = self.tower(images.flatten(0, 1)).flatten(2).view(len(words), self.cameras, CHANNELS, -1)
        found = {}
        for name, (image, *others) in INPUTS.items():
            given = [x for x, wanted in zip((words, states, goals), others, strict=True) if wanted]
            hidden = self.given[name](torch.cat(given, 1) if given else words.new_zeros(len(words), 1))
            if image:
                glance = self._look(features, self.first[name](hidden))
                hidden = torch.cat([hidden, glance], 1)
                hidden = torch.cat([hidden, self._look(features, self.second[name](hidden))], 1)
            place, *logits = self.out[name](hidden).split([self.goal, *self.classes], 1)
            found[name] = place, logits
        return found

    def _look(self, features: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """What attention sees (N, cameras * HEADS * (CHANNELS + 2)): mean features, and where they are."""
        query = asked.view(len(asked), self.cameras, HEADS, CHANNELS)
        attention = (query @ features).softmax(-1)
        grid = self.grid.expand(*features.shape[:2], 2, -1)  # type: ignore[operator]
        return (attention @ torch.cat([features, grid], 2).transpose(2, 3)).flatten(1)
