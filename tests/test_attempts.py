"""What a run does after an attempt, whose turn it is to write, and what is copied for a job."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_keys import HUGGING_FACE

from finetune.recipe import ClusterConfig
from finetune.slurm import attempt as attempt_module
from finetune.slurm import attempt_record as record
from finetune.slurm import cluster_queries as commands
from finetune.slurm.attempt import (
    Decision,
    crashes_without_progress,
    decide,
    ending_of,
    exclusion,
    failed_nodes,
    has_started_over,
)
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from toolkit.code_files import check_code, snapshot_code

CRASH = None


def attempts(run: Path, *outcomes: dict | None, job: str = "7", steps: int = 0) -> list[record.Attempt]:
    """Attempts of a job that ended so; each but the last is known to have been decided on."""
    for outcome in outcomes:
        attempt = record.begin(run, job, {"nodes": "node1"})
        if outcome is not None:
            write_json(attempt.folder / "outcome.json", outcome)
    return record.attempts(run)


def after(
    history: list[record.Attempt], newest_step: int = 0, requeueable: bool = True, ending: str | None = None, **cluster
) -> Decision:
    return decide(history, ClusterConfig(**cluster), newest_step, requeueable, ending)


STOPPED = {"status": "stopped", "reason": "signal SIGTERM"}


def test_a_finished_run_is_done(tmp_path: Path) -> None:
    assert after(attempts(tmp_path, {"status": "finished"})).what == "done"


def test_a_preempted_run_continues(tmp_path: Path) -> None:
    decision = after(attempts(tmp_path, STOPPED))
    assert (decision.what, decision.exit_status, decision.reason) == ("requeue", 0, "signal SIGTERM")


def test_a_superseded_attempt_leaves_the_job_alone(tmp_path: Path) -> None:
    assert after(attempts(tmp_path, {"status": "superseded"})) == Decision("done", "a newer attempt has taken over")


def test_a_refused_configuration_is_not_tried_again(tmp_path: Path) -> None:
    decision = after(attempts(tmp_path, {"status": "failed", "reason": "model.base is damaged"}))
    assert (decision.what, decision.exit_status, decision.reason) == ("stop", 2, "model.base is damaged")


def test_a_cluster_without_requeueing_is_shown_how_to_continue(tmp_path: Path) -> None:
    history = attempts(tmp_path, STOPPED)
    for decision in (after(history, requeue=False), after(history, requeueable=False)):
        assert (decision.what, decision.exit_status) == ("stop", 3)
        assert "submit the same again" in decision.reason


def test_requeues_are_bounded_for_each_submission(tmp_path: Path) -> None:
    history = attempts(tmp_path, STOPPED, STOPPED, STOPPED)
    assert after(history, max_requeues=3).what == "requeue"
    decision = after(history, max_requeues=2)
    assert decision.what == "stop" and "cluster.max_requeues=2" in decision.reason
    assert after(attempts(tmp_path, STOPPED, job="8"), max_requeues=2).what == "requeue"


def test_a_crash_loop_stops_with_the_end_of_the_log(tmp_path: Path) -> None:
    history = attempts(tmp_path, CRASH, CRASH)
    assert after(history).what == "requeue"
    history = attempts(tmp_path, CRASH)
    (history[-1].folder / "rank-1.log").write_text("Traceback\nRuntimeError: CUDA error\n")
    decision = after(history)
    assert (decision.what, decision.exit_status) == ("stop", 1)
    assert "3 attempts in a row" in decision.reason and "CUDA error" in decision.reason


def test_crashes_with_progress_between_them_are_no_loop(tmp_path: Path) -> None:
    attempts(tmp_path, CRASH, CRASH)
    (tmp_path / "checkpoint-100").mkdir()
    history = attempts(tmp_path, CRASH)  # begins from step 100
    assert crashes_without_progress(history, newest_step=100) == 1
    assert crashes_without_progress(history, newest_step=200) == 0


def test_an_attempt_lost_with_its_node_is_recorded_and_no_crash(tmp_path: Path) -> None:
    history = attempts(tmp_path, CRASH, CRASH, CRASH)
    record.close_lost(history[1])
    assert read_json(history[1].folder / "ended.json")["what"] == "lost"
    assert crashes_without_progress(record.attempts(tmp_path), 0) == 2


def test_crashes_of_an_earlier_submission_are_not_counted(tmp_path: Path) -> None:
    attempts(tmp_path, CRASH, CRASH, CRASH)
    history = attempts(tmp_path, CRASH, job="8")
    assert crashes_without_progress(history, 0) == 1
    assert after(history).what == "requeue"
    assert crashes_without_progress(attempts(tmp_path, CRASH, job="8"), 0) == 2


def test_an_attempt_that_ended_well_ends_the_row_of_crashes(tmp_path: Path) -> None:
    history = attempts(tmp_path, CRASH, STOPPED, CRASH)
    assert crashes_without_progress(history, 0) == 1
    assert crashes_without_progress(history[:2], 0) == 0


def test_progress_between_earlier_crashes_ends_their_row(tmp_path: Path) -> None:
    attempts(tmp_path, CRASH)
    (tmp_path / "checkpoint-50").mkdir()
    history = attempts(tmp_path, CRASH, CRASH)
    assert crashes_without_progress(history, 50) == 2


def test_the_first_crash_stops_a_job_that_may_have_one_only(tmp_path: Path) -> None:
    decision = after(attempts(tmp_path, CRASH), max_crashes=1)
    assert (decision.what, decision.exit_status) == ("stop", 1) and decision.reason.startswith("the attempt crashed")


def killed_on(attempt: record.Attempt, node: str) -> None:
    (attempt.folder / f"node-{node}.log").write_text("  exitcode  : -9 (pid: 7)\n")


def test_only_a_crash_blames_the_node_it_happened_on(tmp_path: Path) -> None:
    history = attempts(tmp_path / "stopped", STOPPED)
    killed_on(history[-1], "n2")
    assert after(history) == Decision("requeue", "signal SIGTERM")
    history = attempts(tmp_path / "crashed", CRASH)
    killed_on(history[-1], "n2")
    assert after(history) == Decision("requeue", "it crashed", 0, ("n2",))
    assert after(history, max_crashes=1).nodes == ()


def test_the_last_attempts_node_is_blamed_and_not_that_of_an_earlier_one(tmp_path: Path) -> None:
    history = attempts(tmp_path, CRASH, CRASH)
    killed_on(history[0], "n1")
    killed_on(history[1], "n2")
    assert after(history).nodes == ("n2",)


def test_only_what_training_recorded_is_finished(tmp_path: Path, monkeypatch) -> None:
    (attempt,) = attempts(tmp_path, CRASH)
    assert after([attempt]).reason == "it crashed"
    end(tmp_path, attempt, monkeypatch, status="0")  # srun leaves with 0 when a node dies
    assert attempt.ended["what"] == "requeue" and attempt.ended["status"] == 0


SHOWN = "JobId=7 JobName=a UserId=me(1) JobState={} Reason={} Dependency=(null) Requeue=1 Restarts={} {}EndTime=Unknown"
NOT_PREEMPTED = "EligibleTime=2026-11-29T15:08:28 PreemptTime=None "


@pytest.mark.parametrize(
    ("line", "ending"),
    [  # as SLURM 22.05 says it while the job's processes still live
        (SHOWN.format("RUNNING", "None", 1, ""), None),
        (SHOWN.format("RUNNING", "None", 1, NOT_PREEMPTED), None),
        (SHOWN.format("COMPLETING", "None", 1, ""), "cancellation"),
        (SHOWN.format("CANCELLED", "None", 1, ""), "cancellation"),
        (SHOWN.format("COMPLETING", "None", 2, ""), "a requeue"),
        (SHOWN.format("PENDING", "BeginTime", 1, ""), "a requeue"),
        (SHOWN.format("COMPLETING", "None", 1, "PreemptTime=2026-11-29T15:08:41 "), "preemption"),
        (SHOWN.format("RUNNING", "None", 1, "PreemptTime=2026-11-29T15:08:41 "), "preemption"),
        (SHOWN.format("COMPLETING", "TimeLimit", 1, ""), "the time limit"),
        (SHOWN.format("COMPLETING", "NodeDown", 1, ""), "the failure of a node"),
        (SHOWN.format("NODE_FAIL", "None", 1, ""), "the failure of a node"),
        (SHOWN.format("RUNNING", "None", 1, "") + " Comment=JobState=CANCELLED", None),
        ("", "an unknown reason"),
    ],
)
def test_slurms_own_word_says_what_ends_a_job(line: str, ending: str | None) -> None:
    assert ending_of(line, restart_count=1) == ending


def test_a_cancelled_job_is_not_requeued_whatever_training_had_time_for(tmp_path: Path, monkeypatch) -> None:
    for number, outcome in enumerate((STOPPED, CRASH)):
        run = tmp_path / str(number)
        (attempt,) = attempts(run, outcome)
        (run / "checkpoint-9").mkdir()
        answer = end(run, attempt, monkeypatch, SHOWN.format("COMPLETING", "None", 0, ""))
        assert (answer["GROOT_DECISION"], answer["GROOT_EXIT"]) == ("cancelled", "3")
        assert attempt.ended["what"] == "cancelled" and "a checkpoint of step 9 is there" in attempt.ended["reason"]
    (attempt,) = attempts(tmp_path / "done", {"status": "finished"})
    assert after([attempt], ending="cancellation").what == "done"


def test_a_cancellation_is_recorded_at_the_signal_in_case_no_time_is_left(tmp_path: Path, monkeypatch) -> None:
    (attempt,) = attempts(tmp_path, CRASH)
    monkeypatch.setenv("GROOT_ATTEMPT_DIR", str(attempt.folder))
    monkeypatch.setenv("GROOT_JOB", SHOWN.format("RUNNING", "None", 0, ""))
    attempt_module.signalled()
    assert attempt.ended is None
    monkeypatch.setenv("GROOT_JOB", SHOWN.format("COMPLETING", "None", 0, ""))
    attempt_module.signalled()
    assert attempt.ended["what"] == "cancelled" and "before a checkpoint" in attempt.ended["reason"]
    record.close_lost(attempt)
    assert attempt.ended["what"] == "cancelled"
    write_json(attempt.folder / "outcome.json", {"status": "finished"})
    end(tmp_path, attempt, monkeypatch, SHOWN.format("COMPLETING", "None", 0, ""))
    assert attempt.ended["what"] == "done"


def test_an_attempt_that_slurm_ended_is_requeued_and_no_crash(tmp_path: Path, monkeypatch) -> None:
    for number, line in enumerate(
        (
            SHOWN.format("COMPLETING", "None", 0, "PreemptTime=2026-11-29T15:08:41 "),
            SHOWN.format("NODE_FAIL", "None", 0, ""),
            "",
        )
    ):
        run = tmp_path / str(number)
        for _ in range(3):
            history = attempts(run, CRASH)
            assert end(run, history[-1], monkeypatch, line)["GROOT_DECISION"] == (
                "requeue" if len(history) < 3 else "stop"
            )
        assert crashes_without_progress(history, 0) == 0 and "max_requeues=2" in history[-1].ended["reason"]
    assert "slurmctld did not answer" in history[-1].ended["reason"]
    assert (
        "the failure of a node; the job was submitted with --no-requeue"
        in after(history[:1], requeueable=False, ending="the failure of a node").reason
    )


def test_an_allocation_of_ones_own_is_not_requeued(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GROOT_INTERACTIVE", "yes")
    for last in (STOPPED, CRASH):
        history = attempts(tmp_path / str(last), last)
        answer = end(tmp_path / str(last), history[-1], monkeypatch, SHOWN.format("RUNNING", "None", 0, ""))
        assert answer["GROOT_DECISION"] == "stop" and answer["GROOT_EXIT"] != "0"
        reason = history[-1].ended["reason"]
        assert "an allocation of your own is not requeued: type the same again to continue" in reason


def test_what_slurm_has_requeued_by_itself_is_not_requeued_once_more(tmp_path: Path, monkeypatch) -> None:
    (attempt,) = attempts(tmp_path, STOPPED)
    answer = end(tmp_path, attempt, monkeypatch, SHOWN.format("COMPLETING", "None", 1, ""))
    assert (answer["GROOT_DECISION"], answer["GROOT_EXIT"]) == ("done", "0")
    assert attempt.ended["what"] == "requeue"


def test_jobs_that_wait_for_success_learn_why_a_run_is_not_requeued(tmp_path: Path) -> None:
    history = attempts(tmp_path, STOPPED, CRASH)
    assert after(history, requeue=False).exit_status == 1
    assert after(history, max_requeues=0).exit_status == 1
    assert after(history[:1], max_requeues=0).exit_status == 3


def test_the_tail_is_of_the_newest_log_in_which_a_rank_said_something(tmp_path: Path) -> None:
    (attempt,) = attempts(tmp_path, CRASH)
    said = {
        "rank-0.log": "of rank 0\n",
        "rank-1.log": "\n".join(map(str, range(20))),
        "rank-2.log": "",
        "node-a.log": "x",
    }
    for age, (name, text) in enumerate(said.items()):
        (attempt.folder / name).write_text(text)
        os.utime(attempt.folder / name, (1000 + age, 1000 + age))
    lines = after([attempt], max_crashes=1).reason.splitlines()
    assert lines[-16].endswith("rank-1.log)") and lines[-15:] == [str(number) for number in range(5, 20)]


def test_attempts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    history = attempts(tmp_path, *[STOPPED] * 11)
    (tmp_path / "attempts" / "11").mkdir()  # begun, and killed before its record
    assert [attempt.number for attempt in record.attempts(tmp_path)] == list(range(11))
    assert history[-1].folder.name == "10" and record.begin(tmp_path, "7", {}).number == 12


def test_an_attempt_notes_the_newest_checkpoint_it_begins_from(tmp_path: Path) -> None:
    assert attempts(tmp_path, CRASH)[0].begun["from_step"] == 0
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-200.damaged"):
        (tmp_path / name).mkdir()
    assert record.newest_step(tmp_path) == 100 and attempts(tmp_path, CRASH)[1].begun["from_step"] == 100


def test_an_end_that_is_recorded_is_not_called_lost(tmp_path: Path) -> None:
    (attempt,) = attempts(tmp_path, STOPPED)
    write_json(attempt.folder / "ended.json", {"what": "requeue"})
    record.close_lost(attempt)
    assert attempt.ended == {"what": "requeue"}


def test_a_folder_is_refused_only_while_another_job_of_it_lives(tmp_path: Path, monkeypatch) -> None:
    states: list[str | None] = ["PENDING", "CANCELLED", "COMPLETED", None]
    asked: list[str] = []
    monkeypatch.setattr(record, "job_state", lambda job: asked.append(job) or states.pop(0))
    record.refuse_foreign_job(tmp_path, "8")
    (held,) = attempts(tmp_path, CRASH)
    record.refuse_foreign_job(tmp_path, "7")
    assert asked == []
    with pytest.raises(ToolkitError, match="belongs to job 7, which is pending"):
        record.begin(tmp_path, "8", {})
    assert asked == ["7"] and record.token(tmp_path)["id"] == held.begun["id"] and len(record.attempts(tmp_path)) == 1
    while states:
        record.refuse_foreign_job(tmp_path, "8")


def test_a_slurm_that_does_not_answer_lets_no_other_job_in(tmp_path: Path, monkeypatch) -> None:
    """squeue that cannot ask has not said that the job is gone."""
    said = ["slurm_load_jobs error: Unable to contact slurm controller (connect failure)"] * 3
    monkeypatch.setattr(record, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(record, "ASK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(record.cluster_queries, "available", lambda: True)

    def slurm(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        error = said.pop(0) if len(said) > 1 else said[0]
        return subprocess.CompletedProcess(command, 1 if error else 0, "" if error else "RUNNING\n", error)

    monkeypatch.setattr(record.cluster_queries, "slurm", slurm)
    (held,) = attempts(tmp_path, CRASH)
    with pytest.raises(ToolkitError, match=r"belongs to job 7, .*Unable to contact .*scontrol ping") as refused:
        record.begin(tmp_path, "8", {})
    assert str(tmp_path) in str(refused.value) and record.token(tmp_path)["id"] == held.begun["id"]
    said[:] = ["Socket timed out", ""]
    assert record.job_state("7") == "RUNNING"
    said[:] = ["squeue: fatal: Could not establish a configuration source"]
    assert record.job_state("7") is None
    said[:] = ["slurm_load_jobs error: Invalid job id specified"]
    record.begin(tmp_path, "8", {})


# -- the end of an attempt ---------------------------------------------------------------------------------------------


def end(
    run: Path,
    attempt: record.Attempt,
    monkeypatch,
    job: str = "JobId=7 JobState=RUNNING Requeue=1",
    status: str = "1",
    more: str = "",
) -> dict:
    (run / "job").mkdir(exist_ok=True)
    (run / "job" / "config.yaml").write_text(f"cluster:\n  max_requeues: 2\n{more}")
    monkeypatch.setenv("GROOT_ATTEMPT_DIR", str(attempt.folder))
    monkeypatch.setenv("GROOT_ATTEMPT_ID", attempt.begun["id"])
    monkeypatch.setenv("GROOT_JOB", job)
    return attempt_module.end(status)


def test_an_attempt_that_lost_the_token_never_requeues_however_it_ended(tmp_path: Path, monkeypatch) -> None:
    first, second = attempts(tmp_path, STOPPED, STOPPED)
    assert end(tmp_path, first, monkeypatch)["GROOT_DECISION"] == "done"
    assert first.ended["reason"] == "a newer attempt has taken over"
    assert end(tmp_path, second, monkeypatch)["GROOT_DECISION"] == "requeue"


def test_the_end_heeds_the_runs_own_settings_and_the_jobs_requeue(tmp_path: Path, monkeypatch) -> None:
    (attempt,) = attempts(tmp_path, STOPPED)
    answer = end(tmp_path, attempt, monkeypatch, "JobId=7 JobState=RUNNING Requeue=0")
    assert (answer["GROOT_DECISION"], answer["GROOT_EXIT"]) == ("stop", "3")
    assert attempt.ended["status"] == 1 and attempt.ended["exit_status"] == 3
    *_, last = attempts(tmp_path, STOPPED, STOPPED)
    assert "cluster.max_requeues=2 is reached" in (end(tmp_path, last, monkeypatch) and last.ended["reason"])


def test_only_a_requeue_leaves_the_failed_node_out(tmp_path: Path, monkeypatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(attempt_module, "exclusion", lambda job, failed: asked.append(failed) or "n1,n2")
    first, *_ = attempts(tmp_path, CRASH)
    killed_on(first, "n2")
    assert end(tmp_path, first, monkeypatch)["GROOT_EXCLUDE"] == "n1,n2" and asked == [("n2",)]
    assert end(tmp_path, first, monkeypatch, "JobState=RUNNING Requeue=0")["GROOT_EXCLUDE"] == ""


NODES = "n1 idle\nn2 mixed\nn3 DOWN*\nn4 allocated\nn5 drained\n"


@pytest.mark.parametrize(
    "job, failed, excluded",
    [
        ("Partition=p NumNodes=1 ExcNodeList=(null)", ("n2",), "n2"),
        ("Partition=p NumNodes=2 ExcNodeList=(null)", ("n2",), "n2"),  # n1 and n4 remain
        ("Partition=p NumNodes=3-3 ExcNodeList=(null)", ("n2",), ""),
        ("Partition=p NumNodes=1 ExcNodeList=n4,n1", ("n2",), ""),
        ("Partition=p NumNodes=1 ExcNodeList=n4", ("n2",), "n2,n4"),
        ("Partition=p NumNodes=1 ReqNodeList=n2,n9", ("n2",), ""),
        ("Partition=p NumNodes=1 ReqNodeList=n1", ("n2",), "n2"),
        ("Partition=p NumNodes=1 ExcNodeList=n4", (), ""),
        ("NumNodes=1", ("n2",), ""),
    ],
)
def test_a_failed_node_is_left_out_where_enough_usable_ones_remain(
    job: str, failed: tuple[str, ...], excluded: str, monkeypatch
) -> None:
    def slurm(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        answer = NODES if command[0] == "sinfo" else command[-1].replace(",", "\n")
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(commands, "slurm", slurm)
    monkeypatch.setattr(commands, "available", lambda: True)
    assert exclusion(job, failed) == excluded
    monkeypatch.setattr(commands, "available", lambda: False)
    assert exclusion(job, failed) == ""


def test_the_node_whose_process_was_killed_is_named(tmp_path: Path) -> None:
    attempt = attempts(tmp_path, CRASH)[0]
    (attempt.folder / "node-n1.log").write_text("  rank: 1\n  exitcode  : 1 (pid: 5)\n  exitcode  : -15 (pid: 6)\n")
    (attempt.folder / "node-n2.log").write_text("  exitcode  : -9 (pid: 7)\n")
    assert failed_nodes(attempt) == ("n2",)
    (attempt.folder / "node-n1.log").write_text("  exitcode  : -7 (pid: 5)\n")
    assert failed_nodes(attempt) == ()
    for name in ("n1", "n2"):
        (attempt.folder / f"node-{name}.log").write_text("  exitcode  : -15 (pid: 5)\n")
    assert failed_nodes(attempt) == ()


def test_a_new_attempt_takes_the_token(tmp_path: Path) -> None:
    first, second = attempts(tmp_path, CRASH, CRASH)
    held = record.token(tmp_path)
    assert held is not None
    assert (held["attempt"], held["id"]) == (1, second.begun["id"]) and first.begun["id"] != held["id"]


def test_a_run_that_started_over_resumes_when_its_job_starts_again(tmp_path: Path, monkeypatch) -> None:
    write_json(tmp_path / "run_config.json", {"of": "a run before"})
    os.utime(tmp_path / "run_config.json", (0, 0))
    monkeypatch.setenv("GROOT_JOB_ID", "7")
    attempts(tmp_path, CRASH, CRASH)
    assert not has_started_over(tmp_path)  # the first one crashed before it cleared the folder
    write_json(tmp_path / "run_config.json", {"of": "job 7"})
    assert has_started_over(tmp_path)
    monkeypatch.setenv("GROOT_JOB_ID", "8")
    attempts(tmp_path, CRASH, job="8")
    assert not has_started_over(tmp_path)


def test_a_job_that_repeats_one_that_started_over_resumes(tmp_path: Path, monkeypatch) -> None:
    attempts(tmp_path, STOPPED)
    write_json(tmp_path / "run_config.json", {"of": "job 7"})
    attempts(tmp_path, STOPPED, job="9")
    monkeypatch.setenv("GROOT_JOB_ID", "9")
    (tmp_path / "job").mkdir()
    for job_id, resumes in (("8", False), ("9", True)):  # the record of an earlier submission says nothing of this job
        write_json(tmp_path / "job" / "submitted.json", {"job_id": job_id, "repeats": ["6", "7"]})
        assert has_started_over(tmp_path) is resumes
    os.utime(tmp_path / "run_config.json", (0, 0))  # job 7 ended before it cleared the folder
    assert not has_started_over(tmp_path)


@pytest.mark.parametrize("line", ["JobId=7 JobState=RUNNING Requeue=0", "JobState=COMPLETING", "max_requeues"])
def test_what_continues_a_run_that_started_over_is_no_further_start(line: str, tmp_path: Path, monkeypatch) -> None:
    *_, last = attempts(tmp_path, *[STOPPED] * (3 if line == "max_requeues" else 1))
    never = "train:\n  resume: never\n"
    end(tmp_path, last, monkeypatch, line, more=never)
    assert "the same again to continue" in last.ended["reason"]  # nothing has been cleared yet
    write_json(tmp_path / "run_config.json", {})
    answer = end(tmp_path, last, monkeypatch, line, more=never)
    assert "submit the same with train.resume=auto to continue" in last.ended["reason"]
    assert answer["GROOT_AGAIN"] == "the same with train.resume=auto"
    (last.folder / "ended.json").unlink()
    monkeypatch.setenv("GROOT_JOB", "JobState=COMPLETING")
    attempt_module.signalled()
    assert "submit the same with train.resume=auto" in last.ended["reason"]
    end(tmp_path, last, monkeypatch, line)
    assert "the same again to continue" in last.ended["reason"]
    with pytest.raises(ToolkitError, match="Submit the same again to continue"):
        attempt_module._close_earlier(tmp_path, "7", 0)
    end(tmp_path, last, monkeypatch, line, more=never)
    with pytest.raises(ToolkitError, match=r"Submit the same with train\.resume=auto to continue"):
        attempt_module._close_earlier(tmp_path, "7", 0)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a changed file, an added one, two that git does not track, an ignored one, and site defaults."""
    folder = tmp_path / "checkout"
    for room in ("configs/local", "finetune", "data"):
        (folder / room).mkdir(parents=True)
    (folder / "code.py").write_text("old = 1\n")
    (folder / "finetune" / "train.py").write_text("")
    (folder / "gone.py").write_text("")
    (folder / ".gitignore").write_text("/data/\n/configs/local/*\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    (folder / "code.py").write_text("new = 1\n")
    (folder / "gone.py").unlink()
    (folder / "added.py").write_text("added = 1\n")
    subprocess.run(["git", "-C", str(folder), "add", "added.py"], check=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "data" / "video.mp4").write_text("...")
    (folder / "configs" / "local" / "default.yaml").write_text("tracking: none\n")
    return folder


def copied(code: Path) -> set[str]:
    return {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}


def test_a_snapshot_holds_what_git_tracks_as_it_is_now_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = snapshot_code(checkout, run)
    local = "configs/local/default.yaml"
    assert copied(code) == {".gitignore", "code.py", "added.py", "finetune/train.py", local, "REVISION"}
    assert (code / "code.py").read_text() == "new = 1\n"
    described = read_json(run / "job" / "git.json")
    assert described["changed"] == ["added.py", "code.py", "gone.py"] and described["new"] == ["notes.txt"]
    assert (code / "REVISION").read_text() == f"{described['revision']}+changes\n"
    assert "+new = 1" in (run / "job" / "git.diff").read_text()


def test_a_newer_snapshot_takes_the_place_of_the_old(checkout: Path, tmp_path: Path) -> None:
    snapshot_code(checkout, tmp_path / "run")
    (checkout / "added.py").unlink()
    assert not (snapshot_code(checkout, tmp_path / "run") / "added.py").exists()


def test_a_newer_snapshot_leaves_the_copy_that_a_launch_shares(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "code").symlink_to(tmp_path / "shared")
    code = snapshot_code(checkout, tmp_path / "run")
    assert not code.is_symlink() and (code / "added.py").is_file() and list((tmp_path / "shared").iterdir()) == []


def test_a_checkout_without_git_is_copied_whole(checkout: Path, tmp_path: Path) -> None:
    subprocess.run(["rm", "-rf", str(checkout / ".git")], check=True)
    code = snapshot_code(checkout, tmp_path / "run")
    assert (code / "added.py").is_file() and (code / "REVISION").read_text() == ""
    assert read_json(tmp_path / "run" / "job" / "git.json")["revision"] is None


def test_data_left_in_the_checkout_is_not_copied_with_it(checkout: Path, tmp_path: Path) -> None:
    with (checkout / "weights.bin").open("wb") as file:
        file.truncate(60 * 2**20)
    assert not (snapshot_code(checkout, tmp_path / "other") / "weights.bin").exists()
    subprocess.run(["git", "-C", str(checkout), "add", "--intent-to-add", "weights.bin"], check=True)
    with pytest.raises(ToolkitError, match=r"weights\.bin has more than 50 MiB"):
        snapshot_code(checkout, tmp_path / "run")
    assert not (tmp_path / "run" / "code").exists()


@pytest.mark.parametrize("git", [True, False])
def test_run_folders_inside_the_checkout_are_not_copied(checkout: Path, git: bool) -> None:
    if not git:
        subprocess.run(["rm", "-rf", str(checkout / ".git")], check=True)
    first = snapshot_code(checkout, checkout / "out" / "a")
    write_json(checkout / "out" / "a" / "run_config.json", {})
    second = snapshot_code(checkout, checkout / "out" / "b")
    assert [p.name for p in sorted(first.iterdir())] == [p.name for p in sorted(second.iterdir())]
    assert not (second / "data").exists()


# -- what is copied, and how -------------------------------------------------------------------------------------------


def refused(checkout: Path, run: Path, named: Sequence[str] = ()) -> str:
    """The message of a submission that is refused, and leaves no copy."""
    with pytest.raises(ToolkitError) as error:
        check_code(checkout, named, lambda _: None)
        snapshot_code(checkout, run, named=named)
    assert not (run / "code").exists()
    return str(error.value)


@pytest.mark.parametrize("name", ["finetune/new.py", "configs/mine.yaml", "gr00t/a/new.py", "finetune_jobs/my.sh"])
def test_a_source_that_git_does_not_track_is_refused(checkout: Path, tmp_path: Path, name: str) -> None:
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text("")
    message = refused(checkout, tmp_path / "run")
    assert f"git does not track {name}" in message and f"git add {name}" in message
    assert f"cluster.files=[{name}]" in message
    check_code(checkout, [name], lambda _: None)
    assert name in copied(snapshot_code(checkout, tmp_path / "named", named=[name]))
    subprocess.run(["git", "-C", str(checkout), "add", name], check=True)
    check_code(checkout, [], lambda _: None)
    assert name in copied(snapshot_code(checkout, tmp_path / "tracked"))


def test_a_new_script_at_the_top_is_named_and_left_out(checkout: Path, tmp_path: Path) -> None:
    (checkout / "scratch.py").write_text("")
    said: list[str] = []
    check_code(checkout, [], said.append)
    assert len(said) == 1 and "git does not track scratch.py" in said[0] and "cluster.files" in said[0]
    assert "scratch.py" not in copied(snapshot_code(checkout, tmp_path / "run"))


def test_named_files_and_folders_are_copied(checkout: Path, tmp_path: Path) -> None:
    (checkout / "assets").mkdir()
    (checkout / "assets" / "gripper.xml").write_text("")
    code = snapshot_code(checkout, tmp_path / "run", named=["assets", "data/video.mp4"])
    assert {"assets/gripper.xml", "data/video.mp4"} <= copied(code) and "notes.txt" not in copied(code)
    assert "is not in the checkout" in refused(checkout, tmp_path / "no", ["none.txt"])
    assert "lies outside of the checkout" in refused(checkout, tmp_path / "no", ["../run/job/git.json"])
    assert "lies outside of the checkout" in refused(checkout, tmp_path / "no", [str(tmp_path / "run")])
    assert "Name a file" in refused(checkout, tmp_path / "no", ["data"])


LINKS = {"out": "../private.txt", "within": "code.py", "broken": "nowhere", "folder": "../private", "absolute": "/etc"}


@pytest.mark.parametrize("git", ["tracked", "untracked", "none"])
@pytest.mark.parametrize("kind", LINKS)
def test_links_are_refused_by_name(checkout: Path, tmp_path: Path, kind: str, git: str) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.txt").write_text("private")
    (tmp_path / "private.txt").write_text("private")
    (checkout / "finetune" / "creds").symlink_to(LINKS[kind])
    if git == "tracked":
        subprocess.run(["git", "-C", str(checkout), "add", "finetune/creds"], check=True)
    elif git == "none":
        shutil.rmtree(checkout / ".git")
    message = refused(checkout, tmp_path / "run")
    assert "finetune/creds in" in message and "a link is not copied" in message


def test_a_folder_that_became_a_link_is_refused(checkout: Path, tmp_path: Path) -> None:
    (checkout / "finetune").rename(tmp_path / "finetune")
    (checkout / "finetune").symlink_to(tmp_path / "finetune")
    assert "finetune in" in refused(checkout, tmp_path / "run")


def test_a_link_that_is_named_or_in_the_site_folder_is_refused(checkout: Path, tmp_path: Path) -> None:
    (checkout / "mine.txt").symlink_to("code.py")
    assert "mine.txt in" in refused(checkout, tmp_path / "run", ["mine.txt"])
    (checkout / "configs" / "local" / "cluster.yaml").symlink_to(tmp_path / "site.yaml")
    assert "configs/local/cluster.yaml in" in refused(checkout, tmp_path / "run")


def test_links_to_data_beside_the_code_are_left_alone(checkout: Path, tmp_path: Path) -> None:
    (checkout / "runs").symlink_to(tmp_path)
    check_code(checkout, [], lambda _: None)
    assert not (snapshot_code(checkout, tmp_path / "run") / "runs").exists()


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_a_copy_is_open_to_nobody_whom_the_original_keeps_out(checkout: Path, tmp_path: Path, mask: int) -> None:
    modes = {
        "code.py": 0o600,
        "added.py": 0o755,
        "finetune/train.py": 0o664,
        "configs/local/default.yaml": 0o640,
    }
    for name, mode in modes.items():
        (checkout / name).chmod(mode)
    (checkout / "finetune").chmod(0o700)
    before = os.umask(mask)
    try:
        code = snapshot_code(checkout, tmp_path / "run")
    finally:
        os.umask(before)
    assert {name: stat.S_IMODE((code / name).stat().st_mode) for name in modes} == modes
    assert stat.S_IMODE((code / "finetune").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run" / "job" / "git.diff").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["code.py", "configs/local/default.yaml", "binary.bin"])
def test_a_key_in_the_code_is_refused_by_place_and_never_shown(checkout: Path, tmp_path: Path, name: str) -> None:
    content = f"first\nx = '{HUGGING_FACE}'\n"
    (checkout / name).write_bytes(b"\0\1\0" + content.encode("utf-16-le") if name == "binary.bin" else content.encode())
    message = refused(checkout, tmp_path / "run", [name])
    assert f"{checkout / name}:" in message and "a Hugging Face token" in message and HUGGING_FACE not in message


def test_without_git_in_a_git_checkout_nothing_is_copied(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git cannot say which files" in refused(checkout, tmp_path / "run")


def test_variables_of_a_git_hook_do_not_lead_to_another_checkout(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert "code.py" in copied(snapshot_code(checkout, tmp_path / "run"))
