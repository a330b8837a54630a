"""Every key of every entry script, with its type, default, bounds and meaning: the one source for help and checks.

Defaults stand here and in the modules beside it (schema_model, schema_train); the files under configs/ hold the choices
(model, split, ...) and what differs from a default. scripts.py says which script takes which class.
"""

# ruff: noqa: RUF009 - `key` returns dataclasses.field, a new one for every field

from __future__ import annotations

from dataclasses import dataclass

from finetune.config.schema_key import DEVICES, PRECISIONS, key
from finetune.config.schema_model import (
    ArchitectureConfig,
    BackboneConfig,
    DiffusionModelConfig,
    ModelConfig,
    SelfAttentionConfig,
    SplitConfig,
    TextConfig,
    VisionConfig,
)
from finetune.config.schema_train import (
    LORA_TARGETS,
    AugmentConfig,
    ClusterConfig,
    ColorJitterConfig,
    DatasetConfig,
    EngineConfig,
    FinetuneConfig,
    LoraConfig,
    TrackingConfig,
    TrainConfig,
    TuneConfig,
)

__all__ = [
    "DEVICES",
    "LORA_TARGETS",
    "PRECISIONS",
    "ArchitectureConfig",
    "AugmentConfig",
    "BackboneConfig",
    "CheckConfig",
    "ClusterConfig",
    "ColorJitterConfig",
    "Config",
    "CreateBaseConfig",
    "DatasetConfig",
    "DiffusionModelConfig",
    "EngineConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "JobsConfig",
    "LaunchConfig",
    "LoraConfig",
    "ModelConfig",
    "PlanConfig",
    "PrefetchConfig",
    "PrepareConfig",
    "RecordConfig",
    "SelfAttentionConfig",
    "SplitConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "VisionConfig",
]


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
class CheckConfig:
    """Examine a dataset, or a split's folder with train/ and conflict/: is it sound, and if not, what mends it?

    PATH is the folder. Ends with status 0 where nothing is wrong (warnings may be printed), with 1 where something is,
    with 2 where there is no dataset.
    """

    fast: bool = key(
        "leave out what decodes whole videos or reads every file: what training does before it begins", False
    )
    json: str | None = key("file that receives the report as JSON; null for none", None)
    html: str | None = key("file that receives the report as one page with pictures and curves; null for none", None)
    shown: int = key("episodes of each part whose frames and curves the page shows", 4, at_least=1, at_most=50)


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
    | CheckConfig
    | EvaluateConfig
    | CreateBaseConfig
    | PrefetchConfig
    | LaunchConfig
    | JobsConfig
)
