"""The dataset doctor names each damage with a remedy, and says nothing of datasets that are sound."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damages import (
    IN_TABLES,
    IN_VIDEOS,
    IN_WORDS,
    edit_meta,
    edit_tables,
    flip_a_bit,
    record_episodes,
    record_targets,
    table_path,
    truncated,
    video_path,
)
from golden_files import golden_path
from scheduling import usual_scheduling

from conflict_panda_config import MODALITY_CONFIG
from data_prep.adopt import adopt
from data_prep.check import main, read
from data_prep.doctor import Report
from data_prep.doctor import examine as registry
from data_prep.doctor.episode_checks import check_idle
from data_prep.doctor.examine import examine, examine_one
from data_prep.doctor.examined_dataset import Subject
from data_prep.doctor.language_checks import check_targets
from finetune.recipe import FinetuneConfig
from finetune.training.dataloader import check_dataset
from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError
from simulation.scenes import instruction_suite
from toolkit.configuration import load

ROOT = Path(__file__).parents[1]


def noticed(report: Report) -> list[tuple[str, str]]:
    """(check, level) of everything above ok."""
    return [(result.check, finding.level) for _, result, finding in report.findings("warning", "error")]


def test_slow_random_access_is_said_with_what_to_do(patient: Path) -> None:
    root = patient / "train"
    with VideoReader(video_path(root, 0)) as reader:
        frames = reader.frames(range(len(reader)))
    with av.open(str(video_path(root, 0)), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"x264-params": "keyint=250:scenecut=0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.doctor.video_checks.SLOW", 20)
        report, _ = examine(root, MODALITY_CONFIG)
    (found,) = [f for _, r, f in report.findings("warning") if "costs decoding" in f.found]
    assert "episode 0" in found.where and "dataset.frames=store" in found.remedy and "-g 10" in found.remedy


def test_a_frame_that_cannot_be_read_by_itself_is_an_error(patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = VideoReader.frames

    def frames(self: VideoReader, indices: Sequence[int]) -> np.ndarray:
        if list(indices) == [len(self) - 1] and self.path == video_path(patient / "train", 3):
            raise ToolkitError(f"{self.path}: cannot be decoded. Copy it again.")
        return whole(self, indices)

    monkeypatch.setattr(VideoReader, "frames", frames)
    report, _ = examine(patient / "train", MODALITY_CONFIG)
    assert any("episode 3" in f.where and "cannot be decoded" in f.found for _, _, f in report.findings("error"))


# -- no false alarm ----------------------------------------------------------------------------------------------------


def test_sound_splits_are_sound(sound: Path, small_data: Path) -> None:
    for split in (sound, small_data / "color_object"):
        report, _ = examine(split, MODALITY_CONFIG)
        assert noticed(report) == []
        assert [dataset.name for dataset in report.datasets] == ["train", "conflict", "train and conflict"]
        assert not [r for d in report.datasets for r in d.results if r.skipped]


def test_a_dataset_of_two_episodes_is_sound(sound: Path) -> None:
    report, _ = examine(sound / "conflict", MODALITY_CONFIG)
    assert noticed(report) == [] and len(report.datasets) == 1


def test_the_originals_dataset_is_sound() -> None:
    report, _ = examine(golden_path("dataset_new_embodiment"), MODALITY_CONFIG)
    assert noticed(report) == []


def test_an_arm_rests_only_where_no_other_one_moves(patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moving = {i: np.arange(120.0).reshape(40, 3) + i for i in range(10)}
    resting = {**moving, 4: np.ones((40, 3))}
    orders = [("left", "right"), ("right", "left")]
    for left, right, expected in ((moving, resting, []), (resting, moving, []), (resting, resting, ["episode 4"])):
        groups = {"left": left, "right": right}
        for order in orders:
            subject = Subject(patient / "train", MODALITY_CONFIG, fast=True)
            pursuits = {name: [(i, v, v) for i, v in groups[name].items()] for name in order}
            monkeypatch.setattr(Subject, "pursuits", pursuits)
            assert [found.where for found in check_idle(subject)] == expected


def test_instructions_that_name_the_recorded_targets_are_sound(patient: Path) -> None:
    record_targets(patient / "train")
    assert diagnose(patient / "train", fast=True) == {}


@pytest.mark.parametrize("part", ["train", "train_conflict"])
@pytest.mark.parametrize("split", [f"instruction/{name}" for name in instruction_suite.EXPERIMENTS])
def test_what_the_instruction_suite_records_is_sound(split: str, part: str, patient: Path) -> None:
    """Verbs, and sizes that are said by comparison, are no values of the object that was picked."""
    drawn = [instruction_suite.sample_episode(split, part, seed) for seed in range(8)]
    targets = [dataclasses.asdict(episode.objects[episode.target]) for episode in drawn]
    record_episodes(patient / "train", [episode.instruction for episode in drawn], targets, part)
    found = [
        f.found for f in check_targets(Subject(patient / "train", MODALITY_CONFIG, fast=True)) if f.level == "error"
    ]
    assert found == []


def test_a_conflicts_target_that_is_nothing_of_what_is_named_is_an_error(patient: Path) -> None:
    split, part = "instruction/color_object", "train_conflict"
    drawn = [instruction_suite.sample_episode(split, part, seed) for seed in range(8)]
    targets = [dataclasses.asdict(episode.objects[episode.target]) for episode in drawn]
    other = next(i for i in range(1, 8) if not {*drawn[i].named.values()} & {*map(str, targets[0].values())})
    targets[other] = targets[0]
    record_episodes(patient / "train", [episode.instruction for episode in drawn], targets, part)
    (found,) = [f for f in check_targets(Subject(patient / "train", MODALITY_CONFIG, fast=True)) if f.level == "error"]
    assert f"episode {other}" in found.where and f"color {drawn[other].named['color']}" in found.found


def encode_again(root: Path, change: Callable[[np.ndarray], np.ndarray], codec: str, episodes: Sequence[int]) -> None:
    """As damages.edit_videos, in another codec."""
    for path in (video_path(root, i, camera) for i in episodes for camera in ("image", "wrist_image")):
        with VideoReader(path) as reader:
            frames = change(reader.frames(range(len(reader))))
        with usual_scheduling(), av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=20, options={"preset": "veryfast"} if codec == "libx264" else {})
            stream.height, stream.width, stream.pix_fmt, stream.gop_size = *frames.shape[1:3], "yuv420p", 10
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode(None))


def slow_down(columns: dict[str, np.ndarray], share: float) -> None:
    """A small share of the motion, and the sensors' trembling."""
    rng = np.random.default_rng(len(columns["action"]))
    for name in ("observation.state", "action"):
        arm = columns[name][:, :7].astype(np.float64)
        columns[name] = np.concatenate(
            [arm[:1] + share * (arm - arm[:1]) + rng.normal(0, 1e-4, arm.shape), columns[name][:, 7:]], axis=1
        )


CLIPS = ("frozen frames", "video and state", "action lead")  # the checks of motion


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
@pytest.mark.parametrize(("share", "episodes"), [(0.0, [4]), (0.02, [4]), (0.0, range(8)), (0.02, range(8))])
def test_low_motion_is_neither_frozen_nor_late(
    patient: Path, codec: str, share: float, episodes: Sequence[int]
) -> None:
    root = patient / "train"
    edit_tables(root, lambda c: slow_down(c, share), episodes)
    encode_again(root, lambda f: f[np.minimum(np.arange(len(f)) // 12, 1)], codec, episodes)
    found = diagnose(root, fast=False)
    assert [key for key in found if key[0] in CLIPS] == []


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_a_camera_that_sticks_while_the_arm_moves_is_frozen_in_every_codec(patient: Path, codec: str) -> None:
    root = patient / "train"
    encode_again(root, lambda f: f, codec, range(8))
    assert ("frozen frames", "error") not in diagnose(root, fast=False)
    encode_again(root, lambda f: f[np.minimum(np.arange(len(f)), 12)], codec, [3])
    assert ("frozen frames", "error") in diagnose(root, fast=False)


# -- every damage is named ---------------------------------------------------------------------------------------------


def diagnose(part: Path, *, fast: bool) -> dict[tuple[str, str], list[str]]:
    """{(check, level): remedies} of everything above ok in one part."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in examine_one(Subject(part, MODALITY_CONFIG, fast=fast)).results:
        for finding in result.findings:
            assert "could not be made" not in finding.found
            if finding.level != "ok":
                found.setdefault((result.check, finding.level), []).append(finding.remedy)
    return found


@pytest.mark.parametrize("name", IN_TABLES)
def test_what_needs_no_decoding_is_named_before_training(patient: Path, name: str) -> None:
    check, level, damage = IN_TABLES[name]
    damage(patient / "train")
    found = diagnose(patient / "train", fast=True)
    assert (check, level) in found, found
    assert all(remedy for remedies in found.values() for remedy in remedies)


@pytest.mark.parametrize("name", IN_VIDEOS)
def test_what_only_whole_videos_show_is_named(patient: Path, name: str) -> None:
    check, level, damage = IN_VIDEOS[name]
    damage(patient / "train")
    found = diagnose(patient / "train", fast=False)
    assert (check, level) in found, found
    assert all(remedy for remedies in found.values() for remedy in remedies)


@pytest.mark.parametrize("name", IN_WORDS)
def test_a_finding_says_what_is_wrong_where_and_how_to_mend_it(patient: Path, name: str) -> None:
    check, level, words, damage = IN_WORDS[name]
    damage(patient / "train")
    fast = check not in {c.name for c in registry.CHECKS if c.full}
    results = examine_one(Subject(patient / "train", MODALITY_CONFIG, fast=fast)).results
    found = [f for r in results for f in r.findings if (r.check, f.level) == (check, level)]
    texts = "\n".join(f"{f.where}: {f.found} {f.remedy}" for f in found)
    assert [part for part in words if part not in texts] == [], texts


def test_a_miss_comes_with_the_nearest_name(patient: Path) -> None:
    IN_TABLES["a group's name"][2](patient / "train")
    report, _ = examine(patient / "train", MODALITY_CONFIG, fast=True)
    texts = [f.found for _, r, f in report.findings("error") if r.check == "modality names"]
    assert len(texts) == 1 and 'Did you mean "grippper"?' in texts[0]


def test_a_check_that_cannot_be_made_is_an_error_and_does_not_stop_the_others(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumbles(subject: Subject) -> list:
        raise KeyError(subject.name)

    checks = [dataclasses.replace(c, examine=stumbles) if c.name == "units" else c for c in registry.CHECKS]
    monkeypatch.setattr("data_prep.doctor.examine.CHECKS", checks)
    report, _ = examine(sound / "train", MODALITY_CONFIG, fast=True)
    assert noticed(report) == [("units", "error")] and report.level == "error"


def test_what_was_changed_on_purpose_is_no_longer_compared(patient: Path) -> None:
    edit_tables(patient / "train", lambda c: c["next.reward"].__setitem__(0, 1), [4])
    assert noticed(examine(patient / "train", MODALITY_CONFIG, fast=True)[0]) == [("fingerprint", "error")]
    edit_meta(patient / "train", "split.json", lambda split: split.pop("fingerprint"))
    assert noticed(examine(patient / "train", MODALITY_CONFIG)[0]) == []


def test_a_damaged_file_is_named(patient: Path) -> None:
    damaged = [table_path(patient / "train", 5), video_path(patient / "train", 3)]
    for path in damaged:
        flip_a_bit(path)
    for fast, compared in ((True, damaged[:1]), (False, damaged)):  # the fast part reads no whole video
        report, _ = examine(patient / "train", MODALITY_CONFIG, fast=fast)
        places = [finding.where for _, result, finding in report.findings("error") if result.check == "fingerprint"]
        assert places == [str(path.relative_to(patient / "train")) for path in compared]


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_prep.check", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_status_0_for_sound_1_for_errors_2_for_misuse(
    sound: Path, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(read([str(sound), "fast=true"]))
    assert "sound (fast part); 0 errors, 0 warnings" in capsys.readouterr().out
    IN_TABLES["deltas"][2](patient / "train")
    with pytest.raises(SystemExit) as ended:
        main(read([str(patient), "fast=true"]))
    told = capsys.readouterr().out
    assert ended.value.code == 1 and "These already are deltas" in told and "remedy: Write absolute" in told
    misuse = run(tmp_path / "data")
    assert misuse.returncode == 2 and misuse.stderr.startswith("error: ") and "color_object" in misuse.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "0 folders are given"),
        (["a", "b"], "2 folders are given"),
        (["data", "fasst=true"], 'Did you mean "fast"'),
        (["data", "html=data/meta/x.html"], "lies inside the dataset"),
        (["data", "json=."], "is a folder"),
    ],
)
def test_misuse_is_refused_before_anything_is_read(arguments: list[str], told: str) -> None:
    with pytest.raises(ToolkitError, match=told):
        read(arguments)


def test_json_and_page_hold_what_was_found(patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_tables(patient / "train", lambda c: c["next.reward"].fill(0), [4])
    with pytest.raises(SystemExit) as ended:
        main(read([str(patient), f"json={tmp_path}/out/r.json", f"html={tmp_path}/out/r.html"]))
    assert ended.value.code == 1
    report = json.loads((tmp_path / "out/r.json").read_text())
    assert report["level"] == "error" and report["counts"]["error"] == 2
    train = report["datasets"][0]
    assert train["facts"]["episodes"] == 8
    assert [c["check"] for c in train["checks"] if c["level"] == "error"] == ["endings", "fingerprint"]
    page = (tmp_path / "out/r.html").read_text()
    assert page.count("data:image/jpeg") == (4 + 2) * 2 * 3  # episodes, cameras, moments
    assert page.count("<svg") == 2 * (1 + 2 * 9) and "Does not end in success" in page
    assert 'src="http' not in page and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["r.html", "r.json"]
    assert "not sound" in capsys.readouterr().out


def test_the_page_says_what_is_wrong_where_nothing_can_be_drawn(patient: Path, tmp_path: Path) -> None:
    edit_meta(patient / "train", "modality.json", lambda m: m.update(annotation=["a"], video=3))
    with pytest.raises(SystemExit):
        main(read([str(patient), f"html={tmp_path}/r.html", "fast=true"]))
    assert "This check could not be made" in (tmp_path / "r.html").read_text()


# -- before training ---------------------------------------------------------------------------------------------------


def config(data: Path) -> FinetuneConfig:
    arguments = ["local=none", "model=tiny", "device=cpu", f"dataset.data_dir={data}", "tracking=none"]
    return load("finetune", arguments, check_here=False)


def test_training_refuses_an_unsound_dataset(patient: Path) -> None:
    IN_TABLES["actions a step late"][2](patient / "train")
    with pytest.raises(ToolkitError) as refusal:
        check_dataset(config(patient.parent))
    for part in ("is not sound", "action lead", "late by 1 step", "Remedy: Shift the action column", "dataset.check="):
        assert part in str(refusal.value)


def test_what_ails_the_conflict_part_alone_is_only_reported(patient: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_tables(patient / "conflict", lambda c: c["next.reward"].fill(0), [1])
    with caplog.at_level(logging.WARNING):
        check_dataset(config(patient.parent))
    assert "error in conflict, endings" in caplog.text and "Remedy: Leave it out" in caplog.text


# -- LeRobot v3.0: many episodes in a file -----------------------------------------------------------------------------

V3_SETS = Path(__file__).parent / "lerobot_v3"


@pytest.fixture
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a v3.0 dataset by another writer, made trainable."""
    root = shutil.copytree(V3_SETS / request.param, tmp_path / request.param)
    adopt(load("adopt", [f"dataset={root}", "write=true", "val_fraction=0"]))
    return root


@pytest.mark.parametrize("foreign", ["maniskill", "recorded", "converted"], indirect=True)
def test_datasets_of_other_writers_are_sound(foreign: Path) -> None:
    report, _ = examine(foreign, MODALITY_CONFIG)
    assert noticed(report) == []


def change_shared_table(root: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Apply `change` to the columns of a v3.0 dataset's frame tables."""
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        columns = {name: np.array(table.column(name).to_pylist()) for name in table.column_names}
        change(columns)
        arrays = [pa.array(list(v) if v.ndim == 2 else v, type=table.schema.field(n).type) for n, v in columns.items()]
        pq.write_table(pa.Table.from_arrays(arrays, schema=table.schema), path)


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("action convention", lambda c: c["action"].__isub__(np.pad(c["observation.state"][:, :7], ((0, 0), (0, 1))))),
        ("numbers", lambda c: c["observation.state"].__setitem__((40, 2), np.nan)),
        ("action lead", lambda c: c["action"].__setitem__(slice(1, None), c["action"][:-1].copy())),
        ("told", lambda c: c["task_index"].__setitem__(slice(0, 5), 7)),
        ("tables", lambda c: c["frame_index"].__setitem__(3, 9)),
        ("timestamps", lambda c: c["timestamp"].__imul__(2)),
    ],
)
@pytest.mark.parametrize("foreign", ["maniskill"], indirect=True)
def test_damage_in_shared_tables_is_named(foreign: Path, check: str, change: Callable) -> None:
    change_shared_table(foreign, change)
    assert (check, "error") in diagnose(foreign, fast=True)


@pytest.mark.parametrize("foreign", ["converted"], indirect=True)
def test_a_shared_video_that_is_cut_off_is_named_by_its_episodes(foreign: Path) -> None:
    truncated(min((foreign / "videos").rglob("*.mp4")), 0.7)
    assert ("video decoding", "error") in diagnose(foreign, fast=False)
