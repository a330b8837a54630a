"""Where a server may listen: on this machine as it likes, elsewhere only with a token."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass

from gr00t.errors import ToolkitError

TOKEN = "GROOT_API_TOKEN"  # the environment variable; arguments of a command can be read by everybody on the machine
SHORTEST_TOKEN = 16
MAKE_TOKEN = f"""export {TOKEN}="$(python -c 'import secrets; print(secrets.token_urlsafe())')\""""


@dataclass(frozen=True)
class Address:
    """A numeric address and a port (0: any free one)."""

    ip: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.ip else socket.AF_INET

    @property
    def url(self) -> str:
        """The address as ZeroMQ writes it."""
        return f"tcp://[{self.ip}]:{self.port}" if ":" in self.ip else f"tcp://{self.ip}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.ip).is_loopback


def find_address(host: str, port: int, api_token: str | None) -> Address:
    """The address to listen on; * is every network. Raises ToolkitError for one that is unknown or would lie open to
    others without a token, and for a token that could be guessed."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ToolkitError(f"port={port}: a port is a number from 1 to 65535, or 0 for any free one.")
    try:
        found = socket.getaddrinfo("0.0.0.0" if host == "*" else host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ToolkitError(f"host={host}: this machine knows no such address ({error}). Try host=127.0.0.1.") from None
    address = Address(str(found[0][4][0]).partition("%")[0], port)
    if api_token is None and not address.is_loopback:
        raise ToolkitError(
            f"host={host} lets other machines use and stop the policy, so it needs a token: {MAKE_TOKEN} (clients give "
            "the same as api_token). Or leave host=127.0.0.1, and reach it by ssh -L."
        )
    if api_token is not None and (len(api_token) < SHORTEST_TOKEN or not api_token.isprintable()):
        raise ToolkitError(
            f"The token has {len(api_token)} characters. Take {SHORTEST_TOKEN} at least, without line breaks: "
            f"{MAKE_TOKEN}"
        )
    return address


def check_free(address: Address) -> None:
    """Refuse an address that cannot be listened on, as long as that costs nothing."""
    try:
        socket.create_server((address.ip, address.port), family=address.family).close()
    except OSError as error:
        raise refused(address, error.errno) from None


def refused(address: Address, number: int | None) -> ToolkitError:
    """Why the system does not let us listen there, in words."""
    reasons = {
        errno.EADDRINUSE: "another program, perhaps another server, is listening there. Stop it, or choose another "
        f"port: port={address.port + 1}, or port=0 for any free one.",
        errno.EADDRNOTAVAIL: "this machine has no such address. Try host=127.0.0.1.",
        errno.EACCES: "ports below 1024 belong to the system. Choose a higher one: port=5555.",
    }
    return ToolkitError(f"{address.url}: {reasons.get(number or 0, os.strerror(number or 0))}")
