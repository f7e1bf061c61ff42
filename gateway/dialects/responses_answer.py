"""The answers of OpenAI's Responses API: one object, and the events that build it up."""

from __future__ import annotations

import time
from typing import Any

import orjson

from gateway.dialects.responses_schemas import ResponsesRequest
from gateway.errors import ApiError
from gateway.parsers.parts import Arguments, CallOpened, Content, Part, Reasoning
from gateway.readers import Readers
from gateway.request import Job
from gateway.sse import event
from gateway.streams import Piece, Stream
from ipc.messages import LENGTH

ID_PREFIX = "resp_"


class ResponseAnswer:
    """Output items in the order in which the model brings them: reasoning, messages, function calls."""

    def __init__(self, request: ResponsesRequest, job: Job, stream: Stream) -> None:
        self._request = request
        self._job = job
        self._stream = stream
        self._readers = Readers(job, stream)
        self._created = time.time()
        self._status = "in_progress"
        self._items: list[dict[str, Any]] = []
        self._kind: type[Part] | None = None  # of the item that is being written
        self._number = 0  # of the next event
        self._error: ApiError | None = None

    @property
    def id(self) -> str:
        return ID_PREFIX + self._job.request_id

    def snapshot(self, status: str | None = None) -> dict[str, Any]:
        """The response as it is now."""
        request = self._request
        given = self._job.generates[0].sampling
        incomplete = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        error = self._error and {"code": "server_error", "message": self._error.message}
        choice = request.tool_choice or "auto"
        return {
            "id": self.id,
            "object": "response",
            "created_at": int(self._created),
            "status": status or self._status,
            "background": False,
            "error": error,
            "incomplete_details": incomplete,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self._job.model,
            "output": self._items,
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning and request.reasoning.effort, "summary": None},
            "store": False,
            "temperature": given.temperature,
            "text": _text_options(request),
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in request.tools],
            "top_p": given.top_p,
            "truncation": "disabled",
            "usage": self._usage() if self._status in ("completed", "incomplete") else None,
            "user": request.user,
        }

    def body(self, pieces: list[Piece]) -> bytes:
        [piece] = pieces
        self._take(piece)
        return orjson.dumps(self.snapshot())

    def events(self, piece: Piece) -> bytes:
        events = b""
        if self._number == 0:
            events += self._event("response.created", {"response": self.snapshot()})
            events += self._event("response.in_progress", {"response": self.snapshot()})
        return events + self._take(piece)

    def closing(self) -> bytes:
        return self._event(f"response.{self._status}", {"response": self.snapshot()})

    def failure(self, error: ApiError) -> bytes:
        self._error = error
        self._status = "failed"
        return self._event("response.failed", {"response": self.snapshot()})

    def _take(self, piece: Piece) -> bytes:
        events = b"".join([self._of_part(part) for part in self._readers.parts(piece)])
        if piece.tail is not None:
            is_cut = piece.tail.reason == LENGTH
            events += self._close_item("incomplete" if is_cut else "completed")
            self._status = "incomplete" if is_cut else "completed"
        return events

    # -- items -------------------------------------------------------------------------------------------------------

    def _of_part(self, part: Part) -> bytes:
        match part:
            case Content(text):
                opening = self._open_item(Content, {"type": "message", "role": "assistant", "content": []}, "msg")
                return opening + self._add_text("output_text", text)
            case Reasoning(text):
                opening = self._open_item(Reasoning, {"type": "reasoning", "summary": [], "content": []}, "rs")
                return opening + self._add_text("reasoning_text", text)
            case CallOpened():
                item = {"type": "function_call", "call_id": part.call_id, "name": part.name, "arguments": ""}
                return self._open_item(CallOpened, item, "fc")
            case Arguments(_, text):
                self._items[-1]["arguments"] += text
                return self._item_event("response.function_call_arguments.delta", {"delta": text})

    def _open_item(self, kind: type[Part], item: dict[str, Any], prefix: str) -> bytes:
        """Begin an item, unless text goes on in the one that is open. Every call is one of its own."""
        if kind is self._kind and kind is not CallOpened:
            return b""
        events = self._close_item("completed")
        self._kind = kind
        name = f"{prefix}_{self._job.request_id}_{len(self._items)}"
        self._items.append({"id": name, "status": "in_progress"} | item)
        events += self._event(
            "response.output_item.added", {"output_index": len(self._items) - 1, "item": self._items[-1]}
        )
        if kind is not CallOpened:
            kind_of_part = "output_text" if kind is Content else "reasoning_text"
            part: dict[str, Any] = {"type": kind_of_part, "text": ""}
            if kind is Content:
                part |= {"annotations": [], "logprobs": []}
            self._items[-1]["content"].append(part)
            events += self._item_event("response.content_part.added", {"content_index": 0, "part": part})
        return events

    def _add_text(self, kind: str, text: str) -> bytes:
        self._items[-1]["content"][0]["text"] += text
        extra: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        return self._item_event(f"response.{kind}.delta", {"content_index": 0, "delta": text} | extra)

    def _close_item(self, status: str) -> bytes:
        if self._kind is None:
            return b""
        item, kind = self._items[-1], self._kind
        self._kind = None
        item["status"] = status
        if kind is CallOpened:
            done = {"name": item["name"], "arguments": item["arguments"]}
            events = self._item_event("response.function_call_arguments.done", done)
        else:
            part = item["content"][0]
            extra: dict[str, Any] = {"logprobs": []} if kind is Content else {}
            events = self._item_event(
                f"response.{part['type']}.done", {"content_index": 0, "text": part["text"]} | extra
            )
            events += self._item_event("response.content_part.done", {"content_index": 0, "part": part})
        return events + self._event("response.output_item.done", {"output_index": len(self._items) - 1, "item": item})

    # -- events ------------------------------------------------------------------------------------------------------

    def _item_event(self, name: str, data: dict[str, Any]) -> bytes:
        """An event about the item that is being written."""
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return self._event(name, place | data)

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        if not self._job.stream:
            return b""
        numbered = {"type": name, "sequence_number": self._number} | data
        self._number += 1
        return event(orjson.dumps(numbered), name.encode())

    def _usage(self) -> dict[str, Any]:
        usage = self._stream.usage()
        reasoning_tokens = 0 if self._job.reading.is_plain else self._readers.reasoning_tokens
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }


def _text_options(request: ResponsesRequest) -> dict[str, Any]:
    """What was asked of the text, as clients read it."""
    if request.text is None or request.text.format is None:
        return {"format": {"type": "text"}}
    return request.text.model_dump(by_alias=True)
