"""A server that speaks openpi's websocket protocol, in a thread of the tests, over a scripted policy."""

from __future__ import annotations

import http
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from gr00t.server.messages import as_openpi, decode, pack, unpack

Answer = Callable[[dict[str, Any]], Any]


def actions(observation: dict[str, Any]) -> dict[str, Any]:
    """Twelve steps that hold the state."""
    return {"actions": np.tile(observation["observation/state"].astype(np.float64), (12, 1)), "server_timing": {}}


@contextmanager
def openpi_server(answer: Answer = actions, metadata: Any = None, api_key: str | None = None) -> Iterator[str]:
    """The address of a server on a free loopback port. answer: the reply to an observation, bytes as they are; an
    exception is sent as openpi sends one. metadata: sent first; bytes and texts as they are. api_key: demanded."""

    def handle(connection: ServerConnection) -> None:
        first = {} if metadata is None else metadata
        try:
            connection.send(first if isinstance(first, bytes | str) else pack(first, as_openpi))
            for message in connection:
                try:
                    reply = answer(decode(unpack(message)))
                except Exception as error:
                    connection.send(f"Traceback (most recent call last):\n  File x\n{type(error).__name__}: {error}\n")
                    connection.close(1011)
                    return
                connection.send(reply if isinstance(reply, bytes) else pack(reply, as_openpi))
        except ConnectionClosed:
            pass

    def let_in(connection: ServerConnection, request: Any) -> Any:
        if api_key is not None and request.headers.get("Authorization") != f"Api-Key {api_key}":
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "no\n")
        return None

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None, process_request=let_in) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(10)
            assert not thread.is_alive()
