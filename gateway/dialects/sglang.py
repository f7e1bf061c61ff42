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
# And those that are called something in its structured_outputs.
_STRUCTURES = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
_OWN_NAMES = {name: own for own, name in _NAMES.items()}
_OWN_NAMES |= {f"structured_outputs.{name}": own for own, name in _STRUCTURES.items()}


class SGLang:
    """The handler."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def generate(self, request: web.Request) -> web.StreamResponse:
        intake = self._intake
        envelope = intake.envelope(request)

        def understand(body: dict[str, Any]) -> tuple[GenerateBody, Job]:
            given = parse_generate(body)
            try:
                return given, completion_job(completion_body(given), envelope, intake.ring, intake.config)
            except ApiError as error:
                raise _in_own_words(error, given) from None

        given, job = await intake.read(request, understand)
        for generate in job.generates:
            for part in generate.grammar:
                part.param = _own_path(part.param, given)
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
    structures = {name: value for own, name in _STRUCTURES.items() if (value := sampling.pop(own)) is not None}
    if len(structures) > 1:
        refuse("sampling_params: give only one of json_schema, regex and ebnf", "sampling_params")
    body: dict[str, Any] = {_NAMES.get(name, name): value for name, value in sampling.items()}
    body["structured_outputs"] = structures or None
    prompt = given.input_ids if given.text is None else given.text
    return body | {"prompt": prompt, "stream": given.stream, "rid": given.rid, "priority": given.priority}


def _in_own_words(error: ApiError, given: GenerateBody) -> ApiError:
    """An error that names a text completion's field, with the name that the field has here."""
    if error.param is None or (own := _own_path(error.param, given)) == error.param:
        return error
    return ApiError(error.status, error.message.replace(error.param, own, 1), own, error.kind)


def _own_path(param: str, given: GenerateBody) -> str:
    """What a field of the text completion is called here."""
    steps = param.split(".")
    for length in (2, 1):
        field = ".".join(steps[:length]).partition("[")[0]
        rest = param[len(field) :]
        if field == "prompt":
            return ("text" if given.text is not None else "input_ids") + rest
        own = _OWN_NAMES.get(field, field)
        if own in SamplingParams.model_fields:
            return f"sampling_params.{own}{rest}"
    return param


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
