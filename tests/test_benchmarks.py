"""The benchmarks run: what they measure would otherwise break unseen."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks import gpu
from benchmarks.checkpoints import KINDS
from benchmarks.conversion import converter, plain, write_recordings
from benchmarks.gpu import Found
from benchmarks.measuring import ROOT, in_own_process, options
from benchmarks.policy_server import compare, make_checkpoint, observation, serving
from benchmarks.training_step import Case, acting, build, training_step
from gr00t.model.dit import VlmTokens
from gr00t.model.gr00t_n1 import GR00TPolicy

TINY = {"model": "tiny", "batch": 2, "steps": 1, "warmup": 0}


def test_settings_of_the_training_step_run_and_count_the_products_they_need() -> None:
    live, cached = (training_step(Case(**TINY, cached=cached)) for cached in (False, True))
    plain = training_step(Case(**TINY, plain=True, precision="fp32"))
    assert live["flops"] > cached["flops"] > 0 and "flops" not in plain
    assert live["trained"] == cached["trained"] < plain["trained"]
    assert all(math.isfinite(row["loss"]) for row in (live, cached, plain))


def test_micro_batches_and_recomputation_train_on_the_same_batch() -> None:
    whole, cut = (training_step(Case(**TINY, precision="fp32", micro_batch=size)) for size in (None, 1))
    assert whole["flops"] == cut["flops"]


def test_acting_is_split_into_backbone_and_head() -> None:
    case = Case(**TINY, acting=True)
    found = acting(build(case), case)
    assert found["backbone"] > 0 and found["seconds"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_each_kind_are_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    measured, setting = KINDS[kind]
    found = measured(Case(**{**TINY, **setting}), tmp_path)
    assert found["gb"] > 0 and found["load"] > 0


def test_the_plain_way_of_converting_and_ours_write_the_same_episodes(tmp_path: Path) -> None:
    write_recordings(tmp_path / "raw/color_object/train", files=1)
    for number, way in enumerate((plain, converter(1))):
        way(tmp_path / "raw", tmp_path / str(number))
        assert len(list((tmp_path / str(number)).rglob("*.mp4"))) == 16
        assert len(list((tmp_path / str(number)).rglob("*.parquet"))) == 8


def test_served_actions_are_measured_beside_equal_local_ones(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("tiny", tmp_path / "checkpoint")
    with serving(checkpoint) as client:
        row = compare(GR00TPolicy.from_pretrained(checkpoint), client, observation(1, 32, 48), rounds=1)
    assert row["served"] > row["transport"] > 0 and row["difference"] < 1e-5


def test_a_benchmark_says_what_it_takes(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["startup", "rounds=2"])
    assert options(rounds=9, points=0) == {"rounds": 2, "points": 0}
    monkeypatch.setattr(sys, "argv", ["startup", "--help"])
    with pytest.raises(SystemExit, match="0"):
        options(rounds=9)
    assert "rounds=9" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["startup", "round=2"])
    with pytest.raises(SystemExit, match=r"round=2: .*rounds=9.*Did you mean .?rounds"):
        options(rounds=9)


def test_a_measurement_that_fails_is_said_and_does_not_end_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = in_own_process("benchmarks.training_step", {"model": "enormous"})
    assert "enormous" in failed["error"]
    row = {"seconds": 1.0, "memory_gib": 1.0, "trained": 1e6, "flops": 1e9, "loss": 1.0}
    found = {"numbers": {}, "training": {"plain, fp32": failed, "live, bf16": row}, "acting": {}}
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--batch", "4"])
    table = gpu.report(gpu.arguments(), {"bf16": 1e12, "fp32": 1e12}, found)
    assert "| plain, fp32 | failed: " in table and "| live, bf16 | 4.00 | - |" in table


@pytest.mark.parametrize("check", [gpu.parity, gpu.padding, gpu.switch])
def test_what_the_gpu_benchmark_checks_holds_here_and_not_of_other_numbers(
    check: Callable[[str], Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = check("cpu")
    assert found.holds and found.bound < 0.2
    attend = F.scaled_dot_product_attention
    if check is gpu.padding:
        of = VlmTokens.of
        monkeypatch.setattr(VlmTokens, "of", lambda seen, padding_leaks: of(seen, padding_leaks=True))
    else:
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: 1.1 * attend(*a, **k))
    assert not check("cpu").holds


def test_what_there_is_no_time_for_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--config", "tiny", "--device", "cpu", "--minutes", "0"])
    rows = list(gpu.measure(gpu.arguments(), deadline=time.monotonic()))
    assert {kind for kind, _, _ in rows} == {"numbers", "training", "acting"}
    assert all("minutes were over" in row["error"] or "CUDA" in row["error"] for _, _, row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_its_benchmark_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--config tiny --device cpu" in done.stderr
