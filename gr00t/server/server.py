"""The policy server: where it may listen, what it answers to a request, what it logs, and its socket.

It listens on this machine as it likes, elsewhere only with a token. The endpoints are those of NVIDIA's policy server,
over any policy; requests are answered one at a time, in the order in which clients take turns.
"""

from __future__ import annotations

import errno
import hmac
import inspect
import ipaddress
import logging
import socket
import threading
import time
import traceback
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gr00t.data.schema import OBSERVED, look_up
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.server.messages import MAX_MESSAGE, ZERO_STATE, decode, pack, printable, tcp_url, unpack

TOKEN = "GROOT_API_TOKEN"  # the environment variable; arguments of a command can be read by everybody on the machine
SHORTEST_TOKEN = 16
MAKE_TOKEN = f"""export {TOKEN}="$(python -c 'import secrets; print(secrets.token_urlsafe())')\""""

ENDPOINTS = ("ping", "get_action", "reset", "get_modality_config", "kill")
UNKNOWN = "?"  # endpoint of a message that names none
FLAT = ("video.", "state.", "annotation.")  # what keys of a flat observation begin with
_NOT_LISTENING = {
    errno.EADDRINUSE: "another program, perhaps another server, is listening there. Stop it, or choose another port: "
    "port={next}, or port=0 for any free one.",
    errno.EADDRNOTAVAIL: "this machine has no such address. Try host=127.0.0.1.",
    errno.EACCES: "ports below 1024 belong to the system. Choose a higher one: port=5555.",
}
TASK, SIMULATORS_TASK = "task", "annotation.human.coarse_action"  # some simulators of the original say it so

MAX_SIDE = 4096  # pixels
MAX_RATIO = 8  # of the sides: images are padded to a square, so a narrow one grows
MAX_INSTRUCTION = 1000  # characters
_SECONDS_BETWEEN_ERRORS = 1.0  # in the log

log = logging.getLogger(__name__)


def find_address(host: str, port: int, api_token: str | None) -> tuple[str, int]:
    """The numeric address and the port (0: any free one) to listen on; host * is every network.

    Raises ToolkitError for an address that is unknown or would lie open to others without a token, and for a token that
    could be guessed.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ToolkitError(f"port={port}: a port is a number from 1 to 65535, or 0 for any free one.")
    try:
        found = socket.getaddrinfo("0.0.0.0" if host == "*" else host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ToolkitError(f"host={host}: this machine knows no such address ({error}). Try host=127.0.0.1.") from None
    # A name may be an address of both kinds, and ZeroMQ's clients look for one of IPv4.
    chosen = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    ip = str(chosen[4][0]).partition("%")[0]
    # What IPv6 writes of an IPv4 loopback is a loopback to Python from 3.13 on: refused on every version.
    if api_token is None and (ip.startswith("::ffff:") or not ipaddress.ip_address(ip).is_loopback):
        raise ToolkitError(
            f"host={host} lets other machines use and stop the policy, so it needs a token: {MAKE_TOKEN} (clients give "
            "the same as api_token). Or leave host=127.0.0.1, and reach it by ssh -L."
        )
    if api_token is not None and (len(api_token) < SHORTEST_TOKEN or not api_token.isprintable()):
        raise ToolkitError(
            f"The token has {len(api_token)} characters. Take {SHORTEST_TOKEN} at least, without line breaks: "
            f"{MAKE_TOKEN}"
        )
    return ip, port


@dataclass(frozen=True)
class Reply:
    """The packed answer to one request, and what the log says of it."""

    endpoint: str
    body: bytes
    error: str | None = None


class Endpoints:
    """Answers requests one by one; no request raises anything."""

    def __init__(self, policy: Any, api_token: str | None = None, max_batch: int = 64) -> None:
        """policy: has `modality_configs` and `get_action(observation, seed=)`. api_token: what every request must
        carry; None asks for none. max_batch: robots in one request. Attribute identity: by what clients know the
        policy again, None where that is not said."""
        self.policy, self._max_batch = policy, max_batch
        self.identity: str | None = None
        self._token = None if api_token is None else api_token.encode()
        self._logged: set[tuple[str, int | None]] = set()  # the lines of code that failed

    def answer(self, message: bytes | memoryview) -> Reply:
        """The reply to a message; {"error": text} where it is refused or the policy fails."""
        endpoint = UNKNOWN
        try:
            request = self._open(message)
            name = request.get("endpoint", "get_action")
            if not isinstance(name, str) or name not in ENDPOINTS:
                raise ToolkitError(f'There is no endpoint "{name!s:.80}".{did_you_mean(str(name)[:80], ENDPOINTS)}')
            endpoint = name
            return Reply(endpoint, pack(self._call(endpoint, request.get("data"))))
        except ToolkitError as refusal:
            return error_reply(str(refusal), endpoint)
        except Exception as error:  # whatever a request sets off, the next one is served
            last = traceback.extract_tb(error.__traceback__)[-1]
            if (last.filename, last.lineno) not in self._logged:  # once each, so that no client can fill a disk
                self._logged.add((last.filename, last.lineno))
                log.exception("%s failed", endpoint)
            return error_reply(f"The server failed ({type(error).__name__}); its log says more.", endpoint)

    def _open(self, message: bytes | memoryview) -> dict[str, Any]:
        """The request's map; the token is looked at before any array is made."""
        request = unpack(message)
        if not isinstance(request, dict):
            raise ToolkitError(f"A request is a map of endpoint and data, not {type(request).__name__}.")
        if self._token is not None:
            token = request.get("api_token")
            if not isinstance(token, str) or not hmac.compare_digest(token.encode(), self._token):
                raise ToolkitError("Unauthorized: Invalid API token")
        return decode(request)

    def _call(self, endpoint: str, data: Any) -> Any:
        if endpoint == "get_action":
            return self._get_action(_arguments(data, "observation", "options"))
        if endpoint == "reset":
            _arguments(data, "options")
            return {}
        if endpoint == "get_modality_config":
            return self.policy.modality_configs
        status = {"status": "ok", "message": "Server is stopping" if endpoint == "kill" else "Server is running"}
        told = {"max_batch": self._max_batch, "options": self._heeded(), "identity": self.identity}
        return {**status, **told} if endpoint == "ping" else status

    def _heeded(self) -> list[str]:
        """The options of a request that change what this policy does; NVIDIA's server names none."""
        if hasattr(self.policy, "heeds"):
            return list(self.policy.heeds)
        hides = "drop_state" in inspect.signature(self.policy.get_action).parameters
        return ["seed", ZERO_STATE] if hides else ["seed"]

    def _get_action(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Actions in the form of the observation, and an empty info map.

        {"action.<group>": ...} for a flat observation (original: Gr00tSimPolicyWrapper), else {"<group>": ...}.
        """
        if "observation" not in data:
            raise ToolkitError('get_action needs data with "observation".')
        # Clients of simulators send further options, which change nothing here.
        options, hidden = {"seed": data["options"].get("seed")}, data["options"].get(ZERO_STATE, False)
        if not isinstance(hidden, bool):
            raise ToolkitError(f"The option {ZERO_STATE} is true or false, not {hidden!r:.80}.")
        if hidden and ZERO_STATE not in self._heeded():
            raise ToolkitError(f"The option {ZERO_STATE} hides the state from the model, which this policy cannot.")
        options |= {"drop_state": True} if hidden else {}
        observation = data["observation"]
        check_size(observation, self._max_batch)
        language = self.policy.modality_configs.get("language")
        language_key = language.modality_keys[0] if language else None
        flat = is_flat(observation, language_key)
        if flat and language_key == TASK and TASK not in observation:
            observation = {(TASK if name == SIMULATORS_TASK else name): value for name, value in observation.items()}
        actions = self.policy.get_action(observation, **options)
        return [actions if flat else {name.removeprefix("action."): of for name, of in actions.items()}, {}]


def error_reply(text: str, endpoint: str = UNKNOWN) -> Reply:
    """A refusal. What a request wrote into it can neither flood the log nor steer the terminal that shows it."""
    shown = printable(text)
    return Reply(endpoint, pack({"error": shown}), shown)


def is_flat(observation: Any, language_key: str | None) -> bool:
    """Whether an observation has keys like "video.<view>", not maps of them.

    Raises ToolkitError for one that has both: the form of its answer would be a guess.
    """
    if not isinstance(observation, dict) or not observation:
        return False
    maps = [name for name in OBSERVED if isinstance(observation.get(name), dict)]
    flat = [name for name in observation if name == language_key or name.startswith(FLAT)]
    if maps and flat:
        raise ToolkitError(
            f'The observation is nested in "{maps[0]}" and flat in "{flat[0]}". Send it in one form: the maps video, '
            "state and language, or keys such as video.<view> and state.<group> with the instruction's key beside them."
        )
    return not maps


def check_size(value: Any, max_batch: int) -> None:
    """Refuse an observation that would take the server's memory: many robots, huge or narrow images, endless
    instructions."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            check_size(item, max_batch)
    elif isinstance(value, bytes):  # an error that shows them would take several times their size
        raise ToolkitError(f"The observation holds {len(value)} bytes that are neither an array nor text.")
    elif isinstance(value, str) and len(value) > MAX_INSTRUCTION:
        raise ToolkitError(f"An instruction has {len(value)} characters; {MAX_INSTRUCTION} are allowed.")
    elif isinstance(value, np.ndarray) and value.ndim == 5:  # (B, T, height, width, 3)
        if len(value) > max_batch:
            raise ToolkitError(
                f"The request is for {len(value)} robots; this server takes {max_batch} at once. Send several "
                "requests, or start it with a larger max_batch."
            )
        height, width = value.shape[2:4]
        if max(height, width) > MAX_SIDE:
            raise ToolkitError(f"Images of {height} x {width} pixels: {MAX_SIDE} a side are allowed.")
        if value.size and value.shape[4] == 3 and max(height, width) > MAX_RATIO * min(height, width):
            raise ToolkitError(
                f"Images of {height} x {width} pixels are too narrow: one side may be {MAX_RATIO} times the other."
            )


def _arguments(data: Any, *names: str) -> dict[str, Any]:
    """The request's data with its options; both may be missing."""
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ToolkitError(f"A request's data is a map of {', '.join(names)}, not {type(data).__name__}.")
    for name in data:
        look_up(dict.fromkeys(names), name, f'The data has "{name}", which is no argument.')
    options = {} if data.get("options") is None else data["options"]
    if not isinstance(options, dict):
        raise ToolkitError(f"options is a map or null, not {type(options).__name__}.")
    return {**data, "options": options}


class RequestLog:
    """Counts every request; logs the first answered get_action and then a line per `every` of them, and refusals at
    most once a second."""

    def __init__(self, every: int) -> None:
        self.requests = self._answered = 0
        self._every = every
        self._seconds: list[float] = []  # of the actions since the last line
        self._refused = 0  # since the last line of a refusal
        self._spoke = -_SECONDS_BETWEEN_ERRORS

    def note(self, reply: Reply, seconds: float) -> None:
        """Take one reply and the seconds it took."""
        self.requests += 1
        if reply.error is not None:
            self._refused += 1
            now = time.monotonic()
            if now - self._spoke >= _SECONDS_BETWEEN_ERRORS:
                more = f" ({self._refused} refusals since the last line)" if self._refused > 1 else ""
                log.warning("%s refused: %s%s", reply.endpoint, reply.error, more)
                self._spoke, self._refused = now, 0
        elif reply.endpoint == "get_action":
            self._answered += 1
            self._seconds.append(seconds)
            if self._answered == 1 or self._answered % self._every == 0:
                mean, most = sum(self._seconds) / len(self._seconds), max(self._seconds)
                log.info("get_action %d: %.0f ms on average, %.0f at most", self._answered, 1e3 * mean, 1e3 * most)
                self._seconds.clear()


class PolicyServer(AbstractContextManager["PolicyServer"]):
    """Serves one policy by NVIDIA's protocol: ZeroMQ REP over TCP, msgpack maps (gr00t.server.messages).

    Bound, and reachable, once constructed; `run` answers, by which time `endpoints.policy` is needed. Attributes: url;
    port. Not for use by several threads, but for `stop`.
    """

    def __init__(
        self,
        policy: Any,
        host: str = "127.0.0.1",
        port: int = 5555,
        api_token: str | None = None,
        *,
        max_batch: int = 64,
        log_every: int = 100,
    ) -> None:
        """policy, api_token, max_batch: as of Endpoints; a token is needed wherever other machines can connect. port: 0
        takes any free one. log_every: requests for actions a line of the log.

        Raises ToolkitError where it cannot or may not listen.
        """
        import zmq  # here, so that an address can be checked without the packages of the extra "serve"

        ip, port = find_address(host, port, api_token)
        self.endpoints = Endpoints(policy, api_token, max_batch)
        self._log = RequestLog(log_every)
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.IPV6, int(":" in ip))
        self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        # A client has one request under way. Twice the limit still gets an answer that says so; more is cut off.
        self._socket.setsockopt(zmq.RCVHWM, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 2 * MAX_MESSAGE)
        try:
            self._socket.bind(tcp_url(ip, port))
        except zmq.ZMQError as error:
            self.close()
            reason = _NOT_LISTENING.get(error.errno or 0, str(error)).format(next=port + 1)
            raise ToolkitError(f"{tcp_url(ip, port)}: {reason}") from None
        self.url = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(self.url.rpartition(":")[2])

    def run(self) -> int:
        """Answer requests until `stop` or an allowed request to the endpoint kill; returns how many there were."""
        import zmq

        while not self._stop.is_set():
            if self._socket.poll(200):  # ms, after which a stop is noticed
                begin = time.perf_counter()
                try:
                    frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:  # what came was no request, and ZeroMQ threw it away: the next one may never come
                    continue
                if len(frames) == 1:
                    reply = self.endpoints.answer(frames[0].buffer)
                else:
                    reply = error_reply(f"A request is one frame, not {len(frames)}.")
                self._socket.send(reply.body)
                self._log.note(reply, time.perf_counter() - begin)
                if reply.endpoint == "kill" and reply.error is None:
                    self.stop()
        return self._log.requests

    def stop(self) -> None:
        """End `run` after the request it is at; from any thread or signal handler."""
        self._stop.set()

    def close(self) -> None:
        """Give the port back; the last reply has a second to leave."""
        self._socket.close(1000)
        self._context.term()

    def __exit__(self, *_: object) -> None:
        self.close()
