"""Cross-origin requests: which web pages' scripts may call the server. Off unless origins are listed.

Credentials in the browser's sense, which are cookies, are never allowed; an API key in a header is no such thing.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import hdrs, web

MAX_AGE_S = 600  # how long a browser may remember what it was allowed
EXPOSED_HEADERS = "X-Request-Id, Retry-After, retry-after-ms"


class Cors:
    """The origins that are allowed."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)

    def preflight(self, request: web.BaseRequest) -> web.Response | None:
        """The answer to a browser that asks before it sends the real request; None when this is no such question."""
        method = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if request.method != hdrs.METH_OPTIONS or method is None or not self._allows(request):
            return None
        headers = {hdrs.ACCESS_CONTROL_ALLOW_METHODS: method, hdrs.ACCESS_CONTROL_MAX_AGE: str(MAX_AGE_S)}
        if (asked := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)) is not None:
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
        return web.Response(status=204, headers=headers)

    def sign(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Tell the browser that the page may read this response, if it may."""
        if not self._origins:
            return
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if self._allows(request):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS

    def _allows(self, request: web.BaseRequest) -> bool:
        origin = request.headers.get(hdrs.ORIGIN)
        return origin is not None and ("*" in self._origins or origin in self._origins)
