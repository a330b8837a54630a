"""The released size on a CPU: write it with random weights, check the shards, load it back, act once.

    python -m finetune.create_base model=released out=FOLDER
    python -m benchmarks.full_size FOLDER            # shards, bit-for-bit reload, one forward
    python -m benchmarks.full_size FOLDER --rewrite  # also saves it once more and compares

Needs 7 GB of disk (14 GB with --rewrite) and 12 GB of memory. Each step runs in a process of its own, so that its
peak memory is its own."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXPECTED_GB = [4.99, 1.92]
VIEWS, SIDE = 2, 256


def shards(folder: Path) -> dict[str, Any]:
    """Sizes on disk, against those of the release."""
    from gr00t.model.checkpoint_folder import weight_files

    sizes = [round(path.stat().st_size / 1e9, 2) for path in weight_files(folder)]
    return {"shards, GB": sizes, "as released": sizes == EXPECTED_GB}


def reload(folder: Path) -> dict[str, Any]:
    """Load the model and compare every tensor with what is in the files, bit for bit."""
    import torch

    from gr00t.model.checkpoint import read_tensors
    from gr00t.model.gr00t_n1d7 import Gr00tN1d7

    start = time.perf_counter()
    model = Gr00tN1d7.from_pretrained(folder)
    seconds = time.perf_counter() - start
    loaded = model.state_dict()
    stored = 0
    for name, tensor in read_tensors(folder):
        stored += 1
        if not torch.equal(tensor, loaded[name]):
            raise SystemExit(f"{name} differs between {folder} and the loaded model")
    parameters = sum(tensor.numel() for tensor in loaded.values())
    return {"load, s": seconds, "tensors equal": stored == len(loaded), "parameters": parameters}


def rewrite(folder: Path) -> dict[str, Any]:
    """Save the loaded model beside the folder and compare the files byte for byte."""
    from gr00t.file_replacement import file_sha256, whole_folder
    from gr00t.model.checkpoint_folder import weight_files
    from gr00t.model.gr00t_n1d7 import Gr00tN1d7

    model = Gr00tN1d7.from_pretrained(folder)
    again = folder.with_name(f"{folder.name}-again")
    start = time.perf_counter()
    with whole_folder(again) as aside:
        model.save_pretrained(aside)
    seconds = time.perf_counter() - start
    pairs = zip(weight_files(folder), weight_files(again), strict=True)
    return {"save, s": seconds, "files equal": all(file_sha256(a) == file_sha256(b) for a, b in pairs)}


def act(folder: Path) -> dict[str, Any]:
    """One action chunk for one sample of two 256x256 views in bf16; the second of two runs is timed."""
    import torch

    from gr00t.model.gr00t_n1d7 import Gr00tN1d7

    model = Gr00tN1d7.from_pretrained(folder, dtype=torch.bfloat16)
    inputs = sample(model)
    for _ in range(2):
        start = time.perf_counter()
        actions = model.get_action(inputs, generator=torch.Generator().manual_seed(0))
        seconds = time.perf_counter() - start
    if not torch.isfinite(actions).all():
        raise SystemExit("the action chunk is not finite")
    start = time.perf_counter()
    with torch.inference_mode():
        model.features(inputs)
    backbone = time.perf_counter() - start
    tokens = inputs["input_ids"].shape[1]
    return {"tokens": tokens, "chunk": list(actions.shape), "get_action, s": seconds, "backbone of it, s": backbone}


def sample(model: Any) -> dict[str, Any]:
    """Collated inputs of one sample: two random views, a 20-token instruction, a random state."""
    import numpy as np
    import torch

    from gr00t.data.images import pixel_values

    rng, vlm = np.random.default_rng(0), model.backbone_config
    frames = torch.from_numpy(rng.integers(0, 256, (VIEWS, SIDE, SIDE, 3), dtype=np.uint8))
    grid = SIDE // vlm.vision_config.patch_size
    image = [vlm.vision_start_token_id, *[vlm.image_token_id] * (grid * grid // 4), vlm.vision_end_token_id]
    ids = torch.tensor([[*image * VIEWS, *rng.integers(100, 300, 20).tolist()]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixel_values(frames, torch.bfloat16),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * VIEWS),
        "state": torch.from_numpy(rng.uniform(-1, 1, (1, 1, model.config.max_state_dim)).astype(np.float32)),
        "embodiment_id": torch.tensor([10]),
    }


def measured(step: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What a step reports, with its time and peak memory, from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (step, folder))


def _timed(step: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    found = step(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"step": step.__name__, **found, "whole step, s": time.perf_counter() - start, "peak memory, GB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a base of the released size")
    parser.add_argument("--rewrite", action="store_true", help="also save the loaded model and compare the files")
    arguments = parser.parse_args()
    steps = [shards, reload, *([rewrite] if arguments.rewrite else []), act]
    for step in steps:
        found = measured(step, arguments.folder)
        print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}), flush=True)


if __name__ == "__main__":
    main()
