"""Keys of a fine-tune: dataset, augmentation, recipe, engine, SLURM job, tracking."""

# ruff: noqa: RUF009 - `key` returns dataclasses.field, a new one for every field

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.config.schema_key import (
    DEVICES,
    LARGEST_SEED,
    PRECISIONS,
    key,
    modalities_field,
    modality_config_key,
)
from finetune.config.schema_model import ModelConfig, SplitConfig


@dataclass(kw_only=True)
class DatasetConfig:
    """The converted dataset, as prepare_conflict_data.py leaves it."""

    data_dir: str = key("folder that holds <split>/train", "data", folder=True)
    mixture: list[str] = key(
        "datasets of one robot, trained on in place of the split's own: [FOLDER:WEIGHT,...], a weight (1 where none is "
        "given) saying how often a dataset is drawn",
        [],
    )
    embodiment_tag: str = key("robot tag whose weights are trained", "new_embodiment")
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
    precision: str = key("of the forward pass; auto is bf16 where the device has it", "auto", choices=PRECISIONS)
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
        "auto goes on from the newest checkpoint of run_dir; never starts anew",
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


@dataclass(kw_only=True)
class EngineConfig:
    """How the processes work together."""

    name: str = key(
        "single is one process; ddp any number, under torchrun; zero2 and fsdp2 divide memory among them",
        choices=("single", "ddp", "zero2", "fsdp2"),
    )


@dataclass(kw_only=True)
class ClusterConfig:
    """What a SLURM job asks for, and what its site needs. No result depends on it, only where and when it comes."""

    nodes: int = key("nodes of one job", 1, at_least=1)
    gpus_per_node: int = key("GPUs, and training processes, on each node; 0 trains on the CPU", 4, at_least=0)
    gpu_type: str | None = key("GPU type as the cluster names it (sinfo -o %G); null for any", "a100")
    processes_per_node: int | None = key("training processes on each node; null for one per GPU", None, at_least=1)
    cpus_per_task: int = key("CPU cores of a node", 32, at_least=1)
    memory: str | None = key("memory of a node, as sbatch --mem takes it (0 is all of it); null for the default", None)
    partition: str | None = key("partition; null for the cluster's default", None)
    account: str | None = key("account that is charged; null for the user's default", None)
    qos: str | None = key("quality of service; null for the default", None)
    reservation: str | None = key("reservation; null for none", None)
    constraint: str | None = key("node features, as sbatch --constraint takes them; null for any", None)
    exclude: str | None = key("nodes never to use, as sbatch --exclude takes them; null for none", None)
    time: str = key("wall-clock limit of one attempt, as sbatch --time takes it", "24:00:00")
    grace_seconds: int = key("seconds before the limit at which the last checkpoint is begun", 300, at_least=1)
    requeue: bool = key("go on in a new attempt after preemption, time-out or a crash", True)
    max_requeues: int = key("attempts after the first, at most", 50, at_least=0)
    max_crashes: int = key("attempts in a row that crash without a new checkpoint, at most", 3, at_least=1)
    files: list[str] = key("files and folders of the checkout that git does not track, copied for the job as well", [])
    sbatch: list[str] = key("further options of sbatch, each as --name=value", [])
    setup: list[str] = key("shell lines run first on the job's first node: module loads, conda activate", [])
    environment: list[str] = key("variables of the job, each as NAME=value: proxies, NCCL settings", [])
    container: list[str] = key("command put before python: apptainer, exec, --nv, image.sif", [])
    python: str | None = key("python of the job; null for .venv/bin/python of the checkout, or else the caller's", None)
    offline: bool = key("nodes have no internet: Hugging Face and wandb stay offline", False)
    scratch: str | None = key(
        "folder on the node for what is computed once (cache_dir), may hold $SLURM_TMPDIR; null for cache_dir itself",
        None,
    )


@dataclass(kw_only=True)
class TrackingConfig:
    """Where the run is logged."""

    name: str = key("wandb, or none for the terminal only", "none", choices=("wandb", "none"))
    project: str = key("wandb project", "groot-conflict")
    mode: str = key("auto is offline when there is no wandb key", "auto", choices=("auto", "online", "offline"))
    group: str | None = key("wandb group: the suite of runs that are looked at together", "conflict")
    run_name: str | None = key("wandb name of the run", "${split.name}")
    tags: list[str] = key("wandb tags, beside split, cluster and engine", [])
    artifacts: str = key(
        "dataset, base and checkpoints as wandb artifacts: reference holds hashes and sizes, upload also the files of "
        "the dataset and of the finished checkpoint",
        "reference",
        choices=("none", "reference", "upload"),
    )
    stall_minutes: float | None = key(
        "minutes without a step, or a batch of an evaluation, after which a warning is sent; null for never",
        20.0,
        more_than=0,
    )


@dataclass(kw_only=True)
class FinetuneConfig:
    """Fine-tune GR00T N1.7 on one conflict split."""

    split: SplitConfig = key("the conflict split")
    model: ModelConfig = key("the base checkpoint")
    dataset: DatasetConfig = key("the converted dataset", DatasetConfig)
    augment: AugmentConfig = key("what is varied in training samples", AugmentConfig)
    train: TrainConfig = key("the recipe", TrainConfig)
    engine: EngineConfig = key("how the processes work together")
    cluster: ClusterConfig = key("the SLURM job, where there is one", ClusterConfig)
    tracking: TrackingConfig = key("where the run is logged")
    run_dir: str = key("folder of the resumable checkpoints and logs", "runs/${split.name}", folder=True)
    output_dir: str = key("folder of the finished checkpoint", "checkpoints/${split.name}", folder=True)
    cache_dir: str = key(
        "folder of what dataset.frames=store and train.features=cached compute once; may be deleted",
        "cache/${split.name}",
        folder=True,
    )
    device: str = key("auto is cuda where there is one", "auto", choices=DEVICES)
    check_fit: bool = key(
        "refuse to start what cannot fit in memory or on the disk (see python -m finetune.plan)", True
    )
