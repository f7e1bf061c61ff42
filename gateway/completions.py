"""The answers of /v1/completions."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.answer import Answer
from gateway.logprobs import completion_logprobs, echoed_logprobs
from gateway.request import Job
from gateway.streams import Piece, Stream


class CompletionAnswer(Answer):
    id_prefix = "cmpl-"
    body_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, job: Job, stream: Stream) -> None:
        super().__init__(job, stream)
        self._num_chars = [0] * len(stream.sequences)  # of each choice's text so far
        self._opened: set[int] = set()  # choices whose first event is out

    def events(self, piece: Piece) -> bytes:
        """One event: clients count every event with a choice as a token, so the end goes with the last text."""
        is_first = piece.index not in self._opened
        if is_first and (self._job.echo or self._job.return_token_ids):
            self._opened.add(piece.index)
            return self._event(self._opening(piece))
        if piece.tail is not None or not self._is_plain:
            return self._event(self._choice(piece))
        if not piece.text:
            return b""
        return b"".join(
            (
                self._before_index,
                b"%d" % piece.index,
                b',"text":',
                orjson.dumps(piece.text),
                b',"logprobs":null,"finish_reason":null}',
                self._after_choice,
            )
        )

    def body(self, pieces: list[Piece]) -> bytes:
        return self._whole([self._opening(piece) | self._prompt_logprobs(piece.index) for piece in pieces])

    def _opening(self, piece: Piece) -> dict[str, Any]:
        """A choice from its beginning: with its prompt, as far as it was asked for."""
        of_prompt = self._prompt_ids(piece.index)
        if not self._job.echo:
            return self._choice(piece) | of_prompt
        text = self._job.prompt_texts[piece.index // self._job.n]
        if self._job.logprobs < 0:
            return self._choice(piece) | of_prompt | {"text": text + piece.text}
        echoed = echoed_logprobs(self._prompt_rows(piece.index), self._job.logprobs, text)
        self._num_chars[piece.index] = len(text)
        choice = self._choice(piece)
        logprobs = {name: column + choice["logprobs"][name] for name, column in echoed.items()}
        return choice | of_prompt | {"text": text + piece.text, "logprobs": logprobs}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece),
            **self._end(piece.tail),
            **self._token_ids(piece),
        }

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self._job.logprobs < 0:
            return None
        offset = self._num_chars[piece.index]
        self._num_chars[piece.index] += len(piece.text)
        return completion_logprobs(piece.logprobs, self._job.logprobs, piece.text, offset)
