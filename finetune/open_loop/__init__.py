"""Open-loop evaluation: predicted action chunks beside recorded actions. The configuration serves closed loop too."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gr00t.errors import ToolkitError
from toolkit.declaration import key
from toolkit.shared_keys import (
    DEVICES,
    LARGEST_SEED,
    PARTS,
    PRECISIONS,
    SplitConfig,
    TrackingConfig,
    check_dataset_folder,
    check_finished_folder,
    check_writable,
    refuse_inside,
)

# conditions of simulation/closed_loop
ABLATIONS = ("other_image", "blank_image", "other_instruction", "zero_state")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")


@dataclass(kw_only=True)
class EvaluateConfig:
    """Evaluate a fine-tuned checkpoint on a split: on recordings (open loop) or acting in simulation (closed loop)."""

    split: SplitConfig = key("the conflict split")
    mode: str = key(
        "open_loop compares predicted with recorded actions; closed_loop lets the policy act in simulation",
        "open_loop",
        choices=("open_loop", "closed_loop"),
    )
    checkpoint: str = key("folder of the finished checkpoint", "checkpoints/${split.name}", folder=True)
    verify: bool = key("compare every file of the checkpoint with its manifest first", False)
    data_dir: str = key("open loop: folder that holds the <split>/ datasets", "data", folder=True)
    report_dir: str | None = key(
        "folder of figures, tables and videos, rewritten by each evaluation; null for reports/<split>/<part>, and in "
        "closed loop reports/<split>/closed_loop",
        None,
        folder=True,
    )
    part: str = key(
        "open loop: episodes held out of training, trained on, or in conflict",
        "val",
        choices=("val", "train", "conflict"),
    )
    denoising_steps: int | None = key("denoising steps; null for the checkpoint's own", None, at_least=1)
    batch_size: int = key("open loop: samples per forward", 16, at_least=1)
    device: str = key("auto is cuda where there is one", "auto", choices=DEVICES)
    precision: str = key("auto is bf16 where the device has it", "auto", choices=PRECISIONS)
    seed: int = key("seed of the noise", 42, at_least=0, at_most=LARGEST_SEED)
    embodiment_tag: str = key("robot tag the checkpoint was trained under", "new_embodiment")
    max_episodes: int | None = key("open loop: episodes at most; null for all", None, at_least=1)
    policy: str = key(
        "closed loop: who acts; to check the loop itself expert, lure (picks up the lure), random (any object) or "
        "replay (the recordings of raw_dir)",
        "checkpoint",
        choices=("checkpoint", "expert", "lure", "random", "replay"),
    )
    server: str | None = key(
        "closed loop: HOST:PORT of a policy server that acts in place of the checkpoint (environment variable "
        "GROOT_API_TOKEN: its token)",
        None,
    )
    parts: list[str] = key("closed loop: what is evaluated", [*PARTS], choices=PARTS)
    episodes: int = key("closed loop: episodes of each part, under each condition", 100, at_least=1)
    n_action_steps: int = key("closed loop: steps executed of each action chunk", 8, at_least=1)
    max_steps: int = key("closed loop: steps of 1/20 s until an episode counts as failed", 100, at_least=1)
    ablations: list[str] = key(
        "closed loop: evaluated as well, each as many episodes again: images of another episode, black ones, the "
        "instruction for the split's other cue, no state",
        [],
        choices=ABLATIONS,
    )
    videos: int = key("closed loop: videos of successes, and as many of failures, of each part", 2, at_least=0)
    workers: int = key("closed loop: processes, with a simulation each", 2, at_least=1)
    image_size: int | None = key(
        "closed loop: width and height of both cameras, pixels; null for what the checkpoint was trained on",
        None,
        at_least=32,
        at_most=1024,
    )
    render: str = key(
        "closed loop: where images are rendered; none for policies that need none",
        "cpu",
        choices=("cpu", "gpu", "none"),
    )
    raw_dir: str = key(
        "closed loop: folder that holds the recordings <split>/<part> of policy=replay",
        "conflict_maniskill",
        folder=True,
    )
    tracking: TrackingConfig = key("closed loop: where the report is logged", TrackingConfig)

    @property
    def report_folder(self) -> Path:
        """report_dir, or what stands for null."""
        name = self.part if self.mode == "open_loop" else self.mode
        return Path(self.report_dir or f"reports/{self.split.name}/{name}")

    def check_values(self) -> None:
        """Refuse values that do not fit each other."""
        if self.mode != "closed_loop":
            return
        for name in ("parts", "ablations"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (name == "parts" and not values):
                raise ToolkitError(f"{name}={values}: name each once{', and one at least' if name == 'parts' else ''}.")
        scripted = self.policy != "checkpoint"
        if scripted and self.server is not None:
            raise ToolkitError(
                f"server={self.server} and policy={self.policy} name two policies. Leave one of them out."
            )
        if scripted and self.ablations:
            raise ToolkitError(
                f"ablations={self.ablations} change what a policy observes; policy={self.policy} knows the "
                "simulation's state and does not look. Leave them out."
            )
        if not scripted and self.render == "none":
            raise ToolkitError(
                "render=none is for policy=expert, lure, random and replay; others need images: render=cpu."
            )
        if self.server is not None and not _ADDRESS.fullmatch(self.server):
            raise ToolkitError(f"server={self.server}: write HOST:PORT, as in server=127.0.0.1:5555.")

    def check_here(self) -> None:
        """Refuse what cannot run on this machine."""
        check_evaluate(self)


def check_evaluate(config: EvaluateConfig, *, checkpoint_comes: bool = False, dataset_comes: bool = False) -> None:
    """The checkpoint, the dataset of the evaluated part, and a report folder apart from both.

    `checkpoint_comes` and `dataset_comes` are for what other jobs make first.
    """
    checkpoint, report_dir = Path(config.checkpoint), config.report_folder
    check_writable("report_dir", report_dir)
    refuse_inside("report_dir", report_dir, "checkpoint", checkpoint)
    refuse_inside("report_dir", report_dir, "the dataset", Path(config.data_dir) / config.split.name)
    if not checkpoint_comes and config.policy == "checkpoint" and config.server is None:
        check_finished_folder(checkpoint, config.split)
    if config.mode == "open_loop" and not dataset_comes:
        part = "conflict" if config.part == "conflict" else "train"
        check_dataset_folder(config.data_dir, "data_dir", config.split, part)
