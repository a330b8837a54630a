"""What the card of a release is made of: what a finished checkpoint and its run say of themselves, the licence of its
weights, and the results found in the reports folder. What is not recorded is None, never guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from finetune.open_loop.predictions import PREDICTORS
from finetune.prefetch import ORIGIN
from finetune.recipe import FinetuneConfig
from finetune.recipe.recipe_identity import RELEASE_MARK, made_by, publishable
from finetune.recipe.train_config import parts
from finetune.release import ReleaseConfig
from finetune.training import RUN_CONFIG, checkpointing, read_best, read_optional
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.processor_files import FILES as PROCESSOR_FILES
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.model.checkpoint_folder import CONFIG_NAME, INDEX_NAME, fingerprint, weight_files
from gr00t.model.finished_checkpoint import MANIFEST, CheckpointSummary, verify_checkpoint, verify_manifest
from gr00t.model.gr00t_n1 import find_tag
from toolkit.composition import read_yaml
from toolkit.declaration import flat, keys_of
from toolkit.publication import HUB
from toolkit.shared_keys import is_hub_id

EXPERIMENT = RELEASE_MARK.parent
RUN_FILES = [str(EXPERIMENT / name) for name in ("config.yaml", "dataset.json", "versions.json", RELEASE_MARK.name)]
OPEN_LOOP, CLOSED_LOOP = "open_loop.json", "closed_loop.json"
PARTS = ("train", "val", "unseen", "conflict")
AS_IT_IS = "none"  # the condition under which the policy sees what is there

_OPTIONAL = (INDEX_NAME, *(str(EXPERIMENT / name) for name in ("hardware.json", "conditions.json")))
_SUFFIXES = (".json", ".jinja", ".txt")
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*")
_TERMS = "terms-of-the-base-model"


@dataclass(frozen=True)
class RunFacts:
    """One finished checkpoint of a release, and what its files and its run's say of it.

    config: as it is published. base: the base as the run was given it, a folder or hub id; None where no more than a
    folder's name is left of it. base_model: hub id of the base, None where there is none. folders: absolute ones that
    the run's records name. dataset, versions, hardware: what experiment_cfg/ holds (hardware is of the last attempt,
    None where it was not recorded). best: the run's best.json. mark: the run's identity, and the optimizer steps that
    the weights have seen where they were recorded. model: config.json. tag: of the embodiment it was trained for.
    """

    checkpoint: Path
    split: str
    config: dict[str, Any]
    base: str | None
    base_model: str | None
    folders: list[str]
    dataset: dict[str, Any]
    versions: dict[str, Any]
    hardware: dict[str, Any] | None
    best: dict[str, Any] | None
    mark: dict[str, Any]
    model: dict[str, Any]
    whole: CheckpointSummary
    processor: Gr00tN1d7Processor
    tag: str
    results: Results


def small_files(checkpoint: Path) -> dict[str, Path]:
    """{place in the checkpoint: file} of all that a release holds of a finished checkpoint, but its weights.

    Raises ToolkitError for a folder that lacks one of them: an unfinished checkpoint, or one of another project.
    """
    needed = [CONFIG_NAME, *PROCESSOR_FILES, *(f"processor/{name}" for name in PROCESSOR_FILES), *RUN_FILES]
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    if missing:
        raise ToolkitError(
            f"checkpoint={checkpoint} lacks {', '.join(missing)}: it is no finished checkpoint of this toolkit. Give "
            "the output_dir of a fine-tune that has ended (launch_finetune_local.py says where it is)."
        )
    tokenizer = (path for path in (checkpoint / "processor" / "vlm").rglob("*") if path.suffix in _SUFFIXES)
    names = {*needed, *_OPTIONAL, *(path.relative_to(checkpoint).as_posix() for path in tokenizer)}
    return {name: checkpoint / name for name in sorted(names) if (checkpoint / name).is_file()}


def left_out(checkpoint: Path) -> list[str]:
    """What else lies in a checkpoint folder and does not go into a release; folders are named once."""
    taken = {*small_files(checkpoint), *(path.name for path in weight_files(checkpoint)), str(MANIFEST)}
    others = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()} - taken
    named = ("processor/", "experiment_cfg/")
    return sorted({x if x.startswith(named) or "/" not in x else x.split("/")[0] + "/" for x in others})


def read_facts(config: ReleaseConfig) -> RunFacts:
    """Everything about a checkpoint that is whole and finished; ToolkitError for any other."""
    checkpoint = Path(config.checkpoint)
    small_files(checkpoint)
    whole = verify_checkpoint(checkpoint)
    if (checkpoint / MANIFEST).is_file():  # earlier versions wrote none
        verify_manifest(checkpoint, added=True)  # what is added is not published
    experiment = checkpoint / EXPERIMENT
    recorded = read_yaml(experiment / "config.yaml")
    trained = flat(recorded).get("split.name")
    if trained != config.split.name:
        raise ToolkitError(
            f"checkpoint={config.checkpoint} was trained on the split {trained}, not {config.split.name}. Say "
            f"split={trained}, or give another checkpoint=...."
        )
    run_dir = _own_run_dir(Path(config.run_dir), checkpoint)
    typed = read_optional(run_dir / RUN_CONFIG) if run_dir else None
    named = str(flat(typed or recorded).get("model.base"))
    base = named if typed or "/" in named else None
    processor = Gr00tN1d7Processor.from_pretrained(checkpoint)
    return RunFacts(
        checkpoint=checkpoint,
        split=config.split.name,
        config=publishable(recorded),
        base=base,
        base_model=config.base_model or hub_id_of(base),
        folders=_folders(flat(typed or recorded)),
        dataset=read_json(experiment / "dataset.json"),
        versions=read_json(experiment / "versions.json"),
        hardware=read_optional(experiment / "hardware.json"),
        best=read_best(run_dir) if run_dir else None,
        mark=read_json(checkpoint / RELEASE_MARK),
        model=read_json(checkpoint / "config.json"),
        whole=whole,
        processor=processor,
        tag=find_tag(processor, str(flat(recorded).get("dataset.embodiment_tag"))),
        results=read_results(Path(config.reports_dir), checkpoint, config.split.name),
    )


def _own_run_dir(run_dir: Path, checkpoint: Path) -> Path | None:
    """The run folder, where it has checkpoints; another run's is refused."""
    kept = checkpointing.list_checkpoints(run_dir)
    if kept and not made_by(checkpoint, read_json(kept[-1] / "state.json").get("identity") or {}):
        raise ToolkitError(
            f"run_dir={run_dir} holds another run than the one that made the checkpoint. Give that run's folder, "
            "run_dir=..., or one that does not exist if it is gone."
        )
    return run_dir if kept else None


def _folders(typed: dict[str, Any]) -> list[str]:
    """Absolute ones among the values, by dotted name, of a configuration."""
    values = [typed.get(key.name) for key in keys_of(FinetuneConfig).values() if key.bounds.get("folder")]
    values += [str(part.folder) for part in parts(typed.get("dataset.mixture") or [])]
    values += [entry.rpartition("/")[0] for entry in typed.get("dataset.exclude") or []]
    return [value for value in values if isinstance(value, str) and Path(value).is_absolute()]


@dataclass(frozen=True)
class Licence:
    """Hugging Face's three fields for the weights (None: unknown), and the base's own files that go along."""

    id: str | None = None
    name: str | None = None
    link: str | None = None
    files: dict[str, Path] = field(default_factory=dict)


def hub_id_of(base: str | None) -> str | None:
    """The repository of a base: itself, or where finetune.prefetch had it from; None where nothing says."""
    if base is None:
        return None
    if is_hub_id(base):
        return "/".join(base.split("/")[:2])
    origin = Path(base) / ORIGIN
    return str(read_json(origin)["base_model"]) if origin.is_file() else None


def licence_of(base: str | None, base_model: str | None, chosen: str | None, repo_id: str | None) -> Licence:
    """The licence of weights that were tuned from `base`, a folder or a hub id (None: unknown); `chosen` wins.

    base_model: the base's hub id, where there is one: its page has its terms. repo_id: where the release will be.
    """
    files, stated = {}, {}
    if base is not None and Path(base).is_dir():
        # the base's licence and notice go along under names of their own: LICENSE is the code's
        carried = sorted(path for pattern in _LICENCE_FILES for path in Path(base).glob(pattern) if path.is_file())
        files = {f"{path.stem}-WEIGHTS{path.suffix}": path for path in carried}
        stated = _stated(Path(base) / "README.md")
    found = chosen or stated.get("license") or ("other" if files or base_model else None)
    if found != "other":
        return Licence(found, files=files)
    link = f"{HUB}/{base_model}" if base_model else None
    if files and repo_id:  # the hub takes no other file of a repository than LICENSE
        link = f"{HUB}/{repo_id}/blob/main/{next(iter(files))}"
    elif "://" in stated.get("license_link", ""):
        link = stated["license_link"]
    return Licence(found, stated.get("license_name", _TERMS), link, files)


def _stated(readme: Path) -> dict[str, str]:
    """The licence fields in the front matter of the base's own card."""
    if not readme.is_file():
        return {}
    try:
        data = ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise ToolkitError(f"{readme} cannot be read ({type(error).__name__}). Mend it, or say licence=...") from None
    return {name: str(value) for name, value in data.items() if name.startswith("license") and value}


@dataclass(frozen=True)
class Results:
    """Everything that was measured with a checkpoint; notes: what was found and not used, and why."""

    open_loop: list[dict[str, Any]] = field(default_factory=list)
    closed_loop: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_results(reports_dir: Path, checkpoint: Path, split: str) -> Results:
    """The results below `reports_dir` that are of this very checkpoint, of each part the newest open loop."""
    own, notes = fingerprint(checkpoint), list[str]()
    closed_loop = []
    measured = [
        (path, _parsed(path, data, _open_loop))
        for path, data in _found(reports_dir, OPEN_LOOP)
        if _is_of(data, path, checkpoint, own, split, notes)
    ]
    open_loop = _as_the_policy_acts(measured, read_json(checkpoint / CONFIG_NAME).get("num_inference_timesteps"), notes)
    for path, data in _found(reports_dir, CLOSED_LOOP):
        if not _is_of(data.get("info") or {}, path, checkpoint, own, split, notes):
            continue
        if "summary" in data:
            closed_loop.append(_parsed(path, data, _closed_loop))
        else:
            notes.append(f"{path} holds no summary, left out: make its report again")
    return Results([open_loop[part] for part in PARTS if part in open_loop], closed_loop, notes)


def _as_the_policy_acts(
    measured: list[tuple[Path, dict[str, Any]]], steps: int | None, notes: list[str]
) -> dict[str, dict[str, Any]]:
    """Of each part the newest at the policy's own settings (`steps` of denoising, no guidance), or else the newest."""
    taken: dict[str, dict[str, Any]] = {}
    others = []
    for path, result in measured:
        if result["guidance"] == 1 and result["denoising_steps"] in (None, steps):
            taken[result["part"]] = result
        else:
            others.append((path, result))
    for path, result in others[::-1]:
        if taken.setdefault(result["part"], result) is not result:
            settings = f"{result['denoising_steps']} denoising steps, guidance={result['guidance']:g}"
            notes.append(f"{path} was measured with other settings than what is taken ({settings}), left out")
    return taken


def _found(folder: Path, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files of that name, oldest first; those in hidden folders are half-written."""
    paths = [path for path in folder.rglob(name) if not any(p.startswith(".") for p in path.relative_to(folder).parts)]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        yield path, read_json(path)


def _is_of(info: dict[str, Any], path: Path, checkpoint: Path, own: str, split: str, notes: list[str]) -> bool:
    """Whether it was measured with this checkpoint: by its fingerprint, or else by its folder and the time."""
    if info.get("split") != split:
        return False
    measured = info.get("checkpoint_fingerprint")
    if measured is None and path.stat().st_mtime >= (checkpoint / "config.json").stat().st_mtime:
        measured = own if Path(str(info.get("checkpoint"))).resolve() == checkpoint.resolve() else None
    if measured != own:
        notes.append(f"{path} was measured with another checkpoint, left out")
    return measured == own


def _parsed(path: Path, data: dict[str, Any], read: Any) -> Any:
    try:
        return read(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ToolkitError(f"{path} is damaged ({type(error).__name__}: {error}). Evaluate again.") from None


def _open_loop(data: dict[str, Any]) -> dict[str, Any]:
    """Errors on the episodes of one part; rows: (group, (mean absolute error, share of wrong signs) a predictor)."""
    measured = data["overall"]["all"]
    training = str(Path(data["config"]["data_dir"]) / data["split"] / "train")  # a folder of the machine it was made on
    rows = []
    for group, errors in measured["errors"].items():
        of_group = [errors[predictor] for predictor in PREDICTORS]
        rows.append((group, [(float(of["mae"]), of["sign_error_rate"]) for of in of_group]))
    return {
        "part": data["part"],
        "episodes": len(data["episodes"]),
        "starts": int(measured["starts"]),
        "denoising_steps": data.get("denoising_steps"),
        "guidance": float(data.get("guidance", 1)),
        "rows": rows,
        "findings": [finding.replace(training, "its training dataset") for finding in data["findings"]],
    }


def _closed_loop(data: dict[str, Any]) -> dict[str, Any]:
    """The summary as it stands in the file, with what was played."""
    info, summary = data["info"], data["summary"]
    counted = {
        condition: {
            part: {"success": of["success"], "target": of["picks"]["target"], "lure": of["picks"]["lure"]}
            for part, of in parts.items()
        }
        for condition, parts in summary["counted"].items()
    }
    return {
        "denoising_steps": info.get("denoising_steps"),
        "guidance": float(info.get("guidance", 1)),
        **{name: info[name] for name in ("n_action_steps", "max_steps")},
        **{name: summary[name] for name in ("cues", "cue_preference")},
        "parts": counted.pop(AS_IT_IS, {}),
        "ablations": counted,
        "readings": [(r["question"], r["headline"], r["text"]) for r in summary["readings"]],
    }
