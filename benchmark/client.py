"""Completions, measured from the client's side. Works against any OpenAI-style server, and takes little CPU itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson

from benchmark.connection_pool import ConnectionPool
from benchmark.events import PIECES_OF_TEXT, Dialect, Events, StreamError, message_of


@dataclass(slots=True)
class Measured:
    """What became of one request. Times are in seconds; `sent` is on the clock of `time.monotonic`.

    Which events are pieces of the answer is the dialect's to say (`benchmark.events`).
    """

    sent: float
    ttft: float = 0.0  # send -> first piece; of a unary request, the whole answer
    latency: float = 0.0  # send -> last piece; of a unary request, the whole answer
    itls: list[float] = field(default_factory=list)  # gaps between pieces
    prompt_tokens: int = 0  # as the server counts them
    completion_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that came from the prefix cache
    finish_reason: str = ""
    timings: dict[str, Any] = field(default_factory=dict)  # what the server says about the time it took, if it does
    metrics: dict[str, Any] = field(default_factory=dict)  # the same under vLLM's names
    text: str = ""  # the answer, if the client was told to keep it
    error: str = ""  # why there is no answer

    @property
    def tpot(self) -> float:
        """Seconds a token after the first."""
        return (self.latency - self.ttft) / (self.completion_tokens - 1) if self.completion_tokens > 1 else 0.0

    @property
    def succeeded(self) -> bool:
        """The model came to its own end, and nothing went wrong."""
        return self.finish_reason == "stop" and not self.error


class Client(ConnectionPool):
    """Requests to one server, each of them measured.

    async with Client(url) as client:
        measured = await client.complete({"prompt": "Once upon", "max_tokens": 16})
    """

    def __init__(
        self,
        url: str,
        stream: bool = True,
        keep_text: bool = False,
        dialect: Dialect = PIECES_OF_TEXT,
        path: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`url` is the server's root, such as http://127.0.0.1:8000; `path` overrides the dialect's."""
        super().__init__(url, headers)
        self.keep_text = keep_text
        self._stream = stream
        self._dialect = dialect
        self._before_length = self.head("POST", path or dialect.path)

    async def complete(self, body: Mapping[str, Any], timeout_s: float | None = None) -> Measured:
        """POST one completion and see it through. Whatever goes wrong ends up in `error`; nothing is raised."""
        extra: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if self._stream else {}
        data = orjson.dumps({**body, **extra})
        request = b"%b%d\r\n\r\n%b" % (self._before_length, len(data), data)
        events = Events(self._dialect, self.keep_text)
        parts: list[bytes] = []

        def on_part(part: bytes, now: float) -> None:
            parts.append(part)

        measured = Measured(sent=time.monotonic())
        try:
            async with asyncio.timeout(timeout_s):
                status = await self.send(request, events.feed if self._stream else on_part)
            if status != 200:
                measured.error = f"{status}: {_message(b''.join(parts) or events.unread())}"
            elif self._stream:
                _report_stream(measured, events)
            else:
                _report_body(measured, b"".join(parts), self._dialect)
        except TimeoutError:
            measured.error = f"no answer within {timeout_s} s"
        except OSError as error:
            measured.error = f"{type(error).__name__}: {error}"
        except StreamError as error:
            measured.error = str(error)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            measured.error = f"an answer that is not OpenAI's: {type(error).__name__}: {error}"
        return measured


def _report_stream(measured: Measured, events: Events) -> None:
    """Fill in everything about an answer that came as events. Raises StreamError."""
    times, chunks, measured.text = events.parsed()
    for chunk in chunks:
        _take_common(measured, chunk)
    if not times or not measured.finish_reason:
        raise StreamError("the stream ended without " + ("an end of the answer" if times else "text"))
    measured.ttft = times[0] - measured.sent
    measured.latency = times[-1] - measured.sent
    measured.itls = [later - earlier for earlier, later in pairwise(times)]


def _report_body(measured: Measured, data: bytes, dialect: Dialect) -> None:
    """Fill in everything about an answer that came as one body."""
    measured.latency = measured.ttft = time.monotonic() - measured.sent
    body = orjson.loads(data)
    _take_common(measured, body)
    measured.text = dialect.text(body["choices"][0])


def _take_common(measured: Measured, body: dict[str, Any]) -> None:
    """What a whole answer and a stream's event have in common: ends, usage, timings."""
    for choice in body.get("choices") or ():
        measured.finish_reason = choice.get("finish_reason") or measured.finish_reason
    if usage := body.get("usage"):
        measured.prompt_tokens = usage["prompt_tokens"]
        measured.completion_tokens = usage["completion_tokens"]
        measured.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    measured.timings = body.get("timings") or measured.timings
    measured.metrics = body.get("metrics") or measured.metrics


def _message(data: bytes) -> str:
    """The message of an error's body, or as much of the body as fits a line."""
    try:
        message = message_of(orjson.loads(data))
    except ValueError:
        message = ""
    return message or data[:200].decode(errors="replace")
