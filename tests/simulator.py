"""What tests of the simulator need, and why they are skipped where it is missing."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulation.scenes import rendering_problem
from toolkit.installation import CHECKOUT

needs_simulator = pytest.mark.skipif(
    importlib.util.find_spec("mani_skill") is None,
    reason="mani_skill is not installed: pip install '.[sim]' -c constraints.txt (Python 3.11 or 3.12)",
)


@pytest.fixture(scope="session")
def renderer() -> None:
    """Skips where nothing can be rendered."""
    problem = rendering_problem()
    if problem is not None:
        pytest.skip(f"no Vulkan driver ({problem}): apt install mesa-vulkan-drivers (Debian 12: from backports)")


TRAIN = ("episodes=3", "paraphrases=true")


def command(out: Path, *arguments: str) -> list[str]:
    given = ["local=none", "split=size_color", "image_size=64", f"out={out}", *arguments]
    return [sys.executable, "-m", "simulation.record", *given]


def recorded(out: Path, *arguments: str) -> str:
    result = subprocess.run(command(out, *arguments), cwd=CHECKOUT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def record_split(out: Path) -> Path:
    """out/size_color: 3 train episodes in several phrases, 2 of conflict, pushed aside."""
    recorded(out, *TRAIN)
    recorded(out, "episodes=2", "part=conflict", "recoveries=1", "workers=1")
    return out / "size_color"


def record_killed(out: Path) -> Path:
    """out/size_color/train: the same 3 episodes by a run that is killed after the first and one that resumes."""
    killed = subprocess.Popen(command(out, *TRAIN), cwd=CHECKOUT, stderr=subprocess.DEVNULL)
    while not list(out.glob("size_color/.train.recording/*.h5")) or killed.poll() is not None:
        assert killed.poll() is None, "the recording ended before it could be killed"
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (out / "size_color/train").exists()
    recorded(out, *TRAIN)
    return out / "size_color/train"
