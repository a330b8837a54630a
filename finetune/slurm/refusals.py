"""What is refused before anything is queued, because the job could only fail: each message says the remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.checkout import CHECKOUT
from finetune.config import checks
from finetune.config.compose import read_yaml
from finetune.config.identity import differences, recipe
from finetune.config.modality import modality_configs
from finetune.config.schema import FinetuneConfig
from finetune.planning import fits
from finetune.planning.gpus import gpu_of_cluster
from finetune.release_mark import RELEASE_MARK, robot_of
from finetune.slurm.fit import check_fits, megabytes
from finetune.slurm.queue import Queue
from finetune.slurm.request import Request, Task
from finetune.slurm.runs import jobs_of
from finetune.slurm.snapshot import check_code
from gr00t.data.schema import comparable
from gr00t.errors import ToolkitError
from gr00t.model.checkpoint_folder import resolve_folder


def check_request(request: Request, say: Callable[[str], None]) -> bool:
    """Drop the tasks that are done already, saying so; refuse the request when one of the others cannot work.

    Returns whether SLURM was asked: where it does not answer, a dry run is checked as far as it goes without.
    """
    drop_finished(request, say)
    for task in request.tasks:
        check_task(task, request.tasks)
    if request.tasks:
        check_code(CHECKOUT, sorted({name for task in request.tasks for name in task.run.cluster.files}), say)
    queue = Queue.read() if request.launch.dry_run else Queue.answered()
    if queue.silence:
        say(f"{queue.silence}: partition, account, GPU type, nodes and time are not checked")
        return False
    for task in request.tasks:
        refuse_busy(task.run_dir, queue)
    for cluster in _different([task.run.cluster for task in request.tasks if task.stage == "finetune"]):
        check_fits(cluster)
    return True


def drop_finished(request: Request, say: Callable[[str], None]) -> None:
    """Leave out what is done: a dataset that is there, unless it is to be replaced, and a fine-tune that has ended."""
    for task in [*request.of_stage("prepare"), *request.of_stage("finetune")]:
        if task.stage == "prepare":
            found = Path(task.config.data_dir) / task.config.split.name
            done, anew = (found / "train" / "meta" / "info.json").is_file(), "overwrite=true makes it anew"
            done = done and not task.config.overwrite
        else:
            found, anew = Path(task.config.output_dir), "train.resume=never does it anew"
            done = not task.after and is_finished(task.config)
        if done:
            say(f"{task.name}: {found} is there already, so this is left out ({anew})")
            _drop(task, request)


def _drop(task: Task, request: Request) -> None:
    request.tasks.remove(task)
    for other in request.tasks:
        other.after = [waited for waited in other.after if waited is not task]


def is_finished(config: FinetuneConfig) -> bool:
    """Whether output_dir holds what this fine-tune would make; a checkpoint of another recipe or robot is refused.

    Datasets and bases, whose content the training itself compares, are not looked at.
    """
    folder = Path(config.output_dir)
    settings = folder / "experiment_cfg" / "config.yaml"
    if config.train.resume == "never" or not (folder / RELEASE_MARK).is_file() or not settings.is_file():
        return False
    ours = {**recipe(dataclasses.asdict(config)), "modality_config": comparable(modality_configs(config.dataset))}
    robot = robot_of(folder, config.dataset.embodiment_tag)
    theirs = {**recipe(read_yaml(settings)), **({"modality_config": robot} if robot else {})}
    different = differences(theirs, ours)
    if different:
        listed = "\n  ".join(different)
        raise ToolkitError(
            f"output_dir={config.output_dir} holds a finished checkpoint of another run:\n  {listed}\nChoose another "
            "output_dir=... (and run_dir=...), or replace it with train.resume=never."
        )
    return True


def check_task(task: Task, tasks: Sequence[Task]) -> None:
    """Refuse a stage whose inputs are missing or whose outputs cannot be written."""
    prepared = any(other.stage == "prepare" and other.config.split == task.config.split for other in tasks)
    if task.stage == "prepare":
        checks.check_prepare(task.config)
    elif task.stage == "evaluate":
        tuned = any(other.stage == "finetune" for other in task.after)
        checks.check_evaluate(task.config, checkpoint_comes=tuned, dataset_comes=prepared)
    else:
        checks.check_finetune(task.config, processes(task.config), dataset_comes=prepared)
        _check_base_offline(task.config)
        _check_room(task.config)


def processes(config: FinetuneConfig) -> int:
    """Training processes of the whole job."""
    cluster = config.cluster
    return cluster.nodes * (cluster.processes_per_node or cluster.gpus_per_node or 1)


def _check_room(config: FinetuneConfig) -> None:
    """Memory of the GPU type that the job asks for, memory of its nodes where it names one, and the disks."""
    cluster, count = config.cluster, processes(config)
    cuda = config.device != "cpu" and cluster.gpus_per_node > 0
    gpu = gpu_of_cluster(cluster.gpu_type) if cuda else None
    asked = megabytes(cluster.memory) if cluster.memory else 0
    fits.check_fits(
        config,
        count,
        int(gpu.memory * 1e9) if gpu else None,
        per_node=count // cluster.nodes,
        cuda=cuda,
        host_memory_bytes=int(asked * 2**20) or None,
    )
    fits.check_disk(config, count, cuda=cuda)


def _check_base_offline(config: FinetuneConfig) -> None:
    """Nodes without internet need the base on disk."""
    base = config.model.base
    if not config.cluster.offline or not checks.is_hub_id(base):
        return
    try:
        resolve_folder(base, local_files_only=True)
    except ToolkitError:
        raise ToolkitError(
            f"model.base={base} is a Hugging Face id that is not in the local cache, and cluster.offline=true says "
            f"that nodes have no internet. Fetch it here: python -m finetune.prefetch base={base} "
            f"out=checkpoints/base/{base.split('/')[-1]}, then model.base=checkpoints/base/{base.split('/')[-1]}."
        ) from None


def refuse_busy(run_dir: Path, queue: Queue) -> None:
    """Refuse a run folder that a job still writes, or will."""
    for noted in jobs_of(run_dir) if run_dir.is_dir() else []:
        job = queue.find(noted) if noted.get("job_id") else None
        if job is not None and job.alive:
            raise ToolkitError(
                f"run_dir={run_dir} belongs to job {job.job_id} ({noted['name']}), which is {job.state.lower()}. Wait "
                f"for it, cancel it (python -m finetune.jobs cancel {run_dir.name}), or give this run folders of its "
                "own: run_dir=... output_dir=...."
            )


def _different(items: Sequence) -> list:
    return [item for index, item in enumerate(items) if item not in items[:index]]
