"""What the model's chat template shows of how the model writes: found out by asking it, not by reading it.

The tokenizer renders a small conversation, and the text says whether the model reasons, whether its answer begins
within the reasoning, and how it writes a tool call. What does not depend on the request is asked once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import orjson

from gateway.engine import Engine
from gateway.errors import ApiError, refuse
from gateway.parsers import hermes, mistral, reasoning
from gateway.parsers.reader import TOOL_PARSERS
from gateway.request import Job
from gateway.tool_grammar import grammar_with_calls, needs_grammar
from ipc.codec import Ids
from ipc.config import GatewayConfig

PATIENCE_S = 30.0
MAX_REMEMBERED = 256  # different template variables of requests

WORD = "zebra"  # no template writes it by itself
QUESTION = {"role": "user", "content": WORD}
TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look a word up",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "lookup", "arguments": {"word": "x"}}}

Message = dict[str, Any]


class Templates:
    """Asks the tokenizer about the chat template, and remembers."""

    def __init__(self, engine: Engine, config: GatewayConfig) -> None:
        self._engine = engine
        self._tool_format = None if config.tool_call_parser == "auto" else config.tool_call_parser
        self._reasons = {"auto": None, "none": False, "think": True}[config.reasoning_parser]
        self._reads_effort: bool | None = None
        self._special: dict[str, int | None] = {}  # mark -> its id, when it is a special token
        self._inside: OrderedDict[bytes, bool] = OrderedDict()

    async def settle(self, job: Job) -> None:
        """Complete a chat's job: how its text is to be read. Raises ApiError."""
        [generate] = job.generates
        chat = generate.chat or {}
        reading = replace(job.reading, reasons=await self._model_reasons())
        if reading.reasons:
            if job.reasoning_effort is not None:
                await self._set_effort(chat, job.reasoning_effort)
            reading = replace(reading, is_inside=await self._begins_inside(chat))
        elif job.reasoning_effort not in (None, "none"):
            refuse("reasoning_effort: this model does not reason", "reasoning_effort")
        elif not reading.show_reasoning:
            refuse("include_reasoning: this model does not reason", "include_reasoning")
        if reading.tools:
            reading = replace(reading, tool_format=await self._format_of_calls())
        job.reading = reading
        if job.calls is not None and needs_grammar(job.calls, generate.grammar, reading):
            special = await self._special_among((*TOOL_PARSERS[reading.tool_format].marks, *reasoning.MARKS))
            generate.grammar = grammar_with_calls(job.calls, generate.grammar, reading, special)
        if generate.output.skip_special_tokens and not reading.is_plain:
            marks = TOOL_PARSERS[reading.tool_format].marks if reading.tools else ()
            if await self._special_among((*marks, *(reasoning.MARKS if reading.reasons else ()))):
                generate.output.skip_special_tokens = False  # or they would never be seen here

    # -- reasoning ---------------------------------------------------------------------------------------------------

    async def _model_reasons(self) -> bool:
        """Whether the template takes reasoning out of earlier answers, writes it into them, or opens it itself."""
        if self._reasons is None:
            earlier = {"role": "assistant", "content": f"{reasoning.OPEN}{WORD}{reasoning.CLOSE}yes"}
            kept = await self._render([{"role": "user", "content": "a"}, earlier, {"role": "user", "content": "b"}])
            written = await self._render(
                [{"role": "user", "content": "a"}, {"role": "assistant", "content": "yes", "reasoning_content": WORD}],
                add_generation_prompt=False,
            )
            opened = await self._render([QUESTION])
            self._reasons = (
                (kept is not None and WORD not in kept)
                or (written is not None and WORD in written)
                or (opened is not None and reasoning.OPEN in opened.rpartition(WORD)[2])
            )
        return self._reasons

    async def _begins_inside(self, chat: dict[str, Any]) -> bool:
        """Whether the prompt of this conversation ends within the reasoning."""
        if chat["continue_final_message"]:
            content = chat["messages"][-1].get("content", "")
            if isinstance(content, list):
                content = "".join(part["text"] for part in content)
            return _ends_inside(content)
        if not chat["add_generation_prompt"]:
            return False
        variables = chat["chat_template_kwargs"]
        key = orjson.dumps(variables, option=orjson.OPT_SORT_KEYS)
        if key not in self._inside:
            text = await self._render([QUESTION], chat_template_kwargs=variables)
            self._inside[key] = text is not None and _ends_inside(text.rpartition(WORD)[2])
            if len(self._inside) > MAX_REMEMBERED:
                self._inside.popitem(last=False)
        return self._inside[key]

    async def _set_effort(self, chat: dict[str, Any], effort: str) -> None:
        """Tell the template, by the names that templates have for it; the client's own variables go before."""
        if self._reads_effort is None:
            none, high = [
                await self._render([QUESTION], chat_template_kwargs=_effort_variables(each))
                for each in ("none", "high")
            ]
            self._reads_effort = none != high
        if not self._reads_effort:
            refuse("reasoning_effort: the chat template of this model does not read it", "reasoning_effort")
        chat["chat_template_kwargs"] = _effort_variables(effort) | chat["chat_template_kwargs"]

    # -- tools -------------------------------------------------------------------------------------------------------

    async def _format_of_calls(self) -> str:
        """How the template writes a call that the model has made: so writes the model."""
        if self._tool_format is None:
            called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
            text = await self._render([QUESTION, called], tools=[TOOL], add_generation_prompt=False)
            self._tool_format = _format_in((text or "").rpartition(WORD)[2])
        return self._tool_format

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _special_among(self, marks: Iterable[str]) -> dict[str, int]:
        """The ids of those marks that are special tokens, whose text is left out unless it is asked for."""
        for mark in marks:
            if mark not in self._special:
                self._special[mark] = await self._special_id(mark)
        return {mark: token_id for mark in marks if (token_id := self._special[mark]) is not None}

    async def _special_id(self, mark: str) -> int | None:
        """In a message the text of a special token stays text, so it is spelled in other tokens than by itself."""
        alone = await self._ids(text=mark)
        if alone is None or len(alone) != 1:
            return None
        spelled = await self._ids(chat=_chat([{"role": "user", "content": mark}]))
        return alone[0] if spelled is None or alone[0] not in spelled else None

    async def _render(self, messages: list[Message], **chat: Any) -> str | None:
        """The prompt of a conversation; None when the template refuses it. Raises ApiError."""
        ids = await self._ids(chat=_chat(messages) | chat)
        return None if ids is None else await self._within(self._engine.detokenize(ids))

    async def _ids(self, text: str | None = None, chat: dict[str, Any] | None = None) -> Ids | None:
        try:
            return await self._within(self._engine.tokenize(text, chat, add_special_tokens=False))
        except ApiError as error:
            if error.status >= 500:
                raise
            return None

    async def _within(self, answer: Any) -> Any:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await answer
        except TimeoutError:
            raise ApiError(503, f"the tokenizer gave no answer within {PATIENCE_S:g} s") from None


def _chat(messages: list[Message]) -> dict[str, Any]:
    return {
        "messages": messages,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "chat_template_kwargs": {},
    }


def _effort_variables(effort: str) -> dict[str, Any]:
    thinks = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks}


def _ends_inside(text: str) -> bool:
    return text.rfind(reasoning.OPEN) > text.rfind(reasoning.CLOSE)


def _format_in(text: str) -> str:
    if hermes.OPEN in text:
        return "hermes"
    if mistral.MARK in text:
        return "mistral"
    return "llama3_json" if '"parameters"' in text else "json"
