"""Recording as a stage of the launcher, and stages that are divided into shares: what is asked for, what is left out
when it is asked for again, and what becomes of jobs whose shares fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import asked, refusal, submitted_as
from simulator import recorded as recorded_by_one
from slurm_cluster import Cluster
from test_done_and_busy import left, queued

from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from finetune.jobs.control import _chain, _waited_for
from finetune.jobs.run_views import KnownJobs, View, recorded_in, views, views_of
from finetune.slurm.batches import batches_of, cluster_of
from finetune.slurm.cluster_queries import Job, Queue
from finetune.slurm.launch_request import Request, read
from finetune.slurm.submit import _former_shares, launch
from gr00t.errors import ToolkitError
from simulation.record import JSON, SETTINGS, settings_of

ALL = "stages=record,prepare,finetune,evaluate"
SHARES = ("cluster.stages.record.shares=2", "cluster.stages.prepare.shares=2")


def chain(tmp_path: Path, *more: str) -> Request:
    """Record and convert one split in two shares each, then fine-tune."""
    places = {"run_dir": "runs/s${train.seed}", "output_dir": "done/s${train.seed}", "dataset.data_dir": "data"}
    places |= {"raw_dir": "raw", "runs_dir": "runs"}
    folders = [f"{name}={tmp_path}/{place}" for name, place in places.items() if f"{name}=" not in str(more)]
    divided = [share for share in SHARES if share.partition("=")[0] not in str(more)]
    return asked("stages=record,prepare,finetune", *folders, *divided, *more)


def test_every_part_is_recorded_where_the_conversion_looks_for_it() -> None:
    typed = ("raw_dir=raw", "episodes=7", "image_size=64", "part=val", "evaluate.seed=5", "prepare.seed=6")
    request = asked(ALL, *typed)
    train, conflict, prepare, tune, evaluation = request.tasks
    assert [task.name for task in (train, conflict)] == ["color_object-record-train", "color_object-record-conflict"]
    assert [(task.config.part, task.config.episodes, task.config.out) for task in (train, conflict)] == [
        *(("train", 7, "raw"), ("conflict", 7, "raw")),
    ]
    assert (train.config.seed, train.config.workers, train.config.image_size) == (0, 8, 64)
    assert prepare.after == [train, conflict] and prepare.config.raw_dir == "raw" and tune.after == [prepare]
    assert (evaluation.config.part, evaluation.config.seed, prepare.config.seed) == ("val", 5, 6)
    closed = asked(ALL, "mode=closed_loop", "episodes=7", "evaluate.episodes=3").tasks
    assert (closed[0].config.episodes, closed[-1].config.episodes) == (7, 3)
    asks = cluster_of(train)
    assert (asks.gpus_per_node, asks.cpus_per_task, asks.nodes) == (0, 8, 1)


def test_one_part_or_other_resources_of_the_recording_can_be_asked_for() -> None:
    own = ("cluster.stages.record.cpus=20", "cluster.stages.record.partition=cpu", "render=gpu")
    (task,) = asked("stages=record", "part=conflict", "out=elsewhere", *own).tasks
    assert (task.config.part, task.config.out, task.config.workers) == ("conflict", "elsewhere", 20)
    assert (cluster_of(task).partition, cluster_of(task).cpus_per_task) == ("cpu", 20)
    request = asked("stages=record,prepare", "out=elsewhere", "record.workers=3")
    assert {task.config.out for task in request.of_stage("record")} == {"elsewhere"}
    assert request.of_stage("record")[0].config.workers == 3
    assert request.of_stage("prepare")[0].config.raw_dir == "elsewhere"


def test_parts_without_scenes_and_the_conflict_scenes_for_training_are_not_recorded() -> None:
    def parts(*arguments: str) -> list[str]:
        return [task.config.part for task in asked("stages=record", *arguments).of_stage("record")]

    assert parts("split=instruction/color_object") == ["train", "unseen", "conflict"]
    assert parts("split=instruction/color_object", "strategy=complete") == ["train", "conflict"]
    assert parts("split=instruction/all") == ["train", "unseen"]
    shared = ("split=instruction/color_object", "dataset.conflict_share=0.1")  # which a fine-tune then needs
    recorded = asked(ALL, *shared).of_stage("record")
    assert [task.config.part for task in recorded] == ["train", "unseen", "conflict", "train_conflict"]
    only = asked(ALL, *shared, "record.part=train")
    assert [task.config.part for task in only.of_stage("record")] == ["train", "train_conflict"]
    assert only.of_stage("prepare")[0].after == only.of_stage("record")


def test_every_stage_is_of_the_split_that_is_asked_for() -> None:
    tasks = asked(ALL, "split=instruction/color_object", "mode=closed_loop").tasks
    assert {task.config.split.name for task in tasks} == {"instruction/color_object"}


@pytest.mark.parametrize(
    "arguments, parts",
    {
        ("stages=record", "share=1/2"): ("share=", "cluster.stages.record.shares=8"),
        ("stages=record,prepare", "prepare.share=1/2"): ("share=", "cluster.stages.record.shares=8"),
        ("stages=record,prepare", "out=a", "raw_dir=b"): ("out=a and raw_dir=b",),
        ("stages=prepare", "recoveries=0.1"): ("recoveries belongs to the stage record", "stages=record,prepare"),
        ("stages=prepare,finetune", "record.episodes=3"): ("record.episodes belongs to the stage record",),
        ("stages=record", "record.episode=3"): ('no key "record.episode"', '"episodes"'),
        ("stages=record", "episodes=3,4"): ("same out",),
        ("stages=record", "split=mine", "split.instruction=go"): ("split=mine: there is no simulated task",),
        ("cluster.stages.record.shares=0",): ("shares=0", "at least 1"),
    }.items(),
)
def test_what_a_recording_cannot_be_is_refused(arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    message = refusal(*arguments)
    assert all(part in message for part in parts), message


def test_shares_are_an_array_and_one_job_joins_them(tmp_path: Path) -> None:
    request = asked(ALL, "split=color_object,size_color", *SHARES)
    batches = batches_of(request, tmp_path)
    assert submitted_as(1, batches) == ["", None, None, None, "aftercorr:4", "aftercorr:5"]
    assert [(batch.stage, len(batch.tasks)) for batch in batches] == [
        *(("record", 8), ("record", 4), ("prepare", 4), ("prepare", 2), ("finetune", 2), ("evaluate", 2)),
    ]
    shares, joins, converts, converted = batches[:4]
    assert [task.overrides[-1] for task in shares.tasks[:3]] == ["share=1/2", "share=2/2", "share=1/2"]
    assert not any("share" in text for batch in (joins, converted) for task in batch.tasks for text in task.overrides)
    assert [joins.waits_of(task) for task in joins.tasks[:2]] == ["afterok:1_0,afterok:1_1", "afterok:1_2,afterok:1_3"]
    waits = [[batch.waits_of(task) for task in batch.tasks] for batch in (converts, converted)]
    first, second = ("afterok:2_0,afterok:2_1", "afterok:2_2,afterok:2_3")
    assert waits == [[first, first, second, second], [first.replace(":2", ":3"), second.replace(":2", ":3")]]
    small = batches_of(request, tmp_path, largest=3)
    assert [len(batch.tasks) for batch in small[:5]] == [3, 3, 2, 2, 2]
    assert batches_of(asked("stages=prepare", "max_parallel=1"), tmp_path)[0].bound is None


def test_points_of_one_dataset_share_its_shares(tmp_path: Path) -> None:
    request = chain(tmp_path, "train.seed=1,2")
    assert [task.label for task in request.tasks] == [
        *("record-train-1of2", "record-train-2of2", "record-train"),
        *("record-conflict-1of2", "record-conflict-2of2", "record-conflict"),
        *("prepare-1of2", "prepare-2of2", "prepare", "finetune", "finetune"),
    ]
    assert len({str(task.run_dir / task.label) for task in request.tasks}) == 11


# -- again -------------------------------------------------------------------------------------------------------------


def test_what_is_queued_is_waited_for_whole_or_by_shares(tmp_path: Path) -> None:
    first, second, join, *_ = chain(tmp_path).tasks
    found, said = left(chain(tmp_path), queued(first, second, join))
    assert "s42-record-train" not in found and "s42-record-train-1of2" not in found and "job 103" in said
    assert found["s42-prepare-1of2"] == ["103", ""]
    # another number of shares, of another run: what joins them does all of it
    found, _ = left(chain(tmp_path, "train.seed=7", "cluster.stages.record.shares=4"), queued_again(tmp_path))
    assert found["s7-prepare-1of2"] == ["103", ""] and "s7-record-train-1of4" not in found


def queued_again(tmp_path: Path) -> Queue:
    """The answer of before."""
    names = {str(number): f"job {number}" for number in (101, 102, 103)}
    return Queue({job: Job(job, name, "RUNNING") for job, name in names.items()})


def test_a_share_whose_join_is_gone_is_not_done_twice(tmp_path: Path) -> None:
    _, second, *_ = chain(tmp_path).tasks
    queue = queued(second)
    found, said = left(chain(tmp_path), queue)
    assert found["s42-record-train"] == ["", "101"] and "s42-record-train-1of2" in found
    assert "s42-record-train-2of2" not in found and "s42-record-train-2of2: job 101" in said
    with pytest.raises(ToolkitError, match=r"made in other shares, belongs to job 101 \(s42-record-train-2of2\)"):
        left(chain(tmp_path, "cluster.stages.record.shares=4"), queue)
    with pytest.raises(ToolkitError, match=r"the recording of s42-record-train belongs to job 101"):
        left(chain(tmp_path, "record.episodes=9"), queue)


def recorded(request: Request, part: str, **changed: object) -> Path:
    """A recording of that part as the request asks for it, but for its content; its trajectory.json."""
    config = next(task.config for task in request.of_stage("record") if task.config.part == part)
    path = config.target / JSON
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"recording": {"settings": settings_of(config) | changed}}))
    return path


def test_a_recording_that_is_there_is_left_out_with_its_shares(tmp_path: Path) -> None:
    recorded(chain(tmp_path), "train")
    found, said = left(chain(tmp_path), Queue({}))
    assert [name for name in found if "record" in name] == [f"s42-record-conflict{x}" for x in ("-1of2", "-2of2", "")]
    assert f"s42-record-train: {tmp_path}/raw/color_object/train is there already" in said
    assert found["s42-prepare-1of2"] == [""]  # the conflict part
    assert "s42-record-train-1of2" in left(chain(tmp_path, "overwrite=true"), Queue({}))[0]
    for part in ("train", "conflict"):
        assert "s42-prepare" in left(chain(tmp_path), Queue({}))[0]  # which adds the part that is recorded
        (tmp_path / f"data/color_object/{part}/meta").mkdir(parents=True)
        (tmp_path / f"data/color_object/{part}/meta/info.json").touch()
    with pytest.raises(ToolkitError, match="color_object/conflict is there, and what it was made of is to be recorded"):
        left(chain(tmp_path), Queue({}))
    recorded(chain(tmp_path), "conflict")
    found, said = left(chain(tmp_path), Queue({}))
    assert found["s42"] == [] and not any("prepare" in name for name in found)


def test_another_recording_in_its_place_is_refused_before_it_is_queued(tmp_path: Path) -> None:
    request = chain(tmp_path)
    share, _, join, *_ = request.tasks
    share.config.check_here()
    path = recorded(request, "train", image_size=32)
    with pytest.raises(ToolkitError, match=r"holds a recording with image_size=32 \(now 224\)"):
        join.config.check_here()
    path.unlink()
    path.parent.rmdir()
    share.config.work.mkdir(parents=True)
    (share.config.work / SETTINGS).write_text(json.dumps(settings_of(share.config) | {"seed": 3}))
    over = chain(tmp_path, "record.overwrite=true").tasks
    over[2].config.check_here()
    with pytest.raises(ToolkitError, match="interrupted recording of other settings, which a share does not remove"):
        over[0].config.check_here()


def test_records_of_another_division_go_when_the_stage_is_submitted_again(tmp_path: Path) -> None:
    first, second, join, *others = chain(tmp_path).tasks
    queued(first, second, join)
    assert not any(_former_shares(task) for task in others)
    again = chain(tmp_path, "cluster.stages.record.shares=1").tasks[0]
    assert [path.name for path in _former_shares(again)] == ["job-record-train-1of2", "job-record-train-2of2"]
    assert _former_shares(join) == _former_shares(first) == []


# -- jobs --------------------------------------------------------------------------------------------------------------


def job(number: str, state: str, *after: str, name: str = "run") -> View:
    shown = (f"{name}-{number}", "color_object", "record", name, number, None, state, "", False, "")
    return View(*shown, waits_for=[*after])


def test_a_chain_begins_again_with_all_shares_that_failed() -> None:
    shares = [job("1_0", "completed"), job("1_1", "failed"), job("1_2", "cancelled"), job("1_3", "failed")]
    train = job("2_0", "dropped", "1_0", "1_1")
    conflict = job("2_1", "dropped", "1_2", "1_3")
    behind = [job("3", "dropped", "2_0", "2_1"), job("4", "dropped", "3")]
    other = [job("5", "failed", name="other"), job("6", "dropped", "5", name="other")]
    found = _chain(shares[1], [*behind, train, conflict, *shares, *other])
    assert [v.job for v in found] == ["1_1", "1_2", "1_3", "2_0", "2_1", "3", "4"]


def test_what_other_runs_wait_for_is_kept_with_its_shares() -> None:
    known = [job("1_0", "running"), job("2", "pending", "1_0"), job("3", "pending", "2"), job("4", "pending")]
    assert _waited_for([known[2]], known) == {"1_0", "2"}


def test_a_share_that_slurm_has_forgotten_is_known_by_its_log(tmp_path: Path) -> None:
    request = chain(tmp_path)
    tasks = request.tasks[:3]
    queued(*tasks)
    for task, said in zip(
        tasks, ("share 1/2 is there; the same without", "share 2/2 began; share 12/2 is there", ""), strict=True
    ):
        log = tmp_path / f"{task.label}.out"
        log.write_text(said)
        path = task.run_dir / f"job-{task.label}" / "submitted.json"
        more = {"log": str(log), "folder": "/", "submitted": "2026-11-20T10:00:00+00:00"}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    known = KnownJobs(tmp_path / "runs", recorded_in(tasks[0].run_dir), Queue({}))
    states = {view.name: view.state for view in views_of(known)}
    assert states == {"s42-record-train-1of2": "completed", "s42-record-train-2of2": "lost", "s42-record-train": "lost"}
    recorded(request, "train")
    assert {view.state for view in views_of(known)} == {"completed"}


def test_a_recording_in_the_usual_folder_is_known_when_slurm_has_forgotten_its_job(tmp_path: Path) -> None:
    (task,) = read(["local=none", "split=size_color", "stages=record", "part=train", f"run_dir={tmp_path}/s"]).tasks
    queued(task)
    assert "out" not in task.arguments
    (tmp_path / "log").touch()
    path = task.run_dir / f"job-{task.label}" / "submitted.json"
    more = {"log": f"{tmp_path}/log", "folder": str(tmp_path), "submitted": "2026-11-20T10:00:00+00:00"}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    known = KnownJobs(tmp_path, recorded_in(task.run_dir), Queue({}))
    assert [view.state for view in views_of(known)] == ["lost"]
    made = tmp_path / "conflict_maniskill/size_color/train/trajectory.json"
    made.parent.mkdir(parents=True)
    made.touch()
    assert [(view.state, view.reason) for view in views_of(known)] == [("completed", "")]


@pytest.mark.long
@pytest.mark.slow
def test_two_nodes_record_and_convert_in_shares_what_one_process_makes(
    cluster: Cluster, renderer: None, site: Callable[..., list[str]], tmp_path: Path
) -> None:
    where = (f"raw_dir={tmp_path}/raw", f"dataset.data_dir={tmp_path}/made", "split=size_color", "local=none")
    sizes = ("episodes=4", "image_size=64", "record.workers=1", "record.paraphrases=true", *SHARES)
    nodes = ("cluster.stages.record.cpus=20", "cluster.stages.prepare.cpus=20", "cluster.time=0:20:00")
    typed = site(
        "stages=record,prepare,finetune", *where, *sizes, *nodes, "train.max_steps=1", "cluster.cpus_per_task=20"
    )
    batches = launch(read(typed))
    assert launch(read(typed)) == []  # all are busy
    for part in ("train", "conflict"):
        recorded_by_one(tmp_path / "one", "episodes=4", "paraphrases=true", f"part={part}")
    for batch in batches:
        for task in batch.tasks:
            assert cluster.wait_for_state(task.job_id, timeout=400) == "COMPLETED", cluster.log(task.job_id)
    for array in (batches[0], batches[2]):
        assert {cluster.show(task.job_id)["NodeList"] for task in array.tasks} == {"node1", "node2"}
    assert contents(tmp_path / "raw") == contents(tmp_path / "one") and len(contents(tmp_path / "one")) == 4
    split = batches[0].tasks[0].config.split
    convert_split(tmp_path / "raw", tmp_path / "alone", split.name, split.instruction, MODALITY_CONFIG, progress=False)
    assert contents(tmp_path / "made") == contents(tmp_path / "alone")
    assert (tmp_path / "done/size_color/config.json").is_file()
    assert {view.state for view in views(tmp_path / "runs")} == {"completed", "finished"}
    assert launch(read(typed)) == []  # all are done


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks, and what training keeps beside a dataset."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    paths = [path for path in paths if ".cache" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
