"""Loss curves recorded before: the same within rounding on any machine, to the last bit on one of the same kind."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_training import ROOT

from benchmarks.curves import CASES, THREADS, Case, Checkout, Lines, compare, difference, machine, read
from finetune.create_base import create_base
from finetune.training.train import finetune
from prepare_conflict_data import main as prepare
from toolkit.configuration import load

CARRIED = json.loads((Path(__file__).parent / "golden/curves.json").read_text())
RECORDED = [case for case in CASES if case.name in CARRIED["curves"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the sample recordings."""
    out = tmp_path_factory.mktemp("data")
    prepare(load("prepare", ["local=none", "split=color_object", f"raw_dir={ROOT}/samples", f"data_dir={out}"]))
    return out


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def trained(case: Case, data: Path, out: Path) -> Lines:
    base = create_base(load("create_base", ["local=none", f"model={case.model}", f"out={out}/base", "dtype=fp32"]))
    finetune(load("finetune", case.overrides(data, base, out)))
    return read(out / "run")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.long if c.model == "small" else (), id=c.name) for c in RECORDED]
)
def test_a_carried_curve_is_trained_again(case: Case, data: Path, tmp_path: Path) -> None:
    before, after = CARRIED["curves"][case.name], trained(case, data, tmp_path)
    assert len(before) == len(after) == 4
    for old, new in zip(before, after, strict=True):
        assert new == pytest.approx(old, rel=1e-5)
    if machine() == CARRIED["machine"]:
        assert after == before


def test_there_is_a_curve_of_each_model_live_and_cached() -> None:
    assert {case.name for case in RECORDED} == {case.name for case in CASES if case.precision == "fp32"}
    assert len(RECORDED) == 4


def test_what_differs_in_a_curve_is_said() -> None:
    lines: Lines = CARRIED["curves"]["tiny live fp32"]
    assert difference(lines, copy.deepcopy(lines)) == ""
    other = copy.deepcopy(lines)
    other[2]["grad_norm"] *= 1 + 1e-15
    assert difference(lines, other).startswith(f"step 3: grad_norm {lines[2]['grad_norm']}, now ")
    assert difference(lines, lines[:3]) == "4 lines, now 3"
    assert difference(lines, lines + lines[3:]) == "4 lines, now 5"
    assert difference(lines, [{**line, "more": 1.0} for line in lines]) == "step 1: more None, now 1.0"


@pytest.mark.long
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "file, old, new, seen",
    [
        ("README.md", "\n", "\n\n", ""),
        (
            "finetune/training/engine.py",
            "(loss * self.world_size).backward()",
            "(loss * 1.0001).backward()",
            "grad_norm",
        ),
        ("gr00t/data/images.py", "cv2.INTER_AREA", "cv2.INTER_LINEAR", "loss"),
    ],
)
def test_commits_that_differ_in_numbers_are_told_apart(
    file: str, old: str, new: str, seen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkouts = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        checkouts.append(Checkout.of("HEAD", tmp_path / name))
    text = (tmp_path / "new/code" / file).read_text()
    assert old in text
    (tmp_path / "new/code" / file).write_text(text.replace(old, new))
    same = compare(checkouts[0], checkouts[1], [Case("tiny", "live"), Case("tiny", "cached")])
    assert same is not bool(seen)
    assert seen in capsys.readouterr().out
