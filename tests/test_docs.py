"""README, guide and site: what they tell a reader to type works, their links lead somewhere, and they stay short."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from config_calls import compose

from finetune.slurm.launch_request import read as read_launch
from toolkit.composition import COMMANDS

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = [CHECKOUT / "README.md", CHECKOUT / "finetune.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>[^>]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.S)


def blocks(page: Path, language: str = "bash") -> Iterator[tuple[str, str]]:
    """What is typed in each block, and what it needs ("" where it runs anywhere)."""
    for found in _BLOCK.finditer(page.read_text()):
        if found["language"] == language:
            yield found["text"], found["needs"] or ""


def command_lines() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for text, _ in blocks(page):
            for line in text.splitlines():
                if words := shlex.split(line, comments=True):
                    yield f"{page.relative_to(CHECKOUT)}: {line}", words


def arguments_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The command that a line starts, as configs/commands.yaml names it, and its keys; None for any other program."""
    script = next((at for at, word in enumerate(words) if word.endswith((".py", ".sbatch"))), None)
    if words[0] in ("sbatch", "bash") and script is not None:
        return "finetune", words[script + 1 :]
    if words[:2] == ["python", "-m"]:
        started, rest = f"python -m {words[2]}", words[3:]
    elif script is not None and words[0] in ("python", "torchrun"):
        started, rest = f"python {words[script]}", words[script + 1 :]
    else:
        return None
    names = [name for name, of in COMMANDS.items() if re.split(r" \[| PATH| NAME", of.start)[0] == started]
    return (names[0], rest) if names else None


@pytest.mark.parametrize(("place", "words"), [pytest.param(*line, id=line[0]) for line in command_lines()])
def test_every_key_of_every_command_in_the_documentation_exists(place: str, words: list[str]) -> None:
    found = arguments_of(words)
    if found is None:
        assert "=" not in words[-1] or words[0] in ("export", "sbatch", "salloc") or "gr00t.serve" in words, place
        return
    name, arguments = found
    if name == "launch":
        assert read_launch([*arguments, "local=none", "dry_run=true"]).tasks, place
    else:
        keys = [word for word in arguments if "=" in word and "/" not in word.partition("=")[0]]
        own = re.compile(r"modality_config=.*\.py$")  # a reader's
        compose(name, *[word for word in keys if not own.search(word)])


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    keys = (tmp_path / "site/reference/finetune.html").read_text()
    assert "train.micro_batch_size" in keys and "GR00TPolicy" in (tmp_path / "site/reference/python.html").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_link_leads_to_a_file_that_git_tracks(page: Path) -> None:
    tracked = {
        CHECKOUT / name
        for name in subprocess.run(
            ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    }
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text()):
        assert Path(os.path.normpath(page.parent / target)) in tracked, f"{page.name} links to {target}"


def test_readme_and_guide_stay_short() -> None:
    assert len((CHECKOUT / "README.md").read_bytes()) <= 8_000
    assert len((CHECKOUT / "finetune.md").read_bytes()) <= 25_000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which a dataset, a base and a finished run lie where the pages expect them."""
    clone = tmp_path_factory.mktemp("docs") / "clone"
    subprocess.run(["git", "clone", "-q", CHECKOUT, clone], check=True)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    for command in (
        "prepare_conflict_data.py split=color_object raw_dir=samples",
        "prepare_conflict_data.py split=other split.instruction=x raw_dir=more",
        "-m finetune.create_base model=tiny",
        "launch_finetune_local.py experiment=demo dataset.data_dir=data model.base=checkpoints/base/tiny "
        "run_dir=runs/color_object output_dir=checkpoints/color_object train.max_steps=4 train.save_steps=2",
    ):
        if "more" in command:
            (clone / "more").mkdir()
            (clone / "more/other").symlink_to(clone / "samples/color_object")
        subprocess.run([sys.executable, *shlex.split(command), "local=none"], cwd=clone, env=environment(), check=True)
    return clone


def environment() -> dict[str, str]:
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "WANDB_MODE": "offline"}


@pytest.mark.long
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if not all(needs for _, needs in blocks(page))],
    ids=lambda page: str(page.relative_to(CHECKOUT)),
)
def test_the_commands_of_a_page_run_one_after_the_other(page: Path, prepared: Path, tmp_path: Path) -> None:
    scripts = [text for text, needs in blocks(page) if not needs]
    copy = Path(shutil.copytree(prepared, tmp_path / "clone", symlinks=True))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(scripts)],
        cwd=copy,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


ACT = """
import sys
import numpy as np
image, wrist_image = np.random.default_rng(0).integers(0, 256, (2, 1, 1, 96, 128, 3), dtype=np.uint8)
arm, gripper = np.zeros((1, 1, 7), np.float32), np.full((1, 1, 1), 0.04, np.float32)
{snippet}
assert actions["action.arm"].shape == (1, 16, 7) and actions["action.gripper"].shape == (1, 16, 1)
"""


@pytest.mark.long
@pytest.mark.parametrize("page", ["README.md", "docs/how-to/serve.md"])
def test_the_snippet_acts(page: str, prepared: Path) -> None:
    snippet = next(text for text, _ in blocks(CHECKOUT / page, "python")).replace(".cuda()", "")
    assert "get_action" in snippet
    done = subprocess.run(
        [sys.executable, "-c", ACT.format(snippet=snippet)], cwd=prepared, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
