"""The number of the HTTP port: what keeps it for several gateways, and what is said when it cannot be had."""

from __future__ import annotations

import errno
import socket

from ipc.process import FatalError


class Claim:
    """Keeps a port for those that listen on it together, from before the first of them to behind the last.

    Each gateway binds with SO_REUSEPORT, and whoever does so, too, gets a part of the connections: a second server of
    the same user would not be refused, but share the clients of the first. So the supervisor binds the port alone
    first, and opens it to others of its user only then. It never listens, and so gets no connections.
    """

    def __init__(self, host: str, port: int) -> None:
        """Port 0 takes a free one, which `port` then names. Raises FatalError when it cannot be had."""
        self.port = port
        self._sockets: list[socket.socket] = []
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, address in dict.fromkeys((each[0], each[4]) for each in found):  # a name may have one twice
                self._bind(family, (address[0], self.port, *address[2:]))
        except OSError as error:
            self.release()
            raise FatalError(why_not(error, host, port)) from None

    def _bind(self, family: int, address: tuple[str | int, ...]) -> None:
        holder = socket.socket(family, socket.SOCK_STREAM)
        self._sockets.append(holder)
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Connections of a server before this one, which still fade away, are no obstacle; another claim is.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(address)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.port = holder.getsockname()[1]

    def release(self) -> None:
        for holder in self._sockets:
            holder.close()


def why_not(error: OSError, host: str, port: int) -> str:
    """The one line that says why a port could not be bound, and what to do."""
    where = f"port {port} on {host}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{where} is in use: choose another with --port, or 0 for any free one"
        case errno.EACCES:
            return f"{where} needs more rights than this process has: choose one above 1023 with --port"
        case _:
            reason = error.strerror or str(error)
            return f"{where} cannot be opened ({reason}): choose another address with --host and --port"
