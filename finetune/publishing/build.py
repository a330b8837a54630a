"""The release itself: everything is refused before the first byte, then the tree is made aside and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from finetune.code_files import in_words
from finetune.config.identity import differences
from finetune.config.modality import modality_configs
from finetune.config.schema import ReleaseConfig
from finetune.publishing.card import Publication, check_card, write_card
from finetune.publishing.facts import RunFacts, read_facts
from finetune.publishing.files import (
    CARD,
    EXPERIMENT,
    KEY,
    MARK,
    ROBOT,
    check_space,
    code_sources,
    left_out,
    new_code,
    package_files,
    small_files,
)
from finetune.publishing.hub import check_login, upload
from finetune.publishing.licence import Licence, hub_id_of, licence_of
from finetune.publishing.privacy import Machine, refuse_private
from finetune.publishing.results import read_results
from finetune.release_mark import robot_of
from gr00t.data.schema import comparable
from gr00t.errors import ToolkitError
from gr00t.files import copy_file, disk_errors, read_json, whole_folder
from gr00t.model.checkpoint_folder import weight_files
from gr00t.model.manifest import MANIFEST, write_manifest

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
    files = [str(name) for name in read_json(out / MARK).get("files") or []]
    bad = [
        name for name in files if ".." in Path(name).parts or (out / name).is_symlink() or not (out / name).is_file()
    ]
    if bad or CARD not in files:
        raise ToolkitError(f"{out} is no whole release any more ({', '.join(bad[:3]) or CARD}). Say overwrite=true.")
    check_card((out / CARD).read_text(encoding="utf-8"), out / CARD)
    refuse_private({name: out / name for name in files}, Machine.here())
    return Release(out, files, made=False)


def _is_no_file(path: Path) -> bool:
    return path.is_symlink() or not path.is_file()


@dataclass(frozen=True)
class _Tree:
    """What goes in, by its place: copied files, texts made here, and the large weight files."""

    sources: dict[str, Path]
    texts: dict[str, str]
    weights: dict[str, Path]

    @property
    def places(self) -> list[str]:
        return sorted({*self.sources, *self.texts, *self.weights})

    def write(self, folder: Path, *, link: bool) -> None:
        for place, source in self.sources.items():
            copy_file(source, folder / place)
        for place, text in self.texts.items():
            (folder / place).write_text(text, encoding="utf-8")
        for place, source in self.weights.items():
            (_link if link else copy_file)(source, folder / place)


def _make(configs: Sequence[ReleaseConfig], out: Path) -> Release:
    facts = [read_facts(config) for config in configs]
    for run, config in zip(facts, configs, strict=True):
        _check_robot(run, config)
    published = [_publication(run, config) for run, config in zip(facts, configs, strict=True)]
    licence = _licence(published, configs[0])
    tree = _tree(published, licence, configs[0])
    machine = Machine.here(folder for run in facts for folder in run.folders)
    refuse_private({**tree.sources, **tree.weights, **tree.texts}, machine)
    check_space(out, [*tree.sources.values(), *tree.weights.values()], configs[0].link)
    with disk_errors(out, _REMEDY), whole_folder(out) as aside:
        tree.write(aside, link=configs[0].link)
        for publication in published:
            write_manifest(aside / place_of(publication.facts.split))
    return Release(out, tree.places, _notes(published, licence, configs[0].files))


def _tree(published: Sequence[Publication], licence: Licence, config: ReleaseConfig) -> _Tree:
    card = write_card(
        published, licence, repo_id=config.repo_id, datasets=config.datasets, folder=Path(config.out).name
    )
    sources = {**code_sources(config.files), **licence.files}
    if config.modality_config is not None:
        sources[f"scripts/{ROBOT}"] = Path(config.modality_config)
    weights: dict[str, Path] = {}
    texts = {**package_files(), CARD: card}
    for facts in (run.facts for run in published):
        place = place_of(facts.split)
        sources |= {f"{place}/{name}": path for name, path in small_files(facts.checkpoint).items()}
        weights |= {f"{place}/{path.name}": path for path in weight_files(facts.checkpoint)}
        # Checkpoints of an earlier toolkit have the folders of their machine in it.
        texts[f"{place}/{EXPERIMENT}/config.yaml"] = OmegaConf.to_yaml(OmegaConf.create(facts.config))
    sources = {place: source for place, source in sources.items() if place not in texts}
    manifests = [f"{place_of(run.facts.split)}/{MANIFEST}" for run in published]
    mark = {
        "format": FORMAT,
        "runs": {run.split: run.facts.identity for run in published},
        "files": sorted({*sources, *texts, *weights, MARK, *manifests}),
    }
    texts[MARK] = json.dumps(mark, indent=2) + "\n"
    return _Tree(sources, texts, weights)


def place_of(split: str) -> str:
    """The checkpoint's folder in the tree."""
    return f"checkpoints/{split}"


def _publication(run: RunFacts, config: ReleaseConfig) -> Publication:
    base_model = config.base_model or hub_id_of(run.base)
    return Publication(run, read_results(Path(config.reports_dir), run.checkpoint, run.split), base_model)


def _licence(published: Sequence[Publication], config: ReleaseConfig) -> Licence:
    """One licence for all weights of a release: several bases with different terms need releases of their own."""
    found = [licence_of(run.facts.base, run.base_model, config.licence, config.repo_id) for run in published]
    if any((other.id, other.name, other.link) != (found[0].id, found[0].name, found[0].link) for other in found):
        raise ToolkitError("These runs start from bases with different licences. Release them one by one.")
    return found[0]


def _check_robot(run: RunFacts, config: ReleaseConfig) -> None:
    """The tree holds the robot's file, and its readers compare the checkpoint with it: refuse another one."""
    trained = {"modality_config": robot_of(run.checkpoint, run.interface.tag.value)}
    different = differences(trained, {"modality_config": comparable(modality_configs(config))})
    if different:
        listed = "\n  ".join(different)
        raise ToolkitError(
            f"{config.modality_config or ROBOT} is not the one that {run.checkpoint} was trained with:\n  {listed}\n"
            "Give that one, modality_config=FILE."
        )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise ToolkitError(
            f"link=true: {source} cannot be shared with the release ({error.strerror}): both must lie on one disk that "
            "has hard links. Leave link=true out."
        ) from None


def _notes(published: Sequence[Publication], licence: Licence, named: Sequence[str]) -> list[str]:
    notes = [note for run in published for note in run.results.notes]
    new = new_code(named)
    if new:
        notes.append(f"not in the release, since git does not track it: {in_words(new)} (git add, or {KEY}=[FILE,...])")
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
