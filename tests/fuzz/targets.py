"""What is damaged, and the programs that then read it: sound small inputs of every kind, made with the toolkit."""

from __future__ import annotations

import functools
import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from recordings import INSTRUCTION, write_split
from test_table_images import drawn, encoded, write_dataset

from conflict_panda_config import MODALITY_CONFIG
from data_prep.adopt import adopt
from data_prep.convert import convert_split
from finetune.create_base import create_base
from finetune.slurm import attempt_record
from finetune.training import checkpointing
from finetune.training.train import finetune
from gr00t.file_replacement import file_sha256, write_json
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.serve import example_observation
from gr00t.server.messages import MAX_MESSAGE, pack
from gr00t.server.server import Endpoints
from toolkit.configuration import load

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("train.save_steps=1", "train.max_steps=2", "train.eval_steps=1")


@dataclass(frozen=True)
class Target:
    """`folder` of the sound inputs is copied for each mutation, `damaged` the part of it that is mutated; programs are
    functions below, of the sound inputs and of the damaged folder."""

    folder: str
    damaged: str
    programs: tuple[str, ...]


TARGETS = {
    "dataset_v21": Target("v21", "color_object/train", ("doctor", "train")),
    "dataset_v30": Target("v30", "color_object/train", ("doctor", "train")),
    "dataset_images": Target("images", "color_object/train", ("doctor", "train")),
    "recording": Target("raw", "color_object", ("convert",)),
    "checkpoint": Target("done", ".", ("act", "act", "evaluate", "continue_from", "release", "plan")),
    "request": Target("requests", ".", ("answer",)),
    "run": Target("run", ".", ("resume", "resume_sealed", "resume_sealed", "report", "jobs", "release_run")),
}


def make_inputs(folder: Path) -> None:
    """Every sound input, below `folder`; takes half a minute."""
    raw = write_split(folder / "raw", train=[18, 20, 17], conflict=[17])
    convert_split(raw, folder / "v21", "color_object", INSTRUCTION, MODALITY_CONFIG, progress=False)
    write_dataset(
        folder / "images/color_object/train", "v2.1", lambda *which: {"bytes": encoded(drawn(*which)), "path": ""}
    )
    shutil.copytree(Path(__file__).parents[1] / "lerobot_v3/recorded", folder / "v30/color_object/train")
    for name in ("v30", "images"):
        adopt(load("adopt", ["local=none", f"dataset={folder}/{name}/color_object/train", "write=true"]))
    create_base(load("create_base", ["model=tiny", "local=none", f"out={folder}/base", "dtype=fp32"]))
    # beside the run lies what it finished
    finetune(load("finetune", training(folder, folder / "v21", folder, *STEPS)))
    write_requests(policy(folder), folder / "requests")
    shutil.rmtree(folder / "run/checkpoint-2")  # a step is left to do
    attempt = attempt_record.begin(folder / "run", "12", {"job_name": "x", "nodes": "n1", "log": None})
    for name, content in (
        ("outcome", {"status": "finished", "reason": ""}),
        ("ended", {"what": "done", "reason": "x"}),
    ):
        write_json(attempt.folder / f"{name}.json", content)


@functools.cache
def policy(sound: Path) -> GR00TPolicy:
    """What answers requests; loaded once, before the children are forked."""
    return GR00TPolicy.from_pretrained(sound / "done")


def write_requests(acting: GR00TPolicy, folder: Path) -> None:
    """An observation in both forms, and the other endpoints."""
    nested = example_observation(acting, "pick up the red cube")
    flat = {f"{kind}.{name}": value for kind in ("video", "state") for name, value in nested[kind].items()}
    requests = {"nested": {"observation": nested}, "flat": {"observation": flat | nested["language"]}}
    folder.mkdir()
    for name, data in requests.items():
        (folder / f"{name}.msgpack").write_bytes(
            pack({"endpoint": "get_action", "data": {**data, "options": {"seed": 1}}})
        )
    (folder / "reset.msgpack").write_bytes(pack({"endpoint": "reset", "data": {"options": None}}))


def training(sound: Path, data: Path, out: Path, *more: str) -> list[str]:
    """Arguments of the smallest fine-tune; what `more` says takes the place of it."""
    arguments = [
        *(
            "local=none",
            "experiment=demo",
            "split=color_object",
            f"dataset.data_dir={data}",
            f"model.base={sound}/base",
        ),
        *(
            f"run_dir={out}/run",
            f"output_dir={out}/done",
            f"cache_dir={out}/cache",
            "train.max_steps=1",
            "tracking=none",
        ),
        *(
            "train.global_batch_size=2",
            "train.log_steps=1",
            "train.num_workers=0",
            "device=cpu",
            "train.save_steps=100",
        ),
    ]
    return [f"{name}={value}" for name, value in dict(text.split("=", 1) for text in [*arguments, *more]).items()]


def started(what: str, *arguments: str) -> None:
    """A command as people start it."""
    sys.argv = [what, *arguments]
    if what.endswith(".py"):
        runpy.run_path(str(ROOT / what), run_name="__main__")
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


def doctor(sound: Path, root: Path) -> None:
    started("data_prep.check", f"{root}/color_object", "local=none", f"html={root}/doctor.html", "shown=1")


def train(sound: Path, root: Path) -> None:
    started("launch_finetune_local.py", *training(sound, root, root))


def convert(sound: Path, root: Path) -> None:
    arguments = ("local=none", "split=color_object", f"raw_dir={root}", f"data_dir={root}/made", "workers=1")
    started("prepare_conflict_data.py", *arguments)


def act(sound: Path, root: Path) -> None:
    """The server up to where it would wait for requests."""
    from gr00t.server.server import PolicyServer

    PolicyServer.run = lambda self: 0  # type: ignore[method-assign]
    started("gr00t.serve", f"checkpoint={root}", "device=cpu", "port=0")


def evaluate(sound: Path, root: Path) -> None:
    arguments = ("local=none", "split=color_object", f"checkpoint={root}", f"data_dir={sound}/v21", "device=cpu")
    started("evaluate_conflict.py", *arguments, f"report_dir={root.parent}/report", "max_episodes=1", "part=train")


def continue_from(sound: Path, root: Path) -> None:
    started("launch_finetune_local.py", *training(sound, sound / "v21", root.parent / "next", f"model.base={root}"))


def release(sound: Path, root: Path) -> None:
    where = (
        f"checkpoint={root}",
        f"run_dir={sound}/run",
        f"out={root.parent}/published",
        f"reports_dir={root.parent}/r",
    )
    started("finetune.release", "split=color_object", "local=none", *where, "overwrite=true", "base_model=a/b")


def plan(sound: Path, root: Path) -> None:
    started("finetune.plan", *training(sound, sound / "v21", root.parent / "next", f"model.base={root}"))


def resume(sound: Path, root: Path) -> None:
    out = (f"run_dir={root}", f"output_dir={root.parent}/made", f"cache_dir={sound}/cache")
    started("launch_finetune_local.py", *training(sound, sound / "v21", root, *STEPS, *out))


def resume_sealed(sound: Path, root: Path) -> None:
    """As where the checkpoint was written so: its manifest fits, and the damage is met where the content is used."""
    folder = root / "checkpoint-1"
    files = [folder / name for name in checkpointing.FILES if (folder / name).is_file()]
    write_json(folder / "manifest.json", {path.name: file_sha256(path) for path in files})
    resume(sound, root)


def answer(sound: Path, root: Path) -> None:
    """A policy's replies to requests, each within the limits of one."""
    endpoints = Endpoints(policy(sound), max_batch=4)
    for path in sorted(root.iterdir()):
        reply = endpoints.answer(path.open("rb").read(MAX_MESSAGE + 1) if path.is_file() else b"")
        print(path.name, reply.error or "answered")


def report(sound: Path, root: Path) -> None:
    started(
        "finetune.report", str(root), f"out={root.parent}/report.html", "local=none", f"reports_dir={root.parent}/r"
    )


def jobs(sound: Path, root: Path) -> None:
    started("finetune.jobs", f"runs_dir={root.parent}", "local=none")


def release_run(sound: Path, root: Path) -> None:
    where = (
        f"checkpoint={sound}/done",
        f"run_dir={root}",
        f"out={root.parent}/published",
        f"reports_dir={root.parent}/r",
    )
    started("finetune.release", "split=color_object", "local=none", *where, "overwrite=true", "base_model=a/b")
