"""The requests of one level: sent when they are due, at most so many at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.client import Client, Measured
from benchmark.serving.prompts import Request


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and what became of it. Times are in seconds."""

    request: Request
    measured: Measured
    lag: float  # by how much the client was late when the request was due
    client_queue: float  # how long it then waited in the client for its turn


@dataclass(frozen=True, slots=True)
class Traffic:
    """Everything that one level brought."""

    sent: list[Sent]
    started: float  # on the clock of Measured.sent
    duration: float  # first arrival -> last answer, in seconds
    client_cpu_s: float


@dataclass(frozen=True, slots=True)
class Form:
    """How a request is written for the server."""

    model: str
    chat: bool
    temperature: float
    ignore_eos: bool
    extra: Mapping[str, Any]  # more fields of the body; they have the last word

    def body(self, request: Request) -> dict[str, Any]:
        content: dict[str, Any] = {"prompt": request.prompt}
        if self.chat:
            content = {"messages": [{"role": "user", "content": request.prompt}]}
        body = {
            "model": self.model, **content, "max_tokens": request.output_tokens, "temperature": self.temperature
        }  # fmt: skip
        if self.ignore_eos:
            body["ignore_eos"] = True
        return {**body, **self.extra}


async def send_all(
    client: Client,
    form: Form,
    requests: Sequence[Request],
    times_s: Sequence[float],
    max_concurrency: int | None,
    timeout_s: float,
    on_done: Callable[[], None] = lambda: None,
) -> Traffic:
    """Send every request at its time, and wait for all answers. Raises OSError when connections cannot be opened."""
    turn: contextlib.AbstractAsyncContextManager[Any] = contextlib.nullcontext()
    if max_concurrency:
        turn = asyncio.Semaphore(max_concurrency)
    await client.open(min(max_concurrency or len(requests), len(requests)))

    async def send(request: Request, due: float, arrived: float) -> Sent:
        async with turn:
            measured = await client.complete(form.body(request), timeout_s)
        on_done()
        return Sent(request, measured, lag=arrived - due, client_queue=measured.sent - arrived)

    started, cpu_s = time.monotonic(), time.process_time()
    tasks = []
    for request, at_s in zip(requests, times_s, strict=True):
        due = started + at_s
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(send(request, due, arrived=time.monotonic())))
    sent = await asyncio.gather(*tasks)
    return Traffic(sent, started, time.monotonic() - started, time.process_time() - cpu_s)
