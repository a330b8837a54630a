"""A study: every point of a grid is recorded, trained and evaluated once, what fails is said, and a page shows all."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from outcomes import acted, evaluation
from robots import absolute_arm
from simulator import needs_simulator

from finetune.recipe.recipe_identity import RELEASE_MARK
from finetune.slurm.launch_request import Task
from gr00t.errors import ToolkitError
from gr00t.file_replacement import write_json
from gr00t.model.checkpoint_folder import fingerprint
from simulation.record import completed, settings_of
from simulation.report.closed_loop_report import write_report
from simulation.report.proportions import Share, paired_difference
from simulation.report.training_seeds import measure, setting_difference
from simulation.scenes.instruction_suite import InstructedEpisode, combinations
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED
from simulation.study import study_run
from simulation.study.__main__ import main, read
from simulation.study.grid import Point, Study, read_study
from simulation.study.study_page import draw, over_trainings
from simulation.study.study_run import Standing, command_of, why
from toolkit.configuration import load
from toolkit.declaration import flat
from toolkit.installation import CONFIG_DIR

LOCAL = ["local=none"]
SMALL: dict[str, Any] = {
    "meaning": "A study of a test.",
    "axes": {"dataset.conflict_share": [0, 0.1], "train.seed": [0, 1], "guidance": [1, 2]},
    "settings": {
        **{"split": "instruction/color_object", "strategy": "random_f6_v3", "experiment": "demo", "tracking": "none"},
        **{"record": {"part": "train", "episodes": 3}, "evaluate": {"episodes": 5}},
    },
}


def written(folder: Path, **changes: Any) -> str:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return str(path)


def study(folder: Path, base: Path, axes: dict[str, list[Any]] | None = None, **settings: Any) -> Study:
    given = {**SMALL["settings"], "model.base": str(base), **settings}
    return read_study(written(folder, axes=axes or SMALL["axes"], settings=given), folder / "out", LOCAL)


def name_of(task: Task) -> str:
    return task.name


def folders(tasks: list[Any], name: str) -> set[str]:
    return {Path(getattr(task.config, name)).name for task in tasks}


def test_points_share_what_they_record_and_train_alike(tmp_path: Path, tiny_base: Path) -> None:
    found = study(tmp_path, tiny_base)
    tasks = {stage: found.request.of_stage(stage) for stage in ("record", "prepare", "finetune", "evaluate")}
    assert {stage: len(of) for stage, of in tasks.items()} == {"record": 2, "prepare": 1, "finetune": 4, "evaluate": 8}
    assert {task.config.part for task in tasks["record"]} == {"train", "train_conflict"}
    (prepare,) = tasks["prepare"]
    assert {*prepare.after} == {*tasks["record"]} and folders(tasks["record"], "out") == {"all"}
    assert all(task.after == [prepare] for task in tasks["finetune"])
    assert (
        len({(task.run_dir, task.label) for task in found.request.tasks})
        == 15
        == len({*map(name_of, found.request.tasks)})
    )
    assert folders(tasks["finetune"], "run_dir") == {
        f"conflict_share_{s}-seed_{n}" for s in ("0", "0.1") for n in (0, 1)
    }
    assert len(folders(tasks["evaluate"], "report_dir")) == 8 and folders(tasks["evaluate"], "checkpoint") == folders(
        tasks["finetune"], "output_dir"
    )
    for point in found.points:
        config, (tuned,) = point.evaluation.config, point.evaluation.after
        assert (config.guidance, config.episodes, config.mode) == (float(point.values["guidance"]), 5, "closed_loop")
        assert config.split.name == tuned.config.split.name == "instruction/color_object"
        assert tuned.config.train.seed == int(point.values["train.seed"])


def test_data_that_are_there_already_are_named(tmp_path: Path, tiny_base: Path) -> None:
    there = {"raw_dir": str(tmp_path / "recordings"), "data_dir": str(tmp_path / "data")}
    given = {**SMALL["settings"], **there, "model.base": str(tiny_base)}
    request = read_study(written(tmp_path, settings=given), tmp_path / "out", LOCAL).request
    assert {task.config.out for task in request.of_stage("record")} == {there["raw_dir"]}
    assert {task.config.dataset.data_dir for task in request.of_stage("finetune")} == {there["data_dir"]}
    assert folders(request.of_stage("evaluate"), "data_dir") == {"data"}


def test_recordings_differ_where_an_axis_is_of_theirs(tmp_path: Path, tiny_base: Path) -> None:
    given = {name: value for name, value in SMALL["settings"].items() if name != "strategy"}
    axes = {"strategy": ["diagonal_v3", "L_v3"], "train.seed": [0, 1]}
    path = written(tmp_path, axes=axes, settings={**given, "model.base": str(tiny_base)})
    found = read_study(path, tmp_path / "out", LOCAL)
    records = found.request.of_stage("record")
    assert {(task.config.strategy, Path(task.config.out).name) for task in records} == {
        *(("diagonal_v3", "strategy_diagonal_v3"), ("L_v3", "strategy_L_v3")),
    }
    assert len(found.request.of_stage("prepare")) == 2 and len(found.request.of_stage("finetune")) == 4
    assert [point.condition for point in found.points] == [("diagonal_v3",), ("diagonal_v3",), ("L_v3",), ("L_v3",)]


@pytest.mark.parametrize("name", ["strategy", "conflict_share", "guidance"])
def test_the_studies_that_ship_are_of_three_values_and_two_trainings(name: str, tmp_path: Path) -> None:
    content = yaml.safe_load((CONFIG_DIR / "study" / f"{name}.yaml").read_text())
    found = read_study(name, tmp_path / "out", LOCAL)
    assert len({point.condition for point in found.points}) >= 3 and content["axes"]["train.seed"] == [0, 1]
    for point in found.points:
        (tuned,) = point.evaluation.after
        (recorded, *_) = tuned.after[0].after
        strategy = completed(recorded.config).strategy
        assert tuned.config.model.name == "scratch" and strategy is not None and "_v3" in strategy
        if name == "conflict_share":  # only conflict scenes can tell which of the two words is meant
            counted = Counter(value for each in combinations(recorded.config.split.name, strategy)[0] for value in each)
            assert {*counted.values()} == {1}


def test_guidance_is_studied_on_what_the_example_records() -> None:
    settings = flat(yaml.safe_load((CONFIG_DIR / "study/guidance.yaml").read_text())["settings"])
    given = [f"split={settings['split']}", f"strategy={settings['strategy']}"]
    given += [
        f"{name.removeprefix('record.')}={value}" for name, value in settings.items() if name.startswith("record.")
    ]
    script = (CONFIG_DIR.parent / "scripts/example.sh").read_text()
    said = re.search(r"simulation.record local=none \$split (.*?)\n\s+(.*?) out=(\S+)", script.replace("\\\n", "\n"))
    assert said is not None and said[3] == settings["raw_dir"]
    example = [f"split={settings['split']}", *said[1].split(), *said[2].split()]
    ours, theirs = (settings_of(load("record", [*LOCAL, *words])) for words in (given, example))
    assert ours == theirs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axis": {}}, 'no "axis" in a study'),
        ({"axes": {}}, "axes and settings hold lines"),
        ({"axes": {"train.seeds": [0]}}, r'small.yaml: .*no key "train.seeds". Did you mean "train.seed"'),
        ({"axes": {"train.seed": 3}}, "train.seed takes a list"),
        ({"axes": {"train.seed": [1, 1]}}, "train.seed takes a list of different values"),
        ({"axes": {"split.instruction": ["a,b"]}}, "takes a list of different values"),
        ({"axes": {"train.seed": [-1]}}, "train.seed=-1"),
        ({"settings": {"run_dir": "here"}}, "run_dir is an axis, or set by the study"),
        (
            {"axes": {"strategy": ["L", "stair"]}, "settings": {"data_dir": "here"}},
            "data_dir is one folder",
        ),
        ({"settings": {"guidance": 2}}, "guidance is an axis, or set by the study"),
        ({"settings": {"evaluate": {"guidance": 2}}}, "guidance and evaluate.guidance are one key of one command"),
        ({"settings": {"episodes": 2, "record": {"episodes": 3}}}, "episodes and record.episodes are one key"),
        ({"settings": {"checkpoint": "here"}}, "checkpoint is an axis, or set by the study"),
        ({"settings": {"evaluate": {"report_dir": "here"}}}, "evaluate.report_dir is an axis, or set by the study"),
        ({"settings": {"prepare": {"raw_dir": "here"}}}, "prepare.raw_dir is an axis, or set by the study"),
        ({"axes": {"evaluate.checkpoint": ["here"]}}, "evaluate.checkpoint is an axis, or set by the study"),
        ({"axes": {"evaluate.parts": [["seen"], ["unseen"]]}}, "takes a list of different values.*none of them a list"),
        ({"axes": {"guidance": [1, 1.0]}}, "guidance takes a list of different values"),
        ({"settings": {"evaluate": {"episode": 3}}}, 'no key "evaluate.episode"'),
        ({"settings": ["a"]}, "axes and settings hold lines"),
    ],
)
def test_a_file_that_says_what_no_command_takes_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=said):
        read_study(written(tmp_path, **changes), tmp_path / "out", LOCAL)


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r'There is no study strategie.*Did you mean "strategy"'):
        read_study("strategie", tmp_path)
    with pytest.raises(ToolkitError, match="A study has one name"):
        read(["local=none"])
    with pytest.raises(ToolkitError, match='no key "minute"'):
        read(["local=none", "tiny", "minute=3"])
    assert read(["tiny", "local=none", "minutes=3"])[1:] == (read(["tiny", "minutes=3"])[1], ["local=none"])


def test_axes_may_be_nested_and_other_names_of_a_key_are_left_to_other_commands(
    tmp_path: Path, tiny_base: Path
) -> None:
    found = study(tmp_path, tiny_base, {"train": {"seed": [0, 1]}, "record": {"recoveries": [0.0, 0.2]}})
    assert found.axes == {"train.seed": ["0", "1"], "record.recoveries": ["0.0", "0.2"]}
    assert {Path(task.config.out).name for task in found.request.of_stage("record")} == {
        *("recoveries_0.0", "recoveries_0.2")
    }


def test_a_robot_of_ones_own_is_one_dataset_and_is_read_where_it_lies(tmp_path: Path, tiny_base: Path) -> None:
    robot = absolute_arm(tmp_path / "robot.py")
    found = study(tmp_path, tiny_base, {"train.seed": [0, 1]}, **{"dataset.modality_config": str(robot)})
    (prepare,) = found.request.of_stage("prepare")
    assert f"modality_config={robot}" in command_of(prepare, 1)
    assert all(f"dataset.modality_config={robot}" in command_of(t, 1) for t in found.request.of_stage("finetune"))


# -- what is there already ---------------------------------------------------------------------------------------------


def dataset(found: Study, parts: tuple[str, ...] = ("train",), episodes: int = 3, **recorded: str) -> None:
    """What a conversion leaves, as far as is looked at."""
    (prepare,) = found.request.of_stage("prepare")
    for part in parts:
        folder = Path(prepare.config.data_dir) / prepare.config.split.name / part / "meta"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "info.json").write_text(json.dumps({"total_episodes": episodes}))
        (folder / "split.json").write_text(json.dumps({"recorded": {"strategy": "random_f6_v3", **recorded}}))


def test_a_share_of_conflicts_that_comes_later_is_recorded_and_converted(tmp_path: Path, tiny_base: Path) -> None:
    found = study(tmp_path, tiny_base, {"dataset.conflict_share": [0]})
    dataset(found)
    assert [task.stage for task in Standing(found, 1).left(found.points[0])] == ["finetune", "evaluate"]
    found = study(tmp_path, tiny_base, {"dataset.conflict_share": [0, 0.1]})
    standing = Standing(found, 1)
    stages = [[task.stage for task in standing.left(point)] for point in found.points]
    assert stages[1] == ["record", "record", "prepare", "finetune", "evaluate"]
    dataset(found, ("train", "train_conflict"))
    standing = Standing(found, 1)
    assert all([t.stage for t in standing.left(p)] == ["finetune", "evaluate"] for p in found.points)


@pytest.mark.parametrize(
    ("there", "said"),
    [({"episodes": 4}, r"episodes=4 \(here 3\)"), ({"strategy": "L_v3"}, r"strategy=L_v3 \(here random_f6_v3\)")],
)
def test_a_dataset_of_other_recordings_is_refused(
    there: dict[str, Any], said: str, tmp_path: Path, tiny_base: Path
) -> None:
    found = study(tmp_path, tiny_base, {"train.seed": [0]})
    dataset(found, **there)
    assert re.search(f"{said}.*Say the same", Standing(found, 1).failure(found.points[0]) or "")


def test_folders_keep_their_values_when_others_are_added(tmp_path: Path, tiny_base: Path) -> None:
    places = [tmp_path / name / "base" for name in ("a", "b", "c")]
    for place in places:
        shutil.copytree(tiny_base, place)
    given = {name: value for name, value in SMALL["settings"].items() if name != "model.base"}

    def checkpoints(*bases: Path) -> dict[str, str]:
        path = written(tmp_path, axes={"model.base": [str(base) for base in bases]}, settings=given)
        points = read_study(path, tmp_path / "out", LOCAL).points
        return {point.values["model.base"]: point.evaluation.config.checkpoint for point in points}

    two, three = checkpoints(*places[:2]), checkpoints(places[2], *places[:2])
    assert len({*three.values()}) == 3 and all(three[base] == place for base, place in two.items())


# -- running -----------------------------------------------------------------------------------------------------------


def test_what_fails_is_noted_with_its_reason_and_the_rest_is_tried(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One batch does not divide, which is seen before anything runs; the other points' recordings have no place."""
    axes = {"train.micro_batch_size": [3, 4], "train.seed": [0, 1]}
    found = study(tmp_path, tiny_base, axes, **{"train.global_batch_size": 4})
    standing = Standing(found, 1)
    assert [standing.failure(point) is not None for point in found.points] == [True, True, False, False]
    (tmp_path / "out/small").mkdir(parents=True)
    (tmp_path / "out/small/recordings").write_text("no folder")
    with pytest.raises(ToolkitError, match=r"4 of 4 points failed, the first for this: train.global_batch_size=4"):
        main(read([str(tmp_path / "small.yaml"), *LOCAL, f"out={tmp_path}/out"]))
    numbers = json.loads((tmp_path / "out/small/study.json").read_text())
    states = [point["state"] for point in numbers["points"]]
    assert all("micro_batch_size" in state for state in states[:2])
    assert all(state.startswith("record: ") and "logs/" in state for state in states[2:])
    assert "0 of 4 points are done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "log", "reason"),
    [
        (1, "step 1\nerror: no room\nwarnings.warn(\n", "no room"),
        (1, "Traceback\nValueError: odd\n\n", "ValueError: odd"),
        (1, "", "status 1"),
        (-15, "warnings.warn('leaked semaphores'\n", "it was ended by SIGTERM"),
        (-9, "step 1\n", "it was ended by SIGKILL, perhaps as its memory did not suffice"),
        (0, "step 1\n", "it ended without its result"),
    ],
)
def test_a_failure_has_the_reason_that_helps(status: int, log: str, reason: str) -> None:
    assert why(status, log) == reason


def test_a_cluster_is_given_each_stage_as_an_array(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path, tiny_base, {"dataset.conflict_share": [0, 0.1]}, **{"cluster.gpus_per_node": 1})
    main(read([str(tmp_path / "small.yaml"), *LOCAL, f"out={tmp_path}/out", "where=slurm", "dry_run=true"]))
    printed = capsys.readouterr().out
    scripts = printed.split("# ===== job script of ")[1:]
    assert [script.count("--array=0-1") for script in scripts] == [1, 0, 1, 1]  # record, prepare, finetune, evaluate
    assert "waits for" in scripts[1] and "nothing was submitted or written" in printed
    assert not (tmp_path / "out").exists()


def test_a_cluster_is_not_given_what_the_numbers_hold(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their files are gone; they are not recorded and trained again."""
    axes = {"train.seed": [0, 1], "guidance": [1, 2]}
    found = study(tmp_path, tiny_base, axes, **{"cluster.gpus_per_node": 1})
    standing = Standing(found, None)
    standing.kept = {
        f"guidance={g} train.seed=0": {"values": {"train.seed": "0", "guidance": g}, "state": "done", "rates": {}}
        for g in "12"
    }
    draw(found, standing)
    call = [str(tmp_path / "small.yaml"), *LOCAL, f"out={tmp_path}/out", "where=slurm", "dry_run=true"]
    assert not (tmp_path / "out/small/runs").exists()
    main(read(call))
    printed = capsys.readouterr().out
    assert "train.seed=1" in printed and "train.seed=0" not in printed
    assert printed.count("# ----- configuration of seed_1-evaluate") == 2


def test_no_command_is_begun_when_the_time_is_over(tmp_path: Path, tiny_base: Path) -> None:
    found = study(tmp_path, tiny_base)
    standing = Standing(found, 1)
    study_run.run_here(standing, 0, lambda: pytest.fail("something ran"))
    assert len(standing.all_left()) == 15 and not (tmp_path / "out/small/recordings").exists()


def test_what_is_left_is_estimated_by_the_same_stages(tmp_path: Path, tiny_base: Path) -> None:
    standing = Standing(study(tmp_path, tiny_base), 1)
    assert standing.estimate().startswith("15 commands left, an unknown time to record and prepare and finetune")
    standing.seconds = {"record": [10, 20], "prepare": [5], "finetune": [100], "evaluate": [50]}
    assert standing.estimate() == "15 commands left, about 0:13:55"  # 2 x 15 + 5 + 4 x 100 + 8 x 50 s
    assert standing.estimate(parallel=2) == "15 commands left, about 0:06:58"
    tuned = standing.study.request.of_stage("finetune")[0]
    assert "--nproc_per_node=2" in command_of(tuned, 2) and "--nproc_per_node=2" not in command_of(tuned, 1)
    standing.done.add(tuned)  # what led to it is not needed again
    assert standing.left(standing.study.points[0]) == [standing.study.points[0].evaluation]


def commands(monkeypatch: pytest.MonkeyPatch, notes: Path, code: str) -> None:
    """Puts in the place of every command one that runs `code` and notes when it begins and ends."""
    noting = (
        f"import os, sys, time; note = lambda word: open({str(notes)!r}, 'a').write(word + ' ' + sys.argv[1] + chr(10))"
    )

    def command(task: Task, processes: int) -> list[str]:
        return [sys.executable, "-c", f"{noting}; note('begun'); {code}; note('ended')", f"{task.stage}/{task.name}"]

    monkeypatch.setattr(study_run, "command_of", command)
    monkeypatch.setattr(study_run, "left_result", lambda task: True)
    monkeypatch.setattr(study_run, "LOOK", 0.1)


def test_commands_side_by_side_wait_for_what_they_need(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing, notes = Standing(study(tmp_path, tiny_base, {"train.seed": [0, 1, 2]}), 1), tmp_path / "notes"
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    commands(monkeypatch, notes, f"assert os.environ['OMP_NUM_THREADS'] == '{threads}'; time.sleep(0.5)")
    study_run.run_here(standing, None, lambda: None, parallel=2)
    assert not standing.failed and len(standing.done) == 8 and not standing.all_left()
    lines = [line.split() for line in notes.read_text().splitlines()]
    at_once, most = 0, 0
    for word, _ in lines:
        at_once += 1 if word == "begun" else -1
        most = max(most, at_once)
    assert most == 2
    tasks = {f"{task.stage}/{task.name}": task for task in standing.study.request.tasks}
    for name, task in tasks.items():
        for other in task.after:
            assert lines.index(["ended", f"{other.stage}/{other.name}"]) < lines.index(["begun", name])


@pytest.mark.parametrize("status", [0, 7])  # a fine-tune that stops in time ends with 0
def test_a_signal_reaches_the_commands_and_ends_the_study(
    status: int, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing, notes = Standing(study(tmp_path, tiny_base, {"train.seed": [0, 1]}), 1), tmp_path / "notes"
    standing.done |= {*standing.study.request.of_stage("record"), *standing.study.request.of_stage("prepare")}
    ends = f"import signal; signal.signal(signal.SIGUSR1, lambda *_: sys.exit({status})); note('ready'); time.sleep(60)"
    commands(monkeypatch, notes, ends)

    def ask() -> None:
        while not (notes.is_file() and notes.read_text().count("ready") == 2):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=ask, daemon=True).start()
    study_run.run_here(standing, None, lambda: None, parallel=2)
    assert "ended" not in notes.read_text() and not standing.failed and not standing.seconds
    assert len(standing.all_left()) == 4  # both fine-tunes and what waits for them


def test_commands_do_not_outlive_a_study_that_fails(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page has no room when the first command ends, and the second still runs."""
    standing, notes = Standing(study(tmp_path, tiny_base, {"train.seed": [0, 1]}), 1), tmp_path / "notes"
    standing.done |= {*standing.study.request.of_stage("record"), *standing.study.request.of_stage("prepare")}
    commands(monkeypatch, notes, "time.sleep(1 if 'seed_0' in sys.argv[1] else 4)")

    def full() -> None:
        raise ToolkitError("no room")

    with pytest.raises(ToolkitError, match="no room"):
        study_run.run_here(standing, None, full, parallel=2)
    time.sleep(4)
    assert notes.read_text().count("begun") == 2 and notes.read_text().count("ended") == 1


def test_a_command_that_ends_without_its_result_has_failed(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a fine-tune that somebody else asked to stop, which ends with status 0."""
    standing = Standing(study(tmp_path, tiny_base, {"train.seed": [0]}), 1)
    commands(monkeypatch, tmp_path / "notes", "pass")
    monkeypatch.setattr(study_run, "left_result", lambda task: False)
    study_run.run_here(standing, None, lambda: None)
    assert not standing.done and ["ended without its result" in said for said in standing.failed.values()] == [True]


def test_other_settings_do_not_mix_with_what_is_there(tmp_path: Path, tiny_base: Path) -> None:
    found = study(tmp_path, tiny_base)
    draw(found, Standing(found, 1))
    study(tmp_path, tiny_base, {"train.seed": [0, 1, 2]})  # more points may be added
    study(tmp_path, tiny_base, record={"part": "train", "episodes": 3, "workers": 2}, **{"cluster.cpus_per_task": 2})
    with pytest.raises(ToolkitError, match=r"record.episodes=3 \(now 4\).*Choose another out=FOLDER"):
        study(tmp_path, tiny_base, record={"part": "train", "episodes": 4})
    for name, value in {"train.patience": 2, "train.export": "best", "train.eval_steps": 1}.items():
        with pytest.raises(ToolkitError, match=rf"{name}=None \(now {value}\)"):
            study(tmp_path, tiny_base, **{name: value})
    study(tmp_path, tiny_base, **{"train.save_steps": 1, "evaluate.videos": 2})


# -- the page ----------------------------------------------------------------------------------------------------------


def drawn(tmp_path: Path, base: Path) -> tuple[Study, Standing]:
    """Two strategies with two trainings each, of which three are evaluated."""
    given = {name: value for name, value in SMALL["settings"].items() if name != "strategy"}
    axes = {"strategy": ["diagonal_v3", "L_v3"], "train.seed": [0, 1]}
    path = written(tmp_path, axes=axes, settings={**given, "model.base": str(base)})
    found = read_study(path, tmp_path / "out", LOCAL)
    standing = Standing(found, 1)
    for point, successes in zip(found.points, (9, 5, 2), strict=False):

        def chooses(episode: InstructedEpisode, _: random.Random, successes: int = successes) -> int | None:
            """Of ten episodes the target in so many; in conflict the lure in all others but one."""
            number = episode.seed - FIRST_EVALUATION_SEED
            return episode.target if number < successes else episode.lure if number < 9 else None

        outcomes = acted("instruction/color_object", ("seen", "conflict"), 10, chooses)
        folder = Path(point.evaluation.config.report_folder)
        write_report(evaluation(outcomes, split="instruction/color_object", instruction=None), folder)
        standing.done.add(point.evaluation)
    standing.failed[found.points[3].evaluation] = "finetune: no room (all of it: log)"
    draw(found, standing)
    return found, standing


def test_the_page_shows_each_point_and_takes_trainings_together(tmp_path: Path, tiny_base: Path) -> None:
    found, _ = drawn(tmp_path, tiny_base)
    numbers, page = (tmp_path / "out/small/study.json"), (tmp_path / "out/small/study.html").read_text()
    data = json.loads(numbers.read_text())
    assert (data["kind"], data["axes"]) == ("study", found.axes)
    assert [point["rates"]["success, seen"]["count"] for point in data["points"][:3]] == [9, 5, 2]
    assert data["points"][3]["state"].startswith("finetune: no room") and data["points"][3]["failed"]
    both, single = (condition["rates"]["success, seen"] for condition in data["conditions"])
    assert (both["value"], both["n"], both["trainings"]) == (0.7, 20, 2)
    new = measure([Share(5, 10), Share(9, 10)]).new
    assert new is not None and (both["low"], both["high"]) == (new.low, new.high)
    assert (single["value"], single["trainings"]) == (0.2, 1)
    fdr = data["conditions"][0]["rates"]["FDR of color against object"]
    assert (fdr["value"], fdr["n"]) == (pytest.approx(14 / 18), 18)
    assert "By strategy" in page and "strategy diagonal_v3" in page and "no room" in page and "3 of 4 points" in page
    assert page.count("closed_loop.html") == 3


def evaluated(standing: Standing, point: Point, successes: int) -> None:
    """Writes the point's report: of ten episodes a part, what is asked for is done in the first ones."""

    def chooses(episode: InstructedEpisode, _: random.Random) -> int | None:
        return episode.target if episode.seed - FIRST_EVALUATION_SEED < successes else None

    outcomes = acted("instruction/color_object", ("seen", "conflict"), 10, chooses)
    folder = Path(point.evaluation.config.report_folder)
    write_report(evaluation(outcomes, split="instruction/color_object", instruction=None), folder)
    standing.done.add(point.evaluation)


def test_what_a_value_changes_is_of_the_means_or_of_the_same_episodes(tmp_path: Path, tiny_base: Path) -> None:
    axes = {"augment.instruction_dropout": [0.0, 0.1], "guidance": [1, 2], "train.seed": [0, 1]}
    found = study(tmp_path, tiny_base, axes)
    standing = Standing(found, 1)
    right: dict[tuple[str, ...], int] = {}
    for index, point in enumerate(found.points):
        right[tuple(point.values.values())] = 2 + index
        evaluated(standing, point, 2 + index)
    draw(found, standing)
    data = json.loads((tmp_path / "out/small/study.json").read_text())
    effects = {(e["axis"], *e["condition"], e["measure"]): e for e in data["effects"]}
    guided = effects["guidance", "0.0", "2", "success, seen"]
    before, after = ([right["0.0", g, seed] for seed in ("0", "1")] for g in ("1", "2"))
    pairs = [(n < b, n < a) for a, b in zip(before, after, strict=True) for n in range(10)]
    expected = paired_difference(pairs)
    assert guided["paired"] and (guided["change"]["difference"], guided["change"]["low"]) == (
        pytest.approx(expected.value),
        pytest.approx(expected.low),
    )
    dropped = effects["augment.instruction_dropout", "0.1", "1", "success, seen"]
    sides = [[Share(right[d, "1", seed], 10) for seed in ("0", "1")] for d in ("0.0", "0.1")]
    assert not dropped["paired"] and dropped["change"]["low"] == setting_difference(*sides)[0].low
    assert len({(e["axis"], *e["condition"]) for e in data["effects"]}) == 4
    page = (tmp_path / "out/small/study.html").read_text()
    assert "What a value changes" in page and "these weights, the same episodes" in page


def test_a_study_of_seeds_alone_has_its_interval(tmp_path: Path, tiny_base: Path) -> None:
    found = study(tmp_path, tiny_base, {"train.seed": [0, 1]})
    standing = Standing(found, 1)
    for point, successes in zip(found.points, (4, 7), strict=True):
        evaluated(standing, point, successes)
    draw(found, standing)
    mean = measure([Share(4, 10), Share(7, 10)]).mean
    assert mean is not None
    page = (tmp_path / "out/small/study.html").read_text()
    assert "All trainings" in page and f"55 % ({mean.interval}, 2 trainings)" in page


def test_points_of_before_stay_in_the_numbers_and_come_back_with_their_values(tmp_path: Path, tiny_base: Path) -> None:
    drawn(tmp_path, tiny_base)
    numbers = tmp_path / "out/small/study.json"
    before = json.loads(numbers.read_text())
    shutil.rmtree(tmp_path / "out/small/reports")
    content = yaml.safe_load((tmp_path / "small.yaml").read_text())

    def again(axes: dict[str, list[Any]]) -> dict[str, Any]:
        (tmp_path / "small.yaml").write_text(yaml.safe_dump({**content, "axes": axes}))
        found = read_study(str(tmp_path / "small.yaml"), tmp_path / "out", LOCAL)
        draw(found, Standing(found, 1))
        return json.loads(numbers.read_text())

    fewer = again({"strategy": ["L_v3"], "train.seed": [0, 1]})
    assert len(fewer["points"]) == 2 and [p["values"]["strategy"] for p in fewer["others"]] == ["diagonal_v3"] * 2
    after = again(content["axes"])
    assert [p["rates"] for p in after["points"]] == [p["rates"] for p in before["points"]] and not after["others"]
    assert after["conditions"] == before["conditions"] and after["effects"] == before["effects"]


def test_the_numbers_of_points_are_enough_where_their_files_are_gone(tmp_path: Path, tiny_base: Path) -> None:
    found, _ = drawn(tmp_path, tiny_base)
    numbers = tmp_path / "out/small/study.json"
    before = json.loads(numbers.read_text())
    shutil.rmtree(tmp_path / "out/small/reports")
    found = read_study(str(tmp_path / "small.yaml"), tmp_path / "out", LOCAL)
    standing = Standing(found, 1)
    assert [bool(standing.left(point)) for point in found.points] == [False, False, False, True]
    draw(found, standing)
    after = json.loads(numbers.read_text())
    assert after["conditions"] == before["conditions"]
    assert [point["rates"] for point in after["points"]] == [point["rates"] for point in before["points"]]
    assert [point["state"] for point in after["points"]][:3] == ["done"] * 3
    assert "closed_loop.html" not in numbers.with_suffix(".html").read_text()


def test_a_checkpoint_that_was_replaced_is_evaluated_whatever_the_numbers_say(tmp_path: Path, tiny_base: Path) -> None:
    found, _ = drawn(tmp_path, tiny_base)
    replaced = shutil.copytree(tiny_base, Path(found.points[0].evaluation.config.checkpoint))
    write_json(replaced / RELEASE_MARK, {})
    standing = Standing(read_study(str(tmp_path / "small.yaml"), tmp_path / "out", LOCAL), 1)
    assert [bool(standing.left(point)) for point in standing.study.points] == [True, False, False, True]


def test_numbers_stay_where_the_reports_alone_are_gone(tmp_path: Path, tiny_base: Path) -> None:
    drawn(tmp_path, tiny_base)
    numbers = tmp_path / "out/small/study.json"
    data = json.loads(numbers.read_text())
    done = [point for point in data["points"] if point["state"] == "done"]
    shutil.rmtree(tmp_path / "out/small/reports")
    found = read_study(str(tmp_path / "small.yaml"), tmp_path / "out", LOCAL)
    for point in found.points:  # the checkpoints are still there
        folder = Path(point.evaluation.config.checkpoint)
        shutil.copytree(tiny_base, folder)
        write_json(folder / RELEASE_MARK, {})
    for point in done:
        point["checkpoint"] = fingerprint(tiny_base)
    done[0]["checkpoint"] = "of other weights"
    numbers.write_text(json.dumps(data))
    for _ in range(2):
        standing = Standing(found, 1)
        assert [bool(standing.left(point)) for point in found.points] == [True, False, False, True]
        draw(found, standing)
    after = json.loads(numbers.read_text())
    assert [point["rates"] for point in after["points"][1:3]] == [point["rates"] for point in done[1:]]
    assert not after["points"][0]["rates"] and [p["rates"] for p in after["others"]] == [done[0]["rates"]]
    next((Path(found.points[1].evaluation.config.checkpoint)).glob("*.safetensors")).unlink()
    assert not Standing(found, 1).left(found.points[1])  # of weights that are gone the numbers are enough


def test_numbers_that_are_no_study_s_are_refused(tmp_path: Path, tiny_base: Path) -> None:
    found, _ = drawn(tmp_path, tiny_base)
    numbers = tmp_path / "out/small/study.json"
    good = json.loads(numbers.read_text())
    for spoil in (
        lambda point: point.pop("state"),
        lambda point: point.pop("rates"),
        lambda point: point["outcomes"]["seen"].update(success="01"),
        lambda point: point["outcomes"]["seen"].update(seeds=["all"]),
        lambda point: point["outcomes"]["seen"].pop("picked"),
    ):
        bad = json.loads(json.dumps(good))
        spoil(bad["points"][0])
        numbers.write_text(json.dumps(bad))
        with pytest.raises(ToolkitError, match=r"study.json"):
            Standing(found, 1)


def test_one_more_training_is_expected_where_those_before_may_lie() -> None:
    shares = [Share(3, 10), Share(8, 10)]
    rate, new = over_trainings([*shares, Share(0, 0)]), measure(shares).new
    assert new is not None and new.low < shares[0].value < shares[1].value < new.high
    assert (rate.value, rate.low, rate.high, rate.trainings) == (11 / 20, new.low, new.high, 2)
    assert str(over_trainings([Share(5, 10)])) == "50 % (24 to 76 %, one training)"
    assert over_trainings([Share(0, 0)]).value is None


@needs_simulator
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_tiny_study_runs_from_nothing_to_its_page_and_is_then_done(
    renderer: None, tiny_base: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load((CONFIG_DIR / "study/tiny.yaml").read_text())
    content["settings"]["model.base"] = str(tiny_base)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "simulation.study", str(path), "local=none", f"out={tmp_path}/out"]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    data = json.loads((tmp_path / "out/tiny/study.json").read_text())
    assert [point["state"] for point in data["points"]] == ["done", "done"]
    assert {name: len(of) for name, of in data["seconds"].items()} == dict.fromkeys(
        ("record", "prepare", "finetune", "evaluate"), 2
    )
    assert data["points"][0]["rates"]["success, unseen"]["n"] == 1
    shutil.rmtree(tmp_path / "out/tiny/recordings")
    again = subprocess.run(command, capture_output=True, text=True)
    assert "2 of 2 points are done, 0 commands left" in again.stdout and not (tmp_path / "out/tiny/recordings").exists()
