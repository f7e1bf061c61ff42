"""Anthropic's endpoints: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from aiohttp import web

from gateway.delivery import deliver
from gateway.dialects.anthropic_answer import MessagesAnswer
from gateway.dialects.anthropic_request import chat_body, own_path, prompt_body
from gateway.dialects.anthropic_schemas import UNSUPPORTED, MessagesRequest, PromptRequest
from gateway.errors import ApiError
from gateway.intake import Intake
from gateway.json_response import json_response
from gateway.request import chat_job, chat_map
from gateway.schemas import ChatRequest, parse
from gateway.tool_schemas import check_tools


class Anthropic:
    """The handlers."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def messages(self, request: web.Request) -> web.StreamResponse:
        intake = self._intake
        body = await intake.read(request, lambda body: chat_body(parse(MessagesRequest, body, UNSUPPORTED)))
        try:
            job = chat_job(body, intake.envelope(request), intake.ring, intake.config)
            await intake.templates.settle(job)
            return await deliver(request, intake.engine, job, MessagesAnswer)
        except ApiError as error:
            raise error.about(error.param and own_path(error.param)) from None

    async def count_tokens(self, request: web.Request) -> web.Response:
        intake = self._intake
        question = await intake.read(request, lambda body: parse(PromptRequest, body, UNSUPPORTED))
        try:
            chat = parse(ChatRequest, prompt_body(question), {})
            intake.ring.name_for(chat.model)
            check_tools(chat.tools or [])
            ids = await intake.engine.tokenize(None, chat_map(chat, chat.tools or []), add_special_tokens=False)
        except ApiError as error:
            raise error.about(error.param and own_path(error.param)) from None
        return json_response({"input_tokens": len(ids)})
