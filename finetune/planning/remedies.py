"""What to change where a run does not fit: cheapest first, each with the memory it would then take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from finetune.config.schema import FinetuneConfig

FEWEST_VIEWS = 4


@dataclass(frozen=True)
class Change:
    """Settings as they are typed, and the run they make."""

    settings: str
    config: FinetuneConfig
    gpus: int


def changes(config: FinetuneConfig, gpus: int) -> Iterator[Change]:
    """Each change on top of the ones before it."""
    config, settings = _least_micro_batch(config, gpus)
    if settings:
        yield Change(settings, config, gpus)
    for change in (_cached_features, _checkpointing, _eight_bit):
        changed = change(config)
        if changed is not None:
            config, settings = changed
            yield Change(settings, config, gpus)
    for more in _more_gpus(config, gpus):
        plain = replace(config.train, optimizer="adamw")
        zero2 = replace(config, train=plain, engine=replace(config.engine, name="zero2"))
        yield Change(f"engine=zero2 on {more} GPUs", zero2, more)


def remedy(
    config: FinetuneConfig, gpus: int, memory: Callable[[FinetuneConfig, int], int], room: int
) -> list[tuple[str, int]]:
    """Settings to add, in order, with the bytes each leads to; the last one fits, or nothing does."""
    for micro in _micro_batches(config, gpus):
        smaller = _with_micro_batch(config, micro)
        size = memory(smaller, gpus)
        if size <= room:
            return [(f"train.micro_batch_size={micro}", size)]
    taken: list[tuple[str, int]] = []
    for change in changes(config, gpus):
        size = memory(change.config, change.gpus)
        if change.config.engine.name == "zero2":  # in place of fewer GPUs, and of an optimizer that it does not divide
            taken = [(s, size) for s, size in taken if not s.startswith(("engine", "train.optimizer"))]
        taken.append((change.settings, size))
        if size <= room:
            break
    return taken


def _more_gpus(config: FinetuneConfig, gpus: int) -> list[int]:
    """Numbers of GPUs that divide the global batch: as many as now, twice and four times as many."""
    share = config.train.global_batch_size // (config.train.micro_batch_size or 1)
    return [count for count in (gpus, 2 * gpus, 4 * gpus) if count > 1 and share % count == 0]


def _micro_batches(config: FinetuneConfig, gpus: int) -> list[int]:
    """Smaller micro-batches that divide a process's share, the largest first."""
    share = max(1, config.train.global_batch_size // gpus)
    now = config.train.micro_batch_size or share
    return [size for size in range(now - 1, 0, -1) if share % size == 0]


def _with_micro_batch(config: FinetuneConfig, size: int) -> FinetuneConfig:
    return replace(config, train=replace(config.train, micro_batch_size=size))


def _least_micro_batch(config: FinetuneConfig, gpus: int) -> tuple[FinetuneConfig, str]:
    sizes = _micro_batches(config, gpus)
    return (_with_micro_batch(config, sizes[-1]), f"train.micro_batch_size={sizes[-1]}") if sizes else (config, "")


def _cached_features(config: FinetuneConfig) -> tuple[FinetuneConfig, str] | None:
    tune, augment = config.train.tune, config.augment
    if config.train.features == "cached" or tune.llm or tune.visual or tune.top_llm_layers:
        return None
    views = augment.views or FEWEST_VIEWS
    setting = "train.features=cached" + ("" if augment.views else f" augment.views={views}")
    changed = replace(config, train=replace(config.train, features="cached"), augment=replace(augment, views=views))
    return changed, setting


def _checkpointing(config: FinetuneConfig) -> tuple[FinetuneConfig, str] | None:
    if config.train.activation_checkpointing:
        return None
    changed = replace(config, train=replace(config.train, activation_checkpointing=True))
    return changed, "train.activation_checkpointing=true"


def _eight_bit(config: FinetuneConfig) -> tuple[FinetuneConfig, str] | None:
    if config.train.optimizer != "adamw":
        return None
    return replace(config, train=replace(config.train, optimizer="adamw_8bit")), "train.optimizer=adamw_8bit"
