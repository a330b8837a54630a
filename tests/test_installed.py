"""A wheel of this project works without the checkout, and says so where NVIDIA's package lies in the same place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip installs of a wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if not name.startswith(("tests/", "benchmarks/", "docs/", "samples/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run(site: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_commands_of_a_wheel_find_their_configuration(site: Path, tmp_path: Path) -> None:
    plan = run(site, tmp_path, "-m", "finetune.plan", "model=tiny", "device=cpu", "dataset.modality_config=so100")
    assert plan.returncode == 0, plan.stderr
    assert "fits" in plan.stdout
    refused = run(site, tmp_path, "-m", "launch_finetune_local", "splitt=color_object")
    assert (refused.returncode, refused.stderr) == (2, 'error: There is no key "splitt". Did you mean "split"?\n')


def test_a_job_of_a_wheel_runs_a_copy_laid_out_as_a_checkout(site: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from toolkit.code_files import check_code, snapshot_code\n"
        "from toolkit.installation import CHECKOUT\n"
        "check_code(CHECKOUT, [], print); print(snapshot_code(CHECKOUT, Path('run')))"
    )
    (tmp_path / "run").mkdir()
    done = run(site, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "run" / "code"
    for name in ("launch_finetune_local.py", "configs/finetune.yaml", "finetune_jobs/run.sh", "gr00t/serve.py"):
        assert (copy / name).read_bytes() == (CHECKOUT / name).read_bytes()
    assert not (copy / "toolkit" / "configs").exists()
    assert os.access(copy / "finetune_jobs" / "run.sh", os.X_OK)


def test_nvidias_package_beside_ours_is_named_with_the_remedy(site: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "site"
    shutil.copytree(site, theirs)
    (theirs / "gr00t-1.7.0.dist-info").mkdir()
    (theirs / "gr00t-1.7.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: gr00t\nVersion: 1.7.0\n")
    done = run(theirs, tmp_path, "-m", "launch_finetune_local", "split=color_object")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in ("NVIDIA's distribution gr00t", str(theirs), "pip uninstall gr00t groot-conflict-finetune"):
        assert part in done.stderr


def test_configuration_that_is_not_there_is_named(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns("commands.yaml"))
    done = run(tmp_path / "site", tmp_path, "-m", "launch_finetune_local", "split=color_object")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "commands.yaml does not exist: run the script of a complete checkout" in done.stderr
