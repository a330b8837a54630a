"""Low-rank adapters on the frozen language model (LoRA, Hu et al., 2021), through peft: added for training, merged into
the weights they sit beside for the finished checkpoint, which then has the original's tensors only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from finetune.config.schema import LoraConfig
from finetune.optim import hush_bitsandbytes
from gr00t.data.randomness import Stream, torch_seed
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

_ADAPTER = "default"  # peft's name of the first one


def add_adapters(model: Gr00tN1d7, config: LoraConfig, seed: int) -> None:
    """Add trained fp32 adapters, rank x (in + out) values each, to the chosen products of every layer of the language
    model. At first they change nothing."""
    hush_bitsandbytes()  # peft imports it where it is installed
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    language_model = model.backbone.vlm.language_model
    adapters = PeftConfig(
        r=config.rank or 0,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Stream.ADAPTERS))
        inject_adapter_in_model(adapters, language_model, _ADAPTER)
        for _, _, layer in _adapted(language_model):
            for half in (layer.lora_A, layer.lora_B):
                half.float()  # peft gives them the frozen weight's dtype
            layer.reset_lora_parameters(_ADAPTER, True)
            model.trained_in_frozen.append(layer.lora_dropout)


def merge_adapters(model: Gr00tN1d7) -> None:
    """Add the adapters' product to the weights and take them out: tensors have the original's names again."""
    language_model = model.backbone.vlm.language_model
    with torch.no_grad():
        for parent, name, layer in list(_adapted(language_model)):
            whole = layer.get_base_layer()
            weight = whole.weight.float() + layer.get_delta_weight(_ADAPTER).float()
            whole.weight.copy_(weight)  # one rounding, where it is bf16
            setattr(parent, name, whole)
    model.trained_in_frozen.clear()
    del language_model.peft_config


def _adapted(language_model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Parent, name and layer of every product with an adapter."""
    from peft.tuners.lora import LoraLayer

    for full, layer in language_model.named_modules():
        if isinstance(layer, LoraLayer):
            parent, _, name = full.rpartition(".")
            yield language_model.get_submodule(parent), name, layer
