"""What a command line of the launcher asks for: points of a sweep, stages, their arguments, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import asked, overrides, refusal

from finetune.slurm.batches import batches_of
from toolkit.configuration import load


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


def test_folders_in_lists_are_those_that_the_launcher_sees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lists = ("dataset.mixture=[data/a/train:2,data/b/train]", "dataset.exclude=[data/a/train/3,data/b/train/4:6]")
    assert overrides(asked("split=color_object", *lists), "dataset.mixture") == ["[data/a/train:2,data/b/train]"]
    monkeypatch.chdir(tmp_path)
    request = asked("split=color_object", *lists)
    again = load("finetune", ["local=none", *request.tasks[0].overrides], check_here=False).dataset
    assert again.mixture == [f"{tmp_path}/data/a/train:2", f"{tmp_path}/data/b/train"]
    assert again.exclude == [f"{tmp_path}/data/a/train/3", f"{tmp_path}/data/b/train/4:6"]
    assert overrides(asked("split=color_object", "dataset.exclude=[3,17]"), "dataset.exclude") == ["[3,17]"]
