"""The published tree: everything is refused before the first byte, then the tree is made aside and renamed, and sent to
the Hugging Face hub where that is asked (toolkit.publication, which looks for what must never be published)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from finetune.recipe.recipe_identity import differences, robot_of
from finetune.release import ReleaseConfig
from finetune.release.model_card import write_card
from finetune.release.run_facts import EXPERIMENT, Licence, RunFacts, left_out, licence_of, read_facts, small_files
from gr00t.data.schema import comparable
from gr00t.errors import ToolkitError, first_of
from gr00t.file_reading import parsing
from gr00t.model.checkpoint_folder import fingerprint, weight_files
from gr00t.model.finished_checkpoint import MANIFEST, verify_manifest, write_manifest
from toolkit.code_files import code_files, new_files, tracked_among
from toolkit.installation import CHECKOUT, ROOT
from toolkit.publication import CARD, Kind, Machine, Published, new_folder, publish, refuse_private
from toolkit.shared_keys import modality_configs, robot_path

FORMAT = 1
KEY = "files"  # names files that git does not track
KIND = Kind("release", "release.json", "model")
WEIGHTS = ".safetensors"
ROBOT = "conflict_panda_config.py"
# only a published tree has it: scripts/ is a package, whatever else Python calls `scripts`
PACKAGE = '"""The scripts of a published tree; `from scripts.conflict_panda_config import MODALITY_CONFIG`."""\n'

_ROOMS = ("toolkit", "finetune", "data_prep", "simulation", "configs", "finetune_jobs")
_ENTRY = (ROBOT, "launch_finetune_local.py", "prepare_conflict_data.py")
_TOP = ("finetune.md", "LICENSE", "pyproject.toml", "constraints.txt")
_LINK = re.compile(r"\]\((?!\w+:|#|/)([\w./-]+)")


def release(configs: Sequence[ReleaseConfig]) -> Published:
    """Make the tree of these runs at their common `out`, and upload it where that is asked."""
    out = Path(configs[0].out)
    return publish(configs[0], KIND, lambda: _make(configs, out), lambda files: _look_again(configs, files))


def is_code(place: str) -> bool:
    """Whether a file was made by the authors of the code, and not by a run."""
    return not (place.startswith("checkpoints/") or place == CARD)


def _look(contents: Mapping[str, Path | str], machine: Machine, configs: Sequence[ReleaseConfig]) -> None:
    # a login that is the owner's name on the hub too is published with the release
    named = [hub_id for of in configs for hub_id in (of.repo_id, of.base_model, *of.datasets) if hub_id]
    refuse_private(contents, machine, KIND.noun, is_code, "\n".join(named))


def _look_again(configs: Sequence[ReleaseConfig], files: Mapping[str, Path]) -> None:
    """At a release that is there: its checkpoints are whole, and those that are meant; a card may have been edited."""
    _look(files, Machine.here(), configs)
    for path in (path for place, path in files.items() if place.endswith(f"/{MANIFEST}")):
        verify_manifest(path.parents[len(MANIFEST.parts) - 1], added=True)
    out = Path(configs[0].out)
    for config in configs:
        released, checkpoint = out / "checkpoints" / config.split.name, Path(config.checkpoint)
        if not released.is_dir() or fingerprint(released) != fingerprint(checkpoint):
            raise ToolkitError(
                f"{out} was made of another checkpoint than {checkpoint}, and would be sent as it is. Say "
                "overwrite=true to make it again of this one, or give the one that it was made of, checkpoint=FOLDER."
            )


def _make(configs: Sequence[ReleaseConfig], out: Path) -> Published:
    config, runs = configs[0], []
    for of in configs:
        with parsing(Path(of.checkpoint)):
            runs.append(read_facts(of))
    for run, of in zip(runs, configs, strict=True):
        _check_robot(run, of)
    # one licence for all weights of a release: several bases with different terms need releases of their own
    licence, *others = (licence_of(run.base, run.base_model, config.licence, config.repo_id) for run in runs)
    if any((other.id, other.name, other.link) != (licence.id, licence.name, licence.link) for other in others):
        raise ToolkitError("These runs start from bases with different licences. Release them one by one.")
    sources, texts = _tree(runs, licence, config)
    _look({**sources, **texts}, Machine.here(folder for run in runs for folder in run.folders), configs)
    linked = {place for place, source in sources.items() if config.link and source.suffix == WEIGHTS}
    with new_folder(out, KIND, sources, texts, linked, "the weights with the checkpoint") as aside:
        for run in runs:
            write_manifest(aside / "checkpoints" / run.split)
    return Published(out, sorted({*sources, *texts}), _notes(runs, licence, config.files))


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


def _tree(runs: Sequence[RunFacts], licence: Licence, config: ReleaseConfig) -> tuple[dict[str, Path], dict[str, str]]:
    """What goes in, by its place: files of elsewhere, and texts made here."""
    folder = Path(config.out).name
    card = write_card(runs, licence, repo_id=config.repo_id, datasets=config.datasets, folder=folder)
    sources = {**code_sources(config.files), **licence.files}
    if config.modality_config is not None:
        sources[f"scripts/{ROBOT}"] = robot_path(config.modality_config)
    texts, manifests = {"scripts/__init__.py": PACKAGE, CARD: card}, []
    for run in runs:
        place = f"checkpoints/{run.split}"
        sources |= {f"{place}/{name}": path for name, path in small_files(run.checkpoint).items()}
        sources |= {f"{place}/{path.name}": path for path in weight_files(run.checkpoint)}
        # Checkpoints of an earlier toolkit have the folders of their machine in it.
        texts[f"{place}/{EXPERIMENT}/config.yaml"] = OmegaConf.to_yaml(OmegaConf.create(run.config))
        manifests.append(f"{place}/{MANIFEST}")
    sources = {place: source for place, source in sources.items() if place not in texts}
    mark = {
        "format": FORMAT,
        "runs": {run.split: str(run.mark.get("identity")) for run in runs},
        "files": sorted({*sources, *texts, KIND.mark, *manifests}),
    }
    texts[KIND.mark] = json.dumps(mark, indent=2) + "\n"
    return sources, texts


def _notes(runs: Sequence[RunFacts], licence: Licence, named: Sequence[str]) -> list[str]:
    notes = [note for run in runs for note in run.results.notes]
    copied = {*code_files(CHECKOUT, named, KEY)}
    if new := [name for name in new_files(CHECKOUT) if _is_published(name) and name not in copied]:
        notes.append(f"not in the release, since git does not track it: {first_of(new)} (git add, or {KEY}=[FILE,...])")
    for run in runs:
        others = left_out(run.checkpoint)
        if others:
            notes.append(f"not in the release: {', '.join(others[:8])} of {run.checkpoint}")
        if share := run.config["dataset"].get("conflict_share"):
            notes.append(
                f"WARNING: {run.checkpoint} was trained on conflict scenes too (dataset.conflict_share={share}): what "
                "it prefers in conflict was taught, and the card says so"
            )
        if run.hardware is None:
            notes.append(f"{run.checkpoint} does not say what it was trained on; the card says so")
        if not (run.results.open_loop or run.results.closed_loop):
            notes.append(f"the card has no results of {run.split}: evaluate it first, or give reports_dir=FOLDER")
    if any(run.base_model is None for run in runs):
        notes.append("the base's hub id is unknown; say base_model=owner/name where it has one")
    if licence.id is None:
        notes.append("the licence of the weights is unknown; say licence=...")
    return notes


# -- code of the checkout ----------------------------------------------------------------------------------------------


def code_sources(named: Sequence[str] = ()) -> dict[str, Path]:
    """{place in the tree: file}: gr00t/, scripts/, the guide with what it shows, licence and requirements.

    Only what git tracks, and the files and folders of the checkout that are `named`; site defaults (configs/local),
    tests and samples stay out. Raises ToolkitError for a checkout that lacks a part, and for links.
    """
    tracked = code_files(CHECKOUT)
    added = {*code_files(CHECKOUT, named, KEY)} - {*tracked}
    sources: dict[str, Path] = {}
    if ROOT != CHECKOUT:
        sources = {f"gr00t/{name}": ROOT / "gr00t" / name for name in code_files(ROOT / "gr00t")}
    for name in [*filter(_is_published, tracked), *added]:
        sources[name if name.startswith("gr00t/") else f"scripts/{name}"] = CHECKOUT / name
    sources |= {name: ROOT / name for name in tracked_among(ROOT, [*_TOP, *_linked("finetune.md")])}
    needed = [*_TOP, "gr00t/__init__.py", *(f"scripts/{name}" for name in _ENTRY)]
    needed += ["scripts/finetune/__init__.py", "scripts/finetune_jobs/run.sh"]
    missing = [name for name in needed if name not in sources or not sources[name].is_file()]
    if missing:
        raise ToolkitError(
            f"{ROOT} is no complete checkout: it lacks {', '.join(missing)}. Clone or download it again."
        )
    return sources


def _linked(page: str, known: frozenset[str] = frozenset()) -> frozenset[str]:
    """The pages and images of docs/ that a page leads to, also by way of other pages; `known` were found before."""
    if not page.endswith(".md") or not (ROOT / page).is_file():
        return known
    for target in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        found = os.path.normpath(f"{os.path.dirname(page)}/{target}".lstrip("/"))
        if found.startswith("docs/") and found not in known:
            known = _linked(found, known | {found})
    return known


def _is_published(name: str) -> bool:
    room, *inside = Path(name).parts
    if not inside:
        return (name.endswith(".py") and name != "__init__.py") or name == ".gitignore"
    is_local = name.startswith("configs/local/") and name != "configs/local/README.md"
    return room == "gr00t" or (room in _ROOMS and not is_local)
