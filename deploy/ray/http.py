"""What travels between the front door and the rings: a request, and how its answer begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# They speak of one connection (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    (
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    )
)  # fmt: skip
# Of a request, written anew for the ring.
OF_THE_CLIENT = frozenset(("content-length", "expect", "host"))
# Of an answer, written by Serve's proxy as well; the request's name is the same one, for the proxy has named it.
OF_THE_PROXY = frozenset(("date", "server", "x-request-id"))

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for. The path is as it was sent, with its query; the body is whole."""

    method: str
    path: str
    headers: Headers
    body: bytes

    @property
    def route(self) -> str:
        """The path without its query."""
        return self.path.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins; the parts of its body follow."""

    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, and whose it is."""

    replica: str
    head: Head
    body: bytes


@dataclass(frozen=True, slots=True)
class Unready:
    """In place of a head: this replica has not looked at the request, and another one may."""

    replica: str
    reason: str


def end_to_end(headers: Iterable[tuple[str, str]], and_not: frozenset[str]) -> Headers:
    """The headers that a next hop has to see, less those of `and_not`."""
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | and_not]
