"""Where a model runs and in which precision, and what it needs there to be fast: by machines that are made up."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gr00t.errors import ToolkitError
from gr00t.model import cpu_kernels
from gr00t.model import device as compilation
from gr00t.model.cpu_kernels import flash_attention
from gr00t.model.device import compiles, missing_for_compilation, pick_device, pick_precision

ROOT = Path(__file__).resolve().parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("there", [True, False])
def test_auto_is_a_gpu_where_there_is_one_and_cpu_is_always_a_cpu(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device("auto") == (CUDA if there else CPU) and pick_device("cpu") == CPU
    if there:
        assert pick_device("cuda") == CUDA
    else:
        with pytest.raises(ToolkitError, match="PyTorch finds no CUDA device"):
            pick_device("cuda")


@pytest.mark.parametrize("native, emulated", [(True, True), (False, True), (False, False)])
def test_auto_is_bf16_on_a_gpu_that_computes_in_it_itself(
    native: bool, emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: emulated if including_emulation else native
    )
    assert pick_precision("auto", CUDA) == (torch.bfloat16 if native else torch.float32)
    assert pick_precision("auto", CPU) == torch.float32 == pick_precision("fp32", CUDA)
    assert pick_precision("bf16", CPU) == torch.bfloat16
    assert pick_precision("fastest", CUDA) == pick_precision("auto", CUDA)
    if emulated:
        assert pick_precision("bf16", CUDA) == torch.bfloat16
    else:
        with pytest.raises(ToolkitError, match="this GPU has none"):
            pick_precision("bf16", CUDA)


@pytest.mark.parametrize("instructions", [True, False])
def test_bf16_that_a_cpu_only_imitates_is_warned_of(
    instructions: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert pick_precision("bf16", CPU) == torch.bfloat16 and pick_precision("auto", CPU) == torch.float32
    assert ("precision=fastest" in caplog.text) is not instructions
    assert pick_precision("fastest", CPU) == (torch.bfloat16 if instructions else torch.float32)


@pytest.mark.parametrize(
    "listed, instructions", [({"bf16": True}, True), ({"bf16": False, "neon": True}, False), ({}, False)]
)
def test_a_cpu_of_another_kind_has_bf16_where_it_says_so(
    listed: dict[str, bool], instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: listed, raising=False)
    assert pick_precision("fastest", CPU) == (torch.bfloat16 if instructions else torch.float32)


MIXED_MACHINES = """
import os

import torch

from finetune.training.engine import agreed_precision
from gr00t.model import cpu_kernels

torch.distributed.init_process_group("gloo")
cpu, own = torch.device("cpu"), os.environ["RANK"] == "0"
for both in (True, False):
    cpu_kernels.has_bf16 = lambda: both or own
    print(agreed_precision("fastest", cpu), flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.multiprocess
@pytest.mark.long
def test_processes_on_several_kinds_of_machines_compute_alike(tmp_path: Path) -> None:
    (tmp_path / "both.py").write_text(MIXED_MACHINES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "both.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode().split()
    assert sorted(said) == ["torch.bfloat16"] * 2 + ["torch.float32"] * 2


@pytest.mark.parametrize(
    "capability, installed, chosen",
    [
        ((9, 0), "23", "flash_attention_3"),
        ((9, 0), "2", "flash_attention_2"),
        ((8, 0), "23", "flash_attention_2"),
        ((10, 0), "23", "flash_attention_2"),
        ((8, 9), "3", None),
        ((9, 0), "", None),
    ],
)
def test_flash_attention_is_the_newest_that_the_gpu_can_run(
    capability: tuple[int, int], installed: str, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(cpu_kernels, "is_flash_attn_2_available", lambda: "2" in installed)
    monkeypatch.setattr(cpu_kernels, "is_flash_attn_3_available", lambda: "3" in installed)
    assert flash_attention(CUDA, torch.bfloat16) == chosen
    assert flash_attention(CUDA, torch.float16) is None and flash_attention(CPU, torch.bfloat16) is None


def test_plain_products_take_over_in_training_and_in_bf16() -> None:
    plain, trained = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4, requires_grad=True)
    assert not cpu_kernels.pays_off(plain, plain)
    assert cpu_kernels.pays_off(trained, plain) and cpu_kernels.pays_off(plain, trained)
    assert cpu_kernels.pays_off(plain.bfloat16(), plain)
    with torch.no_grad():
        assert not cpu_kernels.pays_off(trained, trained)
    with cpu_kernels.switched(False):
        assert not cpu_kernels.pays_off(trained.bfloat16(), trained)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Programs that are found, and whether triton is installed."""
    found: dict[str, Any] = {"programs": set(), "triton": True}
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(shutil, "which", lambda name: name if name in found["programs"] else None)
    monkeypatch.setattr(
        compilation.importlib.util,
        "find_spec",
        lambda name, *more: (object() if found["triton"] else None) if name == "triton" else find_spec(name, *more),
    )
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_a_gpu_needs_triton_and_a_c_compiler_and_a_cpu_one_for_cpp(machine: dict[str, Any]) -> None:
    for program, cuda, cpu in (
        ("gcc", True, False),
        ("g++", False, True),
        ("clang", True, False),
        ("tcc", False, False),
    ):
        machine["programs"] = {program}
        assert (missing_for_compilation(CUDA) is None, missing_for_compilation(CPU) is None) == (cuda, cpu), program
    machine.update(programs={"cc", "c++"}, triton=False)
    assert "triton" in str(missing_for_compilation(CUDA)) and missing_for_compilation(CPU) is None


def test_the_environments_own_compiler_counts(machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    machine["programs"] = {"/opt/cc", "/opt/cxx"}
    monkeypatch.setenv("CC", "/opt/cc")
    assert missing_for_compilation(CUDA) is None and missing_for_compilation(CPU) is not None
    monkeypatch.setenv("CXX", "/opt/cxx")
    assert missing_for_compilation(CPU) is None


def test_a_gpu_compiles_unless_it_is_switched_off_or_something_is_missing(machine: dict[str, Any]) -> None:
    machine["programs"] = {"cc", "c++"}
    assert compiles(None, CUDA) and compiles(True, CUDA) and not compiles(False, CUDA)
    assert not compiles(None, CPU) and compiles(True, CPU) and not compiles(False, CPU)
    machine["triton"] = False
    assert not compiles(None, CUDA) and not compiles(False, CUDA)
    with pytest.raises(ToolkitError, match="lacks the package triton"):
        compiles(True, CUDA)
