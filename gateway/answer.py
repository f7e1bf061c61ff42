"""What the answers of OpenAI's generation endpoints have in common; `chat` and `completions` shape them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

import orjson

from gateway.errors import ApiError
from gateway.logprobs import Row, prompt_logprobs, prompt_rows
from gateway.request import Job
from gateway.sse import DONE, event
from gateway.streams import Piece, Stream
from gateway.timings import timings, vllm_metrics
from ipc.messages import REASON_NAMES, Tail


class Answer(ABC):
    """Shapes what the sequences of one job bring: as one JSON body, or as the events of a stream."""

    id_prefix: str
    body_object: str
    chunk_object: str

    def __init__(self, job: Job, stream: Stream) -> None:
        self._job = job
        self._stream = stream
        self._num_ended = 0  # choices whose last event has been made
        self._base = {
            "id": self.id_prefix + job.request_id,
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": job.model,
        }
        # Most events differ in nothing but index and text: what is around these is serialised once.
        self._is_plain = job.logprobs < 0 and not job.return_token_ids and not job.continuous_usage
        self._before_index = b"data: " + orjson.dumps(self._base)[:-1] + b',"choices":[{"index":'
        self._after_choice = b'],"usage":null}\n\n' if job.include_usage else b"]}\n\n"

    def body(self, pieces: list[Piece]) -> bytes:
        """The whole answer, from one piece for each choice."""
        return self._whole([self._choice(piece) for piece in pieces])

    def _whole(self, choices: list[dict[str, Any]]) -> bytes:
        """The whole answer, from its choices."""
        whole = {"object": self.body_object, "choices": choices, "usage": self._usage()}
        return orjson.dumps(self._base | whole | self._of_prompts() | self._timings())

    def _of_prompts(self) -> dict[str, Any]:
        """What a whole answer tells of its prompts beside its choices."""
        return {}

    @abstractmethod
    def events(self, piece: Piece) -> bytes:
        """The events of a stream that a piece makes."""

    def closing(self) -> bytes:
        """The events after the last piece: the usage, if the client asked for it."""
        if not self._job.include_usage:
            return DONE
        return event(orjson.dumps(self._base | {"choices": [], "usage": self._usage()} | self._timings())) + DONE

    def failure(self, error: ApiError) -> bytes:
        """The events that end a stream with an error."""
        return event(orjson.dumps(error.body())) + DONE

    @abstractmethod
    def _choice(self, piece: Piece) -> dict[str, Any]:
        """The entry of `choices` for a whole sequence."""

    def _event(self, choice: dict[str, Any], **fields: Any) -> bytes:
        """An event with one choice in it, and `fields` beside that."""
        chunk: dict[str, Any] = self._base | {"choices": [choice]} | fields
        if self._job.continuous_usage:
            chunk["usage"] = self._usage()
        elif self._job.include_usage:
            chunk["usage"] = None
        if choice["finish_reason"] is not None:
            self._num_ended += 1
            if self._num_ended == len(self._stream.sequences) and not self._job.include_usage:
                chunk |= self._timings()
        return event(orjson.dumps(chunk))

    def _usage(self) -> dict[str, Any]:
        """Tokens so far."""
        return self._stream.usage()

    def _timings(self) -> dict[str, Any]:
        """Where the time went: in a whole answer, and in the last event of a stream."""
        usage, ends = self._usage(), self._stream.ends
        cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "timings": timings(ends, usage["prompt_tokens"], cached_tokens, usage["completion_tokens"]),
            "metrics": vllm_metrics(ends),
        }

    def _token_ids(self, piece: Piece) -> dict[str, list[int]]:
        """The field with the token ids, for those who asked for it."""
        return {"token_ids": piece.token_ids.tolist()} if self._job.return_token_ids else {}

    def _prompt_ids(self, index: int) -> dict[str, list[int]]:
        """The field with the token ids of a choice's prompt, for those who asked for it."""
        head = self._stream.sequences[index].head
        return {"prompt_token_ids": head.prompt_ids.tolist()} if self._job.return_token_ids and head else {}

    def _prompt_rows(self, index: int) -> list[Row]:
        """The log-probabilities of a choice's prompt. The first choice of a prompt has read it for all."""
        return prompt_rows(self._stream.sequences[index - index % self._job.n].readings)

    def _prompt_logprobs(self, index: int) -> dict[str, Any]:
        """The field with the log-probabilities of a choice's prompt, for those who asked for it."""
        limit = self._job.prompt_logprobs
        return {} if limit < 0 else {"prompt_logprobs": prompt_logprobs(self._prompt_rows(index), limit)}

    def _end(self, tail: Tail | None) -> dict[str, Any]:
        """Why a choice ended: the reason, and the stop string or the token of `stop_token_ids` that it met."""
        if tail is None:
            return {"finish_reason": None}
        stop: str | int | None = tail.stop_string
        if stop is None and tail.stop_token in self._job.generates[0].sampling.stop_token_ids:
            stop = tail.stop_token
        return {"finish_reason": REASON_NAMES[tail.reason], "stop_reason": stop}
