"""The policy server: served actions are the local ones, NVIDIA's clients are understood, and nothing stops it."""

import random
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import msgpack
import numpy as np
import pytest
import torch
import zmq
from serving import ask, raw_socket, served
from test_policy import LANGUAGE, REFUSED, TINY, nested, observation, same, variants

from gr00t.data.schema import ModalityConfig, ModalityConfigs
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.server import messages
from gr00t.server import server as endpoints
from gr00t.server.client import NoAnswer, PolicyClient, ServerRefusal
from gr00t.server.messages import pack
from gr00t.server.server import PolicyServer

TOKEN = "a-token-for-the-tests"


@pytest.fixture(scope="module")
def policy():
    return GR00TPolicy.from_pretrained(TINY, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def server(policy):
    with served(policy) as running:
        yield running


@pytest.fixture
def client(server):
    with PolicyClient("127.0.0.1", server.port) as connected:
        yield connected


def equal(left, right):
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype == np.float32 and left[key].tobytes() == right[key].tobytes()
        for key in left
    )


# our client


@pytest.mark.parametrize("batch", [1, 3])
def test_served_actions_are_the_local_ones_bit_for_bit(policy, client, batch):
    given = observation(batch)
    assert equal(client.get_action(given, seed=7), policy.get_action(given, seed=7))
    assert client.get_action(given, seed=7)["action.arm"].shape == (batch, 16, 7)
    assert not equal(client.get_action(given, seed=8), policy.get_action(given, seed=7))


@pytest.mark.parametrize("form", variants(observation(2)))
def test_every_form_of_an_observation_is_served(policy, client, form):
    given = variants(observation(2))[form]
    assert equal(client.get_action(given, seed=np.int64(3)), policy.get_action(given, seed=3))


def test_half_precision_and_plain_text_are_served(policy, client):
    given = {**observation(), LANGUAGE: "pick up the cube"}
    given["state.arm"] = torch.from_numpy(given["state.arm"]).to(torch.bfloat16)
    assert equal(client.get_action(given, seed=3), policy.get_action(given, seed=3))


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_observation_is_refused_in_the_words_of_the_local_policy(client, case):
    make, said = REFUSED[case]
    with pytest.raises(ToolkitError) as refusal:
        client.get_action(make(), seed=0)
    for words in said:
        assert words in str(refusal.value)


@pytest.mark.parametrize("seed", [2.5, "1", True])
def test_a_seed_that_is_no_whole_number_is_refused(client, seed):
    with pytest.raises(ServerRefusal, match="seed"):
        client.get_action(observation(), seed=seed)


def test_the_other_endpoints_answer(policy, client):
    assert client.ping() is True
    assert client.reset() is None
    assert client.get_modality_config() == policy.modality_configs


def test_without_a_server_the_error_says_what_to_check_and_a_later_one_is_reached(policy):
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with PolicyClient("127.0.0.1", port, timeout_ms=100) as client:
        assert client.ping() is False
        with pytest.raises(NoAnswer, match=f"Nothing listens there.*port={port}"):
            client.get_action(observation())
        with PolicyServer(policy, port=port) as server:
            with pytest.raises(NoAnswer, match="Something listens there"):
                client.get_action(observation())
            thread = threading.Thread(target=server.run)
            thread.start()
            client.timeout_ms = 15000
            assert client.get_action(observation(), seed=1).keys() == {"action.arm", "action.gripper"}
            client.kill()
            thread.join(10)
            assert not thread.is_alive()


@dataclass
class SlowPolicy:
    """Takes its time once."""

    modality_configs: ModalityConfigs = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def get_action(self, observation, *, seed=None):
        self.released.wait(10)
        return {"action.arm": np.full((1, 1, 1), seed, np.float32)}


def test_after_a_time_out_the_next_answer_is_that_to_the_next_request():
    slow = SlowPolicy()
    with served(slow) as server, PolicyClient("127.0.0.1", server.port, timeout_ms=200) as client:
        with pytest.raises(NoAnswer, match=r"within 0\.2 s"):
            client.get_action({}, seed=1)
        slow.released.set()
        client.timeout_ms = 15000
        assert client.get_action({}, seed=2)["action.arm"] == 2


@contextmanager
def answering(*replies):
    """A client of a server that gives these replies, bytes as they are, whatever it is asked."""
    context = zmq.Context()
    other = context.socket(zmq.REP)
    other.setsockopt(zmq.RCVTIMEO, 10_000)
    port = other.bind_to_random_port("tcp://127.0.0.1")

    def answer():
        with suppress(zmq.Again):
            for reply in replies:
                other.recv()
                other.send(reply if isinstance(reply, bytes) else pack(reply))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with PolicyClient("127.0.0.1", port) as client:
            yield client
    finally:
        thread.join(20)
        other.close(0)
        context.term()


def test_what_is_no_policy_server_is_said_to_be_none():
    nonsense = {"state": {"as_json": {"delta_indices": ["x"], "modality_keys": ["arm"]}}}
    chunks = [[], [{"arm": "up"}, {}], [{}, {}], [{"arm": np.zeros((7,))}, {}], [{"arm": np.zeros((1, 1, 7), "?")}]]
    with answering(b"\xc1", "hello", nonsense, {}, *chunks) as client:
        act, asked = partial(client.get_action, observation()), client.get_modality_config
        for call in (client.reset, asked, asked, asked, act, act, act, act, act):
            with pytest.raises(NoAnswer, match="policy server"):
                call()


@pytest.mark.parametrize(
    ("host", "port"),
    [
        *(("127.0.0.1", port) for port in (0, 70000, None, "5555", True)),
        *((host, 5555) for host in ("", "localhost:5555", "tcp://localhost", "a b", "*")),
        *((host, 5555) for host in ("a..b", ".", "-", f"{'a' * 70}.org", "h\u00f6st", None, 3)),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(host, port):
    with pytest.raises(ToolkitError, match="port"):
        PolicyClient(host, port)


@pytest.mark.parametrize("wait", [-1, 0, None, "5", True, float("nan"), float("inf")])
def test_a_wait_without_end_is_refused(wait):
    with pytest.raises(ToolkitError, match=r"timeout_ms=.*above 0"):
        PolicyClient("127.0.0.1", 5555, timeout_ms=wait)


def test_a_request_without_an_answer_never_reaches_a_server_that_starts_later():
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with PolicyClient("127.0.0.1", port, timeout_ms=50) as client:
        for call in (client.kill, client.reset, client.kill):
            with pytest.raises(NoAnswer):
                call()
        with PolicyServer(SlowPolicy(), port=port) as server:
            thread = threading.Thread(target=server.run)
            thread.start()
            thread.join(1)
            client.timeout_ms = 15000
            assert thread.is_alive() and client.ping()
            server.stop()
            thread.join(10)
            assert server.run() == 1
    with pytest.raises(ToolkitError, match="is closed"):
        client.ping()


def test_no_action_of_another_server_is_passed_on_that_no_robot_should_run():
    values = [np.full((1, 2, 7), value) for value in (np.nan, -np.inf, 1e300, 1.0)]
    with answering(*([{"arm": each}, {}] for each in values)) as client:
        for _ in range(3):
            with pytest.raises(ToolkitError, match=r'"arm" actions are not finite: do not run them'):
                client.get_action(observation())
        found = client.get_action(observation())["action.arm"]
    assert found.dtype == np.float32 and (found == 1).all()


def test_a_refusal_of_another_server_steers_no_terminal():
    with answering({"error": "\x1b[2Jno" + "o" * 9000}, {"error": {"a": "\x07"}}) as client:
        for _ in range(2):
            with pytest.raises(ServerRefusal) as refusal:
                client.reset()
            assert str(refusal.value).isprintable() and len(str(refusal.value)) < 2100


def test_hiding_the_state_takes_yes_or_no(policy, client):
    for of in (policy, client):
        with pytest.raises(ToolkitError, match="drop_state is True or False, not 'no'"):
            of.get_action(observation(), drop_state="no")
    hidden = policy.get_action(observation(), seed=1, drop_state=True)
    assert equal(client.get_action(observation(), seed=1, drop_state=np.True_), hidden)


# clients of others


def encoded(value):
    """As msgpack-numpy does it."""
    return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}


def as_nvidias(flat):
    """The observation that NVIDIA's client sends, arrays encoded."""
    return {
        modality: {key: encoded(value) if isinstance(value, np.ndarray) else value for key, value in values.items()}
        for modality, values in nested(flat).items()
    }


def test_nvidias_client_is_understood(policy, server):
    data = {"observation": as_nvidias(observation(2)), "options": {"seed": 7, "sim": "theirs"}}
    actions, info = ask(server, msgpack.packb({"endpoint": "get_action", "data": data}))
    assert info == {} and actions.keys() == {"arm", "gripper"}
    local = policy.get_action(observation(2), seed=7)
    for group, found in actions.items():
        assert found == {**encoded(local[f"action.{group}"]), b"shape": list(local[f"action.{group}"].shape)}


def as_simulators(flat):
    """The observation that NVIDIA's simulation environments send, arrays encoded."""
    return {key: encoded(value) if isinstance(value, np.ndarray) else value for key, value in flat.items()}


def test_a_flat_observation_is_answered_in_the_flat_form(policy, server):
    data = {"observation": as_simulators(observation(2)), "options": {"seed": 7}}
    actions, info = ask(server, msgpack.packb({"endpoint": "get_action", "data": data}))
    assert info == {} and actions.keys() == {"action.arm", "action.gripper"}
    for group, local in policy.get_action(observation(2), seed=7).items():
        assert actions[group] == {**encoded(local), b"shape": list(local.shape)}


@dataclass
class TaskPolicy:
    """Reads its instruction under "task", and acts on nothing else."""

    modality_configs: ModalityConfigs = field(default_factory=lambda: {"language": ModalityConfig([0], ["task"])})

    def get_action(self, observation, *, seed=None):
        return {f"action.{key}": np.full((1, 1, 1), seed, np.float32) for key in observation}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"annotation.human.coarse_action": ["x"], "state.arm": 0}, {"task", "state.arm"}),
        ({"task": ["x"], "state.arm": 0}, {"task", "state.arm"}),
        ({"task": ["x"], "annotation.human.coarse_action": ["x"]}, {"task", "annotation.human.coarse_action"}),
    ],
)
def test_the_simulators_key_of_the_task_is_read_as_the_originals_wrapper_reads_it(given, read):
    with served(TaskPolicy()) as server:
        actions, _ = ask(server, msgpack.packb(request(observation=given, options={"seed": 1})))
        mixed = ask(server, msgpack.packb(request(observation={"video": {}, "task": ["x"]})))
    assert actions.keys() == {f"action.{key}" for key in read}
    assert 'nested in "video" and flat in "task"' in mixed["error"]


def test_nvidias_other_requests_are_understood(policy, server):
    actions, _ = ask(server, msgpack.packb({"data": {"observation": as_nvidias(observation()), "options": None}}))
    assert set(actions) == {"arm", "gripper"}
    assert ask(server, msgpack.packb({"endpoint": "ping"}))["status"] == "ok"
    assert ask(server, msgpack.packb({"endpoint": "reset", "data": {"options": None}})) == {}
    configs = ask(server, msgpack.packb({"endpoint": "get_modality_config", "api_token": "not asked for"}))
    assert configs == {
        name: {"__ModalityConfig__": True, "as_json": config.to_json()}
        for name, config in policy.modality_configs.items()
    }


# what must not stop it


def request(**data):
    return {"endpoint": "get_action", "data": data}


def with_image(shape):
    flat = {**observation(), "video.image": np.zeros(shape, np.uint8)}
    return request(observation=as_nvidias(flat))


def with_text(text):
    return request(observation=as_nvidias({**observation(), LANGUAGE: [text]}))


REQUESTS = {
    "no map": ([], "map"),
    "text": ("ping", "map"),
    "unknown endpoint": ({"endpoint": "get_actoin"}, 'Did you mean "get_action"'),
    "endpoint is a list": ({"endpoint": [["ping"]]}, "endpoint"),
    "endpoint is an array": ({"endpoint": encoded(np.zeros(3))}, "endpoint"),
    "no data": ({"endpoint": "get_action"}, "observation"),
    "data is a list": ({"endpoint": "get_action", "data": [1]}, "data is a map"),
    "unknown argument": (request(obsrvation={}), 'Did you mean "observation"'),
    "observation is a number": (request(observation=3), "dict of video"),
    "options is a list": (request(observation={}, options=[]), "options"),
    "options of reset": ({"endpoint": "reset", "data": {"options": 1}}, "options"),
    "huge seed": (request(observation=as_nvidias(observation()), options={"seed": 2**64 - 1}), None),
    "object array": (request(observation={"state": {"arm": {**encoded(np.zeros(1)), b"kind": b"O"}}}), "pickle"),
    "many robots": (request(observation=as_nvidias(observation(65))), "65 robots"),
    "narrow image": (with_image((1, 1, 1, 5000, 3)), "4096"),
    "no height": (with_image((1, 1, 0, 5000, 3)), "4096"),
    "bytes": (request(observation={"task": [b"x" * 2**20]}), "1048576 bytes that are neither"),
    "endless instruction": (with_text("a" * 2000), "1000"),
    "terminal escapes": (request(observation={"\x1b[2J": 1}), r"\x1b[2J"),
    "nested and flat": (
        request(observation={**as_nvidias(observation()), "state.arm": encoded(np.zeros((1, 1, 7)))}),
        'nested in "video" and flat in "state.arm". Send it in one form',
    ),
    "nested, language flat": (
        request(
            observation={k: v for k, v in as_nvidias(observation()).items() if k != "language"} | {LANGUAGE: ["x"]}
        ),
        f'nested in "video" and flat in "{LANGUAGE}"',
    ),
    "misspelt flat key": (
        request(observation={**as_simulators(observation()), "state.arms": 0} | {"state.arm": 0}),
        'has "state.arms", which this policy does not read',
    ),
    "misspelt flat view": (
        request(
            observation={"video.imag" if k == "video.image" else k: v for k, v in as_simulators(observation()).items()}
        ),
        'lacks "video.image". Did you mean "video.imag"?',
    ),
    "unknown nested key": (
        request(observation={**as_nvidias(observation()), "tactile": {"palm": 1}}),
        'has "tactile", which this policy does not read',
    ),
    "many keys": (request(observation={f"{i:0200}": 1 for i in range(60)}), "lacks"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_wrong_request_is_answered_with_what_is_wrong(server, client, name):
    sent, said = REQUESTS[name]
    answer = ask(server, msgpack.packb(sent))
    if said is not None:
        assert answer.keys() == {"error"} and said in answer["error"]
        assert len(answer["error"]) < 2100 and "\x1b" not in answer["error"]
    assert client.ping()


def test_bytes_that_are_no_request_are_answered_and_the_server_continues(server, client):
    rng = random.Random(0)
    whole = msgpack.packb(request(observation=as_nvidias(observation())))
    broken = [whole[: rng.randrange(len(whole))] for _ in range(20)] + [rng.randbytes(50) for _ in range(20)]
    with raw_socket(server) as connected:
        for message in [b"", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", *broken]:
            connected.send(message)
            assert "error" in msgpack.unpackb(connected.recv())
    assert client.get_action(observation(), seed=1).keys() == {"action.arm", "action.gripper"}


def test_several_frames_are_refused_and_what_breaks_the_pattern_is_ignored(server, client):
    with raw_socket(server) as connected:
        connected.send_multipart([b"\xc0", b"\xc0", b"\xc0"])
        assert "one frame" in msgpack.unpackb(connected.recv())["error"]
    with raw_socket(server, zmq.DEALER) as connected:
        connected.send(msgpack.packb({"endpoint": "kill"}))  # without the empty frame of a REQ
        connected.send_multipart([b"", msgpack.packb({"endpoint": "ping"})])
        connected.send_multipart([b"", msgpack.packb({"endpoint": "ping"})])
    assert client.ping()


def test_what_breaks_the_pattern_does_not_keep_the_server_from_stopping(policy):
    with served(policy) as server:
        with raw_socket(server, zmq.DEALER) as connected:
            connected.send(b"without the empty frame of a REQ")
            time.sleep(0.5)
            server.stop()  # `served` demands that it ends, although nobody asks anything


def test_a_message_that_is_too_large_is_refused_and_one_beyond_that_cut_off(policy, monkeypatch):
    monkeypatch.setattr(messages, "MAX_MESSAGE", 2**20)
    monkeypatch.setattr("gr00t.server.server.MAX_MESSAGE", 2**20)
    with served(policy) as server, PolicyClient("127.0.0.1", server.port) as client:
        assert "MiB" in ask(server, bytes(2**20 + 1))["error"]
        with raw_socket(server) as connected:
            connected.setsockopt(zmq.RCVTIMEO, 500)
            connected.send(bytes(2**21 + 1))
            with pytest.raises(zmq.Again):
                connected.recv()
        assert client.ping()
        monkeypatch.setattr("gr00t.server.client.MAX_MESSAGE", 2**20)
        with pytest.raises(ToolkitError, match="fit into a message"):
            client.get_action(observation(64))
        assert client.ping()


def test_a_client_that_goes_away_takes_nothing_with_it(server, client):
    for _ in range(5):
        with raw_socket(server) as connected:
            connected.send(msgpack.packb(request(observation=as_nvidias(observation()))))
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.ping()


@dataclass
class BrokenPolicy:
    modality_configs: ModalityConfigs = field(default_factory=dict)

    def get_action(self, observation, *, seed=None):
        raise RuntimeError("/home/somebody/secret")


def test_a_failing_policy_is_reported_without_its_insides_which_the_log_has(caplog):
    with served(BrokenPolicy()) as server, PolicyClient("127.0.0.1", server.port) as client:
        with pytest.raises(ServerRefusal, match=r"RuntimeError.*log") as refusal:
            client.get_action({})
        assert "somebody" not in str(refusal.value) and "somebody" in caplog.text
        for _ in range(20):
            with pytest.raises(ServerRefusal):
                client.get_action({})
        assert caplog.text.count("Traceback") == 1
        assert client.ping()


def test_the_log_has_a_line_of_latency_now_and_then_and_one_refusal_a_second(policy, caplog):
    caplog.set_level("INFO", "gr00t.server")
    with served(policy, log_every=3) as server, PolicyClient("127.0.0.1", server.port) as client:
        for _ in range(6):
            client.get_action(observation(), seed=0)
        begin = time.monotonic()
        for _ in range(50):
            with pytest.raises(ServerRefusal):
                client.get_action({"state.arm\n\x1b[2J": 0})
        seconds = time.monotonic() - begin
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("gr00t.server")]
    assert [line.partition(":")[0] for line in lines if "ms" in line] == [f"get_action {n}" for n in (1, 3, 6)]
    assert 1 <= sum("refused" in line for line in lines) <= 2 + seconds
    assert not any("\x1b" in line or "\n" in line for line in lines)


# who may


@pytest.mark.parametrize("given", [None, "", "wrong-token-for-the-tests", TOKEN + " ", TOKEN[:-1], "\u00fc"])
def test_without_the_token_nothing_is_answered_and_nobody_may_stop_the_server(policy, given):
    with served(policy, api_token=TOKEN) as server:
        with PolicyClient("127.0.0.1", server.port, api_token=given) as client:
            calls = [client.ping, client.reset, client.kill, client.get_modality_config]
            for call in [*calls, lambda: client.get_action(observation())]:
                with pytest.raises(ServerRefusal, match="Unauthorized: Invalid API token"):
                    call()
        for token in (1, [TOKEN], TOKEN.encode(), {"a": TOKEN}):
            answer = ask(server, msgpack.packb({"endpoint": "kill", "api_token": token}))
            assert answer == {"error": "Unauthorized: Invalid API token"}
        with PolicyClient("127.0.0.1", server.port, api_token=TOKEN) as client:
            assert client.ping() and client.get_action(observation(), seed=0)


def test_no_array_is_made_for_a_client_without_the_token(policy, monkeypatch):
    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(endpoints, "decode", never)
    sent = msgpack.packb(request(observation=as_nvidias(observation())))
    assert "Unauthorized" in endpoints.Endpoints(policy, TOKEN).answer(sent).error


def test_kill_stops_the_server_and_gives_the_port_back(policy):
    with PolicyServer(policy, port=0, api_token=TOKEN) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        with PolicyClient("127.0.0.1", server.port, api_token=TOKEN) as client:
            client.kill()
        thread.join(10)
        assert not thread.is_alive()
    with PolicyServer(policy, port=server.port):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "::", "10.0.0.1", "::ffff:127.0.0.1"])
def test_other_machines_are_let_in_with_a_token_only(policy, host):
    with pytest.raises(ToolkitError, match="GROOT_API_TOKEN"):
        PolicyServer(policy, host, 0)


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "a-token-with-a-\nline-break"])
def test_a_token_that_could_be_guessed_is_refused_without_being_shown(policy, token):
    with pytest.raises(ToolkitError, match="16 at least") as refusal:
        PolicyServer(policy, port=0, api_token=token)
    assert not token or token not in str(refusal.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2"])
def test_loopback_needs_no_token(policy, host):
    with PolicyServer(policy, host, 0) as server:
        assert server.url == f"tcp://127.0.0.{2 if host.endswith('2') else 1}:{server.port}"


def test_a_name_with_addresses_of_both_kinds_is_served_where_clients_look_for_it(monkeypatch):
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert endpoints.find_address("localhost", 5555, None) == ("127.0.0.1", 5555)


def test_ipv6_is_served(policy, monkeypatch):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with served(policy, host="::1") as server:
        with PolicyClient("::1", server.port) as client:
            assert client.ping()
        found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", server.port, 0, 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with PolicyClient("a.name.with.this.address.alone", server.port) as client:
            assert client.ping()


def test_a_port_in_use_and_hosts_that_are_none_are_refused(policy, server):
    for host, port, said in [
        ("127.0.0.1", server.port, f"another server.*port={server.port + 1}"),
        ("127.0.0.1", 70000, "1 to 65535"),
        ("no.such.host.invalid", 0, "knows no such address"),
    ]:
        with pytest.raises(ToolkitError, match=said):
            PolicyServer(policy, host, port)
    with pytest.raises(ToolkitError, match="no such address"):
        PolicyServer(policy, "192.0.2.1", 0, TOKEN)


def test_two_clients_take_turns(policy, server):
    local = policy.get_action(observation(), seed=4)
    wrong = []

    def act():
        with PolicyClient("127.0.0.1", server.port) as client:
            for _ in range(4):
                if not same(client.get_action(observation(), seed=4), local):
                    wrong.append(time.time())

    threads = [threading.Thread(target=act) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong
