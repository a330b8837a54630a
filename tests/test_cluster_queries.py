"""What SLURM's commands say of partitions, nodes, accounts and jobs, and what is refused for it."""

from __future__ import annotations

import subprocess

import pytest

from finetune.recipe import ClusterConfig
from finetune.slurm import cluster_queries as inventory
from finetune.slurm import cluster_queries as queue
from finetune.slurm.cluster_queries import Node, Partition, Queue, in_time
from finetune.slurm.refusals import check_fits, megabytes
from gr00t.errors import ToolkitError


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
        ({"time": "soon"}, "no time that sbatch takes. Write .*24:00:00"),
        ({"memory": "plenty"}, "no size that sbatch takes. Write 64G"),
        ({"gpu_type": "v100"}, "cluster.partition=old"),
        ({"gpu_type": "h100"}, '"a100"'),
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


def test_a_qos_that_lifts_the_limits_of_partitions_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"format=name,flags": ["long|DenyOnLimit,PartitionTimeLimit", "normal|"], "format=defaultqos": ["normal"]}
    monkeypatch.setattr(inventory, "accounting", lambda *shown: listed.get(shown[-1], ["long", "normal"]))
    monkeypatch.setattr(
        inventory, "read_partitions", lambda: {"gpu": Partition("gpu", True, True, 3600, 2, None, None)}
    )
    monkeypatch.setattr("finetune.slurm.refusals._no_room", lambda *_: None)
    check_fits(ClusterConfig(time="2:00:00", qos="long"))
    for qos in ("normal", None):
        with pytest.raises(ToolkitError, match="above the limit of partition gpu, 01:00:00"):
            check_fits(ClusterConfig(time="2:00:00", qos=qos))
    listed["format=defaultqos"] = ["long"]
    check_fits(ClusterConfig(time="2:00:00"))
