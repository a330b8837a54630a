"""Jobs on a real SLURM cluster: scripts are accepted, train to their end on one node and on two, and run what they
were submitted with."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from slurm_cluster import OVER, ROOT, Cluster, arguments, metrics

from finetune.slurm import attempt as nodes
from finetune.slurm import render
from simulation.scenes.suites import SUITES
from toolkit.code_files import code_files, snapshot_code

JOB = "finetune_jobs/color_object.sbatch"


def test_there_is_a_script_for_each_split_of_both_suites_and_slurm_accepts_it(cluster: Cluster) -> None:
    jobs = ROOT / "finetune_jobs"
    scripts = {path.relative_to(jobs).with_suffix("").as_posix() for path in jobs.rglob("*.sbatch")}
    assert scripts == {name for suite in SUITES for name in suite.splits} == {*render.splits()}
    for name in scripts:
        cluster.run("sbatch", "--test-only", f"finetune_jobs/{name}.sbatch")


@pytest.fixture(scope="module")
def finished(
    cluster: Cluster, small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run of one process on each of two nodes, at a site with a container; its folder and the job's log."""
    out = tmp_path_factory.mktemp("job")
    container = out / "my container.sh"
    container.write_text(f'echo "$SLURMD_NODENAME $NOTE $*" >> "{out}/calls"\nexec "$@"\n')
    # the last two as salloc and a Jupyter server leave them
    variables = f"PATH={Path(sys.executable).parent}:$PATH PLACE=site SLURM_MEM_PER_NODE=100 SLURM_MEM_PER_CPU=100"
    setup = ["echo modules are loaded", f"export {variables}"]
    site = [
        *("local=none", "cluster.nodes=2", "cluster.cpus_per_task=4", "cluster.processes_per_node=1"),
        *(f"cluster.setup={json.dumps(setup)}", "cluster.environment=['NOTE=of the $PLACE']"),
        *(f"cluster.container=[bash,'{container}']", "cluster.offline=true", "cluster.srun=[--label]"),
    ]
    render.main(site, out)
    overrides = arguments(out, small_data, tiny_base, "tracking.run_name=a name, with spaces")
    # some sites' profiles set these: no variables of the user's shell, and times in words
    shell = {"SBATCH_EXPORT": "NONE", "SLURM_TIME_FORMAT": "relative"}
    job = cluster.submit(f"--output={out}/log", str(out / "color_object.sbatch"), *overrides, **shell)
    assert cluster.wait_for_state(job, timeout=180) == "COMPLETED", cluster.log(job)
    return out, (out / "log").read_text()


def test_a_job_trains_to_its_end(finished: tuple[Path, str]) -> None:
    out, log = finished
    assert (out / "done" / "config.json").is_file()
    assert [line["step"] for line in metrics(out / "run")] == [1, 2, 3, 4, 5, 6]
    assert "step 6/6" in log and "finished after 6 steps" in log
    assert json.loads((out / "run" / "attempts" / "0" / "ended.json").read_text())["what"] == "done"


def test_the_run_folder_says_what_ran(finished: tuple[Path, str]) -> None:
    run = finished[0] / "run"
    job = run / "job"
    assert (job / "script.sbatch").read_text() == (finished[0] / "color_object.sbatch").read_text()
    given = json.loads((job / "overrides.json").read_text())["overrides"]
    assert given[0] == "split=color_object" and "tracking.run_name=a name, with spaces" in given
    assert OmegaConf.load(job / "config.yaml").tracking.run_name == "a name, with spaces"
    assert "torch" in json.loads((job / "environment.json").read_text())["packages"]
    assert {path.name for path in job.iterdir()} >= {"git.json", "git.diff"}
    copied = {
        str(path.relative_to(run / "code"))
        for path in (run / "code").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert copied == {*code_files(ROOT), "REVISION"}
    versions = json.loads((finished[0] / "done" / "experiment_cfg" / "versions.json").read_text())
    assert versions["git_revision"] == (run / "code" / "REVISION").read_text().strip()


def test_a_job_of_two_nodes_is_one_run_with_what_its_site_needs(finished: tuple[Path, str]) -> None:
    out, log = finished
    attempt = out / "run" / "attempts" / "0"
    logs = {path.name for path in attempt.glob("*.log")}
    assert logs == {"node-node1.log", "node-node2.log", "rank-0.log", "rank-1.log"}
    assert "step 6/6" in (attempt / "rank-0.log").read_text()
    container = out / "my container.sh"
    assert re.match(rf"modules are loaded\n.* Python 3.*; container bash {container}; srun --label\n", log)
    assert re.search("^0: .*step 6/6", log, re.MULTILINE)
    calls = (out / "calls").read_text()
    for node in ("node1", "node2"):
        assert re.search(rf"^{node} of the site python3 -m torch.distributed.run ", calls, re.MULTILINE)


@pytest.mark.long
def test_a_requeued_job_runs_the_code_it_began_with(
    cluster: Cluster, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    checkout = snapshot_code(ROOT, tmp_path / "copy").rename(tmp_path / "checkout")
    (checkout / "REVISION").unlink()
    options = ["--gres=gpu:1", "--cpus-per-task=4", "--output=log"]
    overrides = arguments(Path("out"), small_data, tiny_base, "train.max_steps=400", "train.save_steps=2")
    job = cluster.submit(*options, JOB, *overrides, cwd=checkout)
    cluster.wait_for_step(job, checkout / "out" / "run", 2)
    for name in ("finetune/training/train.py", "finetune/slurm/attempt.py", "finetune/recipe.py"):
        (checkout / name).write_text("raise SystemExit('edited')\n")
    run = checkout / "finetune_jobs" / "run.sh"
    run.write_text(run.read_text().replace("--kill-on-bad-exit", "--edited"))
    cluster.run("scontrol", "requeue", job)
    cluster.wait(lambda: (checkout / "out/run/attempts/1/rank-0.log").is_file(), 60, "second attempt", job)
    cluster.wait_for_step(job, checkout / "out" / "run", metrics(checkout / "out" / "run")[-1]["step"] + 2)
    cluster.run("scancel", job)


def test_a_job_that_cannot_work_says_why_and_is_not_requeued(
    cluster: Cluster, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    def submit(name: str, *more: str, cwd: Path = ROOT, script: str = JOB) -> str:
        overrides = arguments(tmp_path / name, small_data, tiny_base, *more)
        return cluster.submit("--cpus-per-task=4", f"--output={tmp_path}/{name}.log", script, *overrides, cwd=cwd)

    refused = {
        submit("batch", "train.global_batch_size=6"): "train.global_batch_size=6 is no multiple of 4",
        submit("data", f"dataset.data_dir={tmp_path}"): "Convert the recordings first",
        submit("typo", "train.lr=1"): 'Did you mean "train.learning_rate"?',
        submit("time", "cluster.grace_seconds=90000"): "gives this attempt",
        submit("late", "cluster.nodes=2"): "cluster.nodes=2 comes too late",
        submit(
            "scratch", "cluster.scratch=$NOWHERE/x"
        ): "cluster.scratch=$NOWHERE/x: the variable NOWHERE is not set here",
        submit("elsewhere", cwd=tmp_path, script=str(ROOT / JOB)): "submit it in the folder of the checkout",
    }
    for job, message in refused.items():
        assert cluster.wait_for_state(job, timeout=90) == "FAILED", cluster.log(job)
        assert "error: " in cluster.log(job) and message in cluster.log(job)
        shown = cluster.show(job)
        assert (shown["Restarts"], shown["ExitCode"]) == ("0", "2:0")
    assert not list(tmp_path.glob("*/done")) and not list(tmp_path.glob("*/run/attempts"))


def test_a_run_folder_of_a_job_that_is_still_known_is_not_touched(
    cluster: Cluster, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    held = cluster.submit("--hold", f"--output={tmp_path}/held.log", JOB)
    run = tmp_path / "run"
    run.mkdir()
    (run / "attempt.json").write_text(json.dumps({"job_id": held, "id": "x", "attempt": 0}))
    job = cluster.submit(f"--output={tmp_path}/log", JOB, *arguments(tmp_path, small_data, tiny_base))
    assert cluster.wait_for_state(job) == "FAILED"
    assert f"belongs to job {held}, which is pending" in cluster.log(job) and f"scancel {held}" in cluster.log(job)
    assert [path.name for path in run.iterdir()] == ["attempt.json"]
    cluster.run("scancel", held)
    assert cluster.state(held) in OVER


def test_a_node_at_fault_is_left_out_while_enough_remain(cluster: Cluster) -> None:
    job = "JobId=7 Partition=main NumNodes=1-1 ExcNodeList=(null)"
    assert nodes.exclusion(job, ("node2",)) == "node2"
    assert nodes.exclusion(job, ()) == ""
    assert nodes.exclusion(job.replace("(null)", "node1"), ("node2",)) == ""
    assert nodes.exclusion(job.replace("1-1", "2"), ("node2",)) == ""
    assert nodes.exclusion(f"{job} ReqNodeList=node[1-2]", ("node2",)) == ""
