"""Cached features: the losses of live training, made once, resumable, checked, and without the backbone in memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import ROOT, losses, overrides, trained
from test_training import config as training_config

from conflict_panda_config import MODALITY_CONFIG
from finetune.recipe import FinetuneConfig
from finetune.training import caches as features
from finetune.training import train as loop
from finetune.training.dataloader import build_dataset, build_processor
from finetune.training.engine import Engine
from finetune.training.stopping import AttemptToken, ThisAttempt
from finetune.training.train import finetune
from gr00t.data.dataset import TrainingDataset
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import SampleKey
from gr00t.data.step_reader import StepReader
from gr00t.data.stored_arrays import FeatureStore
from gr00t.errors import ToolkitError
from gr00t.file_replacement import checksum_path, file_lock, write_checksum
from gr00t.model.checkpoint_folder import fingerprint
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.configuration import load

STEPS = 10


def config(out: Path, data: Path, base: Path, kind: str, cache: Path, *more: str) -> FinetuneConfig:
    chosen = ["augment.views=2", f"train.max_steps={STEPS}", "train.save_steps=5", "train.learning_rate=1e-4"]
    return training_config(out, data, base, *chosen, f"train.features={kind}", f"cache_dir={cache}", *more)


@pytest.fixture(scope="module")
def runs(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same ten steps live and cached, and the cache."""
    out = tmp_path_factory.mktemp("features")
    for kind in ("live", "cached"):
        finetune(config(out / kind, small_data, tiny_base, kind, out / "cache"))
    return {name: out / name for name in ("live", "cached", "cache")}


def store_folder(cache: Path) -> Path:
    return next(cache.glob("features-*"))


def test_losses_are_those_of_live_training(runs: dict[str, Path]) -> None:
    assert len(losses(runs["live"])) == STEPS
    assert losses(runs["cached"]) == pytest.approx(losses(runs["live"]), rel=1e-5)


def test_losses_agree_in_bf16(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    short = ("train.precision=bf16", "train.max_steps=2")
    for kind in ("live", "cached"):
        finetune(config(tmp_path / kind, small_data, tiny_base, kind, tmp_path / "cache", *short))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), rel=1e-2)
    file = next(store_folder(tmp_path / "cache").glob("rows-*"))
    assert load_file(file)["features"].dtype == torch.bfloat16


@pytest.mark.multiprocess
@pytest.mark.long
def test_two_processes_share_the_work(runs: dict[str, Path], small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    more = ["augment.views=2", "train.learning_rate=1e-4", "train.max_steps=10", "train.features=cached"]
    more += [f"cache_dir={tmp_path}/cache", "dataset.frames=store"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["launch_finetune_local.py", *overrides(tmp_path, small_data, tiny_base, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path) == pytest.approx(losses(runs["live"]), rel=1e-3)
    assert (tmp_path / "done" / "config.json").is_file()
    assert len(list(store_folder(tmp_path / "cache").glob("rows-*"))) == 2  # one from each


def test_the_finished_checkpoint_holds_the_backbone(runs: dict[str, Path]) -> None:
    live, cached = (Gr00tN1d7.from_pretrained(runs[kind] / "done").state_dict() for kind in ("live", "cached"))
    assert live.keys() == cached.keys()
    backbone = [name for name in live if name.startswith("backbone.")]
    assert backbone and all(torch.equal(live[name], cached[name]) for name in backbone)


def test_a_run_continues_with_the_other_kind(
    runs: dict[str, Path], small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    for before, after in (("live", "cached"), ("cached", "live"), ("cached", "cached")):
        out = tmp_path / f"{before}-{after}"
        shutil.copytree(runs[before] / "run" / "checkpoint-5", out / "run" / "checkpoint-5")
        finetune(config(out, small_data, tiny_base, after, runs["cache"]))
        expected = {step: loss for step, loss in losses(runs["live"]).items() if step > 5}
        assert losses(out) == pytest.approx(expected, rel=1e-5)
    there, here = trained(runs["cached"], STEPS), trained(tmp_path / "cached-cached", STEPS)
    assert all(torch.equal(there[name], here[name]) for name in there | here)


def test_the_backbone_leaves_memory(
    runs: dict[str, Path], small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    original = loop.TrainingLoop._step

    def step(training: Any, *arguments: Any) -> None:
        seen.append({p.device.type for p in training.model.backbone.parameters()})
        assert all(not name.startswith("backbone") for name, _ in training.engine.module.named_parameters())
        original(training, *arguments)

    monkeypatch.setattr(loop.TrainingLoop, "_step", step)
    finetune(config(tmp_path, small_data, tiny_base, "cached", runs["cache"], "train.max_steps=1"))
    assert seen == [{"meta"}]


def test_only_what_is_missing_is_computed(
    runs: dict[str, Path], small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gr00t.data.stored_arrays.ROWS_PER_FILE", 32)  # four files
    cache, written = tmp_path / "cache", []
    write = FeatureStore.write

    def killed_at_the_third(store: FeatureStore, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(store, path, tensors)
        written.append(path.name)

    monkeypatch.setattr(FeatureStore, "write", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        finetune(config(tmp_path, small_data, tiny_base, "cached", cache, "train.max_steps=1"))
    kept = {path.name for path in store_folder(cache).glob("rows-*")}
    assert kept == set(written) and len(kept) == 2

    written.clear()
    monkeypatch.setattr(FeatureStore, "write", lambda *a: (written.append(a[1].name), write(*a)))
    finetune(config(tmp_path, small_data, tiny_base, "cached", cache, "train.max_steps=1"))
    assert len(written) > 1 and not kept & set(written)
    assert losses(tmp_path)[1] == pytest.approx(losses(runs["live"])[1], rel=1e-5)


def test_a_row_that_is_not_what_the_backbone_computes_is_refused(
    runs: dict[str, Path], small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(runs["cache"], tmp_path / "cache")
    for path in store_folder(cache).glob("rows-*"):
        tensors = load_file(path)
        save_file({**tensors, "features": tensors["features"] * 1.001}, path)
        write_checksum(path, store_folder(cache).name)
    with pytest.raises(ToolkitError, match="Delete that folder"):
        finetune(config(tmp_path, small_data, tiny_base, "cached", cache))
    assert not (tmp_path / "done").exists()


def cached(settings: FinetuneConfig) -> FeatureStore:
    """The store that a run with these settings uses."""
    base = Path(settings.model.base)
    reader = StepReader(Path(settings.dataset.data_dir) / "color_object" / "train", MODALITY_CONFIG)
    processor = build_processor(Gr00tN1d7Processor.from_pretrained(base), reader, settings)
    model = Gr00tN1d7.from_pretrained(base)
    dataset = build_dataset(reader, processor, model.config, settings)
    engine = Engine(settings)
    attempt = ThisAttempt(settings, engine, AttemptToken(Path(settings.run_dir)))
    features.use_cached_features(attempt, model, [dataset], fingerprint(base))
    assert dataset.feature_store is not None
    return dataset.feature_store


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def copy_of_another(path: Path) -> None:
    """Whole, with its checksum, in the wrong place."""
    other = path.with_name("rows-00001.safetensors")
    shutil.copy(other, path)
    shutil.copy(checksum_path(other), checksum_path(path))


@pytest.fixture(scope="module")
def four_files(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache_dir whose 120 rows lie in four files."""
    out = tmp_path_factory.mktemp("four")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gr00t.data.stored_arrays.ROWS_PER_FILE", 32)
        cached(config(out, small_data, tiny_base, "cached", out / "cache"))
    return out / "cache"


@pytest.mark.parametrize(
    "damages, said",
    [
        ({"rows-00000.safetensors": flip, "rows-00003.safetensors": cut, "meta.json": flip}, "3 of 5 files"),
        ({"rows-00000.safetensors": copy_of_another, "rows-00002.safetensors": Path.unlink}, "1 of 5 files"),
        ({".rows-00001.safetensors.sha256": flip}, "1 of 5 files"),
    ],
)
def test_what_is_damaged_is_computed_again_and_nothing_else(
    four_files: Path,
    small_data: Path,
    tiny_base: Path,
    tmp_path: Path,
    damages: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gr00t.data.stored_arrays.ROWS_PER_FILE", 32)
    folder = store_folder(Path(shutil.copytree(four_files, tmp_path / "cache")))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    for name, damage in damages.items():
        damage(folder / name)
    cached(config(tmp_path, small_data, tiny_base, "cached", tmp_path / "cache"))
    assert f"{said} will be made again" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == {path: old for path, (old, _) in before.items()}
    kept = [path for path, (_, time) in before.items() if path.stat().st_mtime_ns == time]
    assert len(kept) == len(before) - 2 * len(damages)  # a file and its checksum


def test_features_are_of_the_videos_and_weights_as_they_are(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    data, base = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (small_data, tiny_base))
    settings = config(tmp_path, data, base, "cached", tmp_path / "cache")
    folders = [cached(settings).folder]
    videos = sorted((data / "color_object/train/videos").rglob("*episode_000000.mp4"))
    for video in videos:  # of the same length
        shutil.copy(video.with_name("episode_000004.mp4"), video)
    folders.append(cached(settings).folder)
    assert folders[0] != folders[1]
    model = Gr00tN1d7.from_pretrained(base)
    before = features.weights_digest(model.backbone)
    name, weight = next(iter(model.backbone.named_parameters()))
    weight.data.view(-1)[-1] += 1e-3
    assert features.weights_digest(model.backbone) != before, name


def test_a_second_run_waits_for_the_first_and_uses_its_rows(
    runs: dict[str, Path],
    small_data: Path,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("finetune.training.caches.TURN_SECONDS", 0.05)
    monkeypatch.setattr(FeatureStore, "write", lambda *_: pytest.fail("made twice"))
    ready = store_folder(runs["cache"])
    target = tmp_path / "cache" / ready.name
    target.parent.mkdir()
    with ThreadPoolExecutor(1) as pool:
        with file_lock(target, holder="process 7 on node1, run runs/a"):
            found = pool.submit(cached, config(tmp_path, small_data, tiny_base, "cached", target.parent))
            said = ""
            while "waiting for" not in said and not found.done():
                time.sleep(0.05)
                said += capsys.readouterr().err
            time.sleep(0.3)  # it is said once
            assert not found.done()
            shutil.copytree(ready, target)
        assert found.result(120).folder == target
    said += capsys.readouterr().err
    assert said.count("waiting for process 7 on node1, run runs/a, which makes the features of") == 1


def test_a_disk_that_fills_leaves_no_half_rows(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, small_data, tiny_base, "cached", tmp_path / "cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ToolkitError, match=r"rows-00000\.safetensors: is larger than.*cache_dir=FOLDER"):
            cached(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in tmp_path.glob("cache/*/*")} == {"meta.json", ".meta.json.sha256"}


def test_a_base_that_changed_meanwhile_is_not_mixed_in(tiny_base: Path) -> None:
    with pytest.raises(ToolkitError, match="has changed while training ran"):
        features.restore_backbone(Gr00tN1d7.from_pretrained(tiny_base), tiny_base, "another", torch.float32)


def test_a_full_disk_is_refused_before_anything_is_computed(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ToolkitError, match=r"features of 120 of 120 views.*cache_dir=FOLDER"):
        finetune(config(tmp_path, small_data, tiny_base, "cached", tmp_path / "cache", "check_fit=false"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.tune.llm=true", "augment.views=2"], "train.tune.llm=true trains a part of it"),
        (["train.tune.visual=true", "augment.views=2"], "train.tune.visual=true"),
        (["train.tune.top_llm_layers=2", "augment.views=2"], "train.tune.top_llm_layers=2"),
        ([], "augment.views=4, or augment=none"),
    ],
)
def test_what_cannot_be_cached_is_refused_with_the_reason(
    small_data: Path, tiny_base: Path, arguments: list[str], message: str
) -> None:
    places = [f"model.base={tiny_base}", f"dataset.data_dir={small_data}", "local=none", "device=cpu"]
    with pytest.raises(ToolkitError, match=message):
        load("finetune", ["model=tiny", "train.features=cached", *places, *arguments])
    load("finetune", ["model=tiny", "train.features=cached", *places, "augment=none"])


def mixed_settings(data: Path, base: Path, out: Path) -> FinetuneConfig:
    return config(out, data, base, "cached", out / "cache", "augment.state_dropout=0")


def two_prompts(data: Path, base: Path, out: Path) -> TrainingDataset:
    """Training samples of a copy of the dataset in which the last train episode has a longer instruction."""
    folder = Path(shutil.copytree(data / "color_object" / "train", out / "train"))
    reader = StepReader(folder, MODALITY_CONFIG)
    last = reader.layout.train_episodes[-1]
    reader.layout.tasks[7] = "pick up the object whose colour is that of the plate on the left"
    column = reader._tables._columns[reader._text_column].copy()
    start, end = reader._tables._span[last]
    column[start:end] = 7
    reader._tables._columns[reader._text_column] = column
    settings = mixed_settings(data, base, out)
    processor = build_processor(Gr00tN1d7Processor.from_pretrained(base), reader, settings)
    return build_dataset(reader, processor, Gr00tN1d7.from_pretrained(base).config, settings)


def test_a_sample_does_not_depend_on_the_prompts_beside_it(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    dataset = two_prompts(small_data, tiny_base, tmp_path)
    model = Gr00tN1d7.from_pretrained(tiny_base)
    short, long = (dataset[SampleKey(index, 0, 0)] for index in (0, len(dataset) - 1))
    assert len(dataset.prompts) == 2 and not np.array_equal(*dataset.prompts)
    together, alone = dataset.collate([short, long]), dataset.collate([short])
    assert together["input_ids"].shape[1] == alone["input_ids"].shape[1] == dataset.prompts.shape[1]
    assert alone["attention_mask"].sum() < together["attention_mask"][1].sum()
    one, both = model(alone).action_loss[0], model(together).action_loss[0]
    assert torch.allclose(one, both, rtol=1e-4, atol=1e-6)


def test_prompts_of_several_lengths_are_cached_as_they_are_padded_live(
    small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    dataset = two_prompts(small_data, tiny_base, tmp_path)
    model = Gr00tN1d7.from_pretrained(tiny_base)
    keys = [SampleKey(index, step, 0) for step, index in enumerate((0, len(dataset) - 1, 30, len(dataset) - 2))]
    live = dataset.collate([dataset[key] for key in keys])
    with torch.no_grad():
        expected, loss = model.features(live), model(live).action_loss
    settings = mixed_settings(small_data, tiny_base, tmp_path)
    engine = Engine(settings)
    attempt = ThisAttempt(settings, engine, AttemptToken(tmp_path))
    features.use_cached_features(attempt, model, [dataset], "base")
    cached = dataset.collate([dataset[key] for key in keys])
    assert torch.equal(cached["attention_mask"], expected.attention_mask)
    assert torch.equal(cached["image_mask"], expected.image_mask)
    assert torch.allclose(cached["features"], expected.features, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(model(cached).action_loss, loss, rtol=1e-4, atol=1e-5)


def test_meta_json_says_what_was_cached(runs: dict[str, Path]) -> None:
    meta = json.loads((store_folder(runs["cache"]) / "meta.json").read_text())
    assert meta["rows"] == 120 and meta["views"] == 2 and meta["dtype"] == "float32"
