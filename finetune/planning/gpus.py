"""What GPUs can do, from their makers' data sheets: dense bf16 products, memory, memory bandwidth."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gr00t.errors import ToolkitError, did_you_mean


@dataclass(frozen=True)
class Gpu:
    """tflops: 1e12 bf16 operations a second without sparsity; memory in GB (1e9); bandwidth in GB/s."""

    name: str
    memory: float
    tflops: float
    bandwidth: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("b200", 180, 2250, 8000),
        Gpu("h200", 141, 989, 4800),
        Gpu("gh200", 96, 989, 4000),
        Gpu("h100", 80, 989, 3350),
        Gpu("a100-80gb", 80, 312, 2039),
        Gpu("a100", 40, 312, 1555),
        Gpu("l40s", 48, 362, 864),
        Gpu("a6000", 48, 155, 768),
        Gpu("a40", 48, 150, 696),
        Gpu("5090", 32, 210, 1792),
        Gpu("4090", 24, 165, 1008),
        Gpu("3090", 24, 71, 936),
        Gpu("a10", 24, 125, 600),
        Gpu("l4", 24, 121, 300),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name; an unknown one is refused with the names that are known."""
    if name.lower() not in GPUS:
        raise ToolkitError(
            f"gpu={name} is not in the table.{did_you_mean(name.lower(), GPUS)} Of another GPU give its memory, "
            "gpu_memory_gb=48; its time is then left out."
        )
    return GPUS[name.lower()]


def gpu_of_cluster(name: str | None) -> Gpu | None:
    """What a cluster's name of a GPU type (nvidia_a100-sxm4-40gb, h100_pcie) stands for; None where it is unclear."""
    words = re.findall(r"[a-z]*\d+[a-z]*", (name or "").lower())
    if "a100" in words and "80gb" in words:
        return GPUS["a100-80gb"]
    return next((GPUS[word] for word in words if word in GPUS), None)
