"""The audit of the benchmark names what leaks, says what is documented, and raises no false alarm."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from outcomes import HELD, WRONG, evaluation, played

from data_prep.input_probes import ChoiceProbe, Question, adjusted, tails
from gr00t.errors import ToolkitError
from simulation import audit as auditing
from simulation.audit import AuditConfig, Scene, Scored, audit, judged, main, score_scenes
from simulation.report.closed_loop_report import write_report
from simulation.scenes.plate_suite import Episode, sample_episode
from simulation.scenes.suites import suite_of
from toolkit.configuration import load

SPLIT = "color_size"


def scenes(plant: Callable[[Episode, random.Random], int | None], first: int, count: int) -> list[Scene]:
    """Scenes of two objects whose target is the one that `plant` says, or remains as drawn."""
    found: list[Scene] = []
    for seed in range(first, first + count):
        episode, rng = sample_episode(SPLIT, "train", seed), random.Random(seed)
        planted = plant(episode, rng)
        found.append(dataclasses.replace(episode, target=episode.target if planted is None else planted))
    return found


def named(plant: Callable[[Episode, random.Random], int | None], count: int = 450) -> dict[str, str]:
    scored = score_scenes(scenes(plant, 0, count), {"train": scenes(plant, 10_000, count)}, 0)
    (part,) = judged(scored)
    return {probe: result.verdict for probe, result in part.results.items() if result.verdict != "sound"}


def larger(episode: Episode, rng: random.Random) -> int:
    return max(range(2), key=lambda i: episode.objects[i].size == "large")


def mostly_left(episode: Episode, rng: random.Random) -> int | None:
    sides = [thing.position for thing in episode.objects]
    return sides.index("left") if "right" in sides and "left" in sides and rng.random() < 0.4 else None


def first(episode: Episode, rng: random.Random) -> int:
    return 0


def often_the_larger(episode: Episode, rng: random.Random) -> int:
    return larger(episode, rng) if rng.random() < 0.65 else rng.randrange(2)


@pytest.mark.parametrize(
    ("plant", "probes"),
    [
        (larger, {"deaf", "usual value"}),
        (mostly_left, {"blind", "deaf", "place", "usual place"}),
        (first, {"deaf", "place"}),
        (often_the_larger, {"deaf", "usual value"}),
    ],
)
def test_planted_leaks_are_found_by_the_probes_that_can_see_them(
    plant: Callable[[Episode, random.Random], int | None], probes: set[str]
) -> None:
    found = named(plant)
    assert {*found} - {"usual value"} == probes - {"usual value"} and {*found.values()} == {"leak"}


def test_what_is_sound_is_not_named_and_what_can_be_learned_is_learned() -> None:
    scored = score_scenes(scenes(lambda *_: None, 0, 450), {"train": scenes(lambda *_: None, 10_000, 450)}, 0)
    (part,) = judged(scored)
    assert {result.verdict for result in part.results.values()} == {"sound"}
    assert (part.results["everything"].share.value or 0) > 0.9


def test_in_a_hundred_sound_audits_hardly_any_names_something() -> None:
    """The chance is 5 % for all tests of an audit together; 12 of 100 would be a rare accident."""
    rng, alarms = np.random.default_rng(0), 0
    drawn = scenes(lambda *_: None, 0, 60)
    for _ in range(100):
        scored = [
            Scored(SPLIT, "train", drawn, {probe: rng.random(len(drawn)) < 0.5 for probe in auditing.PROBES})
            for _ in range(10)
        ]
        alarms += any(r.verdict != "sound" for part in judged(scored) for r in part.results.values())
    assert alarms < 12


def test_order_does_not_matter_and_words_are_matched_with_things() -> None:
    rng = random.Random(0)

    def question() -> Question:
        colors = rng.sample(["red", "green", "blue", "black"], 3)
        answer = rng.randrange(3)
        return Question([{color: 1.0} for color in colors], {f"says {colors[answer]}": 1.0}, answer)

    probe = ChoiceProbe([question() for _ in range(600)])
    asked = [question() for _ in range(100)]
    picks = probe.picks(asked)
    assert np.mean(picks == [q.answer for q in asked]) > 0.95
    turned = [dataclasses.replace(q, things=list(reversed(q.things))) for q in asked]
    assert [2 - pick for pick in probe.picks(turned)] == picks.tolist()


def test_tails_are_exact_and_p_values_adjusted_as_holm_does() -> None:
    chances = [0.5, 1 / 3, 0.25, 0.9]
    outcomes = list(itertools.product([0, 1], repeat=4))
    weights = [np.prod([c if hit else 1 - c for hit, c in zip(o, chances, strict=True)]) for o in outcomes]
    for hits in range(5):
        low = sum(w for o, w in zip(outcomes, weights, strict=True) if sum(o) <= hits)
        high = sum(w for o, w in zip(outcomes, weights, strict=True) if sum(o) >= hits)
        assert tails(hits, chances) == pytest.approx((low, high))
    assert adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted([]) == [] and adjusted([0.9, 0.8]) == [1.0, 1.0]


def test_more_than_is_documented_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    known = auditing.Known(("deaf",), lambda split, part: True, (0.4, 0.6), "size tells a little")
    monkeypatch.setattr(auditing, "KNOWN", (known,))
    drawn = scenes(lambda *_: None, 0, 600)

    def verdict(rate: float) -> str:
        hits = {"deaf": np.arange(600) < rate * 600}
        hits |= {probe: np.arange(600) % 2 == 0 for probe in auditing.PROBES if probe != "deaf"}
        (part,) = judged([Scored(SPLIT, "train", drawn, hits)])
        return part.results["deaf"].verdict

    assert [verdict(rate) for rate in (0.5, 0.61, 0.4, 0.8, 0.2)] == [
        *("sound", "documented", "documented", "leak", "leak")
    ]


def test_the_page_and_the_numbers_of_an_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(evaluation(played({HELD: 30, WRONG: 10}, "conflict")), tmp_path / "reports/color_object/mine")
    given = ["splits=[color_object,instruction/color_size]", "scenes=60", f"out={tmp_path}/audit.html"]
    main(load("audit", [*given, f"reports_dir={tmp_path}/reports"]))
    numbers = json.loads((tmp_path / "audit.json").read_text())
    parts = {(part["split"], part["part"]): part for part in numbers["parts"]}
    assert [part for split, part in parts if split == "color_object"] == ["train", "conflict"]
    assert len(parts) == 2 + len(suite_of("instruction/color_size").evaluated)
    policy = parts["color_object", "conflict"]["policies"]["color_object/mine"]
    assert (policy["count"], policy["n"]) == (30, 40)
    assert parts["color_object", "train"]["results"]["deaf"]["share"]["n"] == 60
    page, shown = (tmp_path / "audit.html").read_text(), capsys.readouterr().out
    assert "75 % (30/40" in page and "75 % (30/40)" in shown and "0 undocumented leaks" in shown
    with pytest.raises(ToolkitError, match="which is no audit"):
        (tmp_path / "other.json").write_text("{}")
        main(load("audit", [*given[:2], f"out={tmp_path}/other.html"]))
    with pytest.raises(ToolkitError, match=r"reports_dir=.*/report does not exist"):
        load("audit", [*given, f"reports_dir={tmp_path}/report"])


def test_an_undocumented_leak_ends_with_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "KNOWN", ())
    with pytest.raises(SystemExit, match="1"):
        main(load("audit", ["splits=[instruction/spatial_object]", "scenes=100", f"out={tmp_path}/a.html"]))
    assert "not sound" in (tmp_path / "a.html").read_text()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_all_that_leaves_chance_in_the_suites_is_documented(seed: int) -> None:
    parts: Sequence[auditing.Part] = audit(AuditConfig(seed=seed))
    leaks = [(p.split, p.part, r.probe, str(r.share)) for p in parts for r in p.results.values() if r.verdict == "leak"]
    assert leaks == []
    plate = [r for p in parts if "/" not in p.split for r in p.results.values()]
    assert {result.verdict for result in plate} == {"sound"}
