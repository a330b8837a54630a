"""What the list of runs says of jobs is true: of those that only SLURM knows, that were dropped, of other users, and
after SLURM has forgotten them."""

from __future__ import annotations

import io
import json
import os
import pwd
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from slurm_cluster import ROOT, Cluster, NoCluster, running_cluster
from test_jobs import by_name, past_run, without_slurm, write

from finetune.jobs.__main__ import follow
from finetune.jobs.control import cancel, resubmit
from finetune.jobs.run_views import views
from finetune.slurm.attempt_record import Attempt, close_lost
from finetune.slurm.launch_request import read
from finetune.slurm.submit import launch
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json

__all__ = ["without_slurm"]
FOREIGN = "nobody"


def stage(
    run_dir: Path, label: str, job: str, *, after: tuple[str, ...] = (), script: str = "", made: Path = Path("nowhere")
) -> Path:
    """The launcher's record of a stage of a run, and the log that SLURM makes when it starts."""
    folder = run_dir / ("job" if label == "finetune" else f"job-{label}")
    log = run_dir / f"slurm-{label}-{job}.out"
    record = {"job_id": job, "job_name": None, "stage": label, "split": "color_object", "after": list(after)}
    record |= {"name": run_dir.name if label == "finetune" else f"{run_dir.name}-{label}", "log": str(log)}
    record |= {"run_dir": str(run_dir), "folder": str(ROOT), "submitted": "2026-11-20T10:00:00+00:00"}
    write(folder / "submitted.json", record)
    (folder / "script.sbatch").write_text(script)
    write(folder / "overrides.json", {"overrides": [f"data_dir={made}/data", f"report_dir={made}/reports"]})
    return log


# -- plain sbatch ------------------------------------------------------------------------------------------------------


def test_a_plain_job_that_waits_is_listed_and_cancelled_though_it_has_no_run_folder(
    cluster: Cluster, tmp_path: Path
) -> None:
    runs, script = tmp_path / "runs", "finetune_jobs/color_object.sbatch"
    runs.mkdir()
    job = cluster.submit("--hold", "--output=/dev/null", script, "local=none", f"run_dir={runs}/first")
    other = cluster.submit("--hold", "--output=/dev/null", script, "local=none", f"run_dir={tmp_path}/others/second")
    (found,) = views(runs)
    assert (found.name, found.split, found.job, found.state) == ("first", "color_object", job, "pending")
    assert found.reason == "JobHeldUser" and found.alive
    assert cancel(runs, "color_object") == [f"cancelled job {job} (first)"]
    assert by_name(runs)["first"].state == "cancelled" and cluster.state(other) == "PENDING"
    past_run(runs, "first", ended={"what": "stop", "reason": "x"})  # of an older job
    assert by_name(runs)["first"].state == "cancelled"
    cluster.run("scancel", other)


def test_a_plain_job_is_listed_in_place_of_an_older_one_and_beside_one_that_runs(
    cluster: Cluster, tmp_path: Path
) -> None:
    run_dir = past_run(tmp_path / "runs", "color_object", ended={"what": "stop", "reason": "3 crashes"})
    plain = ("--hold", "--output=/dev/null", "finetune_jobs/color_object.sbatch", f"run_dir={run_dir}")
    job = cluster.submit(*plain)
    (found,) = views(tmp_path / "runs")
    assert (found.job, found.state, found.step, found.attempt) == (job, "pending", 2, 1)
    again = cluster.submit(*plain)
    assert [view.job for view in views(tmp_path / "runs")] == [job, again]
    cluster.run("scancel", again)
    assert [view.job for view in views(tmp_path / "runs")] == [job]
    cluster.run("scancel", job)


@pytest.mark.long
def test_a_plain_job_that_is_refused_before_its_first_attempt_is_followed_to_its_message(
    cluster: Cluster, tmp_path: Path
) -> None:
    where = (f"run_dir={tmp_path}/runs/x", f"dataset.data_dir={tmp_path}/nowhere", "local=none")
    job = cluster.submit(f"--output={tmp_path}/log", "--gres=gpu:a100:1", "--cpus-per-task=1", *SCRIPT, *where)
    cluster.wait_for_state(job)
    shown: list[str] = []
    assert follow(tmp_path / "runs", "x", 20, shown.append).state == "failed"
    assert "error: " in "".join(shown) and "nowhere" in "".join(shown)


SCRIPT = ("finetune_jobs/color_object.sbatch",)


# -- a chain -----------------------------------------------------------------------------------------------------------


def test_a_dropped_stage_names_the_one_that_failed_and_the_chain_is_restored(cluster: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "color_object"
    run_dir.mkdir(parents=True)
    script = f"#!/bin/bash\n#SBATCH --cpus-per-task=1 --output={run_dir}/slurm-STAGE-%j.out\n"
    script += "echo this is STAGE; exit 1\n"
    jobs: list[str] = []
    for label in ("prepare", "finetune", "evaluate"):
        (tmp_path / label).write_text(text := script.replace("STAGE", label))
        waits = [f"--dependency=afterok:{jobs[-1]}", "--kill-on-invalid-dep=yes"] if jobs else ["--hold"]
        jobs.append(cluster.submit(*waits, str(tmp_path / label)))
        stage(run_dir, label, jobs[-1], after=tuple(jobs[-2:-1]), script=text)
    cluster.run("scontrol", "release", jobs[0])
    cluster.wait_for_state(jobs[2], "CANCELLED", timeout=30)

    runs = tmp_path / "runs"
    found = by_name(runs)
    assert {name: view.state for name, view in found.items()} == {
        "color_object-prepare": "failed",
        "color_object": "dropped",
        "color_object-evaluate": "dropped",
    }
    for name in ("color_object", "color_object-evaluate"):
        assert found[name].reason == f"it waited for color_object-prepare, job {jobs[0]}: failed"
        assert found[name].log == found["color_object-prepare"].log
    shown: list[str] = []
    assert follow(runs, "color_object", 5, shown.append).state == "dropped"
    assert "this is prepare" in "".join(shown)

    said = resubmit(runs, "color_object")
    again = {name: str(view.job) for name, view in by_name(runs).items()}
    assert said[:3] == [
        f"submitted color_object-prepare again as job {again['color_object-prepare']}",
        f"submitted color_object again as job {again['color_object']}, after {again['color_object-prepare']}",
        f"submitted color_object-evaluate again as job {again['color_object-evaluate']}, after {again['color_object']}",
    ]
    assert cluster.show(again["color_object"])["Dependency"].startswith(f"afterok:{again['color_object-prepare']}(")
    cancel(runs, "all")


def test_of_a_chain_only_what_was_dropped_is_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "color_object"
    run_dir.mkdir(parents=True)
    script = f"#!/bin/bash\n#SBATCH --cpus-per-task=1 --output={run_dir}/x\nsleep 60\n"
    stage(run_dir, "prepare", "11", script=script).touch()
    stage(run_dir, "finetune", "12", after=("11",), script=script).touch()
    stage(run_dir, "evaluate", "13", after=("12",), script=script)
    stage(run_dir, "evaluate-2", "14", after=("12",), script=script).touch()
    said = resubmit(tmp_path / "runs", "color_object")
    assert [line.split()[1] for line in said[:-1]] == ["color_object", "color_object-evaluate"]
    assert read_json(run_dir / "job-evaluate" / "submitted.json")["after"] == [said[0].split()[-1]]
    with pytest.raises(ToolkitError, match=r"color_object is \w+ as job"):
        resubmit(tmp_path / "runs", "color_object")
    cancel(tmp_path / "runs", "all")


@pytest.mark.long
def test_a_chain_of_the_launcher_is_restored_where_it_broke(cluster: Cluster, site, tmp_path: Path) -> None:
    raw, runs = tmp_path / "raw", tmp_path / "runs"
    for split in ("color_object", "color_size"):
        (raw / split / "train").mkdir(parents=True)
    setup = [f"echo started; test -e {tmp_path}/mended || exit 1", "exit 0"]
    points = ("split=color_object,color_size", f"raw_dir={raw}", f"dataset.data_dir={tmp_path}/made")
    asked = ("stages=prepare,finetune,evaluate", *points, f"cluster.setup={json.dumps(setup)}")
    batches = launch(read(site(*asked)))
    for batch in batches:
        cluster.wait_for_state(batch.job_id)
    found = by_name(runs)
    stages = ("color_size-prepare", "color_size", "color_size-evaluate")
    assert [found[name].state for name in stages] == ["failed", "dropped", "dropped"]
    (tmp_path / "mended").touch()
    assert len(resubmit(runs, "color_size-evaluate")) == 4  # of one point, and how to follow it
    found = by_name(runs)
    cluster.wait_for_state(str(found["color_size-evaluate"].job))
    states = {name: view.state for name, view in by_name(runs).items()}
    assert {states[name] for name in stages} == {"completed"}
    assert states["color_object"] == states["color_object-evaluate"] == "dropped"


# -- what SLURM has forgotten ------------------------------------------------------------------------------------------


def test_what_became_of_jobs_that_slurm_has_forgotten(cluster: Cluster, tmp_path: Path) -> None:
    past_run(tmp_path, "requeued", ended={"what": "requeue", "reason": "ended by preemption"})
    stage(tmp_path / "never", "finetune", "5")
    past_run(tmp_path, "older", ended={"what": "stop", "reason": "3 crashes"})
    stage(tmp_path / "older", "finetune", "8")
    chain = tmp_path / "chain"
    stage(chain, "prepare", "21").touch()
    stage(chain, "finetune", "22", after=("21",))
    stage(chain, "evaluate", "23", after=("22",))
    stage(tmp_path / "done", "prepare", "31", made=tmp_path).touch()
    stage(tmp_path / "done", "evaluate", "32", made=tmp_path).touch()
    write(tmp_path / "data" / "color_object" / "train" / "meta" / "info.json", {})
    write(tmp_path / "reports" / "open_loop.json", {})
    assert {view.name: (view.state, view.reason) for view in views(tmp_path)} == {
        "requeued": ("cancelled", "it was requeued, and left the queue before it started again"),
        "never": ("cancelled", "it left the queue before it started"),
        "older": ("cancelled", "it left the queue before it started"),
        "chain-prepare": ("lost", "its job is gone without recording an outcome"),
        "chain": ("dropped", "it waited for chain-prepare, job 21: lost"),
        "chain-evaluate": ("dropped", "it waited for chain-prepare, job 21: lost"),
        "done-prepare": ("completed", ""),
        "done-evaluate": ("completed", ""),
    }


# -- other users -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.getuid() != 0, reason="only root can submit jobs of another user")
def test_another_users_job_in_a_shared_folder_is_shown_and_left_alone(cluster: Cluster, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run_dir = past_run(runs, "theirs", ended=None)
    job = cluster.submit(f"--uid={FOREIGN}", "--hold", "--wrap=true", "--job-name=theirs", "--output=/dev/null")
    write(run_dir / "attempt.json", {**read_json(run_dir / "attempt.json"), "job_id": job})
    os.chown(run_dir / "attempt.json", cluster_user(FOREIGN), -1)
    past_run(runs, "forgotten", ended=None)
    os.chown(runs / "forgotten" / "attempt.json", cluster_user(FOREIGN), -1)
    found = by_name(runs)
    assert (found["theirs"].state, found["theirs"].user, found["theirs"].is_foreign) == ("pending", FOREIGN, True)
    assert found["forgotten"].state == "unknown" and FOREIGN in found["forgotten"].reason
    with pytest.raises(ToolkitError, match=rf"job {job} of theirs is {FOREIGN}'s: only its owner"):
        cancel(runs, "theirs")
    (line,) = cancel(runs, "all")
    assert line.startswith(f"left job {job} (theirs), which is {FOREIGN}'s")
    assert cluster.state(job) == "PENDING"
    cluster.run("scancel", job)


def test_an_allocation_in_which_a_run_was_started_by_hand_is_not_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    run_dir = past_run(tmp_path, "typed", ended=None)
    job = cluster.submit("--hold", "--wrap=true", "--job-name=typed", "--output=/dev/null")
    write(run_dir / "attempt.json", {**read_json(run_dir / "attempt.json"), "job_id": job, "by_hand": True})
    begun = run_dir / "attempts" / "1" / "attempt.json"
    write(begun, {**read_json(begun), "job_id": job, "by_hand": True})
    with pytest.raises(ToolkitError, match=rf"job {job} of typed is the allocation .* Ctrl-C"):
        cancel(tmp_path, "typed")
    (line,) = cancel(tmp_path, "all")
    assert line.startswith(f"left job {job} (typed), which is the allocation")
    assert cluster.state(job) == "PENDING"
    cluster.run("scancel", job)


def cluster_user(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


# -- cost --------------------------------------------------------------------------------------------------------------


def test_gpu_hours_are_those_of_all_attempts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = past_run(tmp_path, "color_object", ended={"what": "requeue", "reason": "x"})
    for number, gpus, end in ((1, 4, "11:30:00"), (2, 8, "10:15:00"), (3, 2, None)):
        folder = run_dir / "attempts" / str(number)
        begun = {"job_id": "7", "gpus": gpus, "started": "2026-11-20T10:00:00+00:00", "nodes": "n1"}
        write(folder / "attempt.json", begun)
        if end:
            write(folder / "ended.json", {"what": "stop", "reason": "x", "at": f"2026-11-20T{end}+00:00"})
    log = run_dir / "attempts" / "3" / "rank-0.log"
    log.touch()
    for path in (log, log.with_name("attempt.json")):
        os.utime(path, (at := 1763634600.0 + 365 * 86400, at))  # 2026-11-20 10:30
    (found,) = views(tmp_path)
    assert found.gpu_hours == pytest.approx(4 * 1.5 + 8 * 0.25 + 2 * 0.5)
    close_lost(Attempt(3, log.parent))
    (found,) = views(tmp_path)
    assert found.gpu_hours == pytest.approx(9.0)


@pytest.mark.long
def test_accounts_say_what_a_job_used_also_after_squeue_has_forgotten_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = "import time; held = bytearray(200 << 20); end = time.time() + 6\nwhile time.time() < end: pass"
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(running_cluster(tmp_path_factory.mktemp("c") / "c", ACCOUNTING="yes"))
        except NoCluster as why:
            pytest.skip(str(why))
        monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
        (tmp_path / "busy.py").write_text(busy)
        asked = ("--cpus-per-task=2", "--gres=gpu:a100:2", f"--wrap={sys.executable} {tmp_path}/busy.py")
        job = cluster.submit(*asked, f"--output={tmp_path}/log")
        stage(tmp_path / "runs" / "x", "evaluate", job).touch()
        cluster.wait_for_state(job)
        configuration = cluster.folder / "etc" / "slurm.conf"
        configuration.write_text(configuration.read_text().replace("MinJobAge=3600", "MinJobAge=2"))
        cluster.run("scontrol", "reconfigure")
        until = time.monotonic() + 120
        while job in cluster.run("squeue", "--states=all", "--noheader") and time.monotonic() < until:
            time.sleep(1)
        (found,) = views(tmp_path / "runs", usage=True)
        (plain,) = views(tmp_path / "runs")
    assert (found.state, plain.state, plain.cpu_share) == ("completed", "completed", None)
    assert found.gpu_hours == plain.gpu_hours and 2 * 6 <= (found.gpu_hours or 0) * 3600 < 2 * 60
    assert 0.1 < (found.cpu_share or 0) <= 0.6  # one of two CPUs
    assert 200 << 20 < (found.peak_memory or 0) < 400 << 20


def test_what_the_list_costs_does_not_grow_but_with_a_few_files_a_run(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, files = [], []
    run, opened = subprocess.run, io.open
    monkeypatch.setattr(subprocess, "run", lambda command, **how: commands.append(command[0]) or run(command, **how))
    monkeypatch.setattr(io, "open", lambda path, *how, **more: files.append(path) or opened(path, *how, **more))

    def cost(runs: int) -> tuple[list[str], int]:
        commands.clear()
        files.clear()
        assert len(views(tmp_path / str(runs))) == runs
        return list(commands), len(files)

    for runs in (2, 12):
        for number in range(runs):
            run_dir = past_run(tmp_path / str(runs), f"color_object_{number}", ended=None)
            write(run_dir / "attempts" / "2" / "attempt.json", read_json(run_dir / "attempts" / "1" / "attempt.json"))
    (calls, few), (as_many_calls, many) = cost(2), cost(12)
    assert calls == as_many_calls == ["squeue", "sacct"]
    assert (many - few) / 10 <= 7, "files read of a run of two attempts"


def test_the_list_does_not_wait_for_the_launcher_to_be_imported(without_slurm: None) -> None:
    program = (
        "import sys; sys.argv[1:] = ['runs_dir=nowhere', 'local=none']\n"
        "from runpy import run_module; run_module('finetune.jobs', run_name='__main__')\n"
        "print([name for name in sys.modules if name in ('finetune.recipe', 'finetune.plan', 'finetune.slurm.submit')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
