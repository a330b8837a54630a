"""What a finished checkpoint and its run say of themselves. What is not recorded is None, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import checkpointing
from finetune.config.compose import read_yaml
from finetune.config.keys import keys_of
from finetune.config.mixture import parts
from finetune.config.publishable import publishable
from finetune.config.schema import FinetuneConfig, ReleaseConfig
from finetune.publishing.files import EXPERIMENT, small_files
from finetune.publishing.interface import Interface, interface_of
from finetune.release_mark import RELEASE_MARK, made_by
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.errors import ToolkitError
from gr00t.files import read_json
from gr00t.model.gr00t_n1 import find_tag
from gr00t.model.manifest import MANIFEST, verify_manifest
from gr00t.model.verify import CheckpointSummary, verify_checkpoint

BEST = "best.json"


@dataclass(frozen=True)
class RunFacts:
    """One finished checkpoint.

    config: as it is published. base: the base as the run was given it, a folder or hub id; None where no more than a
    folder's name is left of it. folders: absolute ones that the run's records name. dataset, versions, hardware: what
    experiment_cfg/ holds (hardware is of the last attempt, None where it was not recorded). best: the run's best.json.
    identity: of the run. step: optimizer steps that the weights have seen, None where it was not recorded. model:
    config.json.
    """

    checkpoint: Path
    split: str
    instruction: str
    config: dict[str, Any]
    base: str | None
    folders: tuple[str, ...]
    dataset: dict[str, Any]
    versions: dict[str, Any]
    hardware: dict[str, Any] | None
    best: dict[str, Any] | None
    identity: str
    step: int | None
    model: dict[str, Any]
    whole: CheckpointSummary
    interface: Interface


def read_facts(config: ReleaseConfig) -> RunFacts:
    """Everything about a checkpoint that is whole and finished; ToolkitError for any other."""
    checkpoint = Path(config.checkpoint)
    small_files(checkpoint)
    whole = verify_checkpoint(checkpoint)
    if (checkpoint / MANIFEST).is_file():  # earlier versions wrote none
        verify_manifest(checkpoint, added=True)  # what is added is not published
    experiment = checkpoint / EXPERIMENT
    recorded = read_yaml(experiment / "config.yaml")
    _check_split(config, _at(recorded, "split.name"))
    mark = read_json(checkpoint / RELEASE_MARK)
    identity = str(mark.get("identity"))
    run_dir = _own_run_dir(Path(config.run_dir), checkpoint)
    typed = _json_in(run_dir, "run_config.json")
    base = str(_at(typed or recorded, "model.base"))
    processor = Gr00tN1d7Processor.from_pretrained(checkpoint)
    return RunFacts(
        checkpoint=checkpoint,
        split=config.split.name,
        instruction=str(_at(recorded, "split.instruction")),
        config=publishable(recorded),
        base=base if typed or "/" in base else None,
        folders=_folders(typed or recorded),
        dataset=read_json(experiment / "dataset.json"),
        versions=read_json(experiment / "versions.json"),
        hardware=_json_in(experiment, "hardware.json"),
        best=_json_in(run_dir, BEST),
        identity=identity,
        step=mark.get("step"),
        model=read_json(checkpoint / "config.json"),
        whole=whole,
        interface=interface_of(processor, find_tag(processor, str(_at(recorded, "dataset.embodiment_tag")))),
    )


def _check_split(config: ReleaseConfig, trained: Any) -> None:
    if trained != config.split.name:
        raise ToolkitError(
            f"checkpoint={config.checkpoint} was trained on the split {trained}, not {config.split.name}. Say "
            f"split={trained}, or give another checkpoint=...."
        )


def _own_run_dir(run_dir: Path, checkpoint: Path) -> Path | None:
    """The run folder, where it is there; another run's is refused."""
    kept = checkpointing.list_checkpoints(run_dir)
    if not kept:
        return None
    found = read_json(kept[-1] / "state.json").get("identity") or {}
    if not made_by(checkpoint, found):
        raise ToolkitError(
            f"run_dir={run_dir} holds another run than the one that made the checkpoint. Give that run's folder, "
            "run_dir=..., or one that does not exist if it is gone."
        )
    return run_dir


def _folders(typed: Mapping[str, Any]) -> tuple[str, ...]:
    values = [_at(typed, key.name) for key in keys_of(FinetuneConfig).values() if key.bounds.get("folder")]
    values += [str(part.folder) for part in parts(_at(typed, "dataset.mixture") or [])]
    return tuple(value for value in values if isinstance(value, str) and Path(value).is_absolute())


def _json_in(folder: Path | None, name: str) -> dict[str, Any] | None:
    return read_json(folder / name) if folder is not None and (folder / name).is_file() else None


def _at(values: Mapping[str, Any], name: str) -> Any:
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
