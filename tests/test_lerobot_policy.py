"""LeRobot's policies: what they answer is what LeRobot itself computes, in this process and served.

LeRobot pins other versions than this toolkit. In an environment of its own, with pytest, pyzmq and msgpack beside it:
python -m pytest --noconftest tests/test_lerobot_policy.py"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_policies import SIZE, make_policy
from serving import served

from gr00t.errors import ToolkitError
from gr00t.model.checkpoint_folder import PIPELINES
from gr00t.serve import ServeConfig, _load
from gr00t.server.client import PolicyClient
from gr00t.server.lerobot_policy import LeRobotPolicy, lerobot_kind

needs_lerobot = pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is None,
    reason="lerobot is not installed: it pins other versions and needs an environment of its own",
)
KINDS = ("act", "diffusion")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make_policy(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def observation(batch: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, batch, 1, SIZE, SIZE, 3), dtype=np.uint8)
    state = rng.normal(size=(batch, 1, 8)).astype(np.float32)
    texts = [f"lift the object {number}" for number in range(batch)]
    return {"video.image": images[0], "video.wrist_image": images[1], "state.state": state, "task": texts}


def of_one(given: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: value[index : index + 1] for name, value in given.items()}


def by_lerobot(folder: Path, given: dict[str, Any], seed: int, zero: bool = False) -> np.ndarray:
    """The chunk (H, 8) of one robot as LeRobot's own evaluation computes it, step by step."""
    import torch
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    policy = get_policy_class(str(lerobot_kind(folder))).from_pretrained(str(folder))
    before, after = make_pre_post_processors(policy.config, str(folder))
    batch = {"observation.state": torch.from_numpy(given["state.state"][0, 0]), "task": given["task"][0]}
    for view in ("image", "wrist_image"):
        image = torch.from_numpy(given[f"video.{view}"][0, 0]).permute(2, 0, 1).float() / 255
        batch[f"observation.images.{view}"] = image
    torch.manual_seed(seed)
    policy.reset()
    steps = []
    with torch.inference_mode():
        for _ in range(policy.config.n_action_steps):
            shown = before(dict(batch))
            if zero:
                shown["observation.state"] = torch.zeros_like(shown["observation.state"])
            steps.append(after(policy.select_action(shown))[0].numpy())
    return np.stack(steps)


@needs_lerobot
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_those_of_lerobot(folders: dict[str, Path], kind: str) -> None:
    policy, given = LeRobotPolicy(folders[kind], "cpu"), observation()
    for zero in (False, True):
        chunk = policy.get_action(of_one(given, 1), seed=7, drop_state=zero)["action.action"]
        expected = by_lerobot(folders[kind], of_one(given, 1), 7, zero)
        assert chunk.shape == (1, *expected.shape) and chunk.dtype == np.float32
        assert np.abs(chunk[0] - expected).max() < 1e-6
    assert policy.image_size == SIZE and len(policy.modality_configs["action"].delta_indices) == len(expected)


@needs_lerobot
def test_a_batch_is_that_of_each_alone_and_the_state_counts(folders: dict[str, Path]) -> None:
    policy, given = LeRobotPolicy(folders["act"], "cpu"), observation()
    together = policy.get_action(given)["action.action"]
    for index in range(3):
        assert np.abs(policy.get_action(of_one(given, index))["action.action"] - together[index]).max() < 1e-5
    assert np.abs(policy.get_action(given, drop_state=True)["action.action"] - together).max() > 1e-3


@needs_lerobot
@pytest.mark.parametrize("kind", KINDS)
def test_served_it_acts_the_same_bit_for_bit(folders: dict[str, Path], kind: str) -> None:
    policy, given = _load(ServeConfig(str(folders[kind]), device="cpu")), observation()
    with served(policy) as server, PolicyClient("127.0.0.1", server.port) as client:
        assert client.heeds == ["seed", "zero_state"] and client.get_modality_config() == policy.modality_configs
        for options in ({"seed": [1, 2, 3]}, {"seed": [4, 5, 6], "drop_state": True}):
            local, remote = (of.get_action(given, **options)["action.action"] for of in (policy, client))
            assert local.tobytes() == remote.tobytes()
        with pytest.raises(ToolkitError, match=r'lacks "state\.state"'):
            client.get_action({name: value for name, value in given.items() if name != "state.state"})
        with pytest.raises(ToolkitError, match=r"state\.state: expected the shape \(3, 1, 8\)"):
            client.get_action({**given, "state.state": given["state.state"][..., :7]})
    assert policy.get_action(policy.example_observation("x"))["action.action"].shape[2] == 8


@needs_lerobot
def test_what_wants_more_than_the_present_frame_or_is_broken_is_refused(folders: dict[str, Path]) -> None:
    config, weights = folders["act"] / "config.json", folders["act"] / "model.safetensors"
    before, bytes_before = config.read_text(), weights.read_bytes()
    for change, said in (
        ({"n_obs_steps": 2}, "n_obs_steps|LeRobot cannot read"),
        ({"n_action_steps": 1, "temporal_ensemble_coeff": 0.01}, "temporal_ensemble_coeff"),
        ({"dim_model": 64}, "LeRobot cannot read this policy"),
        ({"type": "no_such_kind"}, "LeRobot cannot read this policy"),
    ):
        config.write_text(json.dumps({**json.loads(before), **change}))
        with pytest.raises(ToolkitError, match=said):
            LeRobotPolicy(folders["act"], "cpu")
    config.write_text(before)
    weights.write_bytes(bytes_before[: len(bytes_before) // 2])
    with pytest.raises(ToolkitError, match="LeRobot cannot read this policy"):
        LeRobotPolicy(folders["act"], "cpu")
    weights.write_bytes(bytes_before)


def test_what_is_no_policy_of_lerobots_is_refused(tmp_path: Path) -> None:
    for text in (None, "{}", "[]", "{", '{"type": "groot"}', '{"type": 3}', '{"model_type": "Gr00tN1d7"}'):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        assert lerobot_kind(tmp_path) is None
        with pytest.raises(ToolkitError, match=r"no policy of LeRobot's.*pretrained_model"):
            LeRobotPolicy(tmp_path)


@pytest.mark.parametrize(
    ("there", "said"), [(None, "an environment of its own"), (True, r"lacks policy_preprocessor\.json")]
)
def test_without_lerobot_or_its_pipelines_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool | None, said: str
) -> None:
    (tmp_path / "config.json").write_text('{"type": "act"}')
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there if name == "lerobot" else found(name))
    with pytest.raises(ToolkitError, match=said):
        LeRobotPolicy(tmp_path)


def test_keys_of_our_checkpoints_are_refused_for_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type": "act"}')
    for key, value in (("denoising_steps", 8), ("compile", True), ("precision", "bf16")):
        with pytest.raises(ToolkitError, match=f"{key} acts on nothing with .*LeRobot's act"):
            _load(ServeConfig(str(tmp_path), **{key: value}))


# -- without LeRobot ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        {"class": "subprocess.Popen", "config": {"args": ["touch", "it-ran"]}},
        {"class": "lerobot.utils.utils.Popen"},
        {"class": ["subprocess.Popen"]},
        {},
        "subprocess.Popen",
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_pipeline_that_names_any_other_code_is_refused_before_lerobot_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, step: Any
) -> None:
    read: list[str] = []
    monkeypatch.setattr(LeRobotPolicy, "_load", lambda self, device: read.append(device))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "lerobot" or found(name))
    (tmp_path / "config.json").write_text('{"type": "act"}')
    own = [{"registry_name": "normalizer_processor"}, {"class": "lerobot.processor.rename_processor.Rename"}]
    for name in PIPELINES:
        (tmp_path / name).write_text(json.dumps({"steps": own}))
    LeRobotPolicy(tmp_path, "cpu")
    (tmp_path / PIPELINES[place]).write_text(json.dumps({"steps": [*own, step]}))
    with pytest.raises(ToolkitError, match=f"{PIPELINES[place]}: a step is .*only LeRobot's own are loaded"):
        LeRobotPolicy(tmp_path, "cpu")
    assert read == ["cpu"]


class Scripted:
    """In the place of LeRobot's policy: the state, as every step of a chunk."""

    factor = 1.0

    def reset(self) -> None:
        pass

    def select_action(self, batch: dict[str, Any]) -> Any:
        return batch["observation.state"] * self.factor


def scripted(kind: str = "act") -> LeRobotPolicy:
    """A policy of two cameras as it is once LeRobot has read it."""
    policy = object.__new__(LeRobotPolicy)
    views = {view: (f"observation.images.{view}", (3, SIZE, SIZE)) for view in ("image", "wrist_image")}
    whole: dict[str, Any] = {"_before": dict, "_after": lambda action: action, "_policy": Scripted()}
    whole |= {"folder": Path("outputs/act"), "kind": kind, "device": "cpu", "_views": views, "_sized": kind == "act"}
    vars(policy).update(whole, _state_dim=8, _steps=4)
    return policy


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"state.state": np.full((3, 1, 8), np.nan, np.float32)}, "state.state: it holds values that are not"),
    "overflow": ({"state.state": np.full((3, 1, 8), 1e300)}, "state.state: it holds values that are not finite"),
    "text state": ({"state.state": np.full((3, 1, 8), "1")}, "state.state: expected the shape"),
    "channels first": ({"video.image": np.zeros((3, 1, 3, SIZE, SIZE), np.uint8)}, "(3, 1, 64, 64, 3) uint8, found"),
    "another size": ({"video.image": np.zeros((3, 1, 32, 32, 3), np.uint8)}, "(3, 1, 64, 64, 3) uint8, found"),
    "two texts a robot": ({"task": [["lift it", "push it"]] * 3}, "task: expected one instruction"),
    "no text": ({"task": [None] * 3}, "task: expected one instruction"),
    "numbers for text": ({"task": np.zeros(3, np.uint8)}, "task: expected one instruction"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_observation_is_refused_before_lerobot_sees_it(name: str) -> None:
    change, said = WRONG[name]
    with pytest.raises(ToolkitError) as refusal:
        scripted().get_action(observation() | change)
    assert said in str(refusal.value)


def test_policies_that_scale_their_images_take_other_sizes_and_one_plain_text_is_read() -> None:
    images = {f"video.{view}": np.zeros((1, 1, 32, 48, 3), np.uint8) for view in ("image", "wrist_image")}
    given = {**of_one(observation(), 0), **images, "task": "lift it"}
    assert scripted("smolvla").get_action(given)["action.action"].shape == (1, 4, 8)


@pytest.mark.parametrize(
    ("seed", "said"),
    [([], "0 seeds for 3"), ([1, 2], "2 seeds for 3"), (2.5, "whole"), ("7", "whole"), (True, "whole"), (2**64, "64")],
)
def test_a_seed_that_is_none_is_refused(seed: Any, said: str) -> None:
    with pytest.raises(ToolkitError, match=f"seed.*{said}"):
        scripted().get_action(observation(), seed=seed)


def test_actions_that_are_not_finite_never_reach_a_robot() -> None:
    policy = scripted()
    assert policy.get_action(observation(), seed=[1, 2, 3])["action.action"].shape == (3, 4, 8)
    policy._policy.factor = np.inf
    with pytest.raises(ToolkitError, match=r"outputs/act are not finite: do not run them"):
        policy.get_action(observation())
