"""Videos of episodes: what both cameras saw, with instruction and outcome burnt in."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep.maniskill import CONTROL_FREQ
from gr00t.data.video import write_video

VIEW = 256  # least height of a camera's image, pixels
FONT, LINE, MARGIN = 14, 18, 6


def write_film(path: Path, views: Sequence[Sequence[np.ndarray]], text: str) -> None:
    """Write frames of several views (H, W, 3) uint8, side by side above `text`, as H.264 at the speed of the robot."""
    scale = max(1, -(-VIEW // views[0][0].shape[0]))
    images = np.stack([np.concatenate(list(frame), axis=1) for frame in views])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    caption = _caption(text, images.shape[2])
    frames = np.concatenate([images, np.broadcast_to(caption, (len(images), *caption.shape))], axis=1)
    # yuv420p needs even sizes
    write_video(path, frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2], CONTROL_FREQ)


def _caption(text: str, width: int) -> np.ndarray:
    """(h, width, 3) uint8: white on black, in lines that fit."""
    font = ImageFont.load_default(FONT)
    letters = max(10, int((width - 2 * MARGIN) / font.getlength("x")))
    lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, letters)]
    image = Image.new("RGB", (width, LINE * len(lines) + 2 * MARGIN))
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((MARGIN, MARGIN + number * LINE), line, "white", font)
    return np.asarray(image)
