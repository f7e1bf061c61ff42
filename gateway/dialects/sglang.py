"""SGLang's native endpoint, /generate: text in, the whole text so far out."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from gateway.delivery import deliver
from gateway.dialects.sglang_schemas import UNSUPPORTED, UNSUPPORTED_SAMPLING, GenerateBody, SamplingParams
from gateway.errors import ApiError, refuse
from gateway.intake import Intake
from gateway.parameters import supplied
from gateway.request import Job, completion_job
from gateway.schemas import parse
from gateway.sse import DONE, event
from gateway.streams import Piece, Stream
from gateway.timings import NS_PER_S
from ipc.messages import LENGTH, Tail

# What the parameters are called in a text completion.
_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "no_stop_trim": "include_stop_str_in_output",
    "sampling_seed": "seed",
}
_OWN_NAMES = {name: own for own, name in _NAMES.items()}


class SGLang:
    """The handler."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def generate(self, request: web.Request) -> web.StreamResponse:
        intake = self._intake
        given = parse_generate(await intake.body(request))
        try:
            job = completion_job(completion_body(given), intake.envelope(request), intake.ring, intake.config)
        except ApiError as error:
            raise _in_own_words(error, given) from None
        is_batch = isinstance(given.text, list) or (
            given.input_ids is not None and isinstance(given.input_ids[0], list)
        )
        return await deliver(
            request, intake.engine, job, lambda job, stream: GenerateAnswer(job, stream, is_batch or job.n > 1)
        )


def parse_generate(body: dict[str, Any]) -> GenerateBody:
    """A body of /generate, checked. Raises ApiError 400."""
    sampling = body.get("sampling_params")
    if isinstance(sampling, dict):
        try:
            body = body | {"sampling_params": supplied(sampling, SamplingParams.model_fields, UNSUPPORTED_SAMPLING)}
        except ApiError as error:
            raise ApiError(400, error.message, f"sampling_params.{error.param}") from None
    given = parse(GenerateBody, body, UNSUPPORTED)
    if (given.text is None) == (given.input_ids is None):
        refuse("text: give either text or input_ids", "text")
    return given


def completion_body(given: GenerateBody) -> dict[str, Any]:
    """The body of a text completion that asks for the same."""
    sampling = given.sampling_params.model_dump()
    body = {_NAMES.get(name, name): value for name, value in sampling.items()}
    prompt = given.input_ids if given.text is None else given.text
    return body | {"prompt": prompt, "stream": given.stream, "rid": given.rid, "priority": given.priority}


def _in_own_words(error: ApiError, given: GenerateBody) -> ApiError:
    """An error that names a text completion's field, with the name that the field has here."""
    if error.param is None:
        return error
    field = error.param.partition("[")[0].partition(".")[0]
    if field == "prompt":
        own = "text" if given.text is not None else "input_ids"
    elif _OWN_NAMES.get(field, field) in SamplingParams.model_fields:
        own = f"sampling_params.{_OWN_NAMES.get(field, field)}"
    else:
        return error
    message = own + error.message.removeprefix(field) if error.message.startswith(field) else error.message
    return ApiError(error.status, message, own + error.param[len(field) :], error.kind)


class GenerateAnswer:
    """An object for each sequence: a list of them when there may be several."""

    def __init__(self, job: Job, stream: Stream, is_list: bool) -> None:
        self._job = job
        self._stream = stream
        self._is_list = is_list
        self._texts = [""] * len(stream.sequences)

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
        sequence = self._stream.sequences[piece.index]
        head, tail = sequence.head, piece.tail
        meta: dict[str, Any] = {
            "id": self._job.request_id if not self._is_list else f"{self._job.request_id}-{piece.index}",
            "finish_reason": None if tail is None else _finish_reason(tail),
            "prompt_tokens": head.prompt_tokens if head is not None else 0,
            "cached_tokens": head.cached_tokens if head is not None else 0,
            "completion_tokens": sequence.num_tokens if tail is None else tail.completion_tokens,
        }
        if head is not None and tail is not None:
            meta["e2e_latency"] = round((tail.finished_ns - head.received_ns) / NS_PER_S, 6)
        return {"text": self._texts[piece.index], "meta_info": meta}


def _finish_reason(tail: Tail) -> dict[str, Any]:
    if tail.reason == LENGTH:
        return {"type": "length", "length": tail.completion_tokens}
    return {"type": "stop", "matched": tail.stop_token if tail.stop_string is None else tail.stop_string}
