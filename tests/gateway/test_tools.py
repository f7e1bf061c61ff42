"""Tools on /v1/chat/completions, seen through OpenAI's client and event by event."""

from __future__ import annotations

import asyncio
import json
from array import array
from dataclasses import replace
from typing import Any

import aiohttp
import openai
import pytest

from ipc.config import GatewayConfig
from ipc.messages import LENGTH, STOP, Generate, LookUp, Tokenize
from tests.gateway.answers import events_in, logprobs_of, next_event
from tests.gateway.scripted_ring import CONFIG, ScriptedRing, head, render, tail

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "What is the weather?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "pattern": r"^\p{L}(?<x>a)+$"}}}
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "description": "Ask", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "get_time"}},
]
HERMES = [
    "I ",
    "look. ",
    "<tool",
    '_call>\n{"name": "get_',
    'weather", "arguments": {"ci',
    'ty": "Ro',
    'me"}}\n</tool_call>',
]


def hermes_template(chat: dict[str, Any]) -> str:
    text = ""
    for message in chat["messages"]:
        text += f"{message['role']}: {message['content']}\n"
        for call in message.get("tool_calls", []):
            text += f"<tool_call>\n{json.dumps(call['function'])}\n</tool_call>"
    return text


def mistral_template(chat: dict[str, Any]) -> str:
    return hermes_template(chat).replace("<tool_call>", "[TOOL_CALLS]")


def llama_template(chat: dict[str, Any]) -> str:
    return hermes_template(chat).replace("<tool_call>", "").replace('"arguments"', '"parameters"')


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": HELLO, "tools": TOOLS, **fields}


class TestHermes:
    @pytest.fixture
    def ring(self) -> ScriptedRing:
        ring = ScriptedRing()
        ring.template = hermes_template
        ring.script = lambda generate: ring.answer(generate, HERMES, STOP)
        return ring

    @pytest.mark.asyncio
    async def test_unary(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look."
        assert choice.message.tool_calls is not None
        [call] = choice.message.tool_calls
        assert call.type == "function"
        assert call.id.startswith("call_")
        assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Rome"}')

    @pytest.mark.asyncio
    async def test_the_clients_own_joining_of_a_stream(self, client: openai.AsyncOpenAI) -> None:
        async with client.chat.completions.stream(model="tiny", messages=HELLO, tools=TOOLS) as stream:
            final = await stream.get_final_completion()
        message = final.choices[0].message
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.name == "get_weather"
        assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Rome"}
        assert final.choices[0].finish_reason == "tool_calls"

    @pytest.mark.asyncio
    async def test_every_event(self, http: aiohttp.ClientSession) -> None:
        async with http.post(CHAT, json=body(stream=True, n=2)) as response:
            choices = [event["choices"][0] for event in events_in(await response.read())]
        for index in (0, 1):
            own = [choice for choice in choices if choice["index"] == index]
            assert own[0]["delta"] == {"role": "assistant", "content": ""}
            deltas = [choice["delta"] for choice in own[1:-1]]
            assert "".join(delta.get("content", "") for delta in deltas) == "I look."
            calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
            assert calls[0].pop("id").startswith("call_")
            assert calls[0] == {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": ""}}
            assert "".join(call["function"]["arguments"] for call in calls[1:]) == '{"city": "Rome"}'
            assert (own[-1]["delta"], own[-1]["finish_reason"]) == ({}, "tool_calls")
            assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)

    @pytest.mark.asyncio
    async def test_arguments_come_as_they_are_written(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        def script(generate: Generate) -> None:
            ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "".join(HERMES[2:5]), [1])])

        ring.script = script
        async with http.post(CHAT, json=body(stream=True)) as response:
            _, opened, first = [await next_event(response) for _ in range(3)]
            assert opened["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "get_weather"
            assert first["choices"][0]["delta"] == {"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]}
            rid = (await ring.next(Generate)).rid
            ring.bring(rows=[(rid, HERMES[5], [2])])
            second = await next_event(response)
            assert second["choices"][0]["delta"]["tool_calls"][0]["function"] == {"arguments": 'ty": "Ro'}

    @pytest.mark.asyncio
    async def test_the_template_gets_the_tools(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        async with http.post(CHAT, json=body(tool_choice="auto", parallel_tool_calls=True)) as response:
            assert response.status == 200
        generate = await ring.next(Generate)
        assert generate.chat is not None
        assert generate.chat["tools"] == TOOLS
        assert generate.output.skip_special_tokens is True

    @pytest.mark.asyncio
    async def test_a_special_token_as_mark_is_not_left_out(
        self, ring: ScriptedRing, http: aiohttp.ClientSession
    ) -> None:
        ring.special["<tool_call>"] = 7
        for fields, skips in ((body(), False), ({"messages": HELLO}, True)):
            async with http.post(CHAT, json=fields) as response:
                assert response.status == 200
            assert (await ring.next(Generate)).output.skip_special_tokens is skips

    @pytest.mark.asyncio
    async def test_none_means_that_the_model_knows_of_none(
        self, ring: ScriptedRing, http: aiohttp.ClientSession
    ) -> None:
        async with http.post(CHAT, json=body(tool_choice="none")) as response:
            choice = (await response.json())["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("".join(HERMES), "stop")
        generate = await ring.next(Generate)
        assert generate.chat is not None
        assert "tools" not in generate.chat

    @pytest.mark.asyncio
    async def test_one_call_at_most(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        ring.script = lambda generate: ring.answer(generate, [*HERMES, *HERMES[2:]], STOP)
        for parallel, count in ((True, 2), (False, 1)):
            async with http.post(CHAT, json=body(parallel_tool_calls=parallel)) as response:
                message = (await response.json())["choices"][0]["message"]
            assert [call["function"]["arguments"] for call in message["tool_calls"]] == ['{"city": "Rome"}'] * count

    @pytest.mark.asyncio
    async def test_the_length_is_the_reason_where_it_is(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        ring.script = lambda generate: ring.answer(generate, HERMES[:-1], LENGTH)
        async with http.post(CHAT, json=body()) as response:
            choice = (await response.json())["choices"][0]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Ro'

    @pytest.mark.asyncio
    async def test_calls_alone_leave_the_content_null(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        ring.script = lambda generate: ring.answer(generate, HERMES[2:], STOP)
        async with http.post(CHAT, json=body()) as response:
            assert (await response.json())["choices"][0]["message"]["content"] is None

    @pytest.mark.asyncio
    async def test_what_is_no_call_comes_out(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        words = ["a <tool", "_ca", 'll>{"no": 1}', "</tool_call> <tool"]
        ring.script = lambda generate: ring.answer(generate, words, STOP)
        async with http.post(CHAT, json=body()) as response:
            choice = (await response.json())["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": "".join(words)}
        assert choice["finish_reason"] == "stop"
        async with http.post(CHAT, json=body(stream=True)) as response:
            deltas = [event["choices"][0]["delta"] for event in events_in(await response.read())]
        assert "".join(delta.get("content", "") for delta in deltas) == "".join(words)

    @pytest.mark.asyncio
    async def test_every_token_is_accounted_for(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        def script(generate: Generate) -> None:
            rid = generate.rid
            rows = logprobs_of([[(index, -1.0, word.encode())] for index, word in enumerate(HERMES)])
            ring.bring(heads=[head(rid)], rows=[(rid, "".join(HERMES), list(range(len(HERMES))))], logprobs=rows)
            ring.bring(rows=[(rid, "", [99])], tails=[tail(rid, 8)], logprobs=logprobs_of([[(99, 0.0, b"</s>")]]))

        ring.script = script
        fields = body(stream=True, logprobs=True, return_token_ids=True)
        async with http.post(CHAT, json=fields) as response:
            choices = [event["choices"][0] for event in events_in(await response.read())]
        ids = [token_id for choice in choices for token_id in choice.get("token_ids", [])]
        assert ids == [*range(len(HERMES)), 99]
        tokens = [entry["token"] for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
        assert tokens == [*HERMES, "</s>"]


class TestFormats:
    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        ("template", "text"),
        [
            (hermes_template, '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'),
            (mistral_template, '[TOOL_CALLS][{"name": "get_time", "arguments": {}}]'),
            (llama_template, '<|python_tag|>{"name": "get_time", "parameters": {}}'),
            (render, '{"name": "get_time", "arguments": {}}'),
            (lambda chat: None, '{"name": "get_time", "arguments": {}}'),
        ],
        ids=["hermes", "mistral", "llama3_json", "json", "refuses"],
    )
    async def test_the_template_shows_it(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, template: Any, text: str
    ) -> None:
        ring.template = template
        ring.script = lambda generate: ring.answer(generate, [text], STOP)
        async with http.post(CHAT, json=body()) as response:
            choice = (await response.json())["choices"][0]
        assert [call["function"] for call in choice["message"]["tool_calls"]] == [
            {"name": "get_time", "arguments": "{}"}
        ]

    @pytest.mark.asyncio
    async def test_it_is_asked_once(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        asked: list[dict[str, Any]] = []

        def template(chat: dict[str, Any]) -> str:
            asked.append(chat)
            return hermes_template(chat)

        ring.template = template
        ring.script = lambda generate: ring.answer(generate, HERMES, STOP)
        counts = []
        for _ in range(3):
            async with http.post(CHAT, json=body()) as response:
                assert response.status == 200
            counts.append(len(asked))
        assert len(set(counts)) == 1


class TestChosenFormat:
    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, tool_call_parser="mistral")

    @pytest.mark.asyncio
    async def test_it_goes_before_the_templates(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        ring.template = hermes_template
        ring.script = lambda generate: ring.answer(generate, ["[TOOL_CALLS]get_time[ARGS]{}"], STOP)
        async with http.post(CHAT, json=body()) as response:
            [call] = (await response.json())["choices"][0]["message"]["tool_calls"]
        assert call["function"] == {"name": "get_time", "arguments": "{}"}
        assert len(call["id"]) == 9


@pytest.mark.asyncio
async def test_calls_and_results_in_messages(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    """As clients send them back: templates read arguments as an object, so it becomes one."""
    ring.script = lambda generate: ring.answer(generate, ["It is sunny."], STOP)
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Rome", "n": 1}'},
    }
    empty = {"id": "c2", "type": "function", "function": {"name": "get_time", "arguments": ""}}
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call, empty], "reasoning": "Hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    answer = await client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == "It is sunny."
    generate = await ring.next(Generate)
    assert generate.chat is not None
    function = {"name": "get_weather", "arguments": {"city": "Rome", "n": 1}}
    assert generate.chat["messages"] == [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": function},
                {"id": "c2", "type": "function", "function": {"name": "get_time", "arguments": {}}},
            ],
        },
        messages[2],
    ]


@pytest.mark.asyncio
async def test_tokenize_with_tools(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    async with http.post("/tokenize", json=body(tools=[TOOLS[0], TOOLS[0]])) as response:
        assert (await response.json())["error"]["param"] == "tools[1].function.name"
    asking = asyncio.create_task(http.post("/tokenize", json=body()))
    question = await ring.next(Tokenize)
    assert question.chat is not None
    assert question.chat["tools"] == TOOLS
    ring.engine.on_answer(LookUp(question.rid, "", array("i", [1]), None))
    assert (await (await asking).json())["count"] == 1
