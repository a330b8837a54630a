"""What a fine-tune will need, before it starts: trained parameters, memory by part, disk, time; and whether it fits.

    python -m finetune.plan split=color_object gpus=4 gpu=a100
    python -m finetune.plan model=released gpus=1 gpu_memory_gb=24 json=true

Takes every key of launch_finetune_local.py, and imports no torch: it runs on a login node, before weights and data are
there. Training makes the same plan and refuses to start what cannot fit (`check_fit=false` goes on anyway).
"""

from __future__ import annotations

import json

from rich.console import Console

from finetune.config import PlanConfig
from finetune.planning.build import Plan, make_plan
from finetune.planning.fits import Verdict, device_verdict, host_verdict
from finetune.planning.fits import check_disk as check_disk
from finetune.planning.fits import check_fits as check_fits
from finetune.planning.gpus import Gpu, find_gpu, gpu_of_cluster
from finetune.planning.machine import available_memory
from finetune.planning.report import as_json, show
from finetune.script import run_main


def plan(config: PlanConfig) -> tuple[Plan, list[Verdict]]:
    """The plan of a configuration, and whether it fits."""
    cuda = config.device != "cpu"
    cluster, single = config.cluster, config.engine.name == "single"
    per_node = 1 if single or not cuda else max(1, cluster.gpus_per_node)
    gpus = config.gpus or (per_node if single or not cuda else per_node * cluster.nodes)
    gpu = named_gpu(config) if cuda else None
    made = make_plan(config, gpus, per_node=min(per_node, gpus), cuda=cuda, gpu=gpu)
    verdicts = [device_verdict(made, _room(config, gpu))]
    if cuda:
        verdicts.append(host_verdict(made, _bytes(config.host_memory_gb)))
    return made, verdicts


def named_gpu(config: PlanConfig) -> Gpu | None:
    """The GPU that is named, or that the cluster's name stands for."""
    return find_gpu(config.gpu) if config.gpu else gpu_of_cluster(config.cluster.gpu_type)


def _room(config: PlanConfig, gpu: Gpu | None) -> int | None:
    if config.device == "cpu":
        return _bytes(config.host_memory_gb) or available_memory()
    return _bytes(config.gpu_memory_gb) or (_bytes(gpu.memory) if gpu else None)


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 1e9)


def main(config: PlanConfig) -> None:
    made, verdicts = plan(config)
    if config.json:
        print(json.dumps(as_json(made, verdicts), indent=2))
    else:
        show(made, verdicts, Console(width=118 if not Console().is_terminal else None))


if __name__ == "__main__":
    run_main(main, "plan")
