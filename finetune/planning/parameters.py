"""What is trained and what is frozen: counts by group, by the rules of Gr00tN1d7.set_trainable, keep_embodiments and
finetune/lora.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from finetune.config.schema import LoraConfig, TrainConfig, TuneConfig
from finetune.planning.shapes import DIT, HEAD, LLM, VISION, VL, Shape, numel

GROUPS = {
    "projector": tuple(
        f"{HEAD}{part}." for part in ("state_encoder", "action_encoder", "action_decoder", "position_embedding")
    ),
    "diffusion_model": (DIT,),
    "vlln": (f"{HEAD}vlln.", VL),
    "llm": (LLM,),
    "visual": (VISION,),
}
UNUSED = f"{LLM}norm.weight"  # stored, never applied, never trained
BUFFER = ".pe"  # sinusoids, stored with the weights
_EMBODIMENT = re.compile(r"action_head\.(state_encoder|action_encoder|action_decoder)\..*\.[Wb]")
_LAYER = re.compile(rf"{re.escape(LLM)}layers\.(\d+)\.")


@dataclass(frozen=True)
class Parameter:
    """One tensor: how many numbers a GPU holds of it, how many wait in host memory, whether it is trained."""

    name: str
    group: str
    count: int
    waiting: int
    trained: bool
    matrix: bool


def parameters(shape: Shape, train: TrainConfig) -> list[Parameter]:
    """Every tensor as training holds it. The weights of robots that are not trained wait in host memory."""
    return [*_parameters(shape, train.tune), *_adapters(shape, train.lora)]


def _adapters(shape: Shape, lora: LoraConfig) -> Iterator[Parameter]:
    """Two tensors beside each chosen product of the language model, under peft's names."""
    if lora.rank is None:
        return
    for name, sides in shape.tensors.items():
        product = name.removesuffix(".weight")
        if _LAYER.match(name) and product.rpartition(".")[2] in lora.targets:
            for half, count in (("A", lora.rank * sides[1]), ("B", lora.rank * sides[0])):
                adapter = f"{product}.lora_{half}.default.weight"
                yield Parameter(adapter, "lora", count, 0, trained=True, matrix=True)


def _parameters(shape: Shape, tune: TuneConfig) -> Iterator[Parameter]:
    for name, sides in shape.tensors.items():
        group = next((g for g, prefixes in GROUPS.items() if name.startswith(prefixes)), "other")
        whole = numel(sides)
        kept = whole
        if _EMBODIMENT.fullmatch(name) and not tune.all_embodiments:
            kept = whole // sides[0]
        waiting = whole if kept < whole else 0
        trained = not name.endswith(BUFFER) and _is_trained(name, group, shape, tune)
        yield Parameter(name, group, kept, waiting, trained, matrix=len(sides) > 1)


def _is_trained(name: str, group: str, shape: Shape, tune: TuneConfig) -> bool:
    if name == UNUSED:
        return False
    layer = _LAYER.match(name)
    if layer and int(layer[1]) >= shape.llm_layers - tune.top_llm_layers:
        return True
    return bool(getattr(tune, group, False))


@dataclass(frozen=True)
class GroupCount:
    """Numbers of one group that a GPU holds; `waiting` ones are in host memory, for the finished checkpoint."""

    group: str
    trained: int
    frozen: int
    waiting: int


def by_group(found: list[Parameter]) -> list[GroupCount]:
    """Counts of each group, in the order of GROUPS."""
    counts, order = [], [*GROUPS, "lora", "other"]
    for group in dict.fromkeys(p.group for p in sorted(found, key=lambda p: order.index(p.group))):
        own = [p for p in found if p.group == group]
        trained, frozen = (sum(p.count for p in own if p.trained is kind) for kind in (True, False))
        counts.append(GroupCount(group, trained, frozen, sum(p.waiting for p in own)))
    return counts
