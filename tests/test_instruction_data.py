"""The instruction suite from its names to a trained checkpoint: recordings, parts, strategies, conflict scenes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from config_calls import compose, refusal
from recordings import edit_json, write_recording
from simulator import needs_simulator
from test_table_images import png, write_dataset
from test_training import config, losses, trained

from conflict_panda_config import MODALITY_CONFIG
from data_prep import CheckConfig
from data_prep.adopt import adopt
from data_prep.check import main as check
from data_prep.convert import convert_split
from data_prep.doctor.examine import examine
from finetune.recipe import FinetuneConfig, datasets
from finetune.recipe.recipe_identity import recipe
from finetune.recipe.train_config import Part
from finetune.release.__main__ import read
from finetune.release.published_tree import release
from finetune.slurm.attempt_record import run_name
from finetune.slurm.launch_request import read as read_request
from finetune.training.dataloader import check_dataset, open_datasets
from finetune.training.train import finetune
from gr00t.data.layout import DatasetLayout
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.model.finished_checkpoint import read_trained_on
from simulation.record import completed, settings_of
from simulation.scenes.instruction_suite import sample_episode
from simulation.scenes.suites import SUITES
from simulation.scenes.verbs import PHRASES, ways_to_say
from toolkit.configuration import load
from toolkit.shared_keys import SUITE, near_split, parts_of, split_folder

SPLIT = f"{SUITE}/color_object"
PARTS = {"train": [24, 21, 26, 19, 22], "unseen": [20], "conflict": [23, 18], "train_conflict": [21, 25]}
SAID = ("Lift the red cup.", "Lift the blue star.")
RECORDED = {"strategy": "random_f2", "factors": ["color", "object"], "combinations": [["red", "cup"], ["blue", "star"]]}


def tell(meta: dict[str, Any], recorded: Mapping[str, Any] = RECORDED) -> None:
    meta["recording"] = dict(recorded)
    for number, entry in enumerate(meta["episodes"]):
        entry["instruction"] = SAID[number % 2]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Recordings of all parts, as simulation.record describes them; what they show is of no matter here."""
    for seed, (part, lengths) in enumerate(PARTS.items()):
        edit_json(write_recording(tmp_path / "raw" / SPLIT / part, lengths, seed=seed), tell)
    return tmp_path / "raw"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, converted."""
    folder = tmp_path_factory.mktemp("suite")
    for seed, (part, lengths) in enumerate(PARTS.items()):
        edit_json(write_recording(folder / "raw" / SPLIT / part, lengths, seed=seed), tell)
    convert_split(folder / "raw", folder / "data", SPLIT, None, MODALITY_CONFIG, workers=1, progress=False)
    return folder / "data"


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_split_are_those_that_its_suite_records() -> None:
    for suite in SUITES:
        for split in suite.splits:
            recorded = tuple(p for p in suite.recorded if not (split == f"{SUITE}/all" and "conflict" in p))
            assert parts_of(split) == recorded


def test_a_mistyped_split_is_answered_with_the_one_that_was_meant() -> None:
    assert f'Did you mean "{SPLIT}"?' in refusal("finetune", f"split={SUITE}/color_objects")
    assert "folder of a suite" in refusal("finetune", f"split={SUITE}", "split.instruction=x")
    assert "it becomes a folder name" in refusal("finetune", f"split={SUITE}/../x", "split.instruction=x")
    assert "it becomes a folder name" in refusal("finetune", "split=others/x", "split.instruction=x")


def test_a_split_of_ones_own_may_be_of_the_suite() -> None:
    own = compose("finetune", f"split={SUITE}/mine", "split.instruction=null")
    assert (own.split.name, own.split.instruction, own.tracking.group) == (f"{SUITE}/mine", None, SUITE)
    assert compose("finetune", "split=color_object").tracking.group == "conflict"


def test_folders_of_both_suites_are_found_and_told_apart(tmp_path: Path) -> None:
    for name in ("color_object", SPLIT):
        (tmp_path / name / "train").mkdir(parents=True)
    assert near_split(tmp_path, f"{SUITE}/color_objects") == f' Did you mean "{SPLIT}"?'
    assert split_folder(tmp_path / SPLIT) == (tmp_path, SPLIT)
    assert split_folder(tmp_path / "color_object") == (tmp_path, "color_object")
    assert run_name(tmp_path / "runs" / SPLIT) == SPLIT and run_name(tmp_path / "runs/mine") == "mine"


def test_a_launch_of_both_suites_has_folders_and_names_for_each() -> None:
    call = [f"split={SPLIT},color_object", "train.seed=1,2", "stages=finetune,evaluate", "local=none"]
    tasks = read_request([*call, "checkpoint=x"]).tasks
    names = [task.name for task in tasks if task.stage == "finetune"]
    assert names == [f"{split}-seed_{seed}" for split in (SPLIT, "color_object") for seed in (1, 2)]
    reports = [task.arguments["report_dir"] for task in tasks if task.stage == "evaluate"]
    assert reports == [f"reports/{name}/val" for name in names]


# -- recordings --------------------------------------------------------------------------------------------------------


def chosen(*argv: str) -> dict[str, Any]:
    config = completed(compose("record", *argv))
    assert completed(config) == config  # what is complete stays as it is
    return settings_of(compose("record", *argv))


def test_a_strategy_says_what_is_recorded_and_single_numbers_override_its_name() -> None:
    usual = chosen(f"split={SPLIT}")
    assert (usual["strategy"], usual["episodes"]) == ("random_f12", 500)
    named = chosen(f"split={SPLIT}", "strategy=Lrandom_f30_n100")
    assert (named["strategy"], named["episodes"]) == ("Lrandom_f30", 100)
    numbers = chosen(f"split={SPLIT}", "strategy=random_f30_n100", "combinations=4", "episodes=7")
    assert (numbers["strategy"], numbers["episodes"]) == ("random_f4", 7)
    assert chosen(f"split={SPLIT}", "strategy=diagonal")["strategy"] == "diagonal"
    few = chosen(f"split={SPLIT}", "strategy=random_f6_v3_n100", "combinations=4")
    assert (few["strategy"], few["episodes"]) == ("random_f4_v3", 100)


def test_settings_of_the_plate_suite_are_what_they_were() -> None:
    plate = chosen("split=color_size", "episodes=4")
    settings = {"split": "color_size", "part": "train", "episodes": 4, "seed": 0, "image_size": 224}
    assert plate == {**settings, "recoveries": 0.0, "paraphrases": False}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("split=color_size", "part=unseen"), "recorded in the parts train, conflict"),
        (("split=color_size", "strategy=L"), "always shows all combinations"),
        (("split=color_size", "combinations=3"), "always shows all of them"),
        ((f"split={SPLIT}", "strategy=diagonl"), 'Did you mean "diagonal"'),
        ((f"split={SPLIT}", "strategy=complete", "part=unseen"), "none is left for part=unseen"),
        ((f"split={SUITE}/mine", "split.instruction=x"), "no simulated task of that name"),
    ],
)
def test_a_recording_that_cannot_be_made_is_refused_before_anything_starts(argv: tuple[str, ...], said: str) -> None:
    with pytest.raises(ToolkitError, match=said):
        chosen(*argv)


def test_paraphrases_begin_with_the_published_sentence_and_no_two_verbs_share_one() -> None:
    published = sample_episode(SPLIT, "train", 3).instruction
    ways = ways_to_say(published)
    assert ways[0] == published and len(set(ways)) == 3
    assert {way.partition(" the ")[2] for way in ways} == {published.partition(" the ")[2]}
    phrases = [phrase for of in PHRASES.values() for phrase in of]
    assert len(set(phrases)) == len(phrases)
    assert all(of[0].lower() == verb for verb, of in PHRASES.items())
    with pytest.raises(ToolkitError, match="no paraphrase is known"):
        ways_to_say("Eat the red cube.")


@needs_simulator
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.multiprocess
def test_each_recorded_episode_has_its_own_instruction_and_the_combinations_of_the_strategy(
    renderer: None, tmp_path: Path
) -> None:
    from simulation.record import record

    given = ("local=none", f"split={SPLIT}", "episodes=2", "image_size=64", f"out={tmp_path}", "workers=1")
    record(load("record", [*given, "strategy=diagonal", "paraphrases=true"]))
    meta = read_json(tmp_path / SPLIT / "train/trajectory.json")
    assert meta["recording"]["strategy"] == meta["env_info"]["env_kwargs"]["strategy"] == "diagonal"
    pairs = meta["recording"]["combinations"]
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 6
    for entry in meta["episodes"]:
        episode = sample_episode(SPLIT, "train", entry["episode_seed"], "diagonal")
        assert [*episode.named.values()] in pairs and entry["instruction"] in ways_to_say(episode.instruction)


# -- conversion --------------------------------------------------------------------------------------------------------


def test_every_part_is_converted_with_its_instructions_and_what_was_recorded(data: Path) -> None:
    for part, lengths in PARTS.items():
        layout = DatasetLayout(data / SPLIT / part)
        assert [e.length for e in layout.episodes] == lengths and layout.split["part"] == part
        assert layout.split["recorded"] == RECORDED and layout.split["instruction"] is None
        assert bool(layout.val_episodes) == (part == "train")
        told = [of["tasks"] for of in lines(data / SPLIT / part / "meta/episodes.jsonl")]
        assert told == [[SAID[number % 2]] for number in range(len(lengths))]
    tasks = lines(data / SPLIT / "train/meta/tasks.jsonl")
    assert tasks == [{"task_index": number, "task": text} for number, text in enumerate(SAID)]


def converted(raw: Path, instruction: str | None = None) -> None:
    convert_split(raw, raw.parent / "data", SPLIT, instruction, MODALITY_CONFIG, workers=1, progress=False)


def test_parts_that_do_not_belong_together_are_refused(raw: Path) -> None:
    conflict = raw / SPLIT / "conflict"
    edit_json(conflict / "trajectory.h5", lambda meta: tell(meta, {**RECORDED, "strategy": "diagonal"}))
    with pytest.raises(ToolkitError, match=r"strategy diagonal, .* with random_f2"):
        converted(raw)
    shutil.rmtree(conflict)
    shutil.copytree(raw / SPLIT / "train_conflict", conflict)
    with pytest.raises(ToolkitError, match="is also a conflict episode"):
        converted(raw)


def test_an_episode_without_words_is_refused_unless_the_split_has_them(raw: Path) -> None:
    edit_json(raw / SPLIT / "unseen/trajectory.h5", lambda meta: meta["episodes"][0].pop("instruction"))
    with pytest.raises(ToolkitError, match=r"unseen/trajectory.h5, traj_0: holds no instruction"):
        converted(raw)
    converted(raw, "lift it")
    tasks = lines(raw.parent / "data" / SPLIT / "unseen/meta/tasks.jsonl")
    assert [line["task"] for line in tasks] == ["lift it"]


def test_cameras_that_already_have_the_published_names_are_taken(raw: Path, data: Path) -> None:
    for h5 in raw.rglob("*.h5"):
        with h5py.File(h5, "a") as file:
            for sensors in (file[name]["obs/sensor_data"] for name in file):
                sensors.move("base_camera", "image")
                sensors.move("hand_camera", "wrist_image")
    converted(raw)
    video = "videos/chunk-000/observation.images.wrist_image/episode_000001.mp4"
    there, here = ((of / SPLIT / "train" / video).read_bytes() for of in (data, raw.parent / "data"))
    assert there == here


def test_the_doctor_looks_at_every_part_and_keeps_what_is_tested_on_apart(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(data / SPLIT, tmp_path / SPLIT)
    report = tmp_path / "report.json"
    settings: CheckConfig = load("check", ["fast=true", f"json={report}"])
    check((folder, settings))
    names = [of["name"] for of in read_json(report)["datasets"]]
    assert names == [*PARTS, "train and unseen", "train and conflict", "train_conflict and conflict"]
    shutil.rmtree(folder / "unseen")
    shutil.copytree(folder / "conflict", folder / "unseen")
    with pytest.raises(SystemExit):
        check((folder, settings))
    assert 'This folder is "unseen", but was written as "conflict"' in " ".join(capsys.readouterr().out.split())


# -- conflict scenes in training ---------------------------------------------------------------------------------------


def pretend(part: Path, name: str) -> None:
    """A copied part that says it is another one."""
    edit_json(part / "meta/split.json", lambda split: split.update(part=name, fingerprint=None))


@pytest.fixture
def leaking(data: Path, tmp_path: Path) -> Path:
    """The data, but what is tested on in conflict are the scenes of train_conflict."""
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("conflict", ".cache"))
    conflict = shutil.copytree(data / SPLIT / "train_conflict", tmp_path / "data" / SPLIT / "conflict")
    pretend(conflict, "conflict")
    return tmp_path / "data"


LEAK = "Conflict episode {} is the same as {} episode {}."


@pytest.mark.parametrize("mixed", [False, True])
def test_conflict_scenes_that_are_tested_on_are_not_trained_on(leaking: Path, tiny_base: Path, mixed: bool) -> None:
    mixture = [f"dataset.mixture=[{leaking / SPLIT}/train]"] * mixed
    asked = [*mixture, "dataset.conflict_share=0.1"]
    with pytest.raises(ToolkitError, match="train_conflict is not sound") as refused:
        check_dataset(suite_config(leaking.parent, leaking, tiny_base, *asked))
    assert LEAK.format(0, "train_conflict", 0) in str(refused.value)
    check_dataset(suite_config(leaking.parent, leaking, tiny_base, *mixture))  # trains on no conflict scene


def test_conflict_scenes_are_compared_without_the_episodes_that_are_left_out(leaking: Path, tiny_base: Path) -> None:
    part = leaking / SPLIT / "train_conflict"
    left_out = f"dataset.exclude=[{part}/0]"
    with pytest.raises(ToolkitError) as refused:
        check_dataset(suite_config(leaking.parent, leaking, tiny_base, "dataset.conflict_share=0.1", left_out))
    assert LEAK.format(1, "train_conflict", 1) in str(refused.value)
    assert LEAK.format(0, "train_conflict", 0) not in str(refused.value)


def test_a_train_part_in_a_mixture_is_compared_with_the_conflict_beside_it(
    data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / SPLIT / "train", tmp_path / "set/train")
    pretend(shutil.copytree(data / SPLIT / "train", tmp_path / "set/conflict"), "conflict")
    mixture = f"dataset.mixture=[{tmp_path}/set/train]"
    with pytest.raises(ToolkitError) as refused:
        check_dataset(suite_config(tmp_path, data, tiny_base, mixture))
    assert LEAK.format(0, "train", 0) in str(refused.value)


def test_the_doctors_list_is_of_train_and_not_of_conflict_scenes(leaking: Path) -> None:
    report, _ = examine(leaking / SPLIT, MODALITY_CONFIG, fast=True)
    found = [of for dataset, _, of in report.findings("error") if dataset.name == "train_conflict and conflict"]
    assert {episode for of in found for episode in of.episodes} == {0, 1} and report.exclude() == []
    alone, _ = examine(leaking / SPLIT / "train_conflict", MODALITY_CONFIG, fast=True)
    assert alone.exclude() == ["0:2"]


def suite_config(out: Path, data: Path, base: Path, *more: str) -> FinetuneConfig:
    return config(out, data, base, f"split={SPLIT}", *more)


def test_no_conflict_scene_is_trained_on_unless_it_is_asked_for(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    plain = suite_config(tmp_path, data, tiny_base)
    assert datasets(plain) == [Part(data / SPLIT / "train", 1.0)]
    assert not [name for name in recipe(dataclasses.asdict(plain)) if "conflict" in name]
    for part, said in (("train_conflict", "dataset.conflict_share=0.1 alone"), ("unseen", "holds unseen episodes")):
        mixed = suite_config(tmp_path, data, tiny_base, f"dataset.mixture=[{data}/{SPLIT}/{part}]")
        with pytest.raises(ToolkitError, match=said):
            open_datasets(mixed)


def test_the_share_is_of_all_samples_also_beside_a_mixture(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    own, other = data / SPLIT / "train", shutil.copytree(data / SPLIT / "train", tmp_path / "other")
    mixture = f"dataset.mixture=[{own}:6,{other}:2]"
    chosen = suite_config(tmp_path, data, tiny_base, mixture, "dataset.conflict_share=0.2")
    assert [(p.folder.name, pytest.approx(p.weight)) for p in datasets(chosen)] == [
        ("train", 0.6),
        ("other", 0.2),
        ("train_conflict", 0.2),
    ]


def test_a_share_of_what_is_not_there_is_refused(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="color_object has no part train_conflict"):
        config(tmp_path, data, tiny_base, "dataset.conflict_share=0.1")
    (tmp_path / SPLIT).parent.mkdir()
    shutil.copytree(data / SPLIT / "train", tmp_path / SPLIT / "train")
    with pytest.raises(ToolkitError, match=r"train_conflict, which is not there\. Record it"):
        suite_config(tmp_path, tmp_path, tiny_base, "dataset.conflict_share=0.1")


@pytest.mark.slow
def test_conflict_scenes_are_trained_on_exactly_and_told_by_checkpoint_and_release(
    data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    asked = "dataset.conflict_share=0.25"
    finetune(suite_config(tmp_path / "whole", data, tiny_base, asked))
    shutil.copytree(tmp_path / "whole/run/checkpoint-3", tmp_path / "rest/run/checkpoint-3")
    finetune(suite_config(tmp_path / "rest", data, tiny_base, asked))
    assert {s: v for s, v in losses(tmp_path / "whole").items() if s > 3} == losses(tmp_path / "rest")
    there, here = trained(tmp_path / "whole"), trained(tmp_path / "rest")
    assert all(torch.equal(there[name], here[name]) for name in there | here)
    with pytest.raises(ToolkitError, match=r"dataset.conflict_share: 0.25 there, 0.5 now"):
        finetune(suite_config(tmp_path / "whole", data, tiny_base, "dataset.conflict_share=0.5"))
    done = tmp_path / "whole/done"
    trained_on = read_trained_on(done)
    assert trained_on["strategy"] == "random_f2" and [of["share"] for of in trained_on["mixture"]] == [0.75, 0.25]
    places = (f"checkpoint={done}", f"run_dir={tmp_path}/none", f"reports_dir={tmp_path}/none", f"out={tmp_path}/tree")
    made = release(read([f"split={SPLIT}", "local=none", *places]))
    assert any("WARNING" in note and asked in note for note in made.notes)
    card = (tmp_path / "tree/README.md").read_text()
    assert f"25 % of the samples of `{SPLIT}` were conflict scenes" in card and "Lift the red cup." in card
    assert "combinations of the strategy `random_f2`" in card
    assert (tmp_path / "tree/checkpoints" / SPLIT / "config.json").is_file()


# -- foreign data ------------------------------------------------------------------------------------------------------


def test_a_dataset_in_the_published_form_is_trained_on_by_the_name_of_its_experiment(
    tiny_base: Path, tmp_path: Path
) -> None:
    theirs = write_dataset(tmp_path / "theirs", "v2.0", png)
    before = {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
    call = ["local=none", f"dataset={theirs}", f"split={SPLIT}", f"data_dir={tmp_path}/data"]
    assert f"write=true split={SPLIT}" in adopt(load("adopt", call))[-1] and not (tmp_path / "data").exists()
    assert f"python launch_finetune_local.py split={SPLIT}" in adopt(load("adopt", [*call, "write=true"]))[-1]
    assert {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == before
    finetune(suite_config(tmp_path, tmp_path / "data", tiny_base, "train.max_steps=2"))
    assert read_trained_on(tmp_path / "done")["instructions"] == ["lift the red cube"]
    with pytest.raises(ToolkitError, match="exists already and is left as it is"):
        adopt(load("adopt", [*call, "write=true"]))


# -- open loop ---------------------------------------------------------------------------------------------------------


def test_open_loop_takes_the_combinations_that_were_not_trained_on(data: Path, tmp_path: Path) -> None:
    given = (f"split={SPLIT}", f"data_dir={data}", "part=unseen")
    assert compose("evaluate", *given).own_dataset == "unseen"
    assert str(compose("evaluate", *given).report_folder) == f"reports/{SPLIT}/unseen"
    plate = refusal_here("evaluate", "split=color_object", f"data_dir={data}", "part=unseen", f"report_dir={tmp_path}")
    assert "color_object/unseen does not exist" in plate


def refusal_here(name: str, *argv: str) -> str:
    with pytest.raises(ToolkitError) as error:
        compose(name, *argv).check_here(checkpoint_comes=True)
    return str(error.value)
