"""Open-loop evaluation: the policy's chunks beside what was recorded, on every start frame of a dataset."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.open_loop import EvaluateConfig
from finetune.open_loop.open_loop_report import OpenLoopReport, print_report, write_report
from finetune.open_loop.predictions import SECTIONS, Baselines, Chunks, Predictor, findings, measure
from gr00t.data.dataset import training_statistics
from gr00t.data.layout import DatasetLayout
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError, disk_errors
from gr00t.model.checkpoint import fingerprint
from gr00t.model.finished_checkpoint import read_processor, read_trained_on, verify_manifest
from gr00t.model.gr00t_n1 import GR00TPolicy, find_tag
from gr00t.model.gr00t_n1d7 import pick_device, pick_precision
from toolkit.code_files import versions
from toolkit.progress import progress_bar


@dataclass(frozen=True)
class _Data:
    """The evaluated dataset and its episodes, and the training dataset that the mean chunk comes from."""

    reader: StepReader
    episodes: list[int]
    training: StepReader
    notes: list[str]


def evaluate_open_loop(config: EvaluateConfig) -> OpenLoopReport:
    """Predict from every frame of the chosen episodes, compare with the recording, write the report and print it.

    Everything that can be refused is refused before the weights are read. report_dir receives open_loop.json,
    open_loop.md and open_loop_figures/; it stays as it was when something fails.
    """
    checkpoint = Path(config.checkpoint)
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    if config.verify:
        verify_manifest(checkpoint)
    processor = read_processor(checkpoint)
    tag = find_tag(processor, config.embodiment_tag)
    data = _open_data(config, processor, tag)
    policy = GR00TPolicy.from_pretrained(checkpoint, None, tag, config.denoising_steps, dtype, verify=config.verify)
    policy = policy.to(device)
    baselines = Baselines(data.training, data.training.layout.train_episodes)
    chunks = _predict(policy, data, config)
    forecasts = [baselines.forecast(data.reader, episode, predicted) for episode, predicted in chunks.items()]
    overall = {section: measure(forecasts, section) for section in SECTIONS}
    report = OpenLoopReport(
        info=_info(config, policy, data, dtype),
        overall=overall,
        episodes={f.episode: {s: measure([f], s) for s in SECTIONS} for f in forecasts},
        findings=data.notes + findings(overall),
        folder=config.report_folder,
    )
    with disk_errors(report.folder, "Free some space, or give another report_dir=FOLDER, and evaluate again."):
        write_report(report, forecasts, data.reader)
    print_report(report)
    return report


# -- before anything heavy ---------------------------------------------------------------------------------------------


def _open_data(config: EvaluateConfig, processor: Gr00tN1d7Processor, tag: str) -> _Data:
    """The datasets, refused where they do not fit the checkpoint."""
    configs = processor.modality_config(tag)
    training = StepReader(_folder(config, "train"), configs)
    reader = StepReader(_folder(config, "conflict"), configs) if config.part == "conflict" else training
    trained_on = read_trained_on(Path(config.checkpoint))
    for opened in (training, reader):
        _check_dims(opened, processor, tag)
        fps = opened.layout.fps
        if "fps" in trained_on and float(trained_on["fps"]) != fps:
            raise ToolkitError(
                f"{opened.layout.root} has {fps:g} frames a second; the checkpoint was trained with "
                f"{trained_on['fps']:g}, so its steps mean other times. Record at that rate, or fine-tune on this "
                "dataset."
            )
    training_statistics(training, "mask")  # made for another horizon, they are refused
    layout = reader.layout
    if config.part == "conflict":
        episodes = [episode.index for episode in layout.episodes]
    else:
        episodes = layout.val_episodes if config.part == "val" else layout.train_episodes
    if not episodes:
        raise ToolkitError(
            f"{layout.root} holds no {config.part} episodes (meta/split.json lists those held out for validation). "
            "Prepare it with prepare_conflict_data.py, or choose another part=train or part=conflict."
        )
    episodes = episodes[: config.max_episodes]
    return _Data(reader, episodes, training, _notes(config, training.layout, trained_on, episodes))


def _folder(config: EvaluateConfig, part: str) -> Path:
    folder = Path(config.data_dir) / config.split.name / part
    if (folder / "meta").is_dir():
        return folder
    needed = "has the recordings in conflict" if part == "conflict" else "gives the baselines their mean chunk"
    raise ToolkitError(
        f"{folder} is no dataset; it {needed}. Put the recordings into RAW/{config.split.name}/{part}, then convert "
        f"them: python prepare_conflict_data.py split={config.split.name} raw_dir=RAW data_dir={config.data_dir} "
        "overwrite=true"
    )


def _check_dims(reader: StepReader, processor: Gr00tN1d7Processor, tag: str) -> None:
    first = reader.layout.episodes[0].index
    for modality in ("state", "action"):
        values = reader.trajectory(modality, first)
        for group in processor.state_action.groups(tag, modality):
            found = values[group.name].shape[1]
            if found != group.dim:
                raise ToolkitError(
                    f'{reader.layout.root}: {modality} "{group.name}" has {found} dimensions; the checkpoint was '
                    f"trained with {group.dim}. It is another robot's dataset, or meta/modality.json is wrong."
                )


def _notes(
    config: EvaluateConfig, training: DatasetLayout, trained_on: dict[str, Any], episodes: list[int]
) -> list[str]:
    """What makes the numbers mean less than they seem to."""
    if not trained_on:
        return ["the checkpoint does not say what it was trained on: held-out episodes may have been among it"]
    if training.fingerprint in [part.get("fingerprint") for part in trained_on.get("mixture", [trained_on])]:
        return []
    if "mixture" in trained_on:
        return [f"the checkpoint was trained on a mixture that does not hold {training.root} as it is now"]
    note = f"the checkpoint was trained on another version of {training.root}"
    seen = len(set(episodes) & set(trained_on.get("train_episodes", [])))
    if config.part == "val" and seen:
        note += f", in which {seen} of these {len(episodes)} episode numbers were trained on"
    return [note]


# -- predicting --------------------------------------------------------------------------------------------------------


def _predict(policy: GR00TPolicy, data: _Data, config: EvaluateConfig) -> dict[int, Chunks]:
    """{episode: {group: (T, H, D)}}, with a progress bar on a terminal."""
    predictor = Predictor(
        policy.model,
        policy.processor,
        policy.tag,
        data.reader,
        data.episodes,
        config.seed,
        config.batch_size,
        policy.denoising_steps,
    )
    with progress_bar() as progress:
        task = progress.add_task(f"{config.split.name} {config.part}", total=len(predictor.starts))

        def show(done: int) -> bool:
            progress.update(task, completed=done)
            return True

        return predictor.chunks(show) or {}


def _info(config: EvaluateConfig, policy: GR00TPolicy, data: _Data, dtype: torch.dtype) -> dict[str, Any]:
    layout = data.reader.layout
    return {
        "split": config.split.name,
        "part": config.part,
        "checkpoint": config.checkpoint,
        "checkpoint_fingerprint": fingerprint(Path(config.checkpoint)),
        "dataset": str(layout.root),
        "dataset_fingerprint": layout.fingerprint,
        "fps": layout.fps,
        "embodiment_tag": policy.tag,
        "denoising_steps": policy.denoising_steps,
        "seed": config.seed,
        "precision": str(dtype).removeprefix("torch."),
        "device": str(policy.device),
        "episodes": data.episodes,
        "instructions": sorted({data.reader.instruction(e) for e in data.episodes}),
        "config": dataclasses.asdict(config),
        "versions": versions(),
    }
