"""Several datasets as one: drawn by weight, merged statistics, and the same exactness as one dataset has."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import write_split
from test_lerobot3 import adopted, edit_json
from test_training import config, losses, trained

from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from finetune.open_loop.evaluation import _notes
from finetune.plan import make_plan
from finetune.recipe import FinetuneConfig, datasets
from finetune.recipe.train_config import check_mixture, parts
from finetune.release.__main__ import read
from finetune.release.published_tree import release
from finetune.training.dataloader import build_dataset, build_processor, open_datasets
from finetune.training.run_identity import run_identity
from finetune.training.tracking import Artifacts
from finetune.training.train import finetune
from gr00t.data.dataset import Mixture, TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import MIXTURE_BLOCK, MixtureOrder, SampleKey, TrainingOrder
from gr00t.data.statistics import merge_statistics
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.model.weight_files import read_config
from toolkit.configuration import load

LENGTHS, SHARES, BATCH = [31, 200, 7], [0.5, 0.3, 0.2], 12


# -- order -------------------------------------------------------------------------------------------------------------


def drawn(order: MixtureOrder | TrainingOrder, count: int) -> list[int]:
    return [order.key(n // BATCH, n % BATCH).index for n in range(count)]


def sources(indices: list[int]) -> list[int]:
    return np.searchsorted(np.cumsum(LENGTHS), indices, side="right").tolist()


def test_datasets_are_drawn_by_their_weights() -> None:
    indices = drawn(MixtureOrder(LENGTHS, SHARES, BATCH, seed=3), 2 * MIXTURE_BLOCK)
    for block in (indices[:MIXTURE_BLOCK], indices[MIXTURE_BLOCK:]):
        counts = Counter(sources(block))
        assert [counts[d] / MIXTURE_BLOCK for d in range(3)] == SHARES
    early = Counter(sources(indices[:1200]))
    assert all(abs(early[d] / 1200 - share) < 0.04 for d, share in enumerate(SHARES))


def test_each_dataset_continues_in_whole_passes_across_blocks() -> None:
    indices = np.array(drawn(MixtureOrder(LENGTHS, SHARES, BATCH, seed=3), 2 * MIXTURE_BLOCK))
    first = 0
    for source, length in enumerate(LENGTHS):
        own = indices[np.array(sources(indices.tolist())) == source] - first
        passes = own[: len(own) // length * length].reshape(-1, length)
        assert (np.sort(passes, axis=1) == np.arange(length)).all()
        first += length


def test_a_sample_of_a_mixture_depends_on_seed_step_and_position_only() -> None:
    order = MixtureOrder(LENGTHS, SHARES, BATCH, seed=3)
    there = [order.key(step, position) for step, position in ((2000, 1), (5, 3), (900, 11))]
    again = MixtureOrder(LENGTHS, SHARES, BATCH, seed=3)
    assert [again.key(step, position) for step, position in ((900, 11), (2000, 1), (5, 3))] == [there[2], *there[:2]]
    assert drawn(again, 50) != drawn(MixtureOrder(LENGTHS, SHARES, BATCH, seed=4), 50)


def test_the_order_of_one_dataset_is_that_of_the_dataset_alone() -> None:
    alone = drawn(TrainingOrder(31, BATCH, 3), 3 * MIXTURE_BLOCK)
    assert drawn(MixtureOrder([31], [1.0], BATCH, 3), 3 * MIXTURE_BLOCK) == alone


def test_repeated_starts_are_numbered_within_their_dataset() -> None:
    order = MixtureOrder([2, 3], [1.0, 1.0], BATCH, 3, repeated=[[1] * 8, [0] * 7])
    counts = np.bincount(drawn(order, 2 * MIXTURE_BLOCK))
    assert counts.tolist() == [1000, 9000, 8000, 1000, 1000]


def test_a_share_too_small_to_be_kept_is_refused() -> None:
    with pytest.raises(ToolkitError, match="Dataset 1 of the mixture would give less than one of 10000"):
        MixtureOrder([5, 5], [1.0, 1e-6], BATCH, 3)


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two datasets of one robot: the one that other tests train on, and one with another instruction."""
    folder = tmp_path_factory.mktemp("second")
    raw = write_split(folder / "raw", train=[26, 19, 23, 21], conflict=[20], name="color_size")
    convert_split(raw, folder / "data", "color_size", "lift the larger object", MODALITY_CONFIG, progress=False)
    return [small_data / "color_object/train", folder / "data/color_size/train"]


def mixed(*folders: Path, weights: tuple[float, ...] = (2, 1)) -> str:
    return f"dataset.mixture=[{','.join(f'{f}:{w:g}' for f, w in zip(folders, weights, strict=False))}]"


def settings(two: list[Path], base: Path, out: Path, *more: str) -> FinetuneConfig:
    return config(out, two[0].parents[1], base, mixed(*two), *more)


def halves(data: Path, tmp_path: Path) -> list[StepReader]:
    """One dataset twice, each time with other training episodes, which have one length."""
    readers = []
    for name, held_out in (("first", [0, 1, 3]), ("second", [1, 3, 4])):
        folder = Path(shutil.copytree(data / "color_object/train", tmp_path / name))
        edit_json(folder / "meta/split.json", lambda split, held=held_out: split.update(val_episodes=held))
        for file in ("stats.json", "relative_stats.json"):
            (folder / "meta" / file).unlink()
        readers.append(StepReader(folder, MODALITY_CONFIG))
    return readers


def test_hashes_of_a_mixture_of_one_are_those_of_the_dataset(two: list[Path]) -> None:
    readers = [StepReader(folder, MODALITY_CONFIG) for folder in two]
    for name in ("fingerprint", "content"):
        one, other, both, turned = (
            getattr(Mixture(chosen), name) for chosen in ([readers[0]], [readers[1]], readers, readers[::-1])
        )
        assert one == getattr(readers[0].layout, name)
        assert len({one, other, both, turned}) == 4
    digest = Mixture(readers[:1]).training_digest()
    assert digest == readers[0].layout.training_digest()
    weighted = [Mixture(readers, weights).training_digest() for weights in ([1, 1], [2, 2], [1, 2])]
    assert weighted[0] == weighted[1] != weighted[2] and digest not in weighted


def test_statistics_of_two_parts_are_those_of_the_whole(small_data: Path, tmp_path: Path) -> None:
    readers = halves(small_data, tmp_path)
    lengths = [sum(r.layout.episode(e).length for e in r.layout.train_episodes) for r in readers]
    found = Mixture(readers, lengths).statistics("mask")
    assert found == merge_statistics([Mixture([r]).statistics("mask") for r in readers], lengths)
    for modality in ("state", "action"):
        for group, statistics in found[modality].items():
            values = [r.trajectory(modality, e)[group] for r in readers for e in r.layout.train_episodes]
            whole = np.concatenate(values).astype(np.float64)
            np.testing.assert_allclose(statistics["mean"], whole.mean(axis=0), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(statistics["std"], whole.std(axis=0), rtol=1e-9, atol=1e-12)
            assert statistics["min"] == whole.min(axis=0).tolist() and statistics["max"] == whole.max(axis=0).tolist()


def test_statistics_of_a_mixture_are_merged_by_its_shares_and_for_its_tail(small_data: Path, tmp_path: Path) -> None:
    readers = halves(small_data, tmp_path)
    for tail in ("mask", "drop"):
        found = Mixture(readers, [1, 3]).statistics(tail)
        parts = [Mixture([reader]).statistics(tail) for reader in readers]
        assert found == merge_statistics(parts, [1, 3]) != merge_statistics(parts, [1, 1])
        assert found["relative_action"]["arm"]["mean"] != parts[0]["relative_action"]["arm"]["mean"]
    assert found["relative_action"] != Mixture(readers, [1, 3]).statistics("mask")["relative_action"]


def test_a_mixture_needs_a_finite_weight_above_zero_for_each_dataset(two: list[Path]) -> None:
    readers = [StepReader(folder, MODALITY_CONFIG) for folder in two]
    assert Mixture(readers, [3, 1]).shares == [0.75, 0.25] and Mixture(readers).shares == [0.5, 0.5]
    for weights in ([1], [1, 1, 1], [1, 0], [1, -1], [1, float("inf")], [1, float("nan")]):
        with pytest.raises(ToolkitError, match="needs a weight above 0 for each of 2 datasets"):
            Mixture(readers, weights)
    with pytest.raises(ToolkitError, match="each of 0 datasets"):
        Mixture([])


def test_first_starts_are_numbered_within_each_dataset(two: list[Path], tiny_base: Path, tmp_path: Path) -> None:
    chosen = settings(two, tiny_base, tmp_path)
    mixture = open_datasets(chosen)
    processor = build_processor(Gr00tN1d7Processor.from_pretrained(tiny_base), mixture, chosen)
    samples: TrainingDataset = build_dataset(mixture, processor, read_config(tiny_base), chosen)
    expected = []
    for reader in mixture.readers:
        lengths = [reader.layout.episode(e).length for e in reader.layout.train_episodes]
        begins = np.cumsum([0, *lengths[:-1]])
        expected.append([int(begin) + frame for begin in begins for frame in range(3)])
    assert samples.first_starts(3) == expected


def test_samples_come_from_the_training_episodes_of_every_dataset(
    two: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    chosen = settings(two, tiny_base, tmp_path, "augment.state_dropout=0")
    mixture = open_datasets(chosen)
    processor = build_processor(Gr00tN1d7Processor.from_pretrained(tiny_base), mixture, chosen)
    samples: TrainingDataset = build_dataset(mixture, processor, read_config(tiny_base), chosen)
    assert len(samples) == sum(samples.lengths) and len(samples.prompts) == 2
    drawn_from = {samples.starts[i][:2] for i in range(len(samples))}
    assert drawn_from == {(d, e) for d, r in enumerate(mixture.readers) for e in r.layout.train_episodes}
    last = samples[SampleKey(len(samples) - 1, 0, 0)]
    reader = mixture.readers[1]
    step = reader.step(*samples.start(len(samples) - 1))
    assert np.array_equal(last["state"], processor.encode_robot(step, "new_embodiment")["state"])
    assert "lift the larger object" in last["text"]


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(two: list[Path], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on two datasets."""
    out = tmp_path_factory.mktemp("mixed")
    finetune(settings(two, tiny_base, out))
    return out


def test_a_mixture_of_one_dataset_trains_as_the_dataset_alone_bit_for_bit(
    two: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    data = two[0].parents[1]
    alone, listed = (
        config(tmp_path / "alone", data, tiny_base),
        config(tmp_path / "one", data, tiny_base, mixed(two[0])),
    )
    finetune(alone)
    finetune(listed)
    assert losses(tmp_path / "alone") == losses(tmp_path / "one")
    there, here = trained(tmp_path / "alone"), trained(tmp_path / "one")
    assert all(torch.equal(there[name], here[name]) for name in there | here)
    assert run_identity(alone, tiny_base, open_datasets(alone)) == run_identity(
        listed, tiny_base, open_datasets(listed)
    )
    described = [read_json(tmp_path / n / "done/experiment_cfg/dataset.json") for n in ("alone", "one")]
    assert described[0] == described[1]


def test_a_resumed_run_on_a_mixture_repeats_the_uninterrupted_one_bit_for_bit(
    finished: Path, two: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "run/checkpoint-3", tmp_path / "run/checkpoint-3")
    finetune(settings(two, tiny_base, tmp_path))
    assert {s: v for s, v in losses(finished).items() if s > 3} == losses(tmp_path)
    there, here = trained(finished), trained(tmp_path)
    assert all(torch.equal(there[name], here[name]) for name in there | here)


def test_other_weights_are_another_run(finished: Path, two: list[Path], tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    with pytest.raises(ToolkitError, match="dataset"):
        finetune(config(tmp_path, two[0].parents[1], tiny_base, mixed(*two, weights=(1, 1))))


def test_stored_frames_and_cached_features_give_the_losses_of_live_training(
    two: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    shared = ["augment.views=1", "train.max_steps=3", f"cache_dir={tmp_path}/cache"]
    finetune(settings(two, tiny_base, tmp_path / "live", *shared))
    finetune(settings(two, tiny_base, tmp_path / "fast", *shared, "dataset.frames=store", "train.features=cached"))
    assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "live"), rel=1e-4)
    assert len(list((tmp_path / "cache").glob("frames-*"))) == 2
    (features,) = (tmp_path / "cache").glob("features-*")
    assert len(read_json(features / "meta.json")["episodes"]) == 2


def test_the_finished_checkpoint_names_every_dataset_and_its_share(finished: Path, two: list[Path]) -> None:
    described = read_json(finished / "done/experiment_cfg/dataset.json")
    assert [round(part["share"], 6) for part in described["mixture"]] == [0.666667, 0.333333]
    layouts = [StepReader(folder, MODALITY_CONFIG).layout for folder in two]
    assert [part["fingerprint"] for part in described["mixture"]] == [layout.fingerprint for layout in layouts]
    assert "/" not in json.dumps(described)
    evaluation = load("evaluate", ["local=none", f"checkpoint={finished}/done", f"data_dir={two[0].parents[1]}"])
    assert _notes(evaluation, layouts[0], described, [0]) == []
    others = {**described, "mixture": described["mixture"][1:]}
    assert "a mixture that does not hold" in _notes(evaluation, layouts[0], others, [0])[0]


def test_a_mixture_is_one_artifact_with_the_files_of_every_dataset(
    two: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    chosen = settings(two, tiny_base, tmp_path, "tracking=wandb", "tracking.artifacts=upload")
    Path(chosen.run_dir).mkdir()
    artifact = Artifacts(chosen).dataset({"fingerprint": "f", "mixture": []})
    assert {"reference.json", "0/meta/info.json", "1/meta/info.json"} <= set(artifact.manifest.entries)
    note = read_json(next(Path(chosen.run_dir).rglob("*-train.json")))
    assert note["folders"] == [str(folder) for folder in two]


def test_a_release_of_a_mixture_lists_every_dataset_without_its_place(
    finished: Path, two: list[Path], tmp_path: Path
) -> None:
    places = [f"checkpoint={finished}/done", f"run_dir={finished}/run", f"reports_dir={tmp_path}/none"]
    out = release(read(["local=none", "split=color_object", f"out={tmp_path}/out", *places])).out
    card = (out / "README.md").read_text()
    rows = []
    for folder, weight in zip(two, ("2 (66.7 % of the samples)", "1 (33.3 % of the samples)"), strict=True):
        layout = StepReader(folder, MODALITY_CONFIG).layout
        frames = sum(layout.episode(index).length for index in layout.train_episodes)
        counts = [len(layout.train_episodes), frames, len(layout.val_episodes)]
        said = f'"{next(iter(layout.tasks.values()))}" | `{layout.fingerprint[:16]}`'
        assert f"| `{folder.parent.name}/train` | {weight} | {' | '.join(map(str, counts))} | {said} |" in card
        rows.append(counts)
    for name, column in (("Episodes trained on", 0), ("Frames trained on", 1), ("Episodes held out", 2)):
        assert f"| {name} | {sum(counts[column] for counts in rows)} |" in card
    published = (out / "checkpoints/color_object/experiment_cfg/config.yaml").read_text()
    assert "- color_object/train:2" in published and str(two[0].parents[2]) not in published


def test_a_dataset_of_maniskills_own_converter_is_trained_on(two: list[Path], tiny_base: Path, tmp_path: Path) -> None:
    folder = adopted("maniskill", tmp_path)
    more = ["train.max_steps=2", "train.save_steps=2"]
    result = finetune(config(tmp_path, two[0].parents[1], tiny_base, mixed(two[0], folder, weights=(1, 3)), *more))
    assert result.steps == 2 and all(np.isfinite(loss) for loss in losses(tmp_path).values())


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[A:0]", "is no FOLDER or FOLDER:WEIGHT"),
        ("[A:-1]", "weight above 0"),
        ("[A:nan]", "weight above 0"),
        ("[A:inf]", "weight above 0"),
        ("['A:']", "weight above 0"),
        ("[A:many]", "weight above 0"),
        ("[':2']", "is no FOLDER"),
        ("[A,A:2]", "2 times"),
        ("A:2", r"a list is written \[A,B\]"),
        ("[A:1,nowhere:2]", "nowhere does not exist"),
        ("[A/meta]", "meta has no meta/info.json"),
        ("[S]", "holds several datasets. Name one: .*train"),
    ],
)
def test_entries_that_mean_nothing_are_refused_early(
    two: list[Path], tiny_base: Path, tmp_path: Path, entries: str, message: str
) -> None:
    written = entries.replace("A", str(two[0])).replace("S]", f"{two[0].parent}]")
    with pytest.raises(ToolkitError, match=message):
        config(tmp_path, two[0].parents[1], tiny_base, f"dataset.mixture={written}")


def test_folders_with_colons_and_home_folders_are_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = load("finetune", ["local=none", "dataset.mixture=['~/a:2.5',b/c:3/d,e]"], check_here=False)
    parts = [(str(part.folder), part.weight) for part in datasets(found)]
    assert parts == [("/home/me/a", 2.5), ("b/c:3/d", 1.0), ("e", 1.0)]


def test_nothing_is_written_into_a_dataset_of_the_mixture(two: list[Path], tiny_base: Path) -> None:
    with pytest.raises(ToolkitError, match=r"run_dir .* lies inside the dataset"):
        config(two[1], two[0].parents[1], tiny_base, mixed(*two))


def spoilt(folder: Path, tmp_path: Path, name: str, change) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "other"))
    edit_json(copy / "meta" / name, change)
    return copy


def test_datasets_of_another_robot_or_rate_and_conflict_episodes_are_refused(two: list[Path], tmp_path: Path) -> None:
    cases = [
        ("info.json", lambda d: d.update(fps=10), "10 frames a second, .* 20"),
        ("modality.json", lambda d: d["state"]["gripper"].update(start=6), 'state "gripper" has 2 dimensions'),
        ("modality.json", lambda d: d["action"]["gripper"].update(start=6), 'action "gripper" has 2 dimensions'),
        ("split.json", lambda d: d.update(part="conflict"), "conflict episodes, which are for evaluation"),
    ]
    for name, change, message in cases:
        other = spoilt(two[1], tmp_path / message[:5], name, change)
        with pytest.raises(ToolkitError, match=message):
            Mixture([StepReader(folder, MODALITY_CONFIG) for folder in (two[0], other)])


def test_the_plan_counts_all_datasets(two: list[Path], tiny_base: Path, tmp_path: Path) -> None:
    chosen = settings(two, tiny_base, tmp_path, "dataset.frames=store", "train.features=cached", "augment.views=2")
    notes = {part.name: part.note for part in make_plan(chosen, 1, cuda=False).disk}
    frames = [sum(e.length for e in StepReader(f, MODALITY_CONFIG).layout.episodes) for f in two]
    assert notes["frame store"] == f"{sum(frames)} frames of 2 cameras"
    samples = open_datasets(chosen)
    starts = sum(r.layout.episode(e).length for r in samples.readers for e in r.layout.train_episodes)
    assert notes["feature cache"] == f"{starts} start frames x 2 views"


def test_an_entrys_weight_stands_behind_the_last_colon_and_is_one_without(tmp_path: Path) -> None:
    found = parts(["b/c:2.5", "a", "x:1/y", "d:e:3"])
    assert [(str(part.folder), part.weight) for part in found] == [("b/c", 2.5), ("a", 1), ("x:1/y", 1), ("d:e", 3)]
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    check_mixture(["a:1", "b:1"])
    for entries in (["a:1", "a:2"], ["a", "./a"], [f"{tmp_path}/x:1", f"{tmp_path}/link/x:2"]):
        with pytest.raises(ToolkitError, match=r"2 times\. Name it once"):
            check_mixture(entries)
