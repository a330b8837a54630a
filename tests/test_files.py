"""Files and folders that are whole or not there: what a killed writer leaves, who holds a lock, sizes in words."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gr00t import file_replacement
from gr00t.errors import ToolkitError, disk_errors, disk_refusal, free_space, in_bytes, near_folder
from gr00t.file_reading import read_json
from gr00t.file_replacement import (
    LockHeld,
    checksum_path,
    copy_file,
    file_lock,
    file_sha256,
    files_digest,
    is_sound,
    lock_in_turn,
    make_once,
    recover,
    remove_leftovers,
    unsound,
    whole_folder,
    write_checksum,
    write_json,
)

ROOT = Path(__file__).parents[1]


def folder_with(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(text)
    return path


def test_a_folder_that_a_killed_writer_moved_away_is_put_back(tmp_path: Path) -> None:
    folder_with(tmp_path / ".done.replaced", "old")
    folder_with(tmp_path / ".done.partial-1", "half")
    recover(tmp_path / "done")
    assert (tmp_path / "done/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_one_that_a_killed_writer_had_replaced_already_is_cleared_away(tmp_path: Path) -> None:
    folder_with(tmp_path / "done", "new")
    folder_with(tmp_path / ".done.replaced", "old")
    recover(tmp_path / "done")
    assert (tmp_path / "done/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_what_may_not_be_replaced_is_not_cleared_away_either(tmp_path: Path) -> None:
    folder_with(tmp_path / "done", "new")
    folder_with(tmp_path / ".done.replaced", "another's")

    def refuse(_: Path) -> None:
        raise ToolkitError("not yours")

    with pytest.raises(ToolkitError, match="not yours"):
        recover(tmp_path / "done", refuse)
    assert (tmp_path / ".done.replaced/file").read_text() == "another's"


def test_the_next_writer_finds_the_folder_that_was_moved_away(tmp_path: Path) -> None:
    folder_with(tmp_path / ".done.replaced", "old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "done") as aside:
        (aside / "file").write_text("new")
        raise RuntimeError
    assert (tmp_path / "done/file").read_text() == "old"


def test_a_block_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    folder_with(tmp_path / "done", "old")
    for _ in range(2):
        with pytest.raises(RuntimeError), whole_folder(tmp_path / "done") as aside:
            (aside / "file").write_text("new")
            raise RuntimeError
    assert (tmp_path / "done/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    with whole_folder(tmp_path / "done") as aside:
        (aside / "file").write_text("new")
    assert (tmp_path / "done/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_without_replace_a_folder_that_is_there_is_refused(tmp_path: Path) -> None:
    folder_with(tmp_path / "done", "old")
    with pytest.raises(ToolkitError, match="exists already"), whole_folder(tmp_path / "done", replace=False):
        raise AssertionError("the block must not begin")
    assert (tmp_path / "done/file").read_text() == "old"


def test_nothing_is_renamed_once_it_is_no_longer_allowed(tmp_path: Path) -> None:
    folder_with(tmp_path / "done", "old")
    answers = iter([None, ToolkitError("superseded")])  # at the beginning, before the rename

    def allowed() -> None:
        if answer := next(answers):
            raise answer

    with pytest.raises(ToolkitError, match="superseded"), whole_folder(tmp_path / "done", allowed=allowed) as aside:
        (aside / "file").write_text("new")
    assert (tmp_path / "done/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_a_finished_folder_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "done"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "done").stat().st_mode & 0o777 == 0o750


def test_leftovers_of_one_folder_go_and_those_of_others_stay(tmp_path: Path) -> None:
    for name in (".checkpoint-3.partial-x", ".checkpoint-3.replaced", ".other.partial-x", "checkpoint-3"):
        folder_with(tmp_path / name, "")
    remove_leftovers(tmp_path, "checkpoint-*")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".checkpoint-3.replaced", ".other.partial-x", "checkpoint-3"]


def test_a_second_holder_hears_who_the_first_is_and_gets_the_lock_after_it(tmp_path: Path) -> None:
    with file_lock(tmp_path / "run", holder="the first"), pytest.raises(LockHeld) as refused:
        with file_lock(tmp_path / "run"):
            raise AssertionError("two holders")
    assert refused.value.holder == "the first"
    with file_lock(tmp_path / "run"):
        assert (tmp_path / ".run.lock").read_text() == ""
    assert not (tmp_path / ".run.lock").exists()


def test_those_who_share_a_lock_keep_out_one_who_does_not_until_the_last_has_left(tmp_path: Path) -> None:
    def lock(shared: bool):
        return file_lock(tmp_path / "run", shared=shared)

    with lock(True):
        with lock(True):
            pass
        with pytest.raises(LockHeld), lock(False):
            raise AssertionError("held alone beside another")
    assert not (tmp_path / ".run.lock").exists()
    with lock(False), pytest.raises(LockHeld), lock(True):
        raise AssertionError("shared what another holds alone")


def test_one_who_waits_in_turn_hears_once_for_whom_and_gives_up_in_time(tmp_path: Path) -> None:
    heard: list[str] = []
    with file_lock(tmp_path / "cache", holder="a run"), pytest.raises(LockHeld):
        with lock_in_turn(tmp_path / "cache", 0.7, waiting=heard.append):
            raise AssertionError("two holders")
    assert heard == ["a run"]
    with lock_in_turn(tmp_path / "cache", 0.0, waiting=heard.append):
        assert heard == ["a run"]


def test_locks_taken_by_threads_while_another_forks_end_with_their_holders(tmp_path: Path) -> None:
    """Closing a descriptor and forgetting it are one step: its number, used again, may be another thread's lock."""
    end = threading.Event()

    def take(number: int) -> int:
        taken = 0
        while not end.is_set():
            with lock_in_turn(tmp_path / f"run{number}", 10), pytest.raises(LockHeld):
                with file_lock(tmp_path / f"run{number}"):
                    raise AssertionError("two holders")
            taken += 1
        return taken

    with ThreadPoolExecutor(4) as pool:
        takers = [pool.submit(take, number) for number in range(4)]
        children = []
        for _ in range(100):
            if (child := os.fork()) == 0:
                held = len(file_replacement._locks)
                time.sleep(0.05)  # the locks of the parent are taken and left meanwhile
                os._exit(held)
            children.append(child)
            time.sleep(0.005)
        end.set()
        assert all(taker.result(60) > 10 for taker in takers)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 100
    assert not file_replacement._locks and not list(tmp_path.glob(".*.lock"))


def test_a_forked_process_that_leaves_the_lock_does_not_take_it_from_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib; from gr00t.file_replacement import file_lock\n"
        "lock = pathlib.Path(sys.argv[1])\n"
        "with file_lock(lock):\n"
        "    child = os.fork()\n"
        "    if child:\n"
        "        assert os.waitpid(child, 0)[1] == 0\n"
        "        assert (lock.parent / '.run.lock').exists()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_json_is_written_whole_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [2.5, None]}, sort_keys=True)
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    2.5,\n    null\n  ],\n  "b": 1\n}\n'
    assert read_json(tmp_path / "a.json") == {"b": 1, "a": [2.5, None]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert read_json(tmp_path / "a.json")["b"] == 1
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ToolkitError, match="expected a JSON object, not list"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("number, named", [(errno.ENOSPC, True), (None, False)])
def test_a_refusal_of_a_write_names_the_folder(number: int | None, named: bool, tmp_path: Path) -> None:
    error = OSError(number, "refused") if number else OSError("of a library")
    with pytest.raises(OSError) as found, whole_folder(tmp_path / "done"):
        raise error
    assert found.value.filename == (str(tmp_path / "done") if named else None)
    with pytest.raises(OSError) as found, whole_folder(tmp_path / "done"):
        raise OSError(errno.EACCES, "refused", "elsewhere")
    assert found.value.filename == "elsewhere"


@pytest.mark.parametrize(
    "size, text",
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (4.14e3, "4.1 kB"), (3.05e7, "30.5 MB"), (1e9, "1.0 GB")],
)
def test_sizes_as_users_read_them(size: float, text: str) -> None:
    assert in_bytes(size) == text


def test_only_a_mistyped_part_of_a_path_gets_a_hint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/color_object").mkdir(parents=True)
    wanted = tmp_path / "checkpoints/color_object"
    assert near_folder(tmp_path / "checkpoint/color_objects") == f' Did you mean "{wanted}"?'
    assert near_folder(wanted) == ""
    assert near_folder(tmp_path / "checkpoints/zzz") == ""


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(errno.EROFS, "Read-only file system"), "lies on a read-only file system"),
        (OSError("[Errno 28] Failed to write"), "the disk or quota is full"),  # as pyarrow says it
        (OSError("Not enough disk space. Needed: 1"), "the disk or quota is full"),
        (PermissionError(errno.EACCES, "denied"), "no permission"),
    ],
)
def test_refusals_of_the_disk_are_put_into_words(error: OSError, said: str, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=f"{said}.*Make room"), disk_errors(tmp_path, "Make room."):
        raise error
    wrapped = RuntimeError("while writing")
    wrapped.__cause__ = error
    assert said in str(disk_refusal(wrapped))


def test_other_errors_are_no_disks_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError), disk_errors(tmp_path, "Make room."):
        raise ValueError("a bug")
    assert disk_refusal(ValueError("a bug")) is None and disk_refusal(None) is None
    assert disk_refusal(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


def test_what_lies_in_the_way_is_asked_about_before_it_is_moved(tmp_path: Path) -> None:
    folder_with(tmp_path / "done", "another's")
    asked: list[str] = []

    def refuse(folder: Path) -> None:
        asked.append(folder.name)
        raise ToolkitError("not yours")

    with pytest.raises(ToolkitError, match="not yours"):
        with whole_folder(tmp_path / "done", replaceable=refuse) as aside:
            (aside / "file").write_text("new")
    assert asked == ["done"] and (tmp_path / "done/file").read_text() == "another's"
    with whole_folder(tmp_path / "new", replaceable=refuse):
        pass
    assert (tmp_path / "new").is_dir()


def test_a_second_writer_of_a_folder_is_refused_unless_it_needs_no_lock(tmp_path: Path) -> None:
    with file_lock(tmp_path / "done"):
        with pytest.raises(LockHeld), whole_folder(tmp_path / "done"):
            raise AssertionError("two writers")
        with whole_folder(tmp_path / "done", lock=False) as aside:
            (aside / "file").write_text("new")
    assert (tmp_path / "done/file").read_text() == "new"


def test_a_lock_is_that_of_the_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with file_lock(tmp_path / "link"), pytest.raises(LockHeld), file_lock(tmp_path / "real"):
        raise AssertionError("two holders")


def test_a_copy_keeps_permissions_and_times_and_never_replaces(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "deep" / "b"
    source.write_text("mine")
    source.chmod(0o640)
    os.utime(source, (1000, 2000))
    copy_file(source, target)
    assert (target.stat().st_mode & 0o777, target.stat().st_mtime, target.read_text()) == (0o640, 2000, "mine")
    with pytest.raises(FileExistsError):
        copy_file(source, target)


def test_free_space_is_that_of_the_disk_a_folder_will_lie_on(tmp_path: Path) -> None:
    assert abs(free_space(tmp_path / "not" / "yet") - free_space(tmp_path)) < 1e9


def test_a_checksum_holds_for_this_content_name_and_owner_only(tmp_path: Path) -> None:
    one, other = tmp_path / "a.npy", tmp_path / "b.npy"
    for path in (one, other):
        path.write_text("content")
        write_checksum(path, "features")
    assert is_sound(one, "features") and not is_sound(one, "frames")
    checksum_path(other).write_text(checksum_path(one).read_text())
    assert not is_sound(other, "features")
    one.write_text("Content")
    missing = tmp_path / "c.npy"
    write_checksum(other, "features")
    assert unsound([one, other, missing], "features") == {one, missing}


def test_a_digest_of_files_depends_on_each_ones_content_and_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, text in zip(paths, ("1", "23", "123"), strict=True):
        path.write_text(text)
    found = {files_digest(order) for order in (paths, paths[::-1], paths[:2], paths[2:])}
    assert len(found) == 4  # "1" + "23" is not "123"
    with pytest.raises(ToolkitError, match="cannot be read"):
        files_digest([tmp_path / "none"])


def test_what_is_hashed_is_a_file_and_not_waited_for(tmp_path: Path) -> None:
    pipe, beside = tmp_path / "a.npy", tmp_path / "b.npy"
    beside.write_text("content")
    os.mkfifo(pipe)
    os.mkfifo(checksum_path(beside))
    assert unsound([pipe, beside], "features") == {pipe, beside}
    for hashed in (file_sha256, lambda path: files_digest([path])):
        with pytest.raises(ToolkitError, match=r"a\.npy is a named pipe, where a file is expected"):
            hashed(pipe)


def test_what_is_whole_is_not_made_twice(tmp_path: Path) -> None:
    target, made = tmp_path / "cache" / "x", []

    def make() -> None:
        made.append(1)
        target.mkdir()

    make_once(target, "x", target.is_dir, make)
    make_once(target, "x", target.is_dir, make)
    assert len(made) == 1
    answers = iter([False, True])  # another process has made it while this one waited
    make_once(target, "x", lambda: next(answers), make)
    assert len(made) == 1
