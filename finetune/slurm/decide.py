"""What comes after an attempt: the run is done, goes on in a new attempt, or stops with a reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.config.schema import ClusterConfig
from finetune.slurm.record import Attempt

DONE, REQUEUE, STOP = "done", "requeue", "stop"
REFUSED, CRASHED, UNFINISHED = 2, 1, 3
_TAIL_LINES = 15


@dataclass(frozen=True)
class Decision:
    """`what` is done, requeue or stop; `nodes` are those that look at fault."""

    what: str
    reason: str
    exit_status: int = 0
    nodes: tuple[str, ...] = ()


SUPERSEDED = Decision(DONE, "a newer attempt has taken over")


def decide(
    history: Sequence[Attempt], exit_status: int, cluster: ClusterConfig, newest_step: int, requeueable: bool
) -> Decision:
    """After the last of `history`, which left srun with `exit_status`.

    `newest_step` is that of the newest checkpoint; `requeueable` whether SLURM would start the job again.
    """
    last = history[-1]
    outcome = last.outcome
    status = outcome["status"] if outcome else "finished" if exit_status == 0 else "crashed"
    reason = (outcome or {}).get("reason")
    if status == "finished":
        return Decision(DONE, "training is finished")
    if status == "superseded":
        return SUPERSEDED
    if status == "failed":
        return Decision(STOP, str(reason), REFUSED)
    if status == "crashed":
        reason = "it crashed"
        crashes = crashes_without_progress(history, newest_step)
        if crashes >= cluster.max_crashes:
            counted = f"{crashes} attempts in a row" if crashes > 1 else "the attempt"
            tail = _tail(last)
            return Decision(STOP, f"{counted} crashed without a new checkpoint; the last lines:\n{tail}", CRASHED)
    failed = CRASHED if status == "crashed" else UNFINISHED  # so that jobs that wait for success do not start
    if not (cluster.requeue and requeueable):
        how = "cluster.requeue=false" if not cluster.requeue else "the job was submitted with --no-requeue"
        return Decision(STOP, f"{reason}; {how}: submit the same again to go on", failed)
    if requeues(history) >= cluster.max_requeues:
        limit = f"cluster.max_requeues={cluster.max_requeues} is reached"
        return Decision(STOP, f"{reason}; {limit}: submit the same again to go on", failed)
    return Decision(REQUEUE, str(reason), 0, failed_nodes(last) if status == "crashed" else ())


def requeues(history: Sequence[Attempt]) -> int:
    """How often this job has been started again."""
    job = history[-1].begun["job_id"]
    return sum(attempt.begun["job_id"] == job for attempt in history) - 1


def crashes_without_progress(history: Sequence[Attempt], newest_step: int) -> int:
    """Attempts of this job in a row, up to the last, that crashed and brought no newer checkpoint.

    An attempt that was lost without a word is none of them: preemption without grace is no fault of the run.
    """
    count, after = 0, newest_step
    job = history[-1].begun["job_id"]
    for attempt in reversed(history):
        begun = attempt.begun
        if begun["job_id"] != job or attempt.outcome is not None or after > begun["from_step"]:
            break
        count += (attempt.ended or {}).get("what") != "lost"
        after = begun["from_step"]
    return count


def failed_nodes(attempt: Attempt) -> tuple[str, ...]:
    """The node on which a process was killed by a signal, as torchrun's report there says; () unless it is just one.

    A peer's death also ends the processes of other nodes, but those by an exception or by torchrun's own SIGTERM.
    """
    killed = []
    for log in sorted(attempt.folder.glob("node-*.log")):
        codes = {int(code) for code in re.findall(r"exitcode\s*:\s*(-\d+)", log.read_text(errors="replace"))}
        if codes - {-15}:
            killed.append(log.stem.removeprefix("node-"))
    return tuple(killed) if len(killed) == 1 else ()


def _tail(attempt: Attempt) -> str:
    """The end of what the ranks said last; of the nodes' torchrun where no rank said anything."""
    for pattern in ("rank-*.log", "node-*.log"):
        logs = [path for path in attempt.folder.glob(pattern) if path.stat().st_size]
        if logs:
            newest = max(logs, key=lambda path: path.stat().st_mtime)
            lines = newest.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            return "\n".join([f"({newest})", *lines])
    return f"(no log in {attempt.folder}; see the job's own log)"
