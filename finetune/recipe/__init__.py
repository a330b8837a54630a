"""What is trained and how, and what its SLURM job asks for: the keys of a fine-tune, and checks of them together."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from finetune.recipe.model_config import ModelConfig
from finetune.recipe.train_config import (
    AugmentConfig,
    DatasetConfig,
    EngineConfig,
    Part,
    TrainConfig,
    check_conflict_part,
    check_probes,
    trained_parts,
)
from gr00t.errors import ToolkitError, near_folder, require_extra
from toolkit.credentials import SECRET_NAME, secret_message
from toolkit.declaration import key
from toolkit.shared_keys import (
    DEVICES,
    SplitConfig,
    TrackingConfig,
    check_dataset_folder,
    check_writable,
    is_hub_id,
    refuse_inside,
)
from toolkit.trackers import check_tracking

_OPTIONS_OF_OURS = {
    "sbatch": ("array", "cpus-per-task", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "signal"),
    "srun": ("cpus-per-task", "export", "kill-on-bad-exit", "nodes", "ntasks", "ntasks-per-node", "overlap", "wait"),
}


@dataclass(kw_only=True)
class StageConfig:
    """What the job of a stage beside the fine-tune asks for, on one node."""

    gpus: int = key("GPUs, of cluster.gpu_type", 0, at_least=0)
    cpus: int | None = key("CPU cores; null for those that come with its GPUs, without GPUs for 8", None, at_least=1)
    memory: str | None = key("memory, as sbatch --mem takes it; null for the site's default for its CPUs", None)
    partition: str | None = key("partition; null for cluster.partition", None)
    time: str | None = key("wall-clock limit, as sbatch --time takes it; null for cluster.time", None)
    sbatch: list[str] | None = key("further options of sbatch, in the place of cluster.sbatch; null for those", None)


@dataclass(kw_only=True)
class DividedStageConfig(StageConfig):
    """The same for a stage whose work can be divided."""

    shares: int = key(
        "jobs that divide the work, elements of one array; one more joins what they made", 1, at_least=1, at_most=1000
    )


@dataclass(kw_only=True)
class EvaluationStageConfig(StageConfig):
    """The same for an evaluation, which takes a GPU."""

    gpus: int = key("GPUs, of cluster.gpu_type", 1, at_least=0)


@dataclass(kw_only=True)
class StagesConfig:
    """What the stages beside the fine-tune ask for."""

    record: DividedStageConfig = key("recording demonstrations in simulation", DividedStageConfig)
    prepare: DividedStageConfig = key("converting the recordings", DividedStageConfig)
    evaluate: EvaluationStageConfig = key("evaluating the checkpoint on recordings", EvaluationStageConfig)
    closed_loop: EvaluationStageConfig = key("evaluating it in simulation", EvaluationStageConfig)


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
    requeue: bool = key("continue in a new attempt after preemption, time-out or a crash", True)
    max_requeues: int = key("attempts after the first, at most", 50, at_least=0)
    max_crashes: int = key("attempts in a row that crash without a new checkpoint, at most", 3, at_least=1)
    files: list[str] = key("files and folders of the checkout that git does not track, copied for the job as well", [])
    sbatch: list[str] = key("further options of sbatch, each as --name=value", [])
    srun: list[str] = key("options of srun, each as --name=value: --mpi, --cpu-bind, --container-image (Pyxis)", [])
    setup: list[str] = key("shell lines run first on the job's first node: module loads, conda activate", [])
    environment: list[str] = key("variables of the job, each as NAME=value: proxies, NCCL settings", [])
    container: list[str] = key("command put before python: apptainer, exec, --nv, image.sif", [])
    python: str | None = key(
        "python of the job; null for the one that setup activates, or else .venv/bin/python of the checkout, or else "
        "the caller's",
        None,
    )
    stages: StagesConfig = key("what the jobs before and after a fine-tune ask for", StagesConfig)
    offline: bool = key("nodes have no internet: Hugging Face and wandb stay offline", False)
    scratch: str | None = key(
        "folder on the node for what is computed once (cache_dir), as $SLURM_TMPDIR/groot; null for cache_dir itself",
        None,
    )
    stage_data: bool = key(
        "copy datasets and caches to the node's own disk (scratch, else $SLURM_TMPDIR) when a job starts, and read "
        "them there; cache_dir then stays where it is",
        False,
    )

    def check_values(self) -> None:
        """Refuse secrets, which would stand in the job's script, in the run folder and in the logged configuration; an
        option that the job script has already; a time that was not meant."""
        for assignment in self.environment:
            name, equals, _ = assignment.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ToolkitError(f'cluster.environment: "{name}" is no variable; write NAME=value.')
            if SECRET_NAME.search(name):
                raise ToolkitError(secret_message(f"cluster.environment: {name} looks like a secret"))
        if self.time.strip().isdecimal():
            raise ToolkitError(
                f"cluster.time={self.time}: a bare number would be minutes, and is what YAML makes of 24:00:00 without "
                'quotes. Write hours:minutes:seconds, in a file in quotes: time: "24:00:00".'
            )
        for command, ours in _OPTIONS_OF_OURS.items():
            for option in getattr(self, command):
                name = option.removeprefix("--").partition("=")[0]
                if not option.startswith("--"):
                    raise ToolkitError(f'cluster.{command}: "{option}" is no option; write --name or --name=value.')
                if name in ours:
                    raise ToolkitError(
                        f"cluster.{command}: --{name} is for the toolkit to set. Say it with a key of cluster.* "
                        "(--help lists them); several runs are one call of the launcher (split=A,B), and output lies "
                        "in the run folder."
                    )
        for words in ("sbatch", "srun", "setup", "container"):
            # but not what a command or a file gives when the job starts
            for name in re.findall(r"\b([A-Za-z_]\w*)=(?![\"']?\$)", "\n".join(getattr(self, words))):
                if SECRET_NAME.search(name):
                    raise ToolkitError(secret_message(f"cluster.{words}: {name} looks like a secret"))


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
        on_node=True,
    )
    device: str = key("auto is cuda where there is one", "auto", choices=DEVICES)
    check_fit: bool = key(
        "refuse to start what cannot fit in memory or on the disk (see python -m finetune.plan)", True
    )

    def check_values(self) -> None:
        datasets(self)
        tune, kept = self.train.tune, self.model.architecture.select_layer
        in_head = tune.projector or tune.diffusion_model or tune.vlln
        if not (in_head or trains_backbone(self)):
            raise ToolkitError(
                "train.tune freezes every part, so nothing is trained. Set train.tune.projector=true or another."
            )
        if tune.top_llm_layers > kept:
            raise ToolkitError(
                f"train.tune.top_llm_layers={tune.top_llm_layers}: the model keeps {kept} language-model layers; "
                f"take {kept} at most, or train.tune.llm=true for all."
            )

    def check_here(self) -> None:
        check_finetune(self)


def datasets(config: FinetuneConfig) -> list[Part]:
    """What is trained on, as `trained_parts` has it."""
    return trained_parts(config.split.name, vars(config.dataset))


def check_finetune(config: FinetuneConfig, processes: int | None = None, *, dataset_comes: bool = False) -> None:
    """Processes, batch, folders that must not meet, base checkpoint, dataset.

    processes: how many there will be, in a job; None for those of this torchrun. `dataset_comes` is for a dataset that
    another job makes first.
    """
    processes = world_size() if processes is None else processes
    check_engine(config, processes)
    check_optimizer(config)
    check_early_draws(config)
    check_evaluation(config)
    check_tracking(config.tracking)
    check_batch(config.train.global_batch_size, config.train.micro_batch_size, processes)
    written = {"run_dir": Path(config.run_dir), "output_dir": Path(config.output_dir)}
    mixed = [part.folder for part in datasets(config)] if config.dataset.mixture else []
    for name, folder in written.items():
        check_writable(name, folder)
        for dataset in [Path(config.dataset.data_dir) / config.split.name, *mixed]:
            refuse_inside(name, folder, "the dataset", dataset)
            refuse_inside("the dataset", dataset, name, folder)
        if not is_hub_id(config.model.base):
            refuse_inside(name, folder, "model.base", Path(config.model.base))
    refuse_inside("run_dir", written["run_dir"], "output_dir", written["output_dir"])
    refuse_inside("output_dir", written["output_dir"], "run_dir", written["run_dir"])
    check_cache(config)
    _check_base(config.model.base, config.model.name)
    if not dataset_comes:
        check_conflict_part(config.split.name, config.dataset)
    if config.dataset.mixture:
        _check_parts(config, dataset_comes)
    elif not dataset_comes:
        check_dataset_folder(config.dataset.data_dir, "dataset.data_dir", config.split, "train")


def check_engine(config: FinetuneConfig, processes: int) -> None:
    """An engine that can run here, with this many processes, this optimizer and what is trained."""
    name = config.engine.name
    if name == "single" and processes > 1:
        raise ToolkitError(f"engine=single is one process, but torchrun starts {processes}. Choose engine=ddp.")
    if name == "zero2":
        otherwise = " (or use engine=fsdp2, or ddp)"
        require_extra("deepspeed", "engine=zero2 needs", deepspeed="DeepSpeed", otherwise=otherwise)
    check_divided(config)


def check_divided(config: FinetuneConfig) -> None:
    """What an engine that divides memory among the processes cannot do."""
    name, optimizer = config.engine.name, config.train.optimizer
    if name not in ("zero2", "fsdp2"):
        return
    if optimizer != "adamw":
        raise ToolkitError(
            f"train.optimizer={optimizer} is for processes that hold all moments; engine={name} divides them. Use one "
            "of the two: engine=ddp, or train.optimizer=adamw."
        )
    if name == "fsdp2" and trains_backbone(config):
        raise ToolkitError(
            "engine=fsdp2 divides the action head, and train.tune or train.lora train a part of the backbone besides. "
            "Use engine=zero2, or ddp."
        )


def check_evaluation(config: FinetuneConfig) -> None:
    """Evaluation during training: an engine whose processes hold whole weights, and a step at which it happens."""
    train = config.train
    if train.eval_steps is None:
        for name, none in (("patience", None), ("probes", None), ("export", "last")):
            if getattr(train, name) != none:
                raise ToolkitError(
                    f"train.{name}={getattr(train, name)} needs evaluations during training. Say how often: "
                    "train.eval_steps=1000."
                )
        return
    check_probes(train.probes, config.split.name)
    if train.eval_steps > train.max_steps:
        raise ToolkitError(
            f"train.eval_steps={train.eval_steps} is more than train.max_steps={train.max_steps}, so nothing would be "
            "evaluated. Take a smaller one, or leave it out."
        )
    if config.engine.name == "fsdp2":
        raise ToolkitError(
            "engine=fsdp2 divides the weights among the processes, and an evaluation during training needs them "
            "whole in one. Use engine=ddp or zero2, or leave train.eval_steps out and evaluate the finished checkpoint."
        )


def check_early_draws(config: FinetuneConfig) -> None:
    """Early frames and how often they are drawn go together."""
    frames, draws = config.train.early_frames, config.train.early_draws
    if bool(frames) != (draws > 1):
        raise ToolkitError(
            f"train.early_frames={frames} with train.early_draws={draws} acts on nothing. Give both, e.g. "
            "train.early_frames=12 train.early_draws=3, or leave both out."
        )


def check_optimizer(config: FinetuneConfig) -> None:
    """The libraries that train.optimizer and train.lora need, and something to learn at the backbone's own rate."""
    rate = config.train.backbone_learning_rate
    if rate is not None and not trains_backbone(config):
        raise ToolkitError(
            f"train.backbone_learning_rate={rate:g} acts on nothing: language model and vision tower are frozen. Train "
            "them (train.tune.llm=true, train.tune.visual=true, train.tune.top_llm_layers, "
            "train.lora.rank), or leave it out."
        )
    if config.train.lora.rank is not None:
        require_extra("lora", "train.lora.rank needs", peft="peft")
    if config.train.optimizer == "adamw_8bit":
        require_extra("optimizers", "train.optimizer=adamw_8bit needs", bitsandbytes="bitsandbytes")


def trains_backbone(config: FinetuneConfig) -> bool:
    """Whether language model or vision tower are trained, or adapters in them."""
    tune = config.train.tune
    return bool(tune.llm or tune.visual or tune.top_llm_layers or config.train.lora.rank is not None)


def check_cache(config: FinetuneConfig) -> None:
    """A cache folder that outlives the run, and for cached features a frozen backbone and a limited number of views."""
    if config.dataset.frames == "store" or config.train.features == "cached":
        check_writable("cache_dir", Path(config.cache_dir))
        refuse_inside("output_dir", Path(config.output_dir), "cache_dir", Path(config.cache_dir))
    if config.train.features == "live":
        return
    tune, augment = config.train.tune, config.augment
    for name in ("llm", "visual", "top_llm_layers"):
        if getattr(tune, name):
            raise ToolkitError(
                f"train.features=cached computes the backbone's output once, but train.tune.{name}="
                f"{str(getattr(tune, name)).lower()} trains a part of it. Use train.features=live, or leave that out."
            )
    varied = augment.crop_fraction < 1 or augment.random_rotation_angle or augment.color_jitter
    if varied and augment.views is None:
        raise ToolkitError(
            "train.features=cached needs a limited number of augmented views of a frame, each of which is computed and "
            "stored. Say augment.views=4, or augment=none."
        )


def world_size() -> int:
    """The number of processes torchrun started; 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ToolkitError(f'The environment variable WORLD_SIZE is "{text}"; unset it, or start with torchrun.')
    return int(text)


def check_batch(global_batch: int, micro_batch: int | None, processes: int) -> None:
    """The global batch must be whole forward passes of every process."""
    unit = processes * (micro_batch or 1)
    if global_batch % unit == 0:
        return
    below = global_batch // unit * unit
    nearest = " or ".join(str(size) for size in (below, below + unit) if size > 0)
    counted = f"{processes} processes" if processes > 1 else "1 process"
    counted += f" x train.micro_batch_size={micro_batch}" if micro_batch else ""
    message = f"train.global_batch_size={global_batch} is no multiple of {unit} ({counted}). "
    message += f"Nearest that do: train.global_batch_size={nearest}"
    if micro_batch and global_batch % processes == 0:
        share = global_batch // processes
        divisors = [size for size in range(1, share + 1) if share % size == 0]
        near = sorted(sorted(divisors, key=lambda size: abs(size - micro_batch))[:2])
        message += f"; or train.micro_batch_size={' or '.join(map(str, near))}"
    raise ToolkitError(message + ".")


def _check_base(base: str, model_name: str) -> None:
    if is_hub_id(base):
        return
    path = Path(base)
    if path.is_dir() and (path / "config.json").is_file():
        return
    problem = f"model.base={base} has no config.json" if path.exists() else f"model.base={base} does not exist"
    trained = " (or give the folder of a trained checkpoint, model.base=FOLDER)"
    if model_name == "released":
        remedy = f"Download it: python -m finetune.prefetch base=nvidia/GR00T-N1.7-3B out={base}{trained}"
    elif "base" in path.parts[-2:]:
        remedy = f"With random weights: python -m finetune.create_base model={model_name} out={base}{trained}"
    else:  # random weights there would pass for what the name says was trained
        remedy = "Finish the training that leaves its checkpoint there first, or give the folder of another"
    raise ToolkitError(f"{problem}. {remedy}.{near_folder(path)}")


def _check_parts(config: FinetuneConfig, dataset_comes: bool) -> None:
    """The datasets of a mixture; with `dataset_comes` the split's own may still be missing."""
    own = Path(os.path.realpath(config.dataset.data_dir)) / config.split.name
    for part in datasets(config):
        coming = dataset_comes and Path(os.path.realpath(part.folder)).is_relative_to(own)
        if coming or (part.folder / "meta" / "info.json").is_file():
            continue
        if (part.folder / "train" / "meta").is_dir():
            raise ToolkitError(f"dataset.mixture: {part.folder} holds several datasets. Name one: {part.folder}/train.")
        problem = "has no meta/info.json" if part.folder.is_dir() else "does not exist"
        raise ToolkitError(
            f"dataset.mixture: {part.folder} {problem}. Give the folder of a dataset, which holds meta/, data/ and "
            f"videos/, and its weight behind a colon.{'' if part.folder.is_dir() else near_folder(part.folder)}"
        )
