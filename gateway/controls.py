"""What whoever runs the server may do to its processes while they run: profile them, and have them say more or less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from gateway.company import Company
from gateway.log_level import LogLevel
from gateway.profiling.routes import Profiles
from gateway.profiling.session import Profiler
from gateway.ring import RingView


class Controls:
    """The handlers; `send` takes the name of a process and a message for it."""

    def __init__(self, ring: RingView, profiler: Profiler, send: Callable[[str, Any], None], company: Company) -> None:
        self._profiles = Profiles(profiler, company)
        self._log_level = LogLevel(ring, send)

    def add_routes(self, app: web.Application, expect: Any) -> None:
        """Add them; `expect` answers `Expect: 100-continue`."""
        app.router.add_post("/start_profile", self._profiles.start, expect_handler=expect)
        app.router.add_post("/stop_profile", self._profiles.stop)
        app.router.add_post("/log_level", self._log_level.change, expect_handler=expect)
