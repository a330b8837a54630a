"""The launcher: what is refused before it queues, and jobs on a real cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from launching import asked
from recordings import write_split
from slurm_cluster import ROOT, Cluster, NoCluster, metrics, running_cluster

from finetune.slurm.batches import batches_of
from finetune.slurm.launch_request import read
from finetune.slurm.submit import launch, submit
from gr00t.errors import ToolkitError


def refused_here(tmp_path: Path, arguments: list[str]) -> str:
    """The message of a launch that is refused, and leaves no file."""
    with pytest.raises(ToolkitError) as error:
        launch(read(arguments))
    assert not (tmp_path / "runs").exists() and not (tmp_path / "done").exists()
    return str(error.value)


def test_what_can_only_fail_is_refused_without_asking_slurm(site, tmp_path: Path) -> None:
    def refused(*more: str) -> str:
        return refused_here(tmp_path, site(*more))

    assert "color_position/train does not exist" in refused("split=color_object,color_position")
    assert "nowhere does not exist" in refused("model.base=nowhere")
    message = refused("cluster.nodes=2", "cluster.gpus_per_node=4", "train.global_batch_size=12")
    assert "12 is no multiple of 8 (8 processes)" in message
    assert "engine=single is one process" in refused("engine=single", "cluster.gpus_per_node=2")
    message = refused("cluster.offline=true", "model.base=nvidia/GR00T-N1.7-3B")
    assert "nodes have no internet" in message and "finetune.prefetch" in message
    assert "raw/color_object/train does not exist" in refused(
        "stages=prepare,finetune", f"raw_dir={tmp_path}/raw", f"dataset.data_dir={tmp_path}/none"
    )


def test_what_does_not_fit_the_gpus_or_the_disk_is_refused(site, tmp_path: Path) -> None:
    message = refused_here(tmp_path, site("device=cuda", "cluster.gpu_type=l4", "train.global_batch_size=100000"))
    assert "each GPU does not fit" in message and "of 24.0 GB" in message and "train.micro_batch_size" in message
    processes = ("cluster.gpus_per_node=0", "cluster.processes_per_node=1", "cluster.memory=1G")
    message = refused_here(tmp_path, site("device=cpu", "train.global_batch_size=100000", *processes))
    assert "the machine's memory does not fit" in message and "of 1.1 GB" in message and "cluster.memory" in message
    many = ("train.max_steps=100000000", "train.save_steps=1", "train.keep_every=1")
    assert "checkpoints" in refused_here(tmp_path, site(*many)) and "train.keep_last" in refused_here(
        tmp_path, site(*many)
    )


def without_slurm(folder: Path) -> dict[str, str]:
    """An environment with git and this Python only."""
    (folder / "bin").mkdir()
    (folder / "bin" / "git").symlink_to(str(shutil.which("git")))
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(folder / "bin")])}


def test_a_dry_run_prints_scripts_and_configurations_writes_nothing_and_needs_no_torch(site, tmp_path: Path) -> None:
    code = (
        "import sys; from launch_finetune_slurm import main, read; from finetune import jobs;"
        "import submitit.slurm.slurm; main(read(sys.argv[1:])); sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *site("split=color_object,color_size", "max_parallel=1", "dry_run=true")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=without_slurm(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-1%1" in done.stdout and "#SBATCH --gres=gpu:a100:1" in done.stdout
    assert done.stdout.count("# ----- configuration of color_") == 2 and "max_steps: 2" in done.stdout
    assert "nothing was submitted" in done.stdout and not (tmp_path / "runs").exists()


IMPOSSIBLE = {
    "cluster.partition=mian": ('no partition "mian"', '"main"'),
    "cluster.nodes=4": ("2 nodes that fit", "cluster.nodes=2"),
    "cluster.time=0:04:00": ("no time to train", "grace_seconds=300"),
    "cluster.constraint=gold": ("SLURM would refuse",),
}


@pytest.mark.parametrize("argument", IMPOSSIBLE)
def test_what_the_cluster_does_not_have_is_refused(cluster: Cluster, site, tmp_path: Path, argument: str) -> None:
    before = cluster.jobs()
    message = refused_here(tmp_path, site("train.global_batch_size=8", argument))
    assert all(part in message for part in IMPOSSIBLE[argument]) and "\n" not in message
    assert cluster.jobs() <= before


def test_what_slurm_accepts_but_would_never_start_is_refused(cluster: Cluster, site, tmp_path: Path) -> None:
    for name, more in (("short", "MaxTime=10"), ("closed", "State=DOWN")):
        cluster.run("scontrol", "create", f"partition={name}", "Nodes=ALL", more)
    asked = ("train.global_batch_size=8", "cluster.grace_seconds=60")
    try:
        message = refused_here(tmp_path, site(*asked, "cluster.partition=short", "cluster.time=1:00:00"))
        assert "above the limit of partition short, 00:10:00" in message
        assert "closed is not up" in refused_here(tmp_path, site(*asked, "cluster.partition=closed"))
    finally:
        for name in ("short", "closed"):
            cluster.run("scontrol", "delete", f"partition={name}")


ROUTING = """
function slurm_job_submit(job_desc, part_list, submit_uid)
  local gpus = string.find((job_desc.tres_per_node or "") .. (job_desc.tres_per_job or ""), "gpu")
  if job_desc.partition == nil then
    job_desc.partition = gpus and "high" or "low"
  elseif job_desc.partition == "high" and not gpus then
    slurm.log_user("jobs in high must ask for GPUs; use low")
    return slurm.ERROR
  end
  return slurm.SUCCESS
end
function slurm_job_modify(job_desc, job_rec, part_list, modify_uid) return slurm.SUCCESS end
return slurm.SUCCESS
"""


@pytest.mark.long
def test_a_site_that_chooses_the_partition_itself_is_the_judge(site, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "job_submit.lua").write_text(ROUTING)
    try:
        with running_cluster(tmp_path / "cluster", JOB_SUBMIT=str(tmp_path / "job_submit.lua")) as routed:
            monkeypatch.setenv("SLURM_CONF", routed.env["SLURM_CONF"])
            routed.run("scontrol", "update", "partition=main", "Default=NO")
            (batch,) = launch(read(site("train.global_batch_size=8", "cluster.setup=[exec sleep 300]")))
            assert routed.show(batch.job_id)["Partition"] == "high"
            routed.run("scancel", batch.job_id)
            chained = ("stages=finetune,evaluate", "cluster.stages.evaluate.gpus=0", "cluster.partition=high")
            message = refused_here(tmp_path / "other", site("train.global_batch_size=8", *chained))
            assert "SLURM would refuse" in message
    except NoCluster as why:
        pytest.skip(str(why))


def test_a_controller_that_is_down_is_said(cluster: Cluster, site, tmp_path: Path, monkeypatch) -> None:
    settings = (cluster.folder / "etc" / "slurm.conf").read_text()
    away = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", settings)
    (tmp_path / "slurm.conf").write_text(re.sub(r"MessageTimeout=\d+", "MessageTimeout=2", away))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert "SLURM does not answer" in refused_here(tmp_path, site())


def test_of_two_launches_at_once_only_one_queues_the_run(cluster: Cluster, site, tmp_path: Path) -> None:
    command = [sys.executable, "launch_finetune_slurm.py", *site("cluster.setup=[exec sleep 300]")]
    before = cluster.jobs()
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    (job,) = cluster.jobs() - before
    assert sorted(f"job {job} (" in text for text in said) == [False, True]
    (code,) = (tmp_path / "runs" / ".launcher" / "code").iterdir()
    assert (tmp_path / "runs" / "color_object" / "code").readlink() == code and (code / "REVISION").is_file()
    with pytest.raises(ToolkitError, match=rf"belongs to job {job}.*finetune.jobs cancel"):
        launch(read(site("cluster.setup=[exec sleep 300]", "train.learning_rate=2e-3")))
    cluster.run("scancel", job)


def test_a_submission_that_fails_half_way_leaves_neither_jobs_nor_files(cluster: Cluster, site, tmp_path: Path) -> None:
    mine = tmp_path / "runs" / "color_object" / "job" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("of an earlier job")
    request = asked(*site("split=color_object,color_size", "stages=prepare,finetune", f"raw_dir={tmp_path}"))
    batches = batches_of(request, tmp_path / "runs" / ".launcher" / "now")
    batches[-1].script = batches[-1].script.replace("#SBATCH --nodes=1", "#SBATCH --nodes=some")
    before = cluster.jobs()
    with pytest.raises(ToolkitError, match="sbatch refused the job"):
        submit(batches, tmp_path / "runs" / ".launcher" / "now")
    now = cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%i").split()
    assert before.issuperset(now)
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == [mine]
    assert not (tmp_path / "runs" / "color_size").exists()


def small_checkout(folder: Path) -> Path:
    """A checkout of one's own, to edit: what jobs need of this one."""
    for name in ("gr00t", "toolkit", "finetune", "data_prep", "configs", "finetune_jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "default.yaml"))
    for path in ROOT.glob("*.py"):
        shutil.copy2(path, folder)
    shutil.copytree(ROOT / "configs", folder / "configs", dirs_exist_ok=True)
    return folder


def submitted(checkout: Path, arguments: list[str]) -> str:
    command = [sys.executable, "launch_finetune_slurm.py", *arguments]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.slow
def test_an_array_of_three_splits_trains_with_the_code_of_its_submission(
    cluster: Cluster, site, tmp_path: Path
) -> None:
    splits, runs = ["color_object", "color_size", "size_color"], tmp_path / "runs"
    checkout = small_checkout(tmp_path / "checkout")
    shown = submitted(checkout, site(f"split={','.join(splits)}", "max_parallel=2"))
    (checkout / "launch_finetune_local.py").write_text("raise SystemExit('edited after submission')\n")
    (checkout / "finetune_jobs" / "run.sh").write_text("exit 1\n")
    noted = [json.loads((runs / split / "job" / "submitted.json").read_text()) for split in splits]
    assert [job["job_id"].partition("_")[2] for job in noted] == ["0", "1", "2"]
    assert all(job["job_id"] in shown for job in noted) and "finetune.jobs follow" in shown
    array = noted[0]["job_id"].partition("_")[0]
    assert cluster.show(f"{array}_2")["ArrayTaskThrottle"] == "2"
    for job in noted:
        assert cluster.wait_for_state(job["job_id"], timeout=240) == "COMPLETED", Path(job["log"]).read_text()
    for split in splits:
        assert [line["step"] for line in metrics(runs / split)] == [1, 2]
        assert (tmp_path / "done" / split / "config.json").is_file()
        assert {path.name for path in (runs / split / "job").iterdir()} >= {
            *("script.sbatch", "overrides.json", "config.yaml", "git.json", "git.diff", "environment.json"),
        }
    (own,) = (runs / ".launcher").glob("2*")
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


@pytest.mark.long
@pytest.mark.slow
def test_a_chain_prepares_trains_and_evaluates(cluster: Cluster, site, tmp_path: Path) -> None:
    raw = write_split(tmp_path / "raw", train=[20, 24, 18], conflict=[20])
    stages = site(
        *(
            "stages=prepare,finetune,evaluate",
            f"raw_dir={raw}",
            f"dataset.data_dir={tmp_path}/made",
            "split=color_object",
        ),
        *(f"report_dir={tmp_path}/reports", "train.max_steps=1", "max_episodes=1"),
    )
    batches = launch(read(stages))
    jobs = [batch.job_id for batch in batches]
    assert cluster.show(jobs[2])["Dependency"] == f"afterok:{jobs[1]}(unfulfilled)"
    assert launch(read(stages)) == []  # all are busy
    for job in jobs:
        assert cluster.wait_for_state(job, timeout=240) == "COMPLETED", cluster.log(job)
    assert launch(read(stages)) == []  # all are done
    (tmp_path / "reports" / "open_loop.json").rename(tmp_path / "report")
    (batch,) = launch(read(stages))
    assert batch.stage == "evaluate" and cluster.wait_for_state(batch.job_id, timeout=240) == "COMPLETED"
    assert (tmp_path / "reports" / "open_loop.json").is_file()
    assert "TresPerNode" not in cluster.show(jobs[0])  # converting takes no GPU


# In place of each stage: a conversion of one split fails; a fine-tune notes how many run beside it.
STAND_IN = """
case $SLURM_JOB_NAME in *prepare) exit $((SLURM_ARRAY_TASK_ID == 1)) ;; esac
mkdir -p running; : > "running/$SLURM_ARRAY_TASK_ID"
ls running | wc -l >> counts
sleep 1.5
rm "running/$SLURM_ARRAY_TASK_ID"
"""


@pytest.mark.parametrize("seeds, bound", [("1", 1), pytest.param("1,2", 2, marks=pytest.mark.long)])
def test_the_bound_holds_and_is_used_when_a_chain_is_dropped(
    cluster: Cluster, site, tmp_path: Path, seeds: str, bound: int
) -> None:
    raw, splits = write_split(tmp_path / "raw", train=[20, 24, 18], conflict=[20]), "color_object,color_size,size_color"
    for split in splits.split(",")[1:]:
        shutil.copytree(raw / "color_object", raw / split)
    (tmp_path / "stand_in.sh").write_text(STAND_IN)
    more = (f"split={splits}", f"train.seed={seeds}", "stages=prepare,finetune", f"raw_dir={raw}")
    own = [f"{name}={tmp_path}/{name}/${{split.name}}-${{train.seed}}" for name in ("run_dir", "output_dir")]
    setup = f"cluster.setup=['cd {tmp_path} && exec bash stand_in.sh']"
    _, tune = launch(read(site(*more, *own, f"dataset.data_dir={tmp_path}/made", setup, f"max_parallel={bound}")))
    dropped = [task for task in tune.tasks if task.run.split.name == "color_size"]
    for task in tune.tasks:
        state = cluster.wait_for_state(task.job_id)
        assert state == ("CANCELLED" if task in dropped else "COMPLETED"), task.job_id
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert len(counts) == len(tune.tasks) - len(dropped) and max(counts) == bound


@pytest.mark.long
def test_the_bound_holds_among_points_of_other_resources(cluster: Cluster, site, tmp_path: Path) -> None:
    (tmp_path / "stand_in.sh").write_text(STAND_IN.replace("$SLURM_ARRAY_TASK_ID", "$SLURM_JOB_ID"))
    own = [f"{name}={tmp_path}/{name}/${{cluster.cpus_per_task}}" for name in ("run_dir", "output_dir")]
    setup = f"cluster.setup=['cd {tmp_path} && exec bash stand_in.sh']"
    first, second, third = launch(read(site("cluster.cpus_per_task=1,2,3", *own, setup, "max_parallel=1")))
    cluster.run("scancel", second.job_id)  # to wait for its end alone would be to wait for nothing
    for batch in (first, third):
        assert cluster.wait_for_state(batch.job_id) == "COMPLETED"
    assert (tmp_path / "counts").read_text().split() == ["1", "1"]
