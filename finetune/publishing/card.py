"""The model card: Hugging Face metadata and a README, filled from what the runs recorded. Nothing in it is guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from finetune.config.mixture import parts
from finetune.open_loop import PREDICTORS, label
from finetune.publishing.facts import RunFacts
from finetune.publishing.licence import Licence
from finetune.publishing.results import OpenLoop, Results
from gr00t.errors import ToolkitError

UNKNOWN = "not recorded"
_CUES = re.compile(r"(color|object|size|position)_(color|object|size|position)")
_TREE = (
    ("gr00t/", "model, data and policy"),
    ("scripts/", "fine-tuning, data preparation, evaluation, SLURM jobs, and their configuration"),
    ("finetune.md", "the guide, from recordings to an evaluated checkpoint"),
)
_TUNED = {
    "projector": "projector (state encoder, action encoder and decoder, position embedding)",
    "diffusion_model": "diffusion transformer",
    "vlln": "LayerNorm and self-attention over the backbone's tokens",
    "llm": "language model",
    "visual": "vision tower",
}


@dataclass(frozen=True)
class Publication:
    """One run of a release, as its card tells of it. base_model: hub id of its base, None where there is none."""

    facts: RunFacts
    results: Results
    base_model: str | None

    @property
    def split(self) -> str:
        return self.facts.split


def write_card(
    runs: Sequence[Publication], licence: Licence, *, repo_id: str | None, datasets: Sequence[str], folder: str
) -> str:
    """The text of README.md: front matter and body. `folder` is the name of the released folder."""
    try:
        values = _values(runs, licence, repo_id, folder)
    except KeyError as error:
        raise ToolkitError(
            f"{', '.join(str(run.facts.checkpoint) for run in runs)}: experiment_cfg/ or config.json lacks {error}. It "
            "was edited by hand, or written by another version: copy the checkpoint anew, or release with that version."
        ) from None
    body = _environment().get_template("card.md").render(values)
    body = re.sub(r"\n{3,}", "\n\n", body)
    metadata = _metadata(runs, licence, datasets)
    text = f"---\n{metadata.to_yaml()}\n---\n\n{body.strip()}\n"
    if check_card(text, "README.md") != metadata.to_dict():
        raise AssertionError("the front matter does not come back as it was written")
    return text


def check_card(text: str, where: str | Path) -> dict[str, Any]:
    """The metadata of a card; ToolkitError where the hub's client cannot read it."""
    try:
        found: dict[str, Any] = ModelCard(text).data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ToolkitError(
            f"{where}: the metadata between the --- lines cannot be read ({' '.join(str(error).split())}). Mend it, or "
            "make the release anew with overwrite=true."
        ) from None
    if not found:
        raise ToolkitError(f"{where} has no metadata between --- lines. Make the release anew with overwrite=true.")
    return found


def _metadata(runs: Sequence[Publication], licence: Licence, datasets: Sequence[str]) -> ModelCardData:
    bases = sorted({run.base_model for run in runs if run.base_model})
    splits = [run.split for run in runs]
    return ModelCardData(
        language="en",
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        library_name="gr00t",
        pipeline_tag="robotics",
        base_model=bases[0] if len(bases) == 1 else bases or None,
        base_model_relation="finetune" if bases else None,
        datasets=list(datasets) or None,
        tags=["robotics", "vision-language-action", "gr00t", "gr00t-n1.7", "imitation-learning", *splits],
    )


def _values(runs: Sequence[Publication], licence: Licence, repo_id: str | None, folder: str) -> dict[str, Any]:
    views = [_view(run) for run in runs]
    first = runs[0].facts.interface
    return {
        "title": f"GR00T N1.7 fine-tuned on {', '.join(run.split for run in runs)}",
        "lead": _lead(runs),
        "runs": views,
        "first": views[0],
        "tree": [*((f"checkpoints/{run.split}/", _files(run)) for run in runs), *_TREE],
        "repo_id": repo_id,
        "folder": repo_id.split("/")[-1] if repo_id else folder,
        "training": [(name, [value(run) for run in runs]) for name, value in _TRAINING.items()],
        "data": [(name, [value(run) for run in runs]) for name, value in _DATA.items()],
        "datasets_told": sum(len(_datasets(run)) for run in runs),
        "predictors": [label(name) for name in PREDICTORS],
        "cameras": ", ".join(e.variable for e in first.inputs if e.key.startswith("video.")),
        "terms": _terms(runs, licence),
        "maniskill": any(view["cues"] or view["results"].closed_loop for view in views),
    }


def _view(run: Publication) -> dict[str, Any]:
    facts, cues = run.facts, _CUES.fullmatch(run.split)
    return {
        "split": run.split,
        "cues": cues.groups() if cues and cues[1] != cues[2] else None,
        "interface": facts.interface,
        "denoising_steps": facts.model["num_inference_timesteps"],
        "dtype": facts.model.get("dtype", "bfloat16"),
        "instruction": facts.instruction,
        "results": run.results,
        "best": _best(facts.best),
        "mixed": _mixed(run),
        "trial": None if facts.config["model"]["name"] == "released" else facts.config["model"]["name"],
    }


def _lead(runs: Sequence[Publication]) -> str:
    told = " and ".join(f'`{run.split}` ("{run.facts.instruction}")' for run in runs)
    policies = "A robot policy" if len(runs) == 1 else "Robot policies"
    return (
        f"{policies} of the GR00T N1.7 architecture ({runs[0].facts.whole.parameters:,} parameters), fine-tuned from "
        f"{' and '.join(dict.fromkeys(map(_base, runs)))} on {told}. Trained with an independent implementation of "
        "NVIDIA's GR00T N1.7, whose code is in this folder."
    )


def _files(run: Publication) -> str:
    count = run.facts.whole.shards
    size = run.facts.whole.weight_bytes / 1e9
    return f"config.json, weights ({size:.2f} GB, {count} file{'s' * (count > 1)}), processor/, experiment_cfg/"


def _base(run: Publication) -> str:
    if run.base_model:
        return f"[{run.base_model}](https://huggingface.co/{run.base_model})"
    return f"`{Path(run.facts.config['model']['base']).name}` (a folder of the run's; its origin is {UNKNOWN})"


def _terms(runs: Sequence[Publication], licence: Licence) -> str:
    bases = "; ".join(dict.fromkeys(_base(run) for run in runs))
    own = f"The base's own files: {', '.join(licence.files)}." if licence.files else ""
    if licence.id is None:
        return f"their licence is {UNKNOWN}. They were tuned from {bases}, whose terms hold for them."
    named = licence.id if licence.id != "other" else (licence.name or "other")
    where = f" ({licence.link})" if licence.link else ""
    return f"{named}{where}. They were tuned from {bases}, whose terms hold for them. {own}".strip()


def _best(best: dict[str, Any] | None) -> str | None:
    """The run's best evaluation, in words."""
    if best is None:
        return None
    return f"the weights after step {best['step']:,} were the best ({best['name']} {best['metric']:.4g})"


# -- the rows of the tables: name, and the value of a run --------------------------------------------------------------


def _train(run: Publication) -> dict[str, Any]:
    return dict(run.facts.config["train"])


def _steps(run: Publication) -> str:
    planned, step = _train(run)["max_steps"], run.facts.step
    if step is None or step == planned:
        return f"{planned:,}"
    which = "best evaluation" if _train(run).get("export") == "best" else "end"
    return f"{step:,}, the {which} of a run of at most {planned:,}"


def _gpus(run: Publication) -> str:
    hardware = run.facts.hardware
    if hardware is None:
        return UNKNOWN
    count = hardware["processes"]
    if hardware["gpu"] is None:
        return f"none, {count} process{'es' * (count > 1)} on a CPU"
    return f"{count} x {hardware['gpu']}"


def _warmup(run: Publication) -> str:
    train = _train(run)
    return f"{100 * train['warmup_ratio']:g} % of the steps, then a cosine to zero"


def _optimizer(run: Publication) -> str:
    train = _train(run)
    return (
        f"{train['optimizer']}, betas {train['adam_beta1']:g} and {train['adam_beta2']:g}, weight decay "
        f"{train['weight_decay']:g}, gradients clipped at {train['max_grad_norm']:g}"
    )


def _tuned(run: Publication) -> str:
    tune, lora = _train(run)["tune"], _train(run)["lora"]
    parts = [words for name, words in _TUNED.items() if tune[name]]
    if tune["top_llm_layers"]:
        parts.append(f"the language model's top {tune['top_llm_layers']} layers")
    if lora["rank"] is not None:
        parts.append(f"LoRA of rank {lora['rank']} on the language model, merged")
    return "; ".join(parts)


def _frozen(run: Publication) -> str:
    tune = _train(run)["tune"]
    return "; ".join(words for name, words in _TUNED.items() if not tune[name]) or "nothing"


def _augmentation(run: Publication) -> str:
    augment = run.facts.config["augment"]
    parts = [f"crop to {100 * augment['crop_fraction']:g} %"] if augment["crop_fraction"] < 1 else []
    parts += [f"rotation up to {augment['random_rotation_angle']} degrees"] * bool(augment["random_rotation_angle"])
    if augment["color_jitter"]:
        parts.append("colour jitter " + ", ".join(f"{k} {v:g}" for k, v in augment["color_jitter"].items()))
    return "; ".join([*parts, f"state dropout {augment['state_dropout']:g}"])


def _precision(run: Publication) -> str:
    hardware = run.facts.hardware
    return f"{hardware['precision']} forward" if hardware else str(_train(run)["precision"])


def _chunk(run: Publication) -> str:
    return f"{run.facts.interface.horizon} steps at {run.facts.dataset['fps']:g} Hz"


def _tail(run: Publication) -> str:
    masked = run.facts.config["dataset"]["tail"] == "mask"
    return "every frame, the missing future masked" if masked else "frames with a whole chunk ahead"


_TRAINING: dict[str, Callable[[Publication], str]] = {
    "Base model": _base,
    "Steps": _steps,
    "GPUs": _gpus,
    "Global batch size": lambda run: str(_train(run)["global_batch_size"]),
    "Learning rate": lambda run: f"{_train(run)['learning_rate']:g}",
    "Warm-up": _warmup,
    "Optimizer": _optimizer,
    "Precision": _precision,
    "Tuned modules": _tuned,
    "Frozen modules": _frozen,
    "Action chunk": _chunk,
    "Denoising steps": lambda run: str(run.facts.model["num_inference_timesteps"]),
    "Augmentation": _augmentation,
    "Start steps": _tail,
    "Engine": lambda run: str(run.facts.config["engine"]["name"]),
    "Seed": lambda run: str(_train(run)["seed"]),
    "Code revision": lambda run: run.facts.versions.get("git_revision") or UNKNOWN,
}


def _datasets(run: Publication) -> list[dict[str, Any]]:
    """What is recorded of the dataset, or of each of a mixture."""
    return list(run.facts.dataset.get("mixture") or [run.facts.dataset])


def _instructions(datasets: Sequence[dict[str, Any]]) -> str:
    return "; ".join(f'"{text}"' for text in sorted({text for of in datasets for text in of["instructions"]}))


def _episodes(datasets: Sequence[dict[str, Any]], which: str) -> str:
    return f"{sum(len(of[which]) for of in datasets):,}"


def _frames(datasets: Sequence[dict[str, Any]]) -> str:
    known = [of["train_frames"] for of in datasets if of.get("train_frames") is not None]
    return f"{sum(known):,}" if len(known) == len(datasets) else UNKNOWN


def _mixed(run: Publication) -> list[dict[str, str]]:
    """A row for each dataset of a mixture: its folder as the configuration has it, and what is recorded of it."""
    if "mixture" not in run.facts.dataset:
        return []
    named = parts(run.facts.config["dataset"]["mixture"])
    return [
        {
            "name": str(part.folder),
            "weight": f"{part.weight:g} ({100 * of['share']:.1f} % of the samples)",
            "episodes": _episodes([of], "train_episodes"),
            "frames": _frames([of]),
            "held_out": _episodes([of], "val_episodes"),
            "instructions": _instructions([of]),
            "fingerprint": of["fingerprint"][:16],
        }
        for part, of in zip(named, _datasets(run), strict=True)
    ]


_DATA: dict[str, Callable[[Publication], str]] = {
    "Instructions": lambda run: _instructions(_datasets(run)),
    "Episodes trained on": lambda run: _episodes(_datasets(run), "train_episodes"),
    "Frames trained on": lambda run: _frames(_datasets(run)),
    "Episodes held out": lambda run: _episodes(_datasets(run), "val_episodes"),
    "Fingerprint": lambda run: f"`{run.facts.dataset['fingerprint'][:16]}`",
}


# -- how values are written --------------------------------------------------------------------------------------------


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=_cell, share=_share, errors=_errors, quoted=_quoted)
    return environment


def _quoted(text: str) -> str:
    """A text as Python writes it."""
    return json.dumps(text, ensure_ascii=False)


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _share(share: dict[str, Any]) -> str:
    """63 % (51 to 74), 40 of 63."""
    if not share["n"]:
        return "none seen"
    low, high = round(100 * share["low"]), round(100 * share["high"])
    return f"{100 * share['share']:.0f} % ({low} to {high}), {share['count']} of {share['n']}"


def _errors(result: OpenLoop) -> list[tuple[str, list[str]]]:
    """A row a group: its name, and each predictor's error."""
    rows = []
    for group, entries in groupby(result.rows, key=lambda row: row[0]):
        cells = [f"{mae:.4f}" + ("" if wrong is None else f" ({100 * wrong:.1f} %)") for _, _, mae, wrong in entries]
        rows.append((group, cells))
    return rows
