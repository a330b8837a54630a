"""The folders of a run: where it resumes from, what it must not overwrite, and that one process at a time writes them.

In run_dir lie checkpoints and logs; output_dir receives the finished checkpoint, as the policy, NVIDIA's code and
LeRobot read it, and what it says of its run without paths, accounts and names of this machine. Only two things are ever
replaced there: an empty folder, and a finished checkpoint with nothing beside it that is this run's own or, with
train.resume=never, was there when the run began. That one is noted in run_dir, for the attempts that resume the run."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from finetune.recipe import recipe_identity
from finetune.recipe.recipe_identity import RELEASE_MARK, differences, identity_digest
from finetune.training import CONDITIONS, INPUTS, RUN_CONFIG, RUN_FILES, RUN_FOLDERS, read_optional
from finetune.training import checkpointing as checkpoints
from finetune.training.checkpointing import Checkpoint
from finetune.training.stopping import Superseded, ThisAttempt, again
from gr00t import file_replacement as disk
from gr00t.data.dataset import Mixture, TrainingDataset
from gr00t.data.layout import DatasetLayout
from gr00t.data.meta_files import in_ranges
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.errors import ToolkitError, disk_errors, first_of
from gr00t.file_reading import parsing, refuse_special
from gr00t.model.finished_checkpoint import foreign_files, write_manifest
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.code_files import versions

LET_GO_SECONDS = 20.0  # a superseded attempt stops after its step
_FILES_LISTED = 4

log = logging.getLogger(__name__)


class RunFolder:
    """`run_dir` and `output_dir` of one run. Nothing is changed before `opened`."""

    def __init__(self, attempt: ThisAttempt, identity: dict[str, Any], files: Mapping[str, str]) -> None:
        """`files`: the digest of every input (see run_identity); only the main process needs them."""
        self.attempt, self.config, self.identity, self.files = attempt, attempt.config, identity, files
        self.run_dir, self.output_dir = Path(self.config.run_dir), Path(self.config.output_dir)
        self.from_scratch = self.config.train.resume == "never"
        self._to_replace = read_optional(self.output_dir / RELEASE_MARK) if self.from_scratch else None

    @property
    def release_identity(self) -> dict[str, Any]:
        """What makes a finished checkpoint the same: all that makes the run, and which of its weights were exported."""
        best = self.config.train.export == "best"
        return {**self.identity, "train.export": "best"} if best else self.identity

    def starting_point(self) -> tuple[Checkpoint | None, bool]:
        """The checkpoint to resume from, None to begin, and whether output_dir holds what this very run would write.
        The main process looks for all. What would destroy other results is refused."""
        engine, found, finished, refused = self.attempt.engine, None, False, ""
        if engine.is_main:
            try:
                found, finished = self._look(), self._is_finished()
            except ToolkitError as error:
                refused = str(error)
        step, finished, refused = engine.tell([found and found.step, finished, refused])
        if refused:
            raise ToolkitError(refused)
        if step is not None and not engine.is_main:
            found = checkpoints.read_checkpoint(self.run_dir, step)
        return found, finished

    def _look(self) -> Checkpoint | None:
        _refuse_foreign_run(self.run_dir)
        if self.from_scratch:
            return None
        start = checkpoints.newest_checkpoint(self.run_dir)
        if start is not None:
            known = dataclasses.replace(start, state={**start.state, "identity": self._with_robot(start)})
            inputs = read_optional(self.run_dir / INPUTS)
            with parsing(start.folder / "state.json"):
                checkpoints.check_same_run(known, self.identity, inputs, self.files)
        elif checkpoints.list_checkpoints(self.run_dir):
            raise ToolkitError(
                f"Every checkpoint in {self.run_dir} is damaged. Restore one from a backup, or start again with "
                "train.resume=never."
            )
        return start

    def _with_robot(self, start: Checkpoint) -> dict[str, Any]:
        """The identity of a checkpoint. One of before the modality configuration was part of it takes that of its own
        finished checkpoint, or what the user says it was trained with."""
        stored: dict[str, Any] = start.state.get("identity", {})
        if "modality_config" in stored:
            return stored
        if recipe_identity.made_by(self.output_dir, stored):
            robot = recipe_identity.robot_of(self.output_dir, self.config.dataset.embodiment_tag)
            return {**stored, "modality_config": robot}
        if self.config.dataset.modality_config is not None:
            return stored  # what is given now is recorded from the next checkpoint on
        raise ToolkitError(
            f"{start.folder} does not say with which modality configuration it was trained; it was written before that "
            "was recorded. Say it: dataset.modality_config=conflict_panda_config.py where that file has not changed "
            "since, else FILE as it was."
        )

    def _is_finished(self) -> bool:
        """Whether output_dir holds what this very run would write; anything else there is refused."""
        folder = self.output_dir
        if not os.path.lexists(folder) or _is_empty(folder):
            return False
        mark = read_optional(folder / RELEASE_MARK)
        if self.from_scratch or mark is None or recipe_identity.is_replaced(self.run_dir, mark):
            problem = _foreign(folder)
            if problem:
                raise ToolkitError(
                    f"output_dir {folder} {problem}; it is never replaced. Choose another output_dir=...."
                )
            return False
        made_of = recipe_identity.identity_of(folder, self.release_identity)
        changed = differences(made_of, self.release_identity, read_optional(self.run_dir / INPUTS), self.files)
        if changed:
            lines = "\n  ".join(changed)
            raise ToolkitError(
                f"output_dir {folder} exists already and holds the checkpoint of another run, or of other "
                f"steps of it (train.export):\n  {lines}\nChoose another output_dir=..., remove it, or replace it with "
                "train.resume=never."
            )
        return not recipe_identity.gave_up_earlier(folder, self.config.train.patience)

    @contextmanager
    def opened(self, start: Checkpoint | None, conditions: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folders for this run: clear what killed or discarded attempts left, write what this one has."""
        self.attempt.engine.barrier()  # no process still looks for its starting point
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            if self.attempt.engine.is_main:
                self._lock(held)
                self._claim_output(held)
            if self.attempt.writes:
                self._clear(start)
                disk.write_json(self.run_dir / RUN_CONFIG, dataclasses.asdict(self.config))
                disk.write_json(self.run_dir / INPUTS, dict(self.files))
                note, path = {"from_step": start.step if start else 0, **conditions}, self.run_dir / CONDITIONS
                refuse_special(path)
                with disk_errors(path, "Remove it, then start the same command again."), path.open("a") as file:
                    file.write(json.dumps(note) + "\n")
            self.attempt.barrier()
            yield

    def _lock(self, held: ExitStack) -> None:
        """Take the lock of run_dir; one that an attempt of a SLURM job holds on to is no obstacle to the attempt after
        it, since the token keeps the older one from writing."""
        holder = self.attempt.token.id or ""
        try:
            held.enter_context(disk.lock_in_turn(self.run_dir, LET_GO_SECONDS if holder else 0.0, holder=holder))
        except disk.LockHeld as error:
            if not (holder and error.holder):
                raise
            log.warning("%s: a superseded attempt still holds its lock; continuing without it.", self.run_dir)

    def _claim_output(self, held: ExitStack) -> None:
        """Keep other runs from output_dir until `held` ends; refused where one that is running has it."""
        own = os.path.realpath(self.run_dir)
        self.output_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(disk.file_lock(self.output_dir, required=False, holder=own))
        except disk.LockHeld as error:
            if error.holder != own:  # else an attempt of this run that has been superseded
                raise ToolkitError(
                    f"output_dir {self.output_dir} is the output of a run that is running, "
                    f"{error.holder or 'unknown'}. Choose another output_dir=..., or wait until that one has ended."
                ) from None
            log.warning("%s: a superseded attempt still holds its lock; continuing without it.", self.output_dir)

    def _clear(self, start: Checkpoint | None) -> None:
        disk.remove_leftovers(self.run_dir, "checkpoint-*")
        disk.remove_leftovers(self.output_dir.parent, self.output_dir.name)
        there = checkpoints.list_checkpoints(self.run_dir)
        if self.from_scratch:
            recipe_identity.note_replaced(self.run_dir, self._to_replace)
            for old in there:
                shutil.rmtree(old)
            for name in RUN_FILES:
                (self.run_dir / name).unlink(missing_ok=True)
            for name in RUN_FOLDERS:
                shutil.rmtree(self.run_dir / name, ignore_errors=True)
        elif start is not None:
            for newer in there[there.index(start.folder) + 1 :]:  # damaged, or start would be one of them
                aside = newer.with_name(newer.name + ".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                newer.rename(aside)

    def describe(self, mixture: Mixture) -> dict[str, Any]:
        """What the run is made of that its configuration does not say."""
        engine = self.attempt.engine
        return {
            "dataset": {**describe_datasets(mixture), "training_digest": self.identity["dataset"]},
            "base": self.identity["base"],
            "versions": versions(),
            "processes": engine.world_size,
            "device": engine.device.type,
            "precision": str(engine.dtype).removeprefix("torch."),
        }

    def release(self, model: Gr00tN1d7, dataset: TrainingDataset, conditions: dict[str, Any], step: int) -> None:
        """Write config.json, shards and index, processor files and experiment_cfg/; an older checkpoint gives way last.

        conditions: of this attempt. step: how many optimizer steps the weights have seen.
        """
        mirror_processor(model, dataset.processor)
        described = {
            "dataset": describe_datasets(dataset.mixture),
            "hardware": self.attempt.engine.hardware(),
            "versions": versions(),
            "conditions": conditions,
        }
        remedy = f"The last checkpoint is whole: make room and start {again(self.config)} again."
        allowed, replaceable = self.attempt.token.require, self._refuse_others
        whole = disk.whole_folder(self.output_dir, lock=False, allowed=allowed, replaceable=replaceable)
        with suppress(Superseded), disk_errors(self.output_dir, remedy):
            with whole as aside:
                model.save_pretrained(aside, dtype=torch.bfloat16)
                dataset.processor.save_pretrained(aside)
                experiment = aside / "experiment_cfg"
                experiment.mkdir()
                published = OmegaConf.create(recipe_identity.publishable(dataclasses.asdict(self.config)))
                (experiment / "config.yaml").write_text(OmegaConf.to_yaml(published), encoding="utf-8")
                for name, content in described.items():
                    disk.write_json(experiment / f"{name}.json", content)
                recipe_identity.write_mark(aside, self.release_identity, step)
                write_manifest(aside)
            recipe_identity.note_replaced(self.run_dir, None)

    def _refuse_others(self, folder: Path) -> None:
        """Raise where what lies in output_dir must stay."""
        mark, problem = read_optional(folder / RELEASE_MARK), _foreign(folder)
        ours = identity_digest(self.release_identity)
        replaced = recipe_identity.is_replaced(self.run_dir, mark)
        if problem is None and not (replaced or (mark and mark.get("identity") == ours)):
            problem = "holds the finished checkpoint of another run"
        if problem is None or _is_empty(folder):
            return
        weights = [self.run_dir, *checkpoints.list_checkpoints(self.run_dir)][-1]
        raise ToolkitError(
            f"output_dir {self.output_dir} {problem} that was not there when this run began; it is never replaced. "
            f"The weights are in {weights}: move that folder away, or choose another output_dir=..., and start "
            f"{again(self.config)} again, which then writes the result only."
        )


def _refuse_foreign_run(run_dir: Path) -> None:
    """Refuse a folder that holds what a run removes or passes over, and nothing that says that a run made it."""
    steps = checkpoints.list_checkpoints(run_dir)
    if (run_dir / RUN_CONFIG).is_file() or any(map(checkpoints.is_ours, steps)):
        return
    found = [folder.name for folder in steps]
    found += [name for name in (*RUN_FILES, *RUN_FOLDERS) if os.path.lexists(run_dir / name)]
    if found:
        raise ToolkitError(
            f"run_dir {run_dir} holds {first_of(found, _FILES_LISTED)}, but no {RUN_CONFIG}: no run of this toolkit "
            "made that, and one would write over it. Give this run a folder of its own, run_dir=...."
        )


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _foreign(folder: Path) -> str | None:
    """What is there that no run made, in words; None where nothing is."""
    if not folder.is_dir():
        return "is no folder"
    if not (folder / RELEASE_MARK).is_file():
        return "exists and holds other files than a finished checkpoint of this toolkit"
    added = foreign_files(folder)
    return f"holds files beside a finished checkpoint ({first_of(added, _FILES_LISTED)})" if added else None


def mirror_processor(model: Gr00tN1d7, processor: Gr00tN1d7Processor) -> None:
    """config.json repeats keys of processor_config.json; give both the same values."""
    values = processor.config.to_json()
    for key in values.keys() & model.config.to_dict().keys():
        if key not in ("model_name", "model_type"):
            setattr(model.config, key, values[key])
    model.config.use_albumentations_transforms = values["use_albumentations"]


def describe_datasets(mixture: Mixture) -> dict[str, Any]:
    """What was trained on, without a path of this machine: the dataset, or all of a mixture with their shares."""
    found = [describe_dataset(reader.layout) for reader in mixture.readers]
    if len(found) == 1:
        return found[0]
    told = {of["strategy"] for of in found if "strategy" in of}
    strategy = {"strategy": min(told)} if len(told) == 1 else {}
    shared = [{"share": share, **of} for share, of in zip(mixture.shares, found, strict=True)]
    return {"fingerprint": mixture.fingerprint, "fps": found[0]["fps"], **strategy, "mixture": shared}


def describe_dataset(layout: DatasetLayout) -> dict[str, Any]:
    """The same of one dataset; of the instruction suite also the strategy, which says what of it is unseen."""
    recorded = layout.split.get("recorded")
    strategy = {"strategy": str(recorded["strategy"])} if isinstance(recorded, dict) and "strategy" in recorded else {}
    return {
        "fingerprint": layout.fingerprint,
        "episodes": len(layout.episodes),
        **({"excluded": in_ranges(layout.excluded)} if layout.excluded else {}),
        "frames": sum(episode.length for episode in layout.episodes),
        "train_frames": sum(layout.episode(index).length for index in layout.train_episodes),
        "train_episodes": layout.train_episodes,
        "val_episodes": layout.val_episodes,
        "fps": layout.fps,
        "frame_sizes": {camera: layout.frame_size(camera) for camera in layout.cameras},
        "instructions": sorted(layout.tasks.values()),
        **strategy,
    }
