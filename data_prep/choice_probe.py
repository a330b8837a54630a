"""Probes: how well a part of what a policy is given tells where it has to go, and whether that is more than chance.

A probe is a small network that sees some inputs and not others (Alain & Bengio 2016, arXiv:1610.01644). Here it says
which of several things is meant. What a probe finds is there; what it does not find may still be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

WIDTH, STEPS, BATCH = 64, 240, 512
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-3
HELD_BACK, LOOK = 0.2, 20  # of the training questions, which say every so many steps whether it still learns

Features = Mapping[str, float]


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
        optimizer = torch.optim.AdamW(self.net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        best, kept = float("inf"), self.net.state_dict()
        for step in range(1, STEPS + 1):
            rows = torch.randint(used, (min(BATCH, used),))
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
        self.own, self.others = nn.Linear(features, WIDTH), nn.Linear(2 * features, WIDTH)
        self.context, self.asked, self.has = (nn.Linear(d, WIDTH) for d in (words, words, features))
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

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
