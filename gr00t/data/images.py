"""From a camera frame to the square uint8 image that the VLM sees, and from there to the pixel values of Qwen3-VL.

The eval transform and the training augmentation are OpenCV and numpy on uint8, equal bit for bit to what the original
gets from albumentations 1.4.18. Pixel values are computed in torch, on whatever device the images lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from PIL import Image

from gr00t.data.processor_files import MERGE, PATCH, TEMPORAL
from gr00t.data.schema import look_up
from gr00t.errors import ToolkitError

MOST_SIDE = 4096  # pixels
JITTERS = ("brightness", "contrast", "saturation", "hue")
FACTOR = PATCH * MERGE  # image sides must be multiples of this
_LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True)
class Augmentation:
    """One draw of the training augmentation, replayed over every frame and view of a sample.

    `crop_y`, `crop_x`: top left corner of the crop, in pixels of the resized square. `angle`: rotation in degrees,
    counter-clockwise, None for none. The colour factors are neutral at 1 (`hue`: 0, in turns of the colour circle)
    and are applied in the sequence `order`; an empty order leaves the colours alone.
    """

    crop_y: int
    crop_x: int
    angle: float | None = None
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageTransform:
    """Pad to a square, resize, crop, resize back; in training with a random crop, rotation and colour jitter.

    The field names are those of processor_config.json. `side` S, of the resulting square in pixels, is
    `shortest_image_edge`, else the target size; `crop_side`, of the square that is cut out and enlarged again, is
    `crop_fraction` of it, else the ratio of crop size to target size. `random_rotation_angle` is the largest angle in
    degrees; `color_jitter_params` holds the half widths of the factors' ranges.
    """

    shortest_image_edge: int | None = None
    crop_fraction: float | None = None
    image_crop_size: list[int] | None = None
    image_target_size: list[int] | None = None
    random_rotation_angle: float | None = None
    color_jitter_params: dict[str, float] | None = None

    @cached_property
    def side(self) -> int:
        """S, pixels."""
        edge = self.shortest_image_edge
        return int((self.image_target_size or [0])[0] if edge is None else edge)

    @cached_property
    def crop_side(self) -> int:
        """Side of the square that is cut out, pixels."""
        return int(self.side * self._fraction)

    @property
    def _fraction(self) -> float:
        if self.crop_fraction is not None:
            return self.crop_fraction
        crop, target = ((size or [0])[0] for size in (self.image_crop_size, self.image_target_size))
        if not (crop and target):
            raise ToolkitError(
                "Image transform: give crop_fraction (for example 0.95) or image_crop_size with image_target_size."
            )
        return crop / target

    def __post_init__(self) -> None:
        if not 0 < self.side <= MOST_SIDE:
            raise ToolkitError(
                f"Image transform: give shortest_image_edge (say 256, at most {MOST_SIDE}) or image_target_size."
            )
        if not 0.0 < self._fraction <= 1.0 or self.crop_side < 1:
            raise ToolkitError(f"Image transform: the crop fraction must lie in (0, 1], not {self._fraction}.")
        for name, value in (self.color_jitter_params or {}).items():
            look_up(dict.fromkeys(JITTERS), name, f'color_jitter_params: unknown "{name}".')
            if not 0.0 <= value <= (0.5 if name == "hue" else math.inf):
                raise ToolkitError(f"color_jitter_params.{name}: {value} must be >= 0 (hue: at most 0.5).")

    def eval(self, frame: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB to (S, S, 3) uint8: padded, resized, centre crop, resized back."""
        offset = (self.side - self.crop_side) // 2
        return self._square_crop(frame, offset, offset)

    def train(self, frame: np.ndarray, augmentation: Augmentation) -> np.ndarray:
        """(H, W, 3) uint8 RGB to (S, S, 3) uint8 under one drawn augmentation.

        The black padding is that of this frame. The original replays the first view's padding over all views of a
        sample, which distorts a second view of another shape in training only; here each view is padded as in `eval`.
        """
        image = self._square_crop(frame, augmentation.crop_y, augmentation.crop_x)
        if augmentation.angle is not None:
            # The corners are filled by reflection: albumentations 1.4.18's default, which the original leaves as it is.
            side = image.shape[0]
            matrix = cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), augmentation.angle, 1.0)
            image = cv2.warpAffine(
                image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            )
        for name in augmentation.order:
            image = _jitter(image, name, getattr(augmentation, name))
        return image

    def draw(self, rng: np.random.Generator) -> Augmentation:
        """Draw the parameters of one sample; offsets are uniform over every position, both ends included."""
        crop_y, crop_x = (int(v) for v in rng.integers(0, self.side - self.crop_side, size=2, endpoint=True))
        angle = None
        if self.random_rotation_angle:
            angle = float(rng.uniform(-self.random_rotation_angle, self.random_rotation_angle))
        if self.color_jitter_params is None:
            return Augmentation(crop_y, crop_x, angle)
        factors = {}
        for name in JITTERS:
            width = self.color_jitter_params.get(name, 0.0)
            low, high = (-width, width) if name == "hue" else (max(0.0, 1.0 - width), 1.0 + width)
            factors[name] = float(rng.uniform(low, high))
        order = tuple(JITTERS[i] for i in rng.permutation(len(JITTERS)))
        return Augmentation(crop_y, crop_x, angle, **factors, order=order)

    def _square_crop(self, frame: np.ndarray, y: int, x: int) -> np.ndarray:
        check_frame(frame)
        height, width = frame.shape[:2]
        if height != width:
            side = max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            margins = (top, side - height - top, left, side - width - left)
            frame = cv2.copyMakeBorder(frame, *margins, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        image = _resize(frame, self.side)
        return _resize(image[y : y + self.crop_side, x : x + self.crop_side], self.side)


def check_frame(frame: np.ndarray) -> None:
    """Raise ToolkitError for anything but an (H, W, 3) uint8 image."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ToolkitError(f"A camera frame must be RGB uint8 of shape (H, W, 3) with values 0 to 255, not {found}.")
    if 0 in frame.shape:
        raise ToolkitError(f"A camera frame is empty: shape {frame.shape}.")


def vlm_resize(frame: np.ndarray, min_pixels: int, max_pixels: int, factor: int) -> np.ndarray:
    """The Qwen image processor's resize: sides to multiples of `factor`, area within bounds; bicubic.

    frame (H, W, 3) uint8 to (H', W', 3) uint8; one that already fits comes back untouched, as all 256x256 ones do.
    """
    height, width = frame.shape[:2]
    if max(height, width) > 200 * min(height, width):
        raise ToolkitError(f"A {height}x{width} image is too narrow: the VLM accepts side ratios up to 200.")
    new_height, new_width = (round(side / factor) * factor for side in (height, width))
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height, new_width = (max(factor, int(side / shrink // factor) * factor) for side in (height, width))
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height, new_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
    if (new_height, new_width) == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BICUBIC))


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    return image if len(image) == side else cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def _jitter(image: np.ndarray, name: str, factor: float) -> np.ndarray:
    """One of JITTERS on an (S, S, 3) uint8 image."""
    if name == "brightness":
        return _look_up(image, _LEVELS * factor)
    if name == "hue":
        if factor == 0:
            return image  # the way through HSV would lose bits
        # OpenCV's uint8 hue counts half degrees, 0 to 179.
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        cv2.insertChannel(_look_up(cv2.extractChannel(hsv, 0), np.mod(_LEVELS + 180.0 * factor, 180.0)), hsv, 0)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if name == "contrast":
        mean = cv2.sumElems(gray)[0] / gray.size
        return _look_up(image, _LEVELS * factor + mean * (1.0 - factor))
    return cv2.addWeighted(image, factor, cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), 1.0 - factor, 0)


def _look_up(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    # Truncated, not rounded: so the original's tables are.
    return cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))


def pixel_values(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """images (N, H, W, 3) uint8, sides multiples of 32, to (N * H/16 * W/16, 3 * 2 * 16 * 16), values in [-1, 1].

    Rows run over images, then 2x2 blocks of patches, then the patches of a block (the order in which the vision
    tower merges them); columns over channel, time, row, column. Computed in float32, then cast to `dtype`. Bit for
    bit the Qwen3-VL image processor's. (original: transformers' Qwen2VLImageProcessor, mean and std 0.5)
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {tuple(images.shape)}")
    n, height, width, _ = images.shape
    if height % FACTOR or width % FACTOR:
        raise ValueError(f"image sides must be multiples of {FACTOR}, not {height}x{width}")
    rows, columns = height // FACTOR, width // FACTOR
    # A tensor on the device, not a Python number: CUDA turns division by a number into a multiplication.
    half = torch.full((), 127.5, dtype=torch.float32, device=images.device)
    x = ((images.to(torch.float32) - half) / half).to(dtype)
    x = x.reshape(n, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)  # n, rows, columns, merge y, merge x, channel, patch y, patch x
    x = x.unsqueeze(6).expand(*x.shape[:6], TEMPORAL, PATCH, PATCH)
    return x.reshape(n * rows * columns * MERGE * MERGE, 3 * TEMPORAL * PATCH * PATCH)


def grid_thw(images: torch.Tensor) -> torch.Tensor:
    """images (N, H, W, 3) to int64 (N, 3): one time step, H/16 and W/16 patches."""
    n, height, width, _ = images.shape
    return torch.tensor([[1, height // PATCH, width // PATCH]], dtype=torch.int64).repeat(n, 1)
