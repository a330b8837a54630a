"""A policy over the network, in the protocol of NVIDIA's GR00T N1.7: `PolicyServer` and `PolicyClient`; a client of
openpi's servers: `OpenpiClient`.

The clients need neither torch nor a checkpoint. Both are imported on first use, when their packages have to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gr00t.errors import require_extra

if TYPE_CHECKING:
    from gr00t.server.client import PolicyClient
    from gr00t.server.openpi_client import OpenpiClient
    from gr00t.server.server import PolicyServer

__all__ = ["OpenpiClient", "PolicyClient", "PolicyServer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_extra("serve", "The policy server and its client need", zmq="pyzmq", msgpack="msgpack")
    if name == "OpenpiClient":
        require_extra("serve", "The client of openpi's servers needs", websockets="websockets")
    from gr00t.server import client, openpi_client, server

    return getattr({"PolicyServer": server, "PolicyClient": client, "OpenpiClient": openpi_client}[name], name)
