"""The client of a policy server of openpi's websocket protocol. It needs numpy, msgpack and websockets (openpi-client
itself asks for numpy 1)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from gr00t.data.schema import ModalityConfig, ModalityConfigs, as_numpy, flattened, instructions, look_up
from gr00t.errors import ToolkitError
from gr00t.server.client import NoAnswer, ServerRefusal, check_wait, finite
from gr00t.server.messages import MAX_MESSAGE, as_openpi, decode, pack, printable, unpack
from gr00t.server.server import TOKEN

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

WIDTH = 8  # of state and actions: seven joints and the gripper
_CONNECT_SECONDS = 10.0
_SPEAKS_FIRST_SECONDS = 0.2  # in which a server of NVIDIA's protocol shows itself; websockets wait for the client


class OpenpiClient(AbstractContextManager["OpenpiClient"]):
    """Acts as the served policy does. The protocol knows neither seeds nor batches, so it is asked for one robot at a
    time, and takes messages as openpi-client writes them, but no pickle. For one thread at a time.

    Attributes: url; metadata, what the server said of itself; modality_configs, without the action's: the number of
    steps is known from the first answer on.
    """

    max_batch = 1

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 120.0) -> None:
        """Connect to ws://HOST:PORT or wss://HOST. timeout: seconds to wait for an answer; the first ones compile.

        Raises NoAnswer where no such server answers, ServerRefusal where it does not let this client in.
        """
        check_wait("timeout", timeout)
        if api_key is not None and not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
            raise ToolkitError(  # the library that sends it would show it
                f"The token holds a line break or another character that no header may have. Export {TOKEN} without it."
            )
        self.url, self.timeout = url, timeout
        keys = {"video": ["image", "wrist_image"], "state": ["state"], "language": ["prompt"]}
        self.modality_configs: ModalityConfigs = {name: ModalityConfig([0], of) for name, of in keys.items()}
        self._socket = self._connect(api_key)
        metadata = self._receive("metadata")
        if not isinstance(metadata, dict):
            self.close()
            raise self._strange(f"It began with {_kind(metadata)}, not with a map of metadata")
        self.metadata: dict[str, Any] = metadata

    def get_action(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """{"action.action": (1, H, 8) float32} from video.image, video.wrist_image (1, 1, H, W, 3) uint8, state.state
        (1, 1, 8) float32 and one prompt. Raises NoAnswer, ServerRefusal, and ToolkitError for actions of no use."""
        sent = dict(_as_openpis(name, value) for name, value in flattened(observation).items())
        with self._named("actions"):
            self._socket.send(pack(sent, as_openpi))
        reply = self._receive("actions")
        actions = reply.get("actions") if isinstance(reply, dict) else None
        if not isinstance(actions, np.ndarray):
            names = f"a map of {', '.join(map(str, reply))}" if isinstance(reply, dict) else _kind(reply)
            raise self._strange(f'It answered {names}, without an array "actions"')
        if actions.ndim != 2 or actions.shape[1] != WIDTH:
            raise ToolkitError(
                f"{self.url}: the actions have the shape {actions.shape}; expected (steps, {WIDTH}), seven joint "
                "targets and the gripper. Serve a policy that was trained on such actions."
            )
        return {"action.action": finite(actions[None], self.url, "action")}

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, api_key: str | None) -> ClientConnection:
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        try:
            parts = urlsplit(self.url)
            port = parts.port or (443 if parts.scheme == "wss" else 80)
        except (ValueError, AttributeError):  # a port beyond 65535 or no number, half an IPv6 address, no text
            parts, port = urlsplit(""), 0
        if parts.scheme not in ("ws", "wss") or not parts.hostname or "@" in parts.netloc or not port:
            shown = str(self.url).rpartition("@")[2]  # what precedes it may be a secret
            raise ToolkitError(f"{shown}: write ws://HOST:PORT, as in ws://127.0.0.1:8000.")
        try:
            plain = socket.create_connection((parts.hostname, port), _CONNECT_SECONDS)
        except (OSError, UnicodeError) as error:
            raise NoAnswer(
                f"{self.url}: nothing listens there ({getattr(error, 'strerror', None) or error}). Start the server, "
                "and look at the host, the port and, from another machine, the tunnel or firewall."
            ) from None
        if (first := _speaks_first(plain)) is not None:
            plain.close()
            ends = "ends the connection at once, as a tunnel to nothing does"
            raise self._strange("It speaks first, as ZeroMQ does" if first else f"It {ends}")
        # A server that stops reading must not block a large request for ever; Python's own time-out would be one of
        # idle waiting too.
        plain.settimeout(None)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", max(1, int(self.timeout)), 0))
        try:
            return connect(
                self.url,
                sock=plain,
                compression=None,
                max_size=MAX_MESSAGE,
                additional_headers={"Authorization": f"Api-Key {api_key}"} if api_key else None,
                open_timeout=self.timeout,
                ping_interval=None,  # a server that compiles answers no pings
                close_timeout=1,
            )
        except InvalidStatus as error:
            if (status := error.response.status_code) in (401, 403):  # what proxies answer without the right token
                wrong = f"another token than that of {TOKEN}" if api_key else f"a token: export {TOKEN}=..."
                raise ServerRefusal(f"{self.url}: the server asks for {wrong} (HTTP {status}).") from None
            raise self._strange(f"It answers HTTP {status}") from None
        except (OSError, EOFError, WebSocketException) as error:
            raise self._strange(f"It does not open a websocket ({error})") from None

    def _receive(self, what: str) -> Any:
        """The next message, arrays decoded; a text is an error of the server's, a traceback as a rule."""
        with self._named(what):
            message = self._socket.recv(self.timeout)
        if isinstance(message, str):
            self.close()
            last = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason"]
            raise ServerRefusal(f"{self.url}: the server failed: {printable(last[-1])} (its log says more).")
        try:
            return decode(unpack(message))
        except ToolkitError as error:
            self.close()
            raise self._strange(f"Its answer cannot be read: {error}") from None

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Say what ended a connection. It is not used again: a late answer would pass for that to a later request."""
        from websockets.exceptions import ConnectionClosed

        try:
            yield
        except TimeoutError:
            self.close()
            raise NoAnswer(
                f"{self.url}: no {what} within {self.timeout:g} s. The server is stuck or too slow: see its log."
            ) from None
        except (OSError, ConnectionClosed) as error:
            self.close()
            raise NoAnswer(
                f"{self.url}: the connection ended before the {what} came ({printable(str(error), 200)}). See the "
                "server's log, start it again, and then this command."
            ) from None

    def _strange(self, found: str) -> NoAnswer:
        return NoAnswer(
            f"{self.url}: what listens there is no policy server of openpi's. {printable(found, 300)}. Of a server of "
            "NVIDIA's protocol give HOST:PORT, without ws://."
        )


def _as_openpis(name: str, value: Any) -> tuple[str, Any]:
    """Under openpi's name one robot's image (H, W, 3), state (8,) or prompt, of what is given as a batch of one."""
    expected = {"video.image": np.uint8, "video.wrist_image": np.uint8, "state.state": np.float32, "prompt": None}
    look_up(expected, name, f'The observation has "{name}", which openpi\'s protocol does not have.')
    image, value = name.startswith("video."), as_numpy(value)
    found = instructions(value, name) if name == "prompt" else np.asarray(value)
    if np.ndim(found) and len(found) != 1:
        raise ToolkitError(f"{name}: openpi's protocol takes one robot at a time, not {len(found)}.")
    if isinstance(found, list):
        return name, found[0]
    known = found.dtype == np.uint8 and found.ndim == 5 if image else found.dtype.kind == "f" and found.ndim == 3
    if not known or found.shape[1] != 1 or found.shape[-1] != (3 if image else WIDTH) or not found.size:
        wanted = "(1, 1, H, W, 3) uint8" if image else f"(1, 1, {WIDTH}) float32"
        raise ToolkitError(f"{name}: expected {wanted}, found {found.shape} {found.dtype}.")
    if not image and not np.isfinite(found).all():
        raise ToolkitError(f"{name}: it holds values that are not finite. Mend them at their source.")
    return f"observation/{name.partition('.')[2]}", found[0, 0]


def _speaks_first(plain: socket.socket) -> bytes | None:
    """The first byte of a server that does not wait for its client; empty where it has gone; else None."""
    plain.settimeout(_SPEAKS_FIRST_SECONDS)
    try:
        return plain.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return None
    except OSError:
        return b""


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
