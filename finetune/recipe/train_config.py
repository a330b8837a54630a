"""Keys of the sections dataset, augment, train and engine, and how a mixture of datasets is read."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gr00t.data.meta_files import episode_range
from gr00t.data.schema import EmbodimentTag, look_up
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import read_json
from toolkit.declaration import key
from toolkit.shared_keys import (
    LARGEST_SEED,
    PRECISIONS,
    SUITE,
    TRAIN_CONFLICT,
    expanded,
    modalities_field,
    modality_config_key,
    parts_of,
)

PROBES, PROBES_FORMAT = "probes.json", 1  # what finetune.open_loop.probe_set writes beside its arrays
PROBES_AGAIN = "Remove it, and make it again: python -m simulation.probes split=... out=FOLDER"


@dataclass(frozen=True)
class Part:
    """A dataset's folder, its weight, and the entries of dataset.exclude that are its own."""

    folder: Path
    weight: float
    exclude: tuple[str, ...] = ()


def parts(entries: Sequence[str], exclude: Sequence[str] = ()) -> list[Part]:
    """What the entries of dataset.mixture name, in their order, each with its own entries of dataset.exclude."""
    chosen = [_part(entry) for entry in entries]
    own: dict[str, list[str]] = {os.path.realpath(part.folder): [] for part in chosen}
    for entry in exclude:
        folder, slash, episodes = entry.rpartition("/")
        episode_range(episodes, "dataset.exclude")
        if not slash and len(chosen) > 1:
            raise ToolkitError(
                f'dataset.exclude: "{entry}" does not say of which dataset of dataset.mixture. Write FOLDER/EPISODES: '
                f"{chosen[0].folder}/{entry}."
            )
        problem = f'dataset.exclude: "{folder}" is not trained on.'
        place = os.path.realpath(expanded("dataset.exclude", folder)) if slash else next(iter(own))
        look_up(own, place, problem).append(episodes)
    return [replace(part, exclude=tuple(own[os.path.realpath(part.folder)])) for part in chosen]


def trained_parts(split: str, dataset: Mapping[str, Any]) -> list[Part]:
    """What is trained on by the keys of a dataset section: the datasets of the mixture, else the split's train part,
    and `conflict_share` of all samples from its train_conflict. `conflict` beside them never is."""
    folder, share = Path(dataset["data_dir"]) / split, dataset.get("conflict_share") or 0.0
    entries = dataset["mixture"] or [f"{folder / 'train'}:1"]
    if share:
        if TRAIN_CONFLICT not in parts_of(split):
            raise ToolkitError(
                f"dataset.conflict_share={share}: {split} has no part {TRAIN_CONFLICT}. That is for the splits of the "
                f"{SUITE} suite; leave it out."
            )
        own = parts(entries)
        total = sum(part.weight for part in own)
        entries = [f"{part.folder}:{part.weight / total * (1 - share)!r}" for part in own]
        entries.append(f"{folder / TRAIN_CONFLICT}:{share!r}")
    return parts(entries, dataset.get("exclude") or ())


def check_conflict_part(split: str, dataset: DatasetConfig) -> None:
    """Refuse a share of conflict scenes that were not converted."""
    folder = Path(dataset.data_dir) / split / TRAIN_CONFLICT
    if dataset.conflict_share and not (folder / "meta" / "info.json").is_file():
        raise ToolkitError(
            f"dataset.conflict_share={dataset.conflict_share} needs {folder}, which is not there. Record it (python -m "
            f"simulation.record split={split} part={TRAIN_CONFLICT}) and prepare the split again, or leave it out."
        )


def read_probe_facts(folder: Path) -> dict[str, Any]:
    """What a set of cue probes says of itself, without its images; ToolkitError for what is none."""
    if not (folder / PROBES).is_file():
        problem = f"is no set of cue probes: it has no {PROBES}" if folder.exists() else "does not exist"
        raise ToolkitError(f"{folder} {problem}. Make one: python -m simulation.probes split=... out={folder}")
    found = read_json(folder / PROBES, PROBES_AGAIN)
    if (form := found.get("format")) != PROBES_FORMAT:
        raise ToolkitError(f"{folder}: format {form}; this version reads {PROBES_FORMAT}. {PROBES_AGAIN}")
    return found


def check_probes(folder: str | None, split: str) -> None:
    """Refuse cue probes that are missing or of another split."""
    of = read_probe_facts(Path(folder)).get("split") if folder is not None else split
    if of != split:
        raise ToolkitError(f"train.probes={folder} are probes of {of}. Make those of {split}, or leave it out.")


def check_mixture(entries: list[str]) -> None:
    """Refuse weights that are none, and a dataset named twice."""
    folders = Counter(os.path.realpath(part.folder) for part in parts(entries))
    for folder, count in folders.items():
        if count > 1:
            raise ToolkitError(f"dataset.mixture names {folder} {count} times. Name it once, with the sum of weights.")


def _part(entry: str) -> Part:
    folder, colon, weight = entry.rpartition(":")
    if not colon or os.sep in weight:
        folder, weight = entry, "1"
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not folder or not 0 < value < math.inf:
        raise ToolkitError(
            f'dataset.mixture: "{entry}" is no FOLDER or FOLDER:WEIGHT with a weight above 0, as in '
            "[data/color_object/train:2,data/color_size/train:1]."
        )
    return Part(Path(expanded("dataset.mixture", folder)), value)


@dataclass(kw_only=True)
class DatasetConfig:
    """The converted dataset, as prepare_conflict_data.py leaves it."""

    data_dir: str = key("folder that holds <split>/train", "data", folder=True)
    mixture: list[str] = key(
        "datasets of one robot, trained on in place of the split's own: [FOLDER:WEIGHT,...], a weight (1 where none is "
        "given) saying how often a dataset is drawn",
        [],
    )
    conflict_share: float = key(
        "part of the samples drawn from <split>/train_conflict of the instruction suite: conflict scenes in which the "
        "demonstration acts on what fits the first factor. What such a policy prefers in conflict was taught",
        0.0,
        at_least=0,
        less_than=1,
    )
    exclude: list[str] = key(
        'episodes left out of training, statistics and evaluation, beside those that "exclude" of meta/split.json '
        "lists: numbers, and ranges without their end, [3,17,40:60]; of several datasets [FOLDER/3,FOLDER/40:60]",
        [],
    )
    embodiment_tag: str = key("robot tag whose weights are trained", "new_embodiment", check=EmbodimentTag.check_value)
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    tail: str = key(
        "start steps near an episode's end: mask keeps them and masks the missing future; "
        "drop leaves them out, as the original does, and never learns to lift on short episodes",
        "mask",
        choices=("mask", "drop"),
    )
    frames: str = key(
        "video decodes a frame each time it is asked for; store decodes every frame once into cache_dir",
        "video",
        choices=("video", "store"),
    )
    check: bool = key("refuse a dataset in which the fast part of data_prep.check finds an error", True)

    def check_values(self) -> None:
        check_mixture(self.mixture)


@dataclass(kw_only=True)
class ColorJitterConfig:
    """Random colour changes, drawn once a sample; augment.color_jitter=null switches them off."""

    brightness: float = key("largest relative change of brightness", 0.3, at_least=0)
    contrast: float = key("largest relative change of contrast", 0.4, at_least=0)
    saturation: float = key("largest relative change of saturation", 0.5, at_least=0)
    hue: float = key("largest shift of hue, in turns of the colour circle", 0.08, at_least=0, at_most=0.5)


@dataclass(kw_only=True)
class AugmentConfig:
    """What is varied in training samples."""

    crop_fraction: float = key(
        "side of the crop relative to the image: random in training, central otherwise", 0.95, more_than=0, at_most=1
    )
    random_rotation_angle: int | None = key(
        "largest rotation in degrees; null for none", None, more_than=0, at_most=180
    )
    color_jitter: ColorJitterConfig | None = key("random colour changes; null for none", ColorJitterConfig)
    views: int | None = key("different augmented views of a frame at most; null for no limit", None, at_least=1)
    state_dropout: float = key("chance that a sample's state is hidden", 0.2, at_least=0, less_than=1)
    instruction_dropout: float = key(
        "chance that a sample's instruction is left out, which guidance=... of an evaluation needs",
        0.0,
        at_least=0,
        less_than=1,
        before=0.0,
    )


@dataclass(kw_only=True)
class TuneConfig:
    """Which parts of the model are trained; the others stay frozen."""

    projector: bool = key("state encoder, action encoder and decoder, position embedding", True)
    diffusion_model: bool = key("diffusion transformer", True)
    vlln: bool = key("LayerNorm and self-attention over the backbone's tokens", True)
    llm: bool = key("the whole language model", False)
    visual: bool = key("vision tower", False)
    top_llm_layers: int = key("language-model layers trained, counted from the last kept one", 0, at_least=0)
    all_embodiments: bool = key(
        "hold and decay the projector's weights of every embodiment, as the original does; else of this robot's only",
        False,
        before=True,
    )


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA) on the frozen language model; merged into its weights in the finished checkpoint."""

    rank: int | None = key("rank of every adapter; null for no adapters", None, at_least=1, at_most=1024, before=None)
    alpha: int = key("an adapter's output is multiplied by alpha / rank", 32, at_least=1, before=32)
    dropout: float = key("dropout before an adapter", 0.05, at_least=0, less_than=1, before=0.05)
    targets: list[str] = key(
        f"products that get one, in every layer: of {', '.join(LORA_TARGETS)}",
        list(LORA_TARGETS[:4]),
        before=["q_proj", "k_proj", "v_proj", "o_proj"],
    )


@dataclass(kw_only=True)
class TrainConfig:
    """The recipe: AdamW, cosine schedule with warm-up."""

    max_steps: int = key("optimizer steps", 10_000, at_least=1)
    global_batch_size: int = key("samples per optimizer step, over all processes", 32, at_least=1)
    micro_batch_size: int | None = key(
        "samples per process and forward; null for global_batch_size / processes", None, at_least=1, identity=False
    )
    optimizer: str = key(
        "adamw holds two fp32 moments of each trained value; adamw_8bit holds them in 8 bit, for GPUs of 24 to 32 GB; "
        "adamw_offload on the CPU, which then computes the update",
        "adamw",
        choices=("adamw", "adamw_8bit", "adamw_offload"),
        before="adamw",
    )
    backbone_batch_size: int | None = key(
        "samples per forward of the frozen backbone; null for 4 on a CPU, for its caches, and a micro-batch on a GPU",
        None,
        at_least=1,
        identity=False,
    )
    learning_rate: float = key("peak learning rate", 1e-4, more_than=0)
    backbone_learning_rate: float | None = key(
        "peak learning rate of language model and vision tower, adapters too, where they are trained; null for "
        "learning_rate",
        None,
        more_than=0,
        before=None,
    )
    weight_decay: float = key("weight decay; biases and norms are left out", 1e-5, at_least=0)
    warmup_ratio: float = key("part of max_steps in which the learning rate rises", 0.05, at_least=0, less_than=1)
    adam_beta1: float = key("decay of AdamW's first moment", 0.9, at_least=0, less_than=1)
    adam_beta2: float = key("decay of AdamW's second moment", 0.999, at_least=0, less_than=1)
    adam_eps: float = key("AdamW's epsilon", 1e-8, more_than=0)
    max_grad_norm: float = key("gradients are clipped to this norm", 1.0, more_than=0)
    noise_draws: int = key(
        "noised copies of a sample's actions that the head is trained on; the backbone runs once for all of them. More "
        "teach a backbone that is trained too with less noise in its gradients",
        1,
        at_least=1,
        before=1,
    )
    early_frames: int = key("first frames of every episode that early_draws is about", 0, at_least=0, before=0)
    early_draws: int = key(
        "times that each start on the first early_frames frames comes in a pass over the dataset, the others once. "
        "The state does not tell there yet which object is meant, so they teach the vision tower most",
        1,
        at_least=1,
        before=1,
    )
    seed: int = key("seed of order, augmentation, noise and dropout", 42, at_least=0, at_most=LARGEST_SEED)
    precision: str = key(
        "of the forward pass; auto is bf16 on GPUs that have it, fastest on CPUs too", "auto", choices=PRECISIONS
    )
    save_steps: int = key("optimizer steps between two checkpoints", 1000, at_least=1, identity=False)
    keep_last: int = key("newest checkpoints kept", 2, at_least=1, identity=False)
    keep_every: int | None = key(
        "checkpoints at multiples of so many steps are kept for good; null for none", None, at_least=1, identity=False
    )
    log_steps: int = key("optimizer steps between two log lines", 10, at_least=1, identity=False)
    eval_steps: int | None = key(
        "optimizer steps between two open-loop evaluations on held-out episodes; null for none. The best evaluated "
        "checkpoint is kept, and best.json names it",
        None,
        at_least=1,
        identity=False,
    )
    eval_episodes: int | None = key(
        "held-out episodes evaluated, the first ones; null for all", 8, at_least=1, identity=False
    )
    probes: str | None = key(
        "folder of cue probes (python -m simulation.probes): evaluations during training then measure which object the "
        "policy heads for and what changes that; null for none",
        None,
        folder=True,
        identity=False,
    )
    patience: int | None = key(
        "evaluations in a row without a better one after which training ends; null for never",
        None,
        at_least=1,
        identity=False,
    )
    export: str = key(
        "weights of the finished checkpoint: those of the last step, or of the best evaluation",
        "last",
        choices=("last", "best"),
        identity=False,
    )
    num_workers: int = key(
        "data loader processes per training process; 0 loads in the training process", 2, at_least=0, identity=False
    )
    resume: str = key(
        "auto resumes from the newest checkpoint of run_dir; never starts at step 0",
        "auto",
        choices=("auto", "never"),
        identity=False,
    )
    compile: bool | None = key(
        "compile the blocks of the action head with torch.compile; null where there is CUDA and a compiler",
        None,
        before=False,
    )
    attention: str = key(
        "of the language model: sdpa is PyTorch's own; flash the package flash-attn, where it is installed and the GPU "
        "computes in bf16, else sdpa",
        "sdpa",
        choices=("sdpa", "flash"),
        before="sdpa",
    )
    activation_checkpointing: bool = key(
        "compute activations again in the backward pass, not keep them: less memory, more time, the same losses",
        False,
        identity=False,
    )
    features: str = key(
        "live runs the frozen backbone in every step; cached once for each of a frame's augment.views, into cache_dir",
        "live",
        choices=("live", "cached"),
        identity=False,
    )
    tune: TuneConfig = key("which parts are trained", TuneConfig)
    lora: LoraConfig = key("adapters on the language model", LoraConfig)

    def check_values(self) -> None:
        lora, tune = self.lora, self.tune
        for name in lora.targets:
            if name not in LORA_TARGETS:
                raise ToolkitError(
                    f'train.lora.targets: the language model has no "{name}".{did_you_mean(name, LORA_TARGETS)}'
                )
        if not lora.targets or len(set(lora.targets)) < len(lora.targets):
            raise ToolkitError(f"train.lora.targets={lora.targets}: name each product once, and one at least.")
        if lora.rank is None:
            if lora != LoraConfig():
                raise ToolkitError(
                    "train.lora is set, but without a rank there are no adapters. Add train.lora.rank=16."
                )
            return
        for name in ("llm", "top_llm_layers"):
            if getattr(tune, name):
                raise ToolkitError(
                    f"train.lora.rank={lora.rank} adapts a frozen language model, but train.tune.{name}="
                    f"{str(getattr(tune, name)).lower()} trains it itself. Leave one of the two out."
                )
        if self.features == "cached":
            raise ToolkitError(
                f"train.features=cached computes the language model's output once, but train.lora.rank={lora.rank} "
                "trains adapters in it. Use train.features=live, or leave the adapters out."
            )


@dataclass(kw_only=True)
class EngineConfig:
    """How the processes work together."""

    name: str = key(
        "single is one process; ddp any number, under torchrun; zero2 and fsdp2 divide memory among them",
        choices=("single", "ddp", "zero2", "fsdp2"),
    )
