"""What tests of the simulator need, and why they are skipped where it is missing."""

from __future__ import annotations

import importlib.util

import pytest

from simulation.rendering import rendering_problem

needs_simulator = pytest.mark.skipif(
    importlib.util.find_spec("mani_skill") is None,
    reason="mani_skill is not installed: pip install -c constraints.txt -e '.[sim]' (Python 3.11 or 3.12)",
)


@pytest.fixture(scope="session")
def renderer() -> None:
    """Skips where nothing can be rendered."""
    problem = rendering_problem()
    if problem is not None:
        pytest.skip(f"no Vulkan driver ({problem}): apt install mesa-vulkan-drivers (Debian 12: from backports)")
