"""What several tests need and is slow to make: a small dataset, and a base checkpoint with random weights."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the entry scripts do
if "PYTEST_XDIST_WORKER" in os.environ:  # each of several processes has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from recordings import INSTRUCTION, SAMPLES, write_split
from scheduling import policy
from simulator import record_split, renderer
from slurm_cluster import Cluster, NoCluster, running_cluster

__all__ = ["renderer"]
ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes (pytest -n) one runs all tests of a file, and one all that need the same slow preparation:
    the test cluster, or recordings in the simulator. These come first, so that no long one is left at the end."""
    for item in items:
        names = getattr(item, "fixturenames", [])
        slow = next((name for name in ("cluster", "recordings", "renderer") if name in names), None)
        item.add_marker(pytest.mark.xdist_group({"renderer": "recordings"}.get(str(slow), slow) or item.path.name))
    items.sort(key=lambda item: not {"cluster", "recordings", "renderer"} & set(getattr(item, "fixturenames", [])))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """What a test draws without a generator of its own is the same each time, whichever tests run before; and none
    leaves a process behind that starves the others."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    before = policy()
    yield
    assert policy() == before, "the test changed this process's scheduling (scheduling.py undoes it)"


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data_dir with the split color_object: five train episodes (two of them held out) and one conflict episode."""
    from conflict_panda_config import MODALITY_CONFIG
    from data_prep.convert import convert_split

    folder = tmp_path_factory.mktemp("small")
    raw = write_split(folder / "raw", train=[20, 24, 18, 22, 20], conflict=[20])
    convert_split(raw, folder / "data", "color_object", INSTRUCTION, MODALITY_CONFIG, progress=False)
    return folder / "data"


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample recordings as a split: eight train episodes, two conflict episodes."""
    from conflict_panda_config import MODALITY_CONFIG
    from data_prep.convert import convert_split

    folder = tmp_path_factory.mktemp("sound")
    convert_split(SAMPLES, folder, "color_object", INSTRUCTION, MODALITY_CONFIG, progress=False)
    return folder / "color_object"


@pytest.fixture
def patient(sound: Path, tmp_path: Path) -> Path:
    """A copy of the split that may be damaged."""
    return shutil.copytree(sound, tmp_path / "data" / "color_object")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base checkpoint in fp32, as `python -m finetune.create_base` makes it."""
    from finetune.create_base import create_base
    from toolkit.configuration import load

    out = tmp_path_factory.mktemp("base") / "tiny"
    return create_base(load("create_base", ["model=tiny", f"out={out}", "dtype=fp32"]))


@pytest.fixture(params=[True, False], ids=["cpu kernels", "as on a GPU"])
def kernels(request: pytest.FixtureRequest) -> Iterator[bool]:
    """The test twice: with what only a CPU computes, and with what a GPU runs."""
    from gr00t.model.cpu_kernels import switched

    with switched(request.param):
        yield request.param


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory, renderer: None) -> Path:
    """Recordings of size_color in the simulator: 3 train episodes in several phrases, 2 of conflict, pushed aside."""
    return record_split(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM cluster of our own: two nodes with four (fake) a100 each. Skips where it cannot be."""
    try:
        with running_cluster(tmp_path_factory.mktemp("slurm")) as found:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SLURM_CONF", found.env["SLURM_CONF"])
                yield found
    except NoCluster as reason:
        pytest.skip(str(reason))


@pytest.fixture
def site(tmp_path: Path, small_data: Path, tiny_base: Path) -> Callable[..., list[str]]:
    """Arguments for the launcher: small runs of three splits, whose every folder lies in tmp_path."""
    for name in ("color_object", "color_size", "size_color"):
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copytree(small_data / "color_object", tmp_path / "data" / name)

    def arguments(*more: str) -> list[str]:
        names = [argument.partition("=")[0] for argument in more]
        small = [
            *("local=none", "model=tiny", f"model.base={tiny_base}", f"dataset.data_dir={tmp_path}/data"),
            *(f"run_dir={tmp_path}/runs/${{split.name}}", f"output_dir={tmp_path}/done/${{split.name}}"),
            *("train.max_steps=2", "train.global_batch_size=4", "train.log_steps=1", "train.num_workers=0"),
            *("tracking=none", "device=cpu", f"runs_dir={tmp_path}/runs", "cluster.time=0:30:00"),
            *("cluster.gpus_per_node=1", "cluster.cpus_per_task=2"),
        ]
        return [argument for argument in small if argument.partition("=")[0] not in names] + list(more)

    return arguments
