"""The list of runs and what can be done to their jobs, with SLURM and after it has forgotten them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from slurm_cluster import ROOT, Cluster
from terminal import bars, in_terminal

from finetune.jobs import control
from finetune.jobs.__main__ import follow, show_table
from finetune.jobs.control import _renewed, _script_of_a_plain_job, cancel, resubmit
from finetune.jobs.run_views import View, find, views
from finetune.slurm.launch_request import read
from finetune.slurm.submit import launch
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from toolkit.configuration import as_yaml, load

SLEEPS = "cluster.setup=[echo it sleeps,exec sleep 300]"


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def past_run(
    runs_dir: Path, name: str, *, ended: dict | None, outcome: dict | None = None, split: str = "color_object"
) -> Path:
    """A run folder as an attempt that logged two steps of 10 left it."""
    run_dir = runs_dir / name
    begun = {"attempt": 1, "id": "x", "job_id": "7", "started": "2026-11-20T10:00:00+00:00", "job_name": name}
    write(run_dir / "attempt.json", begun)
    write(run_dir / "attempts" / "1" / "attempt.json", begun)
    (run_dir / "attempts" / "1" / "rank-0.log").write_text("".join(f"line {n}\n" for n in range(100)))
    for file, content in (("ended.json", ended), ("outcome.json", outcome)):
        if content is not None:
            write(run_dir / "attempts" / "1" / file, content)
    lines = [{"step": step, "loss": 1 / step, "samples_per_second": 4.0} for step in (1, 2)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    (run_dir / "job").mkdir()
    (run_dir / "job" / "config.yaml").write_text(configuration(split))
    return run_dir


@cache
def configuration(split: str) -> str:
    return as_yaml(load("finetune", ["local=none", "train.max_steps=10", f"split={split}"], check_here=False))


@pytest.fixture
def without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def jobs(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune.jobs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))


def test_runs_are_listed_from_their_folders_where_there_is_no_slurm(tmp_path: Path, without_slurm: None) -> None:
    past_run(tmp_path, "color_object", ended={"what": "done", "reason": "training is finished"})
    past_run(tmp_path / "deeper", "color_size", ended={"what": "stop", "reason": "3 attempts in a row crashed\ntail"})
    past_run(tmp_path, "size_color", ended=None)
    past_run(tmp_path, "size_object", ended=None, outcome={"status": "stopped", "reason": "signal SIGTERM"})
    found = {view.name: view for view in views(tmp_path)}
    assert {name: (view.state, view.reason) for name, view in found.items()} == {
        "color_object": ("finished", "training is finished"),
        "color_size": ("stopped", "3 attempts in a row crashed"),
        "size_color": ("unknown", "SLURM is not on this machine"),
        "size_object": ("stopped", "signal SIGTERM"),
    }
    one = found["size_color"]
    assert (one.job, one.attempt, one.step, one.steps, one.loss) == ("7", 1, 2, 10, 0.5)
    assert one.log == str(tmp_path / "size_color" / "attempts" / "1" / "rank-0.log")


@pytest.mark.parametrize(
    "file, content",
    [
        ("attempt.json", '{"attempt": 1, "id'),
        ("attempts/1/ended.json", "{}"),
        ("job/config.yaml", ""),
        ("job/config.yaml", "train: ["),
        ("job/submitted.json", "{}"),
    ],
)
def test_a_run_with_damaged_records_does_not_hide_the_others(
    tmp_path: Path, without_slurm: None, file: str, content: str
) -> None:
    for name in ("color_object", "color_size"):
        past_run(tmp_path, name, ended={"what": "done", "reason": "training is finished"})
    (tmp_path / "color_object" / file).write_text(content)
    assert {view.name: view.state for view in views(tmp_path)} == {"color_object": "damaged", "color_size": "finished"}


def test_the_list_is_a_table_or_json(tmp_path: Path, without_slurm: None) -> None:
    past_run(tmp_path, "color_object", ended={"what": "done", "reason": "training is finished"})
    table = jobs(f"runs_dir={tmp_path}")
    assert table.returncode == 0 and "color_object" in table.stdout and "2/10" in table.stdout, table.stderr
    (entry,) = json.loads(jobs("list", f"runs_dir={tmp_path}", "json=true").stdout)
    assert entry["split"] == "color_object" and entry["samples_per_second"] == 4.0
    assert "no runs in" in jobs(f"runs_dir={tmp_path}/none").stdout


def test_following_a_run_that_has_ended_shows_its_last_lines(tmp_path: Path, without_slurm: None) -> None:
    past_run(tmp_path, "color_object", ended={"what": "done", "reason": "training is finished"})
    shown: list[str] = []
    assert follow(tmp_path, "color_object", 3, shown.append).state == "finished"
    assert "".join(shown).splitlines()[1:] == ["line 97", "line 98", "line 99"]


def test_a_wrong_name_or_command_is_refused_with_the_nearest(tmp_path: Path, without_slurm: None) -> None:
    past_run(tmp_path / "a", "color_object", ended=None)
    with pytest.raises(ToolkitError, match=r'no run "color_objec".*Did you mean "color_object"'):
        find(views(tmp_path), "color_objec", tmp_path)
    past_run(tmp_path / "b", "color_object", ended=None)
    with pytest.raises(ToolkitError, match=rf"may be any of these runs: {tmp_path}/a/color_object, "):
        find(views(tmp_path), "color_object", tmp_path)
    assert find(views(tmp_path), str(tmp_path / "b" / "color_object"), tmp_path).run_dir == str(
        tmp_path / "b" / "color_object"
    )
    assert 'no command "folow". Did you mean "follow"?' in jobs("folow", "x").stderr
    assert "follow takes one name" in jobs("follow").stderr
    assert "list takes no name" in jobs("list", "x").stderr


def by_name(runs_dir: Path) -> dict[str, View]:
    return {view.name: view for view in views(runs_dir)}


def test_only_jobs_of_our_run_folders_are_cancelled_and_one_can_be_submitted_again(
    cluster: Cluster, site, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    foreign = cluster.submit("--wrap=sleep 300", "--cpus-per-task=1", f"--output={tmp_path}/foreign")
    launch(read(site("split=color_object,color_size", SLEEPS)))
    cluster.wait(lambda: by_name(runs)["color_size"].state == "running", 60, "running", foreign)
    first = by_name(runs)["color_size"].job
    assert cancel(runs, "color_size") == [f"cancelled job {first} (color_size)"]
    assert cluster.wait_for_state(str(first)) == "CANCELLED" and by_name(runs)["color_object"].alive
    with pytest.raises(ToolkitError, match=r"color_object is \w+ as job .*cancel color_object"):
        resubmit(runs, "color_object")
    said = resubmit(runs, "color_size")
    again = str(by_name(runs)["color_size"].job)
    assert said[0] == f"submitted color_size again as job {again}" and again != first and again.endswith("_1")
    assert read_json(runs / "color_size" / "job" / "submitted.json")["repeats"] == [first]
    cluster.wait(lambda: by_name(runs)["color_size"].state == "running", 60, "running", foreign)
    assert {line.split()[2] for line in cancel(runs, "all")} == {again, by_name(runs)["color_object"].job}
    assert cluster.state(foreign) == "RUNNING"
    cluster.run("scancel", foreign)


def test_a_job_number_that_slurm_gave_to_another_job_is_not_ours(cluster: Cluster, tmp_path: Path) -> None:
    foreign = cluster.submit("--wrap=sleep 300", "--job-name=other", "--cpus-per-task=1", f"--output={tmp_path}/log")
    run_dir = past_run(tmp_path / "runs", "color_object", ended=None)
    token = json.loads((run_dir / "attempt.json").read_text())
    write(run_dir / "attempt.json", {**token, "job_id": foreign})
    assert by_name(tmp_path / "runs")["color_object"].state == "lost"
    assert (
        cancel(tmp_path / "runs", "all") == ["no job of it is queued or running"]
        and cluster.state(foreign) != "CANCELLED"
    )
    cluster.run("scancel", foreign)


def test_follow_continues_over_a_requeue_and_ends_with_the_run(cluster: Cluster, site, tmp_path: Path) -> None:
    again = '[ "$SLURM_RESTART_COUNT" = 1 ] && { echo second start; exit 0; }'
    lines = [again, "echo first start", "scontrol requeue $SLURM_JOB_ID; sleep 60"]
    launch(read(site("split=color_object", f"cluster.setup={json.dumps(lines)}")))
    shown: list[str] = []
    ended = follow(tmp_path / "runs", "color_object", 20, shown.append)
    assert ended.state == "completed" and "first start\n" in "".join(shown)
    assert "".join(shown).endswith("second start\n")


def test_a_plain_job_in_a_folder_with_an_odd_name_can_be_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    run_dir = past_run(tmp_path, "color_object", ended=None).rename(tmp_path / "try #2")
    (run_dir / "code").mkdir()
    write(run_dir / "job" / "overrides.json", {"overrides": ["split=color_object"]})
    with pytest.raises(ToolkitError, match="takes no path with spaces"):
        resubmit(tmp_path, str(run_dir))
    run_dir = run_dir.rename(tmp_path / "try(2)")
    job = resubmit(tmp_path, str(run_dir))[0].split()[-1]
    shown = cluster.run("scontrol", "show", "job", job)
    assert f"StdOut={run_dir}/slurm-finetune-{job}.out" in shown and "JobName=try-2-" in shown
    cluster.run("scancel", job)


def test_a_plain_job_that_started_over_is_submitted_again_to_resume(tmp_path: Path, without_slurm: None) -> None:
    run_dir = past_run(tmp_path, "color_object", ended=None)
    (run_dir / "code").mkdir()
    write(run_dir / "job" / "overrides.json", {"overrides": ["train.resume=never", "train.seed=1"]})
    settings = configuration("color_object").replace("resume: auto", "resume: never")
    (run_dir / "job" / "config.yaml").write_text(settings)
    view = by_name(tmp_path)["color_object"]
    assert "train.resume=never train.seed=1" in _script_of_a_plain_job(view)  # it ended before it cleared the folder
    write(run_dir / "run_config.json", {})
    again = _script_of_a_plain_job(view)
    assert "train.seed=1 train.resume=auto" in again and "train.resume=never" not in again


def test_a_plain_job_is_submitted_again_with_the_script_of_then(
    tmp_path: Path, without_slurm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = past_run(tmp_path, "color_object", ended=None)
    (run_dir / "code").mkdir()
    write(run_dir / "job" / "overrides.json", {"overrides": ["split=color_object", "train.seed=3"]})
    of_then = (ROOT / "finetune_jobs" / "color_object.sbatch").read_text().replace("--nodes=1", "--nodes=2")
    own = "#SBATCH --account=mine\n\nmodule load cuda/12\nrun=$("
    (run_dir / "job" / "script.sbatch").write_text(of_then.replace("\nrun=$(", own, 1))
    submitted: list[str] = []
    monkeypatch.setattr(control, "_answered", views)
    monkeypatch.setattr(control, "sbatch", lambda script, options, folder: submitted.append(script) or "9")
    monkeypatch.setattr(control, "slurm", lambda *command, **_: None)
    said = resubmit(tmp_path, "color_object")
    lines = submitted[0].splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --account=mine", "module load cuda/12"} <= {*lines}
    assert lines[:2] == ["#!/bin/bash", f"#SBATCH --output={run_dir}/slurm-finetune-%j.out"]
    assert lines[-1] == f"exec {run_dir}/code/finetune_jobs/run.sh finetune split=color_object train.seed=3"
    assert "SLURM_SUBMIT_DIR" not in submitted[0] and submitted[0].count("--output=") == 1
    subprocess.run(["/bin/bash", "-n"], input=submitted[0], text=True, check=True)
    assert "sbatch --nodes=2 ...) are not kept" in said[1] and "lines of your own" not in said[1]
    (run_dir / "job" / "script.sbatch").write_text(submitted[0])  # as the attempt of that job keeps it
    resubmit(tmp_path, "color_object")
    assert submitted[1] == submitted[0]
    (run_dir / "job" / "script.sbatch").unlink()  # it held a key
    assert "lines of your own in it" in control._not_kept(views(tmp_path)[0])


def test_a_wide_terminal_shows_how_far_a_run_is_as_a_bar(
    tmp_path: Path, without_slurm: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    past_run(tmp_path, "color_object", ended={"what": "done", "reason": "x"})
    found = views(tmp_path)

    def shown(columns: int, **variables: str) -> str:
        return in_terminal(monkeypatch, columns, lambda: show_table(found, tmp_path), **variables)

    assert bars(shown(120)) == [(3, 11)] and "2/10" in shown(120)  # of 14 characters, the third is half of one
    for plain in (shown(119), shown(120, TERM="dumb"), shown(120, NO_COLOR="1")):
        assert not bars(plain) and "color_object" in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    show_table(found, tmp_path)
    piped = capsys.readouterr().out
    assert not bars(piped) and "2/10" in piped


@pytest.mark.parametrize(
    ("log", "job", "again", "renewed"),
    [
        ("slurm-record-1of2-1.out", "1", "12", "slurm-record-1of2-12.out"),
        ("slurm-prepare-12of21-2.out", "2", "3", "slurm-prepare-12of21-3.out"),
        ("7_7.out", "7_7", "8_7", "8_7.out"),
    ],
)
def test_the_log_of_a_job_that_was_submitted_again_is_its_own(log: str, job: str, again: str, renewed: str) -> None:
    found = _renewed({"job_id": job, "log": f"/runs/1of2/{log}"}, again, [])
    assert (found["job_id"], found["log"]) == (again, f"/runs/1of2/{renewed}")
