"""Episodes that are left out: of training as if they had never been listed, of statistics, of evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_lerobot3 import EPISODES, adopted, edit_json
from test_table_images import png, write_dataset
from test_training import config, losses, trained

from conflict_panda_config import MODALITY_CONFIG
from data_prep.adopt import adopt
from finetune.recipe import datasets
from finetune.training.train import finetune
from gr00t.data.dataset import training_statistics
from gr00t.data.layout import DatasetLayout
from gr00t.data.meta_files import as_typed, episode_range, in_ranges, named_episodes
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.file_replacement import read_json
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


@pytest.mark.parametrize("form", ["v2.1", "v3.0"])
def test_training_gives_the_batches_and_losses_of_a_dataset_that_never_listed_them(
    form: str, formats: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder = formats[form]
    index = one_to_leave_out(folder)
    never = unlisted(folder, index, tmp_path / "sets/never")
    shared = ["train.max_steps=3", "train.save_steps=3", "dataset.check=false"]
    runs = {
        "without": [f"dataset.mixture=[{folder}]", f"dataset.exclude=[{index}]", "dataset.frames=store"],
        "never": [f"dataset.mixture=[{never}]"],
        "whole": [f"dataset.mixture=[{folder}]"],
    }
    for name, more in runs.items():
        more = [*more, *shared, f"cache_dir={tmp_path}/cache"]
        finetune(config(tmp_path / name, tmp_path / "data", tiny_base, *more))
    assert losses(tmp_path / "without") == losses(tmp_path / "never") != losses(tmp_path / "whole")
    ours, theirs = trained(tmp_path / "without", 3), trained(tmp_path / "never", 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    said = read_json(tmp_path / "without/done/experiment_cfg/dataset.json")
    assert said["excluded"] == [index] and index not in said["train_episodes"]
    assert said["episodes"] == len(DatasetLayout(folder).episodes) - 1
    assert "excluded" not in read_json(tmp_path / "whole/done/experiment_cfg/dataset.json")
