"""SGLang's native endpoint, /generate: text in, the whole text so far out."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.delivery import deliver
from gateway.dialects.sglang_answer import GenerateAnswer
from gateway.dialects.sglang_schemas import UNSUPPORTED, UNSUPPORTED_SAMPLING, GenerateBody, SamplingParams
from gateway.errors import ApiError, refuse
from gateway.intake import Intake
from gateway.parameters import supplied
from gateway.request import Envelope, Job, completion_job
from gateway.ring import RingView
from gateway.schemas import parse
from gateway.streams import Stream
from ipc.config import GatewayConfig

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
            return given, generate_job(given, envelope, intake.ring, intake.config)

        given, job = await intake.read(request, understand)
        is_batch = isinstance(given.text, list) or (
            given.input_ids is not None and isinstance(given.input_ids[0], list)
        )

        def shape(job: Job, stream: Stream) -> GenerateAnswer:
            return GenerateAnswer(given, job, stream, is_batch or job.n > 1)

        try:
            return await deliver(request, intake.engine, job, shape)
        except ApiError as error:
            raise error.about(error.param and _own_path(error.param, given)) from None


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
    if not given.return_logprob:
        for name, neutral in (("logprob_start_len", -1), ("top_logprobs_num", 0)):
            if getattr(given, name) != neutral:
                refuse(f"{name}: needs return_logprob to be true", name)
    if given.shows_prompt and given.stream and given.sampling_params.n > 1:
        # They come with the first choice, and another one must not wait for it.
        refuse("logprob_start_len: a stream that tells of its prompt has one choice", "logprob_start_len")
    return given


def generate_job(given: GenerateBody, envelope: Envelope, ring: RingView, config: GatewayConfig) -> Job:
    """A body of /generate as a job. Raises ApiError."""
    model = ring.admit()
    if given.shows_prompt and not model.reads_prompts:
        refuse(f"logprob_start_len: needs a model, and {model.name} computes nothing", "logprob_start_len")
    try:
        job = completion_job(completion_body(given), envelope, ring, config)
    except ApiError as error:
        raise error.about(error.param and _own_path(error.param, given)) from None
    if given.shows_prompt:
        for generate in job.generates:
            generate.sampling.prompt_logprobs = given.top_logprobs_num
    return job


def completion_body(given: GenerateBody) -> dict[str, Any]:
    """The body of a text completion that asks for the same."""
    sampling = given.sampling_params.model_dump()
    structures = {name: value for own, name in _STRUCTURES.items() if (value := sampling.pop(own)) is not None}
    if len(structures) > 1:
        refuse("sampling_params: give only one of json_schema, regex and ebnf", "sampling_params")
    body: dict[str, Any] = {_NAMES.get(name, name): value for name, value in sampling.items()}
    body["structured_outputs"] = structures or None
    if body["max_tokens"] == 0:
        body["echo"] = True  # which a completion that only reads its prompt is asked with; there is none here
    elif given.return_logprob:
        body["logprobs"] = given.top_logprobs_num
    prompt = given.input_ids if given.text is None else given.text
    return body | {"prompt": prompt, "stream": given.stream, "rid": given.rid, "priority": given.priority}


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
