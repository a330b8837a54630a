"""The frozen backbone's output, computed once and kept in memory-mapped files.

One row for each augmented view of each start frame: row = start x views + view. Files (`rows-<number>.safetensors`)
hold ROWS_PER_FILE each and appear whole, with a checksum beside each, so what is there need not be computed again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gr00t.checksums import checksum_path, write_checksum
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, umask, whole_file

KEYS = ("features", "attention_mask", "image_mask")
ROWS_PER_FILE = 64  # what a killed process loses at most, and what processes share the work by


@dataclass(frozen=True)
class FeatureStore:
    """The rows of `starts` x `views` samples: features (tokens, width) in `dtype`, attention_mask and image_mask
    (tokens,) bool."""

    folder: Path
    starts: int
    views: int
    tokens: int
    width: int
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        return self.starts * self.views

    @property
    def row_bytes(self) -> int:
        """Size of a row on the disk."""
        return self.tokens * (self.width * self.dtype.itemsize + 2)

    def files(self) -> list[tuple[Path, range]]:
        """Every file, and the rows it holds."""
        firsts = range(0, self.rows, ROWS_PER_FILE)
        return [self._file(number) for number in range(len(firsts))]

    def missing(self) -> list[Path]:
        """The files that are not there, or without their checksum."""
        return [path for path, _ in self.files() if not (path.is_file() and checksum_path(path).is_file())]

    def row(self, row: int) -> dict[str, Tensor]:
        """One row's tensors: views into the mapped file. A missing or damaged file raises, naming the remedy."""
        number, place = divmod(row, ROWS_PER_FILE)
        if number not in self._open:
            self._open[number] = self._read(*self._file(number))
        return {key: tensor[place] for key, tensor in self._open[number].items()}

    def sample(self, start: int, view: int) -> dict[str, Tensor]:
        """What takes the place of images and text in a training sample."""
        return self.row(start * self.views + view)

    @staticmethod
    def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """features (B, S, width), attention_mask and image_mask (B, S) bool."""
        return {key: torch.stack([s[key] for s in samples]) for key in KEYS}

    def write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """One file and its checksum, whole or not there; tensors (rows, ...) of KEYS on the CPU."""
        with disk_errors(path, "Make room there, or choose another cache_dir=FOLDER."):
            checksum_path(path).unlink(missing_ok=True)
            with whole_file(path) as temporary:
                save_file(tensors, temporary)
                temporary.chmod(0o666 & ~umask())  # safetensors lets nobody else read it
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            write_checksum(path, self.folder.name)

    @cached_property
    def _open(self) -> dict[int, dict[str, Tensor]]:
        return {}

    def _file(self, number: int) -> tuple[Path, range]:
        first = number * ROWS_PER_FILE
        path = self.folder / f"rows-{number:05d}.safetensors"
        return path, range(first, min(first + ROWS_PER_FILE, self.rows))

    def _read(self, path: Path, rows: range) -> dict[str, Tensor]:
        try:
            with safe_open(path, framework="pt") as file:
                found = {key: file.get_tensor(key) for key in KEYS}
        except (SafetensorError, OSError) as error:
            raise ToolkitError(f"{path} is damaged ({error}). Delete that file; it is then made anew.") from None
        if found["features"].shape != (len(rows), self.tokens, self.width) or found["features"].dtype != self.dtype:
            raise ToolkitError(f"{path} holds {tuple(found['features'].shape)}. Delete that file; it is made anew.")
        return found

    def __getstate__(self) -> dict[str, Any]:  # another process maps the files itself
        return {key: value for key, value in self.__dict__.items() if key != "_open"}
