"""Which combinations of the factors' values are recorded: the data strategies of Gao et al. 2024 (arXiv:2403.05110).

A strategy says how much few recordings must cover: values of single factors, or their combinations. What it leaves out
is `unseen`, and shows whether a policy composes what it learned."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from gr00t.errors import ToolkitError, did_you_mean

_REDRAWS = 50
_NAME = re.compile(
    r"(?P<name>[A-Za-z]+)(?:_f(?P<combinations>\d+))?(?:_v(?P<values>\d+))?(?:_d(?P<draw>\d+))?(?:_n(?P<episodes>\d+))?"
)

Combination = tuple[str, ...]
Values = Sequence[Sequence[str]]  # of every factor
Draw = Sequence[Combination]  # all that are possible, in random order


@dataclass(frozen=True)
class Strategy:
    """name: of STRATEGIES; combinations and episodes: at most so many, values: the first so many of each factor, which
    then has no others; None where the name does not say. draw: other orders of the values, or random combinations."""

    name: str
    combinations: int | None = None
    episodes: int | None = None
    values: int | None = None
    draw: int | None = None

    @property
    def text(self) -> str:
        """Its name as `read` takes it, without the number of episodes: what decides the combinations."""
        numbers = (("f", self.combinations), ("v", self.values), ("d", self.draw))
        return self.name + "".join(f"_{letter}{number}" for letter, number in numbers if number is not None)

    @classmethod
    def read(cls, text: str) -> Strategy:
        """A strategy by its name, or as published names have it: random_f12 is random with 12 combinations,
        Lrandom_f50_n100 is L and then random up to 50, with 100 demonstrations; random_f6_v3 is random with 6
        combinations of three values a factor, random_f6_v3_d1 another six of them."""
        found = _NAME.fullmatch(text)
        if found is None or found["name"] not in STRATEGIES:
            hint = did_you_mean(found["name"] if found else text, STRATEGIES)
            raise ToolkitError(
                f"strategy={text}: there is no such strategy.{hint} One of {', '.join(STRATEGIES)}, with numbers in "
                "the order of random_f6_v3_d1_n100 (combinations, values of a factor, which draw, episodes)."
            )
        numbers = {name: int(found[name]) for name in ("combinations", "values", "draw", "episodes") if found[name]}
        if 0 in numbers.values():
            raise ToolkitError(f"strategy={text}: combinations, draws and episodes count from 1.")
        if numbers.get("values") == 1:
            raise ToolkitError(
                f"strategy={text}: with one value of a factor no two objects differ. Take two or more, _v2."
            )
        return cls(found["name"], **numbers)

    def choose(
        self, values: Values, possible: Collection[Combination], seed: str, late: Collection[Combination] = ()
    ) -> list[Combination]:
        """The combinations that are recorded, in the strategy's order, out of those that are `possible`. Of what is
        drawn at random, `late` ones come last.

        Values are taken in an order drawn from `seed`: no strategy prefers those that a table has first. The order is
        drawn again while the strategy's pattern meets what is impossible: a diagonal with a gap would lack two values.
        """
        drawn = f"{seed}/{self.name}" + (f"/{self.draw}" if self.draw else "")
        rng, possible = random.Random(drawn), frozenset(possible)
        for _ in range(_REDRAWS):
            orders = [rng.sample(list(each), len(each)) for each in values]
            if possible.issuperset(STRATEGIES[self.name](orders, ())):
                break
        draw = sorted(rng.sample(sorted(possible), len(possible)), key=lambda each: each in late)
        chosen = dict.fromkeys(each for each in STRATEGIES[self.name](orders, draw) if each in possible)
        return list(itertools.islice(chosen, self.combinations))


def _none(values: Values, draw: Draw) -> Iterator[Combination]:
    """No variation: the first possible combination."""
    yield next(itertools.product(*values))


def _single(values: Values, draw: Draw) -> Iterator[Combination]:
    """The first factor varied, the others kept."""
    yield from ((value, *(each[0] for each in values[1:])) for value in values[0])


def _diagonal(values: Values, draw: Draw) -> Iterator[Combination]:
    """In every combination all values are new, as long as there are new ones."""
    yield from (tuple(each[i % len(each)] for each in values) for i in range(max(map(len, values))))


def _l_shaped(values: Values, draw: Draw) -> Iterator[Combination]:
    """Each factor varied alone, starting from one combination."""
    first = tuple(each[0] for each in values)
    for place, each in enumerate(values):
        yield from ((*first[:place], value, *first[place + 1 :]) for value in each)


def _stair(values: Values, draw: Draw) -> Iterator[Combination]:
    """One factor changed at a time, in turn, the others kept, until every value has occurred."""
    now = [0] * len(values)
    yield tuple(each[0] for each in values)
    for _ in range(max(map(len, values)) - 1):
        for place in range(len(values)):
            now[place] += 1
            yield tuple(other[i % len(other)] for other, i in zip(values, now, strict=True))


def _random(values: Values, draw: Draw) -> Iterator[Combination]:
    """Whole combinations drawn, first such that every value occurs, then any."""
    missing = {pair for each in draw for pair in enumerate(each)}
    while missing:
        best = max(draw, key=lambda each: len(missing.intersection(enumerate(each))))
        missing -= set(enumerate(best))
        yield best
    yield from draw


def _l_then_random(values: Values, draw: Draw) -> Iterator[Combination]:
    yield from _l_shaped(values, draw)
    yield from _random(values, draw)


def _complete(values: Values, draw: Draw) -> Iterator[Combination]:
    """All combinations."""
    yield from itertools.product(*values)


STRATEGIES: dict[str, Callable[[Values, Draw], Iterator[Combination]]] = {
    "none": _none,
    "single": _single,
    "random": _random,
    "diagonal": _diagonal,
    "L": _l_shaped,
    "Lrandom": _l_then_random,
    "stair": _stair,
    "complete": _complete,
}
