"""A recorded episode without its first steps."""

from __future__ import annotations

from pathlib import Path

import h5py


def leave_out_start(path: Path, steps: int) -> None:
    """Rewrite the .h5 of a single episode so that it begins `steps` steps later, observations and states too."""
    aside = path.with_name(f"{path.stem}.partial-cut.h5")
    with h5py.File(path, "r") as whole, h5py.File(aside, "w") as rest:
        for name, trajectory in whole.items():
            _copy_rest(trajectory, rest.create_group(name), steps)
    aside.replace(path)


def _copy_rest(group: h5py.Group, into: h5py.Group, steps: int) -> None:
    into.attrs.update(group.attrs)
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            _copy_rest(item, into.create_group(name), steps)
        else:  # of one entry a step, or one more
            packing = {"compression": item.compression, "compression_opts": item.compression_opts}
            into.create_dataset(name, data=item[steps:], **packing).attrs.update(item.attrs)
