"""Scenes of the conflict suites (factors, environment, expert), and whether they can be simulated and rendered here."""

from __future__ import annotations

import logging
import subprocess
import sys
from functools import cache

from gr00t.errors import ToolkitError, require_extra
from toolkit.processes import end_with_parent

ENV_ID = "ConflictPick-v1"  # of environment.py, which only worker processes import

_PROBE = """
import os, sys
import sapien
system = sapien.render.RenderSystem(sapien.Device(sys.argv[1]))
os._exit(0)
"""
_PROBE_SECONDS = 120

VULKAN_REMEDY = """Install Mesa's Vulkan driver, 23 or newer, which renders without a GPU:
  Debian 12:       echo deb http://deb.debian.org/debian bookworm-backports main | sudo tee /etc/apt/sources.list.d/backports.list && sudo apt update && sudo apt install -t bookworm-backports mesa-vulkan-drivers libvulkan1
  Debian, Ubuntu:  sudo apt install mesa-vulkan-drivers libvulkan1
  Fedora, RHEL:    sudo dnf install mesa-vulkan-drivers vulkan-loader
  Arch:            sudo pacman -S vulkan-swrast vulkan-icd-loader"""  # noqa: E501 - one line for each to copy


def require_simulator() -> None:
    """Raise ToolkitError unless ManiSkill is installed."""
    about = "(about 1 GB; Python 3.11 or 3.12)"
    require_extra("sim", "The simulator needs", mani_skill=f"mani_skill {about}", sapien=f"sapien {about}")


@cache
def rendering_problem(device: str = "cpu") -> str | None:
    """Why cameras cannot be rendered on `device` (cpu or gpu), found out in a separate process; None where they can."""
    name = {"gpu": "cuda"}.get(device, device)
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE, name], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the renderer did not start within {_PROBE_SECONDS} s"
    if result.returncode == 0:
        return None
    return (result.stderr.strip().splitlines() or [f"the renderer ended with status {result.returncode}"])[-1]


def require_rendering(device: str) -> None:
    """Raise ToolkitError that says what to install unless cameras can be rendered."""
    problem = rendering_problem(device)
    if problem is not None:
        other = "" if device == "cpu" else "\nOr render without a GPU: render=cpu."
        raise ToolkitError(f"Nothing can be rendered here (render={device}: {problem}). {VULKAN_REMEDY}{other}")


def settle_in() -> None:
    """In a worker process that simulates, before anything else: it ends with its parent, and is quiet."""
    # Only the worker processes load the simulator.
    import torch
    from mani_skill import logger

    end_with_parent()
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
