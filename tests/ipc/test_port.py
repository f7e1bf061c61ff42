"""The claim of a port that several gateways share."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ipc.port import Claim
from ipc.process import FatalError


@pytest.fixture
def claim() -> Iterator[Claim]:
    claim = Claim("127.0.0.1", 0)
    yield claim
    claim.release()


def listener(port: int, shared: bool) -> socket.socket:
    """A socket that listens as a gateway does."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    found.bind(("127.0.0.1", port))
    found.listen()
    return found


def test_gateways_share_it_and_nobody_else_does(claim: Claim) -> None:
    gateways = [listener(claim.port, shared=True) for _ in range(2)]
    with socket.create_connection(("127.0.0.1", claim.port)):
        pass
    with pytest.raises(OSError, match="in use"):
        listener(claim.port, shared=False)
    with pytest.raises(FatalError, match=f"port {claim.port} on 127.0.0.1 is in use: choose another with --port"):
        Claim("127.0.0.1", claim.port)
    for gateway in gateways:
        gateway.close()


def test_it_is_kept_while_no_gateway_is_there(claim: Claim) -> None:
    listener(claim.port, shared=True).close()
    with pytest.raises(FatalError, match="is in use"):
        Claim("127.0.0.1", claim.port)
    listener(claim.port, shared=True).close()


def test_it_is_had_again_at_once(claim: Claim) -> None:
    gateway = listener(claim.port, shared=True)
    client = socket.create_connection(("127.0.0.1", claim.port))
    connection, _ = gateway.accept()
    connection.close()  # the server closes first, and its end of the connection fades away
    client.close()
    gateway.close()
    claim.release()
    Claim("127.0.0.1", claim.port).release()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_cannot_be_had(host: str) -> None:
    with pytest.raises(FatalError, match="choose another address with --host"):
        Claim(host, 0)
