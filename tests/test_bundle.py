"""`make bundle`: wheels that a fresh environment takes without an index, and only as they were when it was made."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
WHEEL = "carried-1.2-py3-none-any.whl"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle_script", CHECKOUT / "scripts" / "bundle.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture()
def bundle(script: ModuleType, tmp_path: Path) -> Path:
    """A bundle of one small wheel."""
    (tmp_path / "bundle" / "wheels").mkdir(parents=True)
    about = "carried-1.2.dist-info"
    with ZipFile(tmp_path / "bundle" / "wheels" / WHEEL, "w") as wheel:
        wheel.writestr("carried.py", "print('it runs')\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.2\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", f"carried.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    script.finish(tmp_path / "bundle", "linux_x86_64")
    return tmp_path / "bundle"


def install(bundle: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """install.sh in the folder above the bundle, where no index can be reached."""
    nowhere = {"PYTHON": sys.executable, "PIP_INDEX_URL": "https://127.0.0.1:9", "PIP_RETRIES": "0", **environment}
    command = [bundle / "install.sh", "its own venv"]
    return subprocess.run(command, cwd=bundle.parent, env=os.environ | nowhere, capture_output=True, text=True)


def test_a_bundle_is_installed_without_an_index(bundle: Path) -> None:
    done = install(bundle)
    assert done.returncode == 0, done.stderr
    python = bundle.parent / "its own venv" / "bin" / "python"
    assert subprocess.run([python, "-m", "carried"], capture_output=True, text=True).stdout == "it runs\n"
    again = install(bundle)
    assert again.returncode == 1 and "its own venv exists already" in again.stderr and python.exists()


def test_a_damaged_wheel_is_refused_and_nothing_is_left(bundle: Path) -> None:
    wheel = bundle / "wheels" / WHEEL
    wheel.write_bytes(wheel.read_bytes().replace(b"it runs", b"it harm"))
    done = install(bundle)
    assert done.returncode == 1 and "DO NOT MATCH THE HASHES" in done.stderr
    assert done.stderr.endswith("Copy the bundle again; nothing was installed.\n")
    assert not (bundle.parent / "its own venv").exists()


def test_another_python_is_refused(bundle: Path) -> None:
    script = bundle / "install.sh"
    script.write_text(script.read_text().replace(f"3.{sys.version_info.minor}", "3.9"))
    done = install(bundle)
    assert done.returncode == 1 and "which these wheels are for" in done.stderr
    assert not (bundle.parent / "its own venv").exists()


RUNS = {
    "numpy-2-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl": True,
    "numpy-2-cp311-cp311-manylinux_2_34_x86_64.whl": False,
    "numpy-2-cp311-cp311-manylinux2014_aarch64.whl": True,
    "numpy-2-cp311-cp311-linux_x86_64.whl": False,
    "numpy-2-py3-none-any.whl": True,
}


@pytest.mark.parametrize("wheel", RUNS)
def test_wheels_that_an_older_glibc_runs_are_known_by_their_names(script: ModuleType, wheel: str) -> None:
    assert script.runs_on(wheel, "2.28") == RUNS[wheel]


def test_another_wheel_is_asked_for_by_every_tag_that_runs_there(script: ModuleType) -> None:
    tags = script.platform_tags("2.28", "numpy-2-cp311-cp311-manylinux_2_34_aarch64.whl")
    assert {"--platform=manylinux_2_28_aarch64", "--platform=manylinux2014_aarch64"} <= {*tags}
    assert "--platform=manylinux_2_29_aarch64" not in tags
    assert script.platform_tags("2.17", "x-1-cp311-cp311-linux_x86_64.whl")[0] == "--platform=manylinux_2_17_x86_64"


@pytest.mark.parametrize(
    ("option", "said"), [("--extras=slrum", 'no extra "slrum". Known: deepspeed'), ("--glibc=3", "such as 2.28")]
)
def test_an_unknown_part_or_version_is_refused_before_anything_is_fetched(option: str, said: str) -> None:
    command = [sys.executable, CHECKOUT / "scripts" / "bundle.py", option]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and "Collecting" not in done.stdout
