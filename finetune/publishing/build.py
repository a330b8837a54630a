"""The release itself: everything is refused before the first byte, then the tree is made aside and renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from conflict_panda_config import MODALITY_CONFIG
from finetune.config.checks import is_hub_id
from finetune.config.schema import ReleaseConfig
from finetune.publishing.card import Publication, check_card, write_card
from finetune.publishing.facts import RunFacts, read_facts
from finetune.publishing.files import (
    CARD,
    EXPERIMENT,
    MARK,
    check_space,
    code_sources,
    left_out,
    package_files,
    small_files,
)
from finetune.publishing.hub import check_login, upload
from finetune.publishing.licence import Licence, licence_of
from finetune.publishing.privacy import Machine, refuse_private
from finetune.publishing.results import read_results
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, read_json, whole_folder, write_json
from gr00t.model.checkpoint_folder import weight_files
from gr00t.model.gr00t_n1 import check_same_modalities

FORMAT = 1
_REMEDY = "Make room, or give another folder, out=FOLDER; then start the same command again."


@dataclass(frozen=True)
class Release:
    """A published tree: its folder, its files, what a user should know, and its address where it was uploaded."""

    out: Path
    files: list[str]
    notes: list[str] = field(default_factory=list)
    made: bool = True
    address: str | None = None

    def lines(self) -> list[str]:
        size = sum((self.out / name).stat().st_size for name in self.files)
        verb = "is made" if self.made else "was there and is sent as it is"
        lines = [f"{self.out} {verb}: {len(self.files)} files, {size / 1e9:.2f} GB. Its card is {self.out / CARD}."]
        lines += [f"note: {note}" for note in self.notes]
        return lines + ([f"uploaded: {self.address}"] if self.address else [])


def release(configs: Sequence[ReleaseConfig]) -> Release:
    """Make the tree of these runs at their common `out`, and upload it where that is asked."""
    config, out = configs[0], Path(configs[0].out)
    _refuse_foreign(out)
    if config.upload:
        check_login(str(config.repo_id))
    if out.is_dir() and any(out.iterdir()) and not config.overwrite:
        if not config.upload:
            raise ToolkitError(f"{out} is a release already. Say overwrite=true to make it anew, or out=FOLDER.")
        found = _existing(out)
    else:
        found = _make(configs, out)
    if not config.upload:
        return found
    address = upload(out, found.files, str(config.repo_id), private=config.private)
    return Release(out, found.files, found.notes, found.made, address)


def _refuse_foreign(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise ToolkitError(
            f"out={out} holds other files than a release; it is never replaced. Give another, out=FOLDER."
        )


def _existing(out: Path) -> Release:
    """A release that is there: its files, edited ones too, looked at again before they leave."""
    files = [str(name) for name in read_json(out / MARK).get("files", [])]
    missing = [name for name in files if not (out / name).is_file()]
    if missing or not files:
        raise ToolkitError(f"{out} is no whole release any more: it lacks {', '.join(missing[:3]) or 'everything'}. "
                           "Make it anew with overwrite=true.")  # fmt: skip
    check_card((out / CARD).read_text(encoding="utf-8"), out / CARD)
    refuse_private(out, files, Machine.here())
    return Release(out, files, made=False)


def _make(configs: Sequence[ReleaseConfig], out: Path) -> Release:
    facts = [read_facts(config) for config in configs]
    for run in facts:
        _check_interface(run)
    published = [_publication(run, config) for run, config in zip(facts, configs, strict=True)]
    licence = _licence(published, configs[0])
    card = write_card(published, licence, repo_id=configs[0].repo_id, datasets=configs[0].datasets, folder=out.name)
    sources = {**code_sources(), **licence.files}
    weights: dict[str, Path] = {}
    for run in facts:
        place = f"checkpoints/{run.split}"
        sources |= {f"{place}/{name}": path for name, path in small_files(run.checkpoint).items()}
        weights |= {f"{place}/{path.name}": path for path in weight_files(run.checkpoint)}
    check_space(out, [*sources.values(), *weights.values()], configs[0].link)
    with disk_errors(out, _REMEDY), whole_folder(out) as aside:
        for place, source in sources.items():
            _copy(source, aside / place)
        texts = {**package_files(), CARD: card, **{_config_place(run): _config_text(run) for run in facts}}
        for place, text in texts.items():
            (aside / place).write_text(text, encoding="utf-8")
        files = sorted({*sources, *texts, *weights, MARK})
        write_json(aside / MARK, {"format": FORMAT, "runs": {run.split: run.identity for run in facts}, "files": files})
        machine = Machine.here(folder for run in facts for folder in run.folders())
        refuse_private(aside, [*sources, *texts, MARK], machine)
        for place, source in weights.items():
            _link(source, aside / place) if configs[0].link else _copy(source, aside / place)
        refuse_private(aside, weights, machine)
    return Release(out, files, _notes(published, licence))


def _publication(run: RunFacts, config: ReleaseConfig) -> Publication:
    base = str(run.typed["model"]["base"])
    base_model = config.base_model or (base if is_hub_id(base) else None)
    return Publication(run, read_results(Path(config.reports_dir), run.checkpoint, run.split), base_model)


def _licence(published: Sequence[Publication], config: ReleaseConfig) -> Licence:
    """One licence for all weights of a release: several bases with different terms need releases of their own."""
    found = [
        licence_of(str(run.facts.typed["model"]["base"]), run.base_model, config.licence, config.repo_id)
        for run in published
    ]
    if any((other.id, other.name, other.link) != (found[0].id, found[0].name, found[0].link) for other in found):
        raise ToolkitError("These runs start from bases with different licences. Release them one by one.")
    return found[0]


def _check_interface(run: RunFacts) -> None:
    """The snippet of the card compares the checkpoint with conflict_panda_config.py of the tree."""
    processor = Gr00tN1d7Processor.from_pretrained(run.checkpoint)
    tag = run.interface.tag.value
    try:
        check_same_modalities(MODALITY_CONFIG, processor.modality_config(tag), tag)
    except ToolkitError as error:
        raise ToolkitError(
            f"conflict_panda_config.py is not the one that {run.checkpoint} was trained with: {error}"
        ) from None


def _config_place(run: RunFacts) -> str:
    return f"checkpoints/{run.split}/{EXPERIMENT / 'config.yaml'}"


def _config_text(run: RunFacts) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(run.config))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise ToolkitError(
            f"link=true: {source} cannot be shared with the release ({error.strerror}): both must lie on one disk that "
            "has hard links. Leave link=true out."
        ) from None


def _notes(published: Sequence[Publication], licence: Licence) -> list[str]:
    notes = [note for run in published for note in run.results.notes]
    for run in published:
        others = left_out(run.facts.checkpoint)
        if others:
            notes.append(f"not in the release: {', '.join(others[:8])} of {run.facts.checkpoint}")
        if run.facts.hardware is None:
            notes.append(f"{run.facts.checkpoint} does not say what it was trained on; the card says so")
        if not (run.results.open_loop or run.results.closed_loop):
            notes.append(f"the card has no results of {run.split}: evaluate it first, or give reports_dir=FOLDER")
    if any(run.base_model is None for run in published):
        notes.append("the base's hub id is unknown; say base_model=owner/name where it has one")
    if licence.id is None:
        notes.append("the licence of the weights is unknown; say licence=...")
    return notes
