"""Wheels of the pinned set, their hashes and a script that installs them where there is no internet.

python scripts/bundle.py --extras slurm,serve --glibc 2.28

Called by `make bundle`. The bundle is for the Python that runs this and for this kind of machine; --glibc takes wheels
that also run on an older Linux, such as a cluster's. Needs pip and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_LEGACY = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}  # the minor version of glibc that they stand for

INSTALL = """#!/bin/sh
# Install the wheels beside this script into a new environment, without internet: [PYTHON=python@] ./install.sh [FOLDER]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-venv} python=${PYTHON:-python@}
fail() { echo "error: $*" >&2; exit 1; }
"$python" -c 'import sys, venv; sys.exit("%d.%d" % sys.version_info[:2] != "@")' ||
    fail "$python is no Python @ with its venv module, which these wheels are for. Name one: PYTHON=/path/to/python@ $0"
[ ! -e "$folder" ] || fail "$folder exists already. Name another folder: $0 FOLDER"
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --isolated --disable-pip-version-check --quiet --no-index --no-deps \\
    --find-links "$here/wheels" --require-hashes -r "$here/requirements.txt" ||
    fail "a wheel is damaged or missing (see above). Copy the bundle again; nothing was installed."
trap - EXIT
echo "Installed. Try: $folder/bin/python -m finetune.plan local=none model=tiny device=cpu"
"""

README = """# Installation without internet

Wheels for Python @ on {platform}, with their hashes in requirements.txt (sha256 {digest}).

    PYTHON=python@ ./install.sh FOLDER     # a new environment; a damaged wheel is refused
    FOLDER/bin/python -m finetune.plan local=none model=tiny device=cpu

Every command works from it: what README.md of the project starts as `python launch_finetune_local.py` is also
`FOLDER/bin/python -m launch_finetune_local`. Weights and tokenizer are no part of the bundle: fetch them where there is
internet (`python -m finetune.prefetch`) and copy the folder. constraints.txt is the set that the tests ran with.
"""


def main() -> None:
    """Make the bundle below bundle/ in the place of an earlier one, and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="slurm", help="optional parts of pyproject.toml, separated by commas")
    parser.add_argument("--glibc", help="the target's glibc (ldd --version), such as 2.28; by default this machine's")
    arguments = parser.parse_args()
    known = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in filter(None, arguments.extras.split(",")):
        if extra not in known:
            parser.error(f'there is no extra "{extra}". Known: {", ".join(known)}')
    if arguments.glibc and not re.fullmatch(r"2\.\d+", arguments.glibc):
        parser.error(f"--glibc={arguments.glibc}: a version such as 2.28 is meant")
    above = CHECKOUT / "bundle"
    above.mkdir(exist_ok=True)
    platform = re.sub(r"\W", "_", sysconfig.get_platform())
    with tempfile.TemporaryDirectory(prefix=".making-", dir=above) as temporary:
        made = Path(temporary) / "bundle"
        (made / "wheels").mkdir(parents=True)
        print(f"Collecting wheels for Python {VERSION} on {platform} (up to 3 GB with CUDA) ...", flush=True)
        collect(made / "wheels", arguments.extras, arguments.glibc)
        finish(made, platform)
        target = above / f"python{VERSION}-{platform}"
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    sizes = [file.stat().st_size for file in (target / "wheels").iterdir()]
    size = f"{len(sizes)} wheels, {sum(sizes) / 1e9:.2f} GB"
    print(f"{target.relative_to(CHECKOUT)}: {size}. Copy the folder to the other machine and start its install.sh.")


def collect(wheels: Path, extras: str, glibc: str | None) -> None:
    """Put a wheel of this project and of everything it needs into `wheels`, built here where there is none."""
    with tempfile.TemporaryDirectory() as temporary:
        venv.create(temporary, with_pip=True)
        pip = [f"{temporary}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        project = f"{CHECKOUT}[{extras}]" if extras else str(CHECKOUT)
        run([*pip, "wheel", "-q", "-c", CHECKOUT / "constraints.txt", "-w", wheels, project])
        for wheel in [wheel for wheel in sorted(wheels.iterdir()) if glibc and not runs_on(wheel.name, glibc)]:
            name, version = wheel.name.split("-")[:2]
            tags = platform_tags(glibc or "", wheel.name)
            wheel.unlink()
            run([*pip, "download", "-q", "--no-deps", "--only-binary=:all:", "-d", wheels, *tags, f"{name}=={version}"])
    if any(wheels.glob("opencv_python_headless-*")):  # both are cv2; the other one needs a display's libraries
        for wheel in wheels.glob("opencv_python-*"):
            wheel.unlink()


def run(command: list[str | Path]) -> None:
    """Run pip; where it fails its own message is above ours."""
    if subprocess.run(command).returncode:
        sys.exit(
            "error: pip could not collect the wheels (see above). Connect to the network or set PIP_INDEX_URL to a "
            "mirror, leave an extra out (EXTRAS=...), or take another PYTHON or GLIBC; bundle/ is as it was."
        )


def runs_on(wheel: str, glibc: str) -> bool:
    """Whether a wheel of this name runs on a Linux with this glibc."""
    tags = wheel.removesuffix(".whl").split("-")[-1].split(".")
    minors = [int(m[1]) for tag in tags if (m := re.match(r"manylinux_2_(\d+)_", tag))]
    minors += [_LEGACY[tag.split("_")[0]] for tag in tags if tag.split("_")[0] in _LEGACY]
    return tags == ["any"] or (bool(minors) and min(minors) <= int(glibc.split(".")[1]))


def platform_tags(glibc: str, wheel: str) -> list[str]:
    """pip's options for the tags of wheels that run on this glibc, on the architecture of `wheel`."""
    machine = re.sub(r".*?linux(?:_2_\d+|\d+)?_", "", wheel.removesuffix(".whl").split("-")[-1].split(".")[0])
    names = [f"manylinux_2_{minor}" for minor in range(int(glibc.split(".")[1]), 4, -1)]
    return [f"--platform={name}_{machine}" for name in [*names, *_LEGACY]]


def finish(bundle: Path, platform: str) -> None:
    """Write the hashes of bundle/wheels/, the script that installs them, its README and constraints.txt."""
    lines = []
    for wheel in sorted((bundle / "wheels").iterdir()):
        name, version = wheel.name.split("-")[:2]
        with wheel.open("rb") as file:
            lines.append(f"{name}=={version} --hash=sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}\n")
    text = "".join(lines)
    (bundle / "requirements.txt").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (bundle / "README.md").write_text(README.format(platform=platform, digest=digest).replace("@", VERSION))
    (bundle / "install.sh").write_text(INSTALL.replace("@", VERSION))
    (bundle / "install.sh").chmod(0o755)
    shutil.copy(CHECKOUT / "constraints.txt", bundle)


if __name__ == "__main__":
    main()
