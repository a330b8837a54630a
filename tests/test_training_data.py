"""From a configuration to the samples of a process: settings, order, evaluated frames, what the first batch shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from config_calls import compose

from conflict_panda_config import MODALITY_CONFIG
from finetune.open_loop.predictions import Errors, Section
from finetune.recipe import FinetuneConfig
from finetune.training import first_batch
from finetune.training.caches import store_identity
from finetune.training.dataloader import (
    answered,
    build_dataset,
    build_loader,
    build_processor,
    training_order,
    worker_errors,
)
from finetune.training.engine import Engine
from finetune.training.metrics import Meter, Validation, _acting, _values, action_groups, held_out
from finetune.training.run_folder import describe_dataset, describe_datasets, mirror_processor
from finetune.training.stopping import AttemptToken, ThisAttempt
from gr00t.data.dataset import Mixture, TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import SampleKey
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.model.config import Gr00tN1d7Config
from gr00t.model.gr00t_n1d7 import Gr00tN1d7


def settings(*more: str) -> FinetuneConfig:
    return compose("finetune", "model=tiny", "device=cpu", "engine=single", "train.num_workers=0", *more)


@pytest.fixture(scope="module")
def reader(small_data: Path) -> StepReader:
    return StepReader(small_data / "color_object/train", MODALITY_CONFIG)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Gr00tN1d7Processor:
    return Gr00tN1d7Processor.from_pretrained(tiny_base)


def dataset_of(reader: StepReader, base: Gr00tN1d7Processor, config: FinetuneConfig) -> TrainingDataset:
    return build_dataset(reader, build_processor(base, reader, config), Gr00tN1d7Config(), config)


def test_the_processor_augments_as_the_configuration_says(reader: StepReader, base: Gr00tN1d7Processor) -> None:
    more = ("augment.crop_fraction=0.8", "augment.random_rotation_angle=7", "augment.state_dropout=0.3")
    found = build_processor(base, reader, settings(*more)).config
    side = base.images.side
    assert (found.crop_fraction, found.random_rotation_angle, found.state_dropout_prob) == (0.8, 7, 0.3)
    assert found.shortest_image_edge == side and list(found.image_target_size) == [side] * 2
    assert list(found.image_crop_size) == [int(0.8 * side)] * 2
    assert found.color_jitter_params == {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "hue": 0.08}
    assert build_processor(base, reader, settings("augment=none")).config.color_jitter_params is None


def test_samples_are_drawn_as_configuration_and_model_say(reader: StepReader, base: Gr00tN1d7Processor) -> None:
    more = ("train.seed=5", "augment.views=3", "augment.state_dropout=0.25", "train.noise_draws=2", "dataset.tail=drop")
    config = settings(*more)
    model = Gr00tN1d7Config(noise_beta_alpha=2.5, noise_beta_beta=0.5, noise_s=0.9)
    found = build_dataset(reader, build_processor(base, reader, config), model, config).settings
    assert (found.seed, found.views, found.state_dropout, found.noise_draws, found.tail) == (5, 3, 0.25, 2, "drop")
    assert found.noise_beta == (2.5, 0.5) and found.noise_s == 0.9 and found.augment


def test_early_frames_come_as_often_as_is_asked(reader: StepReader, base: Gr00tN1d7Processor) -> None:
    config = settings("train.early_draws=3", "train.early_frames=2", "train.global_batch_size=4")
    dataset = dataset_of(reader, base, config)
    early = {i for i in range(len(dataset)) if dataset.start(i)[1] < 2}
    order, size = training_order(dataset, config), len(dataset) + 2 * len(early)
    assert len(early) == 2 * len(reader.layout.train_episodes)
    drawn = Counter(order.key(n // 4, n % 4).index for n in range(size))
    assert drawn == {i: 3 if i in early else 1 for i in range(len(dataset))}
    plain = training_order(dataset, settings("train.global_batch_size=4"))
    assert {plain.key(n // 4, n % 4).index for n in range(len(dataset))} == set(range(len(dataset)))


@pytest.mark.parametrize("micro, size, parts", [("null", 4, 1), ("1", 1, 4)])
def test_a_process_loads_its_own_part_of_the_steps_that_are_left(
    micro: str, size: int, parts: int, reader: StepReader, base: Gr00tN1d7Processor
) -> None:
    more = (f"train.micro_batch_size={micro}", "train.global_batch_size=8", "train.max_steps=5")
    config = settings(*more)
    engine: Any = SimpleNamespace(rank=1, world_size=2, device=torch.device("cpu"))
    _, sampler = build_loader(dataset_of(reader, base, config), config, engine, 3)
    found = [[(key.step, key.position) for key in batch] for batch in sampler]
    assert {len(batch) for batch in found} == {size} and sampler.accumulation == parts
    own = [4, 5, 6, 7] if size == 4 else [1, 3, 5, 7]
    assert [place for batch in found for place in batch] == [(step, place) for step in (3, 4) for place in own]


@pytest.mark.parametrize(
    "error, said",
    [
        (RuntimeError("DataLoader timed out after 9 seconds"), "loading data"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "memory has run out"),
        (
            ToolkitError("Caught ToolkitError in worker.\nTraceback: x\ngr00t.errors.ToolkitError: it is torn"),
            r"^it is torn$",
        ),
    ],
)
def test_what_a_loader_process_says_becomes_one_line(error: Exception, said: str) -> None:
    with pytest.raises(ToolkitError, match=said), worker_errors():
        raise error
    with pytest.raises(RuntimeError, match="CUDA"), worker_errors():
        raise RuntimeError("CUDA error")
    assert list(answered([1, 0, 2])) == [1, 0, 2]


# evaluation during training


def test_the_first_held_out_episodes_are_evaluated_as_they_are(reader: StepReader, base: Gr00tN1d7Processor) -> None:
    config = settings("train.eval_steps=2", "train.eval_episodes=1", "train.seed=9")
    training = dataset_of(reader, base, config)
    training.reader.frame_store = stored = object()  # type: ignore[assignment]
    try:
        found = held_out(config, training)
    finally:
        training.reader.frame_store = None
    assert found is not None and found.episodes == [reader.layout.val_episodes[:1]]
    assert not found.settings.augment and found.settings.seed == 9
    assert found.reader is not training.reader and found.reader.frame_store is stored
    assert len(held_out(settings("train.eval_steps=2"), training).episodes[0]) == 2  # type: ignore[union-attr]
    assert held_out(settings(), training) is None


def test_a_dataset_that_holds_nothing_out_cannot_be_evaluated_on(
    reader: StepReader, base: Gr00tN1d7Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("train.eval_steps=2")
    training = dataset_of(reader, base, config)
    monkeypatch.setattr(type(reader.layout), "val_episodes", [])
    with pytest.raises(ToolkitError, match="holds no val episodes"):
        held_out(config, training)


def test_the_model_acts_for_an_evaluation_and_trains_again_whatever_happens(tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base).train()
    with pytest.raises(ValueError), _acting(model):
        assert not model.action_head.training
        raise ValueError
    assert model.action_head.training


def errors(mae: float, wrong: float | None = None) -> Errors:
    return Errors(mae, 0.0, [], [], wrong)


def test_errors_are_named_by_group_section_and_baseline() -> None:
    def of(scale: float) -> Section:
        arm = {"policy": errors(scale), "hold_still": errors(2 * scale), "mean_chunk": errors(3 * scale)}
        gripper = {
            "policy": errors(4 * scale, 0.0),
            "hold_still": errors(5 * scale, 1.0),
            "mean_chunk": errors(6 * scale, 1.0),
        }
        return Section(1, 1, {"arm": arm, "gripper": gripper})

    assert _values({"all": of(1), "last": of(10)}) == {
        **{"val/arm_mae": 1, "val/arm_mae_hold_still": 2, "val/arm_mae_mean_chunk": 3, "val/arm_mae_last": 10},
        **{"val/gripper_mae": 4, "val/gripper_mae_hold_still": 5, "val/gripper_mae_mean_chunk": 6},
        **{"val/gripper_mae_last": 40, "val/gripper_wrong_signs": 0, "val/gripper_wrong_signs_last": 0},
    }


def test_an_evaluation_uses_batches_as_large_as_training() -> None:
    for more, world, size in ((("train.micro_batch_size=2",), 2, 2), ((), 2, 4)):
        config = settings("train.global_batch_size=8", *more)
        engine: Any = SimpleNamespace(world_size=world)
        assert Validation(SimpleNamespace(config=config, engine=engine), None, None).batch_size == size  # type: ignore[arg-type]


# the first batch


def test_the_first_batch_shows_four_samples_with_their_own_images_and_recorded_steps(
    reader: StepReader, base: Gr00tN1d7Processor
) -> None:
    dataset = dataset_of(reader, base, settings())
    episode = reader.layout.train_episodes[0]
    length = reader.layout.episode(episode).length
    keys = [SampleKey(index, 0, place) for place, index in enumerate((3, length - 2, 0, 7, 9))]
    batch = dataset.collate([dataset[key] for key in keys])
    seen = first_batch.look(dataset, keys, batch)
    assert [sample.place for sample in seen] == [f"episode {episode}, frame {t}" for t in (3, length - 2, 0, 7)]
    for key, sample in zip(keys, seen, strict=False):
        assert np.array_equal(sample.images, dataset.images(key)) and len(sample.images) == 2
        there = min(16, length - dataset.start(key.index)[1])
        assert {len(values) for values in (*sample.decoded.values(), *sample.recorded.values())} == {there}
    without = {name: tensor for name, tensor in batch.items() if name != "images"}
    for one, other in zip(seen, first_batch.look(dataset, keys, without), strict=True):
        assert np.array_equal(one.images, other.images)
    assert max(first_batch.differences(seen).values()) < 1e-5
    seen[2].recorded["arm"][1, 0] += 0.5
    assert first_batch.differences(seen)["arm"] == pytest.approx(0.5, abs=1e-5)
    assert first_batch.differences(seen)["gripper"] < 1e-5


# cached features


def test_all_that_decides_a_row_of_features_names_its_folder(
    reader: StepReader, base: Gr00tN1d7Processor, tiny_base: Path
) -> None:
    model, config = Gr00tN1d7.from_pretrained(tiny_base), settings("augment.views=2")
    dataset, engine = dataset_of(reader, base, config), Engine(config)

    def named(of: TrainingDataset = dataset, with_: FinetuneConfig = config, base_is: str = "b") -> dict[str, Any]:
        return store_identity(ThisAttempt(with_, engine, AttemptToken(tiny_base)), model, of, base_is)

    def other(**changes: Any) -> TrainingDataset:
        found = dataset_of(reader, base, config)
        found.settings = replace(found.settings, **changes)
        return found

    first = named()
    assert first == named()
    rotated = dataset_of(reader, base, settings("augment.views=2", "augment.random_rotation_angle=3"))
    episodes = TrainingDataset(reader, dataset.processor, dataset.tag, dataset.settings, [0])
    changed = {
        "base": named(base_is="c"),
        "seed": named(with_=settings("augment.views=2", "train.seed=43")),
        "views": named(other(views=3)),
        "augment": named(other(augment=False)),
        "images": named(rotated),
        "episodes": named(episodes),
    }
    for key, found in changed.items():
        assert [name for name in found | first if found.get(name) != first.get(name)] == [key]
    assert named(other(tail="drop")) == first | {"tail": "drop", "actions": [*range(16)]}  # which then says what starts
    engine.dtype = torch.bfloat16
    assert named() == first | {"dtype": "bfloat16"}
    dataset.prompts[0, -1] += 1
    assert {k for k, v in named().items() if v != first[k]} == {"dtype", "prompts"}


# what the finished checkpoint says


def test_a_dataset_is_described_by_its_counts(reader: StepReader) -> None:
    found = describe_dataset(reader.layout)
    lengths = dict(enumerate([20, 24, 18, 22, 20]))
    assert found["episodes"] == 5 and found["frames"] == 104 and found["fps"] == 20
    assert found["val_episodes"] == reader.layout.val_episodes and len(found["val_episodes"]) == 2
    assert found["train_episodes"] == [e for e in lengths if e not in found["val_episodes"]]
    assert found["train_frames"] == sum(lengths[e] for e in found["train_episodes"])
    assert found["instructions"] == ["pick up the color-matching object"]
    assert describe_datasets(Mixture([reader])) == found
    both = Mixture([reader, reader], [3.0, 1.0])
    mixed = describe_datasets(both)
    assert [part.pop("share") for part in mixed["mixture"]] == [0.75, 0.25] and mixed["mixture"] == [found, found]
    assert (mixed["fingerprint"], mixed["fps"]) == (both.fingerprint, 20)


def test_config_json_repeats_what_the_processor_does(
    reader: StepReader, base: Gr00tN1d7Processor, tiny_base: Path
) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    processor = build_processor(base, reader, settings("augment.crop_fraction=0.8")).with_config(
        use_albumentations=False
    )
    name = model.config.model_name
    mirror_processor(model, processor)
    assert model.config.crop_fraction == 0.8 and model.config.use_albumentations_transforms is False
    assert model.config.state_dropout_prob == processor.config.state_dropout_prob
    assert (model.config.model_name, model.config.model_type) == (name, "Gr00tN1d7")


# what is measured


def test_groups_of_actions_lie_behind_each_other_in_the_order_of_the_robots_file(
    reader: StepReader, base: Gr00tN1d7Processor
) -> None:
    processor = build_processor(base, reader, settings())
    assert action_groups(processor, "new_embodiment") == {"arm": slice(0, 7), "gripper": slice(7, 8)}


def test_each_of_several_processes_takes_its_own_sums_over() -> None:
    added: list[torch.Tensor] = []
    engine: Any = SimpleNamespace(
        world_size=2,
        rank=1,
        is_main=False,
        device=torch.device("cpu"),
        part_norms={},
        sum=lambda t: (added.append(t), t)[1],
    )
    meter = Meter({"arm": slice(0, 2), "gripper": slice(2, 3)}, ["projector"], engine)
    rows = [[2.0, 3.0, 4.0, 6.0, 5.0, 2.0, 7.0], [1.0, 8.0, 9.0, 10.0, 5.0, 2.0, 7.0]]
    meter.restore(rows)
    assert meter.state() == [[0.0] * 7, rows[1]]
