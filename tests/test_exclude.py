"""Episodes that are left out: of training as if they had never been listed, of statistics, of evaluation."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from damages import copy_episode, edit_lines, flip_a_bit, table_path, truncated, video_path
from finished import finished_checkpoint
from golden_files import golden_path
from recordings import write_split
from test_lerobot3 import EPISODES, adopted, edit_json, edit_table, lengthen_seconds
from test_table_images import png, write_dataset
from test_training import config, losses, trained

from conflict_panda_config import MODALITY_CONFIG
from data_prep.adopt import adopt
from data_prep.check import main, read
from data_prep.convert import convert_split
from data_prep.doctor import Finding, Report, error
from data_prep.doctor.examine import examine
from finetune.open_loop.evaluation import _left_out, _open_data
from finetune.plan.disk_and_time import find_layouts, start_count
from finetune.recipe import FinetuneConfig, datasets
from finetune.recipe.recipe_identity import differences, publishable
from finetune.release.model_card import _data
from finetune.release.run_facts import _folders
from finetune.training.dataloader import build_dataset, build_processor, check_dataset, open_datasets
from finetune.training.metrics import held_out
from finetune.training.run_folder import describe_dataset
from finetune.training.run_identity import run_identity
from finetune.training.train import finetune
from gr00t.data.dataset import carried, training_statistics
from gr00t.data.layout import DatasetLayout, fingerprint_entries
from gr00t.data.meta_files import as_typed, episode_range, in_ranges, named_episodes
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.step_reader import StepReader
from gr00t.data.stored_arrays import FrameStore, frame_shapes, frame_store_folder, write_frame_store
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.model.finished_checkpoint import read_processor
from gr00t.model.weight_files import read_config
from toolkit.configuration import load

# -- what a list means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([3], {3}),
        (["3", 3, "3"], {3}),
        (["2:4"], {2, 3}),
        (["4:"], {4, 5, 9}),
        ([":2"], {0, 1}),
        (["6:10", 0], {0, 9}),
        (["5:9"], {5}),
        ([], set()),
    ],
)
def test_entries_are_numbers_and_ranges_that_end_as_in_python(entries: list[Any], expected: set[int]) -> None:
    assert named_episodes(entries, [0, 1, 2, 3, 4, 5, 9], "exclude") == expected


@pytest.mark.parametrize(
    "entry", [True, None, 3.0, -1, "", "a", "1-3", "1:2:3", "1 ", "3,4", "\u0661", "1" * 5000, [3], {}]
)
def test_anything_else_is_refused_with_what_may_be_written(entry: Any) -> None:
    with pytest.raises(ToolkitError, match="neither the number of an episode nor a range"):
        episode_range(entry, "exclude")


@pytest.mark.parametrize("entry", [6, "10:", "6:9", "3:3", "4:2", "0:11", 2459])
def test_episodes_that_are_not_there_are_refused_with_those_that_are(entry: Any) -> None:
    with pytest.raises(ToolkitError, match=rf"there is no episode {entry}.*There are 0:6,9"):
        named_episodes([entry], [0, 1, 2, 3, 4, 5, 9], "exclude")


def test_every_set_is_written_as_the_shortest_list_that_means_it() -> None:
    known = list(range(12))
    for chosen in ([3], [0, 1], [0, 1, 2, 5, 7, 8], [11], list(range(11))):
        assert named_episodes(in_ranges(reversed(chosen)), known, "") == set(chosen)
    assert in_ranges([9, 3, 4, 4, 5]) == ["3:6", 9] and as_typed([0, 2, 3]) == "[0,2:4]"


@pytest.mark.parametrize(
    ("written", "entries"),
    [
        ('[3,17,"40:60"]', ["3", "17", "40:60"]),
        ("[3,40:59]", ["3", "40:59"]),  # YAML would read 2459
        ("[40:]", ["40:"]),
        ("[:5, 7]", [":5", "7"]),
        ("[]", []),
        ("[data/a/train/3:5]", ["data/a/train/3:5"]),
    ],
)
def test_a_list_on_the_command_line_needs_no_quotes(written: str, entries: list[str]) -> None:
    given = [f"dataset.exclude={written}", "dataset.mixture=[data/a/train]"]
    found = load("finetune", ["local=none", *given], check_here=False)
    assert found.dataset.exclude == entries


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["dataset.exclude=[x]"], r"dataset.exclude: 'x' is neither"),
        (["dataset.exclude=3"], r"a list is written \[A,B\]"),
        (["dataset.exclude=[data/nowhere/3]"], '"data/nowhere" is not trained on'),
        (["dataset.exclude=[3]", "dataset.mixture=[data/a,data/b]"], "Write FOLDER/EPISODES: data/a/3"),
        (["dataset.exclude=[data/c/3]", "dataset.mixture=[data/a,data/b]"], '"data/c" is not trained on.*data/[ab]'),
    ],
)
def test_a_list_that_names_no_dataset_or_no_episode_is_refused_early(given: list[str], message: str) -> None:
    with pytest.raises(ToolkitError, match=message):
        load("finetune", ["local=none", *given], check_here=False)


def test_each_dataset_of_a_mixture_gets_its_own_entries() -> None:
    given = ["dataset.mixture=[data/a:2,data/b]", "dataset.exclude=[data/b/3,data/a/1:2,data/./b/7:]"]
    found = datasets(load("finetune", ["local=none", *given], check_here=False))
    assert [part.exclude for part in found] == [("1:2",), ("3", "7:")]


# -- as if they had never been listed ----------------------------------------------------------------------------------


def unlisted(folder: Path, index: int, copy: Path) -> Path:
    """A copy in which that episode has never been: of its lines in meta/, and in v2.x of its files."""
    shutil.copytree(folder, copy)
    layout = DatasetLayout(copy)
    if layout.version == "v3.0":
        table = pq.read_table(copy / EPISODES)
        pq.write_table(table.filter(np.array(table["episode_index"]) != index), copy / EPISODES)
    else:
        file = copy / "meta/episodes.jsonl"
        lines = [line for line in file.read_text().splitlines() if json.loads(line)["episode_index"] != index]
        file.write_text("\n".join(lines) + "\n")
        layout.parquet_path(index).unlink()
        for camera in layout.cameras:
            layout.camera_path(index, camera).unlink(missing_ok=True)
        for name in ("stats.json", "relative_stats.json"):  # they count it
            (copy / "meta" / name).unlink(missing_ok=True)
    if (copy / "meta/split.json").exists():
        edit_json(copy / "meta/split.json", lambda split: split.pop("fingerprint", None))
    return copy


def table_images(version: str, place: Path) -> Path:
    """Three episodes whose images lie in the frame tables."""
    root = write_dataset(place / "set", version, png)
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true", "val_fraction=0"]))
    return root


@pytest.fixture(scope="module")
def formats(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset of each form."""
    place = tmp_path_factory.mktemp("formats")
    return {
        "v2.1": shutil.copytree(small_data / "color_object/train", place / "v2.1"),
        "v3.0": adopted("recorded", place, "val_fraction=0"),
        "images in v2.1": table_images("v2.1", place / "images2"),
        "images in v3.0": table_images("v3.0", place / "images3"),
    }


FORMATS = ("v2.1", "v3.0", "images in v2.1", "images in v3.0")


def one_to_leave_out(folder: Path) -> int:
    return DatasetLayout(folder).train_episodes[1]


@pytest.mark.parametrize("form", FORMATS)
def test_steps_starts_and_statistics_are_those_of_a_dataset_that_never_listed_them(
    form: str, formats: dict[str, Path], tmp_path: Path
) -> None:
    folder = formats[form]
    index = one_to_leave_out(folder)
    without = StepReader(folder, MODALITY_CONFIG, [index])
    never = StepReader(unlisted(folder, index, tmp_path / "never"), MODALITY_CONFIG)
    assert without.layout.train_episodes == never.layout.train_episodes != DatasetLayout(folder).train_episodes
    assert without.layout.val_episodes == never.layout.val_episodes == DatasetLayout(folder).val_episodes
    assert without.layout.episodes == never.layout.episodes
    for tail in ("mask", "drop"):
        whole = training_statistics(StepReader(folder, MODALITY_CONFIG), tail)
        assert training_statistics(without, tail) == training_statistics(never, tail) != whole
    for episode in without.layout.train_episodes:
        for frame in (0, without.layout.episode(episode).length - 1):
            ours, theirs = without.step(episode, frame), never.step(episode, frame)
            assert all(np.array_equal(ours.images[c], theirs.images[c]) for c in ours.images)
            assert np.array_equal(ours.actions["arm"], theirs.actions["arm"]) and ours.text == theirs.text


def settings(out: Path, folder: Path, base: Path, *more: str) -> FinetuneConfig:
    shared = ["train.max_steps=2", "train.save_steps=2", "dataset.check=false", f"cache_dir={out}/cache"]
    return config(out, out / "data", base, f"dataset.mixture=[{folder}]", *shared, *more)


def run_without(place: Path, folder: Path, base: Path) -> int:
    """Two steps on what is left of a dataset, decoded once; the episode that was left out."""
    index = one_to_leave_out(folder)
    finetune(settings(place, folder, base, f"dataset.exclude=[{index}]", "dataset.frames=store"))
    return index


@pytest.fixture(scope="module")
def finished(formats: dict[str, Path], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run on what is left of the v2.1 dataset."""
    place = tmp_path_factory.mktemp("finished")
    return place, run_without(place, formats["v2.1"], tiny_base)


@pytest.mark.parametrize("form", ["v2.1", pytest.param("v3.0", marks=pytest.mark.long)])
def test_losses_are_those_of_a_dataset_that_never_listed_them(
    form: str, formats: dict[str, Path], finished: tuple[Path, int], tiny_base: Path, tmp_path: Path
) -> None:
    place, index = finished if form == "v2.1" else (tmp_path, run_without(tmp_path, formats[form], tiny_base))
    never = unlisted(formats[form], index, tmp_path / "sets/never")
    finetune(settings(tmp_path / "never", never, tiny_base))
    assert losses(place) == losses(tmp_path / "never")
    ours, theirs = trained(place, 2), trained(tmp_path / "never", 2)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_the_checkpoint_says_what_was_left_out_and_counts_the_rest(
    finished: tuple[Path, int], formats: dict[str, Path]
) -> None:
    place, index = finished
    said, layout = read_json(place / "done/experiment_cfg/dataset.json"), DatasetLayout(formats["v2.1"])
    assert said["excluded"] == [index] and said["episodes"] == len(layout.episodes) - 1
    assert said["train_episodes"] == [i for i in layout.train_episodes if i != index]
    assert said["train_frames"] == sum(layout.episode(i).length for i in said["train_episodes"])
    assert _data([said])["Episodes left out"] == str(index)
    assert _data([describe_dataset(layout)])["Episodes left out"] == "none"


def test_the_published_configuration_names_no_folder_of_this_machine(formats: dict[str, Path], tmp_path: Path) -> None:
    folder = formats["v2.1"]
    chosen = settings(tmp_path, folder, tmp_path, "model.base=a/b", f"dataset.exclude=[{folder}/2,{folder}/3:5]")
    published = publishable(dataclasses.asdict(chosen))["dataset"]
    assert published["exclude"] == ["v2.1/2", "v2.1/3:5"] and published["mixture"] == ["v2.1:1"]
    assert _folders({"dataset.exclude": ["/home/me/set/3", "4"]}) == ["/home/me/set"]


# -- the same run, or another ------------------------------------------------------------------------------------------


def test_a_run_is_not_continued_on_other_episodes(
    finished: tuple[Path, int], formats: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    place, index = finished
    shutil.copytree(place / "run", tmp_path / "run")
    other = DatasetLayout(formats["v2.1"]).train_episodes[2]
    with pytest.raises(ToolkitError, match=rf"dataset\.exclude: \[{index}\] there, \[{other}\] now"):
        finetune(settings(tmp_path, formats["v2.1"], tiny_base, f"dataset.exclude=[{other}]"))


def identity(*arguments: Any) -> dict[str, Any]:
    chosen = settings(*arguments)
    return run_identity(chosen, Path(chosen.model.base), open_datasets(chosen))[0]


def test_the_key_and_the_dataset_s_own_list_are_one_list(
    formats: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(formats["v2.1"], tmp_path / "set")
    before = identity(tmp_path, folder, tiny_base)
    key = identity(tmp_path, folder, tiny_base, "dataset.exclude=[0,2:4,0:1]")
    edit_json(folder / "meta/split.json", lambda split: split.update(exclude=["0", "2:4"]))
    assert identity(tmp_path, folder, tiny_base) == key
    assert identity(tmp_path, folder, tiny_base, "dataset.exclude=[3]") == key
    assert differences(before, key) == ["dataset.exclude: [] there, [0, '2:4'] now"]
    assert "dataset.exclude" not in before  # the identity of runs that leave nothing out is what it always was
    with pytest.raises(ToolkitError, match=r"dataset.exclude and .*split.json: exclude together leaves no episode"):
        DatasetLayout(folder, ["1", "4:"])


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (3, 'exclude must be a list such as .3, "40:60".'),
        (["a"], "split.json: exclude: 'a' is neither"),
        ([7], "split.json: exclude: there is no episode 7.*There are 0:5"),
        (["0:"], "split.json: exclude leaves no episode"),
    ],
)
def test_a_wrong_list_in_split_json_is_named(
    listed: Any, message: str, formats: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(formats["v2.1"], tmp_path / "set")
    edit_json(folder / "meta/split.json", lambda split: split.update(exclude=listed))
    with pytest.raises(ToolkitError, match=message):
        DatasetLayout(folder)


def test_what_is_computed_once_is_kept_for_each_choice_of_episodes(formats: dict[str, Path], tmp_path: Path) -> None:
    cameras = ["image"]
    for form, copies in (("v2.1", 2), ("v3.0", 1)):  # tables of v3.0 are read whole, whatever is left out
        folder = shutil.copytree(formats[form], tmp_path / form, ignore=shutil.ignore_patterns(".cache"))
        readers = [StepReader(folder, MODALITY_CONFIG, chosen) for chosen in ((), (1,), ())]
        assert len(list((folder / ".cache").glob("tables*"))) == copies
        whole, less = readers[:2]
        stores = [frame_store_folder(tmp_path / "cache", r.layout, cameras) for r in readers]
        assert stores[0] == stores[2] != stores[1]
        write_frame_store(stores[1], less.layout, frame_shapes(less.layout, cameras), threads=1)
        kept = FrameStore(stores[1], less.layout, cameras).frames(2, "image", np.array([5]))
        assert np.array_equal(kept[0], whole.step(2, 5).images["image"][0])


def test_recorded_statistics_hold_while_only_held_out_episodes_are_left_out(formats: dict[str, Path]) -> None:
    folder = formats["v2.1"]
    layout = DatasetLayout(folder)
    unseen = DatasetLayout(folder, layout.val_episodes[:1])
    assert carried(unseen, "stats.json") == layout.statistics()
    assert unseen.val_episodes == layout.val_episodes[1:] and unseen.train_episodes == layout.train_episodes
    assert carried(DatasetLayout(folder, layout.train_episodes[:1]), "stats.json") is None


@pytest.mark.parametrize("form", ["v2.1", "v3.0"])
def test_an_episode_without_frames_can_be_left_out(form: str, formats: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(formats[form], tmp_path / "set")
    if form == "v3.0":
        edit_table(folder / EPISODES, lambda columns: columns["length"].__setitem__(1, 0))
    else:
        edit_lines(folder, "episodes.jsonl", lambda lines: lines[1].update(length=0))
    with pytest.raises(ToolkitError, match=r"episode 1 has no frames; leave it out, dataset.exclude=\[1\]"):
        DatasetLayout(folder)
    assert StepReader(folder, MODALITY_CONFIG, [1]).step(2, 0).images["image"].any()


def test_frames_of_a_shared_video_are_counted_with_those_that_are_left_out(
    formats: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(formats["v3.0"], tmp_path / "set")
    expected = StepReader(folder, MODALITY_CONFIG).step(2, 0).images["image"]
    lengthen_seconds(folder, 0.012)  # what is read by seconds is refused
    assert np.array_equal(StepReader(folder, MODALITY_CONFIG, [1]).step(2, 0).images["image"], expected)


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_evaluation_leaves_them_out_too(formats: dict[str, Path], tiny_base: Path, tmp_path: Path) -> None:
    folder = formats["v2.1"]
    layout = DatasetLayout(folder)
    gone = [layout.val_episodes[0], layout.train_episodes[0]]
    chosen = settings(tmp_path, folder, tiny_base, f"dataset.exclude={gone}".replace(" ", ""), "train.eval_steps=2")
    mixture = open_datasets(chosen)
    processor = build_processor(Gr00tN1d7Processor.from_pretrained(tiny_base), mixture, chosen)
    dataset = build_dataset(mixture, processor, read_config(tiny_base), chosen)
    unseen = held_out(chosen, dataset)
    assert unseen is not None and unseen.episodes == [layout.val_episodes[1:]]
    assert unseen.reader.layout.train_episodes == layout.train_episodes[1:]
    trained_on = describe_dataset(mixture.readers[0].layout)
    assert sorted(gone) == [i for e in _left_out(layout, trained_on) for i in episode_range(e, "")]
    assert _left_out(layout, {"mixture": [{"fingerprint": "other"}, trained_on]}) == trained_on["excluded"]
    assert _left_out(layout, {**trained_on, "fingerprint": "of another version"}) == []
    assert _left_out(layout, {}) == []


def test_open_loop_evaluates_what_the_checkpoint_did_not_leave_out(small_data: Path, tmp_path: Path) -> None:
    checkpoint = finished_checkpoint(golden_path("tiny_h40"), small_data, tmp_path)
    layout = DatasetLayout(small_data / "color_object/train")
    less = DatasetLayout(layout.root, [layout.val_episodes[0], layout.train_episodes[0]])
    edit_json(checkpoint / "experiment_cfg/dataset.json", lambda said: said.update(describe_dataset(less)))
    arguments = ["local=none", "split=color_object", f"checkpoint={checkpoint}", f"data_dir={small_data}"]
    for part, expected in (("val", less.val_episodes), ("train", less.train_episodes)):
        chosen = load("evaluate", [*arguments, f"part={part}"], check_here=False)
        data = _open_data(chosen, read_processor(checkpoint), "new_embodiment")
        assert data.episodes == expected and data.training.layout.train_episodes == less.train_episodes


def test_the_plan_counts_what_is_left(formats: dict[str, Path], tmp_path: Path) -> None:
    folder = formats["v2.1"]
    layout = DatasetLayout(folder)
    index = layout.train_episodes[0]
    chosen = settings(tmp_path, folder, tmp_path, "model.base=a/b", f"dataset.exclude=[{index}]")
    (found,) = find_layouts(chosen)
    frames = sum(layout.episode(i).length for i in layout.train_episodes)
    assert start_count(chosen, found) == frames - layout.episode(index).length


# -- the doctor --------------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(formats: dict[str, Path], tmp_path: Path) -> Path:
    """Five episodes: 0 copied to 3 and 2 unreadable; nothing is wrong with 1 and 4."""
    folder = shutil.copytree(formats["v2.1"], tmp_path / "data/train", ignore=shutil.ignore_patterns(".cache"))
    copy_episode(folder, 0, 3)
    edit_json(folder / "meta/split.json", lambda split: split.update(fingerprint_entries(folder, split)))
    truncated(table_path(folder, 2), 0.5)
    video_path(folder, 2, "wrist_image").unlink()
    return folder


def errors(report: Report) -> list[Finding]:
    return [finding for *_, finding in report.findings("error")]


def test_the_list_that_the_doctor_writes_mends_what_it_blames_on_episodes(
    patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.txt"
    with pytest.raises(SystemExit):
        main(read([str(patient), "fast=true", f"exclude={file}"]))
    assert file.read_text() == '["2:4"]\n' and "dataset.exclude=[2]" in " ".join(capsys.readouterr().out.split())
    report, (subject,) = examine(patient, MODALITY_CONFIG, exclude=[1, "2:4"])
    assert errors(report) == [] and subject.listed_val == subject.held_out == {0}
    edit_json(patient / "meta/split.json", lambda split: split.update(exclude=json.loads(file.read_text())))
    main(read([str(patient)]))
    assert "train: left out, and not examined: episodes 2:4" in capsys.readouterr().out
    given = ["local=none", "dataset.mixture=[a]", f"dataset.exclude={file.read_text()}"]
    assert load("finetune", given, check_here=False).dataset.exclude == ["2:4"]


def test_training_examines_what_is_left(patient: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"not sound(.|\n)*Or leave it out: dataset\.exclude=\[2\]"):
        check_dataset(settings(tmp_path / "out", patient, tiny_base))
    check_dataset(settings(tmp_path / "out", patient, tiny_base, "dataset.exclude=[2,3]"))


def test_a_changed_file_is_blamed_on_its_episode(formats: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(formats["v2.1"], tmp_path / "train", ignore=shutil.ignore_patterns(".cache"))
    flip_a_bit(video_path(folder, 3))
    found = errors(examine(folder, MODALITY_CONFIG)[0])
    assert any("SHA-256" in finding.found for finding in found) and {finding.episodes for finding in found} == {(3,)}
    assert all(finding.remedy.endswith("Or leave it out: dataset.exclude=[3].") for finding in found)
    report, _ = examine(folder, MODALITY_CONFIG, exclude=[3])
    assert report.findings("error", "warning") == []


def test_leaving_out_is_no_remedy_for_what_all_episodes_have() -> None:
    found = error("videos/", "All is grey.", "Film again.", episodes=(0, 1, 2))
    assert found.advised(3, "by {}").remedy == "Film again." and found.advised(3, "by {}").episodes == ()
    assert found.advised(9, "by {}").remedy == "Film again. Or leave them out: by [0:3]."
    many = error("videos/", "Grey.", "Film again.", episodes=tuple(range(0, 60, 2)))
    assert many.advised(100, "by {}").remedy.endswith("exclude=FILE of this check writes the list.")


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Any, ...]:
    """What convert_split was called with: three train and two conflict episodes lie in its second argument."""
    raw = write_split(tmp_path / "raw", train=[20, 22, 24], conflict=[20, 21])
    arguments = (raw, tmp_path / "data", "color_object", "pick it up", MODALITY_CONFIG)
    convert_split(*arguments, progress=False)
    return arguments


def test_of_a_split_the_list_is_of_the_train_part(converted: tuple[Any, ...]) -> None:
    split = converted[1] / "color_object"
    for part, index in (("train", 1), ("conflict", 0)):
        video_path(split / part, index).unlink()
    report, _ = examine(split, MODALITY_CONFIG, fast=True)
    assert report.exclude() == [1]
    remedies = {dataset.name: finding.remedy for dataset, _, finding in report.findings("error")}
    assert remedies["train"].endswith("dataset.exclude=[1].")
    assert remedies["conflict"].endswith('"exclude": [0] in meta/split.json.')
    assert [d.name for d, *_ in examine(split, MODALITY_CONFIG, fast=True, exclude=[1])[0].findings("error")] == [
        "conflict"
    ]


def test_converting_again_says_that_the_list_is_not_kept(converted: tuple[Any, ...]) -> None:
    split = converted[1] / "color_object/train/meta/split.json"
    edit_json(split, lambda content: content.update(exclude=[1]))
    notes = convert_split(*converted, overwrite=True, progress=False).notes
    assert "exclude" not in read_json(split)
    assert any('"exclude" [1] is not kept' in note for note in notes)
