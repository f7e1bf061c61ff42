"""OpenAI's endpoints that generate: /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.chat import ChatAnswer
from gateway.completions import CompletionAnswer
from gateway.delivery import deliver
from gateway.intake import Intake
from gateway.read_chat import ReadChatAnswer
from gateway.request import chat_job, completion_job
from ipc.codec import Ids
from ipc.messages import Generate


class Generation:
    """The handlers."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        intake = self._intake
        envelope = intake.envelope(request)
        job = await intake.read(request, lambda body: chat_job(body, envelope, intake.ring, intake.config))
        await intake.templates.settle(job)
        return await deliver(request, intake.engine, job, ChatAnswer if job.reading.is_plain else ReadChatAnswer)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        intake = self._intake
        envelope = intake.envelope(request)
        job = await intake.read(request, lambda body: completion_job(body, envelope, intake.ring, intake.config))
        if job.echo:
            job.prompt_texts = await asyncio.gather(*map(self._text_of, job.generates))
        return await deliver(request, intake.engine, job, CompletionAnswer)

    async def _text_of(self, generate: Generate) -> str:
        """The text of a prompt. Raises ApiError."""
        return generate.text or await self._intake.engine.detokenize(generate.ids or Ids("i"))
