"""A policy that listens: instructions left out of training samples, and actions that follow what was said further than
what was trained."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished import finished_checkpoint
from golden_files import golden_path
from test_policy import observation, same
from test_training import config as training_config

from conflict_panda_config import MODALITY_CONFIG
from finetune.open_loop.evaluation import evaluate_open_loop
from finetune.open_loop.predictions import Predictor
from finetune.recipe.recipe_identity import differences, recipe
from finetune.training import first_batch
from finetune.training.caches import use_cached_features
from finetune.training.dataloader import build_dataset, build_processor
from finetune.training.engine import Engine
from finetune.training.stopping import AttemptToken, ThisAttempt
from gr00t.data.dataset import TrainingDataset
from gr00t.data.processor import NO_INSTRUCTION, Gr00tN1d7Processor, read_observation
from gr00t.data.sampler import MicroBatchSampler, SampleKey, Stream, TrainingOrder, generator
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1 import GR00TPolicy, without_instructions
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.serve import _load, read_options
from simulation.closed_loop_evaluation import _checkpoint_policy
from toolkit.configuration import load

TINY = golden_path("tiny_h40")


def samples(data: Path, base: Path, *more: str) -> TrainingDataset:
    config = training_config(Path("unused"), data, base, *more)
    reader = StepReader(data / "color_object" / "train", MODALITY_CONFIG)
    processor = build_processor(Gr00tN1d7Processor.from_pretrained(base), reader, config)
    return build_dataset(reader, processor, Gr00tN1d7.from_pretrained(base).config, config)


# -- instructions that are left out ------------------------------------------------------------------------------------


def test_the_share_of_samples_that_is_asked_for_has_no_instruction(small_data: Path, tiny_base: Path) -> None:
    dataset = samples(small_data, tiny_base, "augment.instruction_dropout=0.3")
    usual = samples(small_data, tiny_base)
    keys = [SampleKey(step, step, position) for step, position in np.ndindex(30, 40)]
    silent = [key for key in keys if dataset.is_silent(key)]
    assert abs(len(silent) - 360) < 4 * math.sqrt(1200 * 0.3 * 0.7)
    assert not any(usual.is_silent(key) for key in keys)
    shown = [silent[0], next(key for key in keys if not dataset.is_silent(key))]
    figure = first_batch.look(dataset, shown, dataset.collate([dataset[key] for key in shown]))
    assert [sample.text for sample in figure] == ["(no instruction)", dataset.step(shown[1].index).text]
    nothing = dataset.processor.encode_text(NO_INSTRUCTION, 2)
    for key in keys[:8]:
        sample, without = dataset[key], usual[key]
        assert without["text"] != nothing and "color" not in nothing
        assert sample["text"] == (nothing if key in silent else without["text"])
        assert all(np.array_equal(sample[name], without[name]) for name in sample if name != "text")
    assert 0 < sum(key in silent for key in keys[:8]) < 8


def test_which_samples_say_nothing_does_not_depend_on_the_processes(small_data: Path, tiny_base: Path) -> None:
    dataset = samples(small_data, tiny_base, "augment.instruction_dropout=0.5")
    order = TrainingOrder(len(dataset), 12, seed=1)

    def silent(processes: int, micro: int) -> dict[SampleKey, bool]:
        samplers = [
            MicroBatchSampler(order, micro, rank=rank, world_size=processes, first_step=2, last_step=6)
            for rank in range(processes)
        ]
        return {key: dataset.is_silent(key) for sampler in samplers for batch in sampler for key in batch}

    alone = silent(1, 12)
    assert alone == silent(3, 2) and len(alone) == 48 and {*alone.values()} == {True, False}
    assert len({tuple(alone[key] for key in alone if key.step == step) for step in range(2, 6)}) > 1


def test_cached_features_know_each_view_with_and_without_instruction(
    small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    more = ["augment.views=1", "augment.instruction_dropout=0.5", "train.features=cached"]
    config = training_config(tmp_path, small_data, tiny_base, *more, f"cache_dir={tmp_path}/cache")
    dataset, model = samples(small_data, tiny_base, *more), Gr00tN1d7.from_pretrained(tiny_base)
    keys = [SampleKey(index, 0, index) for index in range(6)]
    live = dataset.collate([dataset[key] for key in keys])
    expected = model.features(live)
    use_cached_features(ThisAttempt(config, Engine(config), AttemptToken(tmp_path)), model, [dataset], "base")
    assert dataset.feature_store is not None and dataset.feature_store.rows == 2 * len(dataset)
    cached = dataset.collate([dataset[key] for key in keys])
    lengths = cached["attention_mask"].sum(1)
    assert torch.equal(cached["attention_mask"], expected.attention_mask)
    assert {*(lengths == lengths.min()).tolist()} == {True, False}  # some were asked for something, some were not
    assert torch.allclose(cached["features"], expected.features, rtol=1e-4, atol=1e-5)


def test_runs_of_before_said_every_instruction(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    def made_of(*more: str) -> dict[str, Any]:
        return recipe(dataclasses.asdict(training_config(tmp_path, small_data, tiny_base, *more)))

    before = made_of()
    del before["augment"]["instruction_dropout"]
    assert differences(before, made_of()) == []
    changed = differences(before, made_of("augment.instruction_dropout=0.1"))
    assert changed == ["augment.instruction_dropout: 0.0 there, 0.1 now"]


# -- guidance ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy() -> GR00TPolicy:
    return GR00TPolicy.from_pretrained(TINY, modality_config=MODALITY_CONFIG, torch_dtype=torch.float32)


def guided(policy: GR00TPolicy, guidance: float, steps: int | None = None) -> GR00TPolicy:
    return GR00TPolicy(policy.model, policy.processor, denoising_steps=steps, guidance=guidance)


def test_a_guidance_of_one_is_the_ordinary_path_bit_for_bit(policy: GR00TPolicy) -> None:
    passes: list[int] = []
    hook = policy.model.backbone.register_forward_pre_hook(lambda _, given: passes.append(len(given[0]["input_ids"])))
    usual = policy.get_action(observation(2), seed=5)
    assert same(usual, guided(policy, 1.0).get_action(observation(2), seed=5)) and passes == [2, 2]
    assert not same(usual, guided(policy, 2.0).get_action(observation(2), seed=5)) and passes[2:] == [4]
    hook.remove()


def test_recorded_moments_are_predicted_as_the_policy_would_act(policy: GR00TPolicy, small_data: Path) -> None:
    reader, chosen = StepReader(small_data / "color_object" / "train", MODALITY_CONFIG), []
    for guidance in (1.0, 3.0):
        predictor = Predictor(policy.model, policy.processor, policy.tag, reader, [0], 7, 4, guidance=guidance)
        chosen.append(predictor._predict([(0, 0)], [0])["arm"])
        noise = generator(7, Stream.NOISE, 0, 0).standard_normal(policy.noise_shape, np.float32)
        acted = guided(policy, guidance).predict([reader.step(0, 0)], noise=torch.from_numpy(noise)[None])["arm"]
        assert np.allclose(chosen[-1], acted, atol=1e-5)
    assert not np.allclose(*chosen, atol=1e-3)


def test_without_guidance_it_acts_as_if_nothing_had_been_said(policy: GR00TPolicy) -> None:
    steps = read_observation(observation(2), policy.modality_configs, policy._state_dims)
    silent = policy.predict(without_instructions(steps), seed=[5, 6])
    none = guided(policy, 0.0).predict(steps, seed=[5, 6])
    assert all(np.allclose(none[group], silent[group], atol=1e-5) for group in silent)
    assert not all(np.allclose(policy.predict(steps, seed=[5, 6])[group], silent[group], atol=1e-3) for group in silent)


def test_guidance_moves_the_velocity_along_what_the_sentence_changes(policy: GR00TPolicy) -> None:
    steps = read_observation(observation(2), policy.modality_configs, policy._state_dims)
    noise = torch.randn(2, *policy.noise_shape)

    def moved(guidance: float) -> torch.Tensor:
        """In one step from the same noise."""
        asked = steps if guidance == 1 else [*steps, *without_instructions(steps)]
        batch = policy.processor.collate([policy.processor.encode(step, policy.tag) for step in asked])
        return policy.model.get_action(batch, denoising_steps=1, noise=noise, guidance=guidance) - noise

    unsaid, said = moved(0.0), moved(1.0)
    for guidance in (0.5, 2.0, 3.5):
        assert torch.allclose(moved(guidance), unsaid + guidance * (said - unsaid), atol=1e-4)
    assert (said - unsaid).abs().max() > 1e-2


def test_guided_samples_get_what_they_get_alone(policy: GR00TPolicy) -> None:
    strong, both = guided(policy, 3.0), observation(2)
    both["annotation.human.task_description"] = ["pick up the object", "lift it"]
    together = strong.get_action(both, seed=[5, 6])
    for row, seed in enumerate((5, 6)):
        alone = strong.get_action({name: value[row : row + 1] for name, value in both.items()}, seed=seed)
        assert all(np.allclose(together[name][row], alone[name][0], atol=1e-4) for name in alone)
    drawn = [strong.get_action(observation(2), generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert same(*drawn)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.5, "2", True, None])
def test_what_is_no_strength_is_refused_before_weights_are_read(wrong: Any) -> None:
    with pytest.raises(ToolkitError, match=r"guidance=.*a number of at least 0"):
        GR00TPolicy.from_pretrained(TINY, guidance=wrong)


def test_an_evaluation_takes_guidance_and_says_where_it_was_not_trained_for(
    small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    checkpoint = finished_checkpoint(tiny_base, small_data, tmp_path / "checkpoint")

    given = ["local=none", "split=color_object", f"checkpoint={checkpoint}", f"data_dir={small_data}", "device=cpu"]
    played = [*given, "mode=closed_loop", "guidance=3"]
    given += ["max_episodes=1", "denoising_steps=1", f"report_dir={tmp_path}/report"]
    report = evaluate_open_loop(load("evaluate", [*given, "guidance=3"]).chosen)
    assert report.info["guidance"] == 3
    unguided = evaluate_open_loop(load("evaluate", given).chosen)
    errors = [found.overall["all"].errors["arm"]["policy"].mae for found in (report, unguided)]
    assert errors[0] != errors[1]
    player, facts = _checkpoint_policy(load("evaluate", played).chosen)
    assert player.guidance == 3 == facts["guidance"]
    served = _load(read_options([f"checkpoint={checkpoint}", "guidance=3", "device=cpu"]))
    assert served.guidance == 3
    assert any("train with augment.instruction_dropout" in line for line in report.findings)
    (checkpoint / "experiment_cfg" / "config.yaml").write_text("augment: {instruction_dropout: 0.1}\n")
    assert load("evaluate", [*given, "guidance=3"]).note_on_guidance() is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["guidance=-1"], "guidance=-1"),
        (["guidance=nan"], "guidance=nan"),
        (["policy=expert", "render=none", "guidance=2"], "guidance=2 is for checkpoint=FOLDER"),
        (["server=localhost:5555", "guidance=2"], "guidance=2 is for checkpoint=FOLDER"),
    ],
)
def test_guidance_that_nobody_follows_is_refused(given: list[str], said: str) -> None:
    with pytest.raises(ToolkitError, match=said):
        load("evaluate", ["local=none", "split=color_object", "mode=closed_loop", *given])
