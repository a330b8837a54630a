"""The release: a tree that runs by itself, a card that says what was recorded, and nothing that must stay at home."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from fake_hub import FakeHub, running_hub
from fake_keys import KEYS, NAMED, WANDB
from huggingface_hub import ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from robots import absolute_arm, robot_file
from safetensors.numpy import save_file

from finetune.open_loop.evaluation import evaluate_open_loop
from finetune.recipe.recipe_identity import publishable
from finetune.release import published_tree as files
from finetune.release.__main__ import read
from finetune.release.published_tree import is_code, release
from finetune.release.run_facts import _found, _is_of, hub_id_of, licence_of
from finetune.training.train import finetune
from gr00t.errors import ToolkitError
from gr00t.file_replacement import write_json
from gr00t.model.checkpoint_folder import fingerprint
from gr00t.model.finished_checkpoint import MANIFEST, verify_checkpoint, verify_manifest
from toolkit import publication, shared_keys
from toolkit.code_files import snapshot_code
from toolkit.configuration import load
from toolkit.installation import CHECKOUT
from toolkit.publication import Machine, Published

TOKEN = KEYS["hugging face"]
find_private = partial(publication.find_private, authored=is_code)
PACKAGES = Path(np.__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def without_waiting_for_the_disk() -> Iterator[None]:
    """A release's 330 files are synced one by one, which takes most of its time and no test here looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gr00t.file_replacement._sync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def home(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two steps, its checkpoint and its open-loop report; its base has a licence."""
    folder = tmp_path_factory.mktemp("home")
    base = shutil.copytree(tiny_base, folder / "base")
    (base / "LICENSE").write_text("the terms of the base")
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: base-terms\nlicense_link: LICENSE\n---\n# base\n"
    )
    (base / "origin.json").write_text('{"base_model": "somebody/base"}')
    places = [f"run_dir={folder}/runs/color_object", f"output_dir={folder}/checkpoints/color_object"]
    steps = ["train.max_steps=2", "train.global_batch_size=4", "train.num_workers=0", "tracking=none", "device=cpu"]
    site = ["cluster.account=a_private_account", "cluster.setup=[module load private_module]"]
    own = ["model=tiny", f"model.base={base}", f"dataset.data_dir={small_data}", *places, *steps, *site]
    finetune(load("finetune", ["local=none", *own]))
    evaluated = [
        f"checkpoint={folder}/checkpoints/color_object",
        f"data_dir={small_data}",
        "max_episodes=1",
        "device=cpu",
    ]
    evaluate_open_loop(load("evaluate", ["local=none", *evaluated, f"report_dir={folder}/reports/color_object/val"]))
    write_json(
        folder / "reports" / "color_object" / "closed" / "closed_loop.json", closed_loop(folder), sort_keys=False
    )
    return folder


def share(count: int, n: int, low: float, high: float) -> dict[str, Any]:
    return {"count": count, "n": n, "share": count / n if n else None, "low": low, "high": high}


def closed_loop(folder: Path) -> dict[str, Any]:
    """A closed-loop result of the home's checkpoint, with its summary."""
    (folder / "reports" / "color_object" / "closed").mkdir(parents=True, exist_ok=True)
    picks = {"target": share(6, 10, 0.31, 0.83), "lure": share(3, 10, 0.11, 0.6)}
    conflict = {"success": share(5, 10, 0.24, 0.76), "picks": picks}
    summary = {
        "cues": ["color", "object"],
        "cue_preference": share(6, 9, 0.35, 0.88),
        "readings": [{"question": "Which cue wins?", "answer": "neither", "headline": "Neither.", "text": "Too few."}],
        "counted": {"none": {"conflict": conflict}, "blank_image": {"conflict": conflict}},
    }
    info = {"split": "color_object", "n_action_steps": 8, "max_steps": 100, "denoising_steps": 4}
    info["checkpoint_fingerprint"] = fingerprint(folder / "checkpoints" / "color_object")
    return {"format": 1, "info": info, "episodes": [], "summary": summary}


def publish(home: Path, out: Path, *more: str) -> Published:
    named = {argument.partition("=")[0] for argument in more}
    places = {
        "split": "color_object",
        "checkpoint": f"{home}/checkpoints/${{split.name}}",
        "run_dir": f"{home}/runs/${{split.name}}",
        "reports_dir": f"{home}/reports/${{split.name}}",
        "out": str(out),
    }
    own = [f"{name}={value}" for name, value in places.items() if name not in named]
    return release(read(["local=none", *own, *more]))


@pytest.fixture(scope="module")
def tree(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of that run, copied to a folder of its own."""
    out = tmp_path_factory.mktemp("made") / "color_object"
    publish(home, out)
    return shutil.copytree(out, tmp_path_factory.mktemp("empty") / "downloaded")


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """A home of one's own to spoil, whose checkpoint has no manifest that would say so."""
    found = Path(shutil.copytree(home, tmp_path / "home"))
    (found / "checkpoints" / "color_object" / MANIFEST).unlink()
    return found


def refusal(home: Path, out: Path, *more: str) -> str:
    before = sorted(out.rglob("*")) if out.exists() else None
    with pytest.raises(ToolkitError) as error:
        publish(home, out, *more)
    assert (sorted(out.rglob("*")) if out.exists() else None) == before
    assert not list(out.parent.glob(f".{out.name}.partial*"))
    return str(error.value)


def python_in(tree: Path, *arguments: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """Python with the packages only: no site, so that an installed checkout of ours is not found."""
    path = os.pathsep.join(filter(None, [first, str(PACKAGES)]))
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-S", *arguments], cwd=tree, env=env, capture_output=True, text=True)


# -- the tree ----------------------------------------------------------------------------------------------------------


def test_the_tree_has_what_a_published_policy_has(tree: Path) -> None:
    found = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert found == set(json.loads((tree / "release.json").read_text())["files"])
    jsons = ("processor_config.json", "statistics.json", "embodiment_id.json")
    checkpoint = ["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json", *jsons]
    checkpoint += [f"processor/{name}" for name in (*jsons, "vlm/tokenizer.json", "vlm/chat_template.jinja")]
    checkpoint += [
        f"experiment_cfg/{name}" for name in ("config.yaml", "dataset.json", "versions.json", "hardware.json")
    ]
    assert found >= {f"checkpoints/color_object/{name}" for name in checkpoint}
    entries = (
        "conflict_panda_config.py",
        "launch_finetune_local.py",
        "prepare_conflict_data.py",
        "evaluate_conflict.py",
    )
    rooms = ("finetune/training/train.py", "data_prep/convert.py", "configs/finetune.yaml", "finetune_jobs/run.sh")
    assert found >= {f"scripts/{name}" for name in (*entries, *rooms)}
    assert found >= {"README.md", "LICENSE", "finetune.md", "gr00t/model/gr00t_n1.py", "LICENSE-WEIGHTS"}
    assert not any(
        part in name for name in found for part in ("__pycache__", "wandb/", "tests/", ".parquet", "samples/")
    )
    assert os.access(tree / "scripts/finetune_jobs/run.sh", os.X_OK)


def test_every_page_and_image_that_the_guide_leads_to_is_published(tree: Path) -> None:
    pages = [tree / "finetune.md", *(tree / "docs").rglob("*.md")]
    assert len(pages) > 10
    for page in pages:
        for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.relative_to(tree)} links to {target}"


def test_the_checkpoint_is_the_runs_own_but_for_its_folders(tree: Path, home: Path) -> None:
    made, trained = tree / "checkpoints" / "color_object", home / "checkpoints" / "color_object"
    assert verify_checkpoint(made) == verify_checkpoint(trained)
    for path in made.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (trained / path.relative_to(made)).read_bytes(), path


SNIPPET = """
import pathlib, re, sys
sys.path.insert(0, "")
import numpy as np, torch
torch.manual_seed(0)
rng = np.random.default_rng(0)
image, wrist_image = rng.integers(0, 256, (2, 1, 1, 96, 128, 3), dtype=np.uint8)
arm, gripper = rng.normal(size=(1, 1, 7)).astype(np.float32), np.full((1, 1, 1), 0.04, np.float32)
code = re.search(r"```python\\n(.*?)```", pathlib.Path("README.md").read_text(), re.S)[1]
for place in ("checkpoints/color_object", sys.argv[1]):
    torch.manual_seed(0)
    exec(code.replace("checkpoints/color_object", place))
    print({key: (value.shape, value.tobytes().hex()) for key, value in actions.items()})
ours = ("gr00t", "scripts", "finetune", "conflict_panda_config")
print([m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in ours and m.__file__])
"""


def test_the_cards_snippet_runs_in_the_tree_with_the_actions_of_the_runs_checkpoint(tree: Path, home: Path) -> None:
    done = python_in(tree, "-c", SNIPPET, str(home / "checkpoints" / "color_object"))
    assert done.returncode == 0, done.stderr[-3000:]
    released, trained, modules = done.stdout.splitlines()
    assert released == trained
    assert "'action.arm': ((1, 16, 7)" in released and "'action.gripper': ((1, 16, 1)" in released
    loaded = eval(modules)
    assert len(loaded) > 20 and all(Path(file).is_relative_to(tree) for file in loaded)


SCRIPTS = ("launch_finetune_local.py", "prepare_conflict_data.py", "evaluate_conflict.py", "launch_finetune_slurm.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_of_the_tree_work_from_its_top(script: str, tree: Path) -> None:
    done = python_in(tree, f"scripts/{script}", "--help")
    assert done.returncode == 0 and "Usage: " in done.stdout, done.stderr


def test_another_gr00t_package_does_not_get_before_the_trees(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "gr00t").mkdir()
    (tmp_path / "gr00t" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = python_in(tree, "scripts/launch_finetune_local.py", "split=colour_object", first=str(tmp_path))
    assert done.returncode == 2 and 'Did you mean "color_object"' in done.stderr


def test_modules_run_in_the_trees_scripts_folder(tree: Path) -> None:
    done = python_in(tree / "scripts", "-m", "finetune.plan", "model=tiny", "device=cpu", "json=true")
    assert done.returncode == 0 and json.loads(done.stdout)["model"] == "tiny", done.stderr


def test_a_jobs_copy_of_the_tree_is_a_plain_checkout(tree: Path, tmp_path: Path) -> None:
    code = snapshot_code(tree / "scripts", tmp_path)
    for name in (
        "gr00t/model/gr00t_n1.py",
        "finetune/training/train.py",
        "configs/finetune.yaml",
        "finetune_jobs/run.sh",
    ):
        assert (code / name).is_file(), name


# -- the card ----------------------------------------------------------------------------------------------------------


def test_the_metadata_are_those_of_hugging_face(tree: Path) -> None:
    data = ModelCard.load(tree / "README.md").data.to_dict()
    assert (data["pipeline_tag"], data["library_name"], data["language"]) == ("robotics", "gr00t", "en")
    assert (data["base_model"], data["base_model_relation"]) == ("somebody/base", "finetune")
    assert (data["license"], data["license_name"]) == ("other", "base-terms")
    assert data["license_link"] == "https://huggingface.co/somebody/base"
    assert "color_object" in data["tags"]


def test_the_card_says_what_the_run_recorded(tree: Path) -> None:
    card = (tree / "README.md").read_text()
    rows = {
        "Base model": "[somebody/base](https://huggingface.co/somebody/base)",
        "Steps": "2",
        "GPUs": "none, 1 process on a CPU",
        "Global batch size": "4",
        "Learning rate": "0.0001",
        "Warm-up": "5 % of the steps, then a cosine to zero",
        "Action chunk": "16 steps at 20 Hz",
        "Denoising steps": "4",
        "Episodes trained on": "3",
        "Episodes held out": "2",
    }
    for name, value in rows.items():
        assert f"| {name} | {value} |" in card
    assert "| Tuned modules | projector" in card and "| Frozen modules | language model; vision tower |" in card
    assert re.search(r"\| Frames trained on \| \d+ \|", card)
    assert "`tiny`, a small model for trying the toolkit" in card
    assert "None" not in card and "{{ " not in card and "{%" not in card


def test_the_results_have_their_intervals_and_their_findings(tree: Path, home: Path) -> None:
    card = (tree / "README.md").read_text()
    assert "| conflict | 50 % (24 to 76), 5 of 10 | 60 % (31 to 83), 6 of 10 | 30 % (11 to 60), 3 of 10 |" in card
    assert "| conflict, blank image | 50 % (24 to 76), 5 of 10 |" in card
    assert (
        "color over object (conflict episodes in which target or lure was picked first): 67 % (35 to 88), 6 of 9"
        in card
    )
    assert "- Which cue wins? **Neither.** Too few." in card
    report = json.loads((home / "reports/color_object/val/open_loop.json").read_text())
    arm = report["overall"]["all"]["errors"]["arm"]
    cells = " | ".join(f"{arm[predictor]['mae']:.4f}" for predictor in ("policy", "hold_still", "mean_chunk"))
    assert f"| val: 1, {report['overall']['all']['starts']} starts, 4 denoising steps | arm | {cells} |" in card
    assert report["findings"] and all(f"- val: {finding}" in card for finding in report["findings"])


def test_results_of_another_checkpoint_are_left_out(home: Path, copy: Path, tmp_path: Path) -> None:
    for name in ("val/open_loop.json", "closed/closed_loop.json"):
        path = copy / "reports" / "color_object" / name
        path.write_text(path.read_text().replace(fingerprint(home / "checkpoints/color_object"), "f" * 64))
    made = publish(copy, tmp_path / "out")
    assert sum("measured with another checkpoint, left out" in note for note in made.notes) == 2
    card = (made.out / "README.md").read_text()
    assert "has not been evaluated in closed loop, nor in open loop" in card and "| val:" not in card


def test_what_is_not_recorded_is_said_to_be_so(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "runs")
    shutil.rmtree(copy / "reports")
    (copy / "checkpoints/color_object/experiment_cfg/hardware.json").unlink()
    made = publish(copy, tmp_path / "out")
    card = (made.out / "README.md").read_text()
    assert "| GPUs | not recorded |" in card and "their licence is not recorded" in card
    assert "license" not in ModelCard(card).data.to_dict() and "base_model" not in ModelCard(card).data.to_dict()
    assert {"hub id is unknown", "licence of the weights is unknown", "no results of color_object"} <= {
        phrase
        for note in made.notes
        for phrase in re.findall(r"hub id is unknown|licence of .* unknown|no results of \w+", note)
    }


def test_the_users_own_words_win(home: Path, tmp_path: Path) -> None:
    said = ["base_model=nvidia/GR00T-N1.7-3B", "licence=cc-by-nc-4.0", "datasets=[me/data]", "repo_id=me/policy"]
    data = ModelCard.load(publish(home, tmp_path / "out", *said).out / "README.md").data.to_dict()
    assert (data["base_model"], data["license"], data["datasets"]) == (
        "nvidia/GR00T-N1.7-3B",
        "cc-by-nc-4.0",
        ["me/data"],
    )
    assert "hf download me/policy --local-dir policy" in (tmp_path / "out" / "README.md").read_text()


def test_the_best_evaluation_is_named_where_the_run_has_one(copy: Path, tmp_path: Path) -> None:
    write_json(copy / "runs/color_object/best.json", {"step": 1, "metric": 0.25, "name": "val/arm"})
    mark = copy / "checkpoints/color_object/experiment_cfg/run.json"
    write_json(mark, {**json.loads(mark.read_text()), "step": 1})
    card = (publish(copy, tmp_path / "out").out / "README.md").read_text()
    assert "the weights after step 1 were the best (val/arm 0.25)" in card
    assert "| Steps | 1, the end of a run of at most 2 |" in card


def test_several_splits_share_one_tree(copy: Path, tmp_path: Path) -> None:
    for folder in ("checkpoints", "runs"):
        shutil.copytree(copy / folder / "color_object", copy / folder / "size_color")
    config = copy / "checkpoints/size_color/experiment_cfg/config.yaml"
    config.write_text(config.read_text().replace("name: color_object", "name: size_color").replace("color-m", "size-m"))
    made = publish(copy, tmp_path / "both", "split=color_object,size_color")
    card = (made.out / "README.md").read_text()
    assert verify_checkpoint(made.out / "checkpoints/size_color") and "| | color_object | size_color |" in card
    assert "| Steps | 2 | 2 |" in card and "`size_color` has not been evaluated" in card
    with pytest.raises(ToolkitError, match="name it, out=release/NAME"):
        read(["local=none", "split=color_object,size_color", f"checkpoint={copy}/checkpoints/${{split.name}}"])


def test_results_are_taken_oldest_first_and_not_from_before_the_checkpoint(tmp_path: Path) -> None:
    """The last of one part wins. Without a fingerprint a result is identified by its folder and its time."""
    for name, when in (("a", 300), ("b", 100), (".c", 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "open_loop.json").write_text("{}")
        os.utime(tmp_path / name / "open_loop.json", (when, when))
    assert [path.parent.name for path, _ in _found(tmp_path, "open_loop.json")] == ["b", "a"]
    (tmp_path / "config.json").write_text("{}")
    os.utime(tmp_path / "config.json", (300, 300))
    notes: list[str] = []
    info = {"split": "s", "checkpoint": str(tmp_path)}
    own = [_is_of(info, tmp_path / name / "open_loop.json", tmp_path, "f", "s", notes) for name in ("a", "b")]
    assert own == [True, False] and len(notes) == 1 and "/b/" in notes[0]
    path = tmp_path / "b" / "open_loop.json"
    assert _is_of({**info, "checkpoint_fingerprint": "f"}, path, tmp_path, "f", "s", notes)
    assert not _is_of({**info, "split": "t"}, path, tmp_path, "f", "s", notes) and len(notes) == 1


def test_guided_results_are_not_published_as_the_plain_policys(copy: Path, tmp_path: Path) -> None:
    plain = copy / "reports/color_object/val/open_loop.json"
    guided = copy / "reports/color_object/guided"
    guided.mkdir()
    write_json(guided / "open_loop.json", {**json.loads(plain.read_text()), "guidance": 2.0}, sort_keys=False)
    played = closed_loop(copy)
    played["info"]["guidance"] = 2.0
    write_json(guided / "closed_loop.json", played, sort_keys=False)
    made = publish(copy, tmp_path / "out")
    card = (made.out / "README.md").read_text()
    closed = [line for line in card.splitlines() if line.startswith("Closed loop in ManiSkill")]
    assert ["**guidance 2**" in line for line in closed] == [False, True]
    assert "starts, 4 denoising steps | arm" in card and "4 denoising steps, **guidance 2** | arm" not in card
    assert any(f"{guided}/open_loop.json was measured with other settings" in note for note in made.notes)
    plain.unlink()
    card = (publish(copy, tmp_path / "without").out / "README.md").read_text()
    assert "starts, 4 denoising steps, **guidance 2** | arm" in card


def test_the_licence_is_what_is_chosen_then_what_the_base_says_then_that_of_its_page(tmp_path: Path) -> None:
    page = "https://huggingface.co/a/b"
    assert licence_of(None, None, None, None).id is None
    assert (licence_of("a/b", "a/b", None, None).id, licence_of("a/b", "a/b", None, None).link) == ("other", page)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert licence_of(str(tmp_path), None, None, None).id == "apache-2.0"
    assert licence_of(str(tmp_path), None, "mit", None).id == "mit"
    (tmp_path / "LICENSE.txt").write_text("terms")
    found = licence_of(str(tmp_path), "a/b", "other", "me/policy")
    assert found.link == "https://huggingface.co/me/policy/blob/main/LICENSE-WEIGHTS.txt"
    assert list(found.files) == ["LICENSE-WEIGHTS.txt"]
    assert hub_id_of("a/gr00t-b/folder") == "a/gr00t-b" and hub_id_of(None) is None and hub_id_of(str(tmp_path)) is None


# -- what must stay at home --------------------------------------------------------------------------------------------


def test_nothing_of_this_machine_is_in_the_tree(tree: Path, home: Path, small_data: Path) -> None:
    private = [str(home), str(small_data), str(CHECKOUT), str(Path.home()) + "/", "a_private_account", "private_module"]
    for path in tree.rglob("*"):
        if path.is_file():
            text = path.read_bytes().decode(errors="replace")
            assert not [word for word in private if word in text], path


def test_a_published_configuration_keeps_the_recipe_and_no_place() -> None:
    typed = ["model.base=/scratch/me/GR00T-N1.7-3B", "dataset.data_dir=../elsewhere/data", "cluster.account=mine"]
    config = asdict(load("finetune", ["local=none", *typed], check_here=False))
    clean = publishable(config)
    assert clean["model"]["base"] == "GR00T-N1.7-3B" and clean["dataset"]["data_dir"] == "data"
    assert clean["run_dir"] == "runs/color_object" and clean["train"]["max_steps"] == 10_000
    assert "cluster" not in clean and "tracking" not in clean and "cluster" in config
    assert publishable(clean) == clean
    hub = asdict(load("finetune", ["local=none"], check_here=False))
    assert publishable(hub)["model"]["base"] == "nvidia/GR00T-N1.7-3B"


def test_a_checkpoint_of_an_earlier_toolkit_is_cleaned(copy: Path, tmp_path: Path) -> None:
    config = copy / "checkpoints/color_object/experiment_cfg/config.yaml"
    text = config.read_text().replace("data_dir: data", "data_dir: /scratch/me/data")
    config.write_text(text + "cluster:\n  account: my_account\n")
    made = publish(copy, tmp_path / "out")
    published = (made.out / "checkpoints/color_object/experiment_cfg/config.yaml").read_text()
    assert "data_dir: data" in published and "scratch" not in published and "my_account" not in published


def spoil(checkpoint: Path, name: str, line: str) -> None:
    path = checkpoint / name
    path.write_text(path.read_text() + f"\n{line}\n")


def test_a_token_in_a_file_is_refused_by_place_and_never_shown(copy: Path, tmp_path: Path) -> None:
    template = "processor/vlm/chat_template.jinja"
    spoil(copy / "checkpoints/color_object", template, f"{{# {TOKEN} #}}")
    message = refusal(copy, tmp_path / "out")
    assert re.search(rf"{re.escape(template)}:\d+: a Hugging Face token", message) and TOKEN not in message


def test_the_value_of_a_secret_variable_is_refused(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plain-looking-words")
    config = copy / "checkpoints/color_object/experiment_cfg/config.yaml"
    config.write_text(config.read_text().replace("color-matching", "plain-looking-words color-matching"))
    message = refusal(copy, tmp_path / "out")
    assert "the value of WANDB_API_KEY" in message and "plain-looking-words" not in message


PRIVATE = {
    "model_name: /scratch/ann/Cosmos": "an absolute path",
    'root = "/home/ann/data"': "a home folder",
    "C:\\\\Users\\\\ann\\\\data": "a home folder",
    "see /var/lab42/place/x": "a folder of this machine",
    "from node:/lustre/ann/raw": "an absolute path",
    "base: file:///scratch/ann/base": "an absolute path",
    "base: file:///scratch/shared/base": "a folder of this machine",
    "trained by ann_example": "a login or host name",
    "on node-17.lab": "a login or host name",
    KEYS["address"]: "a login in an address",
    KEYS["openai"]: "an API key",
}
MACHINE = Machine(("/var/lab42",), ("/scratch/shared/base",), ("ann_example", "node-17", "train"), {})


@pytest.mark.parametrize("line", PRIVATE)
def test_every_kind_of_private_line_is_found(line: str) -> None:
    found = list(find_private({"checkpoints/a/notes.json": f"first\n{line}\n", "gr00t/x.py": "train"}, MACHINE))
    assert [(f.place, f.line) for f in found] == [("checkpoints/a/notes.json", 2)] and found[0].what == PRIVATE[line]


@pytest.mark.parametrize(
    "line",
    ["https://huggingface.co/owner/name", "checkpoints/color_object", "train", "token_id: 12", "</tool_call>",
     "git_revision: 147518f3ef524490e3767ba515169b957f6d07ce", "a/b/c.json", "`gr00t/`, `scripts/`",
     "s3://bucket/a/b", "ws://host:8000/a/b"],
)  # fmt: skip
def test_no_false_alarm(line: str) -> None:
    assert not list(find_private({"checkpoints/a/notes.json": line, "gr00t/x.py": "train"}, MACHINE))


def test_a_login_may_be_the_owners_name_on_the_hub(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.publication.getuser", lambda: "ann_example")
    card = (publish(home, tmp_path / "out", "repo_id=ann_example/policy").out / "README.md").read_text()
    assert "hf download ann_example/policy" in card


def test_an_example_in_the_guide_may_be_what_a_run_was_given() -> None:
    line = "model.base=/scratch/shared/base"
    assert not list(find_private({"finetune.md": line}, MACHINE))
    assert list(find_private({"checkpoints/a/notes.json": line, "gr00t/x.py": ""}, MACHINE))


def test_a_vocabulary_may_hold_names_and_pieces_of_paths() -> None:
    words = '{"/home": 1, "ann_example": 2, "/usr/local/lib": 3}'
    assert not list(find_private({"checkpoints/a/processor/vlm/tokenizer.json": words, "gr00t/x.py": ""}, MACHINE))
    assert list(find_private({"checkpoints/a/processor/vlm/tokenizer.json": TOKEN, "gr00t/x.py": ""}, MACHINE))


def test_other_files_of_the_checkpoint_folder_stay_where_they_are(copy: Path, tmp_path: Path) -> None:
    checkpoint = copy / "checkpoints" / "color_object"
    for name in ("wandb/run/secrets.txt", "__pycache__/x.pyc", "optimizer.pt", "notes.txt"):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text(TOKEN)
    made = publish(copy, tmp_path / "out")
    assert any("__pycache__/, notes.txt, optimizer.pt, wandb/" in note for note in made.notes)
    assert not {"wandb", "__pycache__", "notes.txt", "optimizer.pt"} & {path.name for path in made.out.rglob("*")}


@pytest.mark.parametrize(
    "place, line",
    [
        ("experiment_cfg/versions.json", json.dumps({"note": WANDB})),
        ("experiment_cfg/dataset.json", KEYS["slack"]),
        ("processor/vlm/tokenizer.json", KEYS["jwt"]),
        ("processor_config.json", KEYS["google"]),
        ("experiment_cfg/config.yaml", "# " + NAMED["password"]),
    ],
)
def test_keys_in_the_checkpoint_are_found_whatever_the_file(home: Path, place: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / Path(place).name
    for content in (line.encode(), line.encode("utf-8-sig"), line.encode("utf-16"), f"a\n\n{line}".encode("utf-32")):
        file.write_bytes(content)
        found = list(find_private({f"checkpoints/color_object/{place}": file}, MACHINE))
        assert [f.place for f in found] == [str(file)] and line not in str(found[0])


def archive(folder: Path) -> Iterator[Path]:
    """A file of each kind in which nobody can look, with a key in it."""
    content = {"token": TOKEN}
    (folder / "dump.pkl").write_bytes(pickle.dumps(content))
    np.savez(folder / "arrays.npz", token=np.array(TOKEN))
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        file.writestr("x", TOKEN)
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "a.zip")
    (folder / "a.gz").write_bytes(gzip.compress(TOKEN.encode()))
    (folder / "wide.txt").write_bytes(TOKEN.encode("utf-16-le"))  # no byte order mark
    (folder / "image.png").write_bytes((folder / "a.zip").read_bytes())
    yield from sorted(folder.iterdir())


def test_files_in_which_nobody_can_look_are_refused_by_name(tmp_path: Path) -> None:
    for path in archive(tmp_path):
        (found,) = find_private({f"scripts/finetune/{path.name}": path}, MACHINE)
        assert found.place == str(path) and "neither text" in found.what, path


def test_what_images_and_weights_say_of_themselves_is_read(tmp_path: Path) -> None:
    clean, spoilt, longer = (tmp_path / f"{name}.png" for name in ("clean", "spoilt", "longer"))
    text = PngInfo()
    text.add_text("Comment", TOKEN, zip=True)
    Image.new("RGB", (64, 64), "red").save(clean)
    Image.new("RGB", (64, 64)).save(spoilt, pnginfo=text)
    longer.write_bytes(clean.read_bytes() + TOKEN.encode())
    weights = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(1)}, weights, metadata={"note": TOKEN})
    webp, more = tmp_path / "clean.webp", tmp_path / "more.webp"
    Image.new("RGB", (64, 64), "red").save(webp)
    more.write_bytes(webp.read_bytes() + TOKEN.encode())
    places = {f"docs/images/{path.name}": path for path in (clean, spoilt, longer, weights, webp, more)}
    found = {Path(f.place).name: f.what for f in find_private(places, MACHINE)}
    assert all(found.pop(name).startswith("neither text") for name in ("longer.png", "more.webp"))
    assert found == dict.fromkeys(("spoilt.png", "model.safetensors"), "a Hugging Face token")


def test_keys_in_what_the_card_is_made_of_are_refused(copy: Path, tmp_path: Path) -> None:
    report = copy / "reports/color_object/val/open_loop.json"
    data = json.loads(report.read_text())
    write_json(report, {**data, "findings": [f"see {KEYS['basic']}"]})
    assert "README.md" in (message := refusal(copy, tmp_path / "out")) and KEYS["basic"] not in message


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout of what a release takes of this one, to spoil."""
    folder = tmp_path / "checkout"
    for name in ["finetune/__init__.py", "finetune_jobs/run.sh", "gr00t/__init__.py", *files._ENTRY, *files._TOP]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, folder / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    monkeypatch.setattr(files, "CHECKOUT", folder)
    monkeypatch.setattr(files, "ROOT", folder)
    return folder


def test_only_what_git_tracks_and_what_is_named_is_published(checkout: Path, home: Path, tmp_path: Path) -> None:
    for name in ("finetune/mine.py", "gr00t/mine.py", "configs/mine.yaml", "docs/images/mine.png", "assets/mine.xml"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("mine")
    (checkout / "finetune.md").write_text("[See](docs/images/mine.png)")
    made = publish(home, tmp_path / "out")
    assert not [name for name in made.files if "mine" in name]
    note = next(note for note in made.notes if "git does not track" in note)
    assert all(name in note for name in ("finetune/mine.py", "gr00t/mine.py", "configs/mine.yaml", "files=[FILE,...]"))
    made = publish(home, tmp_path / "named", "files=[finetune/mine.py,gr00t/mine.py,assets]")
    assert {name for name in made.files if "mine" in name} == {
        *("scripts/finetune/mine.py", "gr00t/mine.py", "scripts/assets/mine.xml"),
    }


def test_pages_that_other_pages_lead_to_are_published(checkout: Path, home: Path, tmp_path: Path) -> None:
    pages = {"finetune.md": "[a](docs/how/a.md)", "docs/how/a.md": "[b](../b.md#x) [web](https://x.y/z.md)"}
    pages |= {"docs/b.md": "![c](images/c.md) [a](how/a.md) [code](../gr00t/__init__.py)", "docs/images/c.md": "c"}
    for name, text in {**pages, "docs/left.md": "nobody leads here"}.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    subprocess.run(["git", "-C", str(checkout), "add", "-A"], check=True)
    made = {name for name in publish(home, tmp_path / "out").files if name.endswith(".md") and "docs/" in name}
    assert made == pages.keys() - {"finetune.md"}


def test_tracked_keys_and_binaries_are_refused(checkout: Path, home: Path, tmp_path: Path) -> None:
    (checkout / "finetune" / "login.py").write_text(f"import wandb\nwandb.login(key='{WANDB}')\n")
    (checkout / "finetune" / "dump.pkl").write_bytes(pickle.dumps(TOKEN))
    subprocess.run(["git", "-C", str(checkout), "add", "-A"], check=True)
    message = refusal(home, tmp_path / "out")
    assert "finetune/login.py:2: a wandb key" in message and "finetune/dump.pkl:1: neither text" in message
    assert WANDB not in message and TOKEN not in message


@pytest.mark.parametrize("place", ["finetune/creds", "finetune.md"])
def test_links_in_the_checkout_are_not_followed(checkout: Path, home: Path, tmp_path: Path, place: str) -> None:
    (checkout / place).unlink(missing_ok=True)
    (checkout / place).symlink_to(home / "base" / "README.md")
    assert f"{place} in" in (message := refusal(home, tmp_path / "out")) and "a link is not copied" in message


def test_published_files_keep_their_permissions(checkout: Path, home: Path, tmp_path: Path) -> None:
    (checkout / "finetune" / "__init__.py").chmod(0o600)
    (checkout / "finetune_jobs" / "run.sh").chmod(0o700)
    made = publish(home, tmp_path / "out").out
    modes = [
        (made / "scripts" / name).stat().st_mode & 0o777 for name in ("finetune/__init__.py", "finetune_jobs/run.sh")
    ]
    assert modes == [0o600, 0o700]


# -- refused before the first byte -------------------------------------------------------------------------------------


def test_what_is_no_finished_checkpoint_is_named(copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "does not exist. Fine-tune first" in refusal(copy, out, f"checkpoint={tmp_path}/none")
    assert "no finished checkpoint" in refusal(copy, out, f"checkpoint={copy}/runs/color_object")
    assert "lacks experiment_cfg/config.yaml" in refusal(copy, out, f"checkpoint={tiny_base}")
    (copy / "checkpoints/color_object/model-00001-of-00001.safetensors").unlink()
    assert "lacks the shards ['model-00001-of-00001.safetensors']" in refusal(copy, out)


def test_a_checkpoint_is_compared_with_its_manifest_and_the_release_has_one(home: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(home, tmp_path / "home"))
    verify_manifest(publish(home, tmp_path / "whole").out / "checkpoints" / "color_object")
    path = spoilt / "checkpoints" / "color_object" / "statistics.json"
    path.write_text(path.read_text() + " ")
    assert "statistics.json has changed" in refusal(spoilt, tmp_path / "out")


def test_another_split_or_run_is_named(home: Path, copy: Path, tmp_path: Path) -> None:
    message = refusal(home, tmp_path / "out", "split=size_color", f"checkpoint={home}/checkpoints/color_object")
    assert "was trained on the split color_object, not size_color" in message
    state = copy / "runs/color_object/checkpoint-2/state.json"
    state.write_text(state.read_text().replace('"train.seed": 42', '"train.seed": 43'))
    assert "holds another run than the one that made the checkpoint" in refusal(copy, tmp_path / "out")


def test_a_damaged_record_is_named(copy: Path, tmp_path: Path) -> None:
    config = copy / "checkpoints/color_object/experiment_cfg/config.yaml"
    config.write_text(config.read_text().replace("max_steps:", "maxsteps:"))
    assert "lacks 'max_steps'" in refusal(copy, tmp_path / "out")
    report = copy / "reports/color_object/val/open_loop.json"
    report.write_text(report.read_text().replace('"overall"', '"overal"'))
    assert "open_loop.json is damaged (KeyError: 'overall')" in refusal(copy, tmp_path / "out")


def test_another_robots_configuration_is_named(home: Path, tmp_path: Path) -> None:
    other = absolute_arm(tmp_path / "my_robot.py")
    message = refusal(home, tmp_path / "out", f"modality_config={other}")
    assert "my_robot.py is not the one that" in message and "modality_config=FILE" in message
    assert "modality_config.action.arm.rep: 'RELATIVE' there, 'ABSOLUTE' now" in message


def test_the_tree_holds_the_robots_file_that_was_given(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = robot_file(tmp_path / "my_robot.py")
    monkeypatch.setitem(shared_keys._READY_ROBOTS, "mine", own)  # found by its name, as those of configs/robots are
    made = publish(home, tmp_path / "out", "modality_config=mine")
    assert (made.out / "scripts/conflict_panda_config.py").read_text() == own.read_text()


def test_a_foreign_folder_is_never_replaced_and_a_release_only_when_asked(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("")
    assert "holds other files than a release" in refusal(home, out, "overwrite=true")
    (out / "thesis.tex").unlink()
    publish(home, out)
    assert "is a release already. Say overwrite=true" in refusal(home, out)
    (out / "README.md").unlink()
    assert (publish(home, out, "overwrite=true").out / "README.md").is_file()


def test_what_was_put_into_a_release_is_not_deleted_with_it(home: Path, tmp_path: Path) -> None:
    out = publish(home, tmp_path / "out").out
    for place in ("gr00t/__pycache__/x.pyc", "own.egg-info/PKG-INFO"):  # what use leaves may go
        (out / place).parent.mkdir(exist_ok=True)
        (out / place).write_text("")
    (out / "runs" / "mine").mkdir(parents=True)
    (out / "runs" / "mine" / "metrics.jsonl").write_text("{}")
    assert "holds runs/mine/metrics.jsonl, which the release did not have" in refusal(home, out, "overwrite=true")
    shutil.rmtree(out / "runs")
    publish(home, out, "overwrite=true")


def test_a_release_does_not_lie_in_what_it_is_made_of(home: Path, tmp_path: Path) -> None:
    assert "lies inside checkpoint" in refusal(home, home / "checkpoints/color_object/release")
    assert "this checkout" in refusal(home, CHECKOUT)


def test_too_small_a_disk_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "free_space", lambda _: 5_000_000)
    assert "has 5.0 MB free, but the release takes " in refusal(home, tmp_path / "out")


def test_weights_are_copied_unless_links_are_asked_for(home: Path, tree: Path, tmp_path: Path) -> None:
    place = "checkpoints/color_object/model-00001-of-00001.safetensors"
    assert not (tree / place).samefile(home / place)
    linked = publish(home, tmp_path / "linked", "link=true").out
    assert (linked / place).samefile(home / place)
    others = [path for path in (linked / "checkpoints").rglob("*.json") if path.is_file()]
    assert others and not any(path.samefile(home / path.relative_to(linked)) for path in others)


@pytest.mark.parametrize(
    "argument, told",
    [("upload=true", "say repo_id=owner/name"), ("repo_id=name", "is written owner/name"),
     ("base_model=/scratch/base", "is written owner/name"), ("licence=Apache 2", "as Hugging Face does")],
)  # fmt: skip
def test_names_the_hub_does_not_take_are_refused(argument: str, told: str, home: Path, tmp_path: Path) -> None:
    assert told in refusal(home, tmp_path / "out", argument)


# -- upload ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub(monkeypatch) as found:
        yield found


ASKED = ("repo_id=me/policy", "upload=true")
POLICY = "model/me/policy"


def test_an_upload_sends_the_release_and_nothing_else(home: Path, hub: FakeHub, tmp_path: Path) -> None:
    made = publish(home, tmp_path / "out", *ASKED)
    assert hub.repositories == {POLICY: True} and made.address == "https://huggingface.co/me/policy"
    assert hub.sent(POLICY) == {".gitattributes": b""} | {name: (made.out / name).read_bytes() for name in made.files}
    assert hub.commits == ["Release out"]
    assert any("uploaded: https://huggingface.co/me/policy" in line for line in made.lines())


def test_a_release_that_is_there_is_sent_with_what_was_written_into_its_card(
    home: Path, hub: FakeHub, tmp_path: Path
) -> None:
    out = publish(home, tmp_path / "out", "repo_id=me/policy").out
    assert not hub.repositories and not hub.sent(POLICY)
    spoil(out, "README.md", "Written by hand.")
    (out / "gr00t" / "__pycache__").mkdir()
    (out / "gr00t" / "__pycache__" / "x.pyc").write_bytes(b"\0")
    publish(home, out, *ASKED, "private=false")
    assert b"Written by hand." in hub.sent(POLICY)["README.md"]
    assert not any("pycache" in name for name in hub.sent(POLICY)) and hub.repositories == {POLICY: False}
    publish(home, out, *ASKED, "private=false")  # what others put into a model's repository stays there
    hub.files[POLICY]["gr00t/theirs.txt"] = b""
    before = dict(hub.sent(POLICY))
    assert "everybody sees it. To publish, say private=false" in refusal(home, out, *ASKED)
    assert hub.sent(POLICY) == before
    publish(home, out, *ASKED, "private=false")
    assert "gr00t/theirs.txt" in hub.sent(POLICY)


def test_a_release_that_was_damaged_or_is_of_another_checkpoint_is_not_sent(
    home: Path, copy: Path, hub: FakeHub, tmp_path: Path
) -> None:
    out = publish(home, tmp_path / "out").out
    weights = sorted((copy / "checkpoints" / "color_object").glob("*.safetensors"))[-1]
    damaged = out / "checkpoints" / "color_object" / weights.name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-4] + b"\1\1\1\1")
    assert f"{weights.name} has changed" in refusal(home, out, *ASKED)
    damaged.write_bytes(whole)
    weights.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))  # trained again since
    message = refusal(copy, out, *ASKED)
    assert f"another checkpoint than {weights.parent}" in message and "overwrite=true" in message
    assert not hub.files
    publish(home, out, *ASKED)
    assert hub.files


def test_what_is_written_into_it_is_looked_at_too(home: Path, hub: FakeHub, tmp_path: Path) -> None:
    out = publish(home, tmp_path / "out").out
    spoil(out, "README.md", f"download with {TOKEN}")
    assert "README.md" in (message := refusal(home, out, *ASKED)) and TOKEN not in message and not hub.files
    (out / "README.md").write_text("---\nlicense: [\n---\n")
    assert "the metadata between the --- lines" in refusal(home, out, *ASKED)
    mark = json.loads((out / "release.json").read_text())
    write_json(out / "release.json", {**mark, "files": [*mark["files"], "../../etc/passwd"]})
    assert "no whole release any more" in refusal(home, out, *ASKED)


def test_without_a_login_nothing_is_made(
    home: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.words = TOKEN
    hub.refusal = ("whoami", 401)
    assert "Run `hf auth login`" in (message := refusal(home, tmp_path / "out", *ASKED)) and TOKEN not in message
    hub.refusal = ("whoami", 403)
    assert "may not write to me/policy" in (message := refusal(home, tmp_path / "out", *ASKED)) and TOKEN not in message
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://{TOKEN}@127.0.0.1:9")
    message = refusal(home, tmp_path / "out", *ASKED)
    assert "(ConnectError)" in message and TOKEN not in message
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "nobody is logged in" in refusal(home, tmp_path / "out", *ASKED)
