"""Fine-tuning, from a dataset and a base checkpoint to a finished checkpoint: read `finetune` from top to bottom."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune import checkpointing, optim
from finetune.attempt_token import AttemptToken, Superseded
from finetune.cache import use_frame_store
from finetune.conditions import conditions, warn
from finetune.config.schema import FinetuneConfig
from finetune.data import build_dataset, build_processor, open_datasets
from finetune.dataset_check import check_dataset
from finetune.engine import Engine, build_engine
from finetune.export import describe_datasets, versions, write_release
from finetune.features import HeadOnFeatures, restore_backbone, use_cached_features
from finetune.identity import Files, run_identity
from finetune.loop import TrainingLoop
from finetune.lora import add_adapters, merge_adapters
from finetune.planning.fits import check_here
from finetune.preemption import SUPERSEDED, TIME_LIMIT, Preemption, Stopped
from finetune.run_folder import RunFolder
from finetune.stop_signals import stop_signals
from finetune.tracking import Tracker
from finetune.validation import Validation, held_out
from gr00t.data.dataset import TrainingDataset
from gr00t.data.mixture import Mixture
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors
from gr00t.model import cpu_kernels
from gr00t.model.attention import flash_attention
from gr00t.model.checkpoint import resolve_folder
from gr00t.model.compilation import compile_for_training, compiles
from gr00t.model.gr00t_n1d7 import Gr00tN1d7


@dataclass(frozen=True)
class FinetuneResult:
    """Where the finished checkpoint lies, and how training ended."""

    output_dir: Path
    run_dir: Path
    steps: int
    loss: float | None
    already_finished: bool = False
    stopped: str | None = None  # why it ended before the last step; the same command goes on

    def __str__(self) -> str:
        if self.stopped == SUPERSEDED:
            return f"was taken over by another attempt: {self.run_dir}"
        if self.stopped is not None:
            return f"stopped after {self.steps} steps ({self.stopped}): the same command goes on from {self.run_dir}"
        how = "was already finished" if self.already_finished else f"finished after {self.steps} steps"
        return f"{how}: {self.output_dir}"


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Train `config.split` and write the finished checkpoint to `config.output_dir`.

    SIGTERM, SIGUSR1 and SIGUSR2, and the end of a SLURM job's time, end it early: with a checkpoint, and no error.
    """
    token = AttemptToken.from_environment(Path(config.run_dir))
    with stop_signals(), token.failures():
        engine = build_engine(config)
        stop = Preemption(engine, token, config.cluster.grace_seconds)
        try:
            result = _finetune(config, engine, stop)
        except Stopped as stopped:
            folders = Path(config.output_dir), Path(config.run_dir)
            result = FinetuneResult(*folders, stop.step, None, stopped=str(stopped))
        except BaseException:
            engine.close(failed=True)
            raise
        engine.close()
        if engine.is_main:
            _record(token, result)
        return result


def _record(token: AttemptToken, result: FinetuneResult) -> None:
    """Tell the job how this attempt ended."""
    status = "finished" if result.stopped is None else "stopped"
    if result.stopped == SUPERSEDED:
        token.record(SUPERSEDED, "another attempt has taken over the run folder", result.steps, None)
    else:
        checkpoints = checkpointing.list_checkpoints(result.run_dir)
        token.record(status, result.stopped or "", result.steps, checkpoints[-1].name if checkpoints else None)


def _finetune(config: FinetuneConfig, engine: Engine, stop: Preemption) -> FinetuneResult:
    run_dir, output_dir = Path(config.run_dir), Path(config.output_dir)
    base = resolve_folder(config.model.base)
    with engine.main_first():
        if config.dataset.check and engine.is_main:
            check_dataset(config)
        mixture = open_datasets(config)
    identity, files = _shared_identity(config, base, mixture, engine)
    run = RunFolder(config, identity, files)
    start, finished = run.starting_point(engine)
    if finished:
        return FinetuneResult(output_dir, run_dir, config.train.max_steps, None, already_finished=True)
    stop.step = start.step if start else 0
    check_room(config, engine)

    processor = build_processor(Gr00tN1d7Processor.from_pretrained(base), mixture, config)
    model = load_base(config, base, engine, processor.embodiment_ids[config.dataset.embodiment_tag])
    if config.dataset.frames == "store":
        for reader in mixture.readers:
            use_frame_store(config, reader, engine, stop)
    dataset = build_dataset(mixture, processor, model.n1d7_config, config)
    unseen = held_out(config, dataset)
    if config.train.features == "cached":
        datasets = [dataset, *([unseen] if unseen else [])]
        use_cached_features(config, engine, stop, model, datasets, identity["base"])
    if start is not None:
        checkpointing.load_weights(start, model)
    module = HeadOnFeatures(model) if config.train.features == "cached" else model
    engine.prepare(module, optim.build_optimizer(model, config.train))
    if start is not None:
        engine.restore_optimizer(checkpointing.read_optimizer(start))
    computed_with = conditions(config, engine, model)
    if start is not None and engine.is_main:
        warn(start, computed_with)
    stop.check(TIME_LIMIT)  # which is looked at after the first step: every attempt gets on
    with run.opened(start, engine, stop, computed_with):
        facts = _facts(config, engine, mixture, identity)
        with Tracker(config, facts, active=engine.is_main, first_step=stop.step, token=stop.token) as tracker:
            validation = Validation(config, engine, model, unseen) if unseen else None
            origin = {"identity": identity, "conditions": computed_with}
            loop = TrainingLoop(config, engine, stop, model, dataset, tracker, origin, validation)
            loss = loop.run(start)
            exported = _release(config, base, engine, stop, model, dataset, run, loop)
            tracker.released(output_dir, exported)
    return FinetuneResult(output_dir, run_dir, loop.done, loss)


def _shared_identity(config: FinetuneConfig, base: Path, data: Mixture, engine: Engine) -> tuple[dict[str, Any], Files]:
    """The identity, which the main process alone hashes the files for; and every file's digest, in that process."""
    identity, files = run_identity(config, base, data) if engine.is_main else ({}, {})
    return json.loads(engine.tell(json.dumps(identity))), files


def _facts(config: FinetuneConfig, engine: Engine, mixture: Mixture, identity: dict[str, Any]) -> dict[str, Any]:
    """What a run is made of that its configuration does not say."""
    return {
        "dataset": {**describe_datasets(mixture), "training_digest": identity["dataset"]},
        "base": identity["base"],
        "versions": versions(),
        "processes": engine.world_size,
        "device": engine.device.type,
        "precision": str(engine.dtype).removeprefix("torch."),
    }


def _release(
    config: FinetuneConfig,
    base: Path,
    engine: Engine,
    stop: Preemption,
    model: Gr00tN1d7,
    dataset: TrainingDataset,
    run: RunFolder,
    loop: TrainingLoop,
) -> int:
    """The finished checkpoint, written by the main process while the others wait; the step its weights are from."""
    engine.gather_weights()
    step = loop.done
    if engine.is_main and stop.token.is_ours():
        if config.train.export == "best" and loop.best.step is not None:
            step = loop.best.step
            checkpointing.load_weights(checkpointing.whole_checkpoint(run.run_dir, step), model)
        if config.train.features == "cached":
            restore_backbone(model, base, run.identity["base"], engine.dtype)
        if config.train.lora.rank is not None:
            merge_adapters(model)
        folder = Path(config.output_dir)
        remedy = "The last checkpoint is whole: make room and start the same command again."
        with suppress(Superseded), disk_errors(folder, remedy):
            write_release(
                folder,
                model,
                dataset.processor,
                resolved=dataclasses.asdict(config),
                hardware=engine.hardware(),
                mixture=dataset.mixture,
                identity=run.release_identity,
                conditions=loop.origin["conditions"],
                step=step,
                allowed=stop.token.require,
                replaceable=run.may_replace(),
            )
    stop.barrier()
    return step


def check_room(config: FinetuneConfig, engine: Engine) -> None:
    """Refuse what cannot fit on this process's device, or on the disks."""
    check_here(
        config,
        engine.world_size,
        engine.free_memory(),
        bf16=engine.dtype == torch.bfloat16,
        cuda=engine.device.type == "cuda",
        writes=engine.is_main,
    )


def load_base(config: FinetuneConfig, base: Path, engine: Engine, embodiment: int) -> Gr00tN1d7:
    """The base on this process's device: frozen weights in the engine's precision, trained ones in fp32."""
    tune = dataclasses.asdict(config.train.tune)
    all_embodiments = tune.pop("all_embodiments")
    model = Gr00tN1d7.from_pretrained(base, dtype=engine.dtype, trained_dtype=torch.float32, tune=tune)
    if not all_embodiments:
        model.keep_embodiments([embodiment])
    if config.train.lora.rank is not None:
        add_adapters(model, config.train.lora, config.train.seed)
    if not any(True for _ in model.trained_parameters()):
        raise ToolkitError("Nothing is trained: switch one of train.tune.* on.")
    if config.train.activation_checkpointing:
        model.recompute_activations()
    model.backbone.at_once = config.train.backbone_batch_size
    if config.train.attention == "flash":
        model.backbone.use_attention(flash_attention(engine.device, engine.dtype) or "sdpa")
    elif config.train.tune.llm or config.train.tune.top_llm_layers:
        model.backbone.use_attention(cpu_kernels.trained_attention(engine.device))
    if compiles(config.train.compile, engine.device):
        compile_for_training(model.action_head)
    model.config.state_dropout_prob = config.augment.state_dropout
    nn.Module.to(model, engine.device)
    return model.train()
