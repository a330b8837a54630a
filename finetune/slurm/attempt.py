"""What finetune_jobs/run.sh asks at the start and at the end of an attempt. Answers are NAME=value lines on stdout.

python -m finetune.slurm.attempt snapshot finetune split=color_object -- late=arguments
python -m finetune.slurm.attempt begin finetune split=color_object
python -m finetune.slurm.attempt end STATUS
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from finetune.checkout import CHECKOUT
from finetune.config import FinetuneConfig, load
from finetune.config.checks import check
from finetune.config.modality import modality_configs
from finetune.config.schema import ClusterConfig
from finetune.slurm import decide, record
from finetune.slurm.environment import write_environment
from finetune.slurm.nodes import exclusion
from finetune.slurm.snapshot import check_code, snapshot_code
from finetune.slurm.template import refuse_late, site_lines
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, lock_in_turn, write_json

REFUSED = 2
_SECONDS_OF_A_COPY = 300.0


def snapshot(stage: str, *arguments: str) -> dict[str, str]:
    """Before the first attempt of a job: copy this checkout's code into the run folder."""
    if "--" in arguments:
        refuse_late(arguments[arguments.index("--") + 1 :])
    config: FinetuneConfig = load(stage, [text for text in arguments if text != "--"], check_here=False)
    run_dir, named = Path(config.run_dir).absolute(), config.cluster.files
    check_code(CHECKOUT, named, lambda note: print(note, file=sys.stderr))
    with disk_errors(run_dir, "Then submit the same again."):
        run_dir.mkdir(parents=True, exist_ok=True)
        with lock_in_turn(run_dir / "code", _SECONDS_OF_A_COPY):  # two jobs for one folder may start at once
            record.refuse_foreign_job(run_dir, _job_id())
            own = config.dataset.modality_config is not None
            robot = modality_configs(config.dataset) if own else None
            return {"GROOT_CODE": str(snapshot_code(CHECKOUT, run_dir, robot, named))}


def begin(stage: str, *overrides: str) -> dict[str, str]:
    """A new attempt: refuse what cannot work, record what runs, take the token."""
    config: FinetuneConfig = load(stage, overrides, check_here=False)
    processes, nodes = _processes(config.cluster), int(os.environ["SLURM_JOB_NUM_NODES"])
    os.environ["WORLD_SIZE"] = str(nodes * processes)  # what torchrun will say
    check(config)
    run_dir, deadline = Path(config.run_dir).absolute(), _deadline()
    _refuse_without_time(deadline, config.cluster.grace_seconds)
    cache_dir = _scratch_folder(config, overrides, nodes)
    _close_earlier(run_dir, config.cluster)
    more = {
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "nodes": os.environ.get("SLURM_JOB_NODELIST"),
        "processes": nodes * processes,
        "deadline": deadline,
        "job_name": os.environ.get("SLURM_JOB_NAME"),
        "log": _job_log(),
    }
    with disk_errors(run_dir, "Then submit the same again."):
        attempt = record.begin(run_dir, _job_id(), more)
        _describe(run_dir / "job", config, overrides)
    note_missing_lines(config.cluster)
    answer = {
        "GROOT_ATTEMPT": attempt.number,
        "GROOT_ATTEMPT_ID": attempt.begun["id"],
        "GROOT_ATTEMPT_DIR": attempt.folder,
        "GROOT_PROCESSES": processes,
        "GROOT_CACHE_DIR": cache_dir,
        "GROOT_DEADLINE": deadline,
        "GROOT_RESUME": "auto" if config.train.resume == "never" and has_begun_anew(run_dir) else None,
    }
    return {name: str(value) for name, value in answer.items() if value is not None}


def has_begun_anew(run_dir: Path) -> bool:
    """Whether an earlier attempt of this job has cleared the run folder, so that this one goes on from there."""
    earlier = [attempt for attempt in record.attempts(run_dir) if attempt.begun["job_id"] == _job_id()][:-1]
    cleared = run_dir / "run_config.json"  # written when training has cleared the folder
    begun = earlier[0].folder / "attempt.json" if earlier else None
    return begun is not None and cleared.is_file() and cleared.stat().st_mtime >= begun.stat().st_mtime


def _refuse_without_time(deadline: float | None, grace: int) -> None:
    left = deadline - time.time() if deadline is not None else math.inf
    if left <= grace:
        raise ToolkitError(
            f"SLURM gives this attempt {left:.0f} s, of which cluster.grace_seconds={grace} are for the last "
            "checkpoint: no time to train. Ask for more (sbatch --time=...), or lower cluster.grace_seconds."
        )


def _close_earlier(run_dir: Path, cluster: ClusterConfig) -> None:
    """Record how lost attempts of this job ended; refuse one more than cluster.max_requeues allows."""
    earlier = [attempt for attempt in record.attempts(run_dir) if attempt.begun["job_id"] == _job_id()]
    for attempt in earlier:
        record.close_lost(attempt)
    if len(earlier) > cluster.max_requeues:
        raise ToolkitError(
            f"job {_job_id()} has had {len(earlier)} attempts, and cluster.max_requeues={cluster.max_requeues}. "
            "Submit it again to go on."
        )


def end(status: str) -> dict[str, str]:
    """After an attempt, whose srun ended with `status`: what comes now, also written to its ended.json."""
    folder = Path(os.environ["GROOT_ATTEMPT_DIR"])
    run_dir = folder.parents[1]
    settings = OmegaConf.load(run_dir / "job" / "config.yaml")
    cluster = ClusterConfig(**OmegaConf.to_container(settings.cluster))  # type: ignore[arg-type]
    history = [a for a in record.attempts(run_dir) if a.number <= int(folder.name)]
    job = os.environ.get("GROOT_JOB", "")
    requeueable = "Requeue=0" not in job.split()
    if (record.token(run_dir) or {}).get("id") != os.environ["GROOT_ATTEMPT_ID"]:
        decision = decide.SUPERSEDED  # however it ended: a requeue would end the newer attempt
    else:
        decision = decide.decide(history, int(status), cluster, record.newest_step(run_dir), requeueable)
    print(f"attempt {folder.name}: {decision.what}: {decision.reason}", file=sys.stderr)
    with disk_errors(folder, "Then submit the same again."):
        write_json(folder / "ended.json", {**asdict(decision), "status": int(status)})
    return {
        "GROOT_DECISION": decision.what,
        "GROOT_EXIT": str(decision.exit_status),
        "GROOT_EXCLUDE": exclusion(job, decision.nodes) if decision.what == decide.REQUEUE else "",
    }


def _job_id() -> str:
    return os.environ["GROOT_JOB_ID"]


def _job_log() -> str | None:
    """The file that receives the job's output; None when scontrol is not here to tell."""
    found = re.search(r"\bStdOut=(/.*?)(?: \w+=|$)", os.environ.get("GROOT_JOB", ""))
    return found[1] if found else None


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


def note_missing_lines(cluster: ClusterConfig) -> None:
    """Say what the site's file asks of a job, but the job's script does not have."""
    shipped: FinetuneConfig = load("finetune", ["local=none"], check_here=False)
    script = os.environ.get("GROOT_SCRIPT", "").splitlines()
    missing = [x for x in site_lines(cluster) if script and x not in [*script, *site_lines(shipped.cluster)]]
    if missing:
        print(
            f"note: the configuration has {len(missing)} lines that this job's script lacks, {'; '.join(missing)}: "
            "python -m finetune.slurm.render writes them into finetune_jobs/",
            file=sys.stderr,
        )


def _describe(folder: Path, config: FinetuneConfig, overrides: Sequence[str]) -> None:
    """job/: the arguments, what they resolve to, and where it runs; nothing of the user's environment."""
    folder.mkdir(exist_ok=True)
    if script := os.environ.get("GROOT_SCRIPT"):  # not where scontrol is missing, as in a container
        (folder / "script.sbatch").write_text(script + "\n", encoding="utf-8")
    write_json(folder / "overrides.json", {"overrides": list(overrides)})
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
    write_environment(folder)


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
