"""Disks that are full, read-only or without inodes: one line that names the place, and nothing half-written."""

from __future__ import annotations

import errno
import getpass
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
from test_report import write_run

from data_prep.check import _write
from finetune.create_base import create_base
from finetune.prefetch import PrefetchConfig, prefetch
from finetune.report.__main__ import main
from gr00t.data.layout import DatasetLayout
from gr00t.data.step_reader import FrameTables
from gr00t.errors import ToolkitError, disk_errors, in_bytes
from gr00t.file_replacement import write_text
from toolkit.command_line import READER_LEFT, REFUSED, run_main
from toolkit.configuration import load

ROOT = Path(__file__).parents[1]
PLAIN = ["local=none", "model=tiny"]


# -- in words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 bytes"), (512, "512 bytes"), (65_536, "65.5 kB"), (30_500_000, "30.5 MB"), (6.9e9, "6.9 GB")],
)
def test_sizes_have_units_that_say_something(size: float, said: str) -> None:
    assert in_bytes(size) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            r"full; nothing half-written is left\. Do so\. \(.* free there",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk or quota is full"),
        (OSError("Error writing bytes to file. Detail: [errno 28] No space left"), "disk or quota is full"),
        (Exception("No space left on device (os error 28)"), "disk or quota is full"),  # of tokenizers
        (OSError(errno.EROFS, "Read-only file system"), r"lies on a read-only file system\. Do so\.$"),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), r"no permission \(/a/b\)\. Do so\.$"),
    ],
)
def test_what_the_disk_refuses_is_named(error: Exception, said: str, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=rf"^{tmp_path}/x: .*{said}"), disk_errors(tmp_path / "x", "Do so."):
        raise error


def test_a_disk_without_inodes_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*found[:5], 20, 0, 0, *found[8:])))
    with pytest.raises(ToolkitError, match=r"no inodes left.*Do so\. \([\d.,]+ [kMG]B free there\.\)"):
        with disk_errors(tmp_path, "Do so."):
            raise OSError(errno.ENOSPC, "No space left on device")


# -- where nobody has put it into words --------------------------------------------------------------------------------


def ended(problem: Callable[[], object]) -> int:
    with pytest.raises(SystemExit) as stop:
        run_main(lambda config: problem(), "create_base", PLAIN)
    return int(stop.value.code or 0)


def wrapped(error: OSError) -> None:
    raise RuntimeError("the library's own words") from error


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (lambda: Path("/proc/nothing").mkdir(), None),  # a missing folder may be a bug
        (lambda: Path("/dev/full").write_text("x" * 10**6), "A file: the disk or quota is full"),
        (lambda: write_text(Path("/dev/full/x"), "x"), "a file stands where a folder should be"),
        (lambda: wrapped(OSError(errno.EROFS, "Read-only", "/a/b")), "/a/b: lies on a read-only file system. Mend"),
        (lambda: os.listdir("x" * 5000), "the name is longer than the file system takes"),
    ],
)
def test_a_refusal_of_the_disk_is_one_line_and_a_bug_is_a_traceback(
    problem: Callable[[], object], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if said is None:
        with pytest.raises(FileNotFoundError):
            run_main(lambda config: problem(), "create_base", PLAIN)
        return
    assert ended(problem) == REFUSED
    line = capsys.readouterr().err
    assert line.startswith("error: ") and said in line and line.count("\n") == 1


def test_no_temporary_folder_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    problem = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    def fails() -> None:
        raise problem

    assert ended(fails) == REFUSED
    assert "Set TMPDIR to a folder that can be written." in capsys.readouterr().err


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/.cache"),
        OSError("Not enough disk space. Needed: Unknown size"),
    ],
)
def test_a_full_disk_is_not_taken_for_damaged_frame_tables(
    problem: OSError, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tmp_path / "train"  # whose tables were not read before
    shutil.copytree(small_data / "color_object/train", dataset, ignore=shutil.ignore_patterns(".cache"))

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("An error occurred while generating the dataset") from problem

    monkeypatch.setattr(datasets.Dataset, "from_parquet", fails)
    with pytest.raises(ToolkitError, match=r"disk or quota is full.*Make room there") as refusal:
        FrameTables(DatasetLayout(dataset), ["action"])
    assert "Prepare" not in str(refusal.value)


# -- a container's user ------------------------------------------------------------------------------------------------


def test_a_user_without_home_and_name_has_both_for_the_libraries_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    run_main(lambda config: None, "create_base", PLAIN)
    assert Path.home().name == f"home-{os.getuid()}" and getpass.getuser() == str(os.getuid())


def test_output_in_an_ascii_locale_loses_no_run() -> None:
    code = (
        'from toolkit.command_line import run_main; run_main(lambda c: print("\\u2603"), "create_base", ["local=none"])'
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\\u2603\n"), done.stderr


# -- every command that writes -----------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses longer files to every writer of this process: what a quota does, without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


Writer = Callable[[Path, Path, Path], object]
WRITERS: dict[str, Writer] = {
    "create_base": lambda out, base, run: create_base(load("create_base", [*PLAIN, f"out={out}"])),
    "prefetch": lambda out, base, run: prefetch(PrefetchConfig(base=str(base), out=str(out))),
    "report": lambda out, base, run: main(([run], load("report", ["local=none", f"out={out}"]))),
    "doctor": lambda out, base, run: _write(out, "x" * 10_000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_half_written_is_left(name: str, tiny_base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "disk").mkdir()
    with (
        files_of_at_most(2000),
        pytest.raises(ToolkitError, match=rf"^{tmp_path}/disk/out: is larger than a file may be"),
    ):
        WRITERS[name](tmp_path / "disk/out", tiny_base, run)
    kept = [".out.prefetch"] if name == "prefetch" else []  # the start after it continues there
    assert [path.name for path in (tmp_path / "disk").iterdir()] == kept


ON_REAL_DISKS = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_disks import WRITERS
from gr00t.errors import ToolkitError

disk, base, run = map(Path, sys.argv[1:])
def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
for kind, options in (("full", "size=64k"), ("inodes", "size=64m,nr_inodes=3"), ("read-only", "size=64m,ro")):
    mount(options)
    if kind == "full":
        (disk / "other").write_bytes(bytes(65536))
    for name, write in WRITERS.items():
        try:
            write(disk / "out", base, run)
            print(kind, name, "done")
        except ToolkitError as error:
            print(kind, name, str(error).splitlines()[0])
        left = [path.name for path in disk.iterdir() if path.name not in ("other", ".out.prefetch")]
        print("left", *left)
        subprocess.run(["rm", "-rf", str(disk / "out"), str(disk / ".out.prefetch")])
    subprocess.run(["umount", str(disk)], check=True)
"""


def test_real_disks_are_told_apart(tiny_base: Path, tmp_path: Path) -> None:
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*own_mounts, "true"], capture_output=True).returncode:
        pytest.skip("a small disk of its own needs user namespaces (unshare --user --mount), not allowed here")
    (tmp_path / "disk").mkdir()
    arguments = [str(tmp_path / "disk"), str(tiny_base), str(write_run(tmp_path / "run"))]
    command = [*own_mounts, sys.executable, "-c", ON_REAL_DISKS, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = {tuple(line.split()[:2]): line for line in done.stdout.splitlines() if not line.startswith(("left", "run"))}
    for name in WRITERS:
        assert " free" in told["full", name] and "0 bytes free" in told["full", name]
        assert "read-only file system" in told["read-only", name]
    assert all("no inodes left" in told["inodes", name] for name in ("create_base", "prefetch"))
    assert {line for line in done.stdout.splitlines() if line.startswith("left")} <= {"left", "left out"}


@pytest.mark.parametrize("given", [["json=true"], ["--help"], ["--cfg"]])
def test_a_reader_that_leaves_ends_a_command_without_a_traceback(given: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "finetune.plan", *PLAIN, *given]
    with os.fdopen(theirs, "wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (READER_LEFT, "")
