"""Open-loop evaluation: the policy's chunks beside what was recorded, on every start frame of a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from finetune.open_loop import OpenLoopConfig
from finetune.open_loop.figures import draw_episode, draw_errors, in_unit
from finetune.open_loop.predictions import (
    EDGE_FRAMES,
    HEADINGS,
    LABELS,
    POLICY,
    PREDICTORS,
    SECTIONS,
    Baselines,
    Chunks,
    Forecast,
    Predictor,
    Section,
    findings,
    measure,
)
from gr00t.data.dataset import training_statistics
from gr00t.data.layout import DatasetLayout
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_replacement import whole_file, whole_folder, write_json, write_text
from gr00t.model.checkpoint_folder import fingerprint
from gr00t.model.device import pick_device, pick_precision
from gr00t.model.finished_checkpoint import read_processor, read_trained_on, verify_manifest
from gr00t.model.gr00t_n1 import GR00TPolicy, find_tag
from toolkit.code_files import versions
from toolkit.progress import progress_bar
from toolkit.shared_keys import check_dataset_folder

JSON_FILE, TEXT_FILE, FIGURES = "open_loop.json", "open_loop.md", "open_loop_figures"
DRAWN_EPISODES = 32  # more figures than that nobody looks at, and each takes a second


@dataclass(frozen=True)
class OpenLoopReport:
    """The outcome of an open-loop evaluation.

    info: what was evaluated on what (checkpoint, dataset, seed, versions); overall: errors by section ("all", "first"
    and "last" starts of episodes); episodes: the same one by one; findings: what a reader should know at once.
    """

    info: dict[str, Any]
    overall: dict[str, Section]
    episodes: dict[int, dict[str, Section]]
    findings: list[str]
    folder: Path


@dataclass(frozen=True)
class _Data:
    """The evaluated dataset and its episodes, and the training dataset that the mean chunk comes from."""

    reader: StepReader
    episodes: list[int]
    training: StepReader
    notes: list[str]


def evaluate_open_loop(config: OpenLoopConfig) -> OpenLoopReport:
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
    policy = GR00TPolicy.from_pretrained(checkpoint, None, tag, config.denoising_steps, dtype).to(device)
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


def _open_data(config: OpenLoopConfig, processor: Gr00tN1d7Processor, tag: str) -> _Data:
    """The datasets, refused where they do not fit the checkpoint."""
    trained_on = read_trained_on(Path(config.checkpoint))
    training = reader = _open(config, "train", processor, tag, trained_on)
    if config.own_dataset:
        reader = _open(config, config.own_dataset, processor, tag, trained_on)
    training_statistics(training, "mask")  # made for another horizon, they are refused
    layout = reader.layout
    every = [episode.index for episode in layout.episodes] if config.own_dataset else layout.train_episodes
    episodes = layout.val_episodes if config.part == "val" else every
    if not episodes:
        raise ToolkitError(
            f"{layout.root} holds no {config.part} episodes (meta/split.json lists those held out for validation). "
            "Prepare it with prepare_conflict_data.py, or choose another part=train or part=conflict."
        )
    episodes = episodes[: config.max_episodes]
    notes = [*filter(None, [config.note_on_guidance()]), *_notes(config, training.layout, trained_on, episodes)]
    return _Data(reader, episodes, training, notes)


def _left_out(layout: DatasetLayout, trained_on: dict[str, Any]) -> list[int | str]:
    """The episodes that the checkpoint's training left out of this dataset, where it is still what it was."""
    parts = [part for part in trained_on.get("mixture", [trained_on]) if part.get("excluded")]
    return next((part["excluded"] for part in parts if part.get("fingerprint") == layout.fingerprint), [])


def _open(
    config: OpenLoopConfig, part: str, processor: Gr00tN1d7Processor, tag: str, trained_on: dict[str, Any]
) -> StepReader:
    """A dataset of the evaluated split, refused where its rate or its robot are not those of the checkpoint."""
    check_dataset_folder(config.data_dir, "data_dir", config.split, part)
    root = Path(config.data_dir) / config.split.name / part
    reader = StepReader(root, processor.modality_config(tag), _left_out(DatasetLayout(root), trained_on))
    fps, trained_fps = reader.layout.fps, trained_on.get("fps")
    for modality in ("state", "action"):
        values = reader.trajectory(modality, reader.layout.episodes[0].index)
        for group in processor.state_action.groups(tag, modality):
            found = values[group.name].shape[1]
            if found != group.dim:
                raise ToolkitError(
                    f'{root}: {modality} "{group.name}" has {found} dimensions; the checkpoint was trained with '
                    f"{group.dim}. It is another robot's dataset, or meta/modality.json is wrong."
                )
    if trained_fps is not None and float(trained_fps) != fps:
        raise ToolkitError(
            f"{root} has {fps:g} frames a second; the checkpoint was trained with {trained_fps:g}, so its steps mean "
            "other times. Record at that rate, or fine-tune on this dataset."
        )
    return reader


def _notes(
    config: OpenLoopConfig, training: DatasetLayout, trained_on: dict[str, Any], episodes: list[int]
) -> list[str]:
    """What makes the numbers mean less than they seem to."""
    if not trained_on:
        return ["the checkpoint does not say what it was trained on: held-out episodes may have been among it"]
    told = trained_on.get("mixture", [trained_on])
    if same := [part for part in told if part.get("fingerprint") == training.fingerprint]:
        seen = len(set(episodes) & {index for part in same for index in part.get("train_episodes", [])})
        moved = (
            f"{seen} of these {len(episodes)} episodes were trained on: val_episodes of {training.root}/meta/split.json"
        )
        return [f"{moved} has changed since"] if config.part == "val" and seen else []
    if "mixture" in trained_on:
        return [f"the checkpoint was trained on a mixture that does not hold {training.root} as it is now"]
    note = f"the checkpoint was trained on another version of {training.root}"
    seen = len(set(episodes) & set(trained_on.get("train_episodes", [])))
    if config.part == "val" and seen:
        note += f", in which {seen} of these {len(episodes)} episode numbers were trained on"
    return [note]


def _predict(policy: GR00TPolicy, data: _Data, config: OpenLoopConfig) -> dict[int, Chunks]:
    """{episode: {group: (T, H, D)}}, with a progress bar on a terminal."""
    of, steps, guided = (policy.model, policy.processor, policy.tag), policy.denoising_steps, config.guidance
    predictor = Predictor(*of, data.reader, data.episodes, config.seed, config.batch_size, steps, guidance=guided)
    with progress_bar() as progress:
        task = progress.add_task(f"{config.split.name} {config.part}", total=len(predictor.starts))

        def show(done: int) -> bool:
            progress.update(task, completed=done)
            return True

        return predictor.chunks(show) or {}


def _info(config: OpenLoopConfig, policy: GR00TPolicy, data: _Data, dtype: torch.dtype) -> dict[str, Any]:
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
        **({} if config.guidance == 1 else {"guidance": config.guidance}),
        "seed": config.seed,
        "precision": str(dtype).removeprefix("torch."),
        "device": str(policy.device),
        "episodes": data.episodes,
        "instructions": sorted({data.reader.instruction(e) for e in data.episodes}),
        "config": dataclasses.asdict(config),
        "versions": versions(),
    }


def write_report(report: OpenLoopReport, forecasts: Sequence[Forecast], reader: StepReader) -> None:
    """Write everything into report.folder; an older report there gives way, other files stay.

    Everything is written aside first, so that a full disk leaves the older report. open_loop.json goes first and comes
    back last: where it stands, the figures beside it are its own.
    """
    folder = report.folder
    drawn = forecasts[:DRAWN_EPISODES]
    with (
        whole_file(folder / JSON_FILE) as data,
        whole_file(folder / TEXT_FILE) as text,
        whole_folder(folder / FIGURES, lock=False) as aside,
    ):
        for forecast in track(drawn, "figures", console=Console(stderr=True), transient=True):
            draw_episode(forecast, reader, aside / f"episode_{forecast.episode:06d}.png")
        draw_errors(report.overall, _title(report), aside / "errors.png")
        write_text(text, "\n".join([*_summary(report), *_details(report, len(drawn))]) + "\n")
        values = dataclasses.asdict(report)
        episodes = [{"episode": index, "sections": sections} for index, sections in values["episodes"].items()]
        definitions = {"edge_frames": EDGE_FRAMES, "sections": HEADINGS, "findings": report.findings}
        write_json(data, {**report.info, **definitions, "overall": values["overall"], "by_episode": episodes})
        (folder / JSON_FILE).unlink(missing_ok=True)


def print_report(report: OpenLoopReport) -> None:
    """What stands out, the errors as tables, and where the rest is."""
    console = Console(highlight=False)
    console.print(Markdown("\n".join(_summary(report))))
    console.print(f"{report.folder / TEXT_FILE} and {report.folder / FIGURES}/", soft_wrap=True)


def _title(report: OpenLoopReport) -> str:
    starts, count = report.overall["all"].starts, len(report.episodes)
    return f"{report.info['split']}, {report.info['part']}: {count} episode{'s' * (count != 1)}, {starts} starts"


def _summary(report: OpenLoopReport) -> Iterator[str]:
    """What was evaluated, what stands out, and a table of errors for each action group, in Markdown."""
    info = report.info
    yield f"# Open loop: {_title(report)}\n"
    yield (
        f"Checkpoint `{info['checkpoint']}`, {info['denoising_steps']} denoising steps, {info['precision']}, "
        f"noise seed {info['seed']}. Dataset `{info['dataset']}` ({info['dataset_fingerprint'][:12]}). "
        "Every frame is a start; every predicted step that was recorded weighs the same.\n"
    )
    yield from (f"- **{finding}**" for finding in report.findings)
    for group, errors in report.overall["all"].errors.items():
        signed = errors[POLICY].sign_error_rate is not None
        yield f"\n## {group}, mean absolute error{in_unit(group, signed)}{' / wrong signs' if signed else ''}\n"
        measured = [[_cell(report.overall[s], group, name) for s in SECTIONS] for name in PREDICTORS]
        rows = [[label, *cells] for label, cells in zip(LABELS.values(), measured, strict=True)]
        yield from _table(["", *HEADINGS.values()], rows)


def _details(report: OpenLoopReport, drawn: int) -> Iterator[str]:
    """Every episode: each predictor over all starts and over the last frames; and the figures."""
    shown = [(section, predictor) for section in ("all", "last") for predictor in PREDICTORS]
    heads = ["episode", "frames", *(f"{LABELS[predictor]}, {HEADINGS[section]}" for section, predictor in shown)]
    for group in report.overall["all"].errors:
        yield f"\n## {group}, by episode\n"
        rows = [
            [str(index), str(sections["all"].starts), *(_cell(sections[part], group, name) for part, name in shown)]
            for index, sections in report.episodes.items()
        ]
        yield from _table(heads, rows)
    yield f"\n![errors]({FIGURES}/errors.png)\n"
    yield from (f"![episode {e}]({FIGURES}/episode_{e:06d}.png)" for e in list(report.episodes)[:drawn])
    if drawn < len(report.episodes):
        yield f"\nFigures of the first {drawn} of {len(report.episodes)} episodes."


def _cell(section: Section, group: str, predictor: str) -> str:
    errors = section.errors[group][predictor]
    sign = "" if errors.sign_error_rate is None else f" / {errors.sign_error_rate:.1%}"
    return f"{errors.mae:.4f}{sign}"


def _table(heads: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield from (f"| {' | '.join(cells)} |" for cells in (heads, ["---", *["---:"] * (len(heads) - 1)], *rows))
