"""The loader: samples/s of one worker process, decoding for every sample beside what is decoded or computed once.

    python benchmarks/loader.py --batches 30

Dataset: the recordings in samples/, converted into a temporary folder. Settings take turns, so that other work on the
machine hits all alike; the figure of each is the median of its rounds. Files are read before the clock starts, as from
the second pass over a dataset that fits into memory. Features are random numbers: their values cost nothing."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from conflict_panda_config import MODALITY_CONFIG  # noqa: E402
from data_prep.convert import convert_split  # noqa: E402
from finetune.create_base import create_base  # noqa: E402
from finetune.recipe import FinetuneConfig  # noqa: E402
from finetune.training.caches import use_frame_store  # noqa: E402
from finetune.training.dataloader import build_dataset, build_loader, build_processor  # noqa: E402
from finetune.training.engine import Engine  # noqa: E402
from finetune.training.stopping import (  # noqa: E402
    AttemptToken,
    ThisAttempt,
)
from gr00t.data.dataset import TrainingDataset  # noqa: E402
from gr00t.data.processor import Gr00tN1d7Processor  # noqa: E402
from gr00t.data.step_reader import StepReader  # noqa: E402
from gr00t.data.stored_arrays import KEYS, FeatureStore  # noqa: E402
from gr00t.model.checkpoint import read_config  # noqa: E402
from toolkit.code_files import versions  # noqa: E402
from toolkit.configuration import load  # noqa: E402

BATCH, ROUNDS, VIEWS = 32, 3, 4


@dataclass
class Site:
    """What all settings share."""

    config: FinetuneConfig
    engine: Engine

    def dataset(self, reader: StepReader) -> TrainingDataset:
        base = Path(self.config.model.base)
        processor = build_processor(Gr00tN1d7Processor.from_pretrained(base), reader, self.config)
        return build_dataset(reader, processor, read_config(base), self.config)

    def reader(self) -> StepReader:
        return StepReader(Path(self.config.dataset.data_dir) / "color_object" / "train", MODALITY_CONFIG)


class OpenedEachTime(StepReader):
    """The plain way: a video is opened, decoded up to the frame, and closed again for every sample."""

    def _frames(self, *arguments: Any) -> Any:
        found = super()._frames(*arguments)
        for of_file in self._videos.values():
            for video in of_file.values():
                video.reader.close()
        self._videos.clear()
        return found


def plain(site: Site) -> TrainingDataset:
    reader = site.reader()
    reader.__class__ = OpenedEachTime
    return site.dataset(reader)


def kept_open(site: Site) -> TrainingDataset:
    return site.dataset(site.reader())


def frame_store(site: Site) -> TrainingDataset:
    reader = site.reader()
    use_frame_store(ThisAttempt(site.config, site.engine, AttemptToken(Path(site.config.run_dir))), reader)
    return site.dataset(reader)


def features(width: int) -> Callable[[Site], TrainingDataset]:
    """A feature store of bf16 rows of that width."""

    def make(site: Site) -> TrainingDataset:
        dataset = kept_open(site)
        folder = Path(site.config.cache_dir) / f"width-{width}"
        folder.mkdir(parents=True)
        tokens = dataset.prompts.shape[1]
        store = FeatureStore(folder, len(dataset), VIEWS, tokens, width, torch.bfloat16)
        for path, rows in store.files():
            masks = {key: torch.ones(len(rows), tokens, dtype=torch.bool) for key in KEYS[1:]}
            store.write(path, {"features": torch.randn(len(rows), tokens, width).bfloat16(), **masks})
        dataset.feature_store = store
        return dataset

    return make


SETTINGS: dict[str, Callable[[Site], TrainingDataset]] = {
    "plain: video opened and decoded for every sample": plain,
    "video kept open (dataset.frames=video)": kept_open,
    "frame store (dataset.frames=store)": frame_store,
    "cached features, width 512 (small)": features(512),
    "cached features, width 2048 (released)": features(2048),
}


def rate(site: Site, dataset: TrainingDataset, batches: int) -> float:
    """Samples/s of one worker over `batches`, after the batches that it prepares ahead."""
    loader, _ = build_loader(dataset, site.config, site.engine, 0)
    ready = iter(loader)
    for _ in range(5):
        next(ready)
    begin = time.perf_counter()
    for _ in range(batches):
        next(ready)
    return BATCH * batches / (time.perf_counter() - begin)


def make_site(folder: Path, batches: int) -> Site:
    """The dataset, a base for its processor, and the configuration of the settings."""
    instruction = "pick up the color-matching object"
    convert_split(ROOT / "samples", folder / "data", "color_object", instruction, MODALITY_CONFIG, progress=False)
    base = create_base(load("create_base", ["local=none", "model=tiny", f"out={folder / 'base'}"]))
    places = [f"model.base={base}", f"dataset.data_dir={folder / 'data'}", f"cache_dir={folder / 'cache'}"]
    recipe = [f"augment.views={VIEWS}", f"train.global_batch_size={BATCH}", f"train.max_steps={batches + 50}"]
    more = ["train.num_workers=1", "device=cpu", "tracking=none"]
    config = load("finetune", ["local=none", "model=tiny", *places, *recipe, *more])
    return Site(config, Engine(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=30, help=f"batches of {BATCH} per setting and round")
    batches = parser.parse_args().batches
    with tempfile.TemporaryDirectory() as name:
        site = make_site(Path(name), batches)
        datasets = {setting: make(site) for setting, make in SETTINGS.items()}
        found: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
        for _ in range(ROUNDS):
            for setting, dataset in datasets.items():
                found[setting].append(rate(site, dataset, batches))
    packages = ", ".join(f"{key} {value}" for key, value in versions().items() if key in ("python", "torch", "av"))
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores; {packages}\n")
    print("| one worker, batch 32, two cameras of 128x128, crop and jitter | samples/s | x plain |\n|---|---:|---:|")
    baseline = statistics.median(next(iter(found.values())))
    for setting, rates in found.items():
        middle = statistics.median(rates)
        print(f"| {setting} | {middle:.0f} ({min(rates):.0f} to {max(rates):.0f}) | {middle / baseline:.1f} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
