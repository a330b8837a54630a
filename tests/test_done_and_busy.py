"""What launching again leaves out: what is done, and what a job that is queued or runs does already."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from functools import cache
from pathlib import Path

import pytest

from finetune.slurm.attempt_record import RECORD, describe_job, job_folder
from finetune.slurm.cluster_queries import Job, Queue
from finetune.slurm.done_and_busy import leave_out
from finetune.slurm.launch_request import Request, Task, read
from finetune.slurm.refusals import check_request
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from gr00t.model.checkpoint_folder import fingerprint

CHAIN = ("stages=prepare,finetune,evaluate", "raw_dir=raw")


read_once = cache(lambda *argv: read(argv))  # composing a request takes longer than what is tested


def asked(tmp_path: Path, *more: str) -> Request:
    places = (f"run_dir={tmp_path}/runs/${{train.seed}}", f"output_dir={tmp_path}/done/${{train.seed}}")
    given = ("local=none", *places, f"runs_dir={tmp_path}/runs", f"dataset.data_dir={tmp_path}/data", *more)
    return copy.deepcopy(read_once(*given))


def queued(*tasks: Task) -> Queue:
    """SLURM's answer where each of these is a pending job, 101, 102, ..., as the launcher noted it."""
    jobs = {}
    for number, task in enumerate(tasks, start=101):
        folder = job_folder(task.run_dir, task.label)
        folder.mkdir(parents=True)
        describe_job(folder, "", task.overrides, task.config)
        noted = {"job_id": str(number), "name": task.name, "stage": task.stage, "split": task.run.split.name}
        write_json(folder / RECORD, noted)
        jobs[str(number)] = Job(str(number), task.name, "PENDING")
    return Queue(jobs)


def left(request: Request, queue: Queue) -> tuple[dict[str, list[str]], str]:
    """What is still asked for, each with the jobs it waits for that are queued already; and what was said."""
    said: list[str] = []
    leave_out(request, queue, said.append)
    return {task.name: [other.job_id for other in task.after] for task in request.tasks}, "\n".join(said)


def test_a_missing_stage_waits_for_a_busy_one(tmp_path: Path) -> None:
    prepare, tune, evaluate = asked(tmp_path, *CHAIN).tasks
    queue = queued(prepare, tune)
    found, said = left(asked(tmp_path, *CHAIN), queue)
    assert found == {evaluate.name: ["102"]}
    assert f"{prepare.name}: job 101 (pending) does it already" in said and f"{tune.name}: job 102" in said
    # of another run, but of the same dataset
    found, said = left(asked(tmp_path, *CHAIN, "train.seed=43"), queue)
    assert found == {"43": ["101"], "43-evaluate": [""]} and "43-prepare: job 101" in said


@pytest.mark.parametrize("change", ["train.learning_rate=2e-3", "model.base=other", "val_fraction=0.2"])
def test_a_busy_job_with_other_settings_is_in_the_way(tmp_path: Path, change: str) -> None:
    prepare, tune, _ = asked(tmp_path, *CHAIN).tasks
    queue = queued(prepare, tune)
    with pytest.raises(ToolkitError, match=r"belongs to job 10[12] .*finetune.jobs cancel 42"):
        left(asked(tmp_path, *CHAIN, change), queue)
    assert left(asked(tmp_path, *CHAIN, "cluster.time=1:00:00"), queue)[0] == {"42-evaluate": ["102"]}


def test_what_a_busy_evaluation_reads_is_not_replaced(tmp_path: Path) -> None:
    _, _, evaluate = asked(tmp_path, *CHAIN).tasks
    with pytest.raises(ToolkitError, match=r"belongs to job 101 \(42-evaluate\)"):
        left(asked(tmp_path, *CHAIN), queued(evaluate))


def test_an_evaluation_is_done_where_its_report_of_this_checkpoint_is(tmp_path: Path, tiny_base: Path) -> None:
    given = ("stages=evaluate", f"checkpoint={tmp_path}/done", f"report_dir={tmp_path}/report")
    (task,) = asked(tmp_path, *given).tasks
    checkpoint, report = tmp_path / "done", tmp_path / "report" / "open_loop.json"
    (checkpoint / "experiment_cfg").mkdir(parents=True)
    (checkpoint / "experiment_cfg" / "run.json").write_text("{}")
    for path in tiny_base.glob("*.*"):
        (checkpoint / path.name).symlink_to(path)
    report.parent.mkdir()
    config = dataclasses.asdict(task.config)
    del config["guidance"]  # of a report that was written before there was this key
    write_json(report, {"checkpoint_fingerprint": fingerprint(checkpoint), "config": config})
    found, said = left(asked(tmp_path, *given), Queue({}))
    assert found == {} and f"{report} is there already" in said
    assert left(asked(tmp_path, *given, "device=cpu"), Queue({}))[0] == {}
    assert left(asked(tmp_path, *given, "seed=7"), Queue({}))[0] == {task.name: []}
    of_a_dataset = {"checkpoint_fingerprint": fingerprint(checkpoint), "config": config, "dataset_fingerprint": "old"}
    write_json(report, of_a_dataset)
    assert left(asked(tmp_path, *given), Queue({}))[0] == {}
    folder = tmp_path / "data/color_object/train/meta"
    folder.mkdir(parents=True)
    for fingerprints, done in (({"fingerprint": "old"}, True), ({"fingerprint": "new"}, False), ({}, True)):
        write_json(folder / "split.json", fingerprints)
        assert (left(asked(tmp_path, *given), Queue({}))[0] == {}) is done
    write_json(report, {"checkpoint_fingerprint": "of another checkpoint", "config": config})
    assert left(asked(tmp_path, *given), Queue({}))[0] == {task.name: []}


RECORDED = ("stages=record,prepare,finetune", "part=train")


def there(folder: Path, *parts: str) -> None:
    """Datasets, as far as the launcher looks."""
    for part in parts:
        (folder / part / "meta").mkdir(parents=True)
        write_json(folder / part / "meta" / "info.json", {})
        write_json(folder / part / "meta" / "split.json", {"instruction": None, "seed": 42, "val_fraction": 0.1})


def suite(tmp_path: Path, *more: str) -> Request:
    stages = [] if more[:1] == RECORDED[:1] else ["stages=prepare,finetune"]
    return asked(tmp_path, "split=instruction/color_object", f"raw_dir={tmp_path}/raw", *stages, *more)


def test_a_dataset_of_what_is_to_be_recorded_again_is_no_result(tmp_path: Path) -> None:
    there(tmp_path / "data/instruction/color_object", "train")
    recording = (*RECORDED, "episodes=500")
    with pytest.raises(ToolkitError, match=r"train is there.*recorded now.*prepare.overwrite=true.*data_dir="):
        left(suite(tmp_path, *recording), Queue({}))
    found, _ = left(suite(tmp_path, *recording, "prepare.overwrite=true"), Queue({}))
    assert [name.removeprefix("42-") for name in found] == ["record-train", "prepare", "42"]
    assert found["42"] == [""]  # waits for the conversion


@pytest.mark.parametrize(("key", "value", "made"), [("val_fraction", "0.3", "0.1"), ("prepare.seed", "7", "42")])
def test_a_dataset_with_other_settings_than_typed_is_no_result(tmp_path: Path, key: str, value: str, made: str) -> None:
    there(tmp_path / "data/instruction/color_object", "train")
    assert [*left(suite(tmp_path), Queue({}))[0]] == ["42"]
    assert [*left(suite(tmp_path, f"{key}={made}"), Queue({}))[0]] == ["42"]
    name = key.removeprefix("prepare.")
    with pytest.raises(ToolkitError, match=rf"train was converted with {name}={made}, not {value}. prepare.overwrite"):
        left(suite(tmp_path, f"{key}={value}"), Queue({}))


def test_a_part_that_was_recorded_by_hand_is_converted(tmp_path: Path) -> None:
    there(tmp_path / "data/instruction/color_object", "train")
    (tmp_path / "raw/instruction/color_object/train").mkdir(parents=True)
    assert [*left(suite(tmp_path), Queue({}))[0]] == ["42"]
    (tmp_path / "raw/instruction/color_object/unseen").mkdir()
    found, _ = left(suite(tmp_path), Queue({}))
    assert found == {"42-prepare": [], "42": [""]}


def test_a_conversion_that_makes_fewer_parts_than_are_trained_on_is_in_the_way(tmp_path: Path) -> None:
    request = suite(tmp_path, *RECORDED)
    queue = queued(*request.tasks[:2])
    for task in request.tasks[:2]:
        path = job_folder(task.run_dir, task.label) / RECORD
        write_json(path, {**read_json(path), "parts": sorted(task.parts)})
    more = (*RECORDED, "train.seed=43")
    assert left(suite(tmp_path, *more), queue)[0] == {"43": ["102"]}
    with pytest.raises(ToolkitError, match=r"the dataset of 43-prepare belongs to job 102 .*data_dir="):
        left(suite(tmp_path, *more, "dataset.conflict_share=0.1"), queue)


def test_a_part_that_is_trained_on_and_recorded_nowhere_is_refused_before_it_is_queued(tmp_path: Path) -> None:
    (tmp_path / "raw/instruction/color_object/train").mkdir(parents=True)
    request = suite(tmp_path, "dataset.conflict_share=0.1", "dry_run=true", "device=cpu")
    with pytest.raises(ToolkitError, match=r"train_conflict is not there, and dataset.conflict_share=0.1 trains on it"):
        check_request(request, lambda said: None)


def finished(request: Request, base: Path) -> None:
    """A finished checkpoint of the request's fine-tune, as far as the launcher looks."""
    (tune,) = request.of_stage("finetune")
    folder = Path(tune.config.output_dir) / "experiment_cfg"
    shutil.copytree(base, folder.parent)
    folder.mkdir(exist_ok=True)
    write_json(folder / "run.json", {})
    write_json(folder / "config.yaml", dataclasses.asdict(tune.config))


def test_other_weights_of_the_same_run_are_no_result(tmp_path: Path, tiny_base: Path) -> None:
    finished(asked(tmp_path), tiny_base)
    assert left(asked(tmp_path), Queue({}))[0] == {}
    best = ("train.export=best", "train.eval_steps=1000")
    with pytest.raises(ToolkitError, match=r"another run:\n  train.export: 'last' there, 'best' now"):
        left(asked(tmp_path, *best), Queue({}))


def test_a_training_that_gave_up_continues_where_it_has_more_patience(tmp_path: Path, tiny_base: Path) -> None:
    patience = ("train.eval_steps=1000", "train.patience=2")
    finished(asked(tmp_path, *patience), tiny_base)
    assert left(asked(tmp_path, *patience), Queue({}))[0] == {}
    assert left(asked(tmp_path, "train.eval_steps=1000", "train.patience=1"), Queue({}))[0] == {}
    for more in ("train.patience=3", "train.patience=null"):
        assert left(asked(tmp_path, "train.eval_steps=1000", more), Queue({}))[0] == {"42": []}


OTHERS = {
    "model=small": "model.name: 'released' there, 'small' now",
    "dataset.exclude=[1,2]": "dataset.exclude",
    "dataset.mixture=[data/a/train:2,data/b/train]": "dataset.mixture",
    "split=color_size": "split.name: 'color_object' there, 'color_size' now",
}


@pytest.mark.parametrize("change", [*OTHERS, "model.base=other", "dataset.data_dir=elsewhere"])
def test_another_fine_tune_in_the_same_folders_is_neither_done_nor_busy(
    change: str, tmp_path: Path, tiny_base: Path
) -> None:
    places = ("split=color_object", f"run_dir={tmp_path}/runs/x", f"output_dir={tmp_path}/done/x")

    def request(*more: str) -> Request:
        names = [argument.partition("=")[0] for argument in more]
        own = [argument for argument in places if argument.partition("=")[0] not in names]
        return copy.deepcopy(read_once("local=none", f"runs_dir={tmp_path}/runs", *own, *more))

    queue = queued(*request().tasks)
    assert left(request(), queue)[0] == {}
    with pytest.raises(ToolkitError, match="belongs to job 101"):
        left(request(change), queue)
    finished(request(), tiny_base)
    assert left(request(), Queue({}))[0] == {}
    if change in OTHERS:
        with pytest.raises(ToolkitError, match="another run") as refusal:
            left(request(change), Queue({}))
        assert OTHERS[change] in str(refusal.value)
    else:  # only the training can tell
        assert left(request(change), Queue({}))[0] == {"x": []}
