"""The images of containers/ hold the packages that are tested, and both hold the same."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from slurm_cluster import ROOT

DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text()
DEFINITION = (ROOT / "containers" / "groot.def").read_text()
INSTRUCTIONS = {"FROM", "ARG", "RUN", "COPY", "ENV", "WORKDIR", "CMD"}
SECTIONS = {"files", "post", "environment", "test"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()]  # type: ignore[misc]


def sections() -> dict[str, list[str]]:
    """The lines of each section of the Apptainer definition, and of its header under ""."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in DEFINITION.splitlines():
        if line.startswith("%"):
            name = line[1:]
            found[name] = []
        elif line.strip() and not line.strip().startswith("#"):
            found[name].append(line.strip())
    return found


def test_the_definitions_parse_and_what_they_copy_is_there() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS and instructions()[0][0] == "FROM"
    copied = next(words.split()[:-1] for name, words in instructions() if name == "COPY")
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert sent[1] == "*" and [line.removeprefix("!") for line in sent[2:]] == copied
    assert set(sections()) == {"", *SECTIONS}
    header = dict(line.split(": ") for line in sections()[""])
    assert header == {"Bootstrap": "docker", "From": instructions()[0][1]}
    pairs = [line.split() for line in sections()["files"]]
    assert [source for source, _ in pairs] == copied
    assert all((ROOT / name).is_file() and Path(to).name == Path(name).name for name, to in pairs)
    for name in ("post", "test"):
        subprocess.run(["sh", "-n"], input="\n".join(sections()[name]), text=True, check=True)
    for name, words in instructions():
        if name == "RUN":
            subprocess.run(["sh", "-n"], input=words, text=True, check=True)


def test_both_install_the_same_in_the_same_versions() -> None:
    ran = " && ".join(words for name, words in instructions() if name == "RUN")
    wanted = [line for line in sections()["post"] if line.startswith(("apt-get install", "python ", "pip "))]
    assert len(wanted) == 3 and all(line in re.sub(" +", " ", ran) for line in wanted)
    assert "-c constraints.txt" in wanted[2]


def test_the_packages_are_those_of_the_project() -> None:
    extras = re.search(r"requirements.py (.*) > ", DEFINITION)
    assert extras
    command = [sys.executable, "containers/requirements.py", *extras[1].split()]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["dependencies"]) < set(listed)
    assert set(project["optional-dependencies"]["deepspeed"]) < set(listed)
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    names = {re.split(r"[<>=;\s]", line)[0].lower() for line in listed}
    assert {name.replace("-", "_") for name in names} <= {name.replace("-", "_") for name in pinned}
