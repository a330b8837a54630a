"""Without an extra of pyproject.toml the command that needs it says in one line what to install, before all else."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
EXTRAS: dict[str, list[str]] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
TRAIN = ("launch_finetune_local", "local=none", "model=tiny", "split=color_object")
RECORD = ("simulation.record", "local=none", "split=color_object", "episodes=1")
ASK = ("evaluate_conflict", "local=none", "split=color_object", "mode=closed_loop")
# the extra, the module that is hidden, its package, and a command that needs it
MISSING = [
    ("deepspeed", "deepspeed", "DeepSpeed", (*TRAIN, "engine=zero2_bf16")),
    ("slurm", "submitit", "submitit", ("launch_finetune_slurm", "local=none", "split=color_object")),
    ("optimizers", "bitsandbytes", "bitsandbytes", (*TRAIN, "train.optimizer=adamw_8bit")),
    ("lora", "peft", "peft", (*TRAIN, "train.lora.rank=4")),
    ("serve", "zmq", "pyzmq", ("gr00t.serve", "checkpoint=checkpoints/none")),
    ("serve", "msgpack", "msgpack", ("gr00t.serve", "checkpoint=checkpoints/none")),
    ("serve", "websockets", "websockets", (*ASK, "server=ws://127.0.0.1:8000")),
    ("dashboard", "wandb_workspaces", "wandb-workspaces", ("finetune.dashboard", "local=none", "out=workspace.json")),
    ("tensorboard", "tensorboard", "TensorBoard", (*TRAIN, "tracking=tensorboard")),
    ("sim", "mani_skill", "mani_skill", RECORD),
    ("sim", "sapien", "sapien", RECORD),
]
HIDE = """
import runpy, sys
hidden, module, *arguments = sys.argv[1:]
sys.modules[hidden] = None  # as if it were not installed
sys.argv[:] = [module, *arguments]
runpy.run_module(module, run_name="__main__")
"""


def test_every_extra_has_a_command_that_is_tried_without_it() -> None:
    assert {extra for extra, *_ in MISSING} == EXTRAS.keys() - {"dev"}


@pytest.mark.parametrize(("extra", "module", "package", "command"), MISSING, ids=[module for _, module, *_ in MISSING])
def test_a_command_without_its_extra_names_it_in_one_line(
    extra: str, module: str, package: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    if any(importlib.util.find_spec(other) is None for of, other, *_ in MISSING if of == extra and other < module):
        pytest.skip(f"another package of the extra {extra} is missing too, and is named before")
    done = subprocess.run(
        [sys.executable, "-c", HIDE, module, *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    said = (
        rf"error: [^\n]* needs? {package}\b[^\n]*\. Install it: pip install '\.\[{extra}\]' -c constraints\.txt[^\n]*\n"
    )
    assert re.fullmatch(said, done.stderr), done.stderr
    assert any(re.match(rf"{package}\b", requirement, re.IGNORECASE) for requirement in EXTRAS[extra])
    assert not list(tmp_path.iterdir())
