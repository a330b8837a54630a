"""What finetune_jobs/run.sh asks at the start and at the end of an attempt. Answers are NAME=value lines on stdout.

python -m finetune.slurm.attempt snapshot finetune split=color_object -- late=arguments
python -m finetune.slurm.attempt begin finetune split=color_object
python -m finetune.slurm.attempt signalled
python -m finetune.slurm.attempt end STATUS

After an attempt the run is done, is requeued for a new attempt, is cancelled, or stops with a reason. What SLURM does
with the job decides, not the signal that came: a signal looks the same in a preemption and in a cancellation."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.recipe import ClusterConfig, FinetuneConfig
from finetune.slurm import attempt_record, cluster_queries
from finetune.slurm.attempt_record import Attempt
from finetune.slurm.render import refuse_late, site_lines
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import read_json
from gr00t.file_replacement import lock_in_turn, write_json
from toolkit.code_files import check_code, snapshot_code
from toolkit.configuration import load
from toolkit.installation import CHECKOUT
from toolkit.shared_keys import expanded, modality_configs

DONE, REQUEUE, STOP, CANCELLED = "done", "requeue", "stop", "cancelled"
CRASHED, REFUSED, UNFINISHED = 1, 2, 3  # exit statuses of a job that is not done

_UNUSABLE = ("down", "drain", "fail", "maint", "not_responding", "unknown")  # states of a node, as they begin


# -- before ------------------------------------------------------------------------------------------------------------


def snapshot(stage: str, *arguments: str) -> dict[str, str]:
    """Before the first attempt of a job: copy this checkout's code into the run folder."""
    if "--" in arguments:
        refuse_late(arguments[arguments.index("--") + 1 :])
    config: FinetuneConfig = load(stage, [text for text in arguments if text != "--"], check_here=False)
    run_dir, named = Path(config.run_dir).absolute(), config.cluster.files
    check_code(CHECKOUT, named, lambda note: print(note, file=sys.stderr))
    with disk_errors(run_dir, "Then submit the same again."):
        run_dir.mkdir(parents=True, exist_ok=True)
        with lock_in_turn(run_dir / "code", seconds=300.0):  # two jobs for one folder may start at once
            attempt_record.refuse_foreign_job(run_dir, os.environ["GROOT_JOB_ID"])
            robot = modality_configs(config.dataset) if config.dataset.modality_config is not None else None
            return {"GROOT_CODE": str(snapshot_code(CHECKOUT, run_dir, robot, named))}


def begin(stage: str, *overrides: str) -> dict[str, str]:
    """A new attempt: refuse what cannot work, record what runs, take the token."""
    config: FinetuneConfig = load(stage, overrides, check_here=False)
    cluster, job_id, shown = config.cluster, os.environ["GROOT_JOB_ID"], os.environ.get("GROOT_JOB", "")
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    processes = cluster.processes_per_node or int(os.environ.get("SLURM_GPUS_ON_NODE", "0")) or 1  # on each node
    os.environ["WORLD_SIZE"] = str(nodes * processes)  # what torchrun will say
    config.check_here()
    run_dir, deadline = Path(config.run_dir).absolute(), _deadline(cluster.grace_seconds)
    cache_dir = _scratch_folder(config, overrides, nodes)
    by_hand = started_by_hand()
    _close_earlier(run_dir, job_id, None if by_hand else cluster.max_requeues)
    more = {
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "nodes": os.environ.get("SLURM_JOB_NODELIST"),
        "processes": nodes * processes,
        "gpus": nodes * int(os.environ.get("SLURM_GPUS_ON_NODE", "0")),
        "deadline": deadline,
        "job_name": os.environ.get("SLURM_JOB_NAME"),
        "log": None if by_hand else cluster_queries.log_of(shown),
        "by_hand": by_hand,
    }
    script = os.environ.get("GROOT_SCRIPT")  # "" or not set where scontrol is missing, as in a container
    with disk_errors(run_dir, f"Then submit {_again(run_dir, job_id)}."):
        attempt = attempt_record.begin(run_dir, job_id, more)
        (run_dir / "job").mkdir(exist_ok=True)
        attempt_record.describe_job(run_dir / "job", None, overrides, config)
        left_out = attempt_record.keep_own_script(run_dir / "job", f"{script}\n") if script else None
    if left_out:
        print(left_out, file=sys.stderr)
    note_missing_lines(cluster)
    answer = {
        "GROOT_ATTEMPT": attempt.number,
        "GROOT_ATTEMPT_ID": attempt.begun["id"],
        "GROOT_ATTEMPT_DIR": attempt.folder,
        "GROOT_PROCESSES": processes,
        "GROOT_CACHE_DIR": cache_dir,
        "GROOT_DEADLINE": deadline,
        "GROOT_RESUME": "auto" if config.train.resume == "never" and has_started_over(run_dir) else None,
    }
    return {name: str(value) for name, value in answer.items() if value is not None}


def _deadline(grace: int) -> float | None:
    """Unix time of the job's limit, None without a limit; ToolkitError where that leaves no time to train."""
    said = os.environ.get("GROOT_END_TIME")
    deadline = float(said) if said else None
    left = math.inf if deadline is None else deadline - time.time()
    if left <= grace:
        raise ToolkitError(
            f"SLURM gives this attempt {left:.0f} s, of which cluster.grace_seconds={grace} are for the last "
            "checkpoint: no time to train. Ask for more (sbatch --time=...), or lower cluster.grace_seconds."
        )
    return deadline


def _scratch_folder(config: FinetuneConfig, overrides: Sequence[str], nodes: int) -> str | None:
    """cache_dir on the node's own disk, where cluster.scratch says so."""
    scratch = config.cluster.scratch
    if scratch is None or config.cluster.stage_data or any(text.startswith("cache_dir=") for text in overrides):
        return None
    folder = expanded("cluster.scratch", scratch)
    if nodes > 1 and (config.dataset.frames == "store" or config.train.features == "cached"):
        raise ToolkitError(
            f"cluster.scratch={scratch} is a disk of one node, but all {nodes} nodes must see the cache. "
            "Say cache_dir=FOLDER on a shared disk, or cluster.stage_data=true."
        )
    return str(Path(folder) / config.split.name)


def started_by_hand() -> bool:
    """Whether this was typed inside an allocation, whose job is not ours to requeue."""
    return bool(os.environ.get("GROOT_INTERACTIVE"))


def _close_earlier(run_dir: Path, job_id: str, max_requeues: int | None) -> None:
    """Record how lost attempts of this job ended; refuse one more than cluster.max_requeues allows."""
    earlier = attempt_record.attempts(run_dir, job_id)
    for attempt in earlier:
        attempt_record.close_lost(attempt)
    if max_requeues is not None and len(earlier) > max_requeues:
        raise ToolkitError(
            f"job {job_id} has had {len(earlier)} attempts, and cluster.max_requeues={max_requeues}. "
            f"Submit {_again(run_dir, job_id)} to continue."
        )


def note_missing_lines(cluster: ClusterConfig) -> None:
    """Print what the site's file asks of a job, but the job's script does not have."""
    shipped: FinetuneConfig = load("finetune", ["local=none"], check_here=False)
    script = os.environ.get("GROOT_SCRIPT", "").splitlines()
    missing = [x for x in site_lines(cluster) if script and x not in [*script, *site_lines(shipped.cluster)]]
    if missing:
        print(
            f"note: the configuration has {len(missing)} lines that this job's script lacks, {'; '.join(missing)}: "
            "python -m finetune.slurm.render writes them into finetune_jobs/",
            file=sys.stderr,
        )


def has_started_over(run_dir: Path) -> bool:
    """Whether an attempt before this one, of this job or of one that it repeats, has cleared the run folder, so that
    this one resumes from there."""
    return attempt_record.has_cleared(run_dir, os.environ["GROOT_JOB_ID"], before_last=True)


def _again(run_dir: Path, job_id: str) -> str:
    """What is to be submitted or typed so that a run continues."""
    return f"the same {'with train.resume=auto' if attempt_record.must_resume(run_dir, job_id) else 'again'}"


# -- after -------------------------------------------------------------------------------------------------------------


def signalled() -> dict[str, str]:
    """A signal has come: where it is a cancellation, record that at once. The job is killed when its time is up, also
    while it still loads; `end` replaces the record where training had time to save."""
    folder = Path(os.environ["GROOT_ATTEMPT_DIR"])
    if _ending() == CANCELLED_BY_USER and not (folder / "ended.json").exists():
        again = _again(folder.parents[1], read_json(folder / "attempt.json")["job_id"])
        with disk_errors(folder, f"Then submit {again}."):
            record = {**asdict(_cancelled(0, again)), "slurm": CANCELLED_BY_USER, "at": attempt_record.now()}
            write_json(folder / "ended.json", record)
    return {}


def end(status: str) -> dict[str, str]:
    """After an attempt, whose srun ended with `status`: what comes now, also written to its ended.json."""
    folder = Path(os.environ["GROOT_ATTEMPT_DIR"])
    run_dir = folder.parents[1]
    cluster = ClusterConfig(**attempt_record.resolved(run_dir)["cluster"])
    history = [a for a in attempt_record.attempts(run_dir) if a.number <= int(folder.name)]
    job, again = os.environ.get("GROOT_JOB", ""), _again(run_dir, history[-1].begun["job_id"])
    ending = _ending()
    if (attempt_record.token(run_dir) or {}).get("id") != os.environ["GROOT_ATTEMPT_ID"]:
        decision = SUPERSEDED  # however it ended: a requeue would end the newer attempt
    else:
        requeueable = "Requeue=0" not in job.split() and not started_by_hand()
        decision = decide(history, cluster, attempt_record.newest_step(run_dir), requeueable, ending, again)
    print(f"attempt {folder.name}: {decision.what}: {decision.reason}", file=sys.stderr)
    with disk_errors(folder, f"Then submit {again}."):
        record = {**asdict(decision), "status": int(status), "slurm": ending, "at": attempt_record.now()}
        write_json(folder / "ended.json", record)
    return {
        # a job that SLURM has put back into the queue by itself is not to be requeued once more
        "GROOT_DECISION": DONE if ending == REQUEUED and decision.what == REQUEUE else decision.what,
        "GROOT_EXIT": str(decision.exit_status),
        "GROOT_AGAIN": again,
        "GROOT_EXCLUDE": exclusion(job, decision.nodes) if decision.what == REQUEUE else "",
    }


@dataclass(frozen=True)
class Decision:
    """`what` is done, requeue or stop; `nodes` are those that look at fault."""

    what: str
    reason: str
    exit_status: int = 0
    nodes: tuple[str, ...] = ()


SUPERSEDED = Decision(DONE, "a newer attempt has taken over")


PREEMPTED, TIMED_OUT, NODE_FAILED = "preemption", "the time limit", "the failure of a node"
REQUEUED, CANCELLED_BY_USER, SILENT = "a requeue", "cancellation", "an unknown reason"


def ending_of(shown: str, restart_count: int) -> str | None:
    """For what SLURM ends the job, by its `scontrol show job` line; None while it lets the job run.

    `restart_count` is SLURM_RESTART_COUNT of this attempt. While a job's processes still live, SLURM shows every ended
    job as COMPLETING, whatever ended it; the line's other words tell one from another. SILENT where there is no line.
    """
    said = dict(re.findall(r"(\w+)=(\S*)", shown)[::-1])  # the first one of each name
    state, reason = said.get("JobState", ""), said.get("Reason", "")
    if not state:
        return SILENT
    if int(said.get("Restarts") or 0) > restart_count or state in ("PENDING", "REQUEUED"):
        return REQUEUED
    if said.get("PreemptTime", "None") not in ("None", "N/A", "Unknown") or state == "PREEMPTED":
        return PREEMPTED
    if state in ("TIMEOUT", "DEADLINE") or reason in ("TimeLimit", "DeadLine"):
        return TIMED_OUT
    if state in ("NODE_FAIL", "BOOT_FAIL") or reason in ("NodeDown", "NodeFail"):
        return NODE_FAILED
    return CANCELLED_BY_USER if state in ("COMPLETING", "CANCELLED") else None


def _ending() -> str | None:
    return ending_of(os.environ.get("GROOT_JOB", ""), int(os.environ.get("SLURM_RESTART_COUNT", "0")))


def _cancelled(newest_step: int, again: str) -> Decision:
    saved = f"a checkpoint of step {newest_step} is there" if newest_step else "before a checkpoint was written"
    return Decision(CANCELLED, f"the job was cancelled, {saved}: submit {again} to continue", UNFINISHED)


def decide(
    history: Sequence[Attempt],
    cluster: ClusterConfig,
    newest_step: int,
    requeueable: bool,
    ending: str | None = None,
    again: str = "the same again",
) -> Decision:
    """After the last of `history`, which SLURM ended for `ending` (None: it ended by itself).

    `newest_step` is that of the newest checkpoint; `requeueable` whether SLURM would start the job again; `again`
    what else continues the run. Only what training recorded is finished: srun may leave with 0 when a node dies.
    """
    last = history[-1]
    outcome = last.outcome
    status = outcome["status"] if outcome else "crashed"
    if status == "finished":
        return Decision(DONE, "training is finished")
    if status == "superseded":
        return SUPERSEDED
    if ending == CANCELLED_BY_USER:
        return _cancelled(newest_step, again)
    reason = str((outcome or {}).get("reason"))
    if status == "failed":
        return Decision(STOP, reason, REFUSED)
    if ending == SILENT:
        reason = "slurmctld did not answer in 10 s, so this is taken for a preemption"
    elif ending:
        reason = f"ended by {ending}"
    crashed = status == "crashed" and ending is None
    if crashed:
        reason = "it crashed"
        crashes = crashes_without_progress(history, newest_step)
        if crashes >= cluster.max_crashes:
            counted = f"{crashes} attempts in a row" if crashes > 1 else "the attempt"
            tail = _tail(last)
            return Decision(STOP, f"{counted} crashed without a new checkpoint; the last lines:\n{tail}", CRASHED)
    failed = CRASHED if crashed else UNFINISHED  # so that jobs that wait for success do not start
    if stays := _not_requeued(cluster, requeueable):
        return Decision(STOP, f"{reason}; {stays} {again} to continue", failed)
    if sum(attempt.begun["job_id"] == last.begun["job_id"] for attempt in history) > cluster.max_requeues:
        limit = f"cluster.max_requeues={cluster.max_requeues} is reached"
        return Decision(STOP, f"{reason}; {limit}: submit {again} to continue", failed)
    return Decision(REQUEUE, reason, 0, failed_nodes(last) if crashed else ())


def _not_requeued(cluster: ClusterConfig, requeueable: bool) -> str:
    """Why the job is not started again, and what its user does in place of that; empty where it is."""
    if cluster.requeue and requeueable:
        return ""
    if started_by_hand():
        return "an allocation of your own is not requeued: type"
    return "the job was submitted with --no-requeue: submit" if cluster.requeue else "cluster.requeue=false: submit"


def crashes_without_progress(history: Sequence[Attempt], newest_step: int) -> int:
    """Attempts of this job in a row, up to the last, that crashed and brought no newer checkpoint.

    An attempt that SLURM ended, or that was lost without a record, is none of them: preemption without grace is no
    fault of the run.
    """
    count, after = 0, newest_step
    job = history[-1].begun["job_id"]
    for attempt in reversed(history):
        begun = attempt.begun
        if begun["job_id"] != job or attempt.outcome is not None or after > begun["from_step"]:
            break
        ended = attempt.ended or {}
        count += ended.get("what") != "lost" and ended.get("slurm") is None
        after = begun["from_step"]
    return count


def _tail(attempt: Attempt) -> str:
    """The end of what the ranks logged last; of the nodes' torchrun where no rank logged anything."""
    for pattern in ("rank-*.log", "node-*.log"):
        logs = [path for path in attempt.folder.glob(pattern) if path.stat().st_size]
        if logs:
            newest = max(logs, key=lambda path: path.stat().st_mtime)
            lines = newest.read_text(errors="replace").splitlines()[-15:]
            return "\n".join([f"({newest})", *lines])
    return f"(no log in {attempt.folder}; see the job's own log)"


def failed_nodes(attempt: Attempt) -> tuple[str, ...]:
    """The node on which a process was killed by a signal, as torchrun's report there says; () unless it is just one.

    A peer's death also ends the processes of other nodes, but those by an exception or by torchrun's own SIGTERM.
    """
    logs = {log: log.read_text(errors="replace") for log in attempt.folder.glob("node-*.log")}
    killed = [log for log, text in logs.items() if {*re.findall(r"exitcode\s*:\s*(-\d+)", text)} - {"-15"}]
    return (killed[0].stem.removeprefix("node-"),) if len(killed) == 1 else ()


def exclusion(job: str, failed: tuple[str, ...]) -> str:
    """The job's ExcNodeList with `failed` added, given its `scontrol show job` line.

    Empty when nothing is to be added, when too few nodes would remain or the job insists on one of them, and where
    SLURM's commands are not here.
    """
    said = dict(word.partition("=")[::2] for word in job.split())
    if not failed or not {"Partition", "NumNodes"} <= said.keys() or not cluster_queries.available():
        return ""
    required, excluded = (_expanded(said.get(name, "(null)")) for name in ("ReqNodeList", "ExcNodeList"))
    excluded |= {*failed}
    asked = ("--noheader", "--Node", f"--partition={said['Partition']}", "--format=%N %T")
    pairs = map(str.split, cluster_queries.slurm("sinfo", *asked, check=False).stdout.splitlines())
    usable = {name for name, state in pairs if not state.lower().startswith(_UNUSABLE)}
    enough = len(usable - excluded) >= int(said["NumNodes"].partition("-")[0])
    return ",".join(sorted(excluded)) if enough and required.isdisjoint(failed) else ""


def _expanded(nodes: str) -> set[str]:
    """node[1-2],node5 as three names."""
    if nodes == "(null)":
        return set()
    return {*cluster_queries.slurm("scontrol", "show", "hostnames", nodes).stdout.split()}


def main(argv: Sequence[str]) -> None:
    """Print the answer of one command; a ToolkitError ends with status 2."""
    commands: tuple[Callable[..., dict[str, str]], ...] = (snapshot, begin, signalled, end)
    try:
        for name, value in {command.__name__: command for command in commands}[argv[0]](*argv[1:]).items():
            print(f"{name}={value}")
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main(sys.argv[1:])
