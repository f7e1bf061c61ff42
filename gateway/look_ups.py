"""The endpoints that ask the tokenizer and generate nothing: /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.body import read_as, read_json
from gateway.engine import Engine
from gateway.errors import refuse
from gateway.json_response import json_response
from gateway.parameters import UNSUPPORTED_TOKENIZE
from gateway.request import chat_map
from gateway.ring import RingView
from gateway.schemas import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest, parse
from gateway.tool_schemas import check_tools

MAX_DETOKENIZED = 2**17  # ids; the longest tokens have hundreds of bytes, and the text must fit one message


class LookUps:
    """The handlers."""

    def __init__(self, engine: Engine, ring: RingView, max_body_bytes: int) -> None:
        self._engine = engine
        self._ring = ring
        self._max_body_bytes = max_body_bytes

    async def tokenize(self, request: web.Request) -> web.Response:
        model = self._ring.admit()
        body = await read_json(request, self._max_body_bytes)
        if "messages" in body and "prompt" in body:
            refuse("prompt: give either prompt or messages", "prompt")
        text: str | None = None
        chat: dict[str, Any] | None = None
        question: TokenizeTextRequest | TokenizeChatRequest
        if "messages" in body:
            question = parse(TokenizeChatRequest, body, UNSUPPORTED_TOKENIZE)
            check_tools(question.tools or [])
            chat = chat_map(question, question.tools or [])
        else:
            question = parse(TokenizeTextRequest, body, UNSUPPORTED_TOKENIZE)
            text = question.prompt
        self._ring.name_for(question.model)
        wants_names = question.return_token_strs
        found = await self._engine.tokens(text, chat, question.add_special_tokens, wants_names)
        names = {"token_strs": found.names} if wants_names else {}
        count = {"count": len(found.token_ids), "max_model_len": model.max_model_len}
        return json_response(count | {"tokens": found.token_ids.tolist()} | names)

    async def detokenize(self, request: web.Request) -> web.Response:
        model = self._ring.admit()
        question = await read_as(request, self._max_body_bytes, lambda body: parse(DetokenizeRequest, body, {}))
        self._ring.name_for(question.model)
        if len(question.tokens) > MAX_DETOKENIZED:
            refuse(f"tokens: {len(question.tokens)} ids are more than the {MAX_DETOKENIZED} taken at once", "tokens")
        if question.tokens and max(question.tokens) >= model.vocab_size:
            refuse(f"tokens: ids must be below {model.vocab_size}, the size of the vocabulary", "tokens")
        return json_response({"prompt": await self._engine.detokenize(question.tokens)})
