"""What a ManiSkill 3 recording (trajectory .h5 with its .json) of a Panda with two cameras holds.

A recording of T steps has T actions and T+1 observations; observation t goes with action t, the last one is not used.
Of an HDF5 file, which may be from elsewhere, only what lies in the file itself is read, and no more than it can
hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gr00t.errors import ToolkitError, in_bytes
from gr00t.file_reading import refuse_special

# Key in the dataset: ManiSkill's sensor; one that already has the key's name is taken too.
CAMERAS = {"image": "base_camera", "wrist_image": "hand_camera"}
CONTROL_FREQ = 20  # ManiSkill's default, Hz

_ALWAYS_READ = 2**28  # bytes of an array, however few the file holds
_USUAL_RATIO = 1000  # of an array to what the file holds, above that; images of one colour come near it


@dataclass(frozen=True)
class Episode:
    """One successful recorded episode; arrays are read from the file at every call.

    `frame_sizes` is (height, width) by camera key of CAMERAS; `content` a hash that equal recordings share;
    `instruction` and `target` (the object to act on) what the .json says, None where it is silent, as ManiSkill's is.
    """

    file: Path
    episode_id: int
    seed: int | None
    length: int  # T, steps
    frame_sizes: dict[str, tuple[int, int]]
    content: str
    instruction: str | None = None
    target: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"{self.file}, traj_{self.episode_id}"

    def actions(self) -> np.ndarray:
        """(T, 8) float32: 7 joint targets (rad), gripper command in [-1, 1]."""
        return self._read("actions").astype(np.float32)

    def states(self) -> np.ndarray:
        """(T, 8) float32: 7 joint positions (rad), gripper width (m)."""
        return state_of(self._read("obs/agent/qpos")[: self.length])

    def successes(self) -> np.ndarray:
        """(T,) bool: whether the task counts as solved after each step."""
        return self._read("success").astype(bool)

    def frames(self, camera: str) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB of a key of CAMERAS."""
        with open_hdf5(self.file) as recording:
            cameras = reach(recording, f"traj_{self.episode_id}/obs/sensor_data", self.name)
            return reach(cameras, f"{sensor_of(cameras, camera)}/rgb", self.name)[: self.length]

    def _read(self, dataset: str) -> np.ndarray:
        with open_hdf5(self.file) as recording:
            return reach(recording, f"traj_{self.episode_id}/{dataset}", self.name)[:]


@dataclass(frozen=True)
class LeftOut:
    """An episode that is not converted, and why."""

    file: Path
    episode_id: int
    reason: str


@dataclass
class Recordings:
    """All trajectory files below one folder: usable episodes in recorded order, the others, and remarks.

    recorded: of the instruction suite, the strategy, its factors and which combinations of their values it records.
    """

    folder: Path
    episodes: list[Episode] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recorded: dict[str, Any] | None = None


def state_of(qpos: np.ndarray) -> np.ndarray:
    """Joint positions (..., 9) as datasets hold them, (..., 8) float32: 7 joints (rad), gripper width (m)."""
    qpos = qpos.astype(np.float32)
    return np.concatenate([qpos[..., :7], qpos[..., 7:8] + qpos[..., 8:9]], axis=-1)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which numbers inside names count as numbers."""
    return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in re.split(r"(\d+)", name) if p]


def sensor_of(cameras: Collection[str], camera: str) -> str:
    """The recorded camera that a key of CAMERAS means."""
    return camera if CAMERAS[camera] not in cameras and camera in cameras else CAMERAS[camera]


# -- the HDF5 file -----------------------------------------------------------------------------------------------------


def reach(group: h5py.Group, name: str, where: str) -> Any:
    """What lies below a group under a name, None where nothing does; what another file holds raises ToolkitError.

    A link to another file would bring that file's content, whatever it is, into the dataset.
    """
    found: Any = group
    for part in filter(None, name.split("/")):
        # `part in found` would open the other file
        if not isinstance(found, h5py.Group) or not found.id.links.exists(part.encode()):
            return None
        kind = found.id.links.get_info(part.encode()).type
        if kind == h5py.h5l.TYPE_SOFT:
            target = found.id.links.get_val(part.encode()).decode()
            found = reach(found.file if target.startswith("/") else found, target, where)
        elif kind == h5py.h5l.TYPE_HARD:
            found = found[part]
        else:
            raise ToolkitError(
                f'{where}: "{part}" of "{name}" is a link to another file, which is not followed. Copy what it leads '
                "to into the recording, or record again."
            )
    return found


def check_storage(array: h5py.Dataset, where: str) -> None:
    """Refuse arrays of anything but numbers, whose values lie outside of the file, or far more than it holds."""
    if array.dtype.kind not in "biuf":
        raise ToolkitError(f"{where} holds {array.dtype}, where numbers are needed. Record again.")
    if array.is_virtual or array.external:
        raise ToolkitError(
            f"{where} lies in another file (HDF5's virtual datasets and external storage), which is not read. Copy the "
            "values into the recording, or record again."
        )
    stored = array.id.get_storage_size()
    if array.size and (not stored or array.nbytes > max(_ALWAYS_READ, _USUAL_RATIO * stored)):
        raise ToolkitError(
            f"{where} declares {in_bytes(array.nbytes)}, of which the file holds {in_bytes(stored)}. The recording is "
            "damaged or was tampered with: copy it again or record again."
        )


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file opened for reading; all that HDF5 raises becomes ToolkitError."""
    refuse_special(path)
    try:
        with h5py.File(path, "r") as recording:
            yield recording
    except ToolkitError:
        raise
    except Exception as error:
        raise ToolkitError(
            f"{path}: cannot be read ({error}). The file is truncated, damaged or still being written: wait for the "
            "recording to end, copy it again or record again."
        ) from error
