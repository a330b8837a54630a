"""The launcher: what a command line asks for, what is refused before it queues, and jobs on a real cluster."""

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
from recordings import write_split
from slurm_cluster import ROOT, Cluster, NoCluster, metrics, running_cluster

from finetune.recipe import ClusterConfig
from finetune.slurm import cluster_queries as inventory
from finetune.slurm import cluster_queries as queue
from finetune.slurm.batches import Batch, batches_of, cluster_of
from finetune.slurm.cluster_queries import Node, Partition, Queue, in_time
from finetune.slurm.launch_request import Request, read
from finetune.slurm.refusals import check_fits, megabytes
from finetune.slurm.submit import launch, submit
from gr00t.errors import ToolkitError


def asked(*argv: str) -> Request:
    return read(argv if "local=none" in argv else ["local=none", *argv])


def refusal(*argv: str) -> str:
    with pytest.raises(ToolkitError) as error:
        asked(*argv)
    return str(error.value)


def overrides(request: Request, name: str) -> list[str]:
    return [o.partition("=")[2] for task in request.tasks for o in task.overrides if o.startswith(f"{name}=")]


def test_a_comma_list_of_splits_is_one_run_each() -> None:
    request = asked("split=color_object,color_size")
    assert [task.run.run_dir for task in request.tasks] == ["runs/color_object", "runs/color_size"]
    assert request.notes == []


def test_what_sbatch_would_obey_before_the_script_is_followed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"PARTITION": "gpu", "TIMELIMIT": "90", "NO_REQUEUE": "1", "JOB_NAME": "mine", "WAIT": "1", "EXPORT": "NONE"}
    for name, value in said.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    request = asked("split=color_object", "cluster.time=2:00:00")
    cluster = request.tasks[0].run.cluster
    assert (cluster.partition, cluster.time, cluster.requeue) == ("gpu", "2:00:00", False)  # what is typed comes first
    script = batches_of(request, Path("out"))[0].script
    assert "--partition=gpu" in script and "--job-name=mine" in script and "--no-requeue" in script
    followed, notes = " ".join(request.notes), len(request.notes)
    assert "SBATCH_PARTITION of the environment is followed: cluster.partition=gpu" in followed and notes == 5
    assert "SBATCH_WAIT of the environment is not passed to sbatch" in followed and "jobs are named mine" in followed
    assert asked("split=color_object").tasks[0].run.cluster.time == "01:30:00"


def test_folders_are_those_that_the_launcher_sees_but_for_the_nodes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/disk/me")
    typed = ("run_dir=$SCRATCH/runs/${split.name}", "cache_dir=$SLURM_TMPDIR/cache", "stages=finetune,evaluate")
    request = asked(*typed)
    assert overrides(request, "run_dir") == ["/disk/me/runs/color_object"]
    assert overrides(request, "cache_dir") == ["$SLURM_TMPDIR/cache"]
    monkeypatch.chdir("/tmp")
    assert overrides(asked("cluster.scratch=$SLURM_TMPDIR"), "cache_dir") == []
    assert overrides(asked("cluster.nodes=1"), "cache_dir") == ["/tmp/cache/color_object"]


def test_slurm_is_asked_without_what_an_enclosing_job_or_a_habit_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    habits = {"SQUEUE_FORMAT": "%i", "SLURM_TIME_FORMAT": "relative", "SBATCH_WAIT": "1", "SBATCH_PARTITION": "gpu"}
    job = {"SLURM_MEM_PER_CPU": "9", "SLURM_NTASKS": "4", "GROOT_PYTHON": "x", "WORLD_SIZE": "4"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_EXPORT": "NONE", "GROOT_API_TOKEN": "t", "PATH": "/usr/bin"}
    for name, value in {**habits, **job, **kept}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    outside = queue.environment()
    assert kept.items() <= outside.items() and job.items() <= outside.items() and not habits.keys() & outside.keys()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    inside = queue.environment()
    assert kept.items() <= inside.items() and not {*job, *habits, "SLURM_JOB_ID"} & inside.keys()


def test_a_sweep_is_the_product_of_its_lists_and_each_point_has_folders_of_its_own() -> None:
    request = asked("split=color_object,color_size", "train.learning_rate=1e-4,5e-5", "train.seed=1,2")
    assert len(request.tasks) == 8
    first = request.tasks[0].config
    assert (first.run_dir, first.output_dir, first.tracking.run_name) == (
        "runs/color_object-learning_rate_1e-4-seed_1",
        "checkpoints/color_object-learning_rate_1e-4-seed_1",
        "color_object-learning_rate_1e-4-seed_1",
    )
    assert len({task.config.run_dir for task in request.tasks}) == 8
    assert request.tasks[7].config.train.learning_rate == 5e-5 and "run_dir" in request.notes[0]


def test_ones_own_run_dir_is_kept_where_it_tells_the_points_apart() -> None:
    request = asked("train.seed=1,2", "run_dir=runs/s${train.seed}", "output_dir=out/s${train.seed}")
    assert [task.config.run_dir for task in request.tasks] == ["runs/s1", "runs/s2"]
    message = refusal("train.seed=1,2", "run_dir=runs/mine")
    assert "train.seed=1 and train.seed=2" in message and "same run_dir" in message and "${train.seed}" in message


@pytest.mark.parametrize(
    "argument, points",
    [
        ("split.instruction=pick up the red, then the blue", 1),
        ("split.instruction='pick it up','lift it'", 2),
        ("cluster.partition=main,low", 1),
        ("cluster.exclude=node1,node2", 1),
        ("tracking.tags=[a,b]", 1),
        ("tracking.tags=[a,b],[c]", 2),
        ("train.tune.llm=true,false", 2),
        ("train.precision=bf16,fp32", 2),
        ("augment=default,none", 2),
        ("model.base=a/b,c/d", 2),
        ("run_dir=${oc.env:HOME,x}/runs", 1),
    ],
)
def test_only_lists_of_values_are_sweeps(argument: str, points: int) -> None:
    request = asked(argument)
    assert len(request.tasks) == points
    assert len({task.config.run_dir for task in request.tasks}) == points


def test_a_stage_is_given_the_keys_it_knows_and_follows_the_one_before() -> None:
    request = asked(
        "split=color_object,color_size",
        "stages=evaluate,prepare,finetune",
        "raw_dir=raw",
        "data_dir=elsewhere",
        "train.max_steps=7",
        "part=val,conflict",
    )
    assert [task.stage for task in request.tasks] == ["prepare"] * 2 + ["finetune"] * 2 + ["evaluate"] * 4
    assert {task.config.raw_dir for task in request.of_stage("prepare")} == {"raw"}
    assert {task.config.dataset.data_dir for task in request.of_stage("finetune")} == {"elsewhere"}
    last = request.tasks[-1]
    assert (last.config.checkpoint, last.config.part, last.config.data_dir) == (
        "checkpoints/color_size",
        "conflict",
        "elsewhere",
    )
    assert [task.name for task in last.after] == ["color_size"]
    assert [task.name for task in last.after[0].after] == ["color_size-prepare"]


def test_points_of_one_dataset_share_its_conversion() -> None:
    request = asked("train.seed=1,2", "stages=prepare,finetune,evaluate", "raw_dir=raw")
    assert [task.stage for task in request.tasks] == ["prepare", *["finetune"] * 2, *["evaluate"] * 2]
    assert overrides(request, "report_dir") == ["reports/color_object-seed_1/val", "reports/color_object-seed_2/val"]


REFUSALS = {
    "train.sed=1,2": ('no key "train.sed"', '"train.seed"'),
    "max_paralel=2": ('no key "max_paralel"', '"max_parallel"'),
    "raw_dir=raw": ("raw_dir belongs to the stage prepare", "stages=prepare,finetune"),
    "part=val": ("part belongs to the stage evaluate", "stages=finetune,evaluate"),
    "stages=prepare,tune": ('no stage "tune"', '"finetune"'),
    "train.seed=1,,2": ("empty value",),
    "train.seed=1,1": ("1 is there twice",),
    "split=color_object,color_siz": ('There is no split "color_siz"', '"color_size"'),
    "train.seed=1,two": ("train.seed expects int",),
    "max_parallel=0": ("max_parallel=0", "at least 1"),
    "dry_run=maybe": ("dry_run expects true or false",),
    "--dry-run": ("Options are written key=value",),
    "split": ('"split" is no key=value',),
}


@pytest.mark.parametrize("argument", REFUSALS)
def test_a_refusal_names_the_argument_and_the_remedy(argument: str) -> None:
    message = refusal(argument)
    assert all(part in message for part in REFUSALS[argument]) and "\n" not in message


def test_two_places_for_one_dataset_are_refused() -> None:
    message = refusal("stages=prepare,finetune", "dataset.data_dir=a", "data_dir=b")
    assert "dataset.data_dir=a and data_dir=b" in message


def test_times_and_gpus_are_read_as_slurm_writes_them() -> None:
    assert [inventory.seconds_of(t) for t in ("30", "5:30", "1:00:00", "2-0", "1-2:30", "1-02:03:04")] == [
        *(1800, 330, 3600, 172800, 95400, 93784),
    ]
    assert inventory.seconds_of("UNLIMITED") is None
    assert inventory.gpus_of("gpu:a100:4(S:0-1),gpu:v100:2") == {"a100": 4, "v100": 2}
    assert inventory.gpus_of("gpu:8,shard:32") == {"": 8} and inventory.gpus_of("(null)") == {}


def answers(monkeypatch: pytest.MonkeyPatch, module: object, **said: str) -> list[tuple[str, ...]]:
    """Let SLURM's commands say this, by name; returns how they are called."""
    calls: list[tuple[str, ...]] = []

    def slurm(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0 if command[0] in said else 1, said.get(command[0], ""), "")

    monkeypatch.setattr(module, "slurm", slurm)
    monkeypatch.setattr(module, "available", lambda: True, raising=False)
    return calls


SQUEUE = """\
7|7|RUNNING|1:00|n1|None|me|1:30|gres:gpu:a100:4|2|(null)|groot|/w|/w/a.sbatch x=1
a second line of its command
9_0|10|RUNNING|2:00|n2|None|me|0:10|N/A|1|(null)|groot|/w|(null)
9_[1-3]|9|PENDING|3:00||Priority|me|0:00|N/A|1|afterok:7(unfulfilled)|groot|/w|(null)
"""
SACCT = "5|CANCELLED by 1000|n3|me|60|cpu=2,gres/gpu=4||||groot\n5|FAILED|n4|me|30|cpu=2,gres/gpu=4||||groot\n"


def test_jobs_are_squeues_and_those_it_has_forgotten_sacct_s(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answers(monkeypatch, queue, squeue=SQUEUE.replace("|", "\x1f"), sacct=SACCT)
    found = Queue.read([{"job_id": job} for job in ("5", "7", "9_0")])
    assert calls[1][-1] == "--jobs=5"
    job = found.jobs["7"]
    assert (job.name, job.state, job.reason, job.time_left, job.nodes) == ("groot", "RUNNING", "", "1:00", "n1")
    assert (job.gpus, job.seconds, job.command) == (8, 90, "/w/a.sbatch x=1")
    forgotten = found.jobs["5"]
    assert (forgotten.state, forgotten.seconds, forgotten.gpus, forgotten.alive) == ("FAILED", 90, 4, False)
    assert found.jobs["10"] == found.jobs["9_0"] and "9" not in found.jobs
    assert found.jobs["9_[1-3]"].reason == "Priority" and found.jobs["9_[1-3]"].alive
    assert found.jobs["9_[1-3]"].dependency == "afterok:7(unfulfilled)"
    assert found.find({"job_id": 7}) == found.find({"job_id": "7", "job_name": "groot"}) == found.jobs["7"]
    assert found.find({"job_id": "7", "job_name": "another"}) is None and found.find({"job_id": "8"}) is None
    others = [{"job_id": "7", "user": "other"}, {"job_id": "6", "user": "other"}]
    assert len(calls) == 2 and Queue.read(others).jobs.keys() == {"5", "7", "9_0", "10", "9_[1-3]"}
    assert calls[3][1] == "--jobs=6"


def test_partitions_are_read_with_their_own_nodes_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = (
        "PartitionName=gpu Default=YES State=UP MaxTime=1-00:00:00 MaxNodes=2 AllowAccounts=a,b AllowQos=ALL\n"
        "PartitionName=cpu Default=NO State=DOWN MaxTime=UNLIMITED MaxNodes=UNLIMITED AllowAccounts=ALL AllowQos=x\n"
    )
    listed = "n1|gpu|64+|1000|gpu:a100:4,gpu:a100:2\nn2|cpu|8|500|(null)\nn3|hidden|8|500|(null)\n"
    answers(monkeypatch, inventory, scontrol=shown, sinfo=listed)
    nodes = [Node("n1", 64, 1000, {"a100": 6})], [Node("n2", 8, 500, {})]
    assert inventory.read_partitions() == {
        "gpu": Partition("gpu", True, True, 86400, 2, ["a", "b"], None, nodes[0]),
        "cpu": Partition("cpu", False, False, None, None, None, ["x"], nodes[1]),
    }


def test_the_most_gpus_are_those_of_one_node_of_that_type() -> None:
    nodes = [Node("a", 1, 1, {"a100": 4, "v100": 2}), Node("b", 1, 1, {"v100": 5})]
    assert [inventory.most(nodes, kind) for kind in (None, "a100", "v100", "l4")] == [6, 4, 5, 0]
    assert inventory.most([], None) == 0


def test_sizes_and_times_are_written_as_sbatch_takes_them() -> None:
    assert [megabytes(text) for text in ("512", "2048K", "3M", "64g", "1T", "0")] == [512, 2, 3, 65536, 1048576, 0]
    assert [in_time(seconds) for seconds in (59, 3661, 86399, 86400, 183845)] == [
        *("00:00:59", "01:01:01", "23:59:59", "1-00:00:00", "2-03:04:05"),
    ]


@pytest.mark.parametrize(
    "asks, problem",
    [
        ({"nodes": 2, "cpus_per_task": 16, "memory": "100M", "time": "1:00:00", "gpus_per_node": 4}, None),
        ({"gpus_per_node": 5}, "have 4 a100 GPUs at most"),
        ({"nodes": 3}, "2 nodes that fit"),
        ({"nodes": 2, "cpus_per_task": 17}, "gives 1 nodes that fit"),
        ({"cpus_per_task": 33}, "no node of partition gpu has as much"),
        ({"memory": "101M", "nodes": 2}, "gives 1 nodes that fit"),
        ({"time": "1:00:01"}, "above the limit of partition gpu, 01:00:00"),
        ({"time": "UNLIMITED"}, "above the limit"),
        ({"time": "0:05:00"}, "no time to train"),
        ({"time": "0:05:01"}, None),
        ({"gpu_type": "v100"}, "cluster.partition=old"),
        ({"partition": "gpu,old", "gpu_type": "v100", "time": "2:00:00", "gpus_per_node": 2}, None),
        ({"partition": "off"}, "off is not up"),
        ({"partition": "gpu,nope"}, 'no partition "nope"'),
        ({"gpu_type": None, "gpus_per_node": 0, "nodes": 2}, None),
    ],
)
def test_a_job_is_refused_where_no_partition_of_its_own_has_room(
    asks: dict, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [Node("a", 16, 100, {"a100": 4}), Node("b", 32, 200, {"a100": 4}), Node("c", 32, 200, {"a100": 4})]
    found = [
        Partition("gpu", True, True, 3600, 2, None, None, nodes[:2]),
        Partition("old", False, True, 7200, None, None, None, [Node("o", 8, 50, {"v100": 2})]),
        Partition("off", False, False, None, None, None, None, nodes),
    ]
    monkeypatch.setattr(inventory, "read_partitions", lambda: {partition.name: partition for partition in found})
    small = {"gpus_per_node": 1, "cpus_per_task": 1, "memory": None, "time": "0:30:00", "gpu_type": "a100"}
    cluster = ClusterConfig(**{**small, **asks})
    if problem is None:
        check_fits(cluster)
    else:
        with pytest.raises(ToolkitError, match=problem):
            check_fits(cluster)


def test_accounts_and_qos_are_those_that_slurm_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"scontrol": "AccountingStorageType   = accounting_storage/slurmdbd\n", "sacctmgr": "vision\nrobots\n"}

    def answer(name: str, *rest: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([name], 0, answers[name], "")

    monkeypatch.setattr(inventory, "slurm", answer)
    monkeypatch.setattr(
        inventory, "read_partitions", lambda: {"gpu": Partition("gpu", True, True, 3600, 2, None, None)}
    )
    monkeypatch.setattr("finetune.slurm.refusals._no_room", lambda *_: None)
    for name, whose in (("account", "none of your accounts"), ("qos", "no qos of this cluster")):
        check_fits(ClusterConfig(time="0:30:00", **{name: "robots"}))
        with pytest.raises(ToolkitError, match=rf'cluster.{name}=robot is {whose} .* Did you mean "robots"\?'):
            check_fits(ClusterConfig(time="0:30:00", **{name: "robot"}))
    answers["scontrol"] = "AccountingStorageType   = (null)\n"
    check_fits(ClusterConfig(time="0:30:00", account="robot"))


def submitted_as(first: int, batches: list[Batch]) -> list[str | None]:
    """Give the batches these job ids in turn; what each waits for."""
    waits = []
    for number, batch in enumerate(batches, start=first):
        waits.append(batch.waits)
        batch.submitted(str(number))
    return waits


def test_points_of_equal_resources_are_an_array_of_each_stage(tmp_path: Path) -> None:
    seeds, place = ("train.seed=1,2", "max_parallel=1"), f"run_dir={tmp_path}/${{train.seed}}"
    batches = batches_of(asked(*seeds, "stages=prepare,finetune,evaluate", "raw_dir=raw", place), tmp_path / "own")
    assert submitted_as(101, batches) == ["", "afterok:101", "aftercorr:102"]
    assert [task.job_id for batch in batches for task in batch.tasks] == ["101", "102_0", "102_1", "103_0", "103_1"]
    assert "#SBATCH --array=0-1%1\n" in batches[1].script and "#SBATCH --array=0-1\n" in batches[2].script
    assert batches[1].log_of(batches[1].tasks[1]) == f"{tmp_path}/own/102_1.out"
    assert "--signal" in batches[1].script and "--signal" not in batches[2].script


def test_elements_without_the_same_one_before_wait_for_their_own(tmp_path: Path) -> None:
    request = asked("split=color_object,color_size", "train.seed=1,2", "stages=prepare,finetune", "raw_dir=raw")
    batches = batches_of(request, tmp_path)
    assert submitted_as(7, batches) == ["", None]
    waits = {task.name: batches[1].waits_of(task) for task in batches[1].tasks}
    assert waits == {
        **{f"color_object-seed_{seed}": "afterok:7_0" for seed in (1, 2)},
        **{f"color_size-seed_{seed}": "afterok:7_1" for seed in (1, 2)},
    }


def test_arrays_of_other_resources_share_the_bound(tmp_path: Path) -> None:
    request = asked("cluster.nodes=1,2,4", "train.seed=1,2")
    shares: dict[int | None, list[tuple[int | None, list[int]]]] = {
        None: [(None, []), (None, []), (None, [])],
        5: [(2, []), (2, []), (1, [])],
        3: [(1, []), (1, []), (1, [])],
        2: [(1, []), (1, []), (1, [0])],
        1: [(1, []), (1, [0]), (1, [0, 1])],
    }
    for bound, expected in shares.items():
        request.launch.max_parallel = bound
        batches = batches_of(request, tmp_path)
        assert [(batch.bound, [batches.index(other) for other in batch.lane]) for batch in batches] == expected
        assert submitted_as(1, batches)[2] == ",".join(f"afterany:{number + 1}" for number in expected[2][1])


def test_an_array_is_no_larger_than_the_cluster_takes(tmp_path: Path) -> None:
    batches = batches_of(asked("train.seed=1,2,3,4", "max_parallel=3"), tmp_path, largest=3)
    assert [(len(batch.tasks), batch.bound) for batch in batches] == [(2, 2), (2, 1)]
    assert len({batch.elements for batch in batches}) == 2


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
    many = ("train.max_steps=100000000", "train.save_steps=1", "train.keep_every=1")
    assert "checkpoints" in refused_here(tmp_path, site(*many)) and "train.keep_last" in refused_here(
        tmp_path, site(*many)
    )


def without_slurm(folder: Path) -> dict[str, str]:
    """An environment with git and this Python only."""
    (folder / "bin").mkdir()
    (folder / "bin" / "git").symlink_to(str(shutil.which("git")))
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(folder / "bin")])}


def test_a_dry_run_prints_scripts_and_configurations_and_writes_nothing(site, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch_finetune_slurm.py")]
    arguments = site("split=color_object,color_size", "max_parallel=1", "dry_run=true")
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT, env=without_slurm(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-1%1" in done.stdout and "#SBATCH --gres=gpu:a100:1" in done.stdout
    assert done.stdout.count("# ----- configuration of color_") == 2 and "max_steps: 2" in done.stdout
    assert "nothing was submitted" in done.stdout and not (tmp_path / "runs").exists()


def test_nothing_of_the_launcher_needs_torch(site, tmp_path: Path) -> None:
    code = (
        "import sys; from finetune.slurm.submit import launch; from finetune.slurm.launch_request import read;"
        "from finetune import jobs; import submitit.slurm.slurm; launch(read(sys.argv[1:]));"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *site("dry_run=true")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=without_slurm(tmp_path))
    assert done.returncode == 0, done.stderr


IMPOSSIBLE = {
    "cluster.partition=mian": ('no partition "mian"', '"main"'),
    "cluster.gpu_type=h100": ("cluster.gpu_type=h100", '"a100"'),
    "cluster.gpus_per_node=8": ("have 4 a100 GPUs at most", "cluster.gpus_per_node=4"),
    "cluster.nodes=4": ("2 nodes that fit", "cluster.nodes=2"),
    "cluster.cpus_per_task=1000": ("no node of partition main has as much",),
    "cluster.memory=9000G": ("no node of partition main has as much",),
    "cluster.memory=plenty": ("no size that sbatch takes", "64G"),
    "cluster.time=soon": ("no time that sbatch takes", "24:00:00"),
    "cluster.time=0:04:00": ("no time to train", "grace_seconds=300"),
    "cluster.constraint=gold": ("SLURM would refuse",),
    "cluster.sbatch=[--colour=red]": ("SLURM would refuse",),
}


@pytest.mark.parametrize("argument", IMPOSSIBLE)
def test_what_the_cluster_does_not_have_is_refused(cluster: Cluster, site, tmp_path: Path, argument: str) -> None:
    message = refused_here(tmp_path, site("train.global_batch_size=8", argument))
    assert all(part in message for part in IMPOSSIBLE[argument]) and "\n" not in message
    assert cluster.run("squeue", "--noheader") == ""


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


def test_the_stages_beside_a_fine_tune_ask_for_what_they_need() -> None:
    request = asked("stages=prepare,finetune,evaluate", "cluster.memory=500G", "cluster.partition=gpu", "raw_dir=raw")
    prepare, tune, evaluate = map(cluster_of, request.tasks)
    assert (prepare.gpus_per_node, prepare.cpus_per_task, prepare.memory, prepare.partition) == (0, 8, None, "gpu")
    assert (evaluate.gpus_per_node, evaluate.cpus_per_task, evaluate.memory) == (1, 8, None)  # 32 CPUs for 4 GPUs
    assert (tune.gpus_per_node, tune.cpus_per_task, tune.memory) == (4, 32, "500G")
    own = {"gpus": 2, "cpus": 3, "memory": "9G", "partition": "cpu", "time": "1:00:00", "sbatch": "[--exclusive]"}
    typed = [f"cluster.stages.evaluate.{name}={value}" for name, value in own.items()]
    (chosen,) = map(cluster_of, asked("stages=evaluate", *typed).tasks)
    assert (chosen.gpus_per_node, chosen.cpus_per_task, chosen.memory) == (2, 3, "9G")
    assert (chosen.partition, chosen.time, chosen.sbatch) == ("cpu", "1:00:00", ["--exclusive"])
    both = asked("stages=evaluate", "mode=open_loop,closed_loop", "cluster.stages.closed_loop.cpus=24").tasks
    assert [cluster_of(task).cpus_per_task for task in both] == [8, 24]


def test_a_controller_that_is_down_is_said(cluster: Cluster, site, tmp_path: Path, monkeypatch) -> None:
    settings = (cluster.folder / "etc" / "slurm.conf").read_text()
    away = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", settings)
    (tmp_path / "slurm.conf").write_text(re.sub(r"MessageTimeout=\d+", "MessageTimeout=2", away))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert "SLURM does not answer" in refused_here(tmp_path, site())


def test_of_two_launches_at_once_only_one_queues_the_run(cluster: Cluster, site, tmp_path: Path) -> None:
    command = [sys.executable, "launch_finetune_slurm.py", *site("cluster.setup=[exec sleep 300]")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    (job,) = cluster.run("squeue", "--noheader", "--format=%i").split()
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
    with pytest.raises(ToolkitError, match="sbatch refused the job"):
        submit(batches, tmp_path / "runs" / ".launcher" / "now")
    assert cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING") == ""
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
