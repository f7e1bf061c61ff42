"""POST /log_level: how much the processes say, from now on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from aiohttp import web

from gateway.body import read_json
from gateway.json_response import json_response
from gateway.ring import RingView
from gateway.schema import Schema
from gateway.schemas import parse
from ipc.control_messages import SetLogLevel

MAX_BODY_BYTES = 64 << 10


class LogLevelRequest(Schema):
    """POST /log_level"""

    level: Literal["debug", "info", "warning", "error"]


class LogLevel:
    """The handler; `send` takes the name of a process and a message."""

    def __init__(self, ring: RingView, send: Callable[[str, Any], None]) -> None:
        self._ring = ring
        self._send = send

    async def change(self, request: web.Request) -> web.Response:
        """Set the log level of all processes, and of those that are started later. Raises ApiError 400."""
        level = parse(LogLevelRequest, await read_json(request, MAX_BODY_BYTES), {}).level
        names = [*self._ring.states, "supervisor"]
        for name in names:
            self._send(name, SetLogLevel(level))
        return json_response({"level": level, "processes": names})
