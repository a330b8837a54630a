"""The client of a policy server of NVIDIA's protocol: a policy that computes elsewhere. It needs numpy, msgpack and
pyzmq."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import zmq

from gr00t.data.schema import ModalityConfigs, as_numpy, flattened, from_json
from gr00t.errors import ToolkitError
from gr00t.server.messages import MAX_MESSAGE, ZERO_STATE, decode, pack, printable, tcp_url, unpack

MOST_ROBOTS = 64  # in a request to a server that names no limit: what fits into a message
_PROBE_SECONDS = 1.0
_LABEL = r"\w[\w-]{0,62}"
# a name or IPv4 address, or an IPv6 one
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?|[0-9a-fA-F.:]*::?[0-9a-fA-F.:]*(%\w+)?", re.ASCII)


class ServerRefusal(ToolkitError):
    """The server answered with an error; the message is its own, with the server's address."""


class NoAnswer(ToolkitError):
    """The server did not answer in time, or what answered is no policy server."""


class PolicyClient(AbstractContextManager["PolicyClient"]):
    """Acts as the policy of a server does: `get_action` gives what the local GR00TPolicy gives, bit for bit.

    Works with NVIDIA's server too, but for the seed, which that one ignores. For one thread at a time.
    """

    def __init__(
        self, host: str = "localhost", port: int = 5555, timeout_ms: int = 15000, api_token: str | None = None
    ) -> None:
        """timeout_ms: how long to wait for each answer. Nothing is sent yet, so the server may start later."""
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
            raise ToolkitError(f"port={port!r}: a server's port is a whole number from 1 to 65535.")
        if not isinstance(host, str) or not _HOST.fullmatch(host):
            raise ToolkitError(
                f'"{host}" is no host. Give a name or an address alone, as in localhost; the port apart.'
            )
        check_wait("timeout_ms", timeout_ms)
        self.host, self.port, self.timeout_ms = host, port, timeout_ms
        self.url = tcp_url(host, port)
        self._token, self._said = api_token, dict[str, Any]()
        self._context = zmq.Context()
        self._socket = self._connected()

    def ping(self) -> bool:
        """Whether a server answers; raises ToolkitError where it does, but refuses (the token)."""
        try:
            self._call("ping")
        except NoAnswer:
            return False
        return True

    @property
    def max_batch(self) -> int:
        """Robots in one request at most. Servers that do not say it, NVIDIA's, take any number."""
        most = self._told().get("max_batch", MOST_ROBOTS)
        return most if isinstance(most, int) and most > 0 else 1

    @property
    def heeds(self) -> Sequence[str]:
        """The options of a request that the server heeds: of "seed" and "zero_state"; of NVIDIA's none."""
        options = self._told().get("options")
        return options if isinstance(options, list) else []

    @property
    def identity(self) -> str | None:
        """By what the served policy is known again: its weights and settings; None where the server does not say it."""
        found = self._told().get("identity")
        return found if isinstance(found, str) else None

    def get_action(
        self, observation: Mapping[str, Any], seed: int | Sequence[int] | None = None, drop_state: bool = False
    ) -> dict[str, np.ndarray]:
        """{"action.<group>": (B, horizon, D) float32} in robot units, from a flat or nested observation.

        seed: of the noise, one for all robots or one each. drop_state hides the state from the model. Raises
        ServerRefusal with what is wrong with the observation, NoAnswer where none comes in time.
        """
        if not isinstance(drop_state, bool | np.bool_):
            raise ToolkitError(f"drop_state is True or False, not {drop_state!r}.")
        given = {"seed": int(seed) if isinstance(seed, np.integer) else seed, ZERO_STATE: bool(drop_state) or None}
        options = {name: value for name, value in given.items() if value is not None} or None
        if drop_state and ZERO_STATE not in self.heeds:
            raise ToolkitError(f"{self.url}: this server cannot hide the state from its model ({ZERO_STATE}).")
        reply = self._call("get_action", {"observation": nested(observation), "options": options})
        actions = reply[0] if isinstance(reply, list) and reply else None
        if not isinstance(actions, dict) or not actions or not all(map(_is_chunk, actions.values())):
            raise self._strange("get_action")
        return {f"action.{group}": finite(values, self.url, group) for group, values in actions.items()}

    def reset(self) -> None:
        """Begin a new episode. Our policies remember nothing; others may."""
        self._call("reset", {"options": None})

    def get_modality_config(self) -> ModalityConfigs:
        """The four modalities that the served policy was trained with."""
        reply = self._call("get_modality_config")
        try:
            configs = from_json({name: config["as_json"] for name, config in reply.items()})
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            configs = {}
        if not configs:
            raise self._strange("get_modality_config")
        return configs

    def kill(self) -> None:
        """Stop the server."""
        self._call("kill")

    def close(self) -> None:
        """Give the connection back."""
        self._socket.close(0)
        self._context.term()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _told(self) -> dict[str, Any]:
        """What the server says of itself, asked once."""
        if not self._said:
            reply = self._call("ping")
            self._said = reply if isinstance(reply, dict) and reply else {"status": "ok"}
        return self._said

    def _call(self, endpoint: str, data: dict[str, Any] | None = None) -> Any:
        request = {"endpoint": endpoint, "data": data, "api_token": self._token}
        message = pack({name: value for name, value in request.items() if value is not None})
        if len(message) > MAX_MESSAGE:
            raise ToolkitError(
                f"The observation has {len(message) / 2**20:.0f} MiB; {MAX_MESSAGE / 2**20:.0f} fit into a message. "
                "Send fewer robots, or smaller images, at once."
            )
        reply = self._exchange(message, endpoint)
        if isinstance(reply, dict) and "error" in reply:
            raise ServerRefusal(f"{self.url}: {printable(str(reply['error']))}")
        return reply

    def _connected(self) -> zmq.Socket[bytes]:
        """A socket for one request after another; none waits for a server to come."""
        connected = self._context.socket(zmq.REQ)
        for option in (zmq.REQ_RELAXED, zmq.REQ_CORRELATE):  # a request takes no answer but its own
            connected.setsockopt(option, 1)
        address = self._address()
        connected.setsockopt(zmq.IPV6, int(":" in address))
        connected.setsockopt(zmq.LINGER, 0)
        connected.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        try:
            connected.connect(tcp_url(address, self.port))
        except zmq.ZMQError as error:
            connected.close(0)
            raise ToolkitError(f"{self.url} is no address ({error.strerror}). Look at the host and the port.") from None
        return connected

    def _address(self) -> str:
        """The host; of a name that has IPv6 addresses alone, one of them: ZeroMQ looks for one kind only."""
        if ":" in self.host:
            return self.host
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # the name may be known later
            return self.host
        is_ipv4 = any(family == socket.AF_INET for family, *_ in found)
        return self.host if is_ipv4 or not found else str(found[0][4][0])

    def _exchange(self, message: bytes, endpoint: str) -> Any:
        if self._socket.closed:
            raise ToolkitError(f"{self.url}: this client is closed. Make another PolicyClient.")
        answer = None
        try:
            self._socket.send(message)
            answer = self._socket.recv() if self._socket.poll(self.timeout_ms) else None
        finally:
            if answer is None:  # the request would still reach a server that starts later, and "kill" would stop it
                self._socket.close(0)
                self._socket = self._connected()
        if answer is None:
            raise self._silence(endpoint)
        try:
            return decode(unpack(answer))
        except ToolkitError:
            raise self._strange(endpoint) from None

    def _silence(self, endpoint: str) -> NoAnswer:
        try:
            socket.create_connection((self.host, self.port), _PROBE_SECONDS).close()
            advice = (
                "Something listens there: it may be busy with others, or no policy server of this protocol (openpi's "
                f"are ws://{self.host}:{self.port}); else give a longer timeout_ms."
            )
        except (OSError, UnicodeError):
            advice = (
                "Nothing listens there: start the server (python -m gr00t.serve checkpoint=... port="
                f"{self.port}), and look at the host, the port and, from another machine, the tunnel or firewall."
            )
        return NoAnswer(f"{self.url}: no answer to {endpoint} within {self.timeout_ms / 1000:g} s. {advice}")

    def _strange(self, endpoint: str) -> NoAnswer:
        return NoAnswer(
            f"{self.url}: what answers there gave no answer to {endpoint}. Is it a GR00T N1.7 policy server?"
        )


def nested(observation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """An observation as NVIDIA's server reads it: {"video": {view: array}, "state": {group: array}, "language": {key:
    [[str]]}}. What does not belong there is left for the server to name."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in flattened(observation).items():
        modality, _, key = name.partition(".")
        if modality in ("video", "state"):
            found.setdefault(modality, {})[key] = as_numpy(value)
        else:
            found.setdefault("language", {})[name] = _texts(value)
    return found


def _texts(value: Any) -> Any:
    """[[str], ...] of one text, a list or an array of them."""
    rows = value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind in "UO" else value
    rows = [rows] if isinstance(rows, str) else rows
    return [[row] if isinstance(row, str) else row for row in rows] if isinstance(rows, list | tuple) else rows


def check_wait(name: str, value: Any) -> None:
    """Refuse a time to wait that would be without end, or none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ToolkitError(f"{name}={value!r}: expected a number above 0, the longest wait for an answer.")


def _is_chunk(values: Any) -> bool:
    """Whether that may be the actions (B, horizon, D) of a group."""
    return isinstance(values, np.ndarray) and values.ndim == 3 and values.dtype.kind in "fiu"


def finite(values: np.ndarray, url: str, group: str) -> np.ndarray:
    """The actions of a group as float32, which no robot is to run where they are NaN or infinite."""
    with np.errstate(over="ignore"):  # what overflows is refused
        found = values.astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise ToolkitError(
            f'{url}: the "{group}" actions are not finite: do not run them. See whether the served policy\'s training '
            "diverged, or serve it in another precision."
        )
    return found
