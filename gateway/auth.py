"""Who may use the server: the keys that it accepts, and the one that a request shows.

All routes need a key, once there is one, but those of `OPEN_ROUTES`: a route that is added later is closed by itself.
Keys are compared as bytes and in constant time, and never shown, neither in logs nor in errors.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from aiohttp import hdrs, web

from gateway.errors import ApiError, refuse
from ipc.process import FatalError

OPEN_ROUTES = frozenset(("/health", "/ready", "/metrics"))
# Anthropic's clients show their key in a header of their own, on the routes of that dialect.
ANTHROPIC_KEY_HEADER = "x-api-key"
ANTHROPIC_ROUTES = ("/v1/messages", "/v1/messages/count_tokens")


class KeyRing:
    """The keys that are accepted; with none, everybody is."""

    def __init__(self, keys: Sequence[str]) -> None:
        # Digests have one length, so that a comparison tells nothing of a key's.
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, request: web.BaseRequest) -> None:
        """Raise ApiError 401 unless the request shows a key that is accepted, or needs none; 400 for two headers."""
        keys = shown_keys(request)
        if not self._digests or request.path in OPEN_ROUTES:
            return
        digests = [_digest(key) for key in keys]
        # All are compared, whichever fits.
        if not sum(hmac.compare_digest(digest, own) for digest in digests for own in self._digests):
            fault = "the API key is wrong" if keys else "an API key is needed, in the header Authorization: Bearer KEY"
            raise ApiError(401, fault, headers={"WWW-Authenticate": "Bearer"})


def shown_keys(request: web.BaseRequest) -> list[str]:
    """The keys that a request shows. Raises ApiError 400 when a header that may hold one is there twice."""
    keys = []
    for name in (hdrs.AUTHORIZATION, ANTHROPIC_KEY_HEADER):
        values = request.headers.getall(name, [])
        if len(values) > 1:
            refuse(f"{name}: the header is there {len(values)} times", name)
        if not values:
            continue
        if name == ANTHROPIC_KEY_HEADER:
            if request.path in ANTHROPIC_ROUTES:
                keys.append(values[0].strip())
            continue
        scheme, _, key = values[0].partition(" ")
        if scheme.lower() == "bearer":
            keys.append(key.strip())
    return [key for key in keys if key]


def load_keys(keys: Sequence[str], file: str) -> KeyRing:
    """The keys of the options: `keys` themselves, and the lines of `file` unless that is "". Raises FatalError."""
    return KeyRing([*keys, *(_keys_in(Path(file)) if file else [])])


def _keys_in(file: Path) -> list[str]:
    try:
        lines = file.read_bytes().decode(errors="surrogateescape").splitlines()
    except OSError as error:
        raise FatalError(f"--api-key-file {file}: {error.strerror}") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise FatalError(f"--api-key-file {file}: there is no key in it; write one a line")
    return keys


def is_public(host: str) -> bool:
    """Whether an address to listen on may be reached from other machines."""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _digest(key: str) -> bytes:
    # Bytes that are not UTF-8 come as surrogates, both from the command line and from a header.
    return sha256(key.encode(errors="surrogateescape")).digest()
