"""Served policies in closed loop: one request for all environments, ablations over the wire, the same outcomes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zmq
from config_calls import compose
from openpi_server import openpi_server
from serving import ask, served
from simulator import needs_simulator
from test_openpi import free_port, shown
from test_policy import TINY
from test_server import as_nvidias, observation, request

from gr00t.data.sampler import Stream, torch_seed
from gr00t.data.schema import ModalityConfig, ModalityConfigs, from_json
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.server import OpenpiClient
from gr00t.server.client import PolicyClient, ServerRefusal
from gr00t.server.messages import decode, pack, unpack
from simulation.closed_loop import Settings
from simulation.closed_loop.policies import Inference, TargetPolicy
from simulation.closed_loop.rollout import run_episodes
from simulation.closed_loop_evaluation import evaluate_closed_loop
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED
from toolkit.shared_keys import read_file

REQUESTS = [shown(0), shown(1, "push the blue sphere to the left"), shown(2, "slide the star")]
CONDITIONS = ("none", "zero_state")


@pytest.fixture(scope="module")
def policy() -> GR00TPolicy:
    return GR00TPolicy.from_pretrained(TINY, torch_dtype=torch.float32)


@pytest.fixture
def batches(policy: GR00TPolicy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the size of every batch that the policy is given."""
    sizes: list[int] = []
    act = policy.get_action

    def get_action(observation: dict, *, seed: Any = None, drop_state: bool = False) -> dict:
        actions = act(observation, seed=seed, drop_state=drop_state)
        sizes.append(len(actions["action.arm"]))
        return actions

    monkeypatch.setattr(policy, "get_action", get_action)
    return sizes


def equal(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


def test_a_served_policy_acts_as_the_checkpoint_bit_for_bit_in_one_request_for_all(policy, batches) -> None:
    with served(policy) as server, PolicyClient("127.0.0.1", server.port) as client:
        local, remote = (Inference(of, 42, 8, CONDITIONS) for of in (policy, client))
        found = {}
        for hidden in (False, True):
            found[hidden] = local.chunks(REQUESTS, drop_state=hidden)
            assert equal(remote.chunks(REQUESTS, drop_state=hidden), found[hidden])
        alone = remote.chunks(REQUESTS[1:2], drop_state=False)
    assert batches == [3, 3, 3, 3, 1] and not equal(found[False], found[True])
    assert np.abs(alone[0] - found[False][1]).max() < 1e-5
    assert not np.array_equal(alone[0], found[False][0])


def test_every_environment_is_asked_with_an_instruction_of_its_own(policy, batches) -> None:
    """Of two environments that differ in nothing else."""
    first = shown(0)
    other = type(first)(**{**vars(first), "instruction": "slide the small green star that stands on the right"})
    with served(policy) as server, PolicyClient("127.0.0.1", server.port) as client:
        chunks = Inference(client, 42, 8, ("none",)).chunks([first, other, first], drop_state=False)
    assert batches == [3] and np.array_equal(chunks[0], chunks[2]) and not np.array_equal(chunks[0], chunks[1])


def test_a_server_is_sent_no_more_robots_than_it_takes(policy, batches) -> None:
    with served(policy, max_batch=2) as server, PolicyClient("127.0.0.1", server.port) as client:
        assert client.max_batch == 2
        chunks = Inference(client, 42, 8, ("none",)).chunks(REQUESTS, drop_state=False)
    assert batches == [2, 1] and len(chunks) == 3


@dataclass
class Plain:
    """A policy that acts for one robot, and cannot hide the state."""

    modality_configs: ModalityConfigs = field(default_factory=lambda: from_json(read_file(None)))

    def get_action(self, observation: dict, *, seed: int | None = None) -> dict:
        return {"action.arm": np.zeros((1, 16, 7), np.float32), "action.gripper": np.zeros((1, 16, 1), np.float32)}


def test_what_a_server_heeds_is_said_by_ping_and_ablations_are_refused_before_the_first_episode(policy) -> None:
    with served(policy) as server:
        told = ask(server, pack({"endpoint": "ping"}))
        assert (told["status"], told["max_batch"], told["options"]) == ("ok", 64, ["seed", "zero_state"])
        wrong = request(observation=as_nvidias(observation()), options={"zero_state": "yes"})
        assert "zero_state is true or false" in ask(server, pack(wrong))["error"]
        with PolicyClient("127.0.0.1", server.port) as client, pytest.raises(ServerRefusal, match="3 seeds for 2"):
            client.get_action(observation(2), seed=[1, 2, 3])
    with served(Plain()) as server, PolicyClient("127.0.0.1", server.port) as client:
        assert client.heeds == ["seed"]
        hidden = ask(server, pack(request(observation=as_nvidias(observation()), options={"zero_state": True})))
        assert "which this policy cannot" in hidden["error"]
        with pytest.raises(ToolkitError, match="cannot hide the state"):
            client.get_action(observation(), drop_state=True)
        with pytest.raises(ToolkitError, match=f"which {client.url} cannot"):
            Inference(client, 42, 8, CONDITIONS)
        with pytest.raises(ToolkitError, match=r"one observation at a time: workers=1"):
            Inference(client, 42, 8, ("none",)).chunks(REQUESTS, drop_state=False)


@contextmanager
def nvidias_server(policy: GR00TPolicy) -> Iterator[tuple[int, list[dict]]]:
    """Answers as NVIDIA's does, which says nothing of batches and ignores options; the port, and what it was asked."""
    context, asked = zmq.Context(), list[dict]()
    listening = context.socket(zmq.REP)
    port = listening.bind_to_random_port("tcp://127.0.0.1")

    def answer() -> None:
        while listening.poll(20_000):
            got = decode(unpack(listening.recv()))
            asked.append(got)
            if got["endpoint"] == "kill":
                return listening.send(pack({"status": "ok"}))
            reply: Any = {"status": "ok", "message": "Server is running"}
            if got["endpoint"] == "get_modality_config":
                reply = policy.modality_configs
            elif got["endpoint"] == "get_action":
                actions = policy.get_action(got["data"]["observation"], seed=0)
                reply = [{name.removeprefix("action."): of for name, of in actions.items()}, {}]
            listening.send(pack(reply))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield port, asked
    finally:
        thread.join(20)
        listening.close()
        context.term()


def test_nvidias_server_is_asked_for_all_at_once_and_not_for_what_it_ignores(policy) -> None:
    with nvidias_server(policy) as (port, asked), PolicyClient("127.0.0.1", port) as client:
        inference = Inference(client, 42, 8, ("none",))
        assert len(inference.chunks(REQUESTS, drop_state=False)) == 3
        assert client.heeds == []
        with pytest.raises(ToolkitError, match="cannot"):
            Inference(client, 42, 8, CONDITIONS)
        client.kill()
    sent = next(message["data"]["observation"] for message in asked if message["endpoint"] == "get_action")
    assert sent["language"] == {"annotation.human.task_description": [[r.instruction] for r in REQUESTS]}
    assert [message["endpoint"] for message in asked].count("get_action") == 1


# -- the same scripted policy behind each protocol ---------------------------------------------------------------------


class Expert:
    """Acts on what it is shown alone: knows the expert's chunk for each pair of camera images, to the last bit."""

    def __init__(self) -> None:
        self.known: dict[bytes, np.ndarray] = {}
        self.modality_configs = from_json(read_file(None))

    def chunk(self, image: np.ndarray, wrist_image: np.ndarray) -> np.ndarray:
        return self.known[image.tobytes() + wrist_image.tobytes()]

    def get_action(self, observation: dict, *, seed: int | None = None) -> dict:
        video = observation.get("video")
        pair = [video[k] if video else observation[f"video.{k}"] for k in ("image", "wrist_image")]
        chunks = np.stack([self.chunk(*images) for images in zip(*(views[:, 0] for views in pair), strict=True)])
        return {"action.arm": chunks[..., :7], "action.gripper": chunks[..., 7:]}

    def infer(self, observation: dict) -> dict:
        return {"actions": self.chunk(observation["observation/image"], observation["observation/wrist_image"])}


@needs_simulator
@pytest.mark.slow
def test_the_same_policy_behind_each_protocol_has_the_same_outcomes(renderer: None) -> None:
    from simulation.closed_loop.episode_player import EpisodePlayer

    settings, seeds = Settings("size_color", "lift it", image_size=32), [FIRST_EVALUATION_SEED]
    player = EpisodePlayer(settings, None, lambda request: np.zeros((0, 8)))
    expert, plans = Expert(), {}
    for seed in seeds:
        player.task.reset(seed=seed)
        plans[seed] = TargetPolicy().plan(player.task, player.expert)

    def played(answer: Callable[[Any], np.ndarray]) -> list:
        player.ask = answer
        player.begin("none", "train", 0)
        return [player.play(seed) for seed in seeds]

    def from_plan(shown: Any) -> np.ndarray:
        chunk = plans[shown.seed][8 * shown.chunk :][:8]
        chunk = np.concatenate([chunk, np.repeat(chunk[-1:], 8 - len(chunk), axis=0)])
        expert.known[shown.images["image"].tobytes() + shown.images["wrist_image"].tobytes()] = chunk
        return chunk

    def through(policy: Any) -> Callable[[Any], np.ndarray]:
        inference = Inference(policy, 42, 8, ("none",))
        return lambda shown: inference.chunks([shown], drop_state=False)[0]

    outcomes = played(from_plan)
    assert all(outcome.success for outcome in outcomes)
    assert played(through(expert)) == outcomes
    with served(expert) as server, PolicyClient("127.0.0.1", server.port) as client:
        assert played(through(client)) == outcomes
    with openpi_server(expert.infer) as address, OpenpiClient(address) as client:
        assert played(through(client)) == outcomes


def test_a_policy_may_read_the_state_undivided_or_not_at_all() -> None:
    seen: list[dict[str, Any]] = []

    class Whole:
        modality_configs = from_json(read_file(None)) | {"action": ModalityConfig([*range(9)], ["action"])}

        def get_action(self, observation: dict) -> dict:
            seen.append(observation)
            return {"action.action": np.ones((1, 9, 8))}

    for groups, expected in ({"state": ["state"]}, {"state.state"}), ({}, set()):
        configs = {name: ModalityConfig([0], keys) for name, keys in groups.items()}
        policy, others = Whole(), {name: of for name, of in Whole.modality_configs.items() if name != "state"}
        policy.modality_configs = others | configs
        chunks = Inference(policy, 42, 8, ("none",)).chunks(REQUESTS[:1], drop_state=False)
        assert chunks[0].shape == (8, 8) and {name for name in seen[-1] if name.startswith("state")} == expected
        with pytest.raises(ToolkitError, match="n_action_steps=10 is more than the 9"):
            Inference(policy, 42, 10, ("none",))
    assert np.array_equal(seen[0]["state.state"][0, 0], REQUESTS[0].state)


def test_noise_follows_seed_episode_and_chunk_over_the_wire(policy) -> None:
    seen: list[Any] = []

    class Listening(Plain):
        max_batch = 8

        def get_action(self, observation: dict, *, seed: Any = None) -> dict:
            seen.append(seed)
            return {"action.arm": np.zeros((3, 16, 7), np.float32), "action.gripper": np.zeros((3, 16, 1), np.float32)}

    with served(Listening()) as server, PolicyClient("127.0.0.1", server.port) as client:
        Inference(client, 42, 8, ("none",)).chunks(REQUESTS, drop_state=False)
    assert seen == [[torch_seed(42, Stream.ROLLOUT, request.seed, request.chunk) for request in REQUESTS]]


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.long
def test_an_evaluation_of_the_served_checkpoint_is_that_of_the_checkpoint(policy, batches, renderer: None) -> None:
    shared = {"image_size": 32, "episodes": 2, "max_steps": 20, "conditions": CONDITIONS}
    settings = Settings("color_object", "lift it", **shared)
    direct = run_episodes(policy, settings, progress=False)
    with served(policy) as server, PolicyClient("127.0.0.1", server.port) as client:
        assert run_episodes(client, settings, progress=False) == direct
    assert set(batches) == {2}


@needs_simulator
@pytest.mark.parametrize(("server", "said"), [("ws://127.0.0.1:{}", "nothing listens"), ("127.0.0.1:{}", "Nothing")])
def test_a_server_that_is_not_there_is_said_before_the_first_episode(
    server: str, said: str, tmp_path: Path, renderer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = server.format(free_port())
    quick = functools.partialmethod(PolicyClient.__init__, timeout_ms=100)
    monkeypatch.setattr(PolicyClient, "__init__", quick)
    config = compose("evaluate", "mode=closed_loop", f"server={address}", f"report_dir={tmp_path}/report")
    with pytest.raises(ToolkitError, match=f"{address}: .*{said}"):
        evaluate_closed_loop(config)
    assert not (tmp_path / "report").exists()
