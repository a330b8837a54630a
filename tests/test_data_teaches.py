"""`data_prep.check probe=true` says before training what a dataset can teach."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from taught_data import TEN, write_taught

from conflict_panda_config import MODALITY_CONFIG
from data_prep import input_probes
from data_prep.check import main, read
from data_prep.doctor.examine import examine
from data_prep.doctor.examined_dataset import Subject
from data_prep.doctor.language_checks import check_taught, interval, judge
from data_prep.input_probes import Told

N = 300


def told(everything: float, deaf: float, instruction: float = 0.5, state: float = 0.5, spread: float = 0.2) -> Told:
    """What probes that find so much on average would say."""
    rng = np.random.default_rng(0)
    rates = {"instruction": instruction, "state": state, "image": deaf, "all but instruction": deaf}
    rates["everything"] = everything
    return Told({name: rate + spread * (rng.random(N) - 0.5) for name, rate in rates.items()}, {})


@pytest.mark.parametrize(
    ("found", "instructions", "verdict"),
    [
        (told(0.94, 0.67), 6, "language"),
        (told(0.94, 0.67), 1, "one instruction"),
        (told(0.95, 0.95), 6, "image"),
        (told(0.95, 0.95), 1, "one instruction"),
        (told(0.93, 0.6, instruction=0.94), 4, "instruction"),
        (told(0.94, 0.94, state=0.95), 4, "state"),
        (told(0.51, 0.5), 6, "nothing"),
        (told(0.68, 0.68), 6, "unclear"),  # the network may be too weak: nothing tells it all
        (told(0.97, 0.88), 6, "language"),
    ],
)
def test_the_verdict_follows_from_what_each_input_tells(found: Told, instructions: int, verdict: str) -> None:
    assert judge(found, instructions) == verdict


def test_intervals_hold_the_mean_in_95_of_100() -> None:
    rng = np.random.default_rng(0)
    drawn = [interval(rng.random(60)) for _ in range(1000)]
    assert 0.92 < np.mean([low <= 0.5 <= high for low, high in drawn]) < 0.975


def test_eight_recordings_are_too_few_to_say(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "a.html"
    main(read([str(sound / "train"), "fast=true", "probe=true", f"json={tmp_path}/a.json", f"html={page}", "shown=1"]))
    facts = json.loads((tmp_path / "a.json").read_text())["datasets"][0]["facts"]
    assert facts["probe"]["verdict"] == "too few" and facts["probe"]["episodes"] == 8
    assert "too few" in page.read_text() and "too few" in capsys.readouterr().out


def test_nothing_is_probed_unless_it_is_asked_for_and_then_only_train(sound: Path) -> None:
    for probe, probed in ((False, []), (True, ["train"])):
        report, _ = examine(sound, MODALITY_CONFIG, fast=True, probe=probe)
        assert [d.name for d in report.datasets for r in d.results if r.check == "probe"] == probed
        assert [d.name for d in report.datasets if "probe" in d.facts] == probed


def test_a_sentence_that_names_the_place_is_found_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(input_probes, "STEPS", 60)
    data = write_taught(tmp_path / "data", "the sentence names the place", 90)
    with pytest.raises(SystemExit):  # for want of fingerprints, statistics and a second camera
        main(read([str(data), "fast=true", "probe=true", f"json={tmp_path}/a.json", f"html={tmp_path}/a.html"]))
    report = json.loads((tmp_path / "a.json").read_text())
    found = report["datasets"][0]["facts"]["probe"]
    assert found["goal"] == "action of the gripper changes" and found["episodes"] == 90
    assert found["places"]["instruction"]["share"] > 0.8 and found["places"]["state"]["high"] < 0.7
    values = found["values"]["color"]
    assert {*values} == {*input_probes.INPUTS, "usual"} and all(hits["n"] == 90 for hits in values.values())
    page, shown = (tmp_path / "a.html").read_text(), capsys.readouterr().out
    assert "What data teaches" in page and found["in_words"] in page
    assert "what is given" in shown and "all but instruction" in shown


@pytest.mark.long
def test_what_ten_datasets_teach_is_found(tmp_path: Path) -> None:
    found = {}
    for kind in TEN:
        data = write_taught(tmp_path / kind.replace(" ", "_"), kind, 40 if kind == "forty episodes" else N)
        subject = Subject(data, MODALITY_CONFIG)
        list(check_taught(subject))
        found[kind] = subject.probed["verdict"]
    right = [kind for kind, verdict in found.items() if verdict == TEN[kind]]
    assert len(right) >= 9 and {k for k, verdict in TEN.items() if verdict == "language"} <= {*right}, found
