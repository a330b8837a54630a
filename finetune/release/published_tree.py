"""The published tree: everything is refused before the first byte, then the tree is made aside and renamed, and sent to
the Hugging Face hub where that is asked. The token is the client's own business: it is never read here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi
from omegaconf import OmegaConf

from finetune.recipe.recipe_identity import differences, robot_of
from finetune.release import ReleaseConfig
from finetune.release.model_card import check_card, write_card
from finetune.release.published_files import (
    CARD,
    EXPERIMENT,
    KEY,
    MARK,
    PACKAGE,
    ROBOT,
    Machine,
    check_space,
    code_sources,
    left_out,
    new_code,
    refuse_private,
    small_files,
)
from finetune.release.run_facts import Licence, RunFacts, licence_of, read_facts
from gr00t.data.schema import comparable
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_replacement import copy_file, read_json, whole_folder
from gr00t.model.checkpoint_folder import is_hub_error, weight_files
from gr00t.model.finished_checkpoint import MANIFEST, write_manifest
from toolkit.code_files import in_words
from toolkit.shared_keys import modality_configs

FORMAT = 1


@dataclass(frozen=True)
class Release:
    """A published tree: its folder, its files, what a user should know, and its address where it was uploaded."""

    out: Path
    files: list[str]
    notes: list[str] = field(default_factory=list)
    made: bool = True
    address: str | None = None

    def lines(self) -> list[str]:
        """What is printed of it."""
        size = sum((self.out / name).stat().st_size for name in self.files)
        verb = "is made" if self.made else "was there and is sent as it is"
        lines = [f"{self.out} {verb}: {len(self.files)} files, {size / 1e9:.2f} GB. Its card is {self.out / CARD}."]
        lines += [f"note: {note}" for note in self.notes]
        return lines + ([f"uploaded: {self.address}"] if self.address else [])


def release(configs: Sequence[ReleaseConfig]) -> Release:
    """Make the tree of these runs at their common `out`, and upload it where that is asked."""
    config, out = configs[0], Path(configs[0].out)
    there = out.is_dir() and any(out.iterdir())
    if there and not (out / MARK).is_file():
        raise ToolkitError(
            f"out={out} holds other files than a release; it is never replaced. Give another, out=FOLDER."
        )
    if config.upload:  # making a release takes minutes: refused before where nobody is logged in
        with _hub(str(config.repo_id)) as api:
            api.whoami()
    if there and not config.overwrite:
        if not config.upload:
            raise ToolkitError(f"{out} is a release already. Say overwrite=true to make it anew, or out=FOLDER.")
        found = _existing(out)
    else:
        found = _make(configs, out)
    if not config.upload:
        return found
    address = upload(out, found.files, str(config.repo_id), private=config.private)
    return replace(found, address=address)


def _existing(out: Path) -> Release:
    """A release that is there: its files, edited ones too, looked at again before they leave."""
    files = [str(name) for name in read_json(out / MARK).get("files") or []]
    whole = [n for n in files if ".." not in Path(n).parts and (out / n).is_file() and not (out / n).is_symlink()]
    bad = [name for name in files if name not in whole]
    if bad or CARD not in files:
        raise ToolkitError(f"{out} is no whole release any more ({', '.join(bad[:3]) or CARD}). Say overwrite=true.")
    check_card((out / CARD).read_text(encoding="utf-8"), out / CARD)
    refuse_private({name: out / name for name in files}, Machine.here())
    return Release(out, files, made=False)


def _make(configs: Sequence[ReleaseConfig], out: Path) -> Release:
    config, runs = configs[0], [read_facts(of) for of in configs]
    for run, of in zip(runs, configs, strict=True):
        _check_robot(run, of)
    # one licence for all weights of a release: several bases with different terms need releases of their own
    licence, *others = (licence_of(run.base, run.base_model, config.licence, config.repo_id) for run in runs)
    if any((other.id, other.name, other.link) != (licence.id, licence.name, licence.link) for other in others):
        raise ToolkitError("These runs start from bases with different licences. Release them one by one.")
    sources, texts, weights = _tree(runs, licence, config)
    refuse_private({**sources, **weights, **texts}, Machine.here(folder for run in runs for folder in run.folders))
    check_space(out, [*sources.values(), *weights.values()], config.link)
    remedy = "Make room, or give another folder, out=FOLDER; then start the same command again."
    with disk_errors(out, remedy), whole_folder(out) as aside:
        for place, source in sources.items():
            copy_file(source, aside / place)
        for place, text in texts.items():
            (aside / place).write_text(text, encoding="utf-8")
        for place, source in weights.items():
            (_link if config.link else copy_file)(source, aside / place)
        for run in runs:
            write_manifest(aside / "checkpoints" / run.split)
    return Release(out, sorted({*sources, *texts, *weights}), _notes(runs, licence, config.files))


def _check_robot(run: RunFacts, config: ReleaseConfig) -> None:
    """The tree holds the robot's file, and its readers compare the checkpoint with it: refuse another one."""
    trained = {"modality_config": robot_of(run.checkpoint, run.tag)}
    different = differences(trained, {"modality_config": comparable(modality_configs(config))})
    if different:
        listed = "\n  ".join(different)
        raise ToolkitError(
            f"{config.modality_config or ROBOT} is not the one that {run.checkpoint} was trained with:\n  {listed}\n"
            "Give that one, modality_config=FILE."
        )


def _tree(
    runs: Sequence[RunFacts], licence: Licence, config: ReleaseConfig
) -> tuple[dict[str, Path], dict[str, str], dict[str, Path]]:
    """What goes in, by its place: copied files, texts made here, and the large weight files."""
    folder = Path(config.out).name
    card = write_card(runs, licence, repo_id=config.repo_id, datasets=config.datasets, folder=folder)
    sources = {**code_sources(config.files), **licence.files}
    if config.modality_config is not None:
        sources[f"scripts/{ROBOT}"] = Path(config.modality_config)
    weights: dict[str, Path] = {}
    texts, manifests = {"scripts/__init__.py": PACKAGE, CARD: card}, []
    for run in runs:
        place = f"checkpoints/{run.split}"
        sources |= {f"{place}/{name}": path for name, path in small_files(run.checkpoint).items()}
        weights |= {f"{place}/{path.name}": path for path in weight_files(run.checkpoint)}
        # Checkpoints of an earlier toolkit have the folders of their machine in it.
        texts[f"{place}/{EXPERIMENT}/config.yaml"] = OmegaConf.to_yaml(OmegaConf.create(run.config))
        manifests.append(f"{place}/{MANIFEST}")
    sources = {place: source for place, source in sources.items() if place not in texts}
    mark = {
        "format": FORMAT,
        "runs": {run.split: str(run.mark.get("identity")) for run in runs},
        "files": sorted({*sources, *texts, *weights, MARK, *manifests}),
    }
    texts[MARK] = json.dumps(mark, indent=2) + "\n"
    return sources, texts, weights


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise ToolkitError(
            f"link=true: {source} cannot be shared with the release ({error.strerror}): both must lie on one disk that "
            "has hard links. Leave link=true out."
        ) from None


def _notes(runs: Sequence[RunFacts], licence: Licence, named: Sequence[str]) -> list[str]:
    notes = [note for run in runs for note in run.results.notes]
    new = new_code(named)
    if new:
        notes.append(f"not in the release, since git does not track it: {in_words(new)} (git add, or {KEY}=[FILE,...])")
    for run in runs:
        others = left_out(run.checkpoint)
        if others:
            notes.append(f"not in the release: {', '.join(others[:8])} of {run.checkpoint}")
        if run.hardware is None:
            notes.append(f"{run.checkpoint} does not say what it was trained on; the card says so")
        if not (run.results.open_loop or run.results.closed_loop):
            notes.append(f"the card has no results of {run.split}: evaluate it first, or give reports_dir=FOLDER")
    if any(run.base_model is None for run in runs):
        notes.append("the base's hub id is unknown; say base_model=owner/name where it has one")
    if licence.id is None:
        notes.append("the licence of the weights is unknown; say licence=...")
    return notes


# -- the hub -----------------------------------------------------------------------------------------------------------


@contextmanager
def _hub(repo_id: str, rest: str = "") -> Iterator[HfApi]:
    """The hub's client; its refusals as what the user can do about them, and without its messages, which may show an
    address with a token."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield huggingface_hub.HfApi()
    except Exception as error:
        if not is_hub_error(error):
            raise
        answer = error.response if isinstance(error, HfHubHTTPError) else None
        status = None if answer is None else answer.status_code
        kind = f"{type(error).__name__}{f', status {status}' if status else ''}"
        what = (
            f"the hub cannot be reached or did not take {repo_id} ({kind}). Where there is internet, start the same "
            "command again."
        )
        if isinstance(error, LocalTokenNotFoundError) or status == 401:
            what = "nobody is logged in, or the token is no longer valid. Run `hf auth login`."
        elif status == 403:
            what = (
                f"this account may not write to {repo_id}. Take a token with write access (`hf auth login`), or "
                "another repo_id=owner/name."
            )
        raise ToolkitError(f"upload=true: {what}{rest}") from None


def upload(tree: Path, places: Sequence[str], repo_id: str, *, private: bool) -> str:
    """Make the repository if there is none, and send these files of the tree in one commit; its address."""
    with _hub(repo_id, f" {tree} is whole and will be sent as it is.") as api:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=tree,
            allow_patterns=list(places),
            commit_message=f"Release {tree.name}",
        )
    return f"https://huggingface.co/{repo_id}"
