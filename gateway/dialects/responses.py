"""OpenAI's Responses API: create, and, while a response is being made, retrieve and cancel. Nothing is stored."""

from __future__ import annotations

from aiohttp import web

from gateway.delivery import deliver
from gateway.dialects.responses_answer import ID_PREFIX, ResponseAnswer
from gateway.dialects.responses_request import chat_body, own_path
from gateway.dialects.responses_schemas import UNSUPPORTED, ResponsesRequest
from gateway.errors import SHOWN_NAME_CHARS, ApiError, shorten
from gateway.intake import Intake
from gateway.json_response import json_response
from gateway.request import Job, chat_job
from gateway.schemas import parse
from gateway.streams import Stream


class Responses:
    """The handlers."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._alive: dict[str, tuple[ResponseAnswer, Stream]] = {}  # by id

    async def create(self, request: web.Request) -> web.StreamResponse:
        intake = self._intake
        given = await intake.read(request, lambda body: parse(ResponsesRequest, body, UNSUPPORTED))
        try:
            job = chat_job(chat_body(given), intake.envelope(request), intake.ring, intake.config)
            await intake.templates.settle(job)
        except ApiError as error:
            raise _in_own_words(error) from None
        for part in job.generates[0].grammar:
            part.param = own_path(part.param)
        if ID_PREFIX + job.request_id in self._alive:
            raise ApiError(409, f"a response of the id {ID_PREFIX}{job.request_id} is being made", "request_id")

        def shape(job: Job, stream: Stream) -> ResponseAnswer:
            answer = ResponseAnswer(given, job, stream)
            self._alive[answer.id] = answer, stream
            return answer

        try:
            return await deliver(request, intake.engine, job, shape)
        finally:
            del self._alive[ID_PREFIX + job.request_id]

    async def retrieve(self, request: web.Request) -> web.Response:
        """A response that is being made, as far as it is. Raises ApiError 404."""
        answer, _ = self._find(request)
        return json_response(answer.snapshot())

    async def cancel(self, request: web.Request) -> web.Response:
        """End a response that is being made: whoever waits for it gets an error. Raises ApiError 404."""
        answer, stream = self._find(request)
        stream.fail(ApiError(409, f"the response {answer.id} was cancelled"))
        return json_response(answer.snapshot("cancelled"))

    def _find(self, request: web.Request) -> tuple[ResponseAnswer, Stream]:
        name = request.match_info["id"]
        if name not in self._alive:
            shown = shorten(name, SHOWN_NAME_CHARS)
            raise ApiError(404, f"no response {shown!r} is being made, and those that are done are not stored")
        return self._alive[name]


def _in_own_words(error: ApiError) -> ApiError:
    """An error that names a chat completion's field, with the name that the field has here."""
    if error.param is None or (own := own_path(error.param)) == error.param:
        return error
    return ApiError(error.status, error.message.replace(error.param, own, 1), own, error.kind)
