"""Jobs of a request: arrays, who waits for whom, how many run at once, and what each stage asks for."""

from __future__ import annotations

from pathlib import Path

from launching import asked, submitted_as

from finetune.slurm.batches import batches_of, cluster_of


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
