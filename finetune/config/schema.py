"""Every key of every entry script, with its type, default, bounds and meaning: the one source for help and checks.

Defaults stand here; the files under configs/ hold the choices (model, split, ...) and what differs from a default.
"""

# ruff: noqa: RUF009 - `key` returns dataclasses.field, a new one for every field

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_REQUIRED: Any = object()


def key(meaning: str, default: Any = _REQUIRED, **bounds: Any) -> Any:
    """A documented field. Without a default its value comes from a configuration file or the command line.

    `bounds`: choices (a tuple of texts); at_least, more_than, at_most, less_than (numbers); folder=True for a
    path, in which a leading ~ is the home folder.
    """
    metadata = {"meaning": meaning, **bounds}
    if default is _REQUIRED:
        return field(metadata=metadata)
    if isinstance(default, type):  # a section
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


PRECISIONS = ("auto", "bf16", "fp32")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(kw_only=True)
class SplitConfig:
    """The conflict split: a folder of recordings and the instruction that names the cue to follow."""

    name: str = key("name of the split, which is also the name of its folders")
    instruction: str = key("what the robot is told in every episode")
    paraphrases: list[str] = key("other ways to say it, for recordings with paraphrases=true", [])


@dataclass(kw_only=True)
class DiffusionModelConfig:
    """The diffusion transformer of the action head."""

    num_layers: int = key("blocks, alternately cross- and self-attention", at_least=1)
    num_attention_heads: int = key("heads; heads x head dim = input_embedding_dim", at_least=1)
    attention_head_dim: int = key("width of a head", at_least=1)
    output_dim: int = key("width of its output; = hidden_size", at_least=1)
    dropout: float = key("dropout in its blocks", at_least=0, less_than=1)


@dataclass(kw_only=True)
class SelfAttentionConfig:
    """Self-attention over the backbone's tokens, before the diffusion transformer."""

    num_layers: int = key("blocks", at_least=1)
    num_attention_heads: int = key("heads; heads x head dim = backbone_embedding_dim", at_least=1)
    attention_head_dim: int = key("width of a head", at_least=1)
    dropout: float = key("dropout in its blocks", at_least=0, less_than=1)


@dataclass(kw_only=True)
class TextConfig:
    """The language model of the backbone (Qwen3-VL)."""

    hidden_size: int = key("width; = backbone_embedding_dim", at_least=1)
    num_hidden_layers: int = key("layers before the cut to select_layer", at_least=1)
    num_attention_heads: int = key("query heads", at_least=1)
    num_key_value_heads: int = key("key and value heads; divides the query heads", at_least=1)
    head_dim: int = key("width of a head", at_least=2)
    intermediate_size: int = key("width of the feed-forward", at_least=1)
    mrope_section: list[int] = key("rotary pairs for time, height, width; 2 x their sum = head_dim")
    rope_theta: float = key("base of the rotary frequencies", more_than=0)


@dataclass(kw_only=True)
class VisionConfig:
    """The vision tower of the backbone (Qwen3-VL)."""

    hidden_size: int = key("width; a multiple of num_heads", at_least=1)
    depth: int = key("blocks", at_least=1)
    num_heads: int = key("heads", at_least=1)
    intermediate_size: int = key("width of the feed-forward", at_least=1)
    out_hidden_size: int = key("width handed to the language model; = its hidden_size", at_least=1)
    num_position_embeddings: int = key("learned positions, a square number", at_least=1)
    deepstack_visual_indexes: list[int] = key("blocks whose features also enter the first LLM layers")
    patch_size: int = key("pixels along the side of a patch", at_least=1)


@dataclass(kw_only=True)
class BackboneConfig:
    """The backbone's architecture (Qwen3-VL); null takes the built-in table of Qwen3-VL-2B."""

    vocab_size: int = key("rows of the token embedding", at_least=1)
    text: TextConfig = key("the language model")
    vision: VisionConfig = key("the vision tower")


@dataclass(kw_only=True)
class ArchitectureConfig:
    """Shape of the model; read when a base with random weights is made. A checkpoint brings its own."""

    model_name: str = key("name of the backbone, as written to config.json")
    select_layer: int = key("LLM layers kept, counted from the first", at_least=1)
    action_horizon: int = key("action steps the head predicts", at_least=1)
    max_state_dim: int = key("padded state width", at_least=1)
    max_action_dim: int = key("padded action width", at_least=1)
    hidden_size: int = key("width inside the state encoder and action decoder", at_least=1)
    input_embedding_dim: int = key("width of the diffusion transformer", at_least=1)
    backbone_embedding_dim: int = key("width of the backbone's features", at_least=1)
    max_num_embodiments: int = key("robots with weights of their own", at_least=1)
    num_inference_timesteps: int = key("denoising steps at inference", at_least=1)
    state_dropout_prob: float = key("chance that a sample's state features are hidden", at_least=0, less_than=1)
    diffusion_model: DiffusionModelConfig = key("the diffusion transformer")
    vl_self_attention: SelfAttentionConfig | None = key("self-attention over the backbone's tokens; null for none")
    backbone: BackboneConfig | None = key("the backbone; null for Qwen3-VL-2B")


@dataclass(kw_only=True)
class ModelConfig:
    """The base checkpoint that is fine-tuned, and its shape."""

    name: str = key("name of the model")
    base: str = key("the base checkpoint: a local folder or a Hugging Face id (owner/name)", folder=True)
    architecture: ArchitectureConfig = key("shape of a base made with random weights")


@dataclass(kw_only=True)
class DatasetConfig:
    """The converted dataset, as prepare_conflict_data.py leaves it."""

    data_dir: str = key("folder that holds <split>/train", "data", folder=True)
    embodiment_tag: str = key("robot tag whose weights are trained", "new_embodiment")
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
    )


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA) on the frozen language model; merged into its weights in the finished checkpoint."""

    rank: int | None = key("rank of every adapter; null for no adapters", None, at_least=1, at_most=1024)
    alpha: int = key("an adapter's output is multiplied by alpha / rank", 32, at_least=1)
    dropout: float = key("dropout before an adapter", 0.05, at_least=0, less_than=1)
    targets: list[str] = key(
        f"products that get one, in every layer: of {', '.join(LORA_TARGETS)}", list(LORA_TARGETS[:4])
    )


@dataclass(kw_only=True)
class TrainConfig:
    """The recipe: AdamW, cosine schedule with warm-up."""

    max_steps: int = key("optimizer steps", 10_000, at_least=1)
    global_batch_size: int = key("samples per optimizer step, over all processes", 32, at_least=1)
    micro_batch_size: int | None = key(
        "samples per process and forward; null for global_batch_size / processes", None, at_least=1
    )
    optimizer: str = key(
        "adamw holds two fp32 moments of each trained value; adamw_8bit holds them in 8 bit, for GPUs of 24 to 32 GB; "
        "adamw_offload on the CPU, which then computes the update",
        "adamw",
        choices=("adamw", "adamw_8bit", "adamw_offload"),
    )
    backbone_batch_size: int | None = key(
        "samples per forward of the frozen backbone; null for 4 on a CPU, for its caches, and a micro-batch on a GPU",
        None,
        at_least=1,
    )
    learning_rate: float = key("peak learning rate", 1e-4, more_than=0)
    weight_decay: float = key("weight decay; biases and norms are left out", 1e-5, at_least=0)
    warmup_ratio: float = key("part of max_steps in which the learning rate rises", 0.05, at_least=0, less_than=1)
    adam_beta1: float = key("decay of AdamW's first moment", 0.9, at_least=0, less_than=1)
    adam_beta2: float = key("decay of AdamW's second moment", 0.999, at_least=0, less_than=1)
    adam_eps: float = key("AdamW's epsilon", 1e-8, more_than=0)
    max_grad_norm: float = key("gradients are clipped to this norm", 1.0, more_than=0)
    seed: int = key("seed of order, augmentation, noise and dropout", 42, at_least=0)
    precision: str = key("of the forward pass; auto is bf16 where the device has it", "auto", choices=PRECISIONS)
    save_steps: int = key("optimizer steps between two checkpoints", 1000, at_least=1)
    keep_last: int = key("newest checkpoints kept", 2, at_least=1)
    keep_every: int | None = key(
        "checkpoints at multiples of so many steps are kept for good; null for none", None, at_least=1
    )
    log_steps: int = key("optimizer steps between two log lines", 10, at_least=1)
    num_workers: int = key("data loader processes per training process; 0 loads in the training process", 2, at_least=0)
    resume: str = key(
        "auto goes on from the newest checkpoint of run_dir; never starts anew", "auto", choices=("auto", "never")
    )
    compile: bool | None = key(
        "compile the blocks of the action head with torch.compile; null where there is CUDA and a compiler", None
    )
    attention: str = key(
        "of the language model: sdpa is PyTorch's own; flash the package flash-attn, where it is installed and the GPU "
        "computes in bf16, else sdpa",
        "sdpa",
        choices=("sdpa", "flash"),
    )
    activation_checkpointing: bool = key(
        "compute activations again in the backward pass, not keep them: less memory, more time, the same losses", False
    )
    features: str = key(
        "live runs the frozen backbone in every step; cached once for each of a frame's augment.views, into cache_dir",
        "live",
        choices=("live", "cached"),
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

    name: str = key("wandb, or none for the terminal only", choices=("wandb", "none"))
    project: str = key("wandb project", "groot-conflict")
    mode: str = key("auto is offline when there is no wandb key", "auto", choices=("auto", "online", "offline"))
    group: str | None = key("wandb group", None)
    run_name: str | None = key("wandb name of the run", "${split.name}")
    tags: list[str] = key("wandb tags", [])


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


@dataclass(kw_only=True)
class PlanConfig(FinetuneConfig):
    """What a fine-tune will need: parameters, memory by part, disk, time. Takes every key of the fine-tune."""

    gpus: int | None = key("training processes, one on each GPU; null for what cluster asks for", None, at_least=1)
    gpu: str | None = key("GPU by name (a100, a100-80gb, h100, h200, l40s, 4090, ...); null for cluster.gpu_type", None)
    gpu_memory_gb: float | None = key("memory of a GPU, in GB; null for what the table says", None, more_than=0)
    host_memory_gb: float | None = key("memory of a node, in GB; null leaves it unchecked", None, more_than=0)
    json: bool = key("print JSON in place of tables", False)


@dataclass(kw_only=True)
class RecordConfig:
    """Record demonstrations of a conflict split in simulation, as ManiSkill would."""

    split: SplitConfig = key("the conflict split")
    part: str = key("train, in which the cues agree, or conflict", "train", choices=("train", "conflict"))
    episodes: int = key("successful episodes recorded", 500, at_least=1)
    out: str = key("folder that receives <split>/<part>", "conflict_maniskill", folder=True)
    image_size: int = key("width and height of both cameras, pixels", 224, at_least=32, at_most=1024)
    seed: int = key("seed of the first episode; the others follow", 0, at_least=0)
    recoveries: float = key("part of the episodes in which the arm is pushed aside once", 0.0, at_least=0, at_most=1)
    paraphrases: bool = key("tell each episode's instruction in one of the split's ways", False)
    workers: int = key("processes, with a simulation each", 2, at_least=1)
    render: str = key("where images are rendered", "cpu", choices=("cpu", "gpu"))
    overwrite: bool = key("replace a recording that is already there", False)


@dataclass(kw_only=True)
class PrepareConfig:
    """Turn a split's ManiSkill recordings into a checked dataset."""

    split: SplitConfig = key("the conflict split")
    raw_dir: str = key(
        "folder that holds <split>/train and <split>/conflict recordings", "conflict_maniskill", folder=True
    )
    data_dir: str = key("folder that receives <split>/train and <split>/conflict datasets", "data", folder=True)
    val_fraction: float = key("part of the train episodes kept for validation", 0.1, more_than=0, less_than=1)
    seed: int = key("seed of the choice of validation episodes", 42, at_least=0)
    overwrite: bool = key("replace a dataset that is already there", False)
    workers: int = key("threads that encode videos", 1, at_least=1)


@dataclass(kw_only=True)
class EvaluateConfig:
    """Evaluate a fine-tuned checkpoint on a split."""

    split: SplitConfig = key("the conflict split")
    mode: str = key("open_loop compares predicted with recorded actions", "open_loop", choices=("open_loop",))
    checkpoint: str = key("folder of the finished checkpoint", "checkpoints/${split.name}", folder=True)
    data_dir: str = key("folder that holds the <split>/ datasets", "data", folder=True)
    report_dir: str = key(
        "folder of figures and tables, rewritten by each evaluation", "reports/${split.name}/${part}", folder=True
    )
    part: str = key(
        "episodes: held out of training, trained on, or in conflict", "val", choices=("val", "train", "conflict")
    )
    denoising_steps: int | None = key("denoising steps; null for the checkpoint's own", None, at_least=1)
    batch_size: int = key("samples per forward", 16, at_least=1)
    device: str = key("auto is cuda where there is one", "auto", choices=DEVICES)
    precision: str = key("auto is bf16 where the device has it", "auto", choices=PRECISIONS)
    seed: int = key("seed of the noise", 42, at_least=0)
    embodiment_tag: str = key("robot tag the checkpoint was trained under", "new_embodiment")
    max_episodes: int | None = key("episodes at most; null for all", None, at_least=1)


@dataclass(kw_only=True)
class CreateBaseConfig:
    """Make a base checkpoint with random weights, to try everything without the released one."""

    model: ModelConfig = key("the model that is made")
    out: str = key("folder of the new checkpoint", "${model.base}", folder=True)
    seed: int = key("seed of the weights", 0, at_least=0)
    dtype: str = key("type of the stored weights", "bf16", choices=("bf16", "fp32"))
    overwrite: bool = key("replace a checkpoint that is already there", False)


@dataclass(kw_only=True)
class PrefetchConfig:
    """Bring a base checkpoint and its tokenizer to a folder for nodes without internet, verified."""

    base: str = key(
        "the base checkpoint: a Hugging Face id (owner/name, or owner/name/folder) or a local folder", folder=True
    )
    out: str | None = key("folder that receives it; null for checkpoints/base/<name of the base>", None, folder=True)
    revision: str | None = key("branch, tag or commit of the repository; null for its main branch", None)
    tokenizer: str | None = key(
        "where the tokenizer of the backbone comes from: an id or a folder; null for what config.json names",
        None,
        folder=True,
    )
    overwrite: bool = key("replace a folder that is already there", False)


@dataclass(kw_only=True)
class LaunchConfig:
    """Submit fine-tunes to SLURM: one job, an array of the points of a sweep, or a chain of stages for each of them.

    Takes every key of launch_finetune_local.py (cluster.* is what a job asks for) and, with their stages, those of
    prepare_conflict_data.py and evaluate_conflict.py; see their --help. A comma list is a sweep: split=A,B
    train.seed=1,2 is four runs, each with folders of its own.
    """

    stages: str = key("what is done for each point, in this order: prepare, finetune, evaluate", "finetune")
    max_parallel: int | None = key("fine-tunes that run at once; null for no limit", None, at_least=1)
    dry_run: bool = key("print each job script and resolved configuration, submit and write nothing", False)
    runs_dir: str = key("folder of the launcher's own records, and where finetune.jobs looks", "runs", folder=True)


@dataclass(kw_only=True)
class JobsConfig:
    """The runs of this project and their SLURM jobs, also after the jobs are gone or where SLURM is not installed.

    `list` is what is done without a command; `follow RUN` shows the newest attempt's log as it grows, across requeues,
    until the run ends; `cancel RUN` (or all) ends its jobs; `resubmit RUN` submits its saved job script again. RUN is
    the name of a run folder, of a split, or a run folder's path.
    """

    runs_dir: str = key("folder with the run folders and the launcher's records", "runs", folder=True)
    json: bool = key("list the runs as JSON", False)
    lines: int = key("lines of the log that follow shows first", 20, at_least=0)


Config = (
    RecordConfig
    | FinetuneConfig
    | PlanConfig
    | PrepareConfig
    | EvaluateConfig
    | CreateBaseConfig
    | PrefetchConfig
    | LaunchConfig
    | JobsConfig
)


@dataclass(frozen=True)
class Script:
    """An entry script: its configuration class, the command that starts it, and examples of use."""

    config: type[Any]
    command: str
    examples: tuple[str, ...]


SCRIPTS = {
    "record": Script(
        RecordConfig,
        "python -m simulation.record",
        (
            "split=color_object part=train episodes=500",
            "split=size_color part=conflict episodes=100 workers=8 recoveries=0.2",
        ),
    ),
    "prepare": Script(
        PrepareConfig,
        "python prepare_conflict_data.py",
        (
            "split=color_object raw_dir=conflict_maniskill data_dir=data",
            'split=my_split split.instruction="pick up the heavy object" overwrite=true',
        ),
    ),
    "finetune": Script(
        FinetuneConfig,
        "python launch_finetune_local.py",
        (
            "split=color_object train.micro_batch_size=4",
            "experiment=conflict split=size_color",
            "experiment=demo",
            'split=my_split split.instruction="pick up the heavy object"',
        ),
    ),
    "plan": Script(
        PlanConfig,
        "python -m finetune.plan",
        (
            "split=color_object gpus=4 gpu=a100",
            "model=released gpus=1 gpu_memory_gb=24 train.features=cached augment.views=4",
            "model=small device=cpu json=true",
        ),
    ),
    "evaluate": Script(
        EvaluateConfig,
        "python evaluate_conflict.py",
        (
            "split=color_object",
            "split=color_object part=conflict checkpoint=checkpoints/color_object report_dir=reports/conflict",
        ),
    ),
    "create_base": Script(
        CreateBaseConfig,
        "python -m finetune.create_base",
        ("model=tiny", "model=small dtype=fp32 out=checkpoints/base/small_fp32"),
    ),
    "prefetch": Script(
        PrefetchConfig,
        "python -m finetune.prefetch",
        (
            "base=nvidia/GR00T-N1.7-3B out=checkpoints/base/GR00T-N1.7-3B",
            "base=nvidia/GR00T-N1.7-LIBERO/libero_spatial tokenizer=FOLDER",
        ),
    ),
    "launch": Script(
        LaunchConfig,
        "python launch_finetune_slurm.py",
        (
            "split=color_object,color_size max_parallel=2",
            "split=color_object train.learning_rate=1e-4,5e-5 dry_run=true",
            "split=size_color stages=prepare,finetune,evaluate raw_dir=conflict_maniskill cluster.partition=gpu",
        ),
    ),
    "jobs": Script(
        JobsConfig,
        "python -m finetune.jobs [list | follow RUN | cancel RUN | resubmit RUN]",
        ("json=true", "runs_dir=/scratch/me/runs"),
    ),
}
