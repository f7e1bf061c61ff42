"""The id by which a client and the logs know a request: given in a header or in the body, or made here."""

from __future__ import annotations

import re
import uuid

from aiohttp import web

from gateway.errors import refuse

REQUEST_ID_HEADER = "X-Request-Id"
_KEY = web.RequestKey("request_id", str)
_VALID = re.compile(r"[ -~]{1,256}")


def check_request_id(request: web.Request) -> None:
    """Raise ApiError 400 when the header has an id that is too long or not printable ASCII."""
    given = request.headers.get(REQUEST_ID_HEADER)
    if given is not None:
        if not _VALID.fullmatch(given):
            refuse(f"{REQUEST_ID_HEADER}: at most 256 printable ASCII characters", REQUEST_ID_HEADER)
        request[_KEY] = given


def name_in_body(request: web.Request, request_id: str) -> None:
    """The body names the request: its response has that id, unless the header had one to echo."""
    if REQUEST_ID_HEADER not in request.headers:
        request[_KEY] = request_id


def request_id_of(request: web.BaseRequest) -> str:
    """The id of a request; made when it has none yet."""
    if _KEY not in request:
        request[_KEY] = uuid.uuid4().hex
    return request[_KEY]
