"""The socket of the policy server: one request at a time, in the order in which clients take turns."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import zmq

from gr00t.server.address import Address, find_address, refused
from gr00t.server.endpoints import MAX_BATCH, Endpoints, Policy, Reply, error_reply
from gr00t.server.messages import MAX_MESSAGE
from gr00t.server.request_log import RequestLog

_TURN_MS = 200  # how soon a stop is noticed
_LAST_REPLY_MS = 1000  # how long the last reply may take to leave


class PolicyServer:
    """Serves one policy by NVIDIA's protocol: ZeroMQ REP over TCP, msgpack maps (gr00t.server.messages).

    Bound, and reachable, once constructed; `run` answers. Attributes: url; port. Not for use by several threads, but
    for `stop`.
    """

    def __init__(
        self,
        policy: Policy,
        host: str = "127.0.0.1",
        port: int = 5555,
        api_token: str | None = None,
        *,
        max_batch: int = MAX_BATCH,
        log_every: int = 100,
    ) -> None:
        """api_token: what every request must carry, needed wherever other machines can connect. port: 0 takes any free
        one. max_batch: robots in one request. log_every: requests for actions a line of the log.

        Raises ToolkitError where it cannot or may not listen.
        """
        address = find_address(host, port, api_token)
        self._endpoints = Endpoints(policy, api_token, max_batch)
        self._log = RequestLog(log_every)
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._bind(address)
        self.url = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(self.url.rpartition(":")[2])

    def run(self) -> int:
        """Answer requests until `stop` or an allowed request to the endpoint kill; returns how many there were."""
        while not self._stop.is_set():
            if self._socket.poll(_TURN_MS):
                begin = time.perf_counter()
                reply = self._answer(self._socket.recv_multipart(copy=False))
                self._socket.send(reply.body)
                self._log.note(reply, time.perf_counter() - begin)
                if reply.endpoint == "kill" and reply.error is None:
                    self.stop()
        return self._log.requests

    def stop(self) -> None:
        """End `run` after the request it is at; from any thread or signal handler."""
        self._stop.set()

    def close(self) -> None:
        """Give the port back."""
        self._socket.close(_LAST_REPLY_MS)
        self._context.term()

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bind(self, address: Address) -> None:
        self._socket.setsockopt(zmq.IPV6, int(":" in address.ip))
        self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        # A client has one request under way. Twice the limit still gets an answer that tells it; more is cut off.
        self._socket.setsockopt(zmq.RCVHWM, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 2 * MAX_MESSAGE)
        try:
            self._socket.bind(address.url)
        except zmq.ZMQError as error:
            self.close()
            raise refused(address, error.errno) from None

    def _answer(self, frames: list[zmq.Frame]) -> Reply:
        if len(frames) > 1:
            return error_reply(f"A request is one frame, not {len(frames)}.")
        return self._endpoints.answer(frames[0].buffer)
