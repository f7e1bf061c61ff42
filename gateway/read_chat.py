"""The answers of /v1/chat/completions whose text holds more than content: reasoning and tool calls."""

from __future__ import annotations

from typing import Any

from gateway.chat import ChatAnswer
from gateway.parsers.parts import Arguments, CallOpened, Content, Part, Reasoning
from gateway.readers import Readers
from gateway.request import Job
from gateway.streams import Piece, Stream
from ipc.messages import STOP, Tail


class ReadChatAnswer(ChatAnswer):
    def __init__(self, job: Job, stream: Stream) -> None:
        super().__init__(job, stream)
        self._readers = Readers(job, stream)

    def events(self, piece: Piece) -> bytes:
        """As for any chat, an event for each part; token ids and log-probabilities go with the first of them."""
        events = self._opening(piece.index)
        account: Piece | None = piece
        for part in self._readers.parts(piece):
            events += self._delta(piece.index, _delta_of(part), account)
            account = None
        if piece.tail is not None:
            return events + self._delta(piece.index, {}, account, self._end_of(piece.index, piece.tail))
        if account is not None and not self._is_plain:
            events += self._delta(piece.index, {"content": ""}, account)
        return events

    def _choice(self, piece: Piece) -> dict[str, Any]:
        message = message_of(self._readers.parts(piece))
        choice = super()._choice(piece) | self._end_of(piece.index, piece.tail)
        return choice | {"message": {"role": "assistant"} | message}

    def _end_of(self, index: int, tail: Tail | None) -> dict[str, Any]:
        end = self._end(tail)
        if tail is not None and tail.reason == STOP and self._readers.has_calls(index):
            end["finish_reason"] = "tool_calls"
        return end

    def _usage(self) -> dict[str, Any]:
        usage = super()._usage()
        if self._job.reading.reasons:
            usage["completion_tokens_details"] = {"reasoning_tokens": self._readers.reasoning_tokens}
        return usage


def message_of(parts: list[Part]) -> dict[str, Any]:
    """A whole message: its content, null when there are calls alone, its reasoning and its calls, if any."""
    content = "".join(part.text for part in parts if isinstance(part, Content))
    thought = "".join(part.text for part in parts if isinstance(part, Reasoning))
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        if isinstance(part, CallOpened):
            calls[part.index] = _call_delta(part)
        elif isinstance(part, Arguments):
            calls[part.index]["function"]["arguments"] += part.text
    for call in calls.values():
        del call["index"]
    message: dict[str, Any] = {"content": content or (None if calls else "")}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = list(calls.values())
    return message


def _delta_of(part: Part) -> dict[str, Any]:
    match part:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallOpened():
            return {"tool_calls": [_call_delta(part)]}
        case Arguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _call_delta(part: CallOpened) -> dict[str, Any]:
    function = {"name": part.name, "arguments": ""}
    return {"index": part.index, "id": part.call_id, "type": "function", "function": function}
