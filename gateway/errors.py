"""The one error body that clients see, and the exception that carries it from wherever a request fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

from aiohttp import web

from gateway.json_response import json_response
from ipc.messages import Refusal

MAX_MESSAGE_CHARS = 1000
SHOWN_NAME_CHARS = 100  # of a client's own words inside a message

# OpenAI's error type for each status that this server sends.
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    417: "invalid_request_error",
    429: "overloaded_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
    504: "timeout_error",
}

# 429 says "try again soon", 503 "this server cannot now". Clients obey these; they retry on their own otherwise.
RETRY_HEADERS = {
    409: {"x-should-retry": "false"},
    501: {"x-should-retry": "false"},
    429: {"Retry-After": "1", "retry-after-ms": "1000"},
    503: {"Retry-After": "5", "retry-after-ms": "5000"},
}


class ApiError(Exception):
    """A request ends with this error instead of an answer.

    `param` names the field at fault as a path into the request body, such as `messages[1].content`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_after_s: float = 0.0,
        closes: bool = False,
    ) -> None:
        """`retry_after_s` is when to try again, if that is known; clients obey 1 to 120 s. An error that `closes` ends
        the connection: the rest of the request may still be on its way, or cannot be told from the next one."""
        super().__init__(message)
        self.status = status
        self.message = shorten(message, MAX_MESSAGE_CHARS)
        self.param = None if param is None else shorten(param, SHOWN_NAME_CHARS)
        self.closes = closes or status in (408, 413, 417)
        self.kind = kind or KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers = {**RETRY_HEADERS.get(status, {}), **_retry_headers(retry_after_s), **(headers or {})}

    @classmethod
    def of(cls, refusal: Refusal) -> ApiError:
        """The error that a refusal from inside the ring stands for."""
        after_s = refusal.retry_after_ms / 1000
        return cls(refusal.status, refusal.message, refusal.param or None, refusal.kind, retry_after_s=after_s)

    def refusal(self) -> Refusal:
        """The same, to travel in the ring."""
        return Refusal(self.status, self.kind, self.message, self.param or "")

    def about(self, param: str | None) -> ApiError:
        """The same error, if the client knows its field by this name."""
        if self.param is None or param is None or param == self.param:
            return self
        return ApiError(
            self.status, self.message.replace(self.param, param, 1), param, self.kind, self.headers, closes=self.closes
        )

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}

    def response(self) -> web.Response:
        response = json_response(self.body(), self.status, self.headers)
        if self.closes:
            response.force_close()
        return response


def _retry_headers(after_s: float) -> dict[str, str]:
    """HTTP's own header knows whole seconds, and OpenAI's clients a finer one."""
    if after_s <= 0:
        return {}
    after_s = min(120.0, max(1.0, after_s))
    return {"Retry-After": str(math.ceil(after_s)), "retry-after-ms": str(math.ceil(after_s * 1000))}


def refuse(message: str, param: str | None = None) -> NoReturn:
    """End the request with 400: the client's mistake."""
    raise ApiError(400, message, param)


def shorten(text: str, limit: int) -> str:
    """The text, cut where it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
