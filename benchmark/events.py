"""The server-sent events of one response: which of them are pieces of an answer, and when those came.

On a small machine the client competes with the server that it measures. So an event gets no more than a look for a few
byte patterns: events that carry a piece of the answer and nothing else, as almost all do, are only timed. What the look
cannot tell, such as the last event, or all events of a server that writes its JSON with other spaces, is kept and
parsed once the request has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

_NOT_THE_END = b'"finish_reason":null'
_EVENT = b"data: {"

Choice = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialect:
    """An endpoint, and which of its events count as pieces of the answer."""

    path: str
    surely_counts: Callable[[bytes], bool]  # a look at an event: it counts, and says nothing else
    counts: Callable[[Choice], bool]  # the same for a choice of a parsed event
    text: Callable[[Choice], str]  # of a choice, in an event or in a whole answer


def _text(choice: Choice) -> str:
    return choice.get("text") or ""


def _chat_text(choice: Choice) -> str:
    message = choice.get("delta") or choice.get("message") or {}
    return message.get("content") or ""


def _chat_counts(choice: Choice) -> bool:
    delta = choice.get("delta") or {}
    if any(delta.get(name) for name in ("content", "reasoning", "reasoning_content", "tool_calls")):
        return True
    return delta.get("content") == "" and "role" not in delta


PIECES_OF_TEXT = Dialect(
    "/v1/completions",
    surely_counts=lambda event: _NOT_THE_END in event and b'"text":""' not in event,
    counts=lambda choice: bool(choice["text"]),
    text=_text,
)
"""Text completions, where an event without text is no piece."""

COMPLETIONS = Dialect(
    "/v1/completions",
    surely_counts=lambda event: _NOT_THE_END in event and b'"choices":[{' in event,
    counts=lambda choice: True,
    text=_text,
)
"""Text completions as `vllm bench serve` takes them: every event with a choice is a piece; tokens may have no text."""

CHAT = Dialect(
    "/v1/chat/completions",
    surely_counts=lambda event: _NOT_THE_END in event and b'"delta":{"content":"' in event and b'"role":' not in event,
    counts=_chat_counts,
    text=_chat_text,
)
"""Chat completions as `vllm bench serve` takes them: content, reasoning and tool calls are pieces, a role is none."""


class StreamError(Exception):
    """The stream did not bring an answer; the text says why."""


class Events:
    """What one stream brings."""

    def __init__(self, dialect: Dialect, keep_all: bool) -> None:
        self._dialect = dialect
        self._keep_all = keep_all
        self._times: list[float] = []  # when pieces came
        self._kept: list[tuple[float, bytes]] = []  # events to be parsed at the end, and when they came
        self._partial = b""

    def feed(self, data: bytes, now: float) -> None:
        *events, self._partial = (self._partial + data).split(b"\n\n")
        for event in events:
            if not self._keep_all and self._dialect.surely_counts(event):
                self._times.append(now)
            else:
                self._kept.append((now, event))

    def unread(self) -> bytes:
        """What came instead of events."""
        return self._partial

    def parsed(self) -> tuple[list[float], list[dict[str, Any]], str]:
        """When the pieces came, the events that were kept, and the text if all were. Raises StreamError."""
        times, chunks, text = self._times, [], ""
        for now, event in self._kept:
            if not event.startswith(_EVENT):
                continue  # a comment, or the [DONE] at the end
            chunk = orjson.loads(event[len(_EVENT) - 1 :])
            if chunk.get("error"):
                raise StreamError(message_of(chunk) or str(chunk["error"]))
            chunks.append(chunk)
            for choice in chunk.get("choices") or ():
                if self._dialect.counts(choice):
                    times.append(now)
                    if self._keep_all:
                        text += self._dialect.text(choice)
        times.sort()
        return times, chunks, text


def message_of(body: Any) -> str:
    """The message of an error's body; "" when it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else ""
