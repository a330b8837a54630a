"""openpi's websocket protocol: what is sent and read, and one line for each thing that can go wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

import msgpack
import numpy as np
import pytest
from openpi_server import actions, openpi_server
from serving import served
from test_server import TaskPolicy

from data_prep.maniskill import CAMERAS
from gr00t.errors import ToolkitError
from gr00t.server import OpenpiClient
from gr00t.server.client import NoAnswer, PolicyClient, ServerRefusal
from gr00t.server.messages import as_openpi, decode, pack, unpack
from simulation.closed_loop.policies import Inference, Observation

# Made by openpi-client 0.1.2 (its msgpack_numpy.packb).
REQUEST = (
    {
        "observation/state": np.arange(3, dtype=np.float32),
        "observation/image": np.zeros((1, 2, 3), np.uint8),
        "prompt": "x",
    },
    "83b16f62736572766174696f6e2f737461746584c40b5f5f6e6461727261795f5fc3c40464617461c40c000000000000803f00000040c40564"
    "74797065a33c6634c40573686170659103b16f62736572766174696f6e2f696d61676584c40b5f5f6e6461727261795f5fc3c40464617461c4"
    "06000000000000c4056474797065a37c7531c405736861706593010203a670726f6d7074a178",
)
REPLY = (
    {"actions": np.arange(4.0).reshape(2, 2), "n": 1.5},
    "82a7616374696f6e7384c40b5f5f6e6461727261795f5fc3c40464617461c4200000000000000000000000000000f03f000000000000004000"
    "00000000000840c4056474797065a33c6638c4057368617065920202a16e83c40d5f5f6e7067656e657269635f5fc3c40464617461cb3ff800"
    "0000000000c4056474797065a33c6634",
)


def shown(number: int = 0, instruction: str = "lift the red cube") -> Observation:
    rng = np.random.default_rng(number)
    images = {key: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for key in CAMERAS}
    return Observation(images, rng.uniform(-1, 1, 8).astype(np.float32), 10_000 + number, number, instruction)


def asked(address: str, *requests: Observation, steps: int = 8, **options: Any) -> list[np.ndarray]:
    with OpenpiClient(address, **options) as client:
        return Inference(client, 42, steps, ("none",)).chunks(requests or [shown()], drop_state=False)


def test_messages_are_openpi_clients_byte_for_byte() -> None:
    assert pack(REQUEST[0], as_openpi).hex() == REQUEST[1]
    found = decode(unpack(bytes.fromhex(REPLY[1])))
    assert found["n"] == 1.5 and np.array_equal(found["actions"], REPLY[0]["actions"])
    assert found["actions"].dtype == np.float64


def test_each_environment_is_asked_with_its_own_images_state_and_instruction() -> None:
    seen: list[dict[str, Any]] = []

    def answer(observation: dict[str, Any]) -> dict[str, Any]:
        seen.append(observation)
        return actions(observation)

    requests = [shown(0), shown(1, "push the blue sphere"), shown(2, "slide the star")]
    with openpi_server(answer, {"robot": "panda"}) as address:
        chunks = asked(address, *requests)
        with OpenpiClient(address) as client:
            assert client.metadata == {"robot": "panda"}
    for request, observation, chunk in zip(requests, seen, chunks, strict=True):
        assert observation.keys() == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
        assert observation["prompt"] == request.instruction
        assert all(np.array_equal(observation[f"observation/{key}"], request.images[key]) for key in CAMERAS)
        assert np.array_equal(observation["observation/state"], request.state)
        assert np.array_equal(chunk, np.tile(request.state, (8, 1))) and chunk.dtype == np.float32


def array(**changed: Any) -> bytes:
    """A reply whose actions are one row of zeros, described otherwise."""
    described = {"__ndarray__": True, "data": bytes(32), "dtype": "<f4", "shape": [1, 8]}
    return msgpack.packb({"actions": {**described, **changed}})


REPLIES = {
    "short": ({"actions": np.zeros((5, 8))}, "n_action_steps=5 or fewer"),
    "no steps": ({"actions": np.zeros((0, 8))}, "(1, 0, 8)"),
    "seven dimensions": ({"actions": np.zeros((10, 7))}, "(10, 7); expected (steps, 8)"),
    "a batch": ({"actions": np.zeros((1, 10, 8))}, "(1, 10, 8); expected (steps, 8)"),
    "not finite": ({"actions": np.full((10, 8), np.nan)}, "not finite"),
    "infinite": ({"actions": np.full((10, 8), np.inf)}, "not finite"),
    "no actions": ({"action": np.zeros((10, 8))}, 'a map of action, without an array "actions"'),
    "a list of actions": ({"actions": [[0.0] * 8] * 10}, 'without an array "actions"'),
    "a list": ([1], "a list, without"),
    "object array": (array(dtype="|O"), "pickle"),
    "void array": (array(dtype="|V32", shape=[1]), "only arrays of numbers"),
    "less data": (array(shape=[2, 8]), "64 bytes"),
    "no msgpack": (b"\xc1", "no msgpack"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_an_answer_of_no_use_is_said_in_one_line_with_the_address(name: str) -> None:
    reply, said = REPLIES[name]
    with openpi_server(lambda _: reply) as address, pytest.raises(ToolkitError) as error:
        asked(address)
    assert said in str(error.value) and address in str(error.value) and "\n" not in str(error.value)


def test_a_servers_own_error_is_its_last_line_and_steers_no_terminal() -> None:
    def answer(_: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("observation/exterior_image\x1b[2J")

    with openpi_server(answer) as address, pytest.raises(ServerRefusal) as error:
        asked(address)
    assert "the server failed: KeyError: 'observation/exterior_image" in str(error.value)
    assert "\x1b" not in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("Traceback:\nRuntimeError: no weights", "the server failed: RuntimeError: no weights"),
        ([1], "It began with a list"),
        (b"\xc1", "no msgpack"),
    ],
)
def test_what_begins_with_something_else_than_metadata_is_no_such_server(metadata: Any, said: str) -> None:
    with openpi_server(metadata=metadata) as address, pytest.raises(ToolkitError, match=said):
        OpenpiClient(address)


def test_a_token_is_sent_and_asked_for_in_one_line() -> None:
    with openpi_server(api_key="secret-of-the-tests") as address:
        assert asked(address, api_key="secret-of-the-tests")
        with pytest.raises(ServerRefusal, match=r"asks for a token: export GROOT_API_TOKEN=\.\.\. \(HTTP 401\)"):
            OpenpiClient(address)
        with pytest.raises(ServerRefusal, match="another token") as error:
            OpenpiClient(address, "wrong-token")
    assert "wrong-token" not in str(error.value)


@pytest.mark.parametrize("token", ["secret-token\n", "secret-token\r\nX-More: 1", "secret-\u20ac", b"secret-"])
def test_a_token_that_no_header_may_have_is_refused_and_never_shown(token: Any) -> None:
    with openpi_server() as address, pytest.raises(ToolkitError, match="The token holds a line break") as error:
        OpenpiClient(address, token)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("wait", [0, -1, None, "5", float("nan"), float("inf")])
def test_a_wait_without_end_is_refused(wait: Any) -> None:
    with pytest.raises(ToolkitError, match=r"timeout=.*above 0"):
        OpenpiClient("ws://127.0.0.1:8000", timeout=wait)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        return reserved.getsockname()[1]


def test_nothing_there_and_other_protocols_are_told_apart() -> None:
    with pytest.raises(NoAnswer, match="nothing listens there"):
        OpenpiClient(f"ws://127.0.0.1:{free_port()}")
    with pytest.raises(NoAnswer, match="nothing listens there"):
        OpenpiClient("ws://no.such.host.invalid:8000")
    with pytest.raises(NoAnswer, match="nothing listens there"):
        OpenpiClient("ws://a..b:8000")
    with served(TaskPolicy()) as server:
        with pytest.raises(NoAnswer, match=r"no policy server of openpi's.*HOST:PORT, without ws://"):
            OpenpiClient(f"ws://127.0.0.1:{server.port}")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(NoAnswer, match="ends the connection at once"):
            OpenpiClient(f"ws://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(10)
    with openpi_server() as address:
        with pytest.raises(NoAnswer, match=f"openpi's are {address}"):
            PolicyClient("127.0.0.1", int(address.rpartition(":")[2]), timeout_ms=300).reset()
    for address in ("ws://", "ws://user:secret@host:1", "http://host:1", "ws://host:70000", "ws://[::1", None, 5):
        with pytest.raises(ToolkitError, match="write ws://HOST:PORT") as error:
            OpenpiClient(address)
        assert "secret" not in str(error.value)


def test_a_late_answer_is_given_up_and_never_taken_for_another() -> None:
    released = threading.Event()

    def answer(observation: dict[str, Any]) -> dict[str, Any]:
        released.wait(10)
        return actions(observation)

    with openpi_server(answer) as address:
        client = OpenpiClient(address, timeout=0.2)
        inference = Inference(client, 42, 8, ("none",))
        with pytest.raises(NoAnswer, match=r"no actions within 0\.2 s.*stuck or too slow"):
            inference.chunks([shown(0)], drop_state=False)
        released.set()
        with pytest.raises(NoAnswer, match="the connection ended"):
            inference.chunks([shown(1)], drop_state=False)


def test_a_server_that_dies_in_the_middle_is_said() -> None:
    answered: list[int] = []

    def handle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        proxy(connection, behind, answered)

    with openpi_server() as behind, socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=handle, args=(listener,))
        thread.start()
        address = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(NoAnswer, match=f"{address}: the connection ended before the actions came"):
            asked(address, *[shown(n) for n in range(40)])
        thread.join(10)


def proxy(connection: socket.socket, behind: str, answered: list[int]) -> None:
    """Passes on bytes in both directions until 20 kB have come from the client, then cuts the line without a word."""
    with socket.create_connection(("127.0.0.1", int(behind.rpartition(":")[2]))) as server, connection:
        back = threading.Thread(target=pump, args=(server, connection, 10**9))
        back.start()
        pump(connection, server, 20_000)
        for side in (connection, server):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        back.join(10)


def pump(source: socket.socket, sink: socket.socket, most: int) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while passed < most and (data := source.recv(4096)):
            sink.sendall(data)
            passed += len(data)


def test_a_server_that_stops_reading_blocks_nothing() -> None:
    """Its socket stays open and full: of 60 MB it reads the handshake only."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stuck: list[socket.socket] = []

        def handle() -> None:
            from websockets.server import ServerProtocol

            connection, _ = listener.accept()
            protocol = ServerProtocol()
            protocol.receive_data(connection.recv(65536))
            protocol.send_response(protocol.accept(protocol.events_received()[0]))
            protocol.send_binary(msgpack.packb({}))
            for data in protocol.data_to_send():
                connection.sendall(data)
            stuck.append(connection)

        thread = threading.Thread(target=handle)
        thread.start()
        with OpenpiClient(f"ws://127.0.0.1:{listener.getsockname()[1]}", timeout=1) as client:
            image = np.zeros((1, 1, 3000, 3000, 3), np.uint8)
            observation = {"video.image": image, "video.wrist_image": image, "prompt": ["x"]}
            begin = time.monotonic()
            with pytest.raises(NoAnswer):
                client.get_action(observation)
            assert time.monotonic() - begin < 8
        thread.join(10)
        for connection in stuck:
            connection.close()


def test_it_cannot_hide_the_state_and_takes_one_robot_at_a_time() -> None:
    with openpi_server() as address, OpenpiClient(address) as client:
        with pytest.raises(ToolkitError, match=f"which {address} cannot"):
            Inference(client, 42, 8, ("none", "zero_state"))
        with pytest.raises(ToolkitError, match="one robot at a time, not 2"):
            client.get_action({"prompt": ["a", "b"]})


FRAME, STATE = np.zeros((1, 1, 8, 8, 3), np.uint8), np.zeros((1, 1, 8), np.float32)
WRONG: dict[str, tuple[str, Any, str]] = {
    "one frame": ("video.image", FRAME[0], "(1, 1, H, W, 3) uint8, found (1, 8, 8, 3)"),
    "two frames": ("video.image", np.concatenate([FRAME, FRAME], 1), "found (1, 2, 8, 8, 3)"),
    "float image": ("video.wrist_image", FRAME / 255, "uint8, found (1, 1, 8, 8, 3) float64"),
    "channels first": ("video.image", np.moveaxis(FRAME, -1, 2), "found (1, 1, 3, 8, 8)"),
    "short state": ("state.state", STATE[..., :7], "(1, 1, 8) float32, found (1, 1, 7)"),
    "nan": ("state.state", STATE * np.nan, "state.state: it holds values that are not finite"),
    "a number": ("state.state", 3.0, "found ()"),
    "two robots": ("state.state", np.concatenate([STATE, STATE]), "one robot at a time, not 2"),
    "no text": ("prompt", [None], "prompt: expected one instruction (str) a sample, found None"),
    "unknown": ("state.stat", STATE, 'Did you mean "state.state"?'),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_observation_is_never_sent(name: str) -> None:
    key, value, said = WRONG[name]
    seen: list[dict[str, Any]] = []
    given = {"video.image": FRAME, "video.wrist_image": FRAME, "state.state": STATE, "prompt": ["lift"], key: value}
    with openpi_server(seen.append) as address, OpenpiClient(address) as client:
        with pytest.raises(ToolkitError) as error:
            client.get_action(given)
    assert said in str(error.value) and not seen


def test_a_prompt_may_have_any_form_that_other_policies_take_and_chunks_that_are_not_finite_go_no_further() -> None:
    prompts: list[Any] = []

    def answer(observation: dict[str, Any]) -> dict[str, Any]:
        prompts.append(observation["prompt"])
        return {"actions": np.full((4, 8), 1e300 if len(prompts) > 3 else 0.0)}

    with openpi_server(answer) as address, OpenpiClient(address) as client:
        for prompt in ("lift", ["lift"], [["lift"]]):
            client.get_action({"video.image": FRAME, "prompt": prompt})
        with pytest.raises(ToolkitError, match=f"{address}: .*not finite: do not run them"):
            client.get_action({"video.image": FRAME, "prompt": "lift"})
    assert prompts == ["lift"] * 4
