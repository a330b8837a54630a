"""The version and its date are written in several files; they agree, and so do the Pythons that are offered."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def test_the_changelog_and_the_citation_have_the_version_of_the_distribution() -> None:
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    released = re.findall(r"^## \[(\d[^]]*)\] - (\d{4}-\d\d-\d\d)$", (CHECKOUT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == (PROJECT["version"], citation["date-released"].isoformat())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]


def test_public_ci_runs_on_each_python_that_pip_setup_and_the_makefile_accept() -> None:
    first, after = (int(minor) for minor in re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    workflow = yaml.safe_load((CHECKOUT / ".github/workflows/tests.yml").read_text())
    offered = [f"3.{minor}" for minor in range(first, after)]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == offered
    setup, makefile = ((CHECKOUT / name).read_text() for name in ("scripts/setup.sh", "Makefile"))
    assert f"(3, {first}) <= sys.version_info[:2] <= (3, {after - 1})" in setup
    assert all(f"python{version}" in makefile for version in offered)


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="for pytest -n 2 --dist loadgroup")
def test_pytest_and_xdist_understand_each_other_about_groups(request: pytest.FixtureRequest) -> None:
    """They are ends of a worker's names of tests. Of versions that do not, each worker makes every slow preparation."""
    assert request.node.nodeid.endswith(f"@{Path(__file__).name}")
