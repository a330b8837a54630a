"""Every key of every entry script, with its type, default, bounds and meaning: the one source for help and checks.

Defaults stand here and in the modules beside it (schema_model, schema_train); the files under configs/ hold the choices
(model, split, ...) and what differs from a default. scripts.py says which script takes which class.
"""

# ruff: noqa: RUF009 - `key` returns dataclasses.field, a new one for every field

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.schema_key import (
    DEVICES,
    LARGEST_SEED,
    PRECISIONS,
    key,
    modalities_field,
    modality_config_key,
)
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
    "ABLATIONS",
    "DEVICES",
    "LORA_TARGETS",
    "PRECISIONS",
    "AdoptConfig",
    "ArchitectureConfig",
    "AugmentConfig",
    "BackboneConfig",
    "CheckConfig",
    "ClusterConfig",
    "ColorJitterConfig",
    "CompareConfig",
    "Config",
    "CreateBaseConfig",
    "DashboardConfig",
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
    "ReleaseConfig",
    "ReportConfig",
    "SelfAttentionConfig",
    "SplitConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "VisionConfig",
]


PARTS = ("train", "conflict")
ABLATIONS = ("other_image", "blank_image", "other_instruction", "zero_state")  # conditions of simulation/outcomes.py


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
    part: str = key("train, in which the cues agree, or conflict", "train", choices=PARTS)
    episodes: int = key("successful episodes recorded; a finished recording can be made longer", 500, at_least=1)
    out: str = key("folder that receives <split>/<part>", "conflict_maniskill", folder=True)
    image_size: int = key("width and height of both cameras, pixels", 224, at_least=32, at_most=1024)
    seed: int = key("seed of the first episode; the others follow", 0, at_least=0, at_most=LARGEST_SEED)
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
    seed: int = key("seed of the choice of validation episodes", 42, at_least=0, at_most=LARGEST_SEED)
    overwrite: bool = key("replace a dataset that is already there", False)
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    workers: int | None = key("processes; null for one per core where there is enough to do", None, at_least=1)


@dataclass(kw_only=True)
class AdoptConfig:
    """Make a LeRobot dataset (v2.1 or v3.0) of another source trainable: propose meta/modality.json, hold episodes out.

    Prints what it proposes and what it assumed; writes with write=true, and never over a file that is there.
    """

    dataset: str = key("folder of the dataset, which holds meta/, data/ and videos/", folder=True)
    val_fraction: float = key(
        "part of the episodes held out of training (two at least), for evaluation; 0 for none",
        0.1,
        at_least=0,
        less_than=1,
    )
    seed: int = key("seed of the choice of held-out episodes", 42, at_least=0, at_most=LARGEST_SEED)
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    write: bool = key("write meta/modality.json and meta/split.json where they are missing", False)


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
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    shown: int = key("episodes of each part whose frames and curves the page shows", 4, at_least=1, at_most=50)


@dataclass(kw_only=True)
class EvaluateConfig:
    """Evaluate a fine-tuned checkpoint on a split: on recordings (open loop) or acting in simulation (closed loop)."""

    split: SplitConfig = key("the conflict split")
    mode: str = key(
        "open_loop compares predicted with recorded actions; closed_loop lets the policy act in simulation",
        "open_loop",
        choices=("open_loop", "closed_loop"),
    )
    checkpoint: str = key("folder of the finished checkpoint", "checkpoints/${split.name}", folder=True)
    verify: bool = key("compare every file of the checkpoint with its manifest first", False)
    data_dir: str = key("open loop: folder that holds the <split>/ datasets", "data", folder=True)
    report_dir: str | None = key(
        "folder of figures, tables and videos, rewritten by each evaluation; null for reports/<split>/<part>, and in "
        "closed loop reports/<split>/closed_loop",
        None,
        folder=True,
    )
    part: str = key(
        "open loop: episodes held out of training, trained on, or in conflict",
        "val",
        choices=("val", "train", "conflict"),
    )
    denoising_steps: int | None = key("denoising steps; null for the checkpoint's own", None, at_least=1)
    batch_size: int = key("open loop: samples per forward", 16, at_least=1)
    device: str = key("auto is cuda where there is one", "auto", choices=DEVICES)
    precision: str = key("auto is bf16 where the device has it", "auto", choices=PRECISIONS)
    seed: int = key("seed of the noise", 42, at_least=0, at_most=LARGEST_SEED)
    embodiment_tag: str = key("robot tag the checkpoint was trained under", "new_embodiment")
    max_episodes: int | None = key("open loop: episodes at most; null for all", None, at_least=1)
    policy: str = key(
        "closed loop: who acts; to check the loop itself expert, lure (picks up the lure), random (any object) or "
        "replay (the recordings of raw_dir)",
        "checkpoint",
        choices=("checkpoint", "expert", "lure", "random", "replay"),
    )
    server: str | None = key(
        "closed loop: HOST:PORT of a policy server that acts in place of the checkpoint (environment variable "
        "GROOT_API_TOKEN: its token)",
        None,
    )
    parts: list[str] = key("closed loop: what is evaluated", [*PARTS], choices=PARTS)
    episodes: int = key("closed loop: episodes of each part, under each condition", 100, at_least=1)
    n_action_steps: int = key("closed loop: steps executed of each action chunk", 8, at_least=1)
    max_steps: int = key("closed loop: steps of 1/20 s until an episode counts as failed", 100, at_least=1)
    ablations: list[str] = key(
        "closed loop: evaluated as well, each as many episodes again: images of another episode, black ones, the "
        "instruction for the split's other cue, no state",
        [],
        choices=ABLATIONS,
    )
    videos: int = key("closed loop: videos of successes, and as many of failures, of each part", 2, at_least=0)
    workers: int = key("closed loop: processes, with a simulation each", 2, at_least=1)
    image_size: int | None = key(
        "closed loop: width and height of both cameras, pixels; null for what the checkpoint was trained on",
        None,
        at_least=32,
        at_most=1024,
    )
    render: str = key(
        "closed loop: where images are rendered; none for policies that need none",
        "cpu",
        choices=("cpu", "gpu", "none"),
    )
    raw_dir: str = key(
        "closed loop: folder that holds the recordings <split>/<part> of policy=replay",
        "conflict_maniskill",
        folder=True,
    )
    tracking: TrackingConfig = key("closed loop: where the report is logged", TrackingConfig)

    @property
    def report_folder(self) -> Path:
        """report_dir, or what stands for null."""
        name = self.part if self.mode == "open_loop" else self.mode
        return Path(self.report_dir or f"reports/{self.split.name}/{name}")


@dataclass(kw_only=True)
class CompareConfig:
    """One page over all closed-loop evaluations below a folder: splits, checkpoints, and what differs between them."""

    reports_dir: str = key("folder below which each closed_loop.json is taken", "reports", folder=True)
    out: str = key("the page, an .html file; a .json of that name beside it holds the numbers", "reports/compare.html")
    pages: bool = key("make each evaluation's own page and tables anew, from its closed_loop.json", False)


@dataclass(kw_only=True)
class CreateBaseConfig:
    """Make a base checkpoint with random weights, to try everything without the released one."""

    model: ModelConfig = key("the model that is made")
    out: str = key("folder of the new checkpoint", "${model.base}", folder=True)
    seed: int = key("seed of the weights", 0, at_least=0, at_most=LARGEST_SEED)
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
class ReleaseConfig:
    """Make the published tree of a run: checkpoint, code, guide and a model card; upload it when asked.

    split=A,B puts several runs into one tree (with out=FOLDER).
    """

    split: SplitConfig = key("the conflict split")
    checkpoint: str = key("folder of the finished checkpoint", "checkpoints/${split.name}", folder=True)
    run_dir: str = key("folder of the run that made it, for its card; may be gone", "runs/${split.name}", folder=True)
    reports_dir: str = key("folder with the evaluations of it, at any depth", "reports/${split.name}", folder=True)
    out: str = key("folder that receives the published tree", "release/${split.name}", folder=True)
    base_model: str | None = key("Hugging Face id of the base, owner/name; null for what the run was given", None)
    licence: str | None = key(
        "licence of the weights, as Hugging Face names it; null for what the base says of itself", None
    )
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    datasets: list[str] = key("Hugging Face ids of the published training data, owner/name", [])
    files: list[str] = key("files and folders of the checkout that git does not track, published as well", [])
    repo_id: str | None = key("Hugging Face repository of the release, owner/name", None)
    upload: bool = key("send the release to repo_id, with the login of hf auth login or HF_TOKEN", False)
    private: bool = key("where upload=true makes the repository, only its owner sees it", True)
    link: bool = key("share the weight files with the checkpoint (hard links): no room needed, but one content", False)
    overwrite: bool = key("make a release anew that is already there", False)


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


@dataclass(kw_only=True)
class DashboardConfig:
    """Define the wandb project's workspace: of one split, or of all splits side by side.

    It is printed as JSON, which needs no account; out=FILE saves it, create=true makes it in the project.
    """

    split: str | None = key("the split whose runs it shows; null for all splits side by side", None)
    group: str | None = key("show the runs of this wandb group only; null for all", None)
    project: str = key("wandb project", "groot-conflict")
    entity: str | None = key("wandb user or team; null for the one the key belongs to", None)
    out: str | None = key("file that receives the workspace as JSON; null prints it", None, folder=True)
    saved: str | None = key("a file of out=, used in place of what is defined here; null for none", None, folder=True)
    create: bool = key("make the workspace in the project; needs a wandb key", False)


@dataclass(kw_only=True)
class ReportConfig:
    """One HTML page of a run's curves, or of several runs', that needs neither account nor network.

    RUN is a run folder, or a folder that holds some; without one all below runs_dir are shown. One run's page goes into
    its folder, several runs' page into the folder that was named, as report.html.
    """

    runs_dir: str = key("folder with the run folders", "runs", folder=True)
    out: str | None = key("file of the page; null for report.html in the folder that is shown", None, folder=True)
    reports_dir: str = key(
        "folder of evaluations (<split>/<part>/open_loop.json, closed_loop.json), shown where they are of the run's "
        "checkpoint",
        "reports",
        folder=True,
    )


Config = (
    RecordConfig
    | FinetuneConfig
    | PlanConfig
    | PrepareConfig
    | AdoptConfig
    | CheckConfig
    | EvaluateConfig
    | CompareConfig
    | CreateBaseConfig
    | PrefetchConfig
    | ReleaseConfig
    | LaunchConfig
    | JobsConfig
    | DashboardConfig
    | ReportConfig
)
