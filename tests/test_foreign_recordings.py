"""Recordings from other machines: linked folders are read, what macOS adds is passed over, and nothing that lies
outside of a recording, or is not what it declares to be, comes into a dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from recordings import write_recording

from data_prep.recording_checks import read_recordings
from gr00t.errors import ToolkitError

RGB = "obs/sensor_data/hand_camera/rgb"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sound episodes, to be changed by the test."""
    return write_recording(tmp_path / "raw", [5, 6]).parent


def names(folder: Path) -> list[str]:
    return [episode.file.relative_to(folder).as_posix() for episode in read_recordings(folder).episodes]


# -- where recordings lie ----------------------------------------------------------------------------------------------


def test_recordings_behind_linked_folders_are_read_and_circles_end(folder: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "disk/deep", [7], seed=3)
    (folder / "shard").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/back").symlink_to(folder)
    (folder / "self").symlink_to(".")
    assert names(folder) == ["shard/deep/trajectory.h5", "trajectory.h5", "trajectory.h5"]


def test_links_that_multiply_are_refused_soon(folder: Path, tmp_path: Path) -> None:
    halls = [tmp_path / f"hall{n}" for n in range(12)]
    for hall in halls:
        hall.mkdir()
        for other in halls:
            (hall / other.name).symlink_to(other)
    (folder / "hall").symlink_to(halls[0])
    with pytest.raises(ToolkitError, match=r"raw: links lead to each other without end, .*hall.* Remove them"):
        read_recordings(folder)


def test_what_macos_writes_beside_recordings_is_passed_over(folder: Path) -> None:
    for name in ("._trajectory.h5", "._trajectory.json", ".DS_Store", ".Trashes/trajectory.h5"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    assert len(names(folder)) == 2


@pytest.mark.parametrize("name", ["Küche.h5", "Ku\u0308che.h5", "厨房\u2028.h5"])
def test_names_in_any_script_are_read(name: str, folder: Path) -> None:
    for suffix in (".h5", ".json"):
        (folder / f"trajectory{suffix}").rename((folder / name).with_suffix(suffix))
    assert set(names(folder)) == {name}


@pytest.mark.parametrize("name, what", [("x.h5", "x.h5"), ("trajectory.json", "trajectory.json")])
def test_a_pipe_is_called_one(name: str, what: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    (folder / "x.json").write_text((folder / "trajectory.json").read_text() if name == "x.h5" else "{}")
    with pytest.raises(ToolkitError, match=rf"{what} is a named pipe, where a file is expected"):
        read_recordings(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_json_saved_on_windows_is_read(encoding: str, folder: Path) -> None:
    text = (folder / "trajectory.json").read_text().replace(", ", ",\r\n")
    (folder / "trajectory.json").write_bytes(text.encode(encoding))
    assert len(names(folder)) == 2


@pytest.mark.parametrize("change", [{"episodes": 3}, {"env_info": {"env_kwargs": []}}])
def test_a_json_of_another_form_is_refused(change: dict[str, object], folder: Path) -> None:
    meta = json.loads((folder / "trajectory.json").read_text())
    (folder / "trajectory.json").write_text(json.dumps(meta | change))
    with pytest.raises(ToolkitError, match=r"trajectory.json: .*missing; this is not the .json"):
        read_recordings(folder)


# -- what lies in them -------------------------------------------------------------------------------------------------


def external_storage(t: h5py.Group, other: Path) -> None:
    del t[RGB]
    t.create_dataset(RGB, shape=(7, 4, 4, 3), dtype=np.uint8, external=[(str(other), 0, 7 * 48)])


def virtual(t: h5py.Group, other: Path) -> None:
    layout = h5py.VirtualLayout(shape=(6, 8), dtype=np.float32)
    layout[:] = h5py.VirtualSource(str(other), "actions", shape=(6, 8))
    del t["actions"]
    t.create_virtual_dataset("actions", layout)


def put_link(name: str, link: Callable[[Path], object]) -> Callable[[h5py.Group, Path], None]:
    def put(t: h5py.Group, other: Path) -> None:
        del t[name]
        t[name] = link(other)

    return put


def through_soft_links(t: h5py.Group, other: Path) -> None:
    t.file["away"] = h5py.ExternalLink(str(other), "/")
    put_link("actions", lambda _: h5py.SoftLink("/away/actions"))(t, other)


def declare(name: str, shape: tuple[int, ...], kind: type, filled: bool) -> Callable[[h5py.Group, Path], None]:
    def put(t: h5py.Group, other: Path) -> None:
        del t[name]
        array = t.create_dataset(name, shape=shape, dtype=kind, chunks=(1, *[min(n, 8) for n in shape[1:]]))
        if filled:
            array[(0,) * len(shape)] = 1

    return put


ELSEWHERE, TOO_MUCH = "link to another file", "declares [0-9.]+ [kMG]B, of which the file holds"
FOREIGN: dict[str, tuple[Callable[[h5py.Group, Path], object], str]] = {
    "external storage": (external_storage, "lies in another file"),
    "a virtual dataset": (virtual, "lies in another file"),
    "external link": (
        put_link("actions", lambda other: h5py.ExternalLink(str(other), "actions")),
        "link to another file",
    ),
    "external group": (put_link("obs", lambda other: h5py.ExternalLink(str(other), "/")), ELSEWHERE),
    "external flags": (put_link("success", lambda other: h5py.ExternalLink(str(other), "s")), ELSEWHERE),
    "soft links that lead out": (through_soft_links, ELSEWHERE),
    "soft link to itself": (put_link("actions", lambda _: h5py.SoftLink("actions")), "cannot be read"),
    "soft link to nothing": (put_link("actions", lambda _: h5py.SoftLink("/none")), 'has no "actions"'),
    "2^31 steps of which none is there": (
        declare("actions", (2**31, 8), np.float32, False),
        TOO_MUCH,
    ),
    "2^31 steps of which one is there": (
        declare("actions", (2**31, 8), np.float32, True),
        TOO_MUCH,
    ),
    "frames of 60 GB": (declare(RGB, (7, 10**5, 10**5, 3), np.uint8, True), TOO_MUCH),
    "frames that were never written": (
        declare(RGB, (7, 32, 32, 3), np.uint8, False),
        TOO_MUCH,
    ),
    "an array in an array's place": (put_link("obs", lambda _: np.zeros(3)), "has no"),
    "texts": (put_link("success", lambda _: np.array([b"x"] * 6, object)), "holds object, where numbers are needed"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_in_the_file_is_refused_by_name(name: str, folder: Path, tmp_path: Path) -> None:
    change, said = FOREIGN[name]
    other = tmp_path / "other.h5"
    os.mkfifo(other)  # whoever opens it waits without end
    if name in ("external storage", "a virtual dataset"):
        other.unlink()
        with h5py.File(other, "w") as source:
            source["actions"] = np.zeros((6, 8), np.float32)
    with h5py.File(folder / "trajectory.h5", "a") as recording:
        change(recording["traj_1"], other)
    with pytest.raises(ToolkitError, match=rf"trajectory.h5.*{said}"):
        read_recordings(folder)


def test_a_whole_episode_behind_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    with h5py.File(folder / "trajectory.h5", "a") as recording:
        del recording["traj_1"]
        recording["traj_1"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "traj_1")
    with pytest.raises(ToolkitError, match=r'"traj_1" of "traj_1" is a link to another file'):
        read_recordings(folder)


def test_soft_links_within_a_recording_are_followed(folder: Path) -> None:
    with h5py.File(folder / "trajectory.h5", "a") as recording:
        for name, target in (("actions", "/kept/actions"), ("success", "flags")):
            recording.move(f"traj_1/{name}", "kept/actions" if name == "actions" else "traj_1/flags")
            recording[f"traj_1/{name}"] = h5py.SoftLink(target)
    assert [len(episode.actions()) for episode in read_recordings(folder).episodes] == [5, 6]


def test_what_was_a_file_when_it_was_read_and_is_a_link_now_is_not_followed(folder: Path, tmp_path: Path) -> None:
    episode = read_recordings(folder).episodes[0]
    with h5py.File(folder / "trajectory.h5", "a") as recording:
        put_link("actions", lambda other: h5py.ExternalLink(str(other), "x"))(recording["traj_0"], tmp_path / "o")
    with pytest.raises(ToolkitError, match="link to another file"):
        episode.actions()
