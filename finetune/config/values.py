"""Checks of a configuration's values that need nothing but the configuration itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from finetune.config.compose import SPLIT_NAME
from finetune.config.keys import Key, keys_of
from finetune.config.mixture import check_mixture
from finetune.config.no_credentials import refuse_secret, secret_message
from finetune.config.schema import (
    LORA_TARGETS,
    ArchitectureConfig,
    BackboneConfig,
    ClusterConfig,
    EvaluateConfig,
    FinetuneConfig,
    LoraConfig,
    TrainConfig,
)
from finetune.credentials import SECRET_NAME
from gr00t.data.schema import EmbodimentTag
from gr00t.errors import ToolkitError, did_you_mean

_OPTIONS_OF_OURS = ("array", "cpus-per-task", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "signal")
_ASSIGNED = re.compile(r"\b([A-Za-z_]\w*)=(?![\"']?\$)")  # but what a command or a file tells when the job starts
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")
_BOUNDS = {
    "at_least": (lambda value, bound: value >= bound, "at least"),
    "more_than": (lambda value, bound: value > bound, "more than"),
    "at_most": (lambda value, bound: value <= bound, "at most"),
    "less_than": (lambda value, bound: value < bound, "less than"),
}


def check_values(config: Any) -> None:
    """Refuse secrets, values out of range, unknown choices, empty texts, and shapes that do not fit together."""
    _check_secrets(config)
    for key in keys_of(type(config)).values():
        value = _value_at(config, key.name)
        for item in value if isinstance(value, list) else [value]:
            # OmegaConf lets sections and lists into a list of texts.
            if isinstance(value, list) and not isinstance(item, key.type):
                raise ToolkitError(f'{key.name} expects {key.expects}, got "{item}" in it.')
            _check_value(key, item)
    if not SPLIT_NAME.fullmatch(_value_at(config, "split.name") or "x"):
        raise ToolkitError(
            f'split.name={config.split.name}: it becomes a folder name: use letters, digits, "_" and "-" only.'
        )
    for name in ("embodiment_tag", "dataset.embodiment_tag"):
        _check_embodiment_tag(name, _value_at(config, name))
    if hasattr(config, "model"):
        _check_architecture(config.model.architecture)
    if isinstance(config, FinetuneConfig):
        _check_tuned(config)
        _check_environment(config.cluster.environment)
        _check_job_words(config.cluster)
        _check_lora(config.train)
        check_mixture(config.dataset.mixture)
    if isinstance(config, EvaluateConfig) and config.mode == "closed_loop":
        _check_closed_loop(config)


def _check_secrets(config: Any) -> None:
    """Before any other message could repeat a value; also what a file or an interpolation brought."""
    for key in keys_of(type(config)).values():
        value = _value_at(config, key.name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                refuse_secret(key.name, item)


def _value_at(config: Any, name: str) -> Any:
    """The value of a dotted key; None below a section that is null or not there."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _check_value(key: Key, value: Any) -> None:
    if value is None or key.is_section:
        return
    if isinstance(value, str) and not value.strip():
        raise ToolkitError(f"{key.name} is empty. Give it a value, or leave it out for the default.")
    if isinstance(value, str) and not value.isprintable():
        raise ToolkitError(f"{key.name}={value!r}: line breaks and control characters are not allowed.")
    choices = key.bounds.get("choices")
    if choices and value not in choices:
        raise ToolkitError(f"{key.name}={value}: expected {key.expects}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ToolkitError(f"{key.name}={value}: it must be a finite number.")
    for name, bound in key.bounds.items():
        if name in _BOUNDS and not _BOUNDS[name][0](value, bound):
            raise ToolkitError(f"{key.name}={value}: it must be {bounds_in_words(key.bounds)}.")


def bounds_in_words(bounds: Mapping[str, Any]) -> str:
    """'at least 0 and less than 1'; empty without bounds."""
    return " and ".join(f"{_BOUNDS[name][1]} {bound}" for name, bound in bounds.items() if name in _BOUNDS)


def _check_embodiment_tag(name: str, tag: str | None) -> None:
    if tag is None:
        return
    try:
        EmbodimentTag.parse(tag)
    except ToolkitError as error:
        raise ToolkitError(f"{name}={tag}: {error}") from None


def _check_tuned(config: FinetuneConfig) -> None:
    tune, kept = config.train.tune, config.model.architecture.select_layer
    if not any(
        (
            tune.projector,
            tune.diffusion_model,
            tune.vlln,
            tune.llm,
            tune.visual,
            tune.top_llm_layers,
            config.train.lora.rank,
        )
    ):
        raise ToolkitError(
            "train.tune freezes every part, so nothing is trained. Set train.tune.projector=true or another."
        )
    if tune.top_llm_layers > kept:
        raise ToolkitError(
            f"train.tune.top_llm_layers={tune.top_llm_layers}: the model keeps {kept} language-model layers; "
            f"take {kept} at most, or train.tune.llm=true for all."
        )


def _check_lora(train: TrainConfig) -> None:
    lora, tune = train.lora, train.tune
    for name in lora.targets:
        if name not in LORA_TARGETS:
            raise ToolkitError(
                f'train.lora.targets: the language model has no "{name}".{did_you_mean(name, LORA_TARGETS)}'
            )
    if not lora.targets or len(set(lora.targets)) < len(lora.targets):
        raise ToolkitError(f"train.lora.targets={lora.targets}: name each product once, and one at least.")
    if lora.rank is None:
        if lora != LoraConfig():
            raise ToolkitError("train.lora is set, but without a rank there are no adapters. Add train.lora.rank=16.")
        return
    for name in ("llm", "top_llm_layers"):
        if getattr(tune, name):
            raise ToolkitError(
                f"train.lora.rank={lora.rank} adapts a frozen language model, but train.tune.{name}="
                f"{str(getattr(tune, name)).lower()} trains it itself. Leave one of the two out."
            )
    if train.features == "cached":
        raise ToolkitError(
            f"train.features=cached computes the language model's output once, but train.lora.rank={lora.rank} trains "
            "adapters in it. Use train.features=live, or leave the adapters out."
        )


def _check_closed_loop(config: EvaluateConfig) -> None:
    """Keys that do not fit each other."""
    for name in ("parts", "ablations"):
        values = getattr(config, name)
        if len(set(values)) < len(values) or (name == "parts" and not values):
            raise ToolkitError(f"{name}={values}: name each once{', and one at least' if name == 'parts' else ''}.")
    scripted = config.policy != "checkpoint"
    if scripted and config.server is not None:
        raise ToolkitError(
            f"server={config.server} and policy={config.policy} name two policies. Leave one of them out."
        )
    if scripted and config.ablations:
        raise ToolkitError(
            f"ablations={config.ablations} change what a policy observes; policy={config.policy} knows the "
            "simulation's state and does not look. Leave them out."
        )
    if not scripted and config.render == "none":
        raise ToolkitError("render=none is for policy=expert, lure, random and replay; others need images: render=cpu.")
    if config.server is not None and not _ADDRESS.fullmatch(config.server):
        raise ToolkitError(f"server={config.server}: write HOST:PORT, as in server=127.0.0.1:5555.")


def _check_job_words(cluster: ClusterConfig) -> None:
    """No secrets in further options, shell lines and container; no option that the job script has already; no time that
    was not meant."""
    if cluster.time.strip().isdecimal():
        raise ToolkitError(
            f"cluster.time={cluster.time}: a bare number would be minutes, and is what YAML makes of 24:00:00 without "
            'quotes. Write hours:minutes:seconds, in a file in quotes: time: "24:00:00".'
        )
    for option in cluster.sbatch:
        name = option.removeprefix("--").partition("=")[0]
        if name in _OPTIONS_OF_OURS:
            raise ToolkitError(
                f"cluster.sbatch: --{name} is for the toolkit to set. Say it with a key of cluster.* (--help lists "
                "them); several runs are one call of the launcher (split=A,B), and output lies in the run folder."
            )
    for key in ("sbatch", "setup", "container"):
        for name in _ASSIGNED.findall("\n".join(getattr(cluster, key))):
            if SECRET_NAME.search(name):
                raise ToolkitError(secret_message(f"cluster.{key}: {name} looks like a secret"))


def _check_environment(assignments: list[str]) -> None:
    """Variables of a job stand in its script, in the run folder and in the logged configuration: no secrets."""
    for assignment in assignments:
        name, equals, _ = assignment.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise ToolkitError(f'cluster.environment: "{name}" is no variable; write NAME=value.')
        if SECRET_NAME.search(name):
            raise ToolkitError(secret_message(f"cluster.environment: {name} looks like a secret"))


def _check_architecture(shape: ArchitectureConfig) -> None:
    dit, attention = shape.diffusion_model, shape.vl_self_attention
    if shape.image_size % 32:
        raise ToolkitError(f"model.architecture.image_size={shape.image_size}: it must be a multiple of 32.")
    dit_width = dit.num_attention_heads * dit.attention_head_dim
    _must_equal("input_embedding_dim", shape.input_embedding_dim,
                "diffusion_model.num_attention_heads x attention_head_dim", dit_width)  # fmt: skip
    _must_equal("diffusion_model.output_dim", dit.output_dim, "hidden_size", shape.hidden_size)
    if attention is not None:
        _must_equal("vl_self_attention.num_attention_heads x attention_head_dim",
                    attention.num_attention_heads * attention.attention_head_dim,
                    "backbone_embedding_dim", shape.backbone_embedding_dim)  # fmt: skip
    if shape.backbone is not None:
        _check_backbone(shape, shape.backbone)


def _check_backbone(shape: ArchitectureConfig, backbone: BackboneConfig) -> None:
    text, vision = backbone.text, backbone.vision
    _must_equal("backbone.text.hidden_size", text.hidden_size, "backbone_embedding_dim", shape.backbone_embedding_dim)
    _must_equal(
        "backbone.vision.out_hidden_size", vision.out_hidden_size, "backbone.text.hidden_size", text.hidden_size
    )
    _must_equal("2 x the sum of backbone.text.mrope_section", 2 * sum(text.mrope_section),
                "backbone.text.head_dim", text.head_dim)  # fmt: skip
    if len(text.mrope_section) != 3 or min(text.mrope_section) < 1:
        _refuse(f"backbone.text.mrope_section={text.mrope_section}: three positive parts (time, height, width).")
    if shape.select_layer > text.num_hidden_layers:
        _refuse(
            f"select_layer={shape.select_layer} is more than backbone.text.num_hidden_layers={text.num_hidden_layers}."
        )
    if text.num_attention_heads % text.num_key_value_heads:
        _refuse("backbone.text.num_attention_heads must be a multiple of backbone.text.num_key_value_heads.")
    if vision.hidden_size % (4 * vision.num_heads):
        _refuse(
            "backbone.vision.hidden_size must be a multiple of 4 x backbone.vision.num_heads (2-D rotary positions)."
        )
    if math.isqrt(vision.num_position_embeddings) ** 2 != vision.num_position_embeddings:
        _refuse(f"backbone.vision.num_position_embeddings={vision.num_position_embeddings} is no square number.")
    indexes = vision.deepstack_visual_indexes
    if indexes != sorted(set(indexes)) or any(not 0 <= index < vision.depth for index in indexes):
        _refuse(f"backbone.vision.deepstack_visual_indexes={indexes}: ascending blocks, 0 to {vision.depth - 1}.")
    if len(indexes) > shape.select_layer:
        _refuse("backbone.vision.deepstack_visual_indexes needs an LLM layer each; select_layer keeps too few.")


def _must_equal(name: str, value: int, other: str, wanted: int) -> None:
    if value != wanted:
        _refuse(f"{name} is {value}, but must equal {other}, which is {wanted}.")


def _refuse(message: str) -> None:
    raise ToolkitError(f"model.architecture.{message}")
