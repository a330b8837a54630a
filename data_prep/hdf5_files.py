"""HDF5 files from elsewhere: only what lies in the file itself is read, and no more than it can hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from gr00t.errors import ToolkitError, in_bytes
from gr00t.file_reading import refuse_special

_ALWAYS_READ = 2**28  # bytes of an array, however few the file holds
_USUAL_RATIO = 1000  # of an array to what the file holds, above that; images of one colour come near it


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
