"""A request body: read within its limits of size and time, parsed, and checked before anything looks at its meaning.

Everything here is linear in the size of the body, and what would make the parser slow is refused before it parses:
the event loop serves everybody.
"""

from __future__ import annotations

import asyncio
import json
import math
from array import array
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import orjson
from aiohttp import hdrs, web

from gateway.errors import SHOWN_NAME_CHARS, ApiError, refuse, shorten
from ipc.codec import INT64_MAX, INT64_MIN

MAX_DEPTH = 64
MAX_KEYS = 10_000
# Parsing costs by the value, not by the byte: 32 MiB of text takes 40 ms, 32 MiB of empty lists 8 s. Nobody needs
# more than this many; small bodies cannot hold enough to matter.
MAX_ITEMS = 1 << 20
MAX_STRINGS = 50_000
MAX_CONTAINERS = 20_000
SMALL_BODY = 64 << 10

BODY_DEADLINE_S = 30.0  # and one second more for every MiB

Path = tuple[str | int, ...]
Meaning = TypeVar("Meaning")


async def read_json(request: web.Request, max_bytes: int) -> dict[str, Any]:
    """The body of a request: a JSON object of bounded size, depth and width, its numbers finite and its integers
    within 64 bits. Raises ApiError: 400, 408, 413 or 415."""
    return await read_as(request, max_bytes, lambda body: body)


async def read_as(request: web.Request, max_bytes: int, understand: Callable[[dict[str, Any]], Meaning]) -> Meaning:
    """What `understand` makes of the body that `read_json` gives. Raises ApiError.

    A large body is parsed and understood in a thread. Each pass over a million numbers takes some 20 ms in which
    nobody else runs, but there are ten of them, and between any two the event loop gets its turn.
    """
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise ApiError(415, "the Content-Type must be application/json")
    data = await _read(request, max_bytes)
    if len(data) <= SMALL_BODY:
        return understand(parse_object(data))
    return await asyncio.to_thread(lambda: understand(parse_object(data)))


async def _read(request: web.Request, max_bytes: int) -> bytes:
    check_length(request, max_bytes)
    size_mib = (request.content_length or max_bytes) / (1 << 20)
    try:
        async with asyncio.timeout(BODY_DEADLINE_S + size_mib):
            return await request.read()
    except TimeoutError:
        raise ApiError(408, "the request body did not arrive in time") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(max_bytes) from None
    except web.RequestPayloadError:
        coding = request.headers.get(hdrs.CONTENT_ENCODING) or request.headers.get(hdrs.TRANSFER_ENCODING)
        shown = shorten(coding or "complete", SHOWN_NAME_CHARS)
        request.content.feed_eof()  # nothing more can be made of it
        raise ApiError(400, f"the request body is not {shown}", closes=True) from None


def check_length(request: web.BaseRequest, max_bytes: int) -> None:
    """Raise ApiError 413 when the body is announced as larger than `max_bytes`."""
    if request.content_length is not None and request.content_length > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the request body is larger than {max_bytes >> 20} MiB")


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a body and check it. Raises ApiError 400."""
    if len(body) > SMALL_BODY:
        _check_width(body)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if len(body) <= SMALL_BODY:
            _name_the_fault(body)
        refuse(f"the body is not valid JSON: {error}")
    if type(value) is not dict:
        refuse("the body must be a JSON object")
    check_values(value)
    return value


def _check_width(body: bytes) -> None:
    """Refuse what holds too many values, by counting its punctuation outside of strings."""
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') > 2 * MAX_STRINGS:
        refuse(f"the body holds more than {MAX_STRINGS} strings")
    outside = b"".join(bare.split(b'"')[::2])
    if outside.count(b"[") + outside.count(b"{") > MAX_CONTAINERS:
        refuse(f"the body holds more than {MAX_CONTAINERS} lists and objects")
    if outside.count(b",") > MAX_ITEMS:
        refuse(f"the body holds more than {MAX_ITEMS} values")


def _name_the_fault(body: bytes) -> None:
    """orjson refuses NaN and infinities without saying which field has them: find it."""
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        check_values(value)


def check_values(body: dict[str, Any]) -> None:
    """Refuse, by its path, what is nested too deeply, has too many keys or cannot travel in a message of the ring."""
    num_keys = 0
    left: list[tuple[Path, Any]] = [((), body)]
    while left:
        path, container = left.pop()
        if len(path) >= MAX_DEPTH:
            refuse(f"the body is nested more than {MAX_DEPTH} levels deep", str(path[0]))
        if type(container) is dict:
            num_keys += len(container)
            if num_keys > MAX_KEYS:
                refuse(f"the body has more than {MAX_KEYS} object keys", field_path(path) or None)
            items: Iterable[tuple[str | int, Any]] = container.items()
        elif _all_int64(container):
            continue
        else:
            items = enumerate(container)
        for key, item in items:
            if type(item) is dict or type(item) is list:
                left.append(((*path, key), item))
            elif (fault := _fault(item)) is not None:
                name = field_path((*path, key))
                refuse(f"{name}: {fault}", name)


def _all_int64(values: list[Any]) -> bool:
    """Whether a list holds 64-bit integers only: the quick way through a long row of token ids."""
    if set(map(type, values)) != {int}:
        return False
    try:
        array("q", values)
    except OverflowError:
        return False
    return True


def _fault(value: Any) -> str | None:
    """What is wrong with a single value."""
    kind = type(value)
    if kind is int and not INT64_MIN <= value <= INT64_MAX:
        return "the integer does not fit 64 bits"
    if kind is float and not math.isfinite(value):
        return "NaN, infinities and numbers beyond the range of a double are not allowed"
    # What the parser makes of an integer beyond 64 bits. No parameter means a number of that size.
    if kind is float and abs(value) >= 1 << 64:
        return "the number does not fit 64 bits"
    return None


def field_path(path: Path) -> str:
    """A path into the body as clients read it: `messages[1].content`."""
    text = ""
    for part in path:
        text += f"[{part}]" if type(part) is int else f".{part}" if text else str(part)
    return text
