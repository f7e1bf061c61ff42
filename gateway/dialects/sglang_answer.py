"""The answers of SGLang's /generate: the whole text so far, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from gateway.dialects.sglang_schemas import GenerateBody
from gateway.errors import ApiError
from gateway.logprobs import Entry, Row, most_likely, prompt_rows
from gateway.request import Job
from gateway.sse import DONE, event
from gateway.streams import Piece, Stream
from gateway.timings import NS_PER_S
from ipc.messages import LENGTH, Tail


class GenerateAnswer:
    """An object for each sequence: a list of them when there may be several."""

    def __init__(self, given: GenerateBody, job: Job, stream: Stream, is_list: bool) -> None:
        self._given = given
        self._job = job
        self._stream = stream
        self._is_list = is_list
        self._texts = [""] * len(stream.sequences)
        self._num_tokens = [0] * len(stream.sequences)
        self._of_outputs = [_Columns(given) for _ in stream.sequences]
        self._of_prompts: dict[int, dict[str, Any]] = {}  # by sequence: its fields, made once

    def body(self, pieces: list[Piece]) -> bytes:
        outputs = [self._output(piece) for piece in pieces]
        return orjson.dumps(outputs if self._is_list else outputs[0])

    def events(self, piece: Piece) -> bytes:
        output = self._output(piece)
        if self._is_list:
            output["index"] = piece.index
        return event(orjson.dumps(output))

    def closing(self) -> bytes:
        return DONE

    def failure(self, error: ApiError) -> bytes:
        return event(orjson.dumps(error.body())) + DONE

    def _output(self, piece: Piece) -> dict[str, Any]:
        self._texts[piece.index] += piece.text
        self._num_tokens[piece.index] += piece.num_tokens
        head, tail = self._stream.sequences[piece.index].head, piece.tail
        meta: dict[str, Any] = {
            "id": self._job.request_id if not self._is_list else f"{self._job.request_id}-{piece.index}",
            "finish_reason": None if tail is None else _finish_reason(tail),
            "prompt_tokens": head.prompt_tokens if head is not None else 0,
            "cached_tokens": head.cached_tokens if head is not None else 0,
            "completion_tokens": self._num_tokens[piece.index] if tail is None else tail.completion_tokens,
        }
        if self._given.return_logprob:
            meta |= self._logprobs(piece)
        if head is not None and tail is not None:
            meta["e2e_latency"] = round((tail.finished_ns - head.received_ns) / NS_PER_S, 6)
        return {"text": self._texts[piece.index], "meta_info": meta}

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        """The fields with log-probabilities: of the prompt, and of the output so far."""
        if piece.index not in self._of_prompts:
            self._of_prompts[piece.index] = self._prompt_fields(piece.index)
        columns = self._of_outputs[piece.index]
        columns.add(piece.logprobs)
        return self._of_prompts[piece.index] | columns.fields("output")

    def _prompt_fields(self, index: int) -> dict[str, Any]:
        columns = _Columns(self._given)
        if self._given.shows_prompt:
            # The first choice of a prompt has read it for all.
            readings = self._stream.sequences[index - index % self._job.n].readings
            columns.add(prompt_rows(readings)[self._given.logprob_start_len :])
            columns.hide_first()
        # Serialised once: a stream repeats them in every event.
        return {name: orjson.Fragment(orjson.dumps(column)) for name, column in columns.fields("input").items()}


class _Columns:
    """Log-probabilities as SGLang shows them: [value, token id, text or null] of each token, and a list of such
    entries, the most likely first, beside it."""

    def __init__(self, given: GenerateBody) -> None:
        self._limit = given.top_logprobs_num
        self._with_text = given.return_text_in_logprobs
        self._tokens: list[list[Any]] = []
        self._tops: list[list[list[Any]] | None] = []

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._tokens.append(self._entry(row[0]))
            if self._limit:
                self._tops.append([self._entry(entry) for entry in most_likely(row, self._limit)])

    def hide_first(self) -> None:
        """SGLang tells the first token of a prompt's part, and nothing of how likely it was."""
        if self._tokens:
            self._tokens[0][0] = None
        if self._tops:
            self._tops[0] = None

    def fields(self, side: str) -> dict[str, Any]:
        fields: dict[str, Any] = {f"{side}_token_logprobs": self._tokens}
        return fields | {f"{side}_top_logprobs": self._tops} if self._limit else fields

    def _entry(self, entry: Entry) -> list[Any]:
        text = entry.piece.decode(errors="replace") if self._with_text else None
        return [entry.logprob, entry.token_id, text]


def _finish_reason(tail: Tail) -> dict[str, Any]:
    if tail.reason == LENGTH:
        return {"type": "length", "length": tail.completion_tokens}
    return {"type": "stop", "matched": tail.stop_token if tail.stop_string is None else tail.stop_string}
