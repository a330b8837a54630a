"""Closed-loop evaluation: a policy acts in simulated episodes that were never recorded."""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_prep.maniskill import CONTROL_FREQ
from finetune.recipe.recipe_identity import trained_by
from gr00t.errors import ToolkitError
from gr00t.file_replacement import whole_folder
from gr00t.model.checkpoint_folder import fingerprint
from gr00t.model.device import pick_device, pick_precision
from gr00t.model.finished_checkpoint import read_processor, read_trained_on, verify_manifest
from gr00t.model.gr00t_n1 import GR00TPolicy, find_tag
from simulation.closed_loop import EVALUATED, ClosedLoopConfig, EpisodeOutcome, Evaluation, Settings
from simulation.closed_loop.kept_episodes import kept_in, settings_of
from simulation.closed_loop.policies import (
    LurePolicy,
    RandomPolicy,
    ReplayPolicy,
    ScriptedPolicy,
    TargetPolicy,
    check_configs,
)
from simulation.closed_loop.rollout import check_settings, run_episodes
from simulation.report.closed_loop_report import JSON_FILE, log_report, print_report, write_report
from simulation.report.sequential_test import AskedQuestion, read_question
from simulation.scenes import require_rendering, require_simulator
from simulation.scenes.instruction_suite import default_strategy
from simulation.scenes.plate_suite import other_instruction
from simulation.scenes.suites import PLATE, suite_of
from toolkit.code_files import versions
from toolkit.shared_keys import share_of

TOKEN = "GROOT_API_TOKEN"
USUAL_SIZE = 224  # of python -m simulation.record
VIDEOS = "videos"
PLAYING = ".playing"  # in the report's folder, while the evaluation is not finished
SEGMENT = 40  # episodes; building all scenes again takes a second
EXPERT_EPISODES = 40  # of each part, enough for its median steps; a few seconds on each worker
LOOK = 10  # episodes, after which an evaluation that may end early is looked at
SHARED = ("episodes", "n_action_steps", "max_steps", "seed", "workers")  # settings that the report always states
ANSWER_MS = 120_000  # for a batch, which on a CPU may take longer than one robot's 15 s


def evaluate_closed_loop(config: ClosedLoopConfig) -> Evaluation:
    """Play the episodes, write the report and print it; where something fails, the report folder stays as it was but
    for what was played, and the same command continues it. With a share, that is played only."""
    asked, suite = config, suite_of(config.split.name)
    config = dataclasses.replace(config, **config.protocol_values)
    if config.policy == "replay" and not config.parts:
        config.parts = [part for part in EVALUATED if part in suite.recorded_of(config.split.name)]
    require_simulator()
    if config.render != "none":
        require_rendering(config.render)
    policy, facts = _policy(config)
    folder, started = config.report_folder, time.monotonic()
    settings = _settings(config, facts, _strategy(config, policy))
    check_settings(policy, settings)
    question = _question(config, policy, settings)
    enough = question.answered if question is not None and config.stop == "decided" else None
    if settings.segment is None:
        settings = _as_the_shares(settings, facts, folder / PLAYING)
    kept_as = {**dataclasses.asdict(settings), **facts}
    with kept_in(folder / PLAYING, kept_as, shared=config.share is not None) as kept:
        place, chosen = folder / PLAYING / VIDEOS, share_of(config.share)
        outcomes = run_episodes(policy, settings, folder=place, kept=kept, share=chosen, enough=enough)
        if config.share is not None:
            print(f"{folder}: share {config.share} is there; the same without share=... joins all of them.")
            return Evaluation(kept_as, tuple(outcomes))
        seconds, expert = round(time.monotonic() - started, 1), _expert(policy, settings)
        outcomes = _publish_videos(outcomes, place, folder)
        info = {**_info(asked, settings, facts), "seconds": seconds}
        if question is not None:
            info["question"] = question.told(outcomes, settings.parts, LOOK)
        evaluation = Evaluation(info, tuple(outcomes), tuple(expert))
        write_report(evaluation, folder)
    print_report(evaluation, folder)
    log_report(evaluation, folder, config.tracking)
    return evaluation


def _expert(policy: Any, settings: Settings) -> list[EpisodeOutcome]:
    """The first of the same episodes by the expert, as a reference; none for a policy that is scripted as well."""
    if isinstance(policy, ScriptedPolicy):
        return []
    print("The expert plays some of the same episodes, as a reference.", file=sys.stderr)
    count = min(settings.episodes, EXPERT_EPISODES)
    own: dict[str, Any] = {"conditions": ("none",), "render": "none", "runs": 1, "segment": None, "videos": 0}
    return run_episodes(TargetPolicy(), dataclasses.replace(settings, episodes=count, **own))


def _settings(config: ClosedLoopConfig, facts: dict[str, Any], strategy: str | None) -> Settings:
    """How the episodes are played, without the parts that the strategy leaves no scenes for: a grid over strategies
    names one list for all."""
    suite, split = suite_of(config.split.name), config.split.name
    playable = suite.playable(split, strategy)
    empty = {*suite.evaluated_of(split)} - {*playable}
    asked = [part for part in config.parts if part not in empty] or config.parts or playable
    for part in (part for part in config.parts if part not in asked):
        print(f"note: strategy={strategy} leaves no scenes for parts={part}: it is not played.", file=sys.stderr)
    names = (*SHARED, "runs", "no_distractor_prob")
    return Settings(
        split,
        config.split.instruction,
        other_instruction=other_instruction(split) if suite is PLATE else None,
        strategy=strategy,
        parts=tuple(asked),
        conditions=("none", *config.ablations),
        image_size=facts.get("image_size") or config.image_size or USUAL_SIZE,
        render=config.render,
        segment=_segment(config),
        videos=0 if config.render == "none" else config.videos,
        **{name: getattr(config, name) for name in names},
    )


def _question(config: ClosedLoopConfig, policy: Any, settings: Settings) -> AskedQuestion | None:
    """The one that is asked, of what will be played."""
    if config.question is None:
        return None
    question, suite = read_question(config.question, settings.parts), suite_of(settings.split)
    plays = policy if isinstance(policy, ScriptedPolicy) else ScriptedPolicy()

    def planned(part: str) -> Iterator[tuple[int, dict[str, Any]]]:
        rule = settings.strategy, settings.no_distractor_prob
        for seed in plays.seeds(part, settings.runs * settings.episodes):
            yield seed, suite.sample(settings.split, part, seed, *rule).describe()

    question.check_scenes(settings.parts, planned)
    return question


def _strategy(config: ClosedLoopConfig, policy: Any) -> str | None:
    """The one of the key, or that of the recordings that are replayed or that the checkpoint was trained on, if any."""
    if isinstance(policy, ReplayPolicy):
        return policy.strategy
    if config.strategy is not None or suite_of(config.split.name) is PLATE:
        return config.strategy
    told: dict[str, Any] = {}
    if config.policy == "checkpoint" and config.server is None:
        told = read_trained_on(Path(config.checkpoint))
    found = {str(of["strategy"]): None for of in [told, *told.get("mixture", [])] if of.get("strategy")}
    if len(found) > 1:
        raise ToolkitError(
            f"{config.checkpoint} was trained on datasets of several strategies, {' and '.join(found)}, and what was "
            "seen by one was not by another. Say by which combinations to evaluate: strategy=...."
        )
    return next(iter(found), default_strategy(config.split.name))


def _segment(config: ClosedLoopConfig) -> int | None:
    """The plate suite's parts were always played in one piece, and are unless they are shared."""
    if config.stop == "decided":
        return LOOK
    return None if config.share is None and suite_of(config.split.name) is PLATE else SEGMENT


def _as_the_shares(settings: Settings, facts: dict[str, Any], folder: Path) -> Settings:
    """What joins shares plays the rest as they were played."""
    begun, ours = settings_of(folder), json.loads(json.dumps({**dataclasses.asdict(settings), **facts}))
    same = begun.get("segment") == SEGMENT and {**begun, "segment": None} == {**ours, "segment": None}
    return dataclasses.replace(settings, segment=SEGMENT) if same else settings


def _info(config: ClosedLoopConfig, settings: Settings, facts: dict[str, Any]) -> dict[str, Any]:
    """What the report states."""
    info: dict[str, Any] = {"split": settings.split, "instruction": settings.instruction}
    info |= {name: getattr(settings, name) for name in SHARED}
    info |= {"image_size": settings.image_size, "render": settings.render}
    own = {"protocol": config.protocol, **dataclasses.asdict(settings)}
    usual = {"protocol": "own", "strategy": None, "runs": 1, "no_distractor_prob": None, "segment": None}
    info |= {name: own[name] for name, value in usual.items() if own[name] != value}
    info |= trained_by(Path(config.checkpoint)) if "checkpoint_fingerprint" in facts else {}
    return info | {"config": dataclasses.asdict(config), "versions": versions(), **facts}


def _publish_videos(outcomes: list[EpisodeOutcome], made: Path, folder: Path) -> list[EpisodeOutcome]:
    """Copy the outcomes' videos to the report's folder; the outcomes, which name them by their places below it."""
    with whole_folder(folder / VIDEOS, lock=False) as aside:
        for outcome in outcomes:
            if outcome.video:
                shutil.copy2(made / outcome.video, aside / outcome.video)
        (folder / JSON_FILE).unlink(missing_ok=True)  # it names older videos
    if not any(outcome.video for outcome in outcomes):
        (folder / VIDEOS).rmdir()
    return [dataclasses.replace(o, video=o.video and f"{VIDEOS}/{o.video}") for o in outcomes]


def _policy(config: ClosedLoopConfig) -> tuple[Any, dict[str, Any]]:
    """The policy, and what the report states about it."""
    if config.server is not None:
        client = _served_policy(config.server, config.n_action_steps)
        served = {"served": client.identity} if getattr(client, "identity", None) else {}
        return client, {"policy": f"server {config.server}", **served}
    if config.policy == "lerobot":
        return _lerobot_policy(config)
    if config.policy == "checkpoint":
        return _checkpoint_policy(config)
    scripted: dict[str, Callable[[], ScriptedPolicy]] = {
        "expert": TargetPolicy,
        "lure": LurePolicy,
        "random": lambda: RandomPolicy(config.seed),
        "replay": lambda: ReplayPolicy(Path(config.raw_dir), config.split.name, config.parts),
    }
    replayed = {"recordings": _recordings(config)} if config.policy == "replay" else {}
    return scripted[config.policy](), {"policy": config.policy, **replayed}


def _recordings(config: ClosedLoopConfig) -> str:
    """By what the recordings that are replayed are known again: where they lie, and each file's size and time."""
    folder = Path(config.raw_dir, config.split.name).absolute()
    files = sorted(path for part in config.parts for path in (folder / part).rglob("*.h5"))
    said = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _served_policy(address: str, n_action_steps: int) -> Any:
    """A client of the server, which has answered."""
    from gr00t import server

    token = os.environ.get(TOKEN)
    if "://" in address:
        openpi = server.OpenpiClient(address, token)
        atexit.register(openpi.close)
        return openpi
    host, _, port = address.rpartition(":")
    client = server.PolicyClient(host.strip("[]"), int(port), api_token=token)
    check_configs(client.get_modality_config(), n_action_steps)
    client.timeout_ms = ANSWER_MS
    return client


def _lerobot_policy(config: ClosedLoopConfig) -> tuple[Any, dict[str, Any]]:
    from gr00t.server.lerobot_policy import LeRobotPolicy

    policy = LeRobotPolicy(config.checkpoint, config.device)
    facts = {"policy": f"{policy.kind} {config.checkpoint}", "checkpoint": config.checkpoint, "device": policy.device}
    facts["checkpoint_fingerprint"] = fingerprint(Path(config.checkpoint).expanduser())
    return policy, {**facts, "image_size": config.image_size or policy.image_size}


def _checkpoint_policy(config: ClosedLoopConfig) -> tuple[GR00TPolicy, dict[str, Any]]:
    checkpoint, device = Path(config.checkpoint), pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    if config.verify:
        verify_manifest(checkpoint)
    processor = read_processor(checkpoint)
    tag = find_tag(processor, config.embodiment_tag)
    check_configs(processor.modality_config(tag), config.n_action_steps)
    trained_on = read_trained_on(checkpoint)
    fps = float(trained_on.get("fps", CONTROL_FREQ))
    if fps != CONTROL_FREQ:
        raise ToolkitError(
            f"{checkpoint} was trained on {fps:g} frames a second; the simulation takes {CONTROL_FREQ} steps a "
            "second, so its actions would mean other times. Fine-tune on recordings of python -m simulation.record."
        )
    size = config.image_size or _image_size(checkpoint, trained_on)
    if note := config.note_on_guidance():
        print(f"note: {note}.", file=sys.stderr)
    policy = GR00TPolicy.from_pretrained(
        checkpoint, None, tag, config.denoising_steps, dtype, guidance=config.guidance
    ).to(device)
    return policy, {
        "policy": config.checkpoint,
        "checkpoint": config.checkpoint,
        "checkpoint_fingerprint": fingerprint(checkpoint),
        "embodiment_tag": tag,
        "denoising_steps": policy.denoising_steps,
        **({} if config.guidance == 1 else {"guidance": config.guidance}),
        "precision": str(dtype).removeprefix("torch."),
        "device": str(policy.device),
        "image_size": size,
    }


def _image_size(checkpoint: Path, trained_on: dict[str, Any]) -> int:
    """The size of the frames that the checkpoint was trained on."""
    datasets = trained_on.get("mixture", [trained_on])
    sizes = {tuple(size) for of in datasets for size in of.get("frame_sizes", {}).values() if size}
    if not sizes:
        print(
            f"note: {checkpoint} does not say how large the images were that it was trained on: {USUAL_SIZE} pixels "
            "are taken (image_size=... takes others).",
            file=sys.stderr,
        )
        return USUAL_SIZE
    if len(sizes) > 1 or len(set(next(iter(sizes)))) > 1:
        found = " and ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise ToolkitError(
            f"{checkpoint} was trained on images of {found}; the simulated ones are square: image_size=..."
        )
    return int(next(iter(sizes))[0])
