"""Steps and samples: what is read is what was recorded, and order and draws depend on (seed, step, position) alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from golden_files import golden_path, load

from conflict_panda_config import MODALITY_CONFIG
from finetune.training.dataloader import build_processor
from gr00t.data.dataset import SampleSettings, TrainingDataset
from gr00t.data.layout import DatasetLayout, dataset_fingerprint
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import MicroBatchSampler, SampleKey, Stream, TrainingOrder, generator
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from toolkit.configuration import load as load_config

TAG = "new_embodiment"


@pytest.fixture(scope="module")
def reader(small_data: Path) -> StepReader:
    return StepReader(small_data / "color_object" / "train", MODALITY_CONFIG)


@pytest.fixture(scope="module")
def processor(reader: StepReader, tiny_base: Path) -> Gr00tN1d7Processor:
    config = load_config("finetune", ["model=tiny", f"model.base={tiny_base}", f"dataset.data_dir={_data(reader)}"])
    return build_processor(Gr00tN1d7Processor.from_pretrained(tiny_base), reader, config)


def _data(reader: StepReader) -> Path:
    return reader.layout.root.parents[1]


def dataset(reader: StepReader, processor: Gr00tN1d7Processor, **settings: object) -> TrainingDataset:
    return TrainingDataset(reader, processor, TAG, SampleSettings(**{"seed": 7, **settings}))  # type: ignore[arg-type]


def same(a: dict, b: dict, *, but: tuple[str, ...] = ()) -> bool:
    return all(np.array_equal(a[k], b[k]) for k in a if k not in but)


def test_steps_equal_what_the_original_reads_from_its_dataset(tmp_path: Path) -> None:
    points = load(golden_path("dataset_points.npz"))
    copy = shutil.copytree(golden_path("dataset_new_embodiment"), tmp_path / "golden")
    golden = StepReader(copy, MODALITY_CONFIG)
    for frame in (0, 7, 36):
        step = golden.step(1, frame)
        for group in ("arm", "gripper"):
            assert np.array_equal(step.states[group], points[f"{frame}::state::{group}"])
            assert np.array_equal(step.actions[group], points[f"{frame}::action::{group}"])
        assert step.text == str(points[f"{frame}::text"])
        assert step.action_valid is not None and step.action_valid.all()
    for camera in ("image", "wrist_image"):
        difference = golden.step(1, 7).images[camera][0].astype(int) - points[f"7::image::{camera}"].astype(int)
        assert np.abs(difference).max() <= 2  # two decoders of one video


def test_past_the_end_the_last_action_is_held_and_marked_missing(reader: StepReader) -> None:
    episode = reader.layout.episodes[0]
    step = reader.step(episode.index, episode.length - 3)
    assert step.action_valid is not None and step.action_valid.tolist() == [True] * 3 + [False] * 13
    recorded = reader.trajectory("action", episode.index)["arm"]
    assert np.array_equal(step.actions["arm"][:3], recorded[-3:])
    assert (step.actions["arm"][3:] == recorded[-1]).all()


def test_before_the_start_the_first_frame_is_repeated(small_data: Path) -> None:
    history = {**MODALITY_CONFIG, "state": type(MODALITY_CONFIG["state"])([-2, -1, 0], ["arm", "gripper"])}
    old = StepReader(small_data / "color_object" / "train", history)
    state = old.step(0, 1).states["arm"]
    recorded = old.trajectory("state", 0)["arm"]
    assert np.array_equal(state, recorded[[0, 0, 1]])


def test_masked_tails_start_at_every_frame_and_dropped_ones_where_the_horizon_fits(
    reader: StepReader, processor: Gr00tN1d7Processor
) -> None:
    lengths = [reader.layout.episode(e).length for e in reader.layout.train_episodes]
    assert len(dataset(reader, processor)) == sum(lengths)
    assert len(dataset(reader, processor, tail="drop")) == sum(n - 15 for n in lengths)


def test_the_mask_counts_the_recorded_steps_only(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    samples = dataset(reader, processor)
    for index in (0, len(samples) - 1):
        episode, frame = samples.start(index)
        steps = min(16, reader.layout.episode(episode).length - frame)
        assert samples[SampleKey(index, 0, 0)]["action_mask"].sum() == steps * 8


def test_held_out_episodes_are_never_drawn(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    samples = dataset(reader, processor)
    drawn = {samples.start(i)[0] for i in range(len(samples))}
    assert drawn == set(reader.layout.train_episodes)
    assert len(reader.layout.val_episodes) == 2 and not drawn & set(reader.layout.val_episodes)


def test_a_sample_depends_on_seed_step_and_position_only(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    key = SampleKey(3, 5, 2)
    samples = dataset(reader, processor, state_dropout=0.5)
    first = samples[key]
    samples[SampleKey(9, 6, 0)]
    assert same(first, dataset(reader, processor, state_dropout=0.5)[key])
    for other in (SampleKey(3, 6, 2), SampleKey(3, 5, 3)):
        assert not np.array_equal(first["noise"], samples[other]["noise"])
        assert not np.array_equal(first["images"], samples[other]["images"])
    assert not np.array_equal(first["noise"], dataset(reader, processor, seed=8)[key]["noise"])


def test_several_noise_draws_change_nothing_else(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    key = SampleKey(3, 5, 2)
    one, samples = dataset(reader, processor)[key], dataset(reader, processor, noise_draws=3)
    several = samples[key]
    assert same(one, several, but=("noise", "time"))
    assert several["noise"].shape == (3, *one["action"].shape) and several["time"].shape == (3,)
    assert len({draw.tobytes() for draw in several["noise"]}) == len(set(several["time"].tolist())) == 3
    batch = samples.collate([several, samples[SampleKey(4, 5, 3)]])
    assert batch["noise"].shape == (2, 3, *one["action"].shape) and batch["time"].shape == (2, 3)
    assert same(several, dataset(reader, processor, noise_draws=3)[key])


def test_views_limit_how_many_looks_a_frame_has(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    samples = dataset(reader, processor, views=2)
    looks = {samples[SampleKey(4, step, 0)]["images"].tobytes() for step in range(12)}
    assert len(looks) == 2


def test_state_dropout_hides_the_share_of_states_it_says(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    samples = dataset(reader, processor, state_dropout=0.3, augment=False)
    drawn = [samples[SampleKey(0, step, 0)] for step in range(120)]
    hidden = np.mean([not s["state"].any() for s in drawn])
    features = np.mean([s["drop_state_features"] for s in drawn])
    assert 0.15 < hidden < 0.45 and 0.15 < features < 0.45


def test_state_and_features_are_hidden_independently(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    samples = dataset(reader, processor, state_dropout=0.5, augment=False)
    drawn = [samples[SampleKey(0, step, 0)] for step in range(60)]
    ways = {(not s["state"].any(), bool(s["drop_state_features"])) for s in drawn}
    assert ways == {(False, False), (False, True), (True, False), (True, True)}


def test_time_follows_the_originals_beta(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    times = (1 - generator(0, Stream.NOISE).beta(1.5, 1.0, 20000)) * 0.999
    assert abs(times.mean() - 0.4 * 0.999) < 0.01
    time = dataset(reader, processor, augment=False)[SampleKey(0, 0, 0)]["time"]
    assert 0 <= time <= 0.999


def test_a_batch_carries_the_draws(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    samples = dataset(reader, processor)
    batch = samples.collate([samples[SampleKey(i, 0, i)] for i in range(3)])
    assert batch["noise"].shape == batch["action"].shape == (3, 20, 32)
    assert batch["time"].shape == (3,) and batch["drop_state_features"].dtype == torch.bool
    assert batch["images"].dtype == torch.uint8 and batch["images"].shape == (6, 256, 256, 3)


def keys(layout: int, micro: int, *, steps: range = range(4), batch: int = 12) -> list[list[SampleKey]]:
    """The samples of each step's global batch under a layout of processes and micro-batches."""
    order = TrainingOrder(31, batch, seed=1)
    samplers = [
        MicroBatchSampler(order, micro, rank=r, world_size=layout, first_step=steps.start, last_step=steps.stop)
        for r in range(layout)
    ]
    found: dict[int, list[SampleKey]] = {}
    for sampler in samplers:
        for micro_batch in sampler:
            for key in micro_batch:
                found.setdefault(key.step, []).append(key)
    return [sorted(found[s], key=lambda k: k.position) for s in steps]


def test_every_layout_sees_the_same_global_batches() -> None:
    assert keys(1, 12) == keys(1, 3) == keys(2, 3) == keys(3, 4) == keys(4, 1)


def test_order_continues_where_it_was() -> None:
    assert keys(1, 4)[2:] == keys(1, 4, steps=range(2, 4))


def test_every_start_frame_is_seen_once_in_a_pass() -> None:
    order = TrainingOrder(31, 12, seed=1)
    seen = [order.key(n // 12, n % 12).index for n in range(62)]
    assert sorted(seen[:31]) == sorted(seen[31:]) == list(range(31))
    assert seen[:31] != seen[31:]


def test_repeated_starts_come_once_more_for_each_time_in_a_pass() -> None:
    order = TrainingOrder(31, 12, seed=1, repeated=[0, 4, 4])
    seen = [order.key(n // 12, n % 12).index for n in range(68)]
    assert sorted(seen[:34]) == sorted(seen[34:]) == sorted([*range(31), 0, 4, 4])
    bare = TrainingOrder(31, 12, seed=1, repeated=[])
    assert [bare.index(n) for n in range(70)] == [TrainingOrder(31, 12, seed=1).index(n) for n in range(70)]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ToolkitError, match="multiple of 10"):
        MicroBatchSampler(TrainingOrder(31, 12, 0), 5, world_size=2, last_step=1)


def test_a_read_only_dataset_stays_as_it_is(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    copy = Path(shutil.copytree(small_data / "color_object" / "train", tmp_path / "train"))
    shutil.rmtree(copy / ".cache", ignore_errors=True)
    copy.chmod(0o555)
    try:
        assert StepReader(copy, MODALITY_CONFIG).step(0, 0).text
        assert not (copy / ".cache").exists()
    finally:
        copy.chmod(0o755)


def digests(root: Path) -> tuple[str, str, str]:
    layout = DatasetLayout(root)
    return dataset_fingerprint(root, layout.split), layout.training_digest(), layout.content


def test_digests_of_a_dataset_without_links_stay_as_they_are() -> None:
    fingerprint = "4a003b72aca89a9609c495fd5f19041b4d9e5daa57a54e6701ba6bcda439c0f5"
    training = "a0e762e84fbae18bb6268821a36a00eaa491c78ba6c9faf6412683b7b75fab2c"
    assert digests(golden_path("dataset_new_embodiment")) == (fingerprint, training, fingerprint)


@pytest.mark.parametrize("linked", ["data", "data/chunk-000", "videos/chunk-000", "data/chunk-000/{table}", "meta"])
def test_what_lies_behind_a_link_counts_in_every_digest(small_data: Path, tmp_path: Path, linked: str) -> None:
    copy = Path(shutil.copytree(small_data / "color_object" / "train", tmp_path / "train"))
    place = copy / linked.format(table="episode_000001.parquet")
    plain = digests(copy)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    (copy / "data" / "back").symlink_to(copy)
    assert digests(copy) == plain
    target = next(p for p in [place, *sorted(place.rglob("*"))] if p.is_file() and p.name != "split.json")
    target.write_bytes(target.read_bytes() + b" ")
    assert all(now != before for now, before in zip(digests(copy), plain, strict=True))


def test_files_that_templates_name_outside_the_usual_folders_are_content(small_data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_data / "color_object" / "train", tmp_path / "train"))
    (copy / "videos").rename(copy / "clips")
    info = copy / "meta" / "info.json"
    info.write_text(info.read_text().replace('"videos/', '"clips/'))
    before = DatasetLayout(copy).content
    video = DatasetLayout(copy).video_path(0, "image")
    video.write_bytes(video.read_bytes() + b" ")
    assert DatasetLayout(copy).content != before


def test_an_empty_line_ends_no_list(small_data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_data / "color_object" / "train", tmp_path / "train"))
    whole = DatasetLayout(copy).episodes
    path = copy / "meta" / "episodes.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, "", "  ", *rest, ""]) + "\n")
    assert DatasetLayout(copy).episodes == whole and len(whole) == 5


def test_a_group_that_modality_json_lacks_gets_the_nearest_name(small_data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_data / "color_object" / "train", tmp_path / "train"))
    modality = json.loads((copy / "meta" / "modality.json").read_text())
    modality["state"]["arms"] = modality["state"].pop("arm")
    (copy / "meta" / "modality.json").write_text(json.dumps(modality))
    with pytest.raises(ToolkitError, match=r'no state group "arm".*Did you mean "arms"'):
        StepReader(copy, MODALITY_CONFIG)


def test_tables_that_disagree_with_episodes_jsonl_are_refused(small_data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_data / "color_object" / "train", tmp_path / "train"))
    path = copy / "meta" / "episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 20', '"length": 19', 1))
    with pytest.raises(ToolkitError, match="rows"):
        StepReader(copy, MODALITY_CONFIG)


def copied(small_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_data / "color_object" / "train", tmp_path / "train"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_held_out_episodes_decide_the_training_digest(small_data: Path, tmp_path: Path) -> None:
    copy = copied(small_data, tmp_path)
    before = DatasetLayout(copy).training_digest()
    edit(copy / "meta/split.json", lambda split: split.update(instruction="told otherwise"))
    assert DatasetLayout(copy).training_digest() == before
    edit(copy / "meta/split.json", lambda split: split.update(val_episodes=[0]))
    assert DatasetLayout(copy).training_digest() != before


def test_a_held_out_episode_that_is_not_there_is_refused(small_data: Path, tmp_path: Path) -> None:
    copy = copied(small_data, tmp_path)
    edit(copy / "meta/split.json", lambda split: split.update(val_episodes=[1, 9]))
    with pytest.raises(ToolkitError, match="no episode 9"):
        DatasetLayout(copy).train_episodes  # noqa: B018


def test_episodes_are_read_in_the_order_of_their_index(small_data: Path, tmp_path: Path) -> None:
    copy = copied(small_data, tmp_path)
    expected = StepReader(copy, MODALITY_CONFIG)
    path = copy / "meta/episodes.jsonl"
    path.write_text("\n\n".join(reversed(path.read_text().splitlines())) + "\n")
    turned = StepReader(copy, MODALITY_CONFIG)
    assert [e.length for e in turned.layout.episodes] == [20, 24, 18, 22, 20]
    assert np.array_equal(turned.trajectory("action", 1)["arm"], expected.trajectory("action", 1)["arm"])
    text = path.read_text()
    for old, new, message in (
        ('"length": 18', '"length": 0', "episode 2 has no frames"),
        ('"episode_index": 3', '"episode_index": 1', "names an episode twice"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ToolkitError, match=message):
            DatasetLayout(copy)


def test_actions_before_the_start_are_the_first_and_marked_missing(small_data: Path) -> None:
    action = dataclasses.replace(MODALITY_CONFIG["action"], delta_indices=[-2, -1, 0, 1])
    past = StepReader(small_data / "color_object" / "train", {**MODALITY_CONFIG, "action": action})
    step, recorded = past.step(0, 1), past.trajectory("action", 0)["arm"]
    assert step.action_valid is not None and step.action_valid.tolist() == [False, True, True, True]
    assert np.array_equal(step.actions["arm"], recorded[[0, 0, 1, 2]])


def test_a_history_of_frames_is_that_of_the_video(small_data: Path) -> None:
    video = dataclasses.replace(MODALITY_CONFIG["video"], delta_indices=[-3, 0])
    past = StepReader(small_data / "color_object" / "train", {**MODALITY_CONFIG, "video": video})
    plain = StepReader(small_data / "color_object" / "train", MODALITY_CONFIG)
    for frame, before in ((2, 0), (9, 6)):
        for camera, images in past.step(1, frame).images.items():
            assert np.array_equal(images[0], plain.step(1, before).images[camera][0])
            assert np.array_equal(images[1], plain.step(1, frame).images[camera][0])


def test_an_instruction_may_change_within_an_episode(small_data: Path, tmp_path: Path) -> None:
    copy = copied(small_data, tmp_path)
    table = DatasetLayout(copy).parquet_path(1)
    rows = pq.read_table(table)
    column = "annotation.human.task_description"
    tasks = pa.array([0] * 10 + [1] * (rows.num_rows - 10), pa.int64())
    pq.write_table(rows.set_column(rows.schema.get_field_index(column), column, tasks), table)
    with (copy / "meta/tasks.jsonl").open("a") as file:
        file.write('{"task_index": 1, "task": "a second text"}\n')
    reader = StepReader(copy, MODALITY_CONFIG)
    first = reader.layout.tasks[0]
    assert [reader.step(1, frame, images=False).text for frame in (9, 10)] == [first, "a second text"]
    assert reader.instructions([0, 1]) == sorted([first, "a second text"]) and reader.instructions([0]) == [first]


@pytest.mark.parametrize("said", [float("nan"), 0.5, -1.0])
def test_an_index_that_is_no_task_is_refused(said: float, small_data: Path, tmp_path: Path) -> None:
    copy, column = copied(small_data, tmp_path), "annotation.human.task_description"
    for table in sorted(copy.glob("data/*/*.parquet")):
        rows = pq.read_table(table)
        tasks = pa.array([0.0] * 9 + [said] + [0.0] * (rows.num_rows - 10), pa.float64())
        pq.write_table(rows.set_column(rows.schema.get_field_index(column), column, tasks), table)
    reader = StepReader(copy, MODALITY_CONFIG)
    assert reader.instruction(1, 8) == reader.layout.tasks[0]
    with pytest.raises(ToolkitError, match=f"{copy}: episode 1: task_index is {said}; it must be a whole number"):
        reader.instruction(1, 9)


def test_rows_are_asked_for_within_an_episode(reader: StepReader) -> None:
    length = reader.layout.episode(1).length
    assert len(reader._tables.rows("action", 1, np.array([0, length - 1]))) == 2
    for frame in (-1, length):
        with pytest.raises(IndexError):
            reader._tables.rows("action", 1, np.array([0, frame]))


def test_groups_that_reach_beyond_their_column_are_refused(small_data: Path, tmp_path: Path) -> None:
    copy = copied(small_data, tmp_path)
    edit(copy / "meta/modality.json", lambda modality: modality["action"]["gripper"].update(end=9))
    with pytest.raises(ToolkitError, match=r'action "gripper" ends at 9.*has 8 values'):
        StepReader(copy, MODALITY_CONFIG)


def test_an_empty_video_is_found_before_training(small_data: Path, tmp_path: Path) -> None:
    copy = copied(small_data, tmp_path)
    DatasetLayout(copy).video_path(3, "wrist_image").write_bytes(b"")
    with pytest.raises(ToolkitError, match="1 of 10 videos are missing or empty"):
        StepReader(copy, MODALITY_CONFIG)


def test_relative_statistics_do_not_depend_on_the_order_of_groups(small_data: Path) -> None:
    root = small_data / "color_object" / "train"
    turned = dataclasses.replace(MODALITY_CONFIG["state"], modality_keys=["gripper", "arm"])
    found = StepReader(root, {**MODALITY_CONFIG, "state": turned})
    computed = found.relative_statistics(found.layout.train_episodes, "mask")
    for name, values in found.layout.relative_statistics()["arm"].items():
        np.testing.assert_allclose(computed["arm"][name], values, rtol=0, atol=1e-12)


def test_a_samples_time_is_one_less_beta_times_its_bound(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    key, many = SampleKey(0, 0, 0), {"augment": False, "noise_draws": 4000}
    times = dataset(reader, processor, **many)[key]["time"]
    assert abs(times.mean() - 0.4 * 0.999) < 0.02  # of Beta(1.5, 1) the mean is 0.6
    scaled = dataset(reader, processor, noise_s=0.5, **many)[key]["time"]
    np.testing.assert_allclose(scaled, times * (0.5 / 0.999), rtol=1e-5)
    even = dataset(reader, processor, noise_beta=(1.0, 1.0), **many)[key]["time"]
    assert abs(even.mean() - 0.5 * 0.999) < 0.02


def test_without_augmentation_images_are_those_of_evaluation(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    plain = processor.encode_vlm(reader.step(*dataset(reader, processor).start(5)), TAG)["images"]
    for views in (None, 2):
        samples = dataset(reader, processor, augment=False, views=views)
        assert np.array_equal(samples[SampleKey(5, 3, 1)]["images"], plain)
    assert not np.array_equal(dataset(reader, processor)[SampleKey(5, 3, 1)]["images"], plain)


def test_a_view_of_a_frame_has_one_look_of_its_own(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    samples, other = dataset(reader, processor, views=2), dataset(reader, processor, views=2, seed=8)
    looks = [s._look(index, view) for s in (samples, other) for index in (3, 4) for view in (0, 1)]
    assert len(set(looks)) == 8 and samples._look(3, 1) == looks[1]
    for step in range(6):
        key = SampleKey(3, step, 0)
        view, look = samples._augmentation(key)
        assert look == samples._look(3, view)


def test_a_batch_is_padded_to_the_longest_prompt_of_all(reader: StepReader, processor: Gr00tN1d7Processor) -> None:
    samples = dataset(reader, processor, augment=False)
    longest = samples.prompts.shape[1]
    samples.prompts = np.zeros((1, longest + 3), np.int64)
    batch = samples.collate([samples[SampleKey(i, 0, i)] for i in range(2)])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, longest + 3)
    assert batch["attention_mask"].sum(dim=1).tolist() == [longest] * 2
