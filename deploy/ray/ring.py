"""A replica: one whole ring, started and supervised in its actor's process.

The ring listens on a Unix socket of its own, so nobody gets past the front door. Its processes hang on this one by
their standard input: when Ray kills the actor, they leave.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import ray
from ray import serve
from yarl import URL

from deploy.ray.http import OF_THE_PROXY, Answer, Head, Request, Unready, end_to_end
from ipc import log as process_log
from ipc.control_messages import Beat, RingState
from supervision.child import PACKAGES
from supervision.supervisor import Supervisor

HTTP = "http://ring"  # the host is a matter of form, on a Unix socket
REPLICA_HEADER = "x-quintet-replica"  # which one has answered
READY_TIMEOUT_S = 5.0  # for an answer of /ready, which asks nobody
TOKENIZE_TIMEOUT_S = 2.0  # a prompt that takes longer is routed without its tokens
MIN_RECOVERY_S = 30.0
# What aiohttp would add of its own to the headers of a client.
NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")

log = logging.getLogger("supervisor")


class RingError(RuntimeError):
    """The ring cannot serve; the text says why."""


class Ring:
    """The deployment's class."""

    def __init__(self, options: dict[str, Any], kv_events: bool = True) -> None:
        """`options` are all of launch.py's, checked. With `kv_events` the ring tells routers what it has cached.

        Blocks until the ring is ready. Raises RingError when it cannot start.
        """
        begun = time.monotonic()
        process_log.set_up("supervisor", options["log_level"], options["log_format"])
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._feed = _free_endpoints(ray.util.get_node_ip_address()) if kv_events else {}
        self._scheduler: dict[str, Any] = {}  # its last figures
        self._exit_code: int | None = None
        self._leaves = False
        self._settled = threading.Event()  # the ring is ready, or has ended
        options = {**options, **self._feed}
        self._supervisor = Supervisor(options, list(PACKAGES), self._on_event)
        self._uds = options["uds"] = os.path.join(self._supervisor.run_dir, "http.sock")
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()
        self._settled.wait()
        if self._exit_code is not None:
            raise RingError(self._why_ended())
        self._startup_s = time.monotonic() - begun
        self._unready_since: float | None = None
        self._session: aiohttp.ClientSession | None = None

    # -- what Serve calls ----------------------------------------------------------------------------------------------

    def record_replica_metadata(self) -> dict[str, Any]:
        """What every router learns of this replica: where its KV events are."""
        return self._feed

    async def check_health(self) -> None:
        """Raise RingError when the ring should be replaced by another one.

        A ring heals itself, and what it starts again is never more than what it started at first: it gets that time.
        """
        if self._exit_code is not None:
            raise RingError(self._why_ended())
        obstacle = await self._obstacle()
        now = time.monotonic()
        if obstacle is None:
            self._unready_since = None
            return
        self._unready_since = self._unready_since or now
        unready_s = now - self._unready_since
        if unready_s > max(MIN_RECOVERY_S, self._startup_s):
            raise RingError(f"the ring has not been ready for {unready_s:.0f} s: {obstacle}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `deploy.ray.autoscaling` goes by, beside the requests that Serve counts itself."""
        return {"queued_tokens": float(self._scheduler.get("waiting_tokens", 0))}

    def __del__(self) -> None:
        """Serve's last call, when no request is left, or a start has failed."""
        self._leaves = True
        self._supervisor.stop()
        self._thread.join()

    # -- what the front door calls -------------------------------------------------------------------------------------

    async def relay(self, request: Request, prompt: Any = None) -> AsyncIterator[Head | Unready | bytes]:
        """Have the ring answer: the head, then the body in the parts in which it comes.

        `prompt` (`deploy.ray.prompts.Prompt`) is for the router, which reads it on the way.
        """
        if self._leaves or not self._supervisor.ready:
            yield Unready(self._replica, "its ring is leaving" if self._leaves else "its ring is not ready")
            return
        async with self._sent(request) as response:
            yield self._head_of(response)
            async for part in response.content.iter_any():
                yield part

    async def answer(self, request: Request) -> Answer:
        """The same as a whole, for what every ring is asked."""
        async with self._sent(request) as response:
            return Answer(self._replica, self._head_of(response), await response.read())

    async def token_ids(self, question: dict[str, Any], authorization: str) -> bytes:
        """The ids of a prompt as /tokenize makes them, as 32-bit integers; none when it refuses or takes too long.

        The client's own key opens the route.
        """
        headers = {"Authorization": authorization} if authorization else {}
        timeout = aiohttp.ClientTimeout(TOKENIZE_TIMEOUT_S)
        try:
            async with self._http().post(
                f"{HTTP}/tokenize", json=question, headers=headers, timeout=timeout
            ) as response:
                return array("i", (await response.json())["tokens"]).tobytes() if response.status == 200 else b""
        except (aiohttp.ClientError, TimeoutError):
            return b""

    # -- the ring ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        code = None
        try:
            code = self._supervisor.run()
        finally:
            self._exit_code = 1 if code is None else code
            self._settled.set()

    def _on_event(self, event: Any) -> None:
        match event:
            case Beat(process="scheduler", stats=stats):
                self._scheduler = stats
            case RingState():
                self._settled.set()

    def _why_ended(self) -> str:
        return self._supervisor.fatal or f"the ring has ended with code {self._exit_code}; its log says why"

    async def _obstacle(self) -> str | None:
        """Why requests are not admitted, if they are not."""
        try:
            timeout = aiohttp.ClientTimeout(READY_TIMEOUT_S)
            async with self._http().get(f"{HTTP}/ready", timeout=timeout) as response:
                return None if response.status == 200 else (await response.json())["error"]["message"]
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"/ready gives no answer: {error!r}"

    def _sent(self, request: Request) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._http().request(
            request.method, URL(HTTP + request.path, encoded=True), headers=request.headers, data=request.body or None,
            allow_redirects=False, skip_auto_headers=NOT_ADDED,
        )  # fmt: skip

    def _head_of(self, response: aiohttp.ClientResponse) -> Head:
        headers = end_to_end(response.headers.items(), OF_THE_PROXY)
        return Head(response.status, [*headers, (REPLICA_HEADER, self._replica)])

    def _http(self) -> aiohttp.ClientSession:
        """The client, which belongs to the event loop that its first user runs in."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._uds, limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            )
        return self._session


def _free_endpoints(address: str) -> dict[str, str]:
    """Addresses of two free ports for a ring's KV events, as options of launch.py.

    They are free now; whoever is quicker makes the ring's start fail, and Serve starts another one.
    """
    with socket.socket() as events, socket.socket() as replay:
        for each in (events, replay):
            each.bind((address, 0))
        return {
            "kv_events_endpoint": f"tcp://{address}:{events.getsockname()[1]}",
            "kv_events_replay_endpoint": f"tcp://{address}:{replay.getsockname()[1]}",
        }
