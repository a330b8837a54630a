"""A policy server in a thread of the tests, and a client built from msgpack and ZeroMQ alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import zmq

from gr00t.server.server import PolicyServer

SECONDS = 20


@contextmanager
def served(policy: Any, **options: Any) -> Iterator[PolicyServer]:
    """A server on a free loopback port, which must have ended by itself or do so when asked to."""
    with PolicyServer(policy, port=0, **options) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join(SECONDS)
            assert not thread.is_alive()


@contextmanager
def raw_socket(server: PolicyServer, kind: int = zmq.REQ) -> Iterator[zmq.Socket]:
    """A socket that sends what it is given, well-formed or not."""
    context = zmq.Context()
    connected = context.socket(kind)
    connected.setsockopt(zmq.LINGER, 0)
    connected.setsockopt(zmq.RCVTIMEO, 1000 * SECONDS)
    connected.connect(server.url)
    try:
        yield connected
    finally:
        connected.close()
        context.term()


def ask(server: PolicyServer, message: bytes) -> Any:
    """The unpacked answer to the bytes of one request, arrays as the maps that describe them."""
    with raw_socket(server) as connected:
        connected.send(message)
        return msgpack.unpackb(connected.recv())
