"""Reasoning on /v1/chat/completions: told from the answer, counted, steered, hidden."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import aiohttp
import openai
import pytest

from ipc.config import GatewayConfig
from ipc.messages import STOP, Generate
from tests.gateway.answers import events_in
from tests.gateway.scripted_ring import CONFIG, ScriptedRing

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
WORDS = ["<think>", "\n", "Hm", ", yes", "\n", "</think>", "\n\n", "An", "swer"]


def qwen(chat: dict[str, Any]) -> str:
    """Takes reasoning out of earlier answers; the model opens it itself, unless told not to think."""
    text = ""
    for message in chat["messages"]:
        text += f"{message['role']}: {message['content'].rpartition('</think>')[2]}\n"
    if chat["add_generation_prompt"]:
        text += "assistant:\n"
        if chat["chat_template_kwargs"].get("enable_thinking") is False:
            text += "<think>\n\n</think>\n\n"
    return text


def deepseek(chat: dict[str, Any]) -> str:
    """Opens the reasoning itself, always."""
    return qwen(chat | {"chat_template_kwargs": {}}) + ("<think>\n" if chat["add_generation_prompt"] else "")


def writes_it(chat: dict[str, Any]) -> str:
    return "".join(f"{m.get('reasoning_content', '')}|{m['content']}\n" for m in chat["messages"])


class TestThinkingModel:
    @pytest.fixture
    def ring(self) -> ScriptedRing:
        ring = ScriptedRing()
        ring.template = qwen
        ring.script = lambda generate: ring.answer(generate, WORDS, STOP)
        return ring

    @pytest.mark.asyncio
    async def test_unary(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO)
        message = answer.choices[0].message.to_dict()
        assert message == {"role": "assistant", "content": "Answer", "reasoning_content": "Hm, yes"}
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 6
        assert answer.usage.completion_tokens == 9

    @pytest.mark.asyncio
    async def test_stream(self, http: aiohttp.ClientSession) -> None:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with http.post(CHAT, json={"messages": HELLO, **options}) as response:
            *events, usage = events_in(await response.read())
        deltas = [event["choices"][0]["delta"] for event in events]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert deltas[-1] == {}
        assert list(dict.fromkeys(key for delta in deltas[1:-1] for key in delta)) == ["reasoning_content", "content"]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, yes"
        assert "".join(delta.get("content", "") for delta in deltas) == "Answer"
        assert usage["usage"]["completion_tokens_details"] == {"reasoning_tokens": 6}

    @pytest.mark.asyncio
    async def test_hidden(self, http: aiohttp.ClientSession) -> None:
        for stream in (False, True):
            fields = {"messages": HELLO, "include_reasoning": False, "stream": stream}
            async with http.post(CHAT, json=fields) as response:
                assert response.status == 200
                assert b"Hm" not in (text := await response.read())
                assert b"reasoning_content" not in text
                assert b"An" in text

    @pytest.mark.asyncio
    async def test_an_answer_without_any(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        ring.script = lambda generate: ring.answer(generate, ["Just ", "this"], STOP)
        async with http.post(CHAT, json={"messages": HELLO}) as response:
            answer = await response.json()
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Just this"}
        assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}

    @pytest.mark.asyncio
    @pytest.mark.parametrize(("effort", "thinks"), [("none", False), ("low", True), ("max", True)])
    async def test_effort_reaches_the_template(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, effort: str, thinks: bool
    ) -> None:
        fields = {"messages": HELLO, "reasoning_effort": effort, "chat_template_kwargs": {"thinking": "mine"}}
        async with http.post(CHAT, json=fields) as response:
            assert response.status == 200
        generate = await ring.next(Generate)
        assert generate.chat is not None
        assert generate.chat["chat_template_kwargs"] == {
            "reasoning_effort": effort,
            "enable_thinking": thinks,
            "thinking": "mine",
        }

    @pytest.mark.asyncio
    async def test_tools_are_called_after_it(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        words = ["<think>Hm</think>", '\n{"name": "f", "arguments": {"a": 1}}']
        ring.script = lambda generate: ring.answer(generate, words, STOP)
        tools = [{"type": "function", "function": {"name": "f"}}]
        async with http.post(CHAT, json={"messages": HELLO, "tools": tools}) as response:
            choice = (await response.json())["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        assert choice["message"]["reasoning_content"] == "Hm"
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}

    @pytest.mark.asyncio
    async def test_special_tokens_as_marks_are_not_left_out(
        self, ring: ScriptedRing, http: aiohttp.ClientSession
    ) -> None:
        ring.special["<think>"] = 7
        async with http.post(CHAT, json={"messages": HELLO}) as response:
            assert response.status == 200
        assert (await ring.next(Generate)).output.skip_special_tokens is False


class TestTemplateThatOpensIt:
    @pytest.fixture
    def ring(self) -> ScriptedRing:
        ring = ScriptedRing()
        ring.template = deepseek
        ring.script = lambda generate: ring.answer(generate, WORDS[2:], STOP)
        return ring

    @pytest.mark.asyncio
    async def test_the_text_begins_inside(self, http: aiohttp.ClientSession) -> None:
        async with http.post(CHAT, json={"messages": HELLO}) as response:
            message = (await response.json())["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm, yes", "Answer")

    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        ("content", "inside"), [("<think>Well", True), ("<think>Well</think>So", False), ("So", False)]
    )
    async def test_a_continued_message_says_where_it_is(
        self, http: aiohttp.ClientSession, content: str, inside: bool
    ) -> None:
        messages = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": content}]}]
        async with http.post(CHAT, json={"messages": messages, "continue_final_message": True}) as response:
            message = (await response.json())["choices"][0]["message"]
        assert ("reasoning_content" in message) is inside

    @pytest.mark.asyncio
    async def test_without_a_new_turn_it_does_not(self, http: aiohttp.ClientSession) -> None:
        async with http.post(CHAT, json={"messages": HELLO, "add_generation_prompt": False}) as response:
            assert "reasoning_content" not in (await response.json())["choices"][0]["message"]

    @pytest.mark.asyncio
    async def test_an_effort_that_nobody_reads_is_refused(
        self, ring: ScriptedRing, http: aiohttp.ClientSession
    ) -> None:
        for effort in ("none", "high"):
            async with http.post(CHAT, json={"messages": HELLO, "reasoning_effort": effort}) as response:
                assert response.status == 400
                error = (await response.json())["error"]
            assert error["param"] == "reasoning_effort"
            assert "does not read it" in error["message"]
        assert ring.sent == []


@pytest.mark.asyncio
async def test_a_template_that_switches_it_per_request(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    def template(chat: dict[str, Any]) -> str:
        return qwen(chat) + ("" if chat["chat_template_kwargs"].get("enable_thinking") is False else "<think>\n")

    ring.template = template
    ring.script = lambda generate: ring.answer(generate, ["Hm", "</think>", "Yes"], STOP)
    for kwargs, reasoning in (({}, "Hm"), ({"enable_thinking": False}, None), ({}, "Hm")):
        async with http.post(CHAT, json={"messages": HELLO, "chat_template_kwargs": kwargs}) as response:
            message = (await response.json())["choices"][0]["message"]
        assert message.get("reasoning_content") == reasoning


@pytest.mark.asyncio
async def test_a_template_that_only_writes_it(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.template = writes_it
    ring.script = lambda generate: ring.answer(generate, WORDS, STOP)
    async with http.post(CHAT, json={"messages": HELLO}) as response:
        assert (await response.json())["choices"][0]["message"]["reasoning_content"] == "Hm, yes"


@pytest.mark.asyncio
async def test_a_model_that_does_not_reason(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS, STOP)
    async with http.post(CHAT, json={"messages": HELLO, "reasoning_effort": "none"}) as response:
        answer = await response.json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "".join(WORDS)}
    assert "completion_tokens_details" not in answer["usage"]


class TestSwitchedOff:
    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, reasoning_parser="none")

    @pytest.mark.asyncio
    async def test_all_text_is_content(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        ring.template = deepseek
        ring.script = lambda generate: ring.answer(generate, WORDS, STOP)
        async with http.post(CHAT, json={"messages": HELLO}) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == "".join(WORDS)


class TestSwitchedOn:
    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, reasoning_parser="think")

    @pytest.mark.asyncio
    async def test_whatever_the_template_shows(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        ring.script = lambda generate: ring.answer(generate, WORDS, STOP)
        async with http.post(CHAT, json={"messages": HELLO}) as response:
            assert (await response.json())["choices"][0]["message"]["reasoning_content"] == "Hm, yes"
