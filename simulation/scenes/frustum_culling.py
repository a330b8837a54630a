"""What lies outside a camera's view is not drawn for it: without a GPU, the triangles of the arm are most of an image's
time, and neither camera sees most of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import sapien.render

_MARGIN = 1.02  # of the view's half angles' tangents, against rounding at an image's edge


@contextmanager
def only_what_is_seen(
    camera: sapien.render.RenderCameraComponent, bodies: Iterable[sapien.render.RenderBodyComponent]
) -> Iterator[None]:
    """In the block, those bodies are invisible whose bounding box lies outside the camera's view as a whole."""
    outside = [body for body in bodies if body.visibility and not _may_be_seen(camera, body)]
    usual = [body.visibility for body in outside]
    for body in outside:
        body.visibility = 0
    try:
        yield
    finally:
        for body, visibility in zip(outside, usual, strict=True):
            body.visibility = visibility


def _may_be_seen(camera: sapien.render.RenderCameraComponent, body: sapien.render.RenderBodyComponent) -> bool:
    """Whether the corners of a body's box (8, 3) are not all beyond one and the same plane of the camera's view."""
    box = np.asarray(body.get_global_aabb_fast())
    corners = np.stack(np.meshgrid(*box.T, indexing="ij"), axis=-1).reshape(-1, 3)
    to_camera = camera.get_extrinsic_matrix()  # OpenCV's axes: x to the right, y down, z into the image
    x, y, depth = to_camera[:3, :3] @ corners.T + to_camera[:3, 3:]
    width, height = _MARGIN * depth * np.tan(camera.fovx / 2), _MARGIN * depth * np.tan(camera.fovy / 2)
    beyond = (x > width, x < -width, y > height, y < -height, depth < camera.near, depth > camera.far)
    return not any(side.all() for side in beyond)
