"""Open-loop evaluation: predicted action chunks beside recorded actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gr00t.data.schema import EmbodimentTag
from toolkit.composition import read_yaml
from toolkit.declaration import key
from toolkit.shared_keys import (
    DEVICES,
    LARGEST_SEED,
    PRECISIONS,
    SplitConfig,
    check_dataset_folder,
    check_finished_folder,
    check_writable,
    refuse_inside,
)


@dataclass(kw_only=True)
class EvaluationConfig:
    """What an evaluation needs, on recordings as in simulation."""

    split: SplitConfig = key("the conflict split")
    checkpoint: str = key("folder of the finished checkpoint", "checkpoints/${split.name}", folder=True)
    verify: bool = key("compare every file of the checkpoint with its manifest first", False)
    data_dir: str = key("folder that holds the <split>/ datasets", "data", folder=True)
    report_dir: str | None = key(
        "folder of figures, tables and videos, rewritten by each evaluation; null for reports/<split>/<part>, and in "
        "closed loop reports/<split>/closed_loop",
        None,
        folder=True,
    )
    denoising_steps: int | None = key("denoising steps; null for the checkpoint's own", None, at_least=1)
    guidance: float = key(
        "how far the checkpoint follows the instruction: 1 as trained, 0 as without one, more than 1 beyond that, for "
        "checkpoints trained with augment.instruction_dropout",
        1.0,
        at_least=0,
        at_most=100,
    )
    device: str = key("auto is cuda where there is one", "auto", choices=DEVICES)
    precision: str = key("auto is bf16 on GPUs that have it, fastest on CPUs too", "auto", choices=PRECISIONS)
    seed: int = key("seed of the noise", 42, at_least=0, at_most=LARGEST_SEED)
    embodiment_tag: str = key("robot tag the checkpoint was trained under", "new_embodiment", check=EmbodimentTag.parse)

    def note_on_guidance(self) -> str | None:
        """What is to be said of guidance on a checkpoint that never met a moment without an instruction."""
        settings = Path(self.checkpoint) / "experiment_cfg" / "config.yaml"
        trained = read_yaml(settings).get("augment") or {} if settings.is_file() else {}
        if self.guidance == 1 or trained.get("instruction_dropout"):
            return None
        return (
            f"guidance={self.guidance:g} asks {self.checkpoint} without an instruction too, which it was not trained "
            "for: train with augment.instruction_dropout=0.1"
        )

    def check_folders(self, report_folder: Path, checkpoint_comes: bool) -> None:
        """Refuse a report folder that meets what is read, and a checkpoint that is not finished."""
        check_writable("report_dir", report_folder)
        refuse_inside("report_dir", report_folder, "checkpoint", Path(self.checkpoint))
        refuse_inside("report_dir", report_folder, "the dataset", Path(self.data_dir) / self.split.name)
        if not checkpoint_comes:
            check_finished_folder(Path(self.checkpoint), self.split)


@dataclass(kw_only=True)
class OpenLoopConfig(EvaluationConfig):
    """Evaluate a fine-tuned checkpoint on recordings of a split."""

    part: str = key(
        "open loop: episodes held out of training, trained on, in conflict, or of the instruction suite's combinations "
        "that were not recorded for training",
        "val",
        choices=("val", "train", "conflict", "unseen"),
    )
    batch_size: int = key("open loop: samples per forward", 16, at_least=1)
    max_episodes: int | None = key("open loop: episodes at most; null for all", None, at_least=1)

    @property
    def report_folder(self) -> Path:
        """report_dir, or what stands for null."""
        return Path(self.report_dir or f"reports/{self.split.name}/{self.part}")

    @property
    def own_dataset(self) -> str | None:
        """The dataset beside train/ that holds these episodes; None for those of train/ itself."""
        return self.part if self.part in ("conflict", "unseen") else None

    def check_here(self, *, checkpoint_comes: bool = False, dataset_comes: bool = False) -> None:
        """Refuse what cannot run here; a checkpoint or dataset that `comes` is one that another job makes first."""
        self.check_folders(self.report_folder, checkpoint_comes)
        if not dataset_comes:
            check_dataset_folder(self.data_dir, "data_dir", self.split, self.own_dataset or "train")
