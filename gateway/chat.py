"""The answers of /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.answer import Answer
from gateway.logprobs import chat_logprobs
from gateway.request import Job
from gateway.streams import Piece, Stream


class ChatAnswer(Answer):
    id_prefix = "chatcmpl-"
    body_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, job: Job, stream: Stream) -> None:
        super().__init__(job, stream)
        self._opened: set[int] = set()  # choices whose first event, the one with the role, is out

    def events(self, piece: Piece) -> bytes:
        """The role before the first text, the text, the end.

        The end has an event of its own with an empty delta, and an empty text has none: clients count every event with
        content as a token. What belongs to tokens without text, such as a hidden end of sequence, goes with the end.
        """
        events = self._opening(piece.index)
        if piece.text and self._is_plain:
            events += b"".join(
                (
                    self._before_index,
                    b"%d" % piece.index,
                    b',"delta":{"content":',
                    orjson.dumps(piece.text),
                    b'},"logprobs":null,"finish_reason":null}',
                    self._after_choice,
                )
            )
        elif piece.text or (piece.tail is None and not self._is_plain):
            events += self._delta(piece.index, {"content": piece.text}, piece)
        if piece.tail is not None:
            events += self._delta(piece.index, {}, None if piece.text else piece, self._end(piece.tail))
        return events

    def _opening(self, index: int) -> bytes:
        """The event with the role, if that is not out yet."""
        if index in self._opened:
            return b""
        self._opened.add(index)
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._event(choice, **self._prompt_ids(index))

    def _of_prompts(self) -> dict[str, Any]:
        return self._prompt_ids(0) | self._prompt_logprobs(0)

    def _delta(
        self, index: int, delta: dict[str, Any], piece: Piece | None = None, end: dict[str, Any] | None = None
    ) -> bytes:
        """An event; `piece` is the one whose tokens it accounts for, if it does."""
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": None if piece is None else self._logprobs(piece),
            "finish_reason": None,
        }
        if piece is not None:
            choice |= self._token_ids(piece)
        return self._event(choice | (end or {}))

    def _choice(self, piece: Piece) -> dict[str, Any]:
        return {
            "index": piece.index,
            "message": {"role": "assistant", "content": piece.text},
            "logprobs": self._logprobs(piece),
            **self._end(piece.tail),
            **self._token_ids(piece),
        }

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        return None if self._job.logprobs < 0 else chat_logprobs(piece.logprobs, self._job.logprobs)
