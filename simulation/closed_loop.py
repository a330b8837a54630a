"""Closed-loop evaluation: a policy acts in simulated episodes that were never recorded."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.maniskill import CONTROL_FREQ
from finetune.checkout import CONFIG_DIR
from finetune.config import EvaluateConfig
from finetune.config.compose import read_yaml
from finetune.engine import pick_device, pick_precision
from finetune.export import versions
from finetune.finished import read_processor, read_trained_on
from gr00t.errors import ToolkitError
from gr00t.files import whole_folder
from gr00t.model.checkpoint import fingerprint
from gr00t.model.gr00t_n1 import GR00TPolicy, find_tag
from gr00t.model.manifest import verify_manifest
from simulation.factors import split_factors
from simulation.observation import check_configs
from simulation.outcomes import Evaluation
from simulation.policies import LurePolicy, RandomPolicy, ScriptedPolicy, TargetPolicy, replay_policy
from simulation.rendering import require_rendering, require_simulator
from simulation.report import print_report, write_report
from simulation.rollout import Settings, run_episodes
from simulation.tracking import log_to_wandb

TOKEN = "GROOT_API_TOKEN"
USUAL_SIZE = 224  # of python -m simulation.record
VIDEOS = "videos"


def evaluate_closed_loop(config: EvaluateConfig) -> Evaluation:
    """Play the episodes, write the report and print it.

    Everything that can be refused is refused before the weights are read. The report folder stays as it was when
    something fails.
    """
    split_factors(config.split.name)
    require_simulator()
    if config.render != "none":
        require_rendering(config.render)
    policy, told = _policy(config)
    settings = _settings(config, told)
    started = time.monotonic()
    with _videos_of(config.report_folder, settings.videos) as folder:
        outcomes = run_episodes(policy, settings, folder=folder)
    outcomes = [dataclasses.replace(o, video=o.video and f"{VIDEOS}/{o.video}") for o in outcomes]
    info = {**_info(config, settings), **told, "seconds": round(time.monotonic() - started, 1)}
    evaluation = Evaluation(info, tuple(outcomes))
    write_report(evaluation, config.report_folder)
    print_report(evaluation, config.report_folder)
    log_to_wandb(evaluation, config.report_folder, config.tracking)
    return evaluation


# -- who acts ----------------------------------------------------------------------------------------------------------


def _policy(config: EvaluateConfig) -> tuple[Any, dict[str, Any]]:
    """The policy, and what the report tells of it."""
    if config.server is not None:
        return _remote(config, config.server)
    if config.policy == "checkpoint":
        return _local(config)
    return _scripted(config), {"policy": config.policy}


def _scripted(config: EvaluateConfig) -> ScriptedPolicy:
    if config.policy == "replay":
        return replay_policy(Path(config.raw_dir), config.split.name, config.parts)
    if config.policy == "random":
        return RandomPolicy(config.seed)
    return TargetPolicy() if config.policy == "expert" else LurePolicy()


def _local(config: EvaluateConfig) -> tuple[GR00TPolicy, dict[str, Any]]:
    checkpoint, device = Path(config.checkpoint), pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    if config.verify:
        verify_manifest(checkpoint)
    processor = read_processor(checkpoint)
    tag = find_tag(processor, config.embodiment_tag)
    check_configs(processor.modality_config(tag), config.n_action_steps)
    trained_on = read_trained_on(checkpoint)
    _check_fps(checkpoint, trained_on)
    size = config.image_size or _image_size(checkpoint, trained_on)
    policy = GR00TPolicy.from_pretrained(checkpoint, None, tag, config.denoising_steps, dtype, verify=config.verify).to(
        device
    )
    return policy, {
        "policy": config.checkpoint,
        "checkpoint": config.checkpoint,
        "checkpoint_fingerprint": fingerprint(checkpoint),
        "embodiment_tag": tag,
        "denoising_steps": policy.denoising_steps,
        "precision": str(dtype).removeprefix("torch."),
        "device": str(policy.device),
        "image_size": size,
    }


def _remote(config: EvaluateConfig, address: str) -> tuple[Any, dict[str, Any]]:
    from gr00t.server import PolicyClient

    host, _, port = address.rpartition(":")
    return PolicyClient(host.strip("[]"), int(port), api_token=os.environ.get(TOKEN)), {"policy": f"server {address}"}


def _check_fps(checkpoint: Path, trained_on: dict[str, Any]) -> None:
    fps = float(trained_on.get("fps", CONTROL_FREQ))
    if fps != CONTROL_FREQ:
        raise ToolkitError(
            f"{checkpoint} was trained on {fps:g} frames a second; the simulation takes {CONTROL_FREQ} steps a "
            "second, so its actions would mean other times. Fine-tune on recordings of python -m simulation.record."
        )


def _image_size(checkpoint: Path, trained_on: dict[str, Any]) -> int:
    """The size of the frames that the checkpoint was trained on."""
    datasets = trained_on.get("mixture", [trained_on])
    sizes = {tuple(size) for of in datasets for size in of.get("frame_sizes", {}).values() if size}
    if not sizes:
        Console(stderr=True).print(
            f"note: {checkpoint} does not say how large the images were that it was trained on: {USUAL_SIZE} pixels "
            "are taken (image_size=... takes others).",
            highlight=False,
        )
        return USUAL_SIZE
    if len(sizes) > 1 or len(set(next(iter(sizes)))) > 1:
        found = " and ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise ToolkitError(
            f"{checkpoint} was trained on images of {found}; the simulated ones are square: image_size=..."
        )
    return int(next(iter(sizes))[0])


# -- the episodes ------------------------------------------------------------------------------------------------------


def _settings(config: EvaluateConfig, told: dict[str, Any]) -> Settings:
    return Settings(
        split=config.split.name,
        instruction=config.split.instruction,
        other_instruction=_other_instruction(config.split.name),
        parts=tuple(config.parts),
        conditions=("none", *config.ablations),
        episodes=config.episodes,
        n_action_steps=config.n_action_steps,
        max_steps=config.max_steps,
        image_size=told.get("image_size") or config.image_size or USUAL_SIZE,
        render=config.render,
        seed=config.seed,
        workers=config.workers,
        videos=0 if config.render == "none" else config.videos,
    )


def _other_instruction(split: str) -> str:
    """What the split with the cues swapped says: a sentence of the same kind, for the lure."""
    a, b = split_factors(split)
    return str(read_yaml(CONFIG_DIR / "split" / f"{b}_{a}.yaml")["instruction"])


@contextmanager
def _videos_of(report_folder: Path, count: int) -> Iterator[Path | None]:
    """A folder that becomes the report's videos when the block ends without an exception."""
    videos = report_folder / VIDEOS
    if count:
        with whole_folder(videos, lock=False) as aside:
            yield aside
            (report_folder / "closed_loop.json").unlink(missing_ok=True)  # it names older videos
    else:
        yield None
        shutil.rmtree(videos, ignore_errors=True)


def _info(config: EvaluateConfig, settings: Settings) -> dict[str, Any]:
    names = (
        "split",
        "instruction",
        "episodes",
        "n_action_steps",
        "max_steps",
        "seed",
        "workers",
        "image_size",
        "render",
    )
    return {
        **{name: getattr(settings, name) for name in names},
        "config": dataclasses.asdict(config),
        "versions": versions(),
    }
