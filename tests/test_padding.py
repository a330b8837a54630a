"""Neither padding nor the other samples of a batch change a loss or an action, whoever asks for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished import finished_checkpoint
from golden_files import CARRIED, load
from parity.measure import inputs_of
from torch import Tensor
from torch.nn import functional as F

from conflict_panda_config import MODALITY_CONFIG
from finetune.open_loop.predictions import Predictor
from gr00t.data.dataset import SampleSettings, TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor, Step
from gr00t.data.sampler import SampleKey
from gr00t.data.step_reader import StepReader
from gr00t.model.config import Gr00tN1d7Config
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

pytestmark = pytest.mark.usefixtures("kernels")

H50 = CARRIED / "tiny_h50"
BOUNDS = {torch.float64: 1e-10, torch.float32: 5e-6}  # of normalised actions
LONG = "Please pick up the one object on the table whose colour is the colour of the plate on the left."
VL_WITH_POSITIONS = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 16, "dropout": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "self-attention over the tokens": {},
    "plain DiT": {"use_alternate_vl_dit": False},
    "plain DiT alone": {"use_alternate_vl_dit": False, "vl_self_attention_cfg": None},
    "sinusoidal positions": {"vl_self_attention_cfg": VL_WITH_POSITIONS},
}
per_image = ("images", "image_grid_thw")


def model_of(variant: str, dtype: torch.dtype) -> Gr00tN1d7:
    """The golden checkpoint, or random weights in its shape with some parts exchanged."""
    model = Gr00tN1d7.from_pretrained(H50, dtype=dtype)
    if not VARIANTS[variant]:
        return model
    torch.manual_seed(0)
    config = Gr00tN1d7Config.from_dict(model.config.to_dict() | VARIANTS[variant])
    return Gr00tN1d7(config, model.backbone_config).to(dtype).eval()


def batch_of(model: Gr00tN1d7) -> dict[str, Tensor]:
    """The golden batch: two samples whose prompts have 154 and 143 tokens; with actions and draws to train on."""
    batch = inputs_of(load(CARRIED / "infer_tiny_h50__new_embodiment.npz"))
    dtype, config = model.dtype, model.config
    shape = (2, config.action_horizon, config.max_action_dim)
    rng = torch.Generator().manual_seed(1)
    for name in ("action", "noise"):
        batch[name] = torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
    batch |= {"action_mask": torch.ones(shape, dtype=dtype), "time": torch.tensor([0.3, 0.8], dtype=dtype)}
    return batch | {"state": batch["state"].to(dtype)}


def alone(batch: dict[str, Tensor], row: int, padding: int = 0) -> dict[str, Tensor]:
    """One sample of the batch with so many tokens of padding before its prompt."""
    length = int(batch["attention_mask"][row].sum())
    images = len(batch["images"]) // 2
    found = {n: t[row * images : (row + 1) * images] if n in per_image else t[row : row + 1] for n, t in batch.items()}
    for name in ("input_ids", "attention_mask"):
        found[name] = F.pad(found[name][:, -length:], (padding, 0))
    return found


def actions(model: Gr00tN1d7, batch: dict[str, Tensor]) -> Tensor:
    return model.get_action(batch, noise=batch["noise"])


def losses(model: Gr00tN1d7, batch: dict[str, Tensor]) -> Tensor:
    """(B,), in training; the golden checkpoint and the variants have no dropout."""
    found = model.train()(batch).action_loss.detach().mean(dim=(1, 2))
    model.eval()
    return found


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_neither_actions_nor_losses(variant: str, dtype: torch.dtype) -> None:
    model = model_of(variant, dtype)
    batch = batch_of(model)
    for ask in (actions, losses):
        wanted = ask(model, alone(batch, 1))
        for padding in (1, 2, 16, 200):
            assert apart(ask(model, alone(batch, 1, padding)), wanted) <= BOUNDS[dtype], (ask.__name__, padding)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_longer_prompt_beside_it_changes_no_sample(variant: str, dtype: torch.dtype) -> None:
    model = model_of(variant, dtype)
    batch = batch_of(model)
    for ask in (actions, losses):
        together = ask(model, batch)
        for row in range(2):
            assert apart(together[row], ask(model, alone(batch, row))[0]) <= BOUNDS[dtype], ask.__name__


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_switch_brings_the_originals_leak_back(variant: str) -> None:
    model = model_of(variant, torch.float64)
    batch = batch_of(model)
    model.action_head.padding_leaks = True
    assert apart(actions(model, alone(batch, 1, 16)), actions(model, alone(batch, 1))) > 1e-5


# whoever asks


@pytest.fixture(scope="module")
def checkpoint(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "Qwen").symlink_to(CARRIED / "Qwen")
    return finished_checkpoint(H50, small_data, folder / "done")


@pytest.fixture
def reader(small_data: Path, tmp_path: Path) -> StepReader:
    """The dataset with a second, longer instruction in its last training episode and in a held-out one."""
    reader = StepReader(
        Path(shutil.copytree(small_data / "color_object" / "train", tmp_path / "train")), MODALITY_CONFIG
    )
    reader.layout.tasks[7] = LONG
    column = reader._tables._columns[reader._text_column].copy()
    for episode in (reader.layout.train_episodes[-1], reader.layout.val_episodes[-1]):
        start, end = reader._tables._span[episode]
        column[start:end] = 7
    reader._tables._columns[reader._text_column] = column
    return reader


def test_a_policy_gives_each_of_a_batch_what_it_gets_alone(checkpoint: Path, reader: StepReader) -> None:
    policy = GR00TPolicy.from_pretrained(checkpoint, torch_dtype="float32")
    steps: list[Step] = [reader.step(reader.layout.train_episodes[place], 3) for place in (0, -1)]
    assert steps[1].text == LONG != steps[0].text
    together = policy.predict(steps, seed=[4, 5])
    for place, step in enumerate(steps):
        for group, values in policy.predict([step], seed=[4 + place]).items():
            assert np.abs(together[group][place] - values[0]).max() < 5e-6


def test_predictions_do_not_depend_on_the_batch(checkpoint: Path, reader: StepReader) -> None:
    policy = GR00TPolicy.from_pretrained(checkpoint, torch_dtype="float32")

    def predicted(size: int, seed: int = 3) -> np.ndarray:
        episodes = reader.layout.val_episodes
        predictor = Predictor(policy.model, policy.processor, policy.tag, reader, episodes, seed, size)
        found = predictor.chunks()
        assert found is not None and set(found) == set(episodes)
        return np.concatenate([chunks["arm"] for chunks in found.values()])

    small, large = predicted(3), predicted(64)
    assert np.isfinite(small).all() and np.abs(small - large).max() < 5e-6
    assert np.abs(small - predicted(64, seed=4)).max() > 1e-3


def test_a_training_sample_has_the_loss_it_has_without_padding(checkpoint: Path, reader: StepReader) -> None:
    processor = Gr00tN1d7Processor.from_pretrained(checkpoint)
    dataset = TrainingDataset(reader, processor, "new_embodiment", SampleSettings(seed=1, augment=False))
    sample = dataset[SampleKey(0, 0, 0)]
    padded, bare = dataset.collate([sample]), processor.collate([sample])
    assert padded["input_ids"].shape[1] > bare["input_ids"].shape[1]
    model = Gr00tN1d7.from_pretrained(checkpoint, dtype=torch.float32)
    batch = {**padded, **bare, "noise": padded["noise"], "time": padded["time"]}
    assert apart(losses(model, padded), losses(model, batch)) < 5e-6
