"""The answers of Anthropic's Messages API, and its errors."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from gateway.errors import ApiError
from gateway.json_response import json_response
from gateway.parsers.parts import Arguments, CallOpened, Content, Part, Reasoning
from gateway.read_chat import message_of
from gateway.readers import Readers
from gateway.request import Job
from gateway.request_id import request_id_of
from gateway.sse import event
from gateway.streams import Piece, Stream
from ipc.messages import LENGTH, Tail

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: ApiError) -> dict[str, Any]:
    kind = _KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def error_response(error: ApiError, request: web.Request) -> web.Response:
    """An error as this dialect's clients read it."""
    body = error_body(error) | {"request_id": request_id_of(request)}
    response = json_response(body, error.status, error.headers)
    if error.closes:
        response.force_close()
    return response


class MessagesAnswer:
    """A message with its blocks: thinking, text, calls of tools."""

    def __init__(self, job: Job, stream: Stream) -> None:
        self._job = job
        self._stream = stream
        self._readers = Readers(job, stream)
        self._begun = False
        self._block = -1  # the one that is open, or was last
        self._open_kind: type[Part] | None = None

    def body(self, pieces: list[Piece]) -> bytes:
        [piece] = pieces
        message = message_of(self._readers.parts(piece))
        blocks: list[dict[str, Any]] = []
        if "reasoning_content" in message:
            blocks.append({"type": "thinking", "thinking": message["reasoning_content"], "signature": ""})
        if message["content"]:
            blocks.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls", ()):
            function = call["function"]
            given = _input_of(function["arguments"])
            blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": given})
        return orjson.dumps(self._message(blocks) | self._end(piece.tail) | {"usage": self._usage()})

    def events(self, piece: Piece) -> bytes:
        events = b""
        if not self._begun:
            self._begun = True
            start = self._message([]) | {"stop_reason": None, "stop_sequence": None}
            usage = self._usage() | {"output_tokens": 0}
            events += _event("message_start", {"message": start | {"usage": usage}})
        for part in self._readers.parts(piece):
            events += self._of_part(part)
        if piece.tail is not None:
            events += self._close_block()
            events += _event("message_delta", {"delta": self._end(piece.tail), "usage": self._usage()})
        return events

    def closing(self) -> bytes:
        return _event("message_stop", {})

    def failure(self, error: ApiError) -> bytes:
        return event(orjson.dumps(error_body(error)), b"error")

    def _of_part(self, part: Part) -> bytes:
        match part:
            case Content(text):
                opening = self._open_block(Content, {"type": "text", "text": ""})
                return opening + self._delta({"type": "text_delta", "text": text})
            case Reasoning(text):
                opening = self._open_block(Reasoning, {"type": "thinking", "thinking": "", "signature": ""})
                return opening + self._delta({"type": "thinking_delta", "thinking": text})
            case CallOpened():
                block = {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}}
                return self._open_block(CallOpened, block)
            case Arguments(_, text):
                return self._delta({"type": "input_json_delta", "partial_json": text})

    def _open_block(self, kind: type[Part], block: dict[str, Any]) -> bytes:
        """Begin a block, unless text goes on in the one that is open. Every call has its own."""
        if kind is self._open_kind and kind is not CallOpened:
            return b""
        closing = self._close_block()
        self._open_kind = kind
        self._block += 1
        return closing + _event("content_block_start", {"index": self._block, "content_block": block})

    def _close_block(self) -> bytes:
        if self._open_kind is None:
            return b""
        self._open_kind = None
        return _event("content_block_stop", {"index": self._block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._block, "delta": delta})

    def _message(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": "msg_" + self._job.request_id,
            "type": "message",
            "role": "assistant",
            "model": self._job.model,
            "content": blocks,
        }

    def _end(self, tail: Tail | None) -> dict[str, Any]:
        reason = "end_turn"
        if tail is not None and tail.reason == LENGTH:
            reason = "max_tokens"
        elif tail is not None and tail.stop_string is not None:
            reason = "stop_sequence"
        elif not self._job.reading.is_plain and self._readers.has_calls(0):
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": tail and tail.stop_string}

    def _usage(self) -> dict[str, Any]:
        """Input tokens are those that were not found in the cache."""
        usage = self._stream.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "output_tokens": usage["completion_tokens"],
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
        }


def _event(name: str, data: dict[str, Any]) -> bytes:
    return event(orjson.dumps({"type": name} | data), name.encode())


def _input_of(arguments: str) -> Any:
    """The arguments of a call as an object; those that were cut off in the middle cannot be one."""
    try:
        return orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {}
