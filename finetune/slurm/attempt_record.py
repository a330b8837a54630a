"""The records of a run folder: its SLURM attempts, whose turn it is to write, and the jobs that it was submitted as.

attempt.json is the token of the attempt that may write; attempts/<number>/ says what became of each attempt;
job/ and job-<stage>/ hold what a job of the run was submitted with."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from finetune.slurm import cluster_queries
from finetune.slurm.cluster_queries import NO_CLUSTER, UNKNOWN_JOB
from finetune.training import RUN_CONFIG, read_optional
from gr00t.errors import ToolkitError
from gr00t.file_reading import AGAIN, parsing, read_json, read_text
from gr00t.file_replacement import file_lock, write_json, write_text
from toolkit.configuration import as_yaml
from toolkit.credentials import secrets_in
from toolkit.shared_keys import SUITE

ANSWER_SECONDS, ASK_AGAIN_SECONDS = 60.0, 5.0  # how long a silent slurmctld is asked for the state of a job
RECORD = "submitted.json"  # in job/ of a run folder, or job-<stage>/
REPEATS = "repeats"  # in a record: the jobs that this one was submitted again for
OWN_FOLDER = ".launcher"  # in runs_dir: the launcher's submissions, and where runs are that lie elsewhere

_ELSEWHERE = Path(OWN_FOLDER) / "elsewhere"
_MARKS = {"attempt.json", RUN_CONFIG, "metrics.jsonl", "job", "attempts"}  # one of them makes a run folder
_DEEPEST = 4


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# -- attempts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run: how it began, how training ended (outcome), and what was decided then (ended)."""

    number: int
    folder: Path

    @property
    def begun(self) -> dict[str, Any]:
        """What was known at its start: job, nodes, processes, limit of time, newest step."""
        return read_json(self.folder / "attempt.json")

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What training wrote at its end; None after a crash, and while it runs."""
        return read_optional(self.folder / "outcome.json")

    @property
    def ended(self) -> dict[str, Any] | None:
        """What was decided after it; None when its node was lost before, and while it runs."""
        return read_optional(self.folder / "ended.json")

    def gpu_hours(self, running: bool) -> float | None:
        """Allocated GPUs times hours, until now while it is `running`; None where its GPUs were not recorded.

        An end that was not recorded is the last time that it wrote a log.
        """
        begun, ended = self.begun, self.ended or {}
        if begun.get("gpus") is None:
            return None
        end = now() if running and not ended else ended.get("at") or self.last_sign
        seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(begun["started"])).total_seconds()
        return max(seconds, 0.0) * int(begun["gpus"]) / 3600

    @property
    def last_sign(self) -> str:
        """When a file of it was last written: its end, as far as it is known without a record."""
        newest = max(path.stat().st_mtime for path in self.folder.iterdir())
        return datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")


def attempts(run_dir: Path, job_id: str | None = None) -> list[Attempt]:
    """The attempts of a run, or those of one job of it, first to last."""
    folders = [path.parent for path in (run_dir / "attempts").glob("*/attempt.json")]
    found = sorted((Attempt(int(f.name), f) for f in folders if f.name.isdecimal()), key=lambda a: a.number)
    return [attempt for attempt in found if job_id is None or attempt.begun.get("job_id") == job_id]


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint, 0 without one. Not verified: a measure of progress."""
    steps = [re.fullmatch(r"checkpoint-(\d+)", path.name) for path in run_dir.glob("checkpoint-*")]
    return max((int(match[1]) for match in steps if match), default=0)


def token(run_dir: Path) -> dict[str, Any] | None:
    """attempt.json: whose turn it is to write into this folder; None before the first SLURM attempt."""
    return read_optional(run_dir / "attempt.json")


def refuse_foreign_job(run_dir: Path, job_id: str) -> None:
    """Refuse a folder whose last attempt belongs to another job that SLURM still runs or has queued."""
    held = token(run_dir)
    if held is None or held["job_id"] == job_id:
        return
    try:
        state = job_state(held["job_id"])
    except ToolkitError as error:
        raise ToolkitError(
            f"{run_dir} belongs to job {held['job_id']}, and whether that still runs is not known: {error} Submit the "
            "same again when slurmctld answers (scontrol ping)."
        ) from None
    if state in cluster_queries.ALIVE:
        raise ToolkitError(
            f"{run_dir} belongs to job {held['job_id']}, which is {state.lower()}. Wait for it, end it with "
            f"scancel {held['job_id']}, or give this run a folder of its own: run_dir=... output_dir=...."
        )


def job_state(job_id: str) -> str | None:
    """SLURM's state of a job; None when it does not know it, or its commands are not here or have no cluster.

    Raises ToolkitError where SLURM gives no answer: that is not the same, the job may be running.
    """
    if not cluster_queries.available():
        return None
    until = time.monotonic() + ANSWER_SECONDS
    while True:
        done = cluster_queries.slurm("squeue", "--noheader", "--format=%T", f"--jobs={job_id}", check=False)
        if done.returncode == 0 or UNKNOWN_JOB in done.stderr or NO_CLUSTER in done.stderr:
            return next(iter(done.stdout.split()), None)
        if time.monotonic() >= until:
            reason = cluster_queries.reason_of(done)
            raise ToolkitError(f"squeue gave no answer in {ANSWER_SECONDS:.0f} s ({reason}).")
        time.sleep(min(ASK_AGAIN_SECONDS, ANSWER_SECONDS))


def begin(run_dir: Path, job_id: str, more: dict[str, Any]) -> Attempt:
    """A new attempt, which takes the token over from any before it; `more` joins its record."""
    (run_dir / "attempts").mkdir(parents=True, exist_ok=True)
    with file_lock(run_dir / "attempt.json", required=False):
        refuse_foreign_job(run_dir, job_id)
        number = max((int(p.name) for p in (run_dir / "attempts").iterdir() if p.name.isdecimal()), default=-1) + 1
        attempt = Attempt(number, run_dir / "attempts" / str(number))
        attempt.folder.mkdir()
        begun = {"attempt": number, "id": secrets.token_hex(16), "job_id": job_id}
        begun |= {**more, "host": socket.gethostname(), "started": now()}
        write_json(attempt.folder / "attempt.json", {**begun, "from_step": newest_step(run_dir)})
        write_json(run_dir / "attempt.json", begun)
    return attempt


def close_lost(attempt: Attempt) -> None:
    """Record of an attempt that ended without a record, with its node or by KILL, that it was lost."""
    if attempt.ended is None:
        lost = {"what": "lost", "reason": "no end was recorded: the node was lost, or the job was killed"}
        lost |= {"on": attempt.begun["nodes"], "at": attempt.last_sign}
        write_json(attempt.folder / "ended.json", lost)


def has_cleared(run_dir: Path, job_id: str, *, before_last: bool = False) -> bool:
    """Whether an attempt of this job, or of one that it repeats, has cleared the run folder, as train.resume=never
    asks. `before_last`: one before the last attempt."""
    noted = read_optional(job_folder(run_dir, "finetune") / RECORD) or {}
    jobs = {job_id, *(noted.get(REPEATS, []) if noted.get("job_id") == job_id else [])}
    own = [attempt for attempt in attempts(run_dir) if attempt.begun.get("job_id") in jobs]
    own = own[:-1] if before_last else own
    cleared = run_dir / RUN_CONFIG  # written when training has cleared the folder
    if not own or not cleared.is_file():
        return False
    return cleared.stat().st_mtime >= (own[0].folder / "attempt.json").stat().st_mtime


def must_resume(run_dir: Path, job_id: str) -> bool:
    """Whether the train.resume=never of this job, given again, would delete what the job itself has trained."""
    never = resolved(run_dir).get("train", {}).get("resume") == "never"
    return never and has_cleared(run_dir, job_id)


# -- jobs --------------------------------------------------------------------------------------------------------------


def job_folder(run_dir: Path, label: str) -> Path:
    """Where a run folder keeps what a job of it was submitted with."""
    return run_dir / ("job" if label == "finetune" else f"job-{label}")


def folder_of_job(run_dir: Path, name: str) -> Path:
    """The same for the job that its record calls `name`."""
    own = run_name(run_dir)
    return job_folder(run_dir, "finetune" if name == own else name.removeprefix(f"{own}-"))


def arguments_of_job(folder: Path) -> dict[str, str]:
    """The values that a job was submitted with, by key."""
    return dict(argument.partition("=")[::2] for argument in read_json(folder / "overrides.json")["overrides"])


def describe_job(folder: Path, script: str | None, overrides: Sequence[str], config: Any) -> None:
    """Write what a job runs and with what into its folder: script, arguments, what they resolve to, and packages.

    Nothing of the user's environment variables. `script` is what the launcher has rendered; None where it did not.
    """
    if script is not None:
        write_text(folder / "script.sbatch", script)
    write_json(folder / "overrides.json", {"overrides": list(overrides)})
    write_text(folder / "config.yaml", as_yaml(config))
    write_json(folder / "environment.json", _environment())


def keep_own_script(folder: Path, script: str) -> str | None:
    """Keep a job script that its user may have written, for the owner only; one that holds keys is left out, and what
    is to be said of that is returned."""
    path = folder / "script.sbatch"
    found = list(secrets_in(script, "script.sh"))
    if found:
        path.unlink(missing_ok=True)
        listed = "; ".join(f"line {line}: {kind}" for line, kind in found)
        return (
            f"note: this job's script holds what looks like a key ({listed}), so {path} is left out, and "
            "finetune.jobs resubmit renders a new one. wandb login and hf auth login keep keys in your home folder; a "
            "line that holds an example may end in # pragma: allowlist secret"
        )
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != script:  # as the launcher wrote it
        path.unlink(missing_ok=True)
        with open(path, "x", encoding="utf-8", opener=functools.partial(os.open, mode=0o600)) as file:
            file.write(script)
    return None


@functools.cache
def _environment() -> dict[str, Any]:
    """Python, machine and packages; these take longer to list than all else of a record."""
    packages = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    machine = {"python": platform.python_version(), "executable": sys.executable, "platform": platform.platform()}
    return {**machine, "host": platform.node(), "packages": dict(sorted(packages.items()))}


def run_name(run_dir: Path) -> str:
    """What users call a run: its folder's name, behind its suite's where it lies in the folder of that."""
    return f"{SUITE}/{run_dir.name}" if run_dir.parent.name == SUITE else run_dir.name


def jobs_of(run_dir: Path) -> list[dict[str, Any]]:
    """The newest job of each stage of a run: as the launcher noted it, or as its attempts did after plain sbatch.

    `user` is whose job it is. A run that was never a job is one entry without a job_id.
    """
    records = [{**read_json(path), "user": owner(path)} for path in sorted(run_dir.glob(f"job*/{RECORD}"))]
    noted = {str(record["name"]): record for record in records}
    name, held = run_name(run_dir), token(run_dir)
    own = noted.get(name)
    if held and own and (held["started"] <= own["submitted"] or held["job_id"] == own["job_id"]):
        held = None
    if held or not noted:
        entry = {"name": name, "stage": "finetune", "split": resolved_section(run_dir, "split").get("name")}
        if held:
            entry |= {"job_id": str(held["job_id"]), "job_name": held.get("job_name"), "log": held.get("log")}
            entry["user"] = owner(run_dir / "attempt.json")
        noted[name] = entry
    return sorted(noted.values(), key=lambda found: (found["stage"] != "finetune", found["name"]))


def owner(path: Path) -> str:
    """The user who wrote a record: the one whose job it names."""
    return cluster_queries.user_name(path.stat().st_uid)


def resolved(run_dir: Path) -> dict[str, Any]:
    """The fine-tune's configuration as last resolved, by a job or else by the training; {} before the first."""
    path = run_dir / "job" / "config.yaml"
    if path.is_file():
        return _from_yaml(read_text(path), path)
    return read_optional(run_dir / RUN_CONFIG) or {}


def resolved_section(run_dir: Path, name: str) -> dict[str, Any]:
    """One section of `resolved`. The rest is not parsed, which would be the most of what a list of many runs costs."""
    path = run_dir / "job" / "config.yaml"
    if not path.is_file():
        return dict(resolved(run_dir).get(name, {}))
    section = re.search(rf"^{name}:\n(?:[ -].*\n)+", read_text(path), re.MULTILINE)
    if section is None:
        raise ToolkitError(f"{path} has no section {name}. {AGAIN}")
    return dict(_from_yaml(section[0], path)[name])


def _from_yaml(text: str, path: Path) -> dict[str, Any]:
    with parsing(path):
        # five times as fast, where libyaml is there; of a file that was not written to its end it may be nothing
        return dict(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


# -- the run folders of a project --------------------------------------------------------------------------------------


def run_folders(runs_dir: Path) -> list[Path]:
    """Every run folder below `runs_dir`, and those elsewhere that the launcher submitted from here."""
    found = set()
    for noted in (runs_dir / _ELSEWHERE).glob("*.json"):
        with parsing(noted):
            found |= {path for path in [Path(read_json(noted)["run_dir"])] if path.is_dir()}
    for folder, inside, files in os.walk(runs_dir, followlinks=True):
        path = Path(os.path.abspath(folder))
        depth = len(Path(folder).relative_to(runs_dir).parts)
        marked = not _MARKS.isdisjoint([*inside, *files]) or any(name.startswith("job-") for name in inside)
        is_run = depth > 0 and marked
        found |= {path} if is_run else set()
        inside[:] = [] if is_run or depth > _DEEPEST else [name for name in inside if not name.startswith(".")]
    return sorted(found)


def note_elsewhere(runs_dir: Path, run_dir: Path) -> None:
    """Remember a run folder that a search of `runs_dir` would not find."""
    if not run_dir.is_relative_to(os.path.abspath(runs_dir)):
        path = runs_dir / _ELSEWHERE / f"{hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"run_dir": str(run_dir)})
