"""What finetune_jobs/run.sh asks at the start and at the end of an attempt. Answers are NAME=value lines on stdout.

python -m finetune.slurm.attempt snapshot finetune split=color_object -- late=arguments
python -m finetune.slurm.attempt begin finetune split=color_object
python -m finetune.slurm.attempt end STATUS
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from finetune.checkout import CHECKOUT
from finetune.config import FinetuneConfig, load
from finetune.config.checks import check
from finetune.config.schema import ClusterConfig
from finetune.slurm import decide, record
from finetune.slurm.snapshot import snapshot_code
from finetune.slurm.template import refuse_late
from gr00t.errors import ToolkitError
from gr00t.files import write_json

REFUSED = 2


def snapshot(stage: str, *arguments: str) -> dict[str, str]:
    """Before the first attempt of a job: copy this checkout's code into the run folder."""
    if "--" in arguments:
        refuse_late(arguments[arguments.index("--") + 1 :])
    config: FinetuneConfig = load(stage, [text for text in arguments if text != "--"], check_here=False)
    run_dir = Path(config.run_dir).absolute()
    record.refuse_foreign_job(run_dir, _job_id())
    return {"GROOT_CODE": str(snapshot_code(CHECKOUT, run_dir))}


def begin(stage: str, *overrides: str) -> dict[str, str]:
    """A new attempt: refuse what cannot work, record what runs, take the token."""
    config: FinetuneConfig = load(stage, overrides, check_here=False)
    processes = _processes(config.cluster)
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    os.environ["WORLD_SIZE"] = str(nodes * processes)  # what torchrun will say
    check(config)
    run_dir = Path(config.run_dir).absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    more = {
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "nodes": os.environ.get("SLURM_JOB_NODELIST"),
        "processes": nodes * processes,
        "deadline": _deadline(),
    }
    attempt = record.begin(run_dir, _job_id(), more)
    _describe(run_dir / "job", config, overrides)
    answer = {
        "GROOT_ATTEMPT": str(attempt.number),
        "GROOT_ATTEMPT_ID": attempt.begun["id"],
        "GROOT_ATTEMPT_DIR": str(attempt.folder),
        "GROOT_PROCESSES": str(processes),
        "GROOT_CACHE_DIR": _scratch_folder(config, overrides, nodes),
        "GROOT_DEADLINE": more["deadline"],
    }
    return {name: str(value) for name, value in answer.items() if value is not None}


def end(status: str) -> dict[str, str]:
    """After an attempt, whose srun ended with `status`: what comes now, also written to its ended.json."""
    folder = Path(os.environ["GROOT_ATTEMPT_DIR"])
    run_dir = folder.parents[1]
    settings = OmegaConf.load(run_dir / "job" / "config.yaml")
    cluster = ClusterConfig(**OmegaConf.to_container(settings.cluster))  # type: ignore[arg-type]
    history = [a for a in record.attempts(run_dir) if a.number <= int(folder.name)]
    requeueable = "Requeue=0" not in os.environ.get("GROOT_JOB", "").split()
    decision = decide.decide(history, int(status), cluster, record.newest_step(run_dir), requeueable)
    write_json(folder / "ended.json", {**asdict(decision), "status": int(status)})
    print(f"attempt {folder.name}: {decision.what}: {decision.reason}", file=sys.stderr)
    return {
        "GROOT_DECISION": decision.what,
        "GROOT_EXIT": str(decision.exit_status),
        "GROOT_EXCLUDE": ",".join(decision.nodes),
    }


def _job_id() -> str:
    return os.environ["SLURM_JOB_ID"]


def _processes(cluster: ClusterConfig) -> int:
    """Processes on each node: as configured, or one for each GPU that the job really has."""
    return cluster.processes_per_node or int(os.environ.get("SLURM_GPUS_ON_NODE", "0")) or 1


def _deadline() -> float | None:
    """Unix time of the job's limit, from what `scontrol show job` says (local time); None without a limit."""
    found = re.search(r"\bEndTime=(\d{4}-\S+)", os.environ.get("GROOT_JOB", ""))
    return datetime.fromisoformat(found[1]).timestamp() if found else None


def _scratch_folder(config: FinetuneConfig, overrides: Sequence[str], nodes: int) -> str | None:
    """cache_dir on the node's own disk, where cluster.scratch says so."""
    scratch = config.cluster.scratch
    if scratch is None or any(text.startswith("cache_dir=") for text in overrides):
        return None
    folder = os.path.expandvars(scratch)
    if "$" in folder:
        raise ToolkitError(f"cluster.scratch={scratch}: that variable is not set in this job. Mend configs/local/.")
    if nodes > 1 and (config.dataset.frames == "store" or config.train.features == "cached"):
        raise ToolkitError(
            f"cluster.scratch={scratch} is a disk of one node, but all {nodes} nodes must see the cache. "
            "Say cache_dir=FOLDER on a shared disk."
        )
    return str(Path(folder) / config.split.name)


def _describe(folder: Path, config: FinetuneConfig, overrides: Sequence[str]) -> None:
    """job/: the arguments, what they resolve to, and where it runs; nothing of the user's environment."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "overrides.json", {"overrides": list(overrides)})
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    environment = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": dict(sorted(packages.items())),
    }
    write_json(folder / "environment.json", environment)


COMMANDS: dict[str, Callable[..., dict[str, str]]] = {"snapshot": snapshot, "begin": begin, "end": end}


def main(argv: Sequence[str]) -> None:
    try:
        answer = COMMANDS[argv[0]](*argv[1:])
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    for name, value in answer.items():
        print(f"{name}={value}")


if __name__ == "__main__":
    main(sys.argv[1:])
