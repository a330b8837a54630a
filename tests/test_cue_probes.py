"""Cue probes: pairs differ in one thing only, followers of known cues are recognised, and training is not disturbed."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outcomes import HELD, WRONG, outcome
from simulator import needs_simulator
from test_training import config, trained

from benchmarks.cue_probes import agreement, closed_loop, spearman
from conflict_panda_config import MODALITY_CONFIG
from finetune.open_loop.probe_set import ARRAYS, Probe, ProbePredictor, ProbeSet
from finetune.report.__main__ import main, read
from finetune.training import first_batch
from finetune.training.metrics import Validation
from finetune.training.train import finetune
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1 import GR00TPolicy
from simulation.closed_loop import Evaluation
from simulation.probes import FIRST_SEED, PairedScene, paired_scenes
from simulation.scenes.suites import SUITES, suite_of
from toolkit.installation import CHECKOUT

SENTENCES = ("pick up the color-matching object", "pick up the object-matching object")
EVERY = [split for suite in SUITES for split in suite.splits]
PROBED = ("train.max_steps=3", "train.save_steps=1", "train.keep_last=3", "train.eval_steps=1", "train.eval_episodes=1")


def scenes(split: str, count: int = 4) -> Iterator[list[PairedScene]]:
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        yield from paired_scenes(split, seed, None, SENTENCES)


def joined(split: str, size: int = 64, count: int = 4) -> ProbeSet:
    """A set of noise images, in which the way to an object is a straight one in two joints."""
    probes, toward = list[Probe](), []
    ramp, axes = np.linspace(0, 1, 32)[:, None], np.eye(2, 7)
    for group in scenes(split, count):
        first = len(probes)
        for scene in group:
            whole = scene.episode
            conflict, asked = whole.lure is not None, scene.instruction
            probes.append(Probe(scene.change, first, conflict, asked, whole.target, scene.other, whole.describe()))
            ways = [ramp * np.array([body.x + 0.6, body.y]) @ axes for body in whole.objects]
            toward.append(np.stack([*ways, *[np.full_like(ways[0], np.nan)] * (3 - len(ways))]))
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 255, (len(probes), size, size, 3), np.uint8) for name in ("image", "wrist_image")}
    return ProbeSet(split, probes, images, np.zeros((len(probes), 8), np.float32), np.stack(toward).astype(np.float32))


def follow(probes: ProbeSet, choose: Callable[[dict[str, Any], Probe], int]) -> dict[str, float]:
    """What is measured of a policy that acts as the expert does, toward the object that `choose` names."""
    chunks = [ways[choose(probe.scene, probe)] for ways, probe in zip(probes.toward, probes.probes, strict=True)]
    return probes.measures(probes.headings(np.stack(chunks)[:, :16]))


def sensitivities(measures: dict[str, float]) -> dict[str, float]:
    found = {name.removeprefix("probes/sensitivity_"): value for name, value in measures.items()}
    return {name: value for name, value in found.items() if "/" not in name}


def first_with(scene: dict[str, Any], factor: str, value: str) -> int:
    return next(i for i, body in enumerate(scene["objects"]) if body[factor] == value)


# -- scenes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", EVERY)
def test_two_scenes_of_a_pair_differ_in_what_was_changed_alone(split: str) -> None:
    for first, *others in scenes(split):
        for scene in others:
            before, after = first.episode.describe(), scene.episode.describe()
            differing = {name for name in before if before[name] != after[name]}
            bodies = zip(before["objects"], after["objects"], strict=True)
            changed = {name for one, two in bodies for name in one if one[name] != two[name]}
            if scene.change in ("color", "object", "size"):
                assert (differing, changed) == ({"objects"}, {scene.change})
            elif scene.change in ("position", "spatial"):
                assert differing == {"objects"} and changed <= {scene.change, "x", "y"}
            elif scene.change == "plate":
                assert differing == {"plate"} and after["plate"]["x"] == before["plate"]["x"]
                assert (after["plate"]["y"] > 0) == (after["plate"]["position"] == "right")
            else:
                assert differing <= {"named", "instruction"} and scene.instruction != first.instruction
            assert scene.change in ("instruction", "verb") or scene.instruction == first.instruction


@pytest.mark.parametrize("split", EVERY)
def test_every_factor_and_the_instruction_is_changed_in_pairs(split: str) -> None:
    changes = {scene.change for group in scenes(split) for scene in group}
    assert changes >= {None, "instruction", *suite_of(split).factors} - {"verb"}
    assert ("verb" in changes) == ("/verb_" in split) and ("plate" in changes) == ("/" not in split)


# -- what is measured --------------------------------------------------------------------------------------------------


def test_a_follower_of_color_of_the_sentence_or_of_a_place_is_sensitive_to_that_alone() -> None:
    probes = joined("instruction/color_object", count=30)
    by_color = follow(probes, lambda scene, probe: first_with(scene, "color", probe.instruction.split()[2]))
    assert sensitivities(by_color) == {"color": 1, "object": 0, "spatial": 0, "size": 0, "instruction": 1}
    assert by_color["probes/heads_for_target"] == by_color["probes/heads_for_target_not_lure"] == 1
    by_shape = follow(probes, lambda s, p: first_with(s, "object", p.instruction.rstrip(".").split()[3]))
    assert sensitivities(by_shape) == {"color": 0, "object": 1, "spatial": 0, "size": 0, "instruction": 1}
    assert by_shape["probes/heads_for_target"] == 1 and by_shape["probes/heads_for_target_not_lure"] == 0
    nearest = follow(probes, lambda scene, _: int(np.argmin([body["x"] for body in scene["objects"]])))
    assert sensitivities(nearest) == {"color": 0, "object": 0, "spatial": 1, "size": 0, "instruction": 0}
    assert 0.2 < nearest["probes/heads_for_target"] < 0.8 and nearest["probes/heads_for_none"] == 0


def test_a_follower_of_the_plate_and_of_the_cue_that_is_asked_for_is_recognised() -> None:
    probes = joined("color_object", count=20)

    def matching(scene: dict[str, Any], probe: Probe) -> int:
        cue = "color" if probe.instruction == SENTENCES[0] else "object"
        return first_with(scene, cue, scene["plate"][cue])

    found = follow(probes, matching)
    wanted = {"color": 1, "object": 0, "size": 0, "position": 0, "plate": 1, "instruction": 1}
    assert sensitivities(found) == wanted
    red = follow(probes, lambda scene, _: int(np.argmax([body["color"] == "red" for body in scene["objects"]])))
    assert red["probes/sensitivity_plate"] == 0 < red["probes/sensitivity_color"]


def test_a_policy_that_hardly_moves_or_moves_elsewhere_is_undecided_and_a_slow_one_is_not() -> None:
    probes = joined("instruction/color_object")
    target = [probe.target for probe in probes.probes]
    way = probes.toward[np.arange(len(target)), target]
    for scale, decided in ((1, True), (0.3, True), (0.1, False), (0, False), (-1, False)):
        assert ((probes.headings(scale * way) == target) | ~np.array(decided)).all()
        assert (probes.headings(scale * way) >= 0).all() == decided


# -- during training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Probes whose images are as large as those of small_data."""
    folder = tmp_path_factory.mktemp("probes") / "set"
    joined("color_object", 32, 2).write(folder, {})
    return folder


@pytest.fixture(scope="module", autouse=True)
def without_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "draw", lambda *_: {})
        patch.setattr(first_batch, "draw", lambda _, image: image.touch())
        yield


@pytest.fixture(scope="module")
def probed(small_data: Path, tiny_base: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probed")
    finetune(config(out, small_data, tiny_base, *PROBED, f"train.probes={folder}"))
    return out


def lines(out: Path, of: str) -> list[dict[str, float]]:
    """The measurements whose names begin so, step by step."""
    found = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    chosen = [{k: v for k, v in line.items() if k.startswith(of)} for line in found]
    return [line for line in chosen if line]


def test_probes_are_measured_and_change_no_bit_of_the_training(
    probed: Path, small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    finetune(config(tmp_path, small_data, tiny_base, *PROBED))
    assert lines(tmp_path, "loss") == lines(probed, "loss") and lines(tmp_path, "val/") == lines(probed, "val/")
    there, here = trained(probed, 3), trained(tmp_path, 3)
    assert all(torch.equal(there[name], here[name]) for name in there | here)
    measured = lines(probed, "probes/")
    assert len(measured) == 3 and not lines(tmp_path, "probes/")
    assert sensitivities(measured[0]).keys() == {"color", "object", "size", "position", "plate", "instruction"}
    assert all(0 <= value <= 1 for line in measured for value in line.values())


def test_the_page_of_a_run_shows_the_curves_and_says_which_are_proven(probed: Path) -> None:
    main(read(["local=none", str(probed / "run"), f"reports_dir={probed}"]))
    page = (probed / "run" / "report.html").read_text()
    for shown in (
        "sensitivity in cue probes (part of pairs; proven for",
        "sensitivity color",
        "heads for target",
    ):
        assert shown in page
    assert page.count("of the other curves none has been shown") == 2


@pytest.mark.parametrize("then", [True, False], ids=["removed", "added"])
def test_a_run_resumes_whether_the_key_is_added_or_removed(
    then: bool, probed: Path, small_data: Path, tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    key = f"train.probes={folder}"
    first, second = ((key,), ()) if then else ((), (key,))
    (tmp_path / "run").mkdir()
    if then:
        shutil.copytree(probed / "run" / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    else:
        finetune(config(tmp_path, small_data, tiny_base, *PROBED, *first, "train.max_steps=3"))
        shutil.rmtree(tmp_path / "run" / "checkpoint-3")
        shutil.rmtree(tmp_path / "done")
    finetune(config(tmp_path, small_data, tiny_base, *PROBED, *second))
    assert lines(tmp_path, "loss")[-1] == lines(probed, "loss")[-1]
    assert lines(tmp_path, "probes/")[-1:] == ([] if then else lines(probed, "probes/")[-1:])


def test_features_that_are_kept_give_the_same_chunks(tiny_base: Path, probed: Path, folder: Path) -> None:
    policy = GR00TPolicy.from_pretrained(probed / "done", torch_dtype=torch.float32).eval()
    predictor = ProbePredictor(ProbeSet.read(folder), policy.processor, policy.tag, 42, 5)
    live = [predictor.chunks(policy.model, number) for number in range(4)]
    predictor.keep_features(policy.model)
    policy.model.backbone.to("meta")
    kept = [predictor.chunks(policy.model, number) for number in range(4)]
    assert np.allclose(np.concatenate(kept), np.concatenate(live), rtol=0, atol=1e-5)
    assert len({chunk.tobytes() for batch in live for chunk in batch}) > 10  # images and sentences count


def test_a_run_on_cached_features_measures_too(small_data: Path, tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    cached = ("train.features=cached", f"cache_dir={tmp_path}/cache", "augment.views=1", "train.max_steps=1")
    finetune(config(tmp_path, small_data, tiny_base, *PROBED, *cached, f"train.probes={folder}"))
    assert len(lines(tmp_path, "probes/")) == 1


# -- refusals ----------------------------------------------------------------------------------------------------------


def no_folder(place: Path) -> None:
    shutil.rmtree(place)


def no_set(place: Path) -> None:
    (place / "probes.json").unlink()


def later_format(place: Path) -> None:
    (place / "probes.json").write_text('{"format": 2}')


def other_split(place: Path) -> None:
    (place / "probes.json").write_text((place / "probes.json").read_text().replace("color_object", "size_object"))


def cut_short(place: Path) -> None:
    (place / ARRAYS).write_bytes((place / ARRAYS).read_bytes()[:-100])


def edited(place: Path) -> None:
    (place / "probes.json").write_text((place / "probes.json").read_text().replace('"target": 0', '"target": 1'))


def other_size(place: Path) -> None:
    shutil.rmtree(place)
    joined("color_object", 48, 1).write(place, {})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_folder, "does not exist. Make one: python -m simulation.probes"),
        (no_set, "is no set of cue probes"),
        (later_format, "format 2; this version reads 1"),
        (other_split, "are probes of size_object"),
        (cut_short, "probes.safetensors is damaged"),
        (edited, "probes.json is damaged"),
        (other_size, "48 pixels high, the dataset's 32"),
    ],
)
def test_what_is_no_fitting_set_is_refused_in_one_line_before_the_first_step(
    damage: Callable[[Path], None], said: str, small_data: Path, tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(folder, tmp_path / "probes")
    damage(place)
    with pytest.raises(ToolkitError, match=said) as refused:
        finetune(config(tmp_path, small_data, tiny_base, *PROBED, f"train.probes={place}"))
    assert "\n" not in str(refused.value) and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_probes_need_evaluations_and_a_panda(small_data: Path, tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="needs evaluations during training"):
        config(tmp_path, small_data, tiny_base, f"train.probes={folder}")
    probes = ProbeSet.read(folder)
    video = dataclasses.replace(MODALITY_CONFIG["video"], modality_keys=["image", "side"])
    with pytest.raises(ToolkitError, match=r"the policy's video is image, side at the frames \[0\]"):
        probes.check_robot({**MODALITY_CONFIG, "video": video})


# -- agreement with closed loop ----------------------------------------------------------------------------------------


def test_spearman_is_that_of_known_ranks_and_closed_loop_is_read_by_the_probes_names() -> None:
    r, low, high = spearman(np.array([1.0, 2, 2, 4, 5]), np.array([10.0, 20, 30, 40, 50]))
    assert r == pytest.approx(0.9747, abs=1e-4) and low < 0.7 < r < high
    assert np.isnan(spearman(np.zeros(5), np.arange(5.0))).all()
    said = []
    for good in range(10):
        played = [outcome("conflict", i, HELD if i < good else WRONG) for i in range(10)]
        evaluation = Evaluation({"split": "color_object"}, tuple(played))
        said.append(({"probes/heads_for_target_not_lure": good / 20}, closed_loop(evaluation)))
    (row,) = agreement(said)
    assert (row["probe"], row["n"], row["verdict"]) == ("probes/heads_for_target_not_lure", 10, "proven")
    assert row["r"] == pytest.approx(1) and next(agreement(said[:9]))["verdict"] == "fewer than 10"
    assert [row["verdict"] for row in agreement([(said[-1 - i][0], said[i][1]) for i in range(10)])] == ["unproven"]


# -- rendered ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographer(renderer: None) -> Any:
    from simulation.probes import Photographer

    return Photographer("instruction/color_object", image_size=64)


@needs_simulator
def test_images_differ_only_where_the_objects_are_and_the_arm_is_the_same(photographer: Any) -> None:
    from mani_skill.utils.structs.pose import Pose

    from data_prep.maniskill import CAMERAS

    def regions(episode: Any) -> dict[str, np.ndarray]:
        """Where objects and their shadows are: what changes when they are taken away."""
        there = photographer.show(episode).images
        for body in photographer.task.objects:
            body.set_pose(Pose.create_from_pq([[0.0, 0.0, -50.0]]))
        empty = photographer.task.look()
        return {key: (there[key] != empty[sensor]).any(-1) for key, sensor in CAMERAS.items()}

    for first, *others in paired_scenes("instruction/color_object", FIRST_SEED, None, SENTENCES):
        before, own = photographer.show(first.episode), regions(first.episode)
        for scene in others:
            after, theirs = photographer.show(scene.episode), regions(scene.episode)
            assert np.array_equal(before.state, after.state)
            for key in CAMERAS:
                differs = (before.images[key] != after.images[key]).any(-1)
                assert not (differs & ~(own[key] | theirs[key])).any()
                assert differs.any() == (scene.change != "instruction")
            assert differs.mean() < 0.3


@needs_simulator
def test_the_experts_own_ways_are_told_apart_in_whatever_style(photographer: Any) -> None:
    from simulation.scenes.expert import drawn_style

    found, meant = [], []
    for number, (first, *_) in enumerate(scenes("instruction/color_object", 6)):
        goal = number % 2
        frame = photographer.show(first.episode)
        ways = photographer.expert.plan(goal, drawn_style(random.Random(number)))[None, :16, :7]
        one = ProbeSet("", [], {}, frame.state[None], frame.toward[None])
        found.append(int(one.headings(ways)[0]))
        meant.append(goal)
    assert found == meant


@needs_simulator
@pytest.mark.long
@pytest.mark.parametrize("split", ["color_object", "instruction/verb_color"])
def test_the_command_renders_a_set_in_which_the_expert_follows_what_is_asked(
    split: str, renderer: None, tmp_path: Path
) -> None:
    arguments = ["local=none", f"split={split}", "pairs=2", "image_size=32", f"out={tmp_path}/probes"]
    for workers in (1, 2):
        command = [sys.executable, "-m", "simulation.probes", *arguments, f"workers={workers}"]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (tmp_path / "probes").rename(tmp_path / str(workers))
    probes, again = (ProbeSet.read(tmp_path / name) for name in "12")
    assert all(np.array_equal(probes.images[name], again.images[name]) for name in probes.images)
    assert all(probe.scene["seed"] >= FIRST_SEED for probe in probes.probes)

    def matching(scene: dict[str, Any], probe: Probe) -> int:
        if split == "color_object":
            cue = "color" if probe.instruction == SENTENCES[0] else "object"
            return first_with(scene, cue, scene["plate"][cue])
        return first_with(scene, "color", probe.instruction.split()[2])

    told = {"color", "plate", "instruction"}
    found = sensitivities(follow(probes, matching))
    assert found == {change: float(change in told) for change in found} and len(found) == 6
