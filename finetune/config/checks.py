"""Checks of a configuration against this machine: processes, folders, files. All before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from pathlib import Path
from typing import Any

from finetune.checkout import CHECKOUT, CONFIG_DIR
from finetune.config.mixture import datasets
from finetune.config.schema import (
    CreateBaseConfig,
    EvaluateConfig,
    FinetuneConfig,
    PlanConfig,
    PrefetchConfig,
    PrepareConfig,
    RecordConfig,
    ReleaseConfig,
    SplitConfig,
)
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import near_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_SUITE = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*gr00t[\w.-]*(/[\w.-]+)+", re.IGNORECASE)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_OWN_FOLDERS = ("checkpoints", "runs", "data", "demo", "reports")


def check(config: Any) -> None:
    """Refuse a configuration that cannot run here; the message says what to do instead."""
    if isinstance(config, PlanConfig):
        check_plan(config)
    elif isinstance(config, FinetuneConfig):
        check_finetune(config)
    elif isinstance(config, RecordConfig):
        _check_writable("out", Path(config.out))
    elif isinstance(config, PrepareConfig):
        check_prepare(config)
    elif isinstance(config, EvaluateConfig):
        check_evaluate(config)
    elif isinstance(config, CreateBaseConfig):
        check_create_base(config)
    elif isinstance(config, PrefetchConfig):
        check_prefetch(config)
    elif isinstance(config, ReleaseConfig):
        check_release(config)


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
    check_batch(config.train.global_batch_size, config.train.micro_batch_size, processes)
    written = {"run_dir": Path(config.run_dir), "output_dir": Path(config.output_dir)}
    for name, folder in written.items():
        _check_writable(name, folder)
        for dataset in _dataset_folders(config):
            _refuse_inside(name, folder, "the dataset", dataset)
            _refuse_inside("the dataset", dataset, name, folder)
        if not is_hub_id(config.model.base):
            _refuse_inside(name, folder, "model.base", Path(config.model.base))
    _refuse_inside("run_dir", written["run_dir"], "output_dir", written["output_dir"])
    _refuse_inside("output_dir", written["output_dir"], "run_dir", written["run_dir"])
    check_cache(config)
    _check_base(config.model.base, config.model.name)
    if config.dataset.mixture:
        _check_parts(config, dataset_comes)
    elif not dataset_comes:
        _check_dataset(config.dataset.data_dir, "dataset.data_dir", config.split, "train")


def check_engine(config: FinetuneConfig, processes: int) -> None:
    """An engine that can run here, with this many processes, this optimizer and what is trained."""
    name = config.engine.name
    if name == "single" and processes > 1:
        raise ToolkitError(f"engine=single is one process, but torchrun starts {processes}. Choose engine=ddp.")
    if name == "zero2" and importlib.util.find_spec("deepspeed") is None:
        raise ToolkitError(
            'engine=zero2 needs DeepSpeed. Install it: pip install ".[deepspeed]" (or use engine=fsdp2, or ddp).'
        )
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
    if name == "fsdp2" and _trains_backbone(config):
        raise ToolkitError(
            "engine=fsdp2 divides the action head, and train.tune or train.lora train a part of the backbone besides. "
            "Use engine=zero2, or ddp."
        )


def check_evaluation(config: FinetuneConfig) -> None:
    """Evaluation during training: an engine whose processes hold whole weights, and a step at which it happens."""
    train = config.train
    if train.eval_steps is None:
        for name, wanted in (("patience", train.patience is not None), ("export", train.export == "best")):
            if wanted:
                raise ToolkitError(
                    f"train.{name}={getattr(train, name)} needs evaluations during training. Say how often: "
                    "train.eval_steps=1000."
                )
        return
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
    if rate is not None and not _trains_backbone(config):
        raise ToolkitError(
            f"train.backbone_learning_rate={rate:g} acts on nothing: language model and vision tower are frozen. Train "
            "them (train.tune.llm=true, train.tune.visual=true, train.tune.top_llm_layers, "
            "train.lora.rank), or leave it out."
        )
    if config.train.lora.rank is not None and importlib.util.find_spec("peft") is None:
        raise ToolkitError("train.lora.rank needs peft. Install it: pip install '.[lora]' -c constraints.txt")
    if config.train.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ToolkitError(
            "train.optimizer=adamw_8bit needs bitsandbytes. Install it: pip install '.[optimizers]' -c constraints.txt"
        )


def _trains_backbone(config: FinetuneConfig) -> bool:
    tune = config.train.tune
    return bool(tune.llm or tune.visual or tune.top_llm_layers or config.train.lora.rank is not None)


def check_cache(config: FinetuneConfig) -> None:
    """A cache folder that outlives the run, and for cached features a frozen backbone and a limited number of views."""
    if config.dataset.frames == "store" or config.train.features == "cached":
        _check_writable("cache_dir", Path(config.cache_dir))
        _refuse_inside("output_dir", Path(config.output_dir), "cache_dir", Path(config.cache_dir))
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


def check_plan(config: PlanConfig) -> None:
    """What does not depend on this machine: a plan is made before the data, the base and the GPUs are there."""
    check_cache(config)
    check_divided(config)
    check_evaluation(config)
    if config.engine.name == "single" and (config.gpus or 1) > 1:
        raise ToolkitError(f"engine=single is one process, not gpus={config.gpus}. Choose engine=ddp.")
    if config.gpus is not None:
        check_batch(config.train.global_batch_size, config.train.micro_batch_size, config.gpus)


def check_prepare(config: PrepareConfig) -> None:
    """The recordings, and a dataset folder apart from them."""
    raw_dir, data_dir, split = Path(config.raw_dir), Path(config.data_dir), config.split.name
    _check_writable("data_dir", data_dir)
    _refuse_inside("data_dir/<split>", data_dir / split, "raw_dir/<split>", raw_dir / split)
    _refuse_inside("raw_dir/<split>", raw_dir / split, "data_dir/<split>", data_dir / split)
    if (raw_dir / split / "train").is_dir():
        return
    problem = f"{raw_dir / split / 'train'} does not exist: raw_dir must hold {split}/train (and {split}/conflict)."
    if (raw_dir / "train").is_dir():
        parent, name = Path(os.path.abspath(raw_dir)).parent, Path(os.path.abspath(raw_dir)).name
        as_split = "" if name == split else f" split={name}"
        raise ToolkitError(f"{problem} {raw_dir / 'train'} is there: give its parent, raw_dir={parent}{as_split}.")
    if not raw_dir.is_dir():
        raise ToolkitError(f"{problem} There is no folder {raw_dir}; give the one with the recordings, raw_dir=FOLDER.")
    raise ToolkitError(f"{problem}{_near_split(raw_dir, split)}")


def check_evaluate(config: EvaluateConfig, *, checkpoint_comes: bool = False, dataset_comes: bool = False) -> None:
    """The checkpoint, the dataset of the evaluated part, and a report folder apart from both.

    `checkpoint_comes` and `dataset_comes` are for what other jobs make first.
    """
    checkpoint, report_dir = Path(config.checkpoint), config.report_folder
    _check_writable("report_dir", report_dir)
    _refuse_inside("report_dir", report_dir, "checkpoint", checkpoint)
    _refuse_inside("report_dir", report_dir, "the dataset", Path(config.data_dir) / config.split.name)
    if not checkpoint_comes and config.policy == "checkpoint" and config.server is None:
        _check_finished(checkpoint, config.split)
    if config.mode == "open_loop" and not dataset_comes:
        _check_dataset(config.data_dir, "data_dir", config.split, "conflict" if config.part == "conflict" else "train")


def _check_finished(checkpoint: Path, split: SplitConfig) -> None:
    if not checkpoint.is_dir():
        raise ToolkitError(
            f"checkpoint={checkpoint} does not exist. Fine-tune first (python launch_finetune_local.py "
            f"{_split_arguments(split)}), or give the folder of a finished checkpoint, checkpoint=FOLDER."
            + near_folder(checkpoint)
        )
    if not (checkpoint / "config.json").is_file() or any(checkpoint.glob("checkpoint-*")):
        raise ToolkitError(
            f"checkpoint={checkpoint} has no config.json, so it is no finished checkpoint. "
            "Give the output_dir of a fine-tune, not its run_dir."
        )


def check_create_base(config: CreateBaseConfig) -> None:
    """A local folder to write to, with nothing in it unless it may be replaced."""
    out = Path(config.out)
    if is_hub_id(config.out) and _HUB_ID.fullmatch(config.out):
        raise ToolkitError(
            f"out={config.out} is a Hugging Face id, not a folder. Give one: out=checkpoints/base/{config.model.name}."
        )
    _check_writable("out", out)
    if out.is_dir() and any(out.iterdir()) and not config.overwrite:
        raise ToolkitError(f"out={out} is not empty. Take another folder, or overwrite=true to replace it.")


def check_prefetch(config: PrefetchConfig) -> None:
    """A folder to write to, apart from the base that is copied."""
    if config.out is None:
        return
    out = Path(config.out)
    _check_writable("out", out)
    base = Path(config.base)
    if base.is_dir() and os.path.realpath(base) != os.path.realpath(out):
        _refuse_inside("out", out, "base", base)
        _refuse_inside("base", base, "out", out)


def check_release(config: ReleaseConfig) -> None:
    """A finished checkpoint, a folder to write to apart from it and its run, and names as the hub takes them."""
    out = Path(config.out)
    _check_writable("out", out)
    _check_finished(Path(config.checkpoint), config.split)
    for name in ("checkpoint", "run_dir", "reports_dir"):
        _refuse_inside("out", out, name, Path(getattr(config, name)))
        _refuse_inside(name, Path(getattr(config, name)), "out", out)
    _refuse_inside("out", out, "this checkout", CHECKOUT)
    if config.upload and config.repo_id is None:
        raise ToolkitError("upload=true needs to know where to: say repo_id=owner/name.")
    named = [("repo_id", config.repo_id), ("base_model", config.base_model)]
    for name, hub_id in [*named, *(("datasets", hub_id) for hub_id in config.datasets)]:
        if hub_id is not None and not _HUB_ID.fullmatch(hub_id):
            raise ToolkitError(f"{name}={hub_id}: a repository of Hugging Face is written owner/name.")
    if config.licence is not None and not _LICENCE.fullmatch(config.licence):
        raise ToolkitError(
            f"licence={config.licence}: write it as Hugging Face does, apache-2.0 or cc-by-nc-4.0, or other."
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


def is_hub_id(base: str) -> bool:
    """Whether it reads as owner/name of Hugging Face, or as owner/<a GR00T>/folder; not where such a folder, or one of
    the owner's name, is here."""
    owner = base.split("/")[0]
    return (
        bool(_HUB_ID.fullmatch(base) or _HUB_SUITE.fullmatch(base))
        and not Path(base).exists()
        and not Path(owner).is_dir()
        and owner not in _OWN_FOLDERS
    )


def _check_base(base: str, model_name: str) -> None:
    if is_hub_id(base):
        return
    path = Path(base)
    if path.is_dir() and (path / "config.json").is_file():
        return
    problem = f"model.base={base} has no config.json" if path.exists() else f"model.base={base} does not exist"
    remedy = (
        f"Download it: python -m finetune.prefetch base=nvidia/GR00T-N1.7-3B out={base}"
        if model_name == "released"
        else f"Make it: python -m finetune.create_base model={model_name} out={base}"
    )
    raise ToolkitError(
        f"{problem}. {remedy} (or give the folder of a checkpoint, model.base=FOLDER).{near_folder(path)}"
    )


def _dataset_folders(config: FinetuneConfig) -> list[Path]:
    """What is read, which nothing may be written into: the split's folder with its parts, and those of a mixture."""
    own = Path(config.dataset.data_dir) / config.split.name
    return [own, *(part.folder for part in datasets(config))] if config.dataset.mixture else [own]


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


def _check_dataset(data_dir: str, key: str, split: SplitConfig, part: str) -> None:
    folder = Path(data_dir) / split.name / part
    if (folder / "meta" / "info.json").is_file():
        return
    problem = f"{folder} has no meta/info.json" if folder.is_dir() else f"{folder} does not exist"
    if (Path(data_dir) / part / "meta").is_dir():
        parent = Path(os.path.abspath(data_dir)).parent
        raise ToolkitError(f"{problem}: {key} must hold {split.name}/{part}. Give the parent, {key}={parent}.")
    raise ToolkitError(
        f"{problem}. Convert the recordings first: python prepare_conflict_data.py {_split_arguments(split)} "
        f"raw_dir=FOLDER data_dir={data_dir}{_near_split(Path(data_dir), split.name)}"
    )


def _near_split(parent: Path, split: str) -> str:
    """A hint at a split of a similar name in that folder, or the ones that are there."""
    if not parent.is_dir():
        return ""
    hint = did_you_mean(split, [path.name for path in parent.iterdir() if (path / "train").is_dir()])
    return hint.replace("Known:", f"{parent} holds:")


def _split_arguments(split: SplitConfig) -> str:
    """What names this split on a command line."""
    if (CONFIG_DIR / "split" / f"{split.name}.yaml").is_file():
        return f"split={split.name}"
    return shlex.join([f"split={split.name}", f"split.instruction={split.instruction}"])


def _check_writable(name: str, folder: Path) -> None:
    """The folder, or the nearest one above it that is there, must be a folder we may write to."""
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not there.is_dir():
        raise ToolkitError(f"{name}={folder}: {there} is a file, not a folder. Give another, {name}=FOLDER.")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise ToolkitError(f"{name}={folder}: {there} lies on a read-only file system. Give another, {name}=FOLDER.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ToolkitError(f"{name}={folder}: no permission to write to {there}. Give another, {name}=FOLDER.")


def _refuse_inside(outer_name: str, outer: Path, inner_name: str, inner: Path) -> None:
    """What is written must not replace, or grow inside, what something else needs."""
    outer_path, inner_path = Path(os.path.realpath(outer)), Path(os.path.realpath(inner))
    if inner_path == outer_path:
        raise ToolkitError(f"{outer_name} and {inner_name} are the same folder, {outer}. Give each its own.")
    if inner_path.is_relative_to(outer_path):
        raise ToolkitError(f"{inner_name} ({inner}) lies inside {outer_name} ({outer}). Give each a folder of its own.")
