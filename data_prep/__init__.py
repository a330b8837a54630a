"""Recordings and foreign datasets to a checked dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from toolkit.declaration import key
from toolkit.shared_keys import (
    LARGEST_SEED,
    SUITE_PARTS,
    SplitConfig,
    check_dataset_folder,
    check_publication,
    check_split_name,
    check_writable,
    modalities_field,
    modality_config_key,
    near_split,
    refuse_inside,
    share_key,
    split_folder,
)


def check_python_file(name: str) -> None:
    """Refuse a name that no command would read as a Python file."""
    if not name.endswith(".py"):
        raise ToolkitError("the modality configuration is a Python file: give it a name that ends in .py.")


@dataclass(kw_only=True)
class PrepareConfig:
    """Turn a split's ManiSkill recordings into checked datasets, one for each part."""

    split: SplitConfig = key("the conflict split")
    raw_dir: str = key(
        "folder that holds the recordings, <split>/train, <split>/conflict and so on", "conflict_maniskill", folder=True
    )
    data_dir: str = key("folder that receives the datasets, <split>/train and so on", "data", folder=True)
    val_fraction: float = key("part of the train episodes kept for validation", 0.1, more_than=0, less_than=1)
    seed: int = key("seed of the choice of validation episodes", 42, at_least=0, at_most=LARGEST_SEED)
    overwrite: bool = key("replace a dataset that is already there", False)
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    workers: int | None = key("processes; null for one per core where there is enough to do", None, at_least=1)
    share: str | None = share_key("convert")

    def check_here(self) -> None:
        """Refuse what cannot run on this machine."""
        check_prepare(self)


@dataclass(kw_only=True)
class AdoptConfig:
    """Make a LeRobot dataset (v2.0, v2.1 or v3.0) of another source trainable: propose meta/modality.json and the
    robot's modality configuration, hold episodes out.

    Prints what it proposes and what it assumed; writes into the dataset with write=true, and never over a file that is
    there. With split=NAME it becomes that split's train part and stays as it is itself.
    """

    dataset: str = key("folder of the dataset, which holds meta/, data/ and videos/", "data/my_dataset", folder=True)
    val_fraction: float = key(
        "part of the episodes held out of training (two at least), for evaluation; 0 for none",
        0.1,
        at_least=0,
        less_than=1,
    )
    seed: int = key("seed of the choice of held-out episodes", 42, at_least=0, at_most=LARGEST_SEED)
    split: str | None = key(
        "split that is then trained on it by its name: data_dir/<split>/train becomes a folder of links to it, with a "
        "meta/ of its own; null writes into the dataset itself",
        None,
        check=check_split_name,
    )
    data_dir: str = key("folder that receives <split>/train", "data", folder=True)
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    robot_file: str | None = key(
        "Python file that receives the proposed modality configuration, never over one that is there; null for none",
        None,
        folder=True,
        file=True,
        check=check_python_file,
    )
    write: bool = key("write meta/modality.json and meta/split.json where they are missing", False)


@dataclass(kw_only=True)
class CheckConfig:
    """Examine a dataset, or a split's folder with train/, conflict/ and so on: is it sound, and if not, what mends it?

    PATH is the folder. Ends with status 0 where nothing is wrong (warnings may be printed), with 1 where something is,
    with 2 where there is no dataset.
    """

    fast: bool = key(
        "leave out what decodes whole videos or reads every file: what training does before it begins", False
    )
    probe: bool = key(
        "also how far image, instruction, state and place each tell where the arm goes, which takes minutes",
        False,
    )
    json: str | None = key("file that receives the report as JSON; null for none", None)
    html: str | None = key("file that receives the report as one page with images and curves; null for none", None)
    exclude: str | None = key(
        "file that receives the list of the episodes with errors (of a split, of its train part) that dataset.exclude "
        'and "exclude" of meta/split.json take; null for none',
        None,
    )
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    shown: int = key("episodes of each part whose frames and curves the page shows", 4, at_least=1, at_most=50)


@dataclass(kw_only=True)
class PublishConfig:
    """Make a folder of a dataset with a card, as Hugging Face, LeRobot and GR00T read it; upload it when asked.

    <data_dir>/<split> holds train/, conflict/ and so on, or is one dataset itself.
    """

    split: SplitConfig = key("the conflict split")
    data_dir: str = key("folder that holds <split>", "data", folder=True)
    part: str | None = key("publish this part only, at the top of the folder", None, choices=SUITE_PARTS)
    modality_config: str | None = modality_config_key()
    modalities: dict[str, Any] = modalities_field()
    out: str = key("folder that receives what is published", "published/${split.name}", folder=True)
    licence: str | None = key("licence of the recordings, as Hugging Face names it; null for unknown", None)
    recorded: str | None = key("how they were recorded, in a sentence or two for the card", None)
    repo_id: str | None = key("Hugging Face repository of the dataset, owner/name", None)
    upload: bool = key("send the folder to repo_id, with the login of hf auth login or HF_TOKEN", False)
    private: bool = key("where upload=true makes the repository, only its owner sees it", True)
    follow_links: bool = key("publish what links lead to outside the dataset, instead of refusing them", False)
    link: bool = key("share tables and videos with the dataset (hard links): no room needed, but one content", False)
    overwrite: bool = key("replace what was published there", False)

    def check_here(self) -> None:
        """Require a dataset, an `out` apart from it, and names as the hub takes them."""
        check_publication(self)
        if self.part is not None or not (self.folder / "meta" / "info.json").is_file():
            check_dataset_folder(self.data_dir, "data_dir", self.split, self.part or "train")
        refuse_inside("out", Path(self.out), "data_dir/<split>", self.folder)
        refuse_inside("data_dir/<split>", self.folder, "out", Path(self.out))

    @property
    def folder(self) -> Path:
        """The dataset's folder, or that of its parts."""
        return Path(self.data_dir, self.split.name, self.part or "")


def check_prepare(config: PrepareConfig, *, recordings_come: bool = False) -> None:
    """The recordings, unless another job makes them first, and a dataset folder apart from them."""
    raw_dir, data_dir, split = Path(config.raw_dir), Path(config.data_dir), config.split.name
    check_writable("data_dir", data_dir)
    refuse_inside("data_dir/<split>", data_dir / split, "raw_dir/<split>", raw_dir / split)
    refuse_inside("raw_dir/<split>", raw_dir / split, "data_dir/<split>", data_dir / split)
    if recordings_come or (raw_dir / split / "train").is_dir():
        return
    problem = f"{raw_dir / split / 'train'} does not exist: raw_dir must hold {split}/train (and {split}/conflict)."
    if (raw_dir / "train").is_dir():
        above, name = split_folder(raw_dir)
        as_split = "" if name == split else f" split={name}"
        raise ToolkitError(f"{problem} {raw_dir / 'train'} is there: give what is above, raw_dir={above}{as_split}.")
    if not raw_dir.is_dir():
        raise ToolkitError(f"{problem} There is no folder {raw_dir}; give the one with the recordings, raw_dir=FOLDER.")
    raise ToolkitError(f"{problem}{near_split(raw_dir, split)}")
