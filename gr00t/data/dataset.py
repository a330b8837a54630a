"""A GR00T-flavoured LeRobot v2.1 dataset as steps (what the robot saw, felt and did) and as training samples."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gr00t.data.features import FeatureStore
from gr00t.data.frames import FrameStore
from gr00t.data.images import Augmentation
from gr00t.data.layout import DatasetLayout
from gr00t.data.processor import Gr00tN1d7Processor, Step
from gr00t.data.randomness import Stream, generator
from gr00t.data.sampler import SampleKey
from gr00t.data.schema import ModalityConfigs, check_modality_configs
from gr00t.data.statistics import Tail, relative_statistics, start_frames
from gr00t.data.tables import FrameTables
from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError, did_you_mean

OPEN_VIDEOS = 64  # containers a process keeps open; each holds a few frames' worth of memory


class StepReader:
    """Steps of one dataset: the frames, states, actions and instruction that a modality configuration names.

    Frames before the first repeat the first. Actions after the last repeat the last and are marked as missing. (The
    original wraps negative offsets round to the episode's end.)
    """

    def __init__(self, root: str | Path, configs: ModalityConfigs) -> None:
        self.layout = DatasetLayout(root)
        self.configs = check_modality_configs(configs)
        self._groups = {m: _group_slices(self.layout, m, configs[m].modality_keys) for m in ("state", "action")}
        self._check_videos()
        self._text_column = _annotation_column(self.layout, configs["language"].modality_keys[0])
        columns = {column for groups in self._groups.values() for column, _ in groups.values()}
        self._tables = FrameTables(self.layout, sorted(columns | {self._text_column, "episode_index"}))
        self._check_widths()
        self._videos: OrderedDict[tuple[int, str], VideoReader] = OrderedDict()
        self.frame_store: FrameStore | None = None  # takes the place of the videos

    def step(self, episode: int, frame: int, *, images: bool = True) -> Step:
        """What was known and done at one frame: images (T, H, W, 3), states (T, D), actions (H, D), instruction.

        Without `images` no frame is read and `Step.images` is empty.
        """
        last = self.layout.episode(episode).length - 1
        action_frames = frame + np.asarray(self.configs["action"].delta_indices)
        return Step(
            images={
                camera: self._frames(episode, camera, self._offsets("video", frame, last))
                for camera in (self.configs["video"].modality_keys if images else [])
            },
            states=self._values("state", episode, self._offsets("state", frame, last)),
            text=self.instruction(episode, frame),
            actions=self._values("action", episode, np.clip(action_frames, 0, last)),
            action_valid=(action_frames >= 0) & (action_frames <= last),
        )

    def instruction(self, episode: int, frame: int = 0) -> str:
        """The instruction given at that frame."""
        value = self._tables.rows(self._text_column, episode, np.array([frame]))[0]
        if isinstance(value, str):
            return value
        number = int(np.asarray(value).reshape(-1)[0])
        if number not in self.layout.tasks:
            raise ToolkitError(
                f"{self.layout.root}: episode {episode} refers to task {number}, which meta/tasks.jsonl does not list. "
                "Prepare the dataset again."
            )
        return self.layout.tasks[number]

    def instructions(self, episodes: list[int]) -> list[str]:
        """Every instruction that occurs in these episodes, sorted."""
        found: set[str] = set()
        for episode in episodes:
            values = self._tables.episode(self._text_column, episode)
            _, first = np.unique(values.reshape(len(values), -1)[:, 0].astype(str), return_index=True)
            found.update(self.instruction(episode, int(frame)) for frame in first)
        return sorted(found)

    def relative_statistics(self, episodes: list[int], tail: Tail) -> dict[str, Any]:
        """Statistics of the relative action groups over the starts that `tail` admits (see gr00t.data.statistics)."""
        states, actions = (
            [np.concatenate(list(self.trajectory(modality, e).values()), axis=1) for e in episodes]
            for modality in ("state", "action")
        )
        return relative_statistics(states, actions, _packed(self._groups), self.configs, tail)

    def trajectory(self, modality: str, episode: int) -> dict[str, np.ndarray]:
        """Every group of "state" or "action" over a whole episode, (frames, D) float32."""
        return self._values(modality, episode, np.arange(self.layout.episode(episode).length))

    def _offsets(self, modality: str, frame: int, last: int) -> np.ndarray:
        return np.clip(frame + np.asarray(self.configs[modality].delta_indices), 0, last)

    def _values(self, modality: str, episode: int, frames: np.ndarray) -> dict[str, np.ndarray]:
        return {
            key: self._tables.rows(column, episode, frames)[:, part].astype(np.float32)
            for key, (column, part) in self._groups[modality].items()
        }

    def _frames(self, episode: int, camera: str, frames: np.ndarray) -> np.ndarray:
        if self.frame_store is not None:
            return self.frame_store.frames(episode, camera, frames)
        key = (episode, camera)
        if key not in self._videos:
            if len(self._videos) >= OPEN_VIDEOS:
                self._videos.popitem(last=False)[1].close()
            self._videos[key] = VideoReader(self.layout.video_path(episode, camera))
        self._videos.move_to_end(key)
        return self._videos[key].frames([int(i) for i in frames])

    def _check_videos(self) -> None:
        paths = [
            self.layout.video_path(e.index, camera)
            for e in self.layout.episodes
            for camera in self.configs["video"].modality_keys
        ]
        missing = [path for path in paths if not path.is_file() or not path.stat().st_size]
        if missing:
            raise ToolkitError(
                f"{len(missing)} of {len(paths)} videos are missing or empty, the first {missing[0]}. Copy the dataset "
                "again, or prepare it again."
            )

    def _check_widths(self) -> None:
        for modality, groups in self._groups.items():
            for key, (column, part) in groups.items():
                width = self._tables.episode(column, self.layout.episodes[0].index).shape[1]
                if part.stop > width:
                    raise ToolkitError(
                        f'{self.layout.root}/meta/modality.json: {modality} "{key}" ends at {part.stop}, but the '
                        f'column "{column}" has {width} values. Prepare the dataset again or mend modality.json.'
                    )


def _group_slices(layout: DatasetLayout, modality: str, keys: list[str]) -> dict[str, tuple[str, slice]]:
    groups = layout.modality.get(modality, {})
    default = {"state": "observation.state", "action": "action"}[modality]
    found = {}
    for key in keys:
        if key not in groups:
            raise ToolkitError(
                f'{layout.root}/meta/modality.json has no {modality} group "{key}", which the modality configuration '
                f"names.{did_you_mean(key, groups)}"
            )
        entry = groups[key]
        found[key] = (entry.get("original_key") or default, slice(int(entry["start"]), int(entry["end"])))
    return found


def _packed(groups: dict[str, dict[str, tuple[str, slice]]]) -> dict[str, dict[str, dict[str, int]]]:
    """modality.json's form for groups that lie one behind the other, as `trajectory` gives them."""
    packed: dict[str, dict[str, dict[str, int]]] = {}
    for modality, parts in groups.items():
        end = 0
        packed[modality] = {}
        for key, (_, part) in parts.items():
            width = part.stop - part.start
            packed[modality][key] = {"start": end, "end": end + width}
            end += width
    return packed


def _annotation_column(layout: DatasetLayout, key: str) -> str:
    annotations = layout.modality.get("annotation", {})
    name = key.removeprefix("annotation.")
    if name not in annotations:
        raise ToolkitError(
            f'{layout.root}/meta/modality.json has no annotation "{name}", which the modality configuration names.'
            f"{did_you_mean(name, annotations)}"
        )
    return annotations[name].get("original_key") or key


@dataclass(frozen=True)
class SampleSettings:
    """What is random in a training sample, and how much.

    state_dropout is applied twice, as the original does: to the normalised state and to the state's features.
    views limits a frame to that many augmented views; tail "drop" starts only where the whole horizon is recorded.
    """

    seed: int
    augment: bool = True
    views: int | None = None
    state_dropout: float = 0.0
    tail: Tail = "mask"
    noise_beta: tuple[float, float] = (1.5, 1.0)
    noise_s: float = 0.999


class TrainingDataset(Dataset[dict[str, Any]]):
    """Training samples by SampleKey: everything random in one depends only on (seed, step, position).

    A sample is what `Gr00tN1d7Processor.encode` returns, with the draws the model is handed: noise (H, D), time and
    drop_state_features. With a `feature_store`, the backbone's output for the same view takes the place of images and
    text. Prompts are padded to the dataset's longest, so that a sample does not depend on its batch: the head's
    self-attention reads the padding too.
    """

    def __init__(
        self,
        reader: StepReader,
        processor: Gr00tN1d7Processor,
        tag: str,
        settings: SampleSettings,
        episodes: list[int] | None = None,
    ) -> None:
        self.reader, self.processor, self.tag, self.settings = reader, processor, tag, settings
        self.episodes = reader.layout.train_episodes if episodes is None else episodes
        deltas, tail = reader.configs["action"].delta_indices, settings.tail
        self._starts = [
            (e, frame) for e in self.episodes for frame in start_frames(reader.layout.episode(e).length, deltas, tail)
        ]
        if not self._starts:
            raise ToolkitError(
                f"{reader.layout.root}: no episode of {len(self.episodes)} has a start frame with tail={settings.tail}."
                " Record longer episodes or use dataset.tail=mask."
            )
        self.feature_store: FeatureStore | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def start(self, index: int) -> tuple[int, int]:
        """(episode, frame) of a start."""
        return self._starts[index]

    @cached_property
    def prompts(self) -> np.ndarray:
        """input_ids (P, L) of the dataset's P instructions, their images' tokens included, padded to the longest."""
        images = self.vlm_inputs(0, 0)["images"]
        texts = self.reader.instructions(self.episodes)
        chats = [{"images": images, "text": self.processor.encode_text(text, len(images))} for text in texts]
        return self.processor.tokenize(chats)[0]

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        settings = self.settings
        drop = generator(settings.seed, Stream.STATE_DROPOUT, key.step, key.position).random(2) < settings.state_dropout
        step = self.reader.step(*self._starts[key.index], images=self.feature_store is None)
        sample = self.processor.encode_robot(step, self.tag, drop_state=bool(drop[0]))
        if self.feature_store is None:
            sample |= self.processor.encode_vlm(step, self.tag, augmentation=self._augmentation(key))
        else:
            sample |= self.feature_store.sample(key.index, self._view(key)[0])
        rng = generator(settings.seed, Stream.NOISE, key.step, key.position)
        time = (1.0 - rng.beta(*settings.noise_beta)) * settings.noise_s
        return {
            **sample,
            "noise": rng.standard_normal(sample["action"].shape, dtype=np.float32),
            "time": np.float32(time),
            "drop_state_features": bool(drop[1]),
        }

    def images(self, key: SampleKey) -> np.ndarray:
        """(T*V, S, S, 3) uint8: the augmented images of a sample, also where a feature store stands in for them."""
        step = self.reader.step(*self._starts[key.index])
        return self.processor.encode_vlm(step, self.tag, augmentation=self._augmentation(key))["images"]

    def vlm_inputs(self, index: int, view: int) -> dict[str, Any]:
        """What the backbone reads of one view of a start frame, as `Gr00tN1d7Processor.encode_vlm` gives it."""
        step = self.reader.step(*self._starts[index])
        return self.processor.encode_vlm(step, self.tag, augmentation=self._look(index, view))

    def _view(self, key: SampleKey) -> tuple[int, np.random.Generator]:
        """The view of this draw (0 where views are not limited), and the generator it came from."""
        rng = generator(self.settings.seed, Stream.AUGMENTATION, key.step, key.position)
        return (0 if self.settings.views is None else int(rng.integers(self.settings.views))), rng

    def _look(self, index: int, view: int) -> Augmentation | None:
        if not self.settings.augment:
            return None
        return self.processor.images.draw(generator(self.settings.seed, Stream.VIEW, index, view))

    def _augmentation(self, key: SampleKey) -> Augmentation | None:
        view, rng = self._view(key)
        if self.settings.views is None and self.settings.augment:
            return self.processor.images.draw(rng)
        return self._look(key.index, view)  # the view is drawn anew each time, its look only once

    def observations(self, starts: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch of start frames as a policy sees them when it acts: nothing augmented, hidden or drawn."""
        live = self.feature_store is None
        steps = [self.reader.step(*self._starts[index], images=live) for index in starts]
        batch = self.processor.collate_robot([self.processor.encode_robot(step, self.tag) for step in steps])
        if self.feature_store is not None:
            return batch | self.feature_store.collate([self.feature_store.sample(index, 0) for index in starts])
        vlm = [self.processor.encode_vlm(step, self.tag) for step in steps]
        return batch | self.processor.collate_vlm(vlm, length=self.prompts.shape[1])

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The processor's batch, with the draws: noise (B, H, D), time (B,), drop_state_features (B,) bool."""
        if self.feature_store is None:
            batch = self.processor.collate(samples, length=self.prompts.shape[1])
        else:
            batch = self.processor.collate_robot(samples) | self.feature_store.collate(samples)
        batch["noise"] = torch.from_numpy(np.stack([s["noise"] for s in samples]))
        batch["time"] = torch.tensor([float(s["time"]) for s in samples], dtype=torch.float32)
        batch["drop_state_features"] = torch.tensor([s["drop_state_features"] for s in samples])
        return batch
