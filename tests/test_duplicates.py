"""Copies are found by what they hold and by what they show; one motion in several scenes is no copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from damages import CAMERAS, edit_lines, edit_meta, read_table, video_path, write_table
from scheduling import usual_scheduling

from conflict_panda_config import MODALITY_CONFIG
from data_prep.doctor import Finding, duplicate_checks
from data_prep.doctor import examine as registry
from data_prep.doctor.examine import examine
from gr00t.data.video import VideoReader

STATE, ACTION = "observation.state", "action"
TRAIN, VAL = 3, 0  # episodes of `sound`
Columns = dict[str, np.ndarray]


class Copy(NamedTuple):
    """How an episode is copied: rows kept, and what happens to its values, images and encoding."""

    rows: slice = slice(None)
    values: Callable[[Columns], object] = lambda columns: None
    images: Callable[[np.ndarray], np.ndarray] = lambda frames: frames
    codec: str = "libx264"
    options: tuple[tuple[str, str], ...] = (("crf", "30"), ("preset", "veryfast"))


def moved(columns: Columns) -> None:
    """Other values throughout, as of a robot that is calibrated otherwise."""
    for name in (STATE, ACTION):
        columns[name][:, :7] += np.linspace(0.1, 0.3, len(columns[name]))[:, None]


def measured_again(columns: Columns) -> None:
    """The same commands, states with the noise of another run."""
    columns[STATE][:, :7] += np.random.default_rng(len(columns[STATE])).normal(0, 0.1, columns[STATE][:, :7].shape)


def lit(frames: np.ndarray) -> np.ndarray:
    """A warmer, brighter image."""
    return np.clip(frames * np.array([1.08, 1.0, 0.92]) + 8, 0, 255).astype(np.uint8)


def put(source: Path, number: int, root: Path, episode: int, how: Copy) -> None:
    """The episode `number` of `source`, copied so, in the place of another."""
    columns = {name: values[how.rows] for name, values in read_table(source, number).items()}
    how.values(columns)
    for camera in CAMERAS:
        show(source, number, root, episode, camera, how)
    hold(root, episode, columns)


def hold(root: Path, episode: int, columns: Columns) -> None:
    """These rows are the episode's."""
    length = len(columns[ACTION])
    columns["episode_index"][:] = episode
    columns |= {"frame_index": np.arange(length), "timestamp": np.arange(length) / 20}
    write_table(root, episode, columns)
    edit_lines(root, "episodes.jsonl", lambda lines: lines[episode].update(length=length))


def show(source: Path, number: int, root: Path, episode: int, camera: str, how: Copy) -> None:
    with VideoReader(video_path(source, number, camera)) as reader:
        frames = how.images(reader.frames(range(len(reader)))[how.rows])
    with usual_scheduling(), av.open(str(video_path(root, episode, camera)), "w") as container:
        stream = container.add_stream(how.codec, rate=20, options=dict(how.options))
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *frames.shape[1:3], "yuv420p", 10
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(autouse=True)
def these_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No others."""
    monkeypatch.setattr(registry, "CHECKS", tuple(c for c in registry.CHECKS if c.name == "duplicates"))
    monkeypatch.setattr(registry, "PAIR_CHECKS", registry.PAIR_CHECKS[:1])


def said(path: Path, *, fast: bool = False) -> list[Finding]:
    return [finding for _, _, finding in examine(path, MODALITY_CONFIG, fast=fast)[0].findings("warning", "error")]


COPIES = {
    "encoded again": Copy(options=(("crf", "38"), ("preset", "veryfast"))),
    "in another codec": Copy(codec="libsvtav1", options=(("crf", "45"), ("preset", "10"))),
    "trimmed at both ends": Copy(rows=slice(5, -6)),
    "in other light": Copy(images=lit),
    "of which only the beginning is kept, in other light": Copy(rows=slice(0, 20), images=lit),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_held_out_copy_is_recognized_by_what_it_shows(patient: Path, name: str) -> None:
    put(patient / "train", TRAIN, patient / "train", VAL, COPIES[name]._replace(values=moved))
    assert said(patient / "train", fast=True) == []  # rows and actions differ, and no video is decoded
    (found,) = said(patient / "train")
    assert (found.level, found.where, found.episodes) == ("error", "episodes 0, 3", (3,))
    assert found.found == "Episode 3 has the images of episode 0. One is trained on, the other held out."
    assert found.remedy.endswith("Or leave it out: dataset.exclude=[3].")


@pytest.mark.parametrize("rows", [slice(None), slice(4, None), slice(0, -9)])
def test_a_trimmed_copy_with_other_states_is_recognized_by_its_actions(patient: Path, rows: slice) -> None:
    put(patient / "train", TRAIN, patient / "train", VAL, Copy(rows, measured_again, lit))
    for fast in (True, False):
        (found,) = said(patient / "train", fast=fast)
        assert (found.level, found.episodes) == ("error", (3,))
        assert found.found.startswith("Episode 3 has the actions and images of episode 0. One is trained on")


def test_two_training_episodes_may_look_alike_but_a_copy_counts_twice(patient: Path) -> None:
    put(patient / "train", TRAIN, patient / "train", 5, Copy(values=measured_again))
    (found,) = said(patient / "train", fast=True)
    assert found.level == "error" and found.remedy.startswith("Remove one of the two recordings")


def test_a_dataset_beside_train_is_compared_with_it(patient: Path) -> None:
    part = "validation"
    other = shutil.copytree(patient / "conflict", patient / part)
    assert said(patient, fast=True) == []
    put(patient / "train", TRAIN, other, 1, COPIES["trimmed at both ends"]._replace(values=moved))
    for path in (patient, patient / "train"):
        (found,) = said(path)
        assert (found.level, found.where) == ("error", f"{part}, episode 1")
        assert found.found == f"{part.capitalize()} episode 1 has the images of train episode 3."
        assert found.remedy.endswith("Or leave it out: dataset.exclude=[3].")
    (other / "meta/info.json").write_text("{")
    report, _ = examine(patient, MODALITY_CONFIG, fast=True)
    assert [r.skipped for d in report.datasets for r in d.results if part in r.check] == [f"{part} cannot be read"]


@pytest.mark.parametrize(
    ("values", "level", "words"),
    [
        (lambda columns: None, "error", "Conflict episode 0 is the same as train episode 3."),
        (measured_again, "error", "Conflict episode 0 has the actions and images of train episode 3."),
    ],
)
def test_an_episode_in_both_parts_is_a_leak(
    patient: Path, values: Callable[[Columns], object], level: str, words: str
) -> None:
    put(patient / "train", TRAIN, patient / "conflict", 0, Copy(values=values))
    (found,) = said(patient, fast=True)
    assert (found.level, found.where, found.found) == (level, "conflict, episode 0", words)


def tremble(columns: Columns) -> None:
    rng = np.random.default_rng(len(columns[ACTION]))  # others in each episode of another length
    for name in (STATE, ACTION):
        columns[name][:, :7] += rng.normal(0, 1e-4, columns[name][:, :7].shape)


def test_a_noisy_copy_is_a_leak_where_the_images_are_the_same(patient: Path) -> None:
    put(patient / "train", TRAIN, patient / "conflict", 0, Copy(values=tremble))
    (found,) = said(patient, fast=True)
    assert found.level == "error" and found.found.startswith("Conflict episode 0 has the images, and nearly the states")
    put(patient / "train", TRAIN, patient / "train", VAL, Copy(values=tremble))
    video_path(patient / "train", VAL).unlink()
    found, *beside = said(patient / "train", fast=True)  # conflict lies there
    assert {each.found.partition(" ")[0] for each in beside} == {"Conflict"}
    assert found.level == "warning" and found.found.startswith("Episode 3 does nearly the same as episode 0: a copy")


def test_many_copies_are_counted_and_the_first_are_named(patient: Path) -> None:
    for target in range(1, 8):
        hold(patient / "train", target, read_table(patient / "train", 0))
        for camera in CAMERAS:
            shutil.copyfile(video_path(patient / "train", 0, camera), video_path(patient / "train", target, camera))
    *named, counted = said(patient / "train", fast=True)
    assert [f.found.partition(".")[0] for f in named] == [
        f"Episode {i} is the same as episode 0" for i in (2, 3, 4, 5, 6)
    ]
    assert counted.found == "7 episodes are copies of others." and counted.episodes == (1, 2, 3, 4, 5, 6, 7)


def test_a_recording_that_both_parts_were_made_from_is_a_leak(patient: Path) -> None:
    one = {"file": "trajectory.h5", "sha256": "0" * 64}
    for part in ("train", "conflict"):
        edit_meta(patient / part, "split.json", lambda split: split.update(sources=[*split["sources"], one]))
    (found,) = said(patient, fast=True)
    assert found.found == "Both parts were made from the same recording (trajectory.h5)."
    assert found.where == "meta/split.json" and "Remove it from one of the two" in found.remedy


# -- one motion in several scenes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "fast"), [(lambda columns: None, True), (tremble, True), (measured_again, False)])
def test_a_scripted_motion_in_different_scenes_is_no_copy(
    patient: Path, values: Callable[[Columns], object], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicate_checks, "LOOKED_AT", 10)  # of 28 pairs
    for root, episodes in ((patient / "train", range(8)), (patient / "conflict", range(2))):
        for episode in episodes:
            columns = {name: v[: 32 - episode].copy() for name, v in read_table(patient / "train", TRAIN).items()}
            values(columns)
            hold(root, episode, columns)
    report, _ = examine(patient, MODALITY_CONFIG, fast=fast)
    remarks = [f.found for d, r, f in report.findings("ok") if d.name == "train" and r.check == "duplicates"]
    assert report.level == "ok"
    if values is not tremble:  # courses are near only among others that are not
        assert remarks == ["28 pairs do the same and show different scenes, the first are episodes 0 and 1: no copies"]


def test_the_same_course_of_images_in_other_colors_is_no_copy(patient: Path) -> None:
    put(
        patient / "train",
        TRAIN,
        patient / "train",
        VAL,
        Copy(values=moved, images=lambda f: np.clip(f + [60.0, 0, 0], 0, 255).astype(np.uint8)),
    )
    assert said(patient / "train") == []
