"""Open-loop evaluation: the errors are what a hand would compute, and the report says all of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from finished import finished_checkpoint
from golden_files import golden_path
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from conflict_panda_config import MODALITY_CONFIG
from finetune.open_loop import OpenLoopConfig
from finetune.open_loop import evaluation as evaluate
from finetune.open_loop.evaluation import evaluate_open_loop
from finetune.open_loop.figures import PREDICTED, _draw_dim
from finetune.open_loop.predictions import (
    POLICY,
    PREDICTORS,
    Baselines,
    Errors,
    Forecast,
    Predictor,
    Section,
    findings,
    measure,
)
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.sampler import Stream, generator
from gr00t.data.schema import ActionConfig, ActionRepresentation, ModalityConfig
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1 import GR00TPolicy
from toolkit.shared_keys import SplitConfig

HORIZON = 16
SIGNED = frozenset({"gripper"})


@pytest.fixture(scope="module")
def checkpoint(small_data, tmp_path_factory):
    return finished_checkpoint(golden_path("tiny_h40"), small_data, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def reader(small_data):
    return StepReader(small_data / "color_object/train", MODALITY_CONFIG)


@pytest.fixture(scope="module")
def baselines(reader):
    return Baselines(reader, reader.layout.train_episodes)


def settings(checkpoint, data_dir, report_dir, **values):
    split = SplitConfig(name="color_object", instruction="pick up the color-matching object")
    folders = {"checkpoint": str(checkpoint), "data_dir": str(data_dir), "report_dir": str(report_dir)}
    return OpenLoopConfig(split=split, **folders, **{"device": "cpu", "precision": "fp32", **values})


@pytest.fixture(scope="module")
def report(checkpoint, small_data, tmp_path_factory):
    """The report on the held-out episodes, in batches of 16."""
    return evaluate_open_loop(settings(checkpoint, small_data, tmp_path_factory.mktemp("reports") / "val"))


def steps_of(reader, episode):
    """(start, step ahead) of everything that was recorded, one by one."""
    length = reader.layout.episode(episode).length
    return [(t, h) for t in range(length) for h in range(HORIZON) if t + h < length]


def recorded_chunks(reader, episode):
    steps = [reader.step(episode, frame) for frame in range(reader.layout.episode(episode).length)]
    return {group: np.stack([s.actions[group] for s in steps]) for group in ("arm", "gripper")}


# the errors


def test_a_perfect_predictor_has_no_error(reader, baselines):
    episodes = reader.layout.val_episodes
    perfect = [baselines.forecast(reader, e, recorded_chunks(reader, e)) for e in episodes]
    for section in ("all", "first", "last"):
        for errors in measure(perfect, section).errors.values():
            assert errors["policy"].mae == errors["policy"].rmse == 0
            assert errors["hold_still"].mae > 0 and errors["mean_chunk"].mae > 0
    assert findings({"all": measure(perfect, "all")}) == []


def test_a_policy_no_better_than_a_baseline_is_pointed_out(reader, baselines):
    episode = reader.layout.val_episodes[0]
    chunks = recorded_chunks(reader, episode)
    forecast = baselines.forecast(reader, episode, {g: -10 * np.sign(v) for g, v in chunks.items()})
    found = findings({"last": measure([forecast], "last")})
    assert len(found) == 2
    assert "arm, last 16 frames" in found[0] and "100.0% of the commands have the wrong sign" in found[1]


def test_hold_still_is_the_state_repeated_and_the_last_command_repeated(reader, baselines):
    episode = reader.layout.val_episodes[0]
    actions, states = reader.trajectory("action", episode), reader.trajectory("state", episode)
    arm, gripper, wrong = [], [], []
    for t, h in steps_of(reader, episode):
        command = actions["gripper"][max(t - 1, 0)]
        arm.append(np.abs(states["arm"][t].astype(float) - actions["arm"][t + h]))
        gripper.append(np.abs(command.astype(float) - actions["gripper"][t + h]))
        wrong.append((command >= 0) != (actions["gripper"][t + h] >= 0))
    measured = measure([baselines.forecast(reader, episode, recorded_chunks(reader, episode))], "all")
    hold = {group: errors["hold_still"] for group, errors in measured.errors.items()}
    assert measured.steps == len(arm) and measured.starts == len(actions["arm"])
    assert hold["arm"].mae == pytest.approx(np.mean(arm))
    assert hold["arm"].mae_per_dim == pytest.approx(np.mean(arm, axis=0))
    assert hold["arm"].rmse_per_dim == pytest.approx(np.sqrt(np.mean(np.square(arm), axis=0)))
    assert hold["gripper"].mae == pytest.approx(np.mean(gripper))
    assert hold["gripper"].sign_error_rate == pytest.approx(np.mean(wrong))
    assert hold["arm"].sign_error_rate is None


def test_the_mean_chunk_is_the_mean_over_training_episodes_only(reader, baselines):
    relative = reader.layout.relative_statistics()["arm"]["mean"]  # written by the conversion, from training episodes
    assert np.allclose(baselines.mean_chunk["arm"], relative, atol=1e-6)
    commands = [reader.trajectory("action", e)["gripper"] for e in reader.layout.train_episodes]
    for h in (0, 7, 15):
        expected = np.concatenate([c[h:] for c in commands]).mean()
        assert baselines.mean_chunk["gripper"][h, 0] == pytest.approx(expected, abs=1e-6)


def test_sections_hold_the_starts_near_the_ends_of_episodes(reader, baselines):
    episode = reader.layout.val_episodes[0]
    length = reader.layout.episode(episode).length
    forecast = baselines.forecast(reader, episode, recorded_chunks(reader, episode))
    assert np.flatnonzero(forecast.starts("first")).tolist() == list(range(16))
    assert np.flatnonzero(forecast.starts("last")).tolist() == list(range(length - 16, length))
    assert measure([forecast], "last").steps == sum(range(1, 17))


def section_of(policy, hold, mean, group="arm", wrong=None):
    errors = {
        n: Errors(v, v, [v], [v], wrong) for n, v in (("policy", policy), ("hold_still", hold), ("mean_chunk", mean))
    }
    return Section(1, 1, {group: errors})


def test_a_policy_is_beside_the_better_baseline_and_a_late_gripper_beyond_its_limit():
    assert findings({"all": section_of(0.1, 0.3, 0.2)}) == []
    (found,) = findings({"all": section_of(0.2, 0.3, 0.2)})
    assert "0.2000 of the mean training chunk baseline" in found
    (found,) = findings({"all": section_of(0.3, 0.25, 0.4)})
    assert "0.2500 of the hold still baseline" in found
    for section, wrong, count in (("last", 0.05, 0), ("last", 0.06, 1), ("all", 0.5, 0), ("first", 0.5, 0)):
        assert len(findings({section: section_of(0.9, 0.1, 0.1, "gripper", wrong)})) == count


@pytest.mark.parametrize(
    ("moved", "signed"),
    [
        (lambda command: command, True),
        (lambda command: 0.04 * command, True),
        (lambda command: (command + 1) / 2, False),  # from 0, closed, to 1
        (lambda command: np.linspace(-1, 1, len(command))[:, None], False),  # a position that passes 0
        (lambda command: np.abs(command), False),
    ],
)
def test_a_group_is_a_signed_command_by_its_values_and_not_by_its_name(reader, moved, signed):
    class Moved:
        """The dataset with other actions of the gripper."""

        configs = reader.configs

        def trajectory(self, kind, episode):
            found = reader.trajectory(kind, episode)
            return {**found, "gripper": moved(found["gripper"])} if kind == "action" else found

    baselines = Baselines(Moved(), reader.layout.train_episodes)
    assert baselines.signed == ({"gripper"} if signed else set())
    episode = reader.layout.train_episodes[0]
    forecast = baselines.forecast(Moved(), episode, baselines.forecast(Moved(), episode, {}).recorded)
    errors = measure([forecast], "all").errors
    assert (errors["gripper"]["policy"].sign_error_rate == 0) is signed and errors["arm"][
        "policy"
    ].sign_error_rate is None


def test_errors_pool_steps_and_a_command_of_zero_counts_as_open():
    """Of two episodes, of one and of two existing steps: the mean of all three, not of the episodes' means."""
    forecasts = []
    for episode, (errors, exists) in enumerate((([3.0, 50.0], [True, False]), ([0.0, -6.0], [True, True]))):
        recorded = np.float32([[[0.0], [0.0]]])
        predicted = {"gripper": recorded + np.float32(errors)[None, :, None]}
        said = dict.fromkeys(("policy", "hold_still", "mean_chunk"), predicted)
        forecasts.append(Forecast(episode, {"gripper": recorded}, said, np.array([exists]), SIGNED))
    found = measure(forecasts, "all")
    errors = found.errors["gripper"]["policy"]
    assert (found.starts, found.steps, errors.mae) == (2, 3, 3.0)
    assert errors.rmse == pytest.approx(np.sqrt(15)) and errors.sign_error_rate == pytest.approx(1 / 3)


# predicting


def flat_errors(report):
    return [
        (section, group, predictor, errors.mae, errors.rmse)
        for section, measured in report.overall.items()
        for group, of_group in measured.errors.items()
        for predictor, errors in of_group.items()
    ]


def test_the_numbers_do_not_depend_on_the_batch_size(report, checkpoint, small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "write_report", lambda *_: None)
    again = evaluate_open_loop(settings(checkpoint, small_data, tmp_path, batch_size=64))
    for one, other in zip(flat_errors(report), flat_errors(again), strict=True):
        assert one[:3] == other[:3] and one[3:] == pytest.approx(other[3:], abs=1e-5)


def test_a_prediction_is_what_the_policy_says_from_that_frame(checkpoint, reader):
    policy = GR00TPolicy.from_pretrained(checkpoint, torch_dtype="float32")
    predictor = Predictor(policy.model, policy.processor, policy.tag, reader, [1], seed=42, batch_size=8)
    chunks = predictor.chunks()[1]
    for frame in (0, 7):
        noise = generator(42, Stream.NOISE, 1, frame).standard_normal(policy.noise_shape, dtype=np.float32)
        alone = policy.predict([reader.step(1, frame)], noise=torch.from_numpy(noise[None]))
        for group, values in alone.items():
            assert np.allclose(chunks[group][frame], values[0], atol=1e-5)


def test_a_prediction_that_is_asked_to_stop_gives_nothing(checkpoint, reader):
    policy = GR00TPolicy.from_pretrained(checkpoint, torch_dtype="float32")
    predictor, asked = Predictor(policy.model, policy.processor, policy.tag, reader, [1], 42, 8), []
    assert predictor.chunks(lambda done: asked.append(done) or done < 8) is None
    assert asked == [0, 8]


def test_actions_that_are_not_finite_are_refused(checkpoint, reader):
    policy = GR00TPolicy.from_pretrained(checkpoint, torch_dtype="float32")
    with torch.no_grad():
        policy.model.action_head.action_decoder.layer2.b.fill_(float("nan"))
    with pytest.raises(ToolkitError, match=r'"arm" actions are not finite \(computed in torch.float32\)'):
        Predictor(policy.model, policy.processor, policy.tag, reader, [1], 42, 8).chunks()


# the report


def test_the_report_holds_every_number_and_where_it_comes_from(report, reader, checkpoint):
    data = json.loads((report.folder / "open_loop.json").read_text())
    lengths = [reader.layout.episode(e).length for e in reader.layout.val_episodes]
    assert [e["episode"] for e in data["by_episode"]] == data["episodes"] == reader.layout.val_episodes
    assert [e["sections"]["all"]["starts"] for e in data["by_episode"]] == lengths
    assert data["overall"]["all"]["starts"] == sum(lengths)
    assert set(data["overall"]["all"]["errors"]["arm"]) == {"policy", "hold_still", "mean_chunk"}
    assert len(data["overall"]["last"]["errors"]["arm"]["policy"]["mae_per_dim"]) == 7
    assert data["overall"]["last"]["errors"]["gripper"]["policy"]["sign_error_rate"] >= 0
    assert data["checkpoint"] == str(checkpoint) and data["seed"] == 42 and data["denoising_steps"] == 4
    assert data["dataset_fingerprint"] == reader.layout.fingerprint and "torch" in data["versions"]


def test_the_whole_weighs_every_step_the_same(report):
    for group, errors in report.overall["all"].errors.items():
        sections = [sections["all"] for sections in report.episodes.values()]
        pooled = np.average([s.errors[group]["policy"].mae for s in sections], weights=[s.steps for s in sections])
        assert errors["policy"].mae == pytest.approx(pooled)


def test_the_text_shows_the_errors_and_the_figures_are_images(report):
    text = (report.folder / "open_loop.md").read_text()
    assert f"{report.overall['last'].errors['arm']['policy'].mae:.4f}" in text
    figures = sorted((report.folder / "open_loop_figures").iterdir())
    assert len(figures) == len(report.episodes) + 1
    for figure in figures:
        assert f"open_loop_figures/{figure.name}" in text
        image = cv2.imread(str(figure))
        assert min(image.shape[:2]) > 300 and image.std() > 5


@pytest.mark.parametrize("ahead", [range(16), range(0, 32, 4), range(8)])
def test_steps_of_a_chunk_are_drawn_at_the_frames_that_they_are_for(ahead):
    due = np.arange(41)[:, None, None] + np.array(ahead)[:, None]  # each action is the number of its frame
    forecast = Forecast(0, {"arm": due}, {POLICY: {"arm": due}}, due[..., 0] < 41, frozenset())
    panel = Figure().subplots()
    _draw_dim(panel, forecast, "arm", 0, 1.0, None, np.array(ahead))
    drawn = [line.get_data() for line in panel.lines if same_color(line.get_color(), PREDICTED)]
    assert len(drawn) == 6 and all(np.array_equal(*line) for line in drawn)
    assert max(len(frames) for frames, _ in drawn) == sum(step < 16 for step in ahead)


def test_a_new_report_replaces_the_old_one_and_nothing_else(report, checkpoint, small_data, tmp_path):
    shutil.copytree(report.folder, tmp_path / "report")
    (tmp_path / "report/rollout.mp4").write_text("kept")
    config = settings(checkpoint, small_data, tmp_path / "report", part="conflict", max_episodes=1)
    new = evaluate_open_loop(config)
    names = sorted(p.name for p in (tmp_path / "report/open_loop_figures").iterdir())
    assert names == ["episode_000000.png", "errors.png"] and (tmp_path / "report/rollout.mp4").exists()
    assert json.loads((tmp_path / "report/open_loop.json").read_text())["part"] == "conflict"
    assert sorted(p.name for p in tmp_path.glob("report/*")) == [
        "open_loop.json",
        "open_loop.md",
        "open_loop_figures",
        "rollout.mp4",
    ]
    assert new.findings == findings(new.overall)


@pytest.mark.parametrize("writer", ["draw_errors", "write_text", "write_json"])
def test_a_report_that_fails_leaves_the_old_one(writer, report, reader, tmp_path, monkeypatch):
    shutil.copytree(report.folder, tmp_path / "report")
    before = {p: p.read_bytes() for p in (tmp_path / "report").rglob("*") if p.is_file()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(evaluate, writer, fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate.write_report(replace(report, folder=tmp_path / "report"), [], reader)
    assert {p: p.read_bytes() for p in (tmp_path / "report").rglob("*") if p.is_file()} == before


# what is refused, before any weight is read


@pytest.fixture
def copied(checkpoint, small_data, tmp_path, monkeypatch):
    """Folders (checkpoint, data) to spoil; reading weights fails the test."""
    shutil.copytree(small_data, tmp_path / "data")
    shutil.copytree(checkpoint, tmp_path / "checkpoint")

    def read_too_early(*_args, **_kwargs):
        raise AssertionError("weights were read before the refusal")

    monkeypatch.setattr(GR00TPolicy, "from_pretrained", read_too_early)
    return tmp_path


def edit(path: Path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def drop_step(statistics):
    for name, rows in statistics["arm"].items():
        statistics["arm"][name] = rows[:-1]


def rename_view(modality):
    modality["video"]["wrist"] = modality["video"].pop("wrist_image")


META = "data/color_object/train/meta"
REFUSED = {
    "no checkpoint": (lambda d: shutil.rmtree(d / "checkpoint"), "val", ["checkpoint=", "launch_finetune_local.py"]),
    "no weights": (
        lambda d: [p.unlink() for p in (d / "checkpoint").glob("*.safetensors*")],
        "val",
        ["there are no weights"],
    ),
    "no dataset": (
        lambda d: shutil.rmtree(d / "data/color_object/train"),
        "val",
        ["prepare_conflict_data.py", "train"],
    ),
    "no conflict": (
        lambda d: shutil.rmtree(d / "data/color_object/conflict"),
        "conflict",
        ["color_object/conflict", "prepare_conflict_data.py split=color_object"],
    ),
    "nothing held out": (
        lambda d: edit(d / META / "split.json", lambda s: s.update(val_episodes=[])),
        "val",
        ["no val episodes"],
    ),
    "other frame rate": (
        lambda d: edit(d / META / "info.json", lambda i: i.update(fps=10)),
        "val",
        ["10 frames", "20"],
    ),
    "other horizon": (lambda d: edit(d / META / "relative_stats.json", drop_step), "val", ["(15, 7)", "(16, 7)"]),
    "other view": (lambda d: edit(d / META / "modality.json", rename_view), "val", ['"wrist_image"', '"wrist"']),
    "other arm": (
        lambda d: edit(d / META / "modality.json", lambda m: m["state"]["arm"].update(end=6)),
        "val",
        ['state "arm" has 6 dimensions', "trained with 7"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_early_and_leaves_nothing(copied, case):
    spoil, part, said = REFUSED[case]
    spoil(copied)
    with pytest.raises(ToolkitError) as refusal:
        evaluate_open_loop(settings(copied / "checkpoint", copied / "data", copied / "report", part=part))
    for words in said:
        assert words in str(refusal.value)
    assert not (copied / "report").exists()


def test_another_version_of_the_dataset_is_pointed_out(copied):
    path = copied / "checkpoint/experiment_cfg/dataset.json"
    edit(path, lambda d: d.update(fingerprint="0" * 64, train_episodes=list(range(5))))
    config = settings(copied / "checkpoint", copied / "data", copied / "report")
    processor = Gr00tN1d7Processor.from_pretrained(copied / "checkpoint")
    (note,) = evaluate._open_data(config, processor, "new_embodiment").notes
    assert "another version" in note and "2 of these 2 episode numbers were trained on" in note


def test_held_out_episodes_that_were_trained_on_are_pointed_out(copied):
    config = settings(copied / "checkpoint", copied / "data", copied / "report")
    processor = Gr00tN1d7Processor.from_pretrained(copied / "checkpoint")
    assert evaluate._open_data(config, processor, "new_embodiment").notes == []
    split = next(copied.glob("data/*/train/meta/split.json"))
    edit(split, lambda d: d.update(val_episodes=[*range(4)]))
    (note,) = evaluate._open_data(config, processor, "new_embodiment").notes
    assert "2 of these 4 episodes were trained on: val_episodes of" in note


# the baselines, of a robot made up by hand


class Recorded:
    """Two episodes: `tool` is relative to the state `hand`, read one frame back, and `switch` is absolute."""

    def __init__(self):
        tool = ActionConfig(ActionRepresentation.RELATIVE, state_key="hand")
        switch = ActionConfig(ActionRepresentation.ABSOLUTE)
        self.configs = {
            "state": ModalityConfig([-2, -1], ["tool", "hand"]),
            "action": ModalityConfig([0, 2], ["tool", "switch"], action_configs=[tool, switch]),
        }

    def trajectory(self, modality, episode):
        scale = 10.0**episode
        if modality == "state":
            return {"tool": np.full((3, 1), 99.0), "hand": scale * np.array([[1.0], [2.0], [4.0]])}
        return {"tool": scale * np.array([[5.0], [6.0], [8.0]]), "switch": scale * np.array([[1.0], [2.0], [3.0]])}


def test_baselines_hold_the_state_that_a_group_is_relative_to_at_the_frame_it_is_read():
    found = Baselines(Recorded(), [0]).forecast(Recorded(), 1, {})
    assert found.exists.tolist() == [[True, True], [True, False], [True, False]]
    assert found.recorded["tool"][..., 0].tolist() == [[50, 80], [60, 80], [80, 80]]
    hold = found.predicted["hold_still"]
    assert hold["tool"][..., 0].tolist() == [[10, 10], [10, 10], [20, 20]]  # the state one frame before
    assert hold["switch"][..., 0].tolist() == [[10, 10], [10, 10], [20, 20]]  # the command one frame before


def test_the_mean_chunk_weighs_every_step_that_exists_and_starts_from_the_state():
    of_one = Baselines(Recorded(), [0])
    assert of_one.mean_chunk["tool"][:, 0].tolist() == pytest.approx([(4 + 5 + 6) / 3, 7.0])
    assert of_one.mean_chunk["switch"][:, 0].tolist() == pytest.approx([2.0, 3.0])
    of_two = Baselines(Recorded(), [0, 1])
    assert of_two.mean_chunk["tool"][:, 0].tolist() == pytest.approx([11 * 5.0 / 2, 11 * 7.0 / 2])
    mean = of_one.forecast(Recorded(), 1, {}).predicted["mean_chunk"]
    assert mean["tool"][..., 0].tolist() == [[15, 17], [15, 17], [25, 27]]
    assert mean["switch"][..., 0].tolist() == [[2, 3]] * 3


def test_steps_that_no_training_episode_reaches_have_a_mean_of_nothing():
    far = Recorded()
    far.configs["action"] = replace(far.configs["action"], delta_indices=[0, 3])
    found = Baselines(far, [0]).mean_chunk
    assert found["tool"][1, 0] == 0 == found["switch"][1, 0]


def section(policy, hold, mean, wrong=None):
    errors = {
        name: Errors(mae, mae, [mae], [mae], wrong) for name, mae in zip(PREDICTORS, (policy, hold, mean), strict=True)
    }
    return Section(1, 1, {"gripper" if wrong is not None else "arm": errors})


def test_findings_begin_where_a_baseline_is_as_good_and_where_signs_are_wrong_too_often():
    assert findings({"all": section(0.1, 0.2, 0.3)}) == []
    assert len(findings({"all": section(0.2, 0.2, 0.3)})) == 1
    assert "0.2000 of the mean training chunk" in findings({"all": section(0.25, 0.3, 0.2)})[0]
    assert findings({"last": section(0.9, 0.2, 0.3, wrong=0.05)}) == []
    assert len(findings({"last": section(0.9, 0.2, 0.3, wrong=0.06)})) == 1
    assert findings({"first": section(0.9, 0.2, 0.3, wrong=0.06), "all": section(0.1, 0.2, 0.3)}) == []


def test_errors_are_pooled_over_steps_and_dimensions_and_zero_counts_as_open():
    recorded = np.array([[[1.0, -1.0]], [[0.0, 2.0]], [[5.0, 5.0]]])
    policy = np.array([[[2.0, -3.0]], [[-1.0, 2.0]], [[9.0, 9.0]]])
    exists = np.array([[True], [True], [False]])
    chunks = {"gripper": policy}
    forecast = Forecast(0, {"gripper": recorded}, dict.fromkeys(PREDICTORS, chunks), exists, SIGNED)
    found = measure([forecast], "all")
    errors = found.errors["gripper"]["policy"]
    assert (found.starts, found.steps) == (3, 2)
    assert errors.mae == pytest.approx((1 + 2 + 1 + 0) / 4) and errors.mae_per_dim == [1.0, 1.0]
    assert errors.rmse == pytest.approx((6 / 4) ** 0.5) and errors.rmse_per_dim == pytest.approx([1.0, 2**0.5])
    assert errors.sign_error_rate == 0.25  # 0 and 2 have one sign, 0 and -1 two


def test_the_first_and_last_frames_of_a_short_episode_are_all_of_it():
    for length, wanted in ((10, 10), (16, 16), (17, 16)):
        forecast = Forecast(0, {}, {}, np.ones((length, 1), bool), SIGNED)
        assert [int(forecast.starts(name).sum()) for name in ("all", "first", "last")] == [length, wanted, wanted]


def test_every_batch_and_the_end_are_reported(checkpoint, reader):
    policy = GR00TPolicy.from_pretrained(checkpoint, torch_dtype="float32")
    episodes, asked = [1, 4], []
    predictor = Predictor(policy.model, policy.processor, policy.tag, reader, episodes, 42, 16)
    lengths = [reader.layout.episode(e).length for e in episodes]
    assert predictor.starts == [(e, t) for e, length in zip(episodes, lengths, strict=True) for t in range(length)]
    assert set(predictor.chunks(lambda done: not asked.append(done))) == set(episodes)
    assert asked == [0, 16, 32, sum(lengths)] and 32 < sum(lengths) <= 48
