"""Probes: how well a part of what a policy is given tells where it has to go, and whether that is more than chance.

A probe is a small network that sees some inputs and not others (Alain & Bengio 2016, arXiv:1610.01644). What a probe
finds is there; what it does not find may still be. One says where the arm goes, from images, instruction and state of
an episode's first frame: it has a head for each set of inputs, and is scored on episodes that it did not learn from.
The other says which of several things is meant, from their features."""

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

CHOICE_WIDTH, CHOICE_STEPS, CHOICE_BATCH = 64, 240, 512
CHOICE_LEARNING_RATE, CHOICE_WEIGHT_DECAY = 3e-3, 1e-3
HELD_BACK, LOOK = 0.2, 20  # of the training questions, which say every so many steps whether it still learns

Features = Mapping[str, float]


# -- where does the arm go? --------------------------------------------------------------------------------------------


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
    known = list(labels.values())
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


# -- which thing is meant? ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Which of `things` is meant? answer: its index. context: what there is beside them, such as words."""

    things: Sequence[Features]
    context: Features
    answer: int


class ChoiceProbe:
    """Learns from questions which thing is meant, whatever their order: each is scored by its own features, the mean
    and the largest of the others', and the context. Features that no training question has are not seen."""

    def __init__(self, train: Sequence[Question], seed: int = 0) -> None:
        self.names = sorted({name for question in train for thing in question.things for name in thing})
        self.words = sorted({name for question in train for name in question.context})
        torch.manual_seed(seed)
        self.net = _Scores(max(1, len(self.names)), max(1, len(self.words)))
        self._fit(*self._tensors(train), torch.tensor([question.answer for question in train]))

    def picks(self, questions: Sequence[Question]) -> np.ndarray:
        """(N,) the index of the thing that it takes to be meant."""
        with torch.no_grad():
            return self.net(*self._tensors(questions)).argmax(1).numpy()

    def _tensors(self, questions: Sequence[Question]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Things (N, K, D), which of them are there (N, K), contexts (N, C)."""
        most = max(len(question.things) for question in questions)
        things = np.zeros((len(questions), most, max(1, len(self.names))), np.float32)
        context = np.zeros((len(questions), max(1, len(self.words))), np.float32)
        for row, question in enumerate(questions):
            for column, thing in enumerate(question.things):
                things[row, column, : len(self.names)] = [thing.get(name, 0.0) for name in self.names]
            context[row, : len(self.words)] = [question.context.get(name, 0.0) for name in self.words]
        there = np.arange(most) < np.array([len(question.things) for question in questions])[:, None]
        return torch.from_numpy(things), torch.from_numpy(there), torch.from_numpy(context)

    def _fit(self, things: torch.Tensor, there: torch.Tensor, context: torch.Tensor, answers: torch.Tensor) -> None:
        """Cross-entropy over each question's things; the weights that did best on what is held back are kept."""
        used = max(1, int(len(answers) * (1 - HELD_BACK)))
        optimizer = torch.optim.AdamW(self.net.parameters(), CHOICE_LEARNING_RATE, weight_decay=CHOICE_WEIGHT_DECAY)
        best, kept = float("inf"), self.net.state_dict()
        for step in range(1, CHOICE_STEPS + 1):
            rows = torch.randint(used, (min(CHOICE_BATCH, used),))
            loss = nn.functional.cross_entropy(self.net(things[rows], there[rows], context[rows]), answers[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % LOOK == 0:
                with torch.no_grad():
                    scores = self.net(things[used:], there[used:], context[used:])
                    now = float(nn.functional.cross_entropy(scores, answers[used:]))
                if now < best:
                    best, kept = now, {name: value.clone() for name, value in self.net.state_dict().items()}
        self.net.load_state_dict(kept)


class _Scores(nn.Module):
    """Things (N, K, D), there (N, K), context (N, C) to scores (N, K); -inf where nothing is there."""

    def __init__(self, features: int, words: int) -> None:
        super().__init__()
        width = CHOICE_WIDTH
        self.own, self.others = nn.Linear(features, width), nn.Linear(2 * features, width)
        self.context, self.asked, self.has = (nn.Linear(d, width) for d in (words, words, features))
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, things: torch.Tensor, there: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        present = things * there[..., None]
        count = (there.sum(1)[:, None, None] - 1).clamp(min=1)
        mean = (present.sum(1, keepdim=True) - present) / count
        largest = present.amax(1, keepdim=True).expand_as(things)
        hidden = self.own(things) + self.others(torch.cat([mean, largest], -1)) + self.context(context)[:, None]
        hidden = hidden + self.has(things) * self.asked(context)[:, None]  # matches words with what a thing has
        return self.out(hidden)[..., 0].masked_fill(~there, float("-inf"))


# -- more than chance? -------------------------------------------------------------------------------------------------


def tails(hits: int, chances: Sequence[float]) -> tuple[float, float]:
    """The probability of at most, and of at least, so many hits in independent trials of these chances, exactly."""
    counts = np.ones(1)
    for chance in chances:
        counts = np.convolve(counts, [1 - chance, chance])
    return float(min(1.0, counts[: hits + 1].sum())), float(min(1.0, counts[hits:].sum()))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """The p-values as Holm 1979 adjusts them: whichever are below 5 %, the chance that one is so falsely is 5 %."""
    found, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[int(index)] = largest
    return found
