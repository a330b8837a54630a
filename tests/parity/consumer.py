"""What the original recorded (see produce_original.py), held against our model and our processor.

Knobs, all environment variables: GROOT_N1_7_PARITY_DIR (folder of the recorded files), GROOT_N1_7_LIBERO_CKPT (the
checkpoint folder they were recorded with), GROOT_PARITY_DEVICE (cpu), GROOT_PARITY_ATOL and GROOT_PARITY_RTOL (1e-3).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from golden_files import Arrays, batch_images, batch_size, below, load

from gr00t.data.images import pixel_values
from gr00t.data.processor import Gr00tN1d7Processor, Step
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from parity.produce_original import FORMAT, fingerprint

INPUTS = ("input_ids", "attention_mask", "image_grid_thw", "state", "embodiment_id")
EXACT = ("input_ids", "attention_mask", "image_grid_thw", "embodiment_id")


class Mismatch(AssertionError):
    """The original and this project differ, or a recorded file is not what it should be."""


@dataclass(frozen=True)
class Rig:
    """Where the recorded files and their checkpoint are, and how far results may differ."""

    directory: Path | None = None
    checkpoint: Path | None = None
    device: str = "cpu"
    atol: float = 1e-3
    rtol: float = 1e-3

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ) -> Rig:
        folder, checkpoint = (environment.get(k) for k in ("GROOT_N1_7_PARITY_DIR", "GROOT_N1_7_LIBERO_CKPT"))
        return cls(
            directory=Path(folder) if folder else None,
            checkpoint=Path(checkpoint) if checkpoint else None,
            device=environment.get("GROOT_PARITY_DEVICE", cls.device),
            atol=float(environment.get("GROOT_PARITY_ATOL", cls.atol)),
            rtol=float(environment.get("GROOT_PARITY_RTOL", cls.rtol)),
        )

    def files(self) -> list[Path]:
        """The recorded files, one for each embodiment tag: <anything>__<tag>.npz."""
        return sorted(self.directory.glob("*__*.npz")) if self.directory else []

    def missing(self) -> str | None:
        """Why there is nothing to compare, with the commands that mend it; None when all is there."""
        if self.checkpoint is None or not (self.checkpoint / "config.json").is_file():
            reason = _knob("GROOT_N1_7_LIBERO_CKPT", self.checkpoint, "is no checkpoint folder (no config.json)")
        elif not self.files():
            reason = _knob("GROOT_N1_7_PARITY_DIR", self.directory, "holds no recorded files (*__<tag>.npz)")
        else:
            return None
        checkpoint = self.checkpoint or Path("checkpoints/GR00T-N1.7-LIBERO/libero_10")
        folder = self.directory or Path("parity")
        producer = Path(__file__).with_name("produce_original.py")
        return (
            f"{reason}. In the environment of Isaac-GR00T: "
            f"python {producer} --checkpoint {checkpoint} --out {folder}; then here: "
            f"GROOT_N1_7_PARITY_DIR={folder} GROOT_N1_7_LIBERO_CKPT={checkpoint} python -m pytest tests/parity"
        )


def _knob(name: str, value: Path | None, wrong: str) -> str:
    return f"{name} is not set" if value is None else f"{name}={value} {wrong}"


def tag_of(path: Path) -> str:
    """The embodiment tag of a recorded file."""
    return path.stem.split("__", 1)[1]


def load_model(checkpoint: Path, device: str) -> Gr00tN1d7:
    """The checkpoint in fp32, as the original was run; attention is SDPA."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = Gr00tN1d7.from_pretrained(checkpoint, dtype=torch.float32).to(device)
    model.action_head.padding_leaks = True  # the recorded batches hold instructions of several lengths
    return model


def read(path: Path, rig: Rig) -> Arrays:
    """The arrays of a recorded file that belongs to the rig's checkpoint; anything else is a Mismatch."""
    data = load(path)
    keys = [f"in::{name}" for name in INPUTS] + ["seed", "action_pred", "raw::0::language"]
    missing = [key for key in keys if key not in data]
    if "in::pixel_values" not in data and "img" not in data and "img::0" not in data:
        missing.append("in::pixel_values")
    if missing:
        raise Mismatch(f"{path.name} lacks {', '.join(missing)}: record it again with produce_original.py.")
    if "meta" in data:
        _check_meta(path, json.loads(str(data["meta"])), rig)
    return data


def _check_meta(path: Path, meta: dict, rig: Rig) -> None:
    wanted = {"format": FORMAT, "tag": tag_of(path), "precision": "float32", "attention": "sdpa"}
    for key, value in wanted.items():
        if meta.get(key) != value:
            raise Mismatch(f"{path.name}: {key} is {meta.get(key)!r}, needed is {value!r}: record it again.")
    assert rig.checkpoint is not None
    ours = fingerprint(rig.checkpoint)
    for name, value in meta["fingerprint"].items():
        if ours.get(name) != value:
            raise Mismatch(
                f"{path.name} was recorded with another checkpoint than {rig.checkpoint}: {name} differs. Set "
                "GROOT_N1_7_LIBERO_CKPT to the one it was recorded with, or record it again."
            )


def check_model(path: Path, model: Gr00tN1d7, rig: Rig) -> float:
    """Recorded inputs in, recorded actions out; the largest difference, or a Mismatch."""
    data, config = read(path, rig), model.config
    wanted = (batch_size(data), config.action_horizon, config.max_action_dim)
    if data["action_pred"].shape != wanted:
        raise Mismatch(
            f"{path.name}: action_pred is {data['action_pred'].shape} (batch, horizon, dims), but the checkpoint says "
            f"{wanted}: horizon or dimension of another checkpoint."
        )
    inputs = {name: torch.from_numpy(data[f"in::{name}"]).to(rig.device) for name in INPUTS}
    if "in::pixel_values" in data:
        inputs["pixel_values"] = torch.from_numpy(data["in::pixel_values"]).to(rig.device)
    else:
        inputs["images"] = torch.from_numpy(batch_images(data)).to(rig.device)
    torch.manual_seed(int(data["seed"]))
    # recorded on another device, the seed means other noise: then the recorded noise decides
    noise = torch.from_numpy(data["mid::noise"]) if "mid::noise" in data else None
    actions = model.get_action(inputs, noise=noise).float().cpu().numpy()
    return compare(f"{path.name}: action_pred", actions, data["action_pred"], rig.atol, rig.rtol)


def check_preprocessor(path: Path, processor: Gr00tN1d7Processor, rig: Rig) -> dict[str, float]:
    """Raw observations in; prompts, ids, masks, grid and embodiment id equal, pixels, state and decoded actions close.

    Returns the largest difference of each part, or raises a Mismatch.
    """
    data, tag = read(path, rig), tag_of(path)
    steps = [_step(below(data, f"raw::{b}::")) for b in range(batch_size(data))]
    samples = [processor.encode(step, tag) for step in steps]
    for b, sample in enumerate(samples):
        recorded = str(data.get(f"text::{b}", sample["text"]))
        if sample["text"] != recorded:
            raise Mismatch(f"{path.name}: prompt {b} is {sample['text']!r}, recorded was {recorded!r}.")
    found = {name: value.numpy() for name, value in processor.collate(samples).items()}
    for name in EXACT:
        compare(f"{path.name}: {name}", found[name], data[f"in::{name}"], 0, 0)
    recorded_pixels = data.get("in::pixel_values")
    if recorded_pixels is None:
        recorded_pixels = pixel_values(torch.from_numpy(batch_images(data))).numpy()
    pixels = pixel_values(torch.from_numpy(found["images"])).numpy()
    differences = {
        "pixels": compare(f"{path.name}: pixel_values", pixels, recorded_pixels, rig.atol, rig.rtol),
        "state": compare(f"{path.name}: state", found["state"], data["in::state"], rig.atol, rig.rtol),
    }
    states = {group: np.stack([step.states[group] for step in steps]) for group in steps[0].states}
    decoded = processor.decode_action(data["action_pred"], tag, states)
    for group, values in below(data, "decoded::").items():
        name = f"{path.name}: decoded {group}"
        differences[f"decoded {group}"] = compare(name, decoded[group], values, rig.atol, rig.rtol)
    return differences


def _step(raw: Arrays) -> Step:
    return Step(below(raw, "video::"), below(raw, "state::"), str(raw["language"]))


def compare(what: str, found: np.ndarray, recorded: np.ndarray, atol: float, rtol: float) -> float:
    """The largest difference; a Mismatch for other shapes and where |found - recorded| > atol + rtol |recorded|."""
    if found.shape != recorded.shape:
        raise Mismatch(f"{what} has the shape {found.shape}, recorded was {recorded.shape}.")
    a, b = found.astype(np.float64), recorded.astype(np.float64)
    difference = np.abs(a - b)
    outside = ~(difference <= atol + rtol * np.abs(b))  # not >, so that NaN counts
    if outside.any():
        place = np.unravel_index(np.argmax(np.where(outside, np.nan_to_num(difference, nan=np.inf), -1)), a.shape)
        at = _indices(place)
        raise Mismatch(
            f"{what}: {outside.sum()} of {outside.size} values differ by more than {atol:g} + {rtol:g} |recorded|; at "
            f"{at} found {a[place]:.6g}, recorded {b[place]:.6g}."
        )
    return float(difference.max(initial=0.0))


def _indices(place: Iterable[np.intp]) -> tuple[int, ...]:
    return tuple(int(i) for i in place)
