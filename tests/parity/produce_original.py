"""Record what NVIDIA's original does with a GR00T N1.7 checkpoint: one .npz for each embodiment tag.

Stand-alone: copy this one file into the environment of Isaac-GR00T (it imports nothing of this project) and run

    python produce_original.py --checkpoint checkpoints/GR00T-N1.7-LIBERO/libero_10 --out parity

Observations are built from the checkpoint's own metadata and a seed; the model runs in fp32 with SDPA. Each file holds
raw::<b>::video::<view>, raw::<b>::state::<group>, raw::<b>::language, text::<b>, img::<b>, in::<name> (the collated
inputs), seed, mid::noise, action_pred, decoded::<group> and meta (JSON). tests/parity/test_original_parity.py reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
SIZES = ((256, 256), (180, 320), (240, 320))  # (height, width) of the first, second, third view, and round again
INSTRUCTIONS = ("Pick up the red cube, then place it on the plate!", "Open the drawer.")
JSONS = ("config.json", "processor_config.json", "statistics.json", "embodiment_id.json")
PACKAGES = ("torch", "transformers", "diffusers", "numpy", "albumentations", "opencv-python", "opencv-python-headless")


# Observations, from a checkpoint's metadata alone


def processor_folder(checkpoint: Path) -> Path:
    """Where processor_config.json lies: at the checkpoint's root or in processor/."""
    for folder in (checkpoint, checkpoint / "processor"):
        if (folder / "processor_config.json").is_file():
            return folder
    raise SystemExit(f"{checkpoint}: no processor_config.json here or in processor/. Give a checkpoint folder.")


def read_metadata(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(modality configs, statistics), both by embodiment tag."""
    folder = processor_folder(checkpoint)
    kwargs = json.loads((folder / "processor_config.json").read_text())["processor_kwargs"]
    return kwargs["modality_configs"], json.loads((folder / "statistics.json").read_text())


def build_observation(
    configs: dict[str, Any], statistics: dict[str, Any], rng: np.random.Generator, text: str
) -> dict[str, Any]:
    """One raw observation of one robot: {"video": {view: (T, H, W, 3) uint8}, "state": {group: (T, D)}, "language"}."""
    video, state = configs["video"], configs["state"]
    frames, rows = len(video["delta_indices"]), len(state["delta_indices"])
    rot6d = rotation_groups(configs["action"])
    return {
        "video": {
            view: np.stack([noise_image(rng, *SIZES[i % len(SIZES)]) for _ in range(frames)])
            for i, view in enumerate(video["modality_keys"])
        },
        "state": {
            group: state_values(statistics["state"][group], rows, rng, group in rot6d)
            for group in state["modality_keys"]
        },
        "language": text,
    }


def noise_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: coloured blocks with grain, so that neither a resize nor the vision tower averages all away."""
    blocks = rng.integers(0, 256, (height // 20 + 1, width // 20 + 1, 3))
    large = blocks.repeat(20, axis=0).repeat(20, axis=1)[:height, :width]
    return np.clip(large + rng.integers(-20, 21, large.shape), 0, 255).astype(np.uint8)


def state_values(statistics: dict[str, Any], rows: int, rng: np.random.Generator, rot6d: bool) -> np.ndarray:
    """(T, D) float32 drawn between the 1st and the 99th percentile, or minimum and maximum where the statistics have
    no percentiles (simpler_env_widowx); a pose without direction gets no turn."""
    names = ("q01", "q99") if "q01" in statistics else ("min", "max")
    low, high = (np.asarray(statistics[name], dtype=np.float64) for name in names)
    values = rng.uniform(np.minimum(low, high), np.maximum(low, high), (rows, low.shape[-1]))
    if rot6d:
        for row in values:
            first, second = row[3:6], row[6:9]
            if np.linalg.norm(np.cross(first, second)) < 1e-3:
                row[3:9] = (1, 0, 0, 0, 1, 0)
    return values.astype(np.float32)


def rotation_groups(action: dict[str, Any]) -> set[str]:
    """The state groups that relative poses with 6-D rotations refer to."""
    pairs = zip(action["modality_keys"], action.get("action_configs") or [])  # noqa: B905 (strict needs Python 3.10)
    return {
        config.get("state_key") or key
        for key, config in pairs
        if config["type"] == "EEF" and config["format"] == "XYZ_ROT6D"
    }


def build_batch(configs: dict[str, Any], statistics: dict[str, Any], seed: int, count: int) -> list[dict[str, Any]]:
    """`count` observations with instructions of different lengths, so that the batch is padded."""
    rng = np.random.default_rng(seed)
    texts = [INSTRUCTIONS[b % len(INSTRUCTIONS)] for b in range(count)]
    return [build_observation(configs, statistics, rng, text) for text in texts]


# Files


def describe(checkpoint: Path, tag: str, device: str) -> dict[str, Any]:
    """What the consumer must know: format, tag, precision, attention, versions, and which checkpoint it was."""
    return {
        "format": FORMAT,
        "tag": tag,
        "precision": "float32",
        "attention": "sdpa",
        "device": device,
        "checkpoint": checkpoint.resolve().name,
        "fingerprint": fingerprint(checkpoint),
        "versions": versions(),
    }


def fingerprint(checkpoint: Path) -> dict[str, str]:
    """{file: hash of a JSON file, size of a weight file}: enough to tell two checkpoints apart."""
    folder, found = processor_folder(checkpoint), {}
    for name in JSONS:
        path = next((p for p in (checkpoint / name, folder / name) if p.is_file()), None)
        if path is not None:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(checkpoint.glob("*.safetensors")):
        found[path.name] = f"{path.stat().st_size} bytes"
    return found


def versions() -> dict[str, str]:
    """Python, the packages that decide numbers, and the original's commit where git knows it."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, "gr00t"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    spec = importlib.util.find_spec("gr00t")
    places = list(spec.submodule_search_locations or []) if spec else []
    if places:
        command = ["git", "-C", places[0], "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            found["commit"] = result.stdout.strip()
    return found


def record(
    original: Any, observations: list[dict[str, Any]], tag: str, seed: int, meta: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Every array of one file. `original` has encode, act and decode (see Original)."""
    arrays: dict[str, np.ndarray] = {"meta": np.array(json.dumps(meta)), "seed": np.array(seed)}
    for b, observation in enumerate(observations):
        for kind in ("video", "state"):
            arrays.update({f"raw::{b}::{kind}::{key}": value for key, value in observation[kind].items()})
        arrays[f"raw::{b}::language"] = np.array(observation["language"])
    encoded = original.encode(observations, tag)
    for b, (text, images) in enumerate(zip(encoded["texts"], encoded["images"])):  # noqa: B905
        arrays[f"text::{b}"], arrays[f"img::{b}"] = np.array(text), images
    arrays.update({f"in::{name}": value for name, value in encoded["inputs"].items()})
    arrays["mid::noise"], arrays["action_pred"] = original.act(encoded, seed)
    groups = observations[0]["state"]
    states = {group: np.stack([o["state"][group] for o in observations]) for group in groups}
    decoded = original.decode(arrays["action_pred"], tag, states)
    arrays.update({f"decoded::{group}": np.asarray(value) for group, value in decoded.items()})
    return arrays


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the file whole or not at all, without pickles."""
    wrong = [name for name, array in arrays.items() if array.dtype == object]
    if wrong:
        raise TypeError(f"{wrong[0]} is no plain array; a file of this format holds numbers and text only.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


# The original itself


class Original:
    """NVIDIA's model and processor in fp32 with SDPA."""

    def __init__(self, checkpoint: Path, device: str) -> None:
        _refuse_another_gr00t()
        import torch
        from transformers import AutoConfig, AutoModel, AutoProcessor

        import gr00t.model  # noqa: F401 (registers the model type Gr00tN1d7 with transformers)

        self.torch, self.device = torch, device
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        config = AutoConfig.from_pretrained(checkpoint)
        config.use_flash_attention = config.load_bf16 = False
        model = AutoModel.from_pretrained(checkpoint, config=config, torch_dtype=torch.float32)
        self.model = model.eval().to(device=device, dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(processor_folder(checkpoint))
        self.processor.eval()

    def encode(self, observations: list[dict[str, Any]], tag: str) -> dict[str, Any]:
        """texts, images (uint8 (T*V, S, S, 3) each), the collated inputs as arrays, and as the original has them."""
        from gr00t.data.embodiment_tags import EmbodimentTag
        from gr00t.data.types import MessageType, VLAStepData

        samples = []
        for observation in observations:
            step = VLAStepData(
                images=observation["video"],
                states=observation["state"],
                actions={},
                text=observation["language"],
                embodiment=EmbodimentTag(tag),
            )
            samples.append(self.processor([{"type": MessageType.EPISODE_STEP.value, "content": step}]))
        contents = [sample["vlm_content"] for sample in samples]
        collated = self.processor.collator(samples)
        tensors = {k: v for k, v in collated["inputs"].items() if isinstance(v, self.torch.Tensor)}
        return {
            "texts": [content["text"] for content in contents],
            "images": [np.stack([np.asarray(image) for image in content["images"]]) for content in contents],
            "inputs": {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()},
            "collated": collated,
        }

    def act(self, encoded: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(noise, normalised actions), both (B, H, D). The noise is the first draw after the seed, repeated here."""
        torch = self.torch
        with torch.inference_mode():
            torch.manual_seed(seed)
            predicted = self.model.get_action(**encoded["collated"])["action_pred"]
            torch.manual_seed(seed)
            noise = torch.randn(predicted.shape, dtype=predicted.dtype, device=predicted.device)
        return noise.cpu().numpy(), predicted.float().cpu().numpy()

    def decode(self, action_pred: np.ndarray, tag: str, states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The actions in robot units, {group: (B, H, D)}."""
        from gr00t.data.embodiment_tags import EmbodimentTag

        return self.processor.decode_action(action_pred, EmbodimentTag(tag), states)


def _refuse_another_gr00t() -> None:
    spec = importlib.util.find_spec("gr00t")
    try:
        theirs = spec is not None and importlib.util.find_spec("gr00t.data.embodiment_tags") is not None
    except ModuleNotFoundError:
        theirs = False
    if not theirs:
        found = f"the one in {list(spec.submodule_search_locations or [])}" if spec else "none"
        raise SystemExit(
            f"NVIDIA's package gr00t is needed, but Python finds {found}. Run this script with the Python of "
            "Isaac-GR00T's environment, from a folder outside this project."
        )


def main(arguments: list[str] | None = None) -> int:
    """Write one file for each tag that has a modality config and statistics; 1 where any of them failed."""
    parser = argparse.ArgumentParser(
        description="Record the original's inputs and actions for a GR00T N1.7 checkpoint."
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files")
    parser.add_argument("--tags", nargs="*", help="embodiment tags (default: all of the checkpoint)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--batch", type=int, default=2, help="samples a file")
    options = parser.parse_args(arguments)
    configs, statistics = read_metadata(options.checkpoint)
    original, failed = Original(options.checkpoint, options.device), []
    for tag in options.tags or [tag for tag in configs if tag in statistics]:
        path = options.out / f"infer_{options.checkpoint.resolve().name}__{tag}.npz"
        try:
            observations = build_batch(configs[tag], statistics[tag], options.seed, options.batch)
            meta = describe(options.checkpoint, tag, options.device)
            write(path, record(original, observations, tag, options.seed, meta))
            print(f"{tag}: {path}")
        except Exception:  # one tag that the original refuses must not cost the others
            traceback.print_exc()
            failed.append(tag)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
