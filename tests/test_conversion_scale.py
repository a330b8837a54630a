"""Conversion of many recordings: in parallel, continued after any interruption, and always the same datasets."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import h5py
import pytest
from recordings import INSTRUCTION, edit_json, write_recording

from conflict_panda_config import MODALITY_CONFIG
from data_prep import convert
from data_prep import convert as disk_space
from data_prep.convert import ConversionReport, convert_split
from data_prep.maniskill import CAMERAS
from data_prep.recording_checks import read_recordings
from data_prep.resumable_conversion import Unfinished
from gr00t.errors import ToolkitError

ROOT = Path(__file__).parents[1]
FILES, EPISODES = 8, 26  # of train, and in all
SPLIT = "color_object"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw_dir: train in shards of three short episodes each, conflict in one file of two."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(FILES):
        write_shard(folder, number)
    write_recording(folder / SPLIT / "conflict", [17, 5], seed=99)
    return folder


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file that a conversion by one process, without interruption, writes."""
    data = tmp_path_factory.mktemp("expected")
    run(raw, data)
    return tree(data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def write_shard(folder: Path, number: int) -> Path:
    return write_recording(folder / SPLIT / "train", [16 + number, 6, 5], name=f"trajectory.rank{number}", seed=number)


def run(raw: Path, data: Path, **settings: object) -> ConversionReport:
    chosen = {"progress": False, "workers": 1, **settings}
    return convert_split(raw, data, SPLIT, INSTRUCTION, MODALITY_CONFIG, **chosen)  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def journal(data: Path) -> Path:
    return data / f".{SPLIT}.converting/episodes.jsonl"


def interrupted(raw: Path, data: Path, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> str:
    """A conversion that `error` ends after so many episodes: what it says."""
    begun: list[int] = []

    def write(root: Path, job: object) -> object:
        begun.append(1)
        if len(begun) > after:
            raise error
        return real(root, job)  # type: ignore[arg-type]

    real = convert.write_episode
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, ToolkitError)) as told:
        patch.setattr(convert, "write_episode", write)
        run(raw, data)
    return str(told.value)


def counted(raw: Path, data: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> list[tuple[str, int]]:
    """Convert; the episodes that were written now."""
    written: list[tuple[str, int]] = []
    real = convert.write_episode
    with monkeypatch.context() as patch:
        patch.setattr(
            convert, "write_episode", lambda root, job: (written.append((job.part, job.index)), real(root, job))[1]
        )
        run(raw, data, **settings)
    return written


# -- many files --------------------------------------------------------------------------------------------------------


def test_shards_in_sub_folders_are_joined_in_natural_order(tmp_path: Path) -> None:
    names = [
        "b/trajectory.rgb.pd_joint_pos.physx_cpu",
        "trajectory.rank10",
        "trajectory.rank2",
        "trajectory.rank02",
        "a",
    ]
    for number, name in enumerate(names):
        write_recording((tmp_path / name).parent, [4 + number], name=Path(name).name, seed=number)
    found = [
        episode.file.relative_to(tmp_path).with_suffix("").as_posix() for episode in read_recordings(tmp_path).episodes
    ]
    assert found == ["a", names[0], "trajectory.rank02", "trajectory.rank2", "trajectory.rank10"]


def merge(folder: Path, shards: list[Path]) -> None:
    """What ManiSkill's merge_trajectory makes of them."""
    episodes = []
    with h5py.File(folder / "trajectory.h5", "w") as merged:
        for shard in shards:
            meta = json.loads(shard.with_suffix(".json").read_text())
            with h5py.File(shard) as part:
                for entry in meta["episodes"]:
                    part.copy(f"traj_{entry['episode_id']}", merged, f"traj_{len(episodes)}")
                    episodes.append({**entry, "episode_id": len(episodes)})
    (folder / "trajectory.json").write_text(json.dumps({**meta, "episodes": episodes}))


def test_a_merged_recording_beside_its_shards_is_refused_by_name(tmp_path: Path, data: Path) -> None:
    shards = [write_shard(tmp_path, number) for number in range(5)]
    merge(tmp_path / SPLIT / "train", shards)
    names = r"trajectory\.rank0\.h5, trajectory\.rank1\.h5, trajectory\.rank2\.h5 and 2 more"
    with pytest.raises(ToolkitError, match=rf"15 such episodes.*All 15 of trajectory\.h5 are in {names} too: a merged"):
        run(tmp_path, data)
    assert not data.exists()


def test_a_copied_shard_is_refused_by_name(tmp_path: Path, data: Path) -> None:
    shard = write_shard(tmp_path, 3)
    for suffix in (".h5", ".json"):
        shutil.copy(shard.with_suffix(suffix), shard.with_name(f"more{suffix}"))
    with pytest.raises(ToolkitError, match=r"All 3 of trajectory\.rank3\.h5 are in more\.h5 too: a copy"):
        run(tmp_path, data)


def test_an_episode_twice_in_one_file_is_refused(tmp_path: Path, data: Path) -> None:
    shard = write_shard(tmp_path, 3)
    with h5py.File(shard, "a") as recording:
        del recording["traj_2"]
        recording.copy("traj_1", "traj_2")
    edit_json(shard, lambda meta: meta["episodes"][2].update(elapsed_steps=6))
    with pytest.raises(ToolkitError, match=r"traj_2 is the same recording as .*traj_1 .*Remove one of each two"):
        run(tmp_path, data)


def test_one_shard_in_another_control_mode_is_refused_by_name(tmp_path: Path, data: Path) -> None:
    shards = [write_shard(tmp_path, number) for number in range(3)]
    edit_json(shards[1], lambda meta: meta["env_info"]["env_kwargs"].update(control_mode="pd_ee_delta_pose"))
    with pytest.raises(ToolkitError, match=r"rank1\.h5: recorded with control_mode \"pd_ee_delta_pose\""):
        run(tmp_path, data)


def test_episodes_that_a_replay_lacks_are_reported(tmp_path: Path) -> None:
    raw_shards = [write_recording(tmp_path, [20, 6, 6], name=f"trajectory.rank{k}", seed=k) for k in (1, 2)]
    for shard in raw_shards:
        edit_json(shard, lambda meta: meta["env_info"]["env_kwargs"].update(obs_mode="none"))
    write_recording(tmp_path, [20, 6], name="trajectory.rgb.pd_joint_pos.physx_cpu", seed=1)
    with pytest.raises(ToolkitError, match=r"rank2\.h5: recorded with obs_mode \"none\""):
        read_recordings(tmp_path)
    for suffix in (".h5", ".json"):
        raw_shards[1].with_suffix(suffix).unlink()
    assert "1 of its 3 episodes are not in it" in read_recordings(tmp_path).notes[0]


# -- in parallel, and interrupted --------------------------------------------------------------------------------------


def test_processes_write_the_same_files_bit_for_bit(raw: Path, data: Path, expected: dict[str, bytes]) -> None:
    report = run(raw, data, workers=2)
    assert tree(data) == expected
    assert report.lines()[-1].startswith(f"{report.parts[0].frames + report.parts[1].frames} frames converted in ")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), "10 of 26 episodes are converted and wait in"),
        (OSError(28, "No space left on device"), "Make room and start again: it continues with what is converted"),
        (ToolkitError("a damaged recording"), "a damaged recording\n10 of 26 episodes are converted"),
    ],
)
def test_an_interrupted_conversion_says_so_and_continues_with_what_is_there(
    raw: Path, data: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str
) -> None:
    assert told in interrupted(raw, data, monkeypatch, after=10, error=error)
    assert [path.name for path in data.iterdir()] == [f".{SPLIT}.converting"]
    written = counted(raw, data, monkeypatch)
    assert written == [*(("train", index) for index in range(10, 24)), ("conflict", 0), ("conflict", 1)]
    assert tree(data) == expected


@pytest.mark.parametrize("links", [True, False])
def test_a_part_that_was_recorded_later_is_added_and_the_others_stay(
    raw: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    first = tmp_path / "first"
    shutil.copytree(raw / SPLIT / "train", first / SPLIT / "train")
    run(first, data)
    monkeypatch.chdir(tmp_path)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    (data / SPLIT / "train/.cache").mkdir()
    (data / SPLIT / "train/.cache/kept").write_text("of a training")
    shutil.copytree(raw / SPLIT / "conflict", first / SPLIT / "conflict")
    with pytest.raises(ToolkitError, match="exists already and is left as it is"):
        run(first, data, val_fraction=0.2)
    assert counted(first, data, monkeypatch) == [("conflict", 0), ("conflict", 1)]
    found = tree(data)
    assert found.pop(f"{SPLIT}/train/.cache/kept") == b"of a training"
    run(first, tmp_path / "whole")
    assert found == tree(tmp_path / "whole")
    assert not counted(first, data, monkeypatch)  # all is there
    shutil.rmtree(data / SPLIT / "conflict")
    (data / SPLIT / "train/meta/split.json").write_text("{}")
    with pytest.raises(ToolkitError, match="exists already and is left as it is"):
        run(first, data)


def test_the_journal_keeps_its_format(raw: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what an earlier version has converted would be thrown away without a word."""
    interrupted(raw, data, monkeypatch, after=2, error=KeyboardInterrupt())
    entries = [json.loads(line) for line in journal(data).read_text().splitlines()]
    for entry in entries:
        assert list(entry) == ["part", "index", "made_of", "files", "frames", "size", "videos"]
        for video in (entry["videos"][camera] for camera in CAMERAS):
            assert 0 <= video["error"] < 20 and bytes.fromhex(video["first_frame"])
    assert len(entries) == 2


def test_the_bar_tells_frames_a_second(raw: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(raw, data, progress=True)
    assert re.search(r"\d/s", capsys.readouterr().err)


def test_an_interruption_after_the_last_episode_leaves_only_meta_to_write(
    raw: Path, data: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert, "publish", interrupt)
        run(raw, data)
    assert counted(raw, data, monkeypatch) == []
    assert tree(data) == expected


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_a_kill_after_the_last_step_leaves_is_cleared_away(raw: Path, data: Path) -> None:
    run(raw, data)
    journal(data).parent.mkdir()
    journal(data).write_text("{}\n")
    assert run(raw, data, overwrite=True).notes == []
    assert [path.name for path in data.iterdir()] == [SPLIT]


def test_damaged_leftovers_are_made_again(
    raw: Path, data: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(raw, data, monkeypatch, after=6, error=KeyboardInterrupt())
    lines = journal(data).read_text().splitlines()
    journal(data).write_text("\n".join([*lines[:5], lines[5][:40]]))  # cut off within a line
    videos = sorted(journal(data).parent.glob("dataset/train/videos/chunk-000/*/episode_00000[13].mp4"))
    videos[0].write_bytes(videos[0].read_bytes()[:-1])
    videos[3].unlink()
    (videos[0].parent / ".0123.episode_000009.mp4").write_bytes(b"half written")
    assert [index for part, index in counted(raw, data, monkeypatch) if part == "train"][:4] == [1, 3, 5, 6]
    assert tree(data) == expected


def test_recordings_that_were_changed_or_added_meanwhile_are_converted_and_the_others_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [write_shard(tmp_path, number) for number in range(4)]
    interrupted(tmp_path, data, monkeypatch, after=9, error=KeyboardInterrupt())
    with h5py.File(shards[1], "a") as recording:
        recording["traj_0/actions"][0, 0] = 0.5
    write_shard(tmp_path, 4)
    written = counted(tmp_path, data, monkeypatch, val_fraction=0.3)
    assert [index for _, index in written] == [3, 4, 5, *range(9, 15)]
    run(tmp_path, tmp_path / "fresh", val_fraction=0.3)
    assert tree(data) == tree(tmp_path / "fresh")


def test_leftovers_that_no_longer_fit_are_reported(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [write_shard(tmp_path, number) for number in range(4)]
    interrupted(tmp_path, data, monkeypatch, after=5, error=KeyboardInterrupt())
    os.utime(shards[0])
    report = run(tmp_path, data)
    assert "3 episodes of an interrupted start no longer fit and were made again." in report.notes
    assert report.taken_up == 2


def test_leftovers_of_other_recordings_are_dropped_only_on_request(
    raw: Path, data: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recording(tmp_path / "others" / SPLIT / "train", [16, 16, 16], seed=77)
    interrupted(tmp_path / "others", data, monkeypatch, after=2, error=KeyboardInterrupt())
    before = tree(data)
    with pytest.raises(ToolkitError, match=r"holds 2 episodes of a conversion that was interrupted.*overwrite=true"):
        run(raw, data)
    assert tree(data) == before
    run(raw, data, overwrite=True)
    assert tree(data) == expected


def test_a_recording_that_changes_under_the_conversion_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_recording(tmp_path / "raw" / SPLIT / "train", [16, 16, 16])
    real = convert.write_episode
    monkeypatch.setattr(convert, "write_episode", lambda root, job: (real(root, job), os.utime(shard))[0])
    with pytest.raises(ToolkitError, match=r"trajectory\.h5: was changed while it was converted"):
        run(tmp_path / "raw", tmp_path / "data")
    assert not (tmp_path / "data" / SPLIT).exists()


def test_no_process_continues_when_a_conversion_is_interrupted(
    raw: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(Unfinished, "add", interrupt)
        run(raw, data, workers=2)
    assert multiprocessing.active_children() == []
    assert list(data.iterdir()) == []


ENDED_AFTER_THE_FIRST = """
import multiprocessing, os, signal, sys
from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from data_prep.resumable_conversion import Unfinished

def add_and_kill(self, record):
    add(self, record)
    workers = [worker.pid for worker in multiprocessing.active_children()]
    print(*workers, flush=True)
    os.kill(os.getpid() if sys.argv[3] == "itself" else workers[0], signal.SIGKILL)
    Unfinished.add = add

add, Unfinished.add = Unfinished.add, add_and_kill
convert_split(
    sys.argv[1], sys.argv[2], "color_object", "pick up the color-matching object", MODALITY_CONFIG,
    workers=2, progress=False,
)
"""


def killed(raw: Path, data: Path, whom: str) -> tuple[list[int], str]:
    """A conversion by two processes in which `whom` is killed after the first episode: the workers, and stderr."""
    command = [sys.executable, "-c", ENDED_AFTER_THE_FIRST, str(raw), str(data), whom]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if whom == "itself" else 1)
    assert not (data / SPLIT).exists()
    return [int(worker) for worker in done.stdout.split()], done.stderr


def test_killed_with_its_workers_at_it_a_conversion_continues_and_nobody_stays_behind(
    raw: Path, data: Path, expected: dict[str, bytes]
) -> None:
    workers, _ = killed(raw, data, "itself")
    assert len(workers) == 2
    end = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < end, "workers outlive their parent"
        time.sleep(0.01)
    assert run(raw, data).taken_up == 1
    assert tree(data) == expected


def test_a_worker_that_dies_is_reported_and_the_rest_is_kept(raw: Path, data: Path, expected: dict[str, bytes]) -> None:
    _, errors = killed(raw, data, "a worker")
    assert "ToolkitError: A worker process died, perhaps for lack of memory" in errors
    assert f"of {EPISODES} episodes are converted and wait in" in errors
    assert run(raw, data).taken_up >= 1
    assert tree(data) == expected


# -- the disk ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_will_not_do_is_reported_before_it_is_full(
    raw: Path, data: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    written: list[int] = []
    real = convert.write_episode
    with monkeypatch.context() as patch, pytest.raises(ToolkitError, match=r"[kM]B are needed[\s\S]*6 of 26 episodes"):
        patch.setattr(disk_space, "TELLING_FRAMES", 1)
        patch.setattr(convert, "write_episode", lambda root, job: (written.append(1), real(root, job))[1])
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**9 if len(written) < 6 else 1000))
        run(raw, data)
    assert len(counted(raw, data, monkeypatch)) == EPISODES - 6
    assert tree(data) == expected


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from data_prep.resumable_conversion import Unfinished
from gr00t.errors import ToolkitError

raw, disk, copy = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
other = Path(disk, "other")

def add_and_fill(self, record):
    add(self, record)
    if len(self.records) == 5:
        with open(other, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

add, Unfinished.add = Unfinished.add, add_and_fill
def convert():
    instruction = "pick up the color-matching object"
    return convert_split(raw, disk, "color_object", instruction, MODALITY_CONFIG, workers=1, progress=False)

try:
    convert()
except ToolkitError as error:
    print(error)
print(sorted(path.name for path in Path(disk).iterdir()))
other.unlink()
Unfinished.add = add
print(convert().taken_up, "taken up")
subprocess.run(["cp", "-r", disk, copy], check=True)
"""


def test_a_full_disk_loses_nothing_and_room_is_all_it_takes(
    raw: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """A real one of 4 MB, which only this test sees mounted, and which fills up after five episodes."""
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*own_mounts, "true"], capture_output=True).returncode:
        pytest.skip("a small disk of its own needs user namespaces (unshare --user --mount), not allowed here")
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    command = [*own_mounts, sys.executable, "-c", FULL_DISK, str(raw), str(disk), str(copy)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, there, taken_up = done.stdout.splitlines()
    assert "the disk or quota is full; nothing half-written is left. Make room and start again: it continues" in said
    assert there == f"['.{SPLIT}.converting', 'other']"
    assert taken_up == "5 taken up"
    assert tree(copy) == expected
