"""OpenAI's Responses API: create, and, while a response is being made, retrieve and cancel. Nothing is stored."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.company import Company
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
from ipc.codec import Map


class Responses:
    """The handlers."""

    def __init__(self, intake: Intake, company: Company) -> None:
        self._intake = intake
        self._company = company
        company.answer("response", self._of_here)
        self._alive: dict[str, tuple[ResponseAnswer, Stream]] = {}  # by id

    async def create(self, request: web.Request) -> web.StreamResponse:
        intake = self._intake
        given = await intake.read(request, lambda body: parse(ResponsesRequest, body, UNSUPPORTED))
        try:
            return await self._create(request, given)
        except ApiError as error:
            raise error.about(error.param and own_path(error.param)) from None

    async def _create(self, request: web.Request, given: ResponsesRequest) -> web.StreamResponse:
        """The answer. Raises ApiError in the terms of a chat completion."""
        intake = self._intake
        job = chat_job(chat_body(given), intake.envelope(request), intake.ring, intake.config)
        await intake.templates.settle(job)
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
        return json_response(await self._find(request.match_info["id"], cancel=False))

    async def cancel(self, request: web.Request) -> web.Response:
        """End a response that is being made: whoever waits for it gets an error. Raises ApiError 404."""
        return json_response(await self._find(request.match_info["id"], cancel=True))

    async def _find(self, name: str, cancel: bool) -> dict[str, Any]:
        """A response that is being made, here or in another gateway."""
        silent: list[ApiError] = []
        if (found := self._seen(name, cancel)) is None:
            answers, silent = await self._company.ask_others("response", {"id": name, "cancel": cancel})
            found = next((answer["response"] for answer in answers if answer), None)
        if found is None and silent:
            raise silent[0]  # it may be the one that makes it
        if found is None:
            shown = shorten(name, SHOWN_NAME_CHARS)
            raise ApiError(404, f"no response {shown!r} is being made, and those that are done are not stored")
        return found

    def _seen(self, name: str, cancel: bool) -> dict[str, Any] | None:
        """A response that is being made here, cancelled now if that is wanted; None when there is none."""
        if name not in self._alive:
            return None
        answer, stream = self._alive[name]
        if not cancel:
            return answer.snapshot()
        stream.fail(ApiError(409, f"the response {answer.id} was cancelled"))
        return answer.snapshot("cancelled")

    async def _of_here(self, details: Map) -> Map:
        """Another gateway asks for one."""
        found = self._seen(details["id"], details["cancel"])
        return {} if found is None else {"response": found}
