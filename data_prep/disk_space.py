"""Whether the disk holds what is still to be converted: said before writing, and again as soon as it shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.lerobot import EpisodeJob, EpisodeRecord
from data_prep.maniskill import Episode
from gr00t.errors import ToolkitError
from gr00t.files import free_space, in_bytes

# Twice what the noisiest camera measured takes in H.264, so that the check errs on the safe side.
BYTES_PER_PIXEL = 0.3
BYTES_PER_FRAME = 400  # a row of the frame table
BYTES_PER_EPISODE = 40_000  # file headers
TELLING_FRAMES = 2000  # from so many on, what is written tells better what the rest will take


class DiskSpace:
    """Bytes that the missing episodes will take in `folder`, by what the written ones took once these are enough."""

    def __init__(self, folder: Path, missing: Sequence[EpisodeJob], written: Iterable[EpisodeRecord]) -> None:
        self.folder = folder
        self._missing = {(job.part, job.index): _guess(job.episode) for job in missing}
        self._missing_frames = sum(job.episode.length for job in missing)
        self._guessed = sum(self._missing.values())
        self._frames = self._size = 0
        for record in written:
            self._count(record)

    @property
    def measured(self) -> bool:
        """Whether enough is written to tell."""
        return self._frames >= TELLING_FRAMES

    @property
    def needed(self) -> float:
        """Bytes that are still needed."""
        if self.measured:
            return self._missing_frames * self._size / self._frames
        return self._guessed

    def check(self) -> None:
        """Raise ToolkitError when the disk has less than that."""
        free = free_space(self.folder)
        if free < self.needed:
            raise ToolkitError(
                f"{self.folder}: about {in_bytes(self.needed)} are needed and {in_bytes(free)} are free. Make "
                "room, or choose another data_dir=...."
            )

    def written(self, record: EpisodeRecord) -> None:
        """Count an episode; raises, well before the disk is full, when the others will not find room."""
        self._count(record)
        self._missing_frames -= record.frames
        self._guessed -= self._missing.pop((record.part, record.index))
        if self.measured:
            self.check()

    def _count(self, record: EpisodeRecord) -> None:
        self._frames += record.frames
        self._size += record.size


def _guess(episode: Episode) -> float:
    pixels = sum(height * width for height, width in episode.frame_sizes.values())
    return episode.length * (pixels * BYTES_PER_PIXEL + BYTES_PER_FRAME) + BYTES_PER_EPISODE
