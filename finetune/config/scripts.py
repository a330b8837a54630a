"""The entry scripts: which configuration each takes, the command that starts it, and examples of use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.config.schema import (
    AdoptConfig,
    CheckConfig,
    CompareConfig,
    CreateBaseConfig,
    DashboardConfig,
    EvaluateConfig,
    FinetuneConfig,
    JobsConfig,
    LaunchConfig,
    PlanConfig,
    PrefetchConfig,
    PrepareConfig,
    RecordConfig,
    ReleaseConfig,
    ReportConfig,
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
    "adopt": Script(
        AdoptConfig,
        "python -m data_prep.adopt",
        ("dataset=data/so100_cubes", "dataset=data/so100_cubes val_fraction=0 write=true"),
    ),
    "check": Script(
        CheckConfig,
        "python -m data_prep.check PATH",
        ("html=doctor.html json=doctor.json", "fast=true"),
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
            "split=color_object mode=closed_loop episodes=200 'ablations=[other_image,zero_state]'",
            "split=color_object mode=closed_loop policy=expert",
        ),
    ),
    "compare": Script(
        CompareConfig,
        "python -m simulation.compare",
        ("reports_dir=reports out=reports/compare.html", "reports_dir=reports/color_object pages=true"),
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
    "release": Script(
        ReleaseConfig,
        "python -m finetune.release",
        (
            "split=color_object base_model=nvidia/GR00T-N1.7-3B",
            "split=color_object repo_id=owner/name upload=true",
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
    "dashboard": Script(
        DashboardConfig,
        "python -m finetune.dashboard",
        ("out=workspace.json", "split=color_object out=color_object.json", "create=true entity=my-team"),
    ),
    "report": Script(
        ReportConfig,
        "python -m finetune.report [RUN ...]",
        ("runs_dir=/scratch/me/runs", "out=report.html"),
    ),
}
