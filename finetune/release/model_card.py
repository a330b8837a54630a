"""The model card: Hugging Face metadata and a README, filled from what the runs recorded. Nothing in it is guessed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from finetune.open_loop.predictions import LABELS
from finetune.recipe.train_config import trained_parts
from finetune.release.run_facts import Licence, RunFacts
from gr00t.data.schema import EmbodimentTag
from gr00t.errors import ToolkitError
from toolkit.publication import fill_card, rows
from toolkit.shared_keys import cues_of, of_suite

UNKNOWN = "not recorded"

_TREE = (
    ("gr00t/", "model, data and policy"),
    ("scripts/", "fine-tuning, data preparation, evaluation, SLURM jobs, and their configuration"),
    ("finetune.md", "the guide, from recordings to an evaluated checkpoint"),
)
_MEANINGS = {  # of the conflict splits' Panda; groups of other robots have their shape only
    "state.arm": ", rad",
    "state.gripper": ", opening in metres",
    "action.arm": ", joint targets in rad",
    "action.gripper": ", command in [-1, 1]",
}
_TUNED = {
    "projector": "projector (state encoder, action encoder and decoder, position embedding)",
    "diffusion_model": "diffusion transformer",
    "vlln": "LayerNorm and self-attention over the backbone's tokens",
    "llm": "language model",
    "visual": "vision tower",
}


def write_card(
    runs: Sequence[RunFacts], licence: Licence, *, repo_id: str | None, datasets: Sequence[str], folder: str
) -> str:
    """The text of README.md: front matter and body. `folder` is the name of the released folder."""
    try:
        values = _values(runs, licence, repo_id, folder)
    except KeyError as error:
        raise ToolkitError(
            f"{', '.join(str(run.checkpoint) for run in runs)}: experiment_cfg/ or config.json lacks {error}. It "
            "was edited by hand or written by another version: copy the checkpoint again, or release with that version."
        ) from None
    template = Path(__file__).with_name("card.md")
    return fill_card(template, values, _metadata(runs, licence, datasets), share=_share, error=_error)


def _metadata(runs: Sequence[RunFacts], licence: Licence, datasets: Sequence[str]) -> ModelCardData:
    bases = sorted({run.base_model for run in runs if run.base_model})
    words = list(dict.fromkeys(word for run in runs for word in run.split.split("/")))
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
        tags=["robotics", "vision-language-action", "gr00t", "gr00t-n1.7", "imitation-learning", *words],
    )


def _values(runs: Sequence[RunFacts], licence: Licence, repo_id: str | None, folder: str) -> dict[str, Any]:
    """What card.md is filled with."""
    views, whole = [_view(run) for run in runs], runs[0].whole
    instructions = " and ".join(f"`{run.split}` ({_told(run)})" for run in runs)
    bases = list(dict.fromkeys(_base(run) for run in runs))
    lead = (
        f"{'A robot policy' if len(runs) == 1 else 'Robot policies'} of the GR00T N1.7 architecture "
        f"({whole.parameters:,} parameters), fine-tuned from {' and '.join(bases)} on {instructions}. Trained with an "
        "independent implementation of NVIDIA's GR00T N1.7, whose code is in this folder."
    )
    inputs = views[0]["interface"]["inputs"]
    return {
        "title": f"GR00T N1.7 fine-tuned on {', '.join(run.split for run in runs)}",
        "lead": lead,
        "runs": views,
        "first": views[0],
        "tree": [*((f"checkpoints/{run.split}/", _files(run)) for run in runs), *_TREE],
        "repo_id": repo_id,
        "folder": repo_id.split("/")[-1] if repo_id else folder,
        "training": rows([_training(run) for run in runs]),
        "data": rows([_data(_datasets(run)) | {"Fingerprint": f"`{run.dataset['fingerprint'][:16]}`"} for run in runs]),
        "datasets_told": sum(len(_datasets(run)) for run in runs),
        "predictors": list(LABELS.values()),
        "cameras": ", ".join(e["variable"] for e in inputs if e["key"].startswith("video.")),
        "terms": _terms("; ".join(bases), licence),
        "maniskill": any(view["cues"] or view["results"].closed_loop for view in views),
    }


def _view(run: RunFacts) -> dict[str, Any]:
    best, name = run.best, run.config["model"]["name"]
    words = best and f"the weights after step {best['step']:,} were the best ({best['name']} {best['metric']:.4g})"
    return {
        **vars(run),
        "cues": cues_of(run.split),
        "interface": _interface(run),
        "denoising_steps": run.model["num_inference_timesteps"],
        "dtype": run.model.get("dtype", "bfloat16"),
        "instruction": run.config["split"]["instruction"] or _all_told(run)[0],
        "best": words,
        "mixed": _mixed(run),
        "taught": run.config["dataset"].get("conflict_share"),
        "names_both": of_suite(run.split),
        "trial": None if name == "released" else name,
    }


def _interface(run: RunFacts) -> dict[str, Any]:
    """How get_action is called for one observation: keys, names of variables for them, shapes, types and units."""
    configs, groups = run.processor.modality_config(run.tag), run.processor.state_action.groups
    frames, times, horizon = (len(configs[name].delta_indices) for name in ("video", "state", "action"))

    def entry(key: str, shape: str) -> dict[str, str]:
        return {"key": key, "variable": key.partition(".")[2], "comment": shape + _MEANINGS.get(key, "")}

    videos = [entry(f"video.{name}", f"(1, {frames}, H, W, 3) uint8") for name in configs["video"].modality_keys]
    states = [entry(f"state.{g.name}", f"(1, {times}, {g.dim}) float32") for g in groups(run.tag, "state")]
    return {
        "tag": EmbodimentTag.parse(run.tag).name,
        "inputs": [*videos, *states],
        "language_key": configs["language"].modality_keys[0],
        "outputs": [entry(f"action.{g.name}", f"(1, {horizon}, {g.dim})") for g in groups(run.tag, "action")],
    }


def _files(run: RunFacts) -> str:
    size, count = f"{run.whole.weight_bytes / 1e9:.2f} GB", run.whole.shards
    return f"config.json, weights ({size}, {count} file{'s' * (count > 1)}), processor/, experiment_cfg/"


def _base(run: RunFacts) -> str:
    if run.base_model:
        return f"[{run.base_model}](https://huggingface.co/{run.base_model})"
    return f"`{Path(run.config['model']['base']).name}` (a folder of the run's; its origin is {UNKNOWN})"


def _terms(bases: str, licence: Licence) -> str:
    if licence.id is None:
        return f"their licence is {UNKNOWN}. They were tuned from {bases}, whose terms hold for them."
    named = licence.id if licence.id != "other" else (licence.name or "other")
    where = f" ({licence.link})" if licence.link else ""
    own = f"The base's own files: {', '.join(licence.files)}." if licence.files else ""
    return f"{named}{where}. They were tuned from {bases}, whose terms hold for them. {own}".strip()


# -- the rows of the tables: name, and the value of a run --------------------------------------------------------------


def _training(run: RunFacts) -> dict[str, str]:
    config = run.config
    train, masked = config["train"], config["dataset"]["tail"] == "mask"
    horizon = len(run.processor.modality_config(run.tag)["action"].delta_indices)
    return {
        "Base model": _base(run),
        "Steps": _steps(train, run.mark.get("step")),
        "GPUs": _gpus(run.hardware),
        "Global batch size": str(train["global_batch_size"]),
        "Learning rate": f"{train['learning_rate']:g}",
        "Warm-up": f"{100 * train['warmup_ratio']:g} % of the steps, then a cosine to zero",
        "Optimizer": (
            f"{train['optimizer']}, betas {train['adam_beta1']:g} and {train['adam_beta2']:g}, weight decay "
            f"{train['weight_decay']:g}, gradients clipped at {train['max_grad_norm']:g}"
        ),
        "Precision": f"{run.hardware['precision']} forward" if run.hardware else str(train["precision"]),
        "Tuned modules": _tuned(train),
        "Frozen modules": "; ".join(words for name, words in _TUNED.items() if not train["tune"][name]) or "nothing",
        "Action chunk": f"{horizon} steps at {run.dataset['fps']:g} Hz",
        "Denoising steps": str(run.model["num_inference_timesteps"]),
        "Augmentation": _augmentation(config["augment"]),
        "Start steps": "every frame, the missing future masked" if masked else "frames with a whole chunk ahead",
        "Engine": str(config["engine"]["name"]),
        "Seed": str(train["seed"]),
        "Code revision": run.versions.get("git_revision") or UNKNOWN,
    }


def _steps(train: dict[str, Any], step: int | None) -> str:
    planned = train["max_steps"]
    if step is None or step == planned:
        return f"{planned:,}"
    which = "best evaluation" if train.get("export") == "best" else "end"
    return f"{step:,}, the {which} of a run of at most {planned:,}"


def _gpus(hardware: dict[str, Any] | None) -> str:
    if hardware is None:
        return UNKNOWN
    count, gpu = hardware["processes"], hardware["gpu"]
    return f"{count} x {gpu}" if gpu else f"none, {count} process{'es' * (count > 1)} on a CPU"


def _tuned(train: dict[str, Any]) -> str:
    tune, lora = train["tune"], train["lora"]
    modules = [words for name, words in _TUNED.items() if tune[name]]
    if tune["top_llm_layers"]:
        modules.append(f"the language model's top {tune['top_llm_layers']} layers")
    if lora["rank"] is not None:
        modules.append(f"LoRA of rank {lora['rank']} on the language model, merged")
    return "; ".join(modules)


def _augmentation(augment: dict[str, Any]) -> str:
    found = []
    if augment["crop_fraction"] < 1:
        found.append(f"crop to {100 * augment['crop_fraction']:g} %")
    if augment["random_rotation_angle"]:
        found.append(f"rotation up to {augment['random_rotation_angle']} degrees")
    if augment["color_jitter"]:
        found.append("colour jitter " + ", ".join(f"{k} {v:g}" for k, v in augment["color_jitter"].items()))
    return "; ".join([*found, f"state dropout {augment['state_dropout']:g}"])


def _datasets(run: RunFacts) -> list[dict[str, Any]]:
    """What is recorded of the dataset, or of each of a mixture."""
    return list(run.dataset.get("mixture") or [run.dataset])


def _all_told(run: RunFacts) -> list[str]:
    return sorted({text for of in _datasets(run) for text in of["instructions"]})


def _told(run: RunFacts) -> str:
    """The split's instruction, or that each episode has its own."""
    instruction = run.config["split"]["instruction"]
    return f'"{instruction}"' if instruction else f'{len(_all_told(run))} instructions, as "{_all_told(run)[0]}"'


def _data(datasets: Sequence[dict[str, Any]]) -> dict[str, str]:
    instructions = sorted({text for of in datasets for text in of["instructions"]})
    frames = [of["train_frames"] for of in datasets if of.get("train_frames") is not None]
    left_out = [", ".join(map(str, of["excluded"])) for of in datasets if of.get("excluded")]
    return {
        "Instructions": "; ".join(f'"{text}"' for text in instructions),
        "Episodes trained on": f"{sum(len(of['train_episodes']) for of in datasets):,}",
        "Frames trained on": f"{sum(frames):,}" if len(frames) == len(datasets) else UNKNOWN,
        "Episodes held out": f"{sum(len(of['val_episodes']) for of in datasets):,}",
        "Episodes left out": "; ".join(left_out) or "none",
    }


def _mixed(run: RunFacts) -> list[dict[str, str]]:
    """A row for each dataset of a mixture: its folder as the configuration has it, and what is recorded of it."""
    if "mixture" not in run.dataset:
        return []
    named = {**run.config["dataset"], "exclude": ()}  # which names folders where they lay
    return [
        {
            **_data([of]),
            "name": str(part.folder),
            "weight": f"{part.weight:g} ({100 * of['share']:.1f} % of the samples)",
            "fingerprint": of["fingerprint"][:16],
        }
        for part, of in zip(trained_parts(run.split, named), _datasets(run), strict=True)
    ]


def _share(share: dict[str, Any]) -> str:
    """63 % (51 to 74), 40 of 63."""
    if not share["n"]:
        return "none seen"
    low, high = round(100 * share["low"]), round(100 * share["high"])
    return f"{100 * share['share']:.0f} % ({low} to {high}), {share['count']} of {share['n']}"


def _error(mae: float, wrong: float | None) -> str:
    """0.0123 (4.5 %)."""
    return f"{mae:.4f}" + ("" if wrong is None else f" ({100 * wrong:.1f} %)")
