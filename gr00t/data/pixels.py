"""uint8 images to the `pixel_values` of Qwen3-VL, in torch, on whatever device the images lie."""

from __future__ import annotations

import torch

PATCH = 16  # pixels a patch side
MERGE = 2  # patches a side that the vision tower merges into one token
TEMPORAL = 2  # a still image is repeated to fill the temporal patch
FACTOR = PATCH * MERGE  # image sides must be multiples of this


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
