"""Scenes for physics alone, also on machines without a Vulkan driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sapien.render
import sapien.wrapper.urdf_loader


class _Material:
    """Takes the place of sapien.render.RenderMaterial; nobody looks at it."""

    def __init__(self, **looks: Any) -> None:
        self.__dict__.update(looks)


@contextmanager
def without_materials(wanted: bool = True) -> Iterator[None]:
    """In the block, bodies are built without materials, where `wanted`.

    SAPIEN makes a material with Vulkan even for a scene that renders nothing: without a driver that fails, and with one
    it starts and ends the renderer for each, 40 times as long as all the rest of a reset.
    """
    holders = (sapien.render, sapien.pysapien.render, sapien.wrapper.urdf_loader) if wanted else ()
    own = [holder.RenderMaterial for holder in holders]
    for holder in holders:
        holder.RenderMaterial = _Material
    try:
        yield
    finally:
        for holder, material in zip(holders, own, strict=True):
            holder.RenderMaterial = material
